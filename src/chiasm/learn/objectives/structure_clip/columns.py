"""Training columns from captions: each caption's graph, and negatives that are drawn anew every time the caption is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.features import MISSING, Features
from chiasm.learn.objectives.structure_clip.graph import MOST_TRIPLES, SceneGraph, parse
from chiasm.learn.objectives.structure_clip.knowledge import triple_ids
from chiasm.learn.objectives.structure_clip.negatives import KINDS, Negative, negatives
from chiasm.learn.pairs import Pairs
from chiasm.learn.words import Words

COLUMN = "negative/0"


@dataclass
class Drawn:
    """A source of negatives: row i stands for caption i, and gives one of its negatives, another at every call.

    Args:
        source: all negatives, those of a caption one after the other.
        offsets: int ``[N + 1]``: where the negatives of each caption begin.
        seed: decides the draws.
    """

    source: Features
    offsets: np.ndarray
    seed: int = 0
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """As `Features.batch`; ``rows`` are those of ``source``, -1 where a caption has no negative."""
        index = np.asarray(rows, dtype=np.int64)
        safe = np.maximum(index, 0)
        first, last = self.offsets[safe], self.offsets[safe + 1]
        drawn = first + (self._rng.random(len(index)) * (last - first)).astype(np.int64)
        return self.source.batch(np.where((index == MISSING) | (last == first), MISSING, drawn).tolist())


@dataclass(frozen=True)
class Structure:
    """What is known about captions.

    Args:
        graphs: the graph of each caption.
        negatives: all semantic negatives of each caption.
    """

    graphs: list[SceneGraph]
    negatives: list[list[Negative]]

    @classmethod
    def of(cls, captions: Sequence[str], kinds: Sequence[str] = KINDS) -> Structure:
        """Parses captions (about 2,000 a second) and makes their negatives of some kinds."""
        graphs = [parse(caption) for caption in captions]
        return cls(graphs, [negatives(graph, kinds) for graph in graphs])

    @property
    def parsed(self) -> float:
        """Share of captions with a relation or an attribute; near 0 where the texts are not English."""
        return float(np.mean([bool(graph.triples()) for graph in self.graphs])) if self.graphs else 0.0

    @property
    def covered(self) -> float:
        """Share of captions with a negative."""
        return float(np.mean([bool(found) for found in self.negatives])) if self.negatives else 0.0


def with_structure(
    pairs: Pairs,
    captions: Sequence[str],
    features: Callable[[list[str]], Features],
    *,
    words: Words | None = None,
    structure: Structure | None = None,
    most: int = MOST_TRIPLES,
    seed: int = 0,
) -> Pairs:
    """Pairs with a column of semantic negatives, and with triples where a `KnowledgeTower` is trained.

    Args:
        pairs: its source of ``b`` is a `Features`.
        captions: the sentence of each row of that source.
        features: makes the features of new sentences, of the same kind.
        words: vocabulary of the triples; None leaves them out.
        structure: of the captions, if it is there already.
        most: triples a caption.
        seed: decides which negative is drawn when.

    Returns:
        The pairs with ``negative/0``; unchanged but for the triples if no caption has a negative.

    Raises:
        BadInput: captions that are not those of ``b``.
    """
    source: Any = pairs.source("b")
    if not isinstance(source, Features) or len(captions) != len(source):
        raise BadInput(
            f"{len(captions)} captions for {len(source)} rows of a {type(source).__name__}",
            where="with_structure",
            fix="Give one sentence for every row of the source of 'b', which must be Features",
        )
    structure = structure or Structure.of(captions)
    sources: dict[str, Any] = {**pairs.sources, "b": source}
    rows = dict(pairs.rows)
    if words is not None:
        sources["b"] = with_triples(source, structure.graphs, words, most=most)
    flat = [negative for found in structure.negatives for negative in found]
    if flat:
        false = features([negative.text for negative in flat])
        if words is not None:
            false = with_triples(false, [negative.graph for negative in flat], words, most=most)
        counts = np.array([len(found) for found in structure.negatives])
        sources["negative"] = Drawn(false, np.concatenate([[0], np.cumsum(counts)]), seed)
        rows[COLUMN] = np.where(counts[rows["b"]] > 0, rows["b"], MISSING)
    return replace(pairs, sources=sources, rows=rows)


def with_triples(source: Features, graphs: Sequence[SceneGraph], words: Words, *, most: int = MOST_TRIPLES) -> Features:
    """The same features with ``triples`` ``[N, most, 3, W]`` of each row's graph."""
    return replace(source, dense={**source.dense, "triples": triple_ids(graphs, words, most=most)})


def with_others(pairs: Pairs, seed: int = 0) -> Pairs:
    """Pairs with a caption of another pair as the negative of each: what semantic negatives are compared with."""
    assert pairs.groups is not None
    others = np.random.default_rng(seed).permutation(len(pairs))
    rows = np.where(pairs.groups[others] == pairs.groups, MISSING, pairs.rows["b"][others])
    return replace(pairs, sources={**pairs.sources, "negative": pairs.source("b")}, rows={**pairs.rows, COLUMN: rows})
