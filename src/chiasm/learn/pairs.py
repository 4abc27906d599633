"""`Pairs`: which item belongs to which, and what is known about each pair. The noun of training.

    >>> pairs = Pairs({"a": pictures, "b": captions}, {"a": [0, 0, 1], "b": [0, 1, 2]}, groups=[0, 0, 1])

A column names a source of items (`chiasm.learn.features.Features`, or whatever has ``batch(rows)``) and the row of it that
each pair takes. ``a`` and ``b`` are the two sides; further columns are free, for example ``negative``, or the views
``b/de``, ``b/fr`` of one side, which reach the objective stacked. Readers of files are in `chiasm.learn.readers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.features import MISSING


class Source(Protocol):
    """Where the items of a column come from."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the model reads of some rows, with ``rows`` in it; see `Features.batch`."""
        ...


@dataclass(frozen=True)
class Pairs:
    """N pairs.

    Args:
        sources: column -> where its items come from. Views of a side (``b/de``) share the source ``b`` if they have none.
        rows: column -> int ``[N]``, the row of the source; -1 in a view that is missing. Default: 0 .. N-1.
        groups: int ``[N]``; pairs of one group are positives of each other. Default: pairs with the same row of ``a``
            (every pair its own, if ``a`` has views).
        per_pair: further arrays ``[N, ...]`` (``labels``, ``targets``, ``weights``) that objectives ask for by name.

    Raises:
        BadInput: no pairs, a column without a source, rows outside a source, arrays of the wrong length.
    """

    sources: Mapping[str, Source]
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None
    per_pair: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in ("a", "b"):
            if side not in self.sources:
                raise BadInput(f"there is no column {side!r}", where="Pairs", fix="Give sources for 'a' and 'b'")
        n = len(next(iter(self.rows.values()))) if self.rows else len(self.sources["a"])
        # The source of a side with views is no column of its own.
        viewed = {name.split("/")[0] for name in self.rows if "/" in name}
        names = dict.fromkeys([*(name for name in self.sources if name not in viewed), *self.rows])
        rows = {name: np.asarray(self.rows.get(name, np.arange(n)), dtype=np.int64) for name in names}
        for name, values in rows.items():
            source = self.source(name)
            if values.shape != (n,):
                raise BadInput(f"column {name!r} has {values.shape} rows, expected [{n}]", where="Pairs")
            low = MISSING if "/" in name else 0
            if n and (values.min() < low or values.max() >= len(source)):
                raise BadInput(f"column {name!r} points outside its {len(source)} items", where="Pairs")
        if not n:
            raise BadInput("no pairs", where="Pairs")
        groups = rows.get("a", np.arange(n)) if self.groups is None else np.asarray(self.groups)
        for name, values in {"groups": groups, **self.per_pair}.items():
            if len(values) != n:
                raise BadInput(f"{name} has {len(values)} entries for {n} pairs", where="Pairs")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "groups", groups.astype(np.int64))
        object.__setattr__(self, "per_pair", {k: np.asarray(v) for k, v in self.per_pair.items()})

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def columns(self) -> list[str]:
        """``a``, ``b`` (or its views), and the others in the order given."""
        return sorted(self.rows, key=lambda name: (name.split("/")[0] not in ("a", "b"), name.split("/")[0]))

    def source(self, column: str) -> Source:
        """The source of a column; a view falls back on that of its side."""
        for name in (column, column.split("/")[0]):
            if name in self.sources:
                return self.sources[name]
        raise unknown_name("column", column, self.sources)

    def __getitem__(self, index: Any) -> Pairs:
        """The pairs given by a slice, indices or a boolean mask."""
        keep = np.arange(len(self))[index]
        assert self.groups is not None
        return replace(
            self,
            rows={k: v[keep] for k, v in self.rows.items()},
            groups=self.groups[keep],
            per_pair={k: v[keep] for k, v in self.per_pair.items()},
        )

    def with_rows(self, **rows: np.ndarray) -> Pairs:
        """The same pairs with other rows in some columns (shuffled captions, other negatives)."""
        assert self.groups is not None
        return replace(self, rows={**self.rows, **rows})

    def shuffled(self, rate: float, seed: int, column: str = "b") -> tuple[Pairs, np.ndarray]:
        """Noisy correspondence: a share of the pairs exchange their item of one column among themselves.

        Args:
            rate: share of the pairs in [0, 1].
            seed: decides which.
            column: which side moves.

        Returns:
            The pairs, and bool ``[N]``, True where a pair's item now is another one.
        """
        if not 0 <= rate <= 1:
            raise BadInput(f"rate {rate} is outside 0..1", where="Pairs.shuffled")
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(self))[: round(rate * len(self))]
        moved = self.rows[column].copy()
        moved[chosen] = moved[rng.permutation(chosen)]
        return self.with_rows(**{column: moved}), moved != self.rows[column]

    def dataset(self) -> Any:
        """A `datasets.Dataset` of row numbers, one column a side, and the pair's own number in ``label``."""
        from chiasm.errors import missing_extra

        try:
            from datasets import Dataset
        except ImportError as error:
            raise missing_extra("training", "train", "datasets") from error
        return Dataset.from_dict({name: self.rows[name] for name in self.columns} | {"label": np.arange(len(self))})


class PairCollator:
    """Puts a batch together for `SentenceTransformerTrainer`: asks each column's source for its rows.

    Args:
        pairs: the pairs of which the data set holds the numbers.
        routes: column -> route of the model's router (the part before ``/`` counts); default the column's own name.
    """

    def __init__(self, pairs: Pairs, routes: Mapping[str, str] | None = None) -> None:
        self.pairs = pairs
        self.routes = dict(routes or {})
        self.valid_label_columns = ["label"]
        # The trainer looks at these; routes are settled here.
        self.router_mapping: dict[str, str] = {}
        self.prompts: dict[str, str] = {}

    def route(self, column: str) -> str:
        side = column.split("/")[0]
        return self.routes.get(column, self.routes.get(side, side))

    def __call__(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"label": torch.tensor([entry["label"] for entry in entries])}
        for column in self.pairs.columns:
            found = self.pairs.source(column).batch([entry[column] for entry in entries])
            batch |= {f"{column}_{name}": value for name, value in found.items()}
            batch[f"{column}_task"] = self.route(column)
        return batch


class OnePerGroup(DefaultBatchSampler):
    """Batches in which no group occurs twice: one caption a picture, so that no positive is taken for a negative.

    Every pair is drawn once an epoch, as long as a batch can be filled; what is left over at the end makes smaller batches.
    Give it to `train` as ``sampler``; ``groups`` are those of the pairs.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int = 0) -> None:
        self.groups = np.asarray(groups)
        self.batch_size, self.seed, self.epoch, self.drop_last = batch_size, seed, 0, False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.groups))
        # The r-th pair of every group goes to round r; within a round all groups differ.
        by_group = order[np.argsort(self.groups[order], kind="stable")]
        sorted_groups = self.groups[by_group]
        first = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]
        start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        turn = np.arange(len(order)) - start
        for r in range(int(turn.max()) + 1):
            members = rng.permutation(by_group[turn == r])
            for at in range(0, len(members), self.batch_size):
                yield members[at : at + self.batch_size].tolist()

    def __len__(self) -> int:
        _, counts = np.unique(self.groups, return_counts=True)
        sizes = np.array([(counts > r).sum() for r in range(int(counts.max()))])
        return int(np.ceil(sizes / self.batch_size).sum())


class SeveralPerGroup(DefaultBatchSampler):
    """Batches of ``batch_size / each`` groups with ``each`` pairs of every group (identity sampling).

    Args:
        groups: int ``[N]``.
        batch_size: pairs a batch.
        each: pairs of a group in a batch; a group with fewer is drawn with repetition.
        seed: decides the order.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, each: int = 4, seed: int = 0) -> None:
        if each < 1 or batch_size % each:
            raise BadInput(f"a batch of {batch_size} cannot hold {each} pairs of every group", where="SeveralPerGroup")
        self.groups, self.each, self.batch_size, self.seed = np.asarray(groups), each, batch_size, seed
        self.epoch, self.drop_last = 0, False
        self.members = [np.flatnonzero(self.groups == g) for g in np.unique(self.groups)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        runs = []
        for members in self.members:
            drawn = rng.permutation(members)
            if len(drawn) % self.each:
                drawn = np.r_[drawn, rng.choice(members, self.each - len(drawn) % self.each)]
            runs += list(drawn.reshape(-1, self.each))
        order = rng.permutation(len(runs))
        count = self.batch_size // self.each
        for at in range(0, len(order), count):
            yield np.concatenate([runs[i] for i in order[at : at + count]]).tolist()

    def __len__(self) -> int:
        runs = sum(-(-len(m) // self.each) for m in self.members)
        return -(-runs // (self.batch_size // self.each))
