"""Classes: what the values and segments of the masks of a build are to a segmenter, or to a data card.

`semantic` builds: each category is a class, whose id is the value; `voc`: class 0 is background, 255 is void; panoptic
ones: each category is a class. A data card brings its own classes, in its order, as papers count them: categories of
the build that it lacks, such as background, are ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bavit.rows import Rows
from bavit.segment.config import SegmentClass
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.known import KnownDataset, known_datasets
from tokenlabels.reader import Build

IGNORED = 255
"""Class of pixels that count for nothing."""

_VOC_BACKGROUND = SegmentClass(0, "background")
_VOC_VOID = 255


@dataclass(frozen=True, slots=True, eq=False)
class ClassTable:
    """The classes, and what the masks of a build are to them.

    Attributes:
        classes: n classes.
        of_value: uint8 (256,): class of each value of a mask, `IGNORED` where it has none.
        of_category: uint8 (k,): the same of each entry of the build's category table.
        known: bool (256,): the build says what this value is; others are faults.
        left_out: categories of the build that are ignored, as the data card lacks them.
    """

    classes: tuple[SegmentClass, ...]
    of_value: NDArray[np.uint8]
    of_category: NDArray[np.uint8]
    known: NDArray[np.bool_]
    left_out: tuple[str, ...] = ()


def check_masks(rows: Rows) -> None:
    """Make sure that there are masks.

    Raises:
        TokenLabelsError: the build is of a format without masks, or does not embed them.
    """
    if rows.has_masks:
        return
    if rows.header.format == "coco":
        raise TokenLabelsError(
            f"{rows.folder} is of COCO instances, which have no masks of every pixel: build from a panoptic file "
            "(tokenlabels build semantic --annotations panoptic_….json) with --embed-masks."
        )
    raise TokenLabelsError(f"{rows.folder} has no embedded masks, which segmentation needs: build with --embed-masks.")


def is_panoptic(rows: Rows) -> bool:
    """Whether the colours of masks are segments, rather than their values categories."""
    return bool(rows.groups) and "segments" in rows.groups[0].columns


def class_table(build: Build, rows: Rows, card: str | None = None) -> ClassTable:
    """The classes of a build.

    Args:
        build: with masks.
        rows: some of its rows.
        card: name of a data card, whose classes are taken instead.

    Raises:
        ParameterError: no such card.
        TokenLabelsError: no masks; the card is of other data; or more classes than masks of 8 bits hold.
    """
    check_masks(rows)
    meant = _meant(build, rows)
    if card is None:
        classes, numbers = meant, np.arange(len(meant))
    else:
        dataset = _card(card)
        classes = _classes_of(dataset)
        numbers = _on_card(meant, dataset, classes, panoptic=is_panoptic(rows))
        if (numbers == IGNORED).all():
            raise TokenLabelsError(
                f"{build.path}: none of its categories ({_some(meant)}) is one of the data card {card} "
                f"({_some(classes)}): name the card of this data with --classes, or none."
            )
    if len(classes) > IGNORED:
        raise TokenLabelsError(
            f"{build.path} has {len(classes)} categories, and masks of 8 bits hold {IGNORED} classes at most: choose "
            "some by a data card (--classes)."
        )
    of_value = np.full(256, IGNORED, np.uint8)
    known = np.zeros(256, np.bool_)
    if not is_panoptic(rows):
        values = [each.value for each in meant]
        void = _void(build, rows)
        of_value[values] = numbers
        of_value[void] = IGNORED
        known[[*values, *void]] = True
    of_category = np.asarray(numbers[len(meant) - len(rows.categories) :], np.uint8)
    left_out = tuple(each.name for each, number in zip(meant, numbers, strict=True) if number == IGNORED)
    return ClassTable(classes, of_value, of_category, known, left_out)


def onto_model(table: ClassTable, classes: Sequence[SegmentClass], model: str) -> ClassTable:
    """The classes of a model, and what the masks of a build are to them, matched by name.

    Args:
        table: of the build.
        classes: of the model; it may have more than the build.
        model: what it is called, for errors.

    Raises:
        TokenLabelsError: the build has a class that the model lacks.
    """
    by_name = {each.name: number for number, each in enumerate(classes)}
    numbers = np.full(256, IGNORED, np.uint8)
    for number, each in enumerate(table.classes):
        same = number < len(classes) and classes[number].name == each.name  # names may occur twice
        if not same and each.name not in by_name:
            raise TokenLabelsError(
                f"the masks have the class {each.name!r} ({len(table.classes)} in all), which {model} lacks (it has "
                f"{len(classes)}): use data with its categories, or the data card that it was trained with."
            )
        numbers[number] = number if same else by_name[each.name]
    return replace(
        table, classes=tuple(classes), of_value=numbers[table.of_value], of_category=numbers[table.of_category]
    )


def _meant(build: Build, rows: Rows) -> tuple[SegmentClass, ...]:
    """What the masks of a build tell apart; the categories come last, in their order."""
    categories = rows.categories
    ids = [category.id for category in categories]
    if not all(0 <= number <= 255 for number in ids) or len(set(ids)) < len(ids):
        if not is_panoptic(rows):
            raise TokenLabelsError(f"{build.path} has a category whose id is no value of a mask: build again.")
        ids = list(range(len(ids)))
    own = tuple(SegmentClass(number, category.name) for number, category in zip(ids, categories, strict=True))
    return (_VOC_BACKGROUND, *own) if rows.header.format == "voc" else own


def _void(build: Build, rows: Rows) -> list[int]:
    """Values that are ignored, besides those of categories that are."""
    if rows.header.format == "voc":
        return [_VOC_VOID]
    found = build.manifest["parameters"].get("ignore")
    if not isinstance(found, list) or not all(type(value) is int and 0 <= value <= 255 for value in found):
        raise TokenLabelsError(f"{build.path}: its manifest does not say which values are ignored: build again.")
    return found


def _card(name: str) -> KnownDataset:
    known = {dataset.name: dataset for dataset in known_datasets()}
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
        raise ParameterError(f"{name[:80]!r} is no data card: {hint}")
    return known[name]


def _classes_of(dataset: KnownDataset) -> tuple[SegmentClass, ...]:
    """The classes of a card; values as in the data set's own masks."""
    offset = dataset.masks.offset if dataset.masks else 0
    return tuple(SegmentClass(entry["id"] - offset, entry["name"]) for entry in dataset.categories)


def _on_card(
    meant: Sequence[SegmentClass], dataset: KnownDataset, classes: Sequence[SegmentClass], *, panoptic: bool
) -> NDArray[np.int64]:
    """int64 (m,): the card's class of each category of a build, `IGNORED` where it has none.

    An id decides where the names agree or the build gives no names (only numbers); else the name does: data sets share
    names, and their ids mean other things.
    """
    by_id = {
        entry["id"] if panoptic else each.value: number
        for number, (entry, each) in enumerate(zip(dataset.categories, classes, strict=True))
    }
    by_name = {_plain(each.name): number for number, each in enumerate(classes)}
    found = np.full(len(meant), IGNORED, np.int64)
    for place, each in enumerate(meant):
        names = [_plain(name) for name in (each.name, *re.split("[;,]", each.name))]
        number = by_id.get(each.value)
        if number is not None and (names[0] == str(each.value) or _plain(classes[number].name) in names):
            found[place] = number
        else:
            found[place] = next((by_name[name] for name in names if name in by_name), IGNORED)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _some(classes: Sequence[SegmentClass]) -> str:
    more = ", …" if len(classes) > 3 else ""
    return ", ".join(each.name for each in classes[:3]) + more
