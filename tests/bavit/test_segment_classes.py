"""Masks of real builds against the original files, and their classes, of their own or of a data card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from segment_builds import EMBEDDED, masks_of, opened, semantic
from voc_data import write_voc

import tokenlabels
from bavit.pictures import PictureError
from bavit.rows import read_rows
from bavit.segment.classes import class_table, onto_model
from bavit.segment.config import SegmentClass
from bavit.segment.masks import MaskReader, with_masks
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.known import KnownDataset, known_datasets
from tokenlabels.reader import Build
from tokenlabels.sources.voc import VOC_NAMES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
VOC, COCO = DATA / "voc" / "VOCdevkit" / "VOC2012", DATA / "coco"
NEEDS_VOC = pytest.mark.skipif(not VOC.is_dir(), reason="the real VOC sample is not here")
NEEDS_COCO = pytest.mark.skipif(not COCO.is_dir(), reason="the real COCO sample is not here")


def card_of(name: str) -> KnownDataset:
    return next(card for card in known_datasets() if card.name == name)


# --- real data --------------------------------------------------------------------------------------------------------


@NEEDS_VOC
def test_voc_masks_are_the_files(tmp_path: Path) -> None:
    build = tokenlabels.build("voc", root=VOC, rule="pixel-ratio", out=tmp_path / "out", **EMBEDDED)
    rows, table, masks = opened(build)
    assert [(each.value, each.name) for each in table.classes] == list(enumerate(["background", *VOC_NAMES]))
    assert len(rows) == 57
    for row, image_id in enumerate(rows.image_ids):
        stored = np.array(Image.open(VOC / "SegmentationClass" / f"{image_id}.png"))
        np.testing.assert_array_equal(masks.open(row), stored)


@NEEDS_VOC
def test_rows_without_a_mask_are_left_out_with_a_note(tmp_path: Path) -> None:
    build = tokenlabels.build("voc", root=VOC, rule="overlap", out=tmp_path / "out", **EMBEDDED)
    everything, notes = read_rows(build, scores=False), list[str]()
    rows = with_masks(everything, notes.append)
    files = {path.stem for path in (VOC / "SegmentationClass").iterdir()}
    assert list(rows.image_ids) == [image_id for image_id in everything.image_ids if image_id in files]
    assert notes == ["5 of 62 images have no mask and are left out."]
    assert sum(rows.picture_bytes) > sum(everything.picture_bytes)
    assert with_masks(rows, notes.append).picture_bytes == rows.picture_bytes
    masks = MaskReader(everything, class_table(build, everything))
    there = [masks.has(row) for row in range(len(everything))]
    assert there == [image_id in files for image_id in everything.image_ids]
    with pytest.raises(PictureError, match=r"has no mask"):
        masks.open(there.index(False))


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Both panoptic samples, without the images that are not here."""
    root = tmp_path_factory.mktemp("panoptic")
    for name in ("annotations", "train2017", "val2017"):
        (root / name).symlink_to(COCO / name)
    return tokenlabels.build("semantic", root=root, out=root / "out", on_error="skip", **EMBEDDED)


@NEEDS_COCO
@pytest.mark.parametrize("card", [None, "coco-stuff"])
def test_panoptic_masks_are_the_categories_of_the_json(panoptic: Build, card: str | None) -> None:
    rows, table, masks = opened(panoptic, card)
    assert len(rows) > 100
    documents = {
        split: json.loads((COCO / "annotations" / f"panoptic_{split}.json").read_text()) for split in panoptic.splits
    }
    entries = next(iter(documents.values()))["categories"]
    if card is None:
        order = {entry["id"]: place for place, entry in enumerate(entries)}
    else:  # categories that panoptic files merge are not among COCO-Stuff's
        names = [entry["name"] for entry in card_of(card).categories]
        order = {entry["id"]: names.index(entry["name"]) for entry in entries if entry["name"] in names}
        assert len(table.classes) == 171
        assert set(table.left_out) == {entry["name"] for entry in entries if entry["id"] not in order}
    for row, (image_id, split) in enumerate(zip(rows.image_ids, rows.splits, strict=True)):
        found = next(each for each in documents[split]["annotations"] if str(each["image_id"]) == image_id)
        colours = np.array(Image.open(COCO / "annotations" / f"panoptic_{split}" / found["file_name"])).astype(int)
        ids = colours @ [1, 256, 65_536]
        wanted = np.full(ids.shape, 255)
        for segment in found["segments_info"]:
            wanted[ids == segment["id"]] = order.get(segment["category_id"], 255)
        np.testing.assert_array_equal(masks.open(row), wanted)


# --- data cards -------------------------------------------------------------------------------------------------------


CARDS: list[tuple[str, tuple[str, str], list[int], int]] = [
    ("ade20k", ("annotations/training", "images/training"), list(range(151)), 150),
    ("pascal-context", ("masks", "images"), list(range(60)), 59),
    ("coco-stuff", ("annotations/train2017", "images/train2017"), [0, 10, 12, 91, 181, 255], 171),
]


@pytest.mark.parametrize(("card", "layout", "values", "count"), CARDS)
def test_the_classes_of_a_data_card(
    tmp_path: Path, card: str, layout: tuple[str, str], values: list[int], count: int
) -> None:
    """Ids of the card less its offset are values; what it does not list, such as background, counts for nothing."""
    masks = masks_of(values)
    options: dict[str, Any] = {"categories": [card]} if layout[0] == "masks" else {}
    build = semantic(tmp_path, masks, layout, **options)
    rows, table, reader = opened(build, card)
    entries = card_of(card).categories
    assert [each.name for each in table.classes] == [entry["name"] for entry in entries]
    assert len(table.classes) == count
    meaning = card_of(card).masks
    assert meaning is not None
    place = {entry["id"] - meaning.offset: number for number, entry in enumerate(entries)}
    assert [each.value for each in table.classes] == list(place)
    for row, image_id in enumerate(rows.image_ids):
        wanted = np.vectorize(lambda value: place.get(value, 255))(masks[image_id.rpartition("/")[2]])
        np.testing.assert_array_equal(reader.open(row), wanted)


def test_void_of_voc_is_no_class_even_where_a_list_names_it(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({0: "background", 8: "cat", 12: "dog", 15: "person", 255: "rim"}))
    root = write_voc(tmp_path / "voc")
    build = tokenlabels.build(
        "voc", root=root, rule="pixel-ratio", categories=str(listed), out=tmp_path / "out", **EMBEDDED
    )
    rows, table, masks = opened(build)
    assert [each.name for each in table.classes] == ["background", "cat", "dog", "person", "rim"]
    for row, image_id in enumerate(rows.image_ids):
        stored = np.array(Image.open(root / "SegmentationClass" / f"{image_id}.png"))
        wanted = np.select([stored == value for value in (0, 8, 12, 15)], [0, 1, 2, 3], 255)
        np.testing.assert_array_equal(masks.open(row), wanted)


def test_background_is_a_class_where_no_card_says_otherwise(tmp_path: Path) -> None:
    masks = masks_of(range(60))
    _, table, reader = opened(semantic(tmp_path, masks, categories=["pascal-context"]))
    assert table.classes[0] == SegmentClass(0, "background")
    assert len(table.classes) == 60
    np.testing.assert_array_equal(reader.open(0), masks["a"])


NAMES: list[tuple[str, list[str], list[int]]] = [
    ("names of another order", ["tree", "wall", "none such", "Building"], [4, 0, 255, 1]),
    ("several names each, as in objectInfo150.txt", ["x", "wall;panel", "building, edifice"], [255, 0, 1]),
    ("a name beats an id: value 1 is no wall", ["sky", "person"], [2, 12]),
    ("numbers for names are ids", ["0", "1", "2"], [255, 0, 1]),
]


@pytest.mark.parametrize(("_why", "names", "wanted"), NAMES)
def test_categories_are_found_on_a_card_by_id_and_name(
    tmp_path: Path, _why: str, names: list[str], wanted: list[int]
) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(dict(enumerate(names))))
    build = semantic(tmp_path, masks_of(range(len(names))), categories=str(listed), background=254)
    rows = read_rows(build, scores=False)
    table = class_table(build, rows, "ade20k")
    assert table.of_category[: len(names)].tolist() == wanted
    assert table.of_value[: len(names)].tolist() == wanted


@pytest.mark.parametrize(
    ("card", "kind", "named"),
    [
        ("ade20", ParameterError, "did you mean ade20k"),
        ("nothing of the kind", ParameterError, "coco-stuff"),
        ("pascal-context", TokenLabelsError, "none of its categories (background, red, green, …)"),
    ],
)
def test_the_wrong_data_card(tmp_path: Path, card: str, kind: type[Exception], named: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("background\nred\ngreen\nblue\n")
    build = semantic(tmp_path, masks_of(range(4)), categories=str(listed))
    with pytest.raises(kind) as fault:
        class_table(build, read_rows(build, scores=False), card)
    assert named in str(fault.value)


def test_masks_onto_the_classes_of_a_model(tmp_path: Path) -> None:
    """By name, whatever their order; a class that the model lacks is an error, one that it has besides is none."""
    masks = masks_of([0, 1, 2, 255])
    rows, table, _ = opened(semantic(tmp_path, masks))
    assert [each.name for each in table.classes] == ["background", "1", "2"]
    mine = tuple(SegmentClass(value, name) for value, name in ((9, "2"), (8, "more"), (7, "background"), (6, "1")))
    mapped = onto_model(table, mine, "RUN")
    assert mapped.classes == mine
    wanted = np.select([masks["a"] == value for value in range(3)], [2, 3, 0], 255)
    np.testing.assert_array_equal(MaskReader(rows, mapped).open(0), wanted)
    with pytest.raises(TokenLabelsError, match=r"the class '2' \(3 in all\), which RUN lacks \(it has 2\)"):
        onto_model(table, mine[2:], "RUN")
