"""Rows and batches: every row once an epoch whatever the ranks, labels on their pixels, faults named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenlabels
from bavit.augment import Augmentation
from bavit.data import BatchOrder, ShardImages, collate, epoch_order, loader
from bavit.pictures import PictureError, PictureReader, open_picture
from bavit.rows import read_rows
from tokenlabels.errors import NotABuildError, ParameterError, TokenLabelsError
from tokenlabels.model_input import model_input
from tokenlabels.reader import Build


@pytest.fixture(scope="module")
def embedded(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Files as they are in the shards, several shards and row groups."""
    out = tmp_path_factory.mktemp("embedded") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True, shard_rows=5)


def test_rows_are_those_of_the_shards(embedded: Build) -> None:
    rows = read_rows(embedded, splits=["train"], scores=True)
    table = embedded.table(split="train").to_pylist()
    assert list(rows.image_ids) == [row["image_id"] for row in table]
    assert rows.labels.reshape(len(rows), -1).tolist() == [row["labels"] for row in table]
    assert rows.scores is not None
    assert rows.scores.reshape(len(rows), -1).tolist() == [row["scores"] for row in table]
    for index, row in enumerate(table):
        part = slice(rows.offsets[index], rows.offsets[index + 1])
        assert rows.boxes[part].tolist() == row["objects"]["bbox"]
        for name in ("category", "area", "iscrowd", "difficult", "patches"):
            assert rows.objects[name][part].tolist() == row["objects"][name]
    stored = sum(len(row["image"]["bytes"]) for row in table)
    assert stored <= sum(rows.picture_bytes) < 1.01 * stored  # with what Parquet writes around them


def test_kept_rows_are_those_rows(embedded: Build) -> None:
    rows = read_rows(embedded, scores=True)
    kept = np.arange(len(rows)) % 3 == 1
    some = rows.keep(kept)
    for new, old in enumerate(np.flatnonzero(kept).tolist()):
        assert some.image_ids[new] == rows.image_ids[old]
        assert np.array_equal(some.labels[new], rows.labels[old])
        assert np.array_equal(some.records(new).boxes, rows.records(old).boxes)
        assert PictureReader(some, None).open(new) == PictureReader(rows, None).open(old)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_embedded_pictures_and_files_give_the_same_model_input(sample_root: Path, tmp_path: Path, resize: str) -> None:
    options: dict[str, Any] = {"root": sample_root, "image_size": 96, "resize": resize, "split": "val"}
    inside = read_rows(tokenlabels.build("coco", out=tmp_path / "a", embed_images=True, **options), scores=False)
    outside = read_rows(tokenlabels.build("coco", out=tmp_path / "b", **options), scores=False)
    for row in range(len(inside)):
        one, other = ShardImages(inside, None)[0, row], ShardImages(outside, sample_root)[0, row]
        with Image.open(sample_root / "val" / inside.file_names[row]) as picture:
            wanted = np.asarray(model_input(picture, inside.grid))
        assert np.array_equal(one.pixels, wanted)
        assert np.array_equal(other.pixels, wanted)
        assert np.array_equal(one.labels, inside.labels[row])


def test_flips_turn_pixels_labels_and_scores(embedded: Build) -> None:
    rows = read_rows(embedded, scores=True)
    plain, flipped = ShardImages(rows, None), ShardImages(rows, None, Augmentation(True, 1.0, 0.0), seed=4)
    turned = 0
    for row in range(len(rows)):
        one, other = plain[0, row], flipped[0, row]
        assert one.scores is not None
        assert other.scores is not None
        if np.array_equal(one.pixels, other.pixels):
            assert np.array_equal(one.labels, other.labels)
        else:
            turned += 1
            assert np.array_equal(one.pixels[:, ::-1], other.pixels)
            assert np.array_equal(one.labels[:, ::-1], other.labels)
            assert np.array_equal(one.scores[:, ::-1], other.scores)
    assert 0 < turned < len(rows)


def test_a_sample_depends_on_seed_epoch_and_row_only(embedded: Build) -> None:
    rows = read_rows(embedded, scores=False)
    change = Augmentation(True, 0.3, 0.3)
    one, other = ShardImages(rows, None, change, seed=1), ShardImages(rows, None, change, seed=1)
    for row in reversed(range(len(rows))):
        other[3, row]
    for row in range(len(rows)):
        assert np.array_equal(one[3, row].pixels, other[3, row].pixels)
    assert not np.array_equal(one[3, 0].pixels, one[4, 0].pixels)
    assert not np.array_equal(one[3, 0].pixels, ShardImages(rows, None, change, seed=2)[3, 0].pixels)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_see_the_batches_of_one(embedded: Build, world: int) -> None:
    rows = read_rows(embedded, scores=False)
    alone = BatchOrder(rows, 4, seed=5)
    parts = [BatchOrder(rows, 4, 5, world, rank) for rank in range(world)]
    seen = []
    for epoch in range(2):
        for order in (alone, *parts):
            order.epoch = epoch
        for whole, *shares in zip(alone, *parts, strict=True):
            assert sorted(whole) == sorted(key for share in shares for key in share)
            assert len({len(share) for share in shares}) == 1
            seen += whole
    assert len(seen) == len(set(seen)) == 2 * (len(rows) // 4) * 4


def test_validation_sees_every_row_once(embedded: Build) -> None:
    rows = read_rows(embedded, scores=False)
    found = [key for rank in range(3) for batch in BatchOrder(rows, 7, None, 3, rank) for key in batch]
    assert sorted(row for _, row in found) == list(range(len(rows)))


def test_an_epoch_may_begin_in_the_middle(embedded: Build) -> None:
    rows = read_rows(embedded, scores=False)
    whole, rest = BatchOrder(rows, 3, 1), BatchOrder(rows, 3, 1)
    rest.first = 2
    assert list(whole)[2:] == list(rest)
    assert len(rest) == len(list(rest))


def test_fewer_rows_than_a_batch_fill_it(embedded: Build) -> None:
    rows = read_rows(embedded, scores=False).keep(np.arange(16) < 3)
    (batch,) = BatchOrder(rows, 8, seed=0)
    assert len(batch) == 8
    assert {row for _, row in batch} == {0, 1, 2}


def test_epochs_mix_row_groups_within_a_window(embedded: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of windows no larger than a row group, groups stay together; each epoch in another order."""
    rows = read_rows(embedded, scores=False)
    assert len(rows.groups) >= 3
    monkeypatch.setattr("bavit.data.WINDOW_BYTES", 1)
    orders = [epoch_order(rows, 0, epoch) for epoch in range(6)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(rows)))
        groups = rows.group[order]
        assert np.count_nonzero(np.diff(groups)) == len(rows.groups) - 1
    assert len({tuple(order.tolist()) for order in orders}) == 6
    monkeypatch.undo()
    assert np.count_nonzero(np.diff(rows.group[epoch_order(rows, 0, 0)])) > len(rows.groups)


def test_a_reader_holds_a_bounded_number_of_row_groups(embedded: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows(embedded, scores=False)
    monkeypatch.setattr("bavit.pictures.CACHED_BYTES", 1)
    reader = PictureReader(rows, None)
    for row in (*range(len(rows)), 0):
        assert reader.open(row).size == (rows.widths[row], rows.heights[row])
        assert len(reader._embedded._cache) == 1


def test_workers_give_the_batches_of_this_process(embedded: Build) -> None:
    rows = read_rows(embedded, scores=True)
    dataset = ShardImages(rows, None, Augmentation(True, 0.3, 0.3), seed=9)
    here, there = (list(loader(dataset, BatchOrder(rows, 4, 9), workers)) for workers in (0, 2))
    assert len(here) == len(there) == 4
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.rows, other.rows)
        assert one.pixels.shape == (4, 3, 96, 96)
        assert one.labels.shape == (4, 36)


def damaged_folder(root: Path, folder: Path, change: Any) -> str:
    """A copy of the pictures of `val` with the first changed; its name."""
    shutil.copytree(root / "val", folder / "val")
    first = sorted((folder / "val").iterdir())[0]
    change(first)
    return first.name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda path: path.unlink(), "no such image file"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot be read as an image"),
        (lambda path: Image.new("RGB", (3, 3)).save(path), "annotated as"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named_and_counts_nothing(
    sample_root: Path, tmp_path: Path, change: Any, named: str
) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", image_size=96, split="val")
    name = damaged_folder(sample_root, tmp_path / "pictures", change)
    rows = read_rows(build, scores=False)
    samples = [ShardImages(rows, tmp_path / "pictures")[0, row] for row in range(len(rows))]
    batch = collate(samples)
    (row,) = batch.faults
    assert rows.file_names[row] == name
    assert name in batch.faults[row]
    assert named in batch.faults[row]
    assert (batch.labels[row] == 255).all()
    assert (batch.pixels[row] == 0).all()
    assert (np.delete(batch.labels.numpy(), row, 0) != 255).all()


def test_names_that_leave_the_folder_are_not_opened(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", image_size=96, split="val")
    rows = read_rows(build, scores=False)
    rows.file_names[0] = "../../secret.jpg"  # type: ignore[index]
    sample = ShardImages(rows, sample_root)[0, 0]
    assert sample.fault is not None
    assert "not opened" in sample.fault


def test_no_pictures_anywhere(sample_root: Path, tmp_path: Path) -> None:
    rows = read_rows(tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", split="val"), scores=False)
    with pytest.raises(ParameterError, match="--images"):
        ShardImages(rows, None)
    with pytest.raises(TokenLabelsError, match="no such folder"):
        ShardImages(rows, tmp_path / "nowhere")


def test_grids_without_a_constant_shape_are_refused(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", split="val", image_size="native")
    with pytest.raises(ParameterError, match="differs from image to image"):
        read_rows(build, scores=False)


def test_scores_that_are_not_there(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", split="val", scores=False)
    with pytest.raises(ParameterError, match="--no-scores"):
        read_rows(build, scores=True)
    assert read_rows(build, scores=False).scores is None


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_shard_is_named(embedded: Build, tmp_path: Path, keep: int) -> None:
    shutil.copytree(embedded.folder, tmp_path / "copy")
    build = tokenlabels.open(tmp_path / "copy")
    path = build.files()[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NotABuildError, match=path.name):
        read_rows(build, scores=False)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".gif"])
def test_every_usual_format_is_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    picture = open_picture(path, "x", (40, 30))
    assert picture.mode == "RGB"
    assert abs(picture.getpixel((20, 15))[0] - 200) < 8  # type: ignore[index]


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(PictureError, match="cannot be read as an image"):
        open_picture(path, "x")


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    found = np.asarray(open_picture(tmp_path / "deep.png", "x"))
    assert np.abs(found[:, :, 0].astype(int) - ramp // 257).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PictureError, match="32 bits"):
        open_picture(tmp_path / "float.tif", "x")
