"""Pictures below a folder, compared with the names of millions of images: by hash, without a set of either."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Split
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.images import IMAGE_SUFFIXES
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import is_folder
from tokenlabels.walk import walk

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_BATCH = 65_536


def report_tree(split: Split, records: DeferredRecords, log: FindingLog, *, complete: bool, missing: bool) -> None:
    """What `images.report_listing` does, for images in folders below folders; nothing where there is no picture."""
    hashes = np.fromiter(map(hash, records.file_names), np.int64, len(records))
    order = np.argsort(hashes)
    named, present = hashes[order], np.zeros(len(hashes), np.bool_)
    any_picture = False
    for names in _batches(split):
        places, known = _find(named, np.fromiter(map(hash, names), np.int64, len(names)))
        any_picture = True
        present[places[known]] = True
        if complete:
            for index in np.flatnonzero(~known).tolist():
                shown = names[index].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                log.add(check.FILE_EXTRA, split.file.file, f"{shown} is not in any JSON file.")
    if not (missing and any_picture):
        return
    present = present[np.searchsorted(named, named)]  # of equal names the first is marked
    seen = np.zeros(len(hashes), np.bool_)
    seen[order] = present
    for index in np.flatnonzero(~seen).tolist():
        name, image_id = records.file_names[index], records.image_ids[index]
        if name and is_inside(name):
            log.add(check.FILE_MISSING, records.sources[index], f"image {image_id}: no file {name}.", image_id=image_id)


def pictures_below(folder: Location) -> Iterator[str]:
    """Relative paths of the pictures below a folder; none where there is no such folder."""
    if is_folder(folder):
        yield from (name for name in walk(folder) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)


def _batches(split: Split) -> Iterator[list[str]]:
    """Names of the pictures of a split's folder, many at a time."""
    pictures = pictures_below(split.images)
    while names := list(itertools.islice(pictures, _BATCH)):
        yield names


def _find(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wanted value first is in sorted `known`, and whether it is there."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places, known[places] == wanted
