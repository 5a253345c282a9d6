"""The command `tokenlabels stats`: the figures of builds as tables for people, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import StderrProgress, errors_reported, print_json, print_line, print_table, printable
from cli.options import PLACE, Location, place

if TYPE_CHECKING:
    from rich.table import Table

    from tokenlabels.figures import Agreement, Comparison, Distribution, Figures, ObjectFigures, Position, TauCurve

_LISTED = 20
_BAR = 30
_MAP_SIDE = 8
_TAU_STEP = 10


def stats(
    context: typer.Context,
    out: Annotated[
        list[Location], typer.Argument(parser=place, metavar="OUT...", help="Folders of builds; several are compared.")
    ],
    grid: Annotated[str | None, typer.Option(help="Grid name [default: the first].")] = None,
    split: Annotated[str | None, typer.Option(help="Split to count [default: all].")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a report: one file, with samples and a tau slider.")
    ] = None,
    images: Annotated[
        Location | None,
        typer.Option(**PLACE, help="Folder of the images, for the samples of a report that are not embedded."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=200, help="Images that the report shows.")] = 24,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
) -> None:
    """Count what is in a build: foreground by split, category, object size, threshold and position."""
    with errors_reported(debug=context.obj["debug"]), StderrProgress() as progress:
        import msgspec

        from tokenlabels.agreement import build_names, compare
        from tokenlabels.errors import ParameterError
        from tokenlabels.reader import open_build

        if images is not None and html is None:
            raise ParameterError("--images goes with --html: the tables need no pictures.")
        if html is not None:
            from tokenlabels.report import check_places, write_report

            check_places(html, images)
        builds = [open_build(path) for path in out]
        found = compare(builds, grid=grid, split=split, progress=progress)
        if html is not None:
            write_report(
                html,
                builds[0],
                found.builds[0],
                images=images,
                samples=samples,
                split=split,
                comparison=found if len(builds) > 1 else None,
                progress=progress,
            )
        progress.stop()
        if as_json:
            print_json(msgspec.to_builtins(found.builds[0] if len(out) == 1 else found))
        elif len(out) == 1:
            print_figures(found.builds[0])
        else:
            print_comparison(found, build_names(builds))
        if html is not None and not as_json:
            print_line(f"report: {html}")


def print_figures(figures: Figures) -> None:
    """Every table of one build."""
    _print_overview(figures)
    _print_splits(figures)
    _print_distribution("share of foreground per image", figures.fg_share_per_image, shares=True)
    if figures.annotations:
        categories = sorted(figures.by_category, key=lambda each: -each.objects)
        _print_objects("by category, most objects first", categories)
        _print_objects("by size of the object (COCO: 32 and 96 pixels square)", figures.by_size)
        _print_distribution("foreground patches per object", figures.patches_per_object, shares=False)
        _print_lost(figures)
    else:
        _print_majority(figures.by_category)
    if figures.tau_curve is not None:
        _print_taus(figures, figures.tau_curve)
    _print_position(figures.position)


def print_comparison(found: Comparison, names: Sequence[str]) -> None:
    """Several builds side by side, under these names."""
    table = _table("builds", ["", *names])
    for name, values in _overview_rows(found.builds):
        table.add_row(name, *map(_text, values))
    print_table(table)
    if found.agreement is None:
        print_line(f"no agreement of labels: {found.reason}.")
    else:
        _print_agreement(found.agreement)


def _overview_rows(builds: Sequence[Figures]) -> Iterable[tuple[str, list[str]]]:
    """What is said of each build: a name, and a value for each."""
    yield "folder", [each.path for each in builds]
    yield "source", [each.source for each in builds]
    yield "rule", [f"{each.rule}, {'>=' if each.inclusive else '>'} {each.tau:g}" for each in builds]
    yield "grid", [each.grid for each in builds]
    yield "images", [f"{each.images:,}" for each in builds]
    yield "annotations", [f"{each.annotations:,}" for each in builds]
    yield "patches", [f"{each.patches:,}" for each in builds]
    yield "foreground", [f"{each.foreground:,}" for each in builds]
    yield "ignored", [f"{each.ignored:,}" for each in builds]
    yield "share of foreground", [_percent(each.fg_share) for each in builds]
    yield "images without foreground", [f"{each.empty_images:,} ({_percent(each.empty_share)})" for each in builds]
    if any(each.annotations for each in builds):
        lost = [f"{each.lost_objects:,} ({_percent(each.lost_share)})" if each.annotations else "-" for each in builds]
        yield "objects without a patch", lost
    yield (
        "accuracy of the commoner label",
        [f"{_percent(each.baselines.majority)} (always {each.baselines.majority_label})" for each in builds],
    )
    yield "accuracy of position alone", [_percent(each.baselines.position_prior) for each in builds]
    yield (
        "class weights, background and foreground",
        [f"{each.class_weights.background:.4f}, {each.class_weights.foreground:.4f}" for each in builds],
    )


def _print_overview(figures: Figures) -> None:
    table = _table("overview", ["", ""])
    table.show_header = False
    for name, values in _overview_rows([figures]):
        table.add_row(name, *map(_text, values))
    print_table(table)


def _print_splits(figures: Figures) -> None:
    table = _table(
        "by split",
        ["split", "images", "annotations", "patches", "foreground", "ignored", "share of foreground", "empty images"],
    )
    for each in figures.splits:
        counts = (each.images, each.annotations, each.patches, each.foreground, each.ignored)
        table.add_row(
            _text(each.split), *(f"{count:,}" for count in counts), _percent(each.fg_share), f"{each.empty_images:,}"
        )
    print_table(table)


def _print_distribution(title: str, spread: Distribution, *, shares: bool) -> None:
    """Quantiles, and a histogram of bars."""
    if not spread.count:
        return
    form = _percent if shares else "{:,.1f}".format
    table = _table(title, ["mean", "std", *(f"{q:.0%}" for q, _ in spread.quantiles)], left=())
    table.add_row(form(spread.mean), form(spread.std), *(form(value) for _, value in spread.quantiles))
    print_table(table)
    bars = _table("", ["from", "below", "count", ""], left=("",))
    bars.title = None
    edge = "{:.2f}".format if shares else "{:,.0f}".format
    for low, high, count in zip(spread.edges[:-1], spread.edges[1:], spread.counts, strict=True):
        bars.add_row(edge(low), edge(high), f"{count:,}", "█" * round(_BAR * count / max(spread.counts)))
    print_table(bars)


def _print_objects(title: str, figures: Sequence[ObjectFigures]) -> None:
    """The first of them."""
    names = ["", "objects", "images", "patches", "patches per object", "share of patches", "lost", "share lost"]
    table = _table(title, names)
    for each in figures[:_LISTED]:
        table.add_row(
            _text(each.name),
            f"{each.objects:,}",
            f"{each.images:,}",
            f"{each.patches:,}",
            f"{each.patches_mean:,.1f}",
            _percent(each.fg_share),
            f"{each.lost:,}",
            _percent(each.lost_share),
        )
    print_table(table)
    _say_more(len(figures) - _LISTED, "categories")


def _print_majority(figures: Sequence[ObjectFigures]) -> None:
    """Categories of a build without objects."""
    some = sorted((each for each in figures if each.patches), key=lambda each: -each.patches)
    if not some:
        return
    table = _table("by majority category, most patches first", ["category", "patches", "images", "share of patches"])
    for each in some[:_LISTED]:
        table.add_row(_text(each.name), f"{each.patches:,}", f"{each.images:,}", _percent(each.fg_share))
    print_table(table)
    _say_more(len(some) - _LISTED, "categories")


def _print_lost(figures: Figures) -> None:
    """Categories that lose objects."""
    losing = sorted((each for each in figures.by_category if each.lost), key=lambda each: -each.lost)
    if not losing:
        return
    table = _table("objects without a foreground patch, by category", ["category", "lost", "of", "share", "smallest"])
    smallest = {each.category: each for each in reversed(figures.lost_examples)}
    for each in losing[:_LISTED]:
        first = smallest.get(each.name)
        example = f"{first.split} image {first.image_id}, annotation {first.id}, {first.area:,.1f} px" if first else ""
        table.add_row(
            _text(each.name), f"{each.lost:,}", f"{each.objects:,}", _percent(each.lost_share), _text(example)
        )
    print_table(table)
    _say_more(len(losing) - _LISTED, "categories")


def _print_taus(figures: Figures, curve: TauCurve) -> None:
    """Every tenth stop, and the build's own threshold where it is one of the stops."""
    table = _table("share of foreground by tau", ["tau", "foreground", "ignored", "share", ""], left=("",))
    for index, tau in enumerate(curve.tau):
        own = tau == figures.tau
        if index % _TAU_STEP == 0 or own:
            counts = (f"{count[index]:,}" for count in (curve.foreground, curve.ignored))
            bar = "█" * round(_BAR * curve.fg_share[index]) + (" this build" if own else "")
            table.add_row(f"{tau:g}", *counts, _percent(curve.fg_share[index]), bar)
    if figures.tau not in curve.tau:
        own_counts = (f"{count:,}" for count in (figures.foreground, figures.ignored))
        bar = "█" * round(_BAR * figures.fg_share) + " this build"
        table.add_row(f"{figures.tau:g}", *own_counts, _percent(figures.fg_share), bar)
    print_table(table)


def _print_position(position: Position) -> None:
    """The map in at most 8 x 8 fields, in percent."""
    rows, cols = (min(side, _MAP_SIDE) for side in (position.rows, position.cols))
    table = _table(f"foreground by position, %{', scaled' if position.scaled else ''}", [""] * cols, left=())
    table.show_header = False
    for row in range(rows):
        table.add_row(*(_field(position, row, rows, col, cols) for col in range(cols)))
    print_table(table)


def _field(position: Position, row: int, rows: int, col: int, cols: int) -> str:
    """The share in one field of a coarser map, weighted by patches."""
    inside = [
        (position.fg_probability[i][j], position.patches[i][j])
        for i in range(row * position.rows // rows, (row + 1) * position.rows // rows)
        for j in range(col * position.cols // cols, (col + 1) * position.cols // cols)
    ]
    patches = sum(count for _, count in inside)
    return f"{100 * sum(share * count for share, count in inside) / patches:.0f}" if patches else "-"


def _print_agreement(agreement: Agreement) -> None:
    table = _table("agreement of labels (Cohen's kappa)", ["", *agreement.names])
    for name, shares, kappas in zip(agreement.names, agreement.agreement, agreement.kappa, strict=True):
        table.add_row(
            _text(name), *(f"{_percent(share)} ({value:.3f})" for share, value in zip(shares, kappas, strict=True))
        )
    print_table(table)
    print_line(f"over {agreement.patches:,} patches of the {agreement.images:,} images that all of them hold")


def _table(title: str, names: Sequence[str], left: Sequence[str] | None = None) -> Table:
    """A table; numbers to the right, the first column to the left, or those of the names in `left`."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(names):
        is_left = index == 0 if left is None else name in left
        table.add_column(_text(name), justify="left" if is_left else "right", overflow="fold")
    return table


def _say_more(count: int, what: str) -> None:
    if count > 0:
        print_line(f"... {count:,} more {what}: --json lists them all")


def _text(text: str) -> str:
    """Text from data, without markup or control characters."""
    from rich.markup import escape

    return escape(printable(text))


def _percent(value: float) -> str:
    return f"{value:.2%}"
