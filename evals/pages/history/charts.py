"""Charts of a history: inline SVG that follows the page's light or dark colours, like evals/pages/charts.py.

Owns three forms: a whisker for a table cell, a trend of segments that are never joined, and training curves of several runs. Input: plain numbers and
labels. Output: SVG text with the classes of evals/pages/page.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from evals.pages.charts import binned, nice_ticks, number, smooth

STYLE = """
.mini{width:170px;height:18px;display:block}.mini .tick{font-size:10px}.band{fill:var(--model);opacity:.14}.trend .dot{fill:var(--model);stroke:none}
.trend .line{stroke-width:1.6}.change{fill:none;stroke:var(--bad);stroke-width:2}
.mark{stroke:var(--soft);stroke-dasharray:3 3}.marked{fill:var(--soft);font-size:11px}
.mark.fingerprint{stroke:var(--control)}.control .line{stroke:var(--control)}.control .raw{stroke:var(--control)}.floor .line{stroke:var(--floor)}
.floor .raw{stroke:var(--floor)}.legend{list-style:none;padding:0;margin:4px 0 0;font-size:13px;color:var(--soft)}
.trend.control .line{stroke:var(--control)}.trend.control .dot,.trend.control .band{fill:var(--control)}
"""
MINI_WIDTH, MINI_HEIGHT, MINI_EDGE = 170, 18, 13


def whisker(value: float, lo: float | None, hi: float | None, axis: tuple[float, float], tone: str = "model") -> str:
    """A dot with its interval (if it has one) on an axis that other rows share. The numbers stand beside it, so screen readers pass over it."""
    y = MINI_HEIGHT / 2
    lines = [(_mini(tick, axis), "axis" if tick == 0 and axis[0] < 0 else "grid") for tick in _mini_ticks(axis)]
    grid = "".join(f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{MINI_HEIGHT}"/>' for x, css in lines)
    line = "" if lo is None or hi is None else f'<line class="whisker" x1="{_mini(lo, axis):.1f}" x2="{_mini(hi, axis):.1f}" y1="{y}" y2="{y}"/>'
    mark = f'<g class="{tone}">{line}<circle class="dot" cx="{_mini(value, axis):.1f}" cy="{y}" r="4"/></g>'
    return f'<svg viewBox="0 0 {MINI_WIDTH} {MINI_HEIGHT}" class="mini" aria-hidden="true">{grid}{mark}</svg>'


def whisker_axis(axis: tuple[float, float], scale: float = 1.0) -> str:
    """The axis of whisker cells, with its numbers multiplied by `scale`."""
    texts = "".join(f'<text class="tick" x="{_mini(t, axis):.1f}" y="12" text-anchor="middle">{number(scale * t)}</text>' for t in _mini_ticks(axis))
    return f'<svg viewBox="0 0 {MINI_WIDTH} {MINI_HEIGHT}" class="mini" aria-hidden="true">{texts}</svg>'


def _mini(value: float, axis: tuple[float, float]) -> float:
    lo, hi = axis
    return MINI_EDGE + (MINI_WIDTH - 2 * MINI_EDGE) * (min(max(value, lo), hi) - lo) / ((hi - lo) or 1.0)


def _mini_ticks(axis: tuple[float, float]) -> list[float]:
    if axis[0] == -axis[1]:
        return [axis[0], 0.0, axis[1]]
    return [tick for tick in nice_ticks(*axis, 3) if axis[0] - 1e-9 <= tick <= axis[1] + 1e-9]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One evaluation of a series."""

    place: int
    """Its number along the chart, from 0."""
    value: float
    lo: float | None
    hi: float | None
    hover: str
    changed: bool = False
    """The search for change points found one here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A vertical line between two places."""

    at: float
    label: str
    css: str = ""
    """fingerprint: what is asked or how it is scored became another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A chart of evaluations in their order."""

    title: str
    segments: Sequence[Sequence[Point]]
    """Never joined by a line."""
    dates: Sequence[str]
    """Of every place."""
    marks: Sequence[Mark] = field(default=())
    scale: float = 1.0
    """Of the numbers on the axis."""
    tone: str = "model"
    """model or control."""


def trend_chart(trend: Trend, *, width: int = 300, height: int = 190) -> str:
    """Each evaluation one step to the right of the one before; the interval as a band, change points in a ring."""
    left, right, top, bottom = 40, 12, 16, 28
    points = [point for segment in trend.segments for point in segment]
    values = [v for p in points for v in (p.value, p.lo, p.hi) if v is not None]
    room = 0.0 if max(values) > min(values) else 0.1 * abs(values[0]) or 0.1
    ticks = nice_ticks(min(values) - room, max(values) + room, 4)
    places = max(1, len(trend.dates) - 1)

    def x(place: float) -> float:
        return left + 6 + (width - left - right - 12) * (place / places if len(trend.dates) > 1 else 0.5)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(trend.title)}" class="chart trend {trend.tone}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(round(trend.scale * tick, 9))}</text>')
    for place, anchor in {0: "start", len(trend.dates) - 1: "end" if len(trend.dates) > 1 else "start"}.items():
        parts.append(f'<text class="tick" x="{x(place):.1f}" y="{height - 8}" text-anchor="{anchor}">{escape(trend.dates[place])}</text>')
    for mark in trend.marks:
        parts.append(f'<line class="mark {mark.css}" x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text class="marked" x="{x(mark.at):.1f}" y="{top - 4}" text-anchor="middle">{escape(mark.label)}</text>')
    for segment in trend.segments:
        known = [p for p in segment if p.lo is not None and p.hi is not None]
        if len(known) > 1:
            outline = [(p.place, p.hi) for p in known] + [(p.place, p.lo) for p in reversed(known)]
            parts.append(f'<polygon class="band" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in outline if b is not None)}"/>')
        if len(segment) > 1:
            parts.append(f'<polyline class="line" points="{" ".join(f"{x(p.place):.1f},{y(p.value):.1f}" for p in segment)}"/>')
        for p in segment:
            ring = f'<circle class="change" cx="{x(p.place):.1f}" cy="{y(p.value):.1f}" r="7"/>' if p.changed else ""
            size = 3 if len(points) <= 60 else 1.8
            parts.append(f'<g><title>{escape(p.hover)}</title>{ring}<circle class="dot" cx="{x(p.place):.1f}" cy="{y(p.value):.1f}" r="{size}"/></g>')
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The losses of one training stage of one run."""

    label: str
    steps: Sequence[float]
    losses: Sequence[float]
    tone: str = "model"


def curves_chart(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, width: int = 300, height: int = 200) -> str:
    """Curves on shared axes: raw values faint, their moving average strong. The first curve is drawn last, on top."""
    left, right, top, bottom = 44, 12, 10, 38
    drawn = [(curve, *binned(curve.steps, curve.losses)) for curve in curves]
    everything = sorted(value for _, _, ys in drawn for value in ys)
    roof = max(everything[int(0.98 * (len(everything) - 1))], 1e-6)
    ticks, most = nice_ticks(min(0.0, everything[0]), roof, 5), max(max(xs) for _, xs, _ in drawn) or 1.0

    def x(step: float) -> float:
        return left + (width - left - right) * step / most

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (min(value, ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" class="chart">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(0, most, 4):
        if tick <= most:
            parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    for curve, xs, ys in reversed(drawn):
        shapes = "".join(
            f'<polyline class="{css}" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, series, strict=True))}"/>'
            for css, series in (("raw", ys), ("line", smooth(ys)))
        )
        parts.append(f'<g class="{curve.tone}"><title>{escape(curve.label)}</title>{shapes}</g>')
    parts.append(f'<text class="tick" x="{(left + width - right) / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    middle = -(top + height - bottom) / 2
    parts.append(f'<text class="tick" transform="rotate(-90)" x="{middle:.0f}" y="12" text-anchor="middle">{escape(y_label)}</text></svg>')
    return "".join(parts)
