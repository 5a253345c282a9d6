"""The commands `bavit segment …`."""

from __future__ import annotations

import typer

from cli.console import ListsCommand
from cli.segment_evaluation import evaluate, predict, sweep
from cli.segment_finetuning import finetune
from cli.segmenting import train

segment = typer.Typer(
    help="Semantic segmentation by a plain ViT whose easy tokens end early (DToP).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

segment.command(cls=ListsCommand)(train)
segment.command(cls=ListsCommand)(finetune)
segment.command("eval", cls=ListsCommand)(evaluate)
segment.command(cls=ListsCommand)(sweep)
segment.command(cls=ListsCommand)(predict)
