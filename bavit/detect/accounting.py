"""What removing background saves: tokens as the BAViT paper counts them, and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bavit.detect.config import YolosConfig
from tokenlabels.errors import ParameterError

_ROUNDING = Fraction(1, 10**9)
"""Tokens that a share computed in floating point may be off by; 2/3 of 12,288 is 8,192 and not 8,191."""


@dataclass(frozen=True, slots=True)
class TokenReduction:
    """Patch tokens of one image, each counted once for every block that it passes.

    Attributes:
        sparsity: share of the detector's patches that is removed, 0..1.
        tokens_detector: of the detector when nothing is removed.
        tokens_bavit: of BAViT.
        tokens_pruned: of the detector behind BAViT, rounded down: those that are *left*.
        tokens_total: of BAViT and of the detector behind it.
        reduction: share of `tokens_detector` that the two save; negative where BAViT costs more than it saves.
    """

    sparsity: float
    tokens_detector: int
    tokens_bavit: int
    tokens_pruned: int
    tokens_total: int
    reduction: float


def token_reduction(
    sparsity: float | Fraction | Decimal | np.floating,
    *,
    patches: int = 1024,
    depth: int = 12,
    bavit_patches: int = 576,
    bavit_depth: int = 2,
) -> TokenReduction:
    """The token accounting of the BAViT paper, arXiv 2410.09324, Table 2.

    It counts patches alone, neither CLS nor detection tokens, which no pruning removes; and it takes every token for
    equally dear, though attention is quadratic, and a token of BAViT for as dear as one of a wider detector. So it
    understates what is saved in multiply-accumulates: see `detector_macs`.

    The arithmetic is the paper's. Its table could not be obtained, so that no row of it has been compared, nor any
    rounding in it.

    Args:
        sparsity: share of patches removed, 0..1. A decimal is taken as written: 0.35 is 35/100.
        patches: of the detector; 1024 are 512 x 512 pixels.
        depth: blocks of the detector.
        bavit_patches: of BAViT; 576 are 384 x 384 pixels.
        bavit_depth: blocks of BAViT; 0 where there is none.

    Raises:
        ParameterError: a share out of range, or counts that make no model.
    """
    try:
        exact = Fraction(str(sparsity))
    except ValueError:
        raise ParameterError(f"sparsity {sparsity} is no number: it is a share, 0 to 1.") from None
    if not 0 <= exact <= 1:
        raise ParameterError(f"sparsity {sparsity} is out of range: it is a share, 0 to 1.")
    if min(patches, depth) < 1 or min(bavit_patches, bavit_depth) < 0:
        raise ParameterError(
            f"{patches} patches in {depth} blocks, {bavit_patches} in {bavit_depth} of BAViT: these make no detector."
        )
    whole, bavit = patches * depth, bavit_patches * bavit_depth
    left = floor(whole * (1 - exact) + _ROUNDING)
    return TokenReduction(float(exact), whole, bavit, left, bavit + left, float(1 - Fraction(bavit + left, whole)))


@overload
def detector_macs(config: YolosConfig, kept: int, patches: int, *, prune_after: int = 0) -> int: ...


@overload
def detector_macs(
    config: YolosConfig, kept: NDArray[np.integer], patches: int | NDArray[np.integer], *, prune_after: int = 0
) -> NDArray[np.int64]: ...


def detector_macs(
    config: YolosConfig,
    kept: int | NDArray[np.integer],
    patches: int | NDArray[np.integer],
    *,
    prune_after: int = 0,
) -> int | NDArray[np.int64]:
    """Multiply-accumulates of a YOLOS for images of which some patches are kept, all of its work included.

    Patches that are removed before the first block are not embedded either. Positions cost nothing.

    Args:
        config: of the detector.
        kept: patches that are kept: of one image, or int (n,) of several.
        patches: of the image, or of each.
        prune_after: blocks that see all patches.

    Raises:
        ParameterError: more patches are kept than there are, or `prune_after` beyond the blocks.
    """
    if not (np.all(np.asarray(kept) >= 0) and np.all(np.asarray(kept) <= patches)):
        raise ParameterError(f"{kept} patches cannot be kept of {patches}.")
    if not 0 <= prune_after < config.depth:
        raise ParameterError(f"prune after layer {prune_after}: it is 0 to {config.depth - 1}.")
    from bavit.flops import yolos  # which loads torch; tokens are counted without

    shape = yolos(
        config.depth,
        dim=config.dim,
        patch=(config.patch, config.patch),
        detection_tokens=config.detection_tokens,
        classes=config.classes,
        mlp_hidden=config.mlp_hidden,
    )
    embedded = patches if prune_after else kept
    if isinstance(kept, np.ndarray):
        return shape.macs(kept, embedded=embedded, whole_blocks=prune_after)
    return shape.macs(kept, embedded=int(embedded), whole_blocks=prune_after)
