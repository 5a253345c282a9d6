"""VOC folders: boxes, masks, lists and categories against independent oracles, and everything that may be wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import shares
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid, parse_grids
from tokenlabels.sources.voc import VOC_NAMES
from tokenlabels.sources.voc_xml import XmlFileError, parse_voc_xml

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]

Invoke: TypeAlias = Callable[..., Result]
Change: TypeAlias = Callable[[Path], Any]
Floats: TypeAlias = NDArray[np.float64]

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "voc" / "VOCdevkit"
CLOSE = 1e-6
BOX_RULE, MASK_RULE = "overlap", "pixel-ratio"


# --- a small data set -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """One object: its corners, 1-based and inclusive, as text."""

    name: str
    corners: tuple[Any, Any, Any, Any]
    difficult: Any = 0
    more: str = ""

    def xml(self) -> str:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), self.corners, strict=True)
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        return (
            f"<object>{self.more}<name>{self.name}</name><difficult>{self.difficult}</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )


@dataclass(frozen=True)
class Photo:
    """One image with its objects; `size` is the text of its <size>."""

    image_id: str
    width: int
    height: int
    things: tuple[Thing, ...] = ()
    size: str | None = None
    segmented: int = 1
    masks: bool = True

    def xml(self) -> str:
        size = f"<size><width>{self.width}</width><height>{self.height}</height><depth>3</depth></size>"
        return (
            f"<annotation><filename>{self.image_id}.jpg</filename>{size if self.size is None else self.size}"
            f"<segmented>{self.segmented}</segmented>{''.join(thing.xml() for thing in self.things)}</annotation>"
        )

    def object_mask(self) -> NDArray[np.uint8]:
        """Boxes filled one after the other, their rim void."""
        values = np.zeros((self.height, self.width), np.uint8)
        for place, thing in enumerate(self.things, 1):
            left, top, right, bottom = (int(float(corner)) for corner in thing.corners)
            values[top - 1 : bottom, left - 1 : right] = 255
            values[top : bottom - 1, left : right - 1] = place
        return values

    def class_mask(self, names: Sequence[str] = VOC_NAMES) -> NDArray[np.uint8]:
        meant = np.arange(256, dtype=np.uint8)
        for place, thing in enumerate(self.things, 1):
            meant[place] = names.index(thing.name) + 1
        values: NDArray[np.uint8] = meant[self.object_mask()]
        return values


CAT, DOG = Thing("cat", (3, 4, 22, 25)), Thing("dog", (30, 10, 57, 33), 1)
PHOTOS = (
    Photo("b", 61, 40, (CAT, DOG)),
    Photo("a c", 37, 53, (Thing("person", (1, 1, 37, 20)), Thing("cat", (5, 30, 20, 50)))),
    Photo("d", 48, 48),
)


def save_mask(path: Path, values: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(7).integers(0, 256, 768).astype(np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_voc(root: Path, photos: Sequence[Photo] = PHOTOS, lists: dict[str, str] | None = None) -> Path:
    """A VOC folder; without `lists` every image is in both `trainval.txt`."""
    for photo in photos:
        for folder in ("Annotations", "JPEGImages"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{photo.image_id}.xml").write_text(photo.xml())
        noise = np.random.default_rng(len(photo.image_id)).integers(0, 256, (photo.height, photo.width, 3))
        Image.fromarray(noise.astype(np.uint8)).save(root / "JPEGImages" / f"{photo.image_id}.jpg")
        if photo.masks:
            save_mask(root / "SegmentationObject" / f"{photo.image_id}.png", photo.object_mask())
            save_mask(root / "SegmentationClass" / f"{photo.image_id}.png", photo.class_mask())
    everything = "".join(f"{photo.image_id}\n" for photo in photos)
    lists = {"Main/trainval": everything, "Segmentation/trainval": everything} if lists is None else lists
    for name, text in lists.items():
        path = root / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "VOC2012")


def build(root: Path, **options: Any) -> tokenlabels.Build:
    name = f"out{sum(1 for _ in root.parent.glob('out*'))}"
    chosen: dict[str, Any] = {"out": root.parent / name, "patch": 8, "image_size": 48} | options
    return tokenlabels.build("voc", root=root, **chosen)


def rows_of(built: tokenlabels.Build, grid: str | None = None) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in built.table(grid).to_pylist()}


def findings_of(built: tokenlabels.Build) -> dict[str, int]:
    found: dict[str, int] = built.manifest["findings"]
    return found


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- oracles ----------------------------------------------------------------------------------------------------------


def box_shares(corners: Sequence[float], size: tuple[int, int], grid: PatchGrid) -> Floats:
    """(cells,) share of every cell that lies in an official box, pixels xmin..xmax and ymin..ymax counted from 1."""
    width, height = size
    y, x = grid.edges(width, height)
    left, top = max(corners[0] - 1, 0), max(corners[1] - 1, 0)
    right, bottom = min(corners[2], width), min(corners[3], height)
    tall = np.maximum(np.minimum(y[1:], bottom) - np.maximum(y[:-1], top), 0)
    wide = np.maximum(np.minimum(x[1:], right) - np.maximum(x[:-1], left), 0)
    shares: Floats = (np.outer(tall, wide) / np.outer(np.diff(y), np.diff(x))).ravel()
    return shares


def expected_labels(row: dict[str, Any], passes: Any, ignored: NDArray[np.bool_]) -> None:
    labels = np.where(passes, 1, np.where(ignored, 255, 0))
    np.testing.assert_array_equal(row["labels"], labels)
    assert row["fg_count"] == (labels == 1).sum()
    assert row["ignore_count"] == (labels == 255).sum()


RESIZES: list[dict[str, Any]] = [
    {"resize": "squash", "patch": [8, "4x16"], "image_size": [48, "64x48"]},
    {"resize": "letterbox", "patch": 8, "image_size": [48, "40x64"]},
    {"resize": "shortest-edge", "patch": [8, "6x10"], "image_size": 40, "max_size": 56},
    {"resize": "native", "patch": [16, "5x7"], "image_size": "native"},
]


def grids_of(options: dict[str, Any]) -> dict[str, PatchGrid]:
    grids = parse_grids(options["patch"], options["image_size"], options["resize"], options.get("max_size"))
    return {grid.name: grid for grid in grids}


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", RESIZES, ids=lambda options: options["resize"])
def test_boxes_are_one_based_and_inclusive(options: dict[str, Any], voc: Path) -> None:
    built = build(voc, **options)
    assert list(built.grids) == list(grids_of(options))
    for name, grid in grids_of(options).items():
        rows = rows_of(built, name)
        for photo in PHOTOS:
            row = rows[photo.image_id]
            assert row["objects"]["bbox"] == [
                [left - 1, top - 1, right - left + 1, bottom - top + 1]
                for left, top, right, bottom in (thing.corners for thing in photo.things)
            ]
            scores = np.zeros(len(row["scores"]))
            for thing in photo.things:
                scores = np.maximum(scores, box_shares(thing.corners, (photo.width, photo.height), grid))
            np.testing.assert_allclose(row["scores"], scores, atol=CLOSE)
            expected_labels(row, np.float32(row["scores"]) >= np.float32(0.5), np.zeros(len(scores), bool))


def test_rows_say_what_the_xml_says(voc: Path) -> None:
    """Sorted by id, names from the official list, objects numbered as in the file."""
    built = build(voc)
    rows = built.table().to_pylist()
    assert [row["image_id"] for row in rows] == ["a c", "b", "d"]
    assert [row["file_name"] for row in rows] == ["a c.jpg", "b.jpg", "d.jpg"]
    assert [(row["width"], row["height"]) for row in rows] == [(37, 53), (61, 40), (48, 48)]
    assert [category.name for category in built.categories] == list(VOC_NAMES)
    assert [category.id for category in built.categories] == list(range(1, 21))
    objects = rows[1]["objects"]
    assert objects["id"] == [1, 2]
    assert [VOC_NAMES[index] for index in objects["category"]] == ["cat", "dog"]
    assert objects["difficult"] == [False, True]
    assert objects["iscrowd"] == [False, False]
    assert objects["area"] == [20 * 22, 28 * 24]
    assert built.splits == ("trainval",)
    assert built.manifest["sources"]["trainval"]["file"] == "ImageSets/Main/trainval.txt"
    assert findings_of(built) == {}


def test_corners_may_have_fractions(tmp_path: Path) -> None:
    corners = (3.25, "4.5", 22.75, " 25.0 ")
    root = write_voc(tmp_path / "voc", [Photo("x", 61, 40, (Thing("cat", corners),), masks=False)])
    row = rows_of(build(root))["x"]
    assert row["objects"]["bbox"] == [[2.25, 3.5, 20.5, 21.5]]
    expected = box_shares([float(corner) for corner in corners], (61, 40), PatchGrid.parse(8, 48))
    np.testing.assert_allclose(row["scores"], expected, atol=CLOSE)


def test_parts_of_an_object_are_not_the_object(tmp_path: Path) -> None:
    """Person layout: heads and hands have names and boxes of their own, before or after those of the person."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    things = (Thing("person", (11, 12, 40, 38), more=part * 2), Thing("cat", (1, 1, 10, 10)))
    root = write_voc(tmp_path / "voc", [Photo("x", 61, 40, things, masks=False)])
    built = build(root)
    assert rows_of(built)["x"]["objects"]["bbox"] == [[10, 11, 30, 27], [0, 0, 10, 10]]
    assert [category.name for category in built.categories] == list(VOC_NAMES), "no category 'head'"


@pytest.mark.parametrize("rule", ["overlap", "jaccard"])
@pytest.mark.parametrize("policy", ["foreground", "background", "ignore"])
def test_difficult_boxes_follow_their_policy(policy: str, rule: str, tmp_path: Path) -> None:
    """The dog is difficult; `ignore` needs more than half of a patch, and gives way to foreground."""
    things = (Thing("cat", (1, 1, 24, 24)), Thing("dog", (17, 1, 44, 40), "1"), Thing("cow", (45, 41, 48, 48), "true"))
    root = write_voc(tmp_path / "voc", [Photo("x", 48, 48, things, masks=False)])
    row = rows_of(build(root, rule=rule, difficult=policy, tau=0.05))["x"]
    grid = PatchGrid.parse(8, 48)
    covered = [box_shares(thing.corners, (48, 48), grid) for thing in things]
    counted = covered if policy == "foreground" else covered[:1]
    if rule == "overlap":
        np.testing.assert_allclose(row["scores"], np.max(counted, axis=0), atol=CLOSE)
    ignored = np.minimum(covered[1] + covered[2], 1) > 0.5 if policy == "ignore" else np.zeros(36, bool)
    assert (row.get("ignored") is not None) == (policy == "ignore")
    expected_labels(row, np.float32(row["scores"]) >= np.float32(0.05), ignored)
    assert row["objects"]["difficult"] == [False, True, True]


def test_difficult_says_nothing_of_masks(voc: Path) -> None:
    one, other = (rows_of(build(voc, rule=MASK_RULE, difficult=policy)) for policy in ("foreground", "background"))
    assert one == other


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height><depth>3</depth></size>",
        "<size><width>0</width><height>40</height></size>",
        "<size><width>61</width></size>",
        "<size><width/><height/></size>",
        "<size><width>wide</width><height>high</height></size>",
    ],
)
def test_a_size_that_the_xml_does_not_say_is_that_of_the_picture(size: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", [Photo("x", 61, 40, (CAT,), size=size)])
    built = build(root)
    row = rows_of(built)["x"]
    assert (row["width"], row["height"]) == (61, 40)
    assert findings_of(built) == {}
    (root / "JPEGImages" / "x.jpg").unlink()
    with pytest.raises(FindingsError, match=r"VOC003 Annotations/x.xml: image x .*JPEGImages/x.jpg cannot tell"):
        build(root)


def test_a_large_picture_is_measured_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    root = write_voc(tmp_path / "voc", [Photo("x", 61, 40, (CAT,), size="", masks=False)])
    assert rows_of(build(root))["x"]["width"] == 61


def test_a_size_with_absurdly_many_pixels_is_refused(tmp_path: Path) -> None:
    size = "<size><width>500000</width><height>500000</height></size>"
    root = write_voc(tmp_path / "voc", [Photo("x", 61, 40, (CAT,), size=size, masks=False)])
    with pytest.raises(FindingsError, match=r"VOC003 .*500000 x 500000 pixels"):
        build(root, patch=16, image_size="native")


def test_a_picture_of_another_size_than_the_xml_says_is_no_picture_of_it(voc: Path) -> None:
    Image.new("RGB", (40, 61)).save(voc / "JPEGImages" / "b.jpg")
    with pytest.raises(FindingsError, match=r"VOC040.*image b"):
        build(voc, check="full")


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
@pytest.mark.parametrize("options", RESIZES, ids=lambda options: options["resize"])
@pytest.mark.parametrize("void", ["foreground", "background", "ignore"])
def test_pixel_ratio_is_the_exact_share_of_the_mask(void: str, options: dict[str, Any], folder: str, voc: Path) -> None:
    """By two matrix products in double precision, of every grid of the pass; object masks go before class masks."""
    if folder == "SegmentationClass":
        shutil.rmtree(voc / "SegmentationObject")
    built = build(voc, rule=MASK_RULE, void=void, **options)
    for name, grid in grids_of(options).items():
        for photo in PHOTOS:
            row = rows_of(built, name)[photo.image_id]
            with Image.open(voc / folder / f"{photo.image_id}.png") as picture:
                values = np.asarray(picture)
            inside = (values != 0) & ((values != 255) | (void == "foreground"))
            np.testing.assert_allclose(row["scores"], shares(inside, grid), atol=CLOSE)
            ignored = np.zeros(len(row["labels"]), bool)
            if void == "ignore":
                ignored = shares(values == 255, grid) > 0.5 + 1e-9
                assert row["ignored"] == ignored.tolist()
            expected_labels(row, np.float32(row["scores"]) > np.float32(0.1), ignored)


def test_an_image_without_a_mask_is_never_background(tmp_path: Path) -> None:
    photos = [*PHOTOS, Photo("e", 20, 20, (Thing("cat", (1, 1, 9, 9)),), masks=False)]
    root = write_voc(tmp_path / "voc", photos)
    built = build(root, rule=MASK_RULE)
    assert list(rows_of(built)) == ["a c", "b", "d"]
    assert findings_of(built) == {"VOC055": 1}
    assert "image e is missing" in built.manifest["finding_examples"][0]["message"]
    assert list(rows_of(build(root))) == ["a c", "b", "d", "e"], "a box rule needs none"


def test_only_what_the_xml_says_has_masks_is_missed_under_a_box_rule(tmp_path: Path, invoke: Invoke) -> None:
    photos = [*PHOTOS, Photo("e", 20, 20, masks=False), Photo("f", 20, 20, segmented=0, masks=False)]
    root = write_voc(tmp_path / "voc", photos)
    result = invoke("check", "voc", "--root", root, "--json")
    assert result.exit_code == 0
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["code"], finding["severity"], finding["count"]) == ("VOC055", "warning", 1)
    assert finding["examples"][0]["image_id"] == "e"
    built = build(root, check="full")
    assert findings_of(built) == {"VOC055": 1}
    assert len(rows_of(built)) == 5


def test_without_any_masks_pixel_ratio_says_so(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", [Photo("x", 20, 20, masks=False)])
    with pytest.raises(TokenLabelsError, match=r"no SegmentationObject and no SegmentationClass.*--rule overlap"):
        build(root, rule=MASK_RULE)
    (root / "SegmentationClass").mkdir()
    with pytest.raises(TokenLabelsError, match="no images that can be built"):
        build(root, rule=MASK_RULE)
    assert not list(tmp_path.glob("out*"))


def test_a_value_without_an_object_is_foreground_with_a_warning(voc: Path) -> None:
    values = PHOTOS[0].object_mask()
    values[:8, 40:] = 9
    save_mask(voc / "SegmentationObject" / "b.png", values)
    built = build(voc, rule=MASK_RULE)
    assert findings_of(built) == {"VOC060": 1}
    assert "image b holds the value 9" in built.manifest["finding_examples"][0]["message"]
    expected = shares((values > 0) & (values < 255), PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)


def test_an_object_without_pixels_is_a_warning(voc: Path) -> None:
    values = PHOTOS[0].object_mask()
    values[values == 2] = 0
    save_mask(voc / "SegmentationObject" / "b.png", values)
    assert findings_of(build(voc, rule=MASK_RULE)) == {"VOC037": 1}


# --- selection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        ({"categories": ["cat"]}, {"cat"}),
        ({"categories": ["cat,dog"]}, {"cat", "dog"}),
        ({"categories": ["person", "dog"]}, {"person", "dog"}),
        ({"exclude_categories": ["person"]}, {"cat", "dog"}),
        ({"categories": ["train"]}, set()),
    ],
)
def test_categories_select_foreground_in_both_kinds_of_masks(
    selection: dict[str, Any], kept: set[str], folder: str, voc: Path
) -> None:
    if folder == "SegmentationClass":
        shutil.rmtree(voc / "SegmentationObject")
    rows = rows_of(build(voc, rule=MASK_RULE, **selection))
    grid = PatchGrid.parse(8, 48)
    for photo in PHOTOS:
        wanted = [place for place, thing in enumerate(photo.things, 1) if thing.name in kept]
        expected = shares(np.isin(photo.object_mask(), wanted), grid)
        np.testing.assert_allclose(rows[photo.image_id]["scores"], expected, atol=CLOSE)
        assert rows[photo.image_id]["objects"]["id"] == wanted
    boxes = rows_of(build(voc, **selection))
    assert [row["objects"]["id"] for row in boxes.values()] == [row["objects"]["id"] for row in rows.values()]


def test_small_objects_can_be_left_out(voc: Path) -> None:
    """By the area of the box; class masks have no objects, which is said."""
    built = build(voc, rule=MASK_RULE, min_area=500)
    expected = shares(PHOTOS[0].object_mask() == 2, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)
    assert built.manifest["annotations_left_out_by_selection"] == 2


def test_class_masks_are_scored_whole_whatever_the_area(voc: Path, tmp_path: Path, invoke: Invoke) -> None:
    shutil.rmtree(voc / "SegmentationObject")
    words = ("build", "voc", "--root", voc, "--rule", MASK_RULE, "--min-area", 500, "--out", tmp_path / "out")
    result = invoke(*words)
    assert result.exit_code == 0
    assert "note: --min-area leaves out objects; class masks have none" in result.stderr


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
def test_a_limit_is_the_first_ids(rule: str, voc: Path) -> None:
    assert list(rows_of(build(voc, rule=rule, limit=2))) == ["a c", "b"]


# --- categories -------------------------------------------------------------------------------------------------------


def test_names_of_other_data_sets_are_sorted(tmp_path: Path) -> None:
    things = (Thing("zebra", (1, 1, 9, 9)), Thing("antelope", (11, 11, 19, 19)), Thing("cat", (1, 11, 9, 19)))
    root = write_voc(tmp_path / "voc", [Photo("x", 20, 20, things, masks=False)])
    built = build(root)
    assert [(category.id, category.name) for category in built.categories] == [
        (1, "antelope"),
        (2, "cat"),
        (3, "zebra"),
    ]
    assert rows_of(built)["x"]["objects"]["category"] == [2, 0, 1]


LISTS = [
    pytest.param("# label:color\nbackground:0,0,0::\ndog:1,2,3::\ncat:4,5,6::\n", [1, 2], id="labelmap"),
    pytest.param("dog\ncat\n", [1, 2], id="names without background"),
    pytest.param("background\r\ndog\r\ncat\r\n", [1, 2], id="names with background"),
    pytest.param("_background_\ndog\ncat\n", [1, 2], id="labelme's"),
    pytest.param("0: background\n5: dog\n7: cat\n", [5, 7], id="numbered"),
    pytest.param("5: dog\n7: cat\n", [5, 7], id="numbered without background"),
    pytest.param("dog\ncat\nvoid\n", [1, 2], id="void last"),
    pytest.param('{"categories": [{"id": 3, "name": "dog"}, {"id": 9, "name": "cat"}]}', [3, 9], id="JSON"),
    pytest.param('["dog", "cat"]', [1, 2], id="JSON names"),
]


@pytest.mark.parametrize("place", ["labelmap.txt in the folder", "--categories FILE"])
@pytest.mark.parametrize(("text", "ids"), LISTS)
def test_a_list_says_which_value_is_which_class(text: str, ids: list[int], place: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", PHOTOS[:1])
    values = PHOTOS[0].object_mask()
    meant = np.arange(256, dtype=np.uint8)
    meant[[1, 2]] = ids[1], ids[0]  # the cat, the dog
    save_mask(root / "SegmentationClass" / "b.png", meant[values])
    shutil.rmtree(root / "SegmentationObject")
    file = (root if place.startswith("labelmap") else tmp_path) / "labelmap.txt"
    file.write_bytes(text.encode())
    lists = [] if place.startswith("labelmap") else [str(file)]
    built = build(root, rule=MASK_RULE, categories=[*lists, "dog"])
    assert [(category.id, category.name) for category in built.categories] == list(
        zip(ids, ("dog", "cat"), strict=True)
    )
    expected = shares(values == 2, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)


# --- lists ------------------------------------------------------------------------------------------------------------

ALL = "a c\nb\nd\n"

CHOICES = [
    pytest.param({"Main/trainval": ALL, "Main/train": "b\n"}, BOX_RULE, ["trainval"], False, id="trainval first"),
    pytest.param({"Main/train": "b\n", "Main/val": "d\n"}, BOX_RULE, ["train", "val"], False, id="else every list"),
    pytest.param({"Segmentation/trainval": ALL}, BOX_RULE, ["trainval"], True, id="boxes from the lists of masks"),
    pytest.param({"Main/trainval": ALL}, MASK_RULE, ["trainval"], True, id="masks from the lists of boxes"),
    pytest.param(
        {"Main/trainval": "b\n", "Segmentation/trainval": "d\n"}, MASK_RULE, ["trainval"], False, id="each its own"
    ),
    pytest.param(
        {"Main/train": "b\n", "Main/person_train": "b  1\nd -1\n"}, BOX_RULE, ["train"], False, id="no lists of a class"
    ),
    pytest.param(
        {"Segmentation/train": "b\n", "Main/train": "d\n", "Main/person_train": "b  1\nd -1\n"},
        MASK_RULE,
        ["train"],
        False,
        id="no lists of a class from the other folder either",
    ),
    pytest.param({"Main/train": "frame 1\nframe 2\n"}, BOX_RULE, None, False, id="ids that end like flags"),
    pytest.param({}, BOX_RULE, ["all"], True, id="no lists at all"),
]


@pytest.mark.parametrize(("lists", "rule", "splits", "noted"), CHOICES)
def test_which_lists_are_read(
    lists: dict[str, str], rule: str, splits: list[str] | None, noted: bool, tmp_path: Path, invoke: Invoke
) -> None:
    photos = PHOTOS if splits else (Photo("frame 1", 20, 20), Photo("frame 2", 20, 20))
    root = write_voc(tmp_path / "voc", photos, lists)
    result = invoke("build", "voc", "--root", root, "--rule", rule, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert list(tokenlabels.open(tmp_path / "out").splits) == (splits or ["train"])
    assert result.stderr.startswith("note: ") == noted
    folder = "Segmentation" if rule == MASK_RULE else "Main"
    expected = [f"ImageSets/{folder}/{split}.txt" for split in splits or ["train"]]
    if noted:
        other = "Main" if rule == MASK_RULE else "Segmentation"
        expected = [f"ImageSets/{other}/trainval.txt"] if lists else ["Annotations"]
    sources = tokenlabels.open(tmp_path / "out").manifest["sources"]
    assert [source["file"] for source in sources.values()] == expected


CONTENTS = [
    pytest.param("b\nd\n", ["b", "d"], {}, id="plain"),
    pytest.param("d\nb", ["b", "d"], {}, id="not sorted, no last newline"),
    pytest.param("\ufeffb\r\nd\r\n", ["b", "d"], {}, id="BOM and CRLF"),
    pytest.param("  b  \n\n\t d\n \n", ["b", "d"], {}, id="blanks"),
    pytest.param("a c\nb\n", ["a c", "b"], {}, id="an id with a space"),
    pytest.param("b\nd\nb\n", ["b", "d"], {"VOC052": 1}, id="twice"),
    pytest.param("b   1\na c -1\nd   0\n", ["b", "d"], {}, id="flags"),
    pytest.param("a c  1\nb 1\n", ["a c", "b"], {}, id="flags after an id with a space"),
]


@pytest.mark.parametrize(("text", "ids", "findings"), CONTENTS)
def test_what_a_list_may_hold(text: str, ids: list[str], findings: dict[str, int], tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/some": text})
    built = build(root, split="some")
    assert list(rows_of(built)) == ids
    assert findings_of(built) == findings
    assert built.splits == ("some",)


STRANGE_IDS = [
    ("../b", "VOC053"),
    ("/etc/passwd", "VOC053"),
    ("sub/b", "VOC053"),
    ("..", "VOC053"),
    ("C:b", "VOC053"),
    ("..\\b", "VOC053"),
    ("b\0", "VOC053"),
    ("nobody", "VOC051"),
    ("b.xml", "VOC051"),
    ("x" * 300, "VOC050"),
]


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
@pytest.mark.parametrize(("strange", "code"), STRANGE_IDS, ids=[repr(name[:20]) for name, _ in STRANGE_IDS])
def test_ids_that_name_no_xml(strange: str, code: str, rule: str, tmp_path: Path, invoke: Invoke) -> None:
    """Also one whose file is there, outside Annotations."""
    text = f"a c\n{strange}\nd\n"
    root = write_voc(tmp_path / "voc", lists={"Main/train": text, "Segmentation/train": text})
    (root / "b.xml").write_text(PHOTOS[0].xml())
    before = files_below(tmp_path)
    words = ("voc", "--root", root, "--rule", rule)
    result = invoke("build", *words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {code} ")
    assert len(result.stderr.splitlines()) == 1
    assert files_below(tmp_path) == before
    built = build(root, rule=rule, on_error="skip")
    assert list(rows_of(built)) == ["a c", "d"]
    assert findings_of(built) == {code: 1}
    checked = invoke("check", *words, "--json")
    assert checked.exit_code == 1
    assert [finding["code"] for finding in json.loads(checked.stdout)["findings"]] == [code]


BAD_LISTS: list[Any] = [
    pytest.param(lambda path: path.write_bytes(b""), "lists no images", id="empty"),
    pytest.param(lambda path: path.write_text("b -1\nd -1\n"), "lists no images", id="nothing of the class"),
    pytest.param(lambda path: path.write_bytes("é\n".encode("latin-1")), "no UTF-8", id="latin-1"),
    pytest.param(lambda path: path.write_bytes("b\n".encode("utf-16")), "no UTF-8", id="UTF-16"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), "Is a directory", id="a folder"),
    pytest.param(lambda path: path.unlink(), "no ImageSets/Main/mine.txt; the lists there are trainval", id="absent"),
]


@pytest.mark.parametrize(("change", "says"), BAD_LISTS)
def test_lists_that_cannot_be_read(change: Change, says: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/mine": ALL, "Main/trainval": ALL})
    change(root / "ImageSets" / "Main" / "mine.txt")
    with pytest.raises(TokenLabelsError, match=says):
        build(root, split="mine")
    assert not list(tmp_path.glob("out*"))


def test_lists_that_are_all_of_a_class_or_the_same_split(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={"Main/cat_train": "b 1\nd -1\n"})
    with pytest.raises(TokenLabelsError, match=r"every list .*--split"):
        build(root)
    assert list(rows_of(build(root, split="cat_train"))) == ["b"]
    root = write_voc(tmp_path / "other", lists={"Main/part-1": "b\n", "Main/part_1": "d\n"})
    with pytest.raises(TokenLabelsError, match=r"part_1.*--split"):
        build(root)


def test_file_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", lists={})
    (root / "Annotations" / os.fsdecode(b"\xff.xml")).write_text(PHOTOS[0].xml())
    with pytest.raises(FindingsError, match=r"VOC053.*no UTF-8"):
        build(root)
    assert list(rows_of(build(root, on_error="skip"))) == ["a c", "b", "d"]


# --- where it is ------------------------------------------------------------------------------------------------------


def test_the_root_is_found(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """`.`, then $VOC_ROOT, then ./VOCdevkit/VOC2012."""
    monkeypatch.delenv("VOC_ROOT", raising=False)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    result = invoke("build", "voc", "--out", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no VOC data set found")
    assert all(word in result.stderr for word in ("--root", "--sample", "VOCdevkit/VOC2012"))
    monkeypatch.setenv("VOC_ROOT", str(voc))
    assert invoke("build", "voc", "--out", "a").exit_code == 0
    write_voc(place / "VOCdevkit" / "VOC2012", PHOTOS[:1])
    monkeypatch.delenv("VOC_ROOT")
    assert invoke("build", "voc").exit_code == 0
    assert len(rows_of(tokenlabels.open("tokenlabels-voc"))) == 1
    monkeypatch.chdir(voc)
    assert invoke("build", "voc", "--out", place / "c").exit_code == 0
    assert len(rows_of(tokenlabels.open(place / "c"))) == 3


@pytest.mark.parametrize(
    ("below", "hint"),
    [
        ("VOCdevkit", "did you mean {}/VOCdevkit/VOC2012?"),
        (".", "did you mean {}/VOCdevkit/VOC2012?"),
        ("VOCdevkit/VOC2012/JPEGImages", "did you mean {}/VOCdevkit/VOC2012/JPEGImages/..?"),
        ("elsewhere", "name the folder that holds Annotations"),
        ("nowhere", "no such folder"),
    ],
)
def test_a_wrong_root_gives_a_hint(below: str, hint: str, tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / "VOCdevkit" / year, PHOTOS[:1])
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(TokenLabelsError) as caught:
        tokenlabels.build("voc", root=tmp_path / below, out=tmp_path / "out")
    assert hint.format(tmp_path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["annotations", "images", "masks", "ignore", "reduce_zero_label"])
def test_options_of_other_formats_are_refused(option: str, voc: Path) -> None:
    with pytest.raises(ParameterError, match="does not go with voc"):
        build(voc, **{option: True if option == "reduce_zero_label" else 0 if option == "ignore" else voc})


# --- XML --------------------------------------------------------------------------------------------------------------

LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 20}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
EXTERNAL = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "{}">]><annotation><filename>&x;</filename></annotation>'

UNSAFE = {
    "internal entities": b'<!DOCTYPE annotation [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>',
    "a billion laughs": f"{LAUGHS}]><annotation><filename>&i;</filename></annotation>".encode(),
    "a file": EXTERNAL.format("file:///etc/passwd").encode(),
    "the network": EXTERNAL.format("http://192.0.2.1/x").encode(),
    "an external subset": b'<!DOCTYPE annotation SYSTEM "http://192.0.2.1/voc.dtd"><annotation/>',
    "a parameter entity": b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://192.0.2.1/x"> %x;]><annotation/>',
    "a bare document type": b"<!DOCTYPE annotation><annotation/>",
    "UTF-16": EXTERNAL.format("file:///etc/passwd").encode("utf-16"),
    "UTF-16 big-endian": ("\ufeff" + EXTERNAL.format("file:///etc/passwd")).encode("utf-16-be"),
    "UTF-8 with BOM": EXTERNAL.format("file:///etc/passwd").encode("utf-8-sig"),
}
UNREADABLE = {
    "declared EBCDIC": b'<?xml version="1.0" encoding="cp037"?><annotation/>',
    "EBCDIC": f'<?xml version="1.0" encoding="cp037"?>{EXTERNAL.format("x")}'.encode("cp037"),
    "declared UTF-7": b'<?xml version="1.0" encoding="utf-7"?><annotation/>',
    "an encoding that is no text": b'<?xml version="1.0" encoding="rot13"?><annotation/>',
    "an encoding nobody knows": b'<?xml version="1.0" encoding="klingon"?><annotation/>',
    "an unknown entity": b"<annotation><filename>&nbsp;</filename></annotation>",
    "nothing": b"",
    "zeros": bytes(100),
    "half a file": PHOTOS[0].xml().encode()[:150],
    "two roots": b"<annotation/><annotation/>",
    "JSON": b'{"annotation": 1}',
    "half a million open elements": b"<annotation>" * 500_000,
    "another root": b"<html><annotation/></html>",
    "a namespace": b'<annotation xmlns="urn:x"/>',
    "more than 16 MiB": b"<annotation>" + b" " * (16 << 20) + b"</annotation>",
}


@pytest.mark.parametrize("content", [*UNSAFE.values(), *UNREADABLE.values()], ids=[*UNSAFE, *UNREADABLE])
def test_unsafe_and_unreadable_xml_is_refused_in_a_sentence(
    content: bytes, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    (voc / "Annotations" / "b.xml").write_bytes(content)
    with pytest.raises(FindingsError) as caught:
        build(voc)
    message = str(caught.value)
    assert message.startswith("VOC050 Annotations/b.xml: image b: ")
    assert "\n" not in message
    assert len(message) < 500
    assert "root:" not in message
    assert ("DOCTYPE" in message) == (content in UNSAFE.values())
    assert not list(tmp_path.glob("out*"))
    built = build(voc, on_error="skip")
    assert list(rows_of(built)) == ["a c", "d"]
    assert findings_of(built) == {"VOC050": 1}


def test_an_xml_that_is_a_folder(voc: Path) -> None:
    (voc / "Annotations" / "b.xml").unlink()
    (voc / "Annotations" / "b.xml").mkdir()
    with pytest.raises(FindingsError, match=r"VOC050.*Is a directory"):
        build(voc)


def test_other_encodings_that_are_text_are_read(voc: Path) -> None:
    text = PHOTOS[0].xml().replace("<filename>", "<folder>é</folder><filename>")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "cp1252"):
        head = "" if encoding.startswith("utf") else f'<?xml version="1.0" encoding="{encoding}"?>'
        assert len(parse_voc_xml((head + text).encode(encoding), "b").objects) == 2


def test_random_damage_of_xml_is_a_sentence_or_an_image() -> None:
    chooser = np.random.default_rng(0)
    whole = PHOTOS[0].xml().encode()
    for _ in range(2000):
        damaged = bytearray(whole[: chooser.integers(1, len(whole) + 1)])
        damaged[chooser.integers(len(damaged))] = chooser.integers(256)
        with contextlib.suppress(XmlFileError):
            parse_voc_xml(bytes(damaged), "b")


BAD_OBJECTS = [
    pytest.param(Thing("", (1, 1, 9, 9)), "VOC010", "error", "error", id="no name"),
    pytest.param(Thing("cat", ("x", 1, 9, 9)), "VOC020", "error", "warning", id="a corner that is no number"),
    pytest.param(Thing("cat", ("", 1, 9, 9)), "VOC020", "error", "warning", id="an empty corner"),
    pytest.param(Thing("cat", ("nan", 1, 9, 9)), "VOC021", "error", "warning", id="a corner that is NaN"),
    pytest.param(Thing("cat", (1, 1, "1e300", 9)), "VOC021", "error", "warning", id="an absurd corner"),
    pytest.param(Thing("cat", (9, 1, 2, 9)), "VOC022", "error", "warning", id="corners the wrong way round"),
    pytest.param(Thing("cat", (9, 1, 8, 9)), "VOC023", "warning", "warning", id="no width"),
    pytest.param(Thing("cat", (100, 100, 120, 120)), "VOC024", "warning", "warning", id="outside"),
    pytest.param(Thing("cat", (40, 1, 62, 9)), "VOC025", "warning", "warning", id="one pixel beyond"),
    pytest.param(Thing("cat", (0, 0, 20, 20)), "VOC025", "warning", "warning", id="0-based"),
]


@pytest.mark.parametrize(("thing", "code", "box", "mask"), BAD_OBJECTS)
def test_faults_of_objects(thing: Thing, code: str, box: str, mask: str, voc: Path, invoke: Invoke) -> None:
    """Named by image and place in the file; an error only where the rule needs what is missing."""
    photo = Photo("b", 61, 40, (CAT, DOG, thing))
    (voc / "Annotations" / "b.xml").write_text(photo.xml())
    values = PHOTOS[0].object_mask()
    values[35:, :5] = 3
    save_mask(voc / "SegmentationObject" / "b.png", values)
    for rule, severity in ((BOX_RULE, box), (MASK_RULE, mask)):
        checked = invoke("check", "voc", "--root", voc, "--rule", rule, "--json")
        found = {finding["code"]: finding for finding in json.loads(checked.stdout)["findings"]}
        assert found[code]["severity"] == severity
        assert found[code]["examples"][0]["message"].startswith("annotation 3 of image b ")
        assert checked.exit_code == (severity == "error")
        if severity == "warning":
            assert rows_of(build(voc, rule=rule))["b"]["objects"]["id"] == [1, 2, 3]
            continue
        with pytest.raises(FindingsError, match=f"{code} .*annotation 3 of image b"):
            build(voc, rule=rule)
        skipped = build(voc, rule=rule, on_error="skip")
        assert rows_of(skipped)["b"]["objects"]["id"] == [1, 2]
        assert findings_of(skipped)[code] == 1


def test_a_name_that_the_list_does_not_have(voc: Path) -> None:
    (voc / "labelmap.txt").write_text("background\ncat\nperson\n")
    with pytest.raises(FindingsError, match=r"VOC013 .*annotation 2 of image b is a 'dog'"):
        build(voc)
    rows = rows_of(build(voc, on_error="skip"))
    assert rows["b"]["objects"]["id"] == [1]


@pytest.mark.parametrize("change", [("cat", "lynx"), ("<name>cat</name>", "")])
def test_pixels_of_an_object_that_is_left_out_are_not_foreground(change: tuple[str, str], voc: Path) -> None:
    """Like its box; and the mask is not said to hold a value that the XML does not have."""
    file = voc / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace(*change))
    (voc / "labelmap.txt").write_text("background\ncat\ndog\nperson\n")
    built = build(voc, rule=MASK_RULE, on_error="skip")
    assert rows_of(built)["b"]["objects"]["id"] == [2]
    expected = shares(PHOTOS[0].object_mask() == 2, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)
    assert "VOC060" not in findings_of(built)
    selected = build(voc, rule=MASK_RULE, on_error="skip", categories=["cat"])
    assert not any(rows_of(selected)["b"]["labels"])


def test_values_that_nothing_explains_cannot_be_told_apart(voc: Path, tmp_path: Path) -> None:
    """The order of the names in the XML says nothing of class masks; all of them together are foreground."""
    for file in (voc / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<name>dog", "<name>zebra"))
    assert any(rows_of(build(voc, rule=MASK_RULE, categories=["zebra"]))["b"]["labels"]), "object masks say it"
    shutil.rmtree(voc / "SegmentationObject")
    for photo in PHOTOS:
        values = np.minimum(photo.object_mask(), 3)
        save_mask(voc / "SegmentationClass" / f"{photo.image_id}.png", values)
    assert any(rows_of(build(voc, rule=MASK_RULE))["b"]["labels"])
    with pytest.raises(ParameterError, match=r"SegmentationClass/.*\.png: which of its values is which category"):
        build(voc, rule=MASK_RULE, categories=["zebra"])
    names = tmp_path / "names.txt"
    names.write_text("background\ncat\nzebra\nperson\n")
    assert any(rows_of(build(voc, rule=MASK_RULE, categories=[names, "zebra"]))["b"]["labels"])


# --- bad masks --------------------------------------------------------------------------------------------------------


def png_bytes(values: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, "PNG")
    return sink.getvalue()


def cut(share: float) -> Change:
    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return change


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0x55
    path.write_bytes(bytes(data))


def bomb(path: Path) -> None:
    """A header of 60,000 x 60,000 pixels with its checksum."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 3, 0, 0, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])


def as_mode(mode: str) -> Change:
    def change(path: Path) -> None:
        with Image.open(path) as picture:
            converted = picture.convert(mode) if mode != "I;16" else Image.new("I;16", picture.size, 1)
        converted.save(path)

    return change


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


MASK_FAULTS = [
    pytest.param(lambda path: path.write_bytes(b""), "VOC056", id="empty"),
    pytest.param(lambda path: path.write_text("mask"), "VOC056", id="text"),
    pytest.param(cut(0.02), "VOC056", id="cut in the header"),
    pytest.param(cut(0.5), "VOC056", id="cut in half"),
    pytest.param(cut(0.97), "VOC056", id="cut near the end"),
    pytest.param(damaged, "VOC056", id="one byte changed"),
    pytest.param(bomb, "VOC056", id="decompression bomb"),
    pytest.param(as_folder, "VOC056", id="a folder"),
    pytest.param(as_mode("RGB"), "VOC057", id="saved as colours"),
    pytest.param(as_mode("RGBA"), "VOC057", id="saved with transparency"),
    pytest.param(as_mode("I;16"), "VOC057", id="16 bits"),
    pytest.param(lambda path: path.write_bytes(png_bytes(np.zeros((61, 40), np.uint8))), "VOC058", id="another size"),
    pytest.param(lambda path: path.write_bytes(png_bytes(np.full((40, 61), 99, np.uint8))), "VOC059", id="a value"),
]


@pytest.mark.parametrize(("change", "code"), MASK_FAULTS)
def test_masks_that_cannot_be_scored(change: Change, code: str, voc: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Nothing is written; `skip` builds the rest, a box rule everything; the same command works on the mended file."""
    shutil.rmtree(voc / "SegmentationObject")
    mask, out = voc / "SegmentationClass" / "b.png", tmp_path / "labels"
    whole = mask.read_bytes()
    change(mask)
    before = files_below(tmp_path)
    words = ("build", "voc", "--root", voc, "--rule", MASK_RULE, "--out", out, "--json")
    for more in ((), ("--dry-run",)):
        result = invoke(*words, *more)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: {code} SegmentationClass/b.png: the mask of image b ")
        assert len(result.stderr.splitlines()) == 1
        assert files_below(tmp_path) == before
    skipped = build(voc, rule=MASK_RULE, on_error="skip")
    assert list(rows_of(skipped)) == ["a c", "d"]
    assert findings_of(skipped) == {code: 1}
    assert len(rows_of(build(voc))) == 3
    checked = {rule: invoke("check", "voc", "--root", voc, "--rule", rule, "--json") for rule in (BOX_RULE, MASK_RULE)}
    for rule, answer in checked.items():
        (finding,) = json.loads(answer.stdout)["findings"]
        assert (finding["code"], finding["severity"]) == (code, "error" if rule == MASK_RULE else "warning")
        assert answer.exit_code == (rule == MASK_RULE)
    if mask.is_dir():
        mask.rmdir()
    mask.write_bytes(whole)
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    assert len(rows_of(tokenlabels.open(out))) == 3


def test_check_lists_every_bad_mask(voc: Path, invoke: Invoke) -> None:
    shutil.rmtree(voc / "SegmentationObject")
    cut(0.5)(voc / "SegmentationClass" / "b.png")
    as_mode("RGB")(voc / "SegmentationClass" / "a c.png")
    save_mask(voc / "SegmentationClass" / "d.png", np.full((48, 48), 77, np.uint8))
    result = invoke("check", "voc", "--root", voc, "--rule", MASK_RULE)
    assert result.exit_code == 1
    assert "0 images: 3 errors, 0 warnings under pixel-ratio." in result.stdout
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("error ")] == [
        "VOC056",
        "VOC057",
        "VOC059",
    ]


def test_few_bits_are_read_as_values(tmp_path: Path) -> None:
    """A grey mask of two classes saved in one bit: its 1 is the first class, not void."""
    root = write_voc(tmp_path / "voc", PHOTOS[:1])
    shutil.rmtree(root / "SegmentationObject")
    (root / "labelmap.txt").write_text("background\nthing\n")
    (root / "Annotations" / "b.xml").write_text(Photo("b", 61, 40).xml())
    pixels = PHOTOS[0].object_mask() == 1
    Image.fromarray(pixels).save(root / "SegmentationClass" / "b.png", bits=1)
    built = build(root, rule=MASK_RULE, void="ignore")
    expected = shares(pixels, PatchGrid.parse(8, 48))
    np.testing.assert_allclose(rows_of(built)["b"]["scores"], expected, atol=CLOSE)
    assert not any(rows_of(built)["b"]["ignored"])


@pytest.mark.slow
@pytest.mark.parametrize("there", ["no folder", "an empty folder", "an older build"])
def test_a_fault_that_a_worker_finds_in_the_middle_leaves_nothing(there: str, tmp_path: Path, invoke: Invoke) -> None:
    photos = [Photo(f"{number:02d}", 61, 40, (CAT,)) for number in range(12)]
    root, out = write_voc(tmp_path / "voc", photos), tmp_path / "labels"
    shutil.rmtree(root / "SegmentationObject")
    words: tuple[object, ...] = ("build", "voc", "--root", root, "--rule", MASK_RULE, "--out", out)
    words = (*words, "--workers", 2, "--shard-rows", 1)
    if there == "an empty folder":
        out.mkdir()
    if there == "an older build":
        assert invoke(*words, "--limit", 3).exit_code == 0
        words = (*words, "--overwrite")
    values = photos[0].class_mask()
    values[0, 0] = 77
    save_mask(root / "SegmentationClass" / "07.png", values)
    result = invoke(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: VOC059 SegmentationClass/07.png: the mask of image 07 holds the value 77")
    assert len(result.stderr.splitlines()) == 1
    assert out.exists() == (there != "no folder")
    assert not out.exists() or files_below(out) == []
    save_mask(root / "SegmentationClass" / "07.png", photos[0].class_mask())
    again = invoke(*(word for word in words if word != "--overwrite"))
    assert again.exit_code == 0, again.stderr
    serial = build(root, rule=MASK_RULE, patch=16, image_size=384, shard_rows=1)
    assert [shard.sha256 for shard in tokenlabels.open(out).shards] == [shard.sha256 for shard in serial.shards]


# --- the command ------------------------------------------------------------------------------------------------------


def test_every_command_works_on_a_build(voc: Path, tmp_path: Path, invoke: Invoke) -> None:
    out, answers = tmp_path / "labels", {}
    commands: dict[str, tuple[object, ...]] = {
        "dry": ("build", "voc", "--root", voc, "--rule", MASK_RULE, "--void", "ignore", "--out", out, "--dry-run"),
        "build": ("build", "voc", "--root", voc, "--rule", MASK_RULE, "--void", "ignore", "--out", out),
        "check": ("check", "voc", "--root", voc),
        "verify": ("verify", out),
        "relabel": ("relabel", out, "--tau", 0.6, "--out", tmp_path / "again"),
        "show": ("show", out, "b", "--images", voc / "JPEGImages", "-o", tmp_path / "x.png"),
    }
    for name, words in commands.items():
        result = invoke(*words, "--json")
        assert result.exit_code == 0, (name, result.stderr)
        assert result.stderr == ""
        answers[name] = json.loads(result.stdout)
    assert answers["dry"]["images"] == answers["build"]["images"] == 3
    assert answers["check"]["errors"] == 0
    assert answers["verify"]["ok"]
    direct = build(voc, rule=MASK_RULE, void="ignore", tau=0.6, patch=16, image_size=384)
    relabelled = tokenlabels.open(tmp_path / "again")
    assert [shard.sha256 for shard in relabelled.shards] == [shard.sha256 for shard in direct.shards]
    assert relabelled.manifest["parameters"] == direct.manifest["parameters"]


@pytest.mark.parametrize(
    "words",
    ["--void maybe", "--difficult maybe", "--embed-size 0", "--jpeg-quality 90", "--jpeg-quality 0", "--categories x"],
)
def test_wrong_parameters_exit_2(words: str, voc: Path, tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("build", "voc", "--root", voc, "--out", tmp_path / "out", *words.split())
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", [BOX_RULE, MASK_RULE])
def test_the_generated_sample_is_a_faultless_voc(rule: str, sample_root: Path, tmp_path: Path) -> None:
    root = sample_root / "VOCdevkit" / "VOC2012"
    built = tokenlabels.build("voc", root=root, rule=rule, out=tmp_path / "out")
    assert findings_of(built).keys() <= {"VOC037"}, "a thing may be hidden by the void around it"
    assert len(rows_of(built)) == 16
    assert "disc" in [category.name for category in built.categories]


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["VOC2012", "VOC2007"])
def real(request: pytest.FixtureRequest) -> Path:
    root = REAL / str(request.param)
    if not root.is_dir():
        pytest.skip("the VOC sample is not here")
    return root


def test_real_boxes(real: Path, tmp_path: Path) -> None:
    """Every image of the lists against ElementTree and outer products."""
    built = tokenlabels.build("voc", root=real, out=tmp_path / "out")
    assert findings_of(built) == {}
    rows = rows_of(built)
    listed = (real / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    assert list(rows) == sorted(listed)
    grid = PatchGrid.parse(16, 384)
    for image_id, row in rows.items():
        root = ElementTree.parse(real / "Annotations" / f"{image_id}.xml").getroot()
        size = int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0)
        scores = np.zeros(24 * 24)
        for element in root.iter("object"):
            corners = [float(element.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")]
            scores = np.maximum(scores, box_shares(corners, size, grid))
        np.testing.assert_allclose(row["scores"], scores, atol=CLOSE)


@pytest.mark.parametrize("void", ["background", "ignore"])
def test_real_masks(void: str, real: Path, tmp_path: Path) -> None:
    """Every mask there is; where both kinds are, they give the same labels."""
    copy = shutil.copytree(real, tmp_path / "copy")
    options: dict[str, Any] = {"rule": MASK_RULE, "void": void, "image_size": [384, 320], "resize": "letterbox"}
    both = tokenlabels.build("voc", root=copy, out=tmp_path / "both", **options)
    shutil.rmtree(copy / "SegmentationObject")
    classes = tokenlabels.build("voc", root=copy, out=tmp_path / "classes", **options)
    for name, grid in both.grids.items():
        by_object, by_class = rows_of(both, name), rows_of(classes, name)
        assert len(by_class) == sum((copy / "SegmentationClass" / f"{key}.png").exists() for key in by_object)
        for image_id, row in by_class.items():
            with Image.open(copy / "SegmentationClass" / f"{image_id}.png") as picture:
                values = np.asarray(picture)
            np.testing.assert_allclose(row["scores"], shares((values > 0) & (values < 255), grid), atol=CLOSE)
            if void == "ignore":
                assert row["ignored"] == (shares(values == 255, grid) > 0.5 + 1e-9).tolist()
            assert by_object[image_id]["scores"] == row["scores"]
            assert by_object[image_id]["labels"] == row["labels"]
