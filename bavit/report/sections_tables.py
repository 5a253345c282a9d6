"""Benchmarks, comparisons of methods, and whatever else was measured: tables, and what they compare drawn, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from bavit.report.charts import Axis, Series, bars, chart, legend
from bavit.report.results import Results, Scalar, Spread, Table
from bavit.report.section import Section, cell
from bavit.report.sections_models import values
from tokenlabels.report.markup import Column, Row, card, name, table

_MOST_LINES, _MOST_BARS = 7, 16

_BARS = (
    ("graph_ms", Axis("ms", 1, " ms")),
    ("whole_ms", Axis("ms, preprocessing and boxes included", 1, " ms")),
    ("latency_ms", Axis("ms", 1, " ms")),
    ("ms", Axis("ms", 1, " ms")),
    ("peak_mib", Axis("MiB at the peak", 1, " MiB")),
    ("peak_memory_mb", Axis("MB at the peak", 1, " MB")),
)
"""Columns that are drawn as bars."""

_ACROSS = (
    ("gmac", Axis("GMAC of an image", 1, " GMAC")),
    ("gmacs", Axis("GMAC of an image", 1, " GMAC")),
    ("macs", Axis("GMAC of an image", 1e-9, " GMAC")),
)
_UP = (
    ("ap", Axis("AP, points", 100, span=1)),
    ("ap50", Axis("AP50, points", 100, span=1)),
    ("miou", Axis("mIoU, points", 100, span=1)),
)
"""Columns that are drawn against each other where a table has one of each, by the last word of their key."""


def section(results: Results) -> Section:
    """Every file in a card of its own: plain values, then its tables."""
    content = ""
    for each in results.tables:
        parts = values(each.facts) if each.facts else ""
        for one in each.tables:
            title = (one.title or each.name).replace("_", " ")
            columns = [Column(column.replace("_", " "), numeric=_numeric(one, column)) for column in one.columns]
            rows: list[Row] = [[cell(row.get(column)) for column in one.columns] for row in one.rows]
            drawn = _drawn(one, title) or _compared(one, title)
            parts += f"<div><h4>{name(title)}</h4>{table(title, columns, rows)}</div>{drawn}"
        lead = f"As measured, from {name(each.path)}. A figure with ± has the standard deviation over runs."
        content += card(each.name, lead, f'<div class="stack">{parts}</div>', wide=True)
    return Section("measurements", "More measurements", content)


def _drawn(found: Table, title: str) -> str:
    """Quality against multiply-accumulates, a line for each method, where a table has both."""
    across = next(((key, axis) for word, axis in _ACROSS for key in found.columns if _last(key) == word), None)
    ups = [(key, axis) for word, axis in _UP for key in found.columns if _last(key) == word]
    if across is None or not ups:
        return ""
    key, x = across
    methods = next((column for column in found.columns if not _numeric(found, column)), None)
    groups: dict[str, list[dict[str, Scalar | Spread]]] = {}
    for row in found.rows:
        groups.setdefault("" if methods is None else str(row.get(methods)), []).append(row)
    shown = list(groups.items())[:_MOST_LINES]
    drawings = ""
    for up, y in ups[:2]:
        lines = [_series(method, rows, key, up, colour) for colour, (method, rows) in enumerate(shown)]
        if any(line.points for line in lines):
            drawings += f"<div>{chart(lines, x, y, title=f'{y.label} of {title} by MACs')}</div>"
    if not drawings:
        return ""
    keys = legend([(method or "all", colour, "solid") for colour, (method, _) in enumerate(shown)])
    return f'<div class="pair">{drawings}</div>{keys}'


def _compared(found: Table, title: str) -> str:
    """Times and memory as bars, where a table has them and names its rows."""
    names = next((column for column in found.columns if not _numeric(found, column)), None)
    measured = [(column, axis) for column, axis in _BARS if column in found.columns]
    if names is None or not measured or not 1 < len(found.rows) <= _MOST_BARS:
        return ""
    drawings = ""
    for column, axis in measured[:4]:
        rows = [(str(row.get(names)), _mean(row.get(column))) for row in found.rows]
        lengths = [
            (text, [(column.replace("_", " "), value)]) for text, value in rows if value is not None and value > 0
        ]
        drawings += f"<div>{bars(lengths, axis, title=f'{column} of {title}')}</div>"
    return f'<div class="pair">{drawings}</div>'


def _series(method: str, rows: Sequence[dict[str, Scalar | Spread]], across: str, up: str, colour: int) -> Series:
    found = []
    for row in rows:
        x, y = _mean(row.get(across)), _mean(row.get(up))
        spread = row.get(up)
        if x is not None and y is not None:
            found.append((x, y, spread.std if isinstance(spread, Spread) else 0.0))
    found.sort()
    notes = [f"± {half:.3g}" if half else "" for _, _, half in found]
    return Series(
        method or "all", [(x, y) for x, y, _ in found], colour, "solid", notes if any(notes) else (),
        [half for _, _, half in found],
    )  # fmt: skip


def _mean(value: Scalar | Spread) -> float | None:
    if isinstance(value, Spread):
        return value.mean
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _last(key: str) -> str:
    return key.replace("_", " ").rpartition(" ")[2].lower()


def _numeric(found: Table, column: str) -> bool:
    return any(not isinstance(row.get(column), (str, bool, type(None))) for row in found.rows)
