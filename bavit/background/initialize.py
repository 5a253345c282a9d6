"""Where training starts: from scratch, with care; from ImageNet weights of timm; or from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import unfold

from bavit.background.model import BAViT
from bavit.vit_weights import fetch_vit, load_vit, read_vit

IMAGENET_MODEL = "vit_tiny_patch16_384.augreg_in21k_ft_in1k"

_POSITION_SCALE = 0.25
_EMBEDDING_SCALE = 0.3
_WHITEN_FLOOR = 0.02
_PATCHES = 30_000


def from_scratch(vit: VisionTransformer, pixels: Tensor, generator: torch.Generator) -> None:
    """Initialise a ViT so that it learns from few pictures.

    The first layer whitens patches of the data, and positions are sines and cosines. What each of these brings is in
    the README.

    Args:
        vit: freshly made, changed in place.
        pixels: float (B, 3, H', W'), some hundred normalised pictures of the training set.
        generator: picks the patches that are looked at.
    """
    with torch.no_grad():
        positions, (rows, cols) = vit.get_parameter("pos_embed"), vit.patch_embed.grid_size
        prefix = positions.shape[1] - rows * cols
        positions[:, prefix:] = _POSITION_SCALE * sine_positions(rows, cols, vit.embed_dim)
        whiten(vit.patch_embed.proj, pixels, vit.embed_dim, generator)


def sine_positions(rows: int, cols: int, width: int) -> Tensor:
    """float32 (1, rows * cols, width): half of it sines and cosines of the row, half of the column.

    Source: "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), 2-D positions.
    """
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return sines(torch.stack([down.flatten(), across.flatten()], 1), width)[None]


def sines(places: Tensor, width: int) -> Tensor:
    """float32 (n, width) of places (n, 2) in rows and columns, fractions too."""
    quarter = width // 4
    frequency = 10000 ** (-torch.arange(quarter) / quarter)
    angles = places[:, :, None] * frequency
    found = torch.zeros(len(places), width)
    found[:, : 4 * quarter] = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return found


def whiten(layer: nn.Conv2d, pixels: Tensor, width: int, generator: torch.Generator) -> None:
    """Make the first layer project patches on their principal components, each of about equal variance."""
    size = (layer.kernel_size[0], layer.kernel_size[1])
    patches = unfold(pixels.float(), size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[torch.randperm(len(patches), generator=generator)[:_PATCHES]].double()
    if len(patches) < 2:
        return
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
    count = min(width, len(variances))
    variances, directions = variances.flip(0)[:count].clamp(min=0), directions.flip(1)[:, :count]
    kernel = _EMBEDDING_SCALE * (directions / (variances.sqrt() + _WHITEN_FLOOR)).T
    layer.weight[:count] = kernel.float().view(count, *layer.weight.shape[1:])
    if layer.bias is not None:
        layer.bias[:count] = (-kernel @ mean).float()


def from_imagenet(model: BAViT) -> None:
    """Start from `IMAGENET_MODEL`: its first blocks, patches and positions resampled, CLS position dropped.

    Raises:
        TokenLabelsError: the weights cannot be fetched, or do not fit the model's width.
    """
    load_vit(model.vit, fetch_vit(IMAGENET_MODEL))


def from_checkpoint(model: BAViT, path: Path) -> None:
    """Start from a file or folder: a bavit run, or the weights of a timm ViT (.safetensors, .pth, .pt, .bin).

    A head of two outputs is taken over, any other is left as it is.

    Raises:
        TokenLabelsError: it cannot be read, or does not fit.
    """
    load_vit(model.vit, read_vit(path))
