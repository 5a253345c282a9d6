"""Semantic masks against float64 weight matrices over `values == value`, and what becomes of faulty ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import numpy as np
import polars as pl
import pytest
from helpers import shards, shares
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import BuildMismatchError, FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.known import known_datasets
from tokenlabels.reader import Build
from tokenlabels.relabeler import relabel

pytestmark = pytest.mark.filterwarnings("error")

Values: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]
Invoke: TypeAlias = Callable[..., Result]

NONE = 65_535
CLOSE = 1e-6
"""Largest difference between a float32 share and its oracle."""

SURE = 1e-7
"""Shares closer to one half, or to each other, than this are left to the tests of exact halves."""


# --- data sets --------------------------------------------------------------------------------------------------------


def save(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(root: Path, masks: Mapping[str, Values], *, pictures: bool = True) -> dict[str, Path]:
    """Masks, and a grey picture for each; returns the places of the two folders."""
    for name, pixels in masks.items():
        save(root / "masks" / f"{name}.png", pixels)
        if pictures:
            save(root / "images" / f"{name}.jpg", np.zeros_like(pixels))
    return {"masks": root / "masks"} | ({"images": root / "images"} if pictures else {})


def random_masks(*names: str, values: int = 5, seed: int = 0) -> dict[str, Values]:
    """Masks of blobs and single pixels, sizes from 30 to 60."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name in names:
        height, width = rng.integers(30, 60, 2)
        coarse = rng.integers(0, values, (8, 8))
        pixels = np.kron(coarse, np.ones((8, 8), np.int64))[:height, :width]
        noise = rng.random((height, width)) < 0.05
        masks[name] = np.where(noise, rng.integers(0, values, (height, width)), pixels).astype(np.uint8)
    return masks


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """Three images, values 0 to 4."""
    return write(tmp_path, random_masks("a", "b", "sub/c"))


def make(out: Path, places: Mapping[str, Any], **options: Any) -> Build:
    return tokenlabels.build("semantic", out=out, **{"patch": 8, "image_size": 32} | {**places, **options})


def rows(build: Build, grid: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = build.table(grid).to_pylist()
    return found


def column(build: Build, name: str) -> list[Any]:
    return [row[name] for row in rows(build)]


# --- oracles ----------------------------------------------------------------------------------------------------------


def assert_row(
    row: Mapping[str, Any],
    pixels: Values,
    grid: PatchGrid,
    table: Sequence[int],
    *,
    foreground: set[int],
    void: set[int],
    policy: str = "background",
    tau: float = 0.1,
) -> None:
    """One row against the masks; `table` has the value of each category."""
    covered = np.array([shares(pixels == value, grid) for value in table])
    unclear = shares(np.isin(pixels, list(void)), grid)
    counted = foreground | (void if policy == "foreground" else set())
    scores = np.array(row["scores"])
    np.testing.assert_allclose(scores, shares(np.isin(pixels, list(counted)), grid), atol=CLOSE)

    passes = np.float32(scores) > np.float32(tau)
    sure = np.abs(unclear - 0.5) > SURE
    ignored = (unclear > 0.5) & (policy == "ignore")
    labels = np.where(passes, 1, np.where(ignored, 255, 0))
    np.testing.assert_array_equal(np.array(row["labels"])[sure], labels[sure])
    assert row["fg_count"] == int(passes.sum())

    best = np.argmax(covered, axis=0)
    largest = covered.max(axis=0)
    ranked = np.sort(np.vstack([covered, np.zeros_like(largest)]), axis=0)
    clear = sure & ((ranked[-1] - ranked[-2] > SURE) | (largest == 0))
    nothing = (unclear > 0.5) | (largest == 0)
    np.testing.assert_array_equal(np.array(row["categories"])[clear], np.where(nothing, NONE, best)[clear])
    shown = np.where(nothing, 0.0, largest)
    np.testing.assert_allclose(np.array(row["category_share"])[sure], shown[sure], atol=CLOSE)


GRIDS: list[dict[str, Any]] = [
    {"resize": "squash", "patch": [8, "4x16"], "image_size": [32, "24x80"]},
    {"resize": "letterbox", "patch": [8, "4x8"], "image_size": ["40x56", 64]},
    {"resize": "shortest-edge", "patch": [8, "6x10"], "image_size": [30, 40], "max_size": 72},
    {"resize": "native", "patch": [16, "5x7"], "image_size": "native"},
]


@pytest.mark.parametrize("policy", ["background", "foreground", "ignore"])
@pytest.mark.parametrize("grids", GRIDS, ids=lambda grids: str(grids["resize"]))
def test_against_the_oracle(tmp_path: Path, grids: dict[str, Any], policy: str) -> None:
    masks = random_masks("a", "b", "c", seed=3)
    built = make(tmp_path / "out", write(tmp_path, masks), void=policy, ignore=4, **grids)
    assert len(built.grids) == (2 if grids["resize"] == "native" else 4)
    for name, grid in built.grids.items():
        for row in rows(built, name):
            pixels = masks[row["image_id"]]
            assert_row(row, pixels, grid, [0, 1, 2, 3], foreground={1, 2, 3}, void={4}, policy=policy)


@st.composite
def drawn_masks(draw: st.DrawFn) -> Values:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    pool = draw(st.lists(st.sampled_from([0, 1, 2, 7, 254, 255]), min_size=1, max_size=4))
    cells = draw(st.lists(st.sampled_from(pool), min_size=16, max_size=16))
    picked = np.array(cells, np.uint8).reshape(4, 4)
    return picked[np.arange(height)[:, None] * 4 // height, np.arange(width)[None, :] * 4 // width]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(drawn_masks(), min_size=1, max_size=3), st.sampled_from(GRIDS), st.sampled_from(["ignore", "foreground"])
)
def test_any_masks_against_the_oracle(drawn: list[Values], grids: dict[str, Any], policy: str) -> None:
    masks = {f"{index}": pixels for index, pixels in enumerate(drawn)}
    with tempfile.TemporaryDirectory() as folder:
        built = make(Path(folder) / "out", write(Path(folder), masks, pictures=False), void=policy, **grids)
        table = [category.id for category in built.categories]
        assert table == list(range(len(table)))
        for name, grid in built.grids.items():
            for row in rows(built, name):
                pixels = masks[row["image_id"]]
                known = {value for value in table if value}
                assert_row(row, pixels, grid, table, foreground=known, void={255}, policy=policy)


def test_exactly_half_void_is_not_void(tmp_path: Path) -> None:
    """More than half; a tie of two categories goes to the first of the table."""
    half = np.full((8, 24), 255, np.uint8)
    half[:4, :8] = 3
    half[:4, 8:12], half[:4, 12:16] = 2, 1
    half[:5, 16:20], half[5:, 16:20] = 255, 3
    built = make(tmp_path / "out", write(tmp_path, {"a": half}), image_size="native", void="ignore", tau=0.5)
    (row,) = rows(built)
    assert row["categories"] == [3, 1, NONE]
    assert row["category_share"] == [0.5, 0.25, 0.0]
    assert row["ignored"] == [False, False, True]
    assert row["labels"] == [0, 0, 255]


@pytest.fixture(scope="module")
def voc_masks() -> dict[str, Path]:
    """Real VOC masks beside the repository; tests that need them are skipped where they are absent."""
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "voc" / "VOCdevkit" / "VOC2012"
    if not (root / "SegmentationClass").is_dir():
        pytest.skip(f"no VOC sample in {root}")
    return {"root": root, "masks": root / "SegmentationClass", "images": root / "JPEGImages"}


@pytest.mark.slow
def test_every_mask_of_voc_against_the_oracle(voc_masks: dict[str, Path], tmp_path: Path) -> None:
    places = {name: voc_masks[name] for name in ("masks", "images")}
    built = make(tmp_path / "out", places, categories="voc", void="ignore", patch=16, image_size=[384, "224x320"])
    assert [(c.id, c.name) for c in built.categories][:2] == [(0, "background"), (1, "aeroplane")]
    assert built.manifest["findings"] == {"SEM055": 5}
    for name, grid in built.grids.items():
        found = rows(built, name)
        assert len(found) == 57
        for row in found:
            pixels = np.asarray(Image.open(voc_masks["masks"] / f"{row['image_id']}.png"))
            assert_row(row, pixels, grid, range(21), foreground=set(range(1, 21)), void={255}, policy="ignore")


def test_voc_as_a_layout_is_the_same_rows(voc_masks: dict[str, Path], tmp_path: Path) -> None:
    built = make(tmp_path / "out", {"root": voc_masks["root"]})
    flat = make(tmp_path / "flat", {"masks": voc_masks["masks"], "images": voc_masks["images"]}, categories="voc")
    wanted = {row["image_id"]: row for row in rows(flat)}
    assert {row["image_id"]: row for row in rows(built)} == wanted
    assert built.manifest["splits"] == {
        "train": {"images": 25, "annotations": 0},
        "val": {"images": 32, "annotations": 0},
    }
    assert "PASCAL VOC" in (tmp_path / "out" / "README.md").read_text()


# --- the category table -----------------------------------------------------------------------------------------------


def table(build: Build) -> list[tuple[int, str]]:
    return [(category.id, category.name) for category in build.categories]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, "background"), (1, "1"), (2, "2"), (3, "3")]),
        ({"reduce_zero_label": True}, [(1, "1"), (2, "2"), (3, "3")]),
        ({"ignore": 0}, [(1, "1"), (2, "2"), (3, "3")]),
        ({"background": 2}, [(0, "0"), (1, "1"), (2, "background"), (3, "3")]),
        ({"background": [0, 3]}, [(0, "background 0"), (1, "1"), (2, "2"), (3, "background 3")]),
        ({"background": 9}, [(0, "0"), (1, "1"), (2, "2"), (3, "3"), (9, "background")]),
        ({"ignore": [3, 255]}, [(0, "background"), (1, "1")]),
    ],
)
def test_table_without_a_list(tmp_path: Path, options: dict[str, Any], expected: list[tuple[int, str]]) -> None:
    """Dense up to the largest value, 2 not occurring but being below it."""
    pixels = np.array([[0, 1, 3, 255]], np.uint8).repeat(4, 0)
    if options.get("reduce_zero_label") or options.get("ignore") == 0:
        pixels[pixels == 255] = 1
    assert table(make(tmp_path / "out", write(tmp_path, {"a": pixels}), **options)) == expected


@pytest.mark.parametrize(("options", "noted"), [((), True), (("--ignore", "254"), False)])
def test_masks_of_0_and_255_are_not_taken_for_background_silently(
    tmp_path: Path, invoke: Invoke, options: tuple[str, ...], noted: bool
) -> None:
    places = write(tmp_path, {"a": np.array([[0, 255]], np.uint8).repeat(4, 0)})
    named = [word for name, folder in places.items() for word in (f"--{name}", folder)]
    result = invoke("build", "semantic", *named, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert ("note: the masks hold nothing but background and ignored values" in result.stderr) == noted
    (row,) = rows(tokenlabels.open(tmp_path / "out"))
    assert (1 in row["labels"]) != noted


def test_table_spans_all_splits(tmp_path: Path) -> None:
    for split, value in (("night", 2), ("day", 5)):
        save(tmp_path / "annotations" / split / "x.png", np.full((8, 8), value, np.uint8))
        save(tmp_path / "images" / split / "x.jpg", np.zeros((8, 8), np.uint8))
    built = make(tmp_path / "out", {"root": tmp_path})
    assert list(built.manifest["splits"]) == ["day", "night"]
    assert len(built.categories) == 6
    assert {row["categories"][0] for row in rows(built)} == {2, 5}


def test_index_is_the_value(three: dict[str, Path], tmp_path: Path) -> None:
    kept = make(tmp_path / "kept", three, background=[], patch=1, image_size="native")
    reduced = make(tmp_path / "reduced", three, reduce_zero_label=True, patch=1, image_size="native")
    for first, second in zip(rows(kept), rows(reduced), strict=True):
        pixels = np.asarray(Image.open(three["masks"] / f"{first['image_id']}.png")).ravel().astype(np.int64)
        np.testing.assert_array_equal(first["categories"], pixels)
        np.testing.assert_array_equal(second["categories"], np.where(pixels, pixels - 1, NONE))
        assert set(first["category_share"]) == {1.0}


def test_background_is_in_the_table_and_not_foreground(three: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("0: ground\n1: a\n2: b\n3: c\n4: d\n")
    built = make(tmp_path / "out", three, categories=str(names), patch=1, image_size="native")
    assert table(built)[0] == (0, "ground")
    for row in rows(built):
        np.testing.assert_array_equal(row["labels"], np.array(row["categories"]) > 0)
    assert 0 in rows(built)[0]["categories"]


def test_background_that_the_list_does_not_name(three: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("1: a\n2: b\n3: c\n4: d\n")
    built = make(tmp_path / "out", three, categories=str(names))
    assert table(built)[:2] == [(0, "background"), (1, "a")]


def test_void_that_the_list_names_stays_void(three: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ground\na\nb\nc\nvoid\n")
    built = make(tmp_path / "out", three, categories=str(names), ignore=4, void="foreground")
    assert [name for _, name in table(built)] == ["ground", "a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "foreground"),
    [
        ({"categories": ["a"]}, {1}),
        ({"categories": ["a,c"]}, {1, 3}),
        ({"categories": ["ground"]}, {0}),
        ({"exclude_categories": ["a", "b"]}, {3, 4}),
        ({"categories": ["a", "b"], "exclude_categories": ["b"]}, {1}),
    ],
)
def test_selection_changes_labels_and_nothing_else(
    three: dict[str, Path], tmp_path: Path, options: dict[str, Any], foreground: set[int]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ground\na\nb\nc\nd\n")
    options = options | {"categories": [str(names), *options.get("categories", [])]}
    built = make(tmp_path / "out", three, **options)
    every = make(tmp_path / "all", three, categories=str(names))
    for name in ("categories", "category_share", "image_id"):
        assert column(built, name) == column(every, name)
    for row in rows(built):
        pixels = np.asarray(Image.open(three["masks"] / f"{row['image_id']}.png"))
        assert_row(row, pixels, built.grid, range(5), foreground=foreground, void=set())


def test_unknown_category_is_named(three: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no category 'cat' in the data set"):
        make(tmp_path / "out", three, categories=["cat"])
    with pytest.raises(ParameterError, match="two lists of categories"):
        make(tmp_path / "out", three, categories=["ade20k", "voc"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ade20k", "coco-stuff", "pascal-context", "coco-stuff train ids"])
def test_builds_of_official_layouts_find_their_card(tmp_path: Path, name: str) -> None:
    known = next(dataset for dataset in known_datasets() if dataset.name == name.split()[0])
    train_ids = name.endswith("ids")
    end = "_labelTrainIds.png" if train_ids else ".png"
    pixels = np.full((8, 8), 3, np.uint8)
    for split in known.splits:
        if name == "pascal-context":
            folders = "SegmentationClassContext", "JPEGImages"
            listed = tmp_path / "ImageSets" / "SegmentationContext" / f"{split}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("x\n")
        else:
            folders = f"annotations/{split}", f"images/{split}"
        save(tmp_path / folders[0] / f"x{end}", pixels)
        save(tmp_path / folders[1] / "x.jpg", pixels)
    built = make(tmp_path / "out", {"root": tmp_path})
    expected = known.categories[3]["name"] if train_ids else None
    offset = known.masks.offset if known.masks else 0
    expected = expected or next(entry["name"] for entry in known.categories if entry["id"] == 3 + offset)
    (index,) = set(rows(built)[0]["categories"])
    assert built.categories[index].name == expected
    assert known.pretty_name in (tmp_path / "out" / "README.md").read_text()


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows(three: dict[str, Path], tmp_path: Path) -> None:
    built = make(tmp_path / "out", three)
    assert column(built, "image_id") == ["a", "b", "sub/c"]
    assert column(built, "file_name") == ["a.jpg", "b.jpg", "sub/c.jpg"]
    for row in rows(built):
        with Image.open(three["images"] / row["file_name"]) as picture:
            assert (row["width"], row["height"]) == picture.size
        assert all(values == [] for values in row["objects"].values())
    assert built.manifest["parameters"]["rule"] == "pixel-ratio"
    assert built.manifest["findings"] == {}


def test_mask_without_picture_is_built_and_picture_without_mask_is_not(tmp_path: Path, invoke: Invoke) -> None:
    places = write(tmp_path, random_masks("a", "b", "c"))
    (places["images"] / "a.jpg").unlink()
    (places["masks"] / "b.png").unlink()
    built = make(tmp_path / "out", places)
    assert built.manifest["findings"] == {"SEM041": 1, "SEM055": 1}
    assert column(built, "image_id") == ["a", "c"]
    assert column(built, "file_name") == ["", "c.jpg"]
    assert codes(invoke, places) == {"SEM041": 1, "SEM055": 1}
    with pytest.raises(FindingsError, match=r"SEM041 .* a\.png has no image"):
        make(tmp_path / "strict", places, embed_images=True)
    lax = make(tmp_path / "lax", places, embed_images=True, on_error="skip")
    assert lax.manifest["findings"] == {"SEM041": 1, "SEM055": 1}
    assert column(lax, "image_id") == ["c"]


def test_masks_alone(tmp_path: Path) -> None:
    masks = random_masks("a", "b")
    alone = make(tmp_path / "alone", write(tmp_path, masks, pictures=False))
    assert column(alone, "file_name") == ["", ""]
    assert alone.manifest["findings"] == {}
    assert column(alone, "labels") == column(make(tmp_path / "out", write(tmp_path, masks)), "labels")


def test_limit_takes_the_first(three: dict[str, Path], tmp_path: Path) -> None:
    built = make(tmp_path / "out", three, limit=2)
    assert column(built, "image_id") == ["a", "b"]
    assert built.manifest["findings"] == {}


def test_relabel_is_the_build_at_that_tau(three: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"void": "ignore", "ignore": 4, "embed_masks": True, "patch": [8, 16]}
    built = make(tmp_path / "out", three, **options)
    again = relabel(built, 0.6, tmp_path / "again")
    wanted = make(tmp_path / "wanted", three, tau=0.6, **options)
    for grid in wanted.grids:
        assert rows(again, grid) == rows(wanted, grid)
        assert again.table(grid).schema == wanted.table(grid).schema
    assert shards(again.folder) == shards(wanted.folder)


@pytest.mark.slow
def test_same_bytes_however_it_is_run(three: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_rows": 2, "embed_masks": True, "embed_images": True}
    first = make(tmp_path / "first", three, workers=1, **options)
    second = make(tmp_path / "second", three, workers=2, **options)
    moved = {name: Path(shutil.copytree(path, tmp_path / "moved" / name)) for name, path in three.items()}
    third = make(tmp_path / "third", moved, workers=1, **options)
    assert shards(first.folder) == shards(second.folder) == shards(third.folder)
    for name in ("manifest.json", "README.md"):
        assert len({(build.path / name).read_bytes() for build in (first, second, third)}) == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ignore": 4}, "ignore was [255], now [4]"),
        ({"background": 1}, "background was [0], now [1]"),
        ({"reduce_zero_label": True}, "reduce_zero_label was False, now True"),
        ({"void": "ignore"}, "void was 'background', now 'ignore'"),
    ],
)
def test_another_reading_of_values_is_another_build(
    three: dict[str, Path], tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    built = make(tmp_path / "out", three)
    assert {name: built.manifest["parameters"][name] for name in ("ignore", "background", "reduce_zero_label")} == {
        "ignore": [255],
        "background": [0],
        "reduce_zero_label": False,
    }
    with pytest.raises(BuildMismatchError) as caught:
        make(tmp_path / "out", three, **changed)
    assert named in str(caught.value)


def test_other_names_of_categories_are_another_build(three: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ground\na\nb\nc\nd\n")
    make(tmp_path / "out", three, categories=str(names))
    names.write_text("ground\nd\nc\nb\na\n")
    with pytest.raises(BuildMismatchError, match="category_table_sha256 was"):
        make(tmp_path / "out", three, categories=str(names))


def test_another_mask_file_is_noticed(three: dict[str, Path], tmp_path: Path) -> None:
    path = three["masks"] / "a.png"
    make(tmp_path / "out", three)
    assert make(tmp_path / "out", three).manifest["splits"]  # nothing changed
    pixels = np.asarray(Image.open(path)).copy()
    before = path.read_bytes()
    save(path, pixels, compress_level=0)
    with_other = path.read_bytes()
    path.write_bytes(before)
    assert before != with_other
    path.write_bytes(with_other)
    with pytest.raises(BuildMismatchError, match="sha256"):
        make(tmp_path / "out", three)
    path.write_bytes(before)
    (three["masks"] / "b.png").rename(three["masks"] / "bb.png")
    with pytest.raises(BuildMismatchError, match="sha256"):
        make(tmp_path / "out", three)


# --- readers ----------------------------------------------------------------------------------------------------------


def test_polars_and_duckdb_read_the_categories(three: dict[str, Path], tmp_path: Path) -> None:
    built = make(tmp_path / "out", three)
    frame = built.frame().collect()
    assert frame.schema["categories"] == pl.List(pl.UInt16)
    assert frame.schema["category_share"] == pl.List(pl.Float32)
    assert frame["categories"].to_list() == column(built, "categories")
    query = f"select categories, typeof(categories) from '{built.files()[0]}' order by image_id"
    found = duckdb.connect().execute(query).fetchall()
    assert [row[0] for row in found] == column(built, "categories")
    assert {row[1] for row in found} == {"USMALLINT[]"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_datasets_opens_the_build(three: dict[str, Path], tmp_path: Path) -> None:
    import datasets

    built = make(tmp_path / "out", three, embed_masks=True, embed_images=True, patch=[8, 16])
    found = datasets.load_dataset(str(built.path), "32x32-p8", split="masks", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 3
    for row in found:
        assert isinstance(row["mask"], Image.Image)
        stored = Image.open(three["masks"] / f"{row['image_id']}.png")
        np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(stored))
        assert row["image"].size == stored.size
    assert found["categories"][0] == column_of(built, "32x32-p8", "categories")[0]
    assert found.features["categories"].feature.dtype == "uint16"


def column_of(build: Build, grid: str, name: str) -> list[Any]:
    return [row[name] for row in rows(build, grid)]


# --- faults -----------------------------------------------------------------------------------------------------------


def codes(invoke: Invoke, places: Mapping[str, Path], *words: object) -> dict[str, int]:
    """Findings of `check semantic`."""
    options = [word for name, path in places.items() for word in (f"--{name}", path)]
    checked = invoke("check", "semantic", *options, *words, "--json")
    found = json.loads(checked.stdout)
    assert checked.exit_code == (1 if found["errors"] else 0)
    return {row["code"]: row["count"] for row in found["findings"]}


PIXELS = np.arange(20 * 24, dtype=np.int64).reshape(20, 24) % 4


def png_of(pixels: NDArray[Any], path: Path, **options: Any) -> None:
    Image.fromarray(pixels).save(path, **options)


def cut(path: Path, keep: int) -> None:
    save(path, np.random.default_rng(0).integers(0, 4, (200, 240)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:keep])


def damaged(path: Path) -> None:
    """A PNG with its end, whose pixels cannot be decompressed."""
    save(path, np.random.default_rng(0).integers(0, 4, (20, 24)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 8
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))


BAD_MASKS: list[Any] = [
    pytest.param(lambda path: path.write_bytes(b""), "SEM056", id="empty"),
    pytest.param(lambda path: path.write_bytes(b"no picture"), "SEM056", id="text"),
    pytest.param(lambda path: cut(path, 40), "SEM056", id="cut in its header"),
    pytest.param(lambda path: cut(path, 1000), "SEM056", id="cut short"),
    pytest.param(damaged, "SEM056", id="damaged pixels"),
    pytest.param(lambda path: path.mkdir(), None, id="a folder"),
    pytest.param(lambda path: path.symlink_to("nowhere"), "SEM055", id="a link to nothing"),
    pytest.param(lambda path: png_of(PIXELS.astype(np.uint16), path), "SEM057", id="16 bits"),
    pytest.param(lambda path: png_of(np.stack([PIXELS] * 3, 2).astype(np.uint8), path), "SEM057", id="RGB"),
    pytest.param(lambda path: png_of(np.stack([PIXELS] * 4, 2).astype(np.uint8), path), "SEM057", id="RGBA"),
    pytest.param(lambda path: png_of(np.stack([PIXELS] * 2, 2).astype(np.uint8), path), "SEM057", id="grey and alpha"),
    pytest.param(lambda path: png_of(PIXELS.astype(np.uint8), path, format="JPEG"), "SEM057", id="JPEG"),
    pytest.param(lambda path: png_of(PIXELS[:-1].astype(np.uint8), path), "SEM058", id="a row less"),
    pytest.param(lambda path: png_of(PIXELS.T.astype(np.uint8), path), "SEM058", id="turned"),
    pytest.param(lambda path: png_of((PIXELS + 4).astype(np.uint8), path), "SEM059", id="values without a name"),
]


@pytest.mark.parametrize(("spoil", "code"), BAD_MASKS)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_mask(
    spoil: Callable[[Path], object], code: str | None, workers: int, tmp_path: Path, invoke: Invoke
) -> None:
    """One fault has one code, everywhere; a build stops at it, leaves nothing, and goes on once it is mended."""
    fine = PIXELS.astype(np.uint8)
    places = write(tmp_path, dict.fromkeys("abcdef", fine))
    (tmp_path / "names").write_text("ground\na\nb\nc\n")
    bad = places["masks"] / "d.png"
    bad.unlink()
    spoil(bad)
    options: dict[str, Any] = {"categories": str(tmp_path / "names"), "shard_rows": 2, "workers": workers}
    found = codes(invoke, places, "--categories", tmp_path / "names")
    if code is None:  # a folder of that name holds no mask
        assert found == {"SEM055": 1}
        return
    assert found == {code: 1}
    lax = make(tmp_path / "lax", places, on_error="skip", **options)
    assert lax.manifest["findings"] == {code: 1}
    assert column(lax, "image_id") == list("abcef")
    if code == "SEM055":  # a warning: what is not there cannot be scored, and is left out
        return
    with pytest.raises(FindingsError, match=rf"{code} d\.png: .*nothing was built") as caught:
        make(tmp_path / "out", places, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/**/*"))
    if bad.is_dir():
        bad.rmdir()
    else:
        bad.unlink()
    save(bad, fine)
    built = make(tmp_path / "out", places, **options)
    assert column(built, "image_id") == list("abcdef")
    assert built.manifest["findings"] == {}


def test_unknown_value_is_named(tmp_path: Path, invoke: Invoke) -> None:
    pixels = PIXELS.astype(np.uint8)
    pixels[3, 4] = 77
    places = write(tmp_path, {"a": pixels})
    (tmp_path / "names").write_text("ground\na\nb\nc\n")
    with pytest.raises(FindingsError, match=r"SEM059 a\.png: .* value 77, .*--ignore or --background"):
        make(tmp_path / "out", places, categories=str(tmp_path / "names"))
    assert max(c.id for c in make(tmp_path / "free", places).categories) == 77
    assert make(tmp_path / "void", places, categories=str(tmp_path / "names"), ignore=77).manifest["findings"] == {}
    words = [word for name, path in places.items() for word in (f"--{name}", path)]
    words += ["--categories", tmp_path / "names", "--dry-run", "--out", tmp_path / "dry"]
    dry = invoke("build", "semantic", *words)
    assert dry.exit_code == 1
    assert dry.stderr.startswith("error: SEM059 a.png: the mask of image a holds the value 77")
    assert not (tmp_path / "dry").exists()


def test_many_faults_are_all_listed(tmp_path: Path, invoke: Invoke) -> None:
    places = write(tmp_path, {f"{index:02}": (PIXELS + 4).astype(np.uint8) for index in range(30)})
    (tmp_path / "names").write_text("ground\na\nb\nc\n")
    assert codes(invoke, places, "--categories", tmp_path / "names") == {"SEM059": 30}
    with pytest.raises(TokenLabelsError, match="holds no images that can be built"):
        make(tmp_path / "out", places, categories=str(tmp_path / "names"), on_error="skip")


def test_modes_that_hold_values(tmp_path: Path) -> None:
    """Grey and palette PNGs of the same values are the same rows, whatever the bits of a pixel."""
    pixels = (PIXELS % 2).astype(np.uint8)
    folder = tmp_path / "masks"
    save(folder / "grey.png", pixels)
    for bits in (1, 2, 4, 8):
        image = Image.new("P", (24, 20))
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.putdata(pixels.ravel().tolist())
        image.save(folder / f"palette{bits}.png", bits=bits)
    built = make(tmp_path / "out", {"masks": folder})
    assert len({str((row["labels"], row["categories"], row["scores"])) for row in rows(built)}) == 1


def test_faulty_pictures_are_told_once(tmp_path: Path, invoke: Invoke) -> None:
    places = write(tmp_path, random_masks("a", "b"))
    (places["images"] / "a.jpg").write_bytes(b"no picture")
    assert codes(invoke, places) == {"SEM042": 1}
    assert column(make(tmp_path / "out", places), "image_id") == ["a", "b"]
    lax = make(tmp_path / "lax", places, embed_images=True, on_error="skip")
    assert (column(lax, "image_id"), lax.manifest["findings"]) == (["b"], {"SEM042": 1})


@pytest.mark.parametrize("rule", ["overlap", "jaccard"])
def test_rules_of_boxes_are_refused(three: dict[str, Path], tmp_path: Path, rule: str) -> None:
    with pytest.raises(ParameterError, match=f"no boxes for --rule {rule}: use pixel-ratio"):
        make(tmp_path / "out", three, rule=rule)
    assert not (tmp_path / "out").exists()


def test_only_void_is_no_category(tmp_path: Path) -> None:
    places = write(tmp_path, {"a": np.full((8, 8), 255, np.uint8)})
    with pytest.raises(TokenLabelsError, match="no mask holds a value that is a category"):
        make(tmp_path / "out", places, background=[])
    (row,) = rows(make(tmp_path / "out", places, void="ignore"))
    assert set(row["labels"]) == {255}
    assert set(row["categories"]) == {NONE}


def test_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(TokenLabelsError, match=r"masks: holds no \*\.png"):
        make(tmp_path / "out", {"masks": tmp_path / "masks", "images": tmp_path / "images"})
