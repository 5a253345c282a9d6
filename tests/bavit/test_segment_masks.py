"""What becomes of bad masks, of builds without any, and of masks that were resized with their pictures."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from segment_builds import EMBEDDED, masks_of, noise, opened, semantic

import tokenlabels
from bavit.pictures import PictureError, PictureReader
from bavit.rows import read_rows
from bavit.segment.classes import class_table
from bavit.segment.config import SegmentClass
from bavit.segment.masks import MaskReader, paired_pictures, with_masks
from bavit.segment.samples import CropView, SegmentImages, collate_segments
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.reader import Build


def encoded(values: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values, **options).save(sink, kind)
    return sink.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims a size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    fine = encoded(np.zeros((4, 4), np.uint8))
    return fine[:8] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + fine[33:]


def with_mask(build: Build, folder: Path, content: bytes | None) -> Build:
    """A copy of a build whose first row has another mask."""
    shutil.copytree(build.folder, folder)
    (path,) = folder.rglob("*.parquet")
    table = pq.read_table(path)
    masks = table.column("mask").to_pylist()
    masks[0] = None if content is None else {"bytes": content, "path": "a.png"}
    place = table.schema.get_field_index("mask")
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(masks, table.schema.field(place).type)), path
    )
    return tokenlabels.open(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Two images of 30 x 20, values 0 to 4 and 255."""
    return semantic(tmp_path_factory.mktemp("small"), masks_of([0, 1, 2, 3, 4, 255]))


@pytest.fixture(scope="module")
def small_panoptic(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """One image of 30 x 20, segments 7 and 65 793 of the categories 300 and 301, and void."""
    root = tmp_path_factory.mktemp("small_panoptic")
    ids = np.array([0, 7, 65_793])[noise((20, 30), 3)]
    (root / "annotations" / "panoptic_mine").mkdir(parents=True)
    (root / "mine").mkdir()
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
    (root / "annotations" / "panoptic_mine" / "a.png").write_bytes(encoded(colours))
    (root / "mine" / "a.png").write_bytes(encoded(noise((20, 30, 3))))
    box = {"bbox": [0, 0, 30, 20], "area": 100, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "categories": [{"id": 300, "name": "ground", "isthing": 0}, {"id": 301, "name": "thing", "isthing": 1}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": 7, "category_id": 301} | box, {"id": 65_793, "category_id": 300} | box],
            }
        ],
    }
    (root / "annotations" / "panoptic_mine.json").write_text(json.dumps(document))
    return tokenlabels.build("semantic", root=root, out=root / "out", **EMBEDDED)


BAD: list[tuple[str, bytes | None, str]] = [
    ("a row without a mask", None, "has no mask"),
    ("an empty one", b"", "has no mask"),
    ("no image", b"no image at all", "is empty, cut short, or no image"),
    ("cut short", encoded(noise((20, 30), 4))[:-20], "is cut short or damaged"),
    ("another size", encoded(noise((30, 20), 4)), "is 20 x 30 pixels, the image 30 x 20"),
    ("a value that is no class", encoded(noise((20, 30), 9)), "holds the value"),
    ("16 bits", encoded(noise((20, 30), 4).astype(np.uint16)), "has 16 bits a pixel"),
    ("colours", encoded(noise((20, 30, 3))), "holds colours (mode RGB)"),
    ("a JPEG", encoded(noise((20, 30), 4), "JPEG"), "is a JPEG"),
    ("a bomb", claiming(60_000, 60_000), "claims an absurd number of pixels"),
]


@pytest.mark.parametrize(("_why", "content", "problem"), BAD, ids=[why for why, _, _ in BAD])
def test_a_bad_mask_is_named_and_its_picture_left_out(
    small: Build, tmp_path: Path, _why: str, content: bytes | None, problem: str
) -> None:
    build = with_mask(small, tmp_path / "bad", content)
    rows = read_rows(build, scores=False)
    table = class_table(build, rows)
    with pytest.raises(PictureError) as fault:
        MaskReader(rows, table).open(0)
    assert problem in str(fault.value)
    assert f"{next((tmp_path / 'bad').rglob('*.parquet'))}: image {rows.image_ids[0]}" in str(fault.value)
    assert str(fault.value).endswith(".")
    dataset = SegmentImages(rows, None, table, CropView((16, 24)), 0)
    batch = collate_segments([dataset[0, 0], dataset[0, 1]])
    assert batch.faults == {0: str(fault.value)}
    assert (batch.rows.tolist(), batch.used, tuple(batch.pixels.shape)) == ([0, 1], (1,), (1, 3, 16, 24))
    nothing = collate_segments([dataset[0, 0]])
    assert len(nothing.pixels) == len(nothing.targets) == len(nothing.used) == 0


def test_modes_that_hold_values(small: Build, tmp_path: Path) -> None:
    """Palettes and few bits are read as stored; a mask of nothing but ignored pixels works."""
    rows, table, reader = opened(small)
    wanted = reader.open(0)
    palette = Image.fromarray(np.where(wanted == 255, 0, wanted).astype(np.uint8))
    palette.putpalette(noise((768,)).tobytes())
    sink = io.BytesIO()
    palette.save(sink, "PNG", bits=4)
    for number, (content, values) in enumerate(
        [
            (sink.getvalue(), np.where(wanted == 255, 0, wanted)),
            (encoded(wanted % 2 == 1), wanted % 2),
            (encoded(np.full((20, 30), 255, np.uint8)), np.full((20, 30), 255)),
        ]
    ):
        changed = with_mask(small, tmp_path / str(number), content)
        rows, table, reader = opened(changed)
        np.testing.assert_array_equal(reader.open(0), values)
        dataset = SegmentImages(rows, None, table, CropView((16, 24)), 0)
        assert dataset[0, 0].fault is None


@pytest.mark.parametrize("change", [lambda table: table.slice(1), lambda table: table.drop_columns(["mask"])])
def test_a_shard_that_is_replaced_under_way(
    small: Build, tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    shutil.copytree(small.folder, tmp_path / "out")
    rows, table, _ = opened(tokenlabels.open(tmp_path / "out"))
    (path,) = (tmp_path / "out").rglob("*.parquet")
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(PictureError, match="has changed since its rows were read"):
        MaskReader(rows, table).open(1)
    path.unlink()
    with pytest.raises(PictureError, match="is missing or damaged"):
        MaskReader(rows, table).open(1)


PANOPTIC_BAD: list[tuple[str, bytes, str]] = [
    ("a colour without a segment", encoded(np.full((20, 30, 3), (8, 0, 0), np.uint8)), "holds the segment 8, which"),
    ("values instead of colours", encoded(noise((20, 30), 2)), "has mode L"),
    ("another size", encoded(np.zeros((20, 31, 3), np.uint8)), "is 31 x 20 pixels, the image 30 x 20"),
]


@pytest.mark.parametrize(("_why", "content", "problem"), PANOPTIC_BAD, ids=[why for why, _, _ in PANOPTIC_BAD])
def test_a_bad_panoptic_mask(small_panoptic: Build, tmp_path: Path, _why: str, content: bytes, problem: str) -> None:
    _, _, reader = opened(with_mask(small_panoptic, tmp_path / "bad", content))
    with pytest.raises(PictureError) as fault:
        reader.open(0)
    assert problem in str(fault.value)


def test_panoptic_categories_whose_ids_need_more_than_8_bits(small_panoptic: Build) -> None:
    _, table, reader = opened(small_panoptic)
    assert table.classes == (SegmentClass(0, "ground"), SegmentClass(1, "thing"))
    np.testing.assert_array_equal(reader.open(0), np.array([255, 1, 0])[noise((20, 30), 3)])


def test_builds_without_masks(small: Build, sample_root: Path, tmp_path: Path) -> None:
    plain = tokenlabels.build(
        "semantic",
        masks=small.path.parent / "masks",
        images=small.path.parent / "images",
        out=tmp_path / "a",
        image_size=32,
    )
    boxes = tokenlabels.build("coco", root=sample_root, out=tmp_path / "b", image_size=32)
    for build, named in ((plain, "build with --embed-masks"), (boxes, "COCO instances, which have no masks")):
        rows = read_rows(build, scores=False)
        for use in (lambda: class_table(build, rows), lambda: with_masks(rows, print)):  # noqa: B023  used at once
            with pytest.raises(TokenLabelsError, match=named):
                use()


# --- masks that were resized with their pictures ----------------------------------------------------------------------


def test_squashed_masks_have_the_size_of_the_stored_picture(tmp_path: Path) -> None:
    masks = masks_of([0, 1, 2, 255])
    build = semantic(tmp_path, masks, embed_size="24x48")
    rows, table, reader = opened(build)
    shrunk = Image.fromarray(masks["a"]).resize((48, 24), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(reader.open(0), np.array(shrunk))
    assert reader.size(0) == PictureReader(rows, None).open(0).size == (48, 24)
    assert SegmentImages(rows, None, table, CropView((16, 16)), 0)[0, 0].fault is None
    with pytest.raises(ParameterError, match="leave --images out"):
        paired_pictures(rows, tmp_path / "images")


@pytest.mark.parametrize("ignore", [255, []])
def test_padding_of_letterboxed_masks_counts_for_nothing(tmp_path: Path, ignore: Any) -> None:
    """Also where no value is ignored, so that padding is stored as 0."""
    masks = {"wide": np.ones((13, 30), np.uint8), "tall": np.ones((30, 17), np.uint8)}
    options: dict[str, Any] = {"resize": "letterbox", "embed_size": 32, "ignore": ignore}
    rows, _, reader = opened(semantic(tmp_path, masks, **options))
    for row, image_id in enumerate(rows.image_ids):
        found = reader.open(row)
        height, width = masks[image_id].shape
        scale = 32 / max(height, width)
        y, x = (np.abs(np.arange(32) + 0.5 - 16) < side * scale / 2 for side in (height, width))
        np.testing.assert_array_equal(found, np.where(np.outer(y, x), 1, 255))
