"""Lists of categories from a file: the names, and the mask value of each where the list says it.

Formats, told apart by content: JSON (`["wall", ...]`, `{"0": "wall", ...}`, `[{"id": 0, "name": "wall"}, ...]`, or an
object with such `categories`), `labelmap.txt` of CVAT (`name:r,g,b:parts:actions`, the first line being value 0), a
table with a header that has `name` and `id`, `idx` or `index` (ADE20K's objectInfo150.txt), lines `1: wall` or
`1 wall`, or plain names, the first line being value 0.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenlabels.annotations import Category
from tokenlabels.errors import AnnotationFileError

_MAX_BYTES = 4 << 20
_NUMBERED = re.compile(r"\s*(\d+)\s*[:,;\t ]\s*(.+?)\s*")
_LABELMAP = re.compile(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*")
_ID_COLUMNS = ("id", "idx", "index", "value", "train_id", "trainid")


def read_class_list(path: Path, *, first: int = 0) -> tuple[Category, ...]:
    """The categories of a list; the id of each is its mask value.

    Args:
        path: the file.
        first: value of the first line of a list of plain names.

    Raises:
        AnnotationFileError: it cannot be read, is empty, or names a value or a category twice.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AnnotationFileError(path, f"is larger than {_MAX_BYTES >> 20} MiB: this is no list of categories.")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise AnnotationFileError(path, "is no UTF-8 text: save the list of categories as such.") from None
    except OSError as fault:
        raise AnnotationFileError(path, f"cannot be read ({fault.strerror}).") from None
    found = _from_json(path, text) if text.lstrip()[:1] in ("[", "{") else _from_lines(text, first)
    if not found:
        raise AnnotationFileError(path, "holds no categories: write one name a line, the first for value 0.")
    for what, values in (("value", [str(c.id) for c in found]), ("name", [c.name for c in found])):
        doubled = sorted({value for value in values if values.count(value) > 1})
        if doubled:
            raise AnnotationFileError(path, f"gives the {what} {doubled[0]!r} twice: each category once.")
    if any(not 0 <= category.id <= 255 for category in found):
        raise AnnotationFileError(path, "has a value outside 0..255: masks have 8 bits.")
    return tuple(sorted(found, key=lambda category: category.id))


def _from_json(path: Path, text: str) -> list[Category]:
    try:
        value: Any = msgspec.json.decode(text)
        if isinstance(value, dict) and isinstance(value.get("categories"), list):
            value = value["categories"]
        if isinstance(value, dict):
            return [Category(int(key), str(name)) for key, name in value.items()]
        if all(isinstance(entry, str) for entry in value):
            return [Category(index, name) for index, name in enumerate(value)]
        return msgspec.convert(value, list[Category])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as fault:
        raise AnnotationFileError(path, f"is no list of categories ({str(fault).splitlines()[0]}).") from None


def _from_lines(text: str, first: int) -> list[Category]:
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = _from_table(lines)
    if table:
        return table
    labelmap = [_LABELMAP.fullmatch(line) for line in lines]
    if all(labelmap):
        return [Category(index, found[1].strip()) for index, found in enumerate(labelmap) if found]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return [Category(int(found[1]), found[2]) for found in numbered if found]
    return [Category(first + index, line.strip()) for index, line in enumerate(lines)]


def _from_table(lines: Sequence[str]) -> list[Category]:
    """Rows of a table with a header, separated by tabs, commas or semicolons; nothing where this is none."""
    header = lines[0] if lines else ""
    separator = next((mark for mark in ("\t", ";", ",") if mark in header), None)
    if separator is None:
        return []
    names = [name.strip().lower() for name in header.split(separator)]
    id_column = next((names.index(name) for name in _ID_COLUMNS if name in names), None)
    if id_column is None or "name" not in names:
        return []
    name_column = names.index("name")
    return [
        Category(int(row[id_column]), row[name_column].strip())
        for row in csv.reader(lines[1:], delimiter=separator)
        if len(row) >= len(names) and row[id_column].strip().isdigit()
    ]
