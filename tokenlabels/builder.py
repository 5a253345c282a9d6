"""source x grids x rule -> shards, on an executor.

Everything is read and checked before the first byte is written. Then every shard is one independent task; `output.py`
knows which are finished, so that a killed build goes on where it was.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import tokenlabels
from tokenlabels import check as kinds
from tokenlabels.annotations import VOID_VALUE, Dataset, Records, Split
from tokenlabels.card import card_text
from tokenlabels.check import FindingLog
from tokenlabels.embedding import Embedding
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.executors import Executor, ProcessExecutor, Run, SerialExecutor
from tokenlabels.grid import ImageSizeLike, PatchGrid, PatchLike
from tokenlabels.images import check_files, report_listing
from tokenlabels.options import BuildOptions, CheckLevel, OnError
from tokenlabels.output import (
    JournalEntry,
    build_lock,
    check_ownership,
    clear_state,
    discard,
    finish,
    is_complete,
    is_unfinished,
    remove_temporaries,
    resume,
)
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, open_build
from tokenlabels.select import select
from tokenlabels.shards import SCHEMA_VERSION, Columns, ShardHeader, build_table, encoded_size, schema_of, shard_name
from tokenlabels.sources.base import Reading, Source
from tokenlabels.sources.locate import find_source, split_categories
from tokenlabels.sources.masks import Rasterizer
from tokenlabels.tasks import ShardTask, refusal
from tokenlabels.threads import MAX_THREADS, cores
from tokenlabels.totals import totals

_BYTES_PER_WORKER = 24 << 20
"""Annotation bytes below which a further worker process costs more than it saves."""

_FEW_CORES = 4

_MAX_SHARDS = 99_999

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
        return sum(len(split.records.ids) for split in self.dataset.splits)


def build(
    source: Source | str,
    *,
    out: str | Path | None = None,
    root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    split: str | Sequence[str] = (),
    patch: PatchLike | Sequence[PatchLike] = 16,
    image_size: ImageSizeLike | Sequence[ImageSizeLike] = 384,
    resize: str = "squash",
    max_size: int | None = None,
    rule: str | None = None,
    tau: float | None = None,
    crowd: str = "foreground",
    padding: str = "background",
    void: str = "background",
    difficult: str = "foreground",
    ignore: int | Sequence[int] | None = None,
    background: int | Sequence[int] | None = None,
    reduce_zero_label: bool = False,
    stuff: str | None = None,
    mask_suffix: str | None = None,
    categories: str | Path | Sequence[str] | None = None,
    exclude_categories: Sequence[str] | None = None,
    min_area: float = 0.0,
    scores: bool = True,
    embed_images: bool = False,
    embed_size: ImageSizeLike | None = None,
    jpeg_quality: int | None = None,
    embed_masks: bool = False,
    limit: int | None = None,
    shard_rows: int | None = None,
    on_error: OnError = "raise",
    check: CheckLevel = "fast",
    workers: int | None = 1,
    overwrite: bool = False,
    rasterizer: Rasterizer = "kernel",
    progress: Progress | None = None,
    log: FindingLog | None = None,
) -> Build:
    """Turn an annotated data set into Parquet shards with one label per patch.

    Args:
        source: a `Source`, or `"coco"`, `"voc"` or `"semantic"` with the places of its files.
        out: folder to write, by default `./tokenlabels-<source>`; a killed build with the same parameters goes on.
        root: folder of a data set in the official layout.
        annotations: a single annotation file instead.
        images: its image folder, needed for `embed_images` only.
        masks: folder of semantic masks, whose pictures are in `images`.
        split: split or splits to build, by default all.
        patch: patch size in model-input pixels, 16, "16x8" or (16, 8), or a list for several grids in one pass.
        image_size: model input in pixels, 384, "384x640", (384, 640) or "native", or a list.
        resize: squash, letterbox, shortest-edge or native.
        max_size: cap on the long side, with shortest-edge.
        rule: overlap, jaccard or pixel-ratio; by default overlap, for semantic masks pixel-ratio.
        tau: threshold in 0..1, by default that of the rule.
        crowd: what crowd regions do: foreground, background or ignore.
        padding: what patches wholly in padding are: background or ignore.
        void: what void pixels of masks do, as `crowd`.
        difficult: what VOC's difficult boxes do, as `crowd`, under a rule that scores boxes.
        ignore: values of semantic masks that are void; by default what the data card says, else 255.
        background: values of semantic masks that are background; by default what the data card says, else 0.
        reduce_zero_label: value 0 of semantic masks is void, and no category.
        stuff: stuff of panoptic files is foreground or background (the default).
        mask_suffix: end of the names of semantic masks, by default `.png`.
        categories: names of the foreground categories, by default all; of VOC and semantic masks also a file that lists
            all categories there are, or the name of a data card that does.
        exclude_categories: names of categories that are background.
        min_area: annotations smaller than this many square pixels are left out.
        scores: store the scores, which `relabel` needs.
        embed_images: store the image files.
        embed_size: store pictures (and masks) resized to the model input instead, as JPEG (PNG); implies
            `embed_images`.
        jpeg_quality: of these JPEGs, by default 90.
        embed_masks: store the masks, as PNG; of VOC the class masks.
        limit: only the first images of each split.
        shard_rows: images a shard, by default 4096, 512 with images.
        on_error: raise before anything is written, or skip bad annotations.
        check: fast, or full, which also looks for polygons that cross themselves and at the image files.
        workers: processes; None decides by the size of the annotation files and the cores. More than one needs the
            usual `if __name__ == "__main__":` guard in a script.
        overwrite: replace a build that was made with other parameters.
        rasterizer: `pycocotools` cross-checks the compiled kernel; the result is the same, slower.
        progress: told about stages and steps.
        log: receives the findings; by default a fresh one.

    Raises:
        ParameterError: parameters that make no sense.
        FindingsError: the annotations have errors, under `on_error="raise"`; nothing is written.
        OutputError: the folder cannot be written, or is not ours; `BuildMismatchError` where it holds another build.
        TokenLabelsError: the data cannot be read.
    """
    from tokenlabels.sources.semantic_options import SemanticOptions

    class_list, names = split_categories(source, categories)
    found = find_source(
        source,
        root=root,
        annotations=annotations,
        images=images,
        masks=masks,
        splits=(split,) if isinstance(split, str) else split,
        class_list=class_list,
        semantic=SemanticOptions.make(ignore, background, reduce_zero_label, stuff, mask_suffix),
    )
    chosen = BuildOptions.make(
        patch=patch,
        image_size=image_size,
        resize=resize,
        max_size=max_size,
        rule=rule or found.default_rule,
        tau=tau,
        crowd=crowd,
        padding=padding,
        void=void,
        difficult=difficult,
        categories=names,
        exclude_categories=exclude_categories,
        min_area=min_area,
        scores=scores,
        embed_images=embed_images,
        embed_size=embed_size,
        jpeg_quality=jpeg_quality,
        embed_masks=embed_masks,
        limit=limit,
        shard_rows=shard_rows,
        on_error=on_error,
        check=check,
    )
    folder = Path(out) if out is not None else Path(f"tokenlabels-{found.format}")
    return build_source(
        found,
        chosen,
        folder,
        log or new_log(chosen, found),
        progress or Silent(),
        workers=workers,
        overwrite=overwrite,
        rasterizer=rasterizer,
    )


def build_source(
    source: Source,
    options: BuildOptions,
    folder: Path,
    log: FindingLog,
    progress: Progress,
    *,
    workers: int | None = 1,
    overwrite: bool = False,
    rasterizer: Rasterizer = "kernel",
) -> Build:
    """`build`, its parameters checked and its source found."""
    check_ownership(folder)
    executor = make_executor(workers, work_of(source, options))
    with executor:
        executor.start()
        plan = make_plan(source, options, log, progress, run=executor.run, rasterizer=rasterizer)
        if is_complete(folder, plan.parameters) and not is_unfinished(folder):
            progress.note(f"{folder} holds this build already, every shard as it should be.")
            return open_build(folder)
        with build_lock(folder):
            if is_complete(folder, plan.parameters):  # another process was quicker
                clear_state(folder)
                return open_build(folder)
            finished = resume(folder, plan.parameters, overwrite=overwrite)
            try:
                entries = _run(folder, plan, options, finished, executor, progress)
            except BaseException as fault:
                executor.stop()  # no worker may write after the clean-up
                remove_temporaries(folder)
                if isinstance(fault, FindingsError):
                    discard(folder)  # what is mended may change every shard
                raise
            progress.stage("finishing")
            for entry in entries:
                if entry.shard.file.startswith(f"{options.grids[0].name}/"):
                    log.extend(entry.findings, entry.counts)
            manifest = _manifest(plan, log, entries)
            manifest["totals"] = totals({entry.shard.file: entry.sums for entry in entries}, manifest)
            finish(folder, manifest, card_text(manifest, folder))
    return open_build(folder)


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


def work_of(source: Source, options: BuildOptions) -> int:
    """What a build has to do, as bytes of JSON that take as long.

    Resizing pictures pays for every core; on few of them threads do as well as processes, and start at once.
    """
    if options.embed_size is not None and cores() > _FEW_CORES:
        return sys.maxsize
    return source.input_bytes(masks=options.rule.kind.reads_masks)


def threads_of(executor: Executor) -> int:
    """Threads that each worker may use."""
    return max(1, min(MAX_THREADS, cores() // executor.workers))


def make_executor(workers: int | None, input_bytes: int) -> Executor:
    """Serial for one worker or little work, else processes."""
    if workers is not None and not 1 <= workers <= 1024:
        raise ParameterError(f"workers {workers} is out of range: 1 to 1024.")
    if workers is None:
        workers = max(1, min(cores(), input_bytes // _BYTES_PER_WORKER))
    return SerialExecutor() if workers == 1 else ProcessExecutor(workers)


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
        note=progress.note,
        decode=options.on_error == "skip" or options.check == "full",
        embed_masks=options.embed_masks,
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
            grid.axes(split.records.widths, split.records.heights)
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
    _shard_counts(plan, options)
    return plan


def _has_no_boxes(split: Split) -> bool:
    maps = split.records.maps
    return maps is not None and maps.segments is None


def _has_class_maps(split: Split) -> bool:
    maps = split.records.maps
    return maps is not None and "class" in maps.encodings


def estimate_bytes(plan: Plan, options: BuildOptions) -> int:
    """Bytes that the shards of a plan will take, from building a few hundred of its images in memory.

    Raises:
        FindingsError: a mask that is decoded here for the first time has a fault.
    """
    from tokenlabels.map_scoring import MapError
    from tokenlabels.scoring import label_records

    total = 0.0
    for split, sizes in zip(plan.dataset.splits, plan.image_bytes, strict=True):
        chosen = np.zeros(len(split.records), np.bool_)
        chosen[np.linspace(0, len(chosen) - 1, min(_ESTIMATE_IMAGES, len(chosen))).astype(np.int64)] = True
        records = split.records.keep_images(chosen)
        records = records.block(0, len(records))
        axes = [grid.axes(records.widths, records.heights) for grid in options.grids]
        try:
            labelled, _ = label_records(records, axes, options.rule)
        except MapError as fault:
            raise refusal(plan.dataset.format, records, fault) from None
        for grid, labels in zip(options.grids, labelled, strict=True):
            columns = msgspec.structs.replace(columns_of(split, options), images=False, masks=False)
            schema = schema_of(_header(plan.dataset, split, grid, options), columns)
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


def _check_images(
    split: Split, options: BuildOptions, log: FindingLog, progress: Progress
) -> tuple[Split, NDArray[np.int64] | None]:
    if not options.embed_images:
        report_listing(split, log, complete=split.complete and options.limit is None)
        if options.check == "full" and split.images.is_dir():
            progress.stage(f"checking images of {split.name}", len(split.records))
            split, _ = check_files(split, log, missing=False, ends=True, advance=progress.advance)
        return split, None if split.records.mask_files is None else _mask_bytes(split)
    if not split.images.is_dir():
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
    return np.array([(folder / file).stat().st_size if file else 0 for file in files], np.int64)


def _run(
    folder: Path,
    plan: Plan,
    options: BuildOptions,
    finished: Mapping[str, JournalEntry],
    executor: Executor,
    progress: Progress,
) -> list[JournalEntry]:
    """Write the shards that are not finished; returns the journal of all, in the order of the manifest."""
    tasks = _tasks(folder, plan, options, finished, threads_of(executor))
    progress.stage("building shards", plan.images)
    progress.advance(sum(entry.shard.rows for entry in finished.values()) // len(options.grids))
    entries = dict(finished)
    for written in executor.run("tokenlabels.tasks:write_shards", tasks):
        entries |= {entry.shard.file: entry for entry in written}
        progress.advance(sum(entry.shard.rows for entry in written) // len(options.grids))
    return [entries[file] for file in _planned_files(plan, options)]


def _shard_counts(plan: Plan, options: BuildOptions) -> list[int]:
    counts = [-(-len(split.records) // options.shard_rows) for split in plan.dataset.splits]
    if max(counts) > _MAX_SHARDS:
        raise ParameterError(f"{max(counts)} shards are too many: raise --shard-rows above {options.shard_rows}.")
    return counts


def _planned_files(plan: Plan, options: BuildOptions) -> list[str]:
    """Every shard of the build, by grid, split and number."""
    counts = _shard_counts(plan, options)
    return [
        f"{grid.name}/{shard_name(split.name, index, total)}"
        for grid in options.grids
        for split, total in zip(plan.dataset.splits, counts, strict=True)
        for index in range(total)
    ]


def _tasks(
    folder: Path, plan: Plan, options: BuildOptions, finished: Mapping[str, JournalEntry], threads: int
) -> Iterator[ShardTask]:
    counts = _shard_counts(plan, options)
    for split, sizes, total in zip(plan.dataset.splits, plan.image_bytes, counts, strict=True):
        headers = tuple(_header(plan.dataset, split, grid, options) for grid in options.grids)
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
            )


def _needed(records: Records, options: BuildOptions) -> Records:
    """Records without masks that the rule does not look at."""
    if options.rule.kind.reads_masks or (records.maps is not None and records.maps.category_count):
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


def _header(dataset: Dataset, split: Split, grid: PatchGrid, options: BuildOptions) -> ShardHeader:
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


def _manifest(plan: Plan, log: FindingLog, entries: Sequence[JournalEntry]) -> dict[str, Any]:
    """What `manifest.json` says; nothing in it depends on the time, the machine or how the build was run."""
    parameters = {name: value for name, value in plan.parameters.items() if name != "sources"}
    splits = {
        split.name: {"images": len(split.records), "annotations": len(split.records.ids)}
        for split in plan.dataset.splits
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "tokenlabels", "version": tokenlabels.__version__},
        "sources": plan.parameters["sources"],
        "parameters": parameters,
        "splits": splits,
        "annotations_left_out_by_selection": plan.dropped,
        "categories": msgspec.to_builtins(plan.dataset.categories),
        "findings": log.by_code(),
        "finding_examples": msgspec.to_builtins(log.listed()),
        "shards": [msgspec.to_builtins(entry.shard) for entry in entries],
    }
