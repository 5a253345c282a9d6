"""Plots of a training run and of an evaluation, as PNG."""

from __future__ import annotations

import math
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
from tokenlabels.errors import ParameterError


def draw_curves(
    records: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    majority: float | None = None,
    position_prior: float | None = None,
) -> Path:
    """Draw loss, accuracy and learning rate of a training run by epoch, as a PNG of 1200 x 400 pixels.

    Args:
        records: one for each epoch, as the lines of `metrics.jsonl`: `epoch` and any of `train_loss`, `val_loss`,
            `train_accuracy`, `val_accuracy`, `val_balanced_accuracy`, `lr`. What is missing or not finite is left out;
            of several records of one epoch the last counts.
        path: the file.
        majority: accuracy of always answering the commoner label of the validation set, 0..1.
        position_prior: accuracy of the best answer that looks at the position only, 0..1.

    Returns:
        `path`.

    Raises:
        ParameterError: there are no records.
        OutputError: the file cannot be written.
    """
    if not records:
        raise ParameterError(f"{path}: there is no epoch to draw: train for one at least.")
    last = {record["epoch"]: record for record in records}
    kept = [last[epoch] for epoch in sorted(last)]
    figure = figure_of(12, 4)
    loss, accuracy, rate = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    for panel, title in ((loss, "Loss"), (accuracy, "Accuracy"), (rate, "Learning rate")):
        set_up(panel, title, "epoch")
        span(panel, sorted(last))
    draw_lines(
        loss,
        [
            _series(kept, "train_loss", "train", BLUE, ".3f"),
            _series(kept, "val_loss", "validation", ORANGE, ".3f"),
        ],
    )
    baselines = [
        Line(name, accuracy.get_xlim(), [share, share], MUTED, "--", ".1%")
        for name, share in (("majority", majority), ("position prior", position_prior))
        if share is not None and math.isfinite(share)
    ]
    draw_lines(
        accuracy,
        [
            _series(kept, "train_accuracy", "train", BLUE, ".1%"),
            _series(kept, "val_accuracy", "validation", ORANGE, ".1%"),
            _series(kept, "val_balanced_accuracy", "balanced", RED, ".1%"),
            *baselines,
        ],
    )
    as_percent(accuracy)
    draw_lines(rate, [_series(kept, "lr", "", INK, "")])
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return save_figure(figure, Path(path))


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


def _series(records: Sequence[Mapping[str, float]], key: str, name: str, colour: str, form: str) -> Line:
    """One figure by epoch, where it is there."""
    found = [record for record in records if _is_number(record.get(key))]
    return Line(name, [record["epoch"] for record in found], [record[key] for record in found], colour, form=form)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _short(value: float) -> str:
    """A count on an axis, such as 20k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
