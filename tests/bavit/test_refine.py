"""Masks of kept tokens, against plain loops and scipy, image by image."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor, nn

from bavit.background.critical import critical_probabilities
from bavit.background.refine import drop_specks, refine, resize_mask
from tokenlabels.errors import ParameterError

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=3, max_side=9))
eighths = st.integers(0, 8).map(lambda count: count / 8)
grids = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=eighths)


def convolved(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """The definition, by scipy, of one image."""
    for _ in range(steps):
        sums = ndimage.convolve(mask.astype(np.int64), np.ones((3, 3), np.int64), mode="constant", cval=0)
        mask = mask | (sums > 2)
    return mask


def each_image(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    return list(mask.reshape(-1, *mask.shape[-2:]))


@given(masks, st.integers(0, 4))
def test_refinement_is_the_convolution(mask: NDArray[np.bool_], steps: int) -> None:
    refined = refine(torch.from_numpy(mask), steps)
    assert refined.shape == mask.shape
    assert refined.dtype == torch.bool
    assert np.array_equal(
        refined.numpy(), np.stack([convolved(each, steps) for each in each_image(mask)]).reshape(mask.shape)
    )


@given(masks)
def test_foreground_never_becomes_background(mask: NDArray[np.bool_]) -> None:
    before = torch.from_numpy(mask.copy())
    refined = refine(before)
    assert bool((refined >= before).all())
    assert np.array_equal(before.numpy(), mask)  # the argument stays as it was


def test_three_steps_are_the_default_and_add_up() -> None:
    mask = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.2
    assert torch.equal(refine(mask), refine(refine(refine(mask, 1), 1), 1))


@pytest.mark.parametrize(
    ("picture", "steps", "refined"),
    [
        ([".X.", "X.X", "..."], 1, [".X.", "XXX", "..."]),  # only the middle has three neighbours
        ([".X.", "X.X", "..."], 2, ["XXX", "XXX", ".X."]),  # with the middle the upper corners have, too
        (["XX.", "...", "..."], 1, ["XX.", "...", "..."]),  # two neighbours are not enough
        (["XXX", "...", "..."], 1, ["XXX", ".X.", "..."]),  # there is nothing beyond the edge
    ],
)
def test_steps_by_hand(picture: list[str], steps: int, refined: list[str]) -> None:
    found = refine(torch.tensor([[cell == "X" for cell in line] for line in picture]), steps).tolist()
    assert ["".join("X" if cell else "." for cell in line) for line in found] == refined


def test_an_exported_graph_refines_alike() -> None:
    class Refiner(nn.Module):
        def forward(self, fg: Tensor) -> Tensor:
            return resize_mask(refine(fg, 3), 8, 9)

    mask = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Refiner(), (mask,), dynamic_shapes={"fg": {0: batch}})
    more = torch.cat([mask, ~mask, mask])
    assert torch.equal(program.module()(more), Refiner()(more))


@pytest.mark.parametrize("wrong", [torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool), np.zeros((3, 3), np.bool_)])
def test_refine_takes_bool_tensors_of_one_or_many_images(wrong: Tensor) -> None:
    with pytest.raises(ParameterError, match="a mask is a bool tensor"):
        refine(wrong)


def test_refine_takes_no_negative_steps() -> None:
    with pytest.raises(ParameterError, match="0 or more steps, not -1"):
        refine(torch.zeros(3, 3, dtype=torch.bool), -1)


@given(grids, st.integers(0, 4), eighths)
def test_critical_probabilities_give_the_refined_mask_at_every_threshold(
    background: NDArray[np.float32], steps: int, threshold: float
) -> None:
    limit = np.float32(threshold)
    expected = refine(torch.from_numpy(background <= limit), steps).numpy()
    assert np.array_equal(critical_probabilities(background, steps) <= limit, expected)


def test_critical_probabilities_of_many_blocks() -> None:
    background = np.random.default_rng(0).random((600, 24, 24), np.float32)
    critical = critical_probabilities(background, 3)
    for threshold in (0.05, 0.2, 0.4):
        expected = refine(torch.from_numpy(background <= np.float32(threshold)), 3).numpy()
        assert np.array_equal(critical <= np.float32(threshold), expected)
    assert critical_probabilities(background, 0) is background


@given(masks, st.integers(1, 20), st.integers(1, 20))
def test_another_grid_reads_the_nearest_cell(mask: NDArray[np.bool_], rows: int, cols: int) -> None:
    found = resize_mask(torch.from_numpy(mask), rows, cols)
    down, across = (
        [floor((index + Fraction(1, 2)) * old / new) for index in range(new)]
        for old, new in ((mask.shape[-2], rows), (mask.shape[-1], cols))
    )
    assert np.array_equal(found.numpy(), mask[..., down, :][..., across])


@pytest.mark.parametrize(("rows", "cols"), [(32, 32), (32, 50), (12, 12), (24, 24), (50, 83)])
def test_another_grid_is_what_torch_calls_nearest_exact(rows: int, cols: int) -> None:
    mask = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = nn.functional.interpolate(mask[:, None].double(), (rows, cols), mode="nearest-exact")[:, 0].bool()
    assert torch.equal(resize_mask(mask, rows, cols), expected)


@pytest.mark.parametrize(("shape", "rows"), [((4,), 2), ((0, 4), 2), ((4, 4), 0)])
def test_another_grid_needs_cells(shape: tuple[int, ...], rows: int) -> None:
    with pytest.raises(ParameterError, match="both need rows and columns"):
        resize_mask(torch.zeros(shape, dtype=torch.bool), rows, 2)


@given(masks, st.integers(0, 6), st.sampled_from([4, 8]))
def test_specks_are_small_components_of_one_image(mask: NDArray[np.bool_], least: int, connectivity: int) -> None:
    found = drop_specks(torch.from_numpy(mask), least, connectivity=connectivity)
    expected = np.zeros_like(mask).reshape(-1, *mask.shape[-2:])
    for image, one in zip(expected, each_image(mask), strict=True):
        component, count = ndimage.label(one, np.ones((3, 3)) if connectivity == 8 else None)
        for index in range(1, count + 1):
            if (component == index).sum() >= least:
                image[component == index] = True
    assert np.array_equal(found.numpy(), expected.reshape(mask.shape))


def test_specks_of_no_images() -> None:
    assert drop_specks(torch.zeros(0, 4, 4, dtype=torch.bool), 3).shape == (0, 4, 4)


def test_specks_are_connected_in_four_or_eight_directions() -> None:
    with pytest.raises(ParameterError, match="4 or 8, not 6"):
        drop_specks(torch.zeros(3, 3, dtype=torch.bool), 2, connectivity=6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees() -> None:
    mask = torch.rand(5, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.2
    there = mask.cuda()
    assert torch.equal(refine(there).cpu(), refine(mask))
    assert torch.equal(resize_mask(there, 32, 50).cpu(), resize_mask(mask, 32, 50))
    assert torch.equal(drop_specks(there, 3).cpu(), drop_specks(mask, 3))
    assert drop_specks(there, 3).device == there.device
