"""Which images a report shows, and what the page needs of each: memory does not grow with the embedded images."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.annotations import NO_CATEGORY
from tokenlabels.grid import PatchGrid
from tokenlabels.progress import Progress
from tokenlabels.reader import Build
from tokenlabels.report.markup import printable
from tokenlabels.stats_shards import GroupAddress, damaged, read_group, row_groups
from tokenlabels.storage import parquet_file

MAX_CELLS = 400_000
"""Patches of all samples together whose scores go into the page: about 2 MB of text."""

MAX_OBJECTS = 300
"""Objects of one sample that go into the page."""

_BATCH_ROWS = 16

_FIRST_COLUMNS = ("grid_rows", "grid_cols", "fg_count", "ignore_count")


class SampleObject(msgspec.Struct, frozen=True):
    """One object of a sample.

    Attributes:
        id: annotation id; text, as JavaScript's numbers end at 2 ** 53.
        category: index into the category table.
        bbox: xywh in source pixels, as the shard stores it.
        area: square pixels.
        crowd: a crowd region.
        patches: label-1 patches the box covers by at least half, at the build's threshold.
    """

    id: str
    category: int
    bbox: list[float]
    area: float
    crowd: bool
    patches: int


class Sample(msgspec.Struct):
    """One image as the page holds it.

    Attributes:
        id: image id; this and other names are printable.
        file_name: relative to the image folder.
        split: split name.
        width: source pixels.
        height: source pixels.
        rows: patches down.
        cols: patches across.
        y: `step, start, divisor`, see `grid.GridAxes`.
        x: the same across.
        foreground: label-1 patches at the build's threshold.
        ignored: label-255 patches at the build's threshold.
        objects: at most `MAX_OBJECTS`.
        objects_left_out: how many more there are.
        covering: categories that cover most of some patch, ascending; empty where the build does not say.
        scores: float32, little-endian, row-major, base64; None where the build or the page has no room for them.
        ignorable: uint8 per patch, base64: 1 where a patch that does not pass is 255; None where there are none.
        labels: uint8 per patch, base64; only where `scores` is None.
        picture: `data:` address of a JPEG.
        covers_input: the picture shows the whole model input rather than the source image.
        note: why there is no picture, or no patches.
    """

    id: str
    file_name: str
    split: str
    width: int
    height: int
    rows: int
    cols: int
    y: list[int]
    x: list[int]
    foreground: int
    ignored: int
    objects: list[SampleObject]
    objects_left_out: int = 0
    covering: list[int] = []
    scores: str | None = None
    ignorable: str | None = None
    labels: str | None = None
    picture: str | None = None
    covers_input: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the row of an image is, and its embedded picture, if any, can be read."""

    group: GroupAddress
    row: int
    file_name: str
    size: tuple[int, int]

    def embedded(self) -> bytes | None:
        """The embedded image, read without the rest of its row group; None where there is none."""
        if "image" not in self.group.columns:
            return None
        (one,) = _picked(self.group, [self.row], ["image"])
        content = one[1]["image"].as_py()
        return content["bytes"] if content else None


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What choosing needs to know of n images, in order: 8 bytes each.

    Attributes:
        share: float32 (n,), foreground among the patches that are not ignored.
        empty: bool (n,), no foreground patch.
        lost: bool (n,), some object makes no patch foreground.
        split: uint16 (n,), index into the splits.
    """

    share: NDArray[np.float32]
    empty: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    split: NDArray[np.uint16]


def read_samples(
    build: Build, grid: str, split: str | None, count: int, progress: Progress
) -> tuple[list[Sample], list[Place]]:
    """Choose images of a build and read them.

    Args:
        build: the build.
        grid: grid name.
        split: split name, or None for all.
        count: how many, fewer where the build has fewer.
        progress: told about every image looked at.

    Returns:
        The samples in the order of the build, without pictures, and where each is.

    Raises:
        ParameterError: no such grid or split.
        NotABuildError: a shard is missing or damaged.
    """
    groups = row_groups(build, grid, split)
    progress.stage("choosing samples", sum(address.rows for address in groups))
    pools = []
    for address in groups:
        pools.append(_pool(address, build.splits.index(address.split)))
        progress.advance(address.rows)
    starts = np.cumsum([0, *(len(pool.share) for pool in pools)])
    chosen = choose(_joined(pools), count)
    samples, places = [], []
    for index, address in enumerate(groups):
        rows = [row - int(starts[index]) for row in chosen if starts[index] <= row < starts[index + 1]]
        for sample, place in _read_rows(address, rows, build.grids[grid]):
            samples.append(sample)
            places.append(place)
    _keep_within(samples, MAX_CELLS)
    return samples, places


def choose(pool: Pool, count: int) -> list[int]:
    """Images spread evenly over the splits, and within each over the quantiles of the share of foreground.

    At least one without foreground and at least one with a lost object are among them, where there are any and room.

    Returns:
        Indices, ascending; the same for the same pool.
    """
    chosen: list[int] = []
    sizes = np.bincount(pool.split) if len(pool.split) else np.zeros(0, np.int64)
    for split, seats in enumerate(_seats(sizes.tolist(), count)):
        rows = np.flatnonzero(pool.split == split)
        rows = rows[np.argsort(pool.share[rows], kind="stable")]
        chosen += [int(rows[int((seat + 0.5) * len(rows) / seats)]) for seat in range(seats)]
    kept: set[int] = set()
    for wanted in (pool.empty, pool.lost):
        kept |= _include(chosen, wanted, kept, pool)
    return sorted(chosen)


def _seats(sizes: Sequence[int], count: int) -> list[int]:
    """`count` seats dealt out one by one in turn to parties of these sizes, none more than it can fill."""
    seats = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        for party, size in enumerate(sizes):
            if left and seats[party] < size:
                seats[party] += 1
                left -= 1
    return seats


def _include(chosen: list[int], wanted: NDArray[np.bool_], kept: set[int], pool: Pool) -> set[int]:
    """Exchange one of `chosen`, but none of `kept`, for a wanted image most like it; return which one represents them.

    Like means of the same split before any other, then of the nearest share.
    """
    present = [row for row in chosen if wanted[row]]
    rows = np.flatnonzero(wanted)
    free = [index for index, row in enumerate(chosen) if row not in kept]
    if present or not len(rows) or not free:
        return set(present[:1])
    best = []
    for index in free:
        distance = np.abs(pool.share[rows] - pool.share[chosen[index]]) + 2 * (
            pool.split[rows] != pool.split[chosen[index]]
        )
        nearest = int(np.argmin(distance))
        best.append((float(distance[nearest]), index, int(rows[nearest])))
    _, index, row = min(best)
    chosen[index] = row
    return {row}


def _pool(address: GroupAddress, split: int) -> Pool:
    table = read_group(address, [*_FIRST_COLUMNS, "objects.patches"])
    rows, cols, foreground, ignored = (table.column(name).to_numpy().astype(np.int64) for name in _FIRST_COLUMNS)
    counted = rows * cols - ignored
    share = np.divide(foreground, counted, out=np.zeros(len(rows)), where=counted > 0)
    lost = np.zeros(len(rows), np.bool_)
    if len(rows):
        patches = table.column("objects").chunk(0).field("patches")
        losses = np.concatenate([[0], np.cumsum(patches.values.to_numpy() == 0)])
        offsets = patches.offsets.to_numpy()
        lost = losses[offsets[1:]] > losses[offsets[:-1]]
    return Pool(share.astype(np.float32), foreground == 0, lost, np.full(len(rows), split, np.uint16))


def _joined(pools: Sequence[Pool]) -> Pool:
    return Pool(
        np.concatenate([np.zeros(0, np.float32), *(pool.share for pool in pools)]),
        np.concatenate([np.zeros(0, np.bool_), *(pool.empty for pool in pools)]),
        np.concatenate([np.zeros(0, np.bool_), *(pool.lost for pool in pools)]),
        np.concatenate([np.zeros(0, np.uint16), *(pool.split for pool in pools)]),
    )


def _read_rows(address: GroupAddress, rows: Sequence[int], grid: PatchGrid) -> Iterator[tuple[Sample, Place]]:
    names = [name for name in address.columns if name not in ("image", "mask")]
    for row, one in _picked(address, rows, names):
        place = Place(address, row, one["file_name"].as_py() or "", _size(one))
        yield _sample(one, address.split, grid), place


def _picked(
    address: GroupAddress, rows: Sequence[int], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, pa.Scalar]]]:
    """Some rows of a row group, ascending, read a few at a time: a whole group may be a hundred MiB of scores."""
    left, start = list(rows), 0
    if not left:
        return
    try:
        with parquet_file(address.path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[address.index], columns=list(columns)):
                while left and left[0] < start + len(batch):
                    row = left.pop(0)
                    yield row, {name: batch.column(name)[row - start] for name in columns}
                start += len(batch)
                if not left:
                    return
    except (OSError, pa.ArrowException):
        raise damaged(address.path, "is damaged or no shard") from None


def _sample(row: dict[str, pa.Scalar], split: str, grid: PatchGrid) -> Sample:
    width, height = _size(row)
    axes = grid.axes(np.array([width], np.int32), np.array([height], np.int32))
    ignorable = _encoded(row, "ignored", np.uint8)
    objects = list(_objects(row))
    return Sample(
        id=printable(row["image_id"].as_py()),
        file_name=printable(row["file_name"].as_py() or ""),
        split=printable(split),
        width=width,
        height=height,
        rows=row["grid_rows"].as_py(),
        cols=row["grid_cols"].as_py(),
        y=axes.y[0].tolist(),
        x=axes.x[0].tolist(),
        foreground=row["fg_count"].as_py(),
        ignored=row["ignore_count"].as_py(),
        objects=objects[:MAX_OBJECTS],
        objects_left_out=max(0, len(objects) - MAX_OBJECTS),
        covering=_covering(row),
        scores=_encoded(row, "scores", np.dtype("<f4")),
        ignorable=ignorable,
        labels=_encoded(row, "labels", np.uint8),
    )


def _size(row: dict[str, pa.Scalar]) -> tuple[int, int]:
    return row["width"].as_py(), row["height"].as_py()


def _objects(row: dict[str, pa.Scalar]) -> Iterator[SampleObject]:
    values: dict[str, Any] = row["objects"].as_py()
    wanted = ("id", "category", "bbox", "area", "iscrowd", "patches")
    for index, category, bbox, area, crowd, patches in zip(*(values[name] for name in wanted), strict=True):
        yield SampleObject(str(index), category, list(bbox), area, crowd, patches)


def _covering(row: dict[str, pa.Scalar]) -> list[int]:
    """Categories in the column `categories` of one row."""
    if "categories" not in row or row["categories"].values is None:
        return []
    found = np.unique(row["categories"].values.to_numpy(zero_copy_only=False))
    return [int(category) for category in found if category != NO_CATEGORY]


def _encoded(row: dict[str, pa.Scalar], column: str, kind: np.dtype[Any] | type[np.generic]) -> str | None:
    """A list column of one row, base64 of its little-endian numbers; None where the column is absent."""
    if column not in row or row[column].values is None:
        return None
    numbers = row[column].values.to_numpy(zero_copy_only=False)
    return base64.b64encode(np.ascontiguousarray(numbers, kind).tobytes()).decode()


def _keep_within(samples: Sequence[Sample], budget: int) -> None:
    """Leave scores and labels out where the page would grow too large: small grids go first.

    What has scores needs no labels. Without scores the labels remain, at a quarter of the size.
    """
    left = float(budget)
    for sample in sorted(samples, key=lambda sample: sample.rows * sample.cols):
        cells = sample.rows * sample.cols
        if sample.scores is not None and cells <= left:
            sample.labels = None
            left -= cells
            continue
        if sample.scores is not None:
            sample.note = f"{cells:,} patches are too many for their scores to be held in this page."
        sample.scores = sample.ignorable = None
        if cells / 4 > left:
            sample.labels = None
            sample.note = f"{cells:,} patches are too many to be drawn in this page."
        else:
            left -= cells / 4
