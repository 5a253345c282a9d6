"""What a model said of a set, beside what is true: the one input of metrics, calibration and their plots.

One float32 and one label are held per patch, five bytes: 118,287 images of 24 x 24 patches take 340 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bavit.rows import Rows
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.figures import SIZE_LIMITS
from tokenlabels.grid import GridAxes

FOREGROUND, IGNORE = 1, 255
"""Values of a label, as `tokenlabels.labels` has them; that module loads the compiler."""

_BLOCK_CELLS = 1 << 21
"""Cells of one block of objects: 16 MiB of float64."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPatches:
    """m objects and their foreground patches: label-1 patches that the box, clipped to its image, covers by at least
    half. Sorted by image.

    Attributes:
        image: int64 (m,), index of the image.
        category: int32 (m,), index into the category table.
        size: int8 (m,), 0 small, 1 medium, 2 large by annotated area (`tokenlabels.figures.SIZE_LIMITS`).
        offsets: int64 (m + 1,): the patches of object k are cells[offsets[k]:offsets[k + 1]].
        cells: int64, indices into the flattened (n, rows, cols) arrays of `Predictions`.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int32]
    size: NDArray[np.int8]
    offsets: NDArray[np.int64]
    cells: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """n images.

    Attributes:
        background: float32 (n, rows, cols), probability of background, 0..1. A token is *kept* (taken for foreground)
            where this is not greater than the threshold.
        labels: uint8 (n, rows, cols): 1 foreground, 0 background, 255 ignore.
        objects: the objects of these images.
        categories: names, indexed by `objects.category`.
    """

    background: NDArray[np.float32]
    labels: NDArray[np.uint8]
    objects: ObjectPatches
    categories: Sequence[str]


def object_patches(rows: Rows) -> ObjectPatches:
    """The foreground patches of every object; as many as the column `objects.patches` of the shards says.

    The arithmetic is that of `tokenlabels.labels.count_patches`, step by step, so that halves fall on the same side.
    Objects are taken in blocks: beside the result, memory is bounded.
    """
    images = np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.offsets))
    axes = rows.grid.axes(rows.widths, rows.heights)
    _, height, width = rows.labels.shape
    block = max(1, _BLOCK_CELLS // (height * width))
    counts, cells = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(images), block):
        span = slice(first, first + block)
        covered = _half_covered(rows, axes, images[span], rows.boxes[span].astype(np.float64))
        covered &= rows.labels[images[span]] == FOREGROUND
        k, cell = np.nonzero(covered.reshape(len(covered), -1))
        counts.append(np.bincount(k, minlength=len(covered)))
        cells.append(images[span][k] * (height * width) + cell)
    return ObjectPatches(
        image=images,
        category=rows.objects["category"],
        size=(rows.objects["area"][:, None] >= np.array(SIZE_LIMITS)).sum(axis=1, dtype=np.int8),
        offsets=np.cumsum(np.concatenate(counts)),
        cells=np.concatenate(cells),
    )


def check_predictions(predictions: Predictions) -> None:
    """Make sure that there is something to measure.

    Raises:
        ParameterError: probabilities and labels differ in shape.
        TokenLabelsError: there are no images, or a probability is not a number in 0..1.
    """
    background, labels = predictions.background, predictions.labels
    if background.ndim != 3 or background.shape != labels.shape:
        raise ParameterError(
            f"probabilities {background.shape} and labels {labels.shape} must have the same shape (images, rows, cols)."
        )
    if not background.size:
        raise TokenLabelsError("there are no images to measure on: choose a split that holds some.")
    if not (background.min() >= 0 and background.max() <= 1):  # NaN fails, too
        raise TokenLabelsError(
            "the model gave a probability that is no number in 0..1, so its weights are damaged: train it again."
        )


def _half_covered(
    rows: Rows, axes: GridAxes, images: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """bool (b, rows, cols): a box, clipped to its image, covers at least half of a cell.

    Args:
        axes: grids of all images.
        images: int64 (b,).
        boxes: float64 (b, 4), xywh.
    """
    _, height, width = rows.labels.shape
    down = _shares(boxes[:, 1], boxes[:, 3], rows.heights[images], axes.y[images], height)
    across = _shares(boxes[:, 0], boxes[:, 2], rows.widths[images], axes.x[images], width)
    covered: NDArray[np.bool_] = down[:, :, None] * across[:, None, :] >= 0.5
    return covered


def _shares(
    low: NDArray[np.float64],
    length: NDArray[np.float64],
    limit: NDArray[np.int32],
    axis: NDArray[np.int64],
    count: int,
) -> NDArray[np.float64]:
    """float64 (b, count): share of each cell's side that a box covers, of one axis; 0 where they do not meet."""
    start, stop = np.maximum(low, 0.0), np.minimum(low + length, limit.astype(np.float64))
    edges = (axis[:, :1] * np.arange(count + 1) + axis[:, 1:2]) / axis[:, 2:].astype(np.float64)
    covered = np.minimum(stop[:, None], edges[:, 1:]) - np.maximum(start[:, None], edges[:, :-1])
    shares: NDArray[np.float64] = np.maximum(covered, 0.0) / (edges[:, 1:] - edges[:, :-1])
    return shares
