"""Detection sets from builds and COCO files: the same truth, pictures that are there, faults in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import tokenlabels
from bavit.detect.coco import FIGURES, Detections, evaluate_boxes
from bavit.detect.config import YolosConfig
from bavit.detect.evaluate import evaluate_detections, flat_detections
from bavit.detect.ground_truth import DetectionSet, open_detection_set, read_ground_truth
from bavit.detect.pruned import Detection
from bavit.detect.results import read_results, write_results
from bavit.pictures import PictureError
from bavit.splits import training_splits
from tokenlabels.annotations import Category
from tokenlabels.errors import FindingsError, NotABuildError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"


@pytest.fixture(scope="module")
def embedded(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detection") / "out"
    tokenlabels.build("coco", root=sample_root, out=out, image_size=[96, 64], embed_images=True, shard_rows=5)
    return out


def names_of(opened: DetectionSet) -> list[str]:
    return list(opened.rows.file_names)


def as_detections(opened: DetectionSet, labels: tuple[str, ...]) -> list[Detection]:
    """The truth of a set, with a score for each object."""
    rows, found = opened.rows, []
    for index in range(len(rows)):
        part = slice(int(rows.offsets[index]), int(rows.offsets[index + 1]))
        boxes = torch.from_numpy(rows.boxes[part].copy())
        numbers = [labels.index(opened.categories[k].name) for k in rows.objects["category"][part].tolist()]
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        scores = torch.linspace(0.9, 0.1, len(numbers))
        found.append(Detection(corners, scores, torch.tensor(numbers, dtype=torch.int64), torch.ones(2, 2) > 0))
    return found


def test_coco_files_and_a_build_of_them_are_the_same_set(sample_root: Path, tmp_path: Path) -> None:
    grid = PatchGrid.parse(16, "64x96", "letterbox")
    build = tokenlabels.build(
        "coco", root=sample_root, out=tmp_path / "out", image_size="64x96", resize="letterbox"
    )  # fmt: skip
    sets = [
        open_detection_set(sample_root, grid=grid),
        open_detection_set(sample_root / "annotations" / "instances_val.json", grid=grid),
        open_detection_set(build.folder, grid=grid, images=sample_root),
        open_detection_set(build.folder, grid=grid, splits=["val"], images=sample_root / "val"),
    ]
    for opened in sets:
        assert len(opened) == len(build.labels(split="val"))
        assert opened.rows.grid == grid
        assert np.array_equal(opened.rows.labels, build.labels(split="val"))
        assert names_of(opened) == names_of(sets[0])
        assert list(opened.categories) == list(build.categories)
        for index in range(len(opened)):
            size = (int(opened.rows.widths[index]), int(opened.rows.heights[index]))
            assert opened.pictures.open(index).size == size
    assert sets[0].rows.folder == sample_root


def test_the_truth_is_that_of_the_annotation_file(sample_root: Path) -> None:
    path = sample_root / "annotations" / "instances_val.json"
    opened, read = open_detection_set(sample_root).truth(), read_ground_truth(path)
    assert list(opened.image_ids) == list(read.image_ids)
    assert list(opened.categories) == list(read.categories)
    for name in ("image", "category", "boxes", "crowd", "ignored"):
        assert np.array_equal(getattr(opened, name), getattr(read, name)), name
        assert getattr(opened, name).dtype == getattr(read, name).dtype
    np.testing.assert_allclose(opened.areas, read.areas, rtol=1e-6)
    document = json.loads(path.read_bytes())
    assert len(read.image) == len(document["annotations"])
    ids = [entry.id for entry in read.categories]
    order = np.argsort([entry["image_id"] for entry in document["annotations"]], kind="stable")
    by_id = sorted(range(len(read.image)), key=lambda k: int(read.image_ids[int(read.image[k])]))
    for mine, other in zip(by_id, order.tolist(), strict=True):
        entry = document["annotations"][other]
        assert read.boxes[mine].tolist() == entry["bbox"]
        assert ids[read.category[mine]] == entry["category_id"]
        assert (read.areas[mine], read.crowd[mine]) == (entry["area"], entry["iscrowd"])


def test_no_labels_are_left_behind(sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(sample_root.rglob("*"))
    open_detection_set(sample_root)
    with pytest.raises(ParameterError):
        open_detection_set(sample_root, splits=["test"])
    assert list(tmp_path.iterdir()) == []
    assert sorted(sample_root.rglob("*")) == before


def test_splits_grids_and_limits(embedded: Path, sample_root: Path) -> None:
    small = PatchGrid.parse(16, 64)
    every = open_detection_set(embedded, splits=["train", "val"])
    assert len(every) == len(open_detection_set(embedded)) + len(open_detection_set(embedded, choose=training_splits))
    assert every.rows.grid.image_size == (96, 96)
    assert open_detection_set(embedded, grid=small).rows.grid == small
    assert open_detection_set(embedded, grid=PatchGrid.parse(8, 64)).rows.grid.image_size == (96, 96)
    assert open_detection_set(sample_root).rows.grid == PatchGrid.parse()
    for source in (embedded, sample_root):
        assert names_of(open_detection_set(source, splits=["train", "val"], limit=3)) == names_of(every)[:3]
        assert set(open_detection_set(source, choose=training_splits).rows.splits) == {"train"}
        with pytest.raises(ParameterError, match="holds no split 'test'"):
            open_detection_set(source, splits=["test"])
        with pytest.raises(ParameterError, match="limit 0"):
            open_detection_set(source, limit=0)
    both = open_detection_set(sample_root, splits=["val", "train"])
    assert [both.pictures.open(index).size for index in range(len(both))]


def test_kept_images_keep_their_pictures(embedded: Path) -> None:
    opened = open_detection_set(embedded)
    some = opened.keep(np.arange(len(opened)) % 2 == 1)
    assert names_of(some) == names_of(opened)[1::2]
    assert some.pictures.open(0) == opened.pictures.open(1)
    assert len(some.truth().image_ids) == len(some)


def test_missing_pictures_are_counted(sample_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(sample_root, root)
    opened = open_detection_set(root)
    for name in names_of(opened)[1:3]:
        (root / "val" / name).unlink()
    told = rf"{names_of(opened)[1]}: no such image file \(2 of {len(opened)} are missing\): name their folder"
    with pytest.raises(PictureError, match=told):
        open_detection_set(root)
    assert len(open_detection_set(root, limit=1)) == 1
    assert len(open_detection_set(root, images=sample_root)) == len(opened)
    shutil.rmtree(root / "val")
    with pytest.raises(TokenLabelsError, match="val: no such folder"):
        open_detection_set(root)


def test_sources_that_are_none(tmp_path: Path, sample_root: Path) -> None:
    with pytest.raises(TokenLabelsError, match="none: no such file or folder: name a build"):
        open_detection_set(tmp_path / "none")
    with pytest.raises(TokenLabelsError, match="neither a build nor COCO annotations: name a build of tokenlabels"):
        open_detection_set(tmp_path)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(TokenLabelsError, match="neither a build"):
        open_detection_set(tmp_path / "file.txt")
    with pytest.raises(TokenLabelsError, match=r"none\.json"):
        open_detection_set(tmp_path / "none.json")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(NotABuildError):
        open_detection_set(tmp_path)
    with pytest.raises(ParameterError, match="differs from image to image"):
        open_detection_set(sample_root, grid=PatchGrid.parse(16, "native"))


def test_builds_that_detectors_cannot_use(sample_root: Path, tmp_path: Path) -> None:
    plain = tokenlabels.build("coco", root=sample_root, split="val", out=tmp_path / "plain")
    with pytest.raises(ParameterError, match="no embedded images"):
        open_detection_set(plain.folder)
    resized = tokenlabels.build("coco", root=sample_root, split="val", out=tmp_path / "resized", embed_size=384)
    with pytest.raises(ParameterError, match="resized pictures"):
        open_detection_set(resized.folder)
    assert len(open_detection_set(resized.folder, images=sample_root))


def test_images_in_two_splits_are_refused(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("val", "val_again"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    with pytest.raises(ParameterError, match="image 1 occurs 2 times in the splits val, val_again"):
        open_detection_set(tmp_path)


def test_what_a_build_left_out_is_told(sample_root: Path, tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def stage(self, name: str, total: int | None = None) -> None:
            pass

        def advance(self, steps: int) -> None:
            pass

        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Told()
    build = tokenlabels.build("coco", root=sample_root, split="val", out=tmp_path / "out", min_area=2000)
    open_detection_set(build.folder, images=sample_root, progress=told)
    assert len(told.notes) == 1
    assert "annotations were left out" in told.notes[0]


def test_bad_annotations(document: dict[str, Any], tmp_path: Path) -> None:
    document["annotations"][0]["category_id"] = 99
    path = tmp_path / "instances_x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FindingsError, match="category_id 99"):
        open_detection_set(path)
    with pytest.raises(FindingsError, match=r"category_id 99.*\(1 errors in all\): mend the file"):
        read_ground_truth(path)


def test_a_detector_that_is_always_right(embedded: Path, tmp_path: Path) -> None:
    opened = open_detection_set(embedded)
    labels = ("N/A", *reversed([entry.name for entry in opened.categories]), "unicorn")
    config = YolosConfig(dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), labels=labels)
    found = as_detections(opened, labels)
    unicorns = Detection(torch.rand(4, 4), torch.ones(4), torch.full((4,), len(labels) - 1), found[0].keep)
    first = Detection(
        torch.cat([unicorns.boxes, found[0].boxes]),
        torch.cat([unicorns.scores, found[0].scores]),
        torch.cat([unicorns.labels, found[0].labels]),
        found[0].keep,
    )
    scores = evaluate_detections(opened, [first, *found[1:]], config)
    assert scores.ap == scores.ar100 == pytest.approx(1)
    assert scores.detections == len(opened.rows.boxes)

    flat = flat_detections(found, config, opened.categories)
    write_results(tmp_path / "found.json", opened.image_ids, flat)
    again = read_results(tmp_path / "found.json", opened.image_ids, [entry.id for entry in opened.categories])
    assert evaluate_boxes(opened.truth(), again) == scores
    with pytest.raises(ParameterError, match="detections of 1 images"):
        evaluate_detections(opened, found[:1], config)


def test_nothing_found_at_all() -> None:
    nothing = Detection(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.ones(1, 1) > 0)
    for found in ([], [nothing, nothing]):
        flat = flat_detections(found, YolosConfig(), [Category(1, "cat")])
        assert flat.boxes.shape == (0, 4)
        assert flat.image.dtype == flat.category.dtype == np.int64


@pytest.fixture(scope="module")
def real_root() -> Path:
    """The real COCO sample beside the repository; tests that need it are skipped where it is absent."""
    if not (REAL / "annotations").is_dir():
        pytest.skip(f"no COCO sample in {REAL}")
    return REAL


def test_the_figures_that_cocos_authors_publish_with_their_evaluator(real_root: Path) -> None:
    folder = real_root / "eval_val2014_100"
    truth = read_ground_truth(folder / "instances_val2014_100.json")
    ids = [entry.id for entry in truth.categories]
    found = read_results(folder / "instances_val2014_fakebbox100_results.json", truth.image_ids, ids)
    scores = evaluate_boxes(truth, found)
    published = (folder / "val2014_fake_eval_res.txt").read_text().partition("type=bbox")[2].partition("type=")[0]
    wanted = [float(line.rpartition("=")[2]) for line in published.splitlines() if "] =" in line]
    assert wanted[0] == 0.505
    assert [round(getattr(scores, name), 3) for name in FIGURES] == wanted


def test_real_annotations_through_a_build_give_what_the_file_gives(real_root: Path, tmp_path: Path) -> None:
    opened = open_detection_set(real_root, splits=["val2017"])
    truth, rng = opened.truth(), np.random.default_rng(0)
    assert len(opened) == 146
    near = rng.integers(0, len(truth.image), 2500)
    boxes = np.abs(truth.boxes[near] * (1 + rng.normal(0, 0.05, (2500, 4))))
    ids = np.array([entry.id for entry in opened.categories])
    flat = Detections(truth.image[near], ids[truth.category[near]], boxes, rng.random(2500).round(2))
    write_results(tmp_path / "found.json", opened.image_ids, flat)
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(real_root / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(index, index.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = evaluate_boxes(truth, flat)
    assert [getattr(scores, name) for name in FIGURES] == evaluation.stats.tolist()


def test_pictures_of_real_annotations_that_are_missing(real_root: Path) -> None:
    with pytest.raises(PictureError, match=r"1,757 of 1,757 are missing"):
        open_detection_set(real_root / "derived" / "boxes_val2017_without_images.json")
