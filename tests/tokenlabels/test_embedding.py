"""Embedded pictures and masks: the files themselves, or exactly what the labels' model input shows."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.model_input import PAD_COLOUR, encode_input_mask, model_input, model_input_mask
from tokenlabels.shards import ROW_GROUP_IMAGE_BYTES, row_group_spans

Invoke: TypeAlias = Callable[..., Result]

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]

MASK_RULE = "pixel-ratio"


@pytest.fixture
def voc(sample_root: Path, tmp_path: Path) -> Path:
    """The first images of the generated sample as VOC, the third without a mask."""
    root = shutil.copytree(sample_root / "VOCdevkit" / "VOC2012", tmp_path / "voc")
    ids = sorted(path.stem for path in (root / "Annotations").iterdir())[:6]
    for folder in ("Main", "Segmentation"):
        (root / "ImageSets" / folder / "trainval.txt").write_text("\n".join(ids))
    file = root / "Annotations" / f"{ids[2]}.xml"
    file.write_text(file.read_text().replace("<segmented>1", "<segmented>0"))
    (root / "SegmentationClass" / f"{ids[2]}.png").unlink()
    (root / "SegmentationObject" / f"{ids[2]}.png").unlink()
    return root


def build(root: Path, **options: Any) -> tokenlabels.Build:
    name = f"out{sum(1 for _ in root.parent.glob('out*'))}"
    chosen: dict[str, Any] = {"out": root.parent / name} | options
    return tokenlabels.build("voc", root=root, **chosen)


def rows_of(built: tokenlabels.Build, grid: str | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = built.table(grid).to_pylist()
    return rows


def opened(embedded: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(embedded["bytes"]))


def hashes(built: tokenlabels.Build) -> list[str]:
    return [shard.sha256 for shard in built.shards]


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["overlap", MASK_RULE])
def test_files_are_embedded_byte_for_byte(rule: str, voc: Path) -> None:
    """On every grid; an image without a mask has null."""
    built = build(voc, rule=rule, image_size=[64, 96], embed_images=True, embed_masks=True)
    for grid in built.grids:
        rows = rows_of(built, grid)
        assert len(rows) == (6 if rule == "overlap" else 5)
        for row in rows:
            assert row["image"]["bytes"] == (voc / "JPEGImages" / row["file_name"]).read_bytes()
            assert row["image"]["path"] == row["file_name"]
            file = voc / "SegmentationClass" / f"{row['image_id']}.png"
            assert (row["mask"] is None) == (not file.exists())
            if row["mask"]:
                assert row["mask"] == {"bytes": file.read_bytes(), "path": f"SegmentationClass/{file.name}"}


def test_masks_go_without_images(voc: Path) -> None:
    built = build(voc, embed_masks=True)
    assert "image" not in rows_of(built)[0]
    assert sum(row["mask"] is None for row in rows_of(built)) == 1


def test_row_groups_hold_about_a_hundred_megabytes_of_pictures() -> None:
    sizes = np.full(25, 30_000_000, np.int64)
    assert ROW_GROUP_IMAGE_BYTES == 100 << 20
    assert row_group_spans(np.ones(25, np.int64), sizes) == [(first, min(first + 3, 25)) for first in range(0, 25, 3)]
    assert row_group_spans(np.ones(2, np.int64), sizes[:2] * 100) == [(0, 1), (1, 2)], "one image at least"


def test_row_groups_are_cut_by_pictures_and_masks(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabels.shards.ROW_GROUP_IMAGE_BYTES", 60_000)
    for options in ({"embed_images": True}, {"embed_masks": True}, {"embed_images": True, "embed_masks": True}):
        built = build(voc, image_size=64, **options)
        held = rows_of(built)
        bytes_of = [sum(len(row[name]["bytes"]) for name in ("image", "mask") if row.get(name)) for row in held]
        assert len(held) == 6
        with pq.ParquetFile(built.files()[0]) as file:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        starts = np.cumsum([0, *groups])
        for start, stop in pairwise(starts.tolist()):
            assert stop - start == 1 or sum(bytes_of[start:stop]) <= 60_000
        assert (len(groups) > 1) == (sum(bytes_of) > 60_000)


# --- the model input --------------------------------------------------------------------------------------------------


def test_squashed_pictures_are_those_of_pillow(voc: Path) -> None:
    built = build(voc, embed_size=384, jpeg_quality=95)
    for row in rows_of(built):
        with Image.open(voc / "JPEGImages" / row["file_name"]) as picture:
            resized = picture.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        resized.save(sink, "JPEG", quality=95)
        assert row["image"]["bytes"] == sink.getvalue()
        assert (row["width"], row["height"]) != (384, 384)


def test_a_squashed_picture_may_have_another_size_than_the_grids(voc: Path) -> None:
    built = build(voc, image_size=[64, "96x64"], embed_size="40x80", embed_masks=True)
    for grid in built.grids:
        for row in rows_of(built, grid):
            assert opened(row["image"]).size == (80, 40)
            assert row["mask"] is None or opened(row["mask"]).size == (80, 40)
    assert [row["image"] for row in rows_of(built, "64x64-p16")] == [
        row["image"] for row in rows_of(built, "96x64-p16")
    ]


COLOURS = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 10)]], np.uint8)


def quadrants(width: int, height: int) -> Image.Image:
    """Four colours that meet in the middle."""
    pixels = np.zeros((height, width, 3), np.uint8)
    rows, cols = np.arange(height) * 2 >= height, np.arange(width) * 2 >= width
    pixels[:] = COLOURS[rows.astype(int)][:, cols.astype(int)]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (640, 426), (33, 101), (64, 64), (7, 5)])
@pytest.mark.parametrize(
    "grid",
    [
        PatchGrid.parse(16, 96, "letterbox"),
        PatchGrid.parse("8x16", (64, 160), "letterbox"),
        PatchGrid.parse(16, 96, "squash"),
        PatchGrid.parse(16, 64, "shortest-edge", 200),
    ],
    ids=lambda grid: f"{grid.resize}-{grid.image_size}",
)
def test_a_patch_shows_what_its_label_is_for(grid: PatchGrid, size: tuple[int, int]) -> None:
    """Every pixel of the model input, mapped back by the edges of the grid, has the colour of the source there."""
    width, height = size
    y_edges, x_edges = grid.edges(width, height)
    shown = np.asarray(model_input(quadrants(width, height), grid), np.float64)
    rows, cols = len(y_edges) - 1, len(x_edges) - 1
    assert shown.shape == (rows * grid.patch[0], cols * grid.patch[1], 3)
    y = np.interp(np.arange(shown.shape[0]) + 0.5, np.arange(rows + 1) * grid.patch[0], y_edges)
    x = np.interp(np.arange(shown.shape[1]) + 0.5, np.arange(cols + 1) * grid.patch[1], x_edges)
    step_y, step_x = abs(y[1] - y[0]), abs(x[1] - x[0])
    margin_y, margin_x = 2 * max(step_y, 1) + 1e-9, 2 * max(step_x, 1) + 1e-9  # where bicubic mixes colours
    inside_y, inside_x = (y > 0) & (y < height), (x > 0) & (x < width)
    middle_y, middle_x = -(-height // 2), -(-width // 2)
    clear_y = np.min([np.abs(y - edge) for edge in (0, middle_y, height)], axis=0) > margin_y
    clear_x = np.min([np.abs(x - edge) for edge in (0, middle_x, width)], axis=0) > margin_x
    expected = COLOURS[(y > middle_y).astype(int)][:, (x > middle_x).astype(int)].astype(np.float64)
    expected[~(inside_y[:, None] & inside_x[None, :])] = PAD_COLOUR
    clear = clear_y[:, None] & clear_x[None, :]
    assert clear.any() or min(size) < 10
    np.testing.assert_allclose(shown[clear], expected[clear], atol=3)


@pytest.mark.parametrize("size", [(90, 60), (61, 97), (640, 426), (500, 333)])
@pytest.mark.parametrize(
    "grid",
    [
        PatchGrid.parse(16, 96, "letterbox"),
        PatchGrid.parse(16, (64, 160), "letterbox"),
        PatchGrid.parse(16, 96, "squash"),
        PatchGrid.parse(16, 64, "shortest-edge"),
    ],
    ids=lambda grid: f"{grid.resize}-{grid.image_size}",
)
def test_masks_are_resized_to_the_nearest_pixel(grid: PatchGrid, size: tuple[int, int]) -> None:
    """The value of each pixel is that of the source pixel under its middle, the fill value in padding."""
    width, height = size
    values = np.random.default_rng(0).integers(0, 200, (height, width)).astype(np.uint8)
    mask = Image.fromarray(values)
    mask.putpalette(bytes(range(256)) * 3)
    resized = model_input_mask(mask, grid, None, 255)
    assert resized.mode == "P"
    assert resized.getpalette() == mask.getpalette()
    y_edges, x_edges = grid.edges(width, height)
    found = np.asarray(resized)
    y = np.interp(np.arange(found.shape[0]) + 0.5, np.arange(len(y_edges)) * grid.patch[0], y_edges)
    x = np.interp(np.arange(found.shape[1]) + 0.5, np.arange(len(x_edges)) * grid.patch[1], x_edges)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    expected = values[np.clip(y, 0, height - 1).astype(int)][:, np.clip(x, 0, width - 1).astype(int)]
    expected = np.where(inside, expected, 255)
    sure = (np.abs(y - y.round()) > 1e-6)[:, None] & (np.abs(x - x.round()) > 1e-6)[None, :]
    np.testing.assert_array_equal(found[sure], expected[sure])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_values_of_few_bits_stay_what_they_are(kind: str, bits: int, tmp_path: Path) -> None:
    """Also beside padding of value 255, which needs eight."""
    values = np.random.default_rng(0).integers(0, 1 << bits, (30, 60)).astype(np.uint8)
    if kind == "palette":
        mask = Image.fromarray(values)
        mask.putpalette(bytes(range(3 << bits)))
        mask.save(tmp_path / "mask.png", bits=bits)
    elif bits == 1:
        Image.fromarray(values > 0).save(tmp_path / "mask.png")
    else:
        write_grey(tmp_path / "mask.png", values, bits)
    grid = PatchGrid.parse(10, 60, "letterbox")
    data = encode_input_mask(tmp_path / "mask.png", (60, 30), lambda m: model_input_mask(m, grid, None, 255))
    with Image.open(io.BytesIO(data)) as found:
        pixels = np.asarray(found)
    np.testing.assert_array_equal(pixels[15:45], values)
    assert (pixels[:15] == 255).all()
    assert (pixels[45:] == 255).all()


def write_grey(path: Path, values: NDArray[np.uint8], bits: int) -> None:
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    planes = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(planes.reshape(len(values), -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("rule", ["overlap", MASK_RULE])
@pytest.mark.parametrize(
    "options",
    [
        {"embed_size": 96, "image_size": 96},
        {"embed_size": 96, "image_size": 96, "resize": "letterbox"},
        {"embed_size": 64, "image_size": 64, "resize": "shortest-edge"},
    ],
    ids=lambda options: options.get("resize", "squash"),
)
def test_pictures_and_masks_of_a_build_are_the_model_input(options: dict[str, Any], rule: str, voc: Path) -> None:
    """Padding of masks is void, whatever the rule."""
    built = build(voc, rule=rule, embed_masks=True, **options)
    for row in rows_of(built):
        height, width = built.grid.input_size(row["width"], row["height"])
        assert opened(row["image"]).size == (width, height)
        assert opened(row["image"]).mode == "RGB"
        assert (row["grid_rows"] * 16, row["grid_cols"] * 16) == (height, width)
        if row["mask"]:
            with Image.open(voc / "SegmentationClass" / f"{row['image_id']}.png") as mask:
                expected = model_input_mask(mask, built.grid, None, 255)
                palette = mask.getpalette()
            found = opened(row["mask"])
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
            assert found.getpalette() == palette


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"embed_images": True}, {"embed_size": 384, "resize": "letterbox"}])
def test_bytes_do_not_depend_on_the_run_or_the_workers(options: dict[str, Any], voc: Path) -> None:
    runs = [build(voc, rule=MASK_RULE, embed_masks=True, shard_rows=2, workers=n, **options) for n in (1, 1, 2)]
    assert hashes(runs[0]) == hashes(runs[1]) == hashes(runs[2])
    assert len(hashes(runs[0])) == 3


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"embed_size": 384, "image_size": "native"}, "native does not"),
        ({"embed_size": "native"}, "size in pixels"),
        ({"embed_size": 0}, "out of range"),
        ({"embed_size": "big"}, "no size"),
        ({"embed_size": 384, "image_size": 400, "resize": "letterbox"}, "it is 400"),
        ({"embed_size": 384, "image_size": "400x320", "resize": "letterbox"}, "it is 400x320"),
        ({"embed_size": 384, "image_size": [384, 400], "resize": "shortest-edge"}, "it is 400"),
        ({"jpeg_quality": 80}, "--embed-size"),
        ({"jpeg_quality": 80, "embed_images": True}, "--embed-size"),
        ({"jpeg_quality": 101, "embed_size": 384}, "1 to 100"),
    ],
)
def test_sizes_that_make_no_sense(options: dict[str, Any], says: str, voc: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=says):
        build(voc, **options)
    assert not list(tmp_path.glob("out*"))


def test_coco_has_no_masks_to_embed(sample_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--embed-masks"):
        tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", embed_masks=True)


# --- bad files --------------------------------------------------------------------------------------------------------


def first(voc: Path, folder: str) -> Path:
    return sorted((voc / folder).iterdir())[0]


def cut(share: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return change


def filled_up(share: float) -> Callable[[Path], None]:
    """Cut short and filled up with zeros, as an interrupted download may be."""

    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)] + bytes(len(data) - int(len(data) * share)))

    return change


def other_size(path: Path) -> None:
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(path)


BAD_IMAGES = [
    pytest.param(lambda path: path.write_bytes(b""), "VOC042", id="empty"),
    pytest.param(cut(0.05), "VOC042", id="cut early"),
    pytest.param(cut(0.5), "VOC042", id="cut in half"),
    pytest.param(cut(0.99), "VOC042", id="cut near the end"),
    pytest.param(filled_up(0.4), "VOC042", id="zeros from the middle on"),
    pytest.param(filled_up(0.98), "VOC042", id="zeros at the end"),
    pytest.param(lambda path: path.unlink(), "VOC041", id="missing"),
    pytest.param(lambda path: path.write_text("picture"), "VOC042", id="text"),
    pytest.param(other_size, "VOC040", id="turned"),
]


def saved_as(kind: str, change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        with Image.open(path) as picture:
            picture.save(path, kind)
        change(path)

    return both


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("options", [{"embed_images": True}, {"embed_size": 384}], ids=["files", "resized"])
@pytest.mark.parametrize(("change", "code"), BAD_IMAGES)
def test_bad_pictures_are_found_before_anything_is_written(
    change: Callable[[Path], Any], code: str, options: dict[str, Any], kind: str, voc: Path, tmp_path: Path
) -> None:
    saved_as(kind, change)(first(voc, "JPEGImages"))
    with pytest.raises(FindingsError, match=f"{code} .*image 000000000001"):
        build(voc, **options)
    assert not list(tmp_path.glob("out*"))
    skipped = build(voc, on_error="skip", image_size=64, embed_images=True)
    assert len(rows_of(skipped)) == 5
    assert skipped.manifest["findings"] == {code: 1}


WHOLE = [
    pytest.param("JPEG", b"garbage" * 200, id="JPEG and garbage"),
    pytest.param("JPEG", bytes(4096), id="JPEG and zeros"),
    pytest.param("JPEG", b"\r\n", id="JPEG and a line end"),
    pytest.param("PNG", b"garbage" * 200, id="PNG and garbage"),
    pytest.param("PNG", bytes(4096), id="PNG and zeros"),
]


@pytest.mark.parametrize(("kind", "extra"), WHOLE)
def test_what_follows_a_whole_picture_does_no_harm(kind: str, extra: bytes, voc: Path) -> None:
    path = first(voc, "JPEGImages")
    saved_as(kind, lambda file: file.write_bytes(file.read_bytes() + extra))(path)
    assert rows_of(build(voc, embed_images=True))[0]["image"]["bytes"] == path.read_bytes()
    assert build(voc, embed_size=384).manifest["findings"] == {}


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"restart_marker_blocks": 1},
        {"exif": b"Exif\0\0" + b"thumbnail \xff\xd8 \xff\xda\0\4 \xff\xd9"},
        {"comment": b"\xff\xd9"},
        {"quality": 5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_kind_of_jpeg_is_whole_until_it_is_cut(options: dict[str, Any], voc: Path) -> None:
    """The end of a thumbnail or of a comment is not that of the picture."""
    path = first(voc, "JPEGImages")
    with Image.open(path) as picture:
        picture.save(path, "JPEG", **options)
    data = path.read_bytes()
    path.write_bytes(data + bytes(1000))
    assert build(voc, embed_images=True).manifest["findings"] == {}
    path.write_bytes(data[: len(data) * 3 // 4] + bytes(1000))
    with pytest.raises(FindingsError, match="VOC042"):
        build(voc, embed_images=True)


BAD_MASKS = [
    pytest.param(lambda path: path.write_bytes(b""), "VOC056", id="empty"),
    pytest.param(cut(0.5), "VOC056", id="cut in half"),
    pytest.param(cut(0.99), "VOC056", id="cut near the end"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), "VOC056", id="a folder"),
    pytest.param(lambda path: Image.new("P", (9, 9)).save(path), "VOC058", id="another size"),
]


@pytest.mark.parametrize("rule", ["overlap", MASK_RULE])
@pytest.mark.parametrize("options", [{}, {"embed_size": 384}], ids=["files", "resized"])
@pytest.mark.parametrize(("change", "code"), BAD_MASKS)
def test_bad_masks_are_found_before_anything_is_written(
    change: Callable[[Path], Any], code: str, options: dict[str, Any], rule: str, voc: Path, tmp_path: Path
) -> None:
    """Class masks are embedded, also where object masks are scored, or none."""
    change(first(voc, "SegmentationClass"))
    with pytest.raises(FindingsError, match=f"{code} SegmentationClass/000000000001.png: the mask of image"):
        build(voc, rule=rule, embed_masks=True, **options)
    assert not list(tmp_path.glob("out*"))
    skipped = build(voc, rule=rule, embed_masks=True, on_error="skip", **options)
    assert [row["image_id"][-1] for row in rows_of(skipped)] == list("23456" if rule == "overlap" else "2456")
    assert skipped.manifest["findings"][code] == 1


def test_without_the_image_folder_nothing_can_be_embedded(voc: Path, tmp_path: Path) -> None:
    shutil.rmtree(voc / "JPEGImages")
    with pytest.raises(TokenLabelsError, match="no such folder, but --embed-images"):
        build(voc, embed_images=True)
    assert not list(tmp_path.glob("out*"))


def test_exchanged_masks_are_noticed(voc: Path, tmp_path: Path) -> None:
    """A rerun with the same parameters is not the same build."""
    build(voc, out=tmp_path / "same", embed_masks=True)
    path = first(voc, "SegmentationClass")
    with Image.open(path) as mask:
        mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    with pytest.raises(TokenLabelsError, match="other parameters"):
        build(voc, out=tmp_path / "same", embed_masks=True)
    again = build(voc, out=tmp_path / "same", embed_masks=True, overwrite=True)
    assert rows_of(again)[0]["mask"]["bytes"] == path.read_bytes()


@pytest.mark.parametrize("options", [{"embed_images": True}, {"embed_size": 96}])
def test_exchanged_pictures_are_noticed(options: dict[str, Any], voc: Path, tmp_path: Path) -> None:
    build(voc, out=tmp_path / "same", **options)
    path = first(voc, "JPEGImages")
    with Image.open(path) as picture:
        Image.new("RGB", picture.size, "red").save(path)
    with pytest.raises(TokenLabelsError, match="image_listing_sha256"):
        build(voc, out=tmp_path / "same", **options)


@pytest.mark.parametrize(("orientation", "counted"), [(1, 0), (3, 1), (6, 1), (9, 0)])
def test_pictures_that_readers_turn_are_told_of(orientation: int, counted: int, voc: Path) -> None:
    """Labels do not follow EXIF data; a resized picture has none."""
    path = first(voc, "JPEGImages")
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as picture:
        picture.copy().save(path, exif=exif)
    assert build(voc, embed_images=True).manifest["findings"].get("VOC044", 0) == counted
    resized = build(voc, embed_size=96)
    assert "VOC044" not in resized.manifest["findings"]
    assert not opened(rows_of(resized)[0]["image"]).getexif()


def test_threads_leave_the_filters_of_warnings_as_they_were(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to begin ends last, and would restore what the first had set."""
    pauses = iter([0.1, 0.5])
    monkeypatch.setattr("tokenlabels.threads.cores", lambda: 2)
    monkeypatch.setattr("tokenlabels.model_input._check_size", lambda *_: time.sleep(next(pauses, 0)))
    before = list(warnings.filters)
    build(voc, embed_size=96)
    assert list(warnings.filters) == before


# --- what reads it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"embed_images": True}, {"embed_size": 96, "image_size": 96}])
def test_relabelled_builds_keep_their_pictures(options: dict[str, Any], voc: Path, tmp_path: Path) -> None:
    options = {"rule": MASK_RULE, "void": "ignore", "embed_masks": True} | options
    relabelled = tokenlabels.relabel(build(voc, **options), 0.4, tmp_path / "again")
    direct = build(voc, tau=0.4, **options)
    assert hashes(relabelled) == hashes(direct)
    assert relabelled.manifest["parameters"] == direct.manifest["parameters"]


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 96, "embed_size": 96},
        {"image_size": 96, "embed_size": "48x192"},
        {"image_size": 96, "embed_size": 96, "resize": "letterbox"},
        {"image_size": 96, "embed_size": 96, "resize": "shortest-edge"},
    ],
    ids=["squash", "squash to another size", "letterbox", "shortest-edge"],
)
def test_overlays_are_drawn_on_the_model_input(
    options: dict[str, Any], voc: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """No folder of images is needed; patches are where the labels say, whatever the shape of the picture."""
    built = build(voc, patch=24, tau=0.9, **options)
    shutil.rmtree(voc / "JPEGImages")
    for row in rows_of(built):
        result = invoke("show", built.path, row["image_id"], "-o", tmp_path / "x.png")
        assert result.exit_code == 0, result.stderr
        with Image.open(tmp_path / "x.png") as drawn:
            pixels = np.asarray(drawn)
        width, height = opened(row["image"]).size
        assert pixels.shape[1] * height == pixels.shape[0] * width
        labels = np.array(row["labels"]).reshape(row["grid_rows"], row["grid_cols"])
        y = np.linspace(0, pixels.shape[0], labels.shape[0] + 1).round().astype(int)
        x = np.linspace(0, pixels.shape[1], labels.shape[1] + 1).round().astype(int)
        for (i, j), label in np.ndenumerate(labels):
            grey = np.ptp(pixels[y[i] : y[i + 1], x[j] : x[j + 1]].astype(int), axis=2) <= 2
            assert (grey.mean() > 0.5) == (label == 0), "background is grey, boxes and lines aside"


def test_boxes_are_drawn_where_they_are_in_the_model_input(tmp_path: Path) -> None:
    """A box over the left half of a tall picture, letterboxed: its right side is in the middle."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    Image.new("RGB", (100, 200), (128, 128, 128)).save(tmp_path / "voc" / "JPEGImages" / "x.jpg")
    sides = "<xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>200</ymax>"
    box = f"<object><name>cat</name><bndbox>{sides}</bndbox></object>"
    size = "<size><width>100</width><height>200</height></size>"
    (tmp_path / "voc" / "Annotations" / "x.xml").write_text(f"<annotation>{size}{box}</annotation>")
    options: dict[str, Any] = {"image_size": 96, "embed_size": 96, "resize": "letterbox", "tau": 1.0, "rule": "jaccard"}
    built = build(tmp_path / "voc", **options)
    tokenlabels.show(built, "x", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as drawn:
        pixels = np.asarray(drawn).astype(int)
    row = pixels[pixels.shape[0] * 3 // 8 + 12]
    coloured = np.flatnonzero(np.ptp(row, axis=1) > 60) / pixels.shape[1]
    assert {round(place, 1) for place in coloured.tolist()} == {0.2, 0.3, 0.5}, "a quarter, and the middle"
    assert coloured.min() > 0.24
    assert coloured.max() < 0.51


LOAD = """
import json, sys
from datasets import Image, load_dataset
rows = load_dataset(sys.argv[1])["trainval"]
assert rows.features["image"] == Image() and rows.features["mask"] == Image(), rows.features
print(json.dumps([[row["image"].size, None if row["mask"] is None else row["mask"].size] for row in rows]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"embed_size": 384}], ids=["files", "resized"])
def test_datasets_opens_pictures_and_masks(options: dict[str, Any], voc: Path, tmp_path: Path) -> None:
    built = build(voc, embed_images=True, embed_masks=True, **options)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", LOAD, str(built.path)]
    answer = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    for row, (picture, mask) in zip(rows_of(built), json.loads(answer.stdout), strict=True):
        expected = [384, 384] if options else [row["width"], row["height"]]
        assert picture == expected
        assert mask == (None if row["mask"] is None else expected)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_sliver_is_letterboxed_without_its_padding_being_made(size: tuple[int, int]) -> None:
    """60,000 pixels; padded before it is scaled it would be a picture of 3,600,000,000."""
    found = model_input(Image.new("RGB", size, (255, 0, 0)), PatchGrid.parse(16, 64, "letterbox"))
    assert found.size == (64, 64)
    red = np.asarray(found)[:, :, 0] == 255
    assert red.sum() == 64
    assert red.any(axis=0 if size[0] == 1 else 1).sum() == 1
