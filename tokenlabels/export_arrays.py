"""Columns of shards as NumPy arrays, and numbers as people wrote them: what the export formats share."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.stats_shards import list_values, plain

_DECIMALS = 9


@functools.lru_cache(maxsize=4096)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The head of a `.npy` file, version 1.0; the values follow in row-major order."""
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def members(table: pa.Table, struct: str) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    """A column that is a struct of lists, such as `objects`: where the lists of each image start, and all values.

    Returns:
        int64 (n + 1,), and for each member an array of m values; `bbox` is (m, 4).
    """
    column = table.column(struct).chunk(0)
    offsets, found = np.zeros(1, np.int64), dict[str, NDArray[Any]]()
    for index, field in enumerate(column.type):
        inner = pa.table({field.name: column.field(index)})
        if pa.types.is_fixed_size_list(field.type.value_type):
            values = inner.column(0).chunk(0).flatten().flatten()
            found[field.name] = plain(values.type, values.buffers(), values.offset, len(values)).reshape(-1, 4)
        else:
            offsets, found[field.name] = list_values(inner, field.name)
    return offsets, found


def as_written(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The shortest decimals that are these float32 numbers.

    A box of an annotation file, rounded to float32 in a shard, is so found again: `100.1`, not `100.0999984741211`.
    """
    exact = values.astype(np.float64)
    found, missing = exact.copy(), np.ones(values.shape, np.bool_)
    for decimals in range(_DECIMALS + 1):
        rounded = np.round(exact[missing], decimals)
        same = rounded.astype(np.float32) == values[missing]
        places = np.flatnonzero(missing)
        found.flat[places[same]] = rounded[same]
        missing.flat[places[same]] = False
        if not missing.any():
            break
    return found
