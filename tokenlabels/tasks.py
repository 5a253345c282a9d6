"""The unit of work: one shard of a split, on every grid of the pass. A task needs nothing but itself and its images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import Records
from tokenlabels.check import EXAMPLES_PER_CODE
from tokenlabels.errors import TokenLabelsError
from tokenlabels.output import JournalEntry, write_journal
from tokenlabels.shards import ShardHeader, ShardWriter, build_table, row_group_spans, schema_of, shard_name
from tokenlabels.totals import LabelSums


@dataclass(frozen=True, slots=True, eq=False)
class ShardTask:
    """One shard of a split, on every grid.

    Attributes:
        out: the build's folder.
        index: number of the shard in its split.
        total: shards of the split.
        headers: one for each grid of the pass, in order.
        wanted: which of these grids are still to be written.
        scores: store the scores.
        images: folder of the images to embed, or None.
        image_bytes: int64 (n,), sizes of the files to embed; they decide the row groups.
        source_name: annotation file name, for findings.
        records: the n images of the shard.
    """

    out: Path
    index: int
    total: int
    headers: tuple[ShardHeader, ...]
    wanted: tuple[bool, ...]
    scores: bool
    images: Path | None
    image_bytes: NDArray[np.int64] | None
    source_name: str
    records: Records


def write_shards(task: ShardTask) -> list[JournalEntry]:
    """Score, label and write the shards of one task; each is committed and journalled by itself.

    Raises:
        OutputError: a shard cannot be written.
        TokenLabelsError: an image to embed cannot be read.
    """
    from tokenlabels.scoring import label_records  # loads the kernels, where the work is done

    records = task.records
    spec = task.headers[0].spec
    grids = [header.patch_grid().axes(records.widths, records.heights) for header in task.headers]
    spans = row_group_spans(np.sum([axes.cells for axes in grids], axis=0), task.image_bytes)
    empty_masks: list[int] = []
    name = shard_name(task.headers[0].split, task.index, task.total)
    sums = [LabelSums() for _ in task.headers]
    with ExitStack() as stack:
        writers: list[ShardWriter | None] = []
        for header, wanted in zip(task.headers, task.wanted, strict=True):
            schema = schema_of(header, scores=task.scores, images=task.images is not None)
            writer = ShardWriter(task.out / header.grid / name, schema) if wanted else None
            writers.append(stack.enter_context(writer) if writer else None)
        for start, stop in spans:
            block = records.block(start, stop)
            labelled, empty = label_records(block, [axes[start:stop] for axes in grids], spec)
            empty_masks += (np.flatnonzero(empty) + records.offsets[start]).tolist()
            images = None if task.images is None else _read_images(task.images, block.file_names)
            sums = [before + LabelSums.of(labels) for before, labels in zip(sums, labelled, strict=True)]
            for writer, labels in zip(writers, labelled, strict=True):
                if writer:
                    writer.write(build_table(block, labels, writer.schema, images))
    findings = tuple(
        check.empty_mask(task.source_name, records.image_of(index), int(records.ids[index]))
        for index in empty_masks[:EXAMPLES_PER_CODE]
    )
    counts = {check.MASK_EMPTY.code: len(empty_masks)} if empty_masks else {}
    entries = [
        JournalEntry(writer.entry, grid_sums, findings, counts)
        for writer, grid_sums in zip(writers, sums, strict=True)
        if writer and writer.entry
    ]
    for entry in entries:
        write_journal(task.out, entry)
    return entries


def _read_images(folder: Path, names: Sequence[str]) -> list[bytes]:
    images = []
    for name in names:
        try:
            images.append((folder / name).read_bytes())
        except OSError as fault:
            raise TokenLabelsError(
                f"{folder / name}: cannot be read ({fault.strerror}): run again when it can."
            ) from None
    return images
