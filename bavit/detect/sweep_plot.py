"""Plots of a sweep, as PNG: what pruning costs in AP, and what it saves in time, by how much is removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bavit.detect.sweep_figures import MASK_NAMES, MaskSource, Sweep, SweepRow
from bavit.plots import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    RED,
    SKY,
    SMALL,
    STRONG_RULE,
    Line,
    as_percent,
    draw_lines,
    figure_of,
    mark,
    save_figure,
    set_up,
)

_COLOURS: dict[MaskSource, str] = {"bavit": BLUE, "labels": ORANGE, "random": RED}
_ROOM = 1.08
_SPARSITY = "sparsity: share of the detector's patches removed"


def draw_sweep(sweep: Sweep, path: str | Path, *, before: Sweep | None = None) -> Path:
    """Draw a sweep as a PNG of 1200 x 900 pixels: AP, AP50, speed-up, and what is left of tokens and MACs, by sparsity.

    Args:
        sweep: what to draw.
        path: the file.
        before: of the same detector before sparse fine-tuning, drawn dashed into the panels of AP.

    Returns:
        `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = figure_of(12, 9)
    panels = [figure.add_subplot(2, 2, place) for place in (1, 2, 3, 4)]
    end = max(row.sparsity for each in (sweep, before) if each for row in each.rows)
    for panel in panels:
        panel.set_xlim(0, max(0.1, math.ceil(10 * end - 1e-9) / 10))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _draw_precision(panels[0], "AP", sweep, before, "ap")
    _draw_precision(panels[1], "AP50", sweep, before, "ap50")
    _draw_speed(panels[2], sweep)
    _draw_cost(panels[3], sweep)
    return save_figure(figure, Path(path))


def _draw_precision(panel: Axes, name: str, sweep: Sweep, before: Sweep | None, key: str) -> None:
    title = f"{name}, points, of an untrained detector" if sweep.setting.random_weights else f"{name}, points"
    set_up(panel, title, _SPARSITY)
    lines: list[Line] = []
    for then, suffix, style in ((sweep, "", "-"), (before, ", before", "--")):
        if then is not None:
            lines += [_line(then.of(mask), key, mask, suffix, style) for mask in then.sources]
            level = float(getattr(then.dense, key))
            look = (INK, ":") if then is sweep else (MUTED, "--")
            lines.append(Line(f"dense {100 * level:.1f}{suffix}", panel.get_xlim(), (level, level), *look))
    top = max(value for line in lines for value in line.y)
    panel.set_ylim(0, max(top * _ROOM, 0.01))
    draw_lines(panel, lines)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    if before is None:
        mark(panel, sweep.best.sparsity, f"threshold {sweep.best.threshold:g}")


def _line(
    rows: Sequence[SweepRow], key: str, mask: MaskSource, suffix: str = "", style: str = "-", across: str = "sparsity"
) -> Line:
    """A figure of the rows of one source."""
    values = [float(getattr(row, key)) for row in rows]
    return Line(
        f"{MASK_NAMES[mask]}{suffix}", [float(getattr(row, across)) for row in rows], values, _COLOURS[mask], style
    )


def _draw_speed(panel: Axes, sweep: Sweep) -> None:
    setting = sweep.setting
    set_up(panel, f"Speed-up, batches of {setting.batch_size}", _SPARSITY)
    rows = sorted(sweep.rows, key=lambda row: row.sparsity_timed)
    ideal = Line("ideal by MACs", [r.sparsity_timed for r in rows], [r.speedup_ideal for r in rows], STRONG_RULE, "--")
    lines = [_line(sweep.of(mask), "speedup", mask, across="sparsity_timed") for mask in sweep.sources]
    main = sweep.of("bavit")
    if main:
        alone = [row.speedup_latency for row in main]
        lines.append(Line("BAViT, one image", [row.sparsity_timed for row in main], alone, SKY, "-."))
    panel.set_ylim(0, _ROOM * max(1.0, *(value for line in (*lines, ideal) for value in line.y)))
    _level(panel)
    draw_lines(panel, [*lines, ideal])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}x"))


def _draw_cost(panel: Axes, sweep: Sweep) -> None:
    set_up(panel, "What is left, BAViT included", _SPARSITY)
    rows = sorted(sweep.rows, key=lambda row: row.sparsity)
    x = [row.sparsity for row in rows]
    lines = [
        Line("tokens", x, [row.tokens_total / row.tokens_detector for row in rows], BLUE),
        Line("MACs", x, [row.macs / row.macs_dense for row in rows], ORANGE),
    ]
    main = [row for row in sweep.of(sweep.sources[0]) if row.peak_memory_mb and row.peak_memory_dense_mb]
    if main:
        left = [(row.peak_memory_mb or 0) / (row.peak_memory_dense_mb or 1) for row in main]
        lines.append(Line("memory of a batch", [row.sparsity for row in main], left, RED, "-."))
    panel.set_ylim(0, _ROOM * max(1.0, *(value for line in lines for value in line.y)))
    _level(panel)
    draw_lines(panel, lines)
    as_percent(panel)


def _level(panel: Axes) -> None:
    """The dense detector, as a line at 1."""
    panel.axhline(1, color=INK, linewidth=1, linestyle=":")
    across = panel.get_yaxis_transform()
    panel.text(0.995, 1, "dense detector", transform=across, fontsize=SMALL, color=MUTED, ha="right", va="bottom")
