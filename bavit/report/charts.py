"""Curves with axes of their own units -> inline SVG. Colours come from classes: one drawing serves light and dark.

What a line is shows twice: its colour and the shape of its marks say which run, its dashes say which kind of mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from bavit.colours import LINES
from tokenlabels.report.markup import esc, name
from tokenlabels.report.plots import ticks

Dashes: TypeAlias = Literal["solid", "dashed", "dotted", "level"]

WIDTH, HEIGHT = 440, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 394, 14, 218
_LINE_HEIGHT = 12
_LARGEST = 1e15
"""Numbers beyond are not drawn: no run measures any."""

_MOST_MARKS = 20
"""A line of more points is drawn without marks."""

_SHAPES = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "M-3.3 -3.3h6.6v6.6h-6.6z",
    "M0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "M0 -4.4l4.4 7.4h-8.8z",
    "M0 4.4l4.4 -7.4h-8.8z",
    "M-1.4 -4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
    "M-4 -1.4h8v2.8h-8z",
)
_PARTS = (6, 2, 4)
"""Colours of the parts of bars: others than those of the first runs."""

_DOT = "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0z"


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says.

    Attributes:
        label: with its unit.
        scale: numbers are multiplied by this before they are shown.
        unit: follows them in tooltips and on ticks.
        start: the axis has this number at least; None: it begins near the least.
        span: how much it covers at least, as shown: what hardly differs is not blown up.
    """

    label: str
    scale: float = 1.0
    unit: str = ""
    start: float | None = None
    span: float = 0.0

    def text(self, value: float) -> str:
        """A number of this axis, as in tooltips."""
        return f"{value * self.scale:.4g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        name: as text.
        points: x and y, in the order in which they are joined.
        colour: number of its colour and shape.
        dashes: of the line; marks of lines that are not solid are small.
        notes: for each point what its tooltip adds; or none at all.
        spread: for each point half the height of its error bar; or none at all.
        joined: whether points are joined.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashes: Dashes = "solid"
    notes: Sequence[str] = ()
    spread: Sequence[float] = ()
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line right across.

    Attributes:
        name: as text.
        y: its height.
        colour: number of its colour; None: that of text.
        short: stands at its right end, some five letters.
    """

    name: str
    y: float
    colour: int | None
    short: str


@dataclass(slots=True)
class _Frame:
    """Numbers -> places."""

    x: list[float]
    y: list[float]
    taken: list[float] = field(default_factory=list)

    def across(self, x: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (x - self.x[0]) / ((self.x[-1] - self.x[0]) or 1)

    def down(self, y: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (y - self.y[0]) / ((self.y[-1] - self.y[0]) or 1)


def chart(series: Sequence[Series], x: Axis, y: Axis, *, title: str, levels: Sequence[Level] = ()) -> str:
    """Lines, as SVG that fills its place.

    Args:
        series: the first is drawn last, above the others.
        x: the axis across.
        y: the axis up.
        title: name of the drawing for a screen reader.
        levels: horizontal lines.
    """
    drawn = [_finite(each) for each in series]
    points = [point for each in drawn for point in each.points]
    if not points:
        return '<p class="note">Nothing was measured that could be drawn.</p>'
    heights = [each.y for each in levels if abs(each.y) < _LARGEST]
    for each in drawn:
        heights += [b + sign * half for (_, b), half in zip(each.points, each.spread, strict=False) for sign in (-1, 1)]
    frame = _Frame(_ticks([a for a, _ in points], x), _ticks([*heights, *(b for _, b in points)], y))
    parts = [_grid(frame, x, y)]
    parts += [_level(frame, each) for each in sorted(levels, key=lambda each: -each.y) if abs(each.y) < _LARGEST]
    parts += [_line(frame, each) for each in reversed(drawn)]
    parts += [_marks(frame, each, x, y) for each in reversed(drawn)]
    return (
        f'<svg class="plot chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">'
        f"{''.join(parts)}</svg>"
    )


def legend(items: Sequence[tuple[str, int | None, Dashes]]) -> str:
    """What colours, shapes and dashes mean.

    Args:
        items: name as text, number of the colour or None for any, dashes.
    """
    entries = "".join(f"<li>{_sample(colour, dashes)}{name(text)}</li>" for text, colour, dashes in items)
    return f'<ul class="legend-lines">{entries}</ul>'


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], axis: Axis, *, title: str) -> str:
    """Horizontal bars, each of several parts, as SVG.

    Args:
        rows: name of each bar as text, and the names and lengths of its parts; parts of one name have one colour.
        axis: what lengths are.
        title: name of the drawing for a screen reader.
    """
    kinds = list(dict.fromkeys(kind for _, parts in rows for kind, _ in parts))
    colours = {kind: _PARTS[number % len(_PARTS)] for number, kind in enumerate(kinds)}
    whole = max((sum(length for _, length in parts) for _, parts in rows), default=0.0)
    if not 0 < whole < _LARGEST:
        return ""
    ends = ticks(0, whole * axis.scale, 6)
    left, high = 132.0, 24
    bottom = 8 + high * len(rows)
    step = (_RIGHT - left) / ends[-1]
    drawn = [
        f'<line class="rule" x1="{left + step * tick:.1f}" x2="{left + step * tick:.1f}" y1="4" y2="{bottom}"/>'
        + _text(left + step * tick, bottom + 15, _round(tick), "tick middle")
        for tick in ends
    ]
    for number, (text, parts) in enumerate(rows):
        top, start = 8 + high * number, left
        drawn.append(_text(left - 8, top + 13, text if len(text) <= 20 else f"{text[:19]}…", "axis end"))
        for kind, length in parts:
            wide = step * length * axis.scale
            drawn.append(
                f'<rect class="part k{colours[kind]}" x="{start:.2f}" y="{top}" '
                f'width="{max(wide - 1, 0.5):.2f}" height="18" rx="1.5"><title>{esc(text)}, {esc(kind)}: '
                f"{axis.text(length)}</title></rect>"
            )
            start += wide
    drawn.append(_text((left + _RIGHT) / 2, bottom + 34, axis.label, "axis middle"))
    keys = "".join(f'<li><i class="swatch k{colours[kind]}"></i>{name(kind)}</li>'
                   for kind in kinds)  # fmt: skip
    return (
        f'<svg class="plot chart" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="{esc(title)}">'
        f"{''.join(drawn)}</svg>" + (f'<ul class="legend-lines">{keys}</ul>' if len(kinds) > 1 else "")
    )


def _finite(series: Series) -> Series:
    """The series without points that cannot be drawn."""
    kept = [i for i, (a, b) in enumerate(series.points) if abs(a) < _LARGEST and abs(b) < _LARGEST]
    spread = [min(series.spread[i], _LARGEST) for i in kept] if series.spread else ()
    notes = [series.notes[i] for i in kept] if series.notes else ()
    return replace(series, points=[series.points[i] for i in kept], notes=notes, spread=spread)


def _ticks(values: Sequence[float], axis: Axis) -> list[float]:
    """Round numbers of the axis as shown, around all values, in its own numbers."""
    low, high = min(values) * axis.scale, max(values) * axis.scale
    if axis.start is not None:
        low = min(low, axis.start * axis.scale)
        high = max(high, axis.start * axis.scale)
    short = max(axis.span - (high - low), 0.0)
    low, high = low - short / 2, high + short / 2
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    return [tick / axis.scale for tick in ticks(low, high, 6)]


def _grid(frame: _Frame, x: Axis, y: Axis) -> str:
    parts = []
    for tick in frame.y:
        at = frame.down(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 7, at + 4, _round(tick * y.scale), "tick end"))
    parts.append(f'<line class="base" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    parts += [_text(frame.across(tick), _BOTTOM + 16, _round(tick * x.scale), "tick middle") for tick in frame.x]
    parts.append(_text((_LEFT + _RIGHT) / 2, HEIGHT - 8, x.label, "axis middle"))
    middle = (_TOP + _BOTTOM) / 2
    turned = f'transform="rotate(-90 11 {middle:.0f})"'
    parts.append(f'<text class="axis middle" x="11" y="{middle:.0f}" {turned}>{esc(y.label)}</text>')
    return "".join(parts)


def _level(frame: _Frame, level: Level) -> str:
    """A line across; what names it stands at its right, below those that were named before it."""
    at = frame.down(level.y)
    words = at + 4
    for other in sorted(frame.taken):
        if abs(words - other) < _LINE_HEIGHT:
            words = other + _LINE_HEIGHT
    frame.taken.append(words)
    kind = "plain" if level.colour is None else f"c{level.colour % len(LINES)}"
    return (
        f'<line class="level {kind}" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.2f}" y2="{at:.2f}">'
        f"<title>{esc(level.name)}</title></line>"
        f'<text class="named {kind}" x="{_RIGHT + 5}" y="{words:.1f}">{esc(level.short)}</text>'
    )


def _line(frame: _Frame, series: Series) -> str:
    kind, points = f"c{series.colour % len(LINES)}", series.points
    errors = "".join(
        f'<line class="spread {kind}" x1="{frame.across(a):.2f}" x2="{frame.across(a):.2f}" '
        f'y1="{frame.down(b - half):.2f}" y2="{frame.down(b + half):.2f}"/>'
        for (a, b), half in zip(points, series.spread, strict=False)
        if half > 0
    )
    if not series.joined or len(points) < 2:
        return errors
    places = " ".join(f"{frame.across(a):.2f},{frame.down(b):.2f}" for a, b in points)
    return (
        f'{errors}<polyline class="line {kind} {series.dashes}" points="{places}">'
        f"<title>{esc(series.name)}</title></polyline>"
    )


def _marks(frame: _Frame, series: Series, x: Axis, y: Axis) -> str:
    points = series.points
    if len(points) > _MOST_MARKS:
        return ""
    number = series.colour % len(LINES)
    shape = _SHAPES[number] if series.dashes == "solid" else _DOT
    notes = [f", {note}" if note else "" for note in series.notes] or [""] * len(points)
    return "".join(
        f'<g class="point c{number}" transform="translate({frame.across(a):.2f} {frame.down(b):.2f})">'
        f"<title>{esc(series.name)}: {y.text(b)} at {x.text(a)}{esc(note)}</title>"
        f'<circle r="9"/><path d="{shape}"/></g>'
        for (a, b), note in zip(points, notes, strict=True)
    )


def _sample(colour: int | None, dashes: Dashes) -> str:
    kind = "plain" if colour is None else f"c{colour % len(LINES)}"
    shape = "" if colour is None or dashes != "solid" else f'<path d="{_SHAPES[colour % len(LINES)]}"/>'
    return (
        '<svg class="sample-line" viewBox="-17 -5 34 10" aria-hidden="true" focusable="false">'
        f'<g class="point {kind}"><line class="line {kind} {dashes}" x1="-16" x2="16" y1="0" y2="0"/>{shape}</g></svg>'
    )


def _round(tick: float) -> str:
    """A round number with all of its digits."""
    return f"{round(tick, 9):,.7g}"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{esc(text)}</text>'
