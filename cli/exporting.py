"""The command `bavit export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table
from cli.options import PLACE, JsonOption, Location, OnErrorName
from cli.running import NOTHING_KEPT

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.detect.ground_truth import DetectionSet
    from bavit.export.choice import Models

KEPT, FILE, TRIAL = "What is kept", "The file", "What it is measured on"


class FormatName(StrEnum):
    """Formats."""

    onnx = "onnx"
    torch = "torch"


def export(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run of bavit train, a saved pruned detector, or a YOLOS as bavit detect takes it.",
        ),
    ],
    detector: Annotated[
        str | None, typer.Argument(metavar="DETECTOR", help="A YOLOS that stands behind MODEL, a run of bavit train.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file, .onnx or .pt2 [default: bavit.onnx, bavit.pt2].", rich_help_panel=FILE),
    ] = None,
    format_: Annotated[
        FormatName | None,
        typer.Option("--format", help="torch: torch.export, .pt2 [default: by --out].", rich_help_panel=FILE),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Of ONNX's operators [default: 20].", rich_help_panel=FILE)
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise: weights of linear layers as int8, ONNX alone.", rich_help_panel=FILE),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.", rich_help_panel=FILE)] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Input of the detector [default: a square of its short side].", rich_help_panel=FILE
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep so many patches of every image.", rich_help_panel=KEPT)
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Remove this share of the patches of every image.", rich_help_panel=KEPT)
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine", min=0, max=1000, help="Steps of refinement [default: the saved or calibrated model's, else 3].",
            rich_help_panel=KEPT,
        ),
    ] = None,
    prune_after: Annotated[
        int | None,
        typer.Option(min=0, help="Blocks of the detector that see all patches [default: 0].", rich_help_panel=KEPT),
    ] = None,
    data: Annotated[
        Location | None,
        typer.Option(**PLACE, help="A build, a COCO folder, or a COCO annotation file.", rich_help_panel=TRIAL),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split, repeatable [default: those named val*, else all].", rich_help_panel=TRIAL),
    ] = None,
    folder: Annotated[
        Location | None,
        typer.Option("--images", **PLACE, help="Folder of the images [default: as bavit sweep].",
                     rich_help_panel=TRIAL),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N.", rich_help_panel=TRIAL)] = None,
    on_error: Annotated[
        OnErrorName, typer.Option(help="COCO files with bad annotations: stop, or leave them out.",
                                  rich_help_panel=TRIAL)
    ] = OnErrorName.raise_,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write a model as one ONNX or torch.export file: BAViT, YOLOS, or both with a fixed number of patches."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.detect.pruning import Pruning
        from bavit.export.choice import Choice, parse_size, read_models
        from bavit.export.exporting import Wish, export_models
        from tokenlabels.errors import ParameterError

        if data is None and (split or folder is not None or limit is not None):
            raise ParameterError("--split, --images and --limit are for a set to measure on: name it with --data.")
        choice = Choice(top_k, sparsity, parse_size(image_size), refine, prune_after)
        Pruning(top_k=top_k, sparsity=sparsity)  # before anything is read
        named = out or Path("bavit.pt2" if format_ is FormatName.torch else "bavit.onnx")
        wish = Wish(named, None if format_ is None else format_.value, opset, int8, overwrite)
        wish.check()
        progress.stage("loading")
        models = read_models(model, detector)
        found = None if data is None else _opened(models, data, split, folder, limit, on_error, progress)
        told = export_models(models, choice, wish, found, progress)
        progress.stop()
        if int8 and data is None:
            progress.note(
                f"how much int8 costs was not measured: name labelled images with --data, such as {_EXAMPLE}."
            )
        if as_json:
            print_json(told)
            return
        print_table(_told(told))
        if "figures" in told:
            print_table(_figures(told))
        print_line(f"written: {told['out']}")


_EXAMPLE = "--data COCO --limit 200"


def _opened(
    models: Models, data: Location, split: list[str] | None, folder: Location | None, limit: int | None,
    on_error: OnErrorName, progress: StderrProgress,
) -> DetectionSet:  # fmt: skip
    from bavit.detect.ground_truth import open_detection_set

    grid = None if models.bavit is None else models.bavit.grid
    return open_detection_set(
        data, grid=grid, splits=split, images=folder, limit=limit, on_error=on_error.value, progress=progress
    )


_WORDS = {
    "largest_difference": "largest difference from PyTorch",
    "patches_differing": "patches that PyTorch would not keep",
    "int8_difference": "of int8 from PyTorch",
    "int8_patches_differing": "patches that int8 keeps and PyTorch would not",
    "float_bytes": "bytes in float32",
    "macs": "MACs of an image",
    "macs_dense": "MACs of the detector alone",
}


def _told(told: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("exported", "")
    for name, value in told.items():
        if name in ("out", "figures", "drop", "images"):
            continue
        word = _WORDS.get(name, name.replace("_", " "))
        table.add_row(Text(word), Text(_shown(name, value), justify="right"))
    return table


def _shown(name: str, value: Any) -> str:
    if name == "image_size":
        return "x".join(map(str, value))
    if name.startswith("macs"):
        return f"{value / 1e9:.3f} G"
    if isinstance(value, float):
        return f"{value:.1%}" if name in ("sparsity", "patches_differing", "int8_patches_differing") else f"{value:.1e}"
    return str(value) if isinstance(value, (bool, str)) else f"{value:,}"


def _figures(told: dict[str, Any]) -> Table:
    from rich.table import Column, Table

    names = list(told["drop"])
    columns = [Column(name.replace("_", " "), justify="right") for name in names]
    table = Table(f"on {told['images']:,} images", *columns)
    for run, figures in told["figures"].items():
        table.add_row(run, *(f"{figures[name]:.4f}" for name in names))
    table.add_row("drop", *(f"{told['drop'][name]:+.4f}" for name in names))
    return table
