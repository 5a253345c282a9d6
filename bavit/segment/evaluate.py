"""A segmenter on pictures with masks: how good it is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bavit.machine import Machine
from bavit.pictures import PictureError
from bavit.segment.accounting import dense_macs
from bavit.segment.config import SegmentClass, names_apart
from bavit.segment.exits import DENSE, Exits
from bavit.segment.figures import TIMED, ImageFigures, SegmentEvaluation, Times
from bavit.segment.handling import Handling
from bavit.segment.inference import Segmented, segment
from bavit.segment.labelled import LabelledPictures
from bavit.segment.metrics import Confusion, Quality, quality
from bavit.segment.model import Segmenter
from bavit.segment.timing import time_segmenter
from bavit.timing import spread
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress


@dataclass(frozen=True, slots=True)
class Wish(Handling):
    """How an evaluation goes; `batch_size` is that of throughput, too.

    Attributes:
        time_windows: how many windows are timed, from cheap to dear; 0: no timing.
        rounds: of timing.

    Raises:
        ParameterError: a number out of range.
    """

    time_windows: int = 16
    rounds: int = 3

    def __post_init__(self) -> None:
        Handling.__post_init__(self)
        if self.rounds < 1 or self.time_windows < 0:
            raise ParameterError(f"{self.time_windows} windows cannot be timed in {self.rounds} rounds.")


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

    def figures(self, classes: Sequence[SegmentClass], times: Times | None) -> dict[str, Any]:
        """Quality, cost and times, by the names that they have in `SegmentEvaluation` and `SegmentRow`."""
        seen = self.quality
        macs, macs_dense = (
            float(np.mean([getattr(image, name) for image in self.images])) for name in ("macs", "macs_dense")
        )
        return {
            "miou": seen.miou,
            "pixel_accuracy": seen.pixel_accuracy,
            "per_category": _by_name(classes, seen),
            "macs": macs,
            "macs_dense": macs_dense,
            "macs_reduction": 1 - macs / macs_dense,
            "tokens_alive": np.mean([image.tokens_alive for image in self.images], axis=0).tolist(),
            "images": len(self.images),
            **{name: None if times is None else getattr(times, name) for name in TIMED},
        }


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
        opened = wish.readable(data.open, len(data), progress)
        pictures = (((number, mask), picture) for number, (picture, mask) in opened)
        for (number, mask), segmented in segment(model, pictures, wish.view, machine, wish.batch_size):
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
    figures = found.figures(data.classes, times)
    alive = figures["tokens_alive"]
    told = SegmentEvaluation(
        **figures,
        **exits.described(),
        exit_shares=[before - after for before, after in zip(alive, [*alive[1:], 0.0], strict=True)],
        miou_dense=None if whole is None else whole.miou,
        pixel_accuracy_dense=None if whole is None else whole.pixel_accuracy,
        head=model.config.head,
        downsample=model.config.downsample,
        skipped=len(data) - len(found.images),
        windows=float(np.mean([image.windows for image in found.images])),
        windows_timed=0 if times is None else times.windows_timed,
        batch_size=wish.batch_size if times is None else times.batch_size,
        environment=machine.describe(),
    )
    return told, found


def _by_name(classes: Sequence[SegmentClass], seen: Quality) -> dict[str, float | None]:
    """IoU of each class by its name."""
    return dict(zip(names_apart(classes), seen.iou, strict=True))


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
