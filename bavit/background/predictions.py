"""What a model said of a set, beside what is true: the one input of metrics, calibration and their plots.

One float32 and one label are held per patch, five bytes: 118,287 images of 24 x 24 patches take 340 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bavit.rows import Rows
from tokenlabels.figures import SIZE_LIMITS
from tokenlabels.grid import edges_of


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
    """The foreground patches of every object; as many as the column `objects.patches` of the shards says."""
    raise NotImplementedError  # helper A
