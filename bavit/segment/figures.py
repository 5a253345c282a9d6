"""The figures of evaluations and sweeps of segmenters: what commands print, plots draw, and files hold.

Multiply-accumulates (MACs) are of a picture, all its windows together, counted from the tokens that each block and head
saw. Times are of windows held in memory: the network with early exit on the one side, the same network without it and
with its last head only on the other, in turns; an image is a window there. Shares are in 0..1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenlabels.atomic import write_atomically


class Times(msgspec.Struct, frozen=True):
    """Times of one network, and of the unpruned one that took turns with it.

    Attributes:
        latency_ms: median time of one window alone.
        latency_dense_ms: of the unpruned network.
        throughput: windows a second, in batches.
        throughput_dense: of the unpruned network.
        speedup: how many times as fast in batches: the median over rounds.
        speedup_ideal: MACs of the unpruned network by those of the other, of the windows that were timed.
        windows_timed: how many.
        batch_size: of throughput.
    """

    latency_ms: float
    latency_dense_ms: float
    throughput: float
    throughput_dense: float
    speedup: float
    speedup_ideal: float
    windows_timed: int
    batch_size: int


TIMED = ("throughput", "throughput_dense", "latency_ms", "latency_dense_ms", "speedup", "speedup_ideal")
"""Those of `Times` that evaluations and rows have, None where nothing was timed."""


class ImageFigures(msgspec.Struct, frozen=True):
    """One image.

    Attributes:
        image_id: in its build.
        file_name: in its build.
        width: source pixels.
        height: source pixels.
        windows: how many it was cut into.
        miou: over the classes that occur in this image.
        pixel_accuracy: see `metrics.Quality`.
        macs: of all windows.
        macs_dense: of the unpruned network.
        tokens_alive: share of patch tokens that have not ended when each stage begins.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    windows: int
    miou: float
    pixel_accuracy: float
    macs: int
    macs_dense: int
    tokens_alive: list[float]


class SegmentEvaluation(msgspec.Struct, frozen=True):
    """How good a segmenter is on a set, and what it costs.

    Attributes:
        miou: mean over the classes that occur in labels or predictions.
        pixel_accuracy: share of labelled pixels that are right.
        per_category: IoU of each class by name; None where it occurs in neither.
        macs: mean of an image.
        macs_dense: of the unpruned network, its last head only.
        macs_reduction: share of `macs_dense` that is saved.
        tokens_alive: mean share of patch tokens that have not ended when each stage begins; the first is 1.
        exit_shares: mean share of patch tokens that end in each stage, the last being the end of the network.
        throughput: see `Times`; None without timing, as the next five.
        throughput_dense: see there.
        latency_ms: see there.
        latency_dense_ms: see there.
        speedup: see there.
        speedup_ideal: see there.
        miou_dense: `miou` of the unpruned network; None where that was not asked for.
        pixel_accuracy_dense: the same of `pixel_accuracy`.
        p0: probability from which a token ends.
        exit_after: blocks after which tokens may end.
        keep_per_class: tokens of each class that go on all the same.
        method: what goes on, see `early_exit.py`.
        proportion: of the method of that name.
        head: kind of heads.
        downsample: how the grid is halved instead of early exit, or `none`.
        images: how many.
        skipped: images that could not be read.
        windows: mean of an image.
        windows_timed: how many windows were timed.
        batch_size: of throughput.
        environment: device, precision, threads, versions.
    """

    miou: float
    pixel_accuracy: float
    per_category: dict[str, float | None]
    macs: float
    macs_dense: float
    macs_reduction: float
    tokens_alive: list[float]
    exit_shares: list[float]
    throughput: float | None
    throughput_dense: float | None
    latency_ms: float | None
    latency_dense_ms: float | None
    speedup: float | None
    speedup_ideal: float | None
    miou_dense: float | None
    pixel_accuracy_dense: float | None
    p0: float
    exit_after: tuple[int, ...]
    keep_per_class: int
    method: str
    proportion: float
    head: str
    downsample: str
    images: int
    skipped: int
    windows: float
    windows_timed: int
    batch_size: int
    environment: dict[str, str]


class SegmentRow(msgspec.Struct, frozen=True):
    """One row of a sweep; attributes as in `SegmentEvaluation`, `dense` says that it is the unpruned network.

    Attributes:
        batch_size: of throughput; None without timing.
    """

    dense: bool
    p0: float
    exit_after: tuple[int, ...]
    keep_per_class: int
    method: str
    proportion: float
    miou: float
    pixel_accuracy: float
    per_category: dict[str, float | None]
    macs: float
    macs_dense: float
    macs_reduction: float
    tokens_alive: list[float]
    throughput: float | None
    throughput_dense: float | None
    latency_ms: float | None
    latency_dense_ms: float | None
    speedup: float | None
    speedup_ideal: float | None
    batch_size: int | None
    images: int


class SegmentSweep(msgspec.Struct, frozen=True):
    """A sweep.

    Attributes:
        rows: the first is the unpruned network.
        run: the segmenter, as named.
        data: what it was evaluated on, as named.
        head: kind of heads.
        images: how many.
        batch_size: of throughput.
        environment: device, precision, threads, versions.
    """

    rows: list[SegmentRow]
    run: str
    data: str
    head: str
    images: int
    batch_size: int
    environment: dict[str, str]


def save_json(found: msgspec.Struct | Mapping[str, Any], path: Path) -> Path:
    """Write figures as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return path


def save_csv(found: Sequence[msgspec.Struct], path: Path) -> Path:
    """Write figures of one kind as CSV: lists as numbers with spaces between them, nothing for None.

    Args:
        found: at least one.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    text = io.StringIO()
    names = [name for name in found[0].__struct_fields__ if not isinstance(getattr(found[0], name), dict)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(getattr(each, name)) for name in names] for each in found)
    write_atomically(path, text.getvalue().encode())
    return path


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
