"""The command `bavit`: options and output; every command calls one function of the package."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.calibration import calibrate
from cli.console import GroupedCommand, errors_reported, print_json, print_line, run_app
from cli.detection import detect, sweep
from cli.evaluation import evaluate, predict
from cli.exporting import export
from cli.finetuning import finetune
from cli.joint import joint
from cli.reporting import report
from cli.segment import segment
from cli.training import train
from tokenlabels import __version__

app = typer.Typer(
    help="Background-aware vision transformers, trained on tokenlabels shards.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"bavit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    version: Annotated[  # noqa: ARG001  the callback does it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command()
def info(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show which versions and devices bavit would run on; paste it into a bug report."""
    with errors_reported(debug=context.obj["debug"]):
        from bavit.environment import describe

        found = describe()
        if as_json:
            print_json(found)
        else:
            for name, value in found.items():
                print_line(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


app.command(cls=GroupedCommand)(train)
app.command("eval", cls=GroupedCommand)(evaluate)
app.command(cls=GroupedCommand)(calibrate)
app.command(cls=GroupedCommand)(predict)
app.command(cls=GroupedCommand)(detect)
app.command(cls=GroupedCommand)(sweep)
app.command(cls=GroupedCommand)(finetune)
app.command(cls=GroupedCommand)(export)
app.command(cls=GroupedCommand)(joint)
app.command(cls=GroupedCommand)(report)
app.add_typer(segment, name="segment")


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
