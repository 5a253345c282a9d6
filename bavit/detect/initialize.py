"""A detector that is trained from scratch: how it begins, so that it learns from few pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bavit.background.initialize import sines, whiten
from bavit.detect.yolos import Yolos

_NO_OBJECT_BIAS = 2.0


def from_scratch(model: Yolos, pixels: Tensor, generator: torch.Generator) -> None:
    """Initialise a detector.

    The first layer whitens patches of the data; positions of patches are sines and cosines, and each detection token
    begins with that of a place of its own, so that it looks there first. Few objects are expected.

    Args:
        model: freshly made, changed in place.
        pixels: float (B, 3, H, W), some normalised pictures of the training set, of the size its positions are for.
        generator: picks the patches that are looked at.
    """
    config, backbone = model.config, model.backbone
    rows, cols = config.grid
    with torch.no_grad():
        down, across = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        backbone.pos_embed[0, 1 : -config.detection_tokens] = sines(
            torch.stack([down.flatten(), across.flatten()], 1), config.dim
        )
        places = anchors(config.detection_tokens) * torch.tensor([rows, cols]) - 0.5
        backbone.pos_embed[0, -config.detection_tokens :] = sines(places, config.dim)
        backbone.det_token.copy_(backbone.det_token[:, :1].expand_as(backbone.det_token))
        whiten(backbone.patch_embed.proj, pixels, config.dim, generator)
        last = model.class_embed.layers[2]
        assert isinstance(last, nn.Linear)
        last.bias[-1] += _NO_OBJECT_BIAS


def anchors(count: int) -> Tensor:
    """float32 (count, 2): places all over an image, y and x in 0..1, on the lattice that is the nearest to a square."""
    rows = max(side for side in range(1, int(count**0.5) + 1) if count % side == 0)
    cols = count // rows
    down, across = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols, indexing="ij")
    return torch.stack([down.flatten(), across.flatten()], 1)
