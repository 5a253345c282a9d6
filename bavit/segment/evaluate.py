"""A segmenter on pictures with masks: how good it is, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bavit.machine import Machine
from bavit.pictures import PictureError
from bavit.segment.accounting import dense_macs
from bavit.segment.config import SegmentClass
from bavit.segment.exits import DENSE, Exits
from bavit.segment.figures import ImageFigures, SegmentEvaluation, Times
from bavit.segment.inference import Segmented, segment
from bavit.segment.labelled import LabelledPictures
from bavit.segment.metrics import Confusion, Quality, quality
from bavit.segment.model import Segmenter
from bavit.segment.timing import time_segmenter
from bavit.segment.windows import View
from bavit.timing import spread
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads


@dataclass(frozen=True, slots=True)
class Wish:
    """How an evaluation goes.

    Attributes:
        view: how pictures are shown to the network.
        batch_size: windows at a time, and of throughput.
        workers: threads that decode pictures.
        on_error: what to do about a picture or mask that cannot be read: `raise` or `skip`.
        time_windows: how many windows are timed, from cheap to dear; 0: no timing.
        rounds: of timing.

    Raises:
        ParameterError: a number out of range.
    """

    view: View
    batch_size: int = 8
    workers: int = 1
    on_error: Literal["raise", "skip"] = "raise"
    time_windows: int = 16
    rounds: int = 3

    def __post_init__(self) -> None:
        if min(self.batch_size, self.rounds) < 1 or min(self.time_windows, self.workers) < 0:
            raise ParameterError("an evaluation takes at least 1 window at a time, and 1 round of timing.")


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one pass over the pictures found.

    Attributes:
        counts: int64 (K, K), see `Confusion`.
        images: of each picture that could be read.
        numbers: of these pictures in the set.
        macs: of each, int64 (windows,).
        depths: of each, int64 (depth,), tokens that each block saw, all windows together.
    """

    counts: NDArray[np.int64]
    images: list[ImageFigures]
    numbers: list[int]
    macs: list[NDArray[np.int64]]
    depths: list[NDArray[np.int64]]

    @property
    def quality(self) -> Quality:
        """What the matrix of confusion says."""
        return quality(self.counts)

    @property
    def macs_dense(self) -> float:
        """Of the unpruned network, mean of a picture."""
        return float(np.mean([image.macs_dense for image in self.images]))

    @property
    def tokens_alive(self) -> list[float]:
        """Mean share of patch tokens that have not ended when each stage begins."""
        found: list[float] = np.mean([image.tokens_alive for image in self.images], axis=0).tolist()
        return found


def measure(
    model: Segmenter, data: LabelledPictures, exits: Exits, wish: Wish, machine: Machine, progress: Progress
) -> Measured:
    """Segment every picture, and compare it with its mask.

    Args:
        model: moved to the machine's device.
        data: at least one picture.
        exits: when tokens end.
        wish: how.
        machine: where.
        progress: told about every picture.

    Raises:
        PictureError: a picture or mask cannot be read, or none can.
        TokenLabelsError: the weights are damaged.
    """
    model = model.to(machine.device).eval()
    confusion = Confusion(model.num_classes)
    found = Measured(confusion.counts, [], [], [], [])
    progress.stage("segmenting", len(data))
    with exits.set_on(model):
        opened = _opened(data, wish, progress)
        for (number, mask), segmented in segment(model, opened, wish.view, machine, wish.batch_size):
            seen = quality(confusion.add(mask, segmented.classes))
            found.images.append(_image(model, data, number, segmented, seen))
            found.numbers.append(number)
            found.macs.append(segmented.macs)
            found.depths.append(segmented.tokens.sum(axis=0))
            progress.advance(1)
    if not found.images:
        raise PictureError(f"{data.rows.folder}: none of its {len(data)} pictures can be read.")
    return found


def measure_times(
    model: Segmenter, data: LabelledPictures, exits: Exits, wish: Wish, machine: Machine, found: Measured,
    progress: Progress,
) -> Times | None:  # fmt: skip
    """Time windows of the pictures, chosen from cheap to dear of those of the commonest size.

    Returns:
        None where no timing is wished.

    Raises:
        PictureError: a picture cannot be read.
    """
    if not wish.time_windows:
        return None
    layouts = [wish.view.lay(image.width, image.height) for image in found.images]
    sizes = [layout.window for layout in layouts]
    common = max(dict.fromkeys(sizes), key=sizes.count)
    places = [
        (number, window, macs)
        for number, size, each in zip(found.numbers, sizes, found.macs, strict=True)
        for window, macs in enumerate(each.tolist())
        if size == common
    ]
    chosen = spread(np.array([macs for _, _, macs in places]), wish.time_windows)
    progress.stage("timing", 4 * wish.rounds * len(chosen))
    windows = []
    for number, window, _ in (places[index] for index in chosen):
        picture = data.pictures.open(number)
        windows.append(wish.view.lay(*picture.size).cut(picture, window))
    return time_segmenter(model, exits, windows, wish.batch_size, wish.rounds, machine, progress.advance)


def evaluate(
    model: Segmenter, data: LabelledPictures, exits: Exits, wish: Wish, machine: Machine, progress: Progress,
    *, dense: bool = False,
) -> tuple[SegmentEvaluation, Measured]:  # fmt: skip
    """Every figure of a segmenter on some pictures.

    Args:
        model: moved to the machine's device.
        data: at least one picture.
        exits: when tokens end.
        wish: how.
        machine: where.
        progress: told about every picture.
        dense: segment them with the unpruned network, too.

    Raises:
        PictureError: a picture or mask cannot be read, or none can.
        TokenLabelsError: the weights are damaged.
    """
    found = measure(model, data, exits, wish, machine, progress)
    whole = measure(model, data, DENSE, wish, machine, progress).quality if dense else None
    times = measure_times(model, data, exits, wish, machine, found, progress)
    alive = found.tokens_alive
    macs, macs_dense = float(np.mean([image.macs for image in found.images])), found.macs_dense
    seen = found.quality
    told = SegmentEvaluation(
        miou=seen.miou,
        pixel_accuracy=seen.pixel_accuracy,
        per_category=by_name(data.classes, seen),
        macs=macs,
        macs_dense=macs_dense,
        macs_reduction=1 - macs / macs_dense,
        tokens_alive=alive,
        exit_shares=[before - after for before, after in zip(alive, [*alive[1:], 0.0], strict=True)],
        throughput=times and times.throughput,
        throughput_dense=times and times.throughput_dense,
        latency_ms=times and times.latency_ms,
        latency_dense_ms=times and times.latency_dense_ms,
        speedup=times and times.speedup,
        speedup_ideal=times and times.speedup_ideal,
        miou_dense=whole and whole.miou,
        pixel_accuracy_dense=whole and whole.pixel_accuracy,
        p0=exits.rule.p0,
        exit_after=exits.exit_after,
        keep_per_class=exits.rule.keep_per_class,
        method=exits.rule.method,
        proportion=exits.rule.proportion,
        head=model.config.head,
        images=len(found.images),
        skipped=len(data) - len(found.images),
        windows=float(np.mean([image.windows for image in found.images])),
        windows_timed=times.windows_timed if times else 0,
        batch_size=times.batch_size if times else wish.batch_size,
        environment=machine.describe(),
    )
    return told, found


def by_name(classes: tuple[SegmentClass, ...], seen: Quality) -> dict[str, float | None]:
    """IoU of each class by its name; a name that several have is followed by the value."""
    names = [each.name for each in classes]
    keys = [each.name if names.count(each.name) == 1 else f"{each.name} ({each.value})" for each in classes]
    return dict(zip(keys, seen.iou, strict=True))


def _opened(
    data: LabelledPictures, wish: Wish, progress: Progress
) -> Iterator[tuple[tuple[int, NDArray[np.uint8]], Image.Image]]:
    """Every picture that can be read, with its number and mask; as many at a time as there are threads."""

    def attempt(number: int) -> tuple[Image.Image, NDArray[np.uint8]] | PictureError:
        try:
            return data.open(number)
        except PictureError as fault:
            return fault

    step = max(1, wish.workers)
    for first in range(0, len(data), step):
        numbers = range(first, min(first + step, len(data)))
        for number, found in zip(numbers, in_threads(attempt, numbers, wish.workers), strict=True):
            if isinstance(found, PictureError):
                if wish.on_error == "raise":
                    raise PictureError(f"{found} Mend it, or leave such pictures out with --on-error skip.") from None
                progress.note(f"left out: {found}")
                progress.advance(1)
            else:
                yield (number, found[1]), found[0]


def _image(model: Segmenter, data: LabelledPictures, number: int, segmented: Segmented, seen: Quality) -> ImageFigures:
    height, width = segmented.classes.shape
    windows = len(segmented.layout)
    return ImageFigures(
        image_id=data.rows.image_ids[number],
        file_name=data.rows.file_names[number],
        width=width,
        height=height,
        windows=windows,
        miou=seen.miou,
        pixel_accuracy=seen.pixel_accuracy,
        macs=int(segmented.macs.sum()),
        macs_dense=windows * dense_macs(model, segmented.layout.window),
        tokens_alive=segmented.shares_alive,
    )
