"""The BAViT paper's Table 2 and what its abstract prints, side by side with ours, as HTML."""

from __future__ import annotations

from collections.abc import Iterable

from bavit.report.results import Results
from bavit.report.section import NONE, Section, change, points, share
from bavit.report.summary import PAPER, PRINTED, TableRow, fastest, headline, table_two
from tokenlabels.report.markup import Column, Row, card, count, decimal, esc, name, table

_GROUPS = (
    ("", ("run", "patches removed")),
    ("the paper's arithmetic", ("tokens left", "with BAViT's", "saved")),
    ("its arithmetic on ours", ("detector", "BAViT", "tokens left", "both", "saved")),
    ("measured here", ("saved, all tokens", "MACs saved", "speed-up", "AP", "to dense")),
)
_MOST_ROWS = 200


def section(results: Results) -> Section:
    """Table 2 beside ours; empty without sweeps."""
    if not results.sweeps:
        return Section("table-2", "Table 2", "")
    rows = table_two(results)
    first = rows[0].paper
    lead = (
        f"Tokens as the BAViT paper ({PAPER}) counts them: patch tokens, once for each block they pass. It takes "
        f"YOLOS-tiny at 512 x 512 ({count(first.tokens_detector)} tokens) behind a BAViT of 2 blocks "
        f"({count(first.tokens_bavit)}). <strong>No number below is copied from its Table 2, whose rows could not be "
        "obtained</strong>: the first group of columns is its arithmetic at the sparsity of the row, the second that "
        "arithmetic on the models of the run, the third what was measured. “All tokens” counts CLS and detection "
        "tokens, too, which the paper leaves out and no pruning removes; multiply-accumulates (MACs) have everything."
    )
    shown = rows[:_MOST_ROWS]
    more = (
        f"<p class='note'>The first {count(len(shown))} of {count(len(rows))} rows.</p>"
        if len(rows) > len(shown)
        else ""
    )
    content = card("Tokens, Table 2", lead, _grouped(map(_cells, shown)) + more, wide=True)
    return Section("table-2", "Table 2", content + _printed(results))


def _cells(row: TableRow) -> list[str]:
    paper = row.paper
    threshold = "" if row.threshold is None else f" <small>at {row.threshold:g}</small>"
    run = "<small>arithmetic alone</small>" if row.run is None else name(row.run) + threshold
    ours = [row.tokens_detector, row.tokens_bavit, row.tokens_pruned, row.tokens_total]
    return [
        run,
        share(paper.sparsity),
        count(paper.tokens_pruned),
        count(paper.tokens_total),
        share(paper.reduction),
        *(NONE if value is None else decimal(value) for value in ours),
        share(row.reduction),
        share(row.reduction_true),
        share(row.macs_saved),
        NONE if row.speedup is None else f"{row.speedup:.2f}x",
        "<small>untrained</small>" if row.random_weights else points(row.ap),
        change(row.ap_change),
    ]


def _grouped(rows: Iterable[list[str]]) -> str:
    """A table whose columns stand in groups."""
    spans = "".join(f'<colgroup span="{len(titles)}"></colgroup>' for _, titles in _GROUPS)
    above = "".join(
        f'<th scope="colgroup" colspan="{len(titles)}">{esc(title)}</th>'
        if title
        else f'<td colspan="{len(titles)}"></td>'
        for title, titles in _GROUPS
    )
    starts = _starts()
    heads = "".join(
        f'<th scope="col" class="{_kind(place, starts)}">{esc(title)}</th>'
        for place, title in enumerate(title for _, titles in _GROUPS for title in titles)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<{tag} class="{_kind(place, starts)}">{text}</{tag.split()[0]}>'
            for place, text in enumerate(cells)
            for tag in ("td" if place else "th scope=row",)
        )
        + "</tr>\n"
        for cells in rows
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table 2 side by side">'
        f'<table class="grouped"><caption class=quiet>Table 2 side by side</caption>{spans}'
        f'<thead><tr class="groups">{above}</tr><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _starts() -> set[int]:
    """Columns with which a group begins."""
    found, place = set(), 0
    for _, titles in _GROUPS:
        found.add(place)
        place += len(titles)
    return found - {0}


def _kind(place: int, starts: set[int]) -> str:
    return ("number" if place else "named") + (" starts" if place in starts else "")


def _printed(results: Results) -> str:
    """What the abstract prints, and the nearest of ours; they differ in data, detector, training and machine."""
    best, quick = headline(results), fastest(results)
    lost = (
        NONE
        if best is None
        else (f"{change(-best.lost)} points where {share(best.row.sparsity)} is removed, {name(best.run)}")
    )
    ours = {
        0: NONE
        if quick is None
        else f"{100 * (quick[1].speedup - 1):+.0f}% where {share(quick[1].sparsity)} is removed, {name(quick[0])}",
        1: lost,
        2: ", ".join(f"{name(each.name)} {share(each.evaluation.accuracy)}" for each in results.evaluations) or NONE,
    }
    rows: list[Row] = [[esc(what), esc(value), ours.get(place, NONE)] for place, (what, value) in enumerate(PRINTED)]
    lead = (
        "Quoted from the abstract, arxiv.org/abs/2410.09324, beside the nearest figure of this page. Data, detector, "
        "training and machine differ, so these are landmarks and no comparison."
    )
    columns = [
        Column("figure", numeric=False),
        Column("printed in the abstract", numeric=False),
        Column("here", numeric=False),
    ]
    return card("What the paper prints", lead, table("What the paper's abstract prints", columns, rows), wide=True)
