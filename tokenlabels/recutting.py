"""Rows of builds that are there, cut anew into shards: whole row groups come in, whole row groups go out.

Memory holds one row group that is read and one that is filled; both are bounded (`shards.row_group_spans`). Where the
groups of the result end depends on its rows alone, so that builds merged from parts have the bytes of one built whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.derived import PlannedShard, check_shard
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.output import JournalEntry
from tokenlabels.reader import Build
from tokenlabels.shards import ShardWriter, row_group_spans, shard_name
from tokenlabels.stats_shards import GroupAddress, column_values, damaged
from tokenlabels.storage import parquet_file
from tokenlabels.totals import LabelSums

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_MAX_SHARDS = 99_999


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Some rows of one row group.

    Attributes:
        build: that holds it.
        group: where it is.
        rows: int64 (k,), which of its rows, ascending.
        mark: what `change` of `write_rows` is told of them.
    """

    build: Build
    group: GroupAddress
    rows: NDArray[np.int64]
    mark: int = 0


class GroupReader:
    """Reads row groups; the hash of a shard is compared before the first of it, and the last one read is kept."""

    def __init__(self) -> None:
        self._checked: set[Location] = set()
        self._last: tuple[GroupAddress, tuple[str, ...] | None, pa.Table] | None = None

    def read(self, build: Build, group: GroupAddress, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group, each column of one chunk.

        Args:
            build: that holds it.
            group: where it is.
            columns: columns, or members of structs as in `objects.id`; by default all.

        Raises:
            NotABuildError: its shard is missing or damaged.
        """
        wanted = None if columns is None else tuple(columns)
        if self._last is not None and self._last[:2] == (group, wanted):
            return self._last[2]
        self._last = None  # two are too much
        if group.path not in self._checked:
            check_shard(build, next(shard for shard in build.shards if build.path / shard.file == group.path))
            self._checked.add(group.path)
        try:
            with parquet_file(group.path) as file:
                table = file.read_row_group(group.index, columns=columns).combine_chunks()
        except (OSError, pa.ArrowException):
            raise damaged(group.path, "is damaged or no shard") from None
        if table.num_rows != group.rows:
            raise damaged(group.path, "has changed while it was read")
        self._last = (group, wanted, table)
        return table


def shard_rows_of(build: Build) -> int:
    """Images per shard that a build was cut to; where its manifest does not say so, those of its largest shard."""
    said = build.manifest["parameters"].get("shard_rows")
    return said if isinstance(said, int) and said > 0 else max(1, *(shard.rows for shard in build.shards))


def plan_split(
    folder: str,
    split: str,
    chosen: Iterable[Chosen],
    shard_rows: int,
    write: Callable[[Location, Sequence[Chosen]], JournalEntry],
) -> list[PlannedShard]:
    """The shards of one split on one grid.

    Args:
        folder: name of the grid.
        split: name of the split.
        chosen: its rows, in order.
        shard_rows: rows of a shard.
        write: writes some of the rows as one shard.

    Raises:
        ParameterError: too many shards for their names.
    """
    parts = list(cut(chosen, shard_rows))
    if len(parts) > _MAX_SHARDS:
        raise ParameterError(f"{len(parts)} shards are too many: raise --shard-rows above {shard_rows}.")

    def writer(part: Sequence[Chosen]) -> Callable[[Location], JournalEntry]:
        return lambda target: write(target, part)

    return [
        PlannedShard(
            f"{folder}/{shard_name(split, index, len(parts))}", sum(len(each.rows) for each in part), writer(part)
        )
        for index, part in enumerate(parts)
    ]


def cut(chosen: Iterable[Chosen], shard_rows: int) -> Iterator[list[Chosen]]:
    """Rows in order, as many at a time as make a shard."""
    part: list[Chosen] = []
    room = shard_rows
    for each in chosen:
        rows = each.rows
        while len(rows):
            part.append(Chosen(each.build, each.group, rows[:room], each.mark))
            room -= len(part[-1].rows)
            rows = rows[len(part[-1].rows) :]
            if not room:
                yield part
                part, room = [], shard_rows
    if part:
        yield part


def write_rows(
    target: Location,
    schema: pa.Schema,
    grids: Sequence[PatchGrid],
    chosen: Sequence[Chosen],
    reader: GroupReader,
    change: Callable[[pa.Table, Chosen], pa.Table] | None = None,
) -> JournalEntry:
    """Write one shard from rows of other shards.

    Args:
        target: the shard.
        schema: its schema.
        grids: every grid of the build; their cells decide, as in a build, where row groups end.
        chosen: its rows, in order.
        reader: reads them.
        change: makes the rows of the result, by default as they are.

    Raises:
        NotABuildError: a shard that is read is missing or damaged.
        OutputError: the shard cannot be written.
    """
    sums = LabelSums()
    waiting, cells, sizes = schema.empty_table(), np.zeros(0, np.int64), np.zeros(0, np.int64)
    with ShardWriter(target, schema) as writer:
        for each in chosen:
            table = rows_of(reader.read(each.build, each.group), each.rows)
            if not table.schema.equals(schema):
                raise damaged(each.group.path, "has other columns than its build")
            if change is not None:
                table = change(table, each)
            table = table.replace_schema_metadata(schema.metadata)
            sums += _sums(table)
            waiting = pa.concat_tables([waiting, table])
            cells, sizes = np.append(cells, _cells(table, grids)), np.append(sizes, _picture_bytes(table))
            *full, (start, _) = row_group_spans(cells, sizes)
            for first, last in full:
                writer.write(waiting.slice(first, last - first).combine_chunks())
            waiting, cells, sizes = waiting.slice(start), cells[start:], sizes[start:]
        writer.write(waiting.combine_chunks())
    assert writer.entry is not None
    return JournalEntry(writer.entry, sums)


def rows_of(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows, ascending, of a table; a view where they follow each other."""
    if not len(rows) or rows[-1] - rows[0] == len(rows) - 1:
        return table.slice(int(rows[0]) if len(rows) else 0, len(rows))
    return table.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]))


def _sums(table: pa.Table) -> LabelSums:
    foreground, ignored = (column_values(table, name) for name in ("fg_count", "ignore_count"))
    patches = column_values(table, "grid_rows").astype(np.int64) * column_values(table, "grid_cols")
    return LabelSums(
        int(patches.sum()),
        int(foreground.sum(dtype=np.int64)),
        int(ignored.sum(dtype=np.int64)),
        int((foreground == 0).sum()),
    )


def _cells(table: pa.Table, grids: Sequence[PatchGrid]) -> NDArray[np.int64]:
    """int64 (n,): cells of each image over all grids."""
    widths, heights = (column_values(table, name) for name in ("width", "height"))
    found: NDArray[np.int64] = np.sum([grid.axes(widths, heights).cells for grid in grids], axis=0)
    return found


def _picture_bytes(table: pa.Table) -> NDArray[np.int64]:
    """int64 (n,): bytes of the embedded picture and mask of each image."""
    found = np.zeros(len(table), np.int64)
    for name in {"image", "mask"} & set(table.column_names):
        found += binary_lengths(table.column(name).chunk(0).field("bytes"))
    return found


def binary_lengths(values: pa.Array) -> NDArray[np.int64]:
    """int64 (n,): bytes of each binary or string; a null has 0."""
    buffer: Any = values.buffers()[1]
    offsets = np.frombuffer(buffer, np.int32)[values.offset : values.offset + len(values) + 1]
    return np.diff(offsets).astype(np.int64)
