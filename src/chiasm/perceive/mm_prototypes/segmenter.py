"""`PrototypeSegmenter`: classes come and go at run time, each known by words, by masked pictures, or by both.

>>> segmenter = PrototypeSegmenter(model, encoder.pictures, encoder.texts)
>>> segmenter.add("violin")                                                   # zero-shot: the name
>>> segmenter.add("my mug", pictures=three, masks=their_masks)                # few-shot
>>> segmenter.add("cat", descriptions=found, pictures=one, masks=its_mask)    # both
>>> segmenter.segment(pixel_values)                   # int64 [N, h, w]: 0 background, 1.. in the order of `classes`

Nothing is trained when a class is added: its prototypes are appended, and the logits of the other classes stay what they
were; only the background learns what is around its masks (generalized segmentation). Multi-modal prototypes, arXiv 2307.02003.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from chiasm.adapt.descriptions import Source, describe
from chiasm.errors import BadInput, StoreError, unknown_name
from chiasm.measure.vectors import to_numpy
from chiasm.perceive.mm_prototypes.model import Clues, MultiModalPrototypes
from chiasm.perceive.mm_prototypes.splitting import Rule, k_medoids, to_grid, visual_prototypes
from chiasm.perceive.mm_prototypes.textual import TextEncoder, textual_prototypes

DenseEncoder = Callable[[Tensor], Tensor]
VERSION = 1


class PrototypeSegmenter:
    """An open vocabulary of classes on a trained `MultiModalPrototypes`.

    Args:
        model: the trained part; default a fresh, untrained one for features and texts of 512 numbers.
        dense: pixel values ``[N, 3, h, w]`` -> features ``[N, F, H, W]``, frozen (`ClipEncoder.pictures`,
            `ConvEncoder.encode`); None if features are given instead of pictures everywhere.
        encode: sentences -> ``[N, D']``; None if there are no words.
        regions: M of M-Splitting; 5 [inferred].
        rule, feature_weight: of `split_mask`.
        most: visual prototypes kept of a class, chosen by k-medoids; 16 (the card).
        least: smallest cosine that the mean prototype of a class must reach somewhere in a picture; else its logits there
            are -inf, and it is not decoded if that is so in all pictures. None decodes all. For hundreds of classes.

    Raises:
        UnknownName: a rule that does not exist.
        BadInput: numbers below 1, or a negative weight.
    """

    def __init__(
        self,
        model: MultiModalPrototypes | None = None,
        dense: DenseEncoder | None = None,
        encode: TextEncoder | None = None,
        *,
        regions: int = 5,
        rule: Rule = "median",
        feature_weight: float = 1.0,
        most: int = 16,
        least: float | None = None,
    ) -> None:
        if rule not in get_args(Rule):
            raise unknown_name("rule", rule, get_args(Rule))
        if not isinstance(regions, Integral) or regions < 1 or most < 1 or not feature_weight >= 0:
            raise BadInput(
                f"regions={regions}, most={most}, feature_weight={feature_weight}",
                where="PrototypeSegmenter",
                fix="Give at least one region and prototype, and a weight from 0",
            )
        self.model = MultiModalPrototypes() if model is None else model
        self.model.eval()
        self.dense, self.encode = dense, encode
        self.regions, self.rule, self.feature_weight, self.most, self.least = regions, rule, feature_weight, most, least
        self._names: list[str] = []
        self._text: dict[str, Tensor] = {}
        self._visual: dict[str, Tensor] = {}
        self._around: dict[str, Tensor] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the order of their labels; the first has label 1."""
        return tuple(self._names)

    def add(
        self,
        name: str,
        *,
        descriptions: Source | None = None,
        text: Any = None,
        pictures: Tensor | None = None,
        masks: Any = None,
        features: Tensor | None = None,
        ignore: Any = None,
        words: bool = True,
    ) -> PrototypeSegmenter:
        """Adds a class, or further clues to one that is there: new words replace the old, pictures are added.

        Args:
            name: of the class; its label is given by the order of adding.
            descriptions: where sentences about it come from; see `chiasm.adapt.descriptions.describe`.
            text: vectors ``[T, D']`` instead of sentences.
            pictures: ``[S, 3, h, w]``, S support pictures.
            masks: bool or shares ``[S, h', w']``, where the class is.
            features: ``[S, F, H, W]`` instead of pictures.
            ignore: bool ``[S, h', w']``, pixels that are not this class and no background either: other things that have a
                class of their own. Without it they would become background prototypes and work against those classes.
            words: False keeps the name a mere label (pictures only).

        Raises:
            BadInput: no clue at all, masks that do not fit or are empty, or an encoder that is missing.
        """
        if not name.strip():
            raise BadInput("a class without a name", where="PrototypeSegmenter.add", fix="Give a name")
        has_pictures = pictures is not None or features is not None
        if has_pictures != (masks is not None):
            raise BadInput("pictures and masks go together", where=f"class {name!r}", fix="Give both, or neither")
        rows = self._words(name, descriptions, text) if words or text is not None else None
        if rows is None and not has_pictures:
            raise BadInput(
                "nothing is known of it",
                where=f"class {name!r}",
                fix="Give support pictures with masks, or a segmenter with a text encoder",
            )
        if has_pictures:
            inside, around = self._supports(name, pictures, features, masks, ignore)
            self._visual[name] = self._capped(
                torch.cat([self._visual[name], inside]) if name in self._visual else inside
            )
            if len(around):
                self._around[name] = self._capped(
                    torch.cat([self._around[name], around]) if name in self._around else around
                )
        if rows is not None:
            self._text[name] = rows
        if name not in self._names:
            self._names.append(name)
        return self

    def remove(self, name: str) -> PrototypeSegmenter:
        """Forgets a class; labels of those behind it move up by one.

        Raises:
            UnknownName: no such class.
        """
        if name not in self.classes:
            raise unknown_name("class", name, self.classes)
        self._names.remove(name)
        for table in (self._text, self._visual, self._around):
            table.pop(name, None)
        return self

    def clues(self, names: Sequence[str] | None = None) -> Clues:
        """Everything known of some classes (default all), padded, with a leading axis of 1.

        Raises:
            BadInput: no class.
            UnknownName: a class that is not there.
        """
        names = self.classes if names is None else tuple(names)
        for name in names:
            if name not in self.classes:
                raise unknown_name("class", name, self.classes)
        if not names:
            raise BadInput("there is no class", where="PrototypeSegmenter", fix="`add` one first")
        text, text_mask = _padded([self._text.get(name) for name in names])
        visual, visual_mask = _padded([self._visual.get(name) for name in names])
        grounds = [self._around[name] for name in names if name in self._around]
        # However many classes have supports, as many background prototypes as one class may have.
        around = self._capped(torch.cat(grounds))[None] if grounds else None
        return Clues(text, visual, around, text_mask, visual_mask)

    @torch.no_grad()
    def logits(
        self,
        pictures: Tensor | None = None,
        *,
        features: Tensor | None = None,
        classes: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Logits of background and classes, ``[N, 1 + K, h, w]``, at the size of the pictures.

        Args:
            pictures: ``[N, 3, h, w]``.
            features: ``[N, F, H, W]`` instead of pictures; then ``size`` is needed for more than four times their raster.
            classes: only these, in this order.
            size: of the result; default that of the pictures. Figures belong to the full size: a smaller one flatters.
            chunk: classes decoded at once.

        Raises:
            BadInput: no class, no pictures, or no encoder.
        """
        seen = self._features(pictures, features, "PrototypeSegmenter.logits")
        if size is None and pictures is not None:
            size = (int(pictures.shape[2]), int(pictures.shape[3]))
        clues = self.clues(classes)
        prototypes, mask = self.model.prototypes(clues)
        background, there = self.model.backgrounds(clues)
        near = self._near(seen, prototypes, mask)
        decoded = near.any(dim=0)
        found = self.model.decode(seen, prototypes[:, decoded], mask[:, decoded], background, there, chunk=chunk)
        if size is not None:
            found = functional.interpolate(found, size=size, mode="bilinear", align_corners=False)
        whole = found.new_full((found.shape[0], 1 + near.shape[1], *found.shape[2:]), -torch.inf)
        whole[:, 0] = found[:, 0]
        whole[:, 1:][:, decoded] = found[:, 1:]
        # Picture by picture: what else is in the batch changes nothing.
        whole[:, 1:] = whole[:, 1:].masked_fill(~near[..., None, None], -torch.inf)
        return whole

    def segment(self, pictures: Tensor | None = None, **options: Any) -> Tensor:
        """The label of every pixel, int64 ``[N, h, w]``: 0 for background, i + 1 for ``classes[i]``; options of `logits`."""
        return self.logits(pictures, **options).argmax(dim=1)

    def shares(self, pictures: Tensor | None = None, **options: Any) -> Tensor:
        """Probabilities ``[N, 1 + K, h, w]``, background first; options of `logits`."""
        return self.logits(pictures, **options).softmax(dim=1)

    def save(self, folder: str | Path) -> None:
        """Writes the model, the classes with their prototypes, and the settings; encoders are not part of it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        names = self.classes
        for kind, table in (("text", self._text), ("visual", self._visual), ("around", self._around)):
            tensors |= {f"{kind}.{names.index(name)}": value.cpu().contiguous() for name, value in table.items()}
        save_file(tensors, folder / "prototypes.safetensors")
        settings = {
            "regions": self.regions,
            "rule": self.rule,
            "feature_weight": self.feature_weight,
            "most": self.most,
            "least": self.least,
        }
        index = {"version": VERSION, "model": self.model.config, "settings": settings, "classes": list(names)}
        (folder / "prototypes.json").write_text(
            json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(
        cls, folder: str | Path, dense: DenseEncoder | None = None, encode: TextEncoder | None = None
    ) -> PrototypeSegmenter:
        """Opens what `save` wrote, with the encoders it was made with.

        Raises:
            StoreError: there is nothing, it is not whole, or it is of another version.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / "prototypes.json").read_text(encoding="utf-8"))
            if index["version"] != VERSION:
                raise StoreError(f"version {index['version']}, this is version {VERSION}", where=str(folder))
            tensors = load_file(folder / "prototypes.safetensors")
            model = MultiModalPrototypes(**{**index["model"], "use": tuple(index["model"]["use"])})
            model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
            found = cls(model, dense, encode, **index["settings"])
            found._names = [str(name) for name in index["classes"]]
            for number, name in enumerate(found._names):
                for kind, table in (("text", found._text), ("visual", found._visual), ("around", found._around)):
                    if f"{kind}.{number}" in tensors:
                        table[name] = tensors[f"{kind}.{number}"]
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"no segmenter here ({error})", where=str(folder), fix="Give a folder that `save` wrote"
            ) from error
        if any(name not in found._text and name not in found._visual for name in found._names):
            raise StoreError("classes without prototypes", where=str(folder), fix="Save the segmenter again")
        return found

    def _words(self, name: str, descriptions: Source | None, text: Any) -> Tensor | None:
        """``[T, D']`` of a class, or None without an encoder."""
        if text is not None:
            rows = torch.from_numpy(to_numpy(text).astype(np.float32))
            if rows.ndim != 2 or not len(rows) or not bool(torch.isfinite(rows).all()):
                raise BadInput(f"text {tuple(rows.shape)}", where=f"class {name!r}", fix="Give finite vectors [T, D']")
            return self._fitting(rows, name)
        if self.encode is None:
            if descriptions is not None:
                raise BadInput("descriptions, but no text encoder", where=f"class {name!r}", fix="Give `encode`")
            return None
        rows, there = textual_prototypes(self.encode, describe([name], descriptions))
        return self._fitting(rows[0][there[0]], name)

    def _fitting(self, rows: Tensor, name: str) -> Tensor:
        """The rows on the model's device, if they have its length."""
        size = self.model.text_projection.in_features
        if rows.shape[1] != size:
            raise BadInput(
                f"text vectors of {rows.shape[1]} numbers, the model reads {size}",
                where=f"class {name!r}",
                fix="Give the text encoder that the model was trained with",
            )
        return rows.to(self.model.background.device)

    def _supports(
        self, name: str, pictures: Tensor | None, features: Tensor | None, masks: Any, ignore: Any
    ) -> tuple[Tensor, Tensor]:
        """Prototypes of the masks, and of what is around them: ``[S M, F]`` and at most as many."""
        where = f"class {name!r}"
        seen = self._features(pictures, features, where)
        given, other = _mask(masks), None if ignore is None else _mask(ignore)
        if given.ndim != 3 or len(given) != len(seen) or (other is not None and other.shape != given.shape):
            raise BadInput(
                f"masks {tuple(given.shape)} for {len(seen)} pictures"
                + ("" if other is None else f", ignore {tuple(other.shape)}"),
                where=where,
                fix="Give [S, h, w], one mask a picture",
            )
        if pictures is not None and tuple(given.shape[1:]) != tuple(pictures.shape[2:]):
            raise BadInput(
                f"masks of {tuple(given.shape[1:])} for pictures of {tuple(pictures.shape[2:])}",
                where=where,
                fix="Draw the masks on the pictures that are given",
            )
        size = (int(seen.shape[2]), int(seen.shape[3]))
        cover = to_grid(given.to(seen.device), size)
        free = 1 - cover if other is None else (1 - cover - to_grid(other.to(seen.device), size)).clamp(min=0)
        # Cells that are mostly something else would carry its features into the background.
        free = free.masked_fill(free < 0.5, 0.0)
        options: dict[str, Any] = {"rule": self.rule, "feature_weight": self.feature_weight}
        inside, around = [], []
        for one, mask, rest in zip(seen, cover, free, strict=True):
            inside.append(visual_prototypes(one, mask, self.regions, **options))
            if bool((rest > 0).any()):
                around.append(visual_prototypes(one, rest, self.regions, **options))
        return torch.cat(inside), torch.cat(around) if around else seen.new_zeros(0, seen.shape[1])

    def _features(self, pictures: Tensor | None, features: Tensor | None, where: str) -> Tensor:
        if (pictures is None) == (features is None):
            raise BadInput("pictures or features", where=where, fix="Give one of the two")
        if features is None:
            if self.dense is None:
                raise BadInput("pictures, but no dense encoder", where=where, fix="Give `dense`, or features")
            assert pictures is not None
            if pictures.ndim != 4 or not len(pictures):
                raise BadInput(f"pictures {tuple(pictures.shape)}", where=where, fix="Give [N, 3, h, w]")
            features = self.dense(pictures)
        size = self.model.visual_projection.in_features
        if features.ndim != 4 or not len(features) or features.shape[1] != size:
            raise BadInput(f"features {tuple(features.shape)}", where=where, fix=f"Give [N, {size}, H, W]")
        if not bool(torch.isfinite(features).all()):
            raise BadInput("NaN or infinite values in the features", where=where, fix="Look for them in the pictures")
        return features.detach().to(self.model.background.device)

    def _capped(self, rows: Tensor) -> Tensor:
        """At most ``most`` rows; very many are first thinned out block by block, so that no table of all pairs is made."""
        block = max(2048, 2 * self.most)
        while len(rows) > block:
            rows = torch.cat([part[k_medoids(part, self.most)] for part in rows.split(block)])
        return rows[k_medoids(rows, self.most)]

    def _near(self, features: Tensor, prototypes: Tensor, mask: Tensor) -> Tensor:
        """bool ``[N, K]``: classes whose mean prototype is similar enough to some pixel of a picture."""
        if self.least is None:
            return torch.ones(len(features), prototypes.shape[1], dtype=torch.bool, device=prototypes.device)
        rows = functional.normalize(prototypes[0], dim=-1).masked_fill(~mask[0][..., None], 0.0).sum(dim=1)
        cosine = functional.normalize(rows, dim=-1) @ functional.normalize(self.model.seen(features), dim=1).flatten(2)
        return cosine.amax(dim=2) >= self.least


def _mask(values: Any) -> Tensor:
    """Masks of any kind, arrays or tensors of any device, as a tensor."""
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def _padded(values: list[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Rows of K classes, ``[1, K, L, D]`` and bool ``[1, K, L]``; None twice if no class has any."""
    given = [value for value in values if value is not None]
    if not given:
        return None, None
    longest, width = max(len(value) for value in given), given[0].shape[1]
    found = given[0].new_zeros(len(values), longest, width)
    mask = torch.zeros(len(values), longest, dtype=torch.bool, device=found.device)
    for row, value in enumerate(values):
        if value is not None:
            if value.shape[1] != width:
                raise BadInput(
                    f"clues of {value.shape[1]} and {width} numbers",
                    where="PrototypeSegmenter",
                    fix="Give all classes vectors of one encoder",
                )
            found[row, : len(value)] = value
            mask[row, : len(value)] = True
    return found[None], mask[None]
