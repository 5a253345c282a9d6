"""Plots of a training run and of an evaluation, as PNG. Lines are named at their ends, so that no legend is needed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bavit.background.figures import Bin, Curve, Evaluation
from tokenlabels.errors import ParameterError
from tokenlabels.shards import write_atomically

_BLUE, _SKY, _ORANGE, _RED, _INK = "#0b5f8f", "#2380bd", "#c25700", "#b3133f", "#1b2024"
_MUTED, _STRONG_RULE, _RULE = "#545b62", "#7d8288", "#dcdcd6"

_DPI = 100
_TITLE, _TEXT, _SMALL = 11.0, 9.5, 8.5
"""Sizes of text in points."""

_TITLE_ABOVE = 16.0
"""Points between a title and its panel, where marks are named."""

_MOST_MARKERS = 30
"""A line of more points is drawn without markers."""

_LEAST_SPAN = 0.1
"""Height of a panel at least, as a share of its greatest value."""

_NAME_HEIGHT = 0.058
"""Least distance of two names at the ends of lines, as a share of the height of a panel."""


@dataclass(frozen=True, slots=True)
class _Line:
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
        return f"{self.name} {self.y[-1]:{self.form}}" if self.form else self.name


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
    figure = _figure(12, 4)
    loss, accuracy, rate = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    for panel, title in ((loss, "Loss"), (accuracy, "Accuracy"), (rate, "Learning rate")):
        _set_up(panel, title, "epoch")
        _span(panel, sorted(last))
    _draw(
        loss,
        [
            _series(kept, "train_loss", "train", _BLUE, ".3f"),
            _series(kept, "val_loss", "validation", _ORANGE, ".3f"),
        ],
    )
    baselines = [
        _Line(name, accuracy.get_xlim(), [share, share], _MUTED, "--", ".1%")
        for name, share in (("majority", majority), ("position prior", position_prior))
        if share is not None and math.isfinite(share)
    ]
    _draw(
        accuracy,
        [
            _series(kept, "train_accuracy", "train", _BLUE, ".1%"),
            _series(kept, "val_accuracy", "validation", _ORANGE, ".1%"),
            _series(kept, "val_balanced_accuracy", "balanced", _RED, ".1%"),
            *baselines,
        ],
    )
    _as_percent(accuracy)
    _draw(rate, [_series(kept, "lr", "", _INK, "")])
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return _save(figure, Path(path))


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
    figure = _figure(12, 9)
    places = figure.add_gridspec(2, 2)
    _draw_thresholds(figure.add_subplot(places[0, 0]), evaluation.curve, evaluation.threshold)
    _draw_tradeoff(figure.add_subplot(places[0, 1]), evaluation)
    halves = places[1, 0].subgridspec(2, 1, height_ratios=(3, 1))
    upper, lower = figure.add_subplot(halves[0]), figure.add_subplot(halves[1])
    _draw_reliability(upper, lower, evaluation.reliability, evaluation.ece)
    _draw_refinement(figure.add_subplot(places[1, 1]), evaluation)
    return _save(figure, Path(path))


def _draw_thresholds(panel: Axes, curve: Curve, threshold: float) -> None:
    _set_up(panel, "By threshold", "background probability above which a patch is removed")
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    x = curve.threshold
    lines = [
        _Line("accuracy", x, curve.accuracy, _BLUE),
        _Line("balanced", x, curve.balanced_accuracy, _SKY, "--"),
        _Line("FG recall", x, curve.fg_recall, _ORANGE),
        _Line("sparsity", x, curve.sparsity, _INK, "-."),
        _Line("lost objects", x, curve.lost_objects, _RED),
    ]
    _draw(panel, lines)
    _as_percent(panel)
    _mark(panel, threshold, f"threshold {threshold:g}")


def _draw_tradeoff(panel: Axes, evaluation: Evaluation) -> None:
    _set_up(panel, "What stays, by how much is removed", "sparsity: share of patches removed")
    panel.set_xlim(0, 1)
    panel.set_ylim(-0.02, 1.02)
    curve = evaluation.curve
    x, recall, lost = zip(*sorted(zip(curve.sparsity, curve.fg_recall, curve.lost_objects, strict=True)), strict=True)
    panel.plot((0, 1), (1, 0), ":", color=_STRONG_RULE, linewidth=1)
    panel.text(0.3, 0.67, "removed at random", fontsize=_SMALL, color=_MUTED, ha="right", va="top")
    _draw(panel, [_Line("FG recall", x, recall, _ORANGE), _Line("objects kept", x, [1 - y for y in lost], _RED)])
    for y, colour in ((evaluation.fg_recall, _ORANGE), (1 - evaluation.lost_objects, _RED)):
        panel.plot([evaluation.sparsity], [y], "o", color=colour, markersize=6, clip_on=False, zorder=4)
    _as_percent(panel)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _mark(panel, evaluation.sparsity, f"threshold {evaluation.threshold:g}")


def _draw_reliability(upper: Axes, lower: Axes, bins: Sequence[Bin], error: float) -> None:
    _set_up(upper, f"Reliability: expected calibration error {error:.3f}", "")
    _set_up(lower, "", "probability of foreground")
    for panel in (upper, lower):
        panel.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    upper.plot((0, 1), (0, 1), ":", color=_STRONG_RULE, linewidth=1)
    filled = [part for part in bins if part.count]
    _draw(upper, [_Line("", [part.confidence for part in filled], [part.foreground for part in filled], _BLUE)])
    _as_percent(upper)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("foreground", fontsize=_TEXT, color=_INK)
    lower.bar(
        [part.low for part in bins],
        [part.count for part in bins],
        width=[part.high - part.low for part in bins],
        align="edge",
        color=_BLUE,
        edgecolor="white",
    )
    lower.set_ylabel("patches", fontsize=_TEXT, color=_INK)
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _draw_refinement(panel: Axes, evaluation: Evaluation) -> None:
    _set_up(panel, f"Refinement, at threshold {evaluation.threshold:g}", "steps of refinement")
    found = evaluation.refinement
    x = [part.steps for part in found]
    _span(panel, x)
    panel.set_ylim(-0.02, 1.02)
    lines = [
        _Line("accuracy", x, [part.accuracy for part in found], _BLUE, form=".1%"),
        _Line("FG recall", x, [part.fg_recall for part in found], _ORANGE, form=".1%"),
        _Line("sparsity", x, [part.sparsity for part in found], _INK, "-.", form=".1%"),
        _Line("lost objects", x, [part.lost_objects for part in found], _RED, form=".1%"),
    ]
    _draw(panel, lines)
    _as_percent(panel)
    _mark(panel, evaluation.refine_steps, "this evaluation")


def _series(records: Sequence[Mapping[str, float]], key: str, name: str, colour: str, form: str) -> _Line:
    """One figure by epoch, where it is there."""
    found = [record for record in records if _is_number(record.get(key))]
    return _Line(name, [record["epoch"] for record in found], [record[key] for record in found], colour, form=form)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14, wspace=0.02, hspace=0.02)
    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def _set_up(panel: Axes, title: str, x_label: str) -> None:
    panel.set_title(title, loc="left", fontsize=_TITLE, fontweight="bold", color=_INK, pad=_TITLE_ABOVE)
    panel.set_xlabel(x_label, fontsize=_TEXT, color=_INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(_STRONG_RULE)
    panel.tick_params(labelsize=_SMALL, labelcolor=_MUTED, color=_STRONG_RULE, left=False)
    panel.grid(axis="y", color=_RULE, linewidth=0.8)
    panel.set_axisbelow(True)


def _span(panel: Axes, x: Sequence[float]) -> None:
    """Let the x axis hold whole numbers from first to last, with room for their markers."""
    first, last = (x[0], x[-1]) if x else (0, 0)
    room = (last - first) * 0.02 or 0.5
    panel.set_xlim(first - room, last + room)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _as_percent(panel: Axes) -> None:
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _mark(panel: Axes, x: float, text: str) -> None:
    """A vertical line, named above the panel."""
    panel.axvline(x, color=_STRONG_RULE, linewidth=1, zorder=1)
    left, right = panel.get_xlim()
    align = "left" if x - left < (right - left) / 2 else "right"
    above = panel.get_xaxis_transform()
    panel.text(x, 1.01, text, transform=above, ha=align, va="bottom", fontsize=_SMALL, color=_MUTED)


def _draw(panel: Axes, lines: Sequence[_Line]) -> None:
    """Draw those lines that have points, and name them at the right, apart from each other."""
    drawn = [line for line in lines if line.y]
    for line in drawn:
        marker = "o" if len(line.y) <= _MOST_MARKERS and line.style != "--" else ""
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
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", fontsize=_TEXT, color=_MUTED)
        return
    low, high = panel.get_ylim()
    short = max(_LEAST_SPAN * abs(high) - (high - low), 0)  # what hardly differs is not blown up
    low, high = low - short / 2, high + short / 2
    panel.set_ylim(low, high)
    named = sorted((line for line in drawn if line.name), key=lambda line: line.y[-1])
    places = _apart([(line.y[-1] - low) / (high - low) for line in named])
    for line, place in zip(named, places, strict=True):
        panel.text(
            1.02, place, line.title, transform=panel.transAxes, va="center", fontsize=_SMALL, color=line.colour
        )  # fmt: skip


def _apart(places: Sequence[float]) -> list[float]:
    """Ascending places in 0..1, moved as little as it takes to stand `_NAME_HEIGHT` apart."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _middles(groups[-1])[0] - _middles(groups[-2])[-1] < _NAME_HEIGHT:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [place for group in groups for place in _middles(group)]


def _middles(group: Sequence[float]) -> list[float]:
    """Where the members of a group stand: evenly around their mean, within 0..1."""
    half = _NAME_HEIGHT * (len(group) - 1) / 2
    middle = min(max(sum(group) / len(group), half), 1 - half)
    return [middle - half + _NAME_HEIGHT * index for index in range(len(group))]


def _short(value: float) -> str:
    """A count on an axis, such as 20k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _save(figure: Figure, path: Path) -> Path:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    write_atomically(path, file.getvalue())
    return path
