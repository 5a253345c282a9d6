"""Rows and pictures -> batches of uint8 pixels and labels, decoded in worker processes.

What a sample is depends on (seed, epoch, row) alone, and the order of an epoch on (seed, epoch): neither on workers nor
on ranks, so that training can be stopped anywhere and resumed, or spread over ranks, and sees the same batches.

Pictures embedded in shards are read a row group at a time; an epoch takes row groups in random order, a window of some
at a time whose rows are mixed, so that memory is bounded (`WINDOW_BYTES` a worker). Every worker reads every row group
of a window once, for its batches hold rows of all of them; that costs little beside decoding the pictures.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bavit.augment import (
    CROP_PROBABILITY,
    Augmentation,
    colour_matrix,
    crop_labels,
    crop_picture,
    random_window,
)
from bavit.pictures import CACHED_BYTES, PictureError, PictureReader
from bavit.rows import Rows
from tokenlabels.model_input import model_input
from tokenlabels.stats_shards import IGNORE

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Key: TypeAlias = tuple[int, int]
"""(epoch, row)."""

WINDOW_BYTES = CACHED_BYTES * 3 // 4
"""Embedded pictures that are mixed with each other in an epoch; a worker can hold them all."""

_FIRST_PICTURES = 128
"""Pictures that initialisation from scratch looks at."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: pixels uint8 (H', W', 3), labels uint8 (rows, cols), scores float32 or None, and what is wrong."""

    row: int
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Several pictures; one that cannot be read is black, and all its labels are 255.

    Attributes:
        rows: int64 (B,), row numbers.
        pixels: uint8 (B, 3, H', W'), RGB; a view of channels-last memory.
        labels: uint8 (B, rows * cols).
        scores: float32 (B, rows * cols), or None.
        faults: row -> what is wrong with its picture, for those that cannot be read.
    """

    rows: Tensor
    pixels: Tensor
    labels: Tensor
    scores: Tensor | None
    faults: Mapping[int, str]

    def pin_memory(self) -> Batch:
        """In page-locked memory, from which copies to a GPU need not wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """On a device, but for the row numbers."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        scores = None if self.scores is None else change(self.scores)
        return Batch(self.rows, change(self.pixels), change(self.labels), scores, self.faults)


class ShardImages(Dataset[Sample]):
    """The pictures of some rows; its keys are (epoch, row).

    Args:
        rows: the rows.
        images: folder of the images, or None where they are embedded.
        augmentation: None: pictures as evaluation sees them.
        seed: of everything random.

    Raises:
        ParameterError: there are no pictures, or an augmentation that labels cannot follow.
        TokenLabelsError: no such folder.
    """

    def __init__(
        self, rows: Rows, images: Location | None, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.rows = rows
        self.reader = PictureReader(rows, images)
        if augmentation:
            augmentation.check(rows, resized=self.reader.resized)
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample:
        epoch, row = key
        try:
            if self._augmentation is None:
                return self._plain(row)
            return self._augmented(row, self._augmentation, np.random.default_rng((self._seed, 1, epoch, row)))
        except PictureError as fault:
            height, width = self.rows.grid.image_size or (0, 0)
            shape = self.rows.labels.shape[1:]
            scores = None if self.rows.scores is None else np.zeros(shape, np.float32)
            nothing = np.full(shape, IGNORE, np.uint8)
            return Sample(row, np.zeros((height, width, 3), np.uint8), nothing, scores, str(fault))

    def _plain(self, row: int) -> Sample:
        picture = self.reader.open(row)
        if not self.reader.resized or self.rows.grid.resize == "squash":  # else it is the letterboxed input
            picture = model_input(picture, self.rows.grid)
        scores = None if self.rows.scores is None else self.rows.scores[row]
        return Sample(row, np.array(picture), self.rows.labels[row], scores)

    def _augmented(self, row: int, augmentation: Augmentation, rng: np.random.Generator) -> Sample:
        if augmentation.crop < 1 and rng.random() < CROP_PROBABILITY:
            sample = self._cropped(row, augmentation, rng)
        else:
            sample = self._plain(row)
        pixels, labels, scores = sample.pixels, sample.labels, sample.scores
        if augmentation.flip and rng.random() < 0.5:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
            scores = None if scores is None else scores[:, ::-1]
        if augmentation.colour:
            pixels = _coloured(pixels, colour_matrix(rng, augmentation.colour))
        return Sample(row, pixels, labels, scores)

    def _cropped(self, row: int, augmentation: Augmentation, rng: np.random.Generator) -> Sample:
        rows, grid = self.rows, self.rows.grid
        size = int(rows.widths[row]), int(rows.heights[row])
        window = random_window(rng, *size, augmentation.crop)
        labels, scores = crop_labels(rows.records(row), window, grid, rows.header.spec)
        enough = None
        if grid.resize == "squash" and grid.image_size is not None:  # what is decoded still has twice the pixels needed
            height, width = grid.image_size
            enough = (2 * math.ceil(width * size[0] / window.width), 2 * math.ceil(height * size[1] / window.height))
        picture = crop_picture(self.reader.open(row, enough), window, size, grid)
        return Sample(row, np.array(picture), labels, None if rows.scores is None else scores)


def _coloured(pixels: NDArray[np.uint8], matrix: tuple[float, ...]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB", matrix))


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one shape as a batch."""
    pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([sample.labels.reshape(-1) for sample in samples]))
    held = [sample.scores.reshape(-1) for sample in samples if sample.scores is not None]
    scores = torch.from_numpy(np.stack(held)) if len(held) == len(samples) else None
    faults = {sample.row: sample.fault for sample in samples if sample.fault}
    return Batch(torch.tensor([sample.row for sample in samples]), pixels, labels, scores, faults)


class PictureSet(Protocol):
    """Pictures of one size, by (epoch, row): samples with `pixels` uint8 (H', W', 3) and `fault`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Any: ...


def first_pictures(dataset: PictureSet) -> Tensor:
    """uint8 (N, 3, H', W'): some pictures from all over a data set.

    Raises:
        PictureError: none can be read.
    """
    chosen = torch.linspace(0, len(dataset) - 1, min(_FIRST_PICTURES, len(dataset))).long().tolist()
    samples = [dataset[0, row] for row in chosen]
    usable = [torch.from_numpy(sample.pixels) for sample in samples if sample.fault is None]
    if not usable:
        raise PictureError(f"{samples[0].fault} None of {len(samples)} pictures could be read.")
    return torch.stack(usable).permute(0, 3, 1, 2)


class BatchOrder(Sampler[list[Key]]):
    """The batches of an epoch, or of what is left of one, for one rank.

    A global batch is cut into equal parts, one for each rank: together ranks see what a single one would.

    Args:
        rows: the rows.
        batch_size: pictures of a global batch.
        seed: of the order; None: in order, and the last batch may be smaller.
        world: number of ranks.
        rank: this one.

    Attributes:
        epoch: which epoch comes next.
        first: batches of it that are left out at the beginning.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int | None, world: int = 1, rank: int = 0) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._world, self._rank = world, rank
        self.epoch = 0
        self.first = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch; with a seed, rows that do not fill one wait for another epoch."""
        size = len(self._rows) / self._batch_size
        return math.ceil(size) if self._seed is None else max(1, math.floor(size))

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(len(self._rows)) if self._seed is None else epoch_order(self._rows, self._seed, self.epoch)
        size = self._batch_size
        for batch in range(self.first, self.batches):
            chosen = order[batch * size : (batch + 1) * size]
            if self._seed is not None and len(chosen) < size:
                chosen = np.resize(order, size)  # fewer rows than a batch: some twice
            mine = chosen[self._rank :: self._world]
            if len(mine):  # of the last batch of a validation there may be nothing left for this rank
                yield [(self.epoch, int(row)) for row in mine]


def epoch_order(rows: Rows, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 (n,): the rows in the order of an epoch, mixed within windows of row groups that a worker can hold."""
    rng = np.random.default_rng((seed, 0, epoch))
    if not any(rows.picture_bytes):
        return rng.permutation(len(rows))
    starts = np.searchsorted(rows.group, np.arange(len(rows.groups) + 1))
    pieces: list[NDArray[np.int64]] = []
    window: list[NDArray[np.int64]] = []
    held = 0
    for group in rng.permutation(len(rows.groups)).tolist():
        size = rows.picture_bytes[group]
        if window and held + size > WINDOW_BYTES:
            pieces.append(rng.permutation(np.concatenate(window)))
            window, held = [], 0
        window.append(np.arange(starts[group], starts[group + 1]))
        held += size
    return np.concatenate([*pieces, rng.permutation(np.concatenate(window))])


def loader(
    dataset: Dataset[Any],
    order: BatchOrder,
    workers: int,
    *,
    pin: bool = False,
    collate: Callable[[Sequence[Any]], Any] = collate,
) -> DataLoader[Any]:
    """Batches of a data set, decoded by worker processes, or in this one where there are none."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it draws from torch's, which dropout goes on from after --resume
    )


def _start_worker(_number: int) -> None:
    """Signals are the parent's to answer; a worker ends with it."""
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):
            signal.signal(name, signal.SIG_IGN)
