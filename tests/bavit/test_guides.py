"""Detectors from scratch: where they begin, and what guides them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bavit.detect.config import YolosConfig
from bavit.detect.guides import guide_loss, objects_at, patch_centres
from bavit.detect.initialize import _turned, anchors, from_scratch, sines
from bavit.detect.yolos import Yolos
from tokenlabels.errors import ParameterError

CONFIG = YolosConfig(
    dim=64, depth=2, heads=4, mlp_hidden=128, patch=8, image_size=(48, 64), detection_tokens=6, labels=("cat", "dog")
)


def scratch(config: YolosConfig = CONFIG) -> Yolos:
    torch.manual_seed(0)
    model = Yolos(config).eval()
    pixels = torch.randn(4, 3, *config.image_size)
    from_scratch(model, pixels, torch.Generator().manual_seed(0))
    return model


def test_sines_are_turned_to_the_place_beside() -> None:
    places, step = torch.rand(9, 2), (0.07, -0.2)
    beside = sines(places + torch.tensor(step), 5)
    assert torch.allclose(sines(places, 5) @ _turned(step, 5).T, beside, atol=1e-5)


def test_boxes_begin_near_their_anchors_and_are_no_objects() -> None:
    model = scratch()
    with torch.no_grad():
        found = model(torch.randn(2, 3, 48, 64))
    spread = (anchors(6) - 0.5).abs().mean()
    assert (found.boxes[..., :2] - anchors(6)).abs().mean() < 0.7 * spread, "nearer than all boxes in the middle"
    assert (found.boxes[..., 2:] - 0.25).abs().max() < 0.02
    assert (found.logits.argmax(-1) == 2).all()


def test_detection_tokens_attend_to_the_patches_at_their_anchors() -> None:
    model = scratch()
    block = model.backbone.blocks[0]
    tokens = next(iter(model.blocks(torch.randn(1, 3, 48, 64))))
    assert tokens.lengths == (1 + 48 + 6,)
    x = model.backbone._embed([torch.randn(1, 3, 48, 64)], [None], [(6, 8)]).values
    with torch.no_grad():
        qkv = block.get_submodule("attn.qkv")(block.get_submodule("norm1")(x)).view(-1, 3, 4, 16)
        scores = torch.einsum("qhd,khd->hqk", qkv[-6:, 0], qkv[:, 1]) / 4
    shares = scores.softmax(-1)
    assert shares[..., 1:49].sum(-1).min() > 0.8
    centres = patch_centres([(6, 8)], None, torch.device("cpu"))[0]
    seen = shares[..., 1:49] @ centres / shares[..., 1:49].sum(-1, keepdim=True)
    spread = (anchors(6) - 0.5).abs().mean()
    assert (seen.mean(0) - anchors(6)).abs().mean() < 0.7 * spread, "nearer than all in the middle"


def test_heads_too_narrow_are_refused() -> None:
    with pytest.raises(ParameterError, match="too narrow"):
        scratch(YolosConfig(dim=8, depth=1, heads=2, mlp_hidden=8, patch=8, image_size=(16, 16), labels=("cat",)))


def test_patch_centres_of_kept_patches() -> None:
    keep = torch.rand(2, 3) < 0.5
    every, some = patch_centres([(2, 3), (2, 3)], [torch.ones(2, 3, dtype=torch.bool), keep], torch.device("cpu"))
    assert torch.allclose(every[4], torch.tensor([0.5, 0.75]))
    assert torch.equal(some, every[keep.flatten()])


def test_objects_at_is_the_smallest_around() -> None:
    torch.manual_seed(1)
    centres, boxes = torch.rand(200, 2), torch.rand(6, 4) * 0.6
    least = torch.tensor([0.05, 0.02])
    found = objects_at(centres, boxes, 0.6, least)
    for (x, y), number in zip(centres.tolist(), found.tolist(), strict=True):
        around = []
        for index, (cx, cy, width, height) in enumerate(boxes.tolist()):
            if abs(x - cx) <= max(width * 0.3, 0.05) and abs(y - cy) <= max(height * 0.3, 0.02):
                around.append((width * height, index))
        assert number == (min(around)[1] if around else -1)
    assert (objects_at(centres, boxes[:0], 0.6, least) == -1).all()


def _answers(classes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(classes, 3).float() * 50


def test_right_answers_cost_nothing_and_wrong_ones_do() -> None:
    centres = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    boxes, classes = torch.tensor([[0.25, 0.5, 0.2, 0.2]]), torch.tensor([1])
    right, least = torch.tensor([[0.25, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]), torch.tensor([0.01, 0.01])

    def cost(logits: Tensor, found: Tensor) -> float:
        return float(guide_loss([logits], [found], [centres], [boxes], [classes], core=1.0, least=[least]))

    assert cost(_answers(torch.tensor([1, 2])), right) == pytest.approx(0, abs=1e-5)
    assert cost(_answers(torch.tensor([0, 2])), right) > 1
    moved = right.clone()
    moved[1] = 0.5  # where there is no object, any box will do
    assert cost(_answers(torch.tensor([1, 2])), moved) == pytest.approx(0, abs=1e-5)
    moved[0, 0] += 0.1
    assert cost(_answers(torch.tensor([1, 2])), moved) > 0.5


def test_images_without_objects_cost_their_classes_alone() -> None:
    logits, found = torch.randn(5, 3), torch.rand(5, 4)
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    cost = guide_loss([logits], [found], [torch.rand(5, 2)], [nothing], [none], core=1.0, least=[torch.zeros(2)])
    wanted = cross_entropy(logits, torch.full((5,), 2), torch.tensor([1.0, 1.0, 0.1]))
    assert float(cost) == pytest.approx(float(wanted), rel=1e-6)
