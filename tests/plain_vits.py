"""What tests of pruned ViTs share: small models of timm whose every weight matters, and masked dense attention."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.eva import Eva
from torch import Tensor

SIZE, GRID = (64, 48), (4, 3)
"""Of pictures, and (rows, cols) of their patches of 16."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_small_patch16_224", {}),
    "mean of patches, a norm after it": ("vit_small_patch16_224", {"global_pool": "avg"}),
    "mean of all tokens": ("vit_small_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "maximum": ("vit_small_patch16_224", {"global_pool": "max", "class_token": False}),
    "mean and maximum": ("vit_small_patch16_224", {"global_pool": "avgmax", "reg_tokens": 2}),
    "norms of queries and keys": ("vit_small_patch16_224", {"qk_norm": True, "scale_attn_norm": True}),
    "no classifier": ("vit_small_patch16_224", {"num_classes": 0}),
    "norm of patches": ("vit_small_patch16_224", {"embed_norm_layer": "layernorm", "pos_embed": "none"}),
    "DeiT, distilled": ("deit_small_distilled_patch16_224", {}),
    "DeiT 3": ("deit3_small_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "map over registers": ("vit_so150m_patch16_reg4_map_256", {"pool_include_prefix": True}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": (56, 42)}),
    "post-norm": ("vit_base_patch16_rpn_224", {}),
    "AIMv2": ("aimv2_large_patch14_224", {"img_size": (56, 42)}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3 with a gated MLP": ("vit_small_plus_patch16_dinov3", {"embed_dim": 32}),
    "EVA": ("eva_giant_patch14_224", {"img_size": (56, 42)}),
    "EVA-02": ("eva02_base_patch16_clip_224", {}),
    "EVA-02, post-norm": ("eva02_enormous_patch14_clip_224", {"img_size": (56, 42)}),
    "positions turned in each block": ("vit_small_patch16_rope_mixed_224", {}),
    "Perception Encoder": ("vit_pe_core_small_patch16_384", {}),
    "grouped keys": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
}
"""Kinds of plain ViTs: name in timm, and options; an option that timm does not know of a kind is not among them."""


def small(kind: str, **options: Any) -> Any:
    """A model of a kind with two blocks of dimension 32, random weights everywhere, in evaluation mode."""
    name, own = KINDS[kind]
    given: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIZE, "num_classes": 5}
    model: Any = timm.create_model(name, **(given | own | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim in (2, 4) else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pictures(model: Any, count: int = 4, size: tuple[int, int] | None = None) -> Tensor:
    """Random pixels of the size that a model takes, or of another."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, *(size or model.patch_embed.img_size), generator=generator)


def some(batch: int, rows: int, cols: int) -> Tensor:
    """A mask that keeps half of the patches of the first picture, all of the second, none of the third, few, most."""
    generator = torch.Generator().manual_seed(3)
    shares = torch.tensor([0.5, 1.0, 0.0, 0.2, 0.9])[:batch, None, None]
    return torch.rand(batch, rows, cols, generator=generator) < shares


def masked_features(model: Any, pixels: Tensor, keep: Tensor, after: int = 0) -> Tensor:
    """The oracle up to the last norm: timm's blocks on all tokens, removed patches masked as keys from a depth on."""
    x = model._pos_embed(model.patch_embed(pixels))
    x, rope = x if isinstance(model, Eva) else (x, None)
    x = model.norm_pre(x)
    keys = stays(model, keep)
    keys = keys | ~keys.any(1, keepdim=True)  # where nothing is left there is nothing to compare, but it must be finite
    mask = keys[:, None, None].expand(-1, 1, keys.shape[1], -1)
    for number, block in enumerate(model.blocks):
        given: dict[str, Any] = {} if number < after else {"attn_mask": mask}
        if rope is not None:
            given["rope"] = rope[number] if model.rope_mixed else rope
        x = block(x, **given)
    found: Tensor = model.norm(x)
    return found


def masked_answer(model: Any, pixels: Tensor, keep: Tensor, after: int = 0) -> Tensor:
    """The oracle: timm's own head on the tokens that are left of each picture, a zero in place of no patch at all."""
    features = masked_features(model, pixels, keep, after)
    left = stays(model, keep)
    found = []
    for image, kept in zip(features, left, strict=True):
        tokens = image[kept]
        if len(tokens) == model.num_prefix_tokens and not reads_prefix(model):
            tokens = torch.cat([tokens, tokens.new_zeros(1, image.shape[1])])
        found.append(model.forward_head(tokens[None])[0])
    return torch.stack(found)


def reads_prefix(model: Any) -> bool:
    """Whether there is something to pool where no patch is left."""
    pools_all = getattr(model, "pool_include_prefix", False) or (isinstance(model, Eva) and model.attn_pool is not None)
    return bool(model.num_prefix_tokens) and (pools_all or model.global_pool == "token")


def stays(model: Any, keep: Tensor) -> Tensor:
    """bool (batch, prefix + rows * cols)."""
    return torch.cat([keep.new_ones(len(keep), model.num_prefix_tokens), keep.flatten(1)], 1)
