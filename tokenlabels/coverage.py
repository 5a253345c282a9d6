"""Exact areas of masks and boxes inside grid cells, for a block of images at a time: the hot kernels.

Everything here is compiled and works on flat arrays; `rules.py` prepares them. Images are numbered 0..n-1 in the block,
their annotations are `offsets[i]:offsets[i + 1]`, their cells (row-major) `cells[i]:cells[i + 1]` of the output. Areas
are float64 and in square source pixels; only the final score is rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import MASK_RINGS, MASK_TEXT
from tokenlabels.kernel import kernel
from tokenlabels.polygon_text import parse_polygons
from tokenlabels.raster import add_ring, add_rle, count_crossings, count_rle_runs, grown, merge_runs
from tokenlabels.rle_text import BRACE, parse_rle

SKIP, FOREGROUND, IGNORED = 0, 1, 2
"""What an annotation does: nothing, score its cells, or mark them as ignored."""

ROLE_OF_POLICY = {"foreground": FOREGROUND, "background": SKIP, "ignore": IGNORED}

_FIRST_ROOM = 1 << 15
"""Runs of one image that there is room for at first; photographs have hundreds."""


@kernel
def cell_edges(axis: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """float64 (count + 1,) edges in source pixels of one axis (`step, start, divisor`), see `grid.GridAxes`."""
    edges = np.empty(count + 1, np.float64)
    for index in range(count + 1):
        edges[index] = (axis[0] * index + axis[1]) / axis[2]
    return edges


@kernel
def column_runs_of_image(
    first: int,
    last: int,
    wanted: int,
    width: int,
    height: int,
    roles: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    spans: NDArray[np.int64],
    text: NDArray[np.uint8],
    numbers: NDArray[np.float64],
    counts: NDArray[np.int64],
    empty: NDArray[np.bool_],
    xy: NDArray[np.float64],
    ring_stops: NDArray[np.int64],
    columns: NDArray[np.int32],
    runs: NDArray[np.int64],
) -> int:
    """The union of the masks first..last-1 whose role is `wanted`, as disjoint sorted runs (see `raster.merge_runs`).

    Args:
        first: first mask of the image.
        last: one past its last mask.
        wanted: role.
        width: pixels.
        height: pixels.
        (from `roles` to `empty` as in `mask_cell_shares`)
        xy: float64, scratch for the longest text, see `polygon_text.parse_polygons`.
        ring_stops: int64, likewise.
        columns: int32, written: pixel column of each run.
        runs: int64, written: `top << 32 | bottom`.

    Returns:
        How many runs are written; or, where `columns` and `runs` are too small, minus the room that is needed for the
        next mask: make room and call again.
    """
    used: Any = np.int64(0)  # plain constants would each be a type to compile for
    nothing: Any = np.int64(0)
    one: Any = np.int64(1)
    for k in range(first, last):
        if roles[k] != wanted:
            continue
        start, stop = spans[k, 0], spans[k, 1]
        if kinds[k] == MASK_TEXT and text[start] != BRACE:
            rings = parse_polygons(text, start, stop, xy, ring_stops)
            after = _add_rings(xy, nothing, ring_stops, rings, nothing, width, height, columns, runs, used)
        elif kinds[k] == MASK_TEXT:
            lengths: Any = parse_rle(text, start, stop, width, height)
            after = used + count_rle_runs(lengths, nothing, len(lengths), height)
            after = (
                add_rle(lengths, nothing, len(lengths), height, columns, runs, used) if after <= len(runs) else -after
            )
        elif kinds[k] == MASK_RINGS:
            stops = _ring_stops(numbers, start, stop)
            after = _add_rings(numbers, start + 1, stops, len(stops), one, width, height, columns, runs, used)
        else:
            after = used + count_rle_runs(counts, start, stop, height)
            after = add_rle(counts, start, stop, height, columns, runs, used) if after <= len(runs) else -after
        if after < 0:
            return after
        empty[k] = used == after
        used = after
    return merge_runs(columns, runs, used, width)


@kernel
def _add_rings(
    xy: NDArray[np.float64],
    start: int,
    ring_stops: NDArray[np.int64],
    rings: int,
    gap: int,
    width: int,
    height: int,
    columns: NDArray[np.int32],
    runs: NDArray[np.int64],
    used: int,
) -> int:
    """Append the runs of several rings, `gap` numbers apart; returns minus the room that is needed if there is none."""
    needed = used
    ring_start = start
    for ring in range(rings):
        needed += count_crossings(xy, ring_start, ring_stops[ring], width) // 2
        ring_start = int(ring_stops[ring]) + gap
    if needed > len(runs):
        return -needed
    ring_start = start
    for ring in range(rings):
        used = add_ring(xy, ring_start, ring_stops[ring], width, height, columns, runs, used)
        ring_start = int(ring_stops[ring]) + gap
    return used


@kernel
def _ring_stops(numbers: NDArray[np.float64], start: int, stop: int) -> NDArray[np.int64]:
    """Where each ring of a `MASK_RINGS` mask ends; each begins one after its count."""
    stops = np.empty((stop - start) // 7 + 1, np.int64)
    rings = 0
    while start < stop:
        start += 1 + int(numbers[start])
        stops[rings] = start
        rings += 1
    return stops[:rings]


@kernel
def add_runs(
    columns: NDArray[np.int32],
    runs: NDArray[np.int64],
    used: int,
    height: int,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    area: NDArray[np.float64],
) -> None:
    """Add the area of disjoint runs, sorted by column, to `area` float64 (cols, rows).

    A pixel column that lies in one column of cells adds the two ends of a run to the cells they are in, and marks where
    the cells it covers from top to bottom begin and end: these are counted, in whole numbers, and added up once. A
    pixel column that straddles an edge is shared out cell by cell.
    """
    cols, rows = area.shape
    row_of = _rows_of_pixels(y_edges, height)
    covering = np.zeros((cols, rows + 1), np.int64)
    col = 0
    for run in range(used):
        column = columns[run]
        while col < cols - 1 and x_edges[col + 1] <= column:
            col += 1
        top, bottom = runs[run] >> 32, runs[run] & 0xFFFFFFFF
        first, last = row_of[top], row_of[bottom]
        if x_edges[col] > column or column + 1 > x_edges[col + 1]:
            _share_run(column, col, top, bottom, first, x_edges, y_edges, area)
        elif first == last:
            area[col, first] += bottom - top
        else:
            area[col, first] += y_edges[first + 1] - top
            area[col, last] += bottom - y_edges[last]
            covering[col, first + 1] += 1
            covering[col, last] -= 1
    for col in range(cols):
        lines = 0
        for row in range(rows):
            lines += covering[col, row]
            area[col, row] += lines * (y_edges[row + 1] - y_edges[row])


@kernel
def _rows_of_pixels(y_edges: NDArray[np.float64], height: int) -> NDArray[np.int32]:
    """int32 (height + 1,): the last row of cells that begins at or above each pixel edge."""
    row_of = np.empty(height + 1, np.int32)
    row = 0
    for pixel in range(height + 1):
        while row < len(y_edges) - 2 and y_edges[row + 1] <= pixel:
            row += 1
        row_of[pixel] = row
    return row_of


@kernel
def _share_run(
    column: int,
    col: int,
    top: int,
    bottom: int,
    first_row: int,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    area: NDArray[np.float64],
) -> None:
    """Add one run of a pixel column to every cell it touches, from cell column `col` and row `first_row` on."""
    cols, rows = area.shape
    while col < cols and x_edges[col] < column + 1:
        share = min(column + 1.0, x_edges[col + 1]) - max(np.float64(column), x_edges[col])
        row = first_row
        while row < rows and y_edges[row] < bottom:
            area[col, row] += share * (min(np.float64(bottom), y_edges[row + 1]) - max(np.float64(top), y_edges[row]))
            row += 1
        col += 1


@kernel
def mask_cell_shares(
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    offsets: NDArray[np.int64],
    roles: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    spans: NDArray[np.int64],
    text: NDArray[np.uint8],
    numbers: NDArray[np.float64],
    counts: NDArray[np.int64],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    y_axes: NDArray[np.int64],
    x_axes: NDArray[np.int64],
    cells: NDArray[np.int64],
    scores: NDArray[np.float32],
    ignored: NDArray[np.bool_],
    empty: NDArray[np.bool_],
) -> None:
    """`pixel-ratio` of a block of n images with m masks on G grids.

    Args:
        widths: int32 (n,), pixels.
        heights: int32 (n,), pixels.
        offsets: int64 (n + 1,), annotations of each image.
        roles: uint8 (m,), `SKIP`, `FOREGROUND` or `IGNORED`.
        kinds: uint8 (m,), `MASK_TEXT`, `MASK_RINGS` or `MASK_RLE`; it says which pool `spans` points into.
        spans: int64 (m, 2), start and stop of each mask in its pool.
        text: uint8, pool of JSON text.
        numbers: float64, pool of rings.
        counts: int64, pool of run lengths.
        rows: int64 (G, n).
        cols: int64 (G, n).
        y_axes: int64 (G, n, 3), see `grid.GridAxes`.
        x_axes: int64 (G, n, 3).
        cells: int64 (G, n), where the cells of each image start in `scores` and `ignored`.
        scores: float32, written: share of each cell covered by the union of the foreground masks.
        ignored: bool, same order, written where an image has ignored masks: their union covers more than half.
        empty: bool (m,), written: the mask holds no pixel.
    """
    longest = 0
    for k in range(len(spans)):
        if kinds[k] == MASK_TEXT:
            longest = max(longest, spans[k, 1] - spans[k, 0])
    xy, ring_stops = np.empty(longest // 2 + 1, np.float64), np.empty(longest // 12 + 1, np.int64)
    columns, runs = np.empty(_FIRST_ROOM, np.int32), np.empty(_FIRST_ROOM, np.int64)
    for image in range(len(widths)):
        first, last = offsets[image], offsets[image + 1]
        for wanted in (FOREGROUND, IGNORED):
            if not _any_role(roles, first, last, wanted):
                continue
            used = -1
            while used < 0:
                used = column_runs_of_image(
                    first,
                    last,
                    wanted,
                    widths[image],
                    heights[image],
                    roles,
                    kinds,
                    spans,
                    text,
                    numbers,
                    counts,
                    empty,
                    xy,
                    ring_stops,
                    columns,
                    runs,
                )
                if used < 0:
                    columns, runs = grown(columns, -used), grown(runs, -used)
            for grid in range(len(rows)):
                n_rows, n_cols, start = rows[grid, image], cols[grid, image], cells[grid, image]
                y_edges = cell_edges(y_axes[grid, image], n_rows)
                x_edges = cell_edges(x_axes[grid, image], n_cols)
                area = np.zeros((n_cols, n_rows), np.float64)
                add_runs(columns, runs, used, heights[image], x_edges, y_edges, area)
                if wanted == FOREGROUND:
                    _write_scores(area, x_edges, y_edges, scores, start)
                else:
                    _write_ignored(area, x_edges, y_edges, ignored, start)


@kernel
def box_cell_scores(
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    offsets: NDArray[np.int64],
    roles: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    union: bool,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    y_axes: NDArray[np.int64],
    x_axes: NDArray[np.int64],
    cells: NDArray[np.int64],
    scores: NDArray[np.float32],
    ignored: NDArray[np.bool_],
) -> None:
    """`overlap` (`union` false) or `jaccard` (`union` true) of a block of n images with m boxes on G grids.

    Args:
        boxes: float64 (m, 4), x, y, width, height in source pixels; clipped to the image here.
        union: divide by the area of patch and box together instead of by the patch.
        scores: float32, written: the largest score of any foreground box.
        (the others as in `mask_cell_shares`)
    """
    for image in range(len(widths)):
        start_k, stop_k = offsets[image], offsets[image + 1]
        has_ignored = _any_role(roles, start_k, stop_k, IGNORED)
        for grid in range(len(rows)):
            n_rows, n_cols, start = rows[grid, image], cols[grid, image], cells[grid, image]
            y_edges = cell_edges(y_axes[grid, image], n_rows)
            x_edges = cell_edges(x_axes[grid, image], n_cols)
            for k in range(start_k, stop_k):
                if roles[k] == FOREGROUND:
                    left, top, right, bottom = clipped_box(boxes[k], widths[image], heights[image])
                    _max_box(left, top, right, bottom, union, x_edges, y_edges, scores, start)
            if has_ignored:
                area = np.zeros((n_cols, n_rows), np.float64)
                _add_box_union(
                    boxes[start_k:stop_k], roles[start_k:stop_k], widths[image], heights[image], x_edges, y_edges, area
                )
                _write_ignored(area, x_edges, y_edges, ignored, start)


@kernel
def clipped_box(box: NDArray[np.float64], width: int, height: int) -> tuple[float, float, float, float]:
    """left, top, right, bottom of an xywh box cut to the image; right <= left or bottom <= top: nothing is left."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    return left, top, min(box[0] + box[2], np.float64(width)), min(box[1] + box[3], np.float64(height))


@kernel
def first_cell(edges: NDArray[np.float64], position: float) -> int:
    """The last cell that starts at or before `position`, within 0..count-1."""
    count = len(edges) - 1
    guess = int((position - edges[0]) * count / (edges[count] - edges[0]))
    cell = min(max(guess, 0), count - 1)
    while cell > 0 and edges[cell] > position:
        cell -= 1
    while cell < count - 1 and edges[cell + 1] <= position:
        cell += 1
    return cell


@kernel
def _max_box(
    left: float,
    top: float,
    right: float,
    bottom: float,
    union: bool,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    scores: NDArray[np.float32],
    start: int,
) -> None:
    """Raise the scores of the cells one box touches: an outer product of two 1-D overlaps."""
    if right <= left or bottom <= top:
        return
    rows, cols = len(y_edges) - 1, len(x_edges) - 1
    box_area = (right - left) * (bottom - top)
    row = first_cell(y_edges, top)
    while row < rows and y_edges[row] < bottom:
        cell_height = y_edges[row + 1] - y_edges[row]
        share_y = (min(bottom, y_edges[row + 1]) - max(top, y_edges[row])) / cell_height
        col = first_cell(x_edges, left)
        while col < cols and x_edges[col] < right:
            cell_width = x_edges[col + 1] - x_edges[col]
            share = share_y * ((min(right, x_edges[col + 1]) - max(left, x_edges[col])) / cell_width)
            if union:
                cell_area = cell_width * cell_height
                share = share * cell_area / (cell_area + box_area - share * cell_area)
            index = start + row * cols + col
            scores[index] = max(scores[index], np.float32(share))
            col += 1
        row += 1


@kernel
def _add_box_union(
    boxes: NDArray[np.float64],
    roles: NDArray[np.uint8],
    width: int,
    height: int,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    area: NDArray[np.float64],
) -> None:
    """Add the area of the union of the ignored boxes to `area` (cols, rows): slabs between consecutive box sides."""
    corners, sides = np.empty((len(boxes), 4), np.float64), np.empty(2 * len(boxes), np.float64)
    count = 0
    for k in range(len(boxes)):
        left, top, right, bottom = clipped_box(boxes[k], width, height)
        if roles[k] == IGNORED and right > left and bottom > top:
            _insert(sides, 2 * count, left)
            _insert(sides, 2 * count + 1, right)
            row = count  # by their tops
            while row > 0 and corners[row - 1, 1] > top:
                for item in range(4):
                    corners[row, item] = corners[row - 1, item]
                row -= 1
            corners[row, 0], corners[row, 1], corners[row, 2], corners[row, 3] = left, top, right, bottom
            count += 1
    for slab in range(2 * count - 1):
        left, right = sides[slab], sides[slab + 1]
        if left == right:
            continue
        reached = 0.0  # rows above are already counted in this slab
        for k in range(count):
            if corners[k, 0] <= left and corners[k, 2] >= right and corners[k, 3] > reached:
                _add_rectangle(left, max(corners[k, 1], reached), right, corners[k, 3], x_edges, y_edges, area)
                reached = corners[k, 3]


@kernel
def _insert(values: NDArray[np.float64], count: int, value: float) -> None:
    """Put a value among the first `count`, which ascend."""
    slot = count
    while slot > 0 and values[slot - 1] > value:
        values[slot] = values[slot - 1]
        slot -= 1
    values[slot] = value


@kernel
def _add_rectangle(
    left: float,
    top: float,
    right: float,
    bottom: float,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    area: NDArray[np.float64],
) -> None:
    rows, cols = len(y_edges) - 1, len(x_edges) - 1
    row = first_cell(y_edges, top)
    while row < rows and y_edges[row] < bottom:
        tall = min(bottom, y_edges[row + 1]) - max(top, y_edges[row])
        col = first_cell(x_edges, left)
        while col < cols and x_edges[col] < right:
            area[col, row] += tall * (min(right, x_edges[col + 1]) - max(left, x_edges[col]))
            col += 1
        row += 1


@kernel
def _any_role(roles: NDArray[np.uint8], start: int, stop: int, wanted: int) -> bool:
    return bool(np.any(roles[start:stop] == wanted))


@kernel
def _write_scores(
    area: NDArray[np.float64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    scores: NDArray[np.float32],
    start: int,
) -> None:
    """Shares of the cells, row-major from `start` on, of areas float64 (cols, rows)."""
    cols, rows = area.shape
    for row in range(rows):
        tall = y_edges[row + 1] - y_edges[row]
        for col in range(cols):
            share = area[col, row] / (tall * (x_edges[col + 1] - x_edges[col]))
            scores[start + row * cols + col] = np.float32(min(share, 1.0))


@kernel
def _write_ignored(
    area: NDArray[np.float64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    start: int,
) -> None:
    """Whether more than half of each cell is covered, row-major from `start` on, of areas float64 (cols, rows).

    In float32, as scores are compared, so that exactly half is not more than half.
    """
    cols, rows = area.shape
    for row in range(rows):
        tall = y_edges[row + 1] - y_edges[row]
        for col in range(cols):
            share = np.float32(area[col, row] / (tall * (x_edges[col + 1] - x_edges[col])))
            ignored[start + row * cols + col] = share > np.float32(0.5)
