"""Exports: what the tools of each format read back is the build; nothing half-written looks finished."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import fine, one_error_line, shards, small_disk
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO
from typer.testing import Result

import tokenlabels
from tokenlabels import export_folder, storage
from tokenlabels.errors import NotABuildError, OutputError, ParameterError, TokenLabelsError
from tokenlabels.export_arrays import as_written
from tokenlabels.export_folder import PlannedFile, write_export
from tokenlabels.export_webdataset import _key, tar_header
from tokenlabels.progress import Silent
from tokenlabels.reader import Build
from tokenlabels.sample_semantic import write_semantic_sample
from tokenlabels.storage import located

Invoke: TypeAlias = Callable[..., Result]
Row: TypeAlias = dict[str, Any]

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"


@pytest.fixture(scope="module")
def built(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build with pictures and ignored patches, of two grids, a few images a shard."""
    return tokenlabels.build(
        "coco",
        root=sample_root,
        patch=[16, 32],
        crowd="ignore",
        embed_images=True,
        shard_rows=5,
        out=tmp_path_factory.mktemp("export") / "built",
    )


@pytest.fixture(scope="module")
def ragged(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build whose grid differs from image to image, without scores or pictures."""
    out = tmp_path_factory.mktemp("export") / "ragged"
    return tokenlabels.build("coco", root=sample_root, image_size="native", patch=32, scores=False, out=out)


@pytest.fixture(scope="module")
def semantic(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build with masks and majority categories."""
    folder = tmp_path_factory.mktemp("semantic")
    write_semantic_sample(folder / "data", images=6)
    return tokenlabels.build(
        "semantic",
        root=folder / "data",
        image_size=64,
        patch=16,
        embed_images=True,
        embed_masks=True,
        out=folder / "out",
    )


def rows_of(build: Build, split: str, grid: str | None = None) -> list[Row]:
    rows: list[Row] = build.table(grid, split).to_pylist()
    return rows


def cells(row: Row, column: str, kind: Any) -> Any:
    return np.array(row[column], kind).reshape(row["grid_rows"], row["grid_cols"])


# --- WebDataset -------------------------------------------------------------------------------------------------------


def samples(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """What the package `webdataset` makes of the tars of a split, in order."""
    import webdataset

    files = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
    yield from webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode()


@pytest.mark.parametrize("which", ["built", "ragged", "semantic"])
def test_webdataset_reads_back_the_build(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    build: Build = request.getfixturevalue(which)
    tokenlabels.export(build, tmp_path / "out", format="webdataset", shard_rows=3)
    kinds = {"labels": "u1", "scores": "f4", "ignored": "?", "categories": "u2", "category_share": "f4"}
    for split in build.splits:
        rows, found = rows_of(build, split), list(samples(tmp_path / "out", split))
        assert len(rows) == len(found)
        names = [category.name for category in build.categories]
        for row, sample in zip(rows, found, strict=True):
            assert sample["__key__"] == row["image_id"]
            told = sample["json"]
            for name in ("image_id", "file_name", "width", "height", "fg_count", "ignore_count"):
                assert told[name] == row[name]
            assert told["objects"].pop("category_name") == [names[k] for k in row["objects"]["category"]]
            for name, values in row["objects"].items():
                held = np.array(told["objects"][name], np.float32 if name in ("bbox", "area") else None)
                assert np.array_equal(held, np.array(values, held.dtype).reshape(held.shape))
            for name, kind in kinds.items():
                assert (f"{name}.npy" in sample) == (name in row)
                if name in row:
                    read = sample[f"{name}.npy"]
                    assert read.dtype == np.dtype(kind)
                    assert np.array_equal(read, cells(row, name, kind))
            for name, end in (("image", "jpg" if which == "semantic" else "png"), ("mask", "mask.png")):
                if name in row:
                    assert sample[end if end in sample or name == "mask" else "jpg"] == row[name]["bytes"]


def test_tars_have_no_time_no_owner_and_plain_names(built: Build, tmp_path: Path) -> None:
    made = tokenlabels.export(built, tmp_path / "a", format="webdataset", grid="384x384-p32", split="train")
    again = tokenlabels.export(built, tmp_path / "b", format="webdataset", grid="384x384-p32", split=["train"])
    assert made.files == again.files
    assert [file.file for file in made.files] == [f"train-{k:06d}.tar" for k in range(len(made.files))]
    assert [file.rows for file in made.files[:-1]] == [5] * (len(made.files) - 1)
    for file in made.files:
        with tarfile.open(tmp_path / "a" / file.file) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
                assert member.isreg()
                assert member.name.partition(".")[0].replace("-", "").replace("_", "").isalnum()
        assert (tmp_path / "a" / file.file).stat().st_size % 10_240 == 0


def test_keys_have_no_dots_and_no_slashes_and_are_told_apart() -> None:
    ids = ["000139", "a.b", "a/b", "a_b", "é", "x" * 300, "", "..", "a.b"]
    seen: set[str] = set()
    keys = [_key(image_id, seen, row) for row, image_id in enumerate(ids)]
    assert keys[0] == "000139"
    assert keys[3] == "a_b"
    assert len(set(keys)) == len(keys)
    assert all(len(key) <= 80 and key.isascii() and not set("./\\") & set(key) for key in keys)


def test_pictures_may_come_from_a_folder(ragged: Build, sample_root: Path, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    words = ("export", ragged.folder, "--format", "webdataset", "--split", "train", "--out", out)
    fine(invoke(*words, "--images", sample_root / "train"))
    for row, sample in zip(rows_of(ragged, "train"), samples(out, "train"), strict=True):
        content = (sample_root / "train" / row["file_name"]).read_bytes()
        end = "png" if content.startswith(b"\x89PNG") else "jpg"
        assert sample[end] == content
        assert Image.open(io.BytesIO(content)).size == (row["width"], row["height"])
    (tmp_path / "empty").mkdir()
    result = invoke(*words[:-1], tmp_path / "none", "--images", tmp_path / "empty")
    assert result.exit_code == 1
    one_error_line(result.stderr, str(tmp_path / "empty"), "cannot be read", "--images")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_pictures_of_another_folder_are_another_export(
    finished: bool, ragged: Build, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one folder are neither kept beside those of another, nor taken for them."""
    out = tmp_path / "out"
    options: dict[str, Any] = {"format": "webdataset", "split": "train", "shard_rows": 4}
    shutil.copytree(sample_root / "train", tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr("tokenlabels.export_webdataset.content", ending_after(5))
        with pytest.raises(OutputError, match="the disk is gone") if not finished else contextlib.nullcontext():
            tokenlabels.export(ragged, out, images=sample_root / "train", **options)
    before = contents(out)
    assert ("export.json" in before) == finished
    with pytest.raises(OutputError, match=r"export with other parameters \(pictures_sha256 was .*--overwrite"):
        tokenlabels.export(ragged, out, images=tmp_path / "other", **options)
    assert contents(out) == before
    tokenlabels.export(ragged, out, images=tmp_path / "other", overwrite=True, **options)
    files = {row["file_name"]: (tmp_path / "other" / row["file_name"]).read_bytes() for row in rows_of(ragged, "train")}
    assert [sample.get("png", sample.get("jpg")) for sample in samples(out, "train")] == list(files.values())


def ending_after(number: int) -> Callable[[Path], bytes]:
    """`content`, which fails after so many pictures."""
    count = itertools.count()

    def content(path: Path) -> bytes:
        if next(count) == number:
            raise OutputError("the disk is gone.")
        return path.read_bytes()

    return content


def test_labels_without_pictures_are_told(ragged: Build, tmp_path: Path, invoke: Invoke) -> None:
    result = fine(invoke("export", ragged.folder, "--format", "webdataset", "--out", tmp_path / "out"))
    assert "no pictures embedded" in result.stderr


# --- NumPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_rows", [None, 4])
@pytest.mark.parametrize("which", ["built", "ragged", "semantic"])
def test_numpy_reads_back_the_build(
    which: str, shard_rows: int | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    build: Build = request.getfixturevalue(which)
    made = tokenlabels.export(build, tmp_path / "out", format="npz", shard_rows=shard_rows)
    rows = [row for split in build.splits for row in rows_of(build, split)]
    assert len(made.files) == (
        len(build.splits) if shard_rows is None else sum(-(-len(rows_of(build, s)) // 4) for s in build.splits)
    )
    place = 0
    for file in made.files:
        with np.load(tmp_path / "out" / file.file, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        assert json.loads(str(held["header"]))["grid"] == made.grid
        assert held["category_name"].tolist() == [category.name for category in build.categories]
        for index in range(file.rows):
            row = rows[place + index]
            for name in (
                "image_id",
                "file_name",
                "width",
                "height",
                "grid_rows",
                "grid_cols",
                "fg_count",
                "ignore_count",
            ):
                assert held[name][index] == row[name]
            for name in ("labels", "scores", "ignored", "categories", "category_share"):
                assert (name in held) == (name in row)
                if name in row:
                    values = (
                        held[name][slice(*held["offsets"][index : index + 2])]
                        if which == "ragged"
                        else held[name][index]
                    )
                    assert np.array_equal(values.ravel(), np.array(row[name], values.dtype))
            objects = slice(*held["object_offsets"][index : index + 2])
            for name, expected in row["objects"].items():
                values = held[f"object_{name}"][objects]
                assert np.array_equal(values, np.array(expected, values.dtype).reshape(values.shape))
        place += file.rows
    assert place == len(rows)


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["built", "ragged"])
def test_pycocotools_reads_back_the_build(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    build: Build = request.getfixturevalue(which)
    tokenlabels.export(build, tmp_path / "out", format="coco")
    ids = {category.id: index for index, category in enumerate(build.categories)}
    for split in build.splits:
        coco = COCO(str(tmp_path / "out" / f"instances_{split}.json"))
        rows = rows_of(build, split)
        assert [str(image) for image in coco.imgs] == [row["image_id"] for row in rows]
        for row in rows:
            image = coco.imgs[int(row["image_id"])]
            for name in ("file_name", "width", "height", "fg_count", "ignore_count"):
                assert image[name] == row[name]
            labels = cells(row, "labels", np.uint8)
            assert np.array_equal(mask.decode(image["patch_labels"]), labels == 1)
            assert ("patch_ignored" in image) == bool((labels == 255).any())
            if "patch_ignored" in image:
                assert np.array_equal(mask.decode(image["patch_ignored"]), labels == 255)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            objects = row["objects"]
            assert [each["id"] for each in annotations] == objects["id"]
            assert [ids[each["category_id"]] for each in annotations] == objects["category"]
            assert [bool(each["iscrowd"]) for each in annotations] == objects["iscrowd"]
            boxes = np.array([each["bbox"] for each in annotations], np.float32)
            assert np.array_equal(boxes, np.array(objects["bbox"], np.float32).reshape(boxes.shape))


@pytest.mark.parametrize("rule", ["overlap", "jaccard"])
def test_a_build_of_an_exported_file_has_the_same_labels(rule: str, sample_root: Path, tmp_path: Path) -> None:
    """Boxes come back as they were written, although shards hold them as float32."""
    root, split = (SHARED, "val2017") if SHARED.is_dir() else (sample_root, "train")
    file = root / "annotations" / f"instances_{split}.json"
    options: dict[str, Any] = {"rule": rule, "tau": 0.5 if rule == "overlap" else 0.01, "patch": [8, 48]}
    first = tokenlabels.build("coco", annotations=file, out=tmp_path / "first", **options)
    tokenlabels.export(first, tmp_path / "coco", format="coco")
    exported = tmp_path / "coco" / file.name
    again = tokenlabels.build("coco", annotations=exported, out=tmp_path / "again", **options)
    assert shards(again.folder) == shards(first.folder)
    boxes = {each["id"]: each["bbox"] for each in json.loads(file.read_bytes())["annotations"]}
    assert {each["id"]: each["bbox"] for each in json.loads(exported.read_bytes())["annotations"]} == boxes


def test_ids_that_are_no_numbers_or_not_unique_are_numbered(sample_root: Path, tmp_path: Path) -> None:
    file = sample_root / "annotations" / "instances_val.json"
    builds = [tokenlabels.build("coco", annotations=file, out=tmp_path / "one")] * 2
    merged = tokenlabels.merge(
        [builds[0], tokenlabels.relabel(builds[1], 0.5, tmp_path / "two")], tmp_path / "merged", prefix_ids=True
    )
    tokenlabels.export(merged, tmp_path / "out", format="coco")
    coco = COCO(str(tmp_path / "out" / "instances_val.json"))
    rows = rows_of(merged, "val")
    assert list(coco.imgs) == list(range(1, len(rows) + 1))
    assert [image["image_id"] for image in coco.imgs.values()] == [row["image_id"] for row in rows]
    assert list(coco.anns) == list(range(1, sum(len(row["objects"]["id"]) for row in rows) + 1))
    for number, row in enumerate(rows, 1):
        assert [each["area"] for each in coco.imgToAnns[number]] == pytest.approx(row["objects"]["area"])


def test_numbers_come_back_as_people_wrote_them() -> None:
    random = np.random.default_rng(0)
    written = np.round(random.uniform(-900, 9000, (500, 4)), random.integers(0, 4, (500, 1))[0, 0])
    written = np.concatenate([written, [[0.1, 1e-7, 123456.7, -0.0], [1e7, 3.25, 2.5, 99999.99]]])
    found = as_written(written.astype(np.float32))
    assert np.array_equal(found.astype(np.float32), written.astype(np.float32))
    assert np.array_equal(found[:500], written[:500])
    tiny = np.array([1e-30, 3e38, 1 / 3], np.float32)
    assert np.array_equal(as_written(tiny).astype(np.float32), tiny)


# --- the folder -------------------------------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_the_index_lists_what_is_there(built: Build, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    answer = json.loads(fine(invoke("export", built.folder, "--format", "npz", "--out", out, "--json")).stdout)
    index = json.loads((out / "export.json").read_text())
    assert answer["files"] == index["files"]
    assert answer["images"] == sum(file["rows"] for file in index["files"]) == 16
    assert {path.name: path.stat().st_size for path in out.iterdir() if path.name != "export.json"} == {
        file["file"]: file["bytes"] for file in index["files"]
    }
    assert index["parameters"]["format"] == "npz"
    assert index["header"]["rule"] == "overlap"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "already" in fine(invoke("export", built.folder, "--format", "npz", "--out", out)).stderr
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("--format", "coco", "--shard-rows", 4), ["--shard-rows", "coco"], id="coco in parts"),
        pytest.param(("--format", "npz", "--images", "."), ["--images", "npz"], id="pictures in npz"),
        pytest.param(("--format", "webdataset", "--images", "."), ["embedded"], id="pictures twice"),
        pytest.param(("--format", "npz", "--grid", "no"), ["no grid 'no'", "384x384-p16"], id="grid"),
        pytest.param(("--format", "npz", "--split", "no"), ["no split 'no'", "train"], id="split"),
    ],
)
def test_what_cannot_be_exported(
    words: tuple[Any, ...], says: list[str], built: Build, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke("export", built.folder, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    one_error_line(result.stderr, *says)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParameterError, match="unknown format 'yolo'"):
        tokenlabels.export(built, tmp_path / "out", format="yolo")  # type: ignore[arg-type]


def test_folders_of_others_and_of_the_build_are_left_alone(built: Build, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is the build itself"):
        tokenlabels.export(built, built.folder, format="npz")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds no export \(mine.txt\)"):
        tokenlabels.export(built, tmp_path, format="npz", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        tokenlabels.export(built, tmp_path / "mine.txt", format="npz")


def test_the_state_of_a_build_that_is_not_finished_is_left_alone(ragged: Build, tmp_path: Path) -> None:
    """What an ended export leaves there, a lock, is no build."""
    out = tmp_path / "out"
    (out / ".build").mkdir(parents=True)
    (out / ".build" / "lock").touch()
    tokenlabels.export(ragged, out, format="npz")
    assert not (out / ".build").exists()
    for place in (tmp_path / "other", out):
        (place / ".build").mkdir(parents=True)
        (place / ".build" / "parameters.json").write_text("{}")
        with pytest.raises(OutputError, match=r"holds a build that is not finished \(\.build\): name a new folder"):
            tokenlabels.export(ragged, place, format="npz", overwrite=True)
        assert (place / ".build" / "parameters.json").read_text() == "{}"


def test_the_state_of_many_files_is_not_written_after_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a file takes as long as writing the state; a failure loses no file all the same."""
    clock, written = [0.0], []
    write_json = export_folder._write_json

    def counted(path: Path, value: dict[str, Any]) -> None:
        clock[0] += 1
        written.append(path.name)
        write_json(path, value)

    def make(file: Any) -> None:
        clock[0] += 1
        file.write(b"x")
        if len(list(tmp_path.glob("*.tar"))) == 299:
            raise OSError("the disk is gone")

    monkeypatch.setattr(export_folder, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(export_folder, "_write_json", counted)
    planned = [PlannedFile(f"a-{index}.tar", "a", 1, make) for index in range(300)]
    index = {"tool": {"name": "tokenlabels"}, "parameters": {}}
    with pytest.raises(OutputError, match="the disk is gone"):
        write_export(tmp_path, index, planned, overwrite=False, progress=Silent())
    assert 65 < len(written) < 85
    assert len(json.loads((tmp_path / ".export.json").read_text())["files"]) == 299


def test_overwrite_deletes_what_it_made_and_nothing_else(built: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenlabels.export(built, out, format="webdataset")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"format was 'webdataset', now 'npz'.*--overwrite"):
        tokenlabels.export(built, out, format="npz")
    assert "train-000000.tar" in contents(out)
    tokenlabels.export(built, out, format="npz", overwrite=True)
    assert set(contents(out)) == {"export.json", "notes.txt", "train.npz", "val.npz"}


def test_a_damaged_shard_is_named(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "built", shard_rows=6)
    hit = build.files(split="train")[-1]
    content = bytearray(hit.read_bytes())
    content[50] ^= 1
    hit.write_bytes(bytes(content))
    for wanted in ("webdataset", "npz", "coco"):
        with pytest.raises(NotABuildError, match=f"{hit}: has other content"):
            tokenlabels.export(build, tmp_path / wanted, format=wanted)
        assert not (tmp_path / wanted / "export.json").exists()


@pytest.mark.parametrize("wanted", ["webdataset", "npz", "coco"])
def test_a_full_disk_leaves_nothing_that_looks_finished_and_the_rest_can_be_made(
    wanted: Any, ragged: Build, tmp_path: Path
) -> None:
    """All files but the largest fit."""
    out = tmp_path / "out"
    whole = tokenlabels.export(ragged, tmp_path / "whole", format=wanted)
    largest = max(whole.files, key=lambda file: file.bytes)
    with small_disk(largest.bytes - 1), pytest.raises(OutputError, match=f"{largest.file}: cannot be written"):
        tokenlabels.export(ragged, out, format=wanted)
    assert largest.file not in contents(out)
    assert not any(name.endswith(".tmp") or name == "export.json" for name in contents(out))
    tokenlabels.export(ragged, out, format=wanted)
    assert contents(out) == contents(tmp_path / "whole")


def test_an_export_may_go_to_a_store_and_come_from_one(ragged: Build, tmp_path: Path) -> None:
    """A put that fails leaves nothing that looks finished; the rest is made by the next run."""
    whole = tokenlabels.export(ragged, tmp_path / "whole", format="npz", shard_rows=4)
    stored = tokenlabels.open(copied(ragged, f"memory://export/{tmp_path.name}/build"))
    place = f"memory://export/{tmp_path.name}/out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenlabels.atomic.upload", failing_at(6))
        with pytest.raises(OutputError, match=r"cannot be written \(the store is down\)"):
            tokenlabels.export(stored, place, format="npz", shard_rows=4)
    made = located(place)
    assert sorted(path.name for path in made.iterdir()) == [".export.json", *(file.file for file in whole.files[:2])]
    again = tokenlabels.export(stored, place, format="npz", shard_rows=4)
    assert again.files == whole.files
    assert {path.name: path.read_bytes() for path in made.iterdir()} == contents(tmp_path / "whole")
    with pytest.raises(OutputError, match="--overwrite"):
        tokenlabels.export(stored, place, format="coco")
    tokenlabels.export(stored, place, format="coco", overwrite=True)
    assert {path.name for path in made.iterdir()} == {"export.json", "instances_train.json", "instances_val.json"}
    with pytest.raises(OutputError, match=r"holds no export"):
        tokenlabels.export(ragged, stored.path, format="npz")


def copied(build: Build, place: str) -> str:
    """A copy of a build in a store."""
    for path in build.folder.rglob("*"):
        if path.is_file():
            located(f"{place}/{path.relative_to(build.folder)}").write_bytes(path.read_bytes())
    return place


def failing_at(number: int) -> Callable[..., None]:
    """`upload`, but the so-manyth fails."""
    calls: list[Any] = []

    def upload(path: Any, *rest: Any, create: bool = False) -> None:
        calls.append(path)
        if len(calls) == number:
            raise OSError("the store is down")
        storage.upload(path, *rest, create=create)

    return upload


KILLED = """
import os, signal, sys
import tokenlabels
from tokenlabels import export_folder

digest, done = export_folder.sha256_of, []

def killing(path):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(path)
    return digest(path)

export_folder.sha256_of = killing
tokenlabels.export(tokenlabels.open(sys.argv[1]), sys.argv[2], format="webdataset", shard_rows=3)
"""


def test_killed_and_resumed(built: Build, tmp_path: Path, environment: dict[str, str]) -> None:
    """SIGKILL before the third file has its name: its temporary file goes, the first two stay."""
    out = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(built.folder), str(out)]
    process = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "export.json").exists()
    assert len(list(out.glob("*.tmp"))) == 1
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(before) == 2
    tokenlabels.export(built, out, format="webdataset", shard_rows=3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    tokenlabels.export(built, tmp_path / "whole", format="webdataset", shard_rows=3)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    from tokenlabels.export_webdataset import _picture

    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    for name in ("../secret.png", str(tmp_path / "secret.png"), ""):
        with pytest.raises(TokenLabelsError, match="is no file name"):
            _picture(tmp_path / "in", name)


@pytest.mark.parametrize("name", ["a.json", pytest.param("x" * 100, id="longest")])
@pytest.mark.parametrize("size", [0, 7, 511, 512, 8**11 - 1])
def test_tar_headers_are_those_of_the_standard_library(name: str, size: int) -> None:
    described = tarfile.TarInfo.frombuf(tar_header(name, size), "ascii", "strict")
    expected = tarfile.TarInfo(name)
    expected.size = size
    assert {**described.get_info(), "chksum": 0} == expected.get_info()  # reading has compared the checksum
    with pytest.raises(OutputError, match="does not fit a tar file"):
        tar_header(name + "y" * 100, 8**11)
