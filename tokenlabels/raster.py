"""Instance masks as runs of pixels down the columns of an image, without ever painting the image.

The pixel set is the one pycocotools' `frPoly` defines, bit for bit. That definition: vertices are scaled by 5 and
rounded to an integer lattice (truncation of `5 v + 0.5`); every edge is walked along its longer side in unit steps,
the other coordinate being rounded; wherever the walk passes between lattice columns 5c + 2 and 5c + 3 the pixel column
c has a crossing at `ceil((min(v) - 2) / 5)`, clamped to the image, v being the lattice rows before and after the step.
Between the first and second crossing of a column, the third and fourth, ... the pixels belong to the mask.

pycocotools walks all lattice points (25 per pixel of outline length), sorts, and encodes a string. Here each edge
yields its crossings directly, one per pixel column it passes, with the same floating-point expressions, so that
rounding agrees as well. Several rings and several masks are united by merging the runs of each column.

Column runs of one image live in three arrays: `head` int32 (width,) holds the first node of each column or -1,
`node_run` int64 (capacity,) holds `top << 32 | bottom` (rows [top, bottom)), `node_next` int32 (capacity,) the next
node of the same column. Arrays that run full are replaced by larger ones, which is why functions return them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenlabels.kernel import kernel

Nodes: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32], int]

LATTICE = 5
"""Lattice points per pixel in pycocotools' polygon definition."""

_LOW_32_BITS = 0xFFFFFFFF


@kernel
def grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """A copy of `array` (1-D) with room for at least `size` items, at least doubled; the new items are unset."""
    bigger = np.empty(max(size, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger


@kernel
def push_run(
    node_run: NDArray[np.int64],
    node_next: NDArray[np.int32],
    used: int,
    head: NDArray[np.int32],
    column: int,
    top: int,
    bottom: int,
) -> Nodes:
    """Add rows [top, bottom) of a column."""
    if used == len(node_run):
        node_run = grown(node_run, used + 1)
        node_next = grown(node_next, used + 1)
    node_run[used] = (np.int64(top) << 32) | np.int64(bottom)
    node_next[used] = head[column]
    head[column] = used
    return node_run, node_next, used + 1


@kernel
def ring_crossings(
    xy: NDArray[np.float64], start: int, stop: int, width: int, height: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Where the outline of one ring crosses the centre lattice of each pixel column.

    Args:
        xy: float64, x and y in turn, source pixels; the ring is `xy[start:stop]`, closed implicitly.
        start: first index.
        stop: one past the last index.
        width: pixel columns of the image.
        height: pixel rows of the image.

    Returns:
        int32 columns in [0, width), int32 rows in [0, height], and how many entries of the two are used. Every column
        occurs an even number of times.
    """
    points = (stop - start) // 2
    total = count_crossings(xy, start, stop, width)
    columns = np.empty(total, np.int32)
    rows = np.empty(total, np.int32)
    used = 0
    for point in range(points):
        following = point + 1 if point + 1 < points else 0
        x_from, y_from, x_to, y_to = _lattice_edge(xy, start, point, following)
        dx, dy = abs(x_to - x_from), abs(y_to - y_from)
        first = max((min(x_from, x_to) + 2) // LATTICE, 0)
        last = min((max(x_from, x_to) - 3) // LATTICE, width - 1)
        if first > last:
            continue
        if (dx >= dy and x_from > x_to) or (dx < dy and y_from > y_to):
            x_from, y_from, x_to, y_to = x_to, y_to, x_from, y_from
        if dx >= dy:
            slope = (y_to - y_from) / dx
            for column in range(first, last + 1):
                step = LATTICE * column + 2 - x_from
                before = int(y_from + slope * step + 0.5)
                after = int(y_from + slope * (step + 1) + 0.5)
                columns[used] = column
                rows[used] = _pixel_row(min(before, after), height)
                used += 1
        else:
            slope = (x_to - x_from) / dy
            for column in range(first, last + 1):
                columns[used] = column
                rows[used] = _pixel_row(y_from + _step_before(x_from, slope, dy, column), height)
                used += 1
    return columns, rows, used


@kernel
def count_crossings(xy: NDArray[np.float64], start: int, stop: int, width: int) -> int:
    """How many crossings `ring_crossings` will return, from the vertices alone."""
    points = (stop - start) // 2
    total = 0
    for point in range(points):
        following = point + 1 if point + 1 < points else 0
        x_from, _, x_to, _ = _lattice_edge(xy, start, point, following)
        first = max((min(x_from, x_to) + 2) // LATTICE, 0)
        last = min((max(x_from, x_to) - 3) // LATTICE, width - 1)
        total += max(last - first + 1, 0)
    return total


@kernel
def _lattice_edge(xy: NDArray[np.float64], start: int, point: int, following: int) -> tuple[int, int, int, int]:
    """x and y of two vertices on the lattice; the conversion truncates towards zero, as C does."""
    return (
        int(LATTICE * xy[start + 2 * point] + 0.5),
        int(LATTICE * xy[start + 2 * point + 1] + 0.5),
        int(LATTICE * xy[start + 2 * following] + 0.5),
        int(LATTICE * xy[start + 2 * following + 1] + 0.5),
    )


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
    """ceil((v - 2) / 5), clamped to [0, height]."""
    return min(max((lattice_row + 2) // LATTICE, 0), height)


@kernel
def add_ring(
    xy: NDArray[np.float64],
    start: int,
    stop: int,
    height: int,
    head: NDArray[np.int32],
    ring_head: NDArray[np.int32],
    node_run: NDArray[np.int64],
    node_next: NDArray[np.int32],
    used: int,
) -> Nodes:
    """Add the pixels of one polygon ring to the runs of an image.

    Args:
        xy: float64, x and y in turn, source pixels; the ring is `xy[start:stop]`.
        start: first index.
        stop: one past the last index.
        height: pixel rows of the image.
        head: int32 (width,), see the module docstring.
        ring_head: int32 (width,), scratch, all -1 on entry and on return.
        node_run: see the module docstring.
        node_next: see the module docstring.
        used: nodes in use.

    Returns:
        node_run, node_next, used.
    """
    columns, rows, total = ring_crossings(xy, start, stop, len(head), height)
    if total == 0:
        return node_run, node_next, used
    following = np.empty(total, np.int32)
    first, last = columns[0], columns[0]
    for index in range(total):
        column = columns[index]
        following[index] = ring_head[column]
        ring_head[column] = index
        first, last = min(first, column), max(last, column)
    stack = np.empty(8, np.int32)
    for column in range(first, last + 1):
        count = 0
        index = ring_head[column]
        ring_head[column] = -1
        while index >= 0:
            if count == len(stack):
                stack = grown(stack, count + 1)
            stack[count] = rows[index]
            count += 1
            index = following[index]
        _sort(stack, count)
        for pair in range(0, count - 1, 2):
            if stack[pair] < stack[pair + 1]:
                node_run, node_next, used = push_run(
                    node_run, node_next, used, head, column, stack[pair], stack[pair + 1]
                )
    return node_run, node_next, used


@kernel
def add_rle(
    counts: NDArray[np.int64],
    start: int,
    stop: int,
    height: int,
    head: NDArray[np.int32],
    node_run: NDArray[np.int64],
    node_next: NDArray[np.int32],
    used: int,
) -> Nodes:
    """Add the pixels of a run-length mask `counts[start:stop]` (column-major, background run first) to an image."""
    position = 0
    for index in range(start, stop):
        end = position + counts[index]
        if (index - start) % 2 == 1:
            while position < end:
                column, top = position // height, position % height
                bottom = min(height, top + end - position)
                node_run, node_next, used = push_run(node_run, node_next, used, head, column, top, bottom)
                position += bottom - top
        position = end
    return node_run, node_next, used


@kernel
def merged_runs(
    head: NDArray[np.int32], node_run: NDArray[np.int64], node_next: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int]:
    """Unite the runs of every column; empties `head`.

    Returns:
        int32 column, top and bottom of disjoint runs, sorted by column and then by row, and how many are used.
    """
    capacity = 256
    columns, tops, bottoms = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    used = 0
    stack = np.empty(8, np.int64)
    for column in range(len(head)):
        count = 0
        node = head[column]
        if node < 0:
            continue
        head[column] = -1
        while node >= 0:
            if count == len(stack):
                stack = grown(stack, count + 1)
            stack[count] = node_run[node]
            count += 1
            node = node_next[node]
        _sort(stack, count)
        if used + count > len(columns):
            columns, tops, bottoms = (
                grown(columns, used + count),
                grown(tops, used + count),
                grown(bottoms, used + count),
            )
        top, bottom = stack[0] >> 32, stack[0] & _LOW_32_BITS
        for index in range(1, count):
            next_top, next_bottom = stack[index] >> 32, stack[index] & _LOW_32_BITS
            if next_top <= bottom:
                bottom = max(bottom, next_bottom)
            else:
                columns[used], tops[used], bottoms[used] = column, top, bottom
                used += 1
                top, bottom = next_top, next_bottom
        columns[used], tops[used], bottoms[used] = column, top, bottom
        used += 1
    return columns, tops, bottoms, used


@kernel
def _sort(values: NDArray[Any], count: int) -> None:
    """Sort values[:count] in place: insertion for the usual handful, numpy's sort beyond."""
    if count > 32:
        values[:count] = np.sort(values[:count])
        return
    for index in range(1, count):
        value = values[index]
        slot = index - 1
        while slot >= 0 and values[slot] > value:
            values[slot + 1] = values[slot]
            slot -= 1
        values[slot + 1] = value
