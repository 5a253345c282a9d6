"""source x grids x rule -> shards, on an executor.

Everything is read and checked before the first byte is written. Then every shard is one independent task; `output.py`
knows which are finished, so that a killed build goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

import tokenlabels
from tokenlabels import check
from tokenlabels.annotations import Dataset, Split
from tokenlabels.card import card_text
from tokenlabels.check import FindingLog
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.executors import Executor, ProcessExecutor, Run, SerialExecutor
from tokenlabels.grid import ImageSizeLike, PatchGrid, PatchLike, parse_grids
from tokenlabels.images import check_files, report_listing
from tokenlabels.output import (
    JournalEntry,
    build_lock,
    check_ownership,
    clear_state,
    finish,
    is_complete,
    remove_temporaries,
    resume,
)
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, open_build
from tokenlabels.rules import RuleSpec
from tokenlabels.select import Selection, select
from tokenlabels.shards import SCHEMA_VERSION, ShardHeader, build_table, encoded_size, schema_of, shard_name
from tokenlabels.sources import find_source
from tokenlabels.sources.base import Reading, Source
from tokenlabels.sources.masks import Rasterizer
from tokenlabels.tasks import ShardTask
from tokenlabels.totals import totals

OnError: TypeAlias = Literal["raise", "skip"]
CheckLevel: TypeAlias = Literal["fast", "full"]

SHARD_ROWS, SHARD_ROWS_WITH_IMAGES = 4096, 512

_BYTES_PER_WORKER = 24 << 20
"""Annotation bytes below which a further worker process costs more than it saves."""

_MAX_SHARDS = 99_999

_ESTIMATE_IMAGES = 512


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything that decides what a build holds; see `build` for the meaning of each."""

    grids: tuple[PatchGrid, ...]
    rule: RuleSpec
    selection: Selection = field(default_factory=Selection)
    scores: bool = True
    embed_images: bool = False
    limit: int | None = None
    shard_rows: int = SHARD_ROWS
    on_error: OnError = "raise"
    check: CheckLevel = "fast"

    @classmethod
    def make(
        cls,
        *,
        patch: PatchLike | Sequence[PatchLike] = 16,
        image_size: ImageSizeLike | Sequence[ImageSizeLike] = 384,
        resize: str = "squash",
        max_size: int | None = None,
        rule: str = "overlap",
        tau: float | None = None,
        crowd: str = "foreground",
        padding: str = "background",
        categories: Sequence[str] | None = None,
        exclude_categories: Sequence[str] | None = None,
        min_area: float = 0.0,
        scores: bool = True,
        embed_images: bool = False,
        limit: int | None = None,
        shard_rows: int | None = None,
        on_error: OnError = "raise",
        check: CheckLevel = "fast",
    ) -> BuildOptions:
        """Check and complete what a person writes.

        Raises:
            ParameterError: a value out of range.
        """
        if limit is not None and limit < 1:
            raise ParameterError(f"limit {limit} is too small: at least 1 image.")
        if shard_rows is not None and not 1 <= shard_rows <= 1_000_000:
            raise ParameterError(f"shard_rows {shard_rows} is out of range: 1 to 1000000 images a shard.")
        for name, value, allowed in (("on_error", on_error, ("raise", "skip")), ("check", check, ("fast", "full"))):
            if value not in allowed:
                raise ParameterError(f"unknown {name} {value!r}: use one of {', '.join(allowed)}.")
        return cls(
            grids=parse_grids(patch, image_size, resize, max_size),
            rule=RuleSpec.make(rule, tau, crowd, padding),
            selection=Selection.make(categories, exclude_categories, min_area),
            scores=scores,
            embed_images=embed_images,
            limit=limit,
            shard_rows=shard_rows or (SHARD_ROWS_WITH_IMAGES if embed_images else SHARD_ROWS),
            on_error=on_error,
            check=check,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest keeps them."""
        encoded = msgspec.json.encode(
            {
                "schema_version": SCHEMA_VERSION,
                "grids": [
                    {
                        "name": g.name,
                        "patch": g.patch,
                        "image_size": g.image_size,
                        "resize": g.resize,
                        "max_size": g.max_size,
                    }
                    for g in self.grids
                ],
                "rule": self.rule.rule,
                "tau": self.rule.tau,
                "crowd": self.rule.crowd,
                "padding": self.rule.padding,
                "categories": self.selection.categories,
                "exclude_categories": self.selection.exclude_categories,
                "min_area": self.selection.min_area,
                "scores": self.scores,
                "embed_images": self.embed_images,
                "limit": self.limit,
                "shard_rows": self.shard_rows,
                "on_error": self.on_error,
                "check": self.check,
            }
        )
        return cast(dict[str, Any], msgspec.json.decode(encoded))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A data set read, checked and selected, ready to be cut into tasks.

    Attributes:
        dataset: what will be built.
        image_bytes: for each split, bytes of its image files where they are embedded.
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
    splits: Sequence[str] = (),
    workers: int | None = 1,
    overwrite: bool = False,
    rasterizer: Rasterizer = "kernel",
    progress: Progress | None = None,
    log: FindingLog | None = None,
    **options: Any,
) -> Build:
    """Turn an annotated data set into Parquet shards with one label per patch.

    Args:
        source: a `Source`, or `"coco"` with `root` or `annotations`.
        out: folder to write, by default `./tokenlabels-<source>`; a killed build with the same parameters goes on.
        root: folder of a data set in the official layout.
        annotations: a single annotation file instead.
        images: its image folder, needed for `embed_images` only.
        splits: splits to build, by default all.
        workers: processes; None decides by the size of the annotation files and the cores. More than one needs the
            usual `if __name__ == "__main__":` guard in a script.
        overwrite: replace a build that was made with other parameters.
        rasterizer: `pycocotools` cross-checks the compiled kernel; the result is the same, slower.
        progress: told about stages and steps.
        log: receives the findings; by default a fresh one.
        **options: patch (16, "16x8", or a list), image_size (384, "384x640", "native", or a list), resize (squash,
            letterbox, shortest-edge, native), max_size, rule (overlap, jaccard, pixel-ratio), tau, crowd (foreground,
            background, ignore), padding (background, ignore), categories, exclude_categories, min_area, scores (True),
            embed_images (False), limit, shard_rows, on_error (raise, skip), check (fast, full).

    Raises:
        ParameterError: parameters that make no sense.
        FindingsError: the annotations have errors, under `on_error="raise"`; nothing is written.
        OutputError: the folder cannot be written, or is not ours; `BuildMismatchError` where it holds another build.
        TokenLabelsError: the data cannot be read.
    """
    try:
        chosen = BuildOptions.make(**options)
    except TypeError as fault:
        raise ParameterError(f"unknown option: {fault}.") from None
    found = find_source(source, root=root, annotations=annotations, images=images, splits=splits)
    progress = progress or Silent()
    log = log or new_log(chosen)
    folder = Path(out) if out is not None else Path(f"tokenlabels-{found.format}")
    check_ownership(folder)
    executor = make_executor(workers, found.input_bytes())
    with executor:
        executor.start()
        plan = make_plan(found, chosen, log, progress, run=executor.run, rasterizer=rasterizer)
        if is_complete(folder, plan.parameters):
            clear_state(folder)
            progress.note(f"{folder} holds this build already, every shard as it should be.")
            return open_build(folder)
        with build_lock(folder):
            finished = resume(folder, plan.parameters, overwrite=overwrite)
            try:
                entries = _run(folder, plan, chosen, finished, executor, progress)
            except BaseException:
                executor.__exit__(BaseException, None, None)  # no worker may write after the clean-up
                remove_temporaries(folder)
                raise
            progress.stage("finishing")
            for entry in entries:
                if entry.shard.file.startswith(f"{chosen.grids[0].name}/"):
                    log.extend(entry.findings, entry.counts)
            manifest = _manifest(plan, log, entries)
            manifest["totals"] = totals({entry.shard.file: entry.sums for entry in entries}, manifest)
            finish(folder, manifest, card_text(manifest, folder))
    return open_build(folder)


def new_log(options: BuildOptions) -> FindingLog:
    """A log with the severities of these options."""
    promoted = (check.FILE_MISSING, check.IMAGE_PATH, check.IMAGE_NO_NAME) if options.embed_images else ()
    return FindingLog(masks_scored=options.rule.kind.reads_masks, promoted=promoted)


def make_executor(workers: int | None, input_bytes: int) -> Executor:
    """Serial for one worker or little work, else processes."""
    if workers is not None and not 1 <= workers <= 1024:
        raise ParameterError(f"workers {workers} is out of range: 1 to 1024.")
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(cores, input_bytes // _BYTES_PER_WORKER))
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
    )
    dataset = source.read(reading, log)
    splits, image_bytes = [], []
    for split in dataset.splits:
        checked, sizes = _check_images(split, options, log, progress)
        splits.append(checked)
        image_bytes.append(sizes)
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
    sources = {split.name: msgspec.to_builtins(split.file) for split in dataset.splits}
    parameters = {"source": source.format} | options.as_json() | {"sources": sources}
    plan = Plan(dataset, tuple(image_bytes), dropped, parameters)
    _shard_counts(plan, options)
    return plan


def estimate_bytes(plan: Plan, options: BuildOptions) -> int:
    """Bytes that the shards of a plan will take, from building a few hundred of its images in memory."""
    from tokenlabels.scoring import label_records

    total = 0.0
    for split, sizes in zip(plan.dataset.splits, plan.image_bytes, strict=True):
        chosen = np.zeros(len(split.records), np.bool_)
        chosen[np.linspace(0, len(chosen) - 1, min(_ESTIMATE_IMAGES, len(chosen))).astype(np.int64)] = True
        records = split.records.keep_images(chosen)
        records = records.block(0, len(records))
        axes = [grid.axes(records.widths, records.heights) for grid in options.grids]
        labelled, _ = label_records(records, axes, options.rule)
        for grid, labels in zip(options.grids, labelled, strict=True):
            schema = schema_of(_header(plan.dataset, split, grid, options.rule), scores=options.scores, images=False)
            table = build_table(records, labels, schema)
            fixed = encoded_size(table.slice(0, 1))  # schema and footer
            shards = -(-len(split.records) // options.shard_rows)
            total += fixed * shards + (encoded_size(table) - fixed) * len(split.records) / len(records)
        total += 0 if sizes is None else int(sizes.sum()) * len(options.grids)
    return round(total)


def _check_images(
    split: Split, options: BuildOptions, log: FindingLog, progress: Progress
) -> tuple[Split, NDArray[np.int64] | None]:
    if not options.embed_images:
        report_listing(split, log, complete=options.limit is None)
        return split, None
    if not split.images.is_dir():
        raise TokenLabelsError(
            f"{split.images}: no such folder, but --embed-images needs the images: name it with --images."
        )
    progress.stage(f"checking images of {split.name}", len(split.records))
    return check_files(split, log, advance=progress.advance)


def _run(
    folder: Path,
    plan: Plan,
    options: BuildOptions,
    finished: Mapping[str, JournalEntry],
    executor: Executor,
    progress: Progress,
) -> list[JournalEntry]:
    """Write the shards that are not finished; returns the journal of all, in the order of the manifest."""
    tasks = _tasks(folder, plan, options, finished)
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
    folder: Path, plan: Plan, options: BuildOptions, finished: Mapping[str, JournalEntry]
) -> Iterator[ShardTask]:
    counts = _shard_counts(plan, options)
    for split, sizes, total in zip(plan.dataset.splits, plan.image_bytes, counts, strict=True):
        headers = tuple(_header(plan.dataset, split, grid, options.rule) for grid in options.grids)
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
                scores=options.scores,
                images=split.images.resolve() if options.embed_images else None,
                image_bytes=None if sizes is None else sizes[start:stop],
                source_name=split.file.file,
                records=records if options.rule.kind.reads_masks else replace(records, masks=None),
            )


def _header(dataset: Dataset, split: Split, grid: PatchGrid, rule: RuleSpec) -> ShardHeader:
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
