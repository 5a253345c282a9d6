"""What keeping patches costs, as a loss: without it, to keep everything would be best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bavit.detect.accounting import detector_macs
from bavit.detect.config import YolosConfig


def share_loss(policy: Sequence[Tensor], target: float) -> Tensor:
    """The square of how far the share of patches that are kept is from a target.

    The share is that of a batch as a whole, so that images may differ. Source: DynamicViT, Rao et al. 2021, its ratio
    loss, which is of each image.

    Args:
        policy: float (rows_i, cols_i) of each image, 1 where a patch is kept and 0 elsewhere, with gradients.
        target: 0 to 1.
    """
    return (torch.cat([each.flatten() for each in policy]).mean() - target).square()


def mac_share(policy: Sequence[Tensor], config: YolosConfig, prune_after: int = 0) -> Tensor:
    """float (B,): MACs of the detector for what is kept of each image, as a share of those for all its patches.

    Args:
        policy: see `share_loss`.
        config: of the detector.
        prune_after: blocks that see all patches.
    """
    shares = []
    for each in policy:
        patches, kept = each.numel(), each.sum()
        none, one, two = (detector_macs(config, count, max(patches, 2), prune_after=prune_after) for count in range(3))
        curve = (two - 2 * one + none) / 2  # MACs are quadratic in the patches that are kept
        whole = detector_macs(config, patches, patches, prune_after=prune_after)
        shares.append((none + (one - none - curve) * kept + curve * kept.square()) / whole)
    return torch.stack(shares)
