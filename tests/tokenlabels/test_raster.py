"""Polygons and run lengths become the pixels that pycocotools makes of them, one for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tokenlabels.raster import add_ring, add_rle, count_crossings, count_rle_runs, merge_runs
from tokenlabels.sources.mask_check import decode_counts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode

Ring = Sequence[float]
Image = NDArray[np.bool_]

image_sides = st.integers(1, 80)

GUARD = 8
"""Entries behind the room of an array that must stay as they are."""


class Canvas:
    """An image whose masks are united by the kernels, in arrays with just the room that the kernels ask for."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._columns, self._runs = np.empty(0, np.int32), np.empty(0, np.int64)

    def ring(self, ring: Ring) -> None:
        """Add one polygon ring, kept between other numbers in its pool."""
        xy = np.array([7.0, *ring, 3.0], np.float64)
        crossings = count_crossings(xy, 1, len(xy) - 1, self.width)
        assert crossings % 2 == 0
        columns, runs = self._room(crossings // 2)
        used = add_ring(xy, 1, len(xy) - 1, self.width, self.height, columns, runs, len(self._runs))
        self._keep(columns, runs, used)

    def run_lengths(self, counts: Sequence[int]) -> None:
        """Add one run-length mask, kept between other counts in its pool."""
        pool = np.array([5, *counts, 9], np.int64)
        columns, runs = self._room(count_rle_runs(pool, 1, len(pool) - 1, self.height))
        used = add_rle(pool, 1, len(pool) - 1, self.height, columns, runs, len(self._runs))
        self._keep(columns, runs, used)

    def _room(self, more: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Arrays with room for so many runs more, and behind it values that must not change."""
        guard = np.full(more + GUARD, -7)
        return np.concatenate([self._columns, guard.astype(np.int32)]), np.concatenate([self._runs, guard])

    def _keep(self, columns: NDArray[np.int32], runs: NDArray[np.int64], used: int) -> None:
        assert (columns[-GUARD:] == -7).all(), "written beyond the room asked for"
        assert (runs[-GUARD:] == -7).all(), "written beyond the room asked for"
        assert len(self._runs) <= used <= len(runs) - GUARD
        self._columns, self._runs = columns[:used], runs[:used]

    def pixels(self) -> Image:
        """bool (height, width): the union of what was added."""
        columns, runs = self._columns.copy(), self._runs.copy()
        used = merge_runs(columns, runs, len(runs), self.width)
        image = np.zeros((self.height, self.width), np.bool_)
        before = (-1, -1)
        for column, run in zip(columns[:used].tolist(), runs[:used].tolist(), strict=True):
            top, bottom = run >> 32, run & 0xFFFFFFFF
            assert (column, top) > before, "runs must be sorted, disjoint and not adjacent"
            assert 0 <= top < bottom <= self.height
            image[top:bottom, column] = True
            before = (column, bottom)
        return image


def ours(rings: Sequence[Ring], width: int, height: int) -> Image:
    """Pixels of a polygon of several rings by the kernels."""
    canvas = Canvas(width, height)
    for ring in rings:
        canvas.ring(ring)
    return canvas.pixels()


def theirs(rings: Sequence[Ring], width: int, height: int) -> Image:
    """Pixels of a polygon of several rings by pycocotools."""
    rles = coco_mask.frPyObjects([[float(value) for value in ring] for ring in rings], height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(rles)), np.bool_)


def column_major_counts(image: Image) -> list[int]:
    """Run lengths of an image down its columns, background first."""
    flat = np.concatenate([[False], image.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts: list[int] = np.diff(np.concatenate([[0], changes, [image.size]])).tolist()
    return counts


# --- polygons ---------------------------------------------------------------------------------------------------------

whole = st.integers(-40, 120).map(float)
halves = st.integers(-80, 240).map(lambda n: n / 2)
fifths = st.integers(-200, 600).map(lambda n: n / 5)
tenths = st.integers(-400, 1200).map(lambda n: n / 10)
"""Odd tenths are ties between two lattice points."""
hundredths = st.integers(-4000, 12_000).map(lambda n: n / 100)
nudged = st.tuples(tenths, st.sampled_from([-1e-9, -1e-15, 1e-15, 1e-9])).map(sum)
anything = st.floats(-50, 130, allow_nan=False)
far = st.floats(-3000, 3000, allow_nan=False)
kinds = st.sampled_from([whole, halves, fifths, tenths, hundredths, nudged, anything, far])


@st.composite
def rings(draw: st.DrawFn, most: int = 12) -> list[float]:
    """A closed ring of any shape; now and then with doubled points, so with edges of no length."""
    coordinate = st.one_of(draw(kinds), draw(kinds))
    points = draw(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=most))
    if draw(st.booleans()):
        points = [points[index] for index in draw(st.lists(st.integers(0, len(points) - 1), min_size=3, max_size=most))]
    return [value for point in points for value in point]


@given(polygon=st.lists(rings(), min_size=1, max_size=4), width=image_sides, height=image_sides)
@example(polygon=[[0.1, 0.1, 4.3, 0.3, 4.5, 4.7]], width=5, height=5)
@example(polygon=[[0, 0, 5, 0, 5, 5, 0, 5]], width=5, height=5)
@example(polygon=[[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]], width=1, height=1)
@example(polygon=[[-100, -100, 200, -100, 200, 200, -100, 200]], width=80, height=3)
@example(polygon=[[0, 0, 10, 10, 10, 0, 0, 10]], width=10, height=10)
@settings(deadline=None, max_examples=800)
def test_a_polygon_has_the_pixels_of_pycocotools(polygon: list[list[float]], width: int, height: int) -> None:
    np.testing.assert_array_equal(ours(polygon, width, height), theirs(polygon, width, height))


@pytest.mark.parametrize("unit", [0, 1, 2, 5, 10, 100], ids=lambda unit: f"1/{unit} px" if unit else "any")
@given(seed=st.integers(0, 2**32 - 1), width=image_sides, height=image_sides)
@settings(deadline=None, max_examples=60)
def test_a_long_polygon_has_the_pixels_of_pycocotools(unit: int, seed: int, width: int, height: int) -> None:
    random = np.random.default_rng(seed)
    polygon = []
    for _ in range(random.integers(1, 5)):
        centre = random.uniform(-20, 100, 2)
        points = centre + random.normal(0, random.choice([2.0, 10.0, 60.0]), (random.integers(3, 201), 2))
        if random.random() < 0.5:  # an outline of short edges, as annotators draw them
            points = centre + np.cumsum(random.normal(0, 1.5, points.shape), axis=0)
        polygon.append((np.round(points * unit) / unit if unit else points).ravel().tolist())
    np.testing.assert_array_equal(ours(polygon, width, height), theirs(polygon, width, height))


def test_coordinates_at_the_limit_of_what_is_taken_for_real_are_cut_to_the_image() -> None:
    big = 1e7
    assert ours([[-big, -big, big, -big, big, big, -big, big]], 60, 40).all()
    expected = theirs([[-100, -100, 100, 100, -100, 100]], 60, 40)
    np.testing.assert_array_equal(ours([[-big, -big, big, big, -big, big]], 60, 40), expected)


# --- run lengths ------------------------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn) -> Image:
    """A random image: noise of any density, or large patches."""
    height, width = draw(image_sides), draw(image_sides)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return random.random((height, width)) < draw(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]))
    image = np.zeros((height, width), np.bool_)
    for _ in range(draw(st.integers(0, 4))):
        top, left = random.integers(0, height), random.integers(0, width)
        image[top : top + random.integers(1, height + 1), left : left + random.integers(1, width + 1)] ^= True
    return image


@given(image=images())
@settings(deadline=None, max_examples=300)
def test_run_lengths_compressed_or_not_come_back_as_the_image(image: Image) -> None:
    height, width = image.shape
    counts = column_major_counts(image)
    compressed = coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))["counts"]
    assert decode_counts(np.frombuffer(compressed, np.uint8)).tolist() == counts
    again = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    assert decode_counts(np.frombuffer(again, np.uint8)).tolist() == counts
    canvas = Canvas(width, height)
    canvas.run_lengths(counts)
    np.testing.assert_array_equal(canvas.pixels(), image)


@given(counts=st.lists(st.integers(0, 2**26) | st.integers(0, 40), min_size=1, max_size=25))
@settings(deadline=None, max_examples=300)
def test_compressed_counts_of_any_size_are_decoded(counts: list[int]) -> None:
    total = sum(counts)
    compressed = coco_mask.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"]
    assert decode_counts(np.frombuffer(compressed, np.uint8)).tolist() == counts


@given(counts=st.lists(st.integers(0, 6), max_size=20), width=st.integers(1, 12))
@settings(deadline=None, max_examples=200)
def test_runs_of_no_length_and_runs_over_several_columns(counts: list[int], width: int) -> None:
    height = max(-(-sum(counts) // width), 1)
    counts = [*counts, width * height - sum(counts)]
    flat = np.concatenate([np.full(n, index % 2, np.bool_) for index, n in enumerate(counts)])
    canvas = Canvas(width, height)
    canvas.run_lengths(counts)
    np.testing.assert_array_equal(canvas.pixels(), flat.reshape((height, width), order="F"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"/", "below the first character"),
        (b"p", "beyond the last character"),
        (b"5 5", "a blank"),
        (b"o", "the number goes on, the text does not"),
        (b"12o", "the last number goes on, the text does not"),
        (b"ooooooo0", "a number of more than 35 bits"),
        (b"\xff", "no ASCII"),
        (b"\0", "a zero byte"),
    ],
)
@pytest.mark.parametrize("after", [b"", b"0", b"5", b"o"])
def test_malformed_compressed_counts_give_nothing(text: bytes, why: str, after: bytes) -> None:
    """Whatever bytes lie behind the text."""
    assert len(decode_counts(np.frombuffer(text + after, np.uint8)[: len(text)])) == 0, why


@given(text=st.binary(max_size=30) | st.text("0123PQno", max_size=30).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_no_text_makes_more_counts_than_characters(text: bytes) -> None:
    counts = decode_counts(np.frombuffer(text, np.uint8))
    ends = [byte for byte in text if not (byte - 48) & 32]
    assert len(counts) in ({len(ends)} if all(48 <= byte <= 111 for byte in text) else {0}) | {0}


# --- several masks ----------------------------------------------------------------------------------------------------


@given(polygon=st.lists(rings(6), min_size=1, max_size=3), image=images(), rle_first=st.booleans())
@settings(deadline=None, max_examples=200)
def test_rings_and_run_lengths_are_united(polygon: list[list[float]], image: Image, rle_first: bool) -> None:
    height, width = image.shape
    canvas = Canvas(width, height)
    for step in (rle_first, not rle_first):
        if step:
            canvas.run_lengths(column_major_counts(image))
        else:
            for ring in polygon:
                canvas.ring(ring)
    np.testing.assert_array_equal(canvas.pixels(), image | theirs(polygon, width, height))


def test_a_column_of_many_masks_is_sorted_and_merged() -> None:
    order = np.random.default_rng(0).permutation(100)
    canvas = Canvas(1, 400)
    expected = np.zeros(400, np.bool_)
    for index in order.tolist():
        length = 1 + index % 5
        canvas.run_lengths([4 * index, min(length, 400 - 4 * index), max(400 - 4 * index - length, 0)])
        expected[4 * index : 4 * index + length] = True
    np.testing.assert_array_equal(canvas.pixels()[:, 0], expected)


# --- real annotations -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco_root() -> Path:
    """Folder of the real COCO sample beside the repository; tests that need it are skipped where it is absent."""
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"
    if not (root / "annotations").is_dir():
        pytest.skip(f"no COCO sample in {root}")
    return root


@pytest.mark.parametrize(
    "file",
    [
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        "eval_val2014_100/instances_val2014_100.json",
    ],
)
def test_every_mask_of_coco_has_the_pixels_of_pycocotools(coco_root: Path, file: str) -> None:
    document: dict[str, Any] = json.loads((coco_root / file).read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    seen = {"polygon": 0, "crowd": 0}
    for annotation in document["annotations"]:
        width, height = sizes[annotation["image_id"]]
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            seen["polygon"] += 1
            pixels, expected = ours(segmentation, width, height), theirs(segmentation, width, height)
        else:
            seen["crowd"] += 1
            canvas = Canvas(width, height)
            canvas.run_lengths(segmentation["counts"])
            rle = coco_mask.frPyObjects(segmentation, height, width)
            pixels, expected = canvas.pixels(), np.asarray(coco_mask.decode(rle), np.bool_)
            assert decode_counts(np.frombuffer(rle["counts"], np.uint8)).tolist() == segmentation["counts"]
        assert np.array_equal(pixels, expected), f"annotation {annotation['id']}"
    assert min(seen.values()) > 0, seen
