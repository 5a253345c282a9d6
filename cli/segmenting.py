"""The command `bavit segment train`, and what it shares with `bavit segment finetune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.options import JsonOption, Location
from cli.running import (
    AUGMENT,
    DATA,
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
    numbers,
    rows_of,
)

if TYPE_CHECKING:
    from bavit.rows import Rows
    from bavit.segment.classes import ClassTable

EXIT = "Early exit"


class HeadOfName(StrEnum):
    """Heads."""

    fcn = "fcn"
    atm = "atm"


class MethodName(StrEnum):
    """What goes on of tokens that end."""

    top_k = "top-k"
    remove = "remove"
    average = "average"
    average_top_k = "average-top-k"
    proportion = "proportion"


class ReductionName(StrEnum):
    """Baselines."""

    none = "none"
    conv = "conv"
    pool = "pool"
    nearest = "nearest"


class SegmentRecipeName(StrEnum):
    """Recipes."""

    paper = "paper"
    finetune = "finetune"
    scratch = "scratch"


class ScheduleName(StrEnum):
    """Schedules."""

    poly = "poly"
    cosine = "cosine"
    step = "step"


CardOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="CARD",
        help="Learn the classes of a data card, such as ade20k, pascal-context, coco-stuff [default: the build's].",
        rich_help_panel=DATA,
    ),
]
KeepOption = Annotated[
    int | None,
    typer.Option(
        help="Most confident tokens of each class present that go on [default: 5, or RUN's].", rich_help_panel=EXIT
    ),
]
MethodOption = Annotated[
    MethodName | None,
    typer.Option(help="What goes on of tokens that end [default: top-k, or RUN's].", rich_help_panel=EXIT),
]
ProportionOption = Annotated[
    float | None,
    typer.Option(
        help="--method proportion: share of tokens that ends at each place [default: 0.35, or RUN's].",
        rich_help_panel=EXIT,
    ),
]
EpochsOption = Annotated[int | None, typer.Option(help="Times through the data [default: 40].", rich_help_panel=RECIPE)]
StepOption = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images of a step, over all ranks [default: 8].", rich_help_panel=RECIPE),
]
ScheduleOption = Annotated[
    ScheduleName | None, typer.Option(help="Of the learning rate [default: recipe's].", rich_help_panel=RECIPE)
]
HeadRateOption = Annotated[
    float | None, typer.Option(help="Factor of the heads' learning rate [default: recipe's].", rich_help_panel=RECIPE)
]
DropOption = Annotated[
    float | None,
    typer.Option(help="Share of images that skip the last block, earlier ones less [default: 0.1].",
                 rich_help_panel=RECIPE),
]  # fmt: skip
EveryOption = Annotated[
    int | None, typer.Option(help="Validate after every N epochs [default: 1].", rich_help_panel=RECIPE)
]
ScaleOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--scale-range",
        metavar="LOW HIGH",
        help="Short side of pictures, as a share of the crop's [default: 0.5 2].",
        rich_help_panel=AUGMENT,
    ),
]


def train(
    context: typer.Context,
    shards: ShardsArgument,
    out: RunOption = Path("bavit-segmenter"),
    val: ValOption = None,
    train_split: TrainSplitOption = None,
    val_split: ValSplitOption = None,
    images: TrainPicturesOption = None,
    val_images: ValPicturesOption = None,
    classes: CardOption = None,
    on_error: OnErrorOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="A plain ViT of timm [default: vit_tiny_patch16_224].", rich_help_panel=MODEL),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="imagenet (timm's weights), none, or a run or file of weights [default: imagenet].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Dimension of a token.", rich_help_panel=MODEL)] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks.", rich_help_panel=MODEL)] = None,
    heads: Annotated[int | None, typer.Option(help="Of attention.", rich_help_panel=MODEL)] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch in pixels.", rich_help_panel=MODEL)] = None,
    head: Annotated[
        HeadOfName | None,
        typer.Option(help="fcn (SETR-naive), or atm (SegViT) [default: fcn].", rich_help_panel=MODEL),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Size of the input [default: 512, without weights to start from 256].",
            rich_help_panel=MODEL,
        ),
    ] = None,
    downsample: Annotated[
        ReductionName | None,
        typer.Option(help="Instead of early exit, halve the grid at its first place.", rich_help_panel=MODEL),
    ] = None,
    exit_after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N...",
            help="Blocks after which tokens may end [default: 6 8 of 12, 8 16 of 24, else half and two thirds].",
            rich_help_panel=EXIT,
        ),
    ] = None,
    p0: Annotated[
        float | None,
        typer.Option(
            help="Tokens at least so sure of their class end, in training, too [default: none in training, 0.95 "
            "after it].",
            rich_help_panel=EXIT,
        ),
    ] = None,
    keep_per_class: KeepOption = None,
    method: MethodOption = None,
    proportion: ProportionOption = None,
    epochs: EpochsOption = None,
    batch_size: StepOption = None,
    recipe: Annotated[
        SegmentRecipeName | None,
        typer.Option(help="[default: scratch with --init none, else paper].", rich_help_panel=RECIPE),
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
    """Train a segmenter on the masks of a build; with --p0, tokens end early while it is trained (Retrain)."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        choices: dict[str, Any] = {
            "classes": classes,
            "on_error": on_error,
            "backbone": backbone,
            "init": init,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "patch": patch,
            "head": head,
            "crop": numbers("--crop", crop, "x"),
            "downsample": downsample,
            "exit_after": numbers("--exit-after", ",".join(exit_after) if exit_after else None, ","),
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
            "segment train", choices, shards, val, train_split, val_split, images, val_images, progress,
            out=out, device=device.value, workers=workers, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
            as_json=as_json,
        )  # fmt: skip


def carry_out_segmenting(
    command: str,
    choices: dict[str, Any],
    shards: Location,
    val: Location | None,
    train_split: list[str] | None,
    val_split: list[str] | None,
    images: Location | None,
    val_images: Location | None,
    progress: StderrProgress,
    *,
    out: Path,
    workers: int | None,
    resume: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Train or finetune as a person chose, and tell the figures; what is not told here is the option of that name.

    Args:
        command: of bavit, as `run.json` has it.
        choices: of `SegmentSettings.make`, None where nothing was said.
        progress: told about every picture and epoch.
        rest: other attributes of `Task`.
    """
    from bavit.environment import require_extra

    require_extra()
    from bavit.device import default_workers
    from bavit.segment.settings import SegmentSettings
    from bavit.segment.train import train
    from bavit.training.learner import Task

    given = given_by(choices, out, command, resume=resume)
    settings = SegmentSettings.make(**given)
    progress.stage("reading shards")
    rows, tables = _masked(shards, val, train_split, val_split, settings.classes, progress)
    task = Task(
        train=rows[0],
        val=rows[1],
        images=images,
        val_images=val_images or images,
        out=out,
        workers=default_workers() if workers is None else workers,
        resume=resume,
        **rest,
    )
    carry_out(lambda: train(task, tables, settings, given, progress), out, progress, as_json=as_json)


def _masked(
    shards: Location,
    val: Location | None,
    train_split: list[str] | None,
    val_split: list[str] | None,
    card: str | None,
    progress: StderrProgress,
) -> tuple[tuple[Rows, Rows], tuple[ClassTable, ClassTable]]:
    """Rows with masks to train on and to validate on, and what these masks mean."""
    from bavit.segment.classes import class_table
    from bavit.segment.masks import with_masks
    from tokenlabels.reader import open_build

    build = open_build(shards)
    other = open_build(val) if val else None
    learned, judged = rows_of(build, other, train_split, val_split)
    tables = class_table(build, learned, card), class_table(other or build, judged, card)
    return (with_masks(learned, progress.note), with_masks(judged, progress.note)), tables
