"""Counted multiply-accumulates, against those torch measures and those printed in the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bavit.flops import YOLOS_TINY, VitShape, background_vit, count_macs, vit_macs, yolos


def timm_vit(depth: int, size: int = 384, **options: object) -> nn.Module:
    plain: dict[str, Any] = {"num_classes": 2, "class_token": False, "global_pool": ""}
    model = VisionTransformer(img_size=size, embed_dim=192, depth=depth, num_heads=3, **(plain | options))
    return model.eval()


@pytest.mark.parametrize(("depth", "giga"), [(2, 0.850), (10, 3.91)])
def test_background_vit_costs_what_torch_measures(depth: int, giga: float) -> None:
    counted = background_vit(depth).macs(576)
    assert counted == 576 * 768 * 192 + depth * (576 * 12 * 192**2 + 2 * 576**2 * 192) + 576 * 192 * 2
    assert counted / 1e9 == pytest.approx(giga, abs=0.005)
    with torch.device("meta"):
        assert count_macs(timm_vit(depth), torch.zeros(1, 3, 384, 384)) == counted


def test_a_batch_costs_its_images() -> None:
    model, pixels = timm_vit(1, 64), torch.zeros(3, 3, 64, 64)
    assert count_macs(model, pixels) == 3 * background_vit(1).macs(16)


def test_extra_tokens_and_a_narrow_mlp_count() -> None:
    model = timm_vit(2, 64, class_token=True, reg_tokens=4, mlp_ratio=2.0)
    shape = VitShape(192, 2, extra_tokens=5, mlp_ratio=2.0)
    head = (16 + 5) * 2 * 192  # timm puts its head on the extra tokens, too
    assert count_macs(model, torch.zeros(1, 3, 64, 64)) == shape.macs(16) + head


def test_yolos_tiny_costs_what_is_known_of_it() -> None:
    assert YOLOS_TINY.macs(1024) / 1e9 == pytest.approx(11.97, abs=0.005)
    assert YOLOS_TINY.head_macs == 100 * (2 * 192 * 192 + 192 * 92 + 2 * 192 * 192 + 192 * 4)
    assert yolos(12, dim=192) == YOLOS_TINY
    assert YOLOS_TINY.extra_tokens == 101


def test_yolos_heads_cost_what_torch_measures() -> None:
    def mlp(outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, outputs))

    tokens = torch.zeros(1, 100, 192)
    assert sum(count_macs(mlp(outputs), tokens) for outputs in (92, 4)) == YOLOS_TINY.head_macs


def test_arrays_of_token_counts() -> None:
    counts = np.array([[0, 1], [576, 30_000]], np.uint16)
    found = YOLOS_TINY.macs(counts)
    assert found.dtype == np.int64
    assert found.tolist() == [[YOLOS_TINY.macs(each) for each in line] for line in counts.tolist()]


def test_patches_may_be_embedded_before_they_are_dropped() -> None:
    shape = background_vit(2)
    assert shape.macs(100, embedded=576) - shape.macs(100) == 476 * 768 * 192


def test_blocks_alone() -> None:
    assert vit_macs(10, 8, 3) == 3 * (10 * 12 * 64 + 2 * 100 * 8)
