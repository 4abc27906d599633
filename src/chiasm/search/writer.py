"""Commits: everything that changes the table goes through here, each change as one atomic version.

A file's rows are never split over commits, and a changed file is replaced in one commit, so that a reader, or whoever
comes after a crash, sees each file either as it was or as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.expr import col

from chiasm.errors import StoreError
from chiasm.search.schema import TIME

# Lance keeps one file per commit; beyond this many small ones a scan pays more for opening than for reading.
MAX_FRAGMENTS = 64
# Files of versions older than this go at compaction. Readers refresh at every search, so none still reads them.
KEEP_VERSIONS = timedelta(hours=1)
# Values per IN list: keeps one predicate's expression tree small.
_IN_LIST = 1000


class Writer:
    """Commits rows to an open table; made while the writer lock is held.

    Args:
        table: the LanceDB table, at its latest version.
        neutral_bias: bias of new rows (0 without a correction).
    """

    def __init__(self, table: Any, neutral_bias: float = 0.0) -> None:
        self.table = table
        self.neutral_bias = neutral_bias

    def append(self, rows: pa.Table) -> None:
        """Adds rows whose ids and files are new."""
        if len(rows):
            with _commit(self.table):
                self.table.add(self._stamp(rows))

    def replace(self, rows: pa.Table, *, uris: Sequence[str] = ()) -> None:
        """Puts rows in the place of those with their ids, and of all other rows of these files, in one commit."""
        if not len(rows):
            return
        with _commit(self.table):
            merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            if uris:
                merge = merge.when_not_matched_by_source_delete(col("uri").isin(list(uris)))
            merge.execute(self._stamp(rows))

    def restamp_files(self, stat: dict[str, tuple[int, int]]) -> None:
        """Records new size and time of files that were touched but have the same content; their vectors stay.

        Args:
            stat: uri -> (size, mtime_ns).
        """
        names = list(stat)
        for begin in range(0, len(names), _IN_LIST):
            some = names[begin : begin + _IN_LIST]
            rows = self.table.search().where(col("uri").isin(some)).select(["id", "uri"]).to_arrow()
            uri = rows.column("uri").to_pylist()
            source = pa.table(
                {
                    "id": rows.column("id"),
                    "size": pa.array([stat[u][0] for u in uri], pa.int64()),
                    "mtime_ns": pa.array([stat[u][1] for u in uri], pa.int64()),
                }
            )
            if len(source):
                with _commit(self.table):
                    self.table.merge_insert("id").when_matched_update_all().execute(source)

    def set_bias(self, ids: pa.Array | pa.ChunkedArray, bias: np.ndarray) -> None:
        """Writes the bias column of all given rows in one commit."""
        with _commit(self.table):
            source = pa.table({"id": ids, "bias": pa.array(np.asarray(bias, np.float32))})
            self.table.merge_insert("id").when_matched_update_all().execute(source)

    def revector(self, ids: pa.Array | pa.ChunkedArray, vectors: np.ndarray) -> None:
        """Puts other vectors float32 ``[n, D]`` in the place of those of these rows, in one commit; nothing else changes.

        The rows get new ``seq``, because whatever is kept beside the table is keyed by it.
        """
        if not len(ids):
            return
        with _commit(self.table):
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            source = pa.table(
                {
                    "id": ids,
                    "seq": pa.array(self._seq(len(ids))),
                    "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
                }
            )
            self.table.merge_insert("id").when_matched_update_all().execute(source)

    def copy(self, rows: pa.Table) -> None:
        """Adds rows of another table of the store with all their columns; only ``seq`` is this table's own."""
        if len(rows):
            place = rows.schema.get_field_index("seq")
            with _commit(self.table):
                self.table.add(rows.set_column(place, rows.schema.field("seq"), pa.array(self._seq(len(rows)))))

    def delete(self, column: str, values: Iterable[str]) -> int:
        """Deletes the rows whose ``column`` has one of the values; returns their number."""
        wanted, gone = list(values), 0
        for begin in range(0, len(wanted), _IN_LIST):
            with _commit(self.table):
                gone += self.table.delete(col(column).isin(wanted[begin : begin + _IN_LIST])).num_deleted_rows
        return gone

    def tidy(self) -> None:
        """Merges small fragments and updates indices if there is enough to gain; readers keep their version."""
        if self.table.stats()["fragment_stats"]["num_small_fragments"] > MAX_FRAGMENTS:
            with _commit(self.table):
                self.table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def _seq(self, n: int) -> np.ndarray:
        """The table's version in the upper bits and the row's place in the commit in the lower.

        A version is committed once, so the number is unique without any counter that a crash could lose.
        """
        return (int(self.table.version) << 32) + np.arange(n, dtype=np.int64)

    def _stamp(self, rows: pa.Table) -> pa.Table:
        """Fills ``seq``, ``bias`` and ``added_at``."""
        n = len(rows)
        seq = self._seq(n)
        now = int(datetime.now(UTC).timestamp() * 1e6)
        for name, values in (
            ("seq", pa.array(seq)),
            ("bias", pa.array(np.full(n, self.neutral_bias, np.float32))),
            ("added_at", pa.array(np.full(n, now, np.int64), TIME)),
        ):
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, rows.schema.field(name), values)
        return rows


@contextmanager
def _commit(table: Any):
    """Turns whatever the table's engine raises (a full disk, lost rights) into a `StoreError`."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise StoreError(
            f"a commit failed ({first})",
            where=str(getattr(table, "uri", "store")),
            fix="Everything committed before is intact; free some space or check the rights, then run the same again",
        ) from error
