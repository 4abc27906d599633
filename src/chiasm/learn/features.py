"""Frozen features of many items: computed once, kept as float16 memory maps, read row by row while a head trains.

    >>> pictures = Features({"input_features": tokens})            # [N, L, D], or [N, D]
    >>> words = Features.ragged("input_ids", sentences)            # a list of integer arrays
    >>> words.batch([3, 7])                                        # {"input_ids": [2, L], "attention_mask": [2, L], "rows": [2]}

`chiasm.learn.frozen` makes them of items and a space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.errors import BadInput

# What a batch holds for a row that is not there (a missing translation): the row -1.
MISSING = -1


@dataclass(frozen=True)
class Features:
    """Arrays of N items, and the batches that are made of them.

    Args:
        dense: name -> ``[N, ...]``. One of them is what a model reads: ``input_features`` (``[N, D]`` vectors or
            ``[N, L, D]`` tokens), ``input_ids`` or ``sentence_embedding``.
        runs: name -> values ``[T, ...]`` of all items one after the other.
        offsets: int ``[N + 1]``, where each item's values begin in ``runs``.

    Raises:
        BadInput: arrays of different lengths, or nothing at all.
    """

    dense: Mapping[str, np.ndarray] = field(default_factory=dict)
    runs: Mapping[str, np.ndarray] = field(default_factory=dict)
    offsets: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.dense.items()}
        if self.runs:
            if self.offsets is None or any(len(v) != self.offsets[-1] for v in self.runs.values()):
                raise BadInput("runs and offsets do not fit together", where="Features")
            sizes["offsets"] = len(self.offsets) - 1
        if len(set(sizes.values())) != 1:
            raise BadInput(f"arrays of different lengths: {sizes}", where="Features")

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.offsets is not None else len(next(iter(self.dense.values())))

    @classmethod
    def ragged(cls, name: str, values: Sequence[Any], **dense: np.ndarray) -> Features:
        """Features whose items have different lengths.

        Args:
            name: ``"input_ids"`` or ``"input_features"``.
            values: N arrays ``[L_i]`` or ``[L_i, D]``, each with at least one entry.
            **dense: further arrays ``[N, ...]``.
        """
        lengths = np.array([len(v) for v in values])
        if not len(values) or lengths.min() == 0:
            raise BadInput("an item without tokens", where="Features.ragged", fix="Every item needs at least one token")
        runs = {name: np.concatenate([np.asarray(v) for v in values])}
        return cls(dense, runs, np.concatenate([[0], np.cumsum(lengths)]))

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a model reads of some rows: tensors ``[n, ...]``, padded with zeros, and an ``attention_mask`` for tokens.

        ``rows`` (int64 ``[n]``) is part of it, so that state per sample can be kept. Row -1 stands for an item that is
        missing; it gets the content of row 0, and whoever reads it must look at ``rows``.
        """
        index = np.asarray(rows, dtype=np.int64)
        safe = np.where(index == MISSING, 0, index)
        out = {name: _tensor(values[safe]) for name, values in self.dense.items()}
        if self.offsets is not None:
            start, length = self.offsets[safe], np.diff(self.offsets)[safe]
            inside = np.arange(int(length.max(initial=0)))[None, :] < length[:, None]
            place = np.where(inside, start[:, None] + np.arange(inside.shape[1]), 0)
            for name, values in self.runs.items():
                taken = np.asarray(values[place])
                taken[~inside] = 0
                out[name] = _tensor(taken)
            out["attention_mask"] = torch.from_numpy(inside)
        elif out.get("input_features", torch.empty(0)).ndim == 3 and "attention_mask" not in out:
            out["attention_mask"] = torch.ones(out["input_features"].shape[:2], dtype=torch.bool)
        out["rows"] = torch.from_numpy(index)
        return out

    def save(self, folder: str | Path) -> None:
        """Writes one ``.npy`` an array and an index; the index is written last, so a broken save is no save."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "features.json").unlink(missing_ok=True)
        for name, values in {**self.dense, **self.runs}.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        if self.offsets is not None:
            np.save(folder / "offsets.npy", self.offsets, allow_pickle=False)
        index = {"dense": sorted(self.dense), "runs": sorted(self.runs)}
        (folder / "features.json").write_text(json.dumps(index), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Features:
        """Opens what `save` wrote; arrays are memory maps, so nothing is read before it is needed.

        Raises:
            BadInput: there is nothing, or it is not whole.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / "features.json").read_text(encoding="utf-8"))
            read = {
                kind: {n: np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in index[kind]}
                for kind in ("dense", "runs")
            }
            offsets = np.load(folder / "offsets.npy", allow_pickle=False) if index["runs"] else None
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"no features here ({error})", where=str(folder)) from error
        return cls(read["dense"], read["runs"], offsets)


def _tensor(values: np.ndarray) -> Tensor:
    """Floats become float32, integers int64; memory maps are copied."""
    kind = np.float32 if np.issubdtype(values.dtype, np.floating) else values.dtype
    kind = np.int64 if np.issubdtype(kind, np.integer) else kind
    return torch.from_numpy(np.array(values, dtype=kind))
