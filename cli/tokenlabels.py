"""The command `tokenlabels`: options and output; every command calls one function of the package."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer

from cli.console import (
    GroupedCommand,
    PlainCommand,
    StderrProgress,
    errors_reported,
    print_json,
    print_line,
    run_app,
    say,
)
from cli.converting import export, merge, split
from cli.downloading import download
from cli.options import (
    GRID,
    PLACE,
    RULE,
    STORE,
    AnnotationsOption,
    BackgroundOption,
    BuildArgument,
    CategoriesOption,
    CheckName,
    EngineName,
    EngineOption,
    GridOption,
    IgnoreOption,
    ImagesOption,
    JsonOption,
    LimitOption,
    Location,
    MasksOption,
    MaskSuffixOption,
    OnErrorName,
    OverwriteOption,
    PaddingName,
    PolicyName,
    RasterizerName,
    ReduceOption,
    ResizeName,
    RootOption,
    RuleChoice,
    SampleOption,
    SchedulerOption,
    SourceArgument,
    SourceName,
    SplitOption,
    StuffOption,
    WorkersOption,
)
from cli.reports import findings_json, image_folders, print_every_finding, print_findings, report_build, report_plan
from cli.sampling import sample
from cli.statistics import stats
from tokenlabels import __version__

if TYPE_CHECKING:
    from tokenlabels.sources.base import Source
    from tokenlabels.sources.semantic_options import SemanticOptions

app = typer.Typer(
    help="Turn COCO, VOC and semantic masks into Parquet shards with one foreground/background label per ViT patch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_SAMPLE_IMAGES = 60
_SAMPLE_FOLDER = "tokenlabels-sample"


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"tokenlabels {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    version: Annotated[  # noqa: ARG001  the callback does it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command(cls=GroupedCommand)
def build(
    context: typer.Context,
    source: SourceArgument,
    root: RootOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    masks: MasksOption = None,
    sample: SampleOption = False,
    split: SplitOption = None,
    patch: Annotated[
        list[str], typer.Option(help="Patch size in pixels, P or HxW, repeatable.", rich_help_panel=GRID)
    ] = ["16"],  # noqa: B006
    image_size: Annotated[
        list[str], typer.Option(help="Model input size, S, HxW or native, repeatable.", rich_help_panel=GRID)
    ] = ["384"],  # noqa: B006
    resize: Annotated[
        ResizeName, typer.Option(help="How an image becomes the model input.", rich_help_panel=GRID)
    ] = ResizeName.squash,
    max_size: Annotated[
        int | None, typer.Option(help="Cap on the long side, for --resize shortest-edge.", rich_help_panel=GRID)
    ] = None,
    rule: Annotated[
        RuleChoice | None,
        typer.Option(help="How a patch is scored [default: overlap; semantic: pixel-ratio].", rich_help_panel=RULE),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            help="Threshold of the rule [default: overlap 0.5, jaccard 0.5, pixel-ratio 0.1].",
            rich_help_panel=RULE,
        ),
    ] = None,
    crowd: Annotated[
        PolicyName, typer.Option(help="What a crowd region does.", rich_help_panel=RULE)
    ] = PolicyName.foreground,
    void: Annotated[
        PolicyName, typer.Option(help="What void pixels of masks do.", rich_help_panel=RULE)
    ] = PolicyName.background,
    difficult: Annotated[
        PolicyName, typer.Option(help="What difficult boxes (voc) do.", rich_help_panel=RULE)
    ] = PolicyName.foreground,
    padding: Annotated[
        PaddingName, typer.Option(help="What a patch wholly in padding is.", rich_help_panel=RULE)
    ] = PaddingName.background,
    ignore: IgnoreOption = None,
    background: BackgroundOption = None,
    reduce_zero_label: ReduceOption = False,
    stuff: StuffOption = None,
    mask_suffix: MaskSuffixOption = None,
    categories: CategoriesOption = None,
    exclude_categories: Annotated[
        list[str] | None, typer.Option(help="Categories that are background.", rich_help_panel=RULE)
    ] = None,
    min_area: Annotated[
        float, typer.Option(help="Drop annotations smaller than this many square pixels.", rich_help_panel=RULE)
    ] = 0.0,
    limit: LimitOption = None,
    out: Annotated[
        Location | None,
        typer.Option(**PLACE, help="Folder to write [default: ./tokenlabels-<source>].", rich_help_panel=STORE),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Store the scores, for relabel.", rich_help_panel=STORE)
    ] = True,
    embed_images: Annotated[
        bool, typer.Option("--embed-images", help="Store the image files in the shards.", rich_help_panel=STORE)
    ] = False,
    embed_size: Annotated[
        str | None,
        typer.Option(
            help="Store images (and masks) as the model input, S or HxW, instead of the files.",
            rich_help_panel=STORE,
        ),
    ] = None,
    jpeg_quality: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Of the images that --embed-size makes [default: 90].", rich_help_panel=STORE
        ),
    ] = None,
    embed_masks: Annotated[
        bool,
        typer.Option("--embed-masks", help="Store the mask PNGs (semantic, voc) in the shards.", rich_help_panel=STORE),
    ] = False,
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Images per shard [default: 4096, 512 with images].", rich_help_panel=STORE),
    ] = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
    scheduler: SchedulerOption = None,
    on_error: Annotated[
        OnErrorName, typer.Option(help="Stop at bad annotations, or leave them out.")
    ] = OnErrorName.raise_,
    check: Annotated[
        CheckName, typer.Option(help="full: also look for polygons that cross themselves.")
    ] = CheckName.fast,
    rasterizer: Annotated[
        RasterizerName, typer.Option(help="Cross-check: let pycocotools draw the polygons; same result, slower.")
    ] = RasterizerName.kernel,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build shards of patch labels, for example: tokenlabels build coco --patch 16 --tau 0.5"""
    options: dict[str, Any] = {
        "patch": patch,
        "image_size": image_size,
        "resize": resize.value,
        "max_size": max_size,
        "tau": tau,
        "crowd": crowd.value,
        "padding": padding.value,
        "void": void.value,
        "difficult": difficult.value,
        "exclude_categories": exclude_categories,
        "min_area": min_area,
        "limit": limit,
        "scores": scores,
        "embed_images": embed_images,
        "embed_size": embed_size,
        "jpeg_quality": jpeg_quality,
        "embed_masks": embed_masks,
        "shard_rows": shard_rows,
        "on_error": on_error.value,
        "check": check.value,
    }
    out = Path(f"tokenlabels-{source.value}") if out is None else out
    places = Places(root, annotations, images, masks, split, sample)
    meaning = ignore, background, reduce_zero_label, None if stuff is None else stuff.value, mask_suffix
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.builder import build_source
        from tokenlabels.options import BuildOptions
        from tokenlabels.output import check_ownership
        from tokenlabels.planning import estimate_bytes, make_plan, new_log
        from tokenlabels.sources.locate import split_categories

        class_list, names = split_categories(source.value, categories)
        with _located(source, places, class_list, meaning, out.parent, keep=not dry_run) as found:
            chosen = BuildOptions.make(**options, categories=names, rule=rule.value if rule else found.default_rule)
            if chosen.rule.rule == "jaccard":
                progress.note(
                    "jaccard scores a patch wholly inside a box of area A by p*p/A, so that nearly every patch is "
                    "background; overlap is what the paper's prose describes."
                )
            log = new_log(chosen, found)
            started = time.perf_counter()
            if dry_run:
                check_ownership(out)
                plan = make_plan(found, chosen, log, progress, rasterizer=rasterizer.value)
                progress.stop()
                report_plan(plan, chosen, log, estimate_bytes(plan, chosen), out, as_json=as_json)
                return
            built = build_source(
                found,
                chosen,
                out,
                log,
                progress,
                workers=workers,
                engine=engine.value,
                scheduler=scheduler,
                overwrite=overwrite,
                rasterizer=rasterizer.value,
            )
        stages = progress.stage_seconds()
        progress.stop()
        report_build(built, time.perf_counter() - started, stages, image_folders(found), as_json=as_json)


@app.command(cls=GroupedCommand)
def check(
    context: typer.Context,
    source: SourceArgument,
    root: RootOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    masks: MasksOption = None,
    sample: SampleOption = False,
    split: SplitOption = None,
    rule: Annotated[
        RuleChoice | None,
        typer.Option(help="Rule whose needs decide what is an error [default: as build].", rich_help_panel=RULE),
    ] = None,
    ignore: IgnoreOption = None,
    background: BackgroundOption = None,
    reduce_zero_label: ReduceOption = False,
    stuff: StuffOption = None,
    mask_suffix: MaskSuffixOption = None,
    categories: CategoriesOption = None,
    limit: LimitOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for faults in annotations without building; exit code 1 where any is an error."""
    places = Places(root, annotations, images, masks, split, sample)
    meaning = ignore, background, reduce_zero_label, None if stuff is None else stuff.value, mask_suffix
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.check import FindingLog
        from tokenlabels.checking import check_source
        from tokenlabels.engines import make_executor, workers_for
        from tokenlabels.sources.locate import split_categories

        class_list, _ = split_categories(source.value, categories)
        with _located(source, places, class_list, meaning, Path(), keep=False) as found:
            chosen = rule.value if rule else found.default_rule
            reads_masks = chosen == "pixel-ratio"
            log = FindingLog(
                masks_scored=reads_masks or found.format == "semantic",
                boxes_scored=not reads_masks,
                examples=None,
                source_format=found.format,
            )
            with make_executor(workers_for(workers, found), found.input_bytes(masks=True)) as executor:
                dataset = check_source(found, log, limit=limit, run=executor.run, progress=progress)
        progress.stop()
        files = {part.name: {"file": part.file.file, "images": len(part.records)} for part in dataset.splits}
        if as_json:
            findings = findings_json(log)
            print_json(
                {"splits": files, "errors": log.error_count, "warnings": log.warning_count, "findings": findings}
            )
        else:
            if log.counts:
                print_findings(log)
                print_every_finding(log)
            images_seen = sum(len(part.records) for part in dataset.splits)
            print_line(f"{images_seen} images: {log.error_count} errors, {log.warning_count} warnings under {chosen}.")
        if log.error_count:
            raise typer.Exit(1)


@app.command()
def verify(context: typer.Context, out: BuildArgument, as_json: JsonOption = False) -> None:
    """Re-hash every shard of a build against its manifest."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.reader import open_build
        from tokenlabels.verifier import verify as verify_build

        found = verify_build(open_build(out), progress)
        progress.stop()
        if as_json:
            print_json(
                {
                    "out": str(out),
                    "shards": found.shards,
                    "bytes": found.bytes,
                    "ok": found.fine,
                    "faults": found.faults,
                    "unlisted": list(found.unlisted),
                }
            )
        else:
            for file, fault in found.faults.items():
                say(f"error: {out / file}: {fault}.")
            for file in found.unlisted:
                say(f"error: {out / file}: is not in the manifest.")
            if found.fine:
                print_line(f"{found.shards} shards, {found.bytes:,} bytes: all as the manifest says.")
            else:
                say("run the same build command again: it makes a damaged build anew.")
        if not found.fine:
            raise typer.Exit(1)


app.command(cls=PlainCommand)(stats)


@app.command()
def relabel(
    context: typer.Context,
    build_folder: BuildArgument,
    tau: Annotated[float, typer.Option(help="New threshold, 0 to 1.")],
    out: Annotated[Location, typer.Option(**PLACE, help="Folder of the new build.")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Apply another threshold to the stored scores; the source is not needed."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.reader import open_build
        from tokenlabels.relabeler import relabel as relabel_build

        started = time.perf_counter()
        built = relabel_build(open_build(build_folder), tau, out, overwrite=overwrite, progress=progress)
        stages = progress.stage_seconds()
        progress.stop()
        report_build(built, time.perf_counter() - started, stages, {}, as_json=as_json)


@app.command(cls=PlainCommand)
def show(
    context: typer.Context,
    out: BuildArgument,
    image_id: Annotated[str, typer.Argument(help="Image id, or file name without suffix.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("overlay.png"),
    images: Annotated[
        Location | None, typer.Option(**PLACE, help="Image folder; not needed where images are embedded.")
    ] = None,
    grid: GridOption = None,
    split: Annotated[str | None, typer.Option(help="Split to look in [default: all].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one image with its patches tinted: foreground red, background grey, ignored hatched."""
    with errors_reported(debug=context.obj["debug"]):
        from tokenlabels.overlay import show as show_image
        from tokenlabels.reader import open_build

        path = show_image(open_build(out), image_id, output, images=images, grid=grid, split=split)
        if as_json:
            print_json({"image_id": image_id, "file": str(path)})
        else:
            print_line(str(path))


app.command()(merge)
app.command()(split)
app.command()(export)
app.command(cls=PlainCommand)(sample)
app.command()(download)


Meaning: TypeAlias = tuple[list[int] | None, list[int] | None, bool, str | None, str | None]
"""Of the values of semantic masks: ignored, background, whether 0 is a label, what stuff is, end of file names."""


def _semantic_options(meaning: Meaning) -> SemanticOptions | None:
    from tokenlabels.sources.semantic_options import SemanticOptions

    return SemanticOptions.make(*meaning)


class Places(NamedTuple):
    """Where a person says the data are."""

    root: Location | None
    annotations: Location | None
    images: Location | None
    masks: Location | None
    split: list[str] | None
    sample: bool


@contextmanager
def _located(
    source: SourceName,
    places: Places,
    class_list: str | None,
    meaning: Meaning,
    beside: Location,
    *,
    keep: bool,
) -> Iterator[Source]:
    """The source that the options name; a sample is drawn beside the build, or thrown away again."""
    from tokenlabels.errors import ParameterError
    from tokenlabels.sources.locate import find_source

    semantic = _semantic_options(meaning) if any(value not in (None, False) for value in meaning) else None
    named = places.root, places.annotations, places.images, places.masks
    if not places.sample:
        root, annotations, images, masks = named
        yield find_source(
            source.value,
            root=root,
            annotations=annotations,
            images=images,
            masks=masks,
            splits=places.split or (),
            class_list=class_list,
            semantic=semantic,
        )
        return
    if any(named):
        raise ParameterError("--sample makes its own data set: leave --root, --annotations, --images and --masks out.")
    from tokenlabels.sample import GENERATOR, VOC_FOLDER, write_sample
    from tokenlabels.sample_folder import is_drawn

    with tempfile.TemporaryDirectory() as temporary:
        drawn = isinstance(beside, Path) and is_drawn(beside / _SAMPLE_FOLDER, GENERATOR)  # of any size, by somebody
        folder = beside / _SAMPLE_FOLDER if isinstance(beside, Path) and (keep or drawn) else Path(temporary) / "sample"
        if not drawn:
            write_sample(folder, images=_SAMPLE_IMAGES)
        root = folder if source is SourceName.coco else folder / VOC_FOLDER
        splits = places.split or ()
        yield find_source(source.value, root=root, splits=splits, class_list=class_list, semantic=semantic)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
