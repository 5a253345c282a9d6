"""Options that several commands share, and the words they take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import ADDRESS, say

if TYPE_CHECKING:
    from tokenlabels.storage import Location as Location
else:
    Location = Path  # what typer is told; `place` makes the value


def place(text: str | Path) -> Location:
    """What a person names: a path, or an address such as `s3://bucket/folder`."""
    if isinstance(text, Path) or "://" not in text:
        if ADDRESS.match(str(text)):
            say(f"error: {text}: an address has two slashes, as in s3://bucket/folder.")
            raise typer.Exit(2)
        return Path(text)
    import logging

    from tokenlabels.errors import ParameterError, TokenLabelsError
    from tokenlabels.storage import located

    logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it logs what it raises, too, with tracebacks
    try:
        return located(text)
    except TokenLabelsError as fault:
        say(f"error: {fault}")
        raise typer.Exit(2 if isinstance(fault, ParameterError) else 1) from None


PLACE: dict[str, Any] = {"parser": place, "metavar": "PATH"}
"""Of options that take addresses, too."""


class SourceName(StrEnum):
    """Sources that can be built."""

    coco = "coco"
    voc = "voc"
    semantic = "semantic"


class StuffName(StrEnum):
    """What stuff of panoptic files is."""

    foreground = "foreground"
    background = "background"


class ResizeName(StrEnum):
    """Resize policies."""

    squash = "squash"
    letterbox = "letterbox"
    shortest_edge = "shortest-edge"
    native = "native"


class RuleChoice(StrEnum):
    """Rules."""

    overlap = "overlap"
    jaccard = "jaccard"
    pixel_ratio = "pixel-ratio"


class PolicyName(StrEnum):
    """What a region does to the patches under it."""

    foreground = "foreground"
    background = "background"
    ignore = "ignore"


class PaddingName(StrEnum):
    """What a patch wholly in padding is."""

    background = "background"
    ignore = "ignore"


class OnErrorName(StrEnum):
    """What to do about error-level findings."""

    raise_ = "raise"
    skip = "skip"


class CheckName(StrEnum):
    """How thoroughly a build checks."""

    fast = "fast"
    full = "full"


class EngineName(StrEnum):
    """Where the work is done."""

    local = "local"
    dask = "dask"


class RasterizerName(StrEnum):
    """Who turns polygons into pixels."""

    kernel = "kernel"
    pycocotools = "pycocotools"


READ, GRID, RULE = "What is read", "Grid", "Rule and foreground"
VALUES, STORE, WHERE = "Values of semantic masks", "What is written", "Where the work is done"

SourceArgument = Annotated[SourceName, typer.Argument(help="Annotation format.")]
BuildArgument = Annotated[Location, typer.Argument(parser=place, metavar="OUT", help="Folder of a build.")]
RootOption = Annotated[
    Location | None,
    typer.Option(
        **PLACE,
        help="Data set folder in an official layout [default: coco ., $COCO_ROOT, ./coco; voc ., $VOC_ROOT, "
        "./VOCdevkit/VOC2012; semantic .].",
        rich_help_panel=READ,
    ),
]
AnnotationsOption = Annotated[
    Location | None,
    typer.Option(
        **PLACE,
        help="A single annotation file instead of --root; coco: or a folder with a JSON file for each image.",
        rich_help_panel=READ,
    ),
]
ImagesOption = Annotated[
    Location | None, typer.Option(**PLACE, help="Image folder [default: ROOT/<split>].", rich_help_panel=READ)
]
MasksOption = Annotated[
    Location | None,
    typer.Option(**PLACE, help="semantic: folder of masks, one for each of --images.", rich_help_panel=READ),
]
CategoriesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Foreground categories, repeatable or a,b,c; of voc and semantic also a FILE that lists all there are, "
        "of semantic also the name of a data card such as ade20k.",
        rich_help_panel=RULE,
    ),
]
IgnoreOption = Annotated[
    list[int] | None,
    typer.Option(help="semantic: void value, repeatable [default: 255].", rich_help_panel=VALUES),
]
BackgroundOption = Annotated[
    list[int] | None,
    typer.Option(help="semantic: background value, repeatable [default: 0].", rich_help_panel=VALUES),
]
ReduceOption = Annotated[
    bool,
    typer.Option(
        "--reduce-zero-label", help="semantic: value 0 is void, categories begin at 1.", rich_help_panel=VALUES
    ),
]
StuffOption = Annotated[
    StuffName | None,
    typer.Option(help="semantic, panoptic: what stuff is [default: background].", rich_help_panel=VALUES),
]
MaskSuffixOption = Annotated[
    str | None, typer.Option(help="semantic: end of mask file names [default: .png].", rich_help_panel=VALUES)
]
SampleOption = Annotated[
    bool, typer.Option("--sample", help="Use a small generated data set, made on the spot.", rich_help_panel=READ)
]
SplitOption = Annotated[
    list[str] | None, typer.Option(help="Split to use, repeatable [default: all].", rich_help_panel=READ)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a build made with other parameters.")]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Only the first N images of each split.", rich_help_panel=READ)
]
GridOption = Annotated[str | None, typer.Option(help="Grid name [default: the first].")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes [default: by cores and file size].", rich_help_panel=WHERE)
]
EngineOption = Annotated[
    EngineName, typer.Option(help="local: processes of this machine; dask: a Dask cluster.", rich_help_panel=WHERE)
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Dask scheduler, tcp://HOST:8786; its workers must see --out and the images [default: start a cluster of "
        "--workers processes here].",
        rich_help_panel=WHERE,
    ),
]
