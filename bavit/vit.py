"""Blocks of timm's vision transformers run on ragged tokens: the one runtime of detection, segmentation and pruning.

Norms, linear layers and activations see packed tokens, so that they cost what is kept and nothing else; only attention
must know which tokens belong together, and rotary positions which place each token has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.drop import DropPath
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn.functional import linear

from bavit.attention import Backend, Kernel, ragged_attention
from bavit.ragged import RaggedTokens
from tokenlabels.errors import ParameterError

HIDDEN_NUMBERS = 1 << 20
"""Numbers within an MLP that are computed at a time on a CPU."""

_PRE_NORM, _POST_NORM = (Block, EvaBlock), (ResPostBlock, EvaBlockPostNorm)
_ATTENTIONS = (Attention, AttentionRope, EvaAttention)


def check_block(block: nn.Module) -> None:
    """Make sure that `run_block` knows a block.

    Raises:
        ParameterError: a block of another kind, or with attention of another kind.
    """
    if not isinstance(block, _PRE_NORM + _POST_NORM):
        raise ParameterError(f"{type(block).__name__} is no block of timm's VisionTransformer or Eva.")
    if not isinstance(block.attn, _ATTENTIONS):
        raise ParameterError(f"{type(block.attn).__name__} is no attention of timm's VisionTransformer or Eva.")


def run_block(
    block: nn.Module, tokens: RaggedTokens, backend: Backend | Kernel = "auto", rope: Tensor | None = None
) -> RaggedTokens:
    """One block: `x + attention(norm1(x))`, then `x + mlp(norm2(x))`; of post-norm blocks the norm is the outer one.

    Args:
        block: `Block` or `ResPostBlock` of `timm.models.vision_transformer`, or `EvaBlock` or `EvaBlockPostNorm` of
            `timm.models.eva`, with timm's own attention, in either mode; dropout within attention is not supported.
        tokens: of any number of images.
        backend: see `attention.py`.
        rope: float (total, 1 or heads, 2 head_dim), sines and cosines by which queries and keys of every token are
            turned, of `Eva`; 0 and 1 where a token has no place. None: nothing is turned.

    Raises:
        ParameterError: a block of another kind, or with dropout of attention.
    """
    check_block(block)
    layer: Any = block
    if layer.training and layer.attn.attn_drop.p:
        raise ParameterError("attention over ragged tokens has no dropout: make the model with attn_drop 0.")
    x = tokens.values
    attend = partial(_attend, layer.attn, lengths=tokens.lengths, backend=backend, rope=rope)
    x = x + _dropped(layer.drop_path1, _branch(layer, 1, attend, x), tokens)
    if torch.is_grad_enabled() or layer.training or x.device.type != "cpu":
        return tokens.with_values(x + _dropped(layer.drop_path2, _branch(layer, 2, layer.mlp, x), tokens))
    return tokens.with_values(_in_pieces(layer, x))


def _branch(block: Any, number: int, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What attention (1) or the MLP (2) adds: its norm before or after it, and its layer scale."""
    norm = block.norm1 if number == 1 else block.norm2
    if isinstance(block, _POST_NORM):
        found: Tensor = norm(layer(x))
        return found
    found = layer(norm(x))
    if isinstance(block, Block):
        scaled: Tensor = (block.ls1 if number == 1 else block.ls2)(found)
        return scaled
    gamma = block.gamma_1 if number == 1 else block.gamma_2
    return found if gamma is None else gamma * found


def _in_pieces(block: Any, x: Tensor) -> Tensor:
    """`x + mlp(norm2(x))` of packed tokens, some at a time, so that what is hidden in the MLP stays in the cache.

    On two cores a third less time for 9,000 tokens of dimension 192; the bits of a token may depend on its piece.
    """
    hidden = max(layer.out_features for layer in block.mlp.modules() if isinstance(layer, nn.Linear))
    pieces = max(1, round(len(x) * hidden / HIDDEN_NUMBERS))
    return torch.cat([piece + _branch(block, 2, block.mlp, piece) for piece in x.chunk(pieces)])


def _attend(
    attention: Any, x: Tensor, *, lengths: tuple[int, ...], backend: Backend | Kernel, rope: Tensor | None
) -> Tensor:
    """timm's `forward` of attention on packed tokens (total, dim)."""
    qkv = _projected(attention, x)
    if rope is not None or not isinstance(attention.q_norm, nn.Identity):
        query, key, value = qkv.unbind(1)
        query, key = attention.q_norm(query), attention.k_norm(key)
        if rope is not None:
            half = getattr(attention, "rotate_half", False)
            query, key = (apply_rot_embed_cat(each, rope, half=half) for each in (query, key))
        qkv = torch.stack([query.to(value.dtype), key.to(value.dtype), value], 1)
    found = attention.norm(ragged_attention(qkv, lengths, backend).flatten(1))
    gate = getattr(attention, "gate", None)
    if gate is not None:
        found = found * gate(x).sigmoid()
    projected: Tensor = attention.proj_drop(attention.proj(found))
    return projected


def _projected(attention: Any, x: Tensor) -> Tensor:
    """Queries, keys and values (total, 3, heads, head_dim); of grouped keys and values each serves several heads."""
    heads = attention.num_heads
    if attention.qkv is None:
        layers, width = (attention.q_proj, attention.k_proj, attention.v_proj), attention.q_proj.out_features // heads
        parts = [layer(x).view(len(x), layer.out_features // width, width) for layer in layers]
        return torch.stack([part.repeat_interleave(heads // part.shape[1], 1) for part in parts], 1)
    bias = getattr(attention, "q_bias", None)
    if bias is None:
        qkv = attention.qkv(x)
    else:
        qkv = linear(x, attention.qkv.weight, torch.cat([bias, attention.k_bias, attention.v_bias]))
    found: Tensor = qkv.view(len(x), 3, heads, qkv.shape[1] // (3 * heads))
    return found


def _dropped(drop: nn.Module, x: Tensor, tokens: RaggedTokens) -> Tensor:
    """Stochastic depth: the branch is left out for whole images."""
    if not isinstance(drop, DropPath) or not drop.training or not drop.drop_prob:
        return x
    stays = 1 - drop.drop_prob
    factor = x.new_empty(len(tokens.lengths)).bernoulli_(stays)
    if drop.scale_by_keep and stays:
        factor = factor / stays
    return x * factor.repeat_interleave(torch.tensor(tokens.lengths, device=x.device))[:, None]
