"""Blocks of timm's vision transformers run on ragged tokens: the one runtime of detection and segmentation.

Norms, linear layers and activations see packed tokens, so that they cost what is kept and nothing else; only attention
must know which tokens belong together.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from bavit.attention import Backend, Kernel, ragged_attention
from bavit.ragged import RaggedTokens
from tokenlabels.errors import ParameterError

HIDDEN_NUMBERS = 1 << 20
"""Numbers within an MLP that are computed at a time on a CPU."""


def run_block(block: nn.Module, tokens: RaggedTokens, backend: Backend | Kernel = "auto") -> RaggedTokens:
    """One pre-norm block: `x + attention(norm1(x))`, then `x + mlp(norm2(x))`.

    Args:
        block: a `timm.models.vision_transformer.Block` with timm's own attention, in either mode; dropout within
            attention is not supported.
        tokens: of any number of images.
        backend: see `attention.py`.

    Raises:
        ParameterError: a block of another kind, or with dropout of attention.
    """
    if not isinstance(block, Block) or not hasattr(block.attn, "qkv"):
        raise ParameterError(f"{type(block).__name__} is no block of timm's VisionTransformer.")
    attention: Any = block.attn
    if block.training and attention.attn_drop.p:
        raise ParameterError("attention over ragged tokens has no dropout: make the model with attn_drop 0.")
    x = tokens.values
    x = x + _dropped(block.drop_path1, block.ls1(_attend(attention, block.norm1(x), tokens.lengths, backend)), tokens)
    if torch.is_grad_enabled() or block.training or x.device.type != "cpu":
        return tokens.with_values(x + _dropped(block.drop_path2, block.ls2(block.mlp(block.norm2(x))), tokens))
    return tokens.with_values(_in_pieces(block, x))


def _in_pieces(block: Any, x: Tensor) -> Tensor:
    """`x + mlp(norm2(x))` of packed tokens, some at a time, so that what is hidden in the MLP stays in the cache.

    On two cores a third less time for 9,000 tokens of dimension 192; the bits of a token may depend on its piece.
    """
    hidden = max(layer.out_features for layer in block.mlp.modules() if isinstance(layer, nn.Linear))
    pieces = max(1, round(len(x) * hidden / HIDDEN_NUMBERS))
    return torch.cat([piece + block.ls2(block.mlp(block.norm2(piece))) for piece in x.chunk(pieces)])


def _attend(attention: Any, x: Tensor, lengths: tuple[int, ...], backend: Backend | Kernel) -> Tensor:
    """timm's `Attention.forward` on packed tokens (total, dim)."""
    qkv = attention.qkv(x)
    qkv = qkv.view(len(x), 3, attention.num_heads, qkv.shape[1] // (3 * attention.num_heads))
    if not isinstance(attention.q_norm, nn.Identity):
        query, key, value = qkv.unbind(1)
        qkv = torch.stack([attention.q_norm(query), attention.k_norm(key), value], 1)
    found = attention.norm(ragged_attention(qkv, lengths, backend).flatten(1))
    gate = getattr(attention, "gate", None)
    if gate is not None:
        found = found * gate(x).sigmoid()
    projected: Tensor = attention.proj_drop(attention.proj(found))
    return projected


def _dropped(drop: nn.Module, x: Tensor, tokens: RaggedTokens) -> Tensor:
    """Stochastic depth: the branch is left out for whole images."""
    if not isinstance(drop, DropPath) or not drop.training or not drop.drop_prob:
        return x
    stays = 1 - drop.drop_prob
    factor = x.new_empty(len(tokens.lengths)).bernoulli_(stays)
    if drop.scale_by_keep and stays:
        factor = factor / stays
    return x * factor.repeat_interleave(torch.tensor(tokens.lengths, device=x.device))[:, None]
