"""COCO panoptic files against float64 weight matrices over `ids == id`, and what becomes of faulty ones."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import shards, shares
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import AnnotationFileError, BuildMismatchError, FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.reader import Build
from tokenlabels.relabeler import relabel

pytestmark = pytest.mark.filterwarnings("error")

Document: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[Document], object]
Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Invoke: TypeAlias = Callable[..., Result]

NONE = 65_535
CLOSE = 1e-6
"""Largest difference between a float32 share and its oracle."""

SURE = 1e-7
"""Shares closer to one half, or to each other, than this are left to the tests of exact halves."""

CAT, DOG, SKY, GRASS = 1, 3, 92, 93
HUGE = 2**24 - 1


# --- data sets --------------------------------------------------------------------------------------------------------


def save_ids(path: Path, ids: Ids, **options: Any) -> Path:
    """Segment ids as colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)).save(path, **options)
    return path


def load_ids(path: Path) -> Ids:
    colours = np.asarray(Image.open(path)).astype(np.int64)
    ids: Ids = colours[..., 0] + 256 * colours[..., 1] + 65_536 * colours[..., 2]
    return ids


def segment(number: int, category: int, ids: Ids, **more: Any) -> dict[str, Any]:
    y, x = np.nonzero(ids == number)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    return {"id": number, "category_id": category, "bbox": box, "area": len(x), "iscrowd": 0} | more


FIRST: Ids = np.zeros((30, 40), np.int64)
FIRST[2:20, 3:25], FIRST[20:, :], FIRST[:6, 30:] = 300, HUGE, 65_536

SECOND: Ids = np.full((48, 64), 7, np.int64)
SECOND[10:30, 10:30], SECOND[12:20, 40:60], SECOND[30:34] = 8, 9, 0

PIXELS = {"1": FIRST, "2": SECOND}


def fine() -> Document:
    """Two images: a cat, grass and a dog between void; a dog and a crowd of cats before the sky, and some void."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48},
        ],
        "categories": [
            {"id": CAT, "name": "cat", "supercategory": "animal", "isthing": 1},
            {"id": DOG, "name": "dog", "supercategory": "animal", "isthing": 1},
            {"id": SKY, "name": "sky", "supercategory": "sky", "isthing": 0},
            {"id": GRASS, "name": "grass", "supercategory": "ground", "isthing": 0},
        ],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [segment(300, CAT, FIRST), segment(HUGE, GRASS, FIRST), segment(65_536, DOG, FIRST)],
            },
            {
                "image_id": 2,
                "file_name": "b.png",
                "segments_info": [
                    segment(9, CAT, SECOND, iscrowd=1),
                    segment(8, DOG, SECOND),
                    segment(7, SKY, SECOND),
                ],
            },
        ],
    }


@pytest.fixture
def document() -> Document:
    return fine()


@pytest.fixture
def root(tmp_path: Path, document: Document) -> Path:
    return place(tmp_path / "data", document)


def place(root: Path, document: Document | str | bytes, split: str = "mine") -> Path:
    """The official layout."""
    path = root / "annotations" / f"panoptic_{split}.json"
    for name, ids in (("a", FIRST), ("b", SECOND)):
        save_ids(path.with_suffix("") / f"{name}.png", ids)
        (root / split).mkdir(exist_ok=True)
        Image.new("L", ids.shape[::-1]).save(root / split / f"{name}.jpg")
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def make(out: Path, root: Path | None = None, **options: Any) -> Build:
    return tokenlabels.build("semantic", out=out, **{"root": root, "patch": 8, "image_size": 32} | options)


def rows(build: Build, grid: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = build.table(grid, split).to_pylist()
    return found


def column(build: Build, name: str) -> list[Any]:
    return [row[name] for row in rows(build)]


# --- oracles ----------------------------------------------------------------------------------------------------------


def assert_row(
    row: Mapping[str, Any],
    ids: Ids,
    segments: list[dict[str, Any]],
    grid: PatchGrid,
    table: list[int],
    foreground: set[int],
    *,
    void: str = "background",
    crowd: str = "foreground",
) -> None:
    """One row under pixel-ratio; `table` has the category ids, `foreground` those that count."""
    chosen = {entry["id"] for entry in segments if entry["category_id"] in foreground}
    crowds = {entry["id"] for entry in segments if entry["iscrowd"]} & chosen
    counted = (
        (chosen - crowds) | (crowds if crowd == "foreground" else set()) | ({0} if void == "foreground" else set())
    )
    dropped = (crowds if crowd == "ignore" else set()) | ({0} if void == "ignore" else set())
    scores = np.array(row["scores"])
    np.testing.assert_allclose(scores, shares(np.isin(ids, list(counted)), grid), atol=CLOSE)

    unclear = shares(np.isin(ids, list(dropped)), grid)
    labels = np.where(np.float32(scores) > np.float32(0.1), 1, np.where(unclear > 0.5, 255, 0))
    sure = np.abs(unclear - 0.5) > SURE
    np.testing.assert_array_equal(np.array(row["labels"])[sure], labels[sure])

    black = shares(ids == 0, grid)
    sure = np.abs(black - 0.5) > SURE
    covered = np.zeros((len(table), len(scores)))
    for entry in segments:
        covered[table.index(entry["category_id"])] += shares(ids == entry["id"], grid)
    largest, second = np.sort(covered, axis=0)[[-1, -2]]
    nothing = (black > 0.5) | (largest == 0)
    clear = sure & ((largest - second > SURE) | (largest == 0))
    np.testing.assert_array_equal(
        np.array(row["categories"])[clear], np.where(nothing, NONE, np.argmax(covered, axis=0))[clear]
    )
    np.testing.assert_allclose(np.array(row["category_share"])[sure], np.where(nothing, 0, largest)[sure], atol=CLOSE)

    kept = [entry for entry in segments if entry["id"] in chosen]
    assert row["objects"]["id"] == [entry["id"] for entry in kept]
    assert row["objects"]["category"] == [table.index(entry["category_id"]) for entry in kept]
    assert row["objects"]["bbox"] == [entry["bbox"] for entry in kept]
    assert row["objects"]["area"] == [entry["area"] for entry in kept]
    assert row["objects"]["iscrowd"] == [bool(entry["iscrowd"]) for entry in kept]


GRIDS: list[dict[str, Any]] = [
    {"resize": "squash", "patch": [8, "4x16"], "image_size": [32, "24x80"]},
    {"resize": "letterbox", "patch": 8, "image_size": ["40x56", 64]},
    {"resize": "shortest-edge", "patch": "6x10", "image_size": [30, 40], "max_size": 72},
    {"resize": "native", "patch": [16, "5x7"], "image_size": "native"},
]

POLICIES: list[dict[str, str]] = [
    {},
    {"void": "ignore", "crowd": "ignore"},
    {"void": "foreground", "crowd": "background"},
    {"void": "background", "crowd": "ignore"},
]


@pytest.mark.parametrize("stuff", ["foreground", "background"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: "-".join(policy.values()) or "default")
@pytest.mark.parametrize("grids", GRIDS, ids=lambda grids: str(grids["resize"]))
def test_against_the_oracle(
    root: Path, document: Document, tmp_path: Path, grids: dict[str, Any], policy: dict[str, str], stuff: str
) -> None:
    built = make(tmp_path / "out", root, stuff=stuff, **grids, **policy)
    foreground = {CAT, DOG} | ({SKY, GRASS} if stuff == "foreground" else set())
    for name, grid in built.grids.items():
        for row, entry in zip(rows(built, name), document["annotations"], strict=True):
            ids, segments = PIXELS[row["image_id"]], entry["segments_info"]
            assert_row(row, ids, segments, grid, [CAT, DOG, SKY, GRASS], foreground, **policy)


@pytest.fixture(scope="module")
def coco_root() -> Path:
    """Real panoptic files beside the repository; tests that need them are skipped where they are absent."""
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"
    if not (root / "annotations" / "panoptic_val2017.json").is_file():
        pytest.skip(f"no COCO sample in {root}")
    return root


@pytest.mark.slow
def test_every_image_of_coco_against_the_oracle(coco_root: Path, tmp_path: Path) -> None:
    policy = {"void": "ignore", "crowd": "ignore"}
    built = make(tmp_path / "out", coco_root, patch=16, image_size=384, **policy)
    assert set(built.manifest["findings"]) <= {"SEM041", "SEM043"}  # not all pictures of these files are there
    assert "COCO panoptic" in (tmp_path / "out" / "README.md").read_text()
    for split, images in (("train2017", 83), ("val2017", 68)):
        path = coco_root / "annotations" / f"panoptic_{split}.json"
        document = json.loads(path.read_text())
        table = [entry["id"] for entry in document["categories"]]
        assert [category.id for category in built.categories] == table
        things = {entry["id"] for entry in document["categories"] if entry["isthing"]}
        entries = {str(entry["image_id"]): entry for entry in document["annotations"]}
        found = rows(built, split=split)
        assert [row["image_id"] for row in found] == [str(image["id"]) for image in document["images"]]
        assert len(found) == images
        for row in found:
            entry = entries[row["image_id"]]
            ids = load_ids(path.with_suffix("") / entry["file_name"])
            assert_row(row, ids, entry["segments_info"], built.grid, table, things, **policy)


def test_exactly_half_void_is_not_void(tmp_path: Path, document: Document) -> None:
    ids: Ids = np.zeros((30, 40), np.int64)
    ids[:4, :8], ids[:5, 8:16], ids[:3, 16:24] = 300, 300, 300
    root = place(tmp_path / "data", document)
    save_ids(root / "annotations" / "panoptic_mine" / "a.png", ids)
    row = rows(make(tmp_path / "out", root, image_size="native", void="ignore", tau=0.9))[0]
    assert row["ignored"][:3] == [False, False, True]
    assert row["labels"][:3] == [0, 0, 255]
    assert row["categories"][:3] == [0, 0, NONE]
    assert row["category_share"][:3] == [0.5, 0.625, 0.0]


# --- places -----------------------------------------------------------------------------------------------------------


def test_one_file_with_its_folders(root: Path, tmp_path: Path) -> None:
    wanted = shards(make(tmp_path / "root", root).folder)
    path = root / "annotations" / "panoptic_mine.json"
    assert shards(make(tmp_path / "file", annotations=path).folder) == wanted
    moved = tmp_path / "elsewhere" / "panoptic_mine.json"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    masks = shutil.copytree(path.with_suffix(""), tmp_path / "pngs")
    built = make(tmp_path / "moved", annotations=moved, masks=masks, images=root / "mine", embed_images=True)
    assert column(built, "labels") == column(tokenlabels.open(tmp_path / "root"), "labels")
    assert column(built, "image")[0]["bytes"] == (root / "mine" / "a.jpg").read_bytes()
    renamed = make(tmp_path / "renamed", annotations=path, split="val-1")
    assert list(renamed.manifest["splits"]) == ["val_1"]


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"split": "none"}, TokenLabelsError, r"no annotations/panoptic_none\.json; the splits there are mine"),
        ({"stuff": "sky"}, ParameterError, "unknown stuff policy 'sky'"),
        ({"ignore": 1}, ParameterError, "--ignore, --background and --reduce-zero-label are for masks of values"),
        ({"reduce_zero_label": True}, ParameterError, "--reduce-zero-label are for masks of values"),
        ({"mask_suffix": ".png"}, ParameterError, "--mask-suffix is for folders of masks"),
        ({"categories": "ade20k"}, ParameterError, "has its own categories: leave the list out"),
        ({"categories": "cow"}, ParameterError, "no category 'cow'"),
        ({"images": "none"}, TokenLabelsError, "none: no such folder: name the image folder with --images"),
    ],
)
def test_options_that_do_not_go_together(
    root: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        make(tmp_path / "out", root, **options)
    assert not (tmp_path / "out").exists()


def test_root_and_file_exclude_each_other(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--root and --annotations exclude each other"):
        make(tmp_path / "out", root, annotations=root / "annotations" / "panoptic_mine.json")
    with pytest.raises(ParameterError, match="give --split once"):
        make(tmp_path / "out", annotations=root / "annotations" / "panoptic_mine.json", split=["a", "b"])


def test_masks_that_were_not_unpacked(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "annotations" / "panoptic_mine")
    with pytest.raises(TokenLabelsError, match="panoptic_mine: no such folder: unpack the PNGs there"):
        make(tmp_path / "out", root)


def test_splits_that_would_share_a_name_are_refused(tmp_path: Path, document: Document) -> None:
    root = place(place(tmp_path, document, "day-1"), document, "day_1")
    with pytest.raises(TokenLabelsError, match="two of its splits would have the same name"):
        make(tmp_path / "out", root)


def test_splits_share_one_table(tmp_path: Path, document: Document) -> None:
    """The second file has its categories in another order, and one more."""
    other = copy.deepcopy(document)
    other["categories"] = [{"id": 5, "name": "cow", "isthing": 0}, *reversed(other["categories"])]
    root = place(place(tmp_path, document, "one"), other, "two")
    built = make(tmp_path / "out", root)
    assert [category.id for category in built.categories] == [CAT, DOG, SKY, GRASS, 5]
    one, two = (rows(built, split=name) for name in ("one", "two"))
    assert one == two


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "foreground"),
    [
        ({"categories": "sky"}, {SKY}),
        ({"categories": ["cat", "grass"]}, {CAT, GRASS}),
        ({"exclude_categories": ["dog"]}, {CAT}),
        ({"exclude_categories": ["dog"], "stuff": "foreground"}, {CAT, SKY, GRASS}),
    ],
)
def test_selection_changes_labels_and_objects_alone(
    root: Path, document: Document, tmp_path: Path, options: dict[str, Any], foreground: set[int]
) -> None:
    built, every = make(tmp_path / "out", root, **options), make(tmp_path / "all", root)
    assert column(built, "categories") == column(every, "categories")
    assert column(built, "category_share") == column(every, "category_share")
    for row, entry in zip(rows(built), document["annotations"], strict=True):
        ids, segments = PIXELS[row["image_id"]], entry["segments_info"]
        assert_row(row, ids, segments, built.grid, [CAT, DOG, SKY, GRASS], foreground)


def test_small_segments_are_left_out(root: Path, document: Document, tmp_path: Path) -> None:
    built = make(tmp_path / "out", root, min_area=100)
    assert column(built, "objects")[0]["id"] == [300]
    assert column(built, "categories") == column(make(tmp_path / "all", root), "categories")


@pytest.mark.parametrize("rule", ["overlap", "jaccard"])
def test_box_rules_score_boxes_and_keep_categories(root: Path, tmp_path: Path, rule: str) -> None:
    built, masks = make(tmp_path / "out", root, rule=rule), make(tmp_path / "masks", root)
    assert column(built, "categories") == column(masks, "categories")
    grid = built.grid
    y, x = grid.edges(40, 30)
    left, top, width, height = 3, 2, 22, 18
    tall = np.maximum(np.minimum(y[1:], top + height) - np.maximum(y[:-1], top), 0)
    wide = np.maximum(np.minimum(x[1:], left + width) - np.maximum(x[:-1], left), 0)
    shared, cell = np.outer(tall, wide), np.outer(np.diff(y), np.diff(x))
    alone = make(tmp_path / "alone", root, rule=rule, categories="cat")
    whole = cell if rule == "overlap" else cell + width * height - shared
    np.testing.assert_allclose(column(alone, "scores")[0], (shared / whole).ravel(), atol=CLOSE)


def test_embedded_masks_come_with_their_segments(root: Path, document: Document, tmp_path: Path) -> None:
    built = make(tmp_path / "out", root, embed_masks=True, categories="cat")
    for row, entry in zip(rows(built), document["annotations"], strict=True):
        path = root / "annotations" / "panoptic_mine" / entry["file_name"]
        assert row["mask"] == {"bytes": path.read_bytes(), "path": entry["file_name"]}
        assert row["segments"]["id"] == [part["id"] for part in entry["segments_info"]]
        indexes = {CAT: 0, DOG: 1, SKY: 2, GRASS: 3}
        assert row["segments"]["category"] == [indexes[part["category_id"]] for part in entry["segments_info"]]
        assert row["segments"]["iscrowd"] == [bool(part["iscrowd"]) for part in entry["segments_info"]]
    assert "segments" not in make(tmp_path / "plain", root).table().column_names


def test_relabel_is_the_build_at_that_tau(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"void": "ignore", "crowd": "ignore", "embed_masks": True}
    again = relabel(make(tmp_path / "out", root, **options), 0.7, tmp_path / "again")
    wanted = make(tmp_path / "wanted", root, tau=0.7, **options)
    assert shards(again.folder) == shards(wanted.folder)


@pytest.mark.slow
def test_same_bytes_however_it_is_run(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_rows": 1, "embed_masks": True}
    first, second = (make(tmp_path / str(n), root, workers=n, **options) for n in (1, 2))
    assert shards(first.folder) == shards(second.folder)
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


def test_another_policy_for_stuff_is_another_build(root: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "out", root).manifest["parameters"]["stuff"] == "background"
    with pytest.raises(BuildMismatchError, match="stuff was 'background', now 'foreground'"):
        make(tmp_path / "out", root, stuff="foreground")


def test_another_mask_of_the_same_size_is_noticed(root: Path, tmp_path: Path) -> None:
    path = root / "annotations" / "panoptic_mine" / "a.png"
    make(tmp_path / "out", root)
    ids = load_ids(path)
    for _ in range(2):  # the second time stored without compression, as the first
        ids[-1, -1] = 300 + HUGE - ids[-1, -1]
        size = path.stat().st_size
        save_ids(path, ids, compress_level=0)
        with pytest.raises(BuildMismatchError, match="sha256"):
            make(tmp_path / "out", root)
        make(tmp_path / "out", root, overwrite=True)
    assert path.stat().st_size == size


# --- faults of entries ------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Stands for `text` unquoted in the JSON file."""
    return f"<<{text}>>"


def as_json(document: Document) -> str:
    return re.sub(r'"<<(.*?)>>"', r"\1", json.dumps(document))


def put(value: Any, *path: str | int) -> Change:
    def change(document: Document) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(document: Document) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


def cat(key: str, value: Any) -> Change:
    """Change the cat of image 1."""
    return put(value, "annotations", 0, "segments_info", 0, key)


def again(*path: str | int, **changed: Any) -> Change:
    """Append a changed copy of the first entry of a list."""

    def change(document: Document) -> None:
        at: Any = document
        for key in path:
            at = at[key]
        at.append(copy.deepcopy(at[0]) | changed)

    return change


SEGMENTS = ("annotations", 0, "segments_info")

ERRORS: list[Any] = [
    pytest.param(drop(*SEGMENTS, 0), "SEM059", "holds the segment 300", id="colour without a segment"),
    pytest.param(cat("category_id", 77), "SEM013", "annotation 300 .* category_id 77", id="unknown category"),
    pytest.param(cat("category_id", -1), "SEM013", "category_id -1", id="negative category"),
    pytest.param(cat("id", 0), "SEM010", "annotation 0 of image 1 has an id that no colour", id="id of void"),
    pytest.param(cat("id", -300), "SEM010", "annotation -300", id="negative id"),
    pytest.param(cat("id", 2**24), "SEM010", "annotation 16777216", id="id beyond 24 bits"),
    pytest.param(again(*SEGMENTS, category_id=DOG), "SEM010", "annotation 300 .* another segment", id="id twice"),
    pytest.param(put(0, "images", 0, "width"), "SEM003", "0 x 30", id="no width"),
    pytest.param(put(-5, "images", 0, "height"), "SEM003", "40 x -5", id="negative height"),
    pytest.param(put(2**40, "images", 0, "height"), "SEM003", "1099511627776", id="absurd height"),
    pytest.param(put(41, "images", 0, "width"), "SEM058", "is 40 x 30 pixels, the image 41 x 30", id="another width"),
    pytest.param(
        put("../a.png", "annotations", 0, "file_name"), "SEM056", "is no file in the mask folder", id="climbs"
    ),
    pytest.param(put("", "annotations", 0, "file_name"), "SEM056", "''", id="no name of a PNG"),
]


@pytest.mark.parametrize(("change", "code", "problem"), ERRORS)
def test_error(change: Change, code: str, problem: str, document: Document, tmp_path: Path, invoke: Invoke) -> None:
    """One fault, one finding; the image is left out, for what its pixels are nobody can say."""
    change(document)
    root = place(tmp_path / "data", document)
    checked = invoke("check", "semantic", "--root", root, "--json")
    assert checked.exit_code == 1
    assert {row["code"]: row["count"] for row in json.loads(checked.stdout)["findings"]} == {code: 1}
    for rule in ("pixel-ratio", "overlap"):
        with pytest.raises(FindingsError, match=f"{code} .*{problem}") as caught:
            make(tmp_path / "out", root, rule=rule)
        assert "nothing was built" in str(caught.value)
        assert not list(tmp_path.glob("out/**/*"))
    lax = make(tmp_path / "lax", root, on_error="skip")
    assert column(lax, "image_id") == ["2"]
    assert lax.manifest["findings"] == {code: 1}


def forget(*codes: str) -> dict[str, int]:
    return dict.fromkeys(codes, 1)


WARNINGS: list[Any] = [
    pytest.param(again(*SEGMENTS, id=4242), forget("SEM037"), ["1", "2"], id="segment without pixels"),
    pytest.param(drop("annotations", 0), forget("SEM055"), ["2"], id="image without annotation"),
    pytest.param(put("z.png", "annotations", 0, "file_name"), forget("SEM055"), ["2"], id="no such PNG"),
    pytest.param(drop("images", 0, "file_name"), forget("SEM004"), ["1", "2"], id="image without a name"),
    pytest.param(put("../a.jpg", "images", 0, "file_name"), forget("SEM005"), ["1", "2"], id="image that climbs out"),
    pytest.param(cat("area", None), forget("SEM015"), ["1", "2"], id="no area"),
    pytest.param(cat("area", literal("NaN")), forget("SEM015"), ["1", "2"], id="area NaN"),
    pytest.param(cat("area", -4), forget("SEM015"), ["1", "2"], id="negative area"),
    pytest.param(cat("bbox", [0, 0, 0, 0]), forget("SEM023"), ["1", "2"], id="box without area"),
    pytest.param(cat("bbox", [100, 0, 5, 5]), forget("SEM024"), ["1", "2"], id="box outside"),
    pytest.param(again("categories", id=55), forget("SEM006"), ["1", "2"], id="category name twice"),
]


@pytest.mark.parametrize(("change", "findings", "left"), WARNINGS)
def test_warning(
    change: Change, findings: dict[str, int], left: list[str], document: Document, tmp_path: Path, invoke: Invoke
) -> None:
    change(document)
    root = place(tmp_path / "data", as_json(document))
    if "SEM004" in findings or "SEM005" in findings:
        findings = findings | {"SEM043": 1}  # the picture is there, and no entry names it
    built = make(tmp_path / "out", root)
    assert built.manifest["findings"] == findings
    assert column(built, "image_id") == left
    checked = invoke("check", "semantic", "--root", root, "--json")
    assert checked.exit_code == 0, checked.stdout
    assert {row["code"]: row["count"] for row in json.loads(checked.stdout)["findings"]} == findings
    if left == ["1", "2"]:
        assert column(built, "labels") == column(make(tmp_path / "same", place(tmp_path / "fine", fine())), "labels")


@pytest.mark.parametrize(
    ("bbox", "code"),
    [
        (None, "SEM020"),
        ([1, 2, 3], "SEM020"),
        ([1, 2, 3, literal("NaN")], "SEM020"),
        ([0, 0, 1e300, 4], "SEM021"),
        ([0, 0, -4, 4], "SEM022"),
    ],
)
def test_box_that_cannot_be_scored(bbox: Any, code: str, document: Document, tmp_path: Path, invoke: Invoke) -> None:
    """An error under the rules that look at boxes, and only there."""
    cat("bbox", bbox)(document)
    root = place(tmp_path / "data", as_json(document))
    assert make(tmp_path / "masks", root).manifest["findings"] == {code: 1}
    with pytest.raises(FindingsError, match=f"{code} .*annotation 300 of image 1"):
        make(tmp_path / "out", root, rule="overlap")
    assert column(make(tmp_path / "lax", root, rule="overlap", on_error="skip"), "image_id") == ["2"]
    for rule, exit_code in (("pixel-ratio", 0), ("overlap", 1)):
        assert invoke("check", "semantic", "--root", root, "--rule", rule).exit_code == exit_code


@pytest.mark.parametrize(
    ("change", "code", "left"),
    [
        (again("images", file_name="z.jpg"), "SEM002", ["1", "2"]),
        (again("annotations", segments_info=[]), "SEM002", ["1", "2"]),
        (again("annotations", image_id=99), "SEM012", ["1", "2"]),
        (again("annotations", image_id=str(10**30)), "SEM012", ["1", "2"]),
    ],
)
def test_entry_too_many(change: Change, code: str, left: list[str], document: Document, tmp_path: Path) -> None:
    change(document)
    root = place(tmp_path / "data", document)
    with pytest.raises(FindingsError, match=code):
        make(tmp_path / "out", root)
    lax = make(tmp_path / "lax", root, on_error="skip")
    assert (column(lax, "image_id"), lax.manifest["findings"]) == (left, {code: 1})
    assert column(lax, "labels") == column(make(tmp_path / "fine", place(tmp_path / "other", fine())), "labels")


@pytest.mark.slow
def test_findings_do_not_depend_on_the_process(document: Document, tmp_path: Path) -> None:
    """Python hashes texts anew in every process."""
    for number in range(100, 140):
        again("annotations", image_id=number)(document)
    root = place(tmp_path / "data", document)
    code = (
        "import sys, tokenlabels; tokenlabels.build('semantic', root=sys.argv[1], out=sys.argv[2], on_error='skip', "
        "patch=8, image_size=32)"
    )
    for out in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(root), str(tmp_path / out)], check=True)
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_numbers_that_are_truths(document: Document, tmp_path: Path) -> None:
    """Some exporters write true and false."""
    for category in document["categories"]:
        category["isthing"] = bool(category["isthing"])
    for annotation in document["annotations"]:
        for part in annotation["segments_info"]:
            part["iscrowd"] = bool(part["iscrowd"])
    built = make(tmp_path / "out", place(tmp_path / "data", document))
    assert rows(built) == rows(make(tmp_path / "same", place(tmp_path / "fine", fine())))


# --- faults of files --------------------------------------------------------------------------------------------------

FILES: list[Any] = [
    pytest.param(b"", "is empty", id="empty"),
    pytest.param(b"\0" * 100, "is empty", id="zeros"),
    pytest.param(b"{", "cut short", id="one brace"),
    pytest.param(b"[]", "is no COCO panoptic file", id="a list"),
    pytest.param(b'{"images": []}', "missing required field `annotations`", id="no annotations"),
    pytest.param(b"\xff\xfe{\0}\0", "panoptic_mine.json", id="UTF-16"),
    pytest.param(b"[" * 100_000, "panoptic_mine.json", id="nested without end"),
    pytest.param(b'{"images": [], "annotations": [], "categories": []}', "holds no images", id="nothing in it"),
]


@pytest.mark.parametrize(("content", "problem"), FILES)
def test_bad_file(content: bytes, problem: str, tmp_path: Path) -> None:
    root = place(tmp_path / "data", content)
    with pytest.raises(TokenLabelsError, match=re.escape(problem)) as caught:
        make(tmp_path / "out", root)
    assert "panoptic_mine.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cut_short(document: Document, tmp_path: Path) -> None:
    root = place(tmp_path / "data", json.dumps(document)[:-40])
    with pytest.raises(AnnotationFileError, match="cut short"):
        make(tmp_path / "out", root)


def test_byte_order_mark(document: Document, tmp_path: Path) -> None:
    root = place(tmp_path / "data", b"\xef\xbb\xbf" + json.dumps(document).encode())
    assert column(make(tmp_path / "out", root), "image_id") == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (cat("id", 2**70), r"segments_info\[0\]\.id"),
        (cat("id", 2**64 - 1), r"segments_info\[0\]\.id"),
        (cat("id", literal("NaN")), r"segments_info\[0\]\.id"),
        (cat("id", 300.5), r"segments_info\[0\]\.id"),
        (cat("category_id", "cat"), r"segments_info\[0\]\.category_id"),
        (put("wide", "images", 0, "width"), r"images\[0\]\.width"),
        (put(None, "annotations", 0, "image_id"), r"annotations\[0\]\.image_id"),
        (drop("categories", 0, "name"), r"categories"),
        (again("categories", name="tiger"), "category id 1 occurs twice"),
    ],
)
def test_entries_of_another_shape(change: Change, where: str, document: Document, tmp_path: Path) -> None:
    """Such a file was made by something else: it is refused as a whole, naming the place."""
    change(document)
    root = place(tmp_path / "data", as_json(document))
    with pytest.raises(AnnotationFileError, match=where) as caught:
        make(tmp_path / "out", root, on_error="skip")
    assert "instances" not in str(caught.value)


def test_instances_file_by_mistake(root: Path, tmp_path: Path) -> None:
    path = root / "annotations" / "panoptic_mine.json"
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": [], "area": 16.0}
    path.write_text(json.dumps({"images": [], "categories": [], "annotations": [annotation]}))
    with pytest.raises(AnnotationFileError, match="for an instances file, use `build coco`"):
        make(tmp_path / "out", root)


def test_no_such_file(tmp_path: Path, root: Path) -> None:
    with pytest.raises(AnnotationFileError, match=r"none\.json: no such file"):
        make(tmp_path / "out", annotations=tmp_path / "none.json")


def as_mode(mode: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        Image.open(path).convert(mode).save(path)

    return change


BAD_MASKS: list[Any] = [
    pytest.param(as_mode("L"), "SEM057", id="grey"),
    pytest.param(as_mode("P"), "SEM057", id="palette"),
    pytest.param(as_mode("RGBA"), "SEM057", id="with alpha"),
    pytest.param(lambda path: path.write_bytes(b""), "SEM056", id="empty"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:60]), "SEM056", id="cut short"),
    pytest.param(lambda path: save_ids(path, FIRST.T), "SEM058", id="turned"),
    pytest.param(lambda path: save_ids(path, FIRST + (FIRST == 0)), "SEM059", id="an unknown segment"),
    pytest.param(lambda path: path.unlink(), "SEM055", id="missing"),
    pytest.param(lambda path: (path.unlink(), path.symlink_to("b.png")), "SEM058", id="a link to another"),
]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("spoil", "code"), BAD_MASKS)
def test_bad_mask(
    spoil: Callable[[Path], object], code: str, workers: int, root: Path, tmp_path: Path, invoke: Invoke
) -> None:
    wanted = shards(make(tmp_path / "wanted", root, shard_rows=1).folder)
    bad = root / "annotations" / "panoptic_mine" / "a.png"
    fine = bad.read_bytes()
    spoil(bad)
    checked = invoke("check", "semantic", "--root", root, "--json")
    assert {row["code"]: row["count"] for row in json.loads(checked.stdout)["findings"]} == {code: 1}
    lax = make(tmp_path / "lax", root, on_error="skip", workers=workers, shard_rows=1)
    assert lax.manifest["findings"] == {code: 1}
    assert column(lax, "image_id") == ["2"]
    if code == "SEM055":
        return
    with pytest.raises(FindingsError, match=rf"{code} a\.png: the mask of image 1 .*nothing was built"):
        make(tmp_path / "out", root, workers=workers, shard_rows=1)
    assert not list(tmp_path.glob("out/**/*"))
    bad.unlink()
    bad.write_bytes(fine)
    assert shards(make(tmp_path / "out", root, workers=workers, shard_rows=1).folder) == wanted
