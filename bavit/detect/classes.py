"""Which class of a detector is which category of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError

_NO_NAMES = ("", "na")
"""What classes are called that stand for nothing; COCO's ids have gaps."""


def class_of_category(
    labels: Sequence[str], categories: Sequence[Category], *, named: bool = True
) -> NDArray[np.int64]:
    """The class of every category: that of the same name, whatever its case, spaces, hyphens and underscores.

    Args:
        labels: names of the classes.
        categories: the category table of the data set.
        named: the names mean something (`YolosConfig.named`); else a class is the category whose id is its number.

    Returns:
        int64 (k,), -1 where the detector has no such class.

    Raises:
        ParameterError: no category is a class of the detector; or, without names, an id is beyond its classes.
    """
    if not named:
        return _by_id(len(labels), categories)
    places: dict[str, int] = {}
    for number, label in enumerate(labels):
        if _key(label) not in _NO_NAMES:
            places.setdefault(_key(label), number)
    found = np.array([places.get(_key(entry.name), -1) for entry in categories], np.int64)
    if not (found >= 0).any():
        names = [entry.name for entry in categories]
        raise ParameterError(
            f"the detector knows {_some(labels)}; none of the categories of this data set ({_some(names)}) "
            "is among them: use a detector for these, or finetune one."
        )
    return found


def category_of_class(
    classes: NDArray[np.int64], categories: Sequence[Category], class_count: int
) -> NDArray[np.int64]:
    """The other way round.

    Args:
        classes: int64 (k,), see `class_of_category`.
        categories: the category table of the data set.
        class_count: of the detector.

    Returns:
        int64 (class_count,), category ids, of several that share a class the first; -1 where the data set has no such
        category.
    """
    found = np.full(class_count, -1, np.int64)
    for number, entry in reversed(list(zip(classes.tolist(), categories, strict=True))):
        if number >= 0:
            found[number] = entry.id
    return found


def unknown_categories(classes: NDArray[np.int64], categories: Sequence[Category]) -> list[str]:
    """Names of the categories that the detector has no class for, whose AP is so 0; see `class_of_category`."""
    return [entry.name for number, entry in zip(classes.tolist(), categories, strict=True) if number < 0]


def _by_id(count: int, categories: Sequence[Category]) -> NDArray[np.int64]:
    beyond = next((entry for entry in categories if not 0 <= entry.id < count), None)
    if beyond is not None:
        raise ParameterError(
            f"the classes of the detector have no names, so that a class is the category of its number, 0 to "
            f"{count - 1}; category {beyond.id} ({beyond.name}) is beyond: write the names of the classes as id2label "
            "into its config.json."
        )
    return np.array([entry.id for entry in categories], np.int64)


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _some(names: Sequence[str]) -> str:
    known = [name for name in names if _key(name) not in _NO_NAMES]
    return ", ".join(name[:40] for name in known[:3]) + (", ..." if len(known) > 3 else "")
