"""VOC folders: boxes, masks, selection and categories against independent oracles, and the command."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import shares
from PIL import Image
from voc_data import (
    BOX_RULE,
    CAT,
    CLOSE,
    MASK_RULE,
    PHOTOS,
    REAL,
    RESIZES,
    Invoke,
    Photo,
    Thing,
    box_shares,
    build,
    expected_labels,
    findings_of,
    grids_of,
    rows_of,
    save_mask,
    write_voc,
)

import tokenlabels
from tokenlabels.errors import FindingsError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.sources.voc import VOC_NAMES

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]


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
