"""Multiply-accumulates as a penalty: the formula of `accounting.py` for counts of patches that have gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bavit.detect.accounting import detector_shape
from bavit.detect.config import YolosConfig


def macs_share(config: YolosConfig, kept: Tensor, patches: Sequence[int], *, prune_after: int = 0) -> Tensor:
    """MACs of images of which some patches are kept, by those of the dense detector; differentiable in `kept`.

    MACs are a quadratic function of the number of kept patches, so that three of its values, at 0, 1 and 2, are all of
    it: it equals `detector_macs` at whole numbers and goes on between them.

    Args:
        config: of the detector.
        kept: float (B,), patches that are kept, such as the sum of a soft mask.
        patches: of each of the B images.
        prune_after: blocks that see all patches.

    Returns:
        float32 (B,), 1 where all are kept; computed in float64 where the device has it.
    """
    shape = detector_shape(config)
    whole = np.array(patches, np.int64)

    def macs(count: int) -> np.ndarray:
        some = np.full_like(whole, count)
        return shape.macs(some, embedded=whole if prune_after else some, whole_blocks=prune_after).astype(np.float64)

    none, one, two = macs(0), macs(1), macs(2)
    square = (two - 2 * one + none) / 2
    dense = shape.macs(whole)
    exact = torch.float32 if kept.device.type == "mps" else torch.float64  # Metal has no float64
    coefficients = np.stack([none, one - none - square, square]) / dense
    constant, linear, squared = torch.from_numpy(coefficients).to(kept.device, exact)
    count = kept.to(exact)
    share: Tensor = constant + count * (linear + count * squared)
    return share.float()
