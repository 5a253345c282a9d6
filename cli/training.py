"""The command `bavit train`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.options import GridOption, JsonOption
from cli.running import (
    AUGMENT,
    MODEL,
    RECIPE,
    RUN_KEPT,
    ClipOption,
    ColourOption,
    CompileOption,
    DecayOption,
    DeviceName,
    DeviceOption,
    EmaOption,
    FlipOption,
    LoadersOption,
    OnErrorOption,
    PrecisionOption,
    RateOption,
    ReplaceOption,
    ResumeOption,
    RunOption,
    SeedOption,
    ShardsArgument,
    TensorBoardOption,
    TrainPicturesOption,
    TrainSplitOption,
    ValOption,
    ValPicturesOption,
    ValSplitOption,
    carry_out,
    given_by,
    rows_of,
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
    out: RunOption = Path("bavit-run"),
    val: ValOption = None,
    train_split: TrainSplitOption = None,
    val_split: ValSplitOption = None,
    images: TrainPicturesOption = None,
    val_images: ValPicturesOption = None,
    grid: GridOption = None,
    on_error: OnErrorOption = None,
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
    lr: RateOption = None,
    weight_decay: DecayOption = None,
    clip: ClipOption = None,
    ema: EmaOption = None,
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
    seed: SeedOption = None,
    flip: FlipOption = None,
    crop: Annotated[
        float | None,
        typer.Option(help="Least share of the area of random crops, 1: none; box rules.", rich_help_panel=AUGMENT),
    ] = None,
    colour: ColourOption = None,
    device: DeviceOption = DeviceName.auto,
    precision: PrecisionOption = None,
    compile_model: CompileOption = False,
    workers: LoadersOption = None,
    resume: ResumeOption = False,
    overwrite: ReplaceOption = False,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a background-aware ViT on the labels of a build."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.augment import no_crops
        from bavit.background.settings import Settings
        from bavit.background.train import train
        from bavit.device import default_workers
        from bavit.training.learner import Task
        from tokenlabels.reader import open_build

        choices: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "init": init,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": recipe,
            "lr": lr,
            "weight_decay": weight_decay,
            "clip": clip,
            "ema": ema,
            "class_weights": class_weights,
            "soft_targets": soft_targets,
            "seed": seed,
            "flip": flip,
            "crop": crop,
            "colour": colour,
            "precision": precision,
            "compile": compile_model or None,
            "on_error": on_error,
        }
        given = given_by(choices, out, "train", resume=resume)
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
        other = open_build(val) if val else None
        soft = settings.optimization.soft_targets
        train_rows, val_rows = rows_of(build, other, train_split, val_split, grid=grid, scores=soft)
        task = Task(
            train_rows,
            val_rows,
            images,
            val_images or images,
            out,
            default_workers() if workers is None else workers,
            device.value,
            resume,
            overwrite,
            tensorboard,
        )
        carry_out(lambda: train(task, settings, given, progress), out, progress, as_json=as_json)
