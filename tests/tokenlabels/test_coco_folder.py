"""A folder with one JSON file for each image: the same shards as one file of all, in bounded memory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from helpers import fine, one_error_line, shards
from image_folders import build, findings, small_blocks, write_both
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels import threads
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import TokenLabelsError
from tokenlabels.executors import SerialExecutor
from tokenlabels.options import BuildOptions
from tokenlabels.planning import make_plan, new_log
from tokenlabels.progress import Silent
from tokenlabels.sources.coco import CocoSource
from tokenlabels.storage import located, remove_below

Invoke: TypeAlias = Callable[..., Result]

GRIDS: dict[str, Any] = {"patch": [16, 32], "image_size": [384, 96], "resize": "letterbox"}


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
