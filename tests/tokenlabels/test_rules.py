"""Scores and labels of the three rules against full-mask and polygon-clipping oracles, in double precision.

The edges of the cells are taken from `PatchGrid.edges`, which `test_grid.py` compares with exact fractions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest
import shapely
from helpers import weights
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tokenlabels.annotations import MASK_RINGS, MASK_RLE, MASK_TEXT, Masks, Records
from tokenlabels.check import FindingLog
from tokenlabels.coverage import FOREGROUND, column_runs_of_image
from tokenlabels.errors import ParameterError
from tokenlabels.executors import SerialExecutor
from tokenlabels.grid import PatchGrid
from tokenlabels.rules import RULES, RuleSpec, check_tau
from tokenlabels.scoring import CellLabels, label_records
from tokenlabels.sources.base import Reading
from tokenlabels.sources.coco import CocoSource
from tokenlabels.sources.masks import pack_masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[float, float, float, float]

GRIDS = (
    PatchGrid.parse(8, 32, "squash"),
    PatchGrid.parse("4x16", (24, 80), "squash"),
    PatchGrid.parse(8, (40, 56), "letterbox"),
    PatchGrid.parse("16x8", 64, "letterbox"),
    PatchGrid.parse(8, 40, "shortest-edge", 72),
    PatchGrid.parse("6x10", 30, "shortest-edge"),
    PatchGrid.parse(16, "native"),
    PatchGrid.parse("5x7", "native"),
)
"""Every resize policy with a square and an oblong patch; most have cells with fractional edges."""

CLOSE = 1e-6
"""Largest difference between a float32 score and its oracle."""

SURE = 1e-9
"""Shares of a cell closer than this to one half are left to the tests of exact halves."""


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """One annotation: its box (x, y, width, height), its `segmentation` as JSON text, and whether it is a crowd."""

    box: Box
    segmentation: str
    crowd: bool = False


@dataclass(frozen=True)
class Picture:
    """One image with its annotations."""

    width: int
    height: int
    things: tuple[Thing, ...] = ()


def boxed(x: float, y: float, width: float, height: float, *, crowd: bool = False) -> Thing:
    """A rectangle: its mask is its outline as a polygon."""
    right, bottom = x + width, y + height
    return Thing((x, y, width, height), json.dumps([[x, y, right, y, right, bottom, x, bottom]]), crowd)


def run_lengths(pixels: Bools, *, compressed: bool = False) -> str:
    """An image as the `segmentation` of a crowd region."""
    rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    if compressed:
        return json.dumps({"size": list(pixels.shape), "counts": rle["counts"].decode()})
    flat = np.concatenate([[False], pixels.ravel(order="F")])
    bounds = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), pixels.size]
    return json.dumps({"size": list(pixels.shape), "counts": np.diff(bounds).tolist()})


def records_of(*pictures: Picture) -> Records:
    """Records of some pictures, every mask packed by the COCO reader."""
    things = [thing for picture in pictures for thing in picture.things]
    counts = [len(picture.things) for picture in pictures]
    widths = np.array([picture.width for picture in pictures], np.int32)
    heights = np.array([picture.height for picture in pictures], np.int32)

    def refuse(index: int, kind: object, problem: str) -> None:
        raise AssertionError(f"mask {index} {problem}")

    masks, usable = pack_masks(
        [msgspec.Raw(thing.segmentation.encode()) for thing in things],
        np.repeat(widths, counts),
        np.repeat(heights, counts),
        refuse,
        run=SerialExecutor().run,
    )
    assert usable.all()
    return Records(
        image_ids=[str(index) for index in range(len(pictures))],
        file_names=[f"{index}.jpg" for index in range(len(pictures))],
        widths=widths,
        heights=heights,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=np.arange(len(things), dtype=np.int64),
        boxes=np.array([thing.box for thing in things], np.float64).reshape(-1, 4),
        categories=np.zeros(len(things), np.int32),
        areas=np.ones(len(things), np.float64),
        crowd=np.array([thing.crowd for thing in things], np.bool_),
        difficult=np.zeros(len(things), np.bool_),
        masks=masks.block(0, len(things)),
    )


def label(pictures: Sequence[Picture], grids: Sequence[PatchGrid], **spec: Any) -> list[CellLabels]:
    """Label some pictures on several grids in one call."""
    records = records_of(*pictures)
    axes = [grid.axes(records.widths, records.heights) for grid in grids]
    return label_records(records, axes, RuleSpec.make(**spec))[0]


def label_one(picture: Picture, grid: PatchGrid, **spec: Any) -> CellLabels:
    """Label one picture on one grid."""
    return label([picture], [grid], **spec)[0]


# --- oracles ----------------------------------------------------------------------------------------------------------


def union_of(things: Sequence[Thing], picture: Picture) -> Bools:
    """Pixels of any of some annotations by pycocotools."""
    rles = []
    for thing in things:
        segmentation = json.loads(thing.segmentation)
        if isinstance(segmentation, list):
            rings = [[float(value) for value in ring] for ring in segmentation]
            rles += coco_mask.frPyObjects(rings, picture.height, picture.width)
        elif isinstance(segmentation["counts"], list):
            rles.append(coco_mask.frPyObjects(segmentation, picture.height, picture.width))
        else:
            rles.append(segmentation)
    if not rles:
        return np.zeros((picture.height, picture.width), np.bool_)
    return np.asarray(coco_mask.decode(coco_mask.merge(rles)), np.bool_)


def mask_shares(things: Sequence[Thing], picture: Picture, grid: PatchGrid) -> Floats:
    """(rows, cols): share of each cell covered by the union of some masks."""
    y, x = grid.edges(picture.width, picture.height)
    union = union_of(things, picture).astype(np.float64)
    area = weights(y, picture.height) @ union @ weights(x, picture.width).T
    shares: Floats = area / np.outer(np.diff(y), np.diff(x))
    return shares


def cells_of(picture: Picture, grid: PatchGrid) -> Any:
    """(rows, cols) of shapely rectangles."""
    y, x = grid.edges(picture.width, picture.height)
    return shapely.box(x[None, :-1], y[:-1, None], x[None, 1:], y[1:, None])


def outline_of(box: Sequence[float], picture: Picture) -> Any:
    """A box cut to the image as a shapely polygon, empty where nothing is left."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return shapely.Polygon()
    frame = shapely.box(0, 0, picture.width, picture.height)
    return shapely.box(x, y, x + width, y + height).intersection(frame)


def box_shares(thing: Sequence[float], picture: Picture, grid: PatchGrid, *, jaccard: bool = False) -> Floats:
    """(rows, cols): share of each cell, or of cell and box together, covered by one box."""
    cells, outline = cells_of(picture, grid), outline_of(thing, picture)
    shared = shapely.area(shapely.intersection(cells, outline))
    whole = shapely.area(cells) + (outline.area - shared if jaccard else 0.0)
    shares: Floats = shared / whole
    return shares


def expected_scores(picture: Picture, grid: PatchGrid, rule: str, crowd: str) -> Floats:
    """(rows, cols): the score of every cell by definition."""
    things = [thing for thing in picture.things if crowd == "foreground" or not thing.crowd]
    if rule == "pixel-ratio":
        return mask_shares(things, picture, grid)
    scores = np.zeros(cells_of(picture, grid).shape)
    for thing in things:
        scores = np.maximum(scores, box_shares(thing.box, picture, grid, jaccard=rule == "jaccard"))
    return scores


def ignored_shares(picture: Picture, grid: PatchGrid, rule: str) -> Floats:
    """(rows, cols): share of every cell covered by the union of the crowd regions."""
    crowds = [thing for thing in picture.things if thing.crowd]
    if rule == "pixel-ratio":
        return mask_shares(crowds, picture, grid)
    cells = cells_of(picture, grid)
    union = shapely.unary_union([outline_of(thing.box, picture) for thing in crowds])
    shares: Floats = shapely.area(shapely.intersection(cells, union)) / shapely.area(cells)
    return shares


def in_padding(picture: Picture, grid: PatchGrid) -> Bools:
    """(rows, cols): the cell and the image share no area."""
    y, x = grid.edges(picture.width, picture.height)
    tall = np.minimum(y[1:], picture.height) - np.maximum(y[:-1], 0)
    wide = np.minimum(x[1:], picture.width) - np.maximum(x[:-1], 0)
    return (tall[:, None] <= 0) | (wide[None, :] <= 0)


def expected_labels(scores: NDArray[np.float32], ignored: Bools, padding: Bools, spec: RuleSpec) -> NDArray[np.int64]:
    """Labels by the semantics of the design from the scores as stored."""
    tau = np.float32(spec.tau)
    passes = (scores > tau) if spec.rule == "pixel-ratio" else (scores >= tau)
    passes &= ~padding
    return np.where(passes, 1, np.where(ignored, 255, 0))


# --- strategies -------------------------------------------------------------------------------------------------------

quarters = st.integers(-120, 480).map(lambda n: n / 4)
coordinates = st.one_of(quarters, st.integers(-30, 120).map(float), st.floats(-30, 120))
lengths = st.one_of(st.integers(0, 400).map(lambda n: n / 4), st.floats(0, 100), st.just(0.0))
sides = st.integers(1, 90)


@st.composite
def segmentations(draw: st.DrawFn, width: int, height: int) -> str:
    """A mask in each of the forms that the reader packs differently."""
    form = draw(st.sampled_from(["plain", "plain", "exponent", "compressed", "uncompressed"]))
    if form in ("plain", "exponent"):
        ring = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=6)
        rings = [
            [value for point in points for value in point] for points in draw(st.lists(ring, min_size=1, max_size=3))
        ]
        text = json.dumps([[round(value, 2) for value in ring] for ring in rings])
        return text if form == "plain" else text.replace("[[", "[[1e1, 1e0, ")
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = np.zeros((height, width), np.bool_)
    top, left = random.integers(0, height), random.integers(0, width)
    pixels[top : top + random.integers(0, height + 1), left : left + random.integers(0, width + 1)] = True
    pixels ^= random.random(pixels.shape) < draw(st.sampled_from([0.0, 0.0, 0.2]))
    return run_lengths(pixels, compressed=form == "compressed")


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """An image with up to five annotations, in and out of it; most of a crowd now and then."""
    width, height = draw(sides), draw(sides)
    anywhere = st.tuples(coordinates, coordinates, lengths, lengths)
    quarters_of_it = st.tuples(*[st.integers(0, 4)] * 4).map(
        lambda n: (n[0] * width / 4, n[1] * height / 4, n[2] * width / 4, n[3] * height / 4)
    )
    crowd = st.sampled_from([False, False, True])
    thing = st.builds(Thing, anywhere | quarters_of_it, segmentations(width, height), crowd)
    return Picture(width, height, tuple(draw(st.lists(thing, max_size=5))))


rules = st.sampled_from(list(RULES))
crowds = st.sampled_from(["foreground", "background", "ignore"])
paddings = st.sampled_from(["background", "ignore"])


# --- scores, labels and counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@given(scene=st.lists(pictures(), min_size=1, max_size=3), crowd=crowds)
@settings(deadline=None, max_examples=40)
def test_scores_are_the_exact_shares_on_every_grid(rule: str, scene: list[Picture], crowd: str) -> None:
    for grid, labelled in zip(GRIDS, label(scene, GRIDS, rule=rule, crowd=crowd), strict=True):
        assert labelled.scores.dtype == np.float32
        for index, picture in enumerate(scene):
            expected = expected_scores(picture, grid, rule, crowd)
            scores = labelled.scores[labelled.cells[index] : labelled.cells[index + 1]]
            np.testing.assert_allclose(scores, expected.ravel(), rtol=0, atol=CLOSE, err_msg=grid.name)
            assert ((scores >= 0) & (scores <= 1)).all()
        assert labelled.cells[-1] == len(labelled.scores)


@given(
    scene=st.lists(pictures(), min_size=1, max_size=3),
    rule=rules,
    crowd=crowds,
    padding=paddings,
    pick=st.integers(0, 10**6),
    nudge=st.sampled_from([0.0, 0.0, 1e-10, -1e-10]),
)
@settings(deadline=None, max_examples=100)
def test_labels_follow_from_scores_and_regions(
    scene: list[Picture], rule: str, crowd: str, padding: str, pick: int, nudge: float
) -> None:
    """The threshold is a score that occurs, or one beside it that rounds to the same float32."""
    occurring = np.unique(np.concatenate([one.scores for one in label(scene, GRIDS, rule=rule, crowd=crowd)]))
    tau = min(max(float(occurring[pick % len(occurring)]) + nudge, 0.0), 1.0)
    spec = RuleSpec.make(rule, tau, crowd, padding)
    again = label(scene, GRIDS, rule=rule, tau=tau, crowd=crowd, padding=padding)
    for grid, labelled in zip(GRIDS, again, strict=True):
        for index, picture in enumerate(scene):
            span = slice(labelled.cells[index], labelled.cells[index + 1])
            outside = in_padding(picture, grid).ravel()
            ignored = labelled.ignored[span].copy()
            share = ignored_shares(picture, grid, rule).ravel() if crowd == "ignore" else np.zeros(len(ignored))
            sure = np.abs(share - 0.5) > SURE
            expected_ignored = (share > 0.5) | (outside & (padding == "ignore"))
            np.testing.assert_array_equal(ignored[sure], expected_ignored[sure])
            labels = labelled.labels[span]
            np.testing.assert_array_equal(labels, expected_labels(labelled.scores[span], ignored, outside, spec))
            assert labelled.fg_count[index] == (labels == 1).sum()
            assert labelled.ignore_count[index] == (labels == 255).sum()


@given(scene=st.lists(pictures(), min_size=1, max_size=3), rule=rules)
@settings(deadline=None, max_examples=60)
def test_patches_counts_foreground_cells_half_covered_by_each_box(scene: list[Picture], rule: str) -> None:
    for grid, labelled in zip(GRIDS, label(scene, GRIDS, rule=rule, tau=0.2), strict=True):
        k = 0
        for index, picture in enumerate(scene):
            foreground = labelled.labels[labelled.cells[index] : labelled.cells[index + 1]] == 1
            for thing in picture.things:
                share = box_shares(np.array(thing.box, np.float32).tolist(), picture, grid).ravel()
                least, most = ((share >= 0.5 + slack) & foreground for slack in (SURE, -SURE))
                assert least.sum() <= labelled.patches[k] <= most.sum()
                k += 1
        assert k == len(labelled.patches)


@pytest.mark.parametrize("crowd", ["foreground", "background", "ignore"])
@given(scene=st.lists(pictures(), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_empty_masks_are_told_from_others(crowd: str, scene: list[Picture]) -> None:
    """Of the masks that are drawn at all; also where no grid is asked for."""
    lost = (
        boxed(200, 200, 5, 5),
        boxed(200, 200, 5, 5, crowd=True),
        Thing((0, 0, 1, 1), run_lengths(np.zeros((9, 9), bool))),
    )
    scene = [*scene, Picture(9, 9, (boxed(1, 1, 5, 5), *lost))]
    records = records_of(*scene)
    expected = [
        not (thing.crowd and crowd == "background") and not union_of([thing], picture).any()
        for picture in scene
        for thing in picture.things
    ]
    for grids in (GRIDS[:2], ()):
        axes = [grid.axes(records.widths, records.heights) for grid in grids]
        assert label_records(records, axes, RuleSpec.make("pixel-ratio", crowd=crowd))[1].empty.tolist() == expected
    by_boxes = label_records(records, [], RuleSpec.make("overlap", crowd=crowd))[1]
    assert not by_boxes.empty.any(), "a box rule draws no mask"


@pytest.mark.parametrize("form", ["plain", "exponent", "run lengths"])
@pytest.mark.parametrize("crowd", [False, True])
def test_masks_of_very_many_runs(form: str, crowd: bool) -> None:
    """More runs than the kernels make room for at first, in one mask and in all, between images of few runs."""
    height, width = 520, 260
    zigzag = [value for step in range(800) for value in (width * (step % 2), round(0.65 * step, 2))]
    noise = np.random.default_rng(1).random((height, width)) < 0.4
    rings = [zigzag[:800], zigzag[800:]]
    text = {"plain": json.dumps(rings), "run lengths": run_lengths(noise)}
    text["exponent"] = text["plain"].replace("[[0, 0.0,", "[[0, 0e0,")
    bulky = Thing((0, 0, 1, 1), text[form], crowd)
    few = Picture(30, 20, (boxed(3, 4, 20, 9), boxed(1, 1, 5, 5, crowd=True)))
    scene = [few, Picture(width, height, (bulky, boxed(5, 5, 90, 90, crowd=crowd), bulky)), few]
    labelled = label(scene, GRIDS, rule="pixel-ratio", crowd="ignore")
    for grid, one in zip(GRIDS, labelled, strict=True):
        for index, picture in enumerate(scene):
            span = slice(one.cells[index], one.cells[index + 1])
            expected = expected_scores(picture, grid, "pixel-ratio", "ignore").ravel()
            np.testing.assert_allclose(one.scores[span], expected, rtol=0, atol=CLOSE)
            share = ignored_shares(picture, grid, "pixel-ratio").ravel()
            sure = np.abs(share - 0.5) > SURE
            np.testing.assert_array_equal(one.ignored[span][sure], share[sure] > 0.5)


WIDE = "[[1e0, 1, 9, 1, 9, 9], [0, 10, 64, 10.5, 0, 20, 64, 20.5, 0, 30, 64, 40]]"
"""Two rings, the second crossing very many columns but few rows."""


@pytest.mark.slow
@given(picture=pictures(), room=st.integers(0, 60))
@example(picture=Picture(65, 65, (Thing((0, 0, 1, 1), WIDE),)), room=0)
@example(picture=Picture(65, 65, (Thing((0, 0, 1, 1), WIDE.replace("e0", "")),)), room=0)
@settings(deadline=None, max_examples=100)
def test_kernels_ask_for_room_before_they_write_runs(picture: Picture, room: int) -> None:
    """Compiled code does not check bounds: the arrays are parts of larger ones, which must not change elsewhere."""
    masks = records_of(picture).masks
    assert isinstance(masks, Masks)
    count = len(picture.things)
    roles, empty = np.full(count, FOREGROUND, np.uint8), np.zeros(count, np.bool_)
    pools = (roles, masks.kinds, masks.spans, masks.text, masks.numbers, masks.counts, empty)
    scratch = np.empty(len(masks.text) // 2 + 1, np.float64), np.empty(len(masks.text) // 12 + 1, np.int64)
    used = -room
    for _ in range(count + 1):
        assert used <= 0
        room = max(room, -used)
        columns, runs = np.full(room + 9999, -7, np.int32), np.full(room + 9999, -7, np.int64)
        used = column_runs_of_image(
            0, count, FOREGROUND, picture.width, picture.height, *pools, *scratch, columns[:room], runs[:room]
        )
        assert (columns[room:] == -7).all()
        assert (runs[room:] == -7).all()
        if used >= 0:
            break
        assert -used > room, "asks for no more than it has"
    pixels = np.zeros((picture.height, picture.width), np.bool_)
    for column, run in zip(columns[:used].tolist(), runs[:used].tolist(), strict=True):
        pixels[run >> 32 : run & 0xFFFFFFFF, column] = True
    np.testing.assert_array_equal(pixels, union_of(picture.things, picture))


@given(scene=st.lists(pictures(), min_size=2, max_size=4), rule=rules, crowd=crowds, seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_an_image_does_not_depend_on_its_neighbours(scene: list[Picture], rule: str, crowd: str, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(scene)).tolist()
    arguments = {"rule": rule, "crowd": crowd, "padding": "ignore"}
    together = label([scene[index] for index in order], GRIDS, **arguments)
    for grid, labelled in zip(GRIDS, together, strict=True):
        alone = [label_one(scene[index], grid, **arguments) for index in order]
        for name in ("scores", "ignored", "labels", "fg_count", "ignore_count", "patches"):
            np.testing.assert_array_equal(getattr(labelled, name), np.concatenate([getattr(a, name) for a in alone]))
        assert np.diff(labelled.cells).tolist() == [len(one.labels) for one in alone]


def test_forms_of_masks_reach_the_kernels_as_they_are_meant_to() -> None:
    """The strategies above must keep exercising every pool of `Masks`."""
    pixels = np.eye(4, dtype=np.bool_)
    things = [
        boxed(0, 0, 2, 2),
        Thing((0, 0, 1, 1), "[[1e0, 1, 2, 2, 3, 3.5]]"),
        Thing((0, 0, 1, 1), run_lengths(pixels)),
        Thing((0, 0, 1, 1), run_lengths(pixels, compressed=True)),
    ]
    masks = records_of(Picture(4, 4, tuple(things))).masks
    assert masks is not None
    assert masks.kinds.tolist() == [MASK_TEXT, MASK_RINGS, MASK_RLE, MASK_TEXT]


# --- cases worked by hand ---------------------------------------------------------------------------------------------

FOUR = PatchGrid.parse(8, "native")
"""On a picture of 16 x 16 pixels: four cells of 8 x 8, upper left, upper right, lower left, lower right."""


@pytest.mark.parametrize(
    ("rule", "box", "tau", "labels", "why"),
    [
        ("overlap", (0, 0, 8, 4), 0.5, [1, 0, 0, 0], "half a cell passes one half"),
        ("overlap", (0, 0, 8, 3.99), 0.5, [0, 0, 0, 0], "a little less does not"),
        ("overlap", (0, 0, 16, 4), 0.5, [1, 1, 0, 0], "each cell for itself"),
        ("overlap", (0, 0, 8, 8), 1.0, [1, 0, 0, 0], "a full cell passes one"),
        ("overlap", (0, 0, 0, 0), 0.0, [1, 1, 1, 1], "a score of nothing passes zero"),
        ("overlap", (4, 4, 8, 8), 0.25, [1, 1, 1, 1], "a quarter of each"),
        ("overlap", (0, 0, 8, 4.0000001), 0.5 + 2e-9, [1, 0, 0, 0], "thresholds are rounded to float32"),
        ("jaccard", (0, 0, 8, 8), 1.0, [1, 0, 0, 0], "the cell itself"),
        ("jaccard", (0, 0, 16, 8), 0.5, [1, 1, 0, 0], "a cell in a box twice as large"),
        ("jaccard", (0, 0, 16, 8.1), 0.5, [0, 0, 0, 0], "a cell in a box a little larger"),
        ("jaccard", (-84, 0, 100, 8), 0.5, [1, 1, 0, 0], "only the part of the box in the image counts"),
        ("jaccard", (0, -84, 8, 184), 0.5, [1, 0, 1, 0], "above and below as well"),
        ("jaccard", (8, 8, 1e6, 1e6), 1.0, [0, 0, 0, 1], "cut on the right and below"),
        ("pixel-ratio", (0, 0, 8, 4), 0.5, [0, 0, 0, 0], "half a cell does not exceed one half"),
        ("pixel-ratio", (0, 0, 8, 5), 0.5, [1, 0, 0, 0], "a row more does"),
        ("pixel-ratio", (0, 0, 8, 8), 1.0, [0, 0, 0, 0], "nothing exceeds one"),
        ("pixel-ratio", (0, 0, 1, 1), 0.0, [1, 0, 0, 0], "a pixel exceeds zero, nothing does not"),
        ("pixel-ratio", (0, 0, 1, 1), 1 / 64, [0, 0, 0, 0], "a pixel of 64"),
        ("pixel-ratio", (0, 0, 2, 1), 1 / 64, [1, 0, 0, 0], "two pixels of 64"),
        ("pixel-ratio", (-5, -5, 40, 40), 0.99, [1, 1, 1, 1], "a mask larger than the image"),
    ],
)
def test_thresholds(rule: str, box: Box, tau: float, labels: list[int], why: str) -> None:
    assert label_one(Picture(16, 16, (boxed(*box),)), FOUR, rule=rule, tau=tau).labels.tolist() == labels, why


@pytest.mark.parametrize("rule", RULES)
def test_default_threshold(rule: str) -> None:
    spec = RuleSpec.make(rule)
    assert (spec.tau, spec.crowd, spec.padding) == (0.1 if rule == "pixel-ratio" else 0.5, "foreground", "background")
    picture = Picture(16, 16, (boxed(0, 0, 9, 9),))
    assert label_one(picture, FOUR, rule=rule).labels.tolist() == (
        [1, 1, 1, 0] if rule == "pixel-ratio" else [1, 0, 0, 0]
    )


def test_a_tenth_of_a_cell_is_no_foreground_by_default() -> None:
    """10 of 100 pixels: 0.1 in float64 differs from 0.1 in float32, both sides of the comparison are rounded."""
    grid = PatchGrid.parse(10, "native")
    for pixels, foreground in ((9, 0), (10, 0), (11, 1)):
        image = np.zeros((10, 10), np.bool_)
        image.ravel()[:pixels] = True
        thing = Thing((0, 0, 1, 1), run_lengths(image))
        assert label_one(Picture(10, 10, (thing,)), grid, rule="pixel-ratio").labels.tolist() == [foreground]


TWO = (boxed(0, 0, 8, 8), boxed(8, 0, 8, 8, crowd=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("things", "crowd", "labels", "why"),
    [
        (TWO, "foreground", [1, 1, 0, 0], "a crowd is an object"),
        (TWO, "background", [1, 0, 0, 0], "a crowd is nothing"),
        (TWO, "ignore", [1, 255, 0, 0], "a crowd is unknown"),
        ((boxed(0, 0, 8, 4, crowd=True),), "ignore", [0, 0, 0, 0], "half a cell is not more than half"),
        ((boxed(0, 0, 8, 5, crowd=True),), "ignore", [255, 0, 0, 0], "a row more is"),
        ((boxed(0, 0, 8, 8), boxed(0, 0, 16, 16, crowd=True)), "ignore", [1, 255, 255, 255], "1 wins over 255"),
        (
            (boxed(0, 0, 8, 3, crowd=True), boxed(0, 3, 8, 3, crowd=True)),
            "ignore",
            [255, 0, 0, 0],
            "two crowds cover more than half together",
        ),
        (
            (boxed(0, 3, 8, 3, crowd=True), boxed(0, 0, 8, 3, crowd=True)),
            "ignore",
            [255, 0, 0, 0],
            "the same, the lower one first",
        ),
        (
            (boxed(0, 0, 8, 4, crowd=True), boxed(0, 0, 8, 3, crowd=True)),
            "ignore",
            [0, 0, 0, 0],
            "what two crowds share counts once",
        ),
        ((boxed(-20, -20, 28, 28, crowd=True),), "ignore", [255, 0, 0, 0], "a crowd cut to the image"),
        ((boxed(20, 20, 8, 8, crowd=True),), "ignore", [0, 0, 0, 0], "a crowd outside the image"),
    ],
)
def test_crowd_policies(rule: str, things: tuple[Thing, ...], crowd: str, labels: list[int], why: str) -> None:
    labelled = label_one(Picture(16, 16, things), FOUR, rule=rule, crowd=crowd)
    assert labelled.labels.tolist() == labels, why
    assert (labelled.fg_count.tolist(), labelled.ignore_count.tolist()) == ([labels.count(1)], [labels.count(255)])


@pytest.mark.parametrize(
    ("box", "patches", "why"),
    [
        ((0, 0, 16, 16), 3, "three of the four cells are foreground"),
        ((0, 0, 8, 4), 1, "half a cell counts"),
        ((0, 0, 8, 3.875), 0, "a little less does not"),
        ((0, 0, 8, 4 - 1e-9), 1, "boxes are rounded to float32, as a shard stores them"),
        ((4, 4, 8, 8), 0, "a quarter of each cell"),
        ((0, 4, 16, 8), 3, "half of every cell"),
        ((8, 8, 8, 8), 0, "the cell that is background"),
        ((-8, -8, 24, 12), 2, "cut to the image"),
    ],
)
def test_patches_of_a_box(box: Box, patches: int, why: str) -> None:
    """The first three cells are foreground by other objects' masks, which the counted object does not share."""
    nothing = json.dumps([[90, 90, 91, 90, 91, 91]])
    others = boxed(0, 0, 16, 8), boxed(0, 8, 8, 8)
    labelled = label_one(Picture(16, 16, (Thing(box, nothing), *others)), FOUR, rule="pixel-ratio")
    assert labelled.labels.tolist() == [1, 1, 1, 0]
    assert labelled.patches.tolist() == [patches, 2, 1], why


@pytest.mark.parametrize("rule", RULES)
def test_cells_that_are_both_keep_their_ignored_flag(rule: str) -> None:
    """So that relabelling at a higher threshold can make them 255."""
    picture = Picture(16, 16, (boxed(0, 0, 8, 8), boxed(0, 0, 16, 16, crowd=True)))
    labelled = label_one(picture, FOUR, rule=rule, crowd="ignore")
    assert labelled.ignored.tolist() == [True] * 4
    assert not label_one(picture, FOUR, rule=rule, crowd="foreground").ignored.any()


HALVES = PatchGrid.parse(16, 384)
"""On a picture 480 pixels high: rows of cells of 20 pixels; columns of cells with fractional edges at most widths."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [1, 2])
def test_exactly_half_a_cell_is_not_more_than_half(rule: str, parts: int) -> None:
    """Crowd regions, one or two side by side, over 10 rows of pixels, and over 11."""
    wrong = {}
    for width in range(17, 700, 7):
        cut = [0, width] if parts == 1 else [0, width // 3, width]
        scene = [
            Picture(width, 480, tuple(boxed(a, 0, b - a, rows, crowd=True) for a, b in pairwise(cut)))
            for rows in (10, 11)
        ]
        counts = label(scene, [HALVES], rule=rule, crowd="ignore")[0].ignore_count.tolist()
        if counts != [0, 24]:
            wrong[width] = counts
    assert wrong == {}, "cells that are 255 at half a cell, and at a row more"


def test_exactly_half_a_cell_counts_for_patches() -> None:
    """A box covers the first row of cells wholly, and the second by exactly half."""
    widths = range(17, 700, 7)
    labelled = label([Picture(width, 480, (boxed(0, 0, width, 30),)) for width in widths], [HALVES])[0]
    assert labelled.fg_count.tolist() == [48] * len(widths)
    counts = dict(zip(widths, labelled.patches.tolist(), strict=True))
    assert {width: count for width, count in counts.items() if count != 48} == {}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # 16 x 8 pixels in 32 x 32 at scale 2: rows 0 and 3 are padding
        ("background", [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        ("ignore", [[255] * 4, [1, 1, 0, 0], [1, 1, 0, 0], [255] * 4]),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_padding_of_a_letterbox(rule: str, policy: str, expected: list[list[int]]) -> None:
    picture = Picture(16, 8, (boxed(0, 0, 8, 8),))
    grid = PatchGrid.parse(8, 32, "letterbox")
    labelled = label_one(picture, grid, rule=rule, tau=0.2, padding=policy)
    assert labelled.labels.reshape(4, 4).tolist() == expected
    assert labelled.ignore_count.tolist() == [np.count_nonzero(np.array(expected) == 255)]


@pytest.mark.parametrize("rule", ["overlap", "jaccard"])
@pytest.mark.parametrize("policy", ["background", "ignore"])
def test_padding_is_never_foreground_even_where_every_score_passes(rule: str, policy: str) -> None:
    picture = Picture(16, 8, (boxed(0, 0, 8, 8),))
    labelled = label_one(picture, PatchGrid.parse(8, 32, "letterbox"), rule=rule, tau=0.0, padding=policy)
    outside = 255 if policy == "ignore" else 0
    assert labelled.labels.reshape(4, 4).tolist() == [[outside] * 4, [1] * 4, [1] * 4, [outside] * 4]


def test_a_cell_partly_in_padding_is_no_padding() -> None:
    """16 x 12 pixels in 32 x 32 at scale 2: the image begins half-way down row 0, so every cell has some of it."""
    picture = Picture(16, 12, (boxed(0, 0, 16, 12),))
    grid = PatchGrid.parse(8, 32, "letterbox")
    labelled = label_one(picture, grid, rule="overlap", padding="ignore")
    assert labelled.scores.reshape(4, 4).tolist() == [[0.5] * 4, [1.0] * 4, [1.0] * 4, [0.5] * 4]
    assert labelled.labels.tolist() == [1] * 16
    assert label_one(replace(picture, things=()), grid, padding="ignore").labels.tolist() == [0] * 16


@pytest.mark.parametrize(("rule", "jagged"), [("overlap", 3 / 8), ("pixel-ratio", 3 / 8)])
def test_native_divides_by_the_whole_cell(rule: str, jagged: float) -> None:
    """11 x 11 pixels in cells of 8 x 8: the second row and column of cells hold 3 pixels."""
    labelled = label_one(Picture(11, 11, (boxed(0, 0, 11, 11),)), FOUR, rule=rule, padding="ignore")
    assert labelled.scores.tolist() == [1.0, jagged, jagged, jagged**2]
    assert labelled.labels.tolist() == ([1, 0, 0, 0] if rule == "overlap" else [1, 1, 1, 1])


def test_native_jaccard_counts_the_whole_cell_and_the_clipped_box() -> None:
    labelled = label_one(Picture(11, 11, (boxed(8, 0, 100, 8),)), FOUR, rule="jaccard")
    assert labelled.scores.tolist() == [0.0, 24 / 64, 0.0, 0.0]


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((4, 4, 0, 8), "no width"),
        ((4, 4, 8, 0), "no height"),
        ((4, 4, 0, 0), "a point"),
        ((-20, 0, 20, 16), "ends where the image begins"),
        ((16, 0, 8, 8), "begins where the image ends"),
        ((0, 16, 8, 8), "below the image"),
        ((0, -9, 8, 8), "above the image"),
        ((12, 12, -4, -4), "negative sides"),
        ((1e7, 1e7, 1, 1), "far away"),
    ],
)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_box_without_area_in_the_image_does_nothing(box: Box, why: str, grid: PatchGrid) -> None:
    good = boxed(1, 1, 15, 15)
    for rule in ("overlap", "jaccard"):
        for crowd in (False, True):
            lost = Thing(box, good.segmentation, crowd)
            alone = label_one(Picture(16, 16, (good,)), grid, rule=rule, tau=0.2, crowd="ignore")
            both = label_one(Picture(16, 16, (lost, good)), grid, rule=rule, tau=0.2, crowd="ignore")
            assert both.labels.tolist() == alone.labels.tolist(), why
            assert both.patches.tolist() == [0, *alone.patches.tolist()], why


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_images_without_annotations_are_background(rule: str, grid: PatchGrid) -> None:
    bare, full = Picture(30, 20), Picture(20, 30, (boxed(0, 0, 20, 30),))
    labelled = label([bare, full, bare], [grid], rule=rule, tau=0.01, crowd="ignore")[0]
    assert labelled.fg_count[1] > 0
    for index in (0, 2):
        span = slice(labelled.cells[index], labelled.cells[index + 1])
        assert not labelled.labels[span].any()
        assert not labelled.scores[span].any()
        assert labelled.fg_count[index] == labelled.ignore_count[index] == 0


@pytest.mark.parametrize("rule", RULES)
def test_no_images_and_no_annotations_at_all(rule: str) -> None:
    for labelled in label([], GRIDS, rule=rule):
        assert (len(labelled.cells), len(labelled.labels), len(labelled.patches)) == (1, 0, 0)
    assert not label([Picture(9, 9)], GRIDS, rule=rule)[0].labels.any()


def test_overlap_takes_the_best_box_and_pixel_ratio_the_union() -> None:
    halves = (boxed(0, 0, 4, 8), boxed(4, 0, 4, 8))
    picture = Picture(16, 16, halves)
    assert label_one(picture, FOUR, rule="overlap").scores[0] == 0.5
    assert label_one(picture, FOUR, rule="jaccard").scores[0] == 0.5
    assert label_one(picture, FOUR, rule="pixel-ratio").scores[0] == 1.0
    better = boxed(0, 0, 8, 6)
    for things in ((halves[0], better), (better, halves[0])):
        assert label_one(Picture(16, 16, things), FOUR, rule="overlap").scores[0] == 0.75
        assert label_one(Picture(16, 16, things), FOUR, rule="jaccard").scores[0] == 0.75
    twice = Picture(16, 16, (halves[0], halves[0]))
    assert label_one(twice, FOUR, rule="pixel-ratio").scores[0] == 0.5


# --- what a person writes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [-0.1, 1.1, 50, float("nan"), float("inf")])
def test_a_threshold_outside_0_to_1_is_refused(tau: float) -> None:
    with pytest.raises(ParameterError, match="outside 0"):
        check_tau(tau)
    with pytest.raises(ParameterError, match="outside 0"):
        RuleSpec.make("overlap", tau)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"rule": "iou"}, "pixel-ratio"),
        ({"crowd": "keep"}, "crowd policy 'keep'"),
        ({"padding": "foreground"}, "padding policy 'foreground'"),
    ],
)
def test_unknown_rules_and_policies_are_refused(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(ParameterError, match=part):
        RuleSpec.make(**arguments)


@pytest.mark.parametrize(
    ("crowd", "padding", "stored"),
    [
        ("foreground", "background", False),
        ("background", "background", False),
        ("ignore", "background", True),
        ("foreground", "ignore", True),
    ],
)
def test_the_ignored_column_exists_where_a_policy_ignores(crowd: str, padding: str, stored: bool) -> None:
    assert RuleSpec.make(crowd=crowd, padding=padding).stores_ignored == stored


# --- real annotations -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco_root() -> Path:
    """Folder of the real COCO sample beside the repository; tests that need it are skipped where it is absent."""
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"
    if not (root / "annotations").is_dir():
        pytest.skip(f"no COCO sample in {root}")
    return root


def test_every_image_of_coco_against_the_oracles(coco_root: Path) -> None:
    """All three rules at the paper's grid, squash 384 / 16, boxes by outer products of one-dimensional overlaps."""
    grid = PatchGrid.parse(16, 384)
    log = FindingLog(masks_scored=True)
    dataset = CocoSource.locate(coco_root).read(Reading(masks=True), log)
    assert [split.name for split in dataset.splits] == ["train2017", "val2017"]
    assert log.error_count == 0
    for split in dataset.splits:
        document = json.loads((coco_root / "annotations" / f"instances_{split.name}.json").read_text())
        images = document["images"]
        things: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        for annotation in document["annotations"]:
            things[annotation["image_id"]].append(annotation)
        records = split.records.block(0, len(split.records))  # packed, as a task has them
        assert isinstance(records, Records)
        assert list(records.image_ids) == [str(image["id"]) for image in images]
        axes = grid.axes(records.widths, records.heights)
        scores = {
            rule: label_records(records, [axes], RuleSpec.make(rule))[0][0].scores.reshape(-1, 24, 24) for rule in RULES
        }
        for index, image in enumerate(images):
            expected = coco_oracle(Picture(image["width"], image["height"]), things[image["id"]], grid)
            for rule in RULES:
                worst = np.abs(scores[rule][index] - expected[rule]).max()
                assert worst <= 1e-5, f"{rule}, image {image['id']}: off by {worst}"


def coco_oracle(picture: Picture, annotations: list[dict[str, Any]], grid: PatchGrid) -> dict[str, Floats]:
    """(rows, cols) scores of one image under each rule, from the annotations as the file has them."""
    things = [Thing(tuple(a["bbox"]), json.dumps(a["segmentation"]), a["iscrowd"] == 1) for a in annotations]
    y, x = grid.edges(picture.width, picture.height)
    cell = np.outer(np.diff(y), np.diff(x))
    overlap, jaccard = np.zeros(cell.shape), np.zeros(cell.shape)
    for thing in things:
        left, top = max(thing.box[0], 0), max(thing.box[1], 0)
        right = min(thing.box[0] + thing.box[2], picture.width)
        bottom = min(thing.box[1] + thing.box[3], picture.height)
        tall = np.maximum(np.minimum(y[1:], bottom) - np.maximum(y[:-1], top), 0)
        wide = np.maximum(np.minimum(x[1:], right) - np.maximum(x[:-1], left), 0)
        shared = np.outer(tall, wide)
        overlap = np.maximum(overlap, shared / cell)
        jaccard = np.maximum(jaccard, shared / (cell + (right - left) * (bottom - top) - shared))
    return {"overlap": overlap, "jaccard": jaccard, "pixel-ratio": mask_shares(things, picture, grid)}
