"""What the commands that train share: options, the words they take, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import StderrProgress, print_json, print_line, print_table, say
from cli.options import PLACE, Location, OnErrorName, place

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.rows import Rows
    from tokenlabels.reader import Build

DATA, MODEL, RECIPE, AUGMENT, MACHINE, STORE = (
    "Data",
    "Model",
    "Recipe",
    "Changes of training pictures",
    "Machine",
    "What is written",
)

RUN_KEPT = "with --resume the same command goes on from the last checkpoint, where there is one"
NOTHING_KEPT = "this command had nothing to keep, run it again"


class PrecisionName(StrEnum):
    """Precisions."""

    auto = "auto"
    full = "32"
    bf16 = "bf16"
    fp16 = "fp16"


class DeviceName(StrEnum):
    """Devices."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or a Hugging Face hub id.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images at a time.", rich_help_panel=MACHINE)]
PlainPrecision = Annotated[PrecisionName, typer.Option(help="Of the arithmetic.", rich_help_panel=MACHINE)]
ShardsArgument = Annotated[
    Location, typer.Argument(parser=place, metavar="SHARDS", help="Folder of a build (tokenlabels build).")
]
PicturesOption = Annotated[
    Location | None,
    typer.Option("--images", **PLACE, help="Folder of the images [default: those embedded in the shards]."),
]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where the model runs.", rich_help_panel=MACHINE)]
PrecisionOption = Annotated[
    PrecisionName | None,
    typer.Option(help="Of the arithmetic; auto: bf16 where the hardware has it.", rich_help_panel=MACHINE),
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=MACHINE)]
LoadersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes that decode images [default: by cores].", rich_help_panel=MACHINE),
]
RunOption = Annotated[Path, typer.Option(help="Folder of the run.", rich_help_panel=STORE)]
ValOption = Annotated[
    Location | None, typer.Option(**PLACE, help="Another build to validate on [default: SHARDS].", rich_help_panel=DATA)
]
TrainSplitOption = Annotated[
    list[str] | None,
    typer.Option(help="Split to train on, repeatable [default: those named train*].", rich_help_panel=DATA),
]
ValSplitOption = Annotated[
    list[str] | None,
    typer.Option(help="Split to validate on, repeatable [default: those named val*].", rich_help_panel=DATA),
]
TrainPicturesOption = Annotated[
    Location | None,
    typer.Option(
        "--images", **PLACE, help="Folder of the images [default: those embedded in the shards].", rich_help_panel=DATA
    ),
]
ValPicturesOption = Annotated[
    Location | None,
    typer.Option(**PLACE, help="Folder of the validation images [default: --images].", rich_help_panel=DATA),
]
OnErrorOption = Annotated[
    OnErrorName | None,
    typer.Option(help="An image that cannot be read: stop, or leave out and count.", rich_help_panel=DATA),
]
RateOption = Annotated[float | None, typer.Option(help="Learning rate [default: recipe's].", rich_help_panel=RECIPE)]
DecayOption = Annotated[float | None, typer.Option(help="Weight decay [default: recipe's].", rich_help_panel=RECIPE)]
ClipOption = Annotated[float | None, typer.Option(help="Largest norm of the gradient, 0: any.", rich_help_panel=RECIPE)]
EmaOption = Annotated[
    float | None, typer.Option(help="Decay of the moving average of weights, 0: none.", rich_help_panel=RECIPE)
]
SeedOption = Annotated[int | None, typer.Option(help="Of everything random [default: 0].", rich_help_panel=RECIPE)]
FlipOption = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Mirror every second one.", rich_help_panel=AUGMENT)
]
ColourOption = Annotated[
    float | None, typer.Option(help="Strength of changes of colour, 0: none.", rich_help_panel=AUGMENT)
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=STORE)]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Delete the run in --out.", rich_help_panel=STORE)]
TensorBoardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also write TensorBoard events.", rich_help_panel=STORE)
]


def given_by(choices: Mapping[str, Any], out: Path, command: str, *, resume: bool) -> dict[str, Any]:
    """What a person chose, words as text; with `resume` on top of what was chosen for the run in `out`.

    Raises:
        TokenLabelsError: there is no run of that command to resume.
    """
    from bavit.training.run_folder import read_run

    given = {
        name: value.value if isinstance(value, Enum) else value for name, value in choices.items() if value is not None
    }
    return read_run(out, command)["given"] | given if resume else given


def numbers(option: str, text: str | None, between: str) -> list[int] | None:
    """The whole numbers of an option, or None where it is not given.

    Raises:
        ParameterError: it holds anything else.
    """
    from tokenlabels.errors import ParameterError

    try:
        return None if text is None else [int(part) for part in text.split(between)]
    except ValueError:
        raise ParameterError(f"{option} {text}: give whole numbers with {between!r} between them.") from None


def rows_of(
    build: Build,
    val: Build | None,
    train_split: list[str] | None,
    val_split: list[str] | None,
    *,
    grid: str | None = None,
    scores: bool = False,
) -> tuple[Rows, Rows]:
    """The rows to train on, with their scores where these are wanted, and those to validate on.

    Raises:
        ParameterError: no such grid or split.
        TokenLabelsError: shards are missing or damaged.
    """
    from bavit.rows import read_rows
    from bavit.splits import training_splits, validation_splits

    other = val or build
    return (
        read_rows(build, grid=grid, splits=training_splits(build, train_split), scores=scores),
        read_rows(other, grid=grid, splits=validation_splits(other, val_split, own=val is not None), scores=False),
    )


def carry_out(training: Callable[[], dict[str, float]], out: Path, progress: StderrProgress, *, as_json: bool) -> None:
    """Train, and print the figures of the last epoch; exit with 128 and the number of the signal that came."""
    from bavit.device import is_first_rank
    from bavit.training.interruption import Interrupted

    try:
        found = training()
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


def _table(found: dict[str, float]) -> Table:
    from rich.table import Table

    table = Table("after the last epoch", "")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    return table
