"""The unit of work: one shard of a split, on every grid of the pass. A task needs nothing but itself and its images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Records
from tokenlabels.atomic import unwritable
from tokenlabels.check import EXAMPLES_PER_CODE, Finding
from tokenlabels.deferred import DeferredRecords
from tokenlabels.embedding import Embedding, Pictures
from tokenlabels.errors import FindingsError
from tokenlabels.output import JournalEntry, another_build, write_journal
from tokenlabels.shards import Columns, ShardHeader, ShardWriter, build_table, row_group_spans, schema_of, shard_name
from tokenlabels.spool import is_held
from tokenlabels.store_faults import explained
from tokenlabels.totals import LabelSums

if TYPE_CHECKING:
    from tokenlabels.map_scoring import MapError, MapScores  # loads the kernels
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True, eq=False)
class ShardTask:
    """One shard of a split, on every grid.

    Attributes:
        out: the build's folder.
        index: number of the shard in its split.
        total: shards of the split.
        headers: one for each grid of the pass, in order.
        wanted: which of these grids are still to be written.
        columns: columns of the shards.
        embedding: pictures to embed.
        image_bytes: int64 (n,), bytes of the pictures of each image; they decide the row groups. None: no pictures.
        source_name: annotation file name, for findings; deferred records know the file of each image.
        records: the n images of the shard; deferred ones are read by the task.
        threads: that resize pictures.
        lease: see `Executor`.
    """

    out: Location
    index: int
    total: int
    headers: tuple[ShardHeader, ...]
    wanted: tuple[bool, ...]
    columns: Columns
    embedding: Embedding
    image_bytes: NDArray[np.int64] | None
    source_name: str
    records: Records | DeferredRecords
    threads: int = 1
    lease: Location | None = None


@explained()
def write_shards(task: ShardTask) -> list[JournalEntry]:
    """Score, label and write the shards of one task; each is committed and journalled by itself.

    Raises:
        OutputError: a shard cannot be written, or nobody waits for it any more.
        FindingsError: a mask that is decoded here for the first time has a fault.
        TokenLabelsError: an image to embed cannot be read.
    """
    from tokenlabels.map_scoring import MapError
    from tokenlabels.scoring import label_blocks  # loads the kernels, where the work is done

    records = task.records
    spec, source_format = task.headers[0].spec, task.headers[0].format
    grids = [header.patch_grid() for header in task.headers]
    axes = [grid.axes(records.widths, records.heights) for grid in grids]
    spans = row_group_spans(np.sum([each.cells for each in axes], axis=0), task.image_bytes)
    notes = _Notes(task)
    name = shard_name(task.headers[0].split, task.index, task.total)
    sums = [LabelSums() for _ in task.headers]
    with ExitStack() as stack:
        writers: list[ShardWriter | None] = []
        for header, wanted in zip(task.headers, task.wanted, strict=True):
            schema = schema_of(header, task.columns)
            writer = ShardWriter(task.out / header.grid / name, schema) if wanted else None
            writers.append(stack.enter_context(writer) if writer else None)
        for start, stop in spans:
            wanted_images = records.block(start, stop)
            try:
                block, labelled = label_blocks(wanted_images, [each[start:stop] for each in axes], spec, notes.take)
            except MapError as fault:
                raise refusal(source_format, wanted_images, fault) from None
            sums = [before + LabelSums.of(labels) for before, labels in zip(sums, labelled, strict=True)]
            pictures = Pictures(task.embedding, block, task.threads)
            for writer, labels, grid in zip(writers, labelled, grids, strict=True):
                if writer:
                    embedded = pictures.of(grid)
                    writer.write(build_table(block, labels, writer.schema, embedded.images, embedded.masks))
        _check_lease(task)
    entries = [
        JournalEntry(writer.entry, grid_sums, notes.examples, notes.counts)
        for writer, grid_sums in zip(writers, sums, strict=True)
        if writer and writer.entry
    ]
    _check_lease(task)
    for entry in entries:
        write_journal(task.out, entry)
    return entries


def _check_lease(task: ShardTask) -> None:
    try:
        held = task.lease is None or is_held(task.lease)
    except OSError as fault:
        raise unwritable(task.out, fault) from None
    if not held:
        raise another_build(task.out)


class _Notes:
    """Findings that only decoding the masks of a shard shows."""

    def __init__(self, task: ShardTask) -> None:
        self._format = task.headers[0].format
        self._file = task.source_name
        records = task.records
        self._files: dict[str, str] = {}
        if isinstance(records, DeferredRecords):
            self._files.update(zip(records.image_ids, records.sources, strict=True))
        self._found: dict[str, list[Finding]] = {}
        self.counts: dict[str, int] = {}

    def take(self, block: Records, found: MapScores) -> None:
        """Warnings of one block."""
        for index in np.flatnonzero(found.empty).tolist():
            image_id, annotation_id = block.image_of(index), int(block.ids[index])
            file = self._files.get(image_id, self._file)
            self._add(check.empty_mask(self._format, file, image_id, annotation_id))
        for image, value in found.strange:
            self._add(check.strange_object(self._format, self._file, block.image_ids[image], value))

    def _add(self, finding: Finding) -> None:
        self.counts[finding.code] = self.counts.get(finding.code, 0) + 1
        kept = self._found.setdefault(finding.code, [])
        if len(kept) < EXAMPLES_PER_CODE:
            kept.append(finding)

    @property
    def examples(self) -> tuple[Finding, ...]:
        return tuple(finding for kept in self._found.values() for finding in kept)


def refusal(source_format: str, block: Records | DeferredRecords, error: MapError) -> FindingsError:
    """The error that says which mask of a block cannot be scored."""
    assert isinstance(block, Records)
    assert block.maps is not None
    code = check.code_of(error.fault.kind, source_format)
    file, image_id = block.maps.files[error.image], block.image_ids[error.image]
    return FindingsError(
        f"{code} {file}: the mask of image {image_id} {error.fault.problem}; nothing was built (leave such images "
        "out with --on-error skip; `tokenlabels check` lists them all)."
    )
