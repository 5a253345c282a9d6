"""Threads for work that libraries do for milliseconds without Python's lock: resizing pictures, say."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8
"""More than this many threads of one process wait for Python rather than work."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(workers: int) -> int:
    """Threads that each of some workers of this machine may use."""
    return max(1, min(MAX_THREADS, cores() // workers))


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """`function` of every item, in order; the first item that raises ends it, and no thread goes on behind its back."""
    if threads <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_TRIALS = 8
_SLOW_SECONDS = 0.001


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int = MAX_THREADS) -> Iterator[Result]:
    """`function` of every item, in order, a few ahead of who asks: for reading files where the disk is far away.

    Threads only begin once some items in a row took long; a file that is at hand is read sooner than handed over.
    """
    queue, times = iter(items), deque([0.0] * _TRIALS, _TRIALS)
    for item in queue:
        begun = time.perf_counter()
        result = function(item)
        times.append(time.perf_counter() - begun)
        yield result
        if min(times) > _SLOW_SECONDS and threads > 1:
            break
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in queue:
                waiting.append(pool.submit(function, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # not `cancel_futures`, which fails in a generator left open when Python ends
                future.cancel()
