"""NumPy: one `.npz` for each split, or for every so many images; nothing in it is pickled.

    labels              uint8 (n, rows, cols); scores, ignored, categories, category_share likewise, where there are
                        any. Where the grid differs from image to image: (cells,), image after image, and
    offsets             int64 (n + 1,): the cells of image i are offsets[i] .. offsets[i + 1] - 1
    image_id, file_name text (n,)
    width, height, grid_rows, grid_cols, fg_count, ignore_count     int (n,)
    object_offsets      int64 (n + 1,): the objects of image i are object_offsets[i] .. object_offsets[i + 1] - 1
    object_id, object_bbox (m, 4), object_category, object_area, object_iscrowd, object_difficult, object_patches
    segment_...         likewise, of panoptic builds with masks
    category_id, category_name     (k,), what object_category indexes
    header              text (): JSON, what the shards say of themselves

The arrays are stored uncompressed and written piece by piece: memory holds one row group.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.errors import OutputError
from tokenlabels.export_arrays import members, npy_header
from tokenlabels.export_folder import PlannedFile
from tokenlabels.reader import Build
from tokenlabels.recutting import Chosen, GroupReader, binary_lengths, rows_of
from tokenlabels.shards import ShardHeader
from tokenlabels.stats_shards import column_values, list_values

_TEXTS = ("image_id", "file_name")
_NUMBERS = ("width", "height", "grid_rows", "grid_cols", "fg_count", "ignore_count")
_STRUCTS = {"objects": "object", "segments": "segment"}
_CELL_DTYPES: dict[str, type[np.generic]] = {
    "labels": np.uint8,
    "scores": np.float32,
    "ignored": np.bool_,
    "categories": np.uint16,
    "category_share": np.float32,
}
_LONGEST_TEXT = 1024
_BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip file can tell."""


def npz_file(
    build: Build,
    header: ShardHeader,
    split: str,
    chosen: Sequence[Chosen],
    index: int,
    total: int | None,
    reader: GroupReader,
) -> PlannedFile:
    """One file.

    Args:
        build: what is exported.
        header: of its shards.
        split: name of the split.
        chosen: its images, in order.
        index: its number in the split.
        total: files of the split; None: it is the only one.
        reader: reads them.
    """
    name = f"{split}.npz" if total is None else f"{split}-{index:05d}-of-{total:05d}.npz"
    rows = sum(len(each.rows) for each in chosen)
    shape = build.grids[header.grid].constant_shape
    stated = msgspec.structs.replace(header, split=split)
    return PlannedFile(name, split, rows, functools.partial(_write, reader, stated, shape, chosen))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What must be known before the first array: how many there are of everything."""

    rows: int
    cells: int
    texts: dict[str, int]
    objects: dict[str, int]


def _write(
    reader: GroupReader,
    header: ShardHeader,
    shape: tuple[int, int] | None,
    chosen: Sequence[Chosen],
    file: BinaryIO,
) -> None:
    columns = chosen[0].group.columns
    structs = [name for name in _STRUCTS if name in columns]
    sizes = _measure(reader, chosen, structs)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, values in _tables(header).items():
            _add(archive, name, values.dtype, values.shape, iter([values]))
        for name in _NUMBERS:
            parts = (column_values(table, name) for table in _read(reader, chosen, [name]))
            dtype = np.dtype(np.int16 if name.startswith("grid_") else np.int32)
            _add(archive, name, dtype, (sizes.rows,), parts)
        for name in _TEXTS:
            dtype = np.dtype(f"<U{max(1, sizes.texts[name])}")
            texts = (np.array(table.column(name).to_pylist(), dtype) for table in _read(reader, chosen, [name]))
            _add(archive, name, dtype, (sizes.rows,), texts)
        for name in (name for name in _CELL_DTYPES if name in columns):
            dtype = np.dtype(_CELL_DTYPES[name])
            parts = (list_values(table, name)[1] for table in _read(reader, chosen, [name]))
            _add(archive, name, dtype, (sizes.cells,) if shape is None else (sizes.rows, *shape), parts)
        if shape is None:
            _add(archive, "offsets", np.dtype(np.int64), (sizes.rows + 1,), _offsets(reader, chosen, "labels", _cells))
        for struct in structs:
            _add_struct(archive, reader, chosen, struct, sizes)


def _add_struct(
    archive: zipfile.ZipFile, reader: GroupReader, chosen: Sequence[Chosen], struct: str, sizes: _Sizes
) -> None:
    prefix, count = _STRUCTS[struct], sizes.objects[struct]

    def offsets_of(table: pa.Table) -> NDArray[np.int64]:
        return members(table, struct)[0]

    parts = _offsets(reader, chosen, f"{struct}.id", offsets_of)
    _add(archive, f"{prefix}_offsets", np.dtype(np.int64), (sizes.rows + 1,), parts)
    first = next(_read(reader, chosen, [struct]))
    for name, values in members(first, struct)[1].items():
        values_of = (members(table, struct)[1][name] for table in _read(reader, chosen, [f"{struct}.{name}"]))
        _add(archive, f"{prefix}_{name}", values.dtype, (count, *values.shape[1:]), values_of)


def _cells(table: pa.Table) -> NDArray[np.int64]:
    return list_values(table, "labels")[0]


def _offsets(
    reader: GroupReader, chosen: Sequence[Chosen], column: str, of: Callable[[pa.Table], NDArray[np.int64]]
) -> Iterator[NDArray[np.int64]]:
    """Where the values of each image start, over all images."""
    start = 0
    yield np.zeros(1, np.int64)
    for table in _read(reader, chosen, [column]):
        offsets = of(table)
        yield offsets[1:] + start
        start += int(offsets[-1])


def _tables(header: ShardHeader) -> dict[str, NDArray[Any]]:
    categories = header.categories
    return {
        "header": np.array(msgspec.json.encode(header).decode()),
        "category_id": np.array([category.id for category in categories], np.int64),
        "category_name": np.array([category.name for category in categories], np.str_),
    }


def _measure(reader: GroupReader, chosen: Sequence[Chosen], structs: Sequence[str]) -> _Sizes:
    rows, cells = 0, 0
    texts, objects = dict.fromkeys(_TEXTS, 0), dict.fromkeys(structs, 0)
    for table in _read(reader, chosen, [*_TEXTS, "grid_rows", "grid_cols", *(f"{name}.id" for name in structs)]):
        rows += len(table)
        sides = [column_values(table, name).astype(np.int64) for name in ("grid_rows", "grid_cols")]
        cells += int((sides[0] * sides[1]).sum())
        for name in _TEXTS:
            texts[name] = max(texts[name], int(binary_lengths(table.column(name).chunk(0)).max(initial=0)))
        for name in structs:
            objects[name] += int(members(table, name)[0][-1])
    name, longest = max(texts.items(), key=lambda pair: pair[1])
    if longest > _LONGEST_TEXT:
        raise OutputError(f"a {name} has {longest} bytes, more than the {_LONGEST_TEXT} that npz has room for.")
    return _Sizes(rows, cells, texts, objects)


def _read(reader: GroupReader, chosen: Sequence[Chosen], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the rows; of a single row group, which many files may share, everything is read at once and kept."""
    if len(chosen) == 1:
        columns = [name for name in chosen[0].group.columns if name not in ("image", "mask")]
    for each in chosen:
        yield rows_of(reader.read(each.build, each.group, columns), each.rows)


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    parts: Iterator[NDArray[Any]],
) -> None:
    described = zipfile.ZipInfo(f"{name}.npy", _BEGINNING)
    described.external_attr = 0o644 << 16
    with archive.open(described, "w", force_zip64=True) as file:
        file.write(npy_header(dtype, shape))
        written = 0
        for part in parts:
            values = np.ascontiguousarray(part, dtype)
            written += values.size
            if values.size:
                file.write(values.reshape(-1).view(np.uint8).data)
    if written != int(np.prod(shape)):
        raise OutputError(f"the build has {written} values of {name} for the shape {shape}: build it again.")
