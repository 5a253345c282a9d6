"""What a pruned ViT costs in multiply-accumulates (MACs), counted as in `flops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor

from bavit.flops import block_macs, linear_macs


def pruned_macs(model: Any, keep: Tensor, after: int, *, embed_all: bool) -> NDArray[np.int64]:
    """MACs of each image of a batch.

    Args:
        model: a plain ViT.
        keep: bool (batch, rows, cols).
        after: blocks that see all patches.
        embed_all: patches are embedded before it is known which of them stay.

    Returns:
        int64 (batch,).
    """
    flat = keep.cpu().flatten(1)
    kept, whole = flat.sum(1), torch.full((len(flat),), flat.shape[1])
    prefix: int = model.num_prefix_tokens
    total: Tensor = (whole if embed_all or after else kept) * model.patch_embed.proj.weight.numel()
    for number, block in enumerate(model.blocks):
        total = total + block_macs(block, prefix + (whole if number < after else kept))
    found: NDArray[np.int64] = (total + _head_macs(model, prefix, kept)).numpy()
    return found


def _head_macs(model: Any, prefix: int, kept: Tensor) -> Tensor:
    head = torch.full_like(kept, linear_macs(model.head))
    pool = model.attn_pool
    if pool is not None:
        read = kept + (prefix if isinstance(model, Eva) or model.pool_include_prefix else 0)
        per_token, products = linear_macs(pool.kv), 2 * pool.latent_len * pool.num_heads * pool.head_dim
        queries = pool.latent_len * (linear_macs(pool) - per_token)
        pooling: Tensor = queries + read.clamp(min=1) * (per_token + products)
        return head + pooling
    if isinstance(model, VisionTransformerDistilled):
        return head + linear_macs(model.head_dist)
    return head if model.global_pool else head * (prefix + kept)
