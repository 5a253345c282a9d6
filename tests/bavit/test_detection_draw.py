"""Boxes over sparse pictures: where they are, what is greyed out, and names that can be read."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bavit.colours import class_colour, ink_on, luminance
from bavit.detect.draw import Box, draw_detection, found_boxes, with_boxes
from bavit.detect.pruned import Detection
from bavit.visualize import sparse

BLUE = (30, 60, 200)


def picture(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), BLUE)


def box(*corners: float, name: str = "cat", number: int = 3, score: float | None = 0.5) -> Box:
    left, top, right, bottom = corners
    return Box((left, top, right, bottom), name, score, number)


def changed(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (np.asarray(before) != np.asarray(after)).any(axis=2)
    return found


class TestSparse:
    def test_a_grid_of_any_shape_is_spread_over_the_picture(self) -> None:
        kept = np.random.default_rng(0).random((7, 11)) < 0.5
        shown = np.asarray(sparse(picture(400, 301), kept))
        as_it_was = (shown == BLUE).all(axis=2)
        rows = ((np.arange(301) + 0.5) * 7 / 301).astype(int)
        cols = ((np.arange(400) + 0.5) * 11 / 400).astype(int)
        wanted = kept[rows][:, cols]
        assert (as_it_was == wanted).mean() > 0.97, "but for pixels that an edge runs through"
        assert as_it_was[wanted].mean() > 0.97

    def test_more_patches_than_pixels_are_drawn_too(self) -> None:
        assert sparse(picture(6, 400), np.ones((40, 40), np.bool_)).size == (6, 400)


class TestBoxes:
    def test_the_frame_lies_on_the_corners(self) -> None:
        drawn = np.asarray(with_boxes(picture(), [box(100, 80, 300, 240)]))
        colour = (drawn == class_colour(3)).all(axis=2)
        assert colour[160, 100]
        assert colour[160, 299]
        assert colour[239, 200]
        assert not colour[160, 110:290].any()
        assert (drawn[:60] == BLUE).all()

    def test_factors_stretch_it(self) -> None:
        drawn = np.asarray(with_boxes(picture(800, 300), [box(100, 80, 300, 240)], (2.0, 1.0)))
        colour = (drawn == class_colour(3)).all(axis=2)
        assert colour[160, 200]
        assert colour[160, 599]

    @pytest.mark.parametrize(
        "corners",
        [(-50, -60, 1000, 900), (390, 290, 500, 500), (0, 0, 400, 300), (200, 100, 200, 100), (399, 0, 402, 1)],
    )
    def test_what_is_outside_is_cut_off_and_the_name_stays_inside(self, corners: tuple[float, ...]) -> None:
        drawn = with_boxes(picture(), [box(*corners, name="a traffic light")])
        assert drawn.size == (400, 300)
        colour = (np.asarray(drawn) == class_colour(3)).all(axis=2)
        assert colour.sum() > 800, "the name"

    @pytest.mark.parametrize(
        "corners",
        [
            (-90, 10, -5, 50),
            (500, 10, 600, 50),
            (10, 310, 90, 400),
            (math.nan, 1, 5, 5),
            (1, 1, math.inf, 9),
            (9, 9, 3, 3),
        ],
    )
    def test_a_box_that_is_nowhere_is_not_drawn(self, corners: tuple[float, ...]) -> None:
        assert not changed(picture(), with_boxes(picture(), [box(*corners)])).any()

    def test_names_of_boxes_on_one_place_do_not_cover_each_other(self) -> None:
        several = [box(100, 100, 300, 250, number=number, name=f"class {number}") for number in range(4)]
        drawn = np.asarray(with_boxes(picture(), several))
        for number in range(4):
            assert (drawn == class_colour(number)).all(axis=2).sum() > 600, number

    def test_the_surest_is_on_top(self) -> None:
        drawn = with_boxes(picture(), [box(50, 50, 350, 250, number=1), box(50, 50, 350, 250, number=2)])
        assert drawn.getpixel((349, 150)) == class_colour(1)

    def test_a_hostile_name_is_one_short_line(self) -> None:
        plain = with_boxes(picture(), [box(10, 100, 300, 250, name="x" * 28)])
        long = with_boxes(picture(), [box(10, 100, 300, 250, name="x" * 5000 + "\n\x1b[2J")])
        rows = [np.flatnonzero(changed(picture(), drawn).any(axis=1)) for drawn in (plain, long)]
        assert rows[0].min() == rows[1].min()
        assert long.size == (400, 300)


class TestColours:
    def test_the_classes_of_coco_differ(self) -> None:
        colours = [np.array(class_colour(number)) for number in range(91)]
        closest = min(np.abs(one - other).sum() for one, other in itertools.combinations(colours, 2))
        assert closest >= 12
        assert min(np.abs(one - other).sum() for one, other in itertools.pairwise(colours)) > 120

    def test_every_name_can_be_read(self) -> None:
        for number in range(91):
            one, other = sorted(luminance(colour) for colour in (class_colour(number), ink_on(class_colour(number))))
            assert (other + 0.05) / (one + 0.05) > 4.5, "WCAG 2, AA"


class TestDetection:
    @pytest.mark.parametrize("size", [(640, 480), (60, 100), (3000, 200)])
    def test_panels_have_a_readable_size(self, size: tuple[int, int]) -> None:
        kept = np.zeros((5, 9), np.bool_)
        kept[2, 3] = True
        alone = draw_detection(picture(*size), kept, [box(5, 5, 40, 50)], original=False)
        both = draw_detection(picture(*size), kept, [box(5, 5, 40, 50)])
        assert 384 <= max(alone.width, alone.height - 27) <= 960
        assert both.width > 1.9 * alone.width
        assert both.height == alone.height

    def test_only_kept_patches_are_in_colour_and_the_original_is_whole(self) -> None:
        kept = np.zeros((3, 4), np.bool_)
        kept[1, 2] = True
        blue = (np.asarray(draw_detection(picture(), kept, [])) == BLUE).all(axis=2)
        assert blue[:, :400].sum() == 400 * 300
        assert blue[:, 408:].sum() == 100 * 100

    def test_without_a_mask_all_is_shown(self) -> None:
        blue = (np.asarray(draw_detection(picture(), None, [], original=False)) == BLUE).all(axis=2)
        assert blue.sum() == 400 * 300

    def test_only_boxes_that_are_sure_enough_are_taken(self) -> None:
        found = Detection(
            boxes=torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
            scores=torch.tensor([0.9, 0.2]),
            labels=torch.tensor([1, 0]),
            keep=torch.ones(2, 2, dtype=torch.bool),
        )
        assert found_boxes(found, ["cat", "dog"], 0.5) == [Box((1, 2, 3, 4), "dog", found.scores[0].item(), 1)]
        assert [each.name for each in found_boxes(found, ["cat", "dog"], 0.0)] == ["dog", "cat"]
