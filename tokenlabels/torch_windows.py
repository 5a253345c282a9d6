"""Windows in memory: their row groups are decoded by threads, some ahead of the one that is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from types import TracebackType
from typing import Any, TypeAlias

import pyarrow as pa

from tokenlabels.stats_shards import damaged
from tokenlabels.threads import cores
from tokenlabels.torch_columns import Column, column_for
from tokenlabels.torch_groups import Layout, read_group
from tokenlabels.torch_order import Window

Arrays: TypeAlias = dict[str, pa.Array]
"""Columns of a row group by name."""

_AHEAD = 2
"""Row groups that are decoded ahead by a process that reads alone; one by a DataLoader worker, which has company."""


class DecodedGroups:
    """Row groups that are kept for later passes: the first ones that fit, as passes go through all of them in turn.

    Args:
        limit: bytes of all.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, Arrays] = {}
        self._size = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_held": {}, "_size": 0}

    def get(self, number: int) -> Arrays | None:
        """The columns of a row group, None where they are not kept."""
        return self._held.get(number)

    def offer(self, number: int, arrays: Arrays) -> None:
        """Keep a row group if it fits."""
        size = sum(array.nbytes for array in arrays.values())
        if number not in self._held and self._size + size <= self._limit:
            self._held[number] = arrays
            self._size += size


class WindowReader:
    """Reads windows in order; beside the current one there are `_AHEAD` row groups in memory, and the last one read.

    Args:
        layout: the row groups.
        windows: all that will be read.
        kept: row groups of earlier passes.
        decode: pictures and masks become tensors.
        threads: this process reads alone.
    """

    def __init__(
        self, layout: Layout, windows: Sequence[Window], kept: DecodedGroups, *, decode: bool, threads: bool
    ) -> None:
        self._layout, self._kept, self._decode = layout, kept, decode
        self._threads = threads and cores() > 1
        self._ahead = _AHEAD if self._threads else 1
        groups = [piece.group for window in windows for piece in window.pieces]
        self._coming = deque(number for number, _ in groupby(groups))
        self._running: deque[Future[Arrays]] = deque()
        self._pool = ThreadPoolExecutor(self._ahead)
        self._last: tuple[int, Arrays] = (-1, {})

    def __enter__(self) -> WindowReader:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for decoding in self._running:  # not `cancel_futures`, which fails in a pass left open when Python ends
            decoding.cancel()
        self._pool.shutdown(wait=False)

    def read(self, window: Window) -> dict[str, Column]:
        """The columns of the next window.

        Raises:
            NotABuildError: a shard is missing or damaged.
        """
        fields, header, rows = self._layout.fields, self._layout.header, window.rows
        shards = [str(self._layout.groups[piece.group].path) for piece in window.pieces]
        columns = {field.name: column_for(field, header, rows, shards, decode=self._decode) for field in fields}
        for piece in window.pieces:
            arrays = self._group(piece.group)
            for name, column in columns.items():
                try:
                    column.add(arrays[name].slice(piece.first, piece.rows))
                except ValueError as fault:
                    raise damaged(self._layout.groups[piece.group].path, f"{fault} in column {name!r}") from None
        return columns

    def _group(self, number: int) -> Arrays:
        if self._last[0] != number:
            self._last = (-1, {})
            self._last = number, self._running.popleft().result()
            self._kept.offer(*self._last)
            self._fill()
        return self._last[1]

    def _fill(self) -> None:
        while self._coming and len(self._running) < self._ahead:
            number = self._coming.popleft()
            held = self._kept.get(number)
            if held is not None:
                there: Future[Arrays] = Future()
                there.set_result(held)
                self._running.append(there)
            else:
                group = self._layout.groups[number]
                self._running.append(self._pool.submit(read_group, group, self._layout.fields, threads=self._threads))
