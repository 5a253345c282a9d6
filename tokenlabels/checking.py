"""Checking a source without building: every check there is, the slow ones included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tokenlabels import check
from tokenlabels.annotations import Dataset, Records, Split
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.executors import Run, SerialExecutor
from tokenlabels.images import check_files, has_pictures, report_listing
from tokenlabels.progress import Progress, Silent
from tokenlabels.rules import RuleSpec
from tokenlabels.scoring import label_records
from tokenlabels.sources.base import Reading, Source
from tokenlabels.store_faults import explained

_BLOCK = 1024
_SPEC = RuleSpec.make("pixel-ratio")


@explained()
def check_source(
    source: Source,
    log: FindingLog,
    *,
    limit: int | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a source and look for every fault: entries, boxes, masks, polygon shapes, and image files where they are.

    Args:
        source: what to check.
        log: receives the findings, with the severities of the rule it was made for.
        limit: look at the first images of each split only.
        run: runs work that can be shared out, by default in this process.
        progress: told about stages and steps.

    Returns:
        What a build would use.

    Raises:
        TokenLabelsError: a file as a whole cannot be read.
    """
    progress = progress or Silent()
    run = run or SerialExecutor().run
    reading = Reading(
        masks=True,
        shapes=True,
        limit=limit,
        run=run,
        progress=progress.stage,
        advance=progress.advance,
        note=progress.note,
        decode=True,
        report_all=True,
        draw=True,
    )
    dataset = source.read(reading, log)
    for split in dataset.splits:
        if split.records.masks is not None:
            progress.stage(f"drawing masks of {split.name}", len(split.records))
            report_empty_masks(split, log, progress)
        if has_pictures(split):
            report_listing(split, log, complete=split.complete and limit is None, missing=False)
            progress.stage(f"checking images of {split.name}", len(split.records))
            check_files(split, log, ends=True, advance=progress.advance)
    return dataset


def report_empty_masks(split: Split, log: FindingLog, progress: Progress) -> None:
    """Report masks that hold no pixel; those that are faulty anyway have no span and are passed over."""
    records = split.records
    if isinstance(records, DeferredRecords):  # their source has done it
        return
    for start in range(0, len(records), _BLOCK):
        block = records.block(start, min(start + _BLOCK, len(records)))
        for image, k in empty_masks(block):
            image_id = block.image_ids[image]
            log.take(check.empty_mask(log.source_format, split.file.file, image_id, int(block.ids[k])))
        progress.advance(len(block))


def empty_masks(block: Records) -> Iterator[tuple[int, int]]:
    """(image, annotation) of each packed instance mask that holds no pixel, by their places in a block."""
    if block.masks is None:
        return
    _, found = label_records(block, [], _SPEC)
    spans = block.masks.spans
    for k in np.flatnonzero(found.empty & (spans[:, 1] > spans[:, 0])).tolist():
        yield int(np.searchsorted(block.offsets, k, side="right")) - 1, k
