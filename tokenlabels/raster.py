"""Instance masks as runs of pixels down the columns of an image, without ever painting the image.

The pixel set is the one pycocotools' `frPoly` defines, bit for bit. That definition: vertices are scaled by 5 and
rounded to an integer lattice (truncation of `5 v + 0.5`); every edge is walked along its longer side in unit steps,
the other coordinate being rounded; wherever the walk passes between lattice columns 5c + 2 and 5c + 3 the pixel column
c has a crossing at `ceil((min(v) - 2) / 5)`, clamped to the image, v being the lattice rows before and after the step.
Between the first and second crossing of a column, the third and fourth, ... the pixels belong to the mask.

pycocotools walks all lattice points (25 per pixel of outline length), sorts, and encodes a string. Here each edge
yields its crossings directly, one per pixel column it passes, with the same floating-point expressions, so that
rounding agrees as well. How many crossings a column gets follows from the vertices, so each is written to its place at
once. Several rings and several masks are united by merging the runs of each column.

A run is a pixel column and `top << 32 | bottom`, rows [top, bottom). The callers make room for runs beforehand:
replacing an array inside these loops would cost more than all the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels.kernel import kernel

LATTICE = 5
"""Lattice points per pixel in pycocotools' polygon definition."""

_LOW_32_BITS = 0xFFFFFFFF


@kernel
def grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """A copy of `array` (1-D) with room for at least `size` items, at least doubled; the new items are unset."""
    bigger = np.empty(max(size, 2 * len(array)), array.dtype)
    for index in range(len(array)):  # an assignment to a slice takes two seconds to compile
        bigger[index] = array[index]
    return bigger


@kernel
def count_crossings(xy: NDArray[np.float64], start: int, stop: int, width: int) -> int:
    """How many times the outline of one ring crosses the centres of pixel columns; it has half as many runs at most.

    Args:
        xy: float64, x and y in turn, source pixels; the ring is `xy[start:stop]`, closed implicitly.
        start: first index.
        stop: one past the last index.
        width: pixel columns of the image.
    """
    total = 0
    x_from = _lattice(xy[stop - 2])
    for index in range(start, stop, 2):
        x_to = _lattice(xy[index])
        first, last = _columns_between(x_from, x_to, width)
        total += max(last - first + 1, 0)
        x_from = x_to
    return total


@kernel
def add_ring(
    xy: NDArray[np.float64],
    start: int,
    stop: int,
    width: int,
    height: int,
    columns: NDArray[np.int32],
    runs: NDArray[np.int64],
    used: int,
) -> int:
    """Append the runs of one polygon ring.

    Args:
        xy: as in `count_crossings`.
        start: first index.
        stop: one past the last index.
        width: pixel columns of the image.
        height: pixel rows of the image.
        columns: int32, room for half of `count_crossings` more entries.
        runs: int64, likewise.
        used: entries in use.

    Returns:
        Entries in use afterwards.
    """
    points = (stop - start) // 2
    lattice = np.empty((points + 1, 2), np.int64)
    low: Any = np.int64(width)
    high: Any = np.int64(-1)
    for point in range(points):
        lattice[point, 0] = _lattice(xy[start + 2 * point])
        lattice[point, 1] = _lattice(xy[start + 2 * point + 1])
    lattice[points, 0], lattice[points, 1] = lattice[0, 0], lattice[0, 1]
    for point in range(points):
        first, last = _columns_between(lattice[point, 0], lattice[point + 1, 0], width)
        if first <= last:
            low, high = min(low, first), max(high, last)
    if high < low:
        return used

    # Crossings per column by differences, then where each column's crossings begin and, while filling, end.
    begins = np.zeros(high - low + 2, np.int64)
    for point in range(points):
        first, last = _columns_between(lattice[point, 0], lattice[point + 1, 0], width)
        if first <= last:
            begins[first - low] += 1
            begins[last + 1 - low] -= 1
    in_column, total = np.int64(0), np.int64(0)
    for offset in range(len(begins)):
        in_column += begins[offset]
        begins[offset] = total
        total += in_column
    ends = begins.copy()
    rows = np.empty(total, np.int32)
    for point in range(points):
        _edge_crossings(lattice, point, width, height, low, ends, rows)

    for offset in range(high - low + 1):
        begin, end = begins[offset], ends[offset]
        if end - begin > 2:
            _sort(rows, begin, end)
        for pair in range(begin, end - 1, 2):
            top, bottom = np.int64(min(rows[pair], rows[pair + 1])), np.int64(max(rows[pair], rows[pair + 1]))
            columns[used] = low + offset
            runs[used] = (top << 32) | bottom
            used += 1 if top < bottom else 0  # an empty one is overwritten by the next
    return used


@kernel
def _lattice(coordinate: float) -> int:
    """A coordinate on the lattice; the conversion truncates towards zero, as C does."""
    return int(LATTICE * coordinate + 0.5)


@kernel
def _columns_between(x_from: int, x_to: int, width: int) -> tuple[int, int]:
    """First and last pixel column whose centre an edge between two lattice columns crosses; first > last for none."""
    return (
        max((min(x_from, x_to) + 2) // LATTICE, 0),
        min((max(x_from, x_to) - 3) // LATTICE, width - 1),
    )


@kernel
def _edge_crossings(
    lattice: NDArray[np.int64],
    point: int,
    width: int,
    height: int,
    low: int,
    ends: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> None:
    """Write the pixel row of every crossing of one edge behind those its column has already."""
    x_from, y_from = lattice[point, 0], lattice[point, 1]
    x_to, y_to = lattice[point + 1, 0], lattice[point + 1, 1]
    first, last = _columns_between(x_from, x_to, width)
    if first > last:
        return
    dx, dy = abs(x_to - x_from), abs(y_to - y_from)
    if (dx >= dy and x_from > x_to) or (dx < dy and y_from > y_to):
        x_from, y_from, x_to, y_to = x_to, y_to, x_from, y_from
    if dx >= dy:
        slope = (y_to - y_from) / dx
        for column in range(first, last + 1):
            step = LATTICE * column + 2 - x_from
            before = int(y_from + slope * step + 0.5)
            after = int(y_from + slope * (step + 1) + 0.5)
            rows[ends[column - low]] = _pixel_row(min(before, after), height)
            ends[column - low] += 1
    else:
        slope = (x_to - x_from) / dy
        for column in range(first, last + 1):
            rows[ends[column - low]] = _pixel_row(y_from + _step_before(x_from, slope, dy, column), height)
            ends[column - low] += 1


@kernel
def _step_before(x_from: int, slope: float, steps: int, column: int) -> int:
    """On a steep edge walked down in unit steps: the step just before it passes between 5c + 2 and 5c + 3."""
    right = LATTICE * column + 3
    guess = int((right - 0.5 - x_from) / slope)
    step = min(max(guess, 0), steps)
    if slope > 0:  # the first step at or beyond `right`
        while step > 0 and int(x_from + slope * (step - 1) + 0.5) >= right:
            step -= 1
        while step < steps and int(x_from + slope * step + 0.5) < right:
            step += 1
    else:  # the first step before `right`
        while step > 0 and int(x_from + slope * (step - 1) + 0.5) < right:
            step -= 1
        while step < steps and int(x_from + slope * step + 0.5) >= right:
            step += 1
    return step - 1


@kernel
def _pixel_row(lattice_row: int, height: int) -> int:
    """ceil((v - 2) / 5), clamped to [0, height]; the division is one of unsigned numbers, which is cheaper."""
    row = np.int64(np.uint64(max(lattice_row + 2, 0)) // np.uint64(LATTICE))
    return int(min(row, np.int64(height)))


@kernel
def count_rle_runs(counts: NDArray[np.int64], start: int, stop: int, height: int) -> int:
    """How many runs `add_rle` appends at most: a stretch of the mask is cut at the end of every column."""
    total = 0
    for index in range(start + 1, stop, 2):
        total += counts[index] // height + 2
    return total


@kernel
def add_rle(
    counts: NDArray[np.int64],
    start: int,
    stop: int,
    height: int,
    columns: NDArray[np.int32],
    runs: NDArray[np.int64],
    used: int,
) -> int:
    """Append the runs of a run-length mask `counts[start:stop]` (column-major, background first).

    `columns` and `runs` need room for `count_rle_runs` more entries than the `used` ones; returns how many are in use
    afterwards.
    """
    position = 0
    for index in range(start, stop):
        end = position + counts[index]
        if (index - start) % 2 == 1:
            while position < end:
                column, top = position // height, position % height
                bottom = min(height, top + end - position)
                columns[used] = column
                runs[used] = (np.int64(top) << 32) | np.int64(bottom)
                used += 1
                position += bottom - top
        position = end
    return used


@kernel
def merge_runs(columns: NDArray[np.int32], runs: NDArray[np.int64], used: int, width: int) -> int:
    """Unite runs in place: afterwards they are disjoint and sorted by column, then by row.

    Args:
        columns: int32, pixel column of each run.
        runs: int64, `top << 32 | bottom`.
        used: entries in use.
        width: pixel columns of the image.

    Returns:
        Entries in use afterwards.
    """
    begins = np.zeros(width + 1, np.int64)
    for index in range(used):
        begins[columns[index] + 1] += 1
    for column in range(width):
        begins[column + 1] += begins[column]
    ends = begins[:width].copy()
    ordered = np.empty(used, np.int64)
    for index in range(used):
        column = columns[index]
        ordered[ends[column]] = runs[index]
        ends[column] += 1
    merged = 0
    for column in range(width):
        begin, end = begins[column], ends[column]
        if begin == end:
            continue
        if end - begin > 1:
            _sort(ordered, begin, end)
        top, bottom = ordered[begin] >> 32, ordered[begin] & _LOW_32_BITS
        for index in range(begin + 1, end):
            next_top, next_bottom = ordered[index] >> 32, ordered[index] & _LOW_32_BITS
            if next_top <= bottom:
                bottom = max(bottom, next_bottom)
            else:
                columns[merged] = column
                runs[merged] = (top << 32) | bottom
                merged += 1
                top, bottom = next_top, next_bottom
        columns[merged] = column
        runs[merged] = (top << 32) | bottom
        merged += 1
    return merged


@kernel
def _sort(values: NDArray[Any], begin: int, end: int) -> None:
    """Sort values[begin:end] in place: insertion for the usual handful, numpy's sort beyond."""
    if end - begin > 32:
        ordered = np.sort(values[begin:end])
        for index in range(begin, end):
            values[index] = ordered[index - begin]
        return
    for index in range(begin + 1, end):
        value = values[index]
        slot = index - 1
        while slot >= begin and values[slot] > value:
            values[slot + 1] = values[slot]
            slot -= 1
        values[slot + 1] = value
