"""Where passes over a data set begin: the epoch, and the place in it, told to DataLoader workers that run already.

A worker has a copy of the data set, made when it was started. What must reach it later lies in memory that all
processes share: the epoch, and how far each worker had come when the state that was loaded was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenlabels.errors import ParameterError

MAX_WORKERS = 512
"""DataLoader workers that there is room for."""

MAX_EPOCH = 2**63 - 1


@dataclass(slots=True)
class Pass:
    """One pass of one process over its part of an epoch.

    Attributes:
        epoch: which.
        worker: whose part: number of a DataLoader worker, as it was when the epoch began.
        workers: how many there are; 0: this process reads all.
        done: items given out, those before a state that was loaded included.
    """

    epoch: int
    worker: int
    workers: int
    done: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an epoch has come.

    Attributes:
        epoch: which.
        workers: DataLoader workers, 0 for none.
        turn: the worker whose turn is next.
        done: items that each worker has given out; of one that is alone, its own.
        worker: the only worker that this is about, or None.
    """

    epoch: int
    workers: int = 0
    turn: int = 0
    done: tuple[int, ...] = (0,)
    worker: int | None = None


class Position:
    """The epoch and the place in it where passes begin.

    Memory: [epoch, workers, turn], items done by each worker, passes that each process has begun since the place was
    set: this one without workers, then each worker. The place holds for the first pass; later ones are whole.
    """

    def __init__(self) -> None:
        self._shared: Tensor = torch.zeros(4 + 2 * MAX_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._own: Progress | None = None

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if not self._shared.is_shared():  # type: ignore[no-untyped-call]  # a plain copy, with workers of its own
            self._shared = self._shared.clone().share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return int(self._shared[0])

    @property
    def _done(self) -> Tensor:
        return self._shared[3 : 3 + MAX_WORKERS]

    @property
    def _begun(self) -> Tensor:
        return self._shared[3 + MAX_WORKERS :]

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass with an epoch, at its beginning; nothing changes where it is the one already."""
        if epoch != self.epoch:
            self.restore(Progress(epoch))

    def restore(self, progress: Progress) -> None:
        """Begin the next pass at a place; that of one worker holds in this process alone."""
        if progress.worker is not None:
            self._own = progress
            return
        self._own = None
        self._shared.zero_()
        self._shared[:3] = torch.tensor([progress.epoch, progress.workers, progress.turn])
        self._done[: len(progress.done)] = torch.tensor(progress.done)

    def begin(self, worker: int | None, workers: int) -> Pass:
        """A pass of this process begins.

        Args:
            worker: number of this DataLoader worker, None where there are none.
            workers: how many there are.

        Raises:
            ParameterError: too many workers, or the place is of another number of them.
        """
        if workers > MAX_WORKERS:
            raise ParameterError(f"{workers} DataLoader workers: at most {MAX_WORKERS}.")
        own, self._own = self._own, None
        if own is not None:
            _check_workers(own, workers)
            return Pass(own.epoch, own.worker or 0, workers, own.done[0])
        process = 0 if worker is None else worker + 1
        place = self._place(passes=int(self._begun[process]))
        _check_workers(place, workers)
        self._begun[process] += 1
        part = ((worker or 0) + place.turn) % max(workers, 1)
        return Pass(place.epoch, part, workers, place.done[part] if any(place.done) else 0)

    def here(self, running: Pass | None, worker: int | None) -> Progress:
        """How far this process has come.

        Args:
            running: its last pass, None where it has begun none since a place was set.
            worker: number of this DataLoader worker, or None.

        Raises:
            ParameterError: DataLoader workers read, of which this process cannot know.
        """
        if worker is not None and running is not None:
            return Progress(running.epoch, running.workers, done=(running.done,), worker=running.worker)
        if worker is None and bool(self._begun[1:].any()):
            raise ParameterError(
                "DataLoader workers read this data set: call state_dict(loader, consumed) with what was taken from it."
            )
        if running is not None and running.epoch == self.epoch:
            return Progress(running.epoch, done=(running.done,))
        return self._own or self._place(passes=0)

    def after(self, workers: int, consumed: int, size: int, limits: Sequence[int]) -> Progress:
        """How far the pass that a DataLoader is in has come.

        Args:
            workers: of the loader.
            consumed: batches taken from it in this pass.
            size: items in such a batch.
            limits: items that each worker has in the epoch.

        Raises:
            ParameterError: there are not that many, or the place is of another number of workers.
        """
        place = self._place(passes=int(self._begun[1 if workers else 0]) - 1)
        _check_workers(place, workers)
        count = max(workers, 1)
        done = list(place.done) if any(place.done) else [0] * count
        for turn in range(count):
            part = (turn + place.turn) % count
            reached = done[part] + size * max(0, -(-(consumed - turn) // count))
            if reached - size >= limits[part] and reached > done[part]:
                raise ParameterError(f"{consumed} batches of {size} were not taken in this pass: there are fewer.")
            done[part] = min(reached, limits[part])
        return Progress(place.epoch, workers, (place.turn + consumed) % count, tuple(done))

    def _place(self, passes: int) -> Progress:
        """Where the pass begins that comes after so many since the place was set."""
        epoch, workers, turn = self._shared[:3].tolist()
        return (
            Progress(epoch)
            if passes > 0
            else Progress(epoch, workers, turn, tuple(self._done[: max(workers, 1)].tolist()))
        )


def _check_workers(place: Progress, workers: int) -> None:
    if any(place.done) and place.workers != workers:
        raise ParameterError(
            f"the state was taken with {place.workers} DataLoader workers, this pass has {workers}: use as many."
        )
