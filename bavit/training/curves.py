"""Plots of a training run: panels of figures by epoch, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import FuncFormatter

from bavit.plots import BLUE, INK, MUTED, ORANGE, Line, as_percent, draw_lines, figure_of, save_figure, set_up, span
from tokenlabels.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Panel:
    """Shares by epoch.

    Attributes:
        title: of the panel.
        series: key of `metrics.jsonl`, name and colour of each line.
        levels: name and height of horizontal lines; those that are None are left out.
    """

    title: str
    series: Sequence[tuple[str, str, str]]
    levels: Mapping[str, float | None]


def draw_run(records: Sequence[Mapping[str, float]], path: str | Path, shares: Panel) -> Path:
    """Draw loss, some shares and learning rate of a training run by epoch, as a PNG of 1200 x 400 pixels.

    Args:
        records: one for each epoch, as the lines of `metrics.jsonl`: `epoch` and any of `train_loss`, `val_loss`, `lr`
            and the keys of `shares`. What is missing or not finite is left out; of several records of one epoch the
            last counts.
        path: the file.
        shares: the middle panel.

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
    loss, middle, rate = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    for panel, title in ((loss, "Loss"), (middle, shares.title), (rate, "Learning rate")):
        set_up(panel, title, "epoch")
        span(panel, sorted(last))
    draw_lines(
        loss,
        [
            _series(kept, "train_loss", "train", BLUE, ".3f"),
            _series(kept, "val_loss", "validation", ORANGE, ".3f"),
        ],
    )
    levels = [
        Line(name, middle.get_xlim(), [share, share], MUTED, "--", ".1%")
        for name, share in shares.levels.items()
        if share is not None and math.isfinite(share)
    ]
    draw_lines(middle, [*(_series(kept, *each, ".1%") for each in shares.series), *levels])
    as_percent(middle)
    draw_lines(rate, [_series(kept, "lr", "", INK, "")])
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return save_figure(figure, Path(path))


def _series(records: Sequence[Mapping[str, float]], key: str, name: str, colour: str, form: str) -> Line:
    """One figure by epoch, where it is there."""
    found = [record for record in records if record.get(key) is not None and math.isfinite(record[key])]
    return Line(name, [record["epoch"] for record in found], [record[key] for record in found], colour, form=form)
