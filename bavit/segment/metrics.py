"""How good a segmentation is: a matrix of confusion, and the figures that are read off it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
"""The label of pixels that count nowhere."""

_PIXELS_AT_A_TIME = 1 << 22


class Confusion:
    """Pixels by their label and by what was predicted there.

    Args:
        classes: K, of labels and predictions; at most 255.

    Attributes:
        counts: int64 (K, K), rows are labels, columns predictions.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, labels: NDArray[np.uint8], predictions: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Count pixels.

        Args:
            labels: uint8, any shape; 255 counts nowhere.
            predictions: uint8, the same shape.

        Returns:
            int64 (K, K), of these pixels alone.

        Raises:
            ValueError: the shapes differ, or a value is no class.
        """
        if labels.shape != predictions.shape:
            raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} are not of the same pixels.")
        classes = len(self.counts)
        found = np.zeros_like(self.counts)
        label, predicted = labels.reshape(-1), predictions.reshape(-1)
        for first in range(0, label.size, _PIXELS_AT_A_TIME):
            some = label[first : first + _PIXELS_AT_A_TIME]
            counted = some != IGNORED
            rows = some[counted].astype(np.int64)
            columns = predicted[first : first + _PIXELS_AT_A_TIME][counted]
            if rows.size and max(rows.max(), columns.max()) >= classes:
                raise ValueError(f"a label or prediction is none of the {classes} classes.")
            found += np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)
        self.counts += found
        return found


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of a matrix of confusion.

    Attributes:
        miou: mean over the classes that occur, in labels or in predictions; 0 where there are none.
        pixel_accuracy: share of the counted pixels that are right; 0 where there are none.
        iou: of each class, intersection over union of its pixels; None where it occurs in neither.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float | None, ...]


def quality(counts: NDArray[np.int64]) -> Quality:
    """The figures of a matrix of confusion, int64 (K, K) as `Confusion.counts`."""
    right = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    iou = tuple(float(r / u) if u else None for r, u in zip(right.tolist(), union.tolist(), strict=True))
    occurring = [value for value in iou if value is not None]
    total = int(counts.sum())
    return Quality(
        miou=float(np.mean(occurring)) if occurring else 0.0,
        pixel_accuracy=float(right.sum() / total) if total else 0.0,
        iou=iou,
    )
