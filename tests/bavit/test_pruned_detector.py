"""BAViT in front of YOLOS: what is kept, that the rest is never computed, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from bavit import BAViT, PrunedDetector, Yolos, refine, resize_mask
from bavit.detect.config import YolosConfig
from bavit.detect.pruned import StageTimes
from bavit.detect.pruning import Pruning, carry
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid

CONFIG = YolosConfig(
    dim=32, depth=3, heads=2, mlp_hidden=64, patch=16, image_size=(96, 128), detection_tokens=6,
    labels=("cat", "dog"), shortest_edge=96, longest_edge=160,
)  # fmt: skip
BIG = (96, 128)


def yolos(**changes: Any) -> Yolos:
    torch.manual_seed(0)
    model = Yolos(replace(CONFIG, **changes)).eval()
    if model.backbone.mid_pos_embed is not None:
        torch.nn.init.normal_(model.backbone.mid_pos_embed, std=0.2)
    return model


def bavit(**options: Any) -> BAViT:
    torch.manual_seed(1)
    model = BAViT(**{"depth": 1, "width": 32, "heads": 2, "image_size": 64, "threshold": 0.5} | options).eval()
    torch.nn.init.normal_(model.vit.get_parameter("head.weight"), std=2.0)
    return model


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(2)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for width, height in sizes]


def masked_keys(model: Yolos, pixels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle: timm's blocks on all tokens, removed patches masked as keys. Logits and boxes."""
    backbone = model.backbone
    count = model.config.detection_tokens
    patches = backbone.patch_embed(pixels)
    batch = len(pixels)
    x = torch.cat([backbone.cls_token.expand(batch, -1, -1), patches, backbone.det_token.expand(batch, -1, -1)], 1)
    x = x + backbone.pos_embed  # these inputs have the stored size
    always = torch.ones(batch, 1, dtype=torch.bool)
    keys = torch.cat([always, keep.flatten(1), always.expand(-1, count)], 1)[:, None, None].expand(
        -1, 1, x.shape[1], -1
    )
    for index, block in enumerate(backbone.blocks):
        x = block(x, attn_mask=keys)
        if backbone.mid_pos_embed is not None and index < len(backbone.mid_pos_embed):
            x = x + backbone.mid_pos_embed[index]
    x = backbone.norm(x)[:, -count:]
    return model.class_embed(x), model.bbox_embed(x).sigmoid()


@pytest.mark.parametrize("mid", [False, True])
def test_removed_patches_are_as_if_masked(mid: bool) -> None:
    model = yolos(mid_positions=mid)
    pixels = torch.randn(4, 3, *BIG)
    keep = torch.rand(4, 6, 8) < torch.tensor([0.5, 0.1, 0.9, 0.0])[:, None, None]
    with torch.no_grad():
        logits, boxes = masked_keys(model, pixels, keep)
        found = model(pixels, keep)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert torch.allclose(found.boxes, boxes, atol=1e-5)


def test_what_is_removed_is_never_read() -> None:
    """Whatever stands in removed patches, not-a-number even, changes nothing; in kept ones it does."""
    model = yolos()
    pixels = torch.randn(2, 3, *BIG)
    keep = torch.rand(2, 6, 8) < 0.5
    cells = interpolate(keep[:, None].float(), BIG, mode="nearest")[:, 0].bool()
    spoiled = torch.where(cells[:, None], pixels, torch.nan)
    with torch.no_grad():
        assert torch.equal(model(spoiled, keep).logits, model(pixels, keep).logits)
        assert torch.equal(model.patch_tokens(spoiled, keep), model.patch_tokens(pixels, keep))
        assert model(spoiled, keep, prune_after=1).logits.isnan().all()


def test_gradients_reach_kept_patches_alone() -> None:
    pixels = torch.randn(1, 3, *BIG, requires_grad=True)
    keep = torch.rand(1, 6, 8) < 0.5
    torch.autograd.backward(yolos()(pixels, keep).logits.sum())
    assert pixels.grad is not None
    touched = pixels.grad.abs().sum(1).unfold(1, 16, 16).unfold(2, 16, 16).sum((-1, -2)) > 0
    assert torch.equal(touched, keep)


def test_patch_tokens_have_zeros_where_removed() -> None:
    model = yolos()
    pixels, keep = torch.randn(2, 3, *BIG), torch.rand(2, 6, 8) < 0.4
    with torch.no_grad():
        found, whole = model.patch_tokens(pixels, keep), model.patch_tokens(pixels)
        everything = model.patch_tokens(pixels, torch.ones_like(keep))
    assert found.shape == whole.shape == (2, 48, 32)
    assert not found[~keep.flatten(1)].any()
    assert found[keep.flatten(1)].abs().sum(-1).all()
    assert torch.allclose(everything, whole, atol=1e-5)


@pytest.mark.parametrize("after", [1, 2])
def test_blocks_before_pruning_see_everything(after: int) -> None:
    """Pruning after layer L equals L dense blocks, then the others on what is left."""
    model = yolos(mid_positions=True)
    pixels, keep = torch.randn(2, 3, *BIG), torch.rand(2, 6, 8) < 0.5
    with torch.no_grad():
        pruned = list(model.blocks(pixels, keep, prune_after=after))
        dense = list(model.blocks(pixels))
        for index in range(after):
            assert torch.allclose(pruned[index].values, dense[index].values, atol=1e-6)
        kept = keep.flatten(1).sum(1) + 1 + CONFIG.detection_tokens
        assert pruned[after].lengths == tuple(kept.tolist())
        unpruned = model(pixels, torch.ones_like(keep), prune_after=after)
        assert torch.allclose(unpruned.logits, model(pixels).logits, atol=1e-5)


def test_sizes_in_one_batch_do_not_touch() -> None:
    model = yolos(mid_positions=True)
    images = [torch.randn(3, 96, 128), torch.randn(3, 32, 160), torch.randn(3, 96, 96), torch.randn(3, 32, 160)]
    keep = [torch.rand(6, 8) < 0.5, None, torch.rand(6, 6) < 0.3, torch.zeros(2, 10, dtype=torch.bool)]
    with torch.no_grad():
        together = model(images, keep)
        for index, (image, mask) in enumerate(zip(images, keep, strict=True)):
            alone = model(image[None], None if mask is None else mask[None])
            assert torch.allclose(together.logits[index], alone.logits[0], atol=1e-5)
            assert torch.allclose(together.boxes[index], alone.boxes[0], atol=1e-5)


def test_the_detector_follows_its_parts_step_by_step() -> None:
    first, second = bavit(), yolos()
    images = pictures((200, 150), (150, 200), (128, 128))
    detector = PrunedDetector(first, second, threshold=0.4, refine_steps=2)
    times = StageTimes()
    found = detector(images, times)
    for image, detection in zip(images, found, strict=True):
        pixels = second.preprocess([image])
        assert isinstance(pixels, Tensor)
        with torch.no_grad():
            foreground = refine(first.background(first.preprocess(image)) <= 0.4, 2)
            keep = resize_mask(foreground, *second.backbone.grid_of(pixels))
            output = second(pixels, keep)
        scores, labels = output.logits[0].softmax(-1)[:, :-1].max(-1)
        order = scores.argsort(descending=True)
        centre, extent = output.boxes[0, order, :2], output.boxes[0, order, 2:]
        size = torch.tensor(image.size)
        corners = torch.cat([(centre - extent / 2) * size, (centre + extent / 2) * size], 1)
        assert torch.equal(detection.keep, keep[0])
        assert torch.allclose(detection.scores, scores[order], atol=1e-5)
        assert torch.allclose(detection.boxes, corners, atol=1e-2)
        assert (detection.labels == labels[order]).all()
    assert times.images == 3
    assert list(times.seconds) == ["input of BAViT", "input of the detector", "BAViT", "masks", "detector", "boxes"]


def test_an_image_does_not_depend_on_its_batch() -> None:
    detector = PrunedDetector(bavit(), yolos(), sparsity=0.4)
    images = pictures((200, 150), (90, 200), (200, 150))
    together = detector(images)
    for image, detection in zip(images, together, strict=True):
        alone = detector(image)[0]
        assert torch.equal(detection.keep, alone.keep)
        assert torch.allclose(detection.boxes, alone.boxes, atol=1e-2)
    assert detector([]) == []


def test_without_bavit_and_at_threshold_one_it_is_dense() -> None:
    second = yolos()
    images = pictures((200, 150), (200, 150))
    plain = PrunedDetector(None, second)(images)
    everything = PrunedDetector(bavit(), second, threshold=1.0)(images)
    for one, other in zip(plain, everything, strict=True):
        assert one.keep.all()
        assert other.keep.all()
        assert torch.equal(one.boxes, other.boxes)


def test_nothing_kept_still_detects() -> None:
    model = bavit()
    found = PrunedDetector(model, yolos(), top_k=0)(pictures((64, 64)))[0]
    assert not found.keep.any()
    assert found.boxes.isfinite().all()


GRID = PatchGrid.parse((16, 16), (64, 64), "squash")


@pytest.mark.parametrize(
    ("choice", "counts"),
    [
        (Pruning(top_k=7), (7, 7)),
        (Pruning(top_k=1000), (48, 30)),
        (Pruning(sparsity=0.25), (36, 23)),
        (Pruning(sparsity=1.0), (0, 0)),
        (Pruning(threshold=1.0, max_tokens=11), (11, 11)),
    ],
)
def test_counts(choice: Pruning, counts: Sequence[int]) -> None:
    background = torch.rand(2, 4, 4)
    found = choice.masks(background, GRID, [(80, 60), (60, 50)], [(6, 8), (5, 6)], 0.5)
    assert [int(mask.sum()) for mask in found] == list(counts)


def test_a_cap_takes_the_most_certain_of_what_the_threshold_keeps() -> None:
    background = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(4))
    shapes = [(6, 8)] * 3
    sizes = [(80, 60)] * 3
    plain = Pruning(threshold=0.3, refine_steps=1).masks(background, GRID, sizes, shapes, 0.5)
    loose = Pruning(threshold=0.3, refine_steps=1, max_tokens=1000).masks(background, GRID, sizes, shapes, 0.5)
    tight = Pruning(threshold=0.3, refine_steps=1, max_tokens=5).masks(background, GRID, sizes, shapes, 0.5)
    for whole, same, some in zip(plain, loose, tight, strict=True):
        assert torch.equal(whole, same)
        assert int(some.sum()) == min(5, int(whole.sum()))
        assert not (some & ~whole).any()


def test_masks_keep_relative_position_on_any_grid() -> None:
    fine = carry(torch.eye(24, dtype=torch.bool)[None], GRID, [(640, 480)], [(32, 42)])[0]
    for row in range(32):
        for col in range(42):
            assert bool(fine[row, col]) == (int((row + 0.5) / 32 * 24) == int((col + 0.5) / 42 * 24))


def test_letterbox_cells_are_found_where_they_lie() -> None:
    grid = PatchGrid.parse((16, 16), (96, 96), "letterbox")
    size = (200, 100)  # scale 0.48: the picture fills rows 1.5 to 4.5 of 6
    cells = torch.arange(36).view(1, 6, 6)
    found = carry(cells, grid, [size], [(6, 12)])[0]
    for row in range(6):
        for col in range(12):
            y = (row + 0.5) / 6 * 48 + 24
            x = (col + 0.5) / 12 * 96
            assert int(found[row, col]) == int(y // 16) * 6 + int(x // 16)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 1.5}, r"threshold 1.5 is out of range"),
        ({"sparsity": -0.1}, r"sparsity -0.1 is out of range"),
        ({"threshold": 0.5, "top_k": 3}, "cannot both"),
        ({"top_k": -1}, "top_k -1"),
        ({"refine_steps": -1}, "steps of refinement"),
        ({"prune_after": 3}, "the detector has 3 blocks"),
        ({"threshold": float("nan")}, "threshold nan"),
    ],
)
def test_bad_choices(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        PrunedDetector(bavit(), yolos(), **options)


@pytest.mark.parametrize(
    ("pixels", "keep", "told"),
    [
        (torch.zeros(1, 3, 90, 96), None, "cannot be cut into patches of 16"),
        (torch.zeros(1, 1, 96, 96), None, r"takes pixels of \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 96, 96), torch.ones(1, 5, 6, dtype=torch.bool), "take a bool mask"),
        (torch.zeros(1, 3, 96, 96), torch.ones(1, 6, 6), "take a bool mask"),
        ([torch.zeros(3, 96, 96)], [None, None], "2 masks are not for 1 images"),
        ([], None, "one image or more"),
    ],
)
def test_bad_inputs(pixels: Any, keep: Any, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        yolos()(pixels, keep)
