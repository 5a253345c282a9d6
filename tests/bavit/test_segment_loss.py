"""Losses of segmentation against torch's and torchvision's own, picture by picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torchvision.ops import sigmoid_focal_loss

from bavit.segment.loss import FCN_AUXILIARY, segmentation_loss
from bavit.segment.model import StageOutput

CLASSES, PATCH = 5, (8, 8)


def targets() -> Tensor:
    """Three pictures of 32 x 24: several classes and void, one class, all void."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 3, (3, 32, 24), generator=generator)
    found[0, :5] = 255
    found[1] = 4
    found[2] = 255
    return found


def stages(*, atm: bool) -> list[StageOutput]:
    generator = torch.Generator().manual_seed(1)
    return [
        StageOutput(
            torch.randn(3, CLASSES, 4, 3, generator=generator).requires_grad_(),
            torch.randn(3, CLASSES, 2, generator=generator).requires_grad_() if atm else None,
            torch.full((3,), 12),
        )
        for _ in range(3)
    ]


def test_cross_entropy_of_all_stages() -> None:
    given, wanted = stages(atm=False), targets()
    found = segmentation_loss(given, wanted.to(torch.uint8), PATCH)
    parts = [
        cross_entropy(
            interpolate(stage.logits, (32, 24), mode="bilinear", align_corners=False), wanted, ignore_index=255
        )
        for stage in given
    ]
    assert torch.allclose(found.classes, parts[-1])
    assert torch.allclose(found.total, FCN_AUXILIARY * (parts[0] + parts[1]) + parts[2])


def test_masks_and_classes_of_all_stages() -> None:
    given, wanted = stages(atm=True), targets()
    found = segmentation_loss(given, wanted, PATCH)
    total, last = torch.zeros(()), (torch.zeros(()),) * 3
    for stage in given:
        focal, dice, absent = [], [], torch.ones(3, CLASSES, dtype=torch.int64)
        masks = interpolate(stage.logits, (32, 24), mode="bilinear", align_corners=False)
        for image in range(3):
            labelled = wanted[image] != 255
            for value in sorted({*wanted[image][labelled].tolist()}):
                absent[image, value] = 0
                mask, truth = masks[image, value][labelled], (wanted[image][labelled] == value).float()
                focal.append(sigmoid_focal_loss(mask, truth, 0.25, 2.0, "mean"))
                share = mask.sigmoid()
                dice.append(1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1))
        assert stage.class_logits is not None
        told = stage.class_logits[:2].flatten(0, 1)  # the third picture has no labels
        classes = cross_entropy(told, absent[:2].flatten(), torch.tensor([1.0, 0.1]))
        last = (classes, torch.stack(focal).mean(), torch.stack(dice).mean())
        total = total + last[0] + 20 * last[1] + last[2]
    assert torch.allclose(found.total, total)
    for part, oracle in zip(found[1:], last, strict=True):
        assert torch.allclose(part, oracle)


@pytest.mark.parametrize("atm", [False, True])
def test_pictures_without_labels_cost_nothing(atm: bool) -> None:
    given = stages(atm=atm)
    found = segmentation_loss(given, torch.full((3, 32, 24), 255), PATCH)
    assert found.total == 0
    torch.autograd.backward(found.total)
    gradients = [stage.logits.grad for stage in given]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("atm", [False, True])
def test_void_pixels_have_no_gradient(atm: bool) -> None:
    given, wanted = stages(atm=atm), targets()
    wanted[0, 16:] = 255  # the lower half of the first picture: cells far from the border learn nothing
    torch.autograd.backward(segmentation_loss(given, wanted, PATCH).total)
    gradient = given[0].logits.grad
    assert gradient is not None
    assert not gradient[0, :, 3].any()
    assert gradient[0, :, :2].any()


def test_an_unlabelled_picture_beside_others_teaches_no_class() -> None:
    given, wanted = stages(atm=True), targets()
    torch.autograd.backward(segmentation_loss(given, wanted, PATCH).total)
    gradients = [stage.class_logits.grad for stage in given if stage.class_logits is not None]
    assert all(gradient is not None and gradient[:2].any() and not gradient[2].any() for gradient in gradients)
