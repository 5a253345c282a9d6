"""What a threshold is chosen for: a share of removed tokens, a recall of foreground, or a budget of MACs.

All targets have one shape, so that one search serves them. Of each image some tokens count; a threshold keeps those
whose critical probability it reaches; the figure of a set is the sum of `parts` over the sum of `wholes` of its images,
and the more is kept, the further it moves in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bavit.background.predictions import FOREGROUND
from bavit.background.refine import resize_mask
from bavit.flops import YOLOS_TINY, VitShape
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid

_DETECTOR_PATCH = 16
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Target(Protocol):
    """One figure and the value it shall have.

    Attributes:
        name: of the figure.
        upper: of the thresholds that meet the target the greatest is chosen (and every smaller one meets it, too);
            otherwise the smallest (and every greater one meets it).
    """

    name: ClassVar[str]
    upper: ClassVar[bool]

    @property
    def value(self) -> float:
        """The value that is asked for."""
        ...

    def counted(self, critical: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (b, c): critical probabilities of the tokens that count, infinity in the place of others.

        Args:
            critical: float32 (b, rows, cols), see `critical.py`.
            labels: uint8 (b, rows, cols).
        """
        ...

    def parts(self, kept: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Whole numbers as float64, of the shape of `kept`.

        Args:
            kept: int64 (b, k), counted tokens that are kept, at k thresholds.
            totals: int64 (b, 1), tokens that count.
        """
        ...

    def wholes(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Whole numbers as float64, of the shape of `totals`."""
        ...

    def met(self, figure: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether these figures meet the target."""
        ...


@dataclass(frozen=True, slots=True)
class SparsityTarget:
    """At least this share of all tokens is removed, ignored ones included, and as few more as possible.

    Raises:
        ParameterError: `value` is no share.
    """

    value: float
    name: ClassVar[str] = "sparsity"
    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share(self.value, self.name)

    def counted(self, critical: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002
        return critical.reshape(len(critical), -1)

    def parts(self, kept: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return (totals - kept).astype(np.float64)

    def wholes(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return totals.astype(np.float64)

    def met(self, figure: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(figure >= self.value)


@dataclass(frozen=True, slots=True)
class RecallTarget:
    """At least this share of the foreground tokens is kept, and as few tokens as possible.

    Raises:
        ParameterError: `value` is no share.
    """

    value: float
    name: ClassVar[str] = "fg-recall"
    upper: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_share(self.value, self.name)

    def counted(self, critical: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.where(labels == FOREGROUND, critical, np.float32(np.inf)).reshape(len(critical), -1)

    def parts(self, kept: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        return kept.astype(np.float64)

    def wholes(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return totals.astype(np.float64)

    def met(self, figure: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(figure >= self.value)


@dataclass(frozen=True, slots=True)
class MacsTarget:
    """An image costs at most so many MACs in the mean, and as much as possible is kept.

    Counted are the background ViT and the detector. The detector gets the mask taken to its own grid, and embeds only
    the patches that are kept. Its cost is quadratic in these, so the mean is over the costs of the images, not the cost
    of a mean image.

    Attributes:
        value: multiply-accumulates per image.
        bavit_macs: of the background ViT, which every image costs.
        rows: of the detector's grid; 32 patches of 16 pixels are 512.
        cols: of the detector's grid.
        detector: its shape.

    Raises:
        ParameterError: a budget that is not positive, or a grid without cells.
    """

    value: float
    bavit_macs: int
    rows: int = 32
    cols: int = 32
    detector: VitShape = YOLOS_TINY
    name: ClassVar[str] = "macs"
    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.value < np.inf:
            raise ParameterError(f"a budget is a positive number of multiply-accumulates, not {self.value}.")
        if self.rows < 1 or self.cols < 1:
            raise ParameterError(f"a detector's grid of {self.rows} x {self.cols} has no patches: both are at least 1.")

    def counted(self, critical: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002
        cells = torch.arange(critical[0].size).reshape(critical.shape[1:])
        read = (
            resize_mask(cells, self.rows, self.cols).numpy().reshape(-1)
        )  # the cell that each of the detector's reads
        return critical.reshape(len(critical), -1)[:, read]

    def parts(self, kept: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        return (self.bavit_macs + self.detector.macs(kept)).astype(np.float64)

    def wholes(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.ones(totals.shape, np.float64)

    def met(self, figure: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(figure <= self.value)


def parse_target(
    sparsity: float | None, fg_recall: float | None, macs: str | None, *, bavit_macs: int, detector_size: str
) -> Target:
    """The one target that a person names.

    Args:
        sparsity: share of tokens to remove, or None.
        fg_recall: share of foreground tokens to keep, or None.
        macs: budget such as `8e9`, `8G` or `500M`, or None.
        bavit_macs: of the background ViT, for a budget.
        detector_size: input of the detector, `HxW` or one number, whole patches of 16 pixels, for a budget.

    Raises:
        ParameterError: none or several of them, or a value that makes no sense.
    """
    named = [value is not None for value in (sparsity, fg_recall, macs)]
    if sum(named) != 1:
        raise ParameterError("name one target: --sparsity, --fg-recall or --macs.")
    if sparsity is not None:
        return SparsityTarget(sparsity)
    if fg_recall is not None:
        return RecallTarget(fg_recall)
    rows, cols = PatchGrid.parse(_DETECTOR_PATCH, detector_size).constant_shape or (0, 0)
    return MacsTarget(parse_macs(str(macs)), bavit_macs, rows, cols)


def parse_macs(text: str) -> float:
    """A number with or without K, M, G or T behind it, taken as written.

    Raises:
        ParameterError: it is none.
    """
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        return float(Decimal(text[:-1] if unit > 1 else text) * unit)
    except ArithmeticError:
        raise ParameterError(f"--macs {text!r} is no number: write 8e9, 8G or 500M.") from None


def _check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ParameterError(f"the target {name} is a share in 0..1, not {value}.")
