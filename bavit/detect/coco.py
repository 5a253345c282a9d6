"""Average precision as COCO computes it: by its own evaluator, pycocotools, on arrays rather than files."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError, TokenLabelsError

WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Image ids that are numbers in COCO files; `000005`, as VOC has it, is a name."""

_AREAS = ("all", "small", "medium", "large")
_MOST_DETECTIONS = (1, 10, 100)


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """n images and their m annotated objects.

    Attributes:
        image_ids: n ids, as text.
        categories: the category table.
        image: int64 (m,), index of the image.
        category: int64 (m,), index into `categories`.
        boxes: float64 (m, 4), x, y, width, height in source pixels.
        areas: float64 (m,), square pixels as annotated, which decide what is small.
        crowd: bool (m,), regions of many objects: detections in them are neither right nor wrong.
        ignored: bool (m,), single objects whose detection is neither right nor wrong, such as VOC's difficult ones.
    """

    image_ids: Sequence[str]
    categories: Sequence[Category]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """d detections in some images, in any order; of equal scores in one image the earlier counts as the better.

    Attributes:
        image: int64 (d,), index of the image.
        category: int64 (d,), id (not index) of the category.
        boxes: float64 (d, 4), x, y, width, height in source pixels.
        scores: float64 (d,), the higher the surer.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image)


class CategoryScores(msgspec.Struct, frozen=True):
    """One category; its AP is None where the images hold no object of it that counts.

    Attributes:
        id: as the data set has it.
        name: of the category.
        ap: mean over the IoU thresholds 0.50 to 0.95.
        ap50: at IoU 0.5.
        objects: annotated, crowd and ignored ones left out.
        detections: of this category.
    """

    id: int
    name: str
    ap: float | None
    ap50: float | None
    objects: int
    detections: int


class Scores(msgspec.Struct, frozen=True):
    """COCO's twelve figures, 0..1; None where no object counts, which pycocotools writes as -1.

    Attributes:
        ap: AP at IoU 0.50 to 0.95, mean over categories.
        ap50: AP at IoU 0.5.
        ap75: AP at IoU 0.75.
        ap_small: AP of objects below 32 x 32 pixels.
        ap_medium: AP of those below 96 x 96.
        ap_large: AP of the others.
        ar1: recall with the best detection of every category in every image.
        ar10: with the 10 best.
        ar100: with the 100 best, to which AP is limited, too.
        ar_small: recall of small objects.
        ar_medium: of medium ones.
        ar_large: of large ones.
        images: evaluated.
        objects: annotated, crowd and ignored ones left out.
        detections: in these images, whether or not they are among the 100 best.
        by_category: in the order of the category table.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float
    ar10: float
    ar100: float
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    images: int
    objects: int
    detections: int
    by_category: list[CategoryScores]


FIGURES = Scores.__struct_fields__[:12]
"""Names of the twelve, in the order of pycocotools."""


def evaluate_boxes(truth: GroundTruth, detections: Detections, only: Collection[str] | None = None) -> Scores:
    """Score detections against ground truth. The figures are those of pycocotools on the same data in files.

    Args:
        truth: what is there.
        detections: what was found.
        only: ids of the images to evaluate, by default all.

    Raises:
        ParameterError: detections that do not fit: of an image or category that is not there, or no numbers; an image
            id in `only` that is not there.
        TokenLabelsError: there are no images, or no object that counts.
    """
    _check(truth, detections)
    if only is not None:
        truth, detections = _restricted(truth, detections, only)
    counted = ~(truth.crowd | truth.ignored)
    if not len(truth.image_ids):
        raise TokenLabelsError("there are no images to evaluate on: choose a split that holds some.")
    if not counted.any():
        raise TokenLabelsError(
            f"the {len(truth.image_ids)} images hold no annotated objects that count, so there is no AP: choose others."
        )
    ranks = _ranks(truth.image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(_truth_index(truth, ranks), _detection_index(truth, detections, ranks), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    objects = np.bincount(truth.category[counted], minlength=len(truth.categories))
    values = [None if value < 0 else float(value) for value in evaluation.stats.tolist()]
    figures: dict[str, Any] = dict(zip(FIGURES, values, strict=True))
    return Scores(
        **figures,
        images=len(truth.image_ids),
        objects=int(objects.sum()),
        detections=len(detections),
        by_category=_by_category(truth.categories, evaluation, objects, detections),
    )


class _Evaluation(COCOeval):  # type: ignore[misc]
    """COCO's evaluator, which by itself ignores crowd regions alone."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for entry in objects:
                entry["ignore"] = entry["ignore"] or entry["difficult"]


def _check(truth: GroundTruth, detections: Detections) -> None:
    image, category, boxes, scores = detections.image, detections.category, detections.boxes, detections.scores
    if not (len(image) == len(category) == len(boxes) == len(scores)) or boxes.shape[1:] != (4,):
        raise ParameterError(f"detections of {len(image)} images, boxes {boxes.shape}, scores {scores.shape}: differ.")
    if not len(image):
        return
    outside = image[(image < 0) | (image >= len(truth.image_ids))]
    if outside.size:
        raise ParameterError(f"a detection is of image number {outside[0]}, there are {len(truth.image_ids)} images.")
    unknown = np.setdiff1d(category, [entry.id for entry in truth.categories])
    if unknown.size:
        raise ParameterError(f"a detection is of category {unknown[0]}, which is not in the category table.")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ParameterError("a detection has a box or score that is no finite number: are the weights damaged?")


def _restricted(truth: GroundTruth, detections: Detections, only: Collection[str]) -> tuple[GroundTruth, Detections]:
    """Both with some of the images alone, numbered anew."""
    wanted = set(only)
    missing = wanted.difference(truth.image_ids)
    if missing:
        raise ParameterError(f"image {min(missing)} is not in the ground truth.")
    kept = np.array([image_id in wanted for image_id in truth.image_ids], np.bool_)
    numbers = np.cumsum(kept) - 1
    chosen, found = kept[truth.image], kept[detections.image]
    return GroundTruth(
        image_ids=[image_id for image_id in truth.image_ids if image_id in wanted],
        categories=truth.categories,
        image=numbers[truth.image[chosen]],
        category=truth.category[chosen],
        boxes=truth.boxes[chosen],
        areas=truth.areas[chosen],
        crowd=truth.crowd[chosen],
        ignored=truth.ignored[chosen],
    ), Detections(
        numbers[detections.image[found]],
        detections.category[found],
        detections.boxes[found],
        detections.scores[found],
    )


def _ranks(image_ids: Sequence[str]) -> NDArray[np.int64]:
    """int64 (n,): the place of every image in the order of pycocotools, by id; equal scores rank by image."""
    numbers = all(WHOLE_NUMBER.fullmatch(image_id) for image_id in image_ids)
    keys = np.array([int(image_id) for image_id in image_ids]) if numbers else np.array(image_ids)
    ranks = np.empty(len(image_ids), np.int64)
    ranks[np.argsort(keys, kind="stable")] = np.arange(len(image_ids))
    return ranks


def _truth_index(truth: GroundTruth, ranks: NDArray[np.int64]) -> Any:
    ids = np.array([entry.id for entry in truth.categories], np.int64)
    columns = (
        ranks[truth.image],
        ids[truth.category],
        truth.boxes,
        truth.areas,
        truth.crowd.astype(np.int64),
        truth.ignored,
    )
    entries = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd,
         "difficult": difficult}
        for number, (image, category, box, area, crowd, difficult) in enumerate(_lists(*columns), 1)
    ]  # fmt: skip
    return _index(truth, entries)


def _detection_index(truth: GroundTruth, found: Detections, ranks: NDArray[np.int64]) -> Any:
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    columns = (ranks[found.image], found.category, found.boxes, areas, found.scores)
    entries = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "score": score,
         "iscrowd": 0}
        for number, (image, category, box, area, score) in enumerate(_lists(*columns), 1)
    ]  # fmt: skip
    return _index(truth, entries)


def _lists(*columns: NDArray[Any]) -> zip[tuple[Any, ...]]:
    """Rows of some columns, as Python values."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _index(truth: GroundTruth, entries: list[dict[str, Any]]) -> Any:
    """A `COCO` of these annotations. Their ids begin at 1: to pycocotools 0 means that there is no match."""
    index = COCO()
    index.dataset = {
        "images": [{"id": number} for number in range(len(truth.image_ids))],
        "categories": [{"id": entry.id, "name": entry.name} for entry in truth.categories],
        "annotations": entries,
    }
    index.createIndex()
    return index


def _by_category(
    categories: Sequence[Category], evaluation: Any, objects: NDArray[np.int64], detections: Detections
) -> list[CategoryScores]:
    """The precisions (IoU, recall, category, area, detections) of `evaluation` by category; -1 where there is none."""
    precision = evaluation.eval["precision"][:, :, :, _AREAS.index("all"), _MOST_DETECTIONS.index(100)]
    places = {category_id: place for place, category_id in enumerate(evaluation.params.catIds)}
    ids, counts = np.unique(detections.category, return_counts=True)
    found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    scores = []
    for entry, count in zip(categories, objects.tolist(), strict=True):
        values = precision[:, :, places[entry.id]]
        ap, ap50 = (float(values.mean()), float(values[0].mean())) if count else (None, None)
        scores.append(CategoryScores(entry.id, entry.name, ap, ap50, count, found.get(entry.id, 0)))
    return scores
