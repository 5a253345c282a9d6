"""The row groups of a build: where they are, how large, and their columns, read and checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from tokenlabels.errors import ParameterError
from tokenlabels.reader import Build, unreadable
from tokenlabels.shards import Columns, ShardHeader, schema_of
from tokenlabels.stats_shards import damaged
from tokenlabels.storage import STORE_THREADS, parquet_file
from tokenlabels.store_faults import as_os_error
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from tokenlabels.storage import Location

_MAY_BE_NULL = ("image", "mask")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: its shard, its number there, its rows, and bytes of the wanted columns of a row once decoded."""

    path: Location
    index: int
    rows: int
    row_bytes: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The row groups of a build in order.

    Attributes:
        groups: the row groups.
        fields: the wanted columns, as every shard has them.
        header: what the first shard says of itself; all have the same grid.
    """

    groups: tuple[RowGroup, ...]
    fields: tuple[pa.Field, ...]
    header: ShardHeader


@dataclass(frozen=True, slots=True)
class _Footer:
    """What is wanted of a shard's footer."""

    schema: pa.Schema
    rows: list[int]
    row_bytes: list[float]


def read_layout(build: Build, grid: str, split: str | None, columns: Sequence[str]) -> Layout:
    """Read the footers of all shards of a grid, of one split or all.

    Raises:
        ParameterError: no such grid, split or column.
        NotABuildError: a shard is missing or damaged, or has other rows, columns or grid than the manifest says.
    """
    files = build.files(grid, split)
    listed = {build.path / shard.file: shard.rows for shard in build.shards}
    footers = in_threads(functools.partial(_footer, columns=tuple(columns)), files, STORE_THREADS)
    schema = footers[0].schema
    header = _header(files[0], schema)
    for column in columns:
        if column not in schema.names:
            raise ParameterError(f"{files[0]} holds no column {column!r}: it has {', '.join(schema.names)}.")
    expected = schema_of(header, Columns.of(schema.names))
    fields = tuple(expected.field(column) for column in columns)
    groups: list[RowGroup] = []
    for path, footer in zip(files, footers, strict=True):
        if _header(path, footer.schema).grid != grid:
            raise damaged(path, f"is not of the grid {grid}")
        if sum(footer.rows) != listed[path]:
            raise damaged(path, f"has {sum(footer.rows)} rows where the manifest says {listed[path]}")
        for field in fields:
            if field.name not in footer.schema.names or not footer.schema.field(field.name).type.equals(field.type):
                raise damaged(path, f"has no column {field.name!r} of the type that builds write")
        groups += [
            RowGroup(path, index, rows, size)
            for index, (rows, size) in enumerate(zip(footer.rows, footer.row_bytes, strict=True))
        ]
    return Layout(tuple(groups), fields, header)


def read_group(group: RowGroup, fields: Sequence[pa.Field], *, threads: bool) -> dict[str, pa.Array]:
    """Columns of a row group, by name.

    Args:
        group: which.
        fields: the columns.
        threads: decode columns side by side.

    Raises:
        NotABuildError: the shard is missing, damaged or has changed.
    """
    try:
        with as_os_error(), parquet_file(group.path) as file:
            table = file.read_row_group(group.index, columns=[field.name for field in fields], use_threads=threads)
        if table.num_rows != group.rows or {*table.column_names} != {field.name for field in fields}:
            raise damaged(group.path, "has changed since it was opened")
        found = {field.name: _single(table.column(field.name)) for field in fields}
    except (OSError, pa.ArrowException) as fault:
        raise unreadable(group.path, fault) from None
    for field in fields:
        if not found[field.name].type.equals(field.type):
            raise damaged(group.path, "has changed since it was opened")
        if found[field.name].null_count and field.name not in _MAY_BE_NULL:
            raise damaged(group.path, f"holds nulls in column {field.name!r}")
    return found


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _footer(path: Location, columns: tuple[str, ...]) -> _Footer:
    try:
        with as_os_error(), parquet_file(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            stored = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    except (OSError, pa.ArrowException) as fault:
        raise unreadable(path, fault) from None
    rows = [group.num_rows for group in stored]
    return _Footer(schema, rows, [_row_bytes(group, schema, columns) for group in stored])


def _row_bytes(group: pq.RowGroupMetaData, schema: pa.Schema, columns: tuple[str, ...]) -> float:
    """Bytes of a row once decoded: files and texts as they are stored, numbers by their count."""
    total = 0
    for number in range(group.num_columns):
        column = group.column(number)
        name = column.path_in_schema.partition(".")[0]
        if name in columns:
            fixed = column.physical_type != "BYTE_ARRAY"
            total += column.num_values * _width(schema.field(name).type) if fixed else column.total_uncompressed_size
    return float(total / max(group.num_rows, 1))


def _width(kind: pa.DataType) -> int:
    """Bytes of a number, at most."""
    if pa.types.is_list(kind) and pa.types.is_primitive(kind.value_type):
        return int(max(1, kind.value_type.bit_width // 8))
    return 8


def _header(path: Location, schema: pa.Schema) -> ShardHeader:
    try:
        return msgspec.json.decode((schema.metadata or {})[b"tokenlabels"], type=ShardHeader)
    except (KeyError, msgspec.MsgspecError):
        raise damaged(path, "is damaged or no shard") from None
