"""What a segmenter is made of: backbone, classes, heads, and when tokens end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

from bavit.segment.early_exit import ExitRule
from tokenlabels.errors import ParameterError

HeadName: TypeAlias = Literal["fcn", "atm"]
Reduction: TypeAlias = Literal["none", "conv", "pool", "nearest"]

MAX_SIDE = 10_000
MAX_CLASSES = 255
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """A class: its value in masks, and its name."""

    value: int
    name: str


def names_apart(classes: Sequence[SegmentClass]) -> list[str]:
    """The names of classes; one that several have is followed by the value."""
    names = [each.name for each in classes]
    return [each.name if names.count(each.name) == 1 else f"{each.name} ({each.value})" for each in classes]


@dataclass(frozen=True, slots=True)
class BackboneShape:
    """A plain ViT of timm; None: as timm has it.

    Attributes:
        name: of timm, such as `vit_base_patch16_384`.
        dim: width of a token.
        depth: blocks.
        heads: of attention.
        patch: side of a patch in pixels.
    """

    name: str = "vit_tiny_patch16_224"
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None


_TINY = BackboneShape()
_RULE = ExitRule()


@dataclass(frozen=True, slots=True)
class SegmenterConfig:
    """A plain ViT with segmentation heads after some of its blocks.

    Attributes:
        classes: what is told apart, in order.
        backbone: the ViT.
        head: `fcn` (SETR-naive) or `atm` (SegViT's attention-to-mask).
        exit_after: numbers of blocks after which an auxiliary head sits and tokens may end, ascending.
        image_size: (H, W) that positions are stored for: the crop of training, the window of inference.
        rule: which tokens end.
        downsample: instead of early exit: after the first of `exit_after` the grid is halved, see `reduction.py`.
        mean: of each channel of RGB in 0..1, subtracted from pixels.
        std: of each channel, pixels are divided by.

    Raises:
        ParameterError: numbers that make no model.
    """

    classes: tuple[SegmentClass, ...]
    backbone: BackboneShape = _TINY
    head: HeadName = "fcn"
    exit_after: tuple[int, ...] = (6, 8)
    image_size: tuple[int, int] = (512, 512)
    rule: ExitRule = field(default=_RULE)
    downsample: Reduction = "none"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ParameterError(f"{len(self.classes)} classes cannot be told apart in masks of 8 bits: 1 to 255.")
        for word, words, option in (
            (self.head, get_args(HeadName), "--head"),
            (self.downsample, get_args(Reduction), "--downsample"),
        ):
            if word not in words:
                raise ParameterError(f"unknown {option} {word!r}: use one of {', '.join(words)}.")
        if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in self.image_size):
            raise ParameterError(f"an image size of {self.image_size} is out of range: 1 to {MAX_SIDE} pixels a side.")
        if self.downsample != "none" and not self.exit_after:
            raise ParameterError(f"--downsample {self.downsample} needs a place: give one block with --exit-after.")
        if not all(0 < value < 1e6 for value in self.std):
            raise ParameterError(f"std {self.std} is out of range: it divides pixels.")
        check_positions(self.exit_after)


def check_positions(positions: Sequence[int], depth: int | None = None) -> None:
    """Refuse positions of heads that are none.

    Args:
        positions: numbers of blocks that are done.
        depth: blocks of the network, where that is known.

    Raises:
        ParameterError: they are not whole, not ascending, or outside the network.
    """
    shown = ", ".join(map(str, positions))
    if any(not isinstance(each, int) or isinstance(each, bool) or each < 1 for each in positions):
        raise ParameterError(f"exit positions {shown}: give numbers of blocks, from 1 on.")
    if any(first >= second for first, second in pairwise(positions)):
        raise ParameterError(f"exit positions {shown} do not ascend: give them in the order of the blocks, each once.")
    if depth is not None and positions and positions[-1] >= depth:
        raise ParameterError(
            f"exit position {positions[-1]} is outside the network: it has {depth} blocks, and tokens can end after 1 "
            f"to {depth - 1} of them."
        )
