"""`Forest`: many small trees over codes as flat arrays; rows walk through all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

# Cells (trees x rows) that walk at once.
_CELLS = 1 << 20


@dataclass
class Forest:
    """Trees over codes ``[d, n]`` (see `binning`). A row goes left if its code is at most the node's; leaves lead to themselves.

    Args:
        feature: int32 ``[N]``.
        code: uint8 ``[N]``.
        missing_left: bool ``[N]``: where missing values go.
        left, right: int32 ``[N]``, numbers of nodes.
        value: float64 ``[N]``; what a leaf adds.
        roots: int32 ``[R]``, the first node of each tree.
        depth: steps after which every row has come to a leaf.
        missing: the code of missing values.
    """

    feature: np.ndarray
    code: np.ndarray
    missing_left: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    depth: int
    missing: int

    @classmethod
    def of(cls, nodes: Sequence[tuple[int, int, bool, int, int]], roots: Sequence[int], depth: int, missing: int):
        """A forest from ``(feature, code, missing_left, left, right)`` of each node; all values 0."""
        feature, code, missing_left, left, right = zip(*nodes, strict=True) if nodes else ((),) * 5
        return cls(
            np.array(feature, dtype=np.int32),
            np.array(code, dtype=np.uint8),
            np.array(missing_left, dtype=bool),
            np.array(left, dtype=np.int32),
            np.array(right, dtype=np.int32),
            np.zeros(len(nodes)),
            np.array(roots, dtype=np.int32),
            depth,
            missing,
        )

    @classmethod
    def join(cls, forests: Sequence[Forest], missing: int) -> Forest:
        """One forest with the trees of all, in order."""
        if not forests:
            return cls.of([], [], 0, missing)
        offsets = np.cumsum([0] + [len(f.value) for f in forests[:-1]])
        parts = {f.name: [getattr(one, f.name) for one in forests] for f in fields(cls)[:-2]}
        for name in ("left", "right", "roots"):
            parts[name] = [part + offset for part, offset in zip(parts[name], offsets, strict=True)]
        joined = {name: np.concatenate(arrays).astype(arrays[0].dtype) for name, arrays in parts.items()}
        return cls(**joined, depth=max(f.depth for f in forests), missing=missing)

    def walk(self, codes: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The leaf where each row ends.

        Args:
            codes: uint8 ``[d, n]``.
            start: ``[..., n]`` the node where each row enters.

        Returns:
            ``[..., n]`` numbers of leaves.
        """
        n = codes.shape[1]
        flat, rows, at = codes.reshape(-1), np.arange(n), start
        for _ in range(self.depth):
            code = flat[self.feature[at] * np.int64(n) + rows]
            left = np.where(code == self.missing, self.missing_left[at], code <= self.code[at])
            at = np.where(left, self.left[at], self.right[at])
        return at

    def sums(self, codes: np.ndarray, trees: np.ndarray) -> np.ndarray:
        """What some trees add together: float64 ``[n]``; does not depend on which rows come together.

        Args:
            codes: uint8 ``[d, n]``.
            trees: numbers of trees ``[R]``.
        """
        n = codes.shape[1]
        total = np.zeros(n)
        step = max(1, _CELLS // max(1, len(trees)))
        for begin in range(0, n if len(trees) else 0, step):
            part = np.ascontiguousarray(codes[:, begin : begin + step])
            start = np.broadcast_to(self.roots[trees][:, None], (len(trees), part.shape[1]))
            for leaves in self.walk(
                part, start
            ):  # tree by tree: a sum over an axis may change its order with the shape
                total[begin : begin + step] += self.value[leaves]
        return total
