"""Options that the commands which run a segmenter share."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import PLACE, Location, OnErrorName
from cli.running import DATA, MACHINE
from cli.segmenting import EXIT, MethodName

VIEW, TIMING = "How pictures are shown", "Timing"
SplitsOption = Annotated[
    list[str] | None,
    typer.Option("--split", help="Split, repeatable [default: those named val*, else all].", rich_help_panel=DATA),
]
FolderOption = Annotated[
    Location | None,
    typer.Option(
        "--images", **PLACE, help="Folder of the images [default: those embedded in the shards].", rich_help_panel=DATA
    ),
]
FirstOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N.", rich_help_panel=DATA)]
CardOption = Annotated[
    str | None,
    typer.Option(
        "--classes", metavar="CARD", help="Data card that RUN was trained with, such as ade20k.", rich_help_panel=DATA
    ),
]
SkipOption = Annotated[
    OnErrorName,
    typer.Option(help="An image that cannot be read: stop, or leave out and count.", rich_help_panel=DATA),
]
ProbabilityOption = Annotated[
    float | None,
    typer.Option(help="Tokens at least so sure of their class end; 1: none does [default: RUN's].",
                 rich_help_panel=EXIT),
]  # fmt: skip
PlacesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N...",
        help="Blocks after which tokens may end, of those where RUN has heads [default: all these].",
        rich_help_panel=EXIT,
    ),
]
KeepOption = Annotated[
    int | None,
    typer.Option(help="Most confident tokens of each class present that go on [default: RUN's].", rich_help_panel=EXIT),
]
MethodOption = Annotated[
    MethodName | None, typer.Option(help="What goes on of tokens that end [default: RUN's].", rich_help_panel=EXIT)
]
ProportionOption = Annotated[
    float | None,
    typer.Option(
        help="--method proportion: share of tokens that ends at each place [default: RUN's].", rich_help_panel=EXIT
    ),
]
WholeOption = Annotated[
    bool, typer.Option("--whole", help="One window, as large as the picture.", rich_help_panel=VIEW)
]
NativeOption = Annotated[
    bool,
    typer.Option(
        "--native", help="Keep the size of pictures [default: short side as RUN's crop].", rich_help_panel=VIEW
    ),
]
WindowsOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Windows at a time, of throughput, too.", rich_help_panel=MACHINE)
]
DecodersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Threads that decode images [default: by cores].", rich_help_panel=MACHINE),
]
TimedOption = Annotated[
    int,
    typer.Option("--time-windows", min=1, help="Time this many windows, held in memory.", rich_help_panel=TIMING),
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times through them.", rich_help_panel=TIMING)]
NoTimingOption = Annotated[bool, typer.Option("--no-timing", help="Measure no times.", rich_help_panel=TIMING)]
