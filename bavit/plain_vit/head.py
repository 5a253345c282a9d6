"""From the tokens that are left to the answer of a plain ViT: pooling over kept patches, and the classifier."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor

from bavit.plain_vit.tokens import KeptTokens
from bavit.ragged import RaggedTokens


def answer(model: Any, kept: KeptTokens, *, pre_logits: bool = False) -> Tensor:
    """timm's `forward_head`, removed patches left out of means, maxima and attention.

    Args:
        model: a plain ViT.
        kept: after its last norm.
        pre_logits: what the classifier reads instead of what it says.

    Returns:
        float (batch, classes or dim); of models without pooling (batch, prefix + rows * cols, classes or dim), zeros
        where removed. In distilled training of `VisionTransformerDistilled` a pair of (batch, classes).
    """
    distilled, pooling = isinstance(model, VisionTransformerDistilled), model.global_pool
    if model.attn_pool is None and (distilled or pooling == "token"):
        found: Tensor = model.forward_head(kept.prefix_tokens(), pre_logits=pre_logits)
        return found
    if model.attn_pool is None and not pooling:
        return kept.with_values(_classified(model, kept.tokens.values, pre_logits)).dense()
    return _classified(model, _pooled(model, kept), pre_logits)


def pooled_tokens(model: Any, kept: KeptTokens) -> RaggedTokens:
    """What pooling reads: patches, and the prefix where the model says so."""
    whole = getattr(model, "pool_include_prefix", False) or (isinstance(model, Eva) and model.attn_pool is not None)
    return kept.tokens if whole else kept.patches()


def _classified(model: Any, x: Tensor, pre_logits: bool) -> Tensor:
    x = model.head_drop(model.fc_norm(x))
    found: Tensor = x if pre_logits else model.head(x)
    return found


def _pooled(model: Any, kept: KeptTokens) -> Tensor:
    """(batch, dim). Where nothing is left to pool there is a token of zeros."""
    tokens = pooled_tokens(model, kept)
    padded, there = _padded(tokens)
    if model.attn_pool is not None:
        mask = None if bool(there.all()) else padded.new_zeros(there.shape).masked_fill(~there, -torch.inf)
        attended: Tensor = model.attn_pool(padded, attn_mask=None if mask is None else mask[:, None, None])
        return attended
    mean = padded.sum(1) / there.sum(1, keepdim=True)
    if model.global_pool == "avg":
        return mean
    greatest = padded.masked_fill(~there[..., None], -torch.inf).amax(1)
    return greatest if model.global_pool == "max" else 0.5 * (greatest + mean)


def _padded(tokens: RaggedTokens) -> tuple[Tensor, Tensor]:
    """float (batch, longest, dim), zeros at the end; and bool (batch, longest), of each image one token at least."""
    longest = max(1, *tokens.lengths)
    counts = torch.tensor(tokens.lengths, device=tokens.values.device)[:, None]
    places = torch.arange(longest, device=counts.device)
    flat = (places < counts).flatten().nonzero().squeeze(1)
    full = tokens.values.new_zeros(len(counts) * longest, tokens.values.shape[1]).index_copy(0, flat, tokens.values)
    return full.view(len(counts), longest, -1), places < counts.clamp(min=1)
