"""Tokens by the arithmetic of the BAViT paper, and multiply-accumulates against those that torch measures."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bavit
from bavit.detect.accounting import TokenReduction, detector_macs, token_reduction
from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.yolos import Yolos
from bavit.flops import YOLOS_TINY, count_macs
from tokenlabels.errors import ParameterError

TINY = YolosConfig(
    dim=32, depth=3, heads=2, mlp_hidden=72, patch=16, image_size=(64, 64), detection_tokens=5, labels=("a", "b")
)


def test_it_is_exported() -> None:
    assert bavit.token_reduction is token_reduction


@pytest.mark.parametrize(
    ("sparsity", "left", "total", "percent"),
    [
        (0, 12288, 13440, -9.375),
        (0.35, 7987, 9139, 25.6),  # 12288 x 0.65 = 7987.2, by hand
        (0.46, 6635, 7787, 36.6),  # 12288 x 0.54 = 6635.52
        (0.5, 6144, 7296, 40.625),
        (1, 0, 1152, 90.625),
    ],
)
def test_tokens_as_the_paper_counts_them(sparsity: float, left: int, total: int, percent: float) -> None:
    found = token_reduction(sparsity)
    assert (found.tokens_detector, found.tokens_bavit) == (12 * 1024, 2 * 576)
    assert (found.tokens_pruned, found.tokens_total) == (left, total)
    assert found.reduction == pytest.approx(1 - total / 12288, abs=1e-15)
    assert round(100 * found.reduction, 1) == round(percent, 1)
    assert found.sparsity == sparsity


def test_every_percent_is_rounded_down_in_whole_numbers() -> None:
    for percent in range(101):
        left = 12288 * (100 - percent) // 100
        for written in (percent / 100, np.float32(percent / 100), np.float64(percent / 100), Decimal(percent) / 100):
            assert token_reduction(written).tokens_pruned == left
        thousand = token_reduction(percent / 100, patches=100, depth=10)
        assert thousand.tokens_pruned == 1000 - 10 * percent  # floor(1000 * (1 - 0.9)) is 99 in floating point


@given(st.integers(1, 5000), st.integers(1, 40), st.data())
def test_a_share_of_whole_tokens_gives_them_back(patches: int, depth: int, data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, patches))
    for sparsity in (removed / patches, 1 - (patches - removed) / patches, Fraction(removed, patches)):
        found = token_reduction(sparsity, patches=patches, depth=depth, bavit_patches=0, bavit_depth=0)
        assert found.tokens_pruned == found.tokens_total == (patches - removed) * depth
        assert found.reduction == pytest.approx(removed / patches)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_sparsity_leaves_fewer_tokens(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert token_reduction(low).tokens_pruned >= token_reduction(high).tokens_pruned


@pytest.mark.parametrize("sparsity", [-0.01, 1.01, float("nan"), float("inf"), "much"])
def test_what_is_no_share(sparsity: float) -> None:
    with pytest.raises(ParameterError, match="0 to 1"):
        token_reduction(sparsity)


def test_counts_that_make_no_detector() -> None:
    with pytest.raises(ParameterError, match="no detector"):
        token_reduction(0.5, depth=0)
    assert token_reduction(0.5, bavit_depth=0) == TokenReduction(0.5, 12288, 0, 6144, 6144, 0.5)


def test_the_dense_detector_costs_what_is_known_of_it() -> None:
    assert detector_macs(SIZES["tiny"], 1024, 1024) == YOLOS_TINY.macs(1024)
    assert detector_macs(SIZES["tiny"], 1024, 1024, prune_after=7) == YOLOS_TINY.macs(1024)


@pytest.mark.parametrize("prune_after", [0, 1, 2])
def test_a_pruned_detector_costs_what_torch_measures(prune_after: int) -> None:
    torch.manual_seed(0)
    model, pixels = Yolos(TINY).eval(), torch.randn(1, 3, 64, 48)
    for kept in (0, 1, 7, 12):
        keep = (torch.arange(12) < kept).view(1, 4, 3)
        measured = count_macs(masked(model, keep, prune_after), pixels)
        assert detector_macs(TINY, kept, 12, prune_after=prune_after) == measured
    counts = np.array([0, 1, 7, 12])
    several = detector_macs(TINY, counts, 12, prune_after=prune_after)
    assert several.tolist() == [detector_macs(TINY, count, 12, prune_after=prune_after) for count in counts.tolist()]
    assert np.array_equal(detector_macs(TINY, counts, np.full(4, 12), prune_after=prune_after), several)


def masked(model: Yolos, keep: torch.Tensor, prune_after: int) -> torch.nn.Module:
    """The model with a mask as a module of one argument."""

    class Masked(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(pixels, keep, prune_after=prune_after, backend="padded").logits
            return logits

    return Masked()


def test_what_cannot_be_kept() -> None:
    with pytest.raises(ParameterError, match="cannot be kept"):
        detector_macs(TINY, 13, 12)
    with pytest.raises(ParameterError, match="cannot be kept"):
        detector_macs(TINY, np.array([3, 13]), np.array([3, 12]))
    with pytest.raises(ParameterError, match="prune after layer 3"):
        detector_macs(TINY, 1, 12, prune_after=3)
