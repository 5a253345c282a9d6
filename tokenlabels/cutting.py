"""A data set, cut into tasks of one shard each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import VOID_VALUE, Dataset, Records, Split
from tokenlabels.deferred import DeferredRecords
from tokenlabels.embedding import Embedding
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.options import BuildOptions
from tokenlabels.output import JournalEntry
from tokenlabels.shards import SCHEMA_VERSION, Columns, ShardHeader, shard_name
from tokenlabels.tasks import ShardTask

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_MAX_SHARDS = 99_999


def shard_counts(dataset: Dataset, options: BuildOptions) -> list[int]:
    """How many shards each split has.

    Raises:
        ParameterError: too many for their names.
    """
    counts = [-(-len(split.records) // options.shard_rows) for split in dataset.splits]
    if max(counts) > _MAX_SHARDS:
        raise ParameterError(f"{max(counts)} shards are too many: raise --shard-rows above {options.shard_rows}.")
    return counts


def planned_files(dataset: Dataset, options: BuildOptions) -> list[str]:
    """Every shard of the build, by grid, split and number."""
    counts = shard_counts(dataset, options)
    return [
        f"{grid.name}/{shard_name(split.name, index, total)}"
        for grid in options.grids
        for split, total in zip(dataset.splits, counts, strict=True)
        for index in range(total)
    ]


def tasks_of(
    folder: Location,
    dataset: Dataset,
    image_bytes: Sequence[NDArray[np.int64] | None],
    options: BuildOptions,
    finished: Mapping[str, JournalEntry],
    threads: int,
    lease: Location | None = None,
) -> Iterator[ShardTask]:
    """The tasks whose shards are not all finished.

    Args:
        folder: of the build.
        dataset: what is built.
        image_bytes: see `planning.Plan`.
        options: what a build holds.
        finished: shards that are there, by file.
        threads: that each task may use.
        lease: see `Executor`.
    """
    counts = shard_counts(dataset, options)
    for split, sizes, total in zip(dataset.splits, image_bytes, counts, strict=True):
        headers = tuple(header_of(dataset, split, grid, options) for grid in options.grids)
        columns, embedding = columns_of(split, options), _embedding(split, options)
        for index in range(total):
            name = shard_name(split.name, index, total)
            wanted = tuple(f"{header.grid}/{name}" not in finished for header in headers)
            if not any(wanted):
                continue
            start, stop = index * options.shard_rows, min((index + 1) * options.shard_rows, len(split.records))
            records = split.records.block(start, stop)
            yield ShardTask(
                out=folder,
                index=index,
                total=total,
                headers=headers,
                wanted=wanted,
                columns=columns,
                embedding=embedding,
                image_bytes=None if sizes is None else sizes[start:stop],
                source_name=split.file.file,
                records=_needed(records, options),
                threads=threads,
                lease=lease,
            )


def columns_of(split: Split, options: BuildOptions) -> Columns:
    """The columns of the shards of a split."""
    maps = split.records.maps
    panoptic = maps is not None and "rgb" in maps.encodings
    return Columns(
        scores=options.scores,
        images=options.embed_images,
        masks=options.embed_masks,
        majority=maps is not None and maps.category_count > 0,
        segments=panoptic and options.embed_masks,
    )


def _needed(records: Records | DeferredRecords, options: BuildOptions) -> Records | DeferredRecords:
    """Records without masks that the rule does not look at."""
    if (
        isinstance(records, DeferredRecords)
        or options.rule.kind.reads_masks
        or (records.maps is not None and records.maps.category_count)
    ):
        return records
    return replace(records, masks=None, maps=None)


def _embedding(split: Split, options: BuildOptions) -> Embedding:
    maps = split.records.maps
    meant = np.zeros(0, np.int32) if maps is None or maps.values is None else maps.values.categories
    voids = np.flatnonzero(meant == VOID_VALUE)
    return Embedding(
        images=split.images.resolve() if options.embed_images else None,
        masks=split.masks.resolve() if options.embed_masks and split.masks else None,
        size=options.embed_size,
        quality=options.jpeg_quality,
        mask_fill=int(voids[-1]) if len(voids) else split.mask_fill,
    )


def header_of(dataset: Dataset, split: Split, grid: PatchGrid, options: BuildOptions) -> ShardHeader:
    """What the shards of a split say of themselves on one grid."""
    rule = options.rule
    return ShardHeader(
        schema_version=SCHEMA_VERSION,
        format=dataset.format,
        split=split.name,
        grid=grid.name,
        patch=grid.patch,
        image_size=grid.image_size,
        resize=grid.resize,
        max_size=grid.max_size,
        rule=rule.rule,
        tau=rule.tau,
        crowd=rule.crowd,
        padding=rule.padding,
        categories=dataset.categories,
        void=rule.void,
        difficult=rule.difficult,
        embed_size=options.embed_size,
    )
