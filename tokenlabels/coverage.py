"""Exact areas of masks and boxes inside grid cells, for a block of images at a time: the hot kernels.

Everything here is compiled and works on flat arrays; `rules.py` prepares them. Images are numbered 0..n-1 in the block,
their annotations are `offsets[i]:offsets[i + 1]`, their cells (row-major) `cells[i]:cells[i + 1]` of the output. Areas
are float64 and in square source pixels; only the final score is rounded to float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import MASK_RINGS, MASK_TEXT
from tokenlabels.kernel import kernel
from tokenlabels.polygon_text import parse_polygons
from tokenlabels.raster import add_ring, add_rle, merged_runs

SKIP, FOREGROUND, IGNORED = 0, 1, 2
"""What an annotation does: nothing, score its cells, or mark them as ignored."""


@kernel
def cell_edges(axis: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """float64 (count + 1,) edges in source pixels of one axis (`step, start, divisor`), see `grid.GridAxes`."""
    edges = np.empty(count + 1, np.float64)
    for index in range(count + 1):
        edges[index] = (axis[0] * index + axis[1]) / axis[2]
    return edges


@kernel
def column_runs_of_image(
    image: int,
    wanted: int,
    width: int,
    height: int,
    offsets: NDArray[np.int64],
    roles: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    spans: NDArray[np.int64],
    text: NDArray[np.uint8],
    numbers: NDArray[np.float64],
    counts: NDArray[np.int64],
    empty: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int]:
    """The union of the masks of one image whose role is `wanted`, as disjoint column runs (see `raster.merged_runs`).

    Sets `empty[k]` for every mask k that holds no pixel.
    """
    head = np.full(width, -1, np.int32)
    ring_head = np.full(width, -1, np.int32)
    node_run, node_next, used = np.empty(1024, np.int64), np.empty(1024, np.int32), 0
    for k in range(offsets[image], offsets[image + 1]):
        if roles[k] != wanted:
            continue
        before = used
        start, stop = spans[k, 0], spans[k, 1]
        if kinds[k] == MASK_TEXT:
            room = (stop - start) // 2 + 1
            xy, ring_stops = np.empty(room, np.float64), np.empty(room // 6 + 1, np.int64)
            rings = parse_polygons(text, start, stop, xy, ring_stops)
            ring_start = 0
            for ring in range(rings):
                node_run, node_next, used = add_ring(
                    xy, ring_start, ring_stops[ring], height, head, ring_head, node_run, node_next, used
                )
                ring_start = ring_stops[ring]
        elif kinds[k] == MASK_RINGS:
            while start < stop:
                end = start + 1 + np.int64(numbers[start])
                node_run, node_next, used = add_ring(
                    numbers, start + 1, end, height, head, ring_head, node_run, node_next, used
                )
                start = end
        else:
            node_run, node_next, used = add_rle(counts, start, stop, height, head, node_run, node_next, used)
        empty[k] = used == before
    return merged_runs(head, node_run, node_next)


@kernel
def add_runs(
    columns: NDArray[np.int32],
    tops: NDArray[np.int32],
    bottoms: NDArray[np.int32],
    used: int,
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    area: NDArray[np.float64],
) -> None:
    """Add the area of disjoint column runs, sorted by column, to `area` float64 (rows * cols,)."""
    rows, cols = len(y_edges) - 1, len(x_edges) - 1
    inverse_step = rows / (y_edges[rows] - y_edges[0])
    height_in_row = np.zeros(rows, np.float64)
    run = 0
    first_col = 0
    while run < used:
        column = columns[run]
        low, high = rows, -1
        while run < used and columns[run] == column:
            top, bottom = np.float64(tops[run]), np.float64(bottoms[run])
            row = min(max(int((top - y_edges[0]) * inverse_step), 0), rows - 1)
            while row > 0 and y_edges[row] > top:
                row -= 1
            while row < rows - 1 and y_edges[row + 1] <= top:
                row += 1
            low = min(low, row)
            while row < rows and y_edges[row] < bottom:
                height_in_row[row] += min(bottom, y_edges[row + 1]) - max(top, y_edges[row])
                row += 1
            high = max(high, row - 1)
            run += 1
        while first_col < cols - 1 and x_edges[first_col + 1] <= column:
            first_col += 1
        col = first_col
        while col < cols and x_edges[col] < column + 1:
            share = min(column + 1.0, x_edges[col + 1]) - max(np.float64(column), x_edges[col])
            for row in range(low, high + 1):
                area[row * cols + col] += share * height_in_row[row]
            col += 1
        height_in_row[low : high + 1] = 0.0


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
    for image in range(len(widths)):
        for wanted in (FOREGROUND, IGNORED):
            if not _any_role(roles, offsets[image], offsets[image + 1], wanted):
                continue
            columns, tops, bottoms, used = column_runs_of_image(
                image, wanted, widths[image], heights[image], offsets, roles, kinds, spans, text, numbers, counts, empty
            )
            for grid in range(len(rows)):
                n_rows, n_cols, start = rows[grid, image], cols[grid, image], cells[grid, image]
                y_edges = cell_edges(y_axes[grid, image], n_rows)
                x_edges = cell_edges(x_axes[grid, image], n_cols)
                area = np.zeros(n_rows * n_cols, np.float64)
                add_runs(columns, tops, bottoms, used, x_edges, y_edges, area)
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
                area = np.zeros(n_rows * n_cols, np.float64)
                _add_box_union(
                    boxes[start_k:stop_k], roles[start_k:stop_k], widths[image], heights[image], x_edges, y_edges, area
                )
                _write_ignored(area, x_edges, y_edges, ignored, start)


@kernel
def clipped_box(box: NDArray[np.float64], width: int, height: int) -> tuple[float, float, float, float]:
    """left, top, right, bottom of an xywh box cut to the image; right <= left or bottom <= top where nothing is left."""
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
    """Add the area of the union of the ignored boxes to `area` (rows * cols,): slabs between consecutive box sides."""
    corners = np.empty((len(boxes), 4), np.float64)
    count = 0
    for k in range(len(boxes)):
        left, top, right, bottom = clipped_box(boxes[k], width, height)
        if roles[k] == IGNORED and right > left and bottom > top:
            corners[count, 0], corners[count, 1], corners[count, 2], corners[count, 3] = left, top, right, bottom
            count += 1
    corners = corners[:count][np.argsort(corners[:count, 1])]
    sides = np.unique(np.concatenate((corners[:, 0], corners[:, 2])))
    for slab in range(len(sides) - 1):
        left, right = sides[slab], sides[slab + 1]
        reached = 0.0  # rows above are already counted in this slab
        for k in range(count):
            if corners[k, 0] <= left and corners[k, 2] >= right and corners[k, 3] > reached:
                _add_rectangle(left, max(corners[k, 1], reached), right, corners[k, 3], x_edges, y_edges, area)
                reached = corners[k, 3]


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
            area[row * cols + col] += tall * (min(right, x_edges[col + 1]) - max(left, x_edges[col]))
            col += 1
        row += 1


@kernel
def _any_role(roles: NDArray[np.uint8], start: int, stop: int, wanted: int) -> bool:
    for k in range(start, stop):
        if roles[k] == wanted:
            return True
    return False


@kernel
def _write_scores(
    area: NDArray[np.float64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    scores: NDArray[np.float32],
    start: int,
) -> None:
    cols = len(x_edges) - 1
    for row in range(len(y_edges) - 1):
        tall = y_edges[row + 1] - y_edges[row]
        for col in range(cols):
            index = row * cols + col
            scores[start + index] = np.float32(min(area[index] / (tall * (x_edges[col + 1] - x_edges[col])), 1.0))


@kernel
def _write_ignored(
    area: NDArray[np.float64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    start: int,
) -> None:
    cols = len(x_edges) - 1
    for row in range(len(y_edges) - 1):
        tall = y_edges[row + 1] - y_edges[row]
        for col in range(cols):
            index = row * cols + col
            ignored[start + index] = area[index] > 0.5 * tall * (x_edges[col + 1] - x_edges[col])
