"""The masks of a sweep: from BAViT, from the ground truth, and random ones of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.detect.pruning import Pruning, Size
from bavit.detect.sweep_figures import MaskSource
from tokenlabels.grid import PatchGrid
from tokenlabels.labels import FOREGROUND


@dataclass(frozen=True, slots=True, eq=False)
class MaskMaker:
    """Makes masks of n images.

    Attributes:
        grid: BAViT's.
        background: float32 (n, r, c), BAViT's probability of background.
        truth: float32 (n, r, c), what the labels say in its place, see `label_background`.
        sizes: n of (width, height), source pixels.
        shapes: n of (rows, cols) on the detector's grid.
        refine_steps: of all but random masks.
        seed: of random masks.
        numbers: n numbers of images, which random masks depend on.
    """

    grid: PatchGrid
    background: NDArray[np.float32]
    truth: NDArray[np.float32]
    sizes: Sequence[Size]
    shapes: Sequence[Size]
    refine_steps: int
    seed: int
    numbers: Sequence[int]

    def masks(self, source: MaskSource, threshold: float) -> list[Tensor]:
        """bool (rows_i, cols_i) of each image.

        Random masks keep as many patches of an image as those of BAViT do at that threshold, and of two random masks of
        one image the smaller is part of the larger.
        """
        pruning = Pruning(threshold=threshold, refine_steps=self.refine_steps)
        values = torch.from_numpy(self.truth if source == "labels" else self.background)
        made = pruning.masks(values, self.grid, self.sizes, self.shapes, threshold)
        if source != "random":
            return made
        return [self._random(number, mask) for number, mask in zip(self.numbers, made, strict=True)]

    def _random(self, number: int, like: Tensor) -> Tensor:
        order = np.random.default_rng((self.seed, number)).permutation(like.numel())
        kept = torch.zeros(like.numel(), dtype=torch.bool)
        kept[order[: int(like.sum())]] = True
        return kept.view_as(like)


def label_background(labels: NDArray[np.uint8], scores: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """What stands for the probability of background where the ground truth decides: float32 of the same shape.

    One minus the score, so that a patch stays where at least one minus the threshold of it lies in an object; without
    scores 0 for label 1 and 1 for all others, so that every threshold below 1 gives the labels themselves.

    Args:
        labels: uint8 (n, rows, cols).
        scores: float32 of the same shape, 0..1, or None.
    """
    if scores is not None:
        return np.float32(1) - scores
    return np.where(labels == FOREGROUND, np.float32(0), np.float32(1))


def none_where_full(masks: Sequence[Tensor]) -> list[Tensor | None]:
    """None in place of those masks that remove nothing, so that the dense path is taken."""
    return [None if bool(mask.all()) else mask for mask in masks]
