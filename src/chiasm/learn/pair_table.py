"""`PairTable`: pairs as they stand in a file, with their items, splits, and all that gave no pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chiasm.errors import unknown_name
from chiasm.learn.tables import Member

SPLITS = ("train", "val", "test")


class Skipped(NamedTuple):
    """A line or picture that gives no pair, and why."""

    where: str
    reason: str

    def to_json(self) -> dict[str, str]:
        return {"where": self.where, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Entry:
    """One distinct item of a side: what it is called, its content's hash, and where its content lies.

    Args:
        name: the path, the place in an archive, or the text itself.
        sha256: hash of the bytes (of the text), hex.
        source: a `Path`, a `chiasm.learn.tables.Member`, or the text.
    """

    name: str
    sha256: str
    source: Path | Member | str

    @property
    def is_text(self) -> bool:
        return isinstance(self.source, str)

    def bytes(self) -> bytes:
        """The content; OSError if it is gone."""
        if isinstance(self.source, str):
            return self.source.encode()
        return self.source.read_bytes()


@dataclass(frozen=True)
class PairTable:
    """Pairs as they stand in a file.

    Args:
        a: distinct items of the first side (pictures), without repetition.
        b: distinct items of the second side (sentences).
        pairs: int ``[N, 2]``, rows of ``a`` and ``b``; each pair once.
        split: ``[N]`` of ``"train"``, ``"val"``, ``"test"``, ``""`` (a split that is not used).
        labels: N class names, empty where there are none.
        where: N places for messages (``pairs.csv:12``).
        skipped: everything that gave no pair.
        notes: what was decided on the way, in sentences.
        columns: what the two sides are called in the file.
    """

    a: Sequence[Entry]
    b: Sequence[Entry]
    pairs: np.ndarray
    split: np.ndarray
    labels: Sequence[str]
    where: Sequence[str]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: tuple[str, str] = ("image", "caption")

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, split: str) -> np.ndarray:
        """The pairs of a split.

        Raises:
            UnknownName: no such split.
        """
        if split == "all":
            return np.arange(len(self))
        if split not in SPLITS:
            raise unknown_name("split", split, [*SPLITS, "all"])
        return np.flatnonzero(self.split == split)

    def counts(self) -> dict[str, int]:
        """Pairs of each split."""
        return {name: int((self.split == name).sum()) for name in SPLITS}

    def without(self, a: Mapping[int, str], b: Mapping[int, str]) -> PairTable:
        """The table without the pairs of items that cannot be read; the items are listed in ``skipped`` with the reason."""
        keep = np.array([x not in a and y not in b for x, y in self.pairs.tolist()], dtype=bool)
        lost = [Skipped(side[row].name, why) for side, bad in ((self.a, a), (self.b, b)) for row, why in bad.items()]
        rows = np.flatnonzero(keep)
        return PairTable(
            self.a,
            self.b,
            self.pairs[rows],
            self.split[rows],
            [self.labels[i] for i in rows.tolist()],
            [self.where[i] for i in rows.tolist()],
            [*self.skipped, *lost],
            list(self.notes),
            self.columns,
        )
