"""One writer at a time: an advisory lock that the kernel releases when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chiasm.errors import StoreError, StoreLocked


@contextmanager
def exclusive(path: Path, *, wait: float = 0.0, doing: str = "is writing to it") -> Iterator[None]:
    """Holds the lock file at ``path`` for the duration of the block.

    ``flock`` belongs to the open file and not to the process, so two stores in one process exclude each other too.

    Args:
        path: the lock file; made if missing, never removed (removing it would let two writers in).
        wait: seconds to wait for another holder.
        doing: what the holder does, for the message.

    Raises:
        StoreLocked: another process holds it; the message names its process id.
        StoreError: the folder cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})",
            where=str(path.parent),
            fix="Open it with read_only=True to search it",
        ) from error
    try:
        _take(handle, path, time.monotonic() + wait, doing)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, deadline: float, doing: str) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise StoreLocked(
                    f"process {pid} {doing}",
                    where=str(path.parent),
                    fix="Wait until it has finished; searching works meanwhile",
                ) from None
            time.sleep(0.02)
