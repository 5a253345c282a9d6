"""Text -> HTML, safely: every name in a data set is untrusted."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

_UNSAFE_IN_SCRIPT = re.compile(r"[<>&\x7f]|[^\x00-\x7f]")
"""What may have to be escaped in JSON inside of a script element; in JSON all of it occurs in strings only."""


def printable(text: str) -> str:
    """Text without control and format characters, such as those that turn the direction of what follows."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def esc(text: object) -> str:
    """Text as HTML, for an element or a quoted attribute."""
    return html.escape(printable(str(text)))


def name(text: str) -> str:
    """An untrusted name as HTML, apart from the direction of the text around it."""
    return f"<bdi>{esc(text)}</bdi>"


def json_text(value: object) -> str:
    """JSON that can stand inside of a script element, and that is safe to look at."""
    return _UNSAFE_IN_SCRIPT.sub(_json_escape, msgspec.json.encode(value).decode())


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    if char in "<>&":
        return f"\\u{ord(char):04x}"
    return char if char.isprintable() else json.dumps(char)[1:-1].replace("\x7f", "\\u007f")


def count(value: int) -> str:
    """12,345"""
    return f"{value:,}"


def percent(share: float) -> str:
    """12.34%, more digits where that would be 0.00%"""
    if 0 < share < 0.00005:
        return "<0.01%"
    return f"{share:.2%}"


def decimal(value: float) -> str:
    """Three or so significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bar(share: float) -> str:
    """A horizontal bar, hidden from screen readers: the number stands beside it."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}"
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect class="track" width="100" height="8"/><rect class="fill" width="{width}" height="8"/></svg>'
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        html: what it shows.
        value: what it sorts by, where the table sorts.
        share: draws a bar of this length, 0..1.
    """

    html: str
    value: float | str | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title, as text, and whether it holds numbers."""

    title: str
    numeric: bool = True


Row: TypeAlias = Sequence[Cell | str]


def table(caption: str, columns: Sequence[Column], rows: Iterable[Row], *, sorts: bool = False) -> str:
    """A table that scrolls sideways on its own; the first cell of a row heads it.

    Args:
        caption: its title, as text; shown to screen readers.
        columns: the columns.
        rows: cells, or their HTML.
        sorts: a reader can sort it, and see first the top rows only.
    """
    heads = "".join(f'<th scope="col"{_kind(column)}>{esc(column.title)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cells(columns, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}">'
        f"<table{' data-sorts' if sorts else ''}><caption class=quiet>{esc(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cells(columns: Sequence[Column], row: Row) -> Iterable[str]:
    for index, (column, content) in enumerate(zip(columns, row, strict=True)):
        cell = content if isinstance(content, Cell) else Cell(content)
        shown = cell.html if cell.share is None else f'{bar(cell.share)}<span class="value">{cell.html}</span>'
        value = "" if cell.value is None else f' data-value="{esc(cell.value)}"'
        tag, scope = ("td", "") if index else ("th", ' scope="row"')
        yield f"<{tag}{scope}{_kind(column)}{value}>{shown}</{tag}>"


def _kind(column: Column) -> str:
    return ' class="number"' if column.numeric else ""


def tile(title: str, value: str, note: str) -> str:
    """One key figure, all of it as text."""
    return (
        f'<div class="tile"><dt>{esc(title)}</dt><dd><strong>{esc(value)}</strong><span>{esc(note)}</span></dd></div>'
    )


def pairs(values: Iterable[tuple[str, str]]) -> str:
    """Names and their values, all of it as text, in columns."""
    items = "".join(f"<div><dt><code>{esc(key)}</code></dt><dd>{esc(value)}</dd></div>" for key, value in values)
    return f'<dl class="parameters">{items}</dl>'


def details(summary: str, content: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{esc(summary)}</summary>{content}</details>"


def card(title: str, lead: str, content: str, *, wide: bool = False) -> str:
    """A titled part of a section.

    Args:
        title: as text.
        lead: one sentence or two, as HTML: what the plot shows, which is also its text alternative.
        content: plot and tables.
        wide: takes the full width.
    """
    return (
        f'<figure class="card{" wide" if wide else ""}"><figcaption><h3>{esc(title)}</h3><p>{lead}</p></figcaption>'
        f"{content}</figure>"
    )
