"""Pictures with masks to evaluate on: some rows of a build, whose classes a segmenter knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bavit.pictures import PictureError, PictureReader
from bavit.rows import Rows, read_rows
from bavit.segment.classes import ClassTable, class_table, onto_model
from bavit.segment.config import SegmentClass
from bavit.segment.masks import MaskReader, paired_pictures, with_masks
from bavit.splits import evaluation_splits
from tokenlabels.errors import TokenLabelsError
from tokenlabels.reader import open_build

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPictures:
    """n pictures with their masks.

    Attributes:
        rows: of the build.
        table: what masks mean to the segmenter.
        pictures: opens pictures.
        masks: opens masks.
        images: folder of the pictures; None: they are embedded.
    """

    rows: Rows
    table: ClassTable
    pictures: PictureReader
    masks: MaskReader
    images: Location | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """Those of the segmenter."""
        return self.table.classes

    def open(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """A picture, RGB, and the class of each of its pixels, uint8 (height, width), 255 where it counts nowhere.

        Raises:
            PictureError: one of them cannot be used; says which and why.
        """
        mask = self.masks.open(index)
        picture = self.pictures.open(index)
        if picture.size != mask.shape[::-1]:
            raise PictureError(
                f"{self.rows.folder}: image {self.rows.image_ids[index]} is stored as {picture.width} x "
                f"{picture.height} pixels, its mask as {mask.shape[1]} x {mask.shape[0]}: build again."
            )
        return picture, mask


def open_labelled(
    shards: str | Location,
    classes: Sequence[SegmentClass],
    model: str,
    *,
    splits: Sequence[str] | None = None,
    images: Location | None = None,
    card: str | None = None,
    limit: int | None = None,
    note: Callable[[str], None],
) -> LabelledPictures:
    """The pictures of some splits that have masks.

    Args:
        shards: a build.
        classes: of the segmenter; it may have more than the build.
        model: what the segmenter is called, for errors.
        splits: names, by default those that begin with `val`, else all.
        images: folder of the pictures, or None where they are embedded.
        card: data card whose classes are taken.
        limit: only so many, the first.
        note: is told how many are left out.

    Raises:
        ParameterError: no such split or card, or no pictures.
        TokenLabelsError: no build, no masks, or classes that the segmenter lacks.
    """
    build = open_build(shards)
    rows = read_rows(build, splits=evaluation_splits(build, splits), scores=False)
    if not len(rows):
        raise TokenLabelsError(f"{shards}: its splits {', '.join(evaluation_splits(build, splits))} hold no images.")
    table = onto_model(class_table(build, rows, card), classes, model)
    rows = with_masks(rows, note)
    if limit is not None and limit < len(rows):
        rows = rows.keep(np.arange(len(rows)) < limit)
    return LabelledPictures(rows, table, paired_pictures(rows, images), MaskReader(rows, table), images)
