"""Any JSON that measures things -> tables: lists of objects wherever they stand, and the plain values beside them.

An object of a mean and a spread, `{"mean": 0.5, "std": 0.01}`, is one figure, and so are the keys `ap_mean` and
`ap_std` together. Objects within a record are opened out: `{"onnx": {"ms": 3}}` has the column `onnx ms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bavit.report.results import Scalar, Spread, Table

_MAX_DEPTH = 5
_MAX_TABLES, _MAX_ROWS, _MAX_COLUMNS, _MAX_FACTS, _MAX_CELLS = 40, 400, 48, 80, 20_000
_MAX_LETTERS = 300
_SPREADS = ("std", "spread", "sd", "stdev")


def tables_of(content: Any) -> tuple[dict[str, Scalar], list[Table]]:
    """The plain values, and the tables, of a file.

    Args:
        content: JSON values.

    Returns:
        Values by where they stand, and tables; both of bounded size.
    """
    facts: dict[str, Scalar] = {}
    tables: list[Table] = []
    cells = 0
    for place, value in _walk("", content, 0):
        if isinstance(value, list):
            if len(tables) < _MAX_TABLES and cells < _MAX_CELLS:
                tables.append(_table(place, value))
                cells += sum(map(len, tables[-1].rows))
        elif len(facts) < _MAX_FACTS:
            facts[place or "value"] = _scalar(value)
    return facts, tables


def flat(value: Mapping[str, Any], before: str = "", depth: int = 0) -> dict[str, Scalar | Spread]:
    """Plain values of nested objects, by their keys with blanks between them; lists of plain values as text."""
    found: dict[str, Scalar | Spread] = {}
    for key, each in value.items():
        place = f"{before} {key}".strip()
        spread = _spread(each)
        if spread is not None:
            found[place] = spread
        elif isinstance(each, Mapping):
            if depth < _MAX_DEPTH:
                found |= flat(each, place, depth + 1)
        elif isinstance(each, list):
            if each and all(not isinstance(part, (list, dict)) for part in each) and len(each) <= 8:
                found[place] = ", ".join(str(_scalar(part)) for part in each)
        else:
            found[place] = _scalar(each)
    return _paired(found)


def _walk(place: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        records = [each for each in value if isinstance(each, dict)]
        if records and len(records) == len(value):
            yield from _of_records(place, records, depth)
        elif value and len(value) <= 8 and not any(isinstance(each, list) for each in value):
            yield place, ", ".join(str(_scalar(each)) for each in value)
    elif isinstance(value, dict):
        inner = [each for each in value.values() if isinstance(each, dict) and _spread(each) is None]
        if len(inner) > 1 and len(inner) == len(value) and _alike(inner):
            yield place, [{"": key} | each for key, each in value.items()]
            return
        for key, each in value.items():
            if depth < _MAX_DEPTH:
                yield from _walk(f"{place} {key}".strip(), each, depth + 1)
    else:
        yield place, value


def _of_records(place: str, records: list[dict[str, Any]], depth: int) -> Iterator[tuple[str, Any]]:
    """Records as a table; where they hold lists of records themselves, these instead, one table each."""
    nested = [key for key, each in records[0].items() if _is_records(each)]
    if not nested or depth >= _MAX_DEPTH:
        yield place, records
        return
    for record in records:
        plain = [f"{key} {each}" for key, each in record.items() if isinstance(each, (str, int, float))]
        where = f"{place}: {', '.join(plain)}" if plain else place
        for key in nested:
            if _is_records(record.get(key)):
                yield from _of_records(f"{where}: {key}", record[key], depth + 1)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _alike(objects: list[dict[str, Any]]) -> bool:
    """Whether objects have most of their keys in common, so that they are the rows of a table."""
    every = set().union(*objects)
    shared = set(objects[0]).intersection(*objects[1:])
    return bool(shared) and 2 * len(shared) >= len(every)


def _table(place: str, records: list[dict[str, Any]]) -> Table:
    rows = [flat(record) for record in records[:_MAX_ROWS]]
    columns = list(dict.fromkeys(key for row in rows for key in row))[:_MAX_COLUMNS]
    kept = [{key: row[key] for key in columns if key in row} for row in rows]
    return Table(place[:_MAX_LETTERS], columns, kept)


def _paired(values: dict[str, Scalar | Spread]) -> dict[str, Scalar | Spread]:
    """`x_mean` and `x_std` as one figure `x`."""
    found: dict[str, Scalar | Spread] = {}
    for key, value in values.items():
        stem = next((key.removesuffix(f"{sign}{word}") for sign in "_ " for word in ("mean", *_SPREADS)
                     if key.endswith(f"{sign}{word}")), None)  # fmt: skip
        pair = None if stem is None else _pair(values, stem)
        if stem is None or pair is None:
            found[key] = value
        else:
            found[stem] = pair
    return found


def _pair(values: Mapping[str, Scalar | Spread], stem: str) -> Spread | None:
    for sign in "_ ":
        mean = values.get(f"{stem}{sign}mean")
        for word in _SPREADS:
            std = values.get(f"{stem}{sign}{word}")
            if _is_number(mean) and _is_number(std):
                return Spread(float(mean), float(std))  # type: ignore[arg-type]
    return None


def _spread(value: Any) -> Spread | None:
    """The mean and spread that an object states."""
    if not isinstance(value, Mapping) or not _is_number(value.get("mean")):
        return None
    std = next((value[word] for word in _SPREADS if _is_number(value.get(word))), None)
    return None if std is None else Spread(float(value["mean"]), float(std))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Any) -> Scalar:
    return value[:_MAX_LETTERS] if isinstance(value, str) else value if not isinstance(value, (dict, list)) else "…"
