"""The order of rows: of row groups, ranks, DataLoader workers, windows, and of the rows within a window.

An epoch is a *sequence*: the row groups of a build in random order, end to end. Each rank has one stretch of it, each
DataLoader worker one stretch of its rank's, so that a row group is read by one worker, or by two where a border cuts
it. A stretch is cut into windows of a few row groups, and the rows of a window are mixed completely.

All is arithmetic on the numbers of rows: nothing is read, and any place is reached without going through those before.
Random numbers are the raw ones of PCG64, which numpy promises never to change; they are sorted, for `permutation` has
no such promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES = 256 << 20
"""Decoded bytes of a window; a row group that has more is a window of its own."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `first` .. `first + rows - 1` of row group number `group`."""

    group: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows `start` .. `start + rows - 1` of a sequence."""

    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that are in memory together: pieces end to end, from place `start` of the sequence on."""

    start: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many."""
        return sum(piece.rows for piece in self.pieces)


def shuffled(count: int, *seeds: int) -> NDArray[np.int64]:
    """int64 (count,): 0 .. count - 1 in an order that depends on the seeds alone."""
    return np.argsort(np.random.PCG64(seeds).random_raw(count), kind="stable")


def sequence(counts: Sequence[int], seeds: tuple[int, int] | None) -> list[Piece]:
    """Row groups end to end.

    Args:
        counts: rows of each row group.
        seeds: (seed, epoch), or None for their own order. The first row group then begins at a random row and its
            first rows come last, so that what ranks leave out at the end is something else in every epoch.
    """
    if seeds is None or not counts:
        return [Piece(group, 0, rows) for group, rows in enumerate(counts) if rows]
    order = [group for group in shuffled(len(counts), *seeds, 0).tolist() if counts[group]]
    if not order:
        return []
    first = int(np.random.PCG64((*seeds, 1)).random_raw() % counts[order[0]])
    head = [Piece(order[0], first, counts[order[0]] - first)]
    tail = [Piece(order[0], 0, first)] if first else []
    return head + [Piece(group, 0, counts[group]) for group in order[1:]] + tail


def of_rank(total: int, rank: int, world_size: int, *, drop_remainder: bool) -> Stretch:
    """What one rank has of `total` rows.

    With `drop_remainder` every rank has the same number and up to `world_size - 1` rows at the end are left out; else
    the first ranks have one more.
    """
    each, over = divmod(total, world_size)
    if drop_remainder:
        return Stretch(rank * each, each)
    return Stretch(rank * each + min(rank, over), each + (rank < over))


def of_worker(whole: Stretch, worker: int, workers: int, batch: int) -> Stretch:
    """What one DataLoader worker has of a rank's rows.

    One stretch of whole batches, but for the last of the rank. A DataLoader asks its workers in turn, so that what
    worker k gives are the batches k, k + workers, ... that come out; the smaller one is with the worker asked last.
    """
    batches = -(-whole.rows // batch)
    each, over = divmod(batches, workers)
    last = (batches - 1) % workers
    missing = batches * batch - whole.rows
    before = worker * each + min(worker, over)
    start = before * batch - (missing if last < worker else 0)
    return Stretch(whole.start + start, (each + (worker < over)) * batch - (missing if worker == last else 0))


def windows(
    pieces: Sequence[Piece], stretch: Stretch, row_bytes: Sequence[float], batch: int, most: int
) -> Iterator[Window]:
    """Cut a stretch into windows of whole batches; the last batch of the stretch may be smaller.

    Args:
        pieces: the sequence.
        stretch: of it.
        row_bytes: decoded bytes of a row, of each row group.
        batch: rows of a batch.
        most: rows of a window; it has more where one row group, or one batch, has.
    """
    held: list[Piece] = []
    start, rows, size = stretch.start, 0, 0.0
    for piece in _within(pieces, stretch):
        more = piece.rows * row_bytes[piece.group]
        if rows >= batch and (rows + piece.rows > most or size + more > WINDOW_BYTES):
            whole, left = _split(held, rows - rows % batch)
            yield Window(start, tuple(whole))
            start += rows - rows % batch
            held, rows, size = left, rows % batch, sum(part.rows * row_bytes[part.group] for part in left)
        held.append(piece)
        rows, size = rows + piece.rows, size + more
    if held:
        yield Window(start, tuple(held))


def _within(pieces: Sequence[Piece], stretch: Stretch) -> Iterator[Piece]:
    """The parts of pieces that lie in a stretch."""
    place, end = 0, stretch.start + stretch.rows
    for piece in pieces:
        first, last = max(place, stretch.start), min(place + piece.rows, end)
        if first < last:
            yield Piece(piece.group, piece.first + first - place, last - first)
        place += piece.rows


def _split(pieces: Sequence[Piece], rows: int) -> tuple[list[Piece], list[Piece]]:
    """The first rows of some pieces, and the rest."""
    total = sum(piece.rows for piece in pieces)
    return list(_within(pieces, Stretch(0, rows))), list(_within(pieces, Stretch(rows, total - rows)))
