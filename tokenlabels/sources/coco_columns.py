"""Entries of a COCO file -> columns, every entry checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import MAX_COORDINATE, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, Records
from tokenlabels.check import FindingLog, Kind
from tokenlabels.sources.base import Reading
from tokenlabels.sources.boxes import AnnotationNotes, FileNames, checked_boxes, file_of
from tokenlabels.sources.coco_json import BoxEntry, Document, EntryId, ImageEntry, MaskEntry
from tokenlabels.sources.masks import pack_masks
from tokenlabels.sources.paths import is_inside

if TYPE_CHECKING:
    pass

_MAX_TABLE = 1 << 24
"""Range of ids up to which a table beats a search."""


def to_records(document: Document, file: FileNames, reading: Reading, log: FindingLog) -> Records:
    """Columns of the usable images and annotations of one document, annotations sorted by image.

    Args:
        document: the entries.
        file: its name, for messages.
        reading: what is wanted.
        log: receives every fault; an entry with an error-level fault is left out.
    """
    kept_images, left_out = _check_images(document, file, log)
    if reading.limit is not None:
        left_out |= {entry.id for entry in kept_images[reading.limit :]}
        kept_images = kept_images[: reading.limit]
    entries = document.annotations
    notes = AnnotationNotes(entries, file, log, document.annotation_places)
    rows = _positions([entry.id for entry in kept_images], list(map(attrgetter("image_id"), entries)))
    categories = _positions(
        [category.id for category in document.categories], list(map(attrgetter("category_id"), entries))
    )
    _check_references(notes, rows, categories, left_out)
    widths = np.array([entry.width for entry in kept_images], np.int32)
    heights = np.array([entry.height for entry in kept_images], np.int32)
    boxes = checked_boxes(notes, widths, heights, rows)
    ids, areas = _ids(notes, rows if document.ids_per_image else np.zeros_like(rows)), _areas(notes, boxes)

    count = len(kept_images)
    chosen = np.flatnonzero(notes.usable)
    order = chosen[np.argsort(rows[chosen], kind="stable")]
    records = Records(
        image_ids=[str(entry.id) for entry in kept_images],
        file_names=[entry.file_name for entry in kept_images],
        widths=widths[:count],
        heights=heights[:count],
        offsets=np.searchsorted(rows[order], np.arange(count + 1)),
        ids=ids[order],
        boxes=boxes[order],
        categories=categories[order].astype(np.int32),
        areas=areas[order],
        crowd=np.array(list(map(attrgetter("iscrowd"), entries)), np.int64)[order] != 0,
        difficult=np.zeros(len(order), np.bool_),
    )
    return _with_masks(records, notes, order, rows, reading) if reading.masks else records


def _check_images(document: Document, file: FileNames, log: FindingLog) -> tuple[list[ImageEntry], set[EntryId]]:
    """The usable images, and the ids of those that are left out."""
    kept: list[ImageEntry] = []
    left_out = set(document.lost_images)
    seen: set[str] = set()
    places = range(len(document.images)) if document.image_places is None else document.image_places
    for place, entry in zip(places, document.images, strict=True):
        image_id = str(entry.id)
        if image_id in seen:
            message = f"image id {image_id} occurs again as images[{place}] ({entry.file_name[:200]})."
            log.add(check.IMAGE_DUPLICATE, file_of(file, entry.id), message, image_id=image_id)
            continue
        seen.add(image_id)
        width, height = entry.width, entry.height
        if 1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE and width * height <= MAX_IMAGE_PIXELS:
            kept.append(entry)
        else:
            left_out.add(entry.id)
            message = (
                f"image {image_id} is said to be {width} x {height} pixels; a side is 1 to {MAX_IMAGE_SIDE} "
                f"and an image at most {MAX_IMAGE_PIXELS} pixels."
            )
            log.add(check.IMAGE_SIZE, file_of(file, entry.id), message, image_id=image_id)
        if not entry.file_name:
            message = f"image {image_id} has no file_name."
            log.add(check.IMAGE_NO_NAME, file_of(file, entry.id), message, image_id=image_id)
        elif not is_inside(entry.file_name):
            message = f"image {image_id} has file_name {entry.file_name[:200]!r}, which leaves the image folder."
            log.add(check.IMAGE_PATH, file_of(file, entry.id), message, image_id=image_id)
    return kept, left_out


def _positions(keys: Sequence[EntryId], wanted: Sequence[EntryId]) -> NDArray[np.int64]:
    """int64 (m,): index in `keys` of each wanted id, -1 where it is not there."""
    if not keys:
        return np.full(len(wanted), -1, np.int64)
    try:
        known, queries = np.array(keys), np.array(wanted)
    except (OverflowError, ValueError):
        known = queries = np.array(["text"])
    if known.dtype != np.int64 or queries.dtype != np.int64:
        table = {str(key): index for index, key in enumerate(keys)}
        return np.array([table.get(str(key), -1) for key in wanted], np.int64)
    low, high = int(known.min()), int(known.max())
    if high - low > _MAX_TABLE:
        order = np.argsort(known, kind="stable")
        found = order[np.minimum(np.searchsorted(known, queries, sorter=order), len(known) - 1)]
        return np.where(known[found] == queries, found, -1)
    rows = np.full(high - low + 1, -1, np.int64)
    rows[known - low] = np.arange(len(known))
    inside = (queries >= low) & (queries <= high)
    return np.where(inside, rows[np.where(inside, queries - low, 0)], -1)


def _check_references(
    notes: AnnotationNotes, rows: NDArray[np.int64], categories: NDArray[np.int64], left_out: set[EntryId]
) -> None:
    """Annotations of unknown images and categories; those of an image left out above go with it silently."""
    entries = cast(Sequence[BoxEntry], notes.entries)
    missing = rows < 0
    if left_out:
        notes.usable &= np.fromiter((entry.image_id not in left_out for entry in entries), np.bool_, len(entries))
    notes.flag(check.UNKNOWN_IMAGE, missing, lambda _i: "belongs to an image that is not in the file")
    notes.flag(
        check.UNKNOWN_CATEGORY,
        categories < 0,
        lambda i: f"has category_id {entries[i].category_id}, which is not in the category table",
    )


def _ids(notes: AnnotationNotes, scopes: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (m,), -1 where there is none; those of one scope, int64 (m,), should differ."""
    given = list(map(attrgetter("id"), notes.entries))
    missing = np.zeros(len(given), np.bool_)
    if None in given:
        missing = np.array([value is None for value in given], np.bool_)
        notes.flag(check.ANNOTATION_NO_ID, missing, lambda _i: "has no usable id")
        given = [-1 if value is None else value for value in given]
    ids = np.array(given, np.int64)
    order = np.lexsort((ids, scopes)) if scopes.any() else np.argsort(ids, kind="stable")
    again = np.zeros(len(ids), np.bool_)
    again[order[1:]] = (ids[order[1:]] == ids[order[:-1]]) & (scopes[order[1:]] == scopes[order[:-1]])
    notes.flag(check.ANNOTATION_DUPLICATE, again & ~missing, lambda _i: "has an id that occurred before")
    return ids


def _areas(notes: AnnotationNotes, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (m,), the area of the box where the file gives none."""
    areas = np.array(list(map(attrgetter("area"), notes.entries)), np.float64)  # None becomes NaN
    unusable = ~((areas >= 0) & (areas <= MAX_COORDINATE**2))
    notes.flag(check.NO_AREA, unusable, lambda _i: "has no usable area")
    return np.where(unusable, np.abs(boxes[:, 2] * boxes[:, 3]), areas)


def _with_masks(
    records: Records, notes: AnnotationNotes, order: NDArray[np.int64], rows: NDArray[np.int64], reading: Reading
) -> Records:
    reading.progress("checking masks")
    entries = cast(Sequence[MaskEntry], notes.entries)
    chosen = np.sort(order)  # in file order, which is the order in memory
    every = list(map(attrgetter("segmentation"), entries))
    raws = every if len(chosen) == len(every) else [every[index] for index in chosen.tolist()]

    def report(index: int, kind: Kind, problem: str) -> None:
        if kind is not check.MASK_MISSING or notes.severity_is_error(kind):
            notes.report(kind, int(chosen[index]), problem)

    masks, usable = pack_masks(
        raws,
        records.widths[rows[chosen]],
        records.heights[rows[chosen]],
        report,
        run=reading.run,
        shapes=reading.shapes,
        rasterizer=reading.rasterizer,
    )
    places = np.searchsorted(chosen, order)
    masks, usable = masks.keep(places), usable[places]
    if notes.severity_is_error(check.MASK_MALFORMED):
        return replace(records, masks=masks).keep(usable)
    return replace(records, masks=masks.blanked(~usable))
