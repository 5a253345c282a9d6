"""Selecting annotations by category and area, against a filter in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlabels.annotations import MASK_RLE, Category, Dataset, Masks, Records, SourceFile, Split
from tokenlabels.errors import ParameterError
from tokenlabels.select import Selection, select

Entry: TypeAlias = tuple[int, float]
"""One annotation: index of its category, and its area."""

NAMES = ("person", "dog", "hot dog", "cup, small", "dog")
"""The category table of every data set here: a name with a blank, one with a comma, and one that occurs twice."""


def records_of(images: Sequence[Sequence[Entry]], *, masks: bool = False) -> Records:
    """Records of some images; annotation k has the id k, a box that begins at x = k, and the one-run mask k."""
    entries = [entry for image in images for entry in image]
    count = len(entries)
    numbers = np.arange(count, dtype=np.int64)
    return Records(
        image_ids=[f"image {index}" for index in range(len(images))],
        file_names=[f"{index}.jpg" for index in range(len(images))],
        widths=np.full(len(images), 1, np.int32),
        heights=np.full(len(images), 10_000, np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(image) for image in images])]).astype(np.int64),
        ids=numbers,
        boxes=np.stack([numbers, *(np.ones((3, count), np.int64))], axis=1).astype(np.float64),
        categories=np.array([category for category, _ in entries], np.int32),
        areas=np.array([area for _, area in entries], np.float64),
        crowd=numbers % 2 == 0,
        difficult=numbers % 3 == 0,
        masks=Masks(
            np.full(count, MASK_RLE, np.uint8),
            np.stack([numbers, numbers + 1], axis=1),
            np.zeros(0, np.uint8),
            np.zeros(0, np.float64),
            numbers,
        )
        if masks
        else None,
    )


def dataset_of(*splits: Sequence[Sequence[Entry]], masks: bool = False) -> Dataset:
    """A data set of some splits, each a list of images."""
    return Dataset(
        "coco",
        tuple(
            Split(f"split{index}", records_of(images, masks=masks), Path(), SourceFile("a.json", 1, "00"))
            for index, images in enumerate(splits)
        ),
        tuple(Category(10 * index, name) for index, name in enumerate(NAMES)),
    )


def ids_by_image(records: Records) -> list[list[int]]:
    """Annotation ids of every image."""
    return [records.ids[start:stop].tolist() for start, stop in zip(records.offsets, records.offsets[1:], strict=False)]


areas = st.sampled_from([0.0, 0.5, 1.0, 31.999, 32.0, 1024.0]) | st.floats(0, 2000)
image_lists = st.lists(st.lists(st.tuples(st.integers(0, len(NAMES) - 1), areas), max_size=5), max_size=5)
name_lists = st.lists(st.sampled_from(sorted(set(NAMES))), max_size=4, unique=True)


@given(
    splits=st.lists(image_lists, min_size=1, max_size=2),
    wanted=st.none() | name_lists,
    unwanted=name_lists,
    least=areas,
    masks=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_selection_is_the_plain_filter(
    splits: list[list[list[Entry]]], wanted: list[str] | None, unwanted: list[str], least: float, masks: bool
) -> None:
    dataset = dataset_of(*splits, masks=masks)
    chosen, dropped = select(dataset, Selection.make(wanted, unwanted, least))
    assert chosen.categories == dataset.categories
    kept_in_all = 0
    for before, after in zip(dataset.splits, chosen.splits, strict=True):
        old, new = before.records, after.records
        assert isinstance(old, Records)
        assert isinstance(new, Records)
        fits = [
            (not wanted or NAMES[category] in wanted) and NAMES[category] not in unwanted and area >= least
            for category, area in zip(old.categories.tolist(), old.areas.tolist(), strict=True)
        ]
        assert (after.name, after.images, after.file) == (before.name, before.images, before.file)
        for name in ("image_ids", "file_names", "widths", "heights"):
            assert list(getattr(new, name)) == list(getattr(old, name)), "images stay"
        assert ids_by_image(new) == [[k for k in image if fits[k]] for image in ids_by_image(old)]
        for name in ("boxes", "categories", "areas", "crowd", "difficult"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name)[new.ids])
        assert (new.masks is not None) == masks
        if new.masks is not None:
            assert new.masks.counts[new.masks.spans[:, 0]].tolist() == new.ids.tolist(), "masks go with their boxes"
        kept_in_all += sum(fits)
    assert dropped == sum(split.records.annotation_count for split in dataset.splits) - kept_in_all


def test_selecting_everything_changes_nothing() -> None:
    dataset = dataset_of([[(0, 1.0), (1, 0.0)], [], [(3, 5.0)]], masks=True)
    chosen, dropped = select(dataset, Selection())
    assert dropped == 0
    for field in fields(Records):
        assert getattr(chosen.splits[0].records, field.name) is getattr(dataset.splits[0].records, field.name)


@pytest.mark.parametrize(
    ("categories", "exclude", "least", "kept", "why"),
    [
        (None, None, 0, [0, 1, 2, 3, 4], "all by default"),
        ([], [], 0, [0, 1, 2, 3, 4], "empty lists are none"),
        (["person"], None, 0, [0], "one name"),
        ("person", None, 0, [0], "a name that is no list"),
        (["person", "hot dog"], None, 0, [0, 2], "two names"),
        (["person,hot dog"], None, 0, [0, 2], "two names in one text"),
        ([" person , hot dog "], None, 0, [0, 2], "with blanks around"),
        (["person,hot dog", "dog"], None, 0, [0, 1, 2, 4], "texts of one and of two names"),
        (["dog"], None, 0, [1, 4], "a name that two categories have"),
        (["cup, small"], None, 0, [3], "a name with a comma"),
        (None, ["dog"], 0, [0, 2, 3], "all but one name"),
        (None, "cup, small", 0, [0, 1, 2, 4], "all but a name with a comma"),
        (None, ["person,dog"], 0, [2, 3], "all but two names in one text"),
        (["person", "dog"], ["dog"], 0, [0], "excluding wins"),
        (["person"], ["person"], 0, [], "nothing is left"),
        (None, None, 3, [2, 3, 4], "the least area itself is kept"),
        (None, None, 3.0001, [3, 4], "less than the least area is not"),
        (["dog"], None, 3, [4], "both"),
        (None, None, 1e9, [], "an area nothing has"),
    ],
)
def test_what_a_person_writes(categories: Any, exclude: Any, least: float, kept: list[int], why: str) -> None:
    """Annotation k is of category k and has the area k + 1."""
    dataset = dataset_of([[(index, index + 1.0) for index in range(len(NAMES))]])
    chosen, dropped = select(dataset, Selection.make(categories, exclude, least))
    records = chosen.splits[0].records
    assert isinstance(records, Records)
    assert records.ids.tolist() == kept, why
    assert dropped == len(NAMES) - len(kept), why


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("persn", "did you mean person?"),
        ("Dog", "did you mean"),
        ("zebra", "cup, small, dog, hot dog, person"),
        ("person,zebra", "no category 'zebra'"),
        ("cup", "no category 'cup'"),
        ("", "no category ''"),
        ("person,", "no category ''"),
    ],
)
@pytest.mark.parametrize("excluded", [False, True], ids=["wanted", "excluded"])
def test_a_category_that_is_not_there_is_refused_by_name(name: str, part: str, excluded: bool) -> None:
    selection = Selection.make(None, [name], 0) if excluded else Selection.make([name], None, 0)
    with pytest.raises(ParameterError) as caught:
        select(dataset_of([[(0, 1.0)]]), selection)
    assert part in str(caught.value)


@pytest.mark.parametrize("area", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf")])
def test_an_impossible_area_is_refused(area: float) -> None:
    with pytest.raises(ParameterError, match="min_area"):
        Selection.make(None, None, area)


def test_a_data_set_without_images_or_categories() -> None:
    empty = dataset_of([])
    assert select(empty, Selection(min_area=5.0))[1] == 0
    bare = replace(empty, categories=())
    assert select(bare, Selection())[1] == 0
    with pytest.raises(ParameterError, match="no category 'dog'"):
        select(bare, Selection.make(["dog"], None, 0))
