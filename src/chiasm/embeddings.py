"""`Embeddings`: what a space returns, one row per item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chiasm.errors import BadInput


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of items, row by row.

    Args:
        vectors: float32 ``[N, D]``.
        ids: N unique names.
        modality: N modalities.
        tokens: optional float32 ``[N, L, D]`` token or patch vectors, zero where ``mask`` is False.
        mask: optional bool ``[N, L]``, True where ``tokens`` holds a token.
        space: the fingerprint (hex) of the space that made them, ``""`` if unknown.

    Raises:
        BadInput: shapes that do not fit together, duplicate ids, NaN or infinite values.
    """

    vectors: np.ndarray
    ids: Sequence[str]
    modality: Sequence[str]
    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None
    space: str = ""

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2:
            raise BadInput(f"vectors must be [N, D], got shape {vectors.shape}", where="Embeddings")
        n = len(vectors)
        if len(self.ids) != n or len(self.modality) != n:
            raise BadInput(f"{n} vectors, {len(self.ids)} ids and {len(self.modality)} modalities", where="Embeddings")
        if len(set(self.ids)) != n:
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))
            raise BadInput(f"duplicate id {twice!r}", where="Embeddings", fix="Ids must be unique")
        check_finite(vectors, "Embeddings")
        if (self.tokens is None) != (self.mask is None):
            raise BadInput("tokens and mask come together", where="Embeddings")
        if self.tokens is not None and self.mask is not None and self.tokens.shape[:2] != self.mask.shape:
            raise BadInput(f"tokens {self.tokens.shape} and mask {self.mask.shape} do not fit", where="Embeddings")
        object.__setattr__(self, "ids", list(self.ids))
        object.__setattr__(self, "modality", list(self.modality))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Embeddings:
        """The rows given by a slice, indices or a boolean mask."""
        index = np.arange(len(self))[rows]
        places: list[int] = index.tolist()
        return Embeddings(
            self.vectors[index],
            [self.ids[i] for i in places],
            [self.modality[i] for i in places],
            None if self.tokens is None else self.tokens[index],
            None if self.mask is None else self.mask[index],
            self.space,
        )

    def save(self, path: str | Path) -> None:
        """Writes ``vectors`` (and tokens) as safetensors with ids and modalities in the header; never pickle."""
        from safetensors.numpy import save_file

        arrays = {"vectors": np.ascontiguousarray(self.vectors)}
        if self.tokens is not None and self.mask is not None:
            arrays |= {"tokens": np.ascontiguousarray(self.tokens), "mask": np.ascontiguousarray(self.mask)}
        names = {"ids": self.ids, "modality": self.modality, "space": self.space}
        save_file(arrays, str(path), metadata={"chiasm": json.dumps(names)})

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Reads what `save` wrote; the values are bit-equal.

        Raises:
            BadInput: the file is not there or was not written by `save`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                names = json.loads((file.metadata() or {})["chiasm"])
        except (OSError, SafetensorError, KeyError) as error:
            raise BadInput(f"not an embeddings file ({error})", where=str(path)) from error
        return cls(
            arrays["vectors"], names["ids"], names["modality"], arrays.get("tokens"), arrays.get("mask"), names["space"]
        )


def check_finite(vectors: np.ndarray, where: str) -> None:
    """Raises `BadInput` naming the first row that holds NaN or infinity."""
    # One pass without an [N, D] boolean: a row's sum is not finite if one of its values is not.
    sums = vectors.sum(axis=1, dtype=np.float64)
    if not np.isfinite(sums).all():
        row = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise BadInput(f"row {row} holds NaN or infinite values", where=where, fix="Remove or repair that row")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32 ``[N, D]``; zero rows stay zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)
