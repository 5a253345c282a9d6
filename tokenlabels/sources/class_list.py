"""Lists of categories from a file: the names, and the mask value of each where the list says it.

Formats, told apart by content: JSON (`["wall", ...]`, `{"0": "wall", ...}`, `[{"id": 0, "name": "wall"}, ...]`, or an
object with such `categories`), `labelmap.txt` of CVAT (`name:r,g,b:parts:actions`, the first line being value 0), a
table with a header that has `name` and one of `id`, `idx`, `index`, `value` (ADE20K's objectInfo150.txt), lines
`1: wall` or `1 wall`, or plain names, the first being value 0. Lines that begin with # are comments.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tokenlabels.annotations import Category
from tokenlabels.errors import AnnotationFileError
from tokenlabels.storage import content
from tokenlabels.store_faults import reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_MAX_BYTES = 4 << 20
_NUMBERED = re.compile(r"\s*(\d+)\s*[:,;\t ]\s*(.+?)\s*")
_LABELMAP = re.compile(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*")
_ID_COLUMNS = ("id", "idx", "index", "value", "train_id", "trainid")


def read_class_list(path: Location, *, first: int = 0) -> tuple[Category, ...]:
    """The categories of a list; the id of each is its mask value.

    Args:
        path: the file.
        first: value of the first of plain names.

    Raises:
        AnnotationFileError: it cannot be read, is empty, or names a value or a category twice, or a value that no mask
            of 8 bits has.
    """
    try:
        data = content(path, _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AnnotationFileError(path, f"is larger than {_MAX_BYTES >> 20} MiB: this is no list of categories.")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AnnotationFileError(path, "is no UTF-8 text: save the list of categories as such.") from None
    except OSError as fault:
        raise AnnotationFileError(path, f"cannot be read ({reason_of(fault)}).") from None
    is_json = text.lstrip().startswith(("[", "{"))
    found = _from_json(path, text, first) if is_json else _from_lines(path, text, first)
    if not found:
        raise AnnotationFileError(path, "holds no categories: write one name a line, the first for value 0.")
    if any(not 0 <= category.id <= 255 for category in found):
        raise AnnotationFileError(path, "has a value outside 0..255: masks have 8 bits.")
    for what, counts in (("value", Counter(c.id for c in found)), ("name", Counter(c.name for c in found))):
        value, count = counts.most_common(1)[0]
        if count > 1:
            raise AnnotationFileError(path, f"gives the {what} {value!r} twice: each category once.")
    return tuple(sorted(found, key=lambda category: category.id))


def _from_json(path: Location, text: str, first: int) -> list[Category]:
    try:
        value: Any = msgspec.json.decode(text)
        if isinstance(value, dict) and isinstance(value.get("categories"), list):
            value = value["categories"]
        if isinstance(value, dict):
            return [Category(int(key), name) for key, name in msgspec.convert(value, dict[str, str]).items()]
        if all(isinstance(entry, str) for entry in value):
            return [Category(first + index, name) for index, name in enumerate(value)]
        return msgspec.convert(value, list[Category])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as fault:
        raise AnnotationFileError(path, f"is no list of categories ({str(fault).splitlines()[0]}).") from None


def _from_lines(path: Location, text: str, first: int) -> list[Category]:
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = _from_table(path, lines)
    if table is not None:
        return table
    labelmap = [_LABELMAP.fullmatch(line) for line in lines]
    if all(labelmap):
        return [Category(index, found[1].strip()) for index, found in enumerate(labelmap) if found]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return [Category(_value(path, found[1]), found[2]) for found in numbered if found]
    return [Category(first + index, line.strip()) for index, line in enumerate(lines)]


def _from_table(path: Location, lines: Sequence[str]) -> list[Category] | None:
    """Rows of a table with a header, separated by tabs, commas or semicolons; None where this is none."""
    header = lines[0] if lines else ""
    separator = next((mark for mark in ("\t", ";", ",") if mark in header), None)
    if separator is None:
        return None
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as fault:
        raise AnnotationFileError(path, f"is no table ({fault}).") from None
    names = [name.lower() for name in rows[0]]
    if "name" not in names:
        return None
    id_column = next((names.index(name) for name in _ID_COLUMNS if name in names), None)
    if id_column is None:
        raise AnnotationFileError(
            path, "is a table without values: add a column `id` with the mask value of each name."
        )
    name_column = names.index("name")
    found = []
    for row in rows[1:]:
        if len(row) <= max(id_column, name_column):
            raise AnnotationFileError(path, f"has a row that is too short: {separator.join(row)[:80]!r}.")
        found.append(Category(_value(path, row[id_column]), row[name_column]))
    return found


def _value(path: Location, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise AnnotationFileError(path, f"gives {text[:80]!r} as a mask value: it is a whole number.") from None
