"""A folder with one JSON file for each image: the same shards as one file of all, in bounded memory, from any files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import fine, one_error_line, shards
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import Result

import tokenlabels
from tokenlabels import threads
from tokenlabels.annotations import MASK_TEXT
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.executors import SerialExecutor
from tokenlabels.options import BuildOptions
from tokenlabels.planning import make_plan, new_log
from tokenlabels.progress import Silent
from tokenlabels.reader import Build
from tokenlabels.rle_text import parse_rle
from tokenlabels.sources import coco_folder, folder_blocks
from tokenlabels.sources.coco import CocoSource
from tokenlabels.sources.mask_check import MaskError, check_masks, decode_segmentation
from tokenlabels.sources.masks import MaskChunk
from tokenlabels.storage import located, remove_below
from tokenlabels.texts import Texts
from tokenlabels.threads import ahead
from tokenlabels.walk import walk

Invoke: TypeAlias = Callable[..., Result]
Document: TypeAlias = dict[str, Any]

GRIDS: dict[str, Any] = {"patch": [16, 32], "image_size": [384, 96], "resize": "letterbox"}


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Any:
    """Several blocks, and several groups in each, of a few files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_folder, "_BLOCK", 7)
        patch.setattr(folder_blocks, "_GROUP_IMAGES", 3)
        yield


def compressed(segmentation: Any, image: Document) -> Document:
    """Any segmentation as COCO's compressed run lengths."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        return dict(segmentation)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def sa_1b(image: Document, entries: Sequence[Document]) -> Document:
    """A file as SA-1B has it."""
    return {
        "image": {"image_id": image["id"], **{key: image[key] for key in ("width", "height", "file_name")}},
        "annotations": [
            {
                "id": entry["id"],
                "segmentation": compressed(entry["segmentation"], image),
                "bbox": entry["bbox"],
                "area": entry["area"],
                "predicted_iou": 0.97,
                "stability_score": 0.98,
                "crop_box": [0, 0, image["width"], image["height"]],
                "point_coords": [[1.5, 2.5]],
            }
            for entry in entries
        ],
    }


def write_both(document: Document, folder: Path, *, plain: bool) -> tuple[Path, Path]:
    """An instances file, and a folder of the same images; `plain` keeps categories and crowds."""
    images = sorted(document["images"], key=lambda image: f"{image['id']}.json")
    kept = []
    (folder / "parts").mkdir(parents=True)
    for image in images:
        entries = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
        if plain:
            text: Document = {"images": [image], "annotations": entries, "categories": document["categories"]}
        else:
            text = sa_1b(image, entries)
            entries = [entry | {"image_id": image["id"], "category_id": 1} for entry in text["annotations"]]
        (folder / "parts" / f"{image['id']}.json").write_text(json.dumps(text))
        kept += entries
    categories = document["categories"] if plain else [{"id": 1, "name": "object"}]
    whole = {"images": images, "annotations": kept, "categories": categories}
    (folder / "parts.json").write_text(json.dumps(whole))
    return folder / "parts.json", folder / "parts"


@pytest.fixture(scope="module")
def pairs(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By form of the files: an instances file and a folder of the same images."""
    document = json.loads((sample_root / "annotations" / "instances_train.json").read_text())
    folder = tmp_path_factory.mktemp("folders")
    return {form: write_both(document, folder / form, plain=form == "instances") for form in ("sa-1b", "instances")}


def build(annotations: Path, out: Path, **options: Any) -> Build:
    return tokenlabels.build("coco", annotations=annotations, out=out, **options)


# --- the same shards --------------------------------------------------------------------------------------------------

CASES = [
    pytest.param("sa-1b", {"rule": "overlap", **GRIDS}, id="SA-1B, boxes"),
    pytest.param("sa-1b", {"rule": "pixel-ratio", **GRIDS}, id="SA-1B, masks"),
    pytest.param("sa-1b", {"rule": "pixel-ratio", "min_area": 900.0}, id="SA-1B, masks that are not small"),
    pytest.param("sa-1b", {"rule": "overlap", "limit": 5, "check": "full"}, id="SA-1B, first images, checked fully"),
    pytest.param("instances", {"rule": "pixel-ratio", "crowd": "ignore", **GRIDS}, id="a list of one image, masks"),
    pytest.param("instances", {"rule": "jaccard", "tau": 0.01, "scores": False}, id="a list of one image, boxes"),
    pytest.param(
        "instances", {"rule": "overlap", "categories": ["rectangle"], "min_area": 500.0}, id="some categories"
    ),
]


@pytest.mark.parametrize(("form", "options"), CASES)
def test_the_shards_are_those_of_one_file(
    form: str, options: dict[str, Any], pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    file, folder = pairs[form]
    if "categories" in options:
        options = options | {"categories": [json.loads(file.read_text())["categories"][0]["name"]]}
    whole = build(file, tmp_path / "file", shard_rows=5, **options)
    parts = build(folder, tmp_path / "folder", shard_rows=5, **options)
    assert shards(tmp_path / "folder") == shards(tmp_path / "file")
    for key in ("splits", "totals", "categories", "annotations_left_out_by_selection", "parameters", "shards"):
        assert parts.manifest[key] == whole.manifest[key], key
    source = parts.manifest["sources"]["parts"]
    files = sorted(folder.iterdir())[: options.get("limit")]
    assert (source["file"], source["size"]) == ("parts", sum(path.stat().st_size for path in files))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["overlap", "pixel-ratio"])
def test_worker_processes_make_the_same_bytes(rule: str, pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    _, folder = pairs["sa-1b"]
    alone = build(folder, tmp_path / "alone", rule=rule, shard_rows=3)
    together = build(folder, tmp_path / "together", rule=rule, shard_rows=3, workers=2)
    assert shards(tmp_path / "together") == shards(tmp_path / "alone")
    assert together.manifest == alone.manifest


def test_a_folder_in_a_store_makes_the_same_bytes(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in threads, as stores answer slowly; splits are found there, too."""
    _, folder = pairs["sa-1b"]
    store = located("memory://folders")
    for index, path in enumerate(sorted(folder.iterdir())):
        (store / "parts" / f"{index // 5}" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "parts" / f"{index // 5}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "parts" / f"{index // 5}")
    (store / "other" / ".hidden.json").write_bytes(b"")
    monkeypatch.setattr(threads, "_SLOW_SECONDS", -1.0)
    try:
        far = tokenlabels.build("coco", root=str(store), out=tmp_path / "far", rule="pixel-ratio", shard_rows=5)
    finally:
        remove_below(store)
    near = build(tmp_path / "parts", tmp_path / "near", rule="pixel-ratio", shard_rows=5)
    assert shards(tmp_path / "far") == shards(tmp_path / "near")
    assert far.manifest == near.manifest


def test_folders_below_a_root_are_splits_and_share_a_table(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, invoke: Invoke
) -> None:
    """The second split's own table is in another order; `--annotations` makes one split of folders with one table."""
    _, folder = pairs["instances"]
    paths = sorted(folder.iterdir())
    for index, path in enumerate(paths):
        document = json.loads(path.read_text())
        if index % 2:
            document["categories"].reverse()
        place = tmp_path / "root" / ("b" if index % 2 else "a") / "deep" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(document))
    built = tokenlabels.build("coco", root=tmp_path / "root", out=tmp_path / "out", rule="pixel-ratio")
    assert built.splits == ("a", "b")
    whole = build(pairs["instances"][0], tmp_path / "whole", rule="pixel-ratio")
    expected = {row["image_id"]: row for row in whole.table().to_pylist()}
    rows = built.table().to_pylist()
    assert len(rows) == len(expected) == len(paths)
    for row in rows:
        twin = expected[row["image_id"]]
        assert row["file_name"] == f"deep/{twin['file_name']}"
        assert row | {"file_name": ""} == twin | {"file_name": ""}
    one = tokenlabels.build("coco", root=tmp_path / "root", split="b", out=tmp_path / "one")
    assert (one.splits, len(one.table())) == (("b",), len(paths) // 2)
    result = invoke("build", "coco", "--annotations", tmp_path / "root", "--out", tmp_path / "not")
    assert result.exit_code == 1
    one_error_line(result.stderr, "b/deep/", "other categories than a/deep/")
    result = invoke("build", "coco", "--root", tmp_path / "root", "--split", "c", "--out", tmp_path / "not")
    assert result.exit_code == 1
    one_error_line(result.stderr, "no folder c", "a, b")


def test_nothing_of_annotations_reaches_the_process_that_plans(pairs: dict[str, tuple[Path, Path]]) -> None:
    """What workers send back does not grow with annotations, and a task carries paths only."""
    _, folder = pairs["sa-1b"]
    sent: list[int] = []

    def run(function: str, tasks: Any) -> Any:
        for answer in SerialExecutor().run(function, tasks):
            sent.append(len(pickle.dumps(answer)))
            yield answer

    options = BuildOptions.make(rule="pixel-ratio")
    source = CocoSource.locate(annotations=folder)
    plan = make_plan(source, options, new_log(options, source), Silent(), run=run)
    records = plan.dataset.splits[0].records
    assert isinstance(records, DeferredRecords)
    assert sum(sent) < 3000 * len(sent) + 200 * len(records)
    assert len(pickle.dumps(records.block(2, 4))) < len(pickle.dumps(records.block(0, 10))) < 5000
    assert len(records.block(2, 4)) == 2
    assert next(iter(records.block(2, 3).blocks())).image_ids == [records.image_ids[2]]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictured(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A folder with folders of JSON files and pictures side by side, to be changed."""
    _, folder = pairs["sa-1b"]
    for index, path in enumerate(sorted(folder.iterdir())):
        document = json.loads(path.read_text())
        place = tmp_path / "sa" / f"sa_{index // 4:06d}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        image = document["image"]
        Image.new("RGB", (image["width"], image["height"]), (index, 0, 0)).save(place / image["file_name"])
    return tmp_path / "sa"


def findings(result: Result) -> dict[str, list[str]]:
    """Files of the findings, by code, of `check --json`."""
    return {row["code"]: [each["file"] for each in row["examples"]] for row in json.loads(result.stdout)["findings"]}


def test_pictures_beside_their_json_are_embedded_and_compared(pictured: Path, tmp_path: Path, invoke: Invoke) -> None:
    words = ("coco", "--annotations", pictured)
    assert findings(fine(invoke("check", *words, "--json"))) == {}
    out = tmp_path / "out"
    planned, bare, built = (
        json.loads(fine(invoke("build", *words, *more, "--json")).stdout)
        for more in (
            ["--dry-run", "--out", out],
            ["--out", tmp_path / "bare"],
            ["--embed-images", "--out", out],
        )
    )
    assert planned["splits"]["sa"]["images"] == planned["images"] == built["images"] > 4
    assert planned["annotations"] == bare["annotations"] == built["annotations"]
    assert 0.5 < planned["estimated_bytes"] / bare["bytes"] < 2
    rows = tokenlabels.open(out).table().to_pylist()
    assert all(row["image"]["bytes"] == (pictured / row["file_name"]).read_bytes() for row in rows)

    first, last = pictured / rows[0]["file_name"], pictured / rows[-1]["file_name"]
    documents = [str(path.relative_to(pictured)) for path in sorted(pictured.glob("*/*.json"))]
    first.rename(first.with_name("stranger.jpg"))
    last.write_bytes(b"")
    seen = findings(fine(invoke("check", *words, "--json")))
    assert seen == {"COCO041": documents[:1], "COCO042": documents[-1:], "COCO043": ["sa"]}
    missing = fine(invoke("build", *words, "--json", "--out", tmp_path / "boxes"))
    assert json.loads(missing.stdout)["findings"] == {"COCO041": 1, "COCO043": 1}
    result = invoke("build", *words, "--embed-images", "--on-error", "skip", "--json", "--out", tmp_path / "rest")
    assert json.loads(fine(result).stdout)["images"] == planned["images"] - 2


def test_a_missing_picture_names_its_json(pictured: Path, tmp_path: Path, invoke: Invoke) -> None:
    gone = sorted(pictured.glob("*/*.jpg"))[5]
    document = next(path for path in gone.parent.glob("*.json") if gone.name in path.read_text())
    gone.unlink()
    fine(invoke("build", "coco", "--annotations", pictured, "--out", tmp_path / "out"))
    examples = tokenlabels.open(tmp_path / "out").manifest["finding_examples"]
    assert [(each["code"], each["file"]) for each in examples] == [("COCO041", str(document.relative_to(pictured)))]


@pytest.mark.parametrize("change", ["mended", "removed", "cut"])
def test_a_file_that_changes_under_a_build_ends_it(
    change: str, pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(pairs["sa-1b"][1], folder)
    victim = sorted(folder.iterdir())[-1]

    class Meddler(Silent):
        def stage(self, name: str, total: int | None = None) -> None:
            if name != "building shards":
                return
            status = victim.stat()
            if change == "removed":
                victim.unlink()
            else:
                data = victim.read_bytes()
                victim.write_bytes(data.replace(b"0.97", b"0.96") if change == "mended" else data[:-30])
                os.utime(victim, (status.st_atime, status.st_mtime))

    with pytest.raises(TokenLabelsError, match=f"{victim.name}: has changed since it was checked"):
        build(folder, tmp_path / "out", shard_rows=4, progress=Meddler())
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert 0 < len(shards(tmp_path / "out")) < 4


@pytest.mark.slow
def test_killed_and_resumed(
    pairs: dict[str, tuple[Path, Path]], command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL; finished shards stay, the rest is made as if nothing had happened."""
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    texts = [path.read_text() for path in sorted(pairs["sa-1b"][1].iterdir())]
    for index in range(600):
        document = json.loads(texts[index % len(texts)])
        document["image"]["image_id"] = index
        (folder / f"{index:04d}.json").write_text(json.dumps(document))
    words = ["build", "coco", "--annotations", str(folder), "--shard-rows", "10", "--out", str(out)]
    process = subprocess.Popen([command, *words], env=environment, stdout=subprocess.DEVNULL)
    while not list(out.glob(".build/journal/*/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    before = {name: (out / name).stat().st_mtime_ns for name in shards(out)}
    resumed = build(folder, out, shard_rows=10)
    reference = build(folder, tmp_path / "reference", shard_rows=10)
    assert shards(out) == shards(tmp_path / "reference")
    assert resumed.manifest == reference.manifest
    assert any((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


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


# --- parts ------------------------------------------------------------------------------------------------------------

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=12)


@given(first=texts, second=texts, start=st.integers(0, 13), stop=st.integers(0, 13), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_texts_are_a_list_of_strings(first: list[str], second: list[str], start: int, stop: int, seed: int) -> None:
    packed, expected = Texts.joined([Texts.of(first), Texts.of(second)]), first + second
    assert list(packed) == expected
    assert [packed[index] for index in range(-len(packed), len(packed))] == expected + expected
    part = pickle.loads(pickle.dumps(packed[start:stop]))
    assert list(part) == [part[index] for index in range(len(part))] == expected[start:stop]
    kept = np.random.default_rng(seed).random(len(expected)) < 0.5
    assert list(packed.keep(kept)) == [text for text, fits in zip(expected, kept, strict=True) if fits]
    with pytest.raises(IndexError):
        packed[len(expected)]


names = st.lists(st.text("ab/-.0é", min_size=1, max_size=8), max_size=10)


@given(paths=names)
@settings(deadline=None, max_examples=60)
def test_files_are_walked_in_the_order_of_their_paths(
    paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("walk")
    for path in paths:
        place = folder / path.strip("/")
        if ".." in path or place == folder or not place.name.strip("."):
            continue
        if place.exists() or any(parent.is_file() for parent in place.parents):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    expected = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in expected if not any(part.startswith(".") for part in path.split("/"))]
    assert list(walk(folder)) == sorted(shown)


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_reading_ahead_keeps_order_and_passes_faults_on(seconds: float) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(seconds)
        if item == 30:
            raise ValueError(item)
        return item

    taken, coming = [], ahead(work, range(1000), 4)
    for item in islice(coming, 30):
        taken.append(item)
        assert len(begun) - len(taken) <= 4
    with pytest.raises(ValueError, match="30"):
        next(coming)
    assert taken == list(range(30))
    assert len(begun) < 40


@st.composite
def rle_texts(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """JSON of run lengths of an image of (width, height), right or nearly."""
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pixels = np.array(draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height)), np.uint8)
    counts = coco_mask.encode(np.asfortranarray(pixels.reshape(height, width)))["counts"].decode()
    if draw(st.booleans()):
        counts = draw(st.sampled_from([counts + "0", counts[:-1], counts[1:], "", "\\" + counts, counts + "é"]))
    fields: list[tuple[str, Any]] = [("size", [height, width]), ("counts", counts)]
    fields = draw(st.permutations(fields)) + draw(st.sampled_from([[], [], [("size", [1, 1])], [("more", 1)]]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    body = separators[0].join(f"{json.dumps(key)}{separators[1]}{json.dumps(value)}" for key, value in fields)
    return f"{{{body}}}".encode(), width, height


@given(found=rle_texts(), cut=st.integers(0, 200))
@settings(deadline=None, max_examples=300)
def test_run_lengths_read_from_text_are_those_of_the_json_library(found: tuple[bytes, int, int], cut: int) -> None:
    """Or none; and nothing is read beyond the end of a text."""
    text, width, height = found
    buffer = np.frombuffer(bytearray(b"{" + text + b'"counts":"0"}'), np.uint8)
    counts = parse_rle(buffer, 1, 1 + len(text), width, height).tolist()
    try:
        decoded = decode_segmentation(text, width, height).counts
    except MaskError:
        decoded = None
    if counts:
        assert decoded is not None
        assert counts == decoded.tolist()
    elif b"more" not in text and text.count(b"size") == 1:
        assert decoded is None, "plain text is not left to the library"
    if cut < len(text):
        assert len(parse_rle(buffer, 1, 1 + cut, width, height)) == 0


def test_run_lengths_stay_text_until_they_are_scored() -> None:
    pixels = np.asfortranarray(np.eye(5, 6, dtype=np.uint8))
    counts = coco_mask.encode(pixels)["counts"].decode()
    text = json.dumps({"size": [5, 6], "counts": counts}).encode()
    sides = np.array([6], np.int32), np.array([5], np.int32)
    checked = check_masks(MaskChunk(0, text, np.array([len(text)]), *sides, False, "kernel"))
    assert checked.kinds.tolist() == [MASK_TEXT]
    assert len(checked.counts) == 0
    assert checked.usable.all()
