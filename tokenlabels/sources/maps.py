"""The label maps of a split, checked: are they there, have they the size of their images, can they be scored?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Split
from tokenlabels.check import KINDS, FindingLog, Kind
from tokenlabels.sources.base import Reading
from tokenlabels.sources.map_check import MapHeader, check_maps, listing_digest, read_headers


def checked_maps(
    split: Split,
    reading: Reading,
    log: FindingLog,
    *,
    expected: Collection[str] | None = None,
    headers_known: bool = False,
) -> Split:
    """Check the maps of a split by their headers, and whole where `reading.decode` says so.

    Args:
        split: its records have maps.
        reading: what is wanted.
        log: receives every fault. Where masks are scored, an image without a usable map is left out.
        expected: ids of the images that should have a map; None: all.
        headers_known: the caller has looked at the headers.

    Returns:
        The split without what was left out; its file speaks for the maps as well.
    """
    records = split.records
    maps = records.maps
    assert maps is not None
    reading.progress(f"checking masks of {split.name}")
    if headers_known:
        return _decoded(split, reading, log) if reading.decode else split
    headers = read_headers(maps.folder, maps.files, maps.encodings, reading.run)
    faults = _Faults(split, log)
    for image, (file, header) in enumerate(zip(maps.files, headers, strict=True)):
        if not file:
            if expected is None or records.image_ids[image] in expected:
                faults.add(image, check.MAP_MISSING, "is missing")
            else:
                faults.usable[image] = False
        elif header.fault:
            faults.add(image, KINDS[header.fault[0]], header.fault[1])
        elif header.size != (size := (int(records.widths[image]), int(records.heights[image]))):
            stored = f"{header.size[0]} x {header.size[1]}"
            faults.add(image, check.MAP_SIZE, f"is {stored} pixels, the image {size[0]} x {size[1]}")
    split = _summed(faults.result(), headers)
    return _decoded(split, reading, log) if reading.decode else split


def checked_mask_files(split: Split, reading: Reading, log: FindingLog) -> Split:
    """Check the masks to embed of a split that are not its maps, by their headers.

    Args:
        split: its records have mask files.
        reading: what is wanted.
        log: receives every fault; what cannot be embedded is an error there.

    Returns:
        The split without the images whose mask cannot be embedded; its file speaks for the masks as well.
    """
    records = split.records
    files, maps = records.mask_files, records.maps
    assert files is not None
    assert split.masks is not None
    scored = frozenset(() if maps is None else maps.files)
    unseen = ["" if file in scored else file for file in files]
    headers = read_headers(split.masks, unseen, ["class"] * len(unseen), reading.run)
    usable = np.ones(len(records), np.bool_)
    for image, (file, header) in enumerate(zip(unseen, headers, strict=True)):
        size = int(records.widths[image]), int(records.heights[image])
        kind, problem = (
            check.MAP_SIZE,
            f"is {header.size[0]} x {header.size[1]} pixels, the image {size[0]} x {size[1]}",
        )
        if header.fault:
            kind, problem = KINDS[header.fault[0]], header.fault[1]
        elif not file or header.size == size:
            continue
        image_id = records.image_ids[image]
        usable[image] = log.add(kind, file, f"the mask of image {image_id} {problem}.", image_id=image_id) == "warning"
    return replace(_summed(split, headers), records=records.keep_images(usable))


class _Faults:
    """Faults of the maps of a split, and which images keep a usable one."""

    def __init__(self, split: Split, log: FindingLog) -> None:
        self._split = split
        self._log = log
        self.usable: NDArray[np.bool_] = np.ones(len(split.records), np.bool_)

    def add(self, image: int, kind: Kind, problem: str) -> None:
        records = self._split.records
        assert records.maps is not None
        image_id, file = records.image_ids[image], records.maps.files[image]
        self._log.add(
            kind, file or self._split.file.file, f"the mask of image {image_id} {problem}.", image_id=image_id
        )
        self.usable[image] = False

    def result(self) -> Split:
        """The split without the images that cannot be scored; where boxes are, only their maps are let go."""
        records = self._split.records
        assert records.maps is not None
        if self._log.masks_scored:
            return replace(self._split, records=records.keep_images(self.usable))
        files = [file if fine else "" for file, fine in zip(records.maps.files, self.usable, strict=True)]
        return replace(self._split, records=replace(records, maps=replace(records.maps, files=files)))


def _summed(split: Split, headers: list[MapHeader]) -> Split:
    """The split, its file counting the bytes of every map and its digest their contents."""
    size = split.file.size + sum(header.bytes for header in headers)
    contents = ((str(place), header.sha256) for place, header in enumerate(headers))
    digest = listing_digest([("", split.file.sha256), *contents])
    return replace(split, file=type(split.file)(split.file.file, size, digest))


def _decoded(split: Split, reading: Reading, log: FindingLog) -> Split:
    records = split.records
    assert records.maps is not None
    found = check_maps(records.maps, records.widths, records.heights, reading.run)
    faults = _Faults(split, log)
    for image, number, problem in found.faults:
        faults.add(image, KINDS[number], problem)
    if reading.report_all:
        name, source_format = split.file.file, log.source_format
        for image, value in found.strange:
            log.take(check.strange_object(source_format, name, records.image_ids[image], value))
        for image, place in found.empty:
            annotation = int(records.ids[records.offsets[image] + place])
            log.take(check.empty_mask(source_format, name, records.image_ids[image], annotation))
    return faults.result()
