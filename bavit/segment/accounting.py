"""What segmenting a picture costs in multiply-accumulates (MACs), from the tokens that blocks and heads saw.

Counted are products of matrices, as in `flops.py`: patch embedding, linear layers, both products of attention.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.flops import block_macs
from bavit.segment.heads import AtmHead, FcnHead
from bavit.segment.model import Segmenter, SegmenterOutput


def output_macs(model: Segmenter, output: SegmenterOutput) -> NDArray[np.int64]:
    """What each picture of a batch took.

    Args:
        model: with the attributes that it was run with.
        output: what it said.

    Returns:
        int64 (B,).
    """
    rows, cols = output.exit_stage.shape[1:]
    return segmenter_macs(model, output.tokens, output.heads, (rows, cols), tuple(model.exit_after))


def segmenter_macs(
    model: Segmenter, tokens: Tensor, heads: Tensor, grid: tuple[int, int], places: tuple[int, ...]
) -> NDArray[np.int64]:
    """MACs of n pictures.

    Args:
        model: the network.
        tokens: int64 (n, depth), tokens that each block saw.
        heads: int64 (n, len(places) + 1), tokens that each head read; it did not run where that is 0.
        grid: (rows, cols) of the patches.
        places: blocks after which the heads sit, but for the last.

    Returns:
        int64 (n,).
    """
    patches = grid[0] * grid[1]
    total = torch.from_numpy(blocks_macs(model, tokens)) + patches * _embedding(model)
    numbers = [model.head_after.index(place) for place in places] + [len(model.head_after)]
    for stage, number in enumerate(numbers):
        head = model.heads[number]
        assert isinstance(head, FcnHead | AtmHead)
        read = heads[:, stage].cpu()
        total += torch.tensor([head.macs(count, 1) if count else 0 for count in read.tolist()], dtype=torch.int64)
    if model.reduction is not None:
        total += model.reduction.macs(*grid)
    return total.numpy()


def dense_macs(model: Segmenter, size: tuple[int, int], *, auxiliary: bool = False) -> int:
    """MACs of a picture that no token leaves early, and whose grid is not halved.

    Args:
        model: the network.
        size: (H, W) in pixels.
        auxiliary: count the heads before the last, too, which inference does not need.
    """
    grid = model.grid(*size)
    patches = grid[0] * grid[1]
    tokens = torch.full((1, model.depth), patches + int(model.backbone.num_prefix_tokens))
    total = patches * _embedding(model) + int(blocks_macs(model, tokens)[0])
    for head in model.heads if auxiliary else [model.heads[-1]]:
        assert isinstance(head, FcnHead | AtmHead)
        total += head.macs(patches, 1)
    return total


def blocks_macs(model: Segmenter, tokens: Tensor) -> NDArray[np.int64]:
    """MACs of the blocks alone, int64 (n,), of n pictures whose blocks saw `tokens` int64 (n, depth)."""
    total = torch.zeros(len(tokens), dtype=torch.int64)
    for number, block in enumerate(model.backbone.blocks):
        total += block_macs(block, tokens[:, number].cpu())
    return total.numpy()


def _embedding(model: Segmenter) -> int:
    return int(model.backbone.patch_embed.proj.weight.numel())
