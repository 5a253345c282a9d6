"""The command `bavit finetune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, errors_reported
from cli.options import JsonOption, Location, place
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
    TensorBoardOption,
    TrainPicturesOption,
    TrainSplitOption,
    ValOption,
    ValPicturesOption,
    ValSplitOption,
    carry_out,
    given_by,
    numbers,
)

if TYPE_CHECKING:
    from bavit.detect.finetune_settings import FinetuneSettings
    from bavit.training.learner import Task

NEW, MASKS = "A new detector (--detector none)", "Masks of kept patches"


class DetectorRecipeName(StrEnum):
    """Recipes."""

    finetune = "finetune"
    scratch = "scratch"


class SizeName(StrEnum):
    """Published sizes."""

    tiny = "tiny"
    small = "small"
    base = "base"
    small_dwr = "small_dWr"


class MasksName(StrEnum):
    """Where masks come from."""

    bavit = "bavit"
    labels = "labels"
    random = "random"
    none = "none"


def finetune(
    context: typer.Context,
    shards: Annotated[
        Location,
        typer.Argument(
            parser=place, metavar="DATA", help="Folder of a build, a COCO folder, or a COCO annotation file."
        ),
    ],
    out: RunOption = Path("bavit-detector"),
    val: ValOption = None,
    train_split: TrainSplitOption = None,
    val_split: ValSplitOption = None,
    images: TrainPicturesOption = None,
    val_images: ValPicturesOption = None,
    val_limit: Annotated[
        int | None, typer.Option(min=1, help="Validate on the first N images only.", rich_help_panel=DATA)
    ] = None,
    on_error: OnErrorOption = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector",
            "--init",
            metavar="NAME",
            help="A YOLOS: folder, Hugging Face hub id, or .pth of its authors; none: a new one.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    shortest_edge: Annotated[
        int | None, typer.Option(help="Short side of its input from now on.", rich_help_panel=MODEL)
    ] = None,
    longest_edge: Annotated[
        int | None, typer.Option(help="Most pixels of the long side [default: in proportion].", rich_help_panel=MODEL)
    ] = None,
    size_name: Annotated[
        SizeName | None, typer.Option(help="Published size [default: tiny].", rich_help_panel=NEW)
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Dimension of a token.", min=1, rich_help_panel=NEW)] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks.", min=1, rich_help_panel=NEW)] = None,
    heads: Annotated[
        int | None, typer.Option(help="Of attention [default: one for 64 of --dim].", min=1, rich_help_panel=NEW)
    ] = None,
    detection_tokens: Annotated[
        int | None, typer.Option(help="Boxes that are predicted.", min=1, rich_help_panel=NEW)
    ] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch in pixels.", min=1, rich_help_panel=NEW)] = None,
    masks: Annotated[
        MasksName | None,
        typer.Option(
            help="Who says which patches are kept [default: bavit with --bavit, else none].", rich_help_panel=MASKS
        ),
    ] = None,
    bavit: Annotated[
        str | None, typer.Option(metavar="RUN", help="BAViT run, or Hugging Face hub id.", rich_help_panel=MASKS)
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Remove patches of a greater background probability [default: RUN's].", rich_help_panel=MASKS
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="bavit, random: share of patches removed of every image.", rich_help_panel=MASKS),
    ] = None,
    refine_steps: Annotated[
        int | None, typer.Option("--refine", help="bavit: steps of refinement [default: 3].", rich_help_panel=MASKS)
    ] = None,
    prune_after: Annotated[
        int | None, typer.Option(help="Blocks that see all patches [default: 0].", rich_help_panel=MASKS)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Times through the data [default: 10].", rich_help_panel=RECIPE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step, over all ranks [default: 8].", rich_help_panel=RECIPE)
    ] = None,
    recipe: Annotated[
        DetectorRecipeName | None,
        typer.Option(help="[default: scratch with --detector none, else finetune].", rich_help_panel=RECIPE),
    ] = None,
    lr: RateOption = None,
    head_lr: Annotated[
        float | None,
        typer.Option(
            help="Factor of the class head's rate [default: 10 where it is made anew, else 1].", rich_help_panel=RECIPE
        ),
    ] = None,
    weight_decay: DecayOption = None,
    clip: ClipOption = None,
    ema: EmaOption = None,
    auxiliary: Annotated[
        int | None,
        typer.Option(
            help="Blocks before the last whose detection tokens learn, too [default: none; from scratch 1].",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    guides: Annotated[
        bool | None,
        typer.Option(
            "--guides/--no-guides",
            help="Patches learn objects, too, and detection tokens those at their places [default: from scratch].",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    val_every: Annotated[
        int | None, typer.Option(help="Validate after every N epochs [default: 1].", rich_help_panel=RECIPE)
    ] = None,
    seed: SeedOption = None,
    flip: FlipOption = None,
    crop: Annotated[
        float | None, typer.Option(help="Least share of the area of random crops, 1: none.", rich_help_panel=AUGMENT)
    ] = None,
    colour: ColourOption = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Stretch them to one size.", rich_help_panel=AUGMENT)
    ] = None,
    edges: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Short sides, one at random [default: input's].", rich_help_panel=AUGMENT),
    ] = None,
    device: DeviceOption = DeviceName.auto,
    precision: PrecisionOption = None,
    workers: LoadersOption = None,
    resume: ResumeOption = False,
    overwrite: ReplaceOption = False,
    tensorboard: TensorBoardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finetune a YOLOS on the patches that a BAViT keeps, or train one from scratch."""
    with errors_reported(debug=context.obj["debug"], interrupted=RUN_KEPT), StderrProgress() as progress:
        from bavit.environment import require_extra

        require_extra()
        from bavit.detect.finetune import finetune
        from bavit.detect.finetune_settings import FinetuneSettings
        from tokenlabels.errors import ParameterError

        choices: dict[str, Any] = {
            "detector": detector,
            "shortest_edge": shortest_edge,
            "longest_edge": longest_edge,
            "size_name": size_name,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "detection_tokens": detection_tokens,
            "patch": patch,
            "masks": masks,
            "bavit": bavit,
            "threshold": threshold,
            "sparsity": sparsity,
            "refine_steps": refine_steps,
            "prune_after": prune_after,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": recipe,
            "lr": lr,
            "head_lr": head_lr,
            "weight_decay": weight_decay,
            "clip": clip,
            "ema": ema,
            "auxiliary": auxiliary,
            "guides": guides,
            "val_every": val_every,
            "seed": seed,
            "flip": flip,
            "crop": crop,
            "colour": colour,
            "size": numbers("--size", size, "x"),
            "edges": numbers("--edges", edges, ","),
            "precision": precision,
            "on_error": on_error,
        }
        given = given_by(choices, out, "finetune", resume=resume)
        if "detector" not in given:
            raise ParameterError("name a detector with --detector, or train a new one with --detector none.")
        settings = FinetuneSettings.make(**given)
        task = _task(
            settings, shards, val, train_split, val_split, images, val_images, val_limit, workers, progress,
            out=out, device=device.value, resume=resume, overwrite=overwrite, tensorboard=tensorboard,
        )  # fmt: skip
        carry_out(lambda: finetune(task, settings, given, progress), out, progress, as_json=as_json)


def _task(
    settings: FinetuneSettings,
    shards: Location,
    val: Location | None,
    train_split: list[str] | None,
    val_split: list[str] | None,
    images: Location | None,
    val_images: Location | None,
    val_limit: int | None,
    workers: int | None,
    progress: StderrProgress,
    **rest: Any,
) -> Task:
    from bavit.detect.ground_truth import open_detection_set
    from bavit.device import default_workers
    from bavit.splits import training_splits, validation_splits
    from bavit.training.learner import Task

    progress.stage("reading objects")
    train_set = open_detection_set(
        shards, splits=train_split, images=images, choose=training_splits, on_error=settings.on_error,
        progress=progress,
    )  # fmt: skip
    val_set = open_detection_set(
        val or shards, splits=val_split, images=val_images or images, limit=val_limit, on_error=settings.on_error,
        choose=lambda found, named: validation_splits(found, named, own=val is not None), progress=progress,
    )  # fmt: skip
    return Task(
        train=train_set.rows,
        val=val_set.rows,
        images=train_set.images,
        val_images=val_set.images,
        workers=default_workers() if workers is None else workers,
        **rest,
    )
