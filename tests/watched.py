"""Those who watch training in tests: one stops it, one keeps what it tells; and data sets under other names."""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec

from bavit.rows import Rows
from tokenlabels.progress import Silent


class StopAt(Silent):
    """Sends a signal to this process after so many steps."""

    def __init__(self, step: int, number: int) -> None:
        self._left, self._number = step, number

    def advance(self, steps: int) -> None:
        self._left -= steps
        if self._left == 0:
            os.kill(os.getpid(), self._number)


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def named(rows: Rows, *names: str) -> Rows:
    """The same objects, their categories called otherwise."""
    changed = [msgspec.structs.replace(entry, name=name) for entry, name in zip(rows.categories, names, strict=False)]
    table = (*changed, *rows.categories[len(names) :])
    return replace(rows, header=msgspec.structs.replace(rows.header, categories=table))
