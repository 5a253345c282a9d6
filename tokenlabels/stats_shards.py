"""Shards as plain arrays, one row group at a time, checked: what statistics and comparisons read.

A row group holds a bounded number of cells (`shards.ROW_GROUP_CELLS`), so that memory does not grow with the rows.
Nothing here calls `to_numpy`, `pa.array` or `read_table`: they import pandas where it is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.errors import NotABuildError
from tokenlabels.output import MANIFEST
from tokenlabels.reader import Build, header_of
from tokenlabels.shards import OBJECT_FIELDS, ShardHeader
from tokenlabels.storage import parquet_file

if TYPE_CHECKING:
    from tokenlabels.storage import Location

FOREGROUND, IGNORE = 1, 255
"""As in `labels.py`, which loads the kernels."""

_LABEL_TYPES = {
    "image_id": pa.string(),
    "grid_rows": pa.int16(),
    "grid_cols": pa.int16(),
    "labels": pa.list_(pa.uint8()),
}
_COUNT_TYPES = {
    "file_name": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "fg_count": pa.int32(),
    "ignore_count": pa.int32(),
    "objects": pa.struct([pa.field(name, pa.list_(kind)) for name, kind in OBJECT_FIELDS]),
}
_CELL_TYPES = {"scores": pa.list_(pa.float32()), "ignored": pa.list_(pa.bool_()), "categories": pa.list_(pa.uint16())}


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Where a row group is.

    Attributes:
        path: its shard.
        split: the split of that shard.
        index: number of the row group in it.
        rows: images in the row group.
        columns: names of the shard's columns.
    """

    path: Location
    split: str
    index: int
    rows: int
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CellColumns:
    """The cells of n images; those of image i are `cells[i]:cells[i + 1]`, row-major.

    Attributes:
        widths: int32 (n,), source pixels.
        heights: int32 (n,), source pixels.
        rows: int64 (n,), grid rows.
        cols: int64 (n,), grid columns.
        cells: int64 (n + 1,).
        labels: uint8, one per cell.
        scores: float32, one per cell, each in 0..1, or None.
        ignored: bool, one per cell, or None.
        categories: uint16, one per cell: majority category, `annotations.NO_CATEGORY` for none; or None.
    """

    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    cells: NDArray[np.int64]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    ignored: NDArray[np.bool_] | None
    categories: NDArray[np.uint16] | None


def damaged(path: Location, problem: str) -> NotABuildError:
    """The error that says what is wrong with a shard."""
    return NotABuildError(f"{path}: {problem}: run the same build command again to mend it.")


def row_groups(build: Build, grid: str | None, split: str | None) -> list[GroupAddress]:
    """The row groups of a grid in order, after comparing every shard's footer with the manifest.

    Args:
        grid: grid name, by default the first.
        split: split name, by default all.

    Raises:
        ParameterError: no such grid or split.
        NotABuildError: a shard is missing or cut short, or its rows, columns or parameters are not the manifest's; or
            the manifest contradicts itself.
    """
    listed = {build.path / shard.file: shard.rows for shard in build.shards}
    name = grid or next(iter(build.grids))
    found: list[GroupAddress] = []
    for each in (split,) if split is not None else build.splits:
        for path in build.files(name, each):
            try:
                with parquet_file(path) as file:
                    _check_header(build, header_of(file, path), path, name, each)
                    problem, columns = _schema_problem(file.schema_arrow, build), tuple(file.schema_arrow.names)
                    groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            except FileNotFoundError:
                raise damaged(path, "is missing") from None
            except (OSError, pa.ArrowException, UnicodeDecodeError):
                raise damaged(path, "is damaged or no shard") from None
            if found and columns != found[0].columns:
                problem = f"has other columns than {found[0].path.name}"
            if sum(groups) != listed[path]:
                problem = f"has {sum(groups)} rows where the manifest says {listed[path]}"
            if problem:
                raise damaged(path, problem)
            found += [GroupAddress(path, each, index, rows, columns) for index, rows in enumerate(groups)]
        images, held = (
            build.manifest["splits"][each]["images"],
            sum(group.rows for group in found if group.split == each),
        )
        if images != held:
            manifest = build.path / MANIFEST
            raise NotABuildError(f"{manifest}: says {images} images of {each}, the shards hold {held}: build again.")
    return found


def read_group(address: GroupAddress, columns: Iterable[str]) -> pa.Table:
    """Columns of one row group, or members of structs as in `objects.id`, each of one chunk, without nulls.

    Raises:
        NotABuildError: they cannot be decoded, or hold nulls.
    """
    wanted = list(columns)
    try:
        with parquet_file(address.path) as file:
            table = file.read_row_group(address.index, columns=wanted).combine_chunks()
    except (OSError, pa.ArrowException):
        raise damaged(address.path, "is damaged or no shard") from None
    if table.num_columns != len(wanted) or table.num_rows != address.rows:
        raise damaged(address.path, "has changed while it was read")
    for name in wanted:
        if table.column(name.partition(".")[0]).null_count:
            raise damaged(address.path, f"holds nulls in column {name!r}")
    return table


def list_values(table: pa.Table, column: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A column of lists of numbers: int64 (n + 1,) where each list starts, and all values end to end.

    Raises:
        ValueError: there are nulls among the values.
    """
    if not table.num_rows:
        return np.zeros(1, np.int64), plain(table.schema.field(column).type.value_type, [None, None], 0, 0)
    lists = table.column(column).chunk(0)
    offsets = np.frombuffer(lists.buffers()[1], np.int32)[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
    values = lists.flatten()
    if values.null_count:
        raise ValueError(f"holds nulls in column {column!r}")
    return offsets - offsets[0], plain(values.type, values.buffers(), values.offset, len(values))


def column_values(table: pa.Table, column: str) -> NDArray[Any]:
    """A column of numbers."""
    if not table.num_rows:
        return plain(table.schema.field(column).type, [None, None], 0, 0)
    chunk = table.column(column).chunk(0)
    return plain(chunk.type, chunk.buffers(), chunk.offset, len(chunk))


def plain(kind: pa.DataType, buffers: list[Any], offset: int, count: int) -> NDArray[Any]:
    """The numbers of an Arrow array without nulls; a view, except of bool, which is unpacked."""
    if pa.types.is_boolean(kind):
        if not count:
            return np.zeros(0, np.bool_)
        first = offset // 8
        packed = np.frombuffer(buffers[1], np.uint8)[first : (offset + count + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")[offset - 8 * first :][:count]
        return bits.view(np.bool_)
    dtype = np.dtype(kind.to_pandas_dtype())
    if not count:
        return np.zeros(0, dtype)
    return np.frombuffer(buffers[1], dtype)[offset : offset + count]


def cell_columns(table: pa.Table, constant_shape: tuple[int, int] | None, path: Location) -> CellColumns:
    """The cells of a row group, checked against its counts and its grid.

    Args:
        table: with the columns of `count_columns`.
        constant_shape: (rows, cols) that every image must have, or None.
        path: the shard, for errors.

    Raises:
        NotABuildError: lengths, counts, labels or scores that no build writes.
    """
    try:
        return _cell_columns(table, constant_shape)
    except ValueError as fault:
        raise damaged(path, str(fault)) from None


def count_columns(names: Iterable[str]) -> list[str]:
    """Of a shard's columns those that statistics read."""
    held = set(names)
    return [*_LABEL_TYPES, *_COUNT_TYPES, *(name for name in _CELL_TYPES if name in held)]


def _cell_columns(table: pa.Table, constant_shape: tuple[int, int] | None) -> CellColumns:
    widths, heights = column_values(table, "width"), column_values(table, "height")
    rows, cols = (column_values(table, name).astype(np.int64) for name in ("grid_rows", "grid_cols"))
    if len(rows) and min(widths.min(), heights.min(), rows.min(), cols.min()) < 1:
        raise ValueError("holds an image or a grid without size")
    if constant_shape is not None and not ((rows == constant_shape[0]) & (cols == constant_shape[1])).all():
        raise ValueError(f"holds a grid other than {constant_shape[0]} x {constant_shape[1]}")
    cells, labels = list_values(table, "labels")
    held: dict[str, NDArray[Any] | None] = {}
    for name in _CELL_TYPES:
        offsets, values = list_values(table, name) if name in table.column_names else (cells, None)
        if not np.array_equal(np.diff(offsets), rows * cols):
            raise ValueError(f"has an image with other than grid_rows x grid_cols values in column {name!r}")
        held[name] = values
    if not np.array_equal(np.diff(cells), rows * cols):
        raise ValueError("has an image with other than grid_rows x grid_cols labels")
    foreground, ignored = np.count_nonzero(labels == FOREGROUND), np.count_nonzero(labels == IGNORE)
    if np.count_nonzero(labels == 0) + foreground + ignored != len(labels):
        raise ValueError("holds labels other than 0, 1 and 255")
    for name, count in (("fg_count", foreground), ("ignore_count", ignored)):
        counts = column_values(table, name)
        if len(counts) and (counts.sum(dtype=np.int64) != count or counts.min() < 0):
            raise ValueError(f"holds labels that disagree with its column {name!r}")
    scores = held["scores"]
    if scores is not None and len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError("holds scores outside 0..1")
    return CellColumns(widths, heights, rows, cols, cells, labels, scores, held["ignored"], held["categories"])


def _check_header(build: Build, header: ShardHeader, path: Location, grid: str, split: str) -> None:
    parameters = build.manifest["parameters"]
    for name, held, wanted in (
        ("grid", header.grid, grid),
        ("split", header.split, split),
        ("rule", header.rule, parameters["rule"]),
        ("tau", header.tau, parameters["tau"]),
    ):
        if held != wanted:
            raise damaged(path, f"is of {name} {held!r} where the manifest says {wanted!r}")


def _schema_problem(schema: pa.Schema, build: Build) -> str | None:
    """What is wrong with the columns of a shard, or None."""
    parameters = build.manifest["parameters"]
    wanted = _LABEL_TYPES | _COUNT_TYPES | {name: kind for name, kind in _CELL_TYPES.items() if name in schema.names}
    if parameters["scores"]:
        wanted["scores"] = _CELL_TYPES["scores"]
    if "ignore" in (parameters.get(policy) for policy in ("crowd", "padding", "void", "difficult")):
        wanted["ignored"] = _CELL_TYPES["ignored"]
    for name, kind in wanted.items():
        if name not in schema.names:
            return f"has no column {name!r}"
        if not schema.field(name).type.equals(kind):
            types = "" if pa.types.is_struct(kind) else f" ({schema.field(name).type}, not {kind})"
            return f"has a column {name!r} of another type than builds write{types}"
    return None
