"""Training and test features of one set of concepts in several modalities: what is paired, and who finds whom.

R@10 is the share of right items among the first ten: with many right items a hit would come by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.learn.alignment.one_encoder.world import KINDS, VIEWS, concept_view
from chiasm.learn.features import Features
from chiasm.learn.held_out import cosine, encode
from chiasm.learn.pairs import Pairs
from chiasm.measure.ranking import evaluate_scores


@dataclass(frozen=True)
class Views:
    """Training and test features of one data set.

    Args:
        name: of the set.
        views: modality -> (training features, kind of each, test features, kind of each).
        kinds: how many kinds there are.
        seed: decides which item is paired with which.
    """

    name: str
    views: dict[str, tuple[Features, np.ndarray, Features, np.ndarray]]
    kinds: int
    seed: int

    @property
    def widths(self) -> dict[str, int]:
        """Modality -> length of a token."""
        return {view: parts[0].dense["input_features"].shape[-1] for view, parts in self.views.items()}

    def pairs(
        self, a: str, b: str, count: int | None = None, *, also: Sequence[str] = (), shuffled: bool = False
    ) -> Pairs:
        """Pairs of one kind from the training parts; the kind is not told beyond them, but equal kinds are no negatives.

        Args:
            a, b: modalities of the columns ``a`` and ``b``.
            count: so many rows of ``a``; all by default.
            also: modalities of further columns ``c``, ``d`` ..., of the same kind.
            shuffled: pair at random instead.
        """
        rng = np.random.default_rng([self.seed, *map(VIEWS.index, (a, b))])
        kinds = self.views[a][1]
        rows = {"a": np.arange(len(kinds)) if count is None else rng.permutation(len(kinds))[:count]}
        for column, view in zip("bcd", (b, *also)):
            of_kind = [np.flatnonzero(self.views[view][1] == kind) for kind in range(self.kinds)]
            rows[column] = np.array([rng.choice(of_kind[kind]) for kind in kinds[rows["a"]]])
        if shuffled:
            rows["b"] = rng.permutation(rows["b"])
        sources: dict[str, Any] = {column: self.views[view][0] for column, view in zip("abcd", (a, b, *also))}
        return Pairs(sources, rows, groups=self.views[b][1][rows["b"]])

    def recall(self, model: Any, a: str, b: str) -> np.ndarray:
        """Share of right items among the first ten, a test query each; ``a`` looks for ``b``."""
        queries, found = (encode(model, self.views[view][2], view) for view in (a, b))
        right = [np.flatnonzero(self.views[b][3] == kind) for kind in self.views[a][3]]
        return evaluate_scores(cosine(queries, found).numpy(), right, metrics=("precision@10",)).values["precision@10"]

    @property
    def chance(self) -> float:
        """Expected share of right pictures for a sound."""
        kinds, queries = self.views["image"][3], self.views["audio"][3]
        return float(np.mean([(kinds == kind).mean() for kind in queries]))


def concept_views(name: str, seed: int, *, smoke: bool = False) -> Views:
    """The generated concepts: 3000 pictures and sentences, 900 sounds and clips, 600 of each to test.

    Args:
        name: of the set.
        seed: what differs between items of a kind.
        smoke: fewer of everything.
    """
    many, few, test = (240, 120, 120) if smoke else (3000, 900, 600)
    rng = np.random.default_rng(seed)
    views = {}
    for view in VIEWS:
        kinds = rng.permutation(np.arange(many if view in ("image", "text") else few) % KINDS)
        tested = np.arange(test) % KINDS
        views[view] = (concept_view(view, kinds, seed), kinds, concept_view(view, tested, seed + 50_000), tested)
    return Views(name, views, KINDS, seed)
