"""Areas of the values of a label map inside grid cells against exact integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.coverage import FOREGROUND, IGNORED, SKIP
from tokenlabels.grid import PatchGrid
from tokenlabels.map_areas import map_cell_shares, segments_of_colours, words_of

Ints: TypeAlias = NDArray[np.int64]

GRIDS = (
    PatchGrid.parse(8, 24, "squash"),
    PatchGrid.parse("4x16", (16, 48), "squash"),
    PatchGrid.parse(1, (2, 3), "squash"),
    PatchGrid.parse(8, (24, 40), "letterbox"),
    PatchGrid.parse("16x8", 48, "letterbox"),
    PatchGrid.parse(8, 24, "shortest-edge", 40),
    PatchGrid.parse("6x10", 20, "shortest-edge"),
    PatchGrid.parse(4, "native"),
    PatchGrid.parse("5x3", "native"),
)

VALUES = 6
CLOSE = 1e-6
"""Largest difference between a float32 share and its oracle."""


@dataclass(frozen=True)
class Shares:
    """What the kernel writes, as (rows, cols); flat without categories."""

    scores: NDArray[np.float32]
    ignored: NDArray[np.bool_]
    majority: NDArray[np.uint16]
    majority_share: NDArray[np.float32]
    seen: NDArray[np.bool_]


def shares_of(
    values: NDArray[Any], grid: PatchGrid, roles: list[int], categories: list[int], category_count: int = 4
) -> Shares:
    height, width = values.shape
    axes = grid.axes(np.array([width], np.int32), np.array([height], np.int32))
    rows, cols = int(axes.rows[0]), int(axes.cols[0])
    found = Shares(
        np.zeros(rows * cols, np.float32),
        np.zeros(rows * cols, np.bool_),
        np.full(rows * cols if category_count else 0, 77, np.uint16),
        np.full(rows * cols if category_count else 0, -1, np.float32),
        np.zeros(len(roles), np.bool_),
    )
    map_cell_shares(
        values,
        words_of(values),
        np.array(roles, np.uint8),
        np.array(categories, np.uint16),
        category_count,
        found.seen,
        axes.y[0],
        axes.x[0],
        rows,
        cols,
        found.scores,
        found.ignored,
        found.majority,
        found.majority_share,
    )
    shape = rows, cols
    if not category_count:
        return found
    return Shares(
        found.scores.reshape(shape),
        found.ignored.reshape(shape),
        found.majority.reshape(shape),
        found.majority_share.reshape(shape),
        found.seen,
    )


def whole_shares(axis: Ints, cells: int, side: int) -> Ints:
    """(cells, side): `divisor` times how much of each pixel lies in each cell, in whole numbers."""
    step, start, divisor = axis.tolist()
    edges, pixels = step * np.arange(cells + 1) + start, divisor * np.arange(side + 1)
    inside = np.minimum(edges[1:, None], pixels[None, 1:]) - np.maximum(edges[:-1, None], pixels[None, :-1])
    whole: Ints = np.maximum(inside, 0)
    return whole


def exact_areas(values: NDArray[Any], grid: PatchGrid) -> tuple[Ints, int]:
    """(VALUES, rows, cols) areas of every value and the area of a cell, both in the same tiny unit."""
    height, width = values.shape
    axes = grid.axes(np.array([width], np.int32), np.array([height], np.int32))
    y = whole_shares(axes.y[0], int(axes.rows[0]), height)
    x = whole_shares(axes.x[0], int(axes.cols[0]), width)
    areas = np.stack([y @ (values == value).astype(np.int64) @ x.T for value in range(VALUES)])
    return areas, int(axes.y[0, 0] * axes.x[0, 0])


maps = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: st.lists(st.integers(0, VALUES - 1), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda flat: np.array(flat, np.uint8).reshape(size)
    )
)
tied = np.array([[0, 0, 0, 1, 1, 0, 0, 2, 2, 2]], np.uint8)
"""Ten pixels on three cells: the middle one is shared evenly by 1 and 0, its edges are thirds."""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@settings(max_examples=150, deadline=None)
@given(
    values=maps,
    grid=st.sampled_from(GRIDS),
    roles=st.lists(st.sampled_from([SKIP, FOREGROUND, IGNORED]), min_size=VALUES, max_size=VALUES),
    categories=st.lists(st.sampled_from([0, 1, 2, 3, NO_CATEGORY]), min_size=VALUES, max_size=VALUES),
)
@example(
    values=tied, grid=PatchGrid.parse(1, (1, 3)), roles=[0, 1, 2, 0, 0, 0], categories=[1, 0, 2, 0, 0, 0]
)  # a tie that rounded edges would decide
@example(values=tied, grid=PatchGrid.parse(1, (1, 3)), roles=[0, 1, 2, 0, 0, 0], categories=[0, 1, 2, 0, 0, 0])
@example(
    values=np.array([[0, 1]], np.uint8),
    grid=PatchGrid.parse(1, (1, 1)),
    roles=[2, 1, 0, 0, 0, 0],
    categories=[NO_CATEGORY, 3, 0, 0, 0, 0],
)  # exactly half void: no more than half
def test_shares_and_majorities_are_exact(
    values: NDArray[np.uint8], grid: PatchGrid, roles: list[int], categories: list[int], dtype: Any
) -> None:
    """Scores, ignored cells and majorities by definition: ties go to the first category, void needs more than half."""
    found = shares_of(values.astype(dtype), grid, roles, categories)
    areas, cell = exact_areas(values, grid)
    role, category = np.array(roles), np.array(categories)
    np.testing.assert_allclose(found.scores, areas[role == FOREGROUND].sum(axis=0) / cell, atol=CLOSE)
    np.testing.assert_array_equal(found.ignored, 2 * areas[role == IGNORED].sum(axis=0) > cell)
    by_category = np.stack([areas[category == index].sum(axis=0) for index in range(4)])
    nothing = (2 * areas[category == NO_CATEGORY].sum(axis=0) > cell) | (by_category.sum(axis=0) == 0)
    np.testing.assert_array_equal(found.majority, np.where(nothing, NO_CATEGORY, by_category.argmax(axis=0)))
    np.testing.assert_allclose(found.majority_share, np.where(nothing, 0, by_category.max(axis=0) / cell), atol=CLOSE)
    np.testing.assert_array_equal(np.flatnonzero(found.seen), np.unique(values))


def test_padding_has_no_score_and_no_category() -> None:
    """A wide picture of one value in a square: the rows above and below hold nothing."""
    found = shares_of(
        np.ones((4, 16), np.uint8), PatchGrid.parse(4, 16, "letterbox"), [0, 1, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0]
    )
    assert found.scores.tolist() == [[0] * 4, [0.5] * 4, [0.5] * 4, [0] * 4]
    assert found.majority.tolist() == [[NO_CATEGORY] * 4, [2] * 4, [2] * 4, [NO_CATEGORY] * 4]
    assert found.majority_share.tolist() == found.scores.tolist()
    assert not found.ignored.any()


def test_without_categories_scores_are_the_same() -> None:
    values = np.random.default_rng(0).integers(0, VALUES, (30, 40)).astype(np.uint8)
    for grid in GRIDS:
        roles = [0, 1, 2, 1, 0, 2]
        plain, full = shares_of(values, grid, roles, [0] * 6, 0), shares_of(values, grid, roles, [0, 1, 2, 3, 0, 1])
        np.testing.assert_array_equal(plain.scores, full.scores.ravel())
        np.testing.assert_array_equal(plain.ignored, full.ignored.ravel())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, (1 << 24) - 1), min_size=1, max_size=6, unique=True),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_colours_of_a_panoptic_png_are_its_segments(ids: list[int], seed: int, strange: bool) -> None:
    """id = R + 256 G + 65536 B; an id that is not listed is said."""
    rng = np.random.default_rng(seed)
    listed = np.array(ids, np.int64)
    chosen = rng.integers(0, len(ids) + 1, (5, 7))
    pixels = np.concatenate([[0], listed])[chosen]
    unlisted = next(number for number in range(1, 9) if number not in ids)
    if strange:
        pixels[2, 3] = unlisted
    colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], axis=-1).astype(np.uint8)
    order = np.argsort(listed)
    values = np.full((5, 7), 99, np.uint16)
    assert segments_of_colours(colours, listed[order], order, values) == (unlisted if strange else 0)
    if not strange:
        np.testing.assert_array_equal(values, chosen)
