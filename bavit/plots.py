"""Panels of lines, as every PNG of plots here has them. Lines are named at their ends, so that no legend is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tokenlabels.atomic import write_atomically

BLUE, SKY, ORANGE, RED, INK = "#0b5f8f", "#2380bd", "#c25700", "#b3133f", "#1b2024"
MUTED, STRONG_RULE, RULE = "#545b62", "#7d8288", "#dcdcd6"

_DPI = 100
_TITLE, TEXT, SMALL = 11.0, 9.5, 8.5
"""Sizes of text in points."""

_TITLE_ABOVE = 16.0
"""Points between a title and its panel, where marks are named."""

_MOST_MARKERS = 30
"""A line of more points is drawn without markers."""

_LEAST_SPAN = 0.1
"""Height of a panel at least, as a share of its greatest value."""

NAME_HEIGHT = 0.058
"""Least distance of two names at the ends of lines, as a share of the height of a panel."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel.

    Attributes:
        name: stands at its right end; may be empty.
        x: ascending.
        y: as many.
        colour: of line and name.
        style: of matplotlib.
        form: how the last y follows the name; empty where it does not.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    style: str = "-"
    form: str = ""

    @property
    def title(self) -> str:
        """What stands at its end."""
        return f"{self.name} {self.y[-1]:{self.form}}" if self.form else self.name


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14, wspace=0.02, hspace=0.02)
    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def set_up(panel: Axes, title: str, x_label: str) -> None:
    """Title, axes and lines behind of a panel."""
    panel.set_title(title, loc="left", fontsize=_TITLE, fontweight="bold", color=INK, pad=_TITLE_ABOVE)
    panel.set_xlabel(x_label, fontsize=TEXT, color=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(STRONG_RULE)
    panel.tick_params(labelsize=SMALL, labelcolor=MUTED, color=STRONG_RULE, left=False)
    panel.grid(axis="y", color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)


def span(panel: Axes, x: Sequence[float]) -> None:
    """Let the x axis hold whole numbers from first to last, with room for their markers."""
    first, last = (x[0], x[-1]) if x else (0, 0)
    room = (last - first) * 0.02 or 0.5
    panel.set_xlim(first - room, last + room)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def as_percent(panel: Axes) -> None:
    """Let the y axis, in 0..1, be labelled in percent."""
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def mark(panel: Axes, x: float, text: str) -> None:
    """A vertical line, named above the panel."""
    panel.axvline(x, color=STRONG_RULE, linewidth=1, zorder=1)
    left, right = panel.get_xlim()
    align = "left" if x - left < (right - left) / 2 else "right"
    above = panel.get_xaxis_transform()
    panel.text(x, 1.01, text, transform=above, ha=align, va="bottom", fontsize=SMALL, color=MUTED)


def draw_lines(panel: Axes, lines: Sequence[Line]) -> None:
    """Draw those lines that have points, and name them at the right, apart from each other."""
    drawn = [line for line in lines if line.y]
    for line in drawn:
        marker = "o" if len(line.y) <= _MOST_MARKERS and line.style in ("-", "-.") else ""
        panel.plot(
            line.x,
            line.y,
            linestyle=line.style,
            color=line.colour,
            linewidth=1.2 if line.style == "--" else 1.8,
            marker=marker,
            markersize=3.5,
            clip_on=False,
        )
    if not drawn:
        panel.set_yticks([])
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", fontsize=TEXT, color=MUTED)
        return
    low, high = panel.get_ylim()
    short = max(_LEAST_SPAN * abs(high) - (high - low), 0)  # what hardly differs is not blown up
    low, high = low - short / 2, high + short / 2
    panel.set_ylim(low, high)
    named = sorted((line for line in drawn if line.name), key=lambda line: line.y[-1])
    places = apart([(line.y[-1] - low) / (high - low) for line in named])
    for line, place in zip(named, places, strict=True):
        panel.text(
            1.02, place, line.title, transform=panel.transAxes, va="center", fontsize=SMALL, color=line.colour
        )  # fmt: skip


def apart(places: Sequence[float]) -> list[float]:
    """Ascending places in 0..1, moved as little as it takes to stand `NAME_HEIGHT` apart."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _middles(groups[-1])[0] - _middles(groups[-2])[-1] < NAME_HEIGHT:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [place for group in groups for place in _middles(group)]


def _middles(group: Sequence[float]) -> list[float]:
    """Where the members of a group stand: evenly around their mean, within 0..1."""
    half = NAME_HEIGHT * (len(group) - 1) / 2
    middle = min(max(sum(group) / len(group), half), 1 - half)
    return [middle - half + NAME_HEIGHT * index for index in range(len(group))]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    write_atomically(path, file.getvalue())
    return path
