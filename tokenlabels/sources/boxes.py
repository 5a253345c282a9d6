"""Boxes of annotation entries of any format, every one checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import MAX_COORDINATE
from tokenlabels.check import FindingLog, Kind

_BOX_SLACK = 0.0101
"""Pixels by which a box may pass the border unreported: x and width are commonly rounded to two decimals each."""

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


class Entry(Protocol):
    """An annotation as a file has it: its id, the id of its image, and its box as xywh."""

    @property
    def id(self) -> int | None: ...

    @property
    def image_id(self) -> int | str: ...

    @property
    def bbox(self) -> Sequence[float] | None: ...


FileNames: TypeAlias = str | Mapping[int | str, str]
"""Name of an annotation file; or of that of each image, by its id."""


def file_of(file: FileNames, image_id: int | str) -> str:
    """The file that an image is in."""
    return file if isinstance(file, str) else file[image_id]


class AnnotationNotes:
    """The m annotation entries of a file, which of them are usable, and how to report faults of them.

    Args:
        entries: the annotations.
        file: where they are.
        log: receives the findings.
        places: index of each in the list of its file; None: as here.
    """

    def __init__(
        self, entries: Sequence[Entry], file: FileNames, log: FindingLog, places: Sequence[int] | None = None
    ) -> None:
        self.entries = entries
        self._places = range(len(entries)) if places is None else places
        self.usable = np.ones(len(entries), np.bool_)
        self._file = file
        self._log = log

    def flag(self, kind: Kind, where: NDArray[np.bool_], wording: Callable[[int], str]) -> None:
        """Report a fault at every usable entry where `where` bool (m,) is true; `wording(index)` says what is wrong."""
        hits = np.flatnonzero(where & self.usable)
        for position, index in enumerate(hits.tolist()):
            if not self._log.wants_example(kind):
                self._log.count(kind, len(hits) - position)
                break
            self.report(kind, index, wording(index))
        if self._log.severity(kind) == "error":
            self.usable[hits] = False

    def report(self, kind: Kind, index: int, problem: str) -> None:
        """Report one fault of one entry."""
        entry = self.entries[index]
        named = f"annotation {entry.id}" if entry.id is not None else f"annotations[{self._places[index]}]"
        self._log.add(
            kind,
            file_of(self._file, entry.image_id),
            f"{named} of image {entry.image_id} {problem}.",
            image_id=str(entry.image_id),
            annotation_id=entry.id,
        )

    def severity_is_error(self, kind: Kind) -> bool:
        """Whether this kind of fault makes an annotation unusable in this run."""
        return self._log.severity(kind) == "error"


def checked_boxes(
    notes: AnnotationNotes, widths: NDArray[np.int32], heights: NDArray[np.int32], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Boxes of m annotations, their faults reported.

    Args:
        notes: the annotations.
        widths: int32 (n,), pixels of the images.
        heights: int32 (n,).
        rows: int64 (m,), image of each annotation.

    Returns:
        float64 (m, 4) xywh; zeros where there is none that can be stored.
    """
    given = list(map(attrgetter("bbox"), notes.entries))
    missing = np.zeros(len(given), np.bool_)
    if None in given:
        missing = np.array([box is None for box in given], np.bool_)
        notes.flag(check.BOX_MALFORMED, missing, lambda _i: "has no bbox of four numbers")
        given = [_NO_BOX if box is None else box for box in given]
    boxes = np.fromiter(chain.from_iterable(given), np.float64, 4 * len(given)).reshape(-1, 4)
    wild = np.invert((np.abs(boxes) <= MAX_COORDINATE).all(axis=1))
    notes.flag(check.BOX_WILD, wild, lambda i: f"has bbox {_shown(boxes[i])}")
    boxes = np.where(wild[:, None], 0.0, boxes)
    left, top, width, height = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    measured = ~missing & ~wild
    negative = (width < 0) | (height < 0)
    notes.flag(check.BOX_NEGATIVE, negative, lambda i: f"has bbox {_shown(boxes[i])} of negative size")
    empty: NDArray[np.bool_] = measured & ~negative & ((width == 0) | (height == 0))
    notes.flag(check.BOX_EMPTY, empty, lambda i: f"has bbox {_shown(boxes[i])} of zero area")
    if len(widths):
        image_width, image_height = widths[rows].astype(np.float64), heights[rows].astype(np.float64)
        solid = measured & ~negative & ~empty
        outside: NDArray[np.bool_] = solid & (
            (left >= image_width) | (top >= image_height) | (left + width <= 0) | (top + height <= 0)
        )

        def wording(i: int) -> str:
            return f"has bbox {_shown(boxes[i])} in an image of {widths[rows[i]]} x {heights[rows[i]]}"

        notes.flag(check.BOX_OUTSIDE, outside, wording)
        partly: NDArray[np.bool_] = (left < -_BOX_SLACK) | (top < -_BOX_SLACK)
        partly |= (left + width > image_width + _BOX_SLACK) | (top + height > image_height + _BOX_SLACK)
        notes.flag(check.BOX_PARTLY_OUTSIDE, solid & ~outside & partly, wording)
    return boxes


def _shown(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{side:.6g}" for side in box.tolist()) + "]"
