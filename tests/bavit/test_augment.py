"""Random crops, flips and colours: the labels of a crop are those of a build of the cropped pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenlabels
from bavit.augment import Augmentation, Window, colour_matrix, crop_labels, crop_picture, random_window
from bavit.data import ShardImages
from bavit.rows import read_rows
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid


def cropped_root(root: Path, target: Path, windows: dict[int, Window]) -> Path:
    """The data set with every picture cropped and its boxes moved along; written as a person would do it."""
    document = json.loads((root / "annotations" / "instances_train.json").read_text())
    for image in document["images"]:
        window = windows[image["id"]]
        image["width"], image["height"] = window.width, window.height
    for item in document["annotations"]:
        window = windows[item["image_id"]]
        x, y, width, height = item["bbox"]
        item["bbox"] = [x - window.left, y - window.top, width, height]
        item["segmentation"] = [[0, 0, 1, 0, 1, 1]]
    path = target / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    return target


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 96},
        {"image_size": (64, 96), "patch": "8x16", "tau": 0.3, "crowd": "ignore"},
        {"image_size": 96, "resize": "letterbox", "padding": "ignore"},
        {"image_size": 96, "rule": "jaccard", "tau": 0.05},
    ],
)
def test_labels_of_crops_are_those_of_a_build_of_the_crops(
    sample_root: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    rows = read_rows(
        tokenlabels.build("coco", root=sample_root, split="train", out=tmp_path / "whole", **options), scores=True
    )
    rng = np.random.default_rng(7)
    windows = {
        int(rows.image_ids[row]): random_window(rng, int(rows.widths[row]), int(rows.heights[row]), 0.2)
        for row in range(len(rows))
    }
    root = cropped_root(sample_root, tmp_path / "cropped", windows)
    built = read_rows(
        tokenlabels.build("coco", root=root, split="train", out=tmp_path / "crops", on_error="skip", **options),
        scores=True,
    )
    assert built.scores is not None
    assert list(built.image_ids) == list(rows.image_ids)
    for row in range(len(rows)):
        window = windows[int(rows.image_ids[row])]
        labels, scores = crop_labels(rows.records(row), window, rows.grid, rows.header.spec)
        np.testing.assert_allclose(scores, built.scores[row], atol=1e-5)  # shards hold boxes as float32
        clear = np.abs(built.scores[row] - rows.header.tau) > 1e-5
        assert np.array_equal(labels[clear], built.labels[row][clear])
        assert clear.mean() > 0.9
    assert 0 < (built.labels == 1).mean() < 1


def test_the_whole_picture_as_a_window_changes_nothing(sample_root: Path, tmp_path: Path) -> None:
    rows = read_rows(tokenlabels.build("coco", root=sample_root, out=tmp_path / "out"), scores=False)
    for row in range(len(rows)):
        window = Window(0, 0, int(rows.widths[row]), int(rows.heights[row]))
        labels, _ = crop_labels(rows.records(row), window, rows.grid, rows.header.spec)
        assert np.array_equal(labels, rows.labels[row])


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_pixels_of_a_crop_are_those_of_the_cropped_picture(resize: str) -> None:
    from tokenlabels.model_input import model_input

    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    picture, window = Image.fromarray(noise), Window(10, 7, 50, 31)
    grid = PatchGrid.parse(16, 64, resize)
    alone = model_input(picture.crop((10, 7, 60, 38)), grid)
    found = np.asarray(crop_picture(picture, window, picture.size, grid), int)
    inner = (slice(8, -8), slice(8, -8))  # at its edge a crop alone does not see its neighbours
    assert np.abs(found - np.asarray(alone, int))[inner].max() <= 2


def test_a_crop_of_a_smaller_copy_shows_the_same() -> None:
    smooth = np.linspace(0, 255, 160)[None, :, None] * np.linspace(0.2, 1, 120)[:, None, None] * np.ones(3)
    picture, window = Image.fromarray(smooth.astype(np.uint8)), Window(21, 13, 97, 71)
    grid = PatchGrid.parse(16, 64)
    whole = np.asarray(crop_picture(picture, window, picture.size, grid), int)
    half = np.asarray(crop_picture(picture.resize((80, 60)), window, picture.size, grid), int)
    assert np.abs(whole - half).max() <= 3


def test_windows_keep_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    windows = [random_window(rng, 640, 480, 0.3) for _ in range(2000)]
    for window in windows:
        assert 0 <= window.left <= 640 - window.width
        assert 0 <= window.top <= 480 - window.height
        assert window.width * window.height >= 0.22 * 640 * 480  # less than asked where the aspect does not fit in
    assert {window.left for window in windows if window.width < 500} >= {0, 1, 2}
    assert random_window(rng, 1, 1, 0.5) == Window(0, 0, 1, 1)


def test_colour_of_strength_0_changes_nothing() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    same = picture.convert("RGB", colour_matrix(np.random.default_rng(1), 0.0))
    assert np.abs(np.asarray(same, int) - np.asarray(picture, int)).max() <= 1
    changed = picture.convert("RGB", colour_matrix(np.random.default_rng(1), 0.5))
    assert np.abs(np.asarray(changed, int) - np.asarray(picture, int)).mean() > 5


def test_crops_of_labels_of_masks_are_refused(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", rule="pixel-ratio", split="val")
    with pytest.raises(ParameterError, match="use --crop 1"):
        Augmentation(crop=0.5).check(read_rows(build, scores=False), resized=False)
    Augmentation(crop=1).check(read_rows(build, scores=False), resized=False)


def test_crops_of_letterboxed_inputs_are_refused(sample_root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"resize": "letterbox", "image_size": 96, "embed_images": True, "embed_size": 96}
    rows = read_rows(
        tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", split="val", **options), scores=False
    )
    with pytest.raises(ParameterError, match="use --crop 1"):
        ShardImages(rows, None, Augmentation(crop=0.5))
    sample = ShardImages(rows, None, Augmentation(crop=1.0))[0, 0]
    assert sample.pixels.shape == (96, 96, 3)
    assert sample.fault is None


@pytest.mark.parametrize("options", [{"crop": 0.0}, {"crop": 1.1}, {"colour": -0.1}, {"colour": 2.0}])
def test_strengths_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match="is outside"):
        Augmentation(**options)  # type: ignore[arg-type]
