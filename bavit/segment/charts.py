"""Plots of segmentation, as PNG: IoU of each category, MACs of images, and mIoU against MACs of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bavit.plots import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    RED,
    SKY,
    SMALL,
    STRONG_RULE,
    TEXT,
    figure_of,
    save_figure,
    set_up,
)
from bavit.segment.figures import ImageFigures, SegmentRow, SegmentSweep
from tokenlabels.report.markup import printable

_COLUMN_ROWS = 40
"""Bars of a column of a chart."""

_MOST_LETTERS = 22
_COLOURS = (BLUE, ORANGE, RED, SKY, INK)
_BINS = 24
_RULED = {
    "p0": ("top-k", "remove", "average", "average-top-k"),
    "keep_per_class": ("top-k", "average-top-k"),
}
"""Methods to which these values mean something."""

_MOST_NAMED = 4
"""Of more lines, points are not named."""


def draw_categories(
    per_category: Mapping[str, float | None], miou: float, path: Path, *, title: str = "IoU by category"
) -> Path:
    """Draw the IoU of each category as bars, the best first: as the DToP paper's supplement, Figure 2.

    Args:
        per_category: None where it occurs nowhere; these are named below the others.
        miou: their mean, a line.
        path: the file.
        title: of the plot.

    Raises:
        OutputError: the file cannot be written.
    """
    found = sorted(((value, name) for name, value in per_category.items() if value is not None), reverse=True)
    absent = [name for name, value in per_category.items() if value is None]
    columns = max(1, -(-len(found) // _COLUMN_ROWS))
    rows = -(-len(found) // columns)
    figure = figure_of(4.8 * columns + 1.2, max(2.2, 0.21 * rows + 1.3))
    for column in range(columns):
        part = found[column * rows : (column + 1) * rows]
        panel = figure.add_subplot(1, columns, column + 1)
        set_up(panel, f"{title}: mean {miou:.1%} of {len(found)}" if not column else "", "")
        panel.grid(visible=False, axis="y")
        places = range(len(part))
        values = [value for value, _ in part]
        panel.barh(places, values, color=BLUE, height=0.72)
        panel.axvline(miou, color=ORANGE, linewidth=1.2)
        for place, value in zip(places, values, strict=True):
            free = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            panel.text(value + 0.01, place, f"{100 * value:.1f}", va="center", fontsize=SMALL, color=MUTED, bbox=free)
        panel.set_yticks(places, [_short(name) for _, name in part], parse_math=False)
        panel.set_ylim(max(rows, 1) - 0.4, -0.6)
        panel.set_xlim(0, 1.08)
        panel.set_xticks(np.linspace(0, 1, 6))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    if absent:
        some = ", ".join(_short(name) for name in absent[:6]) + (", …" if len(absent) > 6 else "")
        told = f"in neither labels nor predictions: {some}"
        figure.supxlabel(told, fontsize=SMALL, color=MUTED, x=0.02, ha="left", parse_math=False)
    return save_figure(figure, path)


def draw_macs(images: Sequence[ImageFigures], path: Path) -> Path:
    """Draw how many images take how many MACs, beside what the unpruned network takes.

    Args:
        images: at least one.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    ours = np.array([image.macs for image in images]) / 1e9
    dense = np.array([image.macs_dense for image in images]) / 1e9
    figure = figure_of(8, 4.2)
    panel = figure.add_subplot(1, 1, 1)
    saved = 1 - ours.sum() / dense.sum()
    told = f"{saved:.1%} saved" if saved >= 0 else f"{-saved:.1%} more than unpruned"
    set_up(panel, f"MACs of {len(images):,} images: {told}", "GMAC of an image")
    high = max(dense.max(), ours.max()) * 1.02
    panel.hist(ours, bins=np.linspace(0, high, _BINS + 1).tolist(), color=BLUE, edgecolor="white")
    panel.set_xlim(0, high * 1.01)
    panel.set_ylabel("images", fontsize=TEXT, color=INK)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    above = panel.get_xaxis_transform()
    near = abs(ours.mean() - dense.mean()) < 0.3 * high
    for value, name, colour, level in (
        (ours.mean(), f"mean {ours.mean():.3g}", ORANGE, 1.01),
        (dense.mean(), f"unpruned {dense.mean():.3g}", STRONG_RULE, 1.07 if near else 1.01),
    ):
        panel.axvline(value, color=colour, linewidth=1.4)
        align = "right" if value > 0.7 * high else "left"
        panel.text(value, level, name, transform=above, ha=align, va="bottom", fontsize=SMALL, color=MUTED)
    if near:
        panel.title.set_position((0, 1.08))
    return save_figure(figure, path)


def draw_sweep(sweep: SegmentSweep, path: Path) -> Path:
    """Draw mIoU against MACs, and against speed where that was measured: one line for each choice of what goes on.

    Args:
        sweep: at least one row.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    timed = all(row.speedup is not None for row in sweep.rows)
    figure = figure_of(13 if timed else 7.5, 5.2)
    left = figure.add_subplot(1, 1 + timed, 1)
    set_up(left, "mIoU against cost", "GMAC of an image")
    _draw_family(left, sweep, lambda row: row.macs / 1e9)
    if timed:
        right = figure.add_subplot(1, 2, 2)
        set_up(right, f"mIoU against speed, batches of {sweep.batch_size}", "times as fast as the unpruned network")
        _draw_family(right, sweep, lambda row: row.speedup or 0.0)
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return save_figure(figure, path)


def _draw_family(panel: Axes, sweep: SegmentSweep, across: Callable[[SegmentRow], float]) -> None:
    """Lines over p0, or over k where there is one p0; each point has its own."""
    rest = [row for row in sweep.rows if not row.dense]
    over = "p0" if len({row.p0 for row in rest}) > 1 else "keep_per_class"
    families: dict[str, list[SegmentRow]] = {}
    for row in rest:
        families.setdefault(_family(row, over), []).append(row)
    for number, (name, rows) in enumerate(families.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ordered = sorted(rows, key=lambda row: float(getattr(row, over)))
        x, y = [across(row) for row in ordered], [100 * row.miou for row in ordered]
        style = ("-", "--", ":")[number // len(_COLOURS) % 3]
        panel.plot(x, y, style, marker="o", markersize=4, color=colour, linewidth=1.6, label=name)
        for row, place, value in zip(ordered, x, y, strict=True):
            if row.method in _RULED[over] and len(families) <= _MOST_NAMED:
                panel.annotate(f"{getattr(row, over):g}", (place, value), xytext=(0, 6), textcoords="offset points",
                               ha="center", fontsize=SMALL, color=colour)  # fmt: skip
    dense = next((row for row in sweep.rows if row.dense), None)
    if dense is not None:
        panel.plot([across(dense)], [100 * dense.miou], "D", color=INK, markersize=6, label="unpruned")
        panel.axhline(100 * dense.miou, color=STRONG_RULE, linewidth=1, linestyle=":")
    panel.margins(x=0.1, y=0.15)
    panel.set_ylabel("mIoU, points", fontsize=TEXT, color=INK)
    low, high = panel.get_ylim()
    if high - low < 1:
        panel.set_ylim((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)


def _family(row: SegmentRow, over: str) -> str:
    """What the rows of one line share: everything but what they differ in."""
    places = " and ".join(map(str, row.exit_after)) or "no block"
    told = f"after {places}: {row.method}"
    if row.method == "proportion":
        return f"{told} {row.proportion:g}"
    if over == "keep_per_class":
        return f"{told}, p0 {row.p0:g}"
    return f"{told}, k {row.keep_per_class}" if row.method in _RULED["keep_per_class"] else told


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
