"""Runs claims: seeds with resume, verdicts, provenance, one JSON a claim under ``results/``."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.catalog import PACKAGE, Method, folder_name, method
from chiasm.claims.claim import Claim, Row, Verdict
from chiasm.claims.data import Data
from chiasm.errors import BadInput, ChiasmError

RESULTS = Path("results")
_PACKAGES = ("chiasm", "numpy", "scipy", "scikit-learn", "torch", "transformers", "sentence-transformers", "lancedb")


def load_claim(found: Method) -> Claim:
    """Imports a method's ``claim.py`` and returns its ``CLAIM``.

    Raises:
        ChiasmError: the module has no ``CLAIM`` of type `Claim`.
    """
    package = ".".join(("chiasm", *found.room.split("/"), folder_name(found.slug)))
    module = importlib.import_module(f"{package}.claim")
    claim = getattr(module, "CLAIM", None)
    if not isinstance(claim, Claim):
        raise ChiasmError("has no CLAIM", where=f"{package}.claim", fix="Define CLAIM = Claim(...)")
    return claim


def reproduce(
    slug: str,
    *,
    data: Data | None = None,
    out: Path = RESULTS,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Re-measures one claim and writes ``out/<slug>.json``.

    Finished seeds are kept beside it until the claim is done, so an interrupted run goes on where it stopped.

    Args:
        slug: the method, with hyphens or underscores.
        data: where real data is; default ``CHIASM_DATA``. A smoke run uses the first seed only and writes nothing.
        out: folder of the results.
        progress: called with ``(slug, seeds done, seeds)``.

    Returns:
        The content of the JSON file.

    Raises:
        UnknownName: no such method.
    """
    found = method(slug)
    claim = load_claim(found)
    data = data or Data()
    seeds = list(claim.seeds)[:1] if data.smoke else list(claim.seeds)
    key = hashlib.sha256(
        f"{code_hash(found)} {[(n, str(data.folder(n))) for n in claim.data]} {data.used}".encode()
    ).hexdigest()[:12]
    rows: dict[int, list[Row]] = {}
    seconds: dict[int, float] = {}
    for done, seed in enumerate(seeds):
        if progress:
            progress(found.slug, done, len(seeds))
        kept = None if data.smoke else _read_seed(out, found.slug, seed, key)
        if kept is None:
            start = time.perf_counter()
            kept = list(claim.run(seed, data)), time.perf_counter() - start
            if not data.smoke:
                _write_seed(out, found.slug, seed, key, *kept)
        rows[seed], seconds[seed] = kept
    if progress:
        progress(found.slug, len(seeds), len(seeds))
    status, verdicts = claim.judge(rows)
    report = {
        "slug": found.slug,
        "title": found.title,
        "statement": claim.statement,
        "status": status,
        "gates": [_verdict_json(v) for v in verdicts],
        "rows": _summary(rows),
        "seeds": seeds,
        "seconds": round(sum(seconds.values()), 2),
        "cpu_seconds_budget": claim.cpu_seconds,
        "note": claim.note,
        "smoke": data.smoke,
        "provenance": provenance(data, code=code_hash(found), source=found.path / "claim.py"),
    }
    if not data.smoke:
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / f"{found.slug}.json", report)
        for seed in seeds:
            _seed_file(out, found.slug, seed, key).unlink(missing_ok=True)
    return report


def changed(found: Iterable[Method], out: Path = RESULTS) -> list[Method]:
    """The methods whose code is not the one that their result was measured with."""

    def is_current(m: Method) -> bool:
        try:
            return json.loads((out / f"{m.slug}.json").read_text())["provenance"]["code"] == code_hash(m)
        except (OSError, ValueError, KeyError):
            return False

    return [m for m in found if not is_current(m)]


def code_hash(found: Method) -> str:
    """12 hex digits over the sources of a method's room folder (tests and the page left out)."""
    return sources_hash(found.path.rglob("*.py"))


def sources_hash(paths: Iterable[Path]) -> str:
    """12 hex digits over some sources; tests among them do not count."""
    digest = hashlib.sha256()
    for path in sorted(p for p in paths if not p.name.startswith("test_")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def provenance(data: Data, *, code: str, source: Path) -> dict[str, Any]:
    """What a figure was measured with.

    Args:
        data: remembers which sets were used.
        code: hash of the sources that decide the figure.
        source: one of them, by which the commit is found.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "commit": _commit(source),
        "code": code,
        "versions": versions,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": dict(data.used),
    }


def _commit(path: Path) -> str:
    """The commit of the code, ``-dirty`` if a source of the package was changed since; ``""`` outside a checkout."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(PACKAGE), *words]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", str(path)):
            return ""  # installed into somebody else's checkout: the version says which code it was
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE))
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    estimate = verdict.estimate
    return {
        "setting": verdict.gate.setting,
        "condition": verdict.gate.describe(),
        "control": verdict.gate.control,
        "status": verdict.status,
        # One observation has no interval: its ends are None.
        "estimate": None if estimate is None else {k: estimate.to_json()[k] for k in ("mean", "low", "high")},
    }


def _summary(rows: dict[int, list[Row]]) -> list[dict[str, Any]]:
    """One line for each setting, arm and metric: mean and spread over the seeds, in the order of the first seed."""
    table: dict[tuple[str, str, str], list[Row]] = {}
    for seed_rows in rows.values():
        for row in seed_rows:
            table.setdefault((row.setting, row.arm, row.metric), []).append(row)
    summary = []
    for (setting, arm, metric), found in table.items():
        values = np.array([row.value for row in found], dtype=np.float64)
        costs = [row.seconds for row in found if row.seconds is not None]
        summary.append(
            {
                "setting": setting,
                "arm": arm,
                "metric": metric,
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "seeds": len(values),
                "seconds": float(np.mean(costs)) if costs else None,
                "note": found[0].note,
            }
        )
    return summary


def _seed_file(out: Path, slug: str, seed: int, key: str) -> Path:
    return out / ".partial" / f"{slug}-{seed}-{key}.json"


def _write_seed(out: Path, slug: str, seed: int, key: str, rows: list[Row], seconds: float) -> None:
    path = _seed_file(out, slug, seed, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [
        {
            "setting": r.setting,
            "arm": r.arm,
            "metric": r.metric,
            "value": r.value,
            "values": None if r.values is None else r.values.tolist(),
            "seconds": r.seconds,
            "note": r.note,
        }
        for r in rows
    ]
    _write_json(path, {"rows": plain, "seconds": seconds})


def _read_seed(out: Path, slug: str, seed: int, key: str) -> tuple[list[Row], float] | None:
    path = _seed_file(out, slug, seed, key)
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    rows = [Row(**{**r, "values": None if r["values"] is None else np.array(r["values"])}) for r in kept["rows"]]
    return rows, kept["seconds"]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside and renames, so that a killed run leaves no half file."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")
    beside.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise BadInput(f"a {type(value).__name__} cannot be written as JSON", where="results")
