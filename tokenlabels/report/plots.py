"""Numbers -> inline SVG. Colours come from classes, so that one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenlabels.figures import Position
from tokenlabels.report.markup import decimal, esc, name

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 386, 12, 198

HEAT_STEPS = 10
"""Steps of the colour scale of the heat map, classes `h0` to `h9`."""

_MOST_DOTS = 60
"""A line of more points is drawn without dots."""

_MAX_HEAT = 64
"""Rows or columns of a drawn heat map; larger ones are averaged."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a curve.

    Attributes:
        name: as text.
        y: for each x.
        x: its own, where the lines of a curve differ in it.
    """

    name: str
    y: Sequence[float]
    x: Sequence[float] | None = None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some `about` of them."""
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def histogram(
    labels: Sequence[str], counts: Sequence[int], *, x_label: str, y_label: str, title: str, every: int = 1
) -> str:
    """Bars of counts, linear from 0.

    Args:
        labels: k + 1 texts of the edges where the bars touch, else k, one below each bar.
        counts: k counts.
        x_label: what the bars are, with unit.
        y_label: what is counted.
        title: name of the drawing for a screen reader.
        every: label every so many edges.
    """
    y_ticks = [tick for tick in ticks(0, max([1, *counts]), 4) if tick == int(tick)]
    step = (_RIGHT - _LEFT) / max(len(counts), 1)
    touching = len(labels) == len(counts) + 1
    gap = 0.5 if touching else step * 0.15
    parts = [_y_axis(y_ticks, [_short(tick) for tick in y_ticks], y_label)]
    for index, number in enumerate(counts):
        top = _y(number, y_ticks[-1])
        parts.append(
            f'<rect class="bar-fill" x="{_LEFT + index * step + gap:.2f}" y="{top:.2f}" '
            f'width="{max(step - 2 * gap, 0.5):.2f}" height="{_BOTTOM - top:.2f}"/>'
        )
    for index in range(0, len(labels), every):
        x = _LEFT + (index + (0 if touching else 0.5)) * step
        parts.append(_text(x, _BOTTOM + 15, labels[index], "tick middle"))
    return _svg(title, "".join(parts) + _x_axis(x_label))


@dataclass(frozen=True, slots=True)
class Mark:
    """A place that is marked on a curve, and its name as text."""

    x: float
    y: float
    name: str


def curve(
    x: Sequence[float],
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    mark: Mark | None = None,
    slider: bool = False,
    unit: str = "%",
    dots: bool = False,
) -> str:
    """Shares, or other numbers of at least 0, over thresholds or over other shares.

    Args:
        x: ascending in 0..1; of those lines that have none of their own.
        lines: the first is the one that matters.
        x_label: name of the threshold.
        y_label: name of the share.
        title: name of the drawing for a screen reader.
        mark: a place to mark.
        slider: draw a second mark, hidden, that the page's slider moves; in one curve of a page at most.
        unit: follows the numbers of the y axis; `%` where y is a share.
        dots: draw every point, with its numbers as a tooltip.
    """
    largest = max([0.01, *([mark.y] if mark else []), *(value for line in lines for value in line.y)])
    y_ticks = ticks(0, largest, 5)
    top = min(y_ticks[-1], 1.0) if unit == "%" and largest <= 1 else y_ticks[-1]
    y_ticks = [tick for tick in y_ticks if tick <= top + 1e-9]
    parts = [_y_axis(y_ticks, [_with_unit(tick, unit) for tick in y_ticks], y_label)]
    parts += [_text(_x(tick), _BOTTOM + 15, decimal(tick), "tick middle") for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    for index, line in reversed(list(enumerate(lines))):
        places = list(zip(x if line.x is None else line.x, line.y, strict=True))
        points = " ".join(f"{_x(a):.2f},{_y(b, top):.2f}" for a, b in places)
        parts.append(
            f'<polyline class="line l{min(index, 4)}" points="{points}"><title>{esc(line.name)}</title></polyline>'
        )
        if dots and len(places) <= _MOST_DOTS:
            parts += [
                f'<circle class="dot l{min(index, 4)}" cx="{_x(a):.2f}" cy="{_y(b, top):.2f}" r="3">'
                f"<title>{esc(line.name)}: {_with_unit(b, unit)} at {a:.3g}</title></circle>"
                for a, b in places
            ]
    if mark:
        parts.append(_marked(mark, top))
    if slider:
        parts.append(
            f'<g id="tau-marker" class="moving" data-left="{_LEFT}" data-right="{_RIGHT}" data-top="{_TOP}" '
            f'data-bottom="{_BOTTOM}" data-max="{top}" visibility="hidden">'
            f'<line y1="{_TOP}" y2="{_BOTTOM}"/><circle r="5"/></g>'
        )
    return _svg(title, "".join(parts) + _x_axis(x_label))


def keys(lines: Sequence[Line]) -> str:
    """The legend of a curve of several lines; nothing for one."""
    if len(lines) < 2:
        return ""
    items = "".join(f'<li class="l{min(index, 4)}">{name(line.name)}</li>' for index, line in enumerate(lines))
    return f'<ul class="keys">{items}</ul>'


def _marked(mark: Mark, top: float) -> str:
    x = _x(mark.x)
    side, shift = ("start", -3) if mark.x < 0.6 else ("end", 3)
    return (
        f'<line class="built" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        f'<circle class="built-dot" cx="{x:.2f}" cy="{_y(mark.y, top):.2f}" r="4"/>'
        f"{_text(x + shift, _TOP - 3, mark.name, f'mark {side}')}"
    )


def heat_map(position: Position, title: str) -> str:
    """Probability of foreground at each place of the grid, with its colour scale below."""
    values = pooled(
        np.asarray(position.fg_probability, np.float64), np.asarray(position.patches, np.float64), _MAX_HEAT
    )
    rows, cols = values.shape
    low, high = heat_range(values)
    size = min((_RIGHT - 14) / cols, 190 / rows)
    left, top = (WIDTH - size * cols) / 2, 4.0
    steps = np.clip(((values - low) / (high - low) * HEAT_STEPS).astype(int), 0, HEAT_STEPS - 1)
    parts = []
    for step in range(HEAT_STEPS):
        cells = "".join(
            f"M{left + col * size:.2f} {top + row * size:.2f}h{size:.2f}v{size:.2f}h-{size:.2f}z"
            for row, col in np.argwhere(steps == step).tolist()
        )
        if cells:
            parts.append(f'<path class="h{step}" d="{cells}"/>')
    parts.append(
        f'<rect class="frame" x="{left:.2f}" y="{top:.2f}" width="{size * cols:.2f}" height="{size * rows:.2f}"/>'
    )
    parts += [
        f'<rect class="h{step}" x="{100 + 20 * step}" y="208" width="20" height="10"/>' for step in range(HEAT_STEPS)
    ]
    parts.append('<rect class="frame" x="100" y="208" width="200" height="10"/>')
    parts += [
        _text(94, 217, f"{decimal(100 * low)}%", "tick end"),
        _text(306, 217, f"{decimal(100 * high)}%", "tick start"),
        _text(200, 234, "share of foreground at this position", "axis middle"),
    ]
    return _svg(title, "".join(parts))


def heat_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale: the least and greatest share, widened to multiples of 5 %."""
    low, high = math.floor(values.min() * 20) / 20, math.ceil(values.max() * 20) / 20
    return low, max(high, low + 0.05)


def pooled(values: NDArray[np.float64], weights: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A map of at most `side` x `side`, from weighted means of blocks; as it is where it is no larger.

    Args:
        values: (rows, cols).
        weights: (rows, cols).
        side: the limit.
    """
    rows, cols = values.shape
    if rows <= side and cols <= side:
        return values
    row_of = np.arange(rows) * min(rows, side) // rows
    col_of = np.arange(cols) * min(cols, side) // cols
    sums, totals = (np.zeros((min(rows, side), min(cols, side))) for _ in range(2))
    where = np.ix_(row_of, col_of)
    np.add.at(sums, where, values * weights)
    np.add.at(totals, where, weights)
    return np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)


def _x(value: float) -> float:
    return _LEFT + value * (_RIGHT - _LEFT)


def _y(value: float, top: float) -> float:
    return _BOTTOM - value / top * (_BOTTOM - _TOP)


def _y_axis(at: Sequence[float], texts: Sequence[str], label: str) -> str:
    parts = []
    for tick, text in zip(at, texts, strict=True):
        y = _y(tick, at[-1])
        parts.append(
            f'<line class="{"rule" if tick else "base"}" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, text, "tick end"))
    middle = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<text class="axis middle" x="12" y="{middle:.0f}" transform="rotate(-90 12 {middle:.0f})">{esc(label)}</text>'
    )
    return "".join(parts)


def _x_axis(label: str) -> str:
    return _text((_LEFT + _RIGHT) / 2, HEIGHT - 8, label, "axis middle")


def _with_unit(value: float, unit: str) -> str:
    return f"{decimal(100 * value)}%" if unit == "%" else f"{decimal(value)}{unit}"


def _short(value: float) -> str:
    """A count on an axis: 1,500 or 20k."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and value % unit == 0):
            return f"{decimal(value / unit)}{letter}"
    return decimal(value)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{esc(text)}</text>'


def _svg(title: str, content: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">{content}</svg>'
