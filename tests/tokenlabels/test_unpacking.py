"""Unpacking archives: what is wanted of good ones, and nothing of hostile ones."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import fine
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import DownloadError, OutputError
from tokenlabels.known import Archive, KnownDataset, known_datasets
from tokenlabels.progress import Silent
from tokenlabels.sample import VOC_FOLDER
from tokenlabels.unpacking import unpack

VOC = str(VOC_FOLDER)

NOWHERE = ("http://127.0.0.1:9/archive",)
"""Nobody is asked: the archives are there."""

GOOD = {"set/a.txt": b"a" * 5000, "set/below/b.txt": b"b", "other/c.txt": b"c"}


def write_zip(path: Path, members: dict[str, bytes], *infos: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for info, content in infos:
            archive.writestr(info, content)
    return path


def write_tar(path: Path, members: dict[str, bytes], *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in infos:
            archive.addfile(info)
    return path


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {".zip": write_zip, ".tar": write_tar}


def tar_info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_info(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def refused(archive: Path, *named: str, patterns: tuple[str, ...] = ("*",)) -> None:
    """The archive is refused in one sentence, and nothing is written anywhere."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DownloadError) as fault:
        unpack(archive, patterns, archive.parent / "out", Silent())
    for words in (archive.name, *named):
        assert words in str(fault.value)
    assert "\n" not in str(fault.value)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("suffix", WRITERS)
def test_only_what_is_wanted_is_unpacked(suffix: str, tmp_path: Path) -> None:
    archive = WRITERS[suffix](tmp_path / f"good{suffix}", GOOD)
    assert unpack(archive, ["set/*"], tmp_path / "out", Silent()) == {"set/a.txt": 5000, "set/below/b.txt": 1}
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.txt")}
    assert found == {name: content for name, content in GOOD.items() if name.startswith("set/")}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "set/../../evil", "C:\\evil", "C:evil", "\\\\host\\evil", "set\\..\\..\\evil", "..", "/"],
)
def test_a_name_that_leaves_the_folder(name: str, suffix: str, tmp_path: Path) -> None:
    archive = WRITERS[suffix](tmp_path / f"bad{suffix}", GOOD | {name: b"evil"})
    refused(archive, "would be written outside the folder")
    refused(archive, "would be written outside the folder", patterns=("set/a.txt",))


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "nul.zip", GOOD | {"set/xX.txt": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"set/xX.txt", b"set/x\0.txt"))
    refused(archive, "would be written outside the folder")


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "bad.tar", GOOD | {"set/\udcff.txt": b"x"})
    refused(archive, "udcff", "has a name that is no UTF-8 text")
    unpack(archive, ["other/*"], tmp_path / "out", Silent())


def test_a_zip_member_without_a_name(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "bad.zip", {"x": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"x", b"\0"))
    refused(archive)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_name_twice(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"twice{suffix}"
    if suffix == ".zip":
        with pytest.warns(UserWarning, match="Duplicate"):
            write_zip(path, GOOD, (zip_info("set/a.txt"), b"other"))
    else:
        write_tar(path, GOOD, tarfile.TarInfo("set/a.txt"))
    refused(path, "'set/a.txt'", "is there twice")
    archive = WRITERS[suffix](tmp_path / f"same{suffix}", GOOD | {"set//./a.txt": b"other"})
    refused(archive, "is there twice")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_that_is_a_folder(suffix: str, tmp_path: Path) -> None:
    archive = WRITERS[suffix](tmp_path / f"both{suffix}", GOOD | {"set/a.txt/b.txt": b"b"})
    refused(archive, "'set/a.txt'", "is a file and a folder")


@pytest.mark.parametrize(
    "info",
    [
        tar_info("set/link", tarfile.SYMTYPE, "/etc"),
        tar_info("set/link", tarfile.SYMTYPE, "a.txt"),
        tar_info("set/hard", tarfile.LNKTYPE, "../../outside"),
        tar_info("set/device", tarfile.CHRTYPE),
        tar_info("set/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_tar_members_that_are_no_plain_files(info: tarfile.TarInfo, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "bad.tar", GOOD, info)
    refused(archive, info.name, "is no plain file")
    unpack(archive, ["other/*"], tmp_path / "out", Silent())  # it is not looked at where it is not wanted


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_members_that_are_no_plain_files(kind: int, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "bad.zip", GOOD, (zip_info("set/link", kind | 0o777), b"/etc/passwd"))
    refused(archive, "'set/link'", "is no plain file")


def test_zip_members_that_are_encrypted_or_packed_strangely(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "locked.zip", {"a": b"a"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "'a'", "is encrypted")
    content[content.index(b"PK\x01\x02") + 8] &= 254
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + 10, 9)
    archive.write_bytes(content)
    refused(archive, "number 9")


def test_a_bomb(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "bomb.zip", {"zeros": bytes(80 << 20)})
    refused(archive, "which no data set does")


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "liar.zip", {"zeros": bytes(80 << 20)})
    content = bytearray(archive.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(archive, ["*"], tmp_path / "out", Silent())
    assert (tmp_path / "out/zeros").stat().st_size <= 10


def test_a_sparse_tar_member_is_not_blown_up(tmp_path: Path) -> None:
    info = tarfile.TarInfo("set/sparse")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,0,{1 << 40},0"}
    archive = tmp_path / "sparse.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info)
    refused(archive, "is no plain file")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("damage", ["empty", "rubbish", "cut"])
def test_a_damaged_archive(damage: str, suffix: str, tmp_path: Path) -> None:
    archive = WRITERS[suffix](tmp_path / f"bad{suffix}", GOOD | {"set/d.bin": bytes(range(256)) * 400})
    content = archive.read_bytes()
    archive.write_bytes({"empty": b"", "rubbish": b"x" * 5000, "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(archive, ["*"], tmp_path / "out", Silent())


def test_a_member_whose_checksum_is_wrong(tmp_path: Path) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", b"content of a file")
    archive.write_bytes(archive.read_bytes().replace(b"content", b"Content"))
    with pytest.raises(DownloadError, match=r"is damaged.*CRC"):
        unpack(archive, ["*"], tmp_path / "out", Silent())


def test_a_compressed_tar_is_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("set/a"))
    refused(tmp_path / "a.tar", "is damaged")


def test_a_tar_of_negative_size_ends(tmp_path: Path) -> None:
    content = bytearray(write_tar(tmp_path / "a.tar", {"set/a": b"x" * 600}).read_bytes())
    content[124:136] = (-1024).to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    refused(tmp_path / "a.tar", "is damaged")


@pytest.mark.parametrize("size", [10**30, 1 << 62, 1 << 40], ids=["too long", "all memory", "too long for the file"])
@pytest.mark.parametrize("name", ["set/a", "./PaxHeaders/a"])
def test_a_tar_member_of_a_size_that_no_file_has(name: str, size: int, tmp_path: Path) -> None:
    content = bytearray(write_tar(tmp_path / "a.tar", {name: b"x"}).read_bytes())
    content[124:136] = b"\x80" + min(size, 2**88 - 1).to_bytes(11, "big")
    content[156:157] = b"x" if "Pax" in name else b"0"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    refused(tmp_path / "a.tar")


def test_a_tar_with_a_damaged_header_in_its_middle(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", GOOD)
    content = bytearray(archive.read_bytes())
    content[content.index(b"set/below")] ^= 1
    archive.write_bytes(content)
    refused(archive, "is damaged (the header of a member)")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a.zip", GOOD), "holds no val2017/*", patterns=("val2017/*",))


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"set/" + "n" * 300: b"x"})
    with pytest.raises(OutputError, match="File name too long"):
        unpack(archive, ["*"], tmp_path / "out", Silent())


# --- whole data sets, from archives in the folder ---------------------------------------------------------------------


def below(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """Every file below a folder: name -> content."""
    return {f"{prefix}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card(name: str, source: str, archive: Archive) -> KnownDataset:
    known = next(known for known in known_datasets() if known.name == name)
    return KnownDataset(name, name, "mit", [], source=source, masks=known.masks, downloads=(archive,))


def downloaded(known: KnownDataset, root: Path, split: str, *, annotations_only: bool = False) -> list[str]:
    """Download a split whose archive is there already; returns the words of the command that builds it."""
    found = tokenlabels.download(known, splits=split, root=root, annotations_only=annotations_only)
    (command,) = found.commands
    return list(command[1:])


def test_voc(sample_root: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    write_tar(tmp_path / "voc.tar", below(sample_root / VOC, f"{VOC}/"))
    parts = ("Annotations", "ImageSets", "SegmentationClass", "SegmentationObject")
    notes = tuple(f"{VOC}/{part}/*" for part in parts)
    archive = Archive("voc.tar", NOWHERE, {"val2012": "val"}, None, "", notes, (f"{VOC}/JPEGImages/*",), {}, VOC)
    words = downloaded(card("voc", "voc", archive), tmp_path, "val2012", annotations_only=True)
    assert words == ["build", "voc", "--root", str(tmp_path / VOC), "--split", "val"]
    fine(invoke(*words, "--out", tmp_path / "labels", "--image-size", 64))
    assert not (tmp_path / VOC / "JPEGImages").exists()
    downloaded(card("voc", "voc", archive), tmp_path, "val2012")
    assert below(tmp_path / VOC / "JPEGImages") == below(sample_root / VOC / "JPEGImages")


def test_masks_of_values(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 150 + 1).save(mask, "png")
    masks = {f"ADE/annotations/validation/{name}.png": mask.getvalue() for name in "ab"}
    images = {f"ADE/images/validation/{Path(name).stem}.jpg": b"" for name in masks}
    write_zip(tmp_path / "ade.zip", masks | images | {"ADE/annotations/training/x.png": b""})
    patterns = ("ADE/annotations/{split}/*",), ("ADE/images/{split}/*",)
    archive = Archive("ade.zip", NOWHERE, {"validation": "validation"}, None, "", *patterns, {}, "ADE")
    known = card("ade20k", "semantic", archive)
    words = downloaded(known, tmp_path, "validation", annotations_only=True)
    assert not (tmp_path / "ADE/images").exists()
    assert not (tmp_path / "ADE/annotations/training").exists()
    fine(invoke(*words, "--out", tmp_path / "alone", "--image-size", 64))
    assert tokenlabels.open(tmp_path / "alone").manifest["totals"]["64x64-p16"]["validation"]["foreground"] == 2 * 16
    words = downloaded(known, tmp_path, "validation")
    assert words == ["build", "semantic", "--root", str(tmp_path / "ADE"), "--split", "validation"]
    assert len(list((tmp_path / "ADE/images/validation").iterdir())) == len(masks)


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"panoptic_val/1.png": b"1", "__MACOSX/panoptic_val/._1.png": b"x"})
    members = {"annotations/panoptic_val.json": b"{}", "annotations/panoptic_val.zip": inner.read_bytes()}
    write_zip(tmp_path / "panoptic.zip", members)
    inside = {"annotations/panoptic_{split}.zip": "panoptic_{split}/*.png"}
    patterns = ("annotations/panoptic_{split}.json", "annotations/panoptic_{split}.zip")
    archive = Archive("panoptic.zip", NOWHERE, {"val": "val"}, None, "", patterns, (), inside)
    words = downloaded(card("coco-panoptic", "semantic", archive), tmp_path, "val")
    assert words == ["build", "semantic", "--root", str(tmp_path), "--split", "val"]
    assert below(tmp_path / "annotations") == {"panoptic_val.json": b"{}", "panoptic_val/1.png": b"1"}
