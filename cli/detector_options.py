"""Options of the commands that train a detector, alone or together with a BAViT, and what they are trained on."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress
from cli.options import Location, place
from cli.running import AUGMENT, DATA, MODEL, RECIPE

if TYPE_CHECKING:
    from bavit.detect.finetune_settings import FinetuneSettings
    from bavit.training.learner import Task
    from tokenlabels.grid import PatchGrid

NEW, MASKS, TEACHER = "A new detector (--detector none)", "Masks of kept patches", "Distillation"


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


DataArgument = Annotated[
    Location,
    typer.Argument(parser=place, metavar="DATA", help="Folder of a build, a COCO folder, or a COCO annotation file."),
]
ValLimitOption = Annotated[
    int | None, typer.Option(min=1, help="Validate on the first N images only.", rich_help_panel=DATA)
]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        "--detector",
        "--init",
        metavar="NAME",
        help="A YOLOS: folder, Hugging Face hub id, or .pth of its authors; none: a new one.",
        rich_help_panel=MODEL,
    ),
]
ShortestEdgeOption = Annotated[
    int | None, typer.Option(help="Short side of its input from now on.", rich_help_panel=MODEL)
]
LongestEdgeOption = Annotated[
    int | None, typer.Option(help="Most pixels of the long side [default: in proportion].", rich_help_panel=MODEL)
]
SizeNameOption = Annotated[SizeName | None, typer.Option(help="Published size [default: tiny].", rich_help_panel=NEW)]
DimOption = Annotated[int | None, typer.Option(help="Dimension of a token.", min=1, rich_help_panel=NEW)]
DepthOption = Annotated[int | None, typer.Option(help="Blocks.", min=1, rich_help_panel=NEW)]
HeadsOption = Annotated[
    int | None, typer.Option(help="Of attention [default: one for 64 of --dim].", min=1, rich_help_panel=NEW)
]
DetectionTokensOption = Annotated[
    int | None, typer.Option(help="Boxes that are predicted.", min=1, rich_help_panel=NEW)
]
PatchOption = Annotated[int | None, typer.Option(help="Side of a patch in pixels.", min=1, rich_help_panel=NEW)]
BavitOption = Annotated[
    str | None, typer.Option(metavar="RUN", help="BAViT run, or Hugging Face hub id.", rich_help_panel=MASKS)
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Remove patches of a greater background probability [default: RUN's].", rich_help_panel=MASKS),
]
RefineOption = Annotated[
    int | None,
    typer.Option("--refine", help="bavit: steps of refinement [default: 3].", rich_help_panel=MASKS),
]
PruneAfterOption = Annotated[
    int | None, typer.Option(help="Blocks that see all patches [default: 0].", rich_help_panel=MASKS)
]
TeacherOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A YOLOS that sees all patches and is learned from.", rich_help_panel=TEACHER),
]
DistilOption = Annotated[
    float | None, typer.Option(help="Weight of what is learned from it [default: 1].", rich_help_panel=TEACHER)
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--distil-temperature", help="Of its classes [default: 1].", rich_help_panel=TEACHER),
]
EpochsOption = Annotated[int | None, typer.Option(help="Times through the data [default: 10].", rich_help_panel=RECIPE)]
StepOption = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images of a step, over all ranks [default: 8].", rich_help_panel=RECIPE),
]
RecipeOption = Annotated[
    DetectorRecipeName | None,
    typer.Option(help="[default: scratch with --detector none, else finetune].", rich_help_panel=RECIPE),
]
HeadRateOption = Annotated[
    float | None,
    typer.Option(
        help="Factor of the class head's rate [default: 10 where it is made anew, else 1].", rich_help_panel=RECIPE
    ),
]
AuxiliaryOption = Annotated[
    int | None,
    typer.Option(
        help="Blocks before the last whose detection tokens learn, too [default: none; from scratch 1].",
        rich_help_panel=RECIPE,
    ),
]
GuidesOption = Annotated[
    bool | None,
    typer.Option(
        "--guides/--no-guides",
        help="Patches learn objects, too, and detection tokens those at their places [default: from scratch].",
        rich_help_panel=RECIPE,
    ),
]
ValEveryOption = Annotated[
    int | None, typer.Option(help="Validate after every N epochs [default: 1].", rich_help_panel=RECIPE)
]
CropOption = Annotated[
    float | None, typer.Option(help="Least share of the area of random crops, 1: none.", rich_help_panel=AUGMENT)
]
StretchOption = Annotated[
    str | None, typer.Option(metavar="HxW", help="Stretch them to one size.", rich_help_panel=AUGMENT)
]
EdgesOption = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Short sides, one at random [default: input's].", rich_help_panel=AUGMENT),
]


def detection_task(
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
    grid: PatchGrid | None = None,
    **rest: Any,
) -> Task:
    """The images to train and to validate on.

    Args:
        settings: of the run.
        shards: where they are, as the options have it, and so on.
        val: another place to validate on.
        train_split: names of splits.
        val_split: likewise.
        images: folder of the pictures.
        val_images: likewise.
        val_limit: validate on so many.
        workers: processes that decode pictures.
        progress: told about stages.
        grid: of the labels, see `open_detection_set`.
        rest: of `Task`.

    Raises:
        TokenLabelsError: see `open_detection_set`.
    """
    from bavit.detect.ground_truth import open_detection_set
    from bavit.device import default_workers
    from bavit.splits import training_splits, validation_splits
    from bavit.training.learner import Task

    progress.stage("reading objects")
    train_set = open_detection_set(
        shards, grid=grid, splits=train_split, images=images, choose=training_splits, on_error=settings.on_error,
        progress=progress,
    )  # fmt: skip
    val_set = open_detection_set(
        val or shards, grid=grid, splits=val_split, images=val_images or images, limit=val_limit,
        choose=lambda found, named: validation_splits(found, named, own=val is not None), on_error=settings.on_error,
        progress=progress,
    )  # fmt: skip
    return Task(
        train=train_set.rows,
        val=val_set.rows,
        images=train_set.images,
        val_images=val_set.images,
        workers=default_workers() if workers is None else workers,
        **rest,
    )
