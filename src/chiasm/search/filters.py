"""Which rows a search may return: filters on modality, path, facts and time as one boolean mask.

Nothing that a user writes becomes part of a SQL text: columns are compared as Arrow arrays.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chiasm.errors import BadInput
from chiasm.items import MODALITIES
from chiasm.search.exact import Snapshot

OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "contains")


def allowed_rows(
    snapshot: Snapshot,
    *,
    modality: str | Iterable[str] | None = None,
    path: str | Path | None = None,
    where: Mapping[str, Any] | None = None,
    since: Any = None,
    until: Any = None,
) -> np.ndarray | None:
    """Rows that pass all filters, bool ``[R]``, or None if there is no filter.

    Args:
        snapshot: what is searched.
        modality: one or several modalities.
        path: a file, a folder (everything below it), or a pattern with ``*``, ``?`` and ``**``; a pattern that does
            not start with ``/`` may match the end of a path.
        where: facts of ``meta``: ``{"page": 3}``, ``{"width": (">=", 800)}``, ``{"lang": ["en", "de"]}``. Operators:
            ``== != < <= > >= in contains``. A row without the fact does not pass. A dotted name reaches inside.
        since, until: earliest and latest ``added_at``: datetime (UTC if naive), ISO text or seconds since 1970.

    Raises:
        BadInput: an unknown modality or operator, or a time that cannot be read.
    """
    masks: list[np.ndarray] = []
    if modality is not None:
        masks.append(np.isin(snapshot.modality, _modality_codes(modality)))
    if path is not None:
        masks.append(_to_mask(_path_matches(snapshot.column("uri"), str(path))))
    if where:
        masks.extend(_fact_mask(snapshot, str(name), condition) for name, condition in where.items())
    if since is not None:
        masks.append(_added(snapshot) >= _micros(since, "since"))
    if until is not None:
        masks.append(_added(snapshot) <= _micros(until, "until"))
    if not masks:
        return None
    return np.logical_and.reduce(masks) & snapshot.alive


def _modality_codes(modality: str | Iterable[str]) -> list[int]:
    names = [modality] if isinstance(modality, str) else list(modality)
    for name in names:
        if name not in MODALITIES:
            raise BadInput(f"modality {name!r} does not exist", where="search", fix=f"Use {', '.join(MODALITIES)}")
    return [MODALITIES.index(name) for name in names]


def _path_matches(uri: pa.Array, path: str) -> pa.Array:
    from chiasm.encode.files import path_to_uri

    if not path:
        raise BadInput("path is empty", where="search")
    if any(c in path for c in "*?["):
        anchor = "^" if path.startswith(("/", "~")) or "://" in path else "(^|/)"
        text = os.path.expanduser(path) if path.startswith("~") else path
        return pc.match_substring_regex(uri, anchor + glob_to_regex(text) + "$")  # type: ignore[attr-defined]
    exact = path.rstrip("/") if "://" in path else path_to_uri(Path(os.path.expanduser(path)))
    return pc.or_(pc.equal(uri, exact), below(uri, exact))  # type: ignore[attr-defined]


def below(uri: pa.Array, folder: str) -> pa.Array:
    """Which addresses lie below the folder with this address, those with names that are not UTF-8 among them."""
    inside = pc.starts_with(uri, folder.rstrip("/") + "/")  # type: ignore[attr-defined]
    if "://" in folder:
        return inside
    encoded = f"file://{quote(folder.rstrip('/'))}/"
    return pc.or_(inside, pc.starts_with(uri, encoded))  # type: ignore[attr-defined]


def glob_to_regex(pattern: str) -> str:
    """A shell pattern as a regular expression: ``*`` and ``?`` stay within a folder, ``**`` crosses folders."""
    out, i = ["(?s)"], 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out.append("(.*/)?")
            i += 3
        elif pattern.startswith("**", i):
            out.append(".*")
            i += 2
        elif pattern[i] == "*":
            out.append("[^/]*")
            i += 1
        elif pattern[i] == "?":
            out.append("[^/]")
            i += 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inside = re.sub(r"([\\\[\]&~|])", r"\\\1", pattern[i + 1 : end])
            out.append("[" + ("^" + inside[1:] if inside[0] == "!" else inside) + "]")
            i = end + 1
        else:
            out.append(re.escape(pattern[i]))
            i += 1
    return "".join(out)


def _fact_mask(snapshot: Snapshot, name: str, condition: Any) -> np.ndarray:
    operator, wanted = _condition(name, condition)
    rows, values = _facts(snapshot, name)
    mask = np.zeros(len(snapshot.seq), bool)
    mask[rows] = [_holds(value, operator, wanted) for value in values]
    return mask


def _condition(name: str, condition: Any) -> tuple[str, Any]:
    if isinstance(condition, tuple):
        if len(condition) != 2 or condition[0] not in OPERATORS:
            raise BadInput(
                f"condition {condition!r} on {name!r} is not (operator, value)",
                where="where",
                fix=f"Operators: {' '.join(OPERATORS)}",
            )
        return condition
    if isinstance(condition, (list, set, frozenset)):
        return "in", list(condition)
    return "==", condition


def _facts(snapshot: Snapshot, name: str) -> tuple[np.ndarray, list[Any]]:
    """Rows that have this fact, and its values; parsed once per snapshot, only where the name occurs at all."""
    key = f"fact:{name}"
    if key not in snapshot.cache:
        meta = snapshot.column("meta")
        steps = name.split(".")
        quoted = json.dumps(name if len(steps) == 1 else steps[0])
        near = np.flatnonzero(_to_mask(pc.match_substring(meta, quoted)))  # type: ignore[attr-defined]
        rows, values = [], []
        for row, text in zip(near, meta.take(pa.array(near)).to_pylist(), strict=True):
            found, value = _reach(json.loads(text), name, steps)
            if found:
                rows.append(row)
                values.append(value)
        snapshot.cache[key] = np.array(rows, np.int64), values
    return snapshot.cache[key]


def _reach(facts: Any, name: str, steps: list[str]) -> tuple[bool, Any]:
    if isinstance(facts, dict) and name in facts:
        return True, facts[name]
    for step in steps:
        if not isinstance(facts, dict) or step not in facts:
            return False, None
        facts = facts[step]
    return True, facts


def _holds(value: Any, operator: str, wanted: Any) -> bool:
    try:
        if operator == "==":
            return value == wanted
        if operator == "!=":
            return value != wanted
        if operator == "in":
            return value in wanted
        if operator == "contains":
            return wanted in value
        if operator == "<":
            return value < wanted
        if operator == "<=":
            return value <= wanted
        if operator == ">":
            return value > wanted
        return value >= wanted
    except TypeError:  # text compared with a number: the fact is of another kind, the row does not pass
        return False


def _added(snapshot: Snapshot) -> np.ndarray:
    column = snapshot.column("added_at").cast(pa.int64())
    # Dead rows are null; they are masked out afterwards by `alive`.
    return np.asarray(pc.fill_null(column, 0))  # type: ignore[attr-defined]


def _micros(when: Any, name: str) -> int:
    """Microseconds since 1970 of a datetime, a date, ISO text or seconds."""
    try:
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, date) and not isinstance(when, datetime):
            when = datetime(when.year, when.month, when.day)
        if isinstance(when, datetime):
            when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        seconds = float(when)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(
            f"{name}={when!r} is not a time", where="search", fix="Use ISO text such as 2026-01-31"
        ) from error
    if not math.isfinite(seconds):
        raise BadInput(f"{name}={when!r} is not a time", where="search")
    return math.floor(min(max(seconds, -9e12), 9e12) * 1e6)


def _to_mask(matches: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(matches, False).to_numpy(zero_copy_only=False), bool)  # type: ignore[attr-defined]
