"""COCO results files: what is written is read again, also by pycocotools; what is wrong is named."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from bavit.detect.coco import Detections
from bavit.detect.results import as_written, read_results, write_results
from tokenlabels.errors import OutputError, TokenLabelsError

IDS = ["42", "000005", "2007_000027", "0", "-3", "12345678901234567890"]
GOOD: dict[str, Any] = {"image_id": 42, "category_id": 18, "bbox": [1, 2.5, 3, 4], "score": 0.5}


def some() -> Detections:
    rng = np.random.default_rng(0)
    return Detections(
        image=rng.integers(0, len(IDS), 40),
        category=rng.choice([1, 18, 90], 40),
        boxes=as_written(rng.uniform(0, 500, (40, 4)).astype(np.float32)),
        scores=as_written(rng.random(40).astype(np.float32)),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found, path = some(), tmp_path / "new" / "found.json"
    write_results(path, IDS, found)
    again = read_results(path, IDS, [1, 18, 90])
    for name in ("image", "category", "boxes", "scores"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
        assert getattr(again, name).dtype == getattr(found, name).dtype
    assert [path.name for path in path.parent.iterdir()] == ["found.json"]


def test_ids_that_are_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    write_results(tmp_path / "found.json", IDS, some())
    entries = json.loads((tmp_path / "found.json").read_bytes())
    assert {entry["image_id"] for entry in entries} <= {42, "000005", "2007_000027", 0, -3, "12345678901234567890"}
    assert all(list(entry) == ["image_id", "category_id", "bbox", "score"] for entry in entries)


def test_pycocotools_reads_it(tmp_path: Path) -> None:
    found = some()
    write_results(tmp_path / "found.json", [str(number) for number in range(len(IDS))], found)
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"images": [{"id": number} for number in range(len(IDS))], "categories": []}
        index.createIndex()
        read = index.loadRes(str(tmp_path / "found.json"))
    assert [entry["bbox"] for entry in read.dataset["annotations"]] == found.boxes.tolist()


def test_no_detections(tmp_path: Path) -> None:
    nothing = Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    write_results(tmp_path / "found.json", IDS, nothing)
    assert json.loads((tmp_path / "found.json").read_bytes()) == []
    again = read_results(tmp_path / "found.json", IDS, [1])
    assert again.boxes.shape == (0, 4)
    assert len(again) == 0


def test_decimals_come_back_from_float32() -> None:
    decimals = np.round(np.random.default_rng(0).uniform(0, 640, (500, 4)), 2)
    assert np.array_equal(as_written(decimals.astype(np.float32)), decimals)
    numbers = np.random.default_rng(1).uniform(0, 1e-6, 500).astype(np.float32)
    assert np.array_equal(as_written(numbers).astype(np.float32), numbers)


def test_other_keys_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(json.dumps([GOOD | {"segmentation": [[1, 2]], "area": 12}]))
    assert read_results(tmp_path / "found.json", IDS, [18]).boxes.tolist() == [[1, 2.5, 3, 4]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no JSON"),
        ("[{", "is no JSON"),
        ("[" * 100_000, "a list of {image_id"),
        ('["\xff"]', "entry [0]: expected `object`, got `str`"),
        ("{}", "is no list"),
        (json.dumps([GOOD, [1]]), "entry [1]: expected `object`, got `array`"),
        (json.dumps([GOOD, {}]), "entry [1]: object missing required field `image_id`"),
        (json.dumps([GOOD, GOOD | {"score": "high"}]), "entry [1]: score: "),
        (json.dumps([GOOD | {"category_id": 1.5}]), "entry [0]: category_id: "),
        (json.dumps([GOOD | {"image_id": True}]), "entry [0]: image_id: "),
        (json.dumps([GOOD | {"bbox": [1, 2, 3]}]), "entry [0]: bbox: "),
        (json.dumps([GOOD | {"bbox": [1, 2, 3, None]}]), "entry [0]: bbox[3]: "),
        (json.dumps([GOOD] * 3 + [GOOD | {"bbox": [1, 2, 3, float("nan")]}]), "entry [3]: bbox holds a value"),
        (json.dumps([GOOD | {"score": float("-inf")}]), "entry [0]: score holds a value"),
        ('[{"image_id": 42, "category_id": 18, "bbox": [1, 2, 3, 1e999], "score": 1}]', "entry [0]: bbox[3]: "),
        (json.dumps([GOOD, GOOD | {"image_id": 43}]), "entry [1]: image_id 43 is not in the data set"),
        (json.dumps([GOOD | {"image_id": 5}]), "entry [0]: image_id 5 is not in the data set"),
        (json.dumps([GOOD | {"category_id": 7}]), "entry [0]: category_id 7 is not in the category table"),
        (json.dumps([GOOD | {"category_id": 10**30}]), "is not in the category table"),
        (json.dumps([GOOD, GOOD | {"bbox": [1, 2, -3, 4]}]), "entry [1]: bbox has a negative width"),
    ],
)
def test_every_fault_names_file_and_entry(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(TokenLabelsError) as caught:
        read_results(path, IDS, [18])
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(TokenLabelsError, match=r"none\.json: cannot be read"):
        read_results(tmp_path / "none.json", IDS, [18])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_results(tmp_path / "file" / "found.json", IDS, some())
