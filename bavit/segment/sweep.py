"""The sweep: what early exit costs in mIoU and saves in time, by p0, by place, by what goes on.

Each finished row is kept under `OUT/.sweep/`, so that a sweep that was killed goes on where it was when the same is
asked for again; other inputs begin anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bavit.machine import Machine
from bavit.segment.early_exit import Method
from bavit.segment.evaluate import Wish, measure, measure_times
from bavit.segment.exits import DENSE, Exits, exits_of
from bavit.segment.figures import SegmentRow, SegmentSweep
from bavit.segment.labelled import LabelledPictures
from bavit.segment.masks import shard_digests
from bavit.segment.model import Segmenter
from bavit.sweep_cache import SweepCache, digest_of
from tokenlabels import __version__
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress

P0 = (0.90, 0.95, 0.98)
"""Of the paper's Table 2."""

_VERSION = 2


def plan_rows(
    model: Segmenter,
    p0: Sequence[float] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    keep: Sequence[int] | None = None,
    methods: Sequence[Method] | None = None,
) -> list[Exits]:
    """Every combination, the unpruned network first; what makes no difference is not done twice.

    Args:
        model: what is not given is as the model has it, but for p0.
        p0: by default `P0`.
        positions: each the blocks after which tokens may end.
        keep: numbers of tokens that go on of each class.
        methods: what goes on.

    Raises:
        ParameterError: see `exits_of`; or there is nothing to sweep, as the network halves its grid instead.
    """
    if model.reduction is not None or not model.head_after:
        raise ParameterError("this run has no early exit to sweep: it was trained with --downsample, or without heads.")
    own = model.rule
    asked = [
        exits_of(model, p0=probability, exit_after=places, keep_per_class=count, method=method)
        for method in methods or [own.method]
        for places in positions or [model.exit_after]
        for count in keep or [own.keep_per_class]
        for probability in p0 or P0
    ]
    found = {_difference(DENSE): DENSE}
    for each in asked:
        found.setdefault(_difference(each), each)
    return list(found.values())


def _difference(exits: Exits) -> tuple[object, ...]:
    """What of it changes which tokens end."""
    rule = exits.rule
    if not rule.exits or not exits.exit_after:
        return ("none",)
    if rule.method == "proportion":
        return exits.exit_after, rule.method, rule.proportion
    k = rule.keep_per_class if rule.method in ("top-k", "average-top-k") else None
    return exits.exit_after, rule.method, rule.p0, k


def sweep(
    model: Segmenter,
    data: LabelledPictures,
    rows: Sequence[Exits],
    wish: Wish,
    machine: Machine,
    out: Path | None,
    names: tuple[str, str],
    progress: Progress,
) -> SegmentSweep:
    """Evaluate and time every row.

    Args:
        model: moved to the machine's device.
        data: at least one picture.
        rows: see `plan_rows`.
        wish: how.
        machine: where.
        out: folder in which finished rows are kept; `SweepCache.finish` takes them away. None: nowhere.
        names: of the run and of the data, as a person named them.
        progress: told about every picture.

    Raises:
        PictureError: a picture or mask cannot be read.
        OutputError: `out` cannot be written.
        TokenLabelsError: the weights are damaged.
    """
    cache = None if out is None else SweepCache(out, _digest(model, data, wish, machine))
    found, images = [], len(data)
    for number, exits in enumerate(rows):
        name = f"row-{hashlib.sha256(repr(exits).encode()).hexdigest()[:16]}"
        row = None if cache is None else cache.record(name, SegmentRow)
        if row is None:
            progress.note(f"row {number + 1} of {len(rows)}: {described(exits)}")
            row = _row(model, data, exits, wish, machine, progress)
            if cache is not None:
                cache.keep_record(name, row)
        found.append(row)
        images = min(images, row.images)
    timed = [row.batch_size for row in found if row.batch_size is not None]
    size = min(timed, default=wish.batch_size)
    return SegmentSweep(found, *names, model.config.head, images, size, machine.describe())


def described(exits: Exits | SegmentRow) -> str:
    """What a row is, for a person."""
    rule = exits.rule if isinstance(exits, Exits) else exits
    if rule.p0 >= 1 or not exits.exit_after:
        return "no early exit"
    places = " and ".join(map(str, exits.exit_after))
    if rule.method == "proportion":
        return f"after {places}: a share of {rule.proportion:g} ends"
    kept = f", k {rule.keep_per_class}" if rule.method in ("top-k", "average-top-k") else ""
    return f"after {places}: p0 {rule.p0:g}, {rule.method}{kept}"


def _row(
    model: Segmenter, data: LabelledPictures, exits: Exits, wish: Wish, machine: Machine, progress: Progress
) -> SegmentRow:
    found = measure(model, data, exits, wish, machine, progress)
    times = measure_times(model, data, exits, wish, machine, found, progress)
    size = None if times is None else times.batch_size
    return SegmentRow(exits is DENSE, batch_size=size, **found.figures(data.classes, times), **exits.described())


def _digest(model: Segmenter, data: LabelledPictures, wish: Wish, machine: Machine) -> str:
    rows = data.rows
    wanted = replace(wish, workers=0)  # how many threads decode changes nothing
    described = (_VERSION, __version__, model.config, data.classes, wanted, machine.describe(), list(rows.image_ids),
                 list(rows.file_names), rows.folder, data.images, shard_digests(rows))  # fmt: skip
    arrays = (rows.widths, rows.heights, data.table.of_value, data.table.of_category)
    return digest_of(described, (model,), arrays)
