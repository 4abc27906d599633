"""The report as one self-contained page: no script, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from chiasm.doctor import charts
from chiasm.doctor.cures import Trial, points
from chiasm.doctor.figures import Figure, K
from chiasm.doctor.report import Report
from chiasm.doctor.symptoms import RULES, Symptom
from chiasm.errors import BadInput


def write(path: Path, report: Report, *, title: str = "embeddings") -> None:
    """Writes the page.

    Args:
        path: the file.
        report: what to show.
        title: what was examined.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        path.write_text(render(report, title=title), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where=str(path)) from error


def render(report: Report, *, title: str = "embeddings") -> str:
    """The page as text."""
    style = resources.files("chiasm.doctor").joinpath("page.css").read_text(encoding="utf-8")
    body = "".join(
        (
            _head(report, title),
            _verdict(report),
            _symptoms(report),
            _cures(report),
            _charts(report),
            _figures(report),
            _foot(report),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: chiasm doctor</title><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


def _head(report: Report, title: str) -> str:
    facts = report.facts
    asked, found = facts["names"]
    cells = [(f"{facts['items']:,}", found)]
    if facts["queries"]:
        cells.append((f"{facts['queries']:,}", asked))
    if facts["pairs"]:
        cells.append((f"{facts['pairs']:,}", "matched pairs"))
    cells += [(f"{facts['dimensions']:,}", "dimensions"), (f"{facts['sampled_items']:,}", f"{found} sampled")]
    tiles = "".join(f"<li><b>{value}</b>{escape(name)}</li>" for value, name in cells)
    return (
        f'<header><p class="eyebrow">chiasm doctor</p><h1>{escape(title)}</h1><ul class="tiles">{tiles}</ul></header>'
    )


def _verdict(report: Report) -> str:
    verdict = report.verdict
    kind = "cure" if verdict.cure else "alone" if verdict.judged else "open"
    head = verdict.cure or ("Leave it alone" if verdict.judged else "No gain measured")
    text = verdict.text.removeprefix(f"{verdict.cure}: ").removeprefix("Leave it alone. ")
    lines = "".join(f"<pre>{escape(line)}</pre>" for line in verdict.apply)
    return f'<section class="verdict {kind}"><h2>{escape(head)}</h2><p>{escape(text)}</p>{lines}</section>'


def _symptoms(report: Report) -> str:
    cards = "".join(_symptom(symptom) for symptom in report.symptoms)
    if not cards:
        return '<section><h2>Symptoms</h2><p class="none">None: no figure is above its threshold.</p></section>'
    return f'<section><h2>Symptoms</h2><div class="cards">{cards}</div></section>'


def _symptom(symptom: Symptom) -> str:
    rule, figure = symptom.rule, symptom.figure
    shown = _value(figure.value) + (f" <small>{_span(figure)}</small>" if figure.interval else "")
    if symptom.methods:
        items = "".join(
            f"<li><code>{escape(slug)}</code> {escape(name)} <small>{escape(room)}</small></li>"
            for slug, name, room in symptom.methods
        )
        treated = f"<p>Treated by</p><ul>{items}</ul>"
    else:
        treated = "<p>No method of this installation's catalogue names this symptom.</p>"
    also = f" <small>also: {escape(', '.join(symptom.also))}</small>" if symptom.also else ""
    sign = "below" if rule.below else "above"
    return (
        f'<article><h3>{escape(symptom.name)}</h3><p class="part">{escape(symptom.part)}{also}</p>'
        f'<p class="measure"><b>{shown}</b><span>{escape(figure.name)}, a symptom {sign} {rule.threshold:g}</span></p>'
        f"<p>{escape(rule.meaning)}</p><details><summary>Why this threshold</summary><p>{escape(rule.reason)}</p></details>"
        f"{treated}</article>"
    )


def _cures(report: Report) -> str:
    if not report.trials:
        return ""
    rows = "".join(_trial(trial, trial.cure == report.verdict.cure) for trial in report.trials)
    raw = (
        ""
        if report.raw is None
        else (
            f" Without a cure hit@1 is {100 * report.raw.mean:.1f} % [{100 * report.raw.low:.1f}, {100 * report.raw.high:.1f}]"
            " on this slice."
        )
    )
    plot = charts.forest(
        [(t.cure, t.gain, t.cure == report.verdict.cure) for t in report.trials], "gain of each cure with its interval"
    )
    return (
        "<section><h2>Cures that were tried, the cheapest first</h2>"
        f"<p>Strengths were chosen on one slice; the gains are those of another.{raw}</p><figure>{plot}</figure>"
        '<div class="wide"><table><thead><tr><th>cure</th><th>chosen strength</th><th>gain of hit@1</th>'
        f"<th>gain of hit@10</th><th>cost</th><th>tried in</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _trial(trial: Trial, chosen: bool) -> str:
    gains = (points(gain).removesuffix(" points") for gain in (trial.gain, trial.gain_at_10))
    cells = [("", trial.cure), ("code", trial.correction), *(("gain", gain) for gain in gains), ("", trial.cost)]
    cells.append(("gain", f"{trial.seconds:.1f} s"))
    row = "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in cells)
    return f'<tr class="{"chosen" if chosen else "tried"}">{row}</tr>'


def _charts(report: Report) -> str:
    shown = report.pictures
    drawn: list[tuple[str, str, str]] = []
    for part, counts in shown.counts.items():
        text = (
            "Each item stands in some of the lists of ten. Bars far to the right are hubs, the bar at 0 is never found."
        )
        drawn.append(
            (f"Hubness: {part}", charts.hub_histogram(np.asarray(counts), K, f"histogram of N_{K}, {part}"), text)
        )
    if shown.similarities:
        text = "The further the matched pairs lie to the right of all others, the easier the search."
        if "matched" not in shown.similarities:
            text = "Cosines of random pairs. A clean space is centered at zero; a cone lies to the right."
        drawn.append(("Cosines", charts.densities(shown.similarities, "distributions of cosines"), text))
    if shown.points:
        text = "Sampled vectors on the two main axes of all of them; the large dots are the means. A gap is two clouds apart."
        drawn.append(
            ("The space from its widest side", charts.scatter(shown.points, shown.explained, "two main axes"), text)
        )
    figures = "".join(
        f"<figure><figcaption><b>{escape(name)}</b>{escape(text)}</figcaption>{svg}</figure>"
        for name, svg, text in drawn
    )
    return f'<section><h2>Pictures</h2><div class="charts">{figures}</div></section>'


def _figures(report: Report) -> str:
    rows, last = [], None
    for figure in report.figures:
        if figure.part != last:
            rows.append(f'<tr class="group"><th colspan="3">{escape(figure.part)}</th></tr>')
            last = figure.part
        rows.append(f"<tr><td>{escape(figure.name)}</td><td>{_value(figure.value)}</td><td>{_span(figure)}</td></tr>")
    return (
        '<section><h2>All figures</h2><div class="wide"><table class="figures"><thead><tr><th>figure</th><th>value</th>'
        f"<th>95 % interval</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _foot(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    rules = "".join(
        f"<tr><td>{escape(r.symptom)}</td><td>{escape(r.figure)} {'&lt;' if r.below else '&gt;'} {r.threshold:g}</td>"
        f"<td>{escape(r.reason)}</td></tr>"
        for r in RULES
    )
    return (
        f"<section><h2>Notes</h2><ul>{notes}</ul><details><summary>All thresholds and their reasons</summary>"
        f'<div class="wide"><table><tbody>{rules}</tbody></table></div></details>'
        f"<p><small>Seed {report.facts['seed']}, {report.seconds:.1f} s. Intervals are 95 %.</small></p></section>"
    )


def _value(value: float) -> str:
    return f"{value:.4g}"


def _span(figure: Figure) -> str:
    found = figure.interval
    if found is None or not np.isfinite([found.low, found.high]).all():
        return ""
    return f"[{found.low:.4g}, {found.high:.4g}]"
