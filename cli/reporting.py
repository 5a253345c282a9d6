"""The command `bavit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line
from cli.options import JsonOption

_NOTHING = "nothing was written"


def report(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders or files of results: sweeps, training runs, saved pruned detectors, evaluations, exported "
            "files, JSON of benchmarks; or folders of such.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page [default: names of the runs].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put any number of results on one page: curves with bounds, Table 2 beside ours, pictures, costs."""
    with errors_reported(debug=context.obj["debug"], interrupted=_NOTHING), StderrProgress() as progress:
        from bavit.report.finding import find
        from bavit.report.page import as_json as told
        from bavit.report.page import check_page, default_title, write_results_page
        from bavit.report.pictures import samples

        check_page(out)
        results = find(runs, progress)
        shown = samples(results.pictures, progress)
        heading = default_title(results) if title is None else title
        write_results_page(results, out, title=heading, samples=shown)
        progress.stop()
        if as_json:
            print_json(told(results, heading) | {"out": str(out)})
            return
        print_line(f"written: {out}, {len(results)} results, {len(shown)} pictures")
