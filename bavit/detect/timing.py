"""Several detectors timed against each other, on the same images held in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bavit.detect.pruned import Detection, PrunedDetector, StageTimes
from bavit.detect.pruning import Size
from bavit.timing import Timing, take_turns

_DETECTOR_STAGES = ("detector", "boxes")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What detectors are given of n images, on their device.

    Attributes:
        small: float (n, 3, H', W') for BAViT.
        pixels: n of float (3, H_i, W_i) for the detector, one tensor where they have one size.
        sizes: n of (width, height), source pixels.
        first: number of the first of them.
    """

    small: Tensor
    pixels: Tensor | Sequence[Tensor]
    sizes: Sequence[Size]
    first: int = 0

    def part(self, first: int, last: int) -> Inputs:
        """Some of them."""
        pixels = stacked(list(self.pixels[first:last]))
        return Inputs(self.small[first:last], pixels, self.sizes[first:last], self.first + first)

    def batches(self, size: int) -> list[Inputs]:
        """In order, whole batches only, unless there is no whole one."""
        whole = len(self.sizes) // size * size or len(self.sizes)
        return [self.part(first, min(first + size, whole)) for first in range(0, whole, size)]


def stacked(pixels: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Pixels of one size as one tensor (B, 3, H, W); others as they are."""
    return torch.stack(tuple(pixels)) if len({image.shape for image in pixels}) == 1 else pixels


class WithMasks(PrunedDetector):
    """A pruned detector that makes its masks, and then uses those it was given, so that it costs the same.

    Attributes:
        given: what it uses, by number of the image: bool (rows, cols), or None where nothing is removed.
        first: number of the first image of the batch that comes next.
    """

    given: Sequence[Tensor | None] = ()
    first: int = 0

    def masks(
        self, background: Tensor, pixels: Tensor | Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Tensor | None] | None:
        """See `PrunedDetector.masks`."""
        super().masks(background, pixels, sizes)
        found = list(self.given[self.first : self.first + len(sizes)])
        return None if all(mask is None for mask in found) else found


def time_detectors(
    detectors: Sequence[PrunedDetector],
    inputs: Inputs,
    batch_size: int,
    rounds: int,
    context: Callable[[], AbstractContextManager[object]],
    advance: Callable[[int], None],
) -> list[tuple[Timing, ...]]:
    """Time detectors, one image at a time and in batches; see `take_turns`.

    Args:
        detectors: on the device of the inputs; without BAViT they are given none of its inputs.
        inputs: of at least one image.
        batch_size: for throughput.
        rounds: at least 1.
        context: entered around every call, such as autocast.
        advance: told of every image that was detected.

    Returns:
        For each detector the time of all, and that of the detector's part.
    """
    batches = inputs.batches(batch_size)
    ways = [partial(_seconds, detector, context) for detector in detectors]
    return take_turns(ways, inputs.batches(1), batches, [len(batch.sizes) for batch in batches], rounds, advance)


def run(
    detector: PrunedDetector,
    batch: Inputs,
    context: Callable[[], AbstractContextManager[object]],
    times: StageTimes | None = None,
) -> list[Detection]:
    """Detect in a batch."""
    if isinstance(detector, WithMasks):
        detector.first = batch.first
    with context():
        return detector.detect(None if detector.bavit is None else batch.small, batch.pixels, batch.sizes, times)


def _seconds(
    detector: PrunedDetector, context: Callable[[], AbstractContextManager[object]], batch: Inputs
) -> tuple[float, float]:
    """Seconds of all, and of the detector's part. Every stage waits for the device, the last one too."""
    times = StageTimes()
    begun = time.perf_counter()
    run(detector, batch, context, times)
    whole = time.perf_counter() - begun
    return whole, sum(times.seconds.get(stage, 0.0) for stage in _DETECTOR_STAGES)
