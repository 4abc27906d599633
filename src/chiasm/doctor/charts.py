"""The report's charts as small inline SVG: no script, no font, no file from elsewhere; colors come from the page's CSS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from chiasm.measure.intervals import Interval

WIDTH, HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_CURVE_BINS = 60


@dataclass(frozen=True, slots=True)
class _Axes:
    """A drawing area and its scales."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: float = WIDTH
    height: float = HEIGHT

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(
            self.height - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - _TOP - _BOTTOM), 1
        )


def hub_histogram(counts: np.ndarray, k: int, label: str) -> str:
    """How many items stand in how many result lists, beside what chance would give.

    Args:
        counts: N_k of each item ``[M]``.
        k: length of the lists.
        label: what the chart shows, for screen readers.
    """
    from scipy.stats import poisson

    top = max(int(counts.max(initial=0)), 4 * k)
    edges = [0, 1, 2, 3, 5, 9]
    while edges[-1] <= top:
        edges.append(2 * edges[-1] - 1)
    share = np.histogram(counts, edges)[0] / len(counts)
    mean = counts.mean()
    chance = np.diff(poisson.cdf(np.array(edges) - 1, mean))
    axes = _Axes(0, len(share), 0, max(share.max(), chance.max()) * 1.08)
    parts = [_y_axis(axes, percent=True), _caption(axes, "result lists an item stands in (log scale)")]
    slot = axes.x(1) - axes.x(0)
    for i, value in enumerate(share):
        first, last = edges[i], edges[i + 1] - 1
        name = f"{first}" if first == last else f"{first}–{last}"
        height = axes.y(0) - axes.y(value)
        parts.append(
            f'<rect class="f0" x="{axes.x(i) + slot * 0.12:.1f}" y="{axes.y(value)}" width="{slot * 0.76:.1f}" '
            f'height="{height:.1f}" rx="2"><title>{name} lists: {100 * value:.1f} % of the items</title></rect>'
        )
        parts.append(
            f'<text class="tick" x="{axes.x(i + 0.5)}" y="{axes.height - 22}" text-anchor="middle">{name}</text>'
        )
        if value and height < 2:  # rare items matter most here, so they must be seen
            parts.append(f'<circle class="f0" cx="{axes.x(i + 0.5)}" cy="{axes.y(0) - 3}" r="2.5"/>')
        parts.append(
            f'<line class="chance" x1="{axes.x(i) + slot * 0.06:.1f}" x2="{axes.x(i + 1) - slot * 0.06:.1f}" '
            f'y1="{axes.y(chance[i])}" y2="{axes.y(chance[i])}"/>'
        )
    return _svg(parts, label) + _legend([("share of items", "b0"), ("if places were drawn by chance", "bchance")])


def densities(samples: Mapping[str, np.ndarray], label: str) -> str:
    """Distributions of cosines, one curve each."""
    values = np.concatenate(list(samples.values()))
    low, high = (float(v) for v in np.quantile(values, [0.0005, 0.9995]))
    if high - low < 1e-3:
        low, high = low - 0.05, high + 0.05
    pad = 0.04 * (high - low)
    edges = np.linspace(low - pad, high + pad, _CURVE_BINS + 1)
    curves = {
        name: _smooth(np.histogram(v, edges)[0] / (len(v) * (edges[1] - edges[0]))) for name, v in samples.items()
    }
    axes = _Axes(edges[0], edges[-1], 0, max(c.max() for c in curves.values()) * 1.06 or 1.0)
    parts = [_x_axis(axes), _caption(axes, "cosine")]
    middle = (edges[1:] + edges[:-1]) / 2
    for i, (name, curve) in enumerate(curves.items()):
        path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in zip(middle, curve))
        area = f"{axes.x(middle[0])},{axes.y(0)} {path} {axes.x(middle[-1])},{axes.y(0)}"
        parts.append(f'<polygon class="f{i % 5} soft" points="{area}"/>')
        parts.append(f'<polyline class="s{i % 5}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg(parts, label) + _legend([(name, f"b{i % 5}") for i, name in enumerate(samples)])


def scatter(points: Mapping[str, np.ndarray], explained: tuple[float, float], label: str) -> str:
    """The parts on two axes of equal scale, with their centers.

    Args:
        points: name -> ``[n, 2]``.
        explained: share of variance of each axis.
        label: what the chart shows, for screen readers.
    """
    every = np.concatenate(list(points.values()))
    center, half = (every.max(axis=0) + every.min(axis=0)) / 2, np.ptp(every, axis=0) / 2 * 1.06 + 1e-6
    height = 340
    ratio = (WIDTH - _LEFT - _RIGHT) / (height - _TOP - _BOTTOM)
    half = np.array([max(half[0], half[1] * ratio), max(half[1], half[0] / ratio)])
    axes = _Axes(center[0] - half[0], center[0] + half[0], center[1] - half[1], center[1] + half[1], WIDTH, height)
    parts = [
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{WIDTH - _LEFT - _RIGHT}" height="{height - _TOP - _BOTTOM}"/>',
        _caption(axes, f"first axis, {100 * explained[0]:.0f} % of the variance"),
        f'<text class="tick" transform="translate(16 {height / 2 - 12}) rotate(-90)" text-anchor="middle">'
        f"second axis, {100 * explained[1]:.0f} %</text>",
    ]
    for i, rows in enumerate(points.values()):
        dots = "".join(f"M{axes.x(x)} {axes.y(y)}h0" for x, y in rows)
        parts.append(f'<path class="s{i % 5} dots" d="{dots}"/>')
    for i, rows in enumerate(points.values()):
        x, y = rows.mean(axis=0)
        parts.append(f'<circle class="f{i % 5} middle" cx="{axes.x(x)}" cy="{axes.y(y)}" r="6"/>')
    return _svg(parts, label, height) + _legend([(name, f"b{i % 5}") for i, name in enumerate(points)])


def forest(rows: Sequence[tuple[str, Interval, bool]], label: str) -> str:
    """Gains with their intervals around zero, in points.

    Args:
        rows: name, gain, and whether it is the recommended one.
        label: what the chart shows, for screen readers.
    """
    ends = [100 * v for _, gain, _ in rows for v in (gain.low, gain.high)]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    pad = 0.06 * (high - low) + 0.2
    line, left, width = 30, 150, 720
    height = _TOP + line * len(rows) + _BOTTOM
    axes = _Axes(low - pad, high + pad, 0, 1, width - left + _LEFT, height)
    parts = [f'<g transform="translate({left - _LEFT} 0)">', _x_axis(axes), _caption(axes, "gain of hit@1 in points")]
    zero = axes.x(0)
    parts.append(f'<line class="zero" x1="{zero}" x2="{zero}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    for i, (name, gain, chosen) in enumerate(rows):
        y = _TOP + line * (i + 0.5)
        kind = 2 if gain.low > 0 else 1 if gain.high < 0 else 5
        text = f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        parts += [
            f'<text class="name{" chosen" if chosen else ""}" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
            f'<line class="s{kind} bar" x1="{axes.x(100 * gain.low)}" x2="{axes.x(100 * gain.high)}" y1="{y}" y2="{y}"/>',
            f'<circle class="f{kind}" cx="{axes.x(100 * gain.mean)}" cy="{y}" r="{6 if chosen else 4.5}">'
            f"<title>{escape(name)}: {text}</title></circle>",
        ]
    parts.append("</g>")
    return _svg(parts, label, height, width)


def curves(series: Mapping[str, np.ndarray], label: str, x: str, *, percent: bool = False) -> str:
    """Lines over one axis, for example a loss over the steps.

    Args:
        series: name -> points ``[n, 2]``.
        label: what the chart shows, for screen readers.
        x: what the horizontal axis is.
        percent: values are shares.
    """
    every = np.concatenate(list(series.values()))
    (x0, y0), (x1, y1) = every.min(axis=0), every.max(axis=0)
    y0, y1 = (0.0, max(y1 * 1.06, 1e-6)) if y0 >= 0 else (y0, y1 + 0.06 * max(y1 - y0, 1e-6))
    axes = _Axes(x0, x1 if x1 > x0 else x0 + 1, y0, y1)
    parts = [_y_axis(axes, percent=percent), _x_axis(axes), _caption(axes, x)]
    for i, (name, points) in enumerate(series.items()):
        path = " ".join(f"{axes.x(px)},{axes.y(py)}" for px, py in points)
        parts.append(f'<polyline class="s{i % 5}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= 30:
            parts += [f'<circle class="f{i % 5}" cx="{axes.x(px)}" cy="{axes.y(py)}" r="3"/>' for px, py in points]
    return _svg(parts, label) + _legend([(name, f"b{i % 5}") for i, name in enumerate(series)])


def changes(rows: Sequence[tuple[str, Interval, Interval]], label: str, names: tuple[str, str]) -> str:
    """Shares before and after, each with its interval, one row a figure.

    Args:
        rows: name, before, after; in [0, 1].
        label: what the chart shows, for screen readers.
        names: of the two.
    """
    line, left, width = 34, 150, 720
    height = _TOP + line * len(rows) + _BOTTOM
    axes = _Axes(0, 100, 0, 1, width - left + _LEFT, height)
    parts = [f'<g transform="translate({left - _LEFT} 0)">', _x_axis(axes), _caption(axes, "percent of the queries")]
    for i, (name, before, after) in enumerate(rows):
        y = _TOP + line * (i + 0.5)
        parts.append(f'<text class="name" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for kind, shift, found in ((5, -6, before), (2, 6, after)):
            low, mean, high = (axes.x(100 * min(max(v, 0.0), 1.0)) for v in (found.low, found.mean, found.high))
            parts += [
                f'<line class="s{kind} bar" x1="{low}" x2="{high}" y1="{y + shift}" y2="{y + shift}"/>',
                f'<circle class="f{kind}" cx="{mean}" cy="{y + shift}" r="5"><title>{escape(name)}: '
                f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]</title></circle>",
            ]
    parts.append("</g>")
    return _svg(parts, label, height, width) + _legend([(names[0], "b5"), (names[1], "b2")])


def _smooth(curve: np.ndarray) -> np.ndarray:
    kernel = np.array([1.0, 2.0, 1.0])
    return np.convolve(np.pad(curve, 1, mode="edge"), kernel / kernel.sum(), mode="valid")


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between two values."""
    raw = (high - low) / 5
    unit = 10.0 ** np.floor(np.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.8)
    return [float(v) for v in np.arange(np.ceil(low / step) * step, high + step * 1e-6, step)]


def _x_axis(axes: _Axes) -> str:
    base = axes.height - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{axes.width - _RIGHT}" y1="{base}" y2="{base}"/>']
    for value in _ticks(axes.x0, axes.x1):
        x = axes.x(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{base + 16}" text-anchor="middle">{_plain(value)}</text>')
    return "".join(parts)


def _y_axis(axes: _Axes, *, percent: bool) -> str:
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{axes.width - _RIGHT}" y1="{axes.y(0)}" y2="{axes.y(0)}"/>']
    for value in _ticks(axes.y0, axes.y1):
        y = axes.y(value)
        shown = f"{_plain(100 * value)} %" if percent else _plain(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{axes.width - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{shown}</text>')
    return "".join(parts)


def _plain(value: float) -> str:
    return f"{value:.6g}" if abs(value) > 1e-9 else "0"


def _caption(axes: _Axes, text: str) -> str:
    x = (_LEFT + axes.width - _RIGHT) / 2
    return f'<text class="tick" x="{x}" y="{axes.height - 5}" text-anchor="middle">{escape(text)}</text>'


def _svg(parts: Sequence[str], label: str, height: float = HEIGHT, width: float = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="{kind}"></i>{escape(name)}</li>' for name, kind in entries)
    return f'<ul class="legend">{items}</ul>'
