"""How often each item was shown: a small counter in the store's folder, so that an upgrade re-embeds what is asked for first.

Every search appends one line of ids; a file that has grown is folded into counts. No query is kept. A count that cannot be
written is lost: a search never fails or waits for it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chiasm.errors import ChiasmError
from chiasm.search.header import replace_file
from chiasm.search.lock import exclusive

FILE, LOG, LOCK = "hits.json", "hits.log", "hits.lock"
# Bytes of the log at which it is folded into counts.
FOLD = 1 << 20
# Hits of one search that are counted: what stands further down was not looked at.
SHOWN = 100
# Items whose counts are kept.
KEPT = 100_000


def count(folder: Path, ids: Sequence[str]) -> None:
    """Notes that these items were shown. One write in append mode: lines of several processes do not mix."""
    if not ids:
        return
    with suppress(OSError, ChiasmError):
        handle = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, json.dumps(list(ids[:SHOWN])).encode() + b"\n")
            large = os.fstat(handle).st_size > FOLD
        finally:
            os.close(handle)
        if large:
            _fold(folder)


def counts(folder: Path) -> Counter[str]:
    """id -> times shown."""
    found: Counter[str] = Counter()
    with suppress(OSError, ValueError, AttributeError):
        found.update({str(k): int(v) for k, v in json.loads((folder / FILE).read_bytes()).items()})
    with suppress(OSError):
        for line in (folder / LOG).read_bytes().splitlines():
            with suppress(ValueError, TypeError):  # a line cut short by a crash
                found.update(map(str, json.loads(line)))
    return found


def _fold(folder: Path) -> None:
    with exclusive(folder / LOCK):
        moved = folder / f".{LOG}.folding"
        if not moved.exists():
            os.replace(folder / LOG, moved)
        total: Counter[str] = Counter()
        with suppress(OSError, ValueError, AttributeError):
            total.update({str(k): int(v) for k, v in json.loads((folder / FILE).read_bytes()).items()})
        for line in moved.read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                total.update(map(str, json.loads(line)))
        replace_file(folder / FILE, json.dumps(dict(total.most_common(KEPT))).encode())
        moved.unlink()
