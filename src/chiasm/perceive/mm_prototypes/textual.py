"""Textual prototypes: the name of a class and one vector for each aspect of its description.

>>> found = describe(["cat", "violin"], Asked(language_model))            # chiasm.adapt.descriptions
>>> texts, mask = textual_prototypes(encoder.texts, found)                # [K, 1 + A, D'], bool [K, 1 + A]

Row 0 is the name in a few templates; every further row is an aspect (definition, color and texture, shape, parts, context,
function). Multi-modal prototypes, arXiv 2307.02003.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chiasm.adapt.descriptions import PHOTO, QUESTIONS, Descriptions
from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy

# Sentences are read alone and after the name [inferred].
SENTENCE = ("{sentence}", "a photo of a {name}. {sentence}")

TextEncoder = Callable[[Sequence[str]], Any]


def textual_prototypes(
    encode: TextEncoder,
    descriptions: Descriptions,
    *,
    aspects: Sequence[str] | None = None,
    name_templates: Sequence[str] = PHOTO,
    sentence_templates: Sequence[str] = SENTENCE,
) -> tuple[Tensor, Tensor]:
    """Vectors of the names and descriptions of K classes; one call of the encoder.

    Args:
        encode: sentences -> ``[N, D']``, arrays or tensors.
        descriptions: of `chiasm.adapt.descriptions.describe`. Sentences of its fallback are templates of the name and no
            aspects; classes that have nothing else get the name's row alone.
        aspects: which aspects, in this order; default those of the descriptions, in the order of the card. ``()`` for the
            name alone. The card takes 5 descriptions a class [inferred].
        name_templates: patterns with ``{}``; their vectors are averaged.
        sentence_templates: patterns with ``{sentence}`` and, if wanted, ``{name}``.

    Returns:
        float32 ``[K, 1 + A, D']`` of unit length, and bool ``[K, 1 + A]``, False where a class lacks an aspect.

    Raises:
        BadInput: a template without a place for the name or sentence, an aspect that no class has, or an encoder that
            does not give one finite vector a sentence.
    """
    if not name_templates or any(t.count("{}") != 1 for t in name_templates):
        raise BadInput(
            f"name templates {tuple(name_templates)}", where="textual_prototypes", fix="Write {} once in each"
        )
    if not sentence_templates or any("{sentence}" not in t for t in sentence_templates):
        raise BadInput(
            f"templates {tuple(sentence_templates)}", where="textual_prototypes", fix="Write {sentence} in each"
        )
    known = [a for a in _order(descriptions) if a != "photo"]
    wanted = known if aspects is None else list(aspects)
    unknown = [a for a in wanted if a not in descriptions.aspects]
    if unknown:
        raise BadInput(
            f"no class has the aspect {unknown[0]!r}",
            where="textual_prototypes",
            fix=f"There are {', '.join(descriptions.aspects)}",
        )
    sentences: list[str] = []
    cells: list[int] = []
    width = 1 + len(wanted)
    for number, name in enumerate(descriptions):
        said = name.replace("_", " ")
        texts = [[t.replace("{}", said) for t in name_templates]]
        for aspect in wanted:
            own = descriptions[name].get(aspect, ())
            texts.append([t.replace("{sentence}", s).replace("{name}", said) for s in own for t in sentence_templates])
        for place, several in enumerate(texts):
            sentences += several
            cells += [number * width + place] * len(several)
    vectors = torch.from_numpy(to_numpy(encode(sentences)).astype(np.float32))
    if vectors.ndim != 2 or len(vectors) != len(sentences) or not bool(torch.isfinite(vectors).all()):
        raise BadInput(
            f"the encoder gives {tuple(vectors.shape)} for {len(sentences)} sentences",
            where="textual_prototypes",
            fix="It must give one finite vector a sentence",
        )
    index, count = torch.tensor(cells), len(descriptions) * width
    sums = torch.zeros(count, vectors.shape[1]).index_add(0, index, functional.normalize(vectors, dim=1))
    there = torch.bincount(index, minlength=count) > 0
    shape = (len(descriptions), width)
    return functional.normalize(sums, dim=1).unflatten(0, shape), there.reshape(shape)


def _order(descriptions: Descriptions) -> list[str]:
    """The aspects of the card first, in its order; then all others."""
    found = descriptions.aspects
    return [*(a for a in QUESTIONS if a in found), *(a for a in found if a not in QUESTIONS)]
