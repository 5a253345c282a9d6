"""Plain ViTs of timm, for pictures of any size."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from timm.layers.attention import Attention
from timm.layers.format import Format
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from bavit.plain_vit.supported import Colour, stated_normalisation
from bavit.segment.config import HALF, BackboneShape
from tokenlabels.errors import ParameterError, TokenLabelsError


def make_backbone(
    shape: BackboneShape, image_size: tuple[int, int], *, pretrained: bool = False, drop_path: float = 0.0
) -> VisionTransformer:
    """A ViT of timm without a classifier.

    Args:
        shape: which.
        image_size: (H, W) that positions are stored for.
        pretrained: fetch timm's weights, positions resampled.
        drop_path: share of branches that training leaves out at the last block, growing from none at the first.

    Raises:
        ParameterError: timm knows no such ViT, or cannot make one of these sizes.
        TokenLabelsError: its weights cannot be fetched.
    """
    if not timm.is_model(shape.name.partition(".")[0]):
        close = difflib.get_close_matches(shape.name, timm.list_models("*vit*"), 1)
        hint = f": did you mean {close[0]}?" if close else ": timm.list_models('vit*') has their names."
        raise ParameterError(f"timm knows no model {shape.name!r}{hint}")
    sizes = {"embed_dim": shape.dim, "depth": shape.depth, "num_heads": shape.heads, "patch_size": shape.patch}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    if pretrained and given:
        raise ParameterError("weights of timm fit its own sizes: leave --dim, --depth, --heads and --patch out.")
    try:
        found: Any = timm.create_model(
            shape.name, pretrained=pretrained, img_size=image_size, num_classes=0, drop_path_rate=drop_path, **given
        )
    except (OSError, RuntimeError) as fault:
        if not pretrained:
            raise _unmakeable(shape, fault) from None
        raise TokenLabelsError(
            f"the weights of {shape.name} cannot be fetched ({type(fault).__name__}): use --init none, or a file."
        ) from None
    except TypeError as fault:
        raise ParameterError(f"{shape.name} is no plain ViT of timm ({str(fault).partition(chr(10))[0]}).") from None
    except (ValueError, AssertionError, ZeroDivisionError) as fault:
        raise _unmakeable(shape, fault) from None
    return for_any_size(found)


def _unmakeable(shape: BackboneShape, fault: Exception) -> ParameterError:
    reason = str(fault).partition("\n")[0] or type(fault).__name__
    return ParameterError(f"timm cannot make {shape.name} of these sizes ({reason}).")


def for_any_size(model: nn.Module) -> VisionTransformer:
    """A ViT that takes pictures of any size, its positions resampled; the model itself, its classifier taken off.

    Raises:
        ParameterError: it is no plain ViT of timm, or has dropout of attention.
    """
    if not isinstance(model, VisionTransformer) or not all(isinstance(block, Block) for block in model.blocks):
        raise ParameterError(f"{type(model).__name__} is no plain ViT of timm (VisionTransformer with its own blocks).")
    if any(attention.attn_drop.p for attention in model.modules() if isinstance(attention, Attention)):
        raise ParameterError("attention over ragged tokens has no dropout: make the model with attn_drop_rate 0.")
    vit: Any = model
    vit.dynamic_img_size = True
    embed = vit.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    for name in ("norm", "fc_norm", "head_drop", "head"):  # heads here read blocks, and have norms of their own
        setattr(vit, name, nn.Identity())
    vit.attn_pool, vit.num_classes = None, 0
    return model


def patch_size(vit: VisionTransformer) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    height, width = vit.patch_embed.patch_size
    return int(height), int(width)


def embed(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Tokens before the first block.

    Args:
        vit: see `for_any_size`.
        pixels: float (B, 3, H, W), whole patches.

    Returns:
        (B, prefix + rows * cols, dim).
    """
    tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    return tokens


def normalisation(vit: VisionTransformer) -> tuple[Colour, Colour]:
    """Mean and std that its weights were trained with; 0.5 each where timm does not say."""
    return stated_normalisation(vit) or (HALF, HALF)
