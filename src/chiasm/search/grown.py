"""Which sound encoder made a store's sounds, where the space's fingerprint leaves that open (`ModelSpace.grown`).

A space that learned a modality later keeps its fingerprint, so that stores from before stay valid. Two such encoders of one
space make vectors that must not be mixed; the header's ``grown`` says whose are in the store.
"""

from __future__ import annotations

import warnings
from typing import Any

from chiasm.errors import SpaceMismatch
from chiasm.search.header import Header, SpaceRecord

# A recording with text was placed by its transcript, which no sound encoder changes.
_SOUNDS = "modality = 'audio' AND text = ''"
_WHAT = "the store's sounds were made by another sound encoder than the space has now"
_FIX = "Index into a new store (pictures and texts come from the cache), or delete the recordings and index them again"


def mark(space: Any) -> str:
    """What the header records: the fingerprint that the addition belongs to, and the addition's hash; ``""`` without one."""
    grown = str(getattr(space, "grown", ""))
    return f"{space.fingerprint.digest}/{grown}" if grown else ""


def carried(header: Header, space: SpaceRecord) -> str:
    """The mark when the same encoder's vectors go over to another space, as an upgrade's mapped ones do."""
    own = header.grown.partition("/")[2]
    return f"{space.digest}/{own}" if own else ""


def differs(header: Header, space: Any, table: Any) -> bool:
    """Whether the store holds sounds of another encoder of the same space.

    Args:
        header: the store's.
        space: the space that is to encode or to search.
        table: the store's items; None if there are none.
    """
    own = mark(space)
    same_space = header.grown.partition("/")[0] == own.partition("/")[0]
    if not own or not header.grown or not same_space or header.grown == own or table is None:
        return False
    return table.count_rows(_SOUNDS) > 0


def check(header: Header, space: Any, table: Any, where: str) -> None:
    """Refuses to add to sounds of another encoder.

    Raises:
        SpaceMismatch: see `differs`.
    """
    if differs(header, space, table):
        raise SpaceMismatch(_WHAT, where=where, fix=_FIX)


def warn(header: Header, space: Any, table: Any, where: str) -> None:
    """Says so where such a store is searched: words find those sounds as before, recordings find them less exactly."""
    if differs(header, space, table):
        warnings.warn(f"{where}: {_WHAT}. {_FIX}.", stacklevel=2)
