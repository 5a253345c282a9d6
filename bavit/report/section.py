"""A section of the page, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

from bavit.report.results import Scalar, Spread
from tokenlabels.report.markup import esc

NONE = "&ndash;"
"""What was not measured."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section.

    Attributes:
        key: its id.
        title: as text; also in the navigation.
        content: HTML of its cards; empty where there is nothing to show.
    """

    key: str
    title: str
    content: str


def points(value: float | None) -> str:
    """AP or IoU in points: 0.2871 is 28.7."""
    return NONE if value is None else f"{100 * value:.1f}"


def change(value: float | None) -> str:
    """A difference of AP in points, signed."""
    return NONE if value is None else f"{100 * value:+.1f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return NONE if value is None else f"{100 * value:.1f}%"


def number(value: float | None, form: str = ",.4g", unit: str = "") -> str:
    """A number as told by its form."""
    return NONE if value is None else f"{value:{form}}{unit}"


def cell(value: Scalar | Spread) -> str:
    """Any value, as HTML."""
    if isinstance(value, Spread):
        return f"{short(value.mean)} <small>± {short(value.std)}</small>"
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return short(value)
    return f"<bdi>{esc(value)}</bdi>"


def plain(value: Scalar) -> str:
    """Any value, as text."""
    if isinstance(value, bool) or value is None:
        return "no" if not value else "yes"
    return short(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def short(value: float) -> str:
    """Four digits that count: 0.5731, 1,204, 8.402 G."""
    for unit, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:,.4g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
