"""Patch grids: sizes, edges and names of every resize policy against the definitions in exact fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlabels.coverage import cell_edges
from tokenlabels.errors import ParameterError
from tokenlabels.grid import MAX_CELLS, MAX_GRID_SIDE, PatchGrid, edges_of, parse_grids

POLICIES = ("squash", "letterbox", "shortest-edge", "native")

sides = st.integers(1, 700) | st.integers(1, 20_000)
patches = st.tuples(st.integers(1, 40), st.integers(1, 40))


def axes_of(grid: PatchGrid, *sizes: tuple[int, int]) -> Any:
    """`grid.axes` of images given as (width, height)."""
    return grid.axes(np.array([w for w, _ in sizes], np.int32), np.array([h for _, h in sizes], np.int32))


def exact_grid(grid: PatchGrid, width: int, height: int) -> tuple[int, int, list[Fraction], list[Fraction]]:
    """rows, cols and exact row and column edges by the definition of the policy; edges at 40 places at most.

    Each axis is a scale (model-input pixels per source pixel) and an offset of the image in the model input.
    """
    p_h, p_w = grid.patch
    offset_y = offset_x = Fraction(0)
    if grid.resize == "native":
        scale_y = scale_x = Fraction(1)
        rows, cols = Fraction(height, p_h).__ceil__(), Fraction(width, p_w).__ceil__()
    elif grid.resize == "shortest-edge":
        assert grid.image_size is not None
        scale = Fraction(grid.image_size[0], min(width, height))
        if grid.max_size is not None:
            scale = min(scale, Fraction(grid.max_size, max(width, height)))
        rows, cols = max((height * scale / p_h).__floor__(), 1), max((width * scale / p_w).__floor__(), 1)
        scale_y, scale_x = Fraction(rows * p_h, height), Fraction(cols * p_w, width)
    else:
        assert grid.image_size is not None
        input_h, input_w = grid.image_size
        rows, cols = input_h // p_h, input_w // p_w
        scale_y, scale_x = Fraction(input_h, height), Fraction(input_w, width)
        if grid.resize == "letterbox":
            scale_y = scale_x = min(scale_y, scale_x)
            offset_y, offset_x = (input_h - height * scale_y) / 2, (input_w - width * scale_x) / 2
    y = [(i * p_h - offset_y) / scale_y for i in places(rows)]
    x = [(j * p_w - offset_x) / scale_x for j in places(cols)]
    return rows, cols, y, x


def places(count: int) -> list[int]:
    """0..count, or 40 numbers of it with both ends."""
    return sorted(set(np.linspace(0, count, 40).astype(int).tolist())) if count > 40 else list(range(count + 1))


@st.composite
def grids(draw: st.DrawFn, policy: str) -> PatchGrid:
    """A valid grid of one policy."""
    p_h, p_w = draw(patches)
    if policy == "native":
        return PatchGrid.parse((p_h, p_w), "native")
    if policy == "shortest-edge":
        short = draw(st.integers(max(p_h, p_w), 900))
        longest = draw(st.none() | st.integers(short, 3 * short))
        return PatchGrid.parse((p_h, p_w), short, policy, longest)
    size = p_h * draw(st.integers(1, 60)), p_w * draw(st.integers(1, 60))
    return PatchGrid.parse((p_h, p_w), size, policy)


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data(), width=sides, height=sides)
@settings(deadline=None, max_examples=150)
def test_every_edge_is_the_exact_one_correctly_rounded(
    policy: str, data: st.DataObject, width: int, height: int
) -> None:
    grid = data.draw(grids(policy))
    rows, cols, y, x = exact_grid(grid, width, height)
    if max(rows, cols) > MAX_GRID_SIDE or rows * cols > MAX_CELLS:
        with pytest.raises(ParameterError, match=f"image of {width}x{height} pixels .* {rows} x {cols} patches"):
            axes_of(grid, (width, height))
        return
    axes = axes_of(grid, (width, height))
    assert (axes.rows[0], axes.cols[0], axes.cells[0]) == (rows, cols, rows * cols)
    y_edges, x_edges = grid.edges(width, height)
    assert (len(y_edges), len(x_edges)) == (rows + 1, cols + 1)
    assert y_edges[places(rows)].tolist() == [float(edge) for edge in y]
    assert x_edges[places(cols)].tolist() == [float(edge) for edge in x]
    assert cell_edges(axes.y[0], rows).tolist() == y_edges.tolist(), "the kernels see other edges"
    assert cell_edges(axes.x[0], cols).tolist() == x_edges.tolist(), "the kernels see other edges"


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data(), width=st.integers(1, 700), height=st.integers(1, 700))
@settings(deadline=None, max_examples=80)
def test_cells_cover_the_image_and_padding_is_where_the_policy_puts_it(
    policy: str, data: st.DataObject, width: int, height: int
) -> None:
    grid = data.draw(grids(policy))
    rows, cols, _, _ = exact_grid(grid, width, height)
    if max(rows, cols) > MAX_GRID_SIDE or rows * cols > MAX_CELLS:
        return
    exact = []
    for edges, side in zip(grid.edges(width, height), (height, width), strict=True):
        assert all(low < high for low, high in pairwise(edges))
        assert edges[0] <= 0
        assert edges[-1] >= side
        exact.append(bool(edges[0] == 0 and edges[-1] == side))
        if policy == "native":
            assert edges[0] == 0
            assert edges[-2] < side
        elif policy == "letterbox":
            assert -edges[0] == pytest.approx(edges[-1] - side, abs=1e-9 * (1 + side))
    assert sum(exact) >= {"squash": 2, "shortest-edge": 2, "letterbox": 1, "native": 0}[policy]


@pytest.mark.parametrize(
    ("grid", "width", "height", "input_size", "shape"),
    [
        (("16", 384, "squash"), 640, 480, (384, 384), (24, 24)),
        (("16x8", "384x640", "letterbox"), 100, 100, (384, 640), (24, 80)),
        (("16", 512, "shortest-edge"), 640, 480, (512, 672), (32, 42)),
        (("16", 512, "shortest-edge"), 480, 640, (672, 512), (42, 32)),
        (("16", 512, "shortest-edge", 600), 640, 480, (448, 592), (28, 37)),
        (("16", 512, "shortest-edge", 512), 10_000, 10, (16, 512), (1, 32)),
        (("16", 512, "shortest-edge", 853), 500, 500, (512, 512), (32, 32)),
        (("16", "native", "squash"), 640, 480, (480, 640), (30, 40)),
        (("16", "native", "squash"), 641, 1, (1, 641), (1, 41)),
        (("16x8", 384, "native"), 17, 17, (17, 17), (2, 3)),
    ],
)
def test_model_input_and_shape_worked_by_hand(
    grid: tuple[Any, ...], width: int, height: int, input_size: tuple[int, int], shape: tuple[int, int]
) -> None:
    parsed = PatchGrid.parse(*grid)
    assert parsed.input_size(width, height) == input_size
    axes = axes_of(parsed, (width, height))
    assert (axes.rows[0], axes.cols[0]) == shape
    fixed = parsed.resize in ("squash", "letterbox")
    assert parsed.constant_shape == (shape if fixed else None)


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data(), sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_many_images_are_the_same_as_one_at_a_time(
    policy: str, data: st.DataObject, sizes: list[tuple[int, int]]
) -> None:
    grid = data.draw(grids(policy))
    try:
        alone = [grid.edges(*size) for size in sizes]
    except ParameterError:
        with pytest.raises(ParameterError):
            axes_of(grid, *sizes)
        return
    axes = axes_of(grid, *sizes)
    for index, (y, x) in enumerate(alone):
        assert edges_of(axes.y[index], int(axes.rows[index])).tolist() == y.tolist()
        assert edges_of(axes.x[index], int(axes.cols[index])).tolist() == x.tolist()
    cut = axes[1:3]
    for name in ("rows", "cols", "y", "x", "cells"):
        assert np.array_equal(getattr(cut, name), getattr(axes, name)[1:3])


@pytest.mark.parametrize("policy", POLICIES)
def test_no_images_make_no_grids(policy: str) -> None:
    axes = axes_of(PatchGrid.parse(16, 384, policy))
    assert (axes.rows.shape, axes.cells.shape, axes.y.shape, axes.x.shape) == ((0,), (0,), (0, 3), (0, 3))


@pytest.mark.parametrize(
    ("grid", "size", "fits"),
    [
        ((1, "native"), (4096, 4096), True),
        ((1, "native"), (4097, 4096), False),
        ((1, "native"), (MAX_GRID_SIDE, 1), True),
        ((1, "native"), (MAX_GRID_SIDE + 1, 1), False),
        ((1, "native"), (1, MAX_GRID_SIDE + 1), False),
        ((16, "native"), (1_000_000, 16), False),
        ((16, 512, "shortest-edge"), (1_000_000, 1), False),
        ((16, 512, "shortest-edge", 1024), (1_000_000, 1), True),
    ],
)
def test_grids_too_large_to_store_are_refused(grid: tuple[Any, ...], size: tuple[int, int], fits: bool) -> None:
    """Also where another image has more patches in all."""
    parsed = PatchGrid.parse(*grid)
    if fits:
        assert axes_of(parsed, (5, 5), size, (300, 300)).rows.max() <= MAX_GRID_SIDE
    else:
        with pytest.raises(ParameterError, match=f"image of {size[0]}x{size[1]} pixels"):
            axes_of(parsed, (5, 5), size, (300, 300))


# --- what a person writes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "image_size", "resize", "name"),
    [
        (16, 384, "squash", "384x384-p16"),
        ("16", "384", "squash", "384x384-p16"),
        ((16, 16), (384, 384), "squash", "384x384-p16"),
        (" 16 X 8 ", "384 x 640", "squash", "384x640-p16x8"),
        ("16x8", "384x640", "letterbox", "384x640-letterbox-p16x8"),
        ((16, 8), (384, 640), "letterbox", "384x640-letterbox-p16x8"),
        (16, 512, "shortest-edge", "short512-p16"),
        ("16x8", "500", "shortest-edge", "short500-p16x8"),
        (16, "native", "squash", "native-p16"),
        (16, "native", "letterbox", "native-p16"),
        ("8x16", 384, "native", "native-p8x16"),
        (1, 1, "squash", "1x1-p1"),
    ],
)
def test_names(patch: Any, image_size: Any, resize: str, name: str) -> None:
    assert PatchGrid.parse(patch, image_size, resize).name == name


def test_the_default_is_the_paper_grid() -> None:
    grid = PatchGrid.parse()
    assert (grid.name, grid.constant_shape, grid.max_size) == ("384x384-p16", (24, 24), None)


@given(patch=st.integers(1, 200), side=st.integers(1, 3000), wide=st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_size_the_patch_does_not_divide_names_the_nearest_that_work(patch: int, side: int, wide: bool) -> None:
    size = (patch, side) if wide else (side, patch)
    if side % patch == 0:
        assert PatchGrid.parse(patch, size).image_size == size
        return
    with pytest.raises(ParameterError) as caught:
        PatchGrid.parse(patch, size)
    message = str(caught.value)
    assert f"image {'width' if wide else 'height'} {side} " in message
    named = [int(number) for number in re.findall(r"\d+", message.split("nearest")[1])]
    below, above = side - side % patch, side - side % patch + patch
    assert named == ([below, above] if below else [above])
    for number in named:
        PatchGrid.parse(patch, number)


@pytest.mark.parametrize(
    "patch", [0, -16, 1_000_001, "0", "16x0", "", "x", "16x", "x16", "16x8x4", "-16", "1.5", "p16"]
)
def test_an_impossible_patch_is_refused(patch: Any) -> None:
    with pytest.raises(ParameterError, match="patch"):
        PatchGrid.parse(patch)


@pytest.mark.parametrize(
    "size", [0, -384, 1_000_001, 10**30, "384x", "tiny", "", "1e3", "99999999999", (384,), (384, 384, 384), (0, 384)]
)
@pytest.mark.parametrize("resize", ["squash", "letterbox", "shortest-edge"])
def test_an_impossible_image_size_is_refused(size: Any, resize: str) -> None:
    with pytest.raises(ParameterError, match="image size"):
        PatchGrid.parse(16, size, resize)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((16, 384, "stretch"), "shortest-edge"),
        ((16, 384, "squash", 640), "--max-size"),
        ((16, 384, "letterbox", 640), "--max-size"),
        ((16, 384, "native", 640), "--max-size"),
        ((16, "native", "shortest-edge", 640), "--max-size"),
        ((16, 384, "shortest-edge", 383), "--max-size 383"),
        ((16, "384x640", "shortest-edge"), "384x640"),
        ((16, 15, "shortest-edge"), "at least 16"),
        (("8x16", 15, "shortest-edge"), "at least 16"),
        ((1, MAX_GRID_SIDE + 1), "larger patch"),
        ((1, (MAX_GRID_SIDE + 1, 1)), "larger patch"),
        ((1, 4097), "larger patch"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(arguments: tuple[Any, ...], part: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(part)):
        PatchGrid.parse(*arguments)


def test_limits_themselves_are_accepted() -> None:
    assert PatchGrid.parse(1, 4096).constant_shape == (4096, 4096)
    assert PatchGrid.parse(1, (1, MAX_GRID_SIDE)).constant_shape == (1, MAX_GRID_SIDE)
    assert PatchGrid.parse(16, 16, "shortest-edge", 16).max_size == 16
    assert PatchGrid.parse(1_000_000, 1_000_000).constant_shape == (1, 1)


@pytest.mark.parametrize(
    ("patch", "image_size", "names"),
    [
        (16, 384, ["384x384-p16"]),
        ([16, 32], 384, ["384x384-p16", "384x384-p32"]),
        ([32, "16x8"], [640, 384], ["640x640-p32", "640x640-p16x8", "384x384-p32", "384x384-p16x8"]),
        ((16, 8), (384, 640), ["384x640-p16x8"]),
        ([(16, 8), 16], [(384, 640)], ["384x640-p16x8", "384x640-p16"]),
        (16, [384, "native"], ["384x384-p16", "native-p16"]),
        ("16", "384x640", ["384x640-p16"]),
    ],
)
def test_lists_give_every_combination_in_order(patch: Any, image_size: Any, names: list[str]) -> None:
    assert [grid.name for grid in parse_grids(patch, image_size, "squash")] == names


@pytest.mark.parametrize(
    ("patch", "image_size", "doubled"),
    [
        ([16, 16], 384, "384x384-p16"),
        ([16, "16"], 384, "384x384-p16"),
        ([16, (16, 16)], [640, 384], "384x384-p16"),
        (16, [384, "384x384"], "384x384-p16"),
        (16, ["native", 384, "native"], "native-p16"),
    ],
)
def test_a_grid_asked_for_twice_is_refused(patch: Any, image_size: Any, doubled: str) -> None:
    with pytest.raises(ParameterError, match=f"{doubled} is asked for twice"):
        parse_grids(patch, image_size, "squash")


def test_max_size_reaches_every_grid() -> None:
    assert [grid.max_size for grid in parse_grids([16, 8], [512, 384], "shortest-edge", 853)] == [853] * 4
