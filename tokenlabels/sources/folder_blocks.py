"""JSON files of one image each, many at a time: what workers do for `coco_folder.py`.

A build reads every file twice: once to check it, when only columns of images come back, and once where its shard is
written. So no process ever holds the annotations of more than some hundred images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Category, Records
from tokenlabels.check import Finding, FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import AnnotationFileError, TokenLabelsError
from tokenlabels.select import Selection, counted, foreground_categories
from tokenlabels.sources.base import Reading
from tokenlabels.sources.coco import read_bytes
from tokenlabels.sources.coco_columns import to_records
from tokenlabels.sources.coco_json import BoxEntry, Document, EntryId, ImageEntry
from tokenlabels.sources.image_json import ImageFile, parse_image_file
from tokenlabels.sources.masks import Rasterizer
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, size_of, threads_for
from tokenlabels.store_faults import reason_of
from tokenlabels.texts import Texts
from tokenlabels.threads import MAX_THREADS, ahead

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Table: TypeAlias = tuple[str, tuple[Category, ...]]
"""A file, and the categories it lists."""

MAX_FILE_BYTES = 256 << 20
"""A JSON file of one image has some hundred kilobytes."""

_GROUP_IMAGES, _GROUP_BYTES = 128, 64 << 20
"""Images whose annotations are in memory at once, unless their files are large."""


@dataclass(frozen=True, slots=True, eq=False)
class FolderReading:
    """How the files of a folder are read; plain data, sent to workers.

    Attributes:
        folder: that all paths are relative to.
        log: an empty log with the severities of the run.
        masks: read masks.
        shapes: see `Reading`.
        draw: see `Reading`.
        rasterizer: see `Reading`.
        selection: which annotations count.
        categories: the table of the files; None: whatever the files say.
        places: int32 (k,), where each category is in the table of the whole data set; None: at its place.
    """

    folder: Location
    log: FindingLog
    masks: bool
    shapes: bool = False
    draw: bool = False
    rasterizer: Rasterizer = "kernel"
    selection: Selection = field(default_factory=Selection)
    categories: tuple[Category, ...] | None = None
    places: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FolderBlock:
    """Some files to be checked.

    Attributes:
        index: number of the block.
        names: their paths relative to the folder.
        how: how to read them.
    """

    index: int
    names: Texts
    how: FolderReading


@dataclass(frozen=True, slots=True, eq=False)
class CheckedBlock:
    """What was found in a block.

    Attributes:
        index: number of the block.
        records: its usable images, how to read them again left out; None: there are none.
        hashes: sha256 of every file, end to end.
        size: bytes of all files.
        table: (file, category table) of the first file that describes an image, if any does.
        findings: see `FindingLog.extend`.
        counts: see `FindingLog.extend`.
    """

    index: int
    records: DeferredRecords | None
    hashes: bytes
    size: int
    table: Table | None
    findings: Sequence[Finding]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One file: its path, its bytes or why there are none, and their sha256."""

    name: str
    data: memoryview
    fault: AnnotationFileError | None
    sha256: bytes


def check_block(block: FolderBlock) -> CheckedBlock:
    """Read and check some files; a task of `Executor.run`.

    Raises:
        AnnotationFileError: two files disagree about categories.
        ParameterError: a category is selected that there is not.
    """
    how, log = block.how, block.how.log.fresh()
    reader = _Reader(how, log)
    hashes, size = bytearray(), 0
    parts: list[DeferredRecords] = []
    for group in _groups(_read_all(how.folder, block.names)):
        for read in group:
            hashes += read.sha256
            size += len(read.data)
        digests = {read.name: int.from_bytes(read.sha256[:8], "big") for read in group}
        found = reader.records(group)
        if found is None:
            continue
        records, names = found
        if how.draw:
            _report_empty_masks(records, names, log)
        kept = reader.counted(records)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        counts = np.diff(before[records.offsets])
        parts.append(
            DeferredRecords(
                loader="",
                how=None,
                sources=Texts.of(names),
                digests=np.array([digests[name] for name in names], np.uint64),
                image_ids=Texts.of(records.image_ids),
                file_names=Texts.of(records.file_names),
                widths=records.widths,
                heights=records.heights,
                counts=counts.astype(np.int32),
                left_out=(np.diff(records.offsets) - counts).astype(np.int32),
            )
        )
    return CheckedBlock(
        block.index,
        DeferredRecords.joined(parts) if parts else None,
        bytes(hashes),
        size,
        reader.table,
        log.listed(),
        log.counts,
    )


def read_again(deferred: DeferredRecords) -> Iterator[Records]:
    """What `DeferredRecords.blocks` yields.

    Raises:
        TokenLabelsError: a file cannot be read any more, or has changed.
    """
    how: FolderReading = deferred.how
    reader = _Reader(how, how.log.fresh())
    start = 0
    for group in _groups(_read_all(how.folder, deferred.sources)):
        stop = start + len(group)
        for read, digest in zip(group, deferred.digests[start:stop].tolist(), strict=True):
            if read.fault is not None or int.from_bytes(read.sha256[:8], "big") != digest:
                raise TokenLabelsError(
                    f"{how.folder / read.name}: has changed since it was checked: leave the files alone, and run again."
                )
        found = reader.records(group)
        assert found is not None
        assert len(found[0]) == len(group)
        records = found[0]
        records = records.keep(reader.counted(records)).block(0, len(group))
        if how.places is not None:
            records.categories[:] = how.places[records.categories]
        yield records
        start = stop


def _read_all(folder: Location, names: Texts) -> Iterator[_Read]:
    return ahead(lambda name: _read(folder, name), names, threads_for(folder, MAX_THREADS))


def _read(folder: Location, name: str) -> _Read:
    path = folder / name
    try:
        if isinstance(path, Path):
            too_large = size_of(path) > MAX_FILE_BYTES
            data = memoryview(b"") if too_large else read_bytes(path)
        else:
            data = memoryview(content(path, MAX_FILE_BYTES + 1))
            too_large = len(data) > MAX_FILE_BYTES
    except AnnotationFileError as fault:
        return _Read(name, memoryview(b""), fault, bytes(32))
    except OSError as fault:
        gone = isinstance(fault, FileNotFoundError)
        problem = "is not there, or a link to nothing" if gone else f"cannot be read ({reason_of(fault)})"
        return _Read(name, memoryview(b""), AnnotationFileError(path, problem), bytes(32))
    if too_large:
        problem = f"has more than {MAX_FILE_BYTES >> 20} MiB, absurdly much for one image"
        return _Read(name, memoryview(b""), AnnotationFileError(path, problem), bytes(32))
    return _Read(name, data, None, hashlib.sha256(data).digest())


def _groups(files: Iterable[_Read]) -> Iterator[list[_Read]]:
    """Files in groups that fit in memory."""
    group: list[_Read] = []
    size = 0
    for read in files:
        group.append(read)
        size += len(read.data)
        if len(group) == _GROUP_IMAGES or size > _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Reader:
    """Reads groups of files that share one category table.

    Attributes:
        table: (file, category table) of the first file that describes an image.
    """

    def __init__(self, how: FolderReading, log: FindingLog) -> None:
        self._how, self._log = how, log
        self._wanted: NDArray[np.bool_] | None = None
        self.table: Table | None = None if how.categories is None else ("", how.categories)

    def records(self, group: Sequence[_Read]) -> tuple[Records, list[str]] | None:
        """The usable images of a group, and the file of each; None where there are none."""
        how, log = self._how, self._log
        images: list[ImageEntry] = []
        annotations: list[BoxEntry] = []
        places: list[int] = []
        names: dict[EntryId, str] = {}
        by_text: dict[str, str] = {}
        for read in group:
            if read.fault is not None:
                log.add(check.IMAGE_JSON, read.name, f"{read.fault.problem.rstrip('.')}.")
                continue
            found = parse_image_file(read.data, read.name, log, masks=how.masks)
            if found is None:
                continue
            self._agree(found, read.name)
            image_id = str(found.image.id)
            if image_id in by_text:
                log.add(check.IMAGE_DUPLICATE, read.name, duplicate(image_id, by_text[image_id]), image_id=image_id)
                continue
            by_text[image_id] = read.name
            names[found.image.id] = read.name
            images.append(found.image)
            annotations += found.annotations
            places += found.places
        if self.table is None or not images:
            return None
        document = Document(images, annotations, self.table[1], ids_per_image=True, annotation_places=places)
        reading = Reading(masks=how.masks, shapes=how.shapes, rasterizer=how.rasterizer)
        records = to_records(document, names, reading, log)
        files = [by_text[image_id] for image_id in records.image_ids]
        beside = [_beside(file, name) for file, name in zip(files, records.file_names, strict=True)]
        return (replace(records, file_names=beside), files) if files else None

    def counted(self, records: Records) -> NDArray[np.bool_]:
        """bool (m,): the annotations that the selection keeps."""
        assert self.table is not None
        if self._wanted is None:
            self._wanted = foreground_categories(self.table[1], self._how.selection)
        return counted(records, self._wanted, self._how.selection)

    def _agree(self, found: ImageFile, name: str) -> None:
        if self.table is None:
            self.table = name, found.categories
        elif found.categories is not self.table[1]:
            agree(self._how.folder, self.table, (name, found.categories))


def agree(folder: Location, first: Table, other: Table) -> None:
    """Raise `AnnotationFileError` unless two files, each with its category table, have the same one."""
    if first[1] != other[1]:
        raise AnnotationFileError(
            folder / other[0],
            f"has other categories than {first[0]}: give all files of a folder the same list, in the same order.",
        )


def duplicate(image_id: str, first: str) -> str:
    """The message that an image id occurs again, after a first file."""
    return f"image id {image_id} occurs again, it is that of {first[-200:]}."


def _beside(file: str, name: str) -> str:
    """The path of a picture that lies beside its JSON file; a name that would leave the folder stays, to be refused."""
    folder = PurePosixPath(file).parent
    return f"{folder}/{name}" if "/" in file and name and is_inside(name) else name


def _report_empty_masks(records: Records, names: Sequence[str], log: FindingLog) -> None:
    from tokenlabels.checking import empty_masks

    for image, annotation in empty_masks(records.block(0, len(records))):
        image_id = records.image_ids[image]
        log.take(check.empty_mask(log.source_format, names[image], image_id, int(records.ids[annotation])))
