"""Models of the worlds are made once and kept: where they lie, and how a folder is written that others may be reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def made_once(kind: str, key: Any, make: Callable[[], Any], cache: str | Path | None = None) -> Path:
    """The folder of a model: found, or made now.

    Args:
        kind: what it is, the first part of the folder's name.
        key: everything that decides how it turns out, as JSON; the second part is its hash.
        make: makes the model, whose ``save(folder)`` writes a ``report.json`` last.
        cache: the folder of all; default that of `chiasm.encode.cache.default_folder`.
    """
    from chiasm.encode.cache import default_folder

    root = Path(cache).expanduser() if cache else default_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / "worlds" / f"{kind}-{digest}"
    if not (folder / "report.json").exists():
        made = make()
        # Written beside and renamed, so that two processes never read a half-written folder.
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        made.save(beside)
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / "report.json").exists():
                raise
    return folder
