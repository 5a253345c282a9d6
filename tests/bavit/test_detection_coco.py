"""Average precision on arrays, against pycocotools reading the same data from files."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bavit.detect.coco import FIGURES, Detections, GroundTruth, Scores, evaluate_boxes
from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError, TokenLabelsError


def official(truth: Path, found: Path, only: list[int] | None = None) -> tuple[list[float | None], Any]:
    """The twelve figures as pycocotools gives them, and its precisions."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(truth))
        evaluation = COCOeval(index, index.loadRes(str(found)), "bbox")
        if only is not None:
            evaluation.params.imgIds = only
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats.tolist()], evaluation.eval["precision"]


def figures(scores: Scores) -> list[float | None]:
    return [getattr(scores, name) for name in FIGURES]


def random_case(seed: int, images: int = 12) -> tuple[GroundTruth, Detections]:
    """Objects, some of them crowds, and detections of which many are near an object; scores have ties."""
    rng = np.random.default_rng(seed)
    categories = [Category(number, f"c{number}") for number in (7, 2, 90, 11)]
    image = np.sort(rng.integers(0, images, 60))
    boxes = np.round(rng.uniform([0, 0, 1, 1], [300, 300, 150, 150], (60, 4)), 2)
    category = rng.integers(0, 3, 60)  # the last never occurs
    truth = GroundTruth(
        image_ids=[str(number) for number in rng.permutation(1000)[:images]],
        categories=categories,
        image=image,
        category=category,
        boxes=boxes,
        areas=np.round(boxes[:, 2] * boxes[:, 3] * rng.uniform(0.3, 1, 60), 1),
        crowd=rng.random(60) < 0.15,
        ignored=np.zeros(60, np.bool_),
    )
    near = rng.integers(0, 60, 150)
    ids = np.array([entry.id for entry in categories])
    guess = np.where(rng.random(150) < 0.8, ids[category[near]], rng.choice(ids, 150))
    found = Detections(
        image=image[near],
        category=guess,
        boxes=np.abs(boxes[near] + rng.normal(0, 8, (150, 4))),
        scores=rng.integers(1, 12, 150) / 12,
    )
    order = rng.permutation(150)
    return truth, Detections(found.image[order], guess[order], found.boxes[order], found.scores[order])


def write_case(truth: GroundTruth, found: Detections, folder: Path) -> tuple[Path, Path]:
    """Both as files for pycocotools."""
    ids = [int(image_id) for image_id in truth.image_ids]
    entries = [
        {"id": k + 1, "image_id": ids[truth.image[k]], "category_id": truth.categories[truth.category[k]].id,
         "bbox": truth.boxes[k].tolist(), "area": float(truth.areas[k]), "iscrowd": int(truth.crowd[k])}
        for k in range(len(truth.image))
    ]  # fmt: skip
    results = [
        {"image_id": ids[found.image[k]], "category_id": int(found.category[k]), "bbox": found.boxes[k].tolist(),
         "score": float(found.scores[k])}
        for k in range(len(found))
    ]  # fmt: skip
    document = {
        "images": [{"id": number} for number in ids],
        "categories": [{"id": entry.id, "name": entry.name} for entry in truth.categories],
        "annotations": entries,
    }
    folder.mkdir(exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "found.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "found.json"


def nothing_found() -> Detections:
    return Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    truth, found = random_case(seed)
    scores = evaluate_boxes(truth, found)
    wanted, precision = official(*write_case(truth, found, tmp_path))
    assert figures(scores) == wanted
    assert (scores.images, scores.detections) == (12, 150)
    assert scores.objects == (~truth.crowd).sum()
    order = np.argsort([entry.id for entry in truth.categories])
    for place, index in enumerate(order.tolist()):
        line, values = scores.by_category[index], precision[:, :, place, 0, 2]
        assert (line.id, line.name) == (truth.categories[index].id, truth.categories[index].name)
        assert line.detections == (found.category == line.id).sum()
        assert line.objects == ((truth.category == index) & ~truth.crowd).sum()
        if line.objects:
            assert (line.ap, line.ap50) == (values.mean(), values[0].mean())
        else:
            assert line.ap is line.ap50 is None
    assert scores.by_category[3].ap is None


def test_some_images_alone(tmp_path: Path) -> None:
    truth, found = random_case(1)
    only = truth.image_ids[2:9]
    wanted, _ = official(*write_case(truth, found, tmp_path), only=[int(image_id) for image_id in only])
    scores = evaluate_boxes(truth, found, only)
    assert figures(scores) == wanted
    assert scores.images == 7
    assert scores.detections == ((found.image >= 2) & (found.image < 9)).sum()
    with pytest.raises(ParameterError, match="image 4x is not in"):
        evaluate_boxes(truth, found, ["4x"])
    with pytest.raises(TokenLabelsError, match="no images"):
        evaluate_boxes(truth, found, [])


def test_images_with_names_rank_by_name() -> None:
    truth, found = random_case(2)
    padded = replace(truth, image_ids=[f"{int(image_id):06d}" for image_id in truth.image_ids])
    assert figures(evaluate_boxes(padded, found)) == figures(evaluate_boxes(truth, found))


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_boxes(*random_case(0))
    assert capsys.readouterr() == ("", "")


def test_no_detections_are_zeros() -> None:
    truth, _ = random_case(3)
    scores = evaluate_boxes(truth, nothing_found())
    assert all(value in (0, None) for value in figures(scores))
    assert scores.ap == scores.ar100 == scores.detections == 0


def test_perfect_detections_are_ones_and_sizes_without_objects_are_none() -> None:
    truth, _ = random_case(4)
    counted = ~truth.crowd & (truth.areas > 96**2)
    ids = np.array([entry.id for entry in truth.categories])
    large = replace(
        truth,
        image=truth.image[counted],
        category=truth.category[counted],
        boxes=truth.boxes[counted],
        areas=truth.areas[counted],
        crowd=truth.crowd[counted],
        ignored=truth.ignored[counted],
    )
    found = Detections(large.image, ids[large.category], large.boxes, np.ones(len(large.image)))
    scores = evaluate_boxes(large, found)
    assert scores.ap == scores.ap_large == scores.ar100 == pytest.approx(1)
    assert scores.ap_small is scores.ap_medium is scores.ar_small is scores.ar_medium is None
    assert json.loads(msgspec.json.encode(scores))["ap_small"] is None


def test_ignored_objects_count_neither_way() -> None:
    truth, found = random_case(5)
    without = replace(truth, ignored=np.arange(60) % 4 == 0)
    scores = evaluate_boxes(without, found)
    assert scores.objects == (~truth.crowd & ~without.ignored).sum()
    one = GroundTruth(
        ["a"], [Category(1, "x")], np.zeros(2, np.int64), np.zeros(2, np.int64),
        np.array([[0.0, 0, 10, 10], [50, 50, 10, 10]]), np.full(2, 100.0), np.zeros(2, np.bool_),
        np.array([False, True]),
    )  # fmt: skip
    both = Detections(np.zeros(2, np.int64), np.ones(2, np.int64), one.boxes[::-1].copy(), np.array([0.9, 0.5]))
    assert evaluate_boxes(one, both).ap == pytest.approx(1)
    assert evaluate_boxes(replace(one, ignored=np.zeros(2, np.bool_)), both).ar1 == 0.5


def test_without_objects_there_is_no_ap() -> None:
    truth, found = random_case(0)
    with pytest.raises(TokenLabelsError, match="no annotated objects that count"):
        evaluate_boxes(replace(truth, crowd=np.ones(60, np.bool_)), found)
    with pytest.raises(TokenLabelsError, match="no annotated objects that count"):
        evaluate_boxes(replace(truth, ignored=np.ones(60, np.bool_)), nothing_found())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": np.full(150, 12)}, "image number 12, there are 12"),
        ({"image": np.full(150, -1)}, "image number -1"),
        ({"category": np.full(150, 3)}, "category 3"),
        ({"scores": np.full(150, np.nan)}, "no finite number"),
        ({"boxes": np.full((150, 4), np.inf)}, "no finite number"),
        ({"boxes": np.zeros((150, 5))}, "differ"),
        ({"scores": np.zeros(149)}, "differ"),
    ],
)
def test_detections_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    truth, found = random_case(0)
    with pytest.raises(ParameterError, match=told):
        evaluate_boxes(truth, replace(found, **change))
