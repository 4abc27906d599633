"""The doctor: measures what is wrong with a space, tries the cheapest cures, and reports their gain or says "leave it alone"."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "examine": "examination",
    "Report": "report",
    "MeanShift": "mean_shift",
    "read": "sources",
    "Patient": "sources",
}

__all__ = ["MeanShift", "Patient", "Report", "examine", "read"]

if TYPE_CHECKING:
    from chiasm.doctor.examination import examine
    from chiasm.doctor.mean_shift import MeanShift
    from chiasm.doctor.report import Report
    from chiasm.doctor.sources import Patient, read


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"chiasm.doctor.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'chiasm.doctor' has no attribute {name!r}")
