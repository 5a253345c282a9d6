"""Downloading data sets: what is in the folder already, the command, and what is built of the result."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from downloads import (
    CONTENT,
    FILE,
    MEMBER,
    PATH,
    STATE,
    TEXT,
    Stopping,
    data_set,
    failing,
    fetch,
    packed,
    whole,
)
from helpers import fine, one_error_line
from typer.testing import Result
from web_site import Site

import tokenlabels
from tokenlabels.errors import DownloadError, OutputError
from tokenlabels.known import Archive, KnownDataset, known_datasets

# --- what is in the folder already ------------------------------------------------------------------------------------


def test_an_archive_that_is_there_is_not_fetched(site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(CONTENT)
    assert fetch(site, tmp_path).archives[0].there
    whole(tmp_path)
    assert not site.served


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x"], ids=["too short", "another"])
def test_another_file_in_the_place_of_an_archive_is_kept(content: bytes, site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DownloadError, match="should have"):
        fetch(site, tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_files_of_other_content_are_never_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / MEMBER).write_bytes(b"mine")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/mine.jpg").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"instances_val.json: is there already, with other content"):
        fetch(site, tmp_path)
    assert (tmp_path / MEMBER).read_bytes() == b"mine"
    assert not (tmp_path / "val/1.jpg").exists()
    (tmp_path / MEMBER).write_bytes(TEXT)
    fetch(site, tmp_path)
    whole(tmp_path)
    assert (tmp_path / "val/mine.jpg").exists()


def test_what_was_deleted_is_fetched_again(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path, keep_archives=False)
    assert not (tmp_path / FILE).exists()
    assert fetch(site, tmp_path, keep_archives=False).archives[0].files == 0
    (tmp_path / "val/1.jpg").unlink()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 2


def test_only_annotations_and_then_the_pictures(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path, annotations_only=True)
    assert not (tmp_path / "val").exists()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 1


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="is a file, not a folder"):
        fetch(site, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(site, tmp_path / "file" / "below")
    assert not site.served


def test_a_disk_that_is_too_small(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": len(CONTENT)})
    monkeypatch.setattr("tokenlabels.downloading.shutil.disk_usage", lambda _path: usage)
    failing(site, tmp_path, "GB free", "are needed")
    assert not site.served
    monkeypatch.setattr("tokenlabels.downloading._check_room", lambda *_parts, **_options: None)
    with pytest.raises(DownloadError, match="unpacks to"):
        fetch(site, tmp_path)
    assert not (tmp_path / "annotations").exists()


def test_one_download_at_a_time(site: Site, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    site.gate = lambda: reached.set() or go_on.wait(10)  # type: ignore[func-returns-value]
    first = threading.Thread(target=fetch, args=(site, tmp_path))
    first.start()
    assert reached.wait(10)
    with pytest.raises(DownloadError, match="another download is writing here"):
        fetch(site, tmp_path)
    go_on.set()
    first.join()
    whole(tmp_path)


# --- the command and whole data sets ----------------------------------------------------------------------------------


def test_unpacking_that_is_interrupted_is_begun_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path, progress=Stopping(len(CONTENT) + (1 << 20)))
    assert not (tmp_path / "annotations").exists()
    assert (tmp_path / FILE).exists()
    fetch(site, tmp_path)
    whole(tmp_path)
    assert len(site.served) == 1


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nothing"], 2, ["no data set 'nothing'", "ade20k, coco, coco-panoptic, voc"]),
        (["coco"], 2, ["--split", "train2017, val2017"]),
        (["voc", "--split", "tset"], 2, ["'tset'", "trainval2007", "test2007"]),
        (["coco", "--split", "val2017", "--mirror", "http://me:sec/secret@h/"], 2, ["mirror", "%2F"]),
        (["coco", "--split", "val2017", "--root", "s3://bucket/coco"], 2, ["s3://bucket/coco", "on disk"]),
    ],
)
def test_words_that_make_no_sense(words: list[str], code: int, named: list[str], invoke: Callable[..., Result]) -> None:
    result = invoke("download", *words)
    assert result.exit_code == code
    one_error_line(result.stderr, *named)
    assert "secret" not in result.stderr


def test_a_dry_run_asks_nobody_and_writes_nothing(invoke: Callable[..., Result], tmp_path: Path) -> None:
    root = tmp_path / "new"
    words = ["download", "coco", "--split", "val2017", "--root", root, "--dry-run"]
    text = fine(invoke(*words)).stdout
    assert "annotations_trainval2017.zip: 0.25 GB from http://images.cocodataset.org/annotations/" in text
    assert "to fetch: 1.07 GB" in text
    answer = json.loads(fine(invoke(*words, "--annotations-only", "--json")).stdout)
    assert [archive["bytes"] for archive in answer["archives"]] == [252_907_541]
    assert not root.exists()


@pytest.fixture(scope="module")
def archives(sample_root: Path) -> dict[str, bytes]:
    """The sample packed as official data sets are: path -> content."""
    members = {str(path.relative_to(sample_root)): path.read_bytes() for path in sample_root.rglob("*.*")}
    notes = {name: content for name, content in members.items() if name.startswith("annotations/")}
    pictures = {name: content for name, content in members.items() if name.startswith("val/")}
    return {"/notes.zip": packed(notes), "/val.zip": packed(pictures)}


def test_the_result_is_built(
    archives: dict[str, bytes],
    site: Site,
    tmp_path: Path,
    invoke: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    sample_root: Path,
) -> None:
    site.files = archives
    splits = {"train": "train", "val": "val"}
    notes = Archive("notes.zip", (), splits, annotations=("annotations/instances_{split}.json",))
    pictures = Archive("val.zip", (), {"val": "val"}, images=("{split}/*",))
    card = KnownDataset("coco", "COCO", "mit", [], source="coco", downloads=(notes, pictures))
    monkeypatch.setattr("tokenlabels.downloading.known_datasets", lambda: (card,))
    root = tmp_path / "coco"
    result = fine(invoke("download", "coco", "--split", "val", "--root", root, "--mirror", site.address))
    assert "not compared: its data card has none" in result.stdout
    command = result.stdout.splitlines()[-1].removeprefix("next: tokenlabels ").split()
    assert command == ["build", "coco", "--root", str(root), "--split", "val"]
    fine(invoke(*command, "--out", tmp_path / "out", "--embed-images"))
    fine(invoke("build", "coco", "--root", sample_root, "--split", "val", "--out", tmp_path / "own", "--embed-images"))
    ours, theirs = (tokenlabels.open(tmp_path / name).table().to_pylist() for name in ("out", "own"))
    assert ours == theirs
    assert not (root / "train").exists()
    assert not (root / "annotations/instances_train.json").exists()


@pytest.mark.parametrize(
    "known", [known for known in known_datasets() if known.downloads], ids=lambda known: known.name
)
def test_the_addresses_of_a_data_card(known: KnownDataset) -> None:
    assert known.source in ("coco", "voc", "semantic")
    for archive in known.downloads:
        assert archive.file.endswith((".zip", ".tar"))
        assert archive.hash.partition(":")[0] in hashlib.algorithms_available
        digest = archive.hash.partition(":")[2]
        assert len(bytes.fromhex(digest)) == hashlib.new(archive.hash.partition(":")[0]).digest_size
        assert all(url.startswith(("http://", "https://")) and url.endswith(f"/{archive.file}") for url in archive.urls)
        assert set(archive.splits.values()) <= set(known.splits)
        assert archive.annotations or archive.images
    for split in {split for archive in known.downloads for split in archive.splits}:
        held = [archive for archive in known.downloads if split in archive.splits]
        assert any(archive.annotations for archive in held)
        assert any(archive.images for archive in held)


# --- places that are taken, or elsewhere ------------------------------------------------------------------------------


NOWHERE = f"http://127.0.0.1:9/{FILE}"
"""Nobody is asked: the archive is there."""


@pytest.mark.parametrize("taken", ["annotations", "val", "val/below"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_has_the_place_of_a_folder_is_kept(kind: str, taken: str, tmp_path: Path) -> None:
    content = packed({MEMBER: TEXT, "val/1.jpg": b"picture", "val/below/2.jpg": b"picture"})
    (tmp_path / FILE).write_bytes(content)
    place = tmp_path / taken
    place.parent.mkdir(exist_ok=True)
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    for _ in range(2):
        with pytest.raises(DownloadError, match=rf"{taken}: is there already and is no folder"):
            tokenlabels.download(data_set((NOWHERE,), content), splits="val", root=tmp_path)
        assert not (tmp_path / STATE / f"{FILE}.json").exists()
        assert {path.name for path in tmp_path.iterdir()} == {STATE, FILE, taken.partition("/")[0]}
    assert place.is_symlink() or place.read_text() == "mine"
    place.unlink()
    (archive,) = tokenlabels.download(data_set((NOWHERE,), content), splits="val", root=tmp_path).archives
    assert archive.files == 3
    assert (tmp_path / "val/below/2.jpg").read_bytes() == b"picture"


def test_a_link_in_the_place_of_a_file_is_kept(site: Site, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / MEMBER).symlink_to("nowhere")
    with pytest.raises(DownloadError, match="is there already"):
        fetch(site, tmp_path)
    assert (tmp_path / MEMBER).is_symlink()


def test_a_file_that_did_not_arrive_is_no_success(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabels.unpacked.move", lambda _source, _place: None)
    with pytest.raises(DownloadError, match="was changed while it was unpacked: run again"):
        fetch(site, tmp_path)
    assert not (tmp_path / STATE / f"{FILE}.json").exists()


def test_pictures_that_were_deleted_are_not_missed_by_annotations(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path)
    (tmp_path / "val/1.jpg").unlink()
    unpacked = [fetch(site, tmp_path, annotations_only=True).archives[0].files for _ in range(2)]
    assert unpacked == [1, 0]
    fetch(site, tmp_path)
    whole(tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on another disk, as far as renaming can tell."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    rename = Path.replace

    def replace(source: Path, target: Path) -> Path:
        ends = [Path(os.path.realpath(path.parent)).is_relative_to(folder) for path in (source, target)]
        if len(set(ends)) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    return folder


@pytest.mark.parametrize("linked", ["annotations", "val", STATE])
def test_a_folder_that_is_a_link_to_another_disk(linked: str, elsewhere: Path, site: Site, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / linked).symlink_to(elsewhere)
    fetch(site, root)
    whole(root)
    assert (root / linked).is_symlink()
    assert fetch(site, root).archives[0].there


def test_a_copy_to_another_disk_that_is_interrupted_is_made_again(
    elsewhere: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = packed({MEMBER: TEXT} | {f"val/{part}/{name}.jpg": bytes(9) for part in "ab" for name in "cd"})
    site.files[PATH] = content
    root = tmp_path / "root"
    root.mkdir()
    (root / "val").symlink_to(elsewhere)
    copied = iter(range(9))

    def stopped(_file: int) -> None:
        if next(copied) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokenlabels.moving.os.fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(site, root, dataset=data_set(content=content))
    assert not (root / STATE / f"{FILE}.json").exists()
    (elsewhere / ".tokenlabels-download.part").write_bytes(b"of a killed process")
    assert fetch(site, root, dataset=data_set(content=content)).archives[0].files == 5
    assert sorted(path.name for path in elsewhere.rglob("*.jpg")) == ["c.jpg", "c.jpg", "d.jpg", "d.jpg"]
    assert all(path.read_bytes() == bytes(9) for path in elsewhere.rglob("*.jpg"))
