"""Pictures, objects and masks of a detection set as training batches: cropped, flipped, coloured, resized in workers.

As in `bavit.data`, what a sample is depends on (seed, epoch, row) alone. The detector and the BAViT in front of it see
the same changed picture, each at its own size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bavit.augment import CROP_PROBABILITY, Augmentation, Window, colour_matrix, crop_labels, random_window
from bavit.data import Key
from bavit.detect.preprocess import detector_size
from bavit.detect.pruning import Size, carry, removed_of
from bavit.pictures import PictureError, PictureReader, as_tensor, resize
from bavit.rows import Rows
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.model_input import model_input

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Masks: TypeAlias = Literal["bavit", "labels", "random", "none"]
"""Where the masks of kept patches come from."""

LEAST_VISIBLE = 0.25
"""Share of an object that a crop must hold for the object to be learned."""


@dataclass(frozen=True, slots=True)
class View:
    """How a picture becomes inputs.

    Attributes:
        patch: of the detector.
        edges: short sides of the input, one of which is taken at random.
        aspect: most of the long side over the short one.
        size: (H, W) that every picture is stretched to instead, or None.
        masks: `labels` and `random` are made here; `bavit` on the device, from the input that `small` describes.
        sparsity: share of patches that `random` removes.
        small: the grid of the BAViT, or None.
        augmentation: None: pictures as evaluation sees them.
        labels: samples hold the labels of the patches, on the grid of the rows.
    """

    patch: int
    edges: tuple[int, ...]
    aspect: float
    size: Size | None = None
    masks: Masks = "none"
    sparsity: float = 0.0
    small: PatchGrid | None = None
    augmentation: Augmentation | None = None
    labels: bool = False

    def input_size(self, width: int, height: int, edge: int) -> Size:
        """(H, W) of the input of a picture."""
        return self.size or detector_size(width, height, edge, round(edge * self.aspect), self.patch)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionSample:
    """One picture.

    Attributes:
        row: number of the row.
        pixels: uint8 (3, H, W), the detector's input.
        grid: (rows, cols) of its patches.
        small: uint8 (3, h, w), that of the BAViT, or None.
        keep: bool (rows, cols), or None.
        labels: uint8 (r, c), those of the patches, or None.
        size: (width, height) of the picture before it was resized.
        boxes: float32 (n, 4), centre x, centre y, width, height in 0..1.
        classes: int64 (n,).
        fault: what is wrong with the picture, which is then left out.
    """

    row: int
    pixels: Tensor = field(default_factory=lambda: torch.empty(3, 0, 0, dtype=torch.uint8))
    grid: Size = (0, 0)
    small: Tensor | None = None
    keep: Tensor | None = None
    labels: Tensor | None = None
    size: Size = (0, 0)
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    fault: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DetectionBatch:
    """Several pictures packed end to end, so that a batch is few tensors; those that cannot be read are left out.

    Attributes:
        rows: int64 (B,), row numbers, those left out too.
        used: row numbers of the pictures in the batch.
        shapes: (H, W) of the input of each.
        grids: (rows, cols) of its patches.
        sizes: (width, height) of each before it was resized.
        counts: objects of each.
        values: uint8, all inputs.
        small: uint8 (b, 3, h, w), inputs of the BAViT, or None.
        kept: bool, all masks, or None.
        labels: uint8 (b, r * c), those of the patches, or None.
        boxes: float32 (objects, 4).
        classes: int64 (objects,).
        faults: row -> what is wrong with its picture.
    """

    rows: Tensor
    used: tuple[int, ...]
    shapes: tuple[Size, ...]
    grids: tuple[Size, ...]
    sizes: tuple[Size, ...]
    counts: tuple[int, ...]
    values: Tensor
    small: Tensor | None
    kept: Tensor | None
    labels: Tensor | None
    boxes: Tensor
    classes: Tensor
    faults: Mapping[int, str]

    def pin_memory(self) -> DetectionBatch:
        """In page-locked memory, from which copies to a GPU need not wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> DetectionBatch:
        """On a device, but for the row numbers."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    @property
    def pixels(self) -> list[Tensor]:
        """uint8 (3, H_i, W_i)."""
        parts = torch.split(self.values, [3 * height * width for height, width in self.shapes])
        return [part.view(3, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def keep(self) -> list[Tensor] | None:
        """bool (rows_i, cols_i), or None."""
        if self.kept is None:
            return None
        parts = torch.split(self.kept, [rows * cols for rows, cols in self.grids])
        return [part.view(shape) for part, shape in zip(parts, self.grids, strict=True)]

    @property
    def targets(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Boxes and classes of each picture."""
        return torch.split(self.boxes, list(self.counts)), torch.split(self.classes, list(self.counts))

    def _each(self, change: Callable[[Tensor], Tensor]) -> DetectionBatch:
        return replace(
            self,
            values=change(self.values),
            small=None if self.small is None else change(self.small),
            kept=None if self.kept is None else change(self.kept),
            labels=None if self.labels is None else change(self.labels),
            boxes=change(self.boxes),
            classes=change(self.classes),
        )


class DetectionImages(Dataset[DetectionSample]):
    """The pictures of some rows with their objects; its keys are (epoch, row).

    Args:
        rows: the rows.
        images: folder of the images, or None where they are embedded.
        classes: int64 (k,): the detector's class of each category; objects of -1 are not learned.
        view: how a picture becomes inputs.
        seed: of everything random.

    Raises:
        ParameterError: there are no pictures, or an augmentation that labels cannot follow.
        TokenLabelsError: no such folder.
    """

    def __init__(self, rows: Rows, images: Location | None, classes: NDArray[np.int64], view: View, seed: int) -> None:
        self.rows, self.view = rows, view
        self.reader = PictureReader(rows, images)
        if self.reader.resized:
            raise ParameterError(
                f"{rows.folder} holds resized pictures (--embed-size), and a detector has an input size of its own: "
                "name the folder of the images with --images."
            )
        if view.augmentation and (view.labels or view.masks == "labels"):
            view.augmentation.check(rows, resized=False)
        self._classes, self._seed = classes, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> DetectionSample:
        epoch, row = key
        try:
            picture = self.reader.open(row)
        except PictureError as fault:
            return DetectionSample(row, fault=str(fault))
        view, augmentation = self.view, self.view.augmentation
        rng = np.random.default_rng((self._seed, 2, epoch if augmentation else 0, row))
        window = Window(0, 0, *picture.size)
        if augmentation and augmentation.crop < 1 and rng.random() < CROP_PROBABILITY:
            window = random_window(rng, *picture.size, augmentation.crop)
        flip = bool(augmentation and augmentation.flip and rng.random() < 0.5)
        picture = _changed(picture, window, flip, augmentation, rng)
        edge = view.edges[int(rng.integers(len(view.edges)))] if augmentation else view.edges[0]
        boxes, classes = objects_in(self.rows, row, self._classes, window, flip=flip)
        height, width = view.input_size(*picture.size, edge)
        grid = height // view.patch, width // view.patch
        return DetectionSample(
            row,
            resize(as_tensor(picture), (height, width)),
            grid,
            None if view.small is None else as_tensor(model_input(picture, view.small)),
            self._keep(row, window, grid, rng, flip=flip),
            self._labels(row, window, flip=flip) if view.labels else None,
            picture.size,
            boxes,
            classes,
        )

    def _keep(self, row: int, window: Window, shape: Size, rng: np.random.Generator, *, flip: bool) -> Tensor | None:
        """bool (rows, cols) of the detector's grid; patches whose label is ignored stay."""
        if self.view.masks == "random":
            kept = np.ones(shape[0] * shape[1], np.bool_)
            kept[rng.permutation(kept.size)[: removed_of(kept.size, self.view.sparsity)]] = False
            return torch.from_numpy(kept.reshape(shape))
        if self.view.masks != "labels":
            return None
        stays = self._labels(row, window, flip=flip) > 0
        return carry(stays[None], self.rows.grid, [(window.width, window.height)], [shape])[0]

    def _labels(self, row: int, window: Window, *, flip: bool) -> Tensor:
        """uint8 (r, c): those of the part of a picture, as a build of it would have them."""
        rows = self.rows
        labels = rows.labels[row]
        if (window.width, window.height) != (int(rows.widths[row]), int(rows.heights[row])):
            labels, _ = crop_labels(rows.records(row), window, rows.grid, rows.header.spec)
        return torch.from_numpy(np.ascontiguousarray(labels[:, ::-1] if flip else labels))


def collate_detections(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """Samples as a batch."""
    used = [sample for sample in samples if sample.fault is None]
    small = [sample.small for sample in used if sample.small is not None]
    kept = [sample.keep.flatten() for sample in used if sample.keep is not None]
    labels = [sample.labels.flatten() for sample in used if sample.labels is not None]
    return DetectionBatch(
        rows=torch.tensor([sample.row for sample in samples]),
        used=tuple(sample.row for sample in used),
        shapes=tuple((sample.pixels.shape[1], sample.pixels.shape[2]) for sample in used),
        grids=tuple(sample.grid for sample in used),
        sizes=tuple(sample.size for sample in used),
        counts=tuple(len(sample.classes) for sample in used),
        values=torch.cat([torch.empty(0, dtype=torch.uint8), *(sample.pixels.flatten() for sample in used)]),
        small=torch.stack(small) if small else None,
        kept=torch.cat(kept) if kept else None,
        labels=torch.stack(labels) if labels else None,
        boxes=torch.from_numpy(np.concatenate([np.zeros((0, 4), np.float32), *(each.boxes for each in used)])),
        classes=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(each.classes for each in used)])),
        faults={sample.row: sample.fault for sample in samples if sample.fault is not None},
    )


def objects_in(
    rows: Rows, row: int, classes: NDArray[np.int64], window: Window, *, flip: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The objects of a part of an image that are learned: no crowds, nothing without area, nothing mostly outside.

    Args:
        rows: of the set.
        row: of the image.
        classes: int64 (k,), class of each category, -1: none.
        window: the part.
        flip: it is mirrored left and right.

    Returns:
        float32 (n, 4), centre x, centre y, width, height in 0..1 of the part; and int64 (n,), their classes.
    """
    places = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
    found = rows.boxes[places].astype(np.float64)
    numbers = classes[rows.objects["category"][places]]
    source, corner = np.array([rows.widths[row], rows.heights[row]]), np.array([window.left, window.top])
    side = np.array([window.width, window.height])
    first, last = np.clip(found[:, :2], 0, source), np.clip(found[:, :2] + found[:, 2:], 0, source)
    whole = (last - first).prod(1)
    first, last = np.clip(first - corner, 0, side), np.clip(last - corner, 0, side)
    area = (last - first).prod(1)
    learned = ~rows.objects["iscrowd"][places] & (numbers >= 0) & (area > 0) & (area >= LEAST_VISIBLE * whole)
    boxes = np.concatenate([(first + last) / (2 * side), (last - first) / side], 1)
    if flip:
        boxes[:, 0] = 1 - boxes[:, 0]
    return boxes[learned].astype(np.float32), numbers[learned]


def common_size(rows: Rows, view: View) -> Size:
    """(H, W) that most pictures have as inputs, of equals the smallest."""
    sizes = zip(rows.widths.tolist(), rows.heights.tolist(), strict=True)
    found = Counter(view.input_size(width, height, view.edges[0]) for width, height in sizes)
    return max(sorted(found), key=lambda size: found[size])


def _changed(
    picture: Image.Image, window: Window, flip: bool, augmentation: Augmentation | None, rng: np.random.Generator
) -> Image.Image:
    if (window.width, window.height) != picture.size:
        picture = picture.crop((window.left, window.top, window.left + window.width, window.top + window.height))
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation and augmentation.colour:
        picture = picture.convert("RGB", colour_matrix(rng, augmentation.colour))
    return picture
