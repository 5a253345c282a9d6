"""Exact areas of the values of a label map inside grid cells: the hot kernels of masks with one value per pixel.

A pixel row is taken run by run of equal values, weighted with the part of it that lies in the row of cells. A run adds
to the two cells its ends are in, and marks where the cells it covers from side to side begin and end: these are added
up once for a row of cells. Areas are float64 and in square source pixels; only the final score is rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.coverage import FOREGROUND, IGNORED, cell_edges
from tokenlabels.kernel import kernel

_ABSENT = -1
_EVERY_BYTE = np.uint64(0x0101010101010101)

_TIE = 1e-9
"""Shares of a cell that differ by less are alike: fractional edges are rounded."""


@kernel
def map_cell_shares(
    values: NDArray[Any],
    words: NDArray[np.uint64],
    roles: NDArray[np.uint8],
    categories: NDArray[np.uint16],
    category_count: int,
    seen: NDArray[np.bool_],
    y_axis: NDArray[np.int64],
    x_axis: NDArray[np.int64],
    rows: int,
    cols: int,
    scores: NDArray[np.float32],
    ignored: NDArray[np.bool_],
    majority: NDArray[np.uint16],
    majority_share: NDArray[np.float32],
) -> None:
    """`pixel-ratio` and majority categories of one image on one grid.

    Args:
        values: uint8 or uint16 (height, width), C-contiguous, below v.
        words: uint64, the same memory eight values at a time, see `words_of`.
        roles: uint8 (v,), `SKIP`, `FOREGROUND` or `IGNORED`: what the pixels of a value do.
        categories: uint16 (v,), category of a value, `NO_CATEGORY` where it is void.
        category_count: size of the category table; 0 where majorities are not wanted.
        seen: bool (v,), written: the value occurs.
        y_axis: int64 (3,), see `grid.GridAxes`.
        x_axis: int64 (3,).
        rows: of the grid.
        cols: of the grid.
        scores: float32 (rows * cols,), written: share of each cell that is foreground.
        ignored: bool (rows * cols,), written: more than half of the cell is `IGNORED`.
        majority: uint16 (rows * cols,), written where wanted: the category of the largest area in the cell, the first
            in the table of several; `NO_CATEGORY` where more than half of the cell is void, or none has any area.
        majority_share: float32 (rows * cols,), written where wanted: its share of the cell, 0 for `NO_CATEGORY`.
    """
    y_edges, x_edges = cell_edges(y_axis, rows), cell_edges(x_axis, cols)
    place = np.full(len(roles), _ABSENT, np.int32)  # where a value that occurs has its line in `area`
    occurring = np.empty(len(roles), np.int32)
    area = np.empty((len(roles), cols), np.float64)
    covering = np.empty((len(roles), cols + 1), np.float64)
    col_of = _cells_of_pixels(x_edges, values.shape[1])
    by_category = np.zeros(category_count, np.float64)
    used = 0
    for row in range(rows):
        top, bottom = y_edges[row], y_edges[row + 1]
        used = _add_pixel_rows(values, words, top, bottom, x_edges, col_of, place, occurring, used, area, covering)
        _add_covered(covering, x_edges, used, area)
        for col in range(cols):
            cell = (bottom - top) * (x_edges[col + 1] - x_edges[col])
            index = row * cols + col
            foreground, ignore = 0.0, 0.0
            for k in range(used):
                role = roles[occurring[k]]
                if role == FOREGROUND:
                    foreground += area[k, col]
                elif role == IGNORED:
                    ignore += area[k, col]
            scores[index] = np.float32(min(foreground / cell, 1.0))
            ignored[index] = np.float32(ignore / cell) > np.float32(0.5)
            if category_count:
                _write_majority(
                    area[:used, col], occurring, used, categories, cell, by_category, index, majority, majority_share
                )
        area[:used] = 0
    for k in range(used):
        seen[occurring[k]] = True


@kernel
def _cells_of_pixels(edges: NDArray[np.float64], count: int) -> NDArray[np.int32]:
    """int32 (count + 1,): the last cell that begins at or before each pixel edge."""
    cells = np.empty(count + 1, np.int32)
    cell = 0
    for pixel in range(count + 1):
        while cell < len(edges) - 2 and edges[cell + 1] <= pixel:
            cell += 1
        cells[pixel] = cell
    return cells


@kernel
def _add_pixel_rows(
    values: NDArray[Any],
    words: NDArray[np.uint64],
    top: float,
    bottom: float,
    x_edges: NDArray[np.float64],
    col_of: NDArray[np.int32],
    place: NDArray[np.int32],
    occurring: NDArray[np.int32],
    used: int,
    area: NDArray[np.float64],
    covering: NDArray[np.float64],
) -> int:
    """Add the rows of pixels between `top` and `bottom` to `area` (v, cols) and `covering` (v, cols + 1).

    Returns:
        How many values have occurred by now.
    """
    height, width = values.shape
    for y in range(max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), height)):
        weight = min(bottom, y + 1.0) - max(top, np.float64(y))
        start = 0
        while start < width and weight > 0:
            value = values[y, start]
            stop = _end_of_run(values, words, y, start)
            if place[value] == _ABSENT:
                place[value] = used
                occurring[used] = value
                area[used], covering[used] = 0, 0
                used += 1
            k = place[value]
            first, last = col_of[start], col_of[stop]
            if first == last:
                area[k, first] += weight * (stop - start)
            else:
                area[k, first] += weight * (x_edges[first + 1] - start)
                area[k, last] += weight * (stop - x_edges[last])
                covering[k, first + 1] += weight
                covering[k, last] -= weight
            start = stop
    return used


@kernel
def _end_of_run(values: NDArray[Any], words: NDArray[np.uint64], y: int, start: int) -> int:
    """Where the run of equal values that begins at (y, start) ends; eight pixels at a time where there are words."""
    width = values.shape[1]
    value = values[y, start]
    stop = start + 1
    if len(words):
        while stop < width and (y * width + stop) % 8 and values[y, stop] == value:
            stop += 1
        if (y * width + stop) % 8 == 0:
            pattern = np.uint64(value) * _EVERY_BYTE
            word = (y * width + stop) // 8
            while stop + 32 <= width and not (
                (words[word] ^ pattern)
                | (words[word + 1] ^ pattern)
                | (words[word + 2] ^ pattern)
                | (words[word + 3] ^ pattern)
            ):
                stop += 32
                word += 4
            while stop + 8 <= width and words[word] == pattern:
                stop += 8
                word += 1
    while stop < width and values[y, stop] == value:
        stop += 1
    return stop


def words_of(values: NDArray[Any]) -> NDArray[np.uint64]:
    """The memory of uint8 values eight at a time, without a rest; nothing for other values."""
    if values.dtype != np.uint8:
        return np.zeros(0, np.uint64)
    flat = values.reshape(-1)
    return flat[: flat.size // 8 * 8].view(np.uint64)


@kernel
def _add_covered(
    covering: NDArray[np.float64], x_edges: NDArray[np.float64], used: int, area: NDArray[np.float64]
) -> None:
    """Add the cells that runs cover from side to side to `area` (v, cols), and clear `covering`."""
    for k in range(used):
        lines = 0.0
        for col in range(area.shape[1]):
            lines += covering[k, col]
            area[k, col] += lines * (x_edges[col + 1] - x_edges[col])
        covering[k] = 0


@kernel
def _write_majority(
    area: NDArray[np.float64],
    occurring: NDArray[np.int32],
    used: int,
    categories: NDArray[np.uint16],
    cell: float,
    by_category: NDArray[np.float64],
    index: int,
    majority: NDArray[np.uint16],
    majority_share: NDArray[np.float32],
) -> None:
    """The category of the largest area in one cell; `by_category` is scratch, all zeros before and after."""
    void = 0.0
    for k in range(used):
        category = categories[occurring[k]]
        if category == NO_CATEGORY:
            void += area[k]
        else:
            by_category[category] += area[k]
    best, largest = NO_CATEGORY, 0.0
    for k in range(used):
        category = categories[occurring[k]]
        if category != NO_CATEGORY:
            size = by_category[category]
            if size > largest + _TIE * cell or (size > 0 and size > largest - _TIE * cell and category < best):
                best, largest = category, size
    for k in range(used):
        category = categories[occurring[k]]
        if category != NO_CATEGORY:
            by_category[category] = 0
    if np.float32(void / cell) > np.float32(0.5):
        best, largest = NO_CATEGORY, 0.0
    majority[index] = best
    majority_share[index] = np.float32(min(largest / cell, 1.0))


@kernel
def segments_of_colours(
    colours: NDArray[np.uint8], ids: NDArray[np.int64], order: NDArray[np.int64], values: NDArray[np.uint16]
) -> int:
    """Colours of a panoptic PNG -> numbers of segments.

    Format: https://cocodataset.org/#format-data, panoptic: id = R + 256 G + 65536 B.

    Args:
        colours: uint8 (height, width, 3).
        ids: int64 (s,), ids of the segments, ascending.
        order: int64 (s,), number of the segment with each of these ids.
        values: uint16 (height, width), written: 1 + number of the segment; 0 where the colour is black.

    Returns:
        An id that is not among them, or 0 where there is none.
    """
    unknown = np.int64(0)
    last_id, last_value = np.int64(0), np.int64(0)
    for y in range(colours.shape[0]):
        for x in range(colours.shape[1]):
            found = np.int64(colours[y, x, 0]) | np.int64(colours[y, x, 1]) << 8 | np.int64(colours[y, x, 2]) << 16
            if found != last_id:
                last_id = found
                last_value = np.int64(0)
                if found:
                    at = np.searchsorted(ids, found)
                    if at < len(ids) and ids[at] == found:
                        last_value = order[at] + 1
                    else:
                        unknown = found
            values[y, x] = last_value
    return int(unknown)
