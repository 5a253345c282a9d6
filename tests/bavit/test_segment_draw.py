"""Segmentations as values that masks have, and drawn with legends that say what is there."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bavit.colours import class_colour
from bavit.segment.charts import draw_categories, draw_macs
from bavit.segment.config import SegmentClass
from bavit.segment.draw import draw_segmentation, stage_colours, stage_image, stage_names, tinted, value_image
from bavit.segment.figures import ImageFigures

CLASSES = (SegmentClass(0, "background"), SegmentClass(17, "cat"), SegmentClass(200, "dog\x1b[31m"))
FOUND = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)


def stored(image: Image.Image) -> Image.Image:
    """What is read back of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()))


def test_values_are_those_of_masks() -> None:
    image = stored(value_image(FOUND, CLASSES))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), [[0, 17, 200], [200, 200, 17]])
    assert image.convert("RGB").getpixel((2, 0)) == class_colour(2)


def test_values_of_more_than_8_bits_are_stored_in_16() -> None:
    image = stored(value_image(FOUND, (*CLASSES[:2], SegmentClass(1_000, "tree"))))
    assert np.array_equal(np.asarray(image), [[0, 17, 1_000], [1_000, 1_000, 17]])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_stages_have_colours_that_get_darker(count: int) -> None:
    colours = stage_colours(count)
    assert len(colours) == count
    light = [sum(colour) for colour in colours]
    assert all(before > after for before, after in itertools.pairwise(light))
    stages = np.arange(count, dtype=np.uint8)[None]
    image = stored(stage_image(stages, count))
    assert np.array_equal(np.asarray(image), stages)
    assert image.convert("RGB").getpixel((count - 1, 0)) == colours[-1]
    assert len(stage_names(range(1, count))) == count


def test_a_tint_has_the_hue_of_the_class_and_the_light_of_the_picture() -> None:
    picture = Image.fromarray(np.array([[[10, 10, 10], [240, 240, 240]]], np.uint8))
    drawn = np.asarray(tinted(picture, np.zeros((1, 2), np.uint8), [(200, 0, 0)]), np.int64)
    assert (drawn[0, 1] > drawn[0, 0]).all()
    assert (drawn[..., 0] - drawn[..., 1] == drawn[0, 0, 0] - drawn[0, 0, 1]).all()
    ignored = np.asarray(tinted(Image.new("RGB", (32, 32), (90, 90, 90)), np.full((32, 32), 255, np.uint8), []))
    assert len(np.unique(ignored.reshape(-1, 3), axis=0)) == 2, "hatched"


def test_panels_and_legends_are_there() -> None:
    picture = Image.new("RGB", (30, 20), (90, 120, 150))
    found = np.kron(FOUND, np.ones((10, 10), np.uint8))
    stages = (found > 0).astype(np.uint8)
    plain = draw_segmentation(picture, found, stages, CLASSES, (2,))
    labelled = draw_segmentation(picture, found, stages, CLASSES, (2,), labels=np.full_like(found, 255))
    assert labelled.width > plain.width * 1.25
    pixels = {tuple(pixel) for pixel in np.asarray(plain).reshape(-1, 3).tolist()}
    for colour in (*map(class_colour, range(3)), *stage_colours(2)):
        assert colour in pixels, "in a legend, as it is"
    absent = draw_segmentation(picture, np.zeros_like(found), stages, CLASSES, (2,))
    assert class_colour(1) not in {tuple(pixel) for pixel in np.asarray(absent).reshape(-1, 3).tolist()}


def test_many_classes_take_more_lines() -> None:
    classes = [SegmentClass(number, f"a rather long name of class {number}") for number in range(150)]
    found = np.arange(150, dtype=np.uint8).reshape(10, 15)
    drawn = draw_segmentation(Image.new("RGB", (15, 10)), found, found * 0, classes, ())
    few = draw_segmentation(Image.new("RGB", (15, 10)), found % 2, found * 0, classes, ())
    assert drawn.width == few.width
    assert drawn.height > few.height + 100


@pytest.mark.parametrize("count", [0, 1, 150])
def test_charts_of_any_number_of_categories(count: int, tmp_path: Path) -> None:
    values = {f"class {number} \x1b $x_$": number / count if number % 3 else None for number in range(count)}
    with Image.open(draw_categories(values, 0.4, tmp_path / "chart.png")) as drawn:
        assert drawn.width > 300
        assert len(drawn.convert("L").getcolors() or ()) > 2


@pytest.mark.parametrize("macs", [[0], [5, 6], [7, 7], [900, 10]])
def test_histogram_of_any_images(macs: list[int], tmp_path: Path) -> None:
    images = [ImageFigures("a", "a", 1, 1, 1, 0.0, 0.0, each, 10, [1.0]) for each in macs]
    with Image.open(draw_macs(images, tmp_path / "macs.png")) as drawn:
        assert drawn.width == 800
