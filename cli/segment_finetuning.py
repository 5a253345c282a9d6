"""The command `bavit segment finetune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.options import JsonOption
from cli.running import (
    MODEL,
    RECIPE,
    RUN_KEPT,
    ClipOption,
    ColourOption,
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
    RunArgument,
    RunOption,
    SeedOption,
    ShardsArgument,
    TensorBoardOption,
    TrainPicturesOption,
    TrainSplitOption,
    ValOption,
    ValPicturesOption,
    ValSplitOption,
)
from cli.segmenting import (
    EXIT,
    CardOption,
    DropOption,
    EpochsOption,
    EveryOption,
    HeadRateOption,
    KeepOption,
    MethodOption,
    ProportionOption,
    ScaleOption,
    ScheduleOption,
    SegmentRecipeName,
    StepOption,
    carry_out_segmenting,
)


class TrainedName(StrEnum):
    """What changes in finetuning."""

    all = "all"
    heads = "heads"


def finetune(
    context: typer.Context,
    run: RunArgument,
    shards: ShardsArgument,
    out: RunOption = Path("bavit-finetuned"),
    val: ValOption = None,
    train_split: TrainSplitOption = None,
    val_split: ValSplitOption = None,
    images: TrainPicturesOption = None,
    val_images: ValPicturesOption = None,
    classes: CardOption = None,
    on_error: OnErrorOption = None,
    trained: Annotated[
        TrainedName | None,
        typer.Option("--train", help="What changes, all or only the heads [default: all].", rich_help_panel=MODEL),
    ] = None,
    p0: Annotated[
        float | None,
        typer.Option(
            help="Tokens at least so sure of their class end; 1: none does [default: RUN's].", rich_help_panel=EXIT
        ),
    ] = None,
    keep_per_class: KeepOption = None,
    method: MethodOption = None,
    proportion: ProportionOption = None,
    epochs: EpochsOption = None,
    batch_size: StepOption = None,
    recipe: Annotated[
        SegmentRecipeName | None, typer.Option(help="[default: finetune].", rich_help_panel=RECIPE)
    ] = None,
    lr: RateOption = None,
    head_lr: HeadRateOption = None,
    weight_decay: DecayOption = None,
    schedule: ScheduleOption = None,
    clip: ClipOption = None,
    ema: EmaOption = None,
    drop_path: DropOption = None,
    val_every: EveryOption = None,
    seed: SeedOption = None,
    scale_range: ScaleOption = None,
    flip: FlipOption = None,
    colour: ColourOption = None,
    device: DeviceOption = DeviceName.auto,
    precision: PrecisionOption = None,
    workers: LoadersOption = None,
    resume: ResumeOption = False,
    overwrite: ReplaceOption = False,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finetune a segmenter while its easy tokens end early, wholly or its heads alone."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        choices: dict[str, Any] = {
            "run": run,
            "classes": classes,
            "on_error": on_error,
            "trained": trained,
            "p0": p0,
            "keep_per_class": keep_per_class,
            "method": method,
            "proportion": proportion,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": recipe,
            "lr": lr,
            "head_lr": head_lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "clip": clip,
            "ema": ema,
            "drop_path": drop_path,
            "val_every": val_every,
            "seed": seed,
            "scale": scale_range,
            "flip": flip,
            "colour": colour,
            "precision": precision,
        }
        carry_out_segmenting(
            "segment finetune", choices, shards, val, train_split, val_split, images, val_images, progress,
            out=out, device=device.value, workers=workers, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
            as_json=as_json,
        )  # fmt: skip
