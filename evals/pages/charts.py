"""Charts: hand-written inline SVG that follows the page's light or dark colours.

Owns three forms: intervals on one axis (a dot with its 95 % whisker), line charts with a smoothed line, and bars for a table cell.
Input: plain numbers and labels. Output: SVG text with the classes of evals/pages/page.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One row of an interval chart."""

    label: str
    value: float
    lo: float | None
    """None: it has no interval."""
    hi: float | None
    tone: str = "model"
    """Class of the mark: model, control or floor."""
    note: str = ""
    """Shown on hover after the numbers."""


def nice_ticks(lo: float, hi: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover lo..hi."""
    span = (hi - lo) or abs(hi) or 1.0
    raw = span / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(lo / step + 1e-9)
    last = math.ceil(hi / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Shortest text of a tick."""
    return f"{value:g}"


def interval_chart(
    dots: Sequence[Dot],
    *,
    width: int,
    lo: float,
    hi: float,
    percent: bool = False,
    label_width: int = 150,
    title: str = "",
    zero: bool = False,
) -> str:
    """Rows of dots with whiskers on one shared axis from lo to hi.

    percent: values are shares and shown as per cent. zero: a heavier line at 0. title: read out by screen readers.
    """
    row, top, bottom, right = 26, 6, 26, 58
    height = top + row * len(dots) + bottom
    inner = width - label_width - right

    def x(value: float) -> float:
        return label_width + inner * (min(max(value, lo), hi) - lo) / (hi - lo)

    def show(value: float) -> str:
        return f"{100 * value:.1f}" if percent else f"{value:.2f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" class="chart">']
    for tick in nice_ticks(lo, hi):
        if lo - 1e-9 <= tick <= hi + 1e-9:
            css = "axis" if zero and tick == 0 else "grid"
            parts.append(f'<line class="{css}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - bottom}"/>')
            parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 9}" text-anchor="middle">{number(100 * tick if percent else tick)}</text>')
    for i, dot in enumerate(dots):
        y = top + row * (i + 0.5)
        span = "no interval" if dot.lo is None or dot.hi is None else f"[{show(dot.lo)}, {show(dot.hi)}]"
        hover = f"{dot.label}: {show(dot.value)} {span} {dot.note}".strip()
        parts.append(f'<g class="{dot.tone}"><title>{escape(hover)}</title>')
        parts.append(f'<text class="rowlabel" x="{label_width - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.label)}</text>')
        if dot.lo is not None and dot.hi is not None:
            parts.append(f'<line class="whisker" x1="{x(dot.lo):.1f}" x2="{x(dot.hi):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="dot" cx="{x(dot.value):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text class="value" x="{width - right + 12}" y="{y + 4:.1f}">{show(dot.value)}</text></g>')
    return "".join([*parts, "</svg>"])


def axis_of(dots: Sequence[Dot], least: float, most: float) -> tuple[float, float]:
    """Ends of an axis that reaches over every dot and interval, and at least from `least` to `most`."""
    ends = [end for dot in dots for end in (dot.value, dot.lo, dot.hi) if end is not None]
    return min(least, *ends), max(most, *ends)


def binned(xs: Sequence[float], ys: Sequence[float], most: int = 300) -> tuple[list[float], list[float]]:
    """Means of neighbouring points, so that at most `most` are left."""
    size = max(1, math.ceil(len(xs) / most))
    cuts = range(0, len(xs), size)
    return [sum(xs[i : i + size]) / len(xs[i : i + size]) for i in cuts], [sum(ys[i : i + size]) / len(ys[i : i + size]) for i in cuts]


def smooth(ys: Sequence[float], keep: float = 0.85) -> list[float]:
    """Exponential moving average with the start corrected (Kingma & Ba 2015, section 3)."""
    total, weight, result = 0.0, 0.0, []
    for y in ys:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def line_chart(xs: Sequence[float], ys: Sequence[float], *, width: int = 300, height: int = 200, title: str = "", x_label: str = "", y_label: str = "") -> str:
    """One series: the raw values faint, their moving average strong, axes from round numbers."""
    left, right, top, bottom = 44, 12, 10, 38
    bx, by = binned(xs, ys)
    line = smooth(by)
    ticks_x, ticks_y = nice_ticks(0, max(bx), 5), nice_ticks(min(0.0, min(by)), _roof(by), 5)
    hi_x, lo_y, hi_y = max(bx), ticks_y[0], ticks_y[-1]

    def point(a: float, b: float) -> str:
        px = left + (width - left - right) * a / (hi_x or 1)
        py = height - bottom - (height - top - bottom) * (min(b, hi_y) - lo_y) / (hi_y - lo_y)
        return f"{px:.1f},{py:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" class="chart">']
    for tick in ticks_y:
        y = point(0, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks_x:
        if tick <= hi_x:
            parts.append(f'<text class="tick" x="{point(tick, lo_y).split(",")[0]}" y="{height - bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    for css, series in (("raw", by), ("line", line)):
        parts.append(f'<polyline class="{css}" points="{" ".join(point(a, b) for a, b in zip(bx, series, strict=True))}"/>')
    parts.append(f'<text class="tick" x="{(left + width - right) / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    middle = -(top + height - bottom) / 2
    parts.append(f'<text class="tick" transform="rotate(-90)" x="{middle:.0f}" y="12" text-anchor="middle">{escape(y_label)}</text></svg>')
    return "".join(parts)


def _roof(values: Sequence[float]) -> float:
    """Top of the axis: the first steps of a training run may be cut off so that the rest is readable."""
    ordered = sorted(values)
    return max(ordered[int(0.98 * (len(ordered) - 1))], 1e-6)


def bar(share: float, tone: str = "model") -> str:
    """A bar for a table cell, share in 0..1."""
    rectangle = f'<rect class="{tone}" width="{100 * share:.1f}" height="8" rx="1"/>'
    return f'<svg viewBox="0 0 100 8" class="bar" preserveAspectRatio="none" aria-hidden="true">{rectangle}</svg>'
