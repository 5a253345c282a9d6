"""Millions of short texts in two arrays: a Python string takes some fifty bytes more than its letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_PIECE = 65_536


class Texts(Sequence[str]):
    """n texts.

    Args:
        pool: uint8, their UTF-8 bytes end to end.
        stops: int64 (n,), where each ends in `pool`.
    """

    __slots__ = ("_pool", "_stops")

    def __init__(self, pool: NDArray[np.uint8], stops: NDArray[np.int64]) -> None:
        self._pool = pool
        self._stops = stops

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack texts.

        Raises:
            UnicodeEncodeError: one of them is no UTF-8.
        """
        pool, stops = bytearray(), []
        for text in texts:
            pool += text.encode()
            stops.append(len(pool))
        return cls(np.frombuffer(pool, np.uint8), np.array(stops, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The texts of all parts."""
        before = np.cumsum([0, *(len(part._pool) for part in parts)])
        stops = [part._stops + shift for part, shift in zip(parts, before[:-1].tolist(), strict=True)]
        empty = np.zeros(0, np.uint8), np.zeros(0, np.int64)
        return cls(
            np.concatenate([empty[0], *(part._pool for part in parts)]),
            np.concatenate([empty[1], *stops]),
        )

    @property
    def nbytes(self) -> int:
        return self._pool.nbytes + self._stops.nbytes

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Texts: ...

    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError("texts are sliced without a step")
            first, last = self._start(start), self._start(max(start, stop))
            return Texts(self._pool[first:last].copy(), self._stops[start:stop] - first)
        place = range(len(self))[index]
        return self._pool[self._start(place) : self._stops[place]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PIECE):
            stops = self._stops[start : start + _PIECE].tolist()
            begin = first = self._start(start)
            data = self._pool[first : stops[-1]].tobytes()
            for stop in stops:
                yield data[begin - first : stop - first].decode()
                begin = stop

    def keep(self, kept: NDArray[np.bool_]) -> Texts:
        """The texts where `kept` bool (n,) is true."""
        lengths = np.diff(self._stops, prepend=0)
        return Texts(self._pool[np.repeat(kept, lengths)], np.cumsum(lengths[kept]))

    def _start(self, place: int) -> int:
        return int(self._stops[place - 1]) if place else 0
