"""Folders of JSON files that are damaged, hostile or strange: findings that name the file, or one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import fine, one_error_line
from image_folders import build, findings, small_blocks, write_both
from pycocotools import mask as coco_mask
from typer.testing import Result

import tokenlabels
from tokenlabels.check import FindingLog
from tokenlabels.errors import FindingsError, ParameterError
from tokenlabels.sources import folder_blocks

Invoke: TypeAlias = Callable[..., Result]


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with small_blocks():
        yield


@pytest.fixture(scope="module")
def pairs(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By form of the files: an instances file and a folder of the same images."""
    document = json.loads((sample_root / "annotations" / "instances_train.json").read_text())
    folder = tmp_path_factory.mktemp("folders")
    return {form: write_both(document, folder / form, plain=form == "instances") for form in ("sa-1b", "instances")}


# --- faults of files --------------------------------------------------------------------------------------------------

IMAGE = {"image_id": 7, "width": 40, "height": 30, "file_name": "a.jpg"}
BOX = {"id": 1, "bbox": [1, 2, 3, 4], "area": 12, "segmentation": {"size": [30, 40], "counts": "b02l0"}}
NESTED = b"[" * 100_000 + b"]" * 100_000


def one(**changes: Any) -> bytes:
    return json.dumps({"image": IMAGE, "annotations": [BOX]} | changes).encode()


FILES = [
    pytest.param(b"", {"COCO007": 1}, 1, id="empty"),
    pytest.param(b"\0\0", {"COCO007": 1}, 1, id="zeros"),
    pytest.param(one()[:-9], {"COCO007": 1}, 1, id="cut short"),
    pytest.param(b"\x89PNG\r\n", {"COCO007": 1}, 1, id="no text"),
    pytest.param(b'{"a": "\xff"}', {"COCO007": 1}, 1, id="no UTF-8"),
    pytest.param(b"[]", {"COCO007": 1}, 1, id="a list"),
    pytest.param(b"{}", {"COCO007": 1}, 1, id="an object of something else"),
    pytest.param(one(images=[]), {"COCO007": 1}, 1, id="no images"),
    pytest.param(one(images=[{}, {}]), {"COCO007": 1}, 1, id="an instances file"),
    pytest.param(one(annotations=5), {"COCO007": 1}, 1, id="annotations that are no list"),
    pytest.param(b'{"image": {"image_id": 7, "width": 4, "height": 3}}', {"COCO007": 1}, 1, id="no annotations"),
    pytest.param(b'{"image": {}, "annotations": %s}' % NESTED, {"COCO007": 1}, 1, id="nested"),
    pytest.param(b'{"image": {}, "else": %s, "annotations": []}' % NESTED, {"COCO007": 1}, 1, id="nested elsewhere"),
    pytest.param(one(image=[]), {"COCO001": 1}, 1, id="an image that is no object"),
    pytest.param(one(image={"width": 4, "height": 3}), {"COCO001": 1}, 1, id="an image without an id"),
    pytest.param(one(image=IMAGE | {"width": "x"}), {"COCO001": 1}, 1, id="a width that is no number"),
    pytest.param(one(image=IMAGE | {"width": 10**6, "height": 10**6}), {"COCO003": 1}, 1, id="an impossible size"),
    pytest.param(one(image=IMAGE | {"image_id": 1}), {"COCO002": 1}, 1, id="an id that is taken"),
    pytest.param(one(image=IMAGE | {"image_id": "1"}), {"COCO002": 1}, 1, id="an id that is taken, as text"),
    pytest.param(
        one(image=IMAGE | {"file_name": "../../x.jpg"}), {"COCO005": 1}, 2, id="a name that leaves the folder"
    ),
    pytest.param(one(image=IMAGE | {"file_name": "/etc/passwd"}), {"COCO005": 1}, 2, id="an absolute name"),
    pytest.param(one(image=IMAGE | {"file_name": None}), {"COCO004": 1}, 2, id="no name"),
    pytest.param(one(annotations=[BOX | {"image_id": 9}]), {"COCO012": 1}, 2, id="an annotation of another image"),
    pytest.param(one(annotations=[BOX | {"image_id": 1}]), {"COCO012": 1}, 2, id="an annotation of the other file"),
    pytest.param(one(annotations=[BOX | {"category_id": 3}]), {"COCO013": 1}, 2, id="an unknown category"),
    pytest.param(one(annotations=[BOX, BOX]), {"COCO011": 1}, 2, id="an id twice in a file"),
    pytest.param(one(annotations=[{}]), {"COCO020": 1}, 2, id="an empty annotation"),
    pytest.param(one(annotations=[BOX | {"bbox": [float("nan"), 1, 2, 3]}]), {"COCO021": 1}, 2, id="NaN"),
    pytest.param(b"\xef\xbb\xbf" + one(), {}, 2, id="a byte-order mark"),
    pytest.param(one(annotations=[BOX | {"image_id": 7, "category_id": 1}]), {}, 2, id="ids that go without saying"),
    pytest.param(one(annotations=[]), {}, 2, id="no annotations in the list"),
    pytest.param(one(images=[IMAGE | {"id": 7}]), {}, 2, id="a list of one image"),
]


@pytest.mark.parametrize(("data", "codes", "images"), FILES)
def test_what_a_file_may_hold(data: bytes, codes: dict[str, int], images: int, tmp_path: Path) -> None:
    """Beside a fine one; the same codes as in one file of all, at the file that has the fault."""
    folder = tmp_path / "some" / "sub"
    folder.mkdir(parents=True)
    (folder / "fine.json").write_bytes(one(image=IMAGE | {"image_id": 1}))
    (folder / "odd.json").write_bytes(data)
    log = FindingLog(masks_scored=False)
    built = build(tmp_path / "some", tmp_path / "out", on_error="skip", log=log)
    assert built.manifest["findings"] == codes
    assert {finding.file for finding in log.listed()} <= {"sub/odd.json"}
    rows = built.table().to_pylist()
    assert len(rows) == images
    assert all("etc" not in row["file_name"] or row["file_name"].startswith("/") for row in rows)
    if log.error_count:
        with pytest.raises(FindingsError, match=r"COCO\d\d\d sub/odd\.json: .*nothing was built"):
            build(tmp_path / "some", tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_findings_name_the_place_in_their_own_file(tmp_path: Path) -> None:
    """Of the files that are read together each has its own count, entries that are left out included."""
    box = {"bbox": [1, 2, 3, 4], "area": 12}
    strange = box | {"image_id": "else"}
    filed = {"category_id": 1}
    files = {
        "1": {"image": IMAGE | {"image_id": 1}, "annotations": [BOX, box]},
        "2": {"image": IMAGE | {"image_id": 2}, "annotations": [strange, box]},
        "3": {"image": IMAGE | {"image_id": 3}, "annotations": [5, BOX | filed, strange | filed, box | filed]},
        "2b": {"image": IMAGE | {"image_id": 2}, "annotations": [BOX]},
        "5": {"image": None, "annotations": [box]},
        "6": {"image": {"id": "x"}, "annotations": [{"image_id": []}]},
        "7": {"image": IMAGE | {"image_id": 1}, "annotations": [BOX]},
    }
    (tmp_path / "some").mkdir()
    for name, document in files.items():
        (tmp_path / "some" / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "some" / "8.json").symlink_to(tmp_path / "nowhere")
    log = FindingLog(masks_scored=False)
    build(tmp_path / "some", tmp_path / "out", on_error="skip", log=log)
    assert sorted((finding.file, finding.code, finding.message) for finding in log.listed()) == [
        ("1.json", "COCO014", "annotations[1] of image 1 has no usable id."),
        ("2.json", "COCO012", "annotations[0] of image else belongs to an image that is not in the file."),
        ("2.json", "COCO014", "annotations[1] of image 2 has no usable id."),
        ("2b.json", "COCO002", "image id 2 occurs again, it is that of 2.json."),
        ("3.json", "COCO010", "annotations[0] is no JSON object."),
        ("3.json", "COCO012", "annotations[2] of image else belongs to an image that is not in the file."),
        ("3.json", "COCO014", "annotations[3] of image 3 has no usable id."),
        ("5.json", "COCO001", "its image is no JSON object."),
        ("6.json", "COCO001", "image x has no whole-number width and height (width None, height None)."),
        ("7.json", "COCO002", "image id 1 occurs again, it is that of 1.json."),
        ("8.json", "COCO007", "is not there, or a link to nothing."),
    ]


MASKS = [
    ({"size": [30, 40], "counts": "b02l0"}, None),
    ({"size": [40, 30], "counts": "b02l0"}, "COCO035"),
    ({"size": [30, 40], "counts": "b02"}, "COCO036"),
    ({"size": [30, 40], "counts": "\\u0000"}, "COCO036"),
    ({"size": [30, 40], "counts": [1100, 100]}, None),
    ({"size": [30, 40]}, "COCO036"),
    ([], "COCO030"),
    ([[1, 2, 3]], "COCO033"),
    (5, "COCO031"),
]


def test_faulty_masks_are_found_by_the_rule_that_reads_them(tmp_path: Path) -> None:
    counts = coco_mask.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))["counts"].decode()
    (tmp_path / "some").mkdir()
    for index, (segmentation, _) in enumerate(MASKS):
        if isinstance(segmentation, dict) and segmentation.get("counts") in ("b02l0",):
            segmentation = segmentation | {"counts": counts}
        entry = BOX | {"segmentation": segmentation}
        text = json.dumps({"image": IMAGE | {"image_id": index}, "annotations": [entry]})
        (tmp_path / "some" / f"{index}.json").write_text(text)
    log = FindingLog(masks_scored=True, boxes_scored=False)
    built = build(tmp_path / "some", tmp_path / "masks", rule="pixel-ratio", on_error="skip", log=log)
    expected = [(code, f"{index}.json") for index, (_, code) in enumerate(MASKS) if code]
    found = [(finding.code, finding.file) for finding in log.listed() if finding.severity == "error"]
    assert sorted(found) == sorted(expected), [str(finding) for finding in log.listed()]
    assert built.manifest["splits"]["some"] == {"images": len(MASKS), "annotations": len(MASKS) - len(expected)}
    boxes = build(tmp_path / "some", tmp_path / "boxes")
    assert (boxes.manifest["findings"], boxes.manifest["splits"]["some"]["annotations"]) == ({}, len(MASKS))


def test_masks_without_pixels_are_named_by_build_and_check(tmp_path: Path, invoke: Invoke) -> None:
    empty = coco_mask.encode(np.zeros((30, 40), np.uint8, order="F"))["counts"].decode()
    (tmp_path / "some").mkdir()
    for index in range(5):
        entry = BOX | {"id": 50 + index, "segmentation": {"size": [30, 40], "counts": empty}}
        text = json.dumps({"image": IMAGE | {"image_id": index}, "annotations": [BOX, entry] if index == 3 else []})
        (tmp_path / "some" / f"{index}.json").write_text(text.replace("b02l0", empty))
    checked = fine(invoke("check", "coco", "--annotations", tmp_path / "some", "--json"))
    assert findings(checked)["COCO037"] == ["3.json", "3.json"]
    for options in ({"rule": "pixel-ratio"}, {"rule": "overlap", "check": "full"}):
        built = build(tmp_path / "some", tmp_path / str(options["rule"]), **options)
        assert built.manifest["findings"]["COCO037"] == 2
        examples = [each for each in built.manifest["finding_examples"] if each["code"] == "COCO037"]
        assert [(each["file"], each["annotation_id"]) for each in examples] == [("3.json", 1), ("3.json", 53)]


def test_ids_that_occur_again_anywhere_are_left_out_once(tmp_path: Path) -> None:
    """In a group, in a block, and far away; the first in order stays."""
    (tmp_path / "some").mkdir()
    ids = [1, 2, 1, 3, "2", 4, 5, 6, 7, 8, 1, 9, 5]
    for index, image_id in enumerate(ids):
        text = one(image=IMAGE | {"image_id": image_id, "file_name": f"{index}.jpg"})
        (tmp_path / "some" / f"{index:02d}.json").write_bytes(text)
    log = FindingLog(masks_scored=False)
    built = build(tmp_path / "some", tmp_path / "out", on_error="skip", log=log)
    again = [index for index, image_id in enumerate(ids) if str(image_id) in map(str, ids[:index])]
    assert sorted(finding.file for finding in log.listed() if finding.code == "COCO002") == [
        f"{index:02d}.json" for index in again
    ]
    assert [row["file_name"] for row in built.table().to_pylist()] == [
        f"{index}.jpg" for index in range(len(ids)) if index not in again
    ]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_strange_things_in_a_folder_are_named_or_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    (folder / ".git").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a.json").write_bytes(one())
    (folder / "._a.json").write_bytes(b"what a Mac leaves behind")
    (folder / ".git" / "b.json").write_bytes(b"")
    for index in range(3000):
        (folder / f"stray{index}.txt").touch()
    (folder / "c.json").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.json").symlink_to(folder / "absent")
    os.mkfifo(folder / "pipe.json")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "z.json").write_bytes(one(image=IMAGE | {"image_id": 8}))
    (folder / "linked").symlink_to(tmp_path / "outside")
    Path(os.fsdecode(bytes(folder) + b"/\xff.json")).write_bytes(one())
    built = build(folder, folder / "out", on_error="skip", log=(log := FindingLog(masks_scored=False)))
    assert sorted(row["image_id"] for row in built.table().to_pylist()) == ["7", "8"]
    assert {(finding.code, finding.file) for finding in log.listed() if finding.severity == "error"} == {
        ("COCO007", "nowhere.json"),
        ("COCO007", "pipe.json"),
        ("COCO007", "some"),
    }
    assert any("\\xff.json" in finding.message for finding in log.listed())
    again = build(folder, folder / "out2", on_error="skip")
    assert again.manifest["sources"] == built.manifest["sources"], "a build below the folder is none of its files"


def test_only_builds_of_this_tool_are_passed_over_and_that_is_told(tmp_path: Path, invoke: Invoke) -> None:
    """Data sets have a `manifest.json`, too, and packages of Swift a folder `.build`."""
    folder = tmp_path / "some"
    build(write_one(folder / "a", 1).parent, folder / "mine")
    (folder / "half" / ".build").mkdir(parents=True)
    (folder / "half" / ".build" / "parameters.json").write_text("{}")
    for index, text in enumerate((b'{"shards": []}', b'{"tool": {"name": "else"}, "shards": []}', b'{"tool": "\xff"}')):
        place = write_one(folder / f"b{index}", 2 + index)
        (place.parent / "manifest.json").write_bytes(text)
        (place.parent / "README.md").touch()
    (write_one(folder / "c", 9).parent / ".build").mkdir()
    words = ("--annotations", folder, "--out", tmp_path / "out", "--on-error", "skip")
    told = fine(invoke("build", "coco", *words)).stderr
    found = tokenlabels.open(tmp_path / "out")
    assert sorted(row["image_id"] for row in found.table().to_pylist()) == ["1", "2", "3", "4", "9"]
    assert found.manifest["findings"]["COCO007"] == 3
    assert all(f"some/{name} is a build of tokenlabels: it is passed over." in told for name in ("mine", "half"))


def write_one(folder: Path, image_id: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "x.json").write_bytes(one(image=IMAGE | {"image_id": image_id}))
    return folder / "x.json"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.json").write_bytes(one())
    (tmp_path / "some" / "b.json").touch(mode=0)
    log = FindingLog(masks_scored=False)
    build(tmp_path / "some", tmp_path / "out", on_error="skip", log=log)
    assert [(finding.code, finding.file) for finding in log.listed() if finding.severity == "error"] == [
        ("COCO007", "b.json")
    ]


def test_a_file_that_is_absurdly_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_blocks, "MAX_FILE_BYTES", 1 << 20)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.json").write_bytes(one())
    with (tmp_path / "some" / "b.json").open("wb") as file:
        file.truncate(1 << 40)
    log = FindingLog(masks_scored=False)
    build(tmp_path / "some", tmp_path / "out", on_error="skip", log=log)
    errors = [finding for finding in log.listed() if finding.severity == "error"]
    assert [(finding.code, finding.file) for finding in errors] == [("COCO007", "b.json")]
    assert "1 MiB" in errors[0].message


NOTHING = [
    pytest.param({}, "--annotations", "holds no JSON files", id="empty"),
    pytest.param({"a.txt": b"", "b.jpg": b""}, "--annotations", "holds no JSON files", id="other files"),
    pytest.param({"a.json": b"{}", "b.json": b""}, "--annotations", "none of its 2 JSON files", id="other JSON"),
    pytest.param({}, "--root", "nor a JSON file for each image", id="empty root"),
    pytest.param({"a/b.json": b"{}", "package.json": b"{}"}, "--root", "nor a JSON file", id="root of other things"),
    pytest.param({"captions/c.json": b'{"images": [], "annotations": []}'}, "--root", "nor a JSON", id="no instances"),
]


@pytest.mark.parametrize(("files", "option", "says"), NOTHING)
def test_a_folder_of_something_else_is_one_sentence(
    files: dict[str, bytes], option: str, says: str, tmp_path: Path, invoke: Invoke
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("build", "check"):
        result = invoke(name, "coco", option, folder, *(["--out", tmp_path / "out"] if name == "build" else []))
        assert result.exit_code == 1
        one_error_line(result.stderr, str(folder), says)
    assert not (tmp_path / "out").exists()


def test_names_and_unknown_categories(tmp_path: Path, invoke: Invoke) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / "a.JSON").write_bytes(one())
    assert build(folder, tmp_path / "out").splits == ("my_folder",)
    assert tokenlabels.build("coco", root=folder, split="other", out=tmp_path / "root").splits == ("other",)
    with pytest.raises(ParameterError, match=r"no category 'cat'.*they are object"):
        build(folder, tmp_path / "not", categories=["cat"])
    (folder / "pictures").mkdir()
    result = invoke("build", "coco", "--annotations", folder, "--images", folder / "absent", "--out", tmp_path / "not")
    assert result.exit_code == 1
    one_error_line(result.stderr, "absent: no such folder")
