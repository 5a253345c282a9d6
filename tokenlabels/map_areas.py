"""Exact areas of the values of a label map inside grid cells: the hot kernels of masks with one value per pixel.

A pixel row is taken run by run of equal values; a run is shared out over the columns of cells it touches, weighted with
the part of the pixel row that lies in the row of cells. Areas are float64 and in square source pixels; only the final
score is rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.coverage import FOREGROUND, IGNORED, cell_edges
from tokenlabels.kernel import kernel

FAULT = 3
"""Role of a value without a meaning; `coverage` has the others."""

_ABSENT = -1

_TIE = 1e-9
"""Shares of a cell that differ by less are alike: fractional edges are rounded."""


@kernel
def map_cell_shares(
    values: NDArray[Any],
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
        values: uint8 or uint16 (height, width), below v.
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
    height = values.shape[0]
    y_edges, x_edges = cell_edges(y_axis, rows), cell_edges(x_axis, cols)
    place = np.full(len(roles), _ABSENT, np.int32)  # where a value that occurs has its column in `area`
    occurring = np.empty(len(roles), np.int32)
    area = np.zeros((cols, len(roles)), np.float64)
    by_category = np.zeros(category_count, np.float64)
    used = 0
    for row in range(rows):
        top, bottom = y_edges[row], y_edges[row + 1]
        for y in range(max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), height)):
            weight = min(bottom, y + 1.0) - max(top, np.float64(y))
            if weight > 0:
                used = _add_pixel_row(values[y], weight, x_edges, place, occurring, used, area)
        for col in range(cols):
            cell = (bottom - top) * (x_edges[col + 1] - x_edges[col])
            index = row * cols + col
            foreground, ignore = 0.0, 0.0
            for k in range(used):
                role = roles[occurring[k]]
                if role == FOREGROUND:
                    foreground += area[col, k]
                elif role == IGNORED:
                    ignore += area[col, k]
            scores[index] = np.float32(min(foreground / cell, 1.0))
            ignored[index] = np.float32(ignore / cell) > np.float32(0.5)
            if category_count:
                _write_majority(
                    area[col], occurring, used, categories, cell, by_category, index, majority, majority_share
                )
            area[col, :used] = 0
    for k in range(used):
        seen[occurring[k]] = True


@kernel
def _add_pixel_row(
    pixels: NDArray[Any],
    weight: float,
    x_edges: NDArray[np.float64],
    place: NDArray[np.int32],
    occurring: NDArray[np.int32],
    used: int,
    area: NDArray[np.float64],
) -> int:
    """Add one row of pixels to `area` (cols, v); returns how many values have occurred by now."""
    width, cols = len(pixels), len(x_edges) - 1
    col, start = 0, 0
    while start < width:
        value = pixels[start]
        stop = start + 1
        while stop < width and pixels[stop] == value:
            stop += 1
        if place[value] == _ABSENT:
            place[value] = used
            occurring[used] = value
            used += 1
        k = place[value]
        while col < cols - 1 and x_edges[col + 1] <= start:
            col += 1
        touched = col
        while touched < cols and x_edges[touched] < stop:
            wide = min(np.float64(stop), x_edges[touched + 1]) - max(np.float64(start), x_edges[touched])
            if wide > 0:
                area[touched, k] += weight * wide
            touched += 1
        start = stop
    return used


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
