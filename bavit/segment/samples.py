"""Pictures with their masks: scaled, cropped, flipped and coloured together, then as batches.

What is random depends on (seed, epoch, row) alone. Only the part of a picture that is wanted is resized, from the same
box as that of its mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bavit.augment import colour_matrix
from bavit.data import Key
from bavit.pictures import PictureError, as_tensor, resize
from bavit.rows import Rows
from bavit.segment.classes import IGNORED, ClassTable
from bavit.segment.masks import MaskReader, paired_pictures
from tokenlabels.errors import ParameterError
from tokenlabels.model_input import PAD_COLOUR

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Box: TypeAlias = tuple[float, float, float, float]

REDRAWS = 10
"""How often another crop is tried where one class has too much of it."""

_REDUCTIONS = (1, 2, 4, 8)
"""By which libjpeg shrinks while it decodes."""


@dataclass(frozen=True, slots=True)
class CropView:
    """How a picture becomes an input.

    Attributes:
        crop: (H, W) of inputs.
        scale: least and most of what the picture's short side is multiplied by, after it has become that of the crop.
        flip: mirror left and right, every second time.
        colour: see `augment.Augmentation`.
        category_share: of a crop, without what is ignored, that one class may have; crops with more are drawn again, up
            to `REDRAWS` times.
        train: False: the whole picture, stretched to the crop as `Segmenter.preprocess` does it; nothing is random.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    colour: float = 0.0
    category_share: float = 0.75
    train: bool = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if min(self.crop) < 1:
            raise ParameterError(f"a crop of {self.crop[0]} x {self.crop[1]} pixels holds nothing: name a larger one.")
        if not 0 < low <= high < math.inf:
            raise ParameterError(f"--scale-range {low} {high} is no range: name the least and the most, above 0.")
        if not 0 <= self.colour <= 1:
            raise ParameterError(f"--colour {self.colour} is outside 0..1: it is the strength of changes of colour.")
        if not 0 < self.category_share <= 1:
            raise ParameterError(f"category_share {self.category_share} is outside 0..1: it is a share of the crop.")


@dataclass(frozen=True, slots=True, eq=False)
class SegmentSample:
    """One picture: pixels uint8 (H, W, 3), target uint8 (H, W), and what is wrong, where it is left out."""

    row: int
    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    target: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    fault: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SegmentBatch:
    """Several pictures; those that cannot be read, or whose mask cannot, are left out.

    Attributes:
        rows: int64, row numbers, those left out too.
        used: row numbers of the pictures in the batch.
        pixels: uint8 (B, 3, H, W), RGB; a view of channels-last memory.
        targets: uint8 (B, H, W), 255 where a pixel counts for nothing.
        faults: row -> what is wrong with its picture or mask.
    """

    rows: Tensor
    used: tuple[int, ...]
    pixels: Tensor
    targets: Tensor
    faults: Mapping[int, str]

    def pin_memory(self) -> SegmentBatch:
        """In page-locked memory, from which copies to a GPU need not wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> SegmentBatch:
        """On a device, but for the row numbers."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> SegmentBatch:
        return replace(self, pixels=change(self.pixels), targets=change(self.targets))


class SegmentImages(Dataset[SegmentSample]):
    """The pictures of some rows with their masks; its keys are (epoch, row).

    Args:
        rows: the rows, see `with_masks`.
        images: folder of the images, or None where they are embedded.
        table: what the masks mean.
        view: how a picture becomes an input.
        seed: of everything random.

    Raises:
        ParameterError: there are no pictures, or masks do not lie on them.
        TokenLabelsError: no such folder, or no masks.
    """

    def __init__(self, rows: Rows, images: Location | None, table: ClassTable, view: CropView, seed: int) -> None:
        self.rows, self.view = rows, view
        self.reader, self.masks = paired_pictures(rows, images), MaskReader(rows, table)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> SegmentSample:
        epoch, row = key
        try:
            mask = Image.fromarray(self.masks.open(row))
            if self.view.train:
                return self._cropped(row, mask, np.random.default_rng((self._seed, 3, epoch, row)))
            return self._stretched(row, mask)
        except PictureError as fault:
            return SegmentSample(row, fault=str(fault))

    def _stretched(self, row: int, mask: Image.Image) -> SegmentSample:
        height, width = self.view.crop
        pixels = resize(as_tensor(self._picture(row, mask.size, None)), (height, width))
        target = mask.resize((width, height), Image.Resampling.NEAREST)
        return SegmentSample(row, pixels.permute(1, 2, 0).numpy(), np.array(target))

    def _cropped(self, row: int, mask: Image.Image, rng: np.random.Generator) -> SegmentSample:
        view = self.view
        times = min(view.crop) * rng.uniform(*view.scale) / min(mask.size)
        scaled = max(1, round(mask.width * times)), max(1, round(mask.height * times))
        for _ in range(1 + REDRAWS):
            crop = _Crop.random(rng, mask.size, scaled, view.crop)
            values = mask.resize(crop.size, Image.Resampling.NEAREST, crop.box)
            if _largest_share(values) <= view.category_share:
                break
        picture = self._picture(row, mask.size, scaled)
        shrunk = _reduction(mask.size, picture.size)
        pixels = picture.resize(crop.size, Image.Resampling.BILINEAR, crop.box_in(picture.size, shrunk))
        if view.colour:
            pixels = pixels.convert("RGB", colour_matrix(rng, view.colour))
        if view.flip and rng.random() < 0.5:
            turn = Image.Transpose.FLIP_LEFT_RIGHT
            pixels, values, crop = pixels.transpose(turn), values.transpose(turn), crop.flipped()
        return SegmentSample(row, crop.padded(np.array(pixels), PAD_COLOUR), crop.padded(np.array(values), IGNORED))

    def _picture(self, row: int, size: tuple[int, int], scaled: tuple[int, int] | None) -> Image.Image:
        """The picture of a mask of (width, height) `size`; of enough pixels to be `scaled`."""
        if not self.reader.resized:
            return self.reader.open(row, scaled)
        picture = self.reader.open(row)
        if picture.size != size:
            raise PictureError(
                f"{self.rows.folder}: image {self.rows.image_ids[row]} is stored as {picture.width} x {picture.height} "
                f"pixels, its mask as {size[0]} x {size[1]}: build again."
            )
        return picture


@dataclass(frozen=True, slots=True)
class _Crop:
    """A crop of a scaled picture, which the picture may not fill.

    Attributes:
        shape: (H, W) of the crop.
        place: (left, top) of the picture's part in the crop.
        size: (width, height) of that part.
        box: where it is in the picture before it was scaled.
    """

    shape: tuple[int, int]
    place: tuple[int, int]
    size: tuple[int, int]
    box: Box

    @classmethod
    def random(
        cls, rng: np.random.Generator, source: tuple[int, int], scaled: tuple[int, int], shape: tuple[int, int]
    ) -> _Crop:
        """Anywhere where it holds as much of the picture as it can.

        Args:
            rng: where randomness comes from.
            source: (width, height) of the picture.
            scaled: (width, height) that it is scaled to.
            shape: (H, W) of the crop.
        """
        x, y = (
            _Span.random(rng, before, after, side)
            for before, after, side in zip(source, scaled, shape[::-1], strict=True)
        )
        return cls(shape, (x.place, y.place), (x.size, y.size), (x.first, y.first, x.last, y.last))

    def box_in(self, size: tuple[int, int], shrunk: int) -> Box:
        """The box in a picture of `size` that was shrunk while it was decoded."""
        left, top, right, bottom = (side / shrunk for side in self.box)
        return left, top, min(right, size[0]), min(bottom, size[1])

    def flipped(self) -> _Crop:
        """With the picture's part where it is in the mirrored crop; its box stays."""
        left, top = self.place
        return replace(self, place=(self.shape[1] - left - self.size[0], top))

    def padded(self, part: NDArray[np.uint8], fill: int | tuple[int, int, int]) -> NDArray[np.uint8]:
        """The whole crop, from the picture's part of it."""
        if self.size == self.shape[::-1]:
            return part
        whole = np.empty((*self.shape, *part.shape[2:]), np.uint8)
        whole[...] = fill
        left, top = self.place
        whole[top : top + self.size[1], left : left + self.size[0]] = part
        return whole


@dataclass(frozen=True, slots=True)
class _Span:
    """One axis of a crop: `place` and `size` in the crop, `first` and `last` in the picture."""

    place: int
    size: int
    first: float
    last: float

    @classmethod
    def random(cls, rng: np.random.Generator, source: int, scaled: int, side: int) -> _Span:
        start = int(rng.integers(min(0, scaled - side), max(0, scaled - side) + 1))
        first, last = max(0, start), min(scaled, start + side)
        return cls(max(0, -start), last - first, first * source / scaled, min(last * source / scaled, source))


def _largest_share(values: Image.Image) -> float:
    """Share of the largest class among pixels that are not ignored; 1 where there are none."""
    counts = values.histogram()[:IGNORED]
    return max(counts) / (sum(counts) or 1) or 1.0


def _reduction(source: tuple[int, int], decoded: tuple[int, int]) -> int:
    """By which a picture of (width, height) `source` was shrunk while it was decoded."""
    return next(by for by in _REDUCTIONS if all(-(-a // by) == b for a, b in zip(source, decoded, strict=True)))


def collate_segments(samples: Sequence[SegmentSample]) -> SegmentBatch:
    """Samples of one shape as a batch."""
    used = [sample for sample in samples if sample.fault is None]
    shown = used or [SegmentSample(-1)]
    pixels = torch.from_numpy(np.stack([sample.pixels for sample in shown]))[: len(used)]
    return SegmentBatch(
        rows=torch.tensor([sample.row for sample in samples]),
        used=tuple(sample.row for sample in used),
        pixels=pixels.permute(0, 3, 1, 2),
        targets=torch.from_numpy(np.stack([sample.target for sample in shown]))[: len(used)],
        faults={sample.row: sample.fault for sample in samples if sample.fault is not None},
    )
