"""One category table for several: united by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY, Category
from tokenlabels.errors import ParameterError
from tokenlabels.shards import lists, numbers
from tokenlabels.stats_shards import list_values


def unite(tables: Sequence[Sequence[Category]]) -> tuple[tuple[Category, ...], list[NDArray[np.int32]]]:
    """Unite category tables by name.

    A name keeps the id and the supercategory of the first table that has it; where that id is taken by then, it gets
    the smallest positive one that no table uses. A name that one table has twice is matched by id first, then in order.

    Returns:
        The table, and for each given one int32 (k,): where each of its categories is in it.
    """
    united: list[Category] = []
    taken: set[int] = set()
    used = {category.id for table in tables for category in table}
    free = (number for number in count(1) if number not in used)
    places: list[NDArray[np.int32]] = []
    for table in tables:
        found = _matches(united, table)
        for index, category in enumerate(table):
            if found[index] < 0:
                number = category.id if category.id not in taken else next(free)
                found[index] = len(united)
                united.append(Category(number, category.name, category.supercategory))
                taken.add(number)
        places.append(np.array(found, np.int32))
    return tuple(united), places


def _matches(united: Sequence[Category], table: Sequence[Category]) -> list[int]:
    """Index in `united` of each category, -1 where it is new."""
    found = [-1] * len(table)
    open_places: dict[str, list[int]] = {}
    for place, category in enumerate(united):
        open_places.setdefault(category.name, []).append(place)
    for same_id in (True, False):
        for index, category in enumerate(table):
            places = open_places.get(category.name, [])
            wanted = [place for place in places if not same_id or united[place].id == category.id]
            if wanted and found[index] < 0:
                places.remove(wanted[0])
                found[index] = wanted[0]
    return found


def check_values(tables: Sequence[Sequence[Category]], united: Sequence[Category], names: Sequence[str]) -> None:
    """Refuse a union that gives another id to a value of masks.

    Args:
        tables: category tables whose ids are values of masks.
        united: their union.
        names: what each table is called, for errors.

    Raises:
        ParameterError: it does.
    """
    values = {category.name: category.id for category in united}
    for table, name in zip(tables, names, strict=True):
        for category in table:
            if values[category.name] != category.id:
                raise ParameterError(
                    f"{name}: the value {category.id} of its masks is {category.name!r}, which would be "
                    f"{values[category.name]} in the merged build: masks cannot be renumbered, so build both with one "
                    "list of --categories."
                )


def renumbered(table: pa.Table, places: NDArray[np.int32]) -> pa.Table:
    """Rows with their categories in another table: of objects, of segments, and the majority of each patch.

    Args:
        table: rows, each column of one chunk.
        places: int32 (k,), see `unite`.

    Raises:
        ValueError: a category that is in no table.
    """
    for name in ("objects", "segments"):
        if name in table.column_names:
            table = _replaced(table, name, _struct_renumbered(table, name, places))
    if "categories" in table.column_names:
        offsets, values = list_values(table, "categories")
        known = np.full(NO_CATEGORY + 1, -1, np.int64)
        known[: len(places)] = places
        known[NO_CATEGORY] = NO_CATEGORY
        found = _looked_up(known, values).astype(np.uint16)
        column = lists(offsets, numbers(found))
        table = _replaced(table, "categories", column)
    return table


def _struct_renumbered(table: pa.Table, name: str, places: NDArray[np.int32]) -> pa.Array:
    kind = table.schema.field(name).type
    column = table.column(name).chunk(0)
    members = [column.field(index) for index in range(kind.num_fields)]
    place = kind.get_field_index("category")
    offsets, values = list_values(pa.table({"category": members[place]}), "category")
    found = _looked_up(places, values).astype(np.int32)
    members[place] = lists(offsets, numbers(found))
    return pa.StructArray.from_arrays(members, fields=list(kind))


def _looked_up(places: NDArray[np.int32] | NDArray[np.int64], values: NDArray[np.int32]) -> NDArray[np.int64]:
    if len(values) and not (values.min() >= 0 and values.max() < len(places)):
        raise ValueError("names a category that is not in its table")
    found = places[values].astype(np.int64)
    if len(found) and found.min() < 0:
        raise ValueError("names a category that is not in its table")
    return found


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)


def duplicated(ids: Iterable[pa.Array]) -> str | None:
    """The first text that occurs twice, or None."""
    import pyarrow.compute as pc

    counts = pc.value_counts(pa.chunked_array(list(ids), pa.string()))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    return twice.field("values")[0].as_py() if len(twice) else None
