"""Scores -> labels, and the counts that follow from labels: kernels shared by building and relabelling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenlabels.coverage import cell_edges, clipped_box, first_cell
from tokenlabels.kernel import kernel

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 255
"""Values of a label."""


@kernel
def label_cells(
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    y_axes: NDArray[np.int64],
    x_axes: NDArray[np.int64],
    cells: NDArray[np.int64],
    scores: NDArray[np.float32],
    tau: np.float32,
    inclusive: bool,
    ignore_padding: bool,
    ignored: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    fg_count: NDArray[np.int32],
    ignore_count: NDArray[np.int32],
) -> None:
    """Label the cells of n images on one grid.

    A cell is 1 where its score passes `tau`, else 255 where it is ignored, else 0. A cell that lies wholly in padding
    is never 1.

    Args:
        widths: int32 (n,), source pixels.
        heights: int32 (n,), source pixels.
        rows: int64 (n,).
        cols: int64 (n,).
        y_axes: int64 (n, 3), see `grid.GridAxes`.
        x_axes: int64 (n, 3).
        cells: int64 (n,), where the cells of each image start in the flat arrays.
        scores: float32, one per cell.
        tau: threshold, float32.
        inclusive: a score equal to `tau` passes.
        ignore_padding: cells wholly in padding are 255 instead of 0.
        ignored: bool, one per cell; cells in padding are set where `ignore_padding`.
        labels: uint8, one per cell, written.
        fg_count: int32 (n,), written: cells labelled 1.
        ignore_count: int32 (n,), written: cells labelled 255.
    """
    for image in range(len(widths)):
        y_edges = cell_edges(y_axes[image], rows[image])
        x_edges = cell_edges(x_axes[image], cols[image])
        foreground, ignore = 0, 0
        index = cells[image]
        for row in range(rows[image]):
            row_padded = y_edges[row + 1] <= 0 or y_edges[row] >= heights[image]
            for col in range(cols[image]):
                if row_padded or x_edges[col + 1] <= 0 or x_edges[col] >= widths[image]:
                    if ignore_padding:
                        ignored[index] = True
                    passes = False
                else:
                    passes = scores[index] >= tau if inclusive else scores[index] > tau
                if passes:
                    labels[index] = FOREGROUND
                    foreground += 1
                elif ignored[index]:
                    labels[index] = IGNORE
                    ignore += 1
                else:
                    labels[index] = BACKGROUND
                index += 1
        fg_count[image] = foreground
        ignore_count[image] = ignore


@kernel
def count_patches(
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    y_axes: NDArray[np.int64],
    x_axes: NDArray[np.int64],
    cells: NDArray[np.int64],
    labels: NDArray[np.uint8],
    patches: NDArray[np.int32],
) -> None:
    """How many label-1 cells each box covers by at least half, boxes clipped to the image.

    Args:
        offsets: int64 (n + 1,), the boxes of each image.
        boxes: float32 (m, 4), xywh in source pixels, as a shard stores them, so that relabelling counts the same.
        labels: uint8, one per cell.
        patches: int32 (m,), written.
        (the others as in `label_cells`)
    """
    for image in range(len(widths)):
        y_edges = cell_edges(y_axes[image], rows[image])
        x_edges = cell_edges(x_axes[image], cols[image])
        for k in range(offsets[image], offsets[image + 1]):
            patches[k] = 0
            left, top, right, bottom = clipped_box(boxes[k].astype(np.float64), widths[image], heights[image])
            if right <= left or bottom <= top:
                continue
            row = first_cell(y_edges, top)
            while row < rows[image] and y_edges[row] < bottom:
                share_y = min(bottom, y_edges[row + 1]) - max(top, y_edges[row])
                share_y /= y_edges[row + 1] - y_edges[row]
                col = first_cell(x_edges, left)
                while col < cols[image] and x_edges[col] < right:
                    share = min(right, x_edges[col + 1]) - max(left, x_edges[col])
                    share = share_y * (share / (x_edges[col + 1] - x_edges[col]))  # so that exact halves stay exact
                    if share >= 0.5 and labels[cells[image] + row * cols[image] + col] == FOREGROUND:
                        patches[k] += 1
                    col += 1
                row += 1
