"""Shards: the Parquet schema, the tables of a block of images, and a writer that commits all or nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenlabels.annotations import Category, Records
from tokenlabels.atomic import Temporary, sha256_of, unwritable
from tokenlabels.errors import OutputError
from tokenlabels.grid import PatchGrid
from tokenlabels.rules import PaddingPolicy, Policy, RuleName, RuleSpec

if TYPE_CHECKING:
    from tokenlabels.scoring import CellLabels  # loads the kernels
    from tokenlabels.storage import Location

SCHEMA_VERSION = 1

ROW_GROUP_CELLS = 1 << 24
"""Cells of a row group, all grids of a pass together: bounds the memory of a task to a few hundred MiB."""

ROW_GROUP_IMAGE_BYTES = 100 << 20
"""Embedded image bytes of a row group."""

_MAX_BINARY = 2**31 - 1
_DICTIONARY_COLUMNS = ["labels.list.element", "objects.category.list.element"]
_STATISTICS_COLUMNS = ["image_id", "file_name", "width", "height", "grid_rows", "grid_cols", "fg_count", "ignore_count"]
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": _DICTIONARY_COLUMNS,
    "write_statistics": _STATISTICS_COLUMNS,
}

OBJECT_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", pa.int64()),
    ("bbox", pa.list_(pa.float32(), 4)),
    ("category", pa.int32()),
    ("area", pa.float32()),
    ("iscrowd", pa.bool_()),
    ("difficult", pa.bool_()),
    ("patches", pa.int32()),
]


_SEGMENTS: list[tuple[str, pa.DataType]] = [("id", pa.int64()), ("category", pa.int32()), ("iscrowd", pa.bool_())]


class ShardHeader(msgspec.Struct, frozen=True):
    """What a shard says of itself, as JSON under the key `tokenlabels` of its Parquet metadata.

    Attributes:
        schema_version: of the columns and of this header.
        format: source format, such as `coco`.
        split: split name.
        grid: name of the grid (`384x384-p16`); `patch`, `image_size`, `resize` and `max_size` define it.
        patch: (height, width) in model-input pixels.
        image_size: (H', W'), or None for native.
        resize: resize policy.
        max_size: cap on the long side, shortest-edge only.
        rule: name of the rule; `tau`, `crowd`, `padding`, `void` and `difficult` complete it.
        tau: threshold.
        crowd: policy for crowd regions.
        padding: policy for patches wholly in padding.
        categories: the category table that `objects.category` and `categories` index.
        void: policy for void pixels of masks.
        difficult: policy for boxes marked difficult.
        embed_size: (height, width) that embedded images and masks were resized to; None: they are the files.
    """

    schema_version: int
    format: str
    split: str
    grid: str
    patch: tuple[int, int]
    image_size: tuple[int, int] | None
    resize: str
    max_size: int | None
    rule: RuleName
    tau: float
    crowd: Policy
    padding: PaddingPolicy
    categories: tuple[Category, ...]
    void: Policy = "background"
    difficult: Policy = "foreground"
    embed_size: tuple[int, int] | None = None

    @property
    def spec(self) -> RuleSpec:
        """The rule with its threshold and policies."""
        return RuleSpec(self.rule, self.tau, self.crowd, self.padding, self.void, self.difficult)

    def patch_grid(self) -> PatchGrid:
        """The grid, rebuilt."""
        return PatchGrid.stored(self.patch, self.image_size, self.resize, self.max_size)


class Columns(msgspec.Struct, frozen=True):
    """Which of the columns that a build may have it does have.

    Attributes:
        scores: `scores`.
        images: `image`.
        masks: `mask`.
        majority: `categories` and `category_share`.
        segments: `segments`, what the colours of embedded panoptic masks mean.
    """

    scores: bool = True
    images: bool = False
    masks: bool = False
    majority: bool = False
    segments: bool = False

    @classmethod
    def of(cls, names: Sequence[str]) -> Columns:
        """From the names of the columns of a shard."""
        return cls("scores" in names, "image" in names, "mask" in names, "categories" in names, "segments" in names)


class ShardEntry(msgspec.Struct, frozen=True):
    """A finished shard: its path relative to the build, rows, size in bytes and sha256."""

    file: str
    rows: int
    bytes: int
    sha256: str


def shard_name(split: str, index: int, total: int) -> str:
    """File name of one shard of a split."""
    return f"{split}-{index:05d}-of-{total:05d}.parquet"


def schema_of(header: ShardHeader, columns: Columns) -> pa.Schema:
    """The Arrow schema of a shard, with its metadata.

    Args:
        header: what the shard says of itself.
        columns: which columns it has.
    """
    fields = [
        pa.field("image_id", pa.string()),
        pa.field("file_name", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("grid_rows", pa.int16()),
        pa.field("grid_cols", pa.int16()),
        pa.field("labels", pa.list_(pa.uint8())),
    ]
    if columns.scores:
        fields.append(pa.field("scores", pa.list_(pa.float32())))
    if header.spec.stores_ignored:
        fields.append(pa.field("ignored", pa.list_(pa.bool_())))
    if columns.majority:
        fields.append(pa.field("categories", pa.list_(pa.uint16())))
        fields.append(pa.field("category_share", pa.list_(pa.float32())))
    fields += [
        pa.field("fg_count", pa.int32()),
        pa.field("ignore_count", pa.int32()),
        pa.field("objects", pa.struct([pa.field(name, pa.list_(kind)) for name, kind in OBJECT_FIELDS])),
    ]
    if columns.segments:
        fields.append(pa.field("segments", pa.struct([pa.field(name, pa.list_(kind)) for name, kind in _SEGMENTS])))
    fields += [
        pa.field(name, pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
        for name, wanted in (("image", columns.images), ("mask", columns.masks))
        if wanted
    ]
    features = features_of(fields, header.categories)
    metadata = {
        "huggingface": msgspec.json.encode({"info": {"features": features}}),
        "tokenlabels": msgspec.json.encode(header),
    }
    return pa.schema(fields, metadata)


def features_of(fields: Iterable[pa.Field], categories: Sequence[Category]) -> dict[str, Any]:
    """The Hugging Face features of the columns: categories of objects as class labels, pictures as images."""
    features: dict[str, Any] = {field.name: _feature(field.type) for field in fields}
    labels = {"names": _unique_names(categories), "_type": "ClassLabel"}
    for column in ("objects", "segments"):
        if column in features:
            features[column]["category"] = {"feature": labels, "_type": "Sequence"}
    for column in ("image", "mask"):
        if column in features:
            features[column] = {"_type": "Image"}
    return features


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """The Hugging Face feature of an Arrow type."""
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    name = {"float": "float32"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}


def _unique_names(categories: Sequence[Category]) -> list[str]:
    """Category names, made unique by their id where two are alike: ClassLabel insists."""
    counts = Counter(category.name for category in categories)
    return [
        f"{category.name} ({category.id})" if counts[category.name] > 1 else category.name for category in categories
    ]


def build_table(
    records: Records,
    labelled: CellLabels,
    schema: pa.Schema,
    images: Sequence[bytes] | None = None,
    masks: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """The rows of n images on one grid.

    Args:
        records: the images and their annotations.
        labelled: their labels on this grid.
        schema: see `schema_of`; it says which columns are wanted.
        images: n encoded images, where the schema has the column.
        masks: n encoded masks, where the schema has the column; None for an image without.
    """
    cells, offsets = labelled.cells, records.offsets
    objects = {
        "id": numbers(records.ids),
        "bbox": pa.FixedSizeListArray.from_arrays(numbers(records.boxes.astype(np.float32).ravel()), 4),
        "category": numbers(records.categories),
        "area": numbers(records.areas.astype(np.float32)),
        "iscrowd": numbers(records.crowd),
        "difficult": numbers(records.difficult),
        "patches": numbers(labelled.patches),
    }
    columns: dict[str, pa.Array] = {
        "image_id": _texts([image_id.encode() for image_id in records.image_ids], pa.string()),
        "file_name": _texts([name.encode() for name in records.file_names], pa.string()),
        "width": numbers(records.widths),
        "height": numbers(records.heights),
        "grid_rows": numbers(labelled.axes.rows.astype(np.int16)),
        "grid_cols": numbers(labelled.axes.cols.astype(np.int16)),
        "labels": lists(cells, numbers(labelled.labels)),
        "scores": lists(cells, numbers(labelled.scores)),
        "ignored": lists(cells, numbers(labelled.ignored)),
        "fg_count": numbers(labelled.fg_count),
        "ignore_count": numbers(labelled.ignore_count),
        "objects": pa.StructArray.from_arrays(
            [lists(offsets, objects[name]) for name, _ in OBJECT_FIELDS],
            fields=list(schema.field("objects").type),
        ),
    }
    if labelled.categories is not None and labelled.category_shares is not None:
        columns["categories"] = lists(cells, numbers(labelled.categories))
        columns["category_share"] = lists(cells, numbers(labelled.category_shares))
    if "segments" in schema.names:
        columns["segments"] = _segment_lists(records, list(schema.field("segments").type))
    if images is not None:
        columns["image"] = _files(images, records.file_names, list(schema.field("image").type))
    if masks is not None:
        columns["mask"] = _files(masks, records.mask_files or (), list(schema.field("mask").type))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _segment_lists(records: Records, fields: list[pa.Field]) -> pa.StructArray:
    assert records.maps is not None
    assert records.maps.segments is not None
    segments = records.maps.segments
    values = (segments.ids, segments.categories, segments.crowd)
    return pa.StructArray.from_arrays([lists(segments.offsets, numbers(part)) for part in values], fields=fields)


def _files(contents: Sequence[bytes | None], paths: Sequence[str], fields: list[pa.Field]) -> pa.StructArray:
    """Encoded pictures in the form of the Hugging Face `Image` feature; null where there is none."""
    members = [
        _texts([content or b"" for content in contents], pa.binary()),
        _texts([path.encode() for path in paths], pa.string()),
    ]
    absent = np.array([content is None for content in contents], np.bool_)
    return pa.StructArray.from_arrays(members, fields=fields, mask=numbers(absent) if absent.any() else None)


def lists(offsets: NDArray[np.int64], values: pa.Array) -> pa.ListArray:
    """n lists end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""
    return pa.ListArray.from_arrays(numbers(offsets.astype(np.int32)), values)


def numbers(values: NDArray[Any]) -> pa.Array:
    """An Arrow array of numpy numbers, not copied (bool is packed).

    Not `pa.array`, which imports pandas where it is installed, half a second in every process.
    """
    if values.dtype == np.bool_:
        packed = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _texts(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    """An Arrow array of strings or binaries, see `numbers`."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if ends[-1] > _MAX_BINARY:
        raise OutputError(f"{len(values)} texts or images of {ends[-1]} bytes do not fit a row group.")
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(kind, len(values), [None, offsets, pa.py_buffer(b"".join(values))])


def row_group_spans(cells: NDArray[np.int64], image_bytes: NDArray[np.int64] | None) -> list[tuple[int, int]]:
    """Cut n images into row groups, by their content alone: as many images as fit both budgets, at least one.

    Args:
        cells: int64 (n,), cells of each image over all grids of the pass.
        image_bytes: int64 (n,), embedded bytes of each image.
    """
    spans = []
    start, used_cells, used_bytes = 0, 0, 0
    sizes = np.zeros(len(cells), np.int64) if image_bytes is None else image_bytes
    for index, (more_cells, more_bytes) in enumerate(zip(cells.tolist(), sizes.tolist(), strict=True)):
        full = used_cells + more_cells > ROW_GROUP_CELLS or used_bytes + more_bytes > ROW_GROUP_IMAGE_BYTES
        if full and index > start:
            spans.append((start, index))
            start, used_cells, used_bytes = index, 0, 0
        used_cells += more_cells
        used_bytes += more_bytes
    spans.append((start, len(cells)))
    return spans


class ShardWriter:
    """Writes one shard and gives it its final name when it is whole; use as a context manager.

    On disk it is written beside that name and renamed. For a store, which has no rename, it is written to a temporary
    file of this machine, one without a name, and uploaded in one put. A shard left early (an exception, a failed write)
    leaves nothing behind; a killed process leaves, on disk, a temporary file that `is_temporary` recognises.
    """

    def __init__(self, path: Location, schema: pa.Schema) -> None:
        self._path = path
        self._temporary = Temporary(path)
        self._rows = 0
        self.schema = schema
        self._writer: pq.ParquetWriter | None = None
        self.entry: ShardEntry | None = None

    def __enter__(self) -> ShardWriter:
        try:
            if isinstance(self._path, Path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary.path, self.schema, **_PARQUET)
        except OSError as fault:
            self._temporary.remove()
            raise self._temporary.unwritable(fault) from fault
        return self

    def write(self, table: pa.Table) -> None:
        """Add one row group."""
        assert self._writer is not None
        try:
            self._writer.write_table(table, row_group_size=max(len(table), 1))
        except OSError as fault:
            raise self._temporary.unwritable(fault) from fault
        self._rows += len(table)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None
        try:
            try:
                self._writer.close()
            except OSError as fault:
                if kind is None:
                    raise self._temporary.unwritable(fault) from fault
            if kind is None:
                self.entry = self._commit()
        finally:
            self._temporary.remove()

    def _commit(self) -> ShardEntry:
        try:
            with self._temporary.path.open("rb") as file:
                os.fsync(file.fileno())
                rows = pq.ParquetFile(file).metadata.num_rows
                if rows != self._rows:
                    raise OutputError(f"{self._path}: {rows} rows read back, {self._rows} written: is the disk sound?")
            size, digest = self._temporary.path.stat().st_size, sha256_of(self._temporary.path)
            self._temporary.commit(size)
        except (OSError, pa.ArrowInvalid) as fault:
            raise unwritable(self._path, fault) from fault
        return ShardEntry(f"{self._path.parent.name}/{self._path.name}", self._rows, size, digest)


def encoded_size(table: pa.Table) -> int:
    """Bytes of a table as a shard."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_PARQUET)
    return int(sink.getvalue().size)
