"""Keeps the calibration of a store in step with its rows, in a file beside the vectors."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from chiasm.errors import StoreError
from chiasm.items import MODALITIES
from chiasm.search.calibrate import Calibrator, Judgement, null_bank
from chiasm.search.exact import FOLDER, Snapshot
from chiasm.search.lock import exclusive
from chiasm.space import Space

_BANK = "bank"
_SEQ = "store.seq"


class Relevance:
    """The calibration of one store; rows of its `Calibrator` are the live rows of a snapshot in rising ``seq``.

    Args:
        folder: the store's folder.
        space: encodes the bank of everyday words, once per store.
        writable: whether the state may be saved.
    """

    def __init__(self, folder: Path, space: Space, *, writable: bool) -> None:
        self.path = folder / FOLDER / "calibration.safetensors"
        self.space = space
        self.writable = writable
        self.calibrator: Calibrator | None = None
        self.bank = np.empty((0, space.dim), np.float32)
        self.seq = np.empty(0, np.int64)

    def judge(
        self,
        snapshot: Snapshot,
        query: np.ndarray,
        rows: np.ndarray,
        scores: np.ndarray,
        *,
        modality: str | None,
        rate: float,
    ) -> Judgement:
        """Relevance of the best rows of a text query; see `Calibrator.judge`.

        Args:
            snapshot: what was searched; the calibration is brought up to it first.
            query: float32 ``[D]``.
            rows: snapshot rows ``[k]``, best first.
            scores: their inner products with the query, without bias.
            modality: the one to which the search was limited, or None.
            rate: accepted share of unanswerable queries that get an answer.
        """
        calibrator = self.sync(snapshot)
        own = np.searchsorted(self.seq, snapshot.seq[rows])
        return calibrator.judge(query, own, scores, modality=modality, rate=rate)

    def sync(self, snapshot: Snapshot) -> Calibrator:
        """Brings the calibration up to a snapshot: rows that went are removed, rows that came are added."""
        seq = snapshot.seq[snapshot.alive]
        if self.calibrator is not None and np.array_equal(seq, self.seq):
            return self.calibrator
        if self.calibrator is None:
            self._load()
        calibrator = self.calibrator
        common = np.intersect1d(self.seq, seq, assume_unique=True)
        # Calibrator rows must stay in the order of seq, so whatever came must be newer than all that stays.
        came = seq[~np.isin(seq, common, assume_unique=True)]
        appendable = not len(came) or not len(common) or came[0] > common[-1]
        if calibrator is None or not len(common) or not appendable:
            calibrator = Calibrator(self._bank_vectors())
            calibrator.fit(*_rows(snapshot, seq))
        else:
            gone = np.flatnonzero(~np.isin(self.seq, common, assume_unique=True))
            if len(gone):
                calibrator.remove(gone)
            if len(came):
                calibrator.partial_fit(*_rows(snapshot, came))
            if calibrator.stale:
                calibrator.fit(*_rows(snapshot, seq))
        self.calibrator, self.seq = calibrator, seq
        self._save()
        return calibrator

    def _bank_vectors(self) -> np.ndarray:
        if not len(self.bank):
            self.bank = np.asarray(null_bank(self.space), np.float32)
        return self.bank

    def _load(self) -> None:
        """Reads the saved state; one that cannot be read, or of another space, is made anew."""
        from safetensors import SafetensorError, safe_open

        with suppress(OSError, SafetensorError, KeyError, ValueError):
            with safe_open(str(self.path), "np") as file:
                if (file.metadata() or {}).get("space") != self.space.fingerprint.digest:
                    return
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            bank, seq = arrays.pop(_BANK), arrays.pop(_SEQ)
            calibrator = Calibrator(bank)
            calibrator.load_state_dict(arrays)
            self.bank, self.seq, self.calibrator = bank, seq, calibrator

    def _save(self) -> None:
        from safetensors.numpy import save_file

        if not self.writable or self.calibrator is None:
            return
        arrays = {name: np.ascontiguousarray(a) for name, a in self.calibrator.state_dict().items()}
        arrays |= {_BANK: self.bank, _SEQ: self.seq}
        part = self.path.with_name(f".calibration.{os.getpid()}.part")
        # A calibration that cannot be saved is made again next time; the search goes on.
        with suppress(OSError, StoreError):
            self.path.parent.mkdir(exist_ok=True)
            with exclusive(self.path.parent / "lock", wait=5):
                try:
                    save_file(arrays, str(part), metadata={"space": self.space.fingerprint.digest})
                    os.replace(part, self.path)
                finally:
                    part.unlink(missing_ok=True)


def _rows(snapshot: Snapshot, seq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and modality names of these rows; the memory-mapped vectors themselves if all rows are asked for."""
    rows = snapshot.rows_of_seq(seq)
    names = np.array([*MODALITIES, ""])
    if len(rows) == len(snapshot.seq):
        return snapshot.vectors, names[snapshot.modality]
    return snapshot.vectors[rows], names[snapshot.modality[rows]]
