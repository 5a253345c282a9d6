"""Several detectors timed against each other: on the same images held in memory, taking turns batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bavit.detect.pruned import Detection, PrunedDetector, StageTimes
from bavit.detect.pruning import Size

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


@dataclass(slots=True)
class Timing:
    """Seconds that one detector took.

    Attributes:
        alone: of each image by itself, in every round.
        alone_detector: of these the detector's part.
        batches: of all batches of each round.
        batches_detector: of these the detector's part.
        images: in the batches of a round.
    """

    alone: list[float] = field(default_factory=list)
    alone_detector: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    batches_detector: list[float] = field(default_factory=list)
    images: int = 0

    @property
    def latency_ms(self) -> float:
        """Median time of one image."""
        return 1000 * float(np.median(self.alone))

    @property
    def latency_p95_ms(self) -> float:
        """95th percentile of the time of one image."""
        return 1000 * float(np.percentile(self.alone, 95))

    @property
    def latency_detector_ms(self) -> float:
        """Median time of the detector's part of one image."""
        return 1000 * float(np.median(self.alone_detector))

    @property
    def throughput(self) -> float:
        """Images per second in batches, median over rounds."""
        return self.images / float(np.median(self.batches))

    @property
    def throughput_detector(self) -> float:
        """Images per second of the detector's part, median over rounds."""
        return self.images / float(np.median(self.batches_detector))

    def speedup_over(self, other: Timing) -> float:
        """How many times as fast as another that took turns with it: median over rounds."""
        return float(np.median(np.array(other.batches) / np.array(self.batches)))


def take_turns(
    detectors: Sequence[PrunedDetector],
    inputs: Inputs,
    batch_size: int,
    rounds: int,
    context: Callable[[], AbstractContextManager[object]],
    advance: Callable[[int], None],
) -> list[Timing]:
    """Time detectors, one image at a time and in batches.

    Each runs once for nothing before. Every round goes through all images; at each of them, and at each batch, the
    detectors take turns, the order turning too, so that what else the machine does falls on all of them alike.

    Args:
        detectors: on the device of the inputs; without BAViT they are given none of its inputs.
        inputs: of at least one image.
        batch_size: for throughput.
        rounds: at least 1.
        context: entered around every call, such as autocast.
        advance: told of every image that was detected.

    Returns:
        One for each detector.
    """
    found = [Timing() for _ in detectors]
    alone, batches = inputs.batches(1), inputs.batches(batch_size)
    for detector in detectors:
        for batch in (alone[0], batches[0]):
            run(detector, batch, context)
    for number in range(rounds):
        totals = [[0.0, 0.0] for _ in detectors]
        for step, batch in enumerate([*alone, *batches]):
            for turn in range(len(detectors)):
                which = (turn + step + number) % len(detectors)
                whole, part = _timed(detectors[which], batch, context)
                advance(len(batch.sizes))
                if step < len(alone):
                    found[which].alone.append(whole)
                    found[which].alone_detector.append(part)
                else:
                    totals[which][0] += whole
                    totals[which][1] += part
        for timing, (whole, part) in zip(found, totals, strict=True):
            timing.batches.append(whole)
            timing.batches_detector.append(part)
            timing.images = sum(len(batch.sizes) for batch in batches)
    return found


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


def _timed(
    detector: PrunedDetector, batch: Inputs, context: Callable[[], AbstractContextManager[object]]
) -> tuple[float, float]:
    """Seconds of all, and of the detector's part. Every stage waits for the device, the last one too."""
    times = StageTimes()
    begun = time.perf_counter()
    run(detector, batch, context, times)
    whole = time.perf_counter() - begun
    return whole, sum(times.seconds.get(stage, 0.0) for stage in _DETECTOR_STAGES)
