"""The command `bavit train`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table, say
from cli.options import (
    NOTHING_KEPT,
    CompileOption,
    DeviceName,
    DeviceOption,
    GridOption,
    JsonOption,
    LoadersOption,
    OnErrorName,
    PrecisionOption,
    ShardsArgument,
)

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.training.learner import Task
    from tokenlabels.reader import Build

DATA, MODEL, RECIPE, AUGMENT, STORE = (
    "Data",
    "Model",
    "Recipe",
    "Changes of training pictures",
    "What is written",
)


class RecipeChoice(StrEnum):
    """Recipes."""

    scratch = "scratch"
    finetune = "finetune"
    paper = "paper"


class WeightsName(StrEnum):
    """Class weights."""

    none = "none"
    balanced = "balanced"


def train(
    context: typer.Context,
    shards: ShardsArgument,
    out: Annotated[Path, typer.Option(help="Folder of the run.", rich_help_panel=STORE)] = Path("bavit-run"),
    val: Annotated[
        Path | None, typer.Option(help="Another build to validate on [default: SHARDS].", rich_help_panel=DATA)
    ] = None,
    train_split: Annotated[
        list[str] | None,
        typer.Option(help="Split to train on, repeatable [default: those named train*].", rich_help_panel=DATA),
    ] = None,
    val_split: Annotated[
        list[str] | None,
        typer.Option(help="Split to validate on, repeatable [default: those named val*].", rich_help_panel=DATA),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images [default: those embedded in the shards].", rich_help_panel=DATA),
    ] = None,
    val_images: Annotated[
        Path | None,
        typer.Option(help="Folder of the validation images [default: --images].", rich_help_panel=DATA),
    ] = None,
    grid: GridOption = None,
    on_error: Annotated[
        OnErrorName | None,
        typer.Option(help="An image that cannot be read: stop, or leave out and count.", rich_help_panel=DATA),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Blocks; 2 is BAViT-small, 10 BAViT-large [default: 2].", rich_help_panel=MODEL)
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Dimension of a token [default: 192].", rich_help_panel=MODEL)
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="imagenet (timm's ViT-tiny), none, or a run or file of weights [default: imagenet].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Times through the data [default: 40].", rich_help_panel=RECIPE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step, over all ranks [default: 32].", rich_help_panel=RECIPE)
    ] = None,
    recipe: Annotated[
        RecipeChoice | None,
        typer.Option(
            help="scratch, finetune, or paper (Adam, StepLR) [default: scratch with --init none, else finetune].",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: recipe's].", rich_help_panel=RECIPE)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay [default: recipe's].", rich_help_panel=RECIPE)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient, 0: any.", rich_help_panel=RECIPE)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the moving average of weights, 0: none.", rich_help_panel=RECIPE)
    ] = None,
    class_weights: Annotated[
        WeightsName | None,
        typer.Option(help="Weigh the labels as tokenlabels stats says [default: none].", rich_help_panel=RECIPE),
    ] = None,
    soft_targets: Annotated[
        bool | None,
        typer.Option(
            "--soft-targets/--hard-targets",
            help="Learn the scores, or the labels [default: recipe's].",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random [default: 0].", rich_help_panel=RECIPE)] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror every second one.", rich_help_panel=AUGMENT)
    ] = None,
    crop: Annotated[
        float | None,
        typer.Option(help="Least share of the area of random crops, 1: none; box rules.", rich_help_panel=AUGMENT),
    ] = None,
    colour: Annotated[
        float | None, typer.Option(help="Strength of changes of colour, 0: none.", rich_help_panel=AUGMENT)
    ] = None,
    device: DeviceOption = DeviceName.auto,
    precision: PrecisionOption = None,
    compile_model: CompileOption = False,
    workers: LoadersOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=STORE)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in --out.", rich_help_panel=STORE)
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.", rich_help_panel=STORE)
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a background-aware ViT on the labels of a build."""
    with errors_reported(debug=context.obj["debug"], interrupted=NOTHING_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.augment import no_crops
        from bavit.background.settings import Settings
        from bavit.background.train import train
        from bavit.device import is_first_rank
        from bavit.training.interruption import Interrupted
        from bavit.training.learner import Task
        from bavit.training.run_folder import read_run
        from tokenlabels.reader import open_build

        choices: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "init": init,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": recipe and recipe.value,
            "lr": lr,
            "weight_decay": weight_decay,
            "clip": clip,
            "ema": ema,
            "class_weights": class_weights and class_weights.value,
            "soft_targets": soft_targets,
            "seed": seed,
            "flip": flip,
            "crop": crop,
            "colour": colour,
            "precision": precision and precision.value,
            "compile": compile_model or None,
            "on_error": on_error and on_error.value,
        }
        given = {name: value for name, value in choices.items() if value is not None}
        if resume:
            given = read_run(out)["given"] | given
        settings = Settings.make(**given)
        build = open_build(shards)
        if settings.optimization.soft_targets and not build.manifest["parameters"]["scores"] and not soft_targets:
            settings = settings.without_scores()
            progress.note(f"{shards} has no scores (--no-scores): the labels are learned instead.")
        cannot_crop = no_crops(build)
        if settings.optimization.augmentation.crop < 1 and crop is None and cannot_crop:
            settings = settings.without_crops()
            progress.note(f"no random crops: {cannot_crop}.")
        progress.stage("reading shards")
        task = _task(
            Task, build, val, train_split, val_split, grid, images, val_images, settings.optimization.soft_targets,
            out=out, device=device.value, workers=workers, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
        )  # fmt: skip
        try:
            found = train(task, settings, given, progress)
        except Interrupted as stop:
            progress.stop()
            if is_first_rank():
                say(f"interrupted at {stop}: the state is saved, run the same command with --resume to go on.")
            raise typer.Exit(128 + stop.number) from None
        progress.stop()
        if not is_first_rank():
            return
        if as_json:
            print_json(found | {"out": str(out)})
        else:
            print_table(_table(found))
            print_line(f"run: {out}")


def _task(
    kind: type[Task],
    build: Build,
    val: Path | None,
    train_split: list[str] | None,
    val_split: list[str] | None,
    grid: str | None,
    images: Path | None,
    val_images: Path | None,
    scores: bool,
    *,
    workers: int | None,
    **rest: Any,
) -> Task:
    from bavit.device import default_workers
    from bavit.rows import read_rows
    from bavit.splits import training_splits, validation_splits
    from tokenlabels.reader import open_build

    other = open_build(val) if val else build
    return kind(
        train=read_rows(build, grid=grid, splits=training_splits(build, train_split), scores=scores),
        val=read_rows(other, grid=grid, splits=validation_splits(other, val_split, own=val is not None), scores=False),
        images=images,
        val_images=val_images or images,
        workers=default_workers() if workers is None else workers,
        **rest,
    )


def _table(found: dict[str, float]) -> Table:
    from rich.table import Table

    table = Table("after the last epoch", "")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    return table
