"""Which patches of a detector's grid are kept: from BAViT's background probabilities to masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bavit.background.critical import critical_probabilities
from bavit.background.model import BAViT
from bavit.background.refine import refine, resize_mask
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid

Size: TypeAlias = tuple[int, int]

MAX_REFINE_STEPS = 1000

PAPER_STEPS = 3


@dataclass(frozen=True, slots=True)
class Pruning:
    """How many patches stay. At most one of threshold, top_k and sparsity; max_tokens may come on top.

    Attributes:
        threshold: a patch is removed where its background probability is greater; None: the BAViT model's own, or a
            learned one of each image.
        top_k: so many patches of the detector's grid stay in every image.
        sparsity: this share of the patches of every image is removed.
        max_tokens: of what stays by `threshold` at most so many patches of an image, the most certain foreground.
        refine_steps: steps of refinement, see `refine`. top_k, sparsity and max_tokens rank patches by the threshold
            from which on they are kept after refinement.
        prune_after: blocks of the detector that see all patches.

    Raises:
        ParameterError: two of them at once, or one out of range.
    """

    threshold: float | None = None
    top_k: int | None = None
    sparsity: float | None = None
    max_tokens: int | None = None
    refine_steps: int = PAPER_STEPS
    prune_after: int = 0

    def __post_init__(self) -> None:
        choices = {"threshold": self.threshold, "top_k": self.top_k, "sparsity": self.sparsity}
        given = [name for name, value in choices.items() if value is not None]
        if len(given) > 1:
            raise ParameterError(f"{given[0]} and {given[1]} cannot both say how many patches stay: give one.")
        for name in ("threshold", "sparsity"):
            value = choices[name]
            if value is not None and not 0 <= value <= 1:
                raise ParameterError(f"{name} {value:g} is out of range: it is 0 to 1.")
        counts = (self.top_k, self.max_tokens, self.prune_after, self.refine_steps)
        if not all(number is None or isinstance(number, (int, np.integer)) for number in counts):
            raise ParameterError("top_k, max_tokens, refine_steps and prune_after are whole numbers.")
        for name, number in (("top_k", self.top_k), ("max_tokens", self.max_tokens), ("prune_after", self.prune_after)):
            if number is not None and number < 0:
                raise ParameterError(f"{name} {number} is out of range: it is 0 or more.")
        if not 0 <= self.refine_steps <= MAX_REFINE_STEPS:
            raise ParameterError(f"{self.refine_steps} steps of refinement: it is 0 to {MAX_REFINE_STEPS}.")

    def masks(
        self,
        background: Tensor,
        grid: PatchGrid,
        sizes: Sequence[Size],
        shapes: Sequence[Size],
        default: float | Tensor,
    ) -> list[Tensor]:
        """What is kept of images.

        Args:
            background: float (B, r, c), probability of background on BAViT's grid; any device.
            grid: BAViT's.
            sizes: (width, height) of each image, source pixels.
            shapes: (rows, cols) of each image on the detector's grid.
            default: the threshold where none is given; or float (B,), one of each image.

        Returns:
            bool (rows_i, cols_i) of each image, on the device of `background`.
        """
        threshold = default if self.threshold is None else self.threshold
        if self.top_k is None and self.sparsity is None and self.max_tokens is None:
            limit = threshold.to(background)[:, None, None] if isinstance(threshold, Tensor) else threshold
            return carry(refine(background <= limit, self.refine_steps), grid, sizes, shapes)
        probabilities = background.float().cpu().numpy()
        critical = torch.from_numpy(critical_probabilities(probabilities, self.refine_steps))
        carried = carry(critical, grid, sizes, shapes)
        limits = threshold.tolist() if isinstance(threshold, Tensor) else [threshold] * len(carried)
        ranked = [self._ranked(values.numpy(), limit) for values, limit in zip(carried, limits, strict=True)]
        return [mask.to(background.device) for mask in ranked]

    @property
    def by_threshold(self) -> bool:
        """No number says how many patches stay: that is for a threshold from elsewhere."""
        return self.threshold is None and self.top_k is None and self.sparsity is None

    def _ranked(self, critical: np.ndarray, threshold: float) -> Tensor:
        """The patches of one image with the smallest critical thresholds; of equals those further up and left."""
        flat = critical.reshape(-1)
        if self.top_k is not None:
            count = min(self.top_k, flat.size)
        elif self.sparsity is not None:
            count = flat.size - removed_of(flat.size, self.sparsity)
        else:
            count = int((flat <= threshold).sum())
        count = count if self.max_tokens is None else min(count, self.max_tokens)
        kept = np.zeros(flat.size, np.bool_)
        kept[np.argsort(flat, kind="stable")[:count]] = True
        return torch.from_numpy(kept.reshape(critical.shape))


def removed_of(patches: int, sparsity: float) -> int:
    """How many of some patches a share is, rounded down; a decimal is taken as written."""
    return int(Fraction(str(float(sparsity))) * patches)


def steps_of(bavit: BAViT) -> int:
    """Steps of refinement where none are asked for: those a model was calibrated with, else those of the paper."""
    return PAPER_STEPS if bavit.calibration is None else bavit.refine_steps


def carry(cells: Tensor, grid: PatchGrid, sizes: Sequence[Size], shapes: Sequence[Size]) -> list[Tensor]:
    """Take values of cells to other grids over the same images: each cell there reads the one its centre lies in.

    Args:
        cells: any dtype (B, r, c), on `grid`.
        grid: squash or letterbox; the other grids cover the whole image and nothing else.
        sizes: (width, height) of each image, source pixels.
        shapes: (rows, cols) of each of the other grids.

    Returns:
        (rows_i, cols_i) of each image, on the same device.
    """
    if grid.resize == "squash":
        if len(set(shapes)) == 1:
            return list(resize_mask(cells, *shapes[0]).unbind(0))
        return [resize_mask(image, *shape) for image, shape in zip(cells, shapes, strict=True)]
    found = []
    for image, size, (rows, cols) in zip(cells, sizes, shapes, strict=True):
        axes = grid.axes(np.array([size[0]], np.int32), np.array([size[1]], np.int32))
        down = _centres(axes.y[0], size[1], rows, image.shape[0])
        across = _centres(axes.x[0], size[0], cols, image.shape[1])
        found.append(image[down.to(image.device)[:, None], across.to(image.device)])
    return found


def _centres(axis: np.ndarray, side: int, count: int, cells: int) -> Tensor:
    """int64 (count,): the cell of an axis (`step, start, divisor`, see `GridAxes`) with the centre of each part."""
    step, start, divisor = (int(value) for value in axis)
    found = [((2 * part + 1) * side * divisor - 2 * count * start) // (2 * count * step) for part in range(count)]
    return torch.tensor(found).clamp(0, cells - 1)
