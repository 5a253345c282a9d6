"""The rows of a build as flat arrays: everything but pixels. What training, evaluation and calibration read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.annotations import Category, Records
from tokenlabels.errors import NotABuildError, ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.reader import Build, read_header
from tokenlabels.shards import ShardHeader
from tokenlabels.stats_shards import (
    GroupAddress,
    cell_columns,
    column_values,
    count_columns,
    damaged,
    list_values,
    read_group,
    row_groups,
)
from tokenlabels.storage import parquet_file

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_OBJECT_COLUMNS = ("category", "area", "iscrowd", "difficult", "patches")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n images on one grid of constant shape, and their m objects, which are sorted by image.

    Attributes:
        folder: the build they are from.
        header: what its shards say of themselves, apart from their split.
        grid: the grid.
        splits: n names.
        image_ids: n ids.
        file_names: n paths relative to the image folder.
        widths: int32 (n,), source pixels.
        heights: int32 (n,), source pixels.
        labels: uint8 (n, rows, cols): 1 foreground, 0 background, 255 ignore.
        scores: float32 (n, rows, cols), or None where they were not asked for.
        offsets: int64 (n + 1,): the objects of image i are offsets[i] .. offsets[i + 1] - 1.
        boxes: float32 (m, 4), xywh in source pixels, as annotated.
        objects: columns of m values each: `category` int32, `area` float32, `iscrowd` bool, `difficult` bool,
            `patches` int32.
        groups: the row groups that hold these images.
        group: int32 (n,), index into `groups`.
        row: int32 (n,), row in that row group.
        picture_bytes: bytes that the embedded pictures of each row group take, 0 where there are none; and masks, where
            `bavit.segment.masks.with_masks` says that they are read, too.
    """

    folder: Location
    header: ShardHeader
    grid: PatchGrid
    splits: Sequence[str]
    image_ids: Sequence[str]
    file_names: Sequence[str]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    objects: dict[str, NDArray[Any]]
    groups: Sequence[GroupAddress]
    group: NDArray[np.int32]
    row: NDArray[np.int32]
    picture_bytes: Sequence[int]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The category table that `objects["category"]` indexes."""
        return self.header.categories

    @property
    def has_pictures(self) -> bool:
        """Whether the shards embed the images."""
        return self._holds("image")

    @property
    def has_masks(self) -> bool:
        """Whether the shards embed masks, though perhaps not of every image."""
        return self._holds("mask")

    def _holds(self, column: str) -> bool:
        return bool(self.groups) and column in self.groups[0].columns

    def keep(self, kept: NDArray[np.bool_]) -> Rows:
        """The images where `kept` bool (n,) is true, with their objects."""
        counts = np.diff(self.offsets)
        chosen, objects = np.flatnonzero(kept).tolist(), np.repeat(kept, counts)
        return replace(
            self,
            splits=[self.splits[index] for index in chosen],
            image_ids=[self.image_ids[index] for index in chosen],
            file_names=[self.file_names[index] for index in chosen],
            widths=self.widths[kept],
            heights=self.heights[kept],
            labels=self.labels[kept],
            scores=None if self.scores is None else self.scores[kept],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])]),
            boxes=self.boxes[objects],
            objects={name: values[objects] for name, values in self.objects.items()},
            group=self.group[kept],
            row=self.row[kept],
        )

    @property
    def has_objects(self) -> bool:
        """Whether there is an object that a detector is judged by: no crowd, and not difficult."""
        return bool((~(self.objects["iscrowd"] | self.objects["difficult"]).astype(np.bool_)).any())

    def records(self, index: int) -> Records:
        """One image with its boxes, as the rules of tokenlabels take it."""
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        return Records(
            image_ids=[self.image_ids[index]],
            file_names=[self.file_names[index]],
            widths=self.widths[index : index + 1],
            heights=self.heights[index : index + 1],
            offsets=np.array([0, last - first], np.int64),
            ids=np.arange(first, last, dtype=np.int64),
            boxes=self.boxes[first:last].astype(np.float64),
            categories=self.objects["category"][first:last],
            areas=self.objects["area"][first:last].astype(np.float64),
            crowd=self.objects["iscrowd"][first:last],
            difficult=self.objects["difficult"][first:last],
        )


def read_rows(build: Build, *, grid: str | None = None, splits: Sequence[str] | None = None, scores: bool) -> Rows:
    """Read some splits of a build.

    Args:
        build: a finished build.
        grid: grid name, by default the first.
        splits: split names in order, by default all.
        scores: read the scores, too.

    Raises:
        ParameterError: no such grid or split, a grid whose shape differs from image to image, or scores are asked for
            where there are none.
        NotABuildError: a shard is missing, damaged, or other than the manifest says.
    """
    name = grid or next(iter(build.grids))
    if name not in build.grids:
        raise ParameterError(f"{build.path} holds no grid {name!r}: it has {', '.join(build.grids)}.")
    shape = build.grids[name].constant_shape
    if shape is None:
        raise ParameterError(
            f"{build.path} has the grid {name}, whose shape differs from image to image: bavit takes squash and "
            "letterbox, build with --resize squash."
        )
    if scores and not build.manifest["parameters"]["scores"]:
        raise ParameterError(f"{build.path} was built without scores (--no-scores), which soft targets need.")
    groups = [group for split in splits or build.splits for group in row_groups(build, name, split)]
    parts = [_read_part(group, shape, scores=scores) for group in groups]
    if not parts:
        raise NotABuildError(f"{build.path}: holds no shards of {', '.join(splits or build.splits)}: build again.")
    counts = [group.rows for group in groups]
    return Rows(
        folder=build.path,
        header=read_header(groups[0].path),
        grid=build.grids[name],
        splits=[group.split for group in groups for _ in range(group.rows)],
        image_ids=[image_id for part in parts for image_id in part.image_ids],
        file_names=[file for part in parts for file in part.file_names],
        widths=np.concatenate([part.widths for part in parts]),
        heights=np.concatenate([part.heights for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        scores=np.concatenate([part.scores for part in parts if part.scores is not None]) if scores else None,
        offsets=np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.offsets) for part in parts]))]).astype(
            np.int64
        ),
        boxes=np.concatenate([part.boxes for part in parts]),
        objects={key: np.concatenate([part.objects[key] for part in parts]) for key in _OBJECT_COLUMNS},
        groups=groups,
        group=np.repeat(np.arange(len(groups), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        picture_bytes=[embedded_bytes(group, "image") for group in groups],
    )


def embedded_bytes(group: GroupAddress, column: str) -> int:
    """Bytes that the files in a column, `image` or `mask`, of a row group take; 0 where it has no such column.

    Raises:
        NotABuildError: the shard is damaged.
    """
    if column not in group.columns:
        return 0
    try:
        with parquet_file(group.path) as file:
            stored = file.metadata.row_group(group.index)
    except (OSError, pa.ArrowException):
        raise damaged(group.path, "is damaged or no shard") from None
    parts = (stored.column(number) for number in range(stored.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema == f"{column}.bytes")


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One row group, the shapes as in `Rows`."""

    image_ids: list[str]
    file_names: list[str]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    objects: dict[str, NDArray[Any]]


def _read_part(group: GroupAddress, shape: tuple[int, int], *, scores: bool) -> _Part:
    unused = {"scores", "ignored", "categories"} - ({"scores"} if scores else set())
    table = read_group(group, [name for name in count_columns(group.columns) if name not in unused])
    cells = cell_columns(table, shape, group.path)
    try:
        members = _members(table)
        found = {key: list_values(members, key) for key in _OBJECT_COLUMNS}
        offsets, boxes = _boxes(members)
    except ValueError as fault:
        raise damaged(group.path, str(fault)) from None
    if any(not np.array_equal(starts, offsets) for starts, _ in found.values()):
        raise damaged(group.path, "holds an image whose lists of objects differ in length")
    categories = found["category"][1]
    if len(categories) and not (categories.min() >= 0 and categories.max() < len(read_header(group.path).categories)):
        raise damaged(group.path, "holds an object of a category outside the table")
    return _Part(
        image_ids=table.column("image_id").to_pylist(),
        file_names=table.column("file_name").to_pylist(),
        widths=column_values(table, "width").copy(),
        heights=column_values(table, "height").copy(),
        labels=cells.labels.reshape(-1, *shape),
        scores=None if cells.scores is None else cells.scores.reshape(-1, *shape),
        offsets=offsets,
        boxes=boxes,
        objects={key: values for key, (_, values) in found.items()},
    )


def _members(table: pa.Table) -> pa.Table:
    """The members of the column `objects` as columns."""
    kind = table.schema.field("objects").type
    if not table.num_rows:
        return pa.table([pa.nulls(0, field.type) for field in kind], schema=pa.schema(list(kind)))
    chunk = table.column("objects").chunk(0)
    return pa.table(chunk.flatten(), schema=pa.schema(list(kind)))


def _boxes(members: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """int64 (n + 1,) where the boxes of each image start, and float32 (m, 4)."""
    if not members.num_rows:
        return np.zeros(1, np.int64), np.zeros((0, 4), np.float32)
    lists = members.column("bbox").chunk(0)
    offsets = np.frombuffer(lists.buffers()[1], np.int32)[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
    boxes = lists.flatten()
    numbers = boxes.flatten()
    if boxes.null_count or numbers.null_count:
        raise ValueError("holds nulls in column 'objects.bbox'")
    found = np.array(numbers, np.float32).reshape(-1, 4)
    if not np.isfinite(found).all():
        raise ValueError("holds a box that is not finite")
    return offsets - offsets[0], found
