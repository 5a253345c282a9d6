"""Columns of a window of rows: filled from Arrow a piece at a time, and given out as tensors, a few rows at a time.

Every kind of column has three methods. `add` takes the next rows of the window, `batch` gives some rows as one value,
and `each` gives them one by one. What they give is copied out of the window, so that it can be changed and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlabels.errors import TokenLabelsError
from tokenlabels.shards import ShardHeader, numbers
from tokenlabels.stats_shards import plain
from tokenlabels.torch_pictures import decode_image, decode_mask

Rows = NDArray[np.int64]
"""Some rows of a window: int64 (n,)."""

CELL_COLUMNS = ("labels", "scores", "ignored", "categories", "category_share")
"""One value for each cell of the grid."""

_DTYPES: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.uint16): np.dtype(np.int32),
    np.dtype(np.int16): np.dtype(np.int64),
}
"""What torch cannot count with, and what is given in its place."""


class Column(Protocol):
    """A column of a window."""

    def add(self, array: pa.Array) -> None:
        """Take the next rows; ValueError says what is wrong with them."""

    def batch(self, rows: Rows) -> Any:
        """Some rows as one value."""

    def each(self, rows: Rows) -> Iterable[Any]:
        """Some rows one by one."""


def column_for(field: pa.Field, header: ShardHeader, rows: int, shards: Sequence[str], *, decode: bool) -> Column:
    """The empty column of a window.

    Args:
        field: its name and type.
        header: of the shards.
        rows: of the window.
        shards: names of the files that its pieces are from.
        decode: pictures and masks become tensors.
    """
    grid = header.patch_grid()
    if field.name in CELL_COLUMNS:
        return Cells(field, grid.constant_shape, rows) if grid.constant_shape else RaggedCells(field)
    if field.name in ("image", "mask"):
        decoder = {"image": decode_image, "mask": decode_mask}[field.name] if decode else None
        return Files(decoder, shards, stacked=header.embed_size is not None and grid.constant_shape is not None)
    if pa.types.is_struct(field.type):
        return Lists(field)
    return Texts() if pa.types.is_string(field.type) else Numbers(rows)


class Numbers:
    """A whole number a row: batches int64 (n,), rows int."""

    def __init__(self, rows: int) -> None:
        self._values = np.empty(rows, np.int64)
        self._filled = 0

    def add(self, array: pa.Array) -> None:
        end = self._filled + len(array)
        self._values[self._filled : end] = _numbers(array)
        self._filled = end

    def batch(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self._values[rows])

    def each(self, rows: Rows) -> list[int]:
        found: list[int] = self._values[rows].tolist()
        return found


class Cells:
    """Values of the cells of a grid that is the same for all: batches (n, rows, cols), rows (rows, cols)."""

    def __init__(self, field: pa.Field, shape: tuple[int, int], rows: int) -> None:
        self._shape = shape
        self._values = np.empty((rows, shape[0] * shape[1]), _dtype(field.type.value_type))
        self._filled = 0

    def add(self, array: pa.Array) -> None:
        cells = self._values.shape[1]
        if (np.diff(_offsets(array)) != cells).any():
            raise ValueError(f"holds a grid other than {self._shape[0]} x {self._shape[1]}")
        end = self._filled + len(array)
        self._values[self._filled : end] = _numbers(array.flatten()).reshape(-1, cells)
        self._filled = end

    def batch(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self._values[rows].reshape(-1, *self._shape))

    def each(self, rows: Rows) -> Sequence[Tensor]:
        return self.batch(rows).unbind()


class _Packed:
    """Lists of different lengths end to end; several columns may have the same lengths."""

    def __init__(self, dtypes: Sequence[tuple[np.dtype[Any], int]]) -> None:
        self._starts: list[NDArray[np.int64]] = []
        self._parts: list[list[NDArray[Any]]] = [[] for _ in dtypes]
        self._shapes = dtypes
        self._total = 0

    def add(self, offsets: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> None:
        """`offsets` int64 (n + 1,), from 0; each column (total, width)."""
        self._starts.append(offsets[:-1] + self._total)
        self._total += int(offsets[-1])
        for part, column in zip(self._parts, columns, strict=True):
            part.append(column)

    @functools.cached_property
    def _whole(self) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        starts = np.concatenate([*self._starts, np.array([self._total])])
        values = [
            np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros((0, width), dtype)
            for parts, (dtype, width) in zip(self._parts, self._shapes, strict=True)
        ]
        self._parts = []
        return starts, values

    def ends(self, rows: Rows) -> NDArray[np.int64]:
        """int64 (n + 1,), from 0: where the lists of some rows end when they are packed."""
        offsets = self._whole[0]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(offsets[rows + 1] - offsets[rows])])

    def take(self, rows: Rows) -> tuple[NDArray[np.int64], list[Tensor]]:
        """See `ends`, and the values of some rows, packed, one tensor a column."""
        (offsets, columns), ends = self._whole, self.ends(rows)
        where = np.repeat(offsets[rows] - ends[:-1], np.diff(ends)) + np.arange(ends[-1])
        return ends, [torch.from_numpy(column[where]) for column in columns]


class RaggedCells:
    """Values of the cells of grids that differ: batches (total,) beside `ends`, rows (grid_rows * grid_cols,)."""

    def __init__(self, field: pa.Field) -> None:
        self._packed = _Packed([(_dtype(field.type.value_type), 1)])

    def add(self, array: pa.Array) -> None:
        self._packed.add(_offsets(array), [_numbers(array.flatten())[:, None]])

    def ends(self, rows: Rows) -> Tensor:
        """int32 (n + 1,): `cu_seqlens` of a batch."""
        return torch.from_numpy(self._packed.ends(rows).astype(np.int32))

    def batch(self, rows: Rows) -> Tensor:
        return self._packed.take(rows)[1][0][:, 0]

    def each(self, rows: Rows) -> Sequence[Tensor]:
        ends, (values,) = self._packed.take(rows)
        return torch.split(values[:, 0], np.diff(ends).tolist())


class Lists:
    """A struct of lists, `objects` or `segments`: a dict of tensors (m,), `bbox` (m, 4); batches also `cu_seqlens`."""

    def __init__(self, field: pa.Field) -> None:
        self._kinds = {member.name: member.type.value_type for member in field.type}
        self._packed = _Packed([(_dtype(_leaf(kind)), _width(kind)) for kind in self._kinds.values()])

    def add(self, array: pa.Array) -> None:
        members = dict(zip(self._kinds, array.flatten(), strict=True))
        offsets = [_offsets(member) for member in members.values()]
        if any(not np.array_equal(other, offsets[0]) for other in offsets):
            raise ValueError("holds an image whose lists of objects differ in length")
        columns = []
        for member, kind in zip(members.values(), self._kinds.values(), strict=True):
            values = member.flatten()
            if values.null_count:
                raise ValueError("holds objects without values")
            columns.append(_numbers(values.flatten() if _width(kind) > 1 else values).reshape(-1, _width(kind)))
        self._packed.add(offsets[0], columns)

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        ends, columns = self._packed.take(rows)
        return {"cu_seqlens": torch.from_numpy(ends.astype(np.int32))} | self._named(columns)

    def each(self, rows: Rows) -> Iterator[dict[str, Tensor]]:
        ends, columns = self._packed.take(rows)
        lengths = np.diff(ends).tolist()
        parts = [torch.split(column, lengths) for column in self._named(columns).values()]
        return (dict(zip(self._kinds, values, strict=True)) for values in zip(*parts, strict=True))

    def _named(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            name: column if column.shape[1] > 1 else column[:, 0]
            for name, column in zip(self._kinds, columns, strict=True)
        }


class Texts:
    """A text a row: batches list of str."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []

    def add(self, array: pa.Array) -> None:
        self._parts.append(array)

    @functools.cached_property
    def _whole(self) -> pa.Array:
        return pa.concat_arrays(self._parts)

    def batch(self, rows: Rows) -> list[str]:
        found: list[str] = self._whole.take(numbers(rows)).to_pylist()
        return found

    each = batch


class Files:
    """An embedded file a row: bytes, or what `decoder` makes of them; batches a list, or a tensor where all are alike.

    Args:
        decoder: such as `decode_image`, or None.
        shards: names of the files that its pieces are from.
        stacked: whether all are of one size.
    """

    def __init__(self, decoder: Callable[[bytes, str], Tensor] | None, shards: Sequence[str], *, stacked: bool) -> None:
        self._decoder, self._shards = decoder, shards
        self._stacked = stacked and decoder is not None
        self._parts: list[pa.Array] = []
        self._ends: list[int] = []

    def add(self, array: pa.Array) -> None:
        self._parts.append(array)
        self._ends.append(len(array) + (self._ends[-1] if self._ends else 0))

    def each(self, rows: Rows) -> Iterator[Any]:
        for row, number in zip(rows.tolist(), np.searchsorted(self._ends, rows, "right").tolist(), strict=True):
            part = self._parts[number]
            inside = row - (self._ends[number] - len(part))
            content = part.field("bytes")[inside].as_py() or b""
            name = f"{self._shards[number]}: {part.field('path')[inside]}"
            yield self._decoder(content, name) if self._decoder else content

    def batch(self, rows: Rows) -> Any:
        found = list(self.each(rows))
        if not self._stacked:
            return found
        if len({tuple(each.shape) for each in found}) > 1:
            shards = ", ".join(sorted(set(self._shards)))
            raise TokenLabelsError(f"{shards}: embedded pictures differ in size, though all were resized: build again.")
        return torch.stack(found)


def _numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an Arrow array, a view where they are no bool."""
    if array.null_count:
        raise ValueError("holds nulls")
    return plain(array.type, array.buffers(), array.offset, len(array))


def _offsets(lists: pa.Array) -> NDArray[np.int64]:
    """int64 (n + 1,), from 0: where each list begins in what `flatten` gives."""
    if not len(lists):
        return np.zeros(1, np.int64)
    found = np.frombuffer(lists.buffers()[1], np.int32)[lists.offset : lists.offset + len(lists) + 1]
    starts: NDArray[np.int64] = np.subtract(found, found[0], dtype=np.int64)
    return starts


def _leaf(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_fixed_size_list(kind) else kind


def _width(kind: pa.DataType) -> int:
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 1


def _dtype(kind: pa.DataType) -> np.dtype[Any]:
    stored: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return _DTYPES.get(stored, stored)
