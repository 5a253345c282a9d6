"""Training crops: pictures and masks agree to the pixel, what is random is so by seed, epoch and row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_builds import Values, noise, opened, semantic

from bavit.data import BatchOrder, epoch_order, loader
from bavit.rows import read_rows
from bavit.segment.classes import class_table
from bavit.segment.config import BackboneShape, SegmentClass, SegmenterConfig
from bavit.segment.masks import with_masks
from bavit.segment.model import Segmenter
from bavit.segment.samples import CropView, SegmentImages, SegmentSample, collate_segments
from tokenlabels.errors import ParameterError
from tokenlabels.reader import Build

GREY = 128
COLOURS = noise((256, 3), 127, seed=5)
"""A colour for each class, none of them grey."""


def coded(masks: dict[str, Values]) -> dict[str, Values]:
    """Pictures whose colours say what the masks do."""
    return {name: COLOURS[values] for name, values in masks.items()}


def blobs(shape: tuple[int, int], values: int, cell: int = 1, seed: int = 0) -> Values:
    """Random squares."""
    coarse = noise((-(-shape[0] // cell), -(-shape[1] // cell)), values, seed)
    return np.kron(coarse, np.ones((cell, cell), np.uint8))[: shape[0], : shape[1]]


def dataset(build: Build, seed: int = 0, images: Path | None = None, **view: Any) -> SegmentImages:
    rows, table, _ = opened(build)
    return SegmentImages(rows, images, table, CropView(**view), seed)


def equal(one: SegmentSample, other: SegmentSample) -> bool:
    return np.array_equal(one.pixels, other.pixels) and np.array_equal(one.target, other.target)


# --- pictures and masks agree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(30, 30), (30, 47), (61, 30), (30, 64)])
def test_pixels_show_the_colour_of_their_class(tmp_path: Path, crop: tuple[int, int]) -> None:
    """At scale 1 nothing is resampled: a wrong row, column or flip anywhere would show, padding too."""
    masks = {"wide": noise((30, 47), 200), "tall": noise((61, 30), 200, 1)}
    found = dataset(semantic(tmp_path, masks, pictures=coded(masks)), crop=crop, scale=(1.0, 1.0))
    for row, name in enumerate(found.rows.image_ids):
        assert min(crop) == min(masks[name].shape)
        for epoch in range(6):
            sample = found[epoch, row]
            assert sample.target.shape == crop
            inside = sample.target != 255
            np.testing.assert_array_equal(sample.pixels[inside], COLOURS[sample.target[inside]])
            assert (sample.pixels[~inside] == GREY).all()
            assert inside.sum() == min(crop[0], masks[name].shape[0]) * min(crop[1], masks[name].shape[1])


def windows(whole: NDArray[Any], part: NDArray[Any]) -> list[tuple[int, int]]:
    """(top, left) wherever `part` is in `whole`."""
    seen = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    return [(int(y), int(x)) for y, x in np.argwhere((seen == part).all((2, 3)))]


@pytest.mark.parametrize("times", [0.6, 1.0, 1.7])
def test_a_crop_is_a_window_of_the_scaled_picture(tmp_path: Path, times: float) -> None:
    """Against the whole picture and mask, scaled at once; smaller ones lie somewhere in the crop."""
    masks = {"a": blobs((45, 71), 250, 2), "b": blobs((53, 41), 250, 2, 1)}  # odd sides: no centre is between pixels
    pictures = {name: noise((*values.shape, 3), seed=3) for name, values in masks.items()}
    found = dataset(semantic(tmp_path, masks, pictures=pictures), crop=(32, 40), scale=(times, times))
    flips = set()
    for row, name in enumerate(found.rows.image_ids):
        height, width = masks[name].shape
        scale = 32 * times / min(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        target = np.array(Image.fromarray(masks[name]).resize(size, Image.Resampling.NEAREST))
        pixels = np.array(Image.fromarray(pictures[name]).resize(size, Image.Resampling.BILINEAR)).astype(int)
        for epoch in range(4):
            sample = found[epoch, row]
            inside = sample.target != 255
            y, x = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            part = np.s_[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
            assert inside[part].all()
            assert inside[part].shape == (min(32, size[1]), min(40, size[0]))
            places = {
                flipped: windows(target, sample.target[part][:, :: -1 if flipped else 1]) for flipped in (False, True)
            }
            ((flipped, (top, left)),) = ((turn, place) for turn, here in places.items() for place in here)
            flips.add(flipped)
            shown = sample.pixels[part][:, :: -1 if flipped else 1].astype(int)
            wanted = pixels[top : top + shown.shape[0], left : left + shown.shape[1]]
            assert np.abs(shown - wanted).max() <= 2  # both passes round
    assert flips == {False, True}


def test_a_jpeg_that_is_shrunk_while_it_is_decoded_lies_under_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red rises along one side, and so do classes; of odd sizes, decoded at a half to an eighth of them."""
    shape, steps = (411, 605), 250
    ramps = [(np.indices(shape)[axis] + 0.5) / shape[axis] for axis in (0, 1)]
    build = semantic(tmp_path, {name: (ramp * steps).astype(np.uint8) for name, ramp in zip("yx", ramps, strict=True)})
    (tmp_path / "files").mkdir()
    for name, ramp in zip("yx", ramps, strict=True):
        picture = Image.fromarray((255 * np.stack([ramp, ramp, ramp], 2)).round().astype(np.uint8))
        picture.save(tmp_path / "files" / f"{name}.png", "JPEG", quality=95)
    found = dataset(build, images=tmp_path / "files", crop=(64, 96), scale=(0.5, 2.5), category_share=1.0)
    away: dict[int, list[NDArray[np.float64]]] = {303: [], 152: [], 76: []}
    decoded, read = list[int](), found.reader.open

    def noted(*words: Any) -> Image.Image:
        picture = read(*words)
        decoded.append(picture.width)
        return picture

    monkeypatch.setattr(found.reader, "open", noted)
    for row in range(2):
        for epoch in range(40):
            sample = found[epoch, row]
            inside = sample.target != 255
            shown = sample.pixels[inside].mean(1) / 255 * steps
            away[decoded[-1]].append(shown - (sample.target[inside] + 0.5))
    for several in away.values():
        assert abs(np.concatenate(several).mean()) < 0.2  # steps of two source pixels


def test_letterboxed_inputs_and_their_masks(tmp_path: Path) -> None:
    """Embedded at the size of the model input: the stored picture is cropped like any other."""
    masks = {"a": blobs((40, 64), 30, 8)}
    build = semantic(
        tmp_path, masks, pictures=coded(masks), resize="letterbox", embed_size=64, image_size=64, jpeg_quality=100
    )
    sample = dataset(build, crop=(64, 64), scale=(1.0, 1.0), flip=False)[0, 0]
    assert (sample.target == 255).all(1).sum() == 24
    inside = sample.target != 255
    wrong = np.abs(sample.pixels[inside].astype(int) - COLOURS[sample.target[inside]]).mean()
    assert wrong < 12  # of a JPEG


# --- what is random ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Six images of several sizes in several row groups."""
    masks = {f"{number}": blobs((30 + number, 48 - number), 6, 3, number) for number in range(6)}
    return semantic(tmp_path_factory.mktemp("small"), masks, shard_rows=2)


def test_samples_depend_on_seed_epoch_and_row_alone(small: Build) -> None:
    view: dict[str, Any] = {"crop": (24, 24), "colour": 0.3}
    one, again, other = dataset(small, 3, **view), dataset(small, 3, **view), dataset(small, 4, **view)
    for row in (5, 0, 3):
        assert equal(one[2, row], again[2, row])
        assert not equal(one[2, row], one[3, row])
        assert not equal(one[2, row], other[2, row])


def test_workers_give_the_batches_of_this_process(small: Build) -> None:
    found = dataset(small, crop=(24, 32), colour=0.3)
    here, there = (
        list(loader(found, BatchOrder(found.rows, 3, 9), workers, collate=collate_segments)) for workers in (0, 2)
    )
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets, other.targets)
        assert one.pixels.shape == (3, 3, 24, 32)
        assert one.targets.shape == (3, 24, 32)
        assert one.used == tuple(one.rows.tolist())


def test_epochs_stay_within_windows_of_row_groups_where_only_masks_are_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every mask of a large data set would be read with its whole row group."""
    build = semantic(
        tmp_path, {str(number): noise((20, 20), 5) for number in range(8)}, embed_images=False, shard_rows=2
    )
    rows = with_masks(read_rows(build, scores=False), lambda _note: None)
    assert not rows.has_pictures
    monkeypatch.setattr("bavit.data.WINDOW_BYTES", 1)
    order = epoch_order(rows, 0, 0)
    assert sorted(order.tolist()) == list(range(8))
    assert np.count_nonzero(np.diff(rows.group[order])) == 3
    monkeypatch.setattr("bavit.pictures.CACHED_BYTES", 1)
    found = SegmentImages(rows, tmp_path / "images", class_table(build, rows), CropView((16, 16)), 0)
    for row in order.tolist():
        assert found[0, row].fault is None
        assert len(found.masks._embedded._cache) == 1


def test_colours_change_pictures_and_neither_masks_nor_padding(small: Build) -> None:
    plain, coloured = (
        dataset(small, crop=(40, 60), scale=(0.7, 0.7)),
        dataset(small, crop=(40, 60), scale=(0.7, 0.7), colour=0.5),
    )
    for row in range(len(plain)):
        # the flip is drawn after the colours: either may be mirrored
        one, other = plain[0, row], coloured[0, row]
        assert not np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.target, other.target) or np.array_equal(one.target, other.target[:, ::-1])
        assert (other.pixels[other.target == 255] == GREY).all()


def test_crops_of_mostly_one_class_are_drawn_again(tmp_path: Path) -> None:
    """Three quarters of the picture are one class: most crops are, and few that were drawn again."""
    mask = np.ones((64, 256), np.uint8)
    mask[:, 192:] = blobs((64, 64), 20, 8)
    build = semantic(tmp_path, {"a": mask})

    def mostly(share: float) -> int:
        found = dataset(build, crop=(64, 64), scale=(1.0, 1.0), category_share=share)
        largest = [np.bincount(found[epoch, 0].target.ravel(), minlength=256)[:255].max() for epoch in range(60)]
        return int((np.array(largest) > 0.75 * 64 * 64).sum())

    assert mostly(1.0) > 30
    assert mostly(0.75) <= 6


def test_nothing_but_ignored_pixels(tmp_path: Path) -> None:
    build = semantic(tmp_path, {"void": np.full((20, 30), 255, np.uint8), "a": noise((20, 30), 3)})
    found = dataset(build, crop=(16, 16))
    sample = found[0, list(found.rows.image_ids).index("void")]
    assert sample.fault is None
    assert (sample.target == 255).all()


def test_extreme_shapes(tmp_path: Path) -> None:
    masks = {"line": noise((1, 3000), 4), "point": noise((1, 1), 4), "column": noise((900, 2), 4)}
    found = dataset(semantic(tmp_path, masks, image_size=16), crop=(48, 32), colour=0.2)
    for row in range(3):
        for epoch in range(4):
            sample = found[epoch, row]
            assert sample.pixels.shape == (48, 32, 3)
            assert (sample.target != 255).any()


# --- the view of validation -------------------------------------------------------------------------------------------


def test_validation_stretches_as_the_model_does(small: Build) -> None:
    found = dataset(small, crop=(32, 48), train=False)
    config = SegmenterConfig(
        (SegmentClass(0, "a"), SegmentClass(1, "b")),
        BackboneShape("vit_tiny_patch16_224", dim=12, depth=2, heads=3),
        exit_after=(1,),
        image_size=(32, 48),
    )
    model = Segmenter.from_config(config)
    for row in range(len(found)):
        assert equal(found[0, row], found[7, row])
        batch = collate_segments([found[0, row]])
        picture = found.reader.open(row)
        torch.testing.assert_close(model.normalise(batch.pixels), model.preprocess(picture))
        mask = Image.fromarray(found.masks.open(row)).resize((48, 32), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(batch.targets[0].numpy(), np.array(mask))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crop": (0, 5)}, "crop of 0 x 5"),
        ({"scale": (2.0, 0.5)}, "--scale-range 2.0 0.5"),
        ({"scale": (0.0, 0.5)}, "--scale-range 0.0 0.5"),
        ({"scale": (0.5, float("inf"))}, "--scale-range 0.5 inf"),
        ({"colour": 1.5}, "--colour 1.5"),
        ({"category_share": 0.0}, "category_share 0.0"),
    ],
)
def test_views_that_are_none(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        CropView(**{"crop": (8, 8)} | options)
