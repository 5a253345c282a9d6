"""Several ways to do the same work, timed against each other: they take turns at every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Batch = TypeVar("Batch")


@dataclass(slots=True)
class Timing:
    """Seconds that one way took, or a part of it.

    Attributes:
        alone: of each image by itself, in every round.
        batches: of all batches of each round.
        images: in the batches of a round.
    """

    alone: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
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
    def throughput(self) -> float:
        """Images per second in batches, median over rounds."""
        return self.images / float(np.median(self.batches))

    def speedup_over(self, other: Timing) -> float:
        """How many times as fast as another that took turns with it: median over rounds."""
        return float(np.median(np.array(other.batches) / np.array(self.batches)))


def take_turns(
    ways: Sequence[Callable[[Batch], Sequence[float]]],
    alone: Sequence[Batch],
    batches: Sequence[Batch],
    sizes: Sequence[int],
    rounds: int,
    advance: Callable[[int], None],
) -> list[tuple[Timing, ...]]:
    """Time several ways, one image at a time and in batches.

    Each runs once for nothing before. Every round goes through all images; at each of them, and at each batch, the
    ways take turns, the order turning too, so that what else the machine does falls on all of them alike.

    Args:
        ways: each does the work on a batch, waits for its device, and returns the seconds of all of it and of its
            parts: always as many.
        alone: images one by one, at least one.
        batches: of images, at least one.
        sizes: images of each batch.
        rounds: at least 1.
        advance: told of every image that was done.

    Returns:
        For each way a timing of all, and one of each part.
    """
    parts = []
    for way in ways:
        way(alone[0])
        parts.append(len(way(batches[0])))
    found = [tuple(Timing(images=sum(sizes)) for _ in range(count)) for count in parts]
    steps = [*((batch, 1) for batch in alone), *zip(batches, sizes, strict=True)]
    for number in range(rounds):
        for timings in found:
            for timing in timings:
                timing.batches.append(0.0)
        for step, (batch, size) in enumerate(steps):
            for turn in range(len(ways)):
                which = (turn + step + number) % len(ways)
                seconds = ways[which](batch)
                advance(size)
                for timing, spent in zip(found[which], seconds, strict=True):
                    if step < len(alone):
                        timing.alone.append(spent)
                    else:
                        timing.batches[-1] += spent
    return found


def spread(values: NDArray[np.number], count: int) -> list[int]:
    """Numbers of some of n values, ascending, that are spread as all of them are.

    Args:
        values: (n,), finite.
        count: how many, at most n.
    """
    count = min(count, len(values))
    places = (2 * np.arange(count) + 1) * len(values) // (2 * max(count, 1))
    found: list[int] = np.sort(np.argsort(values, kind="stable")[places]).tolist()
    return found
