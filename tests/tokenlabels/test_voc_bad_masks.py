"""VOC masks that cannot be used: found, named, and never half-built."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import shares
from numpy.typing import NDArray
from PIL import Image
from voc_data import (
    BOX_RULE,
    CAT,
    CLOSE,
    MASK_RULE,
    PHOTOS,
    Change,
    Invoke,
    Photo,
    build,
    files_below,
    findings_of,
    rows_of,
    save_mask,
    write_voc,
)

import tokenlabels
from tokenlabels.grid import PatchGrid

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]


# --- bad masks --------------------------------------------------------------------------------------------------------


def png_bytes(values: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, "PNG")
    return sink.getvalue()


def cut(share: float) -> Change:
    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return change


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0x55
    path.write_bytes(bytes(data))


def bomb(path: Path) -> None:
    """A header of 60,000 x 60,000 pixels with its checksum."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 3, 0, 0, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])


def as_mode(mode: str) -> Change:
    def change(path: Path) -> None:
        with Image.open(path) as picture:
            converted = picture.convert(mode) if mode != "I;16" else Image.new("I;16", picture.size, 1)
        converted.save(path)

    return change


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


MASK_FAULTS = [
    pytest.param(lambda path: path.write_bytes(b""), "VOC056", id="empty"),
    pytest.param(lambda path: path.write_text("mask"), "VOC056", id="text"),
    pytest.param(cut(0.02), "VOC056", id="cut in the header"),
    pytest.param(cut(0.5), "VOC056", id="cut in half"),
    pytest.param(cut(0.97), "VOC056", id="cut near the end"),
    pytest.param(damaged, "VOC056", id="one byte changed"),
    pytest.param(bomb, "VOC056", id="decompression bomb"),
    pytest.param(as_folder, "VOC056", id="a folder"),
    pytest.param(as_mode("RGB"), "VOC057", id="saved as colours"),
    pytest.param(as_mode("RGBA"), "VOC057", id="saved with transparency"),
    pytest.param(as_mode("I;16"), "VOC057", id="16 bits"),
    pytest.param(lambda path: path.write_bytes(png_bytes(np.zeros((61, 40), np.uint8))), "VOC058", id="another size"),
    pytest.param(lambda path: path.write_bytes(png_bytes(np.full((40, 61), 99, np.uint8))), "VOC059", id="a value"),
]


@pytest.mark.parametrize(("change", "code"), MASK_FAULTS)
def test_masks_that_cannot_be_scored(change: Change, code: str, voc: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Nothing is written; `skip` builds the rest, a box rule everything; the same command works on the mended file."""
    shutil.rmtree(voc / "SegmentationObject")
    mask, out = voc / "SegmentationClass" / "b.png", tmp_path / "labels"
    whole = mask.read_bytes()
    change(mask)
    before = files_below(tmp_path)
    words = ("build", "voc", "--root", voc, "--rule", MASK_RULE, "--out", out, "--json")
    for more in ((), ("--dry-run",)):
        result = invoke(*words, *more)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: {code} SegmentationClass/b.png: the mask of image b ")
        assert len(result.stderr.splitlines()) == 1
        assert files_below(tmp_path) == before
    skipped = build(voc, rule=MASK_RULE, on_error="skip")
    assert list(rows_of(skipped)) == ["a c", "d"]
    assert findings_of(skipped) == {code: 1}
    assert len(rows_of(build(voc))) == 3
    checked = {rule: invoke("check", "voc", "--root", voc, "--rule", rule, "--json") for rule in (BOX_RULE, MASK_RULE)}
    for rule, answer in checked.items():
        (finding,) = json.loads(answer.stdout)["findings"]
        assert (finding["code"], finding["severity"]) == (code, "error" if rule == MASK_RULE else "warning")
        assert answer.exit_code == (rule == MASK_RULE)
    if mask.is_dir():
        mask.rmdir()
    mask.write_bytes(whole)
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    assert len(rows_of(tokenlabels.open(out))) == 3


def test_check_lists_every_bad_mask(voc: Path, invoke: Invoke) -> None:
    shutil.rmtree(voc / "SegmentationObject")
    cut(0.5)(voc / "SegmentationClass" / "b.png")
    as_mode("RGB")(voc / "SegmentationClass" / "a c.png")
    save_mask(voc / "SegmentationClass" / "d.png", np.full((48, 48), 77, np.uint8))
    result = invoke("check", "voc", "--root", voc, "--rule", MASK_RULE)
    assert result.exit_code == 1
    assert "0 images: 3 errors, 0 warnings under pixel-ratio." in result.stdout
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("error ")] == [
        "VOC056",
        "VOC057",
        "VOC059",
    ]


def test_few_bits_are_read_as_values(tmp_path: Path) -> None:
    """A grey mask of two classes saved in one bit: its 1 is the first class, not void."""
    root = write_voc(tmp_path / "voc", PHOTOS[:1])
    shutil.rmtree(root / "SegmentationObject")
    (root / "labelmap.txt").write_text("background\nthing\n")
    (root / "Annotations" / "b.xml").write_text(Photo("b", 61, 40).xml())
    pixels = PHOTOS[0].object_mask() == 1
    Image.fromarray(pixels).save(root / "SegmentationClass" / "b.png", bits=1)
    built = build(root, rule=MASK_RULE, void="ignore")
    expected = shares(pixels, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)
    assert not any(rows_of(built)["b"]["ignored"])


@pytest.mark.slow
@pytest.mark.parametrize("there", ["no folder", "an empty folder", "an older build"])
def test_a_fault_that_a_worker_finds_in_the_middle_leaves_nothing(there: str, tmp_path: Path, invoke: Invoke) -> None:
    photos = [Photo(f"{number:02d}", 61, 40, (CAT,)) for number in range(12)]
    root, out = write_voc(tmp_path / "voc", photos), tmp_path / "labels"
    shutil.rmtree(root / "SegmentationObject")
    words: tuple[object, ...] = ("build", "voc", "--root", root, "--rule", MASK_RULE, "--out", out)
    words = (*words, "--workers", 2, "--shard-rows", 1)
    if there == "an empty folder":
        out.mkdir()
    if there == "an older build":
        assert invoke(*words, "--limit", 3).exit_code == 0
        words = (*words, "--overwrite")
    values = photos[0].class_mask()
    values[0, 0] = 77
    save_mask(root / "SegmentationClass" / "07.png", values)
    result = invoke(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: VOC059 SegmentationClass/07.png: the mask of image 07 holds the value 77")
    assert len(result.stderr.splitlines()) == 1
    assert out.exists() == (there != "no folder")
    assert not out.exists() or files_below(out) == []
    save_mask(root / "SegmentationClass" / "07.png", photos[0].class_mask())
    again = invoke(*(word for word in words if word != "--overwrite"))
    assert again.exit_code == 0, again.stderr
    serial = build(root, rule=MASK_RULE, patch=16, image_size=384, shard_rows=1)
    assert [shard.sha256 for shard in tokenlabels.open(out).shards] == [shard.sha256 for shard in serial.shards]
