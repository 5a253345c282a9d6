"""What segmentation costs in training: of every stage, on the pixels of the labels; 255 counts for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bavit.segment.model import StageOutput, upsample

IGNORED = 255
"""In targets: no class."""

FCN_AUXILIARY = 0.4
"""Weight of the heads before the last: SETR's; those of ATM weigh as much as the last, as DToP's code has it."""

MASK_WEIGHT, DICE_WEIGHT, CLASS_WEIGHT = 20.0, 1.0, 1.0
ABSENT_WEIGHT = 0.1
"""Of the classes that are not in a picture, in the loss of ATM's classes."""

_ALPHA, _GAMMA = 0.25, 2.0


class SegmentationLoss(NamedTuple):
    """Means over a batch, scalars.

    Attributes:
        total: weighted, of all stages.
        classes: of the last stage: cross entropy of pixels (FCN), or of which classes are there (ATM).
        mask: focal loss of the last stage's masks, 0 with FCN.
        dice: dice loss of the last stage's masks, 0 with FCN.
    """

    total: Tensor
    classes: Tensor
    mask: Tensor
    dice: Tensor


def segmentation_loss(stages: Sequence[StageOutput], targets: Tensor, patch: tuple[int, int]) -> SegmentationLoss:
    """The loss of a batch.

    Args:
        stages: of the model, the last one last.
        targets: uint8 or int64 (B, H, W), classes of pixels, 255: none.
        patch: (height, width) of a patch in pixels.

    Returns:
        FCN: cross entropy, mean over labelled pixels. ATM: 20 focal + dice + class (SegViT, section 3.3; MaskFormer).
    """
    targets = targets.long()
    if stages[0].class_logits is None:
        losses = [_pixel_loss(upsample(stage.logits, _size(targets), patch), targets) for stage in stages]
        weights = [FCN_AUXILIARY] * (len(losses) - 1) + [1.0]
        total = torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum()
        nothing = torch.zeros_like(losses[-1])
        return SegmentationLoss(total, losses[-1], nothing, nothing)
    image, classes = _present(targets, stages[0].logits.shape[1])
    parts = [_mask_losses(stage, targets, image, classes, patch) for stage in stages]
    total = torch.stack([CLASS_WEIGHT * c + MASK_WEIGHT * m + DICE_WEIGHT * d for c, m, d in parts]).sum()
    return SegmentationLoss(total, *parts[-1])


def _size(targets: Tensor) -> tuple[int, int]:
    return targets.shape[1], targets.shape[2]


def _pixel_loss(logits: Tensor, targets: Tensor) -> Tensor:
    total = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _present(targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """int64 (m,) each: image and class of every class that is in an image."""
    offsets = torch.arange(len(targets), device=targets.device)[:, None] * (IGNORED + 1)
    counts = torch.bincount((targets.flatten(1) + offsets).flatten(), minlength=len(targets) * (IGNORED + 1))
    there = counts.view(-1, IGNORED + 1)[:, :classes] > 0
    image, found = there.nonzero().unbind(1)
    return image, found


def _mask_losses(
    stage: StageOutput, targets: Tensor, image: Tensor, classes: Tensor, patch: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, focal and dice loss of one stage of ATM, for the m classes that are there."""
    assert stage.class_logits is not None
    absent = torch.ones(stage.class_logits.shape[:2], dtype=torch.int64, device=targets.device)
    absent[image, classes] = 0
    if not len(image):
        nothing = 0 * stage.logits.sum()
        return 0 * stage.class_logits.sum(), nothing, nothing
    weight = stage.class_logits.new_tensor([1.0, ABSENT_WEIGHT])
    told = (targets != IGNORED).flatten(1).any(1)  # of a picture without labels nobody knows what is in it
    class_loss = cross_entropy(stage.class_logits[told].transpose(1, 2), absent[told], weight)
    masks = upsample(stage.logits[image, classes][:, None], _size(targets), patch)[:, 0].flatten(1)
    labelled = (targets != IGNORED).flatten(1)[image].float()
    wanted = (targets[image] == classes[:, None, None]).flatten(1).float()
    focal = (_focal(masks, wanted) * labelled).sum(1) / labelled.sum(1)
    shares = masks.sigmoid() * labelled
    dice = 1 - (2 * (shares * wanted).sum(1) + 1) / (shares.sum(1) + wanted.sum(1) + 1)
    return class_loss, focal.mean(), dice.mean()


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), alpha 0.25, gamma 2, of each pixel."""
    loss = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    share = logits.sigmoid()
    hit = share * wanted + (1 - share) * (1 - wanted)
    return (_ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)) * loss * (1 - hit) ** _GAMMA
