"""A YOLOS whose kept patches are a decision that can be learned: every patch is computed, and attention is gated.

Attention of token i to token j is exp(s_ij) m_j / sum_k exp(s_ik) m_k, where the policy m is 1 for a patch that is
kept, 0 for one that is removed; CLS and detection tokens have 1, and every token sees itself, so that a removed patch
is what it would be if it were kept. With a policy of zeros and ones this is the detector that never computes what is
removed; but the policy has a gradient, for removed patches too: what their return would change. Source: DynamicViT,
Rao et al. 2021, equations 10 and 11.

That gradient is the slope of the secant to 1, by what attention changes if the patch is kept altogether; at 1 it is the
derivative. The derivative at 0 is no measure of a return: it is r (v - o) for a patch of value v whose exp(s) is r
times that of all that are kept, with answer o, while the answer moves by r / (1 + r) (v - o), and few patches of large
r drown all others. (Ours; on a trained detector of 96 x 96 pixels the derivative of the loss by the logit of the
threshold 0.3 was -6.2 +- 2.8 by derivatives, -0.26 +- 0.05 by secants, and -0.35 +- 0.05 by finite differences.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bavit.attention import ragged_attention
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.ragged import RaggedTokens
from tokenlabels.errors import ParameterError

LARGEST_LEAD = 10.0
"""By how much the score of a removed patch may pass the greatest of those that are kept: more is cut, so that the
gradient of its policy stays finite. No answer depends on it."""


def soft_detect(
    yolos: Yolos, pixels: Tensor | Sequence[Tensor], policy: Sequence[Tensor], *, prune_after: int = 0
) -> YolosOutput:
    """Boxes and classes of images; arguments and faults as of `soft_blocks`."""
    *_, last = soft_blocks(yolos, pixels, policy, prune_after=prune_after)
    return yolos.read(last)


def soft_blocks(
    yolos: Yolos, pixels: Tensor | Sequence[Tensor], policy: Sequence[Tensor], *, prune_after: int = 0
) -> Iterator[RaggedTokens]:
    """The tokens after each block, in turn: CLS, all patches and detection tokens of each image.

    Those of patches whose policy is 0 are what they would be if they were kept; the others do not depend on them.

    Args:
        yolos: the detector.
        pixels: see `Yolos.forward`; images of several sizes are padded for attention.
        policy: float (rows_i, cols_i) of each image, 0 to 1.
        prune_after: blocks that see all patches, whatever the policy.

    Raises:
        ParameterError: shapes that contradict each other or the patch, or `prune_after` beyond the blocks.
    """
    if not 0 <= prune_after < yolos.config.depth:
        raise ParameterError(f"prune after layer {prune_after}: it is 0 to {yolos.config.depth - 1}.")
    grids = [yolos.backbone.grid_of(image) for image in pixels]
    if [tuple(each.shape) for each in policy] != grids:
        raise ParameterError(f"policies of {[tuple(each.shape) for each in policy]} are not for patches of {grids}.")
    return yolos.blocks(pixels, backend=_Gated(policy, yolos.config.detection_tokens, prune_after))


class _Gated:
    """Attention of the blocks of one pass, which call it in turn."""

    def __init__(self, policy: Sequence[Tensor], detection_tokens: int, whole_blocks: int) -> None:
        gates = [pad(each.flatten(), (1, detection_tokens), value=1.0) for each in policy]
        width = max(len(each) for each in gates)
        self._policy = torch.stack([pad(each, (0, width - len(each))) for each in gates])
        self._whole_blocks = whole_blocks

    def __call__(self, qkv: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `ragged_attention`."""
        if self._whole_blocks:
            self._whole_blocks -= 1
            return ragged_attention(qkv, lengths)
        batch, width = self._policy.shape
        there = torch.arange(width, device=qkv.device) < torch.tensor(lengths, device=qkv.device)[:, None]
        full = qkv
        if len(qkv) < there.numel():
            full = qkv.new_zeros(there.numel(), *qkv.shape[1:]).index_copy(0, there.flatten().nonzero()[:, 0], qkv)
        with torch.autocast(qkv.device.type, enabled=False):
            values = full.float() if full.dtype != torch.float64 else full
            parts = values.view(batch, width, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
            found: Tensor = _GatedAttention.apply(*parts.unbind(0), self._policy.to(values.dtype))
        return found.transpose(1, 2).flatten(0, 1)[there.flatten()].to(qkv.dtype)


class _GatedAttention(torch.autograd.Function):
    """Queries, keys and values (B, heads, n, d) and a policy (B, n) -> (B, heads, n, d).

    Only one matrix of n x n is kept for the way back: exp(s_ij) / sum_k exp(s_ik) m_k.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, policy: Tensor) -> Tensor:
        gates = _gates(policy)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        greatest = scores.masked_fill(gates == 0, float("-inf")).amax(-1, keepdim=True)
        ratio = scores.sub_(greatest).clamp_(max=LARGEST_LEAD).exp_()
        weights = ratio * gates
        total = weights.sum(-1, keepdim=True)
        found: Tensor = weights.div_(total) @ value
        ctx.save_for_backward(query, key, value, policy, ratio.div_(total), found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        query, key, value, policy, ratio, found = ctx.saved_tensors
        (grad,) = grads
        gates = _gates(policy)
        of_value = (ratio * gates).transpose(-2, -1) @ grad
        change = (grad @ value.transpose(-2, -1)).sub_((grad * found).sum(-1, keepdim=True)).mul_(ratio)
        of_policy = None
        if ctx.needs_input_grad[3]:
            slope = change / (1 + ratio * (1 - gates))
            of_policy = (slope.sum(-2) - slope.diagonal(dim1=-2, dim2=-1)).sum(1)
        scale = query.shape[-1] ** -0.5
        of_scores = change.mul_(gates)
        return of_scores @ key * scale, of_scores.transpose(-2, -1) @ query * scale, of_value, of_policy


def _gates(policy: Tensor) -> Tensor:
    """(B, 1, n, n): whether token i sees token j; itself it always does."""
    own = torch.eye(policy.shape[1], dtype=torch.bool, device=policy.device)
    return torch.where(own, policy.new_ones(()), policy[:, None, None])
