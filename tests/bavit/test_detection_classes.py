"""Classes of detectors as categories of data sets."""

from __future__ import annotations

import numpy as np
import pytest

from bavit.detect.classes import category_of_class, class_of_category, unknown_categories
from bavit.detect.config import YolosConfig
from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError

COCO = YolosConfig().labels


def table(*names: str, ids: list[int] | None = None) -> list[Category]:
    return [Category(number, name) for number, name in zip(ids or range(1, len(names) + 1), names, strict=True)]


def test_coco_categories_are_the_classes_of_their_ids() -> None:
    categories = [Category(number, name) for number, name in enumerate(COCO) if name != "N/A"]
    found = class_of_category(COCO, categories)
    assert len(categories) == 80
    assert found.tolist() == [entry.id for entry in categories]
    assert found.dtype == np.int64
    back = category_of_class(found, categories, len(COCO))
    assert back.tolist() == [-1 if name == "N/A" else number for number, name in enumerate(COCO)]
    assert unknown_categories(found, categories) == []


def test_names_decide_and_not_ids() -> None:
    categories = table("Dining_Table", "diningtable", "hot-dog", "PERSON", "aeroplane", ids=[5, 9, 7, 90, 1])
    found = class_of_category(COCO, categories)
    assert [COCO[number] if number >= 0 else None for number in found] == [
        "dining table", "dining table", "hot dog", "person", None,
    ]  # fmt: skip
    assert unknown_categories(found, categories) == ["aeroplane"]
    back = category_of_class(found, categories, len(COCO))
    assert back[COCO.index("dining table")] == 5  # the first of the two
    assert back[COCO.index("person")] == 90
    assert (back >= 0).sum() == 3


def test_what_stands_for_nothing_is_no_name() -> None:
    with pytest.raises(ParameterError, match="none of the categories"):
        class_of_category(["N/A", "n/a", "cat"], table("N/A", "--"))


def test_no_common_class() -> None:
    with pytest.raises(ParameterError, match=r"knows person, bicycle, car, \.\.\.; none .* \(axe, bolt\)"):
        class_of_category(COCO, table("axe", "bolt"))


def test_classes_without_names_are_ids() -> None:
    names = [f"LABEL_{number}" for number in range(6)]
    categories = table("cat", "dog", ids=[5, 0])
    found = class_of_category(names, categories, named=False)
    assert found.tolist() == [5, 0]
    assert category_of_class(found, categories, 6).tolist() == [0, -1, -1, -1, -1, 5]
    for beyond in (6, -1):
        with pytest.raises(ParameterError, match=rf"0 to 5; category {beyond} \(dog\) is beyond"):
            class_of_category(names, table("cat", "dog", ids=[5, beyond]), named=False)
