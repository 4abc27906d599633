"""Train, val and test: what a file calls them, and pictures held out at random where it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chiasm.learn.pair_table import SPLITS, Entry

# What other people call them.
NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
# Share of the pictures that is held out for stopping and for the report, where the file does not say.
HELD_OUT = {"val": 0.1, "test": 0.1}


def settled(
    split: np.ndarray,
    picture: np.ndarray,
    entries: Sequence[Entry],
    held_out: Mapping[str, float],
    seed: int,
    notes: list[str],
) -> np.ndarray:
    """The split of each pair: what the file says, and where it does not say enough, pictures held out by a seeded draw."""
    named = set(split.tolist()) & set(SPLITS)
    out = split.copy()
    if len(named) < 2:
        open_rows, missing = split != "", ["val", "test"]
        if named:
            notes.append(f"The file names only the split {next(iter(named))!r}; pictures were held out at random.")
    else:
        blank = int((split == "?").sum())
        if blank:
            notes.append(f"{blank} rows name no split and are used for training.")
            out[out == "?"] = "train"
        crossing = _crossing(out, picture)
        if crossing:
            notes.append(f"{crossing} items stand in more than one split of the file.")
        open_rows = out == "train"
        missing = [s for s in ("val", "test") if s not in named]
        if "train" not in named:
            return out.astype(str)
        if missing == ["val"]:
            notes.append("The file names no val split; some training pictures were held out for stopping.")
        if missing == ["test"]:
            # Nothing may be chosen on what is reported: val stays what it is, and the test part is drawn.
            notes.append("The file names no test split; some training pictures were held out for the report.")
    if missing:
        # Drawn by content, so that the order of the file does not matter.
        groups = np.unique(picture[open_rows])
        order = sorted(groups.tolist(), key=lambda g: entries[g].sha256)
        drawn = np.random.default_rng(seed).permutation(order)
        side = dict.fromkeys(drawn.tolist(), "train")
        at = 0
        for name in missing:
            count = min(
                max(1, round(held_out.get(name, 0.0) * len(drawn))), max(0, len(drawn) - at - 2)
            )  # two are needed to train
            if not held_out.get(name):
                count = 0
            side |= dict.fromkeys(drawn[at : at + count].tolist(), name)
            at += count
        for i in np.flatnonzero(open_rows):
            out[i] = side[int(picture[i])]
    return out.astype(str)


def _crossing(split: np.ndarray, picture: np.ndarray) -> int:
    held = {name: set(picture[split == name].tolist()) for name in SPLITS}
    return len(held["train"] & held["val"] | held["train"] & held["test"] | held["val"] & held["test"])
