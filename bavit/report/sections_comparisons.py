"""Comparisons of methods over seeds, as HTML."""

from __future__ import annotations

from bavit.report.charts import Axis, Level, Series, chart, legend
from bavit.report.results import ComparisonResult, Method, Results, Spread
from bavit.report.section import NONE, Section, number
from tokenlabels.report.markup import Column, Row, card, details, esc, name, table

_MOST_LINES = 7
_SHARE = Axis("MACs of the detector, % of dense", 100, "%")
_AP, _AP50 = Axis("AP, points", 100, span=1), Axis("AP50, points", 100, span=1)


def section(results: Results) -> Section:
    """A card for each comparison; empty without any."""
    return Section("methods", "Methods compared", "".join(map(_card, results.comparisons)))


def _card(result: ComparisonResult) -> str:
    shown = result.methods[:_MOST_LINES]
    left = _chart(shown, _AP, "ap", f"AP of {result.name} by MACs")
    right = _chart(shown, _AP50, "ap50", f"AP50 of {result.name} by MACs")
    drawings = f'<div class="pair"><div>{left}</div><div>{right}</div></div>'
    dense = [("with all patches", None, "level")] if any(each.dense for each in shown) else []
    keys = legend([*((each.name, colour, "solid") for colour, each in enumerate(shown)), *dense])  # type: ignore[list-item]
    seeds = f"{result.seeds} seed{'' if result.seeds == 1 else 's'}"
    lead = (
        f"{esc(result.what)}; {seeds}. Bars and ± are the standard deviation over seeds. MACs are those of the "
        "detector alone: BAViT costs the same everywhere."
    )
    content = drawings + keys + _gains(result) + _numbers(result)
    return card(result.name, lead, content, wide=True)


def _chart(methods: list[Method], y: Axis, key: str, title: str) -> str:
    lines, levels = [], []
    for colour, each in enumerate(methods):
        told = [(point, getattr(point, key)) for point in each.points]
        known = [(point, value) for point, value in told if value is not None]
        notes = [f"{point.setting}{f', ± {100 * value.std:.2g}' if value.std else ''}" for point, value in known]
        places = [(point.macs_share.mean, value.mean) for point, value in known]
        lines.append(Series(each.name, places, colour, "solid", notes, [value.std for _, value in known]))
        if each.dense is not None and key == "ap":
            height = each.dense.mean
            levels.append(Level(f"{each.name}, all patches: {100 * height:.1f}", height, colour, f"{100 * height:.1f}"))
    return chart(lines, _SHARE, y, title=title, levels=levels)


def _gains(result: ComparisonResult) -> str:
    if not result.gains:
        return ""
    rows: list[Row] = [
        [esc(key), f"{100 * value.mean:+.2f} ± {100 * value.std:.2f}"] for key, value in result.gains.items()
    ]
    columns = [Column("at the same mean cost", numeric=False), Column("AP, points")]
    return table(f"What one method has over another, {result.name}", columns, rows)


def _numbers(result: ComparisonResult) -> str:
    rows: list[Row] = []
    for each in result.methods:
        dense, seconds = _spread(each.dense), number(each.seconds_per_epoch, ",.3g", " s")
        rows += [
            [
                name(each.name), esc(point.setting), f"{point.macs_share.mean:.1%}", _spread(point.ap),
                _spread(point.ap50), dense, seconds,
            ]
            for point in each.points
        ]  # fmt: skip
    titles = ("MACs of dense", "AP", "AP50", "AP, all patches", "an epoch")
    columns = [Column("method", numeric=False), Column("at", numeric=False), *map(Column, titles)]
    return details(f"All {len(rows)} rows as numbers", table(f"Methods compared, {result.name}", columns, rows))


def _spread(value: Spread | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value.mean:.2f}" + (f" <small>± {100 * value.std:.2f}</small>" if value.std else "")
