"""Examples of a sweep, drawn: some images with their ground truth, and what is found in them at several thresholds."""

from __future__ import annotations

import numpy as np

from bavit.background.model import BAViT
from bavit.detect.draw import MIN_SCORE, Box, draw_detection, found_boxes
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.sweep import Plan, Swept, mask_maker
from bavit.detect.sweep_figures import MASK_NAMES
from bavit.detect.yolos import Yolos
from bavit.gallery import Sample

_THRESHOLDS = 3
"""So many are shown of each image."""


def samples(
    swept: Swept, bavit: BAViT, yolos: Yolos, plan: Plan, count: int, min_score: float = MIN_SCORE
) -> list[Sample]:
    """Pictures for the page: for each image one of the ground truth, and one for each of some thresholds.

    Args:
        swept: what is shown.
        bavit: the background model.
        yolos: the detector.
        plan: of the sweep.
        count: how many images, spread over those that hold objects.
        min_score: boxes of a smaller score are not drawn.

    Raises:
        PictureError: a picture cannot be read.
    """
    data, parts = swept.data, swept.parts
    source = swept.sweep.sources[0]
    chosen = [setting for setting in plan.settings if setting[0] == source]
    spread = np.linspace(0, len(chosen) - 1, min(_THRESHOLDS, len(chosen))).round().astype(int)
    shown = [chosen[index] for index in dict.fromkeys(spread.tolist())][::-1]
    found = []
    for index in _some(data, count):
        picture, name = data.pictures.open(index), data.rows.file_names[index]
        one = slice(index, index + 1)
        maker = mask_maker(bavit, data, plan, parts.background[one], parts.shapes[one], [index])
        truth = true_boxes(data, yolos, index)
        drawn = draw_detection(picture, None, truth, original=False, caption="ground truth")
        found.append(Sample(f"{name}, ground truth", drawn, "Objects of"))
        for setting in shown:
            number = 1 + plan.settings.index(setting)
            boxes = found_boxes(parts.detections(number)[index], yolos.config.labels, min_score)
            kept = maker.masks(*setting)[0].numpy()
            caption = f"{MASK_NAMES[source]}, threshold {setting[1]:g}"
            drawn = draw_detection(picture, kept, boxes, original=False, caption=caption)
            found.append(Sample(f"{name}, threshold {setting[1]:g}", drawn, "What is found in"))
    return found


def true_boxes(data: DetectionSet, yolos: Yolos, index: int) -> list[Box]:
    """The annotated boxes of an image, in the colours of the classes that they are to the detector."""
    rows = data.rows
    names = [category.name for category in rows.categories]
    places = {label: number for number, label in enumerate(yolos.config.labels)}
    span = range(int(rows.offsets[index]), int(rows.offsets[index + 1]))
    found = []
    for number in span:
        left, top, width, height = rows.boxes[number].tolist()
        kind = int(rows.objects["category"][number])
        corners = left, top, left + width, top + height
        found.append(Box(corners, names[kind], None, places.get(names[kind], kind)))
    return found


def _some(data: DetectionSet, count: int) -> list[int]:
    """Images with objects, spread over the set."""
    with_objects = np.flatnonzero(np.diff(data.rows.offsets))
    places = np.linspace(0, len(with_objects) - 1, min(count, len(with_objects))).round().astype(int)
    return [int(with_objects[place]) for place in dict.fromkeys(places.tolist())]
