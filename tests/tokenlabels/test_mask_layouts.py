"""Where masks are found, which picture is whose, and what the values of a layout mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenlabels.errors import AnnotationFileError, ParameterError, TokenLabelsError
from tokenlabels.known import known_datasets
from tokenlabels.sources.locate import find_source
from tokenlabels.sources.mask_layouts import MaskFolder, find_layout, find_pairs, side_by_side
from tokenlabels.sources.panoptic import PanopticSource
from tokenlabels.sources.semantic import SemanticSource
from tokenlabels.sources.semantic_options import SemanticOptions


def touch(root: Path, *names: str) -> Path:
    """Empty files; nothing here opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def lists(root: Path, folder: str, **ids: str) -> Path:
    for name, text in ids.items():
        path = root / "ImageSets" / folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def semantic(root: Path | None = None, *, class_list: Path | str | None = None, **options: Any) -> SemanticSource:
    chosen = SemanticOptions.make(
        options.pop("ignore", None),
        options.pop("background", None),
        options.pop("reduce_zero_label", False),
        options.pop("stuff", None),
        options.pop("mask_suffix", None),
    )
    source = find_source("semantic", root=root, class_list=class_list, semantic=chosen, **options)
    assert isinstance(source, SemanticSource)
    return source


def card(name: str) -> list[tuple[int, str]]:
    found = next(dataset for dataset in known_datasets() if dataset.name == name)
    return [(entry["id"], entry["name"]) for entry in found.categories]


def table(source: SemanticSource) -> list[tuple[int, str]]:
    assert source.categories is not None
    return [(category.id, category.name) for category in source.categories]


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    names = [f"{kind}/{split}/x{end}" for split in ("training", "validation") for kind, end in PAIR]
    return touch(tmp_path, *names, "objectInfo150.txt", "sceneCategories.txt")


PAIR = (("images", ".jpg"), ("annotations", ".png"))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    touch(tmp_path, *(f"{kind}/{n}{end}" for n in "abcd" for kind, end in VOC_PAIR))
    return lists(tmp_path, "Segmentation", train="b\na\n", val="c\n", trainval="a\nb\nc\n")


VOC_PAIR = (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"))


def test_ade20k(ade: Path) -> None:
    source = semantic(ade)
    assert [(f.name, f.images, f.masks) for f in source.folders] == [
        (name, ade / "images" / name, ade / "annotations" / name) for name in ("training", "validation")
    ]
    assert table(source) == card("ade20k")
    assert (source.ignore, source.background, source.reduce_zero_label) == ((0,), (), False)


def test_ade20k_with_zero_reduced_is_the_same(ade: Path) -> None:
    source = semantic(ade, reduce_zero_label=True)
    assert table(source) == card("ade20k")
    assert (source.void, source.background) == ((0,), ())


@pytest.mark.parametrize("masks", ["stuffthingmaps_trainval2017", "stuffthingmaps"])
def test_coco_stuff_as_it_is_unpacked(tmp_path: Path, masks: str) -> None:
    root = touch(tmp_path, "val2017/x.jpg", f"{masks}/val2017/x.png", "annotations/instances_val2017.json")
    source = semantic(root)
    assert [(f.name, f.images, f.masks) for f in source.folders] == [
        ("val2017", root / "val2017", root / masks / "val2017")
    ]
    assert table(source) == [(number - 1, name) for number, name in card("coco-stuff")]
    assert (source.ignore, source.background) == ((255,), ())


def test_coco_stuff_as_training_tools_lay_it_out(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/train2017/x.jpg", "annotations/train2017/x.png")
    assert table(semantic(root)) == [(number - 1, name) for number, name in card("coco-stuff")]


def test_coco_stuff_with_train_ids(tmp_path: Path) -> None:
    """The converter writes them beside the masks; one split may have been converted in part."""
    root = touch(tmp_path, *(f"images/{s}2017/x.jpg" for s in ("train", "val")))
    touch(root, "annotations/train2017/x.png", "annotations/val2017/x.png", "annotations/val2017/x_labelTrainIds.png")
    source = semantic(root, splits=["val2017"])
    assert table(source) == [(place, name) for place, (_, name) in enumerate(card("coco-stuff"))]
    assert (source.ignore, source.background) == ((255,), ())
    assert [pair.mask for pair in find_pairs(source.folders[0])[0]] == ["x_labelTrainIds.png"]
    with pytest.raises(TokenLabelsError, match=r"holds no \*_labelTrainIds\.png"):
        find_pairs(semantic(root, splits=["train2017"]).folders[0])


def test_train_ids_beside_pictures_are_known_by_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "i/x.jpg", "m/x.png", "m/x_labelTrainIds.png")
    places: dict[str, Any] = {"masks": tmp_path / "m", "images": tmp_path / "i", "mask_suffix": "_labelTrainIds.png"}
    source = semantic(class_list="coco-stuff", **places)
    assert table(source)[-1] == (170, "wood")
    assert source.background == ()


def test_pascal_context(tmp_path: Path) -> None:
    root = touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClassContext/a.png", "SegmentationClass/a.png")
    lists(root, "SegmentationContext", train="a\n", val="a\n")
    source = semantic(root)
    assert [f.name for f in source.folders] == ["train", "val"]
    assert table(source) == card("pascal-context")
    assert (source.ignore, source.background) == ((), (0,))


def test_voc(voc: Path) -> None:
    source = semantic(voc)
    assert [f.name for f in source.folders] == ["train", "val"]
    assert [pair.image_id for pair in find_pairs(source.folders[0])[0]] == ["a", "b"]
    assert table(source) == card("voc")
    assert (source.ignore, source.background) == ((255,), (0,))


def test_voc_split_trainval_where_it_is_named_or_alone(voc: Path) -> None:
    assert [f.name for f in semantic(voc, splits=["trainval"]).folders] == ["trainval"]
    for name in ("train", "val"):
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").unlink()
    assert [f.name for f in semantic(voc).folders] == ["trainval"]


def test_voc_with_its_own_categories(voc: Path) -> None:
    (voc / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nground:0,0,0::\nweed:1,1,1::\n")
    assert table(semantic(voc)) == [(0, "ground"), (1, "weed")]
    assert table(semantic(voc, class_list="voc")) == card("voc")


def test_listed_image_without_a_mask_is_told_and_left_out(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("c\nx\nd\n")
    (voc / "SegmentationClass" / "d.png").unlink()
    pairs, lonely = find_pairs(semantic(voc, splits=["val"]).folders[0])
    assert [pair.image_id for pair in pairs] == ["c"]
    assert lonely == ["d.jpg", "x"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b"../c\n", "'../c', which is no id"),
        (b"a\0b\n", "which is no id"),
        (b"x\ny\n", "no image that has a mask"),
    ],
)
def test_faulty_list_of_ids(voc: Path, content: bytes, problem: str) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_bytes(content)
    with pytest.raises(AnnotationFileError, match=r"val\.txt: ") as caught:
        find_pairs(semantic(voc, splits=["val"]).folders[0])
    assert problem in str(caught.value)


def test_list_with_byte_order_mark_and_carriage_returns(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xef\xbb\xbfd\r\nc\r\n\r\n")
    assert [pair.image_id for pair in find_pairs(semantic(voc, splits=["val"]).folders[0])[0]] == ["c", "d"]


def test_layout_of_unknown_splits_has_no_card(tmp_path: Path) -> None:
    source = semantic(touch(tmp_path, "images/mine/x.jpg", "annotations/mine/x.png"))
    assert source.categories is None
    assert (source.ignore, source.background) == ((255,), (0,))


def test_split_names_are_cleaned_and_found_by_either(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{kind}/{s}/x{end}" for s in ("day-1", "night") for kind, end in PAIR))
    for name in ("day-1", "day_1"):
        assert [f.name for f in semantic(root, splits=[name]).folders] == ["day_1"]


def test_splits_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{kind}/{s}/x{end}" for s in ("day-1", "day_1") for kind, end in PAIR))
    with pytest.raises(TokenLabelsError, match="two of its splits would be called day_1"):
        semantic(root)


def test_unknown_split_names_those_there(ade: Path) -> None:
    with pytest.raises(TokenLabelsError, match="no masks of the split test; the splits there are training, validation"):
        semantic(ade, splits=["test"])


def test_panoptic_files_come_first(ade: Path) -> None:
    touch(ade, "annotations/panoptic_val2017.json", "annotations/panoptic_val2017/x.png")
    assert isinstance(find_source("semantic", root=ade), PanopticSource)


def test_no_layout(tmp_path: Path) -> None:
    assert find_layout(tmp_path) is None
    with pytest.raises(TokenLabelsError, match="--images and --masks, or try --sample"):
        semantic(tmp_path)


# --- what a person says of values -------------------------------------------------------------------------------------


def test_own_list_keeps_the_void_of_the_layout(ade: Path, tmp_path: Path) -> None:
    """A list says names. That 0 is void in ADE20K, and 0 a person in COCO-Stuff, stays true."""
    (ade / "list.txt").write_text("1: wall\n2: building\n")
    source = semantic(ade, class_list=ade / "list.txt")
    assert table(source) == [(1, "wall"), (2, "building")]
    assert (source.ignore, source.background) == ((0,), ())


@pytest.mark.parametrize(
    ("options", "ignore", "background"),
    [
        ({}, (255,), (0,)),
        ({"ignore": 0}, (0,), ()),
        ({"ignore": [0, 255]}, (0, 255), ()),
        ({"ignore": 254}, (254,), (0,)),
        ({"ignore": []}, (), (0,)),
        ({"background": 255}, (), (255,)),
        ({"background": [1, 2]}, (255,), (1, 2)),
        ({"background": []}, (255,), ()),
        ({"reduce_zero_label": True}, (255,), ()),
        ({"reduce_zero_label": True, "background": 1}, (255,), (1,)),
    ],
)
def test_what_a_person_names_beats_the_default(
    tmp_path: Path, options: dict[str, Any], ignore: Sequence[int], background: Sequence[int]
) -> None:
    touch(tmp_path, "m/x.png")
    source = semantic(masks=tmp_path / "m", **options)
    assert (source.ignore, source.background) == (ignore, background)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ignore": 0, "background": 0}, "the value 0 is to be background and ignored"),
        ({"reduce_zero_label": True, "background": 0}, "the value 0 is to be background and ignored"),
        ({"ignore": 256}, "--ignore 256 is no value"),
        ({"background": -1}, "--background -1 is no value"),
        ({"stuff": "background"}, "--stuff goes with COCO panoptic files"),
        ({"splits": ["a", "b"]}, "--masks is one split"),
        ({"root": "."}, "--root and --masks exclude each other"),
        ({"class_list": "nothing"}, "neither a file with a list of categories nor a data card"),
        ({"class_list": "ade"}, "did you mean ade20k"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    touch(tmp_path, "m/x.png")
    with pytest.raises(ParameterError, match=problem):
        semantic(masks=tmp_path / "m", **options)


@pytest.mark.parametrize("option", [{"mask_suffix": "_m.png"}, {"images": "images"}])
def test_a_root_has_its_own_places(ade: Path, option: dict[str, Any]) -> None:
    option = {name: ade / value if name == "images" else value for name, value in option.items()}
    with pytest.raises(ParameterError, match="go with --masks"):
        semantic(ade, **option)


@pytest.mark.parametrize("name", ["masks", "images"])
def test_folders_that_are_not_there(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "m/x.png", "i/x.jpg")
    places = {"masks": tmp_path / "m", "images": tmp_path / "i"} | {name: tmp_path / "none"}
    with pytest.raises(TokenLabelsError, match=f"none: no such folder: name the folder of the {name} with --{name}"):
        semantic(**places)


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs_of(images: Path | None, masks: Path, suffix: str = ".png") -> tuple[list[tuple[str, str, str]], list[str]]:
    pairs, lonely = find_pairs(side_by_side(images, masks, (), suffix))
    return [(pair.image_id, pair.mask, pair.image) for pair in pairs], lonely


def test_pairs_are_sorted_by_id_and_nested(tmp_path: Path) -> None:
    touch(tmp_path, "i/b.jpg", "i/a/z.JPEG", "i/a/b/c.png", "i/notes.txt", "m/b.png", "m/a/z.png", "m/a/b/c.png")
    touch(tmp_path, "i/lonely.webp", "m/orphan.png", "m/notes.txt")
    pairs, lonely = pairs_of(tmp_path / "i", tmp_path / "m")
    assert pairs == [
        ("a/b/c", "a/b/c.png", "a/b/c.png"),
        ("a/z", "a/z.png", "a/z.JPEG"),
        ("b", "b.png", "b.jpg"),
        ("orphan", "orphan.png", ""),
    ]
    assert lonely == ["lonely.webp"]


def test_pairs_with_a_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.png", "m/a_mask.png", "m/a_color.png", "m/a.png")
    assert pairs_of(tmp_path / "i", tmp_path / "m", "_mask.png") == ([("a", "a_mask.png", "a.png")], [])


@pytest.mark.parametrize(("picture", "suffix"), [("a.jpg", ".png"), ("a.png", "_mask.png")])
def test_pictures_and_masks_in_one_folder(tmp_path: Path, picture: str, suffix: str) -> None:
    touch(tmp_path, picture, f"a{suffix}", "b.jpg")
    assert pairs_of(tmp_path, tmp_path, suffix) == ([("a", f"a{suffix}", picture)], ["b.jpg"])


def test_masks_below_the_pictures(tmp_path: Path) -> None:
    """A mask is no picture that lacks a mask."""
    touch(tmp_path, "a.jpg", "sub/b.jpg", "masks/a.png", "masks/sub/b.png")
    pairs, lonely = pairs_of(tmp_path, tmp_path / "masks")
    assert [image for _, _, image in pairs] == ["a.jpg", "sub/b.jpg"]
    assert lonely == []


def test_pictures_below_the_masks(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "images/a.png")
    assert pairs_of(tmp_path / "images", tmp_path) == ([("a", "a.png", "a.png")], [])


def test_hidden_files_are_not_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "i/._a.jpg", "m/a.png", "m/._a.png", "m/.ipynb_checkpoints/a.png", "i/.trash/b.jpg")
    assert pairs_of(tmp_path / "i", tmp_path / "m") == ([("a", "a.png", "a.jpg")], [])


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "m/a.png", "i/a.jpg")
    (tmp_path / "m" / "loop").symlink_to(tmp_path / "m")
    (tmp_path / "m" / "b.png").symlink_to(tmp_path / "m" / "a.png")
    assert [pair[0] for pair in pairs_of(tmp_path / "i", tmp_path / "m")[0]] == ["a", "b"]


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "i/a.png", "m/a.png")
    assert pairs_of(tmp_path / "i", tmp_path / "m") == ([("a", "a.png", "a.jpg")], [])


def test_name_that_is_no_text(tmp_path: Path) -> None:
    touch(tmp_path, "m/a.png")
    (tmp_path / "m" / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(TokenLabelsError, match="is no UTF-8 text: rename it"):
        pairs_of(None, tmp_path / "m")


def test_no_masks_at_all(tmp_path: Path) -> None:
    touch(tmp_path, "m/a.tif", "m/b.PNG", "i/a.jpg")
    with pytest.raises(TokenLabelsError, match=r"holds no \*\.png: .* --mask-suffix"):
        pairs_of(tmp_path / "i", tmp_path / "m")


def test_no_mask_has_a_picture(tmp_path: Path) -> None:
    touch(tmp_path, "m/a_mask.png", "i/a.jpg")
    with pytest.raises(TokenLabelsError, match=r"no picture in it has the name of a mask .* --mask-suffix"):
        pairs_of(tmp_path / "i", tmp_path / "m")


def test_a_split_is_called_by_the_folder_or_by_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "my masks/a.png")
    assert side_by_side(None, tmp_path / "my masks", (), ".png").name == "my_masks"
    assert side_by_side(None, tmp_path / "my masks", ("val-1",), ".png") == MaskFolder(
        "val_1", None, tmp_path / "my masks"
    )
