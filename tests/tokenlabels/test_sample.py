"""The generated sample: determinism, agreement with pycocotools, VOC conventions, and its treatment of folders."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tokenlabels.errors import TokenLabelsError
from tokenlabels.sample import Scenes, write_sample
from tokenlabels.sample_folder import INCOMPLETE, MARKER, split_of
from tokenlabels.sample_scene import CATEGORIES, plan, plan_simple

IMAGES = 40
VOC = Path("VOCdevkit/VOC2012")
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "drawn"
    write_sample(out, images=IMAGES)
    return out


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, dict[str, Any]]:
    return {split: json.loads((root / f"annotations/instances_{split}.json").read_text()) for split in SPLITS}


@pytest.fixture(scope="module")
def images(documents: dict[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {image["id"]: image for document in documents.values() for image in document["images"]}


@pytest.fixture(scope="module")
def records(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [annotation for document in documents.values() for annotation in document["annotations"]]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def image_contents(root: Path, number: int) -> dict[str, bytes]:
    """The files of one image and its annotations."""
    stem = f"{number:012d}"
    files = {name: data for name, data in contents(root).items() if stem in name}
    document = json.loads((root / f"annotations/instances_{split_of(number)}.json").read_text())
    mine = [
        *(image for image in document["images"] if image["id"] == number),
        *(annotation for annotation in document["annotations"] if annotation["image_id"] == number),
    ]
    return {**files, "annotations": json.dumps(mine).encode()}


def void_of(objects: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By brute force: object pixels within 2 pixels of another value, background pixels within 3 of an object."""
    height, width = objects.shape
    void = np.zeros(objects.shape, bool)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            ys, xs = np.clip(np.arange(height) + dy, 0, height - 1), np.clip(np.arange(width) + dx, 0, width - 1)
            other = objects[np.ix_(ys, xs)]
            near = max(abs(dy), abs(dx)) <= 2
            void |= (other != objects) & (near | ((objects == 0) & (other > 0)))
    return void


# --- determinism ------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_sample(tmp_path / name, images=6, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert not [name for name in first if name.endswith(".jpg") and first[name] == other[name]]


def test_an_image_and_its_split_do_not_depend_on_the_total(root: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "few", images=8)
    for number in range(1, 9):
        assert image_contents(tmp_path / "few", number) == image_contents(root, number)


def test_summary_and_progress(tmp_path: Path) -> None:
    finished: list[int] = []
    summary = write_sample(tmp_path / "s", images=7, progress=finished.append)
    assert sum(finished) == 7
    assert (summary.root, summary.images, summary.splits) == (tmp_path / "s", 7, {"train": 5, "val": 2})
    documents = [json.loads((tmp_path / f"s/annotations/instances_{split}.json").read_text()) for split in SPLITS]
    assert summary.annotations == sum(len(document["annotations"]) for document in documents)
    finished.clear()
    assert write_sample(tmp_path / "s", images=7, progress=finished.append) == summary
    assert finished == []


@pytest.mark.parametrize(("images", "splits"), [(1, {"train": 1}), (2, {"train": 1, "val": 1})])
def test_val_has_an_image_as_soon_as_there_are_two(images: int, splits: dict[str, int], tmp_path: Path) -> None:
    assert write_sample(tmp_path, images=images).splits == splits
    assert {path.stem for path in (tmp_path / "annotations").iterdir()} == {f"instances_{split}" for split in splits}


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_about_one_image_in_five_is_val(images: dict[int, dict[str, Any]], root: Path) -> None:
    assert len(list((root / "val").iterdir())) == IMAGES // 5
    for number, image in images.items():
        with Image.open(root / split_of(number) / image["file_name"]) as picture:
            assert (picture.size, picture.mode) == ((image["width"], image["height"]), "RGB")


def test_ids_are_unique_across_splits(records: list[dict[str, Any]], images: dict[int, dict[str, Any]]) -> None:
    assert len({annotation["id"] for annotation in records}) == len(records)
    assert sorted(images) == list(range(1, IMAGES + 1))


@pytest.mark.parametrize("split", SPLITS)
def test_pycocotools_finds_the_annotated_areas(root: Path, split: str) -> None:
    coco = COCO(root / f"annotations/instances_{split}.json")
    for annotation in coco.anns.values():
        assert int(coco.annToMask(annotation).sum()) == annotation["area"] > 0


def test_polygons_lie_in_the_image_and_boxes_are_tight(
    records: list[dict[str, Any]], images: dict[int, dict[str, Any]]
) -> None:
    for annotation in records:
        if annotation["iscrowd"]:
            continue
        image = images[annotation["image_id"]]
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        assert all(len(polygon) >= 6 for polygon in annotation["segmentation"])
        assert (points >= 0).all()
        assert (points <= (image["width"], image["height"])).all()
        assert (points == np.round(points, 2)).all()
        x, y, width, height = annotation["bbox"]
        assert (x, y) == tuple(points.min(axis=0))
        assert (x + width, y + height) == pytest.approx(points.max(axis=0), abs=1e-9)


def test_every_image_but_the_empty_ones_has_something(
    records: list[dict[str, Any]], images: dict[int, dict[str, Any]]
) -> None:
    empty = images.keys() - {annotation["image_id"] for annotation in records}
    assert empty == {3, 15, 27, 39}
    counts = np.bincount([annotation["image_id"] for annotation in records if not annotation["iscrowd"]])
    assert counts.max() <= 9


def test_crowds_are_rles_of_both_kinds(records: list[dict[str, Any]], images: dict[int, dict[str, Any]]) -> None:
    crowds = {annotation["image_id"]: annotation for annotation in records if annotation["iscrowd"]}
    assert sorted(crowds) == [5, 13, 21, 29, 37]
    kinds = {number: type(crowd["segmentation"]["counts"]) for number, crowd in crowds.items()}
    assert kinds == {5: list, 13: str, 21: list, 29: str, 37: list}
    for number, crowd in crowds.items():
        height, width = images[number]["height"], images[number]["width"]
        assert crowd["segmentation"]["size"] == [height, width]
        rle = crowd["segmentation"]
        if isinstance(rle["counts"], list):
            assert sum(rle["counts"]) == height * width
            rle = coco_mask.frPyObjects(rle, height, width)
        assert crowd["bbox"] == coco_mask.toBbox(rle).tolist()
        assert crowd["area"] == coco_mask.area(rle)


@pytest.mark.parametrize("seed", range(4))
def test_every_sixth_image_has_a_polygon_of_several_parts(seed: int, tmp_path: Path) -> None:
    write_sample(tmp_path, images=7, seed=seed)
    parts: dict[int, int] = {}
    for split in SPLITS:
        for annotation in json.loads((tmp_path / f"annotations/instances_{split}.json").read_text())["annotations"]:
            number = annotation["image_id"]
            parts[number] = max(parts.get(number, 0), len(annotation["segmentation"]))
    assert min(parts[1], parts[7]) >= 2


def test_category_ids_have_gaps_and_supercategories(documents: dict[str, dict[str, Any]]) -> None:
    for document in documents.values():
        assert [category["id"] for category in document["categories"]] == [1, 2, 3, 5, 6, 8, 9, 11, 12, 14]
        assert {category["supercategory"] for category in document["categories"]} == {"round", "angular", "pointed"}


def test_small_medium_and_large_things_all_occur(records: list[dict[str, Any]]) -> None:
    sides = np.sqrt([annotation["area"] for annotation in records if not annotation["iscrowd"]])
    shares = np.histogram(sides, (0, 32, 96, 1000))[0] / sides.size
    assert shares.min() > 0.15


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_boxes_are_the_coco_boxes(
    root: Path, records: list[dict[str, Any]], images: dict[int, dict[str, Any]]
) -> None:
    names = {category.id: category.name for category in CATEGORIES}
    flags = set()
    for number, image in images.items():
        tree = ET.parse(root / VOC / "Annotations" / f"{number:012d}.xml")
        assert tree.findtext("filename") == image["file_name"]
        assert [tree.findtext(f"size/{key}") for key in ("width", "height", "depth")] == [
            str(image["width"]),
            str(image["height"]),
            "3",
        ]
        things = [a for a in records if a["image_id"] == number and not a["iscrowd"]]
        objects = tree.findall("object")
        assert [thing.findtext("name") for thing in objects] == [names[thing["category_id"]] for thing in things]
        for element, thing in zip(objects, things, strict=True):
            left, top, right, bottom = (
                int(element.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            x, y, width, height = thing["bbox"]
            assert 1 <= left <= right <= image["width"]
            assert 1 <= top <= bottom <= image["height"]
            assert (left - 1, top - 1) == (math.floor(x), math.floor(y))
            assert (right, bottom) == (math.ceil(round(x + width, 2)), math.ceil(round(y + height, 2)))
            if element.findtext("truncated") == "1":
                assert left == 1 or top == 1 or right == image["width"] or bottom == image["height"]
            flags |= {(name, element.findtext(name)) for name in ("difficult", "truncated", "occluded")}
    assert flags == {(name, value) for name in ("difficult", "truncated", "occluded") for value in "01"}


def test_masks_hold_the_coco_pixels_with_a_void_border(
    root: Path, records: list[dict[str, Any]], images: dict[int, dict[str, Any]]
) -> None:
    value_of = {category.id: value for value, category in enumerate(CATEGORIES, 1)}
    for number in (1, 2, 3, 5, 7, 13):
        coco = COCO(root / f"annotations/instances_{split_of(number)}.json")
        height, width = images[number]["height"], images[number]["width"]
        objects, classes = np.zeros((height, width), int), np.zeros((height, width), int)
        crowd = np.zeros((height, width), bool)
        for place, thing in enumerate((a for a in records if a["image_id"] == number), 1):
            pixels = coco.annToMask(thing).astype(bool)
            if thing["iscrowd"]:
                crowd = pixels
                continue
            objects[pixels], classes[pixels] = place, value_of[thing["category_id"]]
        void = void_of(objects) | crowd
        objects[void] = classes[void] = 255
        for folder, expected in (("SegmentationObject", objects), ("SegmentationClass", classes)):
            with Image.open(root / VOC / folder / f"{number:012d}.png") as picture:
                assert picture.mode == "P"
                palette = picture.getpalette() or []
                assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
                assert palette[-3:] == [224, 224, 192]
                np.testing.assert_array_equal(np.asarray(picture), expected)
        assert (classes == 255).any() == (number != 3)


def test_voc_lists_name_the_coco_splits(root: Path, documents: dict[str, dict[str, Any]]) -> None:
    stems = {split: [Path(i["file_name"]).stem for i in documents[split]["images"]] for split in SPLITS}
    stems["trainval"] = sorted(stems["train"] + stems["val"])
    for folder in ("Main", "Segmentation"):
        for split, expected in stems.items():
            assert (root / VOC / f"ImageSets/{folder}/{split}.txt").read_text().split() == expected
    rows = (root / VOC / "labelmap.txt").read_text().splitlines()
    assert [row.split(":")[0] for row in rows[1:]] == ["background", *(category.name for category in CATEGORIES)]
    assert rows[2] == "disc:128,0,0::"


def test_voc_and_coco_share_their_jpegs(root: Path) -> None:
    for stem, split in (("000000000001", "train"), ("000000000002", "val")):
        assert (root / VOC / f"JPEGImages/{stem}.jpg").samefile(root / split / f"{stem}.jpg")


def test_jpegs_are_copied_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "links are not supported here")

    monkeypatch.setattr(os, "link", refuse)
    write_sample(tmp_path, images=1)
    name = "000000000001.jpg"
    assert (tmp_path / VOC / "JPEGImages" / name).read_bytes() == (tmp_path / "train" / name).read_bytes()


# --- simple scenes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simple_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simple") / "drawn"
    write_sample(out, images=12, scenes="simple")
    return out


def test_simple_scenes_hold_a_few_large_things_inside_and_apart(simple_root: Path) -> None:
    counts = dict.fromkeys(range(1, 13), 0)
    for split in SPLITS:
        coco = COCO(simple_root / f"annotations/instances_{split}.json")
        for number, image in coco.imgs.items():
            things = coco.imgToAnns[number]
            counts[number] = len(things)
            boxes = [(x, y, x + width, y + height) for x, y, width, height in (thing["bbox"] for thing in things)]
            for thing, (left, top, right, bottom) in zip(things, boxes, strict=True):
                assert (thing["iscrowd"], len(thing["segmentation"])) == (0, 1)
                assert int(coco.annToMask(thing).sum()) == thing["area"]
                assert thing["area"] >= (0.15 * min(image["width"], image["height"])) ** 2
                assert min(left, top) > 0
                assert right < image["width"]
                assert bottom < image["height"]
            for a, b in combinations(boxes, 2):
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    assert [number for number, count in counts.items() if count == 0] == [3]
    assert set(counts.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(3))
def test_only_every_twelfth_simple_scene_is_empty(seed: int) -> None:
    scenes = {number: plan_simple(number, np.random.default_rng([seed, number])) for number in range(1, 61)}
    assert [number for number, scene in scenes.items() if not scene.things] == [3, 15, 27, 39, 51]
    assert max(len(scene.things) for scene in scenes.values()) == 3
    assert not any(scene.crowd or scene.poles for scene in scenes.values())


def test_objects_of_simple_scenes_are_whole(simple_root: Path) -> None:
    for path in (simple_root / VOC / "Annotations").iterdir():
        for element in ET.parse(path).findall("object"):
            assert [element.findtext(name) for name in ("difficult", "truncated", "occluded")] == ["0", "0", "0"]


def test_simple_scenes_are_the_same_again_and_not_those_of_another_seed(simple_root: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "few", images=5, scenes="simple")
    write_sample(tmp_path / "other", images=5, seed=1, scenes="simple")
    for number in range(1, 6):
        mine = image_contents(tmp_path / "few", number)
        assert mine == image_contents(simple_root, number) != image_contents(tmp_path / "other", number)


def test_photo_scenes_are_the_default_and_their_marker_does_not_say_so(tmp_path: Path) -> None:
    write_sample(tmp_path / "default", images=3)
    write_sample(tmp_path / "photo", images=3, scenes="photo")
    assert contents(tmp_path / "default") == contents(tmp_path / "photo")
    marker = json.loads((tmp_path / "default" / MARKER).read_text())
    assert list(marker) == ["generator", "version", "seed", "images", "annotations", "splits", "files"]


@pytest.mark.parametrize(("first", "second"), [("photo", "simple"), ("simple", "photo")])
def test_scenes_of_another_kind_are_redrawn(first: Scenes, second: Scenes, tmp_path: Path) -> None:
    finished: list[int] = []
    write_sample(tmp_path / "wanted", images=3, scenes=second)
    write_sample(tmp_path / "out", images=3, scenes=first)
    write_sample(tmp_path / "out", images=3, scenes=second, progress=finished.append)
    assert sum(finished) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")
    write_sample(tmp_path / "out", images=3, scenes=second, progress=finished.append)
    assert sum(finished) == 3


def test_unknown_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenLabelsError, match="photo or simple, not 'drawn'"):
        write_sample(tmp_path / "out", images=2, scenes="drawn")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "seed"), [(0, 0), (-1, 0), (1_000_001, 0), (2, -1)])
def test_numbers_out_of_range_are_refused(images: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(TokenLabelsError):
        write_sample(tmp_path / "out", images=images, seed=seed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["notes.txt", MARKER])
def test_a_folder_with_other_things_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"generator": "somebody else"}')
    before = contents(tmp_path)
    with pytest.raises(TokenLabelsError, match=str(tmp_path)):
        write_sample(tmp_path, images=2)
    assert contents(tmp_path) == before


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenLabelsError, match="is a file"):
        write_sample(tmp_path / "file", images=2)


def test_an_interrupted_run_is_redone(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        if len(list((tmp_path / "cut/train").iterdir())) == 3:
            raise KeyboardInterrupt

    write_sample(tmp_path / "whole", images=6)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "cut", images=6, progress=interrupt)
    assert (tmp_path / "cut" / INCOMPLETE).exists()
    assert not (tmp_path / "cut" / MARKER).exists()
    damaged = tmp_path / "cut/train/000000000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:100])
    write_sample(tmp_path / "cut", images=6)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_two_at_once_draw_one_sample(tmp_path: Path) -> None:
    write_sample(tmp_path / "whole", images=5)
    with ThreadPoolExecutor(3) as pool:
        summaries = list(pool.map(lambda _: write_sample(tmp_path / "shared", images=5), range(3)))
    assert summaries[0] == summaries[1] == summaries[2]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_another_sample_replaces_ours_and_nothing_else(tmp_path: Path) -> None:
    write_sample(tmp_path / "wanted", images=3, seed=2)
    write_sample(tmp_path / "out", images=6)
    (tmp_path / "out/notes.txt").write_text("mine")
    write_sample(tmp_path / "out", images=3, seed=2)
    assert contents(tmp_path / "out") == {**contents(tmp_path / "wanted"), "notes.txt": b"mine"}


def test_a_sample_that_lost_an_annotation_file_is_redrawn(tmp_path: Path) -> None:
    write_sample(tmp_path, images=2)
    before = contents(tmp_path)
    (tmp_path / "annotations/instances_val.json").unlink()
    write_sample(tmp_path, images=2)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenLabelsError, match="cannot be written"):
        write_sample(tmp_path / "file" / "below", images=1)


def test_the_data_card_tells_the_truth() -> None:
    front_matter = (Path(__file__).parents[2] / "data_cards/sample.md").read_text().split("---\n")[1]
    card = yaml.safe_load(front_matter)
    assert card["categories"] == [
        {"id": category.id, "name": category.name, "supercategory": category.supercategory} for category in CATEGORIES
    ]
    counts = {split: {"images": 0, "annotations": 0} for split in SPLITS}
    for number in range(1, 201):
        scene = plan(number, np.random.default_rng([0, number]).spawn(2)[0])
        counts[split_of(number)]["images"] += 1
        counts[split_of(number)]["annotations"] += len(scene.things) + (scene.crowd is not None)
    assert card["splits"] == counts
