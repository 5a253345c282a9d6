"""Sweeps and evaluations of segmenters: mIoU against what it costs, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from bavit.report.charts import Axis, Level, Series, chart, legend
from bavit.report.results import Results, SegmentPoint, SegmentResult
from bavit.report.section import NONE, Section, number, points, share
from tokenlabels.report.markup import Column, Row, card, details, esc, name, table

_MOST_LINES = 7
_MIOU = Axis("mIoU, points", 100, span=1)
_GMAC = Axis("GMAC of an image", 1e-9, " GMAC")
_TIMES = Axis("times as fast as unpruned, windows in batches", 1, "x")


def section(results: Results) -> Section:
    """mIoU against MACs and speed; empty without segmenters."""
    found = results.segmentations
    if not found:
        return Section("segmentation", "Segmentation", "")
    families = _families(found)
    shown = dict(list(families.items())[:_MOST_LINES])
    by_macs, by_speed, levels = [], [], []
    for colour, (title, rows) in enumerate(shown.items()):
        ordered = sorted(rows, key=lambda row: (row.p0, row.keep_per_class))
        notes = [_rule(row) for row in ordered]
        by_macs.append(Series(title, [(row.macs, row.miou) for row in ordered], colour, "solid", notes))
        timed = [row for row in ordered if row.speedup is not None]
        if timed:
            places = [(row.speedup or 0.0, row.miou) for row in timed]
            by_speed.append(Series(title, places, colour, "solid", [_rule(row) for row in timed]))
    for place, each in enumerate(found):
        dense = next((row for row in each.rows if row.dense), None)
        if dense is not None:
            colour = next((i for i, title in enumerate(shown) if title.startswith(each.name)), place)
            levels.append(Level(f"{each.name}, unpruned: {points(dense.miou)}", dense.miou, colour, points(dense.miou)))
            by_macs.append(
                Series(f"{each.name}, unpruned", [(dense.macs, dense.miou)], colour, "solid", ["no early exit"])
            )
    drawings = (
        f"<div><h4>multiply-accumulates</h4>{chart(by_macs, _GMAC, _MIOU, title='mIoU by MACs', levels=levels)}</div>"
    )
    if by_speed:
        drawn = chart(by_speed, _TIMES, _MIOU, title="mIoU by speed-up", levels=levels)
        drawings += f"<div><h4>speed</h4>{drawn}</div>"
    keys = legend([(title, colour, "solid") for colour, title in enumerate(shown)])
    many = f" The first {len(shown)} of {len(families)} lines are drawn." if len(families) > len(shown) else ""
    lead = f"Tokens that are sure of their class end early. One line for each run, its marks are thresholds p0.{many}"
    content = card("mIoU against cost", lead, f'<div class="pair">{drawings}</div>{keys}{_numbers(found)}', wide=True)
    return Section("segmentation", "Segmentation", content)


def _families(found: Sequence[SegmentResult]) -> dict[str, list[SegmentPoint]]:
    """Rows that make one line: those of a sweep by method and places, evaluations by their name without its p0."""
    families: dict[str, list[SegmentPoint]] = {}
    for each in found:
        methods = {(row.method, tuple(row.exit_after)) for row in each.rows if not row.dense}
        for row in each.rows:
            if row.dense:
                continue
            title = each.name if each.swept else _stem(each.name, row.p0)
            if len(methods) > 1:
                places = " and ".join(map(str, row.exit_after)) or "no block"
                title += f": {row.method} after {places}"
            families.setdefault(title, []).append(row)
    return families


def _stem(title: str, p0: float) -> str:
    for form in (f"{p0:g}", f"{p0:.2f}"):
        stem = title.removesuffix(form).rstrip("-_ ")
        if title.endswith(form) and stem:
            return stem
    return title


def _rule(row: SegmentPoint) -> str:
    return f"p0 {row.p0:g}, {row.method}"


def _numbers(found: Sequence[SegmentResult]) -> str:
    titles = ("p0", "mIoU", "pixels right", "GMAC", "MACs saved", "windows/s", "unpruned", "speed-up")
    rows: list[Row] = [
        [
            name(each.name), "unpruned" if row.dense else esc(row.method),
            " ".join(map(str, row.exit_after)) or NONE, f"{row.p0:g}", points(row.miou), points(row.pixel_accuracy),
            f"{row.macs / 1e9:.3f}", share(row.macs_reduction), number(row.throughput, ",.3g"),
            number(row.throughput_dense, ",.3g"), number(row.speedup, ".2f", "x"),
        ]
        for each in found for row in each.rows
    ]  # fmt: skip
    columns = [Column("run", numeric=False), Column("goes on", numeric=False), Column("exits", numeric=False)]
    return details(f"All {len(rows)} rows as numbers", table("Segmenters", [*columns, *map(Column, titles)], rows))
