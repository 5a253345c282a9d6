"""Plots of a training run and of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bavit.background.figures import Bin, Curve, Evaluation
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
    Line,
    as_percent,
    draw_lines,
    figure_of,
    mark,
    save_figure,
    set_up,
    span,
)
from bavit.training.curves import Panel, draw_run


def draw_curves(
    records: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    majority: float | None = None,
    position_prior: float | None = None,
) -> Path:
    """Draw a training run; see `draw_run`.

    Args:
        records: see there; with any of `train_accuracy`, `val_accuracy`, `val_balanced_accuracy`.
        path: the file.
        majority: accuracy of always answering the commoner label of the validation set, 0..1.
        position_prior: accuracy of the best answer that looks at the position only, 0..1.

    Returns:
        `path`.
    """
    lines = [
        ("train_accuracy", "train", BLUE),
        ("val_accuracy", "validation", ORANGE),
        ("val_balanced_accuracy", "balanced", RED),
    ]
    return draw_run(records, path, Panel("Accuracy", lines, {"majority": majority, "position prior": position_prior}))


def draw_evaluation(evaluation: Evaluation, path: str | Path) -> Path:
    """Draw an evaluation as a PNG of 1200 x 900 pixels: every figure by threshold, what stays by how much is removed,
    how far the probabilities can be trusted, and what refinement does.

    Args:
        evaluation: what to draw.
        path: the file.

    Returns:
        `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = figure_of(12, 9)
    places = figure.add_gridspec(2, 2)
    _draw_thresholds(figure.add_subplot(places[0, 0]), evaluation.curve, evaluation.threshold)
    _draw_tradeoff(figure.add_subplot(places[0, 1]), evaluation)
    halves = places[1, 0].subgridspec(2, 1, height_ratios=(3, 1))
    upper, lower = figure.add_subplot(halves[0]), figure.add_subplot(halves[1])
    _draw_reliability(upper, lower, evaluation.reliability, evaluation.ece)
    _draw_refinement(figure.add_subplot(places[1, 1]), evaluation)
    return save_figure(figure, Path(path))


def _draw_thresholds(panel: Axes, curve: Curve, threshold: float) -> None:
    set_up(panel, "By threshold", "background probability above which a patch is removed")
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    x = curve.threshold
    lines = [
        Line("accuracy", x, curve.accuracy, BLUE),
        Line("balanced", x, curve.balanced_accuracy, SKY, "--"),
        Line("FG recall", x, curve.fg_recall, ORANGE),
        Line("sparsity", x, curve.sparsity, INK, "-."),
        Line("lost objects", x, curve.lost_objects, RED),
    ]
    draw_lines(panel, lines)
    as_percent(panel)
    mark(panel, threshold, f"threshold {threshold:g}")


def _draw_tradeoff(panel: Axes, evaluation: Evaluation) -> None:
    set_up(panel, "What stays, by how much is removed", "sparsity: share of patches removed")
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    curve = evaluation.curve
    x, recall, lost = zip(*sorted(zip(curve.sparsity, curve.fg_recall, curve.lost_objects, strict=True)), strict=True)
    panel.plot((0, 1), (1, 0), ":", color=STRONG_RULE, linewidth=1)
    panel.text(0.3, 0.67, "removed at random", fontsize=SMALL, color=MUTED, ha="right", va="top")
    draw_lines(panel, [Line("FG recall", x, recall, ORANGE), Line("objects kept", x, [1 - y for y in lost], RED)])
    for y, colour in ((evaluation.fg_recall, ORANGE), (1 - evaluation.lost_objects, RED)):
        panel.plot([evaluation.sparsity], [y], "o", color=colour, markersize=6, clip_on=False, zorder=4)
    as_percent(panel)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    mark(panel, evaluation.sparsity, f"threshold {evaluation.threshold:g}")


def _draw_reliability(upper: Axes, lower: Axes, bins: Sequence[Bin], error: float) -> None:
    set_up(upper, f"Reliability: expected calibration error {error:.3f}", "")
    set_up(lower, "", "probability of foreground")
    for panel in (upper, lower):
        panel.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    upper.plot((0, 1), (0, 1), ":", color=STRONG_RULE, linewidth=1)
    filled = [part for part in bins if part.count]
    draw_lines(upper, [Line("", [part.confidence for part in filled], [part.foreground for part in filled], BLUE)])
    as_percent(upper)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("foreground", fontsize=TEXT, color=INK)
    lower.bar(
        [part.low for part in bins],
        [part.count for part in bins],
        width=[part.high - part.low for part in bins],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    lower.set_ylabel("patches", fontsize=TEXT, color=INK)
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _draw_refinement(panel: Axes, evaluation: Evaluation) -> None:
    set_up(panel, f"Refinement, at threshold {evaluation.threshold:g}", "steps of refinement")
    found = evaluation.refinement
    x = [part.steps for part in found]
    span(panel, x)
    panel.set_ylim(-0.02, 1.02)
    lines = [
        Line("accuracy", x, [part.accuracy for part in found], BLUE, form=".1%"),
        Line("FG recall", x, [part.fg_recall for part in found], ORANGE, form=".1%"),
        Line("sparsity", x, [part.sparsity for part in found], INK, "-.", form=".1%"),
        Line("lost objects", x, [part.lost_objects for part in found], RED, form=".1%"),
    ]
    draw_lines(panel, lines)
    as_percent(panel)
    mark(panel, evaluation.refine_steps, "this evaluation")


def _short(value: float) -> str:
    """A count on an axis, such as 20k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
