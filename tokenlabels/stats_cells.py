"""Sums over cells: by position in the grid, by score, by majority category. Pure numpy, one row group at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.figures import TAU_STOPS
from tokenlabels.grid import PatchGrid
from tokenlabels.stats_shards import FOREGROUND, IGNORE, CellColumns

SCALED_SIDE = 24
"""Side of the position map where grids differ from image to image."""

THRESHOLDS = np.array(TAU_STOPS, np.float32)
"""Each stop as `relabel` compares it."""

_BLOCK = 255
"""Flags that a uint8 can add up."""

_PRESENCE_CELLS = 1 << 24
"""Entries of a table of images x categories."""


@dataclass(frozen=True, slots=True, eq=False)
class CellSums:
    """Sums over the cells of some images; they add up.

    Attributes:
        position_foreground: int64 (rows, cols), label-1 cells by position.
        position_counted: int64 (rows, cols), cells that are not ignored.
        passing: int64 (101,), cells whose score passes each of `THRESHOLDS`; None without scores.
        ignored: int64 (101,), cells with `ignored` true that do not; None without scores.
        category_patches: int64 (categories,), label-1 cells by majority category; None without that column.
        category_images: int64 (categories,), images with such a cell.
    """

    position_foreground: NDArray[np.int64]
    position_counted: NDArray[np.int64]
    passing: NDArray[np.int64] | None
    ignored: NDArray[np.int64] | None
    category_patches: NDArray[np.int64] | None
    category_images: NDArray[np.int64] | None

    def __add__(self, other: CellSums) -> CellSums:
        return CellSums(
            self.position_foreground + other.position_foreground,
            self.position_counted + other.position_counted,
            _added(self.passing, other.passing),
            _added(self.ignored, other.ignored),
            _added(self.category_patches, other.category_patches),
            _added(self.category_images, other.category_images),
        )


def cell_sums(columns: CellColumns, grid: PatchGrid, inclusive: bool, categories: int) -> CellSums:
    """Sums of one row group.

    Args:
        columns: its cells.
        grid: the grid they are on.
        inclusive: a score equal to the threshold passes.
        categories: entries of the category table.

    Raises:
        ValueError: a majority category outside the table.
    """
    shape = grid.constant_shape
    foreground, counted = (
        position_sums(flags, columns.rows, columns.cols, columns.cells, shape)
        for flags in (columns.labels == FOREGROUND, columns.labels != IGNORE)
    )
    passing = ignored = None
    if columns.scores is not None:
        scores = columns.scores
        if grid.resize == "letterbox":  # the only policy that makes cells wholly in padding
            scores = np.where(padded_cells(grid, columns.widths, columns.heights), np.float32(-np.inf), scores)
        passing = count_passing(scores, inclusive)
        ignored = np.zeros_like(passing)
        if columns.ignored is not None:
            ignored += np.count_nonzero(columns.ignored) - count_passing(scores[columns.ignored], inclusive)
    patches = images = None
    if columns.categories is not None:
        patches, images = category_sums(columns.categories, columns.labels, columns.cells, categories)
    return CellSums(foreground, counted, passing, ignored, patches, images)


def no_cells(grid: PatchGrid, *, scores: bool) -> CellSums:
    """Sums of no images, with or without scores."""
    empty = np.zeros(grid.constant_shape or (SCALED_SIDE, SCALED_SIDE), np.int64)
    stops = np.zeros(len(THRESHOLDS), np.int64) if scores else None
    return CellSums(empty, empty, stops, stops, None, None)


def count_passing(scores: NDArray[np.float32], inclusive: bool) -> NDArray[np.int64]:
    """int64 (101,): how many scores pass each of `THRESHOLDS`, compared in float32.

    Sorting takes about a nanosecond a score (numpy's vector sort), and leaves nothing to round.
    """
    below = np.searchsorted(np.sort(scores), THRESHOLDS, side="left" if inclusive else "right")
    return len(scores) - below.astype(np.int64)


def padded_cells(grid: PatchGrid, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool, one per cell of n images on a grid of constant shape: it lies wholly in padding, as `labels.py` has it."""
    axes = grid.axes(widths, heights)
    shape = grid.constant_shape
    assert shape is not None
    down, across = (
        _padded(axis, count, size) for axis, count, size in ((axes.y, shape[0], heights), (axes.x, shape[1], widths))
    )
    return (down[:, :, None] | across[:, None, :]).reshape(-1)


def _padded(axis: NDArray[np.int64], count: int, size: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool (n, count): the span between edges i and i + 1 of an axis lies outside an image of that size."""
    steps = np.arange(count + 1, dtype=np.int64)
    edges = (axis[:, :1] * steps + axis[:, 1:2]) / axis[:, 2:].astype(np.float64)
    padded: NDArray[np.bool_] = (edges[:, 1:] <= 0) | (edges[:, :-1] >= size[:, None])
    return padded


def position_sums(
    flags: NDArray[np.bool_],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    cells: NDArray[np.int64],
    shape: tuple[int, int] | None,
) -> NDArray[np.int64]:
    """How many of n images have a flag at each position of the map.

    Args:
        flags: bool, one per cell.
        rows: int64 (n,), grid rows.
        cols: int64 (n,), grid columns.
        cells: int64 (n + 1,), where the cells of each image start.
        shape: (rows, cols) that all images have, or None: then they are scaled as `figures.Position` says.

    Returns:
        int64, of `shape`, or `SCALED_SIDE` x `SCALED_SIDE`.
    """
    if shape is not None:
        return _count_down(flags.reshape(-1, shape[0] * shape[1])).reshape(shape)
    found = np.zeros((SCALED_SIDE, SCALED_SIDE), np.int64)
    kinds, kind_of = np.unique(np.stack([rows, cols]), axis=1, return_inverse=True)
    for kind, (height, width) in enumerate(kinds.T.tolist()):
        starts = cells[:-1][kind_of.reshape(-1) == kind]
        counts = _count_down(flags[starts[:, None] + np.arange(height * width)]).reshape(height, width)
        down = (2 * np.arange(height) + 1) * SCALED_SIDE // (2 * height)
        across = (2 * np.arange(width) + 1) * SCALED_SIDE // (2 * width)
        np.add.at(found, (down[:, None], across[None, :]), counts)
    return found


def category_sums(
    categories: NDArray[np.uint16], labels: NDArray[np.uint8], cells: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label-1 cells of each majority category, and images that have any.

    Args:
        categories: uint16, one per cell: index into a table of `count`, or `NO_CATEGORY`.
        labels: uint8, one per cell.
        cells: int64 (n + 1,), where the cells of each image start.
        count: entries of the category table.

    Returns:
        Two of int64 (count,).

    Raises:
        ValueError: an index outside the table.
    """
    patches, images = np.zeros(count, np.int64), np.zeros(count, np.int64)
    block = max(1, _PRESENCE_CELLS // max(count, 1))
    for first in range(0, len(cells) - 1, block):
        ends = cells[first : first + block + 1]
        held = categories[ends[0] : ends[-1]]
        known = held != NO_CATEGORY
        if (held[known] >= count).any():
            raise ValueError(f"holds a majority category outside the table of {count}")
        wanted = np.flatnonzero(known & (labels[ends[0] : ends[-1]] == FOREGROUND))
        presence = np.zeros((len(ends) - 1, count), np.bool_)
        presence[np.searchsorted(ends[1:] - ends[0], wanted, side="right"), held[wanted]] = True
        patches += np.bincount(held[wanted], minlength=count)
        images += presence.sum(axis=0)
    return patches, images


def _count_down(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 (m,): how many of bool (n, m) are true in each column, added up as bytes, which is six times as fast."""
    found = np.zeros(flags.shape[1], np.int64)
    for first in range(0, len(flags), _BLOCK):
        found += flags[first : first + _BLOCK].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return found


def _added(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return one if other is None else other if one is None else one + other
