"""The gated detector: equal to the one that never computes what is removed, with the gradient of its policy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from bavit.detect.config import YolosConfig
from bavit.detect.soft import _GatedAttention, soft_blocks, soft_detect
from bavit.detect.yolos import Yolos
from tokenlabels.errors import ParameterError

CONFIG = YolosConfig(
    dim=16, depth=3, heads=2, mlp_hidden=24, image_size=(32, 48), detection_tokens=4, labels=("a", "b"), patch=16,
    shortest_edge=32, longest_edge=48,
)  # fmt: skip
SHARP = 12.0
"""Factor of the weights of attention, so that it is far from uniform."""


def model(*, mid_positions: bool = False, sharp: float = 1.0) -> Yolos:
    torch.manual_seed(0)
    made = Yolos(replace(CONFIG, mid_positions=mid_positions)).double()
    for name, value in made.named_parameters():
        if "qkv" in name or "embed.layers" in name:
            value.data.mul_(sharp)
    return made


def masks(*shapes: tuple[int, int], share: float = 0.5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) < share for shape in shapes]


@pytest.mark.parametrize("prune_after", [0, 2])
@pytest.mark.parametrize("mid_positions", [False, True])
def test_zeros_and_ones_are_the_detector_that_removes(prune_after: int, mid_positions: bool) -> None:
    """One image keeps everything, one nothing; and of several sizes each is as alone."""
    yolos = model(mid_positions=mid_positions, sharp=SHARP)
    pixels = torch.randn(4, 3, 32, 48, dtype=torch.float64)
    keep = [*masks((2, 3), (2, 3)), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)]
    wanted = yolos(pixels, keep, prune_after=prune_after)
    found = soft_detect(yolos, pixels, [mask.double() for mask in keep], prune_after=prune_after)
    assert torch.allclose(found.logits, wanted.logits, rtol=0, atol=1e-12)
    assert torch.allclose(found.boxes, wanted.boxes, rtol=0, atol=1e-12)
    assert not torch.allclose(found.logits, yolos(pixels).logits, rtol=0, atol=1e-3)
    several = [torch.randn(3, *size, dtype=torch.float64) for size in ((32, 48), (48, 16), (16, 64))]
    kept = masks((2, 3), (3, 1), (1, 4))
    wanted = yolos(several, kept, prune_after=prune_after)
    found = soft_detect(yolos, several, [mask.double() for mask in kept], prune_after=prune_after)
    assert torch.allclose(found.logits, wanted.logits, rtol=0, atol=1e-12)


def test_gradients_of_weights_are_those_of_the_detector_that_removes() -> None:
    pixels, keep = torch.randn(2, 3, 32, 48, dtype=torch.float64), masks((2, 3), (2, 3))
    grads = []
    for soft in (False, True):
        yolos = model(sharp=4.0)
        found = soft_detect(yolos, pixels, [mask.double() for mask in keep]) if soft else yolos(pixels, keep)
        (found.logits.square().sum() + found.boxes.sin().sum()).backward()
        grads.append({name: value.grad for name, value in yolos.named_parameters()})
    for name, wanted in grads[0].items():
        other = grads[1][name]
        assert wanted is not None
        assert other is not None
        assert torch.allclose(other, wanted, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("at", ["between", "hard"])
def test_the_gradient_of_pixels_is_that_of_finite_differences(at: str) -> None:
    yolos = model(sharp=4.0)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    policy = torch.rand(2, 2, 2, dtype=torch.float64) * 0.8 + 0.1
    policy = policy.round() if at == "hard" else policy

    def answers(images: Tensor) -> Tensor:
        return soft_detect(yolos, images, list(policy)).logits

    assert torch.autograd.gradcheck(answers, (pixels,), eps=1e-6, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("at", ["between", "hard"])
def test_the_gradient_of_a_policy_is_what_keeping_the_patch_changes(at: str) -> None:
    """By the secant from the policy to 1, all else as it is; at 1, which has no secant, by a small step."""
    query, key, value = torch.randn(3, 2, 2, 6, 4, dtype=torch.float64).mul(1.5).unbind(0)
    policy = torch.rand(2, 6, dtype=torch.float64) * 0.8 + 0.1
    policy = (policy.round() if at == "hard" else policy).requires_grad_()
    weights = torch.randn(2, 2, 6, 4, dtype=torch.float64)

    def answer(decision: Tensor) -> Tensor:
        found: Tensor = (_GatedAttention.apply(query, key, value, decision) * weights).sum()
        return found

    (gradient,) = torch.autograd.grad(answer(policy), policy)
    for image, patch in product(range(2), range(6)):
        now = policy.detach().clone()
        other = now.clone()
        other[image, patch] = 1.0 if now[image, patch] < 1 else 1 - 1e-7
        slope = (answer(other) - answer(now)) / (other - now).sum()
        assert torch.allclose(gradient[image, patch], slope, rtol=1e-5, atol=1e-7)


def test_the_gradient_reaches_removed_patches_and_tells_what_they_hold() -> None:
    """A patch that attention looks for, and that makes the answer better, is wanted back."""
    yolos = model(sharp=4.0)
    pixels = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    keep = torch.tensor([[True, False, True], [False, False, True]])
    policy = keep.double().requires_grad_()
    with torch.no_grad():
        wanted = yolos(pixels).logits
    loss = (soft_detect(yolos, pixels, [policy]).logits - wanted).square().sum()
    loss.backward()
    gradient = policy.grad
    assert gradient is not None
    assert (gradient != 0).all()
    moved = policy.detach() - 1e-3 * gradient / gradient.norm()
    assert (soft_detect(yolos, pixels, [moved]).logits - wanted).square().sum() < loss


def test_scores_of_any_size_stay_finite() -> None:
    """Removed patches that attention would see above all others, by more than float32 can hold."""
    yolos = model(sharp=300.0).float()
    pixels, keep = torch.randn(2, 3, 32, 48), masks((2, 3), (2, 3), share=0.3)
    policy = [mask.float().requires_grad_() for mask in keep]
    found = soft_detect(yolos, pixels, policy)
    assert torch.allclose(found.boxes, yolos(pixels, keep).boxes, atol=1e-3)
    found.boxes.sum().backward()  # type: ignore[no-untyped-call]
    for each in policy:
        assert each.grad is not None
        assert each.grad.isfinite().all()


def test_other_shapes_are_refused() -> None:
    yolos, pixels = model(), torch.zeros(2, 3, 32, 48, dtype=torch.float64)
    with pytest.raises(ParameterError, match=r"\(3, 2\)"):
        soft_blocks(yolos, pixels, [torch.ones(3, 2), torch.ones(3, 2)])
    with pytest.raises(ParameterError, match="prune after layer 3"):
        soft_blocks(yolos, pixels, [torch.ones(2, 3), torch.ones(2, 3)], prune_after=3)
