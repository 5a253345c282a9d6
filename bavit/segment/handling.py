"""How pictures are gone through: in which windows, how many at a time, and what if one cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from bavit.pictures import PictureError
from bavit.segment.windows import View
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Handling:
    """How pictures are gone through.

    Attributes:
        view: how they are shown to the network.
        batch_size: windows at a time.
        workers: threads that decode pictures.
        on_error: what to do about a picture or mask that cannot be read: `raise` or `skip`.

    Raises:
        ParameterError: a number out of range.
    """

    view: View
    batch_size: int = 8
    workers: int = 1
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ParameterError(f"batches of {self.batch_size} windows by {self.workers} threads cannot be made.")

    def readable(
        self, opening: Callable[[int], Opened], count: int, progress: Progress
    ) -> Iterator[tuple[int, Opened]]:
        """Everything that can be read, with its number; as much at a time as there are threads.

        Args:
            opening: opens what has a number of 0 .. count - 1.
            count: see there.
            progress: told of what is left out.

        Raises:
            PictureError: something cannot be read.
        """

        def attempt(number: int) -> Opened | PictureError:
            try:
                return opening(number)
            except PictureError as fault:
                return fault

        step = max(1, self.workers)
        for first in range(0, count, step):
            numbers = range(first, min(first + step, count))
            for number, found in zip(numbers, in_threads(attempt, numbers, self.workers), strict=True):
                if not isinstance(found, PictureError):
                    yield number, found
                elif self.on_error == "raise":
                    raise PictureError(f"{found} Mend it, or leave such pictures out with --on-error skip.") from None
                else:
                    progress.note(f"left out: {found}")
                    progress.advance(1)
