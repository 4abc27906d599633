"""The report of `chiasm.align` as one self-contained page: no script, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.doctor import charts
from chiasm.errors import BadInput, ChiasmError
from chiasm.learn.retrieval import RECALL
from chiasm.measure.intervals import Interval

if TYPE_CHECKING:
    from chiasm.learn.pair_table import Entry
    from chiasm.learn.report import AlignReport, Suspect

# Nothing may be loaded or run, whatever a caption or a file's name holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_THUMBNAIL = 220
_SHOWN_SKIPPED = 200


def write(path: str | Path, report: AlignReport, *, title: str = "aligned space") -> None:
    """Writes the page.

    Args:
        path: the file.
        report: what to show.
        title: what was aligned.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        Path(path).write_text(render(report, title=title), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where=str(path)) from error


def render(report: AlignReport, *, title: str = "aligned space") -> str:
    """The page as text."""
    style = resources.files("chiasm.doctor").joinpath("page.css").read_text(encoding="utf-8")
    parts = (
        _head(report, title),
        _verdict(report),
        _recall(report),
        _curves(report),
        _pairs(report),
        _settings(report),
        _foot(report),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: chiasm align</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(report: AlignReport, title: str) -> str:
    facts = report.facts
    cells = [
        (f"{facts['pairs']['train']:,}", "training pairs"),
        (f"{facts['reported_pairs']:,}", f"{facts['reported']} pairs"),
    ]
    cells += [(f"{count:,}", f"{name} items") for count, name in zip(facts["items"], facts["names"])]
    cells.append(
        (f"{report.seconds.get('total', 0.0):.0f} s", f"of which training {report.seconds.get('train', 0.0):.0f} s")
    )
    tiles = "".join(f"<li><b>{value}</b>{escape(name)}</li>" for value, name in cells)
    return f'<header><p class="eyebrow">chiasm align</p><h1>{escape(title)}</h1><ul class="tiles">{tiles}</ul></header>'


def _verdict(report: AlignReport) -> str:
    gains = report.gains()
    way, found = next(iter(gains.items()))
    gain = found["R@10"]
    kind, head = (
        ("cure", "Better") if gain.low > 0 else ("open", "Worse") if gain.high < 0 else ("alone", "No clear change")
    )
    before, after = (side[way].interval("R@10", report.seed) for side in (report.before, report.after))
    text = (
        f"{way}: R@10 on the {report.facts['reported']} pairs went from {_percent(before)} to {_percent(after)}, "
        f"a gain of {_points(gain)} points."
    )
    if report.collapsed:
        text += " While training, all vectors came to point one way: the space has collapsed."
    return f'<section class="verdict {kind}"><h2>{head}</h2><p>{escape(text[0].upper() + text[1:])}</p></section>'


def _recall(report: AlignReport) -> str:
    rows, drawn = [], []
    gains = report.gains()
    for one in report.after.directions:
        old = report.before[one.name]
        items = f"{len(one.ranking):,} queries among {one.candidates:,} items"
        rows.append(f'<tr class="group"><th colspan="4">{escape(one.name)} <small>{items}</small></th></tr>')
        for name in RECALL:
            before, after = old.interval(name, report.seed), one.interval(name, report.seed)
            drawn.append((f"{one.name[: one.name.index(' to ')]}: {name}", before, after))
            cells = (name, _percent(before), _percent(after), _points(gains[one.name][name]))
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
        for name, values in _others(old, one).items():
            rows.append(f"<tr><td>{escape(name)}</td><td>{values[0]}</td><td>{values[1]}</td><td></td></tr>")
    if report.before.gap and report.after.gap:
        rows.append('<tr class="group"><th colspan="4">gap of the two sides</th></tr>')
        for name, what in (
            ("distance", "distance of their centers"),
            ("separability", "accuracy of telling them apart"),
        ):
            rows.append(
                f"<tr><td>{what}</td><td>{report.before.gap[name]:.3f}</td><td>{report.after.gap[name]:.3f}</td><td></td></tr>"
            )
    plot = charts.changes(drawn, "recall before and after", ("unaligned", "aligned"))
    return (
        f"<section><h2>Recall on the {escape(report.facts['reported'])} pairs</h2>"
        "<p>R@k: share of the queries with a right item among the first k. A sentence that several items have is right for all "
        "of them. Nothing was chosen on these pairs.</p>"
        f'<figure>{plot}</figure><div class="wide"><table><thead><tr><th>figure</th><th>unaligned</th><th>aligned</th>'
        f"<th>gain, points</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _others(old: Any, new: Any) -> dict[str, tuple[str, str]]:
    shown = {"mAP": tuple(_percent(side.interval("map")) for side in (old, new))}
    shown["median rank"] = tuple(f"{side.ranking['median_rank']:.0f}" for side in (old, new))
    for name, what in (("skewness", "hubness, skewness of N_10"), ("anti_hub_share", "items in no list of ten")):
        if name in old.hubs and name in new.hubs:
            shown[what] = tuple(f"{side.hubs[name]:.2f}" for side in (old, new))
    return {name: (values[0], values[1]) for name, values in shown.items()}


def _curves(report: AlignReport) -> str:
    losses = np.array([[e["step"], e["loss"]] for e in report.history if "loss" in e and "step" in e])
    recalls = {}
    for way, name in (("b_to_a", 1), ("a_to_b", 0)):
        key = f"eval_{way}_hit@10"
        points = [[e["step"], e[key]] for e in report.history if key in e and "step" in e]
        if points:
            names = report.facts["names"]
            recalls[f"{names[name]} to {names[1 - name]}"] = np.array(points)
    drawn = []
    if len(losses) > 1:
        drawn.append(
            ("Loss", charts.curves({"training loss": losses}, "loss over steps", "step"), "Of the training batches.")
        )
    if recalls:
        text = "On the val pictures; training stops when their mean no longer rises, and the best state is kept."
        drawn.append(("R@10 while training", charts.curves(recalls, "recall over steps", "step", percent=True), text))
    if not drawn:
        return ""
    figures = "".join(
        f"<figure><figcaption><b>{escape(n)}</b>{escape(t)}</figcaption>{svg}</figure>" for n, svg, t in drawn
    )
    return f'<section><h2>Training</h2><div class="charts">{figures}</div></section>'


def _pairs(report: AlignReport) -> str:
    if report.noisy is None:
        return ""
    rate = report.noisy.rate
    cards = "".join(_card(suspect) for suspect in report.suspects)
    flagged = sum(suspect.probability >= 0.5 for suspect in report.suspects)
    said = (
        f"{flagged} of those below are framed." if flagged else "none of those below is more likely wrong than right."
    )
    return (
        "<section><h2>Pairs that fit least</h2>"
        f"<p>About {100 * rate.mean:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] of all pairs look mismatched to the aligned "
        f"space: {said} Pairs it was trained on look better than they are.</p>"
        f'<ul class="pairs">{cards}</ul></section>'
    )


def _card(suspect: Suspect) -> str:
    top = picture(suspect.a)
    shown = (
        f'<img src="{top}" alt="{escape(_name(suspect.a), quote=True)}">'
        if top
        else f'<div class="blank">{escape(_cut(suspect.a.name))}</div>'
    )
    words = _cut(suspect.b.source) if isinstance(suspect.b.source, str) else _name(suspect.b)
    likely = f"mismatched with {100 * suspect.probability:.0f} %"
    likely = f"<b>{likely}</b>" if suspect.probability >= 0.5 else likely
    kind = ' class="suspect"' if suspect.probability >= 0.5 else ""
    place = escape(_cut(suspect.where.rpartition("/")[2], 60))
    return f"<li{kind}>{shown}<p>{escape(words)}</p><small>{likely}, cosine {suspect.cosine:.2f}, {suspect.split}<br>{place}</small></li>"


def picture(entry: Entry) -> str | None:
    """A small picture of an item as a ``data:`` address; None for text and for what cannot be drawn."""
    from chiasm.encode.files import path_to_uri
    from chiasm.encode.thumbnails import thumbnail

    if entry.is_text:
        return None
    try:
        if isinstance(entry.source, Path):
            data = thumbnail(path_to_uri(entry.source), size=_THUMBNAIL)
        else:
            with tempfile.TemporaryDirectory(prefix="chiasm-") as folder:
                path = Path(folder) / "member"
                path.write_bytes(entry.bytes())
                data = thumbnail(path_to_uri(path), size=_THUMBNAIL)
    except (ChiasmError, OSError):
        return None
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _settings(report: AlignReport) -> str:
    facts = report.facts
    shown = {
        "space": facts["space"],
        "objective": facts["objective"],
        "options": ", ".join(f"{k}={v}" for k, v in facts["options"].items()) or "defaults",
        "trained": "encoders and heads" if facts["unfreeze"] else "heads behind frozen encoders",
        "epochs (at most), batch, rate": f"{facts['epochs']:g}, {facts['batch_size']}, {facts['rate']:g}",
        "seed": str(facts["seed"]),
        "pairs: train, val, test": ", ".join(f"{facts['pairs'][name]:,}" for name in ("train", "val", "test")),
        "seconds: " + ", ".join(report.seconds): ", ".join(f"{value:.1f}" for value in report.seconds.values()),
        "items that went through the encoders": f"{facts['encoded']:,} (the others were in the cache)",
    }
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in shown.items())
    return f'<section><h2>Settings</h2><div class="wide"><table class="figures"><tbody>{rows}</tbody></table></div></section>'


def _foot(report: AlignReport) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes) or "<li>None.</li>"
    out = f"<section><h2>Notes</h2><ul>{notes}</ul>"
    if report.skipped:
        rows = "".join(
            f"<tr><td>{escape(_cut(s.where, 160))}</td><td>{escape(_cut(s.reason))}</td></tr>"
            for s in report.skipped[:_SHOWN_SKIPPED]
        )
        more = len(report.skipped) - _SHOWN_SKIPPED
        rest = f"<p>{more:,} more are in report.json.</p>" if more > 0 else ""
        out += (
            f"<details><summary>{len(report.skipped):,} lines or items gave no pair</summary>"
            f'<div class="wide"><table><tbody>{rows}</tbody></table></div>{rest}</details>'
        )
    return out + "<p><small>Intervals are 95 %, by bootstrap over pictures.</small></p></section>"


def _percent(found: Interval) -> str:
    if not np.isfinite([found.low, found.high]).all():
        return f"{100 * found.mean:.1f} %"
    return f"{100 * found.mean:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _points(gain: Interval) -> str:
    if not np.isfinite([gain.low, gain.high]).all():
        return f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _name(entry: Entry) -> str:
    return entry.name.rstrip("/").rpartition("/")[2]


def _cut(text: str, limit: int = 200) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1].rstrip() + "…"
