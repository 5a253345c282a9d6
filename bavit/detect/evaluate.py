"""From what a detector gives for every image to average precision and results files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bavit.detect.classes import category_of_class, class_of_category, unknown_categories
from bavit.detect.coco import Detections, Scores, evaluate_boxes
from bavit.detect.config import YolosConfig
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.pruned import Detection
from bavit.detect.results import as_written
from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress

_SHOWN = 3


def flat_detections(found: Sequence[Detection], config: YolosConfig, categories: Sequence[Category]) -> Detections:
    """Detections of images in order as flat arrays; those of classes that are no category are left out.

    Args:
        found: of each image.
        config: of the detector, whose classes they are.
        categories: the category table of the data set.

    Raises:
        ParameterError: the detector's classes are not this data set's, see `class_of_category`.
    """
    classes = class_of_category(config.labels, categories, named=config.named)
    counts = [len(each.labels) for each in found]
    image = np.repeat(np.arange(len(found), dtype=np.int64), counts)
    labels = _joined([each.labels for each in found], (0,)).astype(np.int64)
    corners = _joined([each.boxes for each in found], (0, 4))
    scores = _joined([each.scores for each in found], (0,))
    known = np.isin(labels, classes)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)[known]
    ids = category_of_class(classes, categories, len(config.labels))
    return Detections(image[known], ids[labels[known]], as_written(boxes), as_written(scores[known]))


def evaluate_detections(detection_set: DetectionSet, found: Sequence[Detection], config: YolosConfig) -> Scores:
    """COCO's figures of a detector on a set.

    Args:
        detection_set: the set.
        found: the detections of each of its images, in order.
        config: of the detector.

    Raises:
        ParameterError: another number of images, classes that are not this set's, or boxes that are no numbers.
        TokenLabelsError: the set holds no objects.
    """
    if len(found) != len(detection_set):
        raise ParameterError(f"detections of {len(found)} images are not for a set of {len(detection_set)}.")
    return evaluate_boxes(detection_set.truth(), flat_detections(found, config, detection_set.categories))


def check_classes(detection_set: DetectionSet, config: YolosConfig, progress: Progress) -> None:
    """Make sure that a detector can find something of a set, and tell which categories it cannot find.

    Raises:
        ParameterError: see `class_of_category`.
    """
    categories = detection_set.categories
    classes = class_of_category(config.labels, categories, named=config.named)
    unknown = unknown_categories(classes, categories)
    if unknown:
        shown = ", ".join(name[:40] for name in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        progress.note(
            f"the detector has no class for {len(unknown)} of {len(categories)} categories ({shown}): their AP is 0."
        )


def _joined(parts: Sequence[torch.Tensor], empty: tuple[int, ...]) -> NDArray[np.float32]:
    """All parts end to end; float32, or integers."""
    return torch.cat([*parts]).cpu().numpy() if parts else np.zeros(empty, np.float32)
