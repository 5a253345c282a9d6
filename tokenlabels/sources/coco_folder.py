"""A folder with one JSON file for each image, as SA-1B has it -> a split whose annotations are read when needed.

Files are checked by workers, block by block; what comes back are columns of images. So a process that plans a build of
eleven million images holds some hundred bytes of each, however many masks it has.

A picture lies beside its JSON file. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Category, SourceFile, Split
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import AnnotationFileError, TokenLabelsError
from tokenlabels.sources.base import Reading
from tokenlabels.sources.folder_blocks import (
    MAX_FILE_BYTES,
    CheckedBlock,
    FolderBlock,
    FolderReading,
    Table,
    agree,
    duplicate,
)
from tokenlabels.sources.image_json import describes_image
from tokenlabels.storage import content, size_of
from tokenlabels.texts import Texts
from tokenlabels.walk import walk

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_BLOCK = 512
"""Files of one task."""

_SNIFFED = 3
"""Files that are looked at to tell whether a folder is such a data set."""

_SAMPLED, _COUNTED = 16, 100_000
"""Files whose sizes stand for all, and files that are counted at most, to judge how much work a folder is."""


def read_folder(
    name: str, folder: Location, images: Location, reading: Reading, log: FindingLog
) -> tuple[Split, tuple[Category, ...]]:
    """Check every JSON file below a folder.

    Args:
        name: of the split.
        folder: the folder.
        images: folder of the pictures, laid out in the same way; as a rule the same.
        reading: what is wanted; `limit` is a number of files.
        log: receives the findings.

    Returns:
        The split, its records deferred, and its category table.

    Raises:
        AnnotationFileError: two files disagree about categories.
        ParameterError: a category is selected that there is not.
        TokenLabelsError: no file describes an image.
    """
    called = folder.resolve().name or str(folder)
    reading.progress(f"listing {called}")
    names = Texts.of(islice(_json_files(folder, called, reading.note, log), reading.limit))
    how = FolderReading(
        folder=folder.resolve(),
        log=log.fresh(),
        masks=reading.masks,
        shapes=reading.shapes,
        draw=reading.draw,
        rasterizer=reading.rasterizer,
        selection=reading.selection,
    )
    reading.progress(f"reading {called}", len(names))
    merged = _Merged(names, how)
    blocks = (
        FolderBlock(index, names[start : start + _BLOCK], how)
        for index, start in enumerate(range(0, len(names), _BLOCK))
    )
    for checked in reading.run("tokenlabels.sources.folder_blocks:check_block", blocks):
        merged.take(checked, log)
        reading.advance(len(checked.hashes) // 32)
    if merged.table is None or not merged.parts:
        raise _nothing(folder, len(names), log)
    categories = merged.table[1]
    records = DeferredRecords.joined(merged.parts)
    merged.parts.clear()
    records = replace(
        records.keep_images(_first_of_each_id(records, log)),
        loader="tokenlabels.sources.folder_blocks:read_again",
        how=replace(how, masks=log.masks_scored, shapes=False, draw=False, categories=categories),
    )
    file = SourceFile(called, merged.size, merged.digest.hexdigest())
    return Split(name, records, images, file), categories


def on_table(split: Split, places: NDArray[np.int32]) -> Split:
    """The split with its categories at these places of a common table, int32 (k,)."""
    records = split.records
    assert isinstance(records, DeferredRecords)
    return replace(split, records=replace(records, how=replace(records.how, places=places)))


def holds_image_files(folder: Location) -> bool:
    """Whether some of the first JSON files below a folder describe a single image."""
    for name in islice((name for name in walk(folder) if _is_json(name)), _SNIFFED):
        try:
            path = folder / name
            if describes_image(content(path, MAX_FILE_BYTES)):
                return True
        except OSError:
            continue
    return False


def folder_bytes(folder: Location) -> int:
    """About how many bytes of JSON are below a folder."""
    sizes, count = [], 0
    for name in islice((name for name in walk(folder) if _is_json(name)), _COUNTED):
        count += 1
        if count <= _SAMPLED:
            try:
                sizes.append(size_of(folder / name))
            except OSError:
                continue
    return sum(sizes) * count // len(sizes) if sizes else 0


def _is_json(name: str) -> bool:
    return name[-5:].lower() == ".json"


def _json_files(folder: Location, called: str, note: Callable[[str], None], log: FindingLog) -> Iterator[str]:
    for name in walk(folder, lambda build: note(f"{called}/{build} is a build of tokenlabels: it is passed over.")):
        if not _is_json(name):
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            log.add(check.IMAGE_JSON, called, f"{shown} has a name that is no UTF-8 text: rename it.")
            continue
        yield name


class _Merged:
    """What the blocks had, put together in the order of the blocks, whatever order they come in.

    Attributes:
        table: (file, category table) of the first file that has one.
        parts: columns of images.
        size: bytes of all files.
        digest: sha256 over names and contents, as `map_check.listing_digest` makes it.
    """

    def __init__(self, names: Texts, how: FolderReading) -> None:
        self.table: Table | None = None
        self.parts: list[DeferredRecords] = []
        self.size = 0
        self.digest = hashlib.sha256()
        self._names, self._how = names, how
        self._waiting: dict[int, CheckedBlock] = {}
        self._next = 0

    def take(self, checked: CheckedBlock, log: FindingLog) -> None:
        """One more block.

        Raises:
            AnnotationFileError: it disagrees about categories with an earlier one.
        """
        self._waiting[checked.index] = checked
        while self._next in self._waiting:
            block = self._waiting.pop(self._next)
            start = self._next * _BLOCK
            for place, name in enumerate(self._names[start : start + _BLOCK]):
                content = block.hashes[32 * place : 32 * place + 32].hex()
                self.digest.update(f"{content} {name}\n".encode())
            self.size += block.size
            log.extend(block.findings, block.counts)
            if block.table is not None:
                self.table = self.table or block.table
                agree(self._how.folder, self.table, block.table)
            if block.records is not None:
                self.parts.append(block.records)
            self._next += 1


def _first_of_each_id(records: DeferredRecords, log: FindingLog) -> NDArray[np.bool_]:
    """bool (n,): the images whose id did not occur before; the others are reported."""
    hashes = np.fromiter(map(hash, records.image_ids), np.int64, len(records))
    order = np.argsort(hashes, kind="stable")
    alike = np.zeros(len(records), np.bool_)
    same = hashes[order[1:]] == hashes[order[:-1]]
    alike[order[1:]] |= same
    alike[order[:-1]] |= same
    fine = np.ones(len(records), np.bool_)
    seen: dict[str, int] = {}
    for index in np.flatnonzero(alike).tolist():
        image_id = records.image_ids[index]
        if image_id in seen:
            message = duplicate(image_id, records.sources[seen[image_id]])
            log.add(check.IMAGE_DUPLICATE, records.sources[index], message, image_id=image_id)
            fine[index] = False
        seen.setdefault(image_id, index)
    return fine


def _nothing(folder: Location, count: int, log: FindingLog) -> TokenLabelsError:
    """Why there is nothing to build."""
    if not count:
        return AnnotationFileError(
            folder, "holds no JSON files: name a COCO instances file, or a folder with a JSON file for each image."
        )
    first: Sequence[check.Finding] = [finding for finding in log.listed() if finding.severity == "error"][:1]
    why = f" ({first[0].file}: {first[0].message.rstrip('.')})" if first else ""
    return AnnotationFileError(
        folder,
        f"none of its {count} JSON files describes one image{why}: name a COCO instances file, or a folder with a JSON "
        "file for each image.",
    )
