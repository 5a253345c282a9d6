"""source x grids x rule -> shards, on an executor.

Everything is read and checked before the first byte is written. Then every shard is one independent task; `output.py`
knows which are finished, so that a killed build goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import tokenlabels
from tokenlabels.check import FindingLog
from tokenlabels.cutting import planned_files, tasks_of
from tokenlabels.engines import Engine, make_executor, work_of, workers_for
from tokenlabels.errors import FindingsError
from tokenlabels.executors import Executor
from tokenlabels.finishing import finish_build
from tokenlabels.grid import ImageSizeLike, PatchLike
from tokenlabels.options import BuildOptions, CheckLevel, OnError
from tokenlabels.output import (
    JournalEntry,
    build_lock,
    check_ownership,
    clear_state,
    discard,
    is_complete,
    is_unfinished,
    remove_temporaries,
    resume,
)
from tokenlabels.planning import Plan, make_plan, new_log
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, open_build
from tokenlabels.shards import SCHEMA_VERSION
from tokenlabels.sources.base import Source
from tokenlabels.sources.locate import find_source, split_categories
from tokenlabels.sources.masks import Rasterizer
from tokenlabels.storage import located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@explained()
def build(
    source: Source | str,
    *,
    out: str | Location | None = None,
    root: str | Location | None = None,
    annotations: str | Location | None = None,
    images: str | Location | None = None,
    masks: str | Location | None = None,
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
    categories: str | Location | Sequence[str] | None = None,
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
    engine: Engine = "local",
    scheduler: str | None = None,
    overwrite: bool = False,
    rasterizer: Rasterizer = "kernel",
    progress: Progress | None = None,
    log: FindingLog | None = None,
) -> Build:
    """Turn an annotated data set into Parquet shards with one label per patch.

    Every place is a path on disk, or an address in a store, such as `s3://bucket/coco`; `memory://` needs one worker.

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
        engine: local, or dask: on a Dask cluster of this machine, or on the one of `scheduler`.
        scheduler: address of a Dask scheduler, such as `tcp://HOST:8786`; its workers must see `out` and the images.
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
    folder = located(out if out is not None else f"tokenlabels-{found.format}")
    return build_source(
        found,
        chosen,
        folder,
        log or new_log(chosen, found),
        progress or Silent(),
        workers=workers,
        engine=engine,
        scheduler=scheduler,
        overwrite=overwrite,
        rasterizer=rasterizer,
    )


@explained()
def build_source(
    source: Source,
    options: BuildOptions,
    folder: Location,
    log: FindingLog,
    progress: Progress,
    *,
    workers: int | None = 1,
    engine: Engine = "local",
    scheduler: str | None = None,
    overwrite: bool = False,
    rasterizer: Rasterizer = "kernel",
) -> Build:
    """`build`, its parameters checked and its source found."""
    check_ownership(folder)
    count = workers_for(workers, source, folder, engine=engine)
    executor = make_executor(count, work_of(source, options), engine=engine, scheduler=scheduler, out=folder)
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
            finish_build(folder, _manifest(plan, log), entries)
    return open_build(folder)


def _run(
    folder: Location,
    plan: Plan,
    options: BuildOptions,
    finished: Mapping[str, JournalEntry],
    executor: Executor,
    progress: Progress,
) -> list[JournalEntry]:
    """Write the shards that are not finished; returns the journal of all, in the order of the manifest."""
    place, lease = folder.absolute(), executor.lease  # workers may have another working directory
    tasks = tasks_of(place, plan.dataset, plan.image_bytes, options, finished, executor.threads, lease)
    progress.stage("building shards", plan.images)
    progress.advance(sum(entry.shard.rows for entry in finished.values()) // len(options.grids))
    entries = dict(finished)
    for written in executor.run("tokenlabels.tasks:write_shards", tasks):
        entries |= {entry.shard.file: entry for entry in written}
        progress.advance(sum(entry.shard.rows for entry in written) // len(options.grids))
    if lease is not None:
        remove_temporaries(folder)  # of workers that died, whose tasks others have done
    return [entries[file] for file in planned_files(plan.dataset, options)]


def _manifest(plan: Plan, log: FindingLog) -> dict[str, Any]:
    """What `manifest.json` says, but for shards; nothing in it depends on time, machine or how the build was run."""
    parameters = {name: value for name, value in plan.parameters.items() if name != "sources"}
    splits = {
        split.name: {"images": len(split.records), "annotations": split.records.annotation_count}
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
    }
