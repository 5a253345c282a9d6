"""The commands that make other builds and other formats of builds: merge, split, export."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.options import PLACE, BuildArgument, GridOption, JsonOption, Location, OverwriteOption, SplitOption, place
from cli.reports import human_size, report_build

if TYPE_CHECKING:
    from tokenlabels.exporter import Export


class FormatName(StrEnum):
    """Formats of exports."""

    webdataset = "webdataset"
    npz = "npz"
    coco = "coco"


def merge(
    context: typer.Context,
    builds: Annotated[
        list[Location], typer.Argument(parser=place, metavar="OUT", help="Folders of two or more builds.")
    ],
    out: Annotated[Location, typer.Option(**PLACE, help="Folder of the new build.")],
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Images per shard [default: as in the first].")] = None,
    prefix_ids: Annotated[
        bool, typer.Option("--prefix-ids", help="Image ids become 1-ID, 2-ID, by the place of their build.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make one build of several with the same grids and rule; categories are united by name."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.merger import merge as merge_builds
        from tokenlabels.reader import open_build

        started = time.perf_counter()
        built = merge_builds(
            [open_build(folder) for folder in builds],
            out,
            shard_rows=shard_rows,
            prefix_ids=prefix_ids,
            overwrite=overwrite,
            progress=progress,
        )
        stages = progress.stage_seconds()
        progress.stop()
        report_build(built, time.perf_counter() - started, stages, {}, as_json=as_json)


def split(
    context: typer.Context,
    build_folder: BuildArgument,
    out: Annotated[Location, typer.Option(**PLACE, help="Folder of the new build.")],
    val: Annotated[float, typer.Option(help="Share of the images that go to val.")] = 0.1,
    test: Annotated[float | None, typer.Option(help="Share of the images that go to test [default: no test].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another cut.")] = 0,
    split: Annotated[str | None, typer.Option(help="Split to cut, needed where there are several.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a split into train and val, alike in how much of their images is foreground."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.reader import open_build
        from tokenlabels.splitter import split as split_build

        started = time.perf_counter()
        built = split_build(
            open_build(build_folder),
            out,
            val=val,
            test=test,
            seed=seed,
            split=split,
            overwrite=overwrite,
            progress=progress,
        )
        stages = progress.stage_seconds()
        progress.stop()
        report_build(built, time.perf_counter() - started, stages, {}, as_json=as_json)


def export(
    context: typer.Context,
    build_folder: BuildArgument,
    format_name: Annotated[FormatName, typer.Option("--format", help="Format of the files.")],
    out: Annotated[Location, typer.Option(**PLACE, help="Folder to write.")],
    grid: GridOption = None,
    split: SplitOption = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Images per file [default: webdataset as in the build, npz all]; not with coco."),
    ] = None,
    images: Annotated[
        Location | None, typer.Option(**PLACE, help="webdataset: image folder; not needed where images are embedded.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export with other parameters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a build as WebDataset tars, NumPy files, or COCO JSON."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.exporter import export as export_build
        from tokenlabels.reader import open_build

        started = time.perf_counter()
        made = export_build(
            open_build(build_folder),
            out,
            format=format_name.value,
            grid=grid,
            split=split or (),
            shard_rows=shard_rows,
            images=images,
            overwrite=overwrite,
            progress=progress,
        )
        progress.stop()
        _report(made, time.perf_counter() - started, as_json=as_json)


def _report(made: Export, seconds: float, *, as_json: bool) -> None:
    images, size = sum(file.rows for file in made.files), sum(file.bytes for file in made.files)
    if as_json:
        import msgspec

        print_json(
            {
                "out": str(made.path),
                "format": made.format,
                "grid": made.grid,
                "images": images,
                "bytes": size,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
                "files": msgspec.to_builtins(made.files),
            }
        )
        return
    from rich.table import Table

    table = Table(title=f"{made.format}, {made.grid}", title_justify="left")
    for name in ("split", "files", "images", "bytes"):
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    for split in dict.fromkeys(file.split for file in made.files):
        files = [file for file in made.files if file.split == split]
        counts = len(files), sum(file.rows for file in files), sum(file.bytes for file in files)
        table.add_row(split, *(f"{count:,}" for count in counts))
    print_table(table)
    print_line(
        f"{images:,} images in {seconds:.1f} s ({images / seconds:,.0f} images/s); {len(made.files)} files, "
        f"{human_size(size)}, in {made.path}"
    )
