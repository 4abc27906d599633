"""The public table: every result under ``results/`` as one page of the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chiasm.errors import BadInput


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of full runs, by slug.

    Raises:
        BadInput: there is no result, or a file is not one.
    """
    reports = []
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"not JSON ({error})", where=str(path)) from error
        missing = {"slug", "status", "gates", "rows", "provenance"} - set(report)
        if missing:
            raise BadInput(f"not a result of chiasm reproduce: no {sorted(missing)[0]!r}", where=str(path))
        reports.append(report)
    if not reports:
        raise BadInput("no results yet", where=str(folder), fix="Run: chiasm reproduce --all")
    return reports


def markdown(reports: list[dict[str, Any]]) -> str:
    """The page: one summary table, then one section a claim with its gates, rows and provenance."""
    lines = [
        "# Claims",
        "",
        "Every method's central claim, re-measured by `chiasm reproduce SLUG`. Intervals are 95 % bootstrap intervals over seeds and queries; a gain whose",
        "interval includes zero is *not confirmed* (or *not resolved* where the interval also holds the promised gain). A *control* is a case where the method",
        "must not help. This page is written by `chiasm claims table`.",
        "",
        "| method | status | headline | measured | data |",
        "|---|---|---|---|---|",
    ]
    for report in reports:
        head = next((g for g in report["gates"] if not g["control"] and g["estimate"]), None)
        measured = interval_text(head["estimate"]) if head else ""
        what = f"{head['setting']}: {head['condition']}" if head else ""
        data = ", ".join(report["provenance"]["data"]) or "generated"
        lines.append(f"| [{report['slug']}](#{report['slug']}) | {report['status']} | {what} | {measured} | {data} |")
    for report in reports:
        lines += ["", *_section(report)]
    return "\n".join(lines) + "\n"


def _section(report: dict[str, Any]) -> list[str]:
    origin = report["provenance"]
    lines = [f"## {report['slug']}", "", f"**{report['title']}**: *{report['status']}*. {report['statement']}", ""]
    if report["note"]:
        lines += [report["note"], ""]
    lines += ["| setting | condition | measured | verdict |", "|---|---|---|---|"]
    for gate in report["gates"]:
        verdict = gate["status"] + (" (control)" if gate["control"] else "")
        lines.append(f"| {gate['setting']} | {gate['condition']} | {interval_text(gate['estimate'])} | {verdict} |")
    lines += ["", "| setting | arm | metric | mean | sd over seeds | seconds |", "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        sd = "" if row["sd"] is None else f"{row['sd']:.4g}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        lines.append(f"| {row['setting']} | {row['arm']} | {row['metric']} | {row['mean']:.4g} | {sd} | {seconds} |")
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    lines += [
        "",
        f"Seeds {', '.join(map(str, report['seeds']))}; {report['seconds']:.0f} s on {origin['cores']} cores ({origin['cpu']}); "
        f"commit {origin['commit'] or 'release'}; {versions}; {origin['date'][:10]}.",
    ]
    return lines


def interval_text(estimate: dict[str, float | None] | None) -> str:
    """``mean [low, high]``; nothing where there was no data, only the mean where one observation has no interval."""
    if estimate is None:
        return "no data"
    mean, low, high = (None if estimate[k] is None else f"{estimate[k]:.4g}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low and high else f"{mean}"
