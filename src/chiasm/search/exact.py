"""The vectors beside the table: one contiguous, memory-mapped float32 file, and snapshots of the store over it.

The file is derived from the table and never the other way round. It only grows within one generation, so a reader's
map of its first rows stays valid while others append; too many dead rows start a new generation in a new file.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.expr import col, lit

from chiasm.errors import StoreError
from chiasm.items import MODALITIES
from chiasm.search.header import replace_file
from chiasm.search.lock import exclusive
from chiasm.search.schema import TABLE, vectors_of

FOLDER = "exact"
_BATCH = 8192
# Dead rows cost time in every scan; beyond this share the file is written anew.
_MAX_DEAD = 0.2
_MIN_DEAD = 1000


@dataclass(frozen=True)
class Snapshot:
    """One version of the table, ready to be searched; immutable, shared by threads.

    Rows are those of the vector file, in rising ``seq`` (older items first); dead ones have ``bias`` -inf.

    Args:
        table: a handle that stays at this version.
        version: the table's version.
        vectors: float32 ``[R, D]``, memory-mapped, read-only.
        seq: int64 ``[R]``.
        bias: float32 ``[R]``; -inf where the row is dead.
        modality: int8 ``[R]``, index into `MODALITIES`.
        row_id: uint64 ``[R]``, the table's row addresses at this version.
    """

    table: Any
    version: int
    vectors: np.ndarray
    seq: np.ndarray
    bias: np.ndarray
    modality: np.ndarray
    row_id: np.ndarray
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def alive(self) -> np.ndarray:
        """bool ``[R]``."""
        return self.bias > -np.inf

    @cached_property
    def count(self) -> int:
        return int(self.alive.sum())

    @cached_property
    def modalities(self) -> np.ndarray:
        """Codes of the modalities that occur."""
        return np.unique(self.modality[self.alive])

    @cached_property
    def biased(self) -> bool:
        """True if any live row has a bias."""
        return bool((self.bias[self.alive] != 0).any())

    def column(self, name: str) -> pa.Array:
        """One column of all rows ``[R]`` in row order (null where dead), read once per snapshot."""
        if name not in self.cache:
            data = self.table.search().select(["seq", name]).to_arrow().combine_chunks()
            rows = self.rows_of_seq(np.asarray(data["seq"]))
            take = np.full(len(self.seq), -1, np.int64)
            take[rows] = np.arange(len(rows))
            index = pa.array(take, mask=take < 0)
            values = data[name].combine_chunks() if data[name].num_chunks != 1 else data[name].chunk(0)
            self.cache[name] = values.take(index)
        return self.cache[name]

    def rows_of_seq(self, seq: np.ndarray) -> np.ndarray:
        """Row numbers of these ``seq`` values, all of which must be present."""
        return np.searchsorted(self.seq, seq)

    def rows_where(self, name: str, values: list[str]) -> np.ndarray:
        """Rows whose column has one of the values, by a scan in the engine that reads only that column."""
        found = self.table.search().where(col(name).isin(values)).select(["seq"]).to_arrow()
        return np.sort(self.rows_of_seq(np.asarray(found["seq"])))

    def fetch(self, rows: np.ndarray, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        """The given columns of these rows, in their order."""
        if not len(rows):
            return []
        wanted = [int(i) for i in self.row_id[rows]]
        data = self.table.take_row_ids(wanted).select(["seq", *columns]).to_arrow()
        place = {int(s): i for i, s in enumerate(data["seq"].to_pylist())}
        records = data.drop_columns(["seq"]).to_pylist()
        return [records[place[int(s)]] for s in self.seq[rows]]


class VectorFile:
    """Keeps the vector file of a store in step with its table.

    Args:
        folder: the store's folder.
        dim: length of a vector.
        writable: False keeps the vectors of a store in a temporary file of this process instead.
        table: the table's name; another one than the first has a folder of its own, because readers may still map the
            vectors of the first.
    """

    def __init__(self, folder: Path, dim: int, *, writable: bool, table: str = TABLE) -> None:
        self.shared = folder / (FOLDER if table == TABLE else f"{FOLDER}-{table}")
        self.dim = dim
        self.private: tempfile.TemporaryDirectory[str] | None = None
        self.writable = writable

    def clear(self) -> None:
        """Forgets the shared vectors of a table that is gone; maps that readers still have outlive the names."""
        for path in [*self.shared.glob("*-*.bin"), self.shared / "state.json"]:
            with suppress(OSError):
                path.unlink()

    def snapshot(self, table: Any, *, dense: bool = False) -> Snapshot:
        """The table at the handle's version.

        Args:
            table: a handle at one version that nobody will move.
            dense: no dead rows: all of ``vectors`` belongs to live rows.
        """
        data = table.search().select(["seq", "bias", "modality"]).with_row_id(True).to_arrow().combine_chunks()
        seq = np.asarray(data["seq"])
        order = np.argsort(seq, kind="stable")
        seq = seq[order]
        file_seq, vectors = self._sync(table, seq, dense)
        rows = np.searchsorted(file_seq, seq)
        bias = np.full(len(file_seq), -np.inf, np.float32)
        bias[rows] = np.asarray(data["bias"])[order]
        codes = pc.fill_null(pc.index_in(data["modality"], value_set=pa.array(MODALITIES)), -1)  # type: ignore[attr-defined]
        modality = np.full(len(file_seq), -1, np.int8)
        modality[rows] = np.asarray(codes).astype(np.int8)[order]
        row_id = np.zeros(len(file_seq), np.uint64)
        row_id[rows] = np.asarray(data["_rowid"])[order]
        return Snapshot(table, int(table.version), vectors, file_seq, bias, modality, row_id)

    def _sync(self, table: Any, seq: np.ndarray, dense: bool) -> tuple[np.ndarray, np.ndarray]:
        """Brings the file up to a table that holds exactly ``seq`` (rising); returns the file's seq and vectors."""
        if self.writable and self.private is None:
            try:
                self.shared.mkdir(exist_ok=True)
                with exclusive(self.shared / "lock", wait=60):
                    return _sync_folder(self.shared, table, seq, self.dim, dense)
            except (StoreError, OSError):
                pass  # lost rights or a full disk must not stop a search
        else:
            # A reader without rights uses the shared file if it happens to be complete.
            with suppress(OSError, StoreError, ValueError):
                state = _read_state(self.shared, self.dim)
                if state is not None:
                    file_seq, vectors = _open(self.shared, state, self.dim)
                    if _covers(file_seq, seq) and not (dense and len(file_seq) != len(seq)):
                        return file_seq, vectors
        if self.private is None:
            self.private = tempfile.TemporaryDirectory(prefix="chiasm-")
        return _sync_folder(Path(self.private.name), table, seq, self.dim, dense)


def _sync_folder(folder: Path, table: Any, seq: np.ndarray, dim: int, dense: bool) -> tuple[np.ndarray, np.ndarray]:
    state = _read_state(folder, dim)
    if state is not None:
        file_seq, vectors = _open(folder, state, dim)
        newest = file_seq[-1] if len(file_seq) else -1
        fresh = seq[seq > newest]
        dead = len(file_seq) - (len(seq) - len(fresh))  # true if the file covers the rest, which is checked next
        too_many = dead > (0 if dense else max(_MIN_DEAD, _MAX_DEAD * len(file_seq)))
        if not too_many and _covers(file_seq, seq[: len(seq) - len(fresh)]):
            if not len(fresh):
                return file_seq, vectors
            query = table.search().where(col("seq") > lit(int(newest)))
            return _write(folder, state["generation"], dim, file_seq, fresh, query)
    generation = 1 if state is None else state["generation"] + 1
    return _write(folder, generation, dim, np.empty(0, np.int64), seq, table.search())


def _covers(file_seq: np.ndarray, seq: np.ndarray) -> bool:
    """Whether the sorted ``file_seq`` holds all of ``seq``."""
    if not len(seq):
        return True
    if not len(file_seq):
        return False
    place = np.minimum(np.searchsorted(file_seq, seq), len(file_seq) - 1)
    return bool((file_seq[place] == seq).all())


def _write(
    folder: Path, generation: int, dim: int, old: np.ndarray, fresh: np.ndarray, query: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Appends the vectors of ``fresh`` (in its order) after the ``old`` rows, then publishes the new length."""
    total = len(old) + len(fresh)
    vector_path, seq_path = _paths(folder, generation)
    if len(fresh):
        with open(vector_path, "r+b" if len(old) else "w+b") as file:
            # Reserved beforehand: on a full disk this raises, where writing through the map would kill the process.
            os.posix_fallocate(file.fileno(), 0, total * dim * 4)
            target = np.memmap(file, np.float32, "r+", shape=(total, dim))
            done = 0
            for batch in query.select(["seq", "vector"]).to_batches(_BATCH):
                rows = np.searchsorted(fresh, np.asarray(batch.column("seq"))) + len(old)
                vectors = vectors_of(batch)
                first = int(rows[0]) if len(rows) else 0
                if len(rows) and (rows == np.arange(first, first + len(rows))).all():
                    target[first : first + len(rows)] = vectors
                else:
                    target[rows] = vectors
                done += len(rows)
            if done != len(fresh):
                raise StoreError(f"{len(fresh)} rows expected, {done} read", where=str(folder))
            target.flush()
            del target
        with open(seq_path, "r+b" if len(old) else "w+b") as file:
            file.seek(len(old) * 8)
            file.write(np.ascontiguousarray(fresh).tobytes())
            file.flush()
            os.fsync(file.fileno())
    state = {"generation": generation, "rows": total, "dim": dim}
    replace_file(folder / "state.json", json.dumps(state).encode())
    for path in folder.glob("*-*.bin"):  # maps that others still have of an older generation outlive its name
        if path not in (vector_path, seq_path):
            path.unlink(missing_ok=True)
    return _open(folder, state, dim)


def _paths(folder: Path, generation: int) -> tuple[Path, Path]:
    return folder / f"vectors-{generation}.bin", folder / f"seq-{generation}.bin"


def _read_state(folder: Path, dim: int) -> dict[str, int] | None:
    """The published state, None if there is none that fits its files: then the file is written anew."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        vector_path, seq_path = _paths(folder, int(state["generation"]))
        rows = int(state["rows"])
        if state["dim"] != dim:
            return None
        if rows and (vector_path.stat().st_size < rows * dim * 4 or seq_path.stat().st_size < rows * 8):
            return None
        return {"generation": int(state["generation"]), "rows": rows, "dim": dim}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(folder: Path, state: dict[str, int], dim: int) -> tuple[np.ndarray, np.ndarray]:
    rows = state["rows"]
    if rows == 0:
        return np.empty(0, np.int64), np.empty((0, dim), np.float32)
    vector_path, seq_path = _paths(folder, state["generation"])
    seq = np.fromfile(seq_path, np.int64, rows)
    mapped = np.memmap(vector_path, np.float32, "r", shape=(rows, dim))
    return seq, mapped.view(np.ndarray)
