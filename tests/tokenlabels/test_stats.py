"""Figures of builds and their agreement, against plain loops over the rows and against actual relabelling."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tokenlabels
from tokenlabels import stats_objects
from tokenlabels.agreement import LabelReader, build_names, kappa
from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.errors import NotABuildError, ParameterError
from tokenlabels.figures import QUANTILES, TAU_STOPS, Figures
from tokenlabels.reader import Build
from tokenlabels.sample_scene import CATEGORIES
from tokenlabels.stats_cells import THRESHOLDS, category_sums, count_passing, position_sums
from tokenlabels.stats_objects import distribution, patch_distribution, row_counts, spread, unreadable
from tokenlabels.stats_shards import plain

if TYPE_CHECKING:
    from tokenlabels.storage import Location

KINDS: dict[str, dict[str, Any]] = {
    "overlap": {"patch": [16, 32], "image_size": "384x192", "shard_rows": 5},
    "jaccard": {"rule": "jaccard", "tau": 0.02},
    "pixel-ratio": {"rule": "pixel-ratio", "crowd": "background"},
    "crowds ignored": {"crowd": "ignore", "tau": 0.9, "shard_rows": 3},
    "crowds ignored, masks": {"crowd": "ignore", "rule": "pixel-ratio", "patch": 32},
    "letterbox": {"resize": "letterbox", "image_size": "256x512"},
    "letterbox, all ignored": {
        "resize": "letterbox",
        "image_size": "512x128",
        "padding": "ignore",
        "crowd": "ignore",
        "rule": "pixel-ratio",
    },
    "letterbox, padding ignored": {"resize": "letterbox", "image_size": 384, "padding": "ignore"},
    "native": {"image_size": "native", "patch": "24x16", "padding": "ignore", "shard_rows": 4},
    "shortest edge": {"resize": "shortest-edge", "image_size": 160, "crowd": "ignore", "rule": "pixel-ratio"},
    "no scores": {"scores": False, "crowd": "ignore"},
    "two categories": {"categories": [category.name for category in CATEGORIES[1:3]], "min_area": 50.0},
}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def built(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Build]:
    """A build of each of `KINDS`, made once."""
    made: dict[str, Build] = {}
    folder = tmp_path_factory.mktemp("kinds")

    def get(kind: str) -> Build:
        if kind not in made:
            made[kind] = tokenlabels.build("coco", root=sample_root, out=folder / kind, **KINDS[kind])
        return made[kind]

    return get


@pytest.fixture
def small(document: dict[str, Any], write_json: Callable[[Path, Any], Path], tmp_path: Path) -> Build:
    """Two images, native grids, the crowd ignored; may be damaged."""
    path = write_json(tmp_path / "instances_mine.json", document)
    return tokenlabels.build("coco", annotations=path, out=tmp_path / "out", patch=8, image_size=64, crowd="ignore")


def plain_figures(build: Build, grid: str | None, split: str | None) -> dict[str, Any]:
    """The figures that do not need scores, by loops; shares as numbers."""
    name = grid or next(iter(build.grids))
    splits = build.splits if split is None else (split,)
    by_split: dict[str, list[Row]] = {each: build.table(name, each).to_pylist() for each in splits}
    rows = [row for each in by_split.values() for row in each]
    labels = [label for row in rows for label in row["labels"]]
    counted = sum(label != 255 for label in labels)
    objects = [
        dict(zip(row["objects"], values, strict=True)) | {"image": index}
        for index, row in enumerate(rows)
        for values in zip(*row["objects"].values(), strict=True)
    ]
    shares = [row["labels"].count(1) / (len(row["labels"]) - row["labels"].count(255)) for row in rows if part(row)]
    shape = build.grids[name].constant_shape
    probability, patches = plain_position(rows, shape or (24, 24), scaled=shape is None)
    right = sum(max(p * n, n - p * n) for ps, ns in zip(probability, patches, strict=True) for p, n in zip(ps, ns))  # noqa: B905
    foreground = labels.count(1)
    return {
        "splits": [plain_split(each, held) for each, held in by_split.items()],
        "images": len(rows),
        "annotations": len(objects),
        "patches": len(labels),
        "foreground": foreground,
        "ignored": labels.count(255),
        "fg_share": foreground / counted,
        "fg_share_per_image": plain_distribution(shares, [k / 20 for k in range(21)]),
        "empty_images": sum(1 not in row["labels"] for row in rows),
        "by_category": [
            plain_objects(category.name, [each for each in objects if each["category"] == index], counted)
            for index, category in enumerate(build.categories)
        ],
        "by_size": [
            plain_objects(size, [each for each in objects if low <= each["area"] < high], counted)
            for size, low, high in (("small", 0, 1024), ("medium", 1024, 9216), ("large", 9216, math.inf))
        ],
        "lost_objects": sum(each["patches"] == 0 for each in objects),
        "position": {
            "rows": len(patches),
            "cols": len(patches[0]),
            "scaled": shape is None,
            "fg_probability": probability,
            "patches": patches,
        },
        "baselines": {
            "majority": max(foreground, counted - foreground) / counted,
            "majority_label": int(2 * foreground > counted),
            "position_prior": right / counted,
        },
        "class_weights": {
            "background": counted / (2 * (counted - foreground)),
            "foreground": counted / (2 * foreground),
        },
    }


def part(row: Row) -> bool:
    return any(label != 255 for label in row["labels"])


def plain_split(split: str, rows: list[Row]) -> dict[str, Any]:
    labels = [label for row in rows for label in row["labels"]]
    return {
        "split": split,
        "images": len(rows),
        "annotations": sum(len(row["objects"]["id"]) for row in rows),
        "patches": len(labels),
        "foreground": labels.count(1),
        "ignored": labels.count(255),
        "fg_share": labels.count(1) / (len(labels) - labels.count(255)),
        "empty_images": sum(1 not in row["labels"] for row in rows),
    }


def plain_objects(name: str, objects: list[Row], counted: int) -> dict[str, Any]:
    patches = sum(each["patches"] for each in objects)
    lost = sum(each["patches"] == 0 for each in objects)
    return {
        "name": name,
        "objects": len(objects),
        "images": len({each["image"] for each in objects}),
        "patches": patches,
        "patches_mean": patches / len(objects) if objects else 0,
        "fg_share": patches / counted,
        "lost": lost,
        "lost_share": lost / len(objects) if objects else 0,
    }


def plain_distribution(values: list[float], edges: list[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "mean": float(np.mean(values)) if values else 0.0,
        "std": float(np.std(values)) if values else 0.0,
        "quantiles": [(q, float(np.quantile(values, q))) for q in QUANTILES] if values else [],
        "edges": edges,
        "counts": np.histogram(values, np.array(edges))[0].tolist(),
    }


def plain_position(
    rows: list[Row], shape: tuple[int, int], *, scaled: bool
) -> tuple[list[list[float]], list[list[int]]]:
    """Probability and patches by position."""
    foreground, patches = np.zeros(shape, int), np.zeros(shape, int)
    for row in rows:
        height, width = row["grid_rows"], row["grid_cols"]
        for k, label in enumerate(row["labels"]):
            i, j = divmod(k, width)
            if scaled:
                i, j = (2 * i + 1) * shape[0] // (2 * height), (2 * j + 1) * shape[1] // (2 * width)
            foreground[i, j] += label == 1
            patches[i, j] += label != 255
    return (foreground / np.maximum(patches, 1)).tolist(), patches.tolist()


def as_json(figures: Any) -> Any:
    """As it comes out of JSON that has no NaN in it."""
    text = json.dumps(msgspec.to_builtins(figures), allow_nan=False)
    return json.loads(text)


def close(value: Any) -> Any:
    """A nested value whose floats need to be equal to 1e-12 only."""
    if isinstance(value, dict):
        return {key: close(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [close(each) for each in value]
    return pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float) else value


def check_against_loops(build: Build, grid: str | None = None, split: str | None = None) -> Figures:
    figures = tokenlabels.statistics(build, grid=grid, split=split)
    found, expected = as_json(figures), plain_figures(build, grid, split)
    for key, value in expected.items():
        assert found[key] == close(value), key
    return figures


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_what_loops_count(kind: str, built: Callable[[str], Build]) -> None:
    build = built(kind)
    parameters = build.manifest["parameters"]
    figures = check_against_loops(build)
    assert (figures.path, figures.source, figures.grid) == (str(build.path), "coco", next(iter(build.grids)))
    assert (figures.rule, figures.tau) == (parameters["rule"], parameters["tau"])
    assert figures.inclusive == (parameters["rule"] != "pixel-ratio")
    assert figures.empty_share == figures.empty_images / figures.images > 0, "the sample has images without annotations"
    assert figures.lost_share == figures.lost_objects / figures.annotations
    assert (figures.ignored > 0) == ("ignore" in str(KINDS[kind]) and kind != "native")
    assert (figures.tau_curve is None) == (kind == "no scores")


@pytest.mark.parametrize(("grid", "split"), [("384x192-p32", None), (None, "val"), ("384x192-p32", "train")])
def test_one_grid_and_one_split(grid: str | None, split: str | None, built: Callable[[str], Build]) -> None:
    figures = check_against_loops(built("overlap"), grid, split)
    assert figures.grid == (grid or "384x192-p16")
    assert [each.split for each in figures.splits] == ([split] if split else ["train", "val"])


@pytest.mark.parametrize("kind", ["overlap", "jaccard", "native"])
def test_patches_per_object_in_doubling_bins(kind: str, built: Callable[[str], Build]) -> None:
    patches = [count for row in built(kind).table().to_pylist() for count in row["objects"]["patches"]]
    edges = [0.0, 1.0]
    while edges[-1] <= max(patches):
        edges.append(2 * edges[-1])
    assert as_json(tokenlabels.statistics(built(kind)).patches_per_object) == close(plain_distribution(patches, edges))


def test_lost_objects_are_told_smallest_first_and_every_category_has_its_turn(built: Callable[[str], Build]) -> None:
    build = built("jaccard")
    found = tokenlabels.statistics(build).lost_examples
    expected: dict[int, list[tuple[Any, ...]]] = {}
    for split in build.splits:
        for row in build.table(split=split).to_pylist():
            things = [row["objects"][name] for name in ("patches", "category", "id", "area", "bbox")]
            for patches, category, number, area, bbox in zip(*things, strict=True):
                if patches == 0:
                    name = build.categories[category].name
                    one = (split, row["image_id"], row["file_name"], number, name, area, tuple(bbox))
                    expected.setdefault(category, []).append(one)
    queues = [sorted(expected[category], key=lambda one: one[5]) for category in sorted(expected)]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    assert len(turns) > 3
    assert [msgspec.structs.astuple(each) for each in found] == turns


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), max_size=40))
@settings(deadline=None)
def test_lost_objects_chosen_by_parts_are_those_chosen_at_once(objects: list[tuple[int, int, int]]) -> None:
    """`objects`: category, area, part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats_objects, "LOST_EXAMPLES", 7)
        ordered = sorted(objects, key=lambda each: each[2])
        frame = (
            spread([])
            .clear(len(ordered))
            .with_columns(
                id=pl.Series([*range(len(ordered))], dtype=pl.Int64),
                category=pl.Series([each[0] for each in ordered], dtype=pl.Int32),
                area=pl.Series([each[1] for each in ordered], dtype=pl.Float32),
            )
        )
        ends = [sum(each[2] < part for each in ordered) for part in range(6)]
        merged = spread([])
        for first, last in itertools.pairwise(ends):
            merged = spread([merged, spread([frame[first:last]])])
        assert merged["id"].to_list() == spread([frame])["id"].to_list()


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "no scores"])
def test_the_curve_is_what_relabelling_gives(kind: str, built: Callable[[str], Build], tmp_path: Path) -> None:
    build = built(kind)
    curve = tokenlabels.statistics(build).tau_curve
    assert curve is not None
    assert curve.tau == list(TAU_STOPS)
    own = build.manifest["parameters"]["tau"]
    for stop in sorted({0, 1, 10, 29, 50, 57, 100, round(own * 100)}):
        relabelled = tokenlabels.relabel(build, TAU_STOPS[stop], tmp_path / str(stop))
        table = relabelled.table(next(iter(build.grids)))
        foreground, ignored = (sum(table.column(name).to_pylist()) for name in ("fg_count", "ignore_count"))
        patches = sum(map(len, table.column("labels").to_pylist()))
        assert (curve.foreground[stop], curve.ignored[stop]) == (foreground, ignored), stop
        assert curve.fg_share[stop] == (foreground / (patches - ignored) if foreground else 0)
    shown = tokenlabels.statistics(build)
    assert (shown.foreground, shown.ignored) == tuple(
        each[round(own * 100)] for each in (curve.foreground, curve.ignored)
    )


@pytest.mark.parametrize(("rule", "passes_at_own"), [("overlap", True), ("pixel-ratio", False)])
def test_scores_exactly_at_a_stop(
    rule: str, passes_at_own: bool, write_json: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    """Ten patches of 10 x 10 pixels, the k-th covered by k tenths (k = 1 to 10): stored as float32(k / 10)."""
    boxes = [[10 * k, 0, 10, k + 1] for k in range(10)]
    annotations = [
        {
            "id": k + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "iscrowd": 0,
        }
        for k, (x, y, w, h) in enumerate(boxes)
    ]
    path = write_json(
        tmp_path / "instances_x.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 10}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": annotations,
        },
    )
    build = tokenlabels.build("coco", annotations=path, out=tmp_path / "out", patch=10, image_size="native", rule=rule)
    scores = build.table().column("scores").to_pylist()[0]
    assert scores == [float(np.float32(k / 10)) for k in range(1, 11)]
    curve = tokenlabels.statistics(build).tau_curve
    assert curve is not None
    for tenth in range(11):
        above = 10 - tenth
        assert curve.foreground[10 * tenth] == above + (1 if passes_at_own and tenth else 0)
        relabelled = tokenlabels.relabel(build, TAU_STOPS[10 * tenth], tmp_path / f"at-{tenth}")
        assert curve.foreground[10 * tenth] == sum(relabelled.table().column("fg_count").to_pylist())


NEAR_STOPS = st.builds(
    lambda stop, towards: np.nextafter(stop, np.float32(towards)) if towards is not None else stop,
    st.sampled_from(list(THRESHOLDS)),
    st.sampled_from([None, -1.0, 2.0]),
)


@given(st.lists(NEAR_STOPS | st.floats(0, 1, width=32).map(np.float32), max_size=60), st.booleans())
@settings(deadline=None)
def test_passing_scores_are_compared_in_float32(scores: list[np.float32], inclusive: bool) -> None:
    found = count_passing(np.array(scores, np.float32), inclusive)
    for stop, count in zip(TAU_STOPS, found.tolist(), strict=True):
        tau = np.float32(stop)
        assert count == sum(bool(score >= tau if inclusive else score > tau) for score in scores)


# --- pieces -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=5), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_flags_by_position_of_grids_that_differ(shapes: list[tuple[int, int]], seed: int) -> None:
    rows, cols = (np.array([shape[axis] for shape in shapes], np.int64) for axis in (0, 1))
    cells = np.concatenate([[0], np.cumsum(rows * cols)]).astype(np.int64)
    flags = np.random.default_rng(seed).random(cells[-1]) < 0.5
    expected = np.zeros((24, 24), np.int64)
    for (height, width), first in zip(shapes, cells, strict=False):
        for i in range(height):
            for j in range(width):
                place = (2 * i + 1) * 24 // (2 * height), (2 * j + 1) * 24 // (2 * width)
                expected[place] += flags[first + i * width + j]
    assert np.array_equal(position_sums(flags, rows, cols, cells, None), expected)


@pytest.mark.parametrize("images", [0, 1, 255, 256, 700])
def test_flags_by_position_of_one_shape_do_not_overflow_a_byte(images: int) -> None:
    flags = np.ones(images * 6, np.bool_)
    sizes = np.full(images, 2), np.full(images, 3), 6 * np.arange(images + 1)
    assert position_sums(flags, *sizes, (2, 3)).tolist() == [[images] * 3] * 2


@given(
    st.lists(st.lists(st.tuples(st.sampled_from([0, 1, 2, NO_CATEGORY]), st.sampled_from([0, 1, 255])), max_size=6)),
    st.sampled_from([1, 4, 1 << 24]),
)
@settings(deadline=None)
def test_majority_categories(images: list[list[tuple[int, int]]], room: int) -> None:
    cells = np.cumsum([0, *map(len, images)], dtype=np.int64)
    flat = [pair for image in images for pair in image]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenlabels.stats_cells._PRESENCE_CELLS", room)
        patches, seen = category_sums(
            np.array([pair[0] for pair in flat], np.uint16), np.array([pair[1] for pair in flat], np.uint8), cells, 3
        )
    assert patches.tolist() == [flat.count((k, 1)) for k in range(3)]
    assert seen.tolist() == [sum((k, 1) in image for image in images) for k in range(3)]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.35, 0.5, 1.0]), min_size=1, max_size=50))
@settings(deadline=None)
def test_distributions_of_counted_values_are_those_of_the_values(values: list[float]) -> None:
    edges = np.arange(21) / 20
    unique, counts = np.unique(values, return_counts=True)
    found = distribution(unique[::-1], counts[::-1].astype(np.int64), edges)
    assert as_json(found) == close(plain_distribution(values, edges.tolist()))


def test_a_distribution_of_nothing() -> None:
    nothing: NDArray[np.int64] = np.zeros(0, np.int64)
    assert as_json(patch_distribution(nothing, nothing)) == {
        "count": 0, "mean": 0.0, "std": 0.0, "quantiles": [], "edges": [0.0, 1.0], "counts": [0],
    }  # fmt: skip


@pytest.mark.parametrize("offset", [0, 3, 8, 11])
def test_packed_flags_with_an_offset(offset: int) -> None:
    flags = np.random.default_rng(offset).random(40) < 0.5
    array = pa.array(flags)[offset:]
    assert plain(array.type, array.buffers(), array.offset, len(array)).tolist() == flags[offset:].tolist()


def test_a_build_without_annotations(write_json: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [],
    }
    path = write_json(tmp_path / "instances_x.json", document)
    figures = tokenlabels.statistics(tokenlabels.build("coco", annotations=path, out=tmp_path / "out"))
    found = as_json(figures)
    assert (found["images"], found["annotations"], found["foreground"], found["by_size"]) == (1, 0, 0, [])
    assert (found["lost_share"], found["empty_share"], found["lost_examples"]) == (0, 1, [])
    assert found["by_category"] == [close(plain_objects("thing", [], 576))]
    assert found["baselines"] == {"majority": 1.0, "majority_label": 0, "position_prior": 1.0}
    assert found["class_weights"] == {"background": 0.5, "foreground": 0.0}


def test_a_build_where_all_is_ignored(small: Build) -> None:
    def ignored(table: pa.Table) -> pa.Table:
        table = replaced(table, "labels", [[255] * len(row) for row in table.column("labels").to_pylist()])
        table = replaced(table, "ignore_count", [64] * table.num_rows)
        return replaced(table, "fg_count", [0] * table.num_rows)

    edit(small.files()[0], ignored)
    found = as_json(tokenlabels.statistics(small))
    assert (found["fg_share"], found["fg_share_per_image"]["count"]) == (0, 0)
    assert found["baselines"] == {"majority": 0.0, "majority_label": 0, "position_prior": 0.0}
    assert found["class_weights"] == {"background": 0.0, "foreground": 0.0}


def test_a_build_of_majority_categories(small: Build) -> None:
    """As semantic sources will write it: no objects, a category and its share for each patch."""
    path = small.files()[0]
    labels = small.table().column("labels").to_pylist()
    categories = [[(k + row) % 3 if (k + row) % 3 < 2 else NO_CATEGORY for k in range(64)] for row in range(2)]

    def semantic(table: pa.Table) -> pa.Table:
        nothing: list[Row] = [{name: [] for name in row} for row in table.column("objects").to_pylist()]
        table = replaced(table, "objects", nothing)
        table = table.append_column("categories", pa.array(categories, pa.list_(pa.uint16())))
        return table.append_column("category_share", pa.array([[0.5] * 64] * 2, pa.list_(pa.float32())))

    edit(path, semantic)
    figures = tokenlabels.statistics(small)
    counted = sum(label != 255 for row in labels for label in row)
    expected = []
    for index, category in enumerate(small.categories):
        held = [
            [c == index and label == 1 for c, label in zip(*row, strict=True)]
            for row in zip(categories, labels, strict=True)
        ]
        patches = sum(map(sum, held))
        expected.append((category.name, 0, sum(map(any, held)), patches, 0.0, patches / counted, 0, 0.0))
    assert sum(each[3] for each in expected) > 0
    assert [msgspec.structs.astuple(each) for each in figures.by_category] == expected
    assert (figures.by_size, figures.lost_objects, figures.annotations) == ([], 0, 0)
    edit(path, lambda table: replaced(table, "categories", [[2] * 64] * 2))
    with pytest.raises(NotABuildError, match=r"outside the table of 2: run the same build command"):
        tokenlabels.statistics(small)


@pytest.mark.parametrize(
    ("area", "counts"), [(1023.9, [3, 0, 0]), (1024.0, [0, 3, 0]), (9215.9, [0, 3, 0]), (9216.0, [0, 0, 3])]
)
def test_sizes_begin_at_their_limits(area: float, counts: list[int], small: Build) -> None:
    edit(small.files()[0], lambda table: with_objects(table, area=area))
    by_size = tokenlabels.statistics(small).by_size
    assert [(each.name, each.objects) for each in by_size] == list(
        zip(("small", "medium", "large"), counts, strict=True)
    )
    assert [each.images for each in by_size] == [2 if count else 0 for count in counts]


def test_progress_tells_every_row(built: Callable[[str], Build]) -> None:
    class Counter:
        def __init__(self) -> None:
            self.stages: list[tuple[str, int | None]] = []
            self.done = 0

        def stage(self, name: str, total: int | None = None) -> None:
            self.stages.append((name, total))

        def advance(self, steps: int) -> None:
            self.done += steps

        def note(self, text: str) -> None:
            raise AssertionError(text)

    counter = Counter()
    tokenlabels.compare([built("overlap"), built("overlap")], progress=counter)
    assert counter.stages == [("reading labels", 16), ("reading labels", 16), ("comparing labels", 16)]
    assert counter.done == 48


# --- agreement --------------------------------------------------------------------------------------------------------


def plain_agreement(builds: list[Build], grid: str | None = None) -> dict[str, Any]:
    """Agreement by loops over dictionaries of images."""
    held = [
        {
            (split, row["image_id"]): row["labels"]
            for split in build.splits
            for row in build.table(grid, split).to_pylist()
        }
        for build in builds
    ]
    keys = [key for key in held[0] if all(key in each for each in held)]
    columns = [column for key in keys for column in zip(*(each[key] for each in held), strict=True)]
    columns = [column for column in columns if 255 not in column]
    total = len(columns)
    agreement, kappas = [], []
    for i in range(len(builds)):
        equal = [sum(column[i] == column[j] for column in columns) / total for j in range(len(builds))]
        ones = [sum(column[j] for column in columns) / total for j in range(len(builds))]
        chance = [ones[i] * ones[j] + (1 - ones[i]) * (1 - ones[j]) for j in range(len(builds))]
        agreement.append(equal)
        kappas.append([(po - pe) / (1 - pe) for po, pe in zip(equal, chance, strict=True)])
    return {"images": len(keys), "patches": total, "agreement": agreement, "kappa": kappas}


def check_agreement(builds: list[Build], grid: str | None = None) -> list[str]:
    found = tokenlabels.compare(builds, grid=grid)
    assert found.reason is None
    assert found.builds == [tokenlabels.statistics(build, grid=grid) for build in builds]
    shown = as_json(found.agreement)
    names: list[str] = shown.pop("names")
    for key, value in plain_agreement(builds, grid).items():
        assert shown[key] == close(value), key
    assert all(shown["kappa"][k][k] == 1 for k in range(len(builds)))
    return names


def test_rules_and_policies_compared(built: Callable[[str], Build], tmp_path: Path) -> None:
    kinds = ["pixel-ratio", "crowds ignored", "no scores"]
    assert check_agreement([built(kind) for kind in kinds]) == ["pixel-ratio 0.1", "overlap 0.9", "overlap 0.5"]


def test_taus_compared_on_a_second_grid_of_several_shards(built: Callable[[str], Build], tmp_path: Path) -> None:
    low = tokenlabels.relabel(built("overlap"), 0.1, tmp_path / "low")
    assert check_agreement([built("overlap"), low], "384x192-p32") == ["overlap 0.5", "overlap 0.1"]


def test_grids_that_differ_from_image_to_image_compared(built: Callable[[str], Build], tmp_path: Path) -> None:
    check_agreement([built("native"), tokenlabels.relabel(built("native"), 0.05, tmp_path / "low")])


def test_images_are_matched_whatever_their_order(
    built: Callable[[str], Build], sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order, other shards, some images only: labels are looked up by split and image id."""
    monkeypatch.setattr("tokenlabels.agreement._KEPT_CELLS", 1)
    for file in (sample_root / "annotations").glob("instances_*.json"):
        document = json.loads(file.read_text())
        document["images"] = [image for image in document["images"][::-1] if image["id"] % 3]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [each for each in document["annotations"] if each["image_id"] in kept]
        target = tmp_path / "root" / "annotations" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document))
    out = tmp_path / "other"
    other = tokenlabels.build(
        "coco", root=tmp_path / "root", out=out, rule="pixel-ratio", image_size="384x192", shard_rows=2
    )
    for pair in ([built("overlap"), other], [other, built("overlap")]):
        check_agreement(pair, "384x192-p16")


def test_labels_of_rows_in_any_order(built: Callable[[str], Build]) -> None:
    reader = LabelReader(built("native"), "native-p24x16", None)
    labels = built("native").table().column("labels").to_pylist()
    rows = [7, 15, 0, 7, 3, 14]
    sizes, values = reader.labels(np.array(rows, np.int64))
    assert sizes.tolist() == [len(labels[row]) for row in rows]
    assert values.tolist() == [label for row in rows for label in labels[row]]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param((5, 5, 5, 10), 1.0, id="the same labels"),
        pytest.param((0, 5, 5, 10), -1.0, id="opposite labels"),
        pytest.param((10, 10, 10, 10), 1.0, id="both always foreground"),
        pytest.param((0, 0, 0, 10), 1.0, id="both always background"),
        pytest.param((0, 0, 5, 10), 0.0, id="one always background"),
        pytest.param((20, 25, 30, 50), 0.4, id="the textbook's 20, 5, 10, 15"),
    ],
)
def test_kappa(counts: tuple[int, int, int, int], expected: float) -> None:
    assert kappa(*counts) == pytest.approx(expected)


def test_what_cannot_be_compared_says_why(built: Callable[[str], Build], small: Build, tmp_path: Path) -> None:
    plain_build, other = built("jaccard"), built("native")
    cases = [
        ([plain_build], "only one build"),
        ([plain_build, other], r"different grids \(384x384-p16, native-p24x16\)"),
    ]
    for builds, says in cases:
        found = tokenlabels.compare(builds)
        assert len(found.builds) == len(builds)
        assert found.agreement is None
        assert found.reason is not None
        assert re.search(says, found.reason)
    with pytest.raises(ParameterError, match="no builds"):
        tokenlabels.compare([])
    with pytest.raises(ParameterError, match="no grid '384x384-p16'"):
        tokenlabels.compare([plain_build, other], grid="384x384-p16")


def test_builds_named_alike_bear_their_folders(
    built: Callable[[str], Build], sample_root: Path, tmp_path: Path
) -> None:
    jaccard, same = built("jaccard"), built("letterbox")
    assert build_names([jaccard, same, built("native")]) == [
        "jaccard 0.02",
        "overlap 0.5 (letterbox)",
        "overlap 0.5 (native)",
    ]
    assert build_names([same, same]) == ["overlap 0.5 (#1)", "overlap 0.5 (#2)"]


# --- bad input --------------------------------------------------------------------------------------------------------


def edit(path: Location, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a shard with other columns and the same metadata."""
    assert isinstance(path, Path)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def replaced(table: pa.Table, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, pa.array(values, kind or table.schema.field(name).type))


def with_objects(table: pa.Table, **values: Any) -> pa.Table:
    rows = table.column("objects").to_pylist()
    for name, value in values.items():
        for row in rows:
            row[name] = [value] * len(row[name])
    return replaced(table, "objects", rows)


DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a row less": (lambda t: t.slice(1), "has 1 rows where the manifest says 2"),
    "no scores": (lambda t: t.drop_columns("scores"), "has no column 'scores'"),
    "no ignored": (lambda t: t.drop_columns("ignored"), "has no column 'ignored'"),
    "no objects": (lambda t: t.drop_columns("objects"), "has no column 'objects'"),
    "wide labels": (
        lambda t: replaced(t, "labels", [[0] * 64] * 2, pa.list_(pa.int64())),
        "has a column 'labels' of another type than builds write (list<element: int64>, not list<",
    ),
    "wide counts": (lambda t: replaced(t, "fg_count", [0, 0], pa.int64()), "(int64, not int32)"),
    "other objects": (
        lambda t: replaced(t, "objects", [[1], []], pa.list_(pa.int32())),
        "has a column 'objects' of another type than builds write: ",
    ),
    "short labels": (lambda t: replaced(t, "labels", [[0] * 63] * 2), "other than grid_rows x grid_cols"),
    "short scores": (lambda t: replaced(t, "scores", [[0] * 65] * 2), "values in column 'scores'"),
    "another grid": (lambda t: replaced(t, "grid_rows", [4, 4]), "a grid other than 8 x 8"),
    "no size": (lambda t: replaced(t, "width", [0, 5]), "without size"),
    "label 2": (lambda t: replaced(t, "labels", [[2] * 64] * 2), "labels other than 0, 1 and 255"),
    "other counts": (lambda t: replaced(t, "fg_count", [0, 0]), "disagree with its column 'fg_count'"),
    "NaN score": (lambda t: replaced(t, "scores", [[math.nan] * 64] * 2), "scores outside 0..1"),
    "score 1.5": (lambda t: replaced(t, "scores", [[1.5] * 64] * 2), "scores outside 0..1"),
    "null label": (lambda t: replaced(t, "labels", [[None] * 64] * 2), "nulls in column 'labels'"),
    "null row": (lambda t: replaced(t, "labels", [None, [0] * 64]), "nulls in column 'labels'"),
    "null id": (lambda t: replaced(t, "image_id", [None, "2"]), "nulls in column 'image_id'"),
    "category 2": (lambda t: with_objects(t, category=2), "outside the table of 2"),
    "category -1": (lambda t: with_objects(t, category=-1), "outside the table of 2"),
    "null category": (lambda t: with_objects(t, category=None), "an object without values"),
    "NaN area": (lambda t: with_objects(t, area=math.nan), "an object without values"),
    "NaN box": (lambda t: with_objects(t, bbox=[0, math.nan, 1, 1]), "an object without values"),
    "patches -1": (lambda t: with_objects(t, patches=-1), "an object without values"),
    "lists that differ": (
        lambda t: replaced(t, "objects", [row | {"id": [1, 2, 3]} for row in t.column("objects").to_pylist()]),
        "differ in length",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_was_changed_is_one_sentence(damage: str, small: Build) -> None:
    change, says = DAMAGE[damage]
    path = small.files()[0]
    edit(path, change)
    for look in (tokenlabels.statistics, lambda build: tokenlabels.compare([build, build])):
        with pytest.raises(NotABuildError) as raised:
            look(small)
        text = str(raised.value)
        assert says in text
        assert text.startswith(f"{path}: ")
        assert text.endswith(": run the same build command again to mend it.")
        assert "\n" not in text


@pytest.mark.parametrize("policy", ["crowd", "void", "difficult"])
def test_whatever_is_ignored_needs_its_column(policy: str, sample_root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {policy: "ignore"}
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "labels", **options)
    edit(build.files()[0], lambda table: table.drop_columns("ignored"))
    with pytest.raises(NotABuildError, match="has no column 'ignored'"):
        tokenlabels.statistics(build)


def test_a_missing_or_damaged_shard_is_one_sentence(small: Build) -> None:
    path = small.files()[0]
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    zeroed = whole[:4] + bytes(len(whole) - footer - 4) + whole[-footer:]
    for content in (whole[:-10], b"", zeroed):
        path.write_bytes(content)
        with pytest.raises(NotABuildError, match=r"is damaged or no shard: run the same build command again"):
            tokenlabels.statistics(small)
    path.unlink()
    with pytest.raises(NotABuildError, match="is missing: run the same build command again"):
        tokenlabels.statistics(small)


def test_shards_with_different_columns_are_one_sentence(sample_root: Path, tmp_path: Path) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out")
    second = build.files()[1]
    edit(second, lambda table: table.append_column("note", table.column("image_id")))
    with pytest.raises(NotABuildError, match=f"{second}: has other columns than {build.files()[0].name}: run the same"):
        tokenlabels.statistics(build)


def test_a_shard_that_only_polars_cannot_read_is_named(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tokenlabels.build("coco", root=sample_root, out=tmp_path / "out")
    whole, good = build.files()[1].read_bytes(), tokenlabels.statistics(build)

    def damage_first(frame: pl.LazyFrame) -> pl.DataFrame:
        monkeypatch.undo()
        build.files()[1].write_bytes(whole[: len(whole) // 2])
        return row_counts(frame)

    monkeypatch.setattr("tokenlabels.stats.row_counts", damage_first)
    with pytest.raises(NotABuildError, match=f"{build.files()[1]}: is damaged or no shard: run the same"):
        tokenlabels.statistics(build)
    build.files()[1].write_bytes(whole)
    assert tokenlabels.statistics(build) == good
    assert str(unreadable(build.files())).startswith(f"{build.path / good.grid}: ")


def test_a_manifest_that_was_changed_is_one_sentence(small: Build) -> None:
    file = small.path / "manifest.json"
    original = json.loads(file.read_text())
    for name, value in (("tau", 0.25), ("rule", "jaccard")):
        file.write_text(json.dumps(original | {"parameters": original["parameters"] | {name: value}}))
        with pytest.raises(NotABuildError, match=f"is of {name} .* where the manifest says {value!r}"):
            tokenlabels.statistics(tokenlabels.open(small.path))
    file.write_text(json.dumps(original | {"categories": original["categories"][:1]}))
    with pytest.raises(NotABuildError, match="outside the table of 1"):
        tokenlabels.statistics(tokenlabels.open(small.path))
    counts = {name: each | {"images": each["images"] + 1} for name, each in original["splits"].items()}
    file.write_text(json.dumps(original | {"splits": counts}))
    with pytest.raises(NotABuildError, match=r"manifest.json: says .* images of .*, the shards hold"):
        tokenlabels.statistics(tokenlabels.open(small.path))


def test_unknown_grids_and_splits_are_named(built: Callable[[str], Build]) -> None:
    for grid, split, says in (("x", None, "no grid 'x'"), (None, "x", "no split 'x'")):
        with pytest.raises(ParameterError, match=says):
            tokenlabels.statistics(built("overlap"), grid=grid, split=split)
        with pytest.raises(ParameterError, match=says):
            tokenlabels.compare([built("overlap")], grid=grid, split=split)


# --- real annotations -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco_root() -> Path:
    """Folder of the real COCO sample beside the repository; tests that need it are skipped where it is absent."""
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"
    if not (root / "annotations").is_dir():
        pytest.skip(f"no COCO sample in {root}")
    return root


@pytest.mark.slow
def test_real_coco_against_loops(coco_root: Path, tmp_path: Path) -> None:
    builds = [
        tokenlabels.build("coco", root=coco_root, out=tmp_path / rule, rule=rule, crowd="ignore", shard_rows=100)
        for rule in ("overlap", "pixel-ratio")
    ]
    for build in builds:
        check_against_loops(build)
    check_agreement(builds)
