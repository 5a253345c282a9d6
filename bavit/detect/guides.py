"""What a detector from scratch learns besides its set of objects, so that it learns to detect in thousands of steps.

Set matching tells a hundred tokens about a handful of objects, and each step may tell another token. Two guides tell
the same token the same thing from the start: every patch, halfway through the blocks, learns the object that it lies
on, through the heads of the detection tokens; and in the first half of training each detection token learns the object
that its anchor lies on. Neither changes the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import box_convert, generalized_box_iou_loss

from bavit.detect.loss import NO_OBJECT_WEIGHT, weighted
from bavit.detect.pruning import Size

CORE = 0.6
"""A patch stands for an object where it lies in this share of its box, around its middle."""

PATCH_CLASS_WEIGHT = 3.0
"""Of the classes of patches beside their boxes: telling classes apart takes longest."""

ANCHORED_UNTIL = 0.5
"""Share of training after which detection tokens are free."""


def patch_centres(grids: Sequence[Size], keep: Sequence[Tensor | None] | None, device: torch.device) -> list[Tensor]:
    """float32 (n_i, 2) of each image: centres of its kept patches, row-major, x and y in 0..1."""
    found = []
    for index, (rows, cols) in enumerate(grids):
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(cols, device=device) + 0.5) / cols
        every = torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1)
        mask = None if keep is None else keep[index]
        found.append(every.flatten(0, 1) if mask is None else every[mask])
    return found


def objects_at(centres: Tensor, boxes: Tensor, core: float, least: Tensor) -> Tensor:
    """The smallest object that lies around each place.

    Args:
        centres: float32 (n, 2), x and y in 0..1.
        boxes: float32 (m, 4), centre x, centre y, width, height in 0..1.
        core: share of a box, around its middle, that counts.
        least: float32 (2,), half the width and height that every box has at least.

    Returns:
        int64 (n,): number of the box, -1 where there is none.
    """
    if not len(boxes):
        return torch.full((len(centres),), -1, device=centres.device)
    half = torch.maximum(boxes[:, 2:] / 2 * core, least)
    inside = ((centres[:, None] - boxes[None, :, :2]).abs() <= half).all(-1)
    area = torch.where(inside, boxes[:, 2] * boxes[:, 3], torch.inf)
    smallest, number = area.min(1)
    return torch.where(smallest.isfinite(), number, -1)


def guide_loss(
    logits: Sequence[Tensor],
    found: Sequence[Tensor],
    centres: Sequence[Tensor],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    *,
    core: float,
    least: Sequence[Tensor],
    class_weight: float = 1.0,
) -> Tensor:
    """What tokens at places cost that ought to answer with the object there.

    Args:
        logits: float (n_i, K + 1) of each image.
        found: float (n_i, 4), boxes in 0..1.
        centres: float32 (n_i, 2), the places.
        boxes: float32 (m_i, 4), objects.
        classes: int64 (m_i,).
        core: see `objects_at`.
        least: of each image, see `objects_at`.
        class_weight: of the classes, in addition.

    Returns:
        A scalar: the parts of the set loss, each a mean over tokens, or over those that stand for an object.
    """
    answers, places = torch.cat([*logits]).float(), torch.cat([*found]).float()
    number = [objects_at(*each[:2], core, each[2]) for each in zip(centres, boxes, least, strict=True)]
    none = answers.shape[-1] - 1
    wanted, targets = [], []
    for chosen, objects, kinds in zip(number, boxes, classes, strict=True):
        taken = chosen.clamp(min=0)
        there = chosen >= 0
        wanted.append(torch.where(there, kinds[taken] if len(kinds) else taken, none))
        targets.append(objects[chosen[there]])
    weights = answers.new_ones(none + 1)
    weights[none] = NO_OBJECT_WEIGHT
    class_of = torch.cat(wanted)
    cost = class_weight * cross_entropy(answers, class_of, weights)
    positive = class_of != none
    if not bool(positive.any()):
        return cost
    objects, boxes_of = torch.cat(targets), places[positive]
    l1 = (boxes_of - objects).abs().sum(-1).mean()
    corners = [box_convert(each, "cxcywh", "xyxy") for each in (boxes_of, objects)]
    giou: Tensor = generalized_box_iou_loss(corners[0], corners[1], reduction="mean")
    return weighted(cost, l1, giou)
