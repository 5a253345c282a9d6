"""Which models of timm are plain ViTs, and the pictures that each of them takes."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bavit.vit import check_block
from tokenlabels.errors import ParameterError

Grid: TypeAlias = tuple[int, int]
Colour: TypeAlias = tuple[float, float, float]

_FAMILIES = (VisionTransformerDistilled, VisionTransformer, Eva)
_FOLLOWED = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")


def check_plain(model: nn.Module) -> None:
    """Make sure that a model is a plain ViT: patches by one convolution, blocks that `run_block` knows, timm's heads.

    Raises:
        ParameterError: it is not; says what of it is the matter.
    """
    fault = _fault_of(model)
    if fault is not None:
        raise ParameterError(
            f"{type(model).__name__}{fault} cannot be pruned: plain ViTs of timm can, which are VisionTransformer "
            "(ViT, DeiT, CLIP, SigLIP, DINOv2), VisionTransformerDistilled and Eva (EVA-02, DINOv3)."
        )


def _fault_of(model: Any) -> str | None:
    kind = type(model)
    family = next((each for each in _FAMILIES if isinstance(model, each)), None)
    if family is None:
        return ""
    changed = [name for name in _FOLLOWED if getattr(kind, name, None) is not getattr(family, name, None)]
    if changed:
        return f" with a {changed[0]} of its own"
    if type(model.patch_embed) is not PatchEmbed:
        return f" with {type(model.patch_embed).__name__}"
    if not isinstance(model.attn_pool, AttentionPoolLatent | None):
        return f" with {type(model.attn_pool).__name__}"
    for block in model.blocks:
        try:
            check_block(block)
        except ParameterError:
            attention = f" and {type(block.attn).__name__}" if hasattr(block, "attn") else ""
            return f" with {type(block).__name__}{attention}"
    return None


def check_dropout(model: Any) -> None:
    """Make sure that training drops no patches at random besides those that are removed.

    Raises:
        ParameterError: it would.
    """
    if model.training and getattr(model.patch_drop, "prob", 0):
        raise ParameterError("a pruned ViT drops no other patches: make the model with patch_drop_rate 0.")


def whole_patches(model: Any, pixels: Tensor) -> tuple[Tensor, Grid]:
    """Pictures as patches cover them, and (rows, cols): padded or cut right and below, as the model does it.

    Args:
        model: see `check_plain`.
        pixels: float (batch, channels, H, W).

    Raises:
        ParameterError: another shape, or a size that the model does not take.
    """
    embedding = model.patch_embed
    channels: int = embedding.proj.in_channels
    if pixels.ndim != 4 or pixels.shape[1] != channels or not len(pixels) or not pixels.is_floating_point():
        raise ParameterError(
            f"pixels are float (batch, {channels}, H, W) of one picture or more, not {pixels.dtype} "
            f"{tuple(pixels.shape)}."
        )
    size, patch = tuple(pixels.shape[2:]), tuple(embedding.patch_size)
    if not model.dynamic_img_size and size != tuple(embedding.img_size):
        raise ParameterError(
            f"this {type(model).__name__} takes {_told(embedding.img_size)} pixels, not {_told(size)}: make it with "
            "dynamic_img_size=True."
        )
    padding = [-side % cell for side, cell in zip(size, patch, strict=True)]
    if embedding.dynamic_img_pad:
        pixels = nn.functional.pad(pixels, (0, padding[1], 0, padding[0])) if any(padding) else pixels
    elif model.dynamic_img_size and any(padding):
        raise ParameterError(
            f"{_told(size)} pixels cannot be cut into patches of {_told(patch)}: resize them, or make the model with "
            "dynamic_img_pad=True."
        )
    rows, cols = (side // cell for side, cell in zip(pixels.shape[2:], patch, strict=True))
    if not rows or not cols:
        raise ParameterError(f"{_told(size)} pixels hold no patch of {_told(patch)}.")
    return pixels[:, :, : rows * patch[0], : cols * patch[1]], (rows, cols)


def stated_normalisation(model: Any) -> tuple[Colour, Colour] | None:
    """Mean and std of RGB in 0..1 that the weights of a model of timm were trained with, where it says so."""
    known = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (tuple(known.get(name) or ()) for name in ("mean", "std"))
    return (mean, std) if len(mean) == len(std) == 3 else None


def full_mask(pixels: Tensor, grid: Grid) -> Tensor:
    """bool (batch, rows, cols): everything is kept."""
    return torch.ones(len(pixels), *grid, dtype=torch.bool, device=pixels.device)


def _told(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
