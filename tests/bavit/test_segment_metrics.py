"""mIoU and pixel accuracy against sets of pixels counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bavit.segment.metrics import IGNORED, Confusion, quality


def some_pixels(classes: int, *, seed: int = 0, size: int = 4_000) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels, a tenth of them ignored, and predictions that are often right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size).astype(np.uint8)
    predictions = np.where(rng.random(size) < 0.6, labels, rng.integers(0, classes, size)).astype(np.uint8)
    labels[rng.random(size) < 0.1] = IGNORED
    return labels, predictions


def by_sets(labels: NDArray[np.uint8], predictions: NDArray[np.uint8], classes: int) -> list[float | None]:
    """IoU of each class from sets of pixels."""
    counted = {place for place, label in enumerate(labels.tolist()) if label != IGNORED}
    found: list[float | None] = []
    for number in range(classes):
        true = {place for place in counted if labels[place] == number}
        seen = {place for place in counted if predictions[place] == number}
        found.append(len(true & seen) / len(true | seen) if true | seen else None)
    return found


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_figures_are_those_of_sets_of_pixels(classes: int) -> None:
    labels, predictions = some_pixels(classes)
    confusion = Confusion(classes + 2)  # two classes occur nowhere
    for first in range(0, len(labels), 1_000):
        confusion.add(labels[first : first + 1_000].reshape(20, 50), predictions[first : first + 1_000].reshape(20, 50))
    found, plain = quality(confusion.counts), by_sets(labels, predictions, classes + 2)
    assert found.iou == pytest.approx(plain)
    assert found.iou[-2:] == (None, None)
    there = [value for value in plain if value is not None]
    assert found.miou == pytest.approx(sum(there) / len(there))
    counted = labels != IGNORED
    assert found.pixel_accuracy == pytest.approx((labels == predictions)[counted].mean())


def test_a_class_that_is_only_predicted_counts_and_what_is_ignored_does_not() -> None:
    confusion = Confusion(4)
    confusion.add(np.array([0, 0, 255, 255], np.uint8), np.array([0, 1, 2, 3], np.uint8))
    assert quality(confusion.counts).iou == (0.5, 0.0, None, None)
    assert quality(confusion.counts).miou == 0.25


def test_each_call_tells_its_own_pixels() -> None:
    confusion = Confusion(2)
    labels = np.array([0, 1], np.uint8)
    assert confusion.add(labels, labels).tolist() == [[1, 0], [0, 1]]
    assert confusion.add(labels, labels[::-1]).tolist() == [[0, 1], [1, 0]]
    assert confusion.counts.tolist() == [[1, 1], [1, 1]]


def test_nothing_is_zero() -> None:
    found = quality(Confusion(3).counts)
    assert (found.miou, found.pixel_accuracy, found.iou) == (0.0, 0.0, (None, None, None))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [([0, 3], [0, 0], "none of the 3 classes"), ([0, 0], [0, 3], "none of the 3 classes"), ([0], [0, 0], "not of")],
)
def test_what_cannot_be_counted_is_refused(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Confusion(3).add(np.array(labels, np.uint8), np.array(predictions, np.uint8))


def test_a_large_picture_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = some_pixels(5)
    whole = Confusion(5)
    whole.add(labels, predictions)
    monkeypatch.setattr("bavit.segment.metrics._PIXELS_AT_A_TIME", 7)
    parts = Confusion(5)
    parts.add(labels, predictions)
    assert np.array_equal(whole.counts, parts.counts)
