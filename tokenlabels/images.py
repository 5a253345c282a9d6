"""Image files beside the annotations: are they there, whole, and of the annotated size?

Pixels are decoded only where the end of a file that is to be embedded looks cut off.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import MAX_PIXELS, Split
from tokenlabels.check import FindingLog, Kind
from tokenlabels.deferred import DeferredRecords
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, is_folder, names_in, threads_for
from tokenlabels.store_faults import reason_of
from tokenlabels.threads import ahead

if TYPE_CHECKING:
    from tokenlabels.storage import Location

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

_THREADS = 8
_JPEG_KINDS = ("JPEG", "MPO")
_END_MARKS = dict.fromkeys(_JPEG_KINDS, b"\xff\xd9") | {"PNG": b"IEND\xaeB`\x82"}
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_END_SLACK = 64
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Orientations by 90 degrees."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What was found of one image file: its size in bytes and pixels and EXIF orientation, or what is wrong."""

    bytes: int = 0
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    fault: tuple[Kind, str] | None = None


def report_listing(split: Split, log: FindingLog, *, complete: bool, missing: bool = True) -> None:
    """Compare the names in the image folder with the annotation file; nothing where there is no such folder.

    Args:
        split: the split.
        log: receives files that are missing, and images on disk that the annotation file does not have.
        complete: the split holds every image of its annotation file, so that others on disk are extra.
        missing: report files that are missing.
    """
    if isinstance(split.records, DeferredRecords):
        from tokenlabels.tree_listing import report_tree

        report_tree(split, split.records, log, complete=complete, missing=missing)
        return
    try:
        names = names_in(split.images)
    except OSError:
        return
    present = {os.fsencode(name).decode("utf-8", "backslashreplace") for name in names}  # JSON holds UTF-8 only
    named = set(split.records.file_names)
    for image_id, name in zip(split.records.image_ids, split.records.file_names, strict=True):
        if missing and name and "/" not in name and name not in present:
            log.add(check.FILE_MISSING, split.file.file, f"image {image_id}: no file {name}.", image_id=image_id)
    if complete:
        for name in sorted(present - named):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                message = f"{split.images.name}/{name} is not in the annotation file."
                log.add(check.FILE_EXTRA, split.file.file, message)


def stored_size(path: Location) -> tuple[int, int] | None:
    """(width, height) of a picture from its header, None where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: nothing is decoded here
        found = _read_header(path.parent, path.name)
    return None if found.fault else found.size


def has_pictures(split: Split) -> bool:
    """Whether there is a folder to look for pictures in; beside JSON files of one image each, any picture at all."""
    if not isinstance(split.records, DeferredRecords):
        return is_folder(split.images)
    from tokenlabels.tree_listing import pictures_below

    return any(True for _ in pictures_below(split.images))


def check_files(
    split: Split,
    log: FindingLog,
    *,
    missing: bool = True,
    ends: bool = False,
    orientations: bool = False,
    advance: Callable[[int], None] = lambda _n: None,
) -> tuple[Split, NDArray[np.int64]]:
    """Read the header of every image file of a split.

    Args:
        split: the split.
        log: receives files that are missing, unreadable, or of another size than annotated.
        missing: report files that are missing.
        ends: look at the ends of files, too, for those that are cut short.
        orientations: report images that readers turn by their EXIF data, away from their labels.
        advance: called with the number of images done since the last call.

    Returns:
        The split without the images that have an error-level fault, and int64 (n,): bytes of each file left.
    """
    records = split.records
    usable, sizes = np.ones(len(records), np.bool_), np.zeros(len(records), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: nothing is decoded here
        threads = threads_for(split.images, _THREADS)
        headers = ahead(lambda name: _read_header(split.images, name, ends=ends), records.file_names, threads)
        for index, header in enumerate(headers):
            sizes[index] = header.bytes
            usable[index] = _is_usable(split, index, header, log, missing=missing, orientations=orientations)
            advance(1)
    return replace(split, records=records.keep_images(usable)), sizes[usable]


def _is_usable(
    split: Split, index: int, header: _Header, log: FindingLog, *, missing: bool, orientations: bool
) -> bool:
    """Report what is wrong with the image file of one image; whether the image can be built all the same."""
    records, fault = split.records, header.fault
    annotated = int(records.widths[index]), int(records.heights[index])
    if fault is None and header.size != annotated:
        turned = header.orientation in _TURNED and header.size == annotated[::-1]
        why = ": it was annotated as turned by its EXIF orientation" if turned else ""
        stored = f"{header.size[0]} x {header.size[1]}"
        fault = check.FILE_SIZE, f"is stored as {stored}, annotated as {annotated[0]} x {annotated[1]}{why}"
    if fault is None and not (orientations and header.orientation != 1):
        return True
    image_id, name, file = records.image_ids[index], records.file_names[index], split.file_of(index)
    if fault is None:
        why = f"has EXIF orientation {header.orientation}, which labels do not follow and `datasets` does"
        message = f"image {image_id} ({name[:200]}) {why}: --embed-size stores it as labelled."
        log.add(check.FILE_TURNED, file, message, image_id=image_id)
        return True
    if fault[0] is check.FILE_MISSING and not missing:
        return True
    if not name or fault[0] is check.IMAGE_PATH:  # the source has reported it
        return log.severity(fault[0]) != "error"
    message = f"image {image_id} ({name[:200]}) {fault[1]}."
    return log.add(fault[0], file, message, image_id=image_id) != "error"


def _read_header(folder: Location, name: str, *, ends: bool = False) -> _Header:
    from PIL import Image, UnidentifiedImageError

    if not name or not is_inside(name):
        return _Header(
            fault=(check.FILE_MISSING if not name else check.IMAGE_PATH, "cannot be opened by its file_name")
        )
    path = folder / name
    try:
        with _opened(path) as file, Image.open(file) as image:
            size = file.seek(0, os.SEEK_END)
            found = _Header(size, image.size, _orientation(image.info.get("exif")))
            if ends and not _has_end(file, size, image.format):
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    return _Header(fault=(check.FILE_UNREADABLE, "claims an absurd number of pixels"))
                if image.format in _JPEG_KINDS and not _jpeg_ends(content(path)):
                    return _Header(fault=(check.FILE_UNREADABLE, "cannot be read (cut short)"))
                image.load()  # an unusual end may be a whole picture all the same
            return found
    except FileNotFoundError:
        return _Header(fault=(check.FILE_MISSING, f"is not in {folder}"))
    except Image.DecompressionBombError:
        return _Header(fault=(check.FILE_UNREADABLE, "claims an absurd number of pixels"))
    except UnidentifiedImageError:
        return _Header(fault=(check.FILE_UNREADABLE, "is empty, cut short, or no image"))
    except (OSError, ValueError, SyntaxError) as fault:
        reason = "cut short" if "truncated" in str(fault) else reason_of(fault)
        return _Header(fault=(check.FILE_UNREADABLE, f"cannot be read ({reason})"))


def _opened(path: Location) -> IO[bytes]:
    """A picture file; of a store's all of it, by one request."""
    return path.open("rb") if isinstance(path, Path) else io.BytesIO(content(path))


def _has_end(file: IO[bytes], size: int, kind: str | None) -> bool:
    """Whether a file ends as its format does; true of formats that have no mark for it."""
    mark = _END_MARKS.get(kind or "")
    if mark is None:
        return True
    place = file.tell()
    file.seek(-min(len(mark) + _END_SLACK, size), os.SEEK_END)
    end = file.read()
    file.seek(place)
    return end.rstrip(b"\0\r\n ").endswith(mark)


def _jpeg_ends(data: bytes) -> bool:
    """Whether the picture itself has its end mark; what decodes a JPEG fills up what is missing with grey."""
    place = 2
    while found := _JPEG_MARKER.search(data, place):
        if found[1] == b"\xd9":
            return True
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")  # past the segment
    return False


def _orientation(exif: bytes | None) -> int:
    """How EXIF data, as found in a header, says to turn the image, 2 to 8; else 1, as of damaged data."""
    from PIL import Image

    found = Image.Exif()
    try:
        found.load(exif or b"")
        given = found.get(_EXIF_ORIENTATION)
    except (OSError, ValueError, SyntaxError, KeyError, struct.error):
        return 1
    return given if isinstance(given, int) and given in range(2, 9) else 1
