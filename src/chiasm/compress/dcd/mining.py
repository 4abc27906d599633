"""Which candidates a student sees: the positive, and the false ones that the teacher finds hardest.

Within a batch `candidates` and `hardest` choose; a `Pool` does it once for all of the training: F false candidates of each
pair are drawn, scored by the teacher, saved, and `mined` puts the H hardest beside the pairs as further columns, so that
the teacher need not be in the loop (nor in memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.compress.dcd.teacher import AnyTeacher, Teacher, ask
from chiasm.errors import BadInput, unknown_name
from chiasm.kernels.topk import topk_inner
from chiasm.learn.features import MISSING
from chiasm.learn.pairs import Pairs

Choice = Literal["teacher", "random", "all"]
CHOICES = ("teacher", "random", "all")
# Routes of the columns that `mined` adds: the items are of the kind of the other side.
ROUTES = {"negative_a": "a", "negative_b": "b"}


def candidates(groups: Tensor | None, own: Tensor | None, n: int, device: Any = None) -> Tensor:
    """Which items of a batch are false candidates of which query.

    Args:
        groups: int ``[n]``; items of the query's group are no false candidates (other captions of the same picture).
        own: int ``[n]``, which item it is; an item that stands in the batch twice counts once.
        n: number of pairs.
        device: where the result lies.

    Returns:
        bool ``[n, n]``, queries by items.
    """
    allowed = ~torch.eye(n, dtype=torch.bool, device=device)
    if groups is not None:
        allowed &= groups[:, None] != groups[None, :]
    if own is not None:
        same = own[:, None] == own[None, :]
        allowed &= ~same & ~same.tril(-1).any(dim=1)[None, :]
        if groups is not None:
            # An item that is right for the group in another place of the batch is right here too.
            allowed &= ~((groups[:, None] == groups[None, :]).float() @ same.float()).bool()
    return allowed


def hardest(
    z: Tensor, negatives: int, *, own: Tensor | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The positive, and the false candidates with the largest logits.

    Args:
        z: ``[n, C]``, logits of the candidates (or random numbers, for random candidates).
        negatives: H, how many false candidates are kept.
        own: int ``[n]``, the column of the positive; default 0.
        allowed: bool ``[n, C]``, the false candidates; default all but the positive.

    Returns:
        Columns int64 ``[n, 1 + H']``, the positive's first, however the teacher ranks it, and bool of the same shape: False
        where a row has fewer candidates. ``H' = min(H, C - 1)``. Gather student and teacher with this one list.
    """
    n, c = z.shape
    own = torch.zeros(n, dtype=torch.long, device=z.device) if own is None else own
    blocked = nn.functional.one_hot(own, c).bool()
    blocked = blocked if allowed is None else blocked | ~allowed
    best, place = z.masked_fill(blocked, -torch.inf).topk(min(negatives, c - 1), dim=1)
    first = torch.ones(n, 1, dtype=torch.bool, device=z.device)
    return torch.cat([own[:, None], place], dim=1), torch.cat([first, best > -torch.inf], dim=1)


@dataclass(frozen=True)
class _FalseItems:
    """Which items of a column are right for which group."""

    items: np.ndarray
    group: np.ndarray
    known: np.ndarray
    size: int
    width: int

    @classmethod
    def of(cls, pairs: Pairs, size: int, column: str) -> _FalseItems:
        if column not in ("a", "b"):
            raise unknown_name("side", column, ("a", "b"))
        if size < 1:
            raise BadInput(f"{size} candidates", where="Pool", fix="Give at least one")
        assert pairs.groups is not None
        items, item = np.unique(pairs.rows[column], return_inverse=True)
        group = np.unique(pairs.groups, return_inverse=True)[1].astype(np.int64)
        known = np.unique(group * len(items) + item)
        # So many of a list may be right that size of the rest are sure to be false.
        most = int(np.bincount(known // len(items)).max())
        return cls(items, group, known, min(size, len(items) - 1), min(size + most, len(items)))

    def first(self, block: slice, places: np.ndarray) -> np.ndarray:
        """The first ``size`` false items of each row of places; -1 where there are fewer."""
        right = np.isin(self.group[block][:, None] * len(self.items) + places, self.known)
        order = np.argsort(right, axis=1, kind="stable")[:, : self.size]
        found = self.items[np.take_along_axis(places, order, 1)]
        return np.where(np.take_along_axis(right, order, 1), MISSING, found)


@dataclass(frozen=True)
class Pool:
    """Candidates of N pairs, with the teacher's logits.

    Args:
        rows: int64 ``[N, F + 1]``, rows of the source of ``column``; the positive first; -1 where there is none.
        logits: float32 ``[N, F + 1]``; 0 where there is none, or where no teacher has been asked.
        column: ``"b"``: candidates of every ``a``; ``"a"``: candidates of every ``b``.
    """

    rows: np.ndarray
    logits: np.ndarray
    column: str = "b"

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def draw(cls, pairs: Pairs, size: int, *, column: str = "b", seed: int = 0) -> Pool:
        """Random false candidates, none of the pair's own group, none twice.

        Args:
            pairs: the training pairs. Whatever is paired within a group is right for all of it.
            size: F; 63 for Flickr30K and 15 for COCO in the released code. At most as many as there are other items.
            column: whose items are drawn.
            seed: decides them.

        Raises:
            BadInput: fewer than one candidate.
            UnknownName: a column that is neither side.
        """
        false = _FalseItems.of(pairs, size, column)
        n = len(false.items)
        rng = np.random.default_rng(seed)

        def drawn(block: slice) -> np.ndarray:
            # A window of a shuffled list holds nothing twice; every block shuffles anew.
            at = rng.integers(0, n, len(false.group[block]))[:, None] + np.arange(false.width)
            return rng.permutation(n)[at % n]

        return cls._of_places(pairs, false, drawn, column)

    @classmethod
    def near(cls, pairs: Pairs, a: np.ndarray, b: np.ndarray, size: int, *, column: str = "b") -> Pool:
        """The nearest false candidates by a dual encoder instead of random ones: harder for the same F.

        Args:
            pairs: the training pairs.
            a, b: float32 ``[items, D]``, unit vectors of all items of the two sources, by row.
            size, column: as in `draw`.

        Raises:
            BadInput, UnknownName: as `draw`.
        """
        false = _FalseItems.of(pairs, size, column)
        vectors = {"a": a, "b": b}
        queries, gallery = vectors["a" if column == "b" else "b"], vectors[column][false.items]
        rows = pairs.rows["a" if column == "b" else "b"]
        return cls._of_places(
            pairs, false, lambda block: topk_inner(queries[rows[block]], gallery, false.width)[1], column
        )

    @classmethod
    def _of_places(cls, pairs: Pairs, false: _FalseItems, places: Callable[[slice], np.ndarray], column: str) -> Pool:
        """Keeps the first F of each row's places that are not right for its group; for `draw` and `near`."""
        rows = np.full((len(pairs), false.size + 1), MISSING, dtype=np.int64)
        rows[:, 0] = pairs.rows[column]
        for start in range(0, len(pairs), 1024):
            block = slice(start, start + 1024)
            found = false.first(block, places(block))
            rows[block, 1 : found.shape[1] + 1] = found
        return cls(rows, np.zeros(rows.shape, dtype=np.float32), column)

    def scored(self, teacher: AnyTeacher, pairs: Pairs, *, batch_size: int = 64) -> Pool:
        """The same candidates with the teacher's logits; N (F + 1) pairs are scored once.

        Args:
            teacher: ``teacher(a_inputs, b_inputs) -> [m]``, or a `Teacher`.
            pairs: the pairs of which the candidates were drawn.
            batch_size: queries at a time; each of their items is read and encoded once.

        Raises:
            BadInput: the pool is of other pairs, or the teacher does not give one finite logit a pair.
        """
        other = "a" if self.column == "b" else "b"
        if len(self) != len(pairs):
            raise BadInput(f"a pool of {len(self)} for {len(pairs)} pairs", where="Pool.scored")
        device = _device(teacher)
        logits = np.zeros(self.rows.shape, dtype=np.float32)
        for start in range(0, len(self), batch_size):
            block = slice(start, start + batch_size)
            there = self.rows[block] != MISSING
            items, item = np.unique(self.rows[block][there], return_inverse=True)
            query = np.nonzero(there)[0]
            inputs = {
                other: pairs.source(other).batch(pairs.rows[other][block].tolist()),
                self.column: pairs.source(self.column).batch(items.tolist()),
            }
            index = {other: torch.from_numpy(query), self.column: torch.from_numpy(item)}
            moved = {side: _moved(inputs[side], device) for side in ("a", "b")}
            found = ask(teacher, moved["a"], moved["b"], index["a"].to(device), index["b"].to(device))
            logits[block][there] = found.cpu().numpy()
        return replace(self, logits=logits)

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        from safetensors.numpy import save_file

        save_file({"rows": self.rows, "logits": self.logits}, path, metadata={"column": self.column})

    @classmethod
    def load(cls, path: str | Path) -> Pool:
        """What `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            return cls(file.get_tensor("rows"), file.get_tensor("logits"), (file.metadata() or {}).get("column", "b"))


def mined(pairs: Pairs, pool: Pool, negatives: int = 7, *, choice: Choice = "teacher", seed: int = 0) -> Pairs:
    """The pairs with their false candidates beside them: columns ``negative_b/0`` ... and the array ``logits_b``.

    Train them with ``routes=ROUTES``. Call it once for each direction to have both.

    Args:
        pairs: the training pairs.
        pool: of these pairs.
        negatives: H; 7 in the released code.
        choice: the ``"teacher"``'s hardest, H at ``"random"``, or ``"all"`` of the pool.
        seed: of the random choice.

    Raises:
        BadInput: the pool is of other pairs.
        UnknownName: a choice that does not exist.
    """
    if choice not in CHOICES:
        raise unknown_name("choice of candidates", choice, CHOICES)
    if len(pool) != len(pairs):
        raise BadInput(f"a pool of {len(pool)} for {len(pairs)} pairs", where="mined")
    rows, logits = torch.from_numpy(pool.rows), torch.from_numpy(pool.logits)
    key = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)) if choice == "random" else logits
    count = rows.shape[1] - 1 if choice == "all" else negatives
    index, valid = hardest(key, count, allowed=rows != MISSING)
    found = rows.gather(1, index).masked_fill(~valid, MISSING).numpy()
    name = f"negative_{pool.column}"
    return replace(
        pairs,
        sources={**pairs.sources, name: pairs.source(pool.column)},
        rows={**pairs.rows, **{f"{name}/{k}": found[:, k + 1] for k in range(found.shape[1] - 1)}},
        per_pair={**pairs.per_pair, f"logits_{pool.column}": logits.gather(1, index).numpy()},
    )


def _device(teacher: Any) -> torch.device:
    module = teacher.model if isinstance(teacher, Teacher) else teacher
    if isinstance(module, nn.Module):
        return next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu")


def _moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
