"""Store, index, query, calibrated relevance."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Store": "store",
    "Hit": "results",
    "SearchResult": "results",
    "AddReport": "results",
    "Skipped": "results",
    "Calibrator": "calibrate",
    "Judgement": "calibrate",
    "null_bank": "calibrate",
}

__all__ = ["AddReport", "Calibrator", "Hit", "Judgement", "SearchResult", "Skipped", "Store", "null_bank"]

if TYPE_CHECKING:
    from chiasm.search.calibrate import Calibrator, Judgement, null_bank
    from chiasm.search.results import AddReport, Hit, SearchResult, Skipped
    from chiasm.search.store import Store


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"chiasm.search.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'chiasm.search' has no attribute {name!r}")
