"""Object stores: the same bytes as on disk, commits without rename, builds that are resumed, readers."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from helpers import fine
from PIL import Image
from stores import BUCKET, Fail, failing_store, files_of, put, s3_server, store
from typer.testing import Result

import tokenlabels
from bavit.pictures import PictureReader
from bavit.rows import read_rows
from tokenlabels import output
from tokenlabels.atomic import write_atomically
from tokenlabels.engines import make_executor
from tokenlabels.errors import BuildMismatchError, NotABuildError, OutputError, ParameterError
from tokenlabels.reader import read_header
from tokenlabels.sample import VOC_FOLDER
from tokenlabels.sample_semantic import write_semantic_sample
from tokenlabels.storage import STORE_THREADS, contents, located

Invoke = Callable[..., Result]

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "coco": ("coco", ".", {"shard_rows": 5, "patch": [16, 32]}),
    "coco embedded": ("coco", ".", {"embed_images": True, "rule": "pixel-ratio", "check": "full"}),
    "voc": ("voc", str(VOC_FOLDER), {"rule": "pixel-ratio", "embed_masks": True, "difficult": "ignore"}),
    "voc boxes": ("voc", str(VOC_FOLDER), {}),
    "semantic": ("semantic", "semantic", {"embed_size": 64, "embed_masks": True}),
    "panoptic": ("semantic", "panoptic", {"embed_masks": True}),
}


def write_panoptic(root: Path) -> None:
    """Two images of two segments, each half of the picture."""
    masks = root / "annotations" / "panoptic_val"
    masks.mkdir(parents=True)
    ids = np.zeros((20, 40, 3), np.uint8)
    ids[:, :20, 0], ids[:, 20:, 1] = 7, 1
    segments = [{"id": 7, "category_id": 1, "bbox": [0, 0, 20, 20]}, {"id": 256, "category_id": 2}]
    for name in ("a", "b"):
        Image.fromarray(ids).save(masks / f"{name}.png")
    document = {
        "images": [{"id": name, "width": 40, "height": 20, "file_name": f"{name}.jpg"} for name in ("a", "b")],
        "annotations": [
            {"image_id": name, "file_name": f"{name}.png", "segments_info": segments} for name in ("a", "b")
        ],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def data(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of every source in one folder."""
    root = tmp_path_factory.mktemp("sources")
    for path in sample_root.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(sample_root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    write_semantic_sample(root / "semantic", images=6)
    write_panoptic(root / "panoptic")
    return root


@pytest.fixture(scope="module")
def uploaded(bucket: str, data: Path) -> str:
    return put(data, f"{bucket}/data")


@pytest.fixture(scope="module")
def embedded(uploaded: str, bucket: str) -> tokenlabels.Build:
    """A build in S3, with pictures; not to be changed."""
    return tokenlabels.build("coco", root=uploaded, out=f"{bucket}/embedded", embed_images=True, shard_rows=6)


@pytest.fixture(scope="module")
def same_on_disk(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tokenlabels.Build:
    out = tmp_path_factory.mktemp("disk") / "embedded"
    return tokenlabels.build("coco", root=data, out=out, embed_images=True, shard_rows=6)


@pytest.mark.parametrize("case", CASES)
def test_every_source_is_built_as_on_disk(case: str, data: Path, uploaded: str, bucket: str, tmp_path: Path) -> None:
    """Read from and written to a store: shards, manifest and card, all files and all bytes."""
    source, folder, options = CASES[case]
    wanted = files_of(tokenlabels.build(source, root=data / folder, out=tmp_path / "out", **options).path)
    with failing_store():
        put(data / folder, "memory://there/data")
        for root, out in ((f"{uploaded}/{folder}", f"{bucket}/{case}"), ("memory://there/data", "memory://there/out")):
            built = tokenlabels.build(source, root=root, out=out, **options)
            assert files_of(built.path) == wanted
            assert tokenlabels.verify(built).fine


def test_a_build_in_a_store_is_read_as_on_disk(
    embedded: tokenlabels.Build, same_on_disk: tokenlabels.Build, invoke: Invoke, bucket: str, tmp_path: Path
) -> None:
    assert embedded.table().equals(same_on_disk.table())
    assert embedded.table(columns=["objects.area", "labels"]).equals(
        same_on_disk.table(columns=["objects.area", "labels"])
    )
    assert np.array_equal(embedded.labels(split="val"), same_on_disk.labels(split="val"))
    lazy = [build.frame(split="train").select("image_id", "fg_count").head(7) for build in (embedded, same_on_disk)]
    assert lazy[0].collect().equals(lazy[1].collect())
    assert embedded.frame().collect().equals(same_on_disk.frame().collect())
    assert embedded.first_foreground("train") == same_on_disk.first_foreground("train")
    for build, name in ((embedded, "stored"), (same_on_disk, "here")):
        fine(invoke("stats", build.path, "--html", tmp_path / f"{name}.html", "--samples", 3))
        fine(invoke("show", build.path, "1", "-o", tmp_path / f"{name}.png"))
        fine(invoke("relabel", build.path, "--tau", 0.2, "--out", f"{bucket}/relabelled {name}"))
    for suffix in ("png", "html"):
        assert (tmp_path / f"stored.{suffix}").read_bytes() == (tmp_path / f"here.{suffix}").read_bytes()
    relabelled = [files_of(located(f"{bucket}/relabelled {name}")) for name in ("stored", "here")]
    assert relabelled[0] == relabelled[1] != files_of(embedded.path)
    with pytest.raises(ParameterError, match="on disk only"):
        _ = embedded.folder


@pytest.mark.parametrize("alias", ["{}/embedded/", "{}//embedded", "s3a://" + BUCKET + "/embedded"])
def test_a_build_is_not_relabelled_into_itself(alias: str, embedded: tokenlabels.Build, bucket: str) -> None:
    with pytest.raises(ParameterError, match="is the build itself"):
        tokenlabels.relabel(embedded, 0.2, alias.format(bucket))


def send_pictures(reader: PictureReader, sending: Any) -> None:
    sending.send([np.asarray(reader.open(index)) for index in range(1, 3)])


def test_training_reads_a_build_in_a_store(
    embedded: tokenlabels.Build, same_on_disk: tokenlabels.Build, uploaded: str
) -> None:
    """In processes, too, that were forked after the store had been used, as loaders are."""
    rows, wanted = (read_rows(build, splits=["train"], scores=True) for build in (embedded, same_on_disk))
    assert np.array_equal(rows.labels, wanted.labels)
    assert rows.picture_bytes == wanted.picture_bytes
    pictures = [np.asarray(PictureReader(wanted, None).open(index)) for index in range(3)]
    for reader in (PictureReader(rows, None), PictureReader(rows, located(uploaded))):
        reader.check_files()
        assert np.array_equal(np.asarray(reader.open(0)), pictures[0])
        receiving, sending = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=send_pictures, args=(reader, sending))
        process.start()
        assert receiving.poll(30)
        assert all(map(np.array_equal, receiving.recv(), pictures[1:]))
        process.join()


def test_damage_in_a_store_is_found_and_mended(uploaded: str, bucket: str, invoke: Invoke) -> None:
    words = ("build", "coco", "--root", uploaded, "--out", f"{bucket}/damaged", "--shard-rows", 6)
    fine(invoke(*words))
    built = tokenlabels.open(f"{bucket}/damaged")
    wanted = files_of(built.path)
    first, second, third = (store(str(path)) for path in built.files()[:3])
    first.fs.pipe_file(first.path, first.read_bytes()[:-1] + b"?")
    second.fs.pipe_file(second.path, second.read_bytes()[:100])
    third.fs.rm_file(third.path)
    found = tokenlabels.verify(built).faults
    assert list(found) == [path.path.removeprefix(f"{BUCKET}/damaged/") for path in (first, second, third)]
    assert [fault.split()[0] for fault in found.values()] == ["has", "has", "is"]
    with pytest.raises(NotABuildError, match="is damaged or no shard"):
        built.table(split="train", columns=["labels"])
    with pytest.raises(NotABuildError, match=first.name):
        tokenlabels.statistics(built)
    with pytest.raises(NotABuildError, match=f"{third.name}: is missing"):
        read_header(third)
    fine(invoke(*words))
    assert files_of(built.path) == wanted


@pytest.fixture
def failing(data: Path) -> Iterator[Fail]:
    with failing_store() as fail:
        put(data / "annotations", "memory://there/data/annotations")
        fail(0)
        yield fail


def build_there(**options: Any) -> tokenlabels.Build:
    return tokenlabels.build("coco", root="memory://there/data", out="memory://there/out", shard_rows=6, **options)


_NO_ROOM = r"temporary file of an upload cannot be written \(No space left.* TMPDIR"

FAULTS = {
    "connection": EndpointConnectionError(endpoint_url="http://there"),
    "denied": PermissionError("Access Denied"),
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "silent": None,
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_store_that_fails_in_the_middle_of_a_write(
    kind: str, failing: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write it is: one sentence, nothing that looks finished, no file here; a second run does the rest."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    build_there()
    place = store("memory://there/out")
    wanted = files_of(place)
    shards = sum(name.endswith(".parquet") for name in wanted)
    writes = 1 + 2 * shards + 2
    for number in range(1, writes + 1):
        place.fs.rm(place.path, recursive=True)
        failing(number, FAULTS[kind])
        with pytest.raises(KeyboardInterrupt if kind == "interrupt" else OutputError) as caught:
            build_there()
        assert kind != "connection" or "the store cannot be reached" in str(caught.value)
        left = files_of(place)
        journal = {name.split("journal/")[1].removesuffix(".json") for name in left if "/journal/" in name}
        assert "manifest.json" not in left
        assert all(left[name] == wanted[name] for name in left if name.endswith(".parquet"))
        again = failing(0)
        build_there()
        assert files_of(place) == wanted
        made_again = [path for path in again.written if path.endswith(".parquet")]
        assert len(made_again) == shards - len(journal)
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_temporary_file(failing: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match=_NO_ROOM):
        build_there()
    monkeypatch.undo()
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with pytest.raises(OutputError, match=_NO_ROOM):
        build_there()
    assert "manifest.json" not in files_of(located("memory://there/out"))


def test_overwriting_is_interrupted_anywhere(failing: Fail) -> None:
    """A build gives way to another: whichever write fails, the first one is whole or gone, never something between."""
    place = store("memory://there/out")
    build_there(tau=0.2)
    wanted = files_of(place)
    for number in range(1, 5):
        place.fs.rm(place.path, recursive=True)
        build_there()
        before = files_of(place)
        failing(number, OSError("gone"))
        with pytest.raises(OutputError):
            build_there(tau=0.2, overwrite=True)
        left = files_of(place)
        assert "manifest.json" not in left or before.items() <= left.items()
        failing(0)
        build_there(tau=0.2, overwrite=True)
        assert files_of(place) == wanted


@pytest.mark.parametrize("address", ["s3://" + BUCKET + "/race", "memory://there/race"])
def test_a_build_with_other_parameters_that_began_at_the_same_moment(
    address: str, bucket: str, failing: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters are created, not written, where the store can tell."""
    out = located(address)
    state = out / ".build" / "parameters.json"
    monkeypatch.setattr(output, "remove_temporaries", lambda out: write_atomically(state, b'{"tau":0.1}'))
    with pytest.raises(BuildMismatchError, match=r"tau was 0\.1, now 0\.2"):
        output.resume(out, {"tau": 0.2}, overwrite=False)
    assert output.resume(out, {"tau": 0.1}, overwrite=False) == {}


@pytest.mark.slow
def test_killed_and_resumed(
    uploaded: str, bucket: str, data: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL of a build into S3: finished shards are kept, the rest is made, all is as on disk."""
    options: dict[str, Any] = {"shard_rows": 1, "image_size": [384, 256, 128]}
    wanted = tokenlabels.build("coco", root=data, out=tmp_path / "out", **options)
    out = store(f"{bucket}/killed")
    words = ["build", "coco", "--root", uploaded, "--out", str(out), "--shard-rows", "1"]
    words += ["--image-size", "384", "--image-size", "256", "--image-size", "128"]
    process = subprocess.Popen([sys.executable, "-m", "cli.tokenlabels", *words], env=environment | os.environ)
    journal = f"{out.path}/.build/journal"
    while len(out.fs.find(journal)) < 3:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    journalled = {path.removeprefix(journal) for path in out.fs.find(journal)}
    assert 3 <= len(journalled) < len(wanted.shards)
    assert "manifest.json" not in files_of(out)
    before = {path: facts["LastModified"] for path, facts in out.fs.find(out.path, detail=True).items()}
    built = tokenlabels.build("coco", root=uploaded, out=out, **options)
    assert files_of(built.path) == files_of(wanted.path)
    after = {path: facts["LastModified"] for path, facts in out.fs.find(out.path, detail=True).items()}
    kept = [out.path + name.removesuffix(".json") for name in journalled]
    assert all(before[path] == after[path] for path in kept)


@pytest.mark.slow
def test_worker_processes_write_to_a_store(uploaded: str, bucket: str, data: Path, tmp_path: Path) -> None:
    """And the server that they are forked from has no connections to inherit."""
    wanted = tokenlabels.build("coco", root=data, out=tmp_path / "out", shard_rows=4, embed_images=True)
    built = tokenlabels.build(
        "coco", root=uploaded, out=f"{bucket}/workers", shard_rows=4, embed_images=True, workers=2
    )
    assert files_of(built.path) == files_of(wanted.path)
    with make_executor(2, 0) as executor:
        assert list(executor.run("builtins:eval", ["'fsspec' in __import__('sys').modules"])) == [False]


def test_memory_is_for_one_worker(failing: Fail) -> None:
    annotations = "memory://there/data/annotations/instances_val.json"
    with pytest.raises(ParameterError, match=r"memory://there/.*one worker"):
        tokenlabels.build("coco", root="memory://there/data", out="nowhere", workers=2)
    with pytest.raises(ParameterError, match=r"memory://there/.*one worker"):
        tokenlabels.build("coco", annotations=annotations, out="nowhere", workers=2)
    with pytest.raises(ParameterError, match=r"memory://there/.*one worker"):
        build_there(engine="dask")
    assert build_there(workers=None).splits == ("train", "val")


def test_places_are_written_in_many_ways(tmp_path: Path) -> None:
    from upath import UPath

    assert located("labels") == Path("labels")
    assert located(f"file://{tmp_path}") == located(UPath(f"file://{tmp_path}")) == tmp_path
    assert type(located(f"file://{tmp_path}")) is type(tmp_path)
    own = located(UPath("s3://bucket/a", endpoint_url="http://there"))
    assert not isinstance(own, Path)
    assert own.storage_options["endpoint_url"] == "http://there"
    assert own.storage_options["use_listings_cache"] is False
    assert str(located("s3://bucket//a//b/")) == "s3://bucket/a/b"
    again = pickle.loads(pickle.dumps(own))
    assert (str(again), again.storage_options) == (str(own), own.storage_options)


def test_small_files_are_read_ahead_but_not_far(failing: Fail, tmp_path: Path) -> None:
    place = store("memory://there/many")
    for number in range(100):
        place.fs.pipe_file(f"{place.path}/{number}", str(number).encode())
    asked = []

    def paths() -> Iterator[Any]:
        for number in range(101):
            asked.append(number)
            yield place / str(number)

    for number, data in enumerate(contents(paths(), 50)):
        assert isinstance(data, FileNotFoundError) if number == 100 else data == str(number).encode()
        assert len(asked) <= number + STORE_THREADS
    (tmp_path / "one").write_bytes(b"12345")
    assert next(contents([tmp_path / "one", tmp_path / "none"], 3)) == b"123"
