"""Which annotations count: by category and by area. The others are as if they were not in the file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import Category, Dataset, LabelMaps, Records
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import ParameterError


class Selection(msgspec.Struct, frozen=True):
    """Names of the categories that are foreground (None: all), those that are not, and the smallest area in px²."""

    categories: tuple[str, ...] | None = None
    exclude_categories: tuple[str, ...] = ()
    min_area: float = 0.0

    @classmethod
    def make(
        cls, categories: Sequence[str] | None, exclude_categories: Sequence[str] | None, min_area: float
    ) -> Selection:
        """From what a person writes: names, also several in one text separated by commas.

        Raises:
            ParameterError: a negative area.
        """
        if not 0 <= min_area < float("inf"):
            raise ParameterError(f"min_area {min_area} is no area: give square pixels, 0 or more.")
        return cls(
            tuple(_texts(categories)) if categories else None, tuple(_texts(exclude_categories or ())), float(min_area)
        )


def select(dataset: Dataset, selection: Selection) -> tuple[Dataset, int]:
    """Leave out the annotations that do not count; images and the category table stay.

    Returns:
        The data set, and how many annotations were left out.

    Raises:
        ParameterError: a category that the data set does not have.
    """
    wanted = foreground_categories(dataset.categories, selection, dataset.foreground)
    splits, dropped = [], 0
    for split in dataset.splits:
        records = split.records
        if isinstance(records, DeferredRecords):  # what was read once was selected there
            dropped += int(records.left_out.sum())
        else:
            kept = counted(records, wanted, selection)
            dropped += int((~kept).sum())
            records = _with_maps(records, kept, wanted).keep(kept)
        splits.append(replace(split, records=records))
    return replace(dataset, splits=tuple(splits)), dropped


def foreground_categories(
    categories: Sequence[Category], selection: Selection, foreground: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """bool (k,): the categories that count; `foreground` are those that do unless a person names others, None: all.

    Raises:
        ParameterError: a category that is not among them.
    """
    names = [category.name for category in categories]
    wanted = np.ones(len(names), np.bool_) if foreground is None else foreground
    if selection.categories is not None:
        chosen = _known(selection.categories, categories)
        wanted = np.array([name in chosen for name in names], np.bool_)
    excluded = _known(selection.exclude_categories, categories)
    return wanted & np.array([name not in excluded for name in names], np.bool_)


def counted(records: Records, wanted: NDArray[np.bool_], selection: Selection) -> NDArray[np.bool_]:
    """bool (m,): the annotations that count, by category (`wanted` bool (k,)) and area."""
    return wanted[records.categories] & (records.areas >= selection.min_area)


def _with_maps(records: Records, kept: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Records:
    """Records whose maps know which annotations (bool (m,)) and categories (bool (k,)) count."""
    maps = records.maps
    if maps is None:
        return records
    segments = maps.segments
    if segments is not None:
        counted = segments.kept.copy()
        counted[segments.kept] = kept
        segments = replace(segments, kept=counted)
    values = None if maps.values is None else replace(maps.values, foreground=wanted)
    if values and values.guessed and not wanted.all() and _class_map(maps):
        raise ParameterError(
            f"{_class_map(maps)}: which of its values is which category, nothing says, so that none can be selected: "
            "list the categories in the order of values in a file, and name it with --categories."
        )
    return replace(records, maps=replace(maps, segments=segments, values=values))


def _class_map(maps: LabelMaps) -> str:
    """The first class map of some, empty where there is none."""
    pairs = zip(maps.files, maps.encodings, strict=True)
    return next((file for file, encoding in pairs if file and encoding == "class"), "")


def _texts(names: Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _known(texts: Sequence[str], categories: Sequence[Category]) -> set[str]:
    """The names in `texts`; a text that is no category itself may be several names separated by commas."""
    known = {category.name for category in categories}
    found: set[str] = set()
    for text in texts:
        for name in [text] if text in known else [part.strip() for part in text.split(",")]:
            if name not in known:
                close = difflib.get_close_matches(name, known, 3)
                hint = f"did you mean {', '.join(close)}?" if close else f"they are {', '.join(sorted(known)[:20])}."
                raise ParameterError(f"no category {name!r} in the data set: {hint}")
            found.add(name)
    return found
