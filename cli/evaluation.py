"""The commands `bavit eval` and `bavit predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.options import PLACE, JsonOption, Location, OnErrorName
from cli.running import (
    NOTHING_KEPT,
    BatchOption,
    CompileOption,
    DeviceName,
    DeviceOption,
    LoadersOption,
    PicturesOption,
    PlainPrecision,
    PrecisionName,
    RunArgument,
    ShardsArgument,
)

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.background.figures import Evaluation, Group
    from bavit.background.model import BAViT
    from bavit.rows import Rows

_LISTED = 12

EvalSplitOption = Annotated[
    list[str] | None, typer.Option("--split", help="Split, repeatable [default: those named val*, else all].")
]
SkipOption = Annotated[OnErrorName, typer.Option(help="An image that cannot be read: stop, or leave out and count.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Remove tokens of a greater background probability [default: the model's].", min=0, max=1),
]
RefineOption = Annotated[
    int | None, typer.Option("--refine", min=0, max=1000, help="Steps of refinement [default: the model's].")
]


def evaluate(
    context: typer.Context,
    run: RunArgument,
    shards: ShardsArgument,
    images: PicturesOption = None,
    split: EvalSplitOption = None,
    threshold: ThresholdOption = None,
    refine: RefineOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page: one file, with samples.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Also draw the curves as PNG.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=100, help="Images that the page shows.")] = 12,
    on_error: SkipOption = OnErrorName.raise_,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: BatchOption = 32,
    workers: LoadersOption = None,
    compile_model: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled images: accuracy beside baselines, lost objects, the whole threshold curve."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        import msgspec

        from bavit.background import evaluate as package
        from bavit.background.curves import draw_evaluation
        from bavit.background.model import load_model
        from bavit.background.page import write_evaluation_page
        from tokenlabels.report import check_places

        for path in (html, png):
            if path is not None:
                check_places(path, None)
        progress.stage("loading")
        model = load_model(run)
        rows = rows_for(model, shards, split)
        place = place_for(device, precision, batch_size, workers, compile_model=compile_model)
        found, predictions, kept = package.evaluate(
            model, rows, images, place, progress,
            threshold=threshold, refine_steps=refine, on_error=on_error.value,
        )  # fmt: skip
        if png is not None:
            draw_evaluation(found, png)
        if html is not None:
            facts = {"model": run, "labels": shards.name, "splits": ", ".join(dict.fromkeys(rows.splits))}
            shown = package.samples(found, predictions, kept, images, samples)
            write_evaluation_page(found, html, title=Path(run).name, facts=facts, samples=shown)
        progress.stop()
        skipped = len(rows) - len(kept)
        if as_json:
            print_json(msgspec.to_builtins(found) | {"skipped": skipped, "splits": list(dict.fromkeys(rows.splits))})
            return
        print_line(f"{shards}: {', '.join(dict.fromkeys(rows.splits))}")
        for table in (_overview(found, skipped), _refinement(found), _groups(found)):
            print_table(table)
        for path in (html, png):
            if path is not None:
                print_line(f"written: {path}")


def predict(
    context: typer.Context,
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bavit-predictions"),
    labels: Annotated[
        Location | None,
        typer.Option(**PLACE, help="A build on the model's grid, for ground truth of images of the same name."),
    ] = None,
    threshold: ThresholdOption = None,
    refine: Annotated[
        int | None, typer.Option("--refine", min=0, max=1000, help="Steps of refinement [default: the model's].")
    ] = None,
    drop_specks: Annotated[
        int, typer.Option(min=0, help="After refinement, drop components of fewer patches than this.")
    ] = 0,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw a panel of each image.")] = True,
    masks: Annotated[bool, typer.Option("--masks/--no-masks", help="Write a PNG mask of each image.")] = True,
    device: DeviceOption = DeviceName.auto,
    precision: PlainPrecision = PrecisionName.full,
    batch_size: BatchOption = 16,
    workers: LoadersOption = None,
    compile_model: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw which patches a model keeps of any images, and write them as masks."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.background.draw import Choice, draw_predictions
        from bavit.background.model import load_model
        from bavit.background.predict import picture_files

        progress.stage("loading")
        model = load_model(run)
        choice = Choice(threshold, refine, drop_specks, overlays=overlays, masks=masks)
        truth = None if labels is None else rows_for(model, labels, None, every=True)
        place = place_for(device, precision, batch_size, workers, compile_model=compile_model)
        found = draw_predictions(model, picture_files(images), out, choice, place, truth, progress)
        progress.stop()
        if as_json:
            print_json(found)
        else:
            print_table(listed("predictions", found))


def rows_for(model: BAViT, shards: Location, split: list[str] | None, *, every: bool = False) -> Rows:
    """The rows of a build on a model's grid: of splits that are evaluated, or of every one."""
    from bavit.rows import read_rows
    from bavit.splits import evaluation_splits
    from tokenlabels.reader import open_build

    build = open_build(shards)
    grid = model.grid.name if model.grid.name in build.grids else None
    splits = list(build.splits) if every else evaluation_splits(build, split)
    return read_rows(build, grid=grid, splits=splits, scores=False)


def place_for(
    device: DeviceName, precision: PrecisionName, batch_size: int, workers: int | None, *, compile_model: bool = False
) -> Any:
    """Where a model runs, of options."""
    from bavit.background.predict import Place
    from bavit.device import default_workers

    decoders = default_workers() if workers is None else workers
    return Place(device.value, precision.value, batch_size, decoders, compile_model)


def _overview(found: Evaluation, skipped: int) -> Table:
    steps = f", refined in {found.refine_steps} steps" if found.refine_steps else ""
    shares = {
        "accuracy": found.accuracy,
        "majority baseline": found.majority,
        "position prior": found.position_prior,
        "balanced accuracy": found.balanced_accuracy,
        "FG precision": found.fg_precision,
        "FG recall": found.fg_recall,
        "FG IoU": found.fg_iou,
        "sparsity": found.sparsity,
        "lost objects": found.lost_objects,
    }
    told: dict[str, Any] = {name: f"{value:.2%}" for name, value in shares.items()}
    told |= {
        "AUROC": f"{found.auroc:.4f}",
        "calibration error (ECE)": f"{found.ece:.4f}",
        "images": found.images,
        "left out": skipped,
        "objects (without foreground patches)": f"{found.objects:,} ({found.objects_without_patches:,})",
        "parameters": found.parameters,
        "MACs": f"{found.macs / 1e9:.3f} G",
    }
    if not skipped:
        del told["left out"]
    return listed(f"at threshold {found.threshold:g}{steps}", told)


def listed(title: str, values: dict[str, Any]) -> Table:
    """A table of names and values."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title, "")
    for name, value in values.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(shown, justify="right"))
    return table


def _refinement(found: Evaluation) -> Table:
    from rich.table import Table

    table = Table("refinement steps", *(_right(name) for name in (
        "accuracy", "balanced", "FG recall", "FG precision", "sparsity", "lost objects")))  # fmt: skip
    for row in found.refinement:
        shares = (row.accuracy, row.balanced_accuracy, row.fg_recall, row.fg_precision, row.sparsity, row.lost_objects)
        table.add_row(str(row.steps), *(f"{value:.2%}" for value in shares))
    return table


def _groups(found: Evaluation) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("objects", *(_right(name) for name in ("count", "FG recall", "lost", "share lost")))
    most = sorted(found.by_category, key=lambda group: -group.objects)[:_LISTED]
    groups: list[Group] = [*found.by_size, *most]
    for index, group in enumerate(groups):
        shares = (f"{group.objects:,}", f"{group.fg_recall:.2%}", f"{group.lost:,}", f"{group.lost_share:.2%}")
        table.add_row(Text(group.name), *shares, end_section=index + 1 == len(found.by_size))
    return table


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
