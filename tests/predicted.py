"""Random predictions, for tests of what counts them."""

from __future__ import annotations

import numpy as np

from bavit.background.predictions import ObjectPatches, Predictions


def random_predictions(
    seed: int,
    *,
    images: int = 6,
    rows: int = 5,
    cols: int = 4,
    levels: int | None = None,
    foreground: float = 0.4,
    ignored: float = 0.1,
    objects: int = 4,
) -> Predictions:
    """A model that is right more often than not, on images whose objects share patches; some have none.

    Args:
        levels: probabilities are multiples of 1 / levels, so that many are equal; None: all sorts of numbers.
        foreground: share of label 1.
        ignored: share of label 255.
        objects: at most, per image.
    """
    rng = np.random.default_rng(seed)
    shape = (images, rows, cols)
    labels = (rng.random(shape) < foreground).astype(np.uint8)
    background = np.clip(rng.normal(0.6 - 0.25 * labels, 0.3), 0, 1).astype(np.float32)
    if levels:
        background = (np.round(background * levels) / levels).astype(np.float32)
    labels[rng.random(shape) < ignored] = 255
    image = np.sort(rng.integers(0, images, rng.integers(0, images * objects + 1)))
    cells = [
        np.sort(rng.permutation(held)[: rng.integers(0, 8)]) + index * rows * cols
        for index in image.tolist()
        for held in [np.flatnonzero(labels[index] == 1)]
    ]
    return Predictions(
        background=background,
        labels=labels,
        objects=ObjectPatches(
            image=image.astype(np.int64),
            category=rng.integers(0, 3, len(image)).astype(np.int32),
            size=rng.integers(0, 3, len(image)).astype(np.int8),
            offsets=np.cumsum([0, *(len(each) for each in cells)]).astype(np.int64),
            cells=np.concatenate([np.zeros(0, np.int64), *cells]).astype(np.int64),
        ),
        categories=("cat", "dog", "emu", "fox"),
    )
