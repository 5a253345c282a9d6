"""Distillation: a detector that sees less learns what one that sees all patches answers, detection token by token.

The student starts from the teacher or from a detector trained from it, so that token i of both means the same; nothing
is matched. Source of the temperature: Hinton, Vinyals and Dean 2015.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torchvision.ops import box_convert, generalized_box_iou_loss

from bavit.detect.config import YolosConfig
from bavit.detect.loss import NO_OBJECT_WEIGHT, weighted
from bavit.detect.preprocess import normalise
from bavit.detect.yolos import Yolos
from tokenlabels.errors import ParameterError


class Teacher:
    """A detector that is not trained, and sees all patches.

    Args:
        name: of the detector, see `Yolos.from_pretrained`.
        student: what is trained.

    Raises:
        ParameterError: its classes, detection tokens or patch are not the student's.
        TokenLabelsError: it cannot be read.
    """

    def __init__(self, name: str, student: YolosConfig) -> None:
        self.yolos = Yolos.from_pretrained(name).requires_grad_(False)
        config = self.yolos.config
        if config.labels != student.labels:
            raise ParameterError(
                f"{name}: has other classes than the detector that is trained ({len(config.labels)}, not "
                f"{len(student.labels)}, or in another order): name a --teacher trained on these categories."
            )
        if config.detection_tokens != student.detection_tokens:
            raise ParameterError(
                f"{name}: has {config.detection_tokens} detection tokens, the detector that is trained has "
                f"{student.detection_tokens}: name a --teacher with as many."
            )
        if student.patch % config.patch:
            raise ParameterError(
                f"{name}: its patches of {config.patch} pixels do not divide those of {student.patch} of the detector "
                "that is trained: name another --teacher."
            )

    @property
    def digest(self) -> str:
        """Of its weights, hex."""
        found = hashlib.sha256()
        for value in self.yolos.state_dict().values():
            found.update(value.cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits (B, T, K + 1) and boxes (B, T, 4) for images, uint8 (3, H_i, W_i)."""
        yolos = self.yolos.to(device)
        found = yolos(normalise(images, yolos.config, device))
        return found.logits, found.boxes


def distillation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], temperature: float = 1.0
) -> Tensor:
    """How far answers are from those of a teacher.

    The Kullback-Leibler divergence of classes at a temperature, times its square; L1 distance and 1 - generalised IoU
    of boxes; weighed as in `set_loss`. Tokens count for the boxes by the probability that the teacher gives to any
    object, and for the classes likewise, but at least `NO_OBJECT_WEIGHT`: what it takes for no object lies anywhere.

    Args:
        student: logits (B, T, K + 1) and boxes (B, T, 4), centre x, centre y, width, height in 0..1.
        teacher: likewise.
        temperature: logits are divided by it, positive.

    Returns:
        float32 scalar, not negative; 0 where the answers are the same.
    """
    (logits, boxes), (wanted, targets) = ([each.float() for each in answer] for answer in (student, teacher))
    object_ = 1 - wanted.softmax(-1)[..., -1]
    counted = object_.clamp(min=NO_OBJECT_WEIGHT)
    given, asked = (log_softmax(each / temperature, -1) for each in (logits, wanted))
    divergence = (asked.exp() * (asked - given)).sum(-1) * temperature**2
    found, other = (box_convert(each, "cxcywh", "xyxy").flatten(0, -2) for each in (boxes, targets))
    giou = generalized_box_iou_loss(found, other, reduction="none").view_as(object_)
    l1 = (boxes - targets).abs().sum(-1)
    total = object_.sum().clamp(min=1e-6)
    parts = [(value * object_).sum() / total for value in (l1, giou)]
    return weighted((divergence * counted).sum() / counted.sum(), *parts)
