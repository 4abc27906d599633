"""Grows regression trees on histograms: one tree a group of rows, all of a level wise depth.

The work is done by the compiled grower inside scikit-learn's histogram gradient boosting. It is not part of scikit-learn's
public interface, so it is tried on a small problem first; where it is missing or has changed, a grower in numpy takes its
place: slower for one big tree, and with the same splits. Both maximize ``GL^2/(CL + l2) + GR^2/(CR + l2) - G^2/(C + l2)``.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from chiasm.adapt.r_mtgb.forest import Forest
from chiasm.errors import ChiasmError, unknown_name

Engine = Literal["auto", "sklearn", "numpy"]

# A tree over fewer rows than this grows faster in one thread than in several.
_THREADED = 10_000
_NEEDED = {"max_depth", "min_samples_leaf", "l2_regularization", "n_bins", "n_bins_non_missing", "has_missing_values"}


@dataclass(frozen=True)
class Shape:
    """What limits a tree: ``depth``, ``least`` rows a leaf, ``l2`` in the gain."""

    depth: int
    least: int
    l2: float


class Grower:
    """Grows one tree for each group of rows.

    Args:
        codes: uint8 ``[d, n]``, C order.
        used: codes of each column without the missing one ``[d]``.
        missing: the code of missing values.
        groups: int ``[n]`` in 0..G-1.
        count: G.
        fit: bool ``[n]``: rows that may take part; the others are only led to their leaves.
        shape: limits of the trees.
        engine: ``"sklearn"``, ``"numpy"``, or ``"auto"`` for the first of them that works.
    """

    def __init__(
        self,
        codes: np.ndarray,
        used: np.ndarray,
        missing: int,
        groups: np.ndarray,
        count: int,
        fit: np.ndarray,
        shape: Shape,
        engine: Engine = "auto",
    ) -> None:
        self.codes, self.used, self.missing = codes, used, missing
        self.groups, self.count, self.fit, self.shape = groups, count, fit, shape
        self.tree_grower = choose(engine)
        self.holes = [bool((column == missing).any()) for column in codes]
        if self.tree_grower is not None:
            order = np.flatnonzero(fit)
            order = order[np.argsort(groups[order], kind="stable")]
            cuts = np.searchsorted(groups[order], np.arange(count + 1))
            self.parts = [order[a:b] for a, b in pairwise(cuts)]
            self.whole = count == 1 and bool(fit.all())
            self.part_codes = [codes if self.whole else np.ascontiguousarray(codes[:, rows]) for rows in self.parts]

    def grow(self, targets: np.ndarray, drawn: np.ndarray | None = None) -> tuple[Forest, np.ndarray, np.ndarray]:
        """One tree a group by least squares, the leaf of each row, and the rows of each leaf.

        Args:
            targets: float64 ``[n]``.
            drawn: bool ``[n]``: the rows of this round; None for all that may take part.

        Returns:
            The trees (values still 0); int ``[n]`` leaves of all rows, those that took no part too; and float64 ``[N]`` how
            many rows of those that took part each node has as a leaf.
        """
        if self.tree_grower is None:
            taking = np.flatnonzero(self.fit if drawn is None else self.fit & drawn)
            forest, leaves = _level_wise(self, targets, taking)
            sizes = np.bincount(leaves[taking], minlength=len(forest.value)).astype(np.float64)
        else:
            forest, leaves, sizes = self._compiled(targets, drawn)
        if drawn is not None or not self.fit.all():
            rest = np.flatnonzero(~self.fit if drawn is None else ~(self.fit & drawn))
            leaves[rest] = forest.walk(np.ascontiguousarray(self.codes[:, rest]), forest.roots[self.groups[rest]])
        return forest, leaves, sizes

    def _compiled(self, targets: np.ndarray, drawn: np.ndarray | None) -> tuple[Forest, np.ndarray, np.ndarray]:
        leaves = np.empty(len(targets), dtype=np.int64)
        nodes: list[tuple[int, int, bool, int, int]] = []
        sizes: list[int] = []
        roots, deepest = [], 0
        gradients = (-targets).astype(np.float32)
        for rows, codes in zip(self.parts, self.part_codes, strict=True):
            if drawn is not None:
                kept = drawn[rows]
                rows, codes = rows[kept], np.ascontiguousarray(codes[:, kept])
            roots.append(len(nodes))
            if len(rows) < 2 * self.shape.least:  # nothing to split, and the grower takes no empty array
                leaves[rows] = len(nodes)
                nodes.append((0, 0, True, len(nodes), len(nodes)))
                sizes.append(len(rows))
                continue
            everything = self.whole and drawn is None  # then nothing need be gathered or scattered
            own = leaves if everything else np.empty(len(rows), dtype=np.int64)
            root = _grow_one(self.tree_grower, codes, gradients if everything else gradients[rows], self)
            deepest = max(deepest, _flatten(root, nodes, sizes, own))
            if not everything:
                leaves[rows] = own
        return Forest.of(nodes, roots, deepest, self.missing), leaves, np.array(sizes, dtype=np.float64)


def _grow_one(tree_grower: Any, codes: np.ndarray, gradients: np.ndarray, of: Grower) -> Any:
    grower = tree_grower(
        codes.T,
        gradients,
        np.ones(1, dtype=np.float32),
        max_depth=of.shape.depth,
        min_samples_leaf=of.shape.least,
        l2_regularization=of.shape.l2,
        n_bins=of.missing + 1,
        n_bins_non_missing=of.used,
        has_missing_values=np.array(of.holes, dtype=np.uint8),
        n_threads=1 if len(gradients) < _THREADED else None,
    )
    grower.grow()
    return grower.root


def _flatten(root: Any, nodes: list, sizes: list[int], leaves: np.ndarray) -> int:
    """Appends scikit-learn's linked nodes to ``nodes`` and their rows, if they are leaves, to ``sizes``; notes the leaf of
    each row of the tree; returns the depth.
    """
    nodes.append((0, 0, True, 0, 0))
    sizes.append(0)
    todo, deepest = [(root, len(nodes) - 1, 0)], 0
    while todo:
        node, at, depth = todo.pop()
        deepest = max(deepest, depth)
        if node.is_leaf:
            nodes[at] = (0, 0, True, at, at)
            sizes[at] = node.n_samples
            leaves[node.sample_indices] = at
            continue
        split, left = node.split_info, len(nodes)
        nodes += [(0, 0, True, 0, 0)] * 2
        sizes += [0, 0]
        nodes[at] = (int(split.feature_idx), int(split.bin_idx), bool(split.missing_go_to_left), left, left + 1)
        todo += [(node.left_child, left, depth + 1), (node.right_child, left + 1, depth + 1)]
    return deepest


def choose(engine: str) -> Any:
    """scikit-learn's grower, or None for the one in numpy.

    Raises:
        UnknownName: an engine that does not exist.
        ChiasmError: ``"sklearn"`` is asked for and does not work here.
    """
    if engine not in ("auto", "sklearn", "numpy"):
        raise unknown_name("engine", str(engine), ("auto", "sklearn", "numpy"))
    if engine == "numpy":
        return None
    found = sklearn_grower()
    if found is None and engine == "sklearn":
        import sklearn

        raise ChiasmError(
            f"scikit-learn {sklearn.__version__} has no histogram grower that works as expected",
            where="engine='sklearn'",
            fix="Use engine='auto': trees then grow in numpy",
        )
    return found


@functools.cache
def sklearn_grower() -> Any:
    """The class ``TreeGrower`` of scikit-learn if it is there and does what is expected, else None."""
    try:
        from sklearn.ensemble._hist_gradient_boosting.grower import TreeGrower
    except ImportError:
        return None
    if not set(inspect.signature(TreeGrower.__init__).parameters) >= _NEEDED:
        return None
    # Eight rows whose only good split is known: an interface that changed its meaning is noticed here, not in a model.
    codes = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 1, 0, 1, 0, 1]], dtype=np.uint8)
    trial = Grower(codes, np.array([8, 2]), 8, np.zeros(8, np.int64), 1, np.ones(8, bool), Shape(1, 1, 0.0), "numpy")
    try:
        root = _grow_one(TreeGrower, codes, np.array([1, 1, 1, -1, -1, -1, -1, -1], dtype=np.float32), trial)
        split = root.split_info
        right = (split.feature_idx, split.bin_idx) == (0, 2) and list(root.left_child.sample_indices) == [0, 1, 2]
    except (TypeError, ValueError, AttributeError):
        return None
    return TreeGrower if right and root.left_child.is_leaf else None


def _level_wise(of: Grower, targets: np.ndarray, rows: np.ndarray) -> tuple[Forest, np.ndarray]:
    """All trees of all groups at once, level by level: a pass costs O(n d) however many groups there are."""
    leaves = np.empty(len(targets), dtype=np.int64)
    nodes = [[0, 0, True, g, g] for g in range(of.count)]
    slot_node = np.arange(of.count)  # the node of each open slot
    slot, deepest = of.groups[rows], 0
    leaves[rows] = slot
    for level in range(of.shape.depth):
        if not len(rows):
            break
        feature, code, missing_left, good = _best_splits(of, targets[rows], rows, slot, len(slot_node))
        if not good.any():
            break
        deepest = level + 1
        first = np.full(len(slot_node), -1)
        first[good] = 2 * np.arange(good.sum())
        base = len(nodes)
        for s in np.flatnonzero(good):
            left = base + first[s]
            nodes[slot_node[s]] = [int(feature[s]), int(code[s]), bool(missing_left[s]), int(left), int(left + 1)]
            nodes += [[0, 0, True, int(left), int(left)], [0, 0, True, int(left + 1), int(left + 1)]]
        moving = good[slot]
        rows, slot = rows[moving], slot[moving]
        own = of.codes[feature[slot], rows]
        goes_left = np.where(own == of.missing, missing_left[slot], own <= code[slot])
        slot = first[slot] + ~goes_left
        slot_node = base + np.arange(2 * good.sum())
        leaves[rows] = slot_node[slot]
    return Forest.of([tuple(node) for node in nodes], list(range(of.count)), deepest, of.missing), leaves


def _best_splits(of: Grower, targets: np.ndarray, rows: np.ndarray, slot: np.ndarray, slots: int) -> tuple:
    """The best split of each open slot: ``(feature, code, missing_left, whether it gains) [slots]``."""
    width, least, l2 = of.missing + 1, of.shape.least, of.shape.l2
    total = np.bincount(slot, targets, slots)
    count = np.bincount(slot, minlength=slots).astype(np.float64)
    parent = total**2 / np.maximum(count + l2, 1e-300)
    best = np.zeros(slots)
    feature, code = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=np.int64)
    missing_left = np.zeros(slots, dtype=bool)
    offset = slot * width
    for f in range(len(of.codes)):  # a feature at a time keeps the memory at slots x codes
        cell = offset + of.codes[f, rows]
        sums = np.bincount(cell, targets, slots * width).reshape(slots, width)
        counts = np.bincount(cell, minlength=slots * width).reshape(slots, width)
        last = int(of.used[f])
        for to_left in (False, True) if of.holes[f] else (False,):
            g, c = sums[:, :last].cumsum(1), counts[:, :last].cumsum(1)
            if to_left:
                g, c = g + sums[:, -1:], c + counts[:, -1:]
            other = count[:, None] - c
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = g**2 / (c + l2) + (total[:, None] - g) ** 2 / (other + l2) - parent[:, None]
            gain = np.where((c >= least) & (other >= least), gain, -np.inf)
            at = gain.argmax(1)
            found = gain[np.arange(slots), at]
            # Sums in another order differ by rounding; a gain below that is none.
            better = found > np.maximum(best, 1e-12 * parent)
            feature[better], code[better], missing_left[better] = f, at[better], to_left
            best = np.where(better, found, best)
        if not of.holes[f]:
            mine = (feature == f) & (best > 0)
            c = counts[:, :last].cumsum(1)[np.arange(slots), np.minimum(code, last - 1)]
            missing_left = np.where(mine, 2 * c > count, missing_left)  # unseen missing values follow the majority
    return feature, code, missing_left, best > 0
