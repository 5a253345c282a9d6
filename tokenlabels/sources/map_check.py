"""Checking mask files in tasks: of every one its header and content hash, or all of it; no pixels are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import LabelMaps, MapEncoding
from tokenlabels.executors import Run
from tokenlabels.images import stored_size
from tokenlabels.map_files import MapFileError, map_size, read_map
from tokenlabels.rules import RuleSpec
from tokenlabels.storage import content, contents, threads_for
from tokenlabels.store_faults import reason_of
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class HeaderChunk:
    """Some mask files: the number of the first, folder, names and encodings; pictures to measure, with their folder.

    Names may be empty.
    """

    start: int
    folder: Location
    files: Sequence[str]
    encodings: Sequence[MapEncoding]
    images: Location | None
    pictures: Sequence[str]


@dataclass(frozen=True, slots=True)
class MapHeader:
    """What was found of one mask file.

    Attributes:
        bytes: of the file.
        sha256: hex digest of its content, empty where it cannot be read.
        size: (width, height), zeros where there is a fault.
        fault: number of the kind and what is wrong, or None.
        picture: (width, height) of its picture, None where it was not asked for or cannot be read.
    """

    bytes: int = 0
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    fault: tuple[str, str] | None = None
    picture: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MapChunk:
    """Some maps to decode: the number of the first, the maps, int32 (n,) widths and heights they must have."""

    start: int
    maps: LabelMaps
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class MapFindings:
    """What decoding maps showed.

    Attributes:
        faults: (number of the image, number of the kind, what is wrong).
        strange: (number of the image, value that names no object).
        empty: (number of the image, which of its annotations has no pixel).
    """

    faults: tuple[tuple[int, str, str], ...]
    strange: tuple[tuple[int, int], ...]
    empty: tuple[tuple[int, int], ...]


def read_headers(
    folder: Location,
    files: Sequence[str],
    encodings: Sequence[MapEncoding],
    run: Run,
    *,
    images: Location | None = None,
    pictures: Sequence[str] = (),
) -> list[MapHeader]:
    """The headers of n mask files, in order, and the sizes of their n pictures; nothing is decoded."""
    folder, images = folder.absolute(), images and images.absolute()  # workers may have another working directory
    found: list[MapHeader] = [MapHeader()] * len(files)
    chunks = (
        HeaderChunk(start, folder, files[part], encodings[part], images, pictures[part])
        for start in range(0, len(files), _CHUNK)
        for part in [slice(start, start + _CHUNK)]
    )
    for start, headers in run("tokenlabels.sources.map_check:headers_of", chunks):
        found[start : start + len(headers)] = headers
    return found


def headers_of(chunk: HeaderChunk) -> tuple[int, list[MapHeader]]:
    """Task of `read_headers`."""
    pictures = chunk.pictures if chunk.images is not None else [""] * len(chunk.files)

    def header(row: int) -> MapHeader:
        file, picture = chunk.files[row], pictures[row]
        if not file:
            return MapHeader()
        shown = chunk.images / picture if chunk.images is not None and picture else None
        return _header(chunk.folder / file, chunk.encodings[row], shown)

    return chunk.start, in_threads(header, range(len(chunk.files)), threads_for(chunk.folder))


def _header(path: Location, encoding: MapEncoding, picture: Location | None = None) -> MapHeader:
    try:
        data = content(path)
    except FileNotFoundError:
        return MapHeader(fault=(check.MAP_MISSING.number, "is missing"))
    except OSError as fault:
        return MapHeader(fault=(check.MAP_UNREADABLE.number, f"cannot be read ({reason_of(fault)})"))
    digest = hashlib.sha256(data).hexdigest()
    try:
        size = map_size(data, encoding)
    except MapFileError as fault:
        return MapHeader(len(data), digest, fault=(fault.kind.number, fault.problem))
    return MapHeader(len(data), digest, size, picture=None if picture is None else stored_size(picture))


def check_maps(maps: LabelMaps, widths: NDArray[np.int32], heights: NDArray[np.int32], run: Run) -> MapFindings:
    """Decode n maps and look at every value."""
    chunks = (
        MapChunk(start, maps.block(start, stop), widths[start:stop], heights[start:stop])
        for start in range(0, len(maps.files), _CHUNK)
        for stop in [min(start + _CHUNK, len(maps.files))]
    )
    found = list(run("tokenlabels.sources.map_check:findings_of", chunks))
    return MapFindings(
        tuple(sorted(fault for part in found for fault in part.faults)),
        tuple(sorted(pair for part in found for pair in part.strange)),
        tuple(sorted(pair for part in found for pair in part.empty)),
    )


def findings_of(chunk: MapChunk) -> MapFindings:
    """Task of `check_maps`."""
    from tokenlabels.map_scoring import check_map  # loads the kernels

    spec = RuleSpec.make("pixel-ratio")
    faults, strange, empty = [], [], []
    images = [image for image, file in enumerate(chunk.maps.files) if file]
    files = contents(chunk.maps.folder / chunk.maps.files[image] for image in images)
    for image, data in zip(images, files, strict=True):
        size = int(chunk.widths[image]), int(chunk.heights[image])
        try:
            values, unseen = check_map(chunk.maps, image, data, size, spec)
        except MapFileError as fault:
            faults.append((chunk.start + image, fault.kind.number, fault.problem))
        else:
            strange += [(chunk.start + image, value) for value in values.tolist()]
            empty += [(chunk.start + image, place) for place in unseen.tolist()]
    return MapFindings(tuple(faults), tuple(strange), tuple(empty))


def largest_value(folder: Location, files: Sequence[str], ignored: Sequence[int], run: Run) -> int:
    """The largest value that is not ignored in n class maps; those that cannot be read are passed over. -1: none."""
    chunks = (
        (folder.absolute(), files[start : start + _CHUNK], tuple(ignored)) for start in range(0, len(files), _CHUNK)
    )
    return max(run("tokenlabels.sources.map_check:largest_of", chunks), default=-1)


def largest_of(chunk: tuple[Location, Sequence[str], tuple[int, ...]]) -> int:
    """Task of `largest_value`."""
    folder, files, ignored = chunk
    seen = np.zeros(256, np.int64)
    for data in contents(folder / file for file in files):
        try:
            if isinstance(data, OSError):
                continue
            seen += np.bincount(read_map(data, "class", map_size(data, "class")).ravel(), minlength=256)
        except MapFileError:
            continue
    seen[list(ignored)] = 0
    return int(np.flatnonzero(seen).max(initial=-1))


def listing_digest(entries: Iterable[tuple[str, str]]) -> str:
    """Hex sha256 over (name, sha256 of the content) of many files, in order."""
    digest = hashlib.sha256()
    for name, found in entries:
        digest.update(f"{found} {name}\n".encode())
    return digest.hexdigest()
