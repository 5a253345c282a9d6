"""The accumulative cross entropy: cross entropy averaged over all tokens of a batch, ignored ones left out.

Source: BAViT paper, its loss over N images x M tokens. Class weights and soft targets are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenlabels.stats_shards import FOREGROUND, IGNORE


def accumulative_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: tuple[float, float] | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy over the tokens that are not ignored; 0, with gradients of 0, where all are.

    Args:
        logits: (B, N, 2), index 1 is foreground.
        labels: uint8 (B, N): 1 foreground, 0 background, 255 ignore.
        class_weights: of (background, foreground); the mean is then weighted, as in `torch.nn.CrossEntropyLoss`.
        targets: float (B, N), probabilities of foreground to learn instead of labels, see `soft_targets`; where labels
            are 255 they are ignored all the same.

    Returns:
        float32 scalar.
    """
    total, weight = loss_sums(logits, labels, class_weights, targets)
    return total / weight.clamp(min=torch.finfo(torch.float32).tiny)


def loss_sums(
    logits: Tensor,
    labels: Tensor,
    class_weights: tuple[float, float] | None = None,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of weighted losses and the sum of weights, float32 scalars: ranks add these up before they divide."""
    margin = logits[..., 1].float() - logits[..., 0].float()  # two-class softmax is a sigmoid of the difference
    wanted = (labels == FOREGROUND).float() if targets is None else targets.float()
    background, foreground = class_weights or (1.0, 1.0)
    counted = (labels != IGNORE).float()
    weight_fg, weight_bg = foreground * wanted * counted, background * (1 - wanted) * counted
    losses = weight_fg * logsigmoid(margin) + weight_bg * logsigmoid(-margin)
    return -losses.sum(), (weight_fg + weight_bg).sum()


def soft_targets(scores: Tensor, tau: float) -> Tensor:
    """Scores of a rule as probabilities of foreground: 0, tau and 1 become 0, one half and 1, linear in between.

    So the decision at one half is the one that the labels make.

    Args:
        scores: float, 0..1.
        tau: threshold of the rule, 0..1.
    """
    below = scores / (2 * tau) if tau > 0 else torch.full_like(scores, 0.5)
    above = (1 + scores - 2 * tau) / (2 * (1 - tau)) if tau < 1 else torch.ones_like(scores)
    return torch.where(scores < tau, below, above).clamp(0, 1)
