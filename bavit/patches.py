"""Patches of pictures become tokens: those alone that are kept."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


def embed_kept(projection: nn.Conv2d, pixels: Tensor, keep: Tensor) -> Tensor:
    """What a convolution gives for some patches, image after image and row by row; the others are not read.

    Args:
        projection: its kernel and stride are a patch, without padding.
        pixels: float (batch, channels, rows * height, cols * width) of patches (height, width).
        keep: bool (batch, rows, cols).

    Returns:
        float (kept, dim).
    """
    (batch, rows, cols), channels = keep.shape, pixels.shape[1]
    cells = pixels.reshape(batch, channels, rows, pixels.shape[2] // rows, cols, pixels.shape[3] // cols)
    chosen = cells.permute(0, 2, 4, 1, 3, 5)[keep].flatten(1)
    return linear(chosen, projection.weight.flatten(1), projection.bias)
