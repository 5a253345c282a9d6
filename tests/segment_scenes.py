"""A handful of small pictures of several sizes with masks, and a segmenter that is sure of some of their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_builds import semantic

from bavit.rows import read_rows
from bavit.segment.classes import class_table
from bavit.segment.config import BackboneShape, SegmenterConfig
from bavit.segment.early_exit import ExitRule
from bavit.segment.model import Segmenter
from tokenlabels.reader import Build, open_build

SIZES = [(40, 40), (40, 64), (72, 48), (24, 90), (16, 16)]
"""(width, height) of each."""

VALUES = (0, 3, 4, 7, 255)


def scene(size: tuple[int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A mask (height, width) of blocks, and a picture whose colours follow it."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(VALUES, (-(-size[1] // 12), -(-size[0] // 12)))
    mask = np.kron(blocks, np.ones((12, 12), int))[: size[1], : size[0]].astype(np.uint8)
    colours = np.random.default_rng(9).integers(40, 216, (256, 3))
    return mask, np.clip(colours[mask] + rng.normal(0, 25, (*mask.shape, 3)), 0, 255).astype(np.uint8)


def scenes(root: Path, **options: Any) -> Build:
    """A build of them."""
    found = {f"{number}": scene(size, number) for number, size in enumerate(SIZES)}
    masks = {name: mask for name, (mask, _) in found.items()}
    return semantic(root, masks, pictures={name: picture for name, (_, picture) in found.items()}, **options)


def small_segmenter(shards: Path, head: Any = "fcn", **options: Any) -> Segmenter:
    """A random segmenter of the classes of a build, for windows of 40 x 40.

    Args:
        shards: the build.
        head: kind of heads.
        options: of `SegmenterConfig`.
    """
    build = open_build(shards)
    table = class_table(build, read_rows(build, scores=False))
    shape = BackboneShape("vit_tiny_patch16_224", dim=32, depth=4, heads=2, patch=8)
    torch.manual_seed(3)
    given: dict[str, Any] = {"exit_after": (1, 2), "image_size": (40, 40), "rule": ExitRule(0.5, 1)}
    model = Segmenter.from_config(SegmenterConfig(table.classes, shape, head, **given | options))
    with torch.no_grad():
        for each in model.heads:
            for name, value in each.named_parameters():
                if value.ndim == 2:
                    value.normal_(0, (6 if "classify" in name else 1.5) * value.shape[1] ** -0.5)
    return model.eval()
