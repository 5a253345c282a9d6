"""The command `tokenlabels sample`: generated data sets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line
from cli.options import JsonOption

if TYPE_CHECKING:
    from tokenlabels.sample import Scenes
    from tokenlabels.sample_folder import SampleSummary


def sample(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    images: Annotated[int, typer.Option(help="How many images.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another data set.")] = 0,
    simple: Annotated[
        bool,
        typer.Option(
            "--simple",
            help="One to three large shapes an image: a set on which a small detector learns in minutes.",
        ),
    ] = False,
    semantic: Annotated[
        bool,
        typer.Option(
            "--semantic",
            help="Small images whose every pixel has one of 13 classes, in the layout of VOC's masks in OUT itself.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the sample data set: COCO layout in OUT, VOC layout in OUT/VOCdevkit/VOC2012."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        from tokenlabels.errors import ParameterError

        if simple and semantic:
            raise ParameterError("--simple and --semantic are two kinds of sample: choose one.")
        progress.stage("drawing images", images)
        if semantic:
            from tokenlabels.sample_semantic import write_semantic_sample

            made = write_semantic_sample(out, images=images, seed=seed, progress=progress.advance)
        else:
            from tokenlabels.sample import write_sample

            scenes: Scenes = "simple" if simple else "photo"
            made = write_sample(out, images=images, seed=seed, scenes=scenes, progress=progress.advance)
        progress.stop()
        _report(out, made, semantic=semantic, as_json=as_json)


def _report(out: Path, made: SampleSummary, *, semantic: bool, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "images": made.images, "annotations": made.annotations, "splits": made.splits})
        return
    command = ["tokenlabels", "build", "semantic" if semantic else "coco", "--root", str(out)]
    if semantic:
        command += ["--embed-images", "--embed-masks"]
    print_line(f"{out}: {made.images} images, {made.annotations} {'shapes' if semantic else 'annotations'}.")
    print_line(f"next: {shlex.join(command)}")
