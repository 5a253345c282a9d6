"""A data set, read, checked and selected: everything that is known before the first byte is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels import check as kinds
from tokenlabels.annotations import Dataset, Split
from tokenlabels.check import FindingLog
from tokenlabels.cutting import columns_of, header_of, shard_counts
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.executors import Run, SerialExecutor
from tokenlabels.images import check_files, has_pictures, report_listing
from tokenlabels.options import BuildOptions
from tokenlabels.progress import Progress
from tokenlabels.select import select
from tokenlabels.shards import build_table, encoded_size, schema_of
from tokenlabels.sources.base import Reading, Source
from tokenlabels.sources.masks import Rasterizer
from tokenlabels.storage import is_folder, size_of, threads_for
from tokenlabels.store_faults import explained
from tokenlabels.tasks import refusal
from tokenlabels.threads import in_threads

_ESTIMATE_IMAGES = 512

_JPEG_BYTES_PER_PIXEL = 0.4
"""Of resized pictures; decides row groups before they are encoded."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A data set read, checked and selected, ready to be cut into tasks.

    Attributes:
        dataset: what will be built.
        image_bytes: for each split, bytes that picture and mask of each image take in a shard, where any are embedded.
        dropped: annotations that the selection left out.
        parameters: everything that decides the bytes of the shards.
    """

    dataset: Dataset
    image_bytes: tuple[NDArray[np.int64] | None, ...]
    dropped: int
    parameters: dict[str, Any]

    @property
    def images(self) -> int:
        return sum(len(split.records) for split in self.dataset.splits)

    @property
    def annotations(self) -> int:
        return sum(split.records.annotation_count for split in self.dataset.splits)


def new_log(options: BuildOptions, source: Source) -> FindingLog:
    """A log with the severities of these options."""
    promoted: list[kinds.Kind] = []
    if options.embed_images:
        promoted += [kinds.FILE_MISSING, kinds.FILE_UNREADABLE, kinds.IMAGE_PATH, kinds.IMAGE_NO_NAME]
    if options.embed_masks:
        promoted += [kinds.MAP_UNREADABLE, kinds.MAP_SIZE]
    reads_masks = options.rule.kind.reads_masks
    return FindingLog(
        masks_scored=reads_masks or source.format == "semantic",
        boxes_scored=not reads_masks,
        promoted=promoted,
        source_format=source.format,
    )


@explained()
def make_plan(
    source: Source,
    options: BuildOptions,
    log: FindingLog,
    progress: Progress,
    *,
    run: Run | None = None,
    rasterizer: Rasterizer = "kernel",
) -> Plan:
    """Read, check and select; nothing is written.

    Raises:
        FindingsError: errors under `on_error="raise"`.
        TokenLabelsError: the source cannot be read, or holds no images.
    """
    reading = Reading(
        masks=options.rule.kind.reads_masks or options.check == "full",
        shapes=options.check == "full",
        limit=options.limit,
        run=run or SerialExecutor().run,
        rasterizer=rasterizer,
        progress=progress.stage,
        advance=progress.advance,
        note=progress.note,
        decode=options.on_error == "skip" or options.check == "full",
        embed_masks=options.embed_masks,
        selection=options.selection,
        draw=options.check == "full" and not options.rule.kind.reads_masks,
    )
    if options.embed_masks and source.format == "coco":
        raise ParameterError("--embed-masks stores mask files, and COCO instances files have none.")
    dataset = source.read(reading, log)
    if not options.rule.kind.reads_masks and any(_has_no_boxes(split) for split in dataset.splits):
        raise ParameterError(f"masks of values have no boxes for --rule {options.rule.rule}: use pixel-ratio.")
    splits, file_bytes = [], []
    for split in dataset.splits:
        checked, sizes = _check_images(split, options, log, progress)
        splits.append(checked)
        file_bytes.append(sizes)
    if options.on_error == "raise":
        log.raise_errors()
    if options.check == "full" and not options.rule.kind.reads_masks:
        from tokenlabels.checking import report_empty_masks

        for split in splits:
            report_empty_masks(split, log, progress)
    for split in splits:
        if not len(split.records):
            raise TokenLabelsError(f"{split.file.file}: holds no images that can be built, nothing to do.")
        for grid in options.grids:
            grid.axes(*_sizes(split))
    dataset, dropped = select(replace(dataset, splits=tuple(splits)), options.selection)
    if options.selection.min_area and any(_has_class_maps(split) for split in splits):
        progress.note("--min-area leaves out objects; class masks have none, and are scored whole.")
    sources = {
        split.name: msgspec.to_builtins(split.file) | _embedded(split, sizes)
        for split, sizes in zip(dataset.splits, file_bytes, strict=True)
    }
    table = hashlib.sha256(msgspec.json.encode(dataset.categories)).hexdigest()
    chosen = {"source": source.format, "category_table_sha256": table} | source.parameters() | options.as_json()
    parameters = chosen | {"sources": sources}
    stored = [_stored_bytes(split, sizes, options) for split, sizes in zip(dataset.splits, file_bytes, strict=True)]
    plan = Plan(dataset, tuple(stored), dropped, parameters)
    shard_counts(plan.dataset, options)
    return plan


def _has_no_boxes(split: Split) -> bool:
    maps = split.records.maps
    return maps is not None and maps.segments is None


def _has_class_maps(split: Split) -> bool:
    maps = split.records.maps
    return maps is not None and "class" in maps.encodings


def _sizes(split: Split) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Widths and heights, int32 (k,), of all sizes that images of a split have."""
    records = split.records
    both = np.unique(records.widths.astype(np.int64) << 32 | records.heights)
    return (both >> 32).astype(np.int32), (both & 0xFFFFFFFF).astype(np.int32)


def estimate_bytes(plan: Plan, options: BuildOptions) -> int:
    """Bytes that the shards of a plan will take, from building a few hundred of its images in memory.

    Raises:
        FindingsError: a mask that is decoded here for the first time has a fault.
    """
    from tokenlabels.map_scoring import MapError
    from tokenlabels.scoring import label_blocks

    total = 0.0
    for split, sizes in zip(plan.dataset.splits, plan.image_bytes, strict=True):
        chosen = np.zeros(len(split.records), np.bool_)
        chosen[np.linspace(0, len(chosen) - 1, min(_ESTIMATE_IMAGES, len(chosen))).astype(np.int64)] = True
        some = split.records.keep_images(chosen)
        some = some.block(0, len(some))
        axes = [grid.axes(some.widths, some.heights) for grid in options.grids]
        try:
            records, labelled = label_blocks(some, axes, options.rule, lambda _block, _found: None)
        except MapError as fault:
            raise refusal(plan.dataset.format, some, fault) from None
        for grid, labels in zip(options.grids, labelled, strict=True):
            columns = msgspec.structs.replace(columns_of(split, options), images=False, masks=False)
            schema = schema_of(header_of(plan.dataset, split, grid, options), columns)
            table = build_table(records, labels, schema)
            fixed = encoded_size(table.slice(0, 1))  # schema and footer
            shards = -(-len(split.records) // options.shard_rows)
            total += fixed * shards + (encoded_size(table) - fixed) * len(split.records) / len(records)
        total += 0 if sizes is None else int(sizes.sum()) * len(options.grids)
    return round(total)


def _embedded(split: Split, sizes: NDArray[np.int64] | None) -> dict[str, str]:
    """A digest of names and sizes of the files to embed, so that a rerun notices most files that were exchanged."""
    if sizes is None:
        return {}
    listing = "\n".join(f"{size} {name}" for name, size in zip(split.records.file_names, sizes.tolist(), strict=True))
    return {"image_listing_sha256": hashlib.sha256(listing.encode()).hexdigest()}


def _check_images(
    split: Split, options: BuildOptions, log: FindingLog, progress: Progress
) -> tuple[Split, NDArray[np.int64] | None]:
    if not options.embed_images:
        report_listing(split, log, complete=split.complete and options.limit is None)
        if options.check == "full" and has_pictures(split):
            progress.stage(f"checking images of {split.name}", len(split.records))
            split, _ = check_files(split, log, missing=False, ends=True, advance=progress.advance)
        return split, None if split.records.mask_files is None else _mask_bytes(split)
    if not is_folder(split.images):
        raise TokenLabelsError(
            f"{split.images}: no such folder, but --embed-images needs the images: name it with --images."
        )
    progress.stage(f"checking images of {split.name}", len(split.records))
    turned = options.embed_size is None  # a picture that is resized is stored without EXIF data
    split, sizes = check_files(split, log, ends=True, orientations=turned, advance=progress.advance)
    return split, sizes + _mask_bytes(split)


def _stored_bytes(split: Split, sizes: NDArray[np.int64] | None, options: BuildOptions) -> NDArray[np.int64] | None:
    """int64 (n,): bytes that the pictures and masks of these `sizes` take in a shard; of resized ones an estimate."""
    if sizes is None or options.embed_size is None:
        return sizes
    height, width = options.embed_size
    return round(height * width * _JPEG_BYTES_PER_PIXEL) + _mask_bytes(split)


def _mask_bytes(split: Split) -> NDArray[np.int64]:
    """int64 (n,): bytes of the masks to embed."""
    folder, files = split.masks or Path(), split.records.mask_files or [""] * len(split.records)
    sizes = in_threads(lambda file: size_of(folder / file) if file else 0, files, threads_for(folder))
    return np.array(sizes, np.int64)
