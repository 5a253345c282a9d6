"""Small models to export."""

from __future__ import annotations

import torch

from bavit.background.model import BAViT
from bavit.detect.config import YolosConfig
from bavit.detect.yolos import Yolos

SIZE = (64, 96)
"""(H, W) of the detector's input: another grid than that of its stored positions."""

LABELS = ("bolt", "nut", "washer")


def small_bavit(**options: object) -> BAViT:
    """On a grid of 3 x 3, so that many patches of the detector read the same probability."""
    torch.manual_seed(0)
    model = BAViT(**{"depth": 1, "width": 16, "heads": 1, "image_size": 48} | options)  # type: ignore[arg-type]
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(30)
    return model.eval()


def small_yolos(*, mid: bool = False, depth: int = 2) -> Yolos:
    """With biases and norms that are not what they begin as."""
    torch.manual_seed(1)
    config = YolosConfig(
        dim=16, depth=depth, heads=2, mlp_hidden=24, patch=16, image_size=(48, 64), detection_tokens=4, labels=LABELS,
        mid_positions=mid, shortest_edge=64, longest_edge=96,
    )  # fmt: skip
    model = Yolos(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
