"""The set-matching loss of DETR and YOLOS, as transformers has it.

Every object is matched with one detection token, at the least sum of costs; that token learns its class and box, all
others learn no-object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

CLASS_COST, L1_COST, GIOU_COST, NO_OBJECT_WEIGHT = 1.0, 5.0, 2.0, 0.1
"""Of the YOLOS authors; the costs weigh the parts of the loss, too."""

N = TypeVar("N", float, Tensor)


class SetLoss(NamedTuple):
    """float32 scalars.

    Attributes:
        total: weighted sum, over all answers.
        classes: cross entropy of the last answer, no-object weighted.
        l1: distance of its boxes, as shares of the image, a matched object's mean.
        giou: 1 - generalised IoU, likewise.
    """

    total: Tensor
    classes: Tensor
    l1: Tensor
    giou: Tensor


def set_loss(answers: Sequence[tuple[Tensor, Tensor]], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> SetLoss:
    """The loss of a batch; not a number where an answer is none, which cannot be matched.

    Args:
        answers: logits (B, T, K + 1) and boxes (B, T, 4) of detection tokens, the model's answer last; those before
            it are auxiliary, each matched by itself.
        boxes: float32 (n_i, 4) of each image, centre x, centre y, width, height in 0..1; n_i may be 0.
        classes: int64 (n_i,).
    """
    every = [{"logits": logits.float(), "pred_boxes": found.float()} for logits, found in answers]
    if not all(bool(value.isfinite().all()) for answer in every for value in answer.values()):
        broken = torch.stack([value.sum() for answer in every for value in answer.values()]).sum() * float("nan")
        return SetLoss(broken, *broken.detach().expand(3))
    logits = every[-1]["logits"]
    criterion = ImageLoss(  # type: ignore[no-untyped-call]
        matcher=HungarianMatcher(class_cost=CLASS_COST, bbox_cost=L1_COST, giou_cost=GIOU_COST),
        num_classes=logits.shape[-1] - 1,
        eos_coef=NO_OBJECT_WEIGHT,
        losses=["labels", "boxes"],
    ).to(logits.device)
    targets = [{"class_labels": each, "boxes": found} for each, found in zip(classes, boxes, strict=True)]
    parts: dict[str, Tensor] = criterion(every[-1] | {"auxiliary_outputs": every[:-1]}, targets)
    names = ("loss_ce", "loss_bbox", "loss_giou")
    ends = ["", *(f"_{number}" for number in range(len(every) - 1))]
    total = torch.stack([weighted(*(parts[name + end] for name in names)) for end in ends]).sum()
    return SetLoss(total, *(parts[name].detach() for name in names))


def weighted(classes: N, l1: N, giou: N) -> N:
    """The parts of a loss as one."""
    return CLASS_COST * classes + L1_COST * l1 + GIOU_COST * giou
