"""Opening a finished build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenlabels.annotations import Category, SourceFile
from tokenlabels.errors import NotABuildError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.output import MANIFEST, is_shard_path, load_manifest
from tokenlabels.rules import PaddingPolicy, Policy, RuleName
from tokenlabels.shards import SCHEMA_VERSION, ShardEntry, ShardHeader
from tokenlabels.storage import arrow_file, located, on_disk, parquet_file, threads_for
from tokenlabels.store_faults import explained, reason_of
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    import polars as pl

    from tokenlabels.storage import Location
    from tokenlabels.torch_dataset import BuildDataset

_READ_AT_A_TIME = 4
"""Shards of a store; each is fetched by many requests anyway."""


class _Tool(msgspec.Struct):
    name: str
    version: str


class _Parameters(msgspec.Struct):
    source: str
    grids: list[dict[str, Any]]
    rule: RuleName
    tau: float
    crowd: Policy
    padding: PaddingPolicy
    void: Policy
    difficult: Policy
    scores: bool


class _Counts(msgspec.Struct):
    images: int
    annotations: int


class _Manifest(msgspec.Struct):
    """The parts of a manifest that reading and relabelling rely on."""

    schema_version: int
    tool: _Tool
    sources: dict[str, SourceFile]
    parameters: _Parameters
    splits: dict[str, _Counts]
    annotations_left_out_by_selection: int
    categories: tuple[Category, ...]
    findings: dict[str, int]
    shards: tuple[ShardEntry, ...]
    totals: dict[str, dict[str, dict[str, float]]]

    def problem(self) -> str | None:
        """What contradicts itself in it, or None."""
        for shard in self.shards:
            if not is_shard_path(shard.file):
                return f"shard {shard.file[:200]!r}"
        if not self.parameters.grids or not self.splits:
            return "no grids or no splits"
        for grid in self.parameters.grids:
            for split in self.splits:
                if not any(shard.file.startswith(f"{grid['name']}/{split}-") for shard in self.shards):
                    return f"no shard of {grid['name']}, {split}"
        return None


class Build:
    """A finished build, on disk or in a store.

    Attributes:
        path: its folder.
        manifest: the manifest, as JSON values.
        categories: the category table; `objects.category` is an index into it.
        grids: grid name -> grid, in order, the first being the default.
        splits: split names, in order.
        shards: every shard, in order.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self.manifest = load_manifest(path)
        try:
            known = msgspec.convert(self.manifest, _Manifest)
            self.grids = dict(map(_grid, known.parameters.grids))
        except (msgspec.ValidationError, ParameterError, KeyError, IndexError, TypeError) as fault:
            raise NotABuildError(
                f"{path / MANIFEST}: is no manifest that this version reads ({fault}): build in another folder."
            ) from None
        if known.schema_version != SCHEMA_VERSION:
            raise NotABuildError(
                f"{path / MANIFEST}: has schema version {known.schema_version}, this version reads {SCHEMA_VERSION}: "
                "build again."
            )
        problem = known.problem()
        if problem:
            raise NotABuildError(f"{path / MANIFEST}: is damaged ({problem}): build in another folder.")
        self.categories = known.categories
        self.splits = tuple(known.splits)
        self.shards = known.shards

    def __repr__(self) -> str:
        return f"Build({str(self.path)!r}, grids={list(self.grids)}, splits={list(self.splits)})"

    @property
    def folder(self) -> Path:
        """Its folder on disk.

        Raises:
            ParameterError: it is in a store.
        """
        return on_disk(self.path, "this is done with builds")

    @property
    def grid(self) -> PatchGrid:
        """The grid, where there is only one.

        Raises:
            ParameterError: there are several.
        """
        if len(self.grids) > 1:
            raise ParameterError(f"{self.path} holds several grids ({', '.join(self.grids)}): use .grids[name].")
        return next(iter(self.grids.values()))

    def files(self, grid: str | None = None, split: str | None = None) -> list[Location]:
        """Paths of the shards of a grid (by default the first), of one split or all.

        Raises:
            ParameterError: no such grid or split.
        """
        grid = grid or next(iter(self.grids))
        if grid not in self.grids:
            raise ParameterError(f"{self.path} holds no grid {grid!r}: it has {', '.join(self.grids)}.")
        if split is not None and split not in self.splits:
            raise ParameterError(f"{self.path} holds no split {split!r}: it has {', '.join(self.splits)}.")
        prefix = f"{grid}/{split}-" if split else f"{grid}/"
        return [self.path / shard.file for shard in self.shards if shard.file.startswith(prefix)]

    def table(
        self, grid: str | None = None, split: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows as one Arrow table, in order.

        Args:
            grid: grid name, by default the first.
            split: split name, by default all.
            columns: columns to read, by default all.

        Raises:
            ParameterError: no such grid, split or column.
            NotABuildError: a shard is missing or damaged.
        """
        tables = self._each(self.files(grid, split), columns)
        return pa.concat_tables([table.replace_schema_metadata() for table in tables])

    def _each(self, files: Sequence[Location], columns: Sequence[str] | None) -> list[pa.Table]:
        """The rows of every shard, in order."""
        threads = min(_READ_AT_A_TIME, threads_for(self.path))
        return in_threads(lambda path: _read(path, columns), files, threads)

    def first_foreground(self, split: str) -> tuple[str, str] | None:
        """Id and file_name of the first image of a split that has any foreground, looking at its first shard only."""
        with explained(self.path), parquet_file(self.files(split=split)[0]) as file:
            table = file.read_row_group(0, columns=["image_id", "file_name", "fg_count"])
        image_ids, names, counts = (table.column(name).to_pylist() for name in ("image_id", "file_name", "fg_count"))
        return next((row[:2] for row in zip(image_ids, names, counts, strict=True) if row[2]), None)

    def frame(self, grid: str | None = None, split: str | None = None) -> pl.LazyFrame:
        """The rows as a lazy polars frame, in order; of a store's shards a row group is in memory at a time."""
        return lazy_frame(self.files(grid, split))

    def labels(self, grid: str | None = None, split: str | None = None) -> NDArray[np.uint8]:
        """uint8 (images, rows, cols): 1 foreground, 0 background, 255 ignore.

        Of a single shard this is a view of the Arrow buffer, read-only; several are copied once, end to end.

        Raises:
            ParameterError: the grid differs from image to image (native, shortest-edge): use `.table()`.
        """
        name = grid or next(iter(self.grids))
        files = self.files(name, split)
        shape = self.grids[name].constant_shape
        if shape is None:
            raise ParameterError(f"grid {name} has no constant shape: read the column with .table(columns=['labels']).")
        chunks = [
            chunk.flatten().to_numpy(zero_copy_only=True)
            for table in self._each(files, ["labels"])
            for chunk in table.column("labels").chunks
        ]
        flat = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return flat.reshape(-1, *shape)

    def torch_dataset(
        self,
        grid: str | None = None,
        split: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        drop_last: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        window: int = 32_768,
        cache_bytes: int = 128 << 20,
        rank: int | None = None,
        world_size: int | None = None,
        drop_remainder: bool = True,
        decode: bool = False,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> BuildDataset:
        """The rows as an iterable data set for `torch.utils.data.DataLoader`.

        A row is a dict of the columns: cells as tensors (rows, cols), `labels` uint8, `scores` and `category_share`
        float32, `ignored` bool, `categories` int32; counts and sizes as int; ids and names as str; `objects` and
        `segments` as a dict of tensors (m,), their `bbox` (m, 4); `image` and `mask` as the bytes of the file, or
        decoded. On grids that differ from row to row cells are (grid_rows * grid_cols,), and both numbers come along.

        With `batch_size` an item is a batch, for `DataLoader(dataset, batch_size=None)`: cells (n, rows, cols), numbers
        int64 (n,), texts lists; `objects` packed end to end, (total,), with `cu_seqlens` int32 (n + 1,) saying where
        each image begins, and so are cells where grids differ; pictures a list, or (n, 3, H, W) where all were resized.

        The order depends on the build, `seed`, the epoch (`set_epoch`), `window`, `batch_size`, the ranks and the
        number of DataLoader workers; on the columns only where a window would be too large (see `window`); on nothing
        else. Shuffling puts row groups (shards, unless they are large) into random order, deals stretches of them to
        ranks and workers, and mixes the rows of each window completely. Without it each rank and worker has its stretch
        in order, so that one process without workers has the order of the build.

        Memory holds one window, up to three row groups more, which threads decode ahead, and `cache_bytes`, in each
        process.

        Args:
            grid: grid name, by default the first.
            split: split name, by default all.
            columns: columns to read, by default `image_id` and `labels`.
            batch_size: give out batches of so many rows, cut before they are dealt to workers, so that only the last of
                a rank can be smaller; by default rows, which the DataLoader batches, each worker on its own.
            drop_last: leave out that smaller batch.
            shuffle: see above.
            seed: of the order, at least 0.
            window: rows that are mixed with each other; a row group that has more is one, and a window has no more than
                256 MiB unless one row group has. More rows mix better and take more memory.
            cache_bytes: decoded row groups that are kept for the next passes, as many as fit; the labels of 118,000
                images at 24 x 24 do. 0 keeps none.
            rank: this process; by default as torch.distributed says, where it is initialised, else the environment
                (`RANK`, `WORLD_SIZE`), else the only one. Asked once, now.
            world_size: how many there are.
            drop_remainder: every rank has the same number of rows, none is in two, and up to `world_size - 1` rows are
                left out, others in every epoch where rows are shuffled. False: none is left out, and the first ranks
                have one row more.
            decode: `image` becomes uint8 (3, H, W), RGB; `mask` uint8 (H, W) of values, (3, H, W) of panoptic colours,
                (0, 0) where there is none.
            transform: called with every item, row or batch; what it returns is given out.

        Raises:
            ParameterError: no such grid, split or column; ranks, sizes or seeds that cannot be.
            NotABuildError: a shard is missing, damaged or other than the manifest says.
            TokenLabelsError: torch is not installed.
        """
        try:
            from tokenlabels.torch_dataset import BuildDataset
        except ModuleNotFoundError as fault:
            if fault.name != "torch":
                raise
            raise TokenLabelsError(
                "torch_dataset needs torch, which is not installed: pip install torch, or 'tokenlabels[bavit]'."
            ) from None
        return BuildDataset(
            self,
            grid,
            split,
            columns,
            batch_size=batch_size,
            drop_last=drop_last,
            shuffle=shuffle,
            seed=seed,
            window=window,
            cache_bytes=cache_bytes,
            rank=rank,
            world_size=world_size,
            drop_remainder=drop_remainder,
            decode=decode,
            transform=transform,
        )


def open_build(path: str | Location) -> Build:
    """Open a finished build.

    Args:
        path: its folder, or its address in a store, such as `s3://bucket/labels`.

    Raises:
        NotABuildError: the folder holds none.
        ParameterError: no such kind of store.
        TokenLabelsError: the store cannot be used.
    """
    return Build(located(path))


def lazy_frame(files: Sequence[Location]) -> pl.LazyFrame:
    """The rows of some shards as a lazy polars frame, in order.

    Polars has readers of its own for some stores, with credentials of their own; here it asks for row groups, so that
    every store is read as all else reads it.
    """
    import polars as pl

    if all(isinstance(path, Path) for path in files):
        return pl.scan_parquet([path for path in files if isinstance(path, Path)], glob=False)
    from polars.io.plugins import register_io_source

    with parquet_file(files[0]) as first:
        schema = pl.DataFrame(pl.from_arrow(first.schema_arrow.remove_metadata().empty_table())).schema

    def row_groups(
        columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = limit
        for path in files:
            with parquet_file(path) as file:
                for index in range(file.num_row_groups):
                    rows = pl.DataFrame(pl.from_arrow(file.read_row_group(index, columns=columns)))
                    rows = rows.select(columns or rows.columns).head(len(rows) if left is None else left)
                    left = None if left is None else left - len(rows)
                    yield rows if predicate is None else rows.filter(predicate)
                    if left == 0:
                        return

    return register_io_source(row_groups, schema=schema, is_pure=True)


def read_header(path: Location) -> ShardHeader:
    """What one shard says of itself.

    Raises:
        NotABuildError: it is no shard, or damaged.
    """
    try:
        with parquet_file(path) as file:
            return header_of(file, path)
    except (OSError, pa.ArrowException) as fault:
        raise unreadable(path, fault) from None


def header_of(file: pq.ParquetFile, path: Location) -> ShardHeader:
    """What an open shard says of itself.

    Raises:
        NotABuildError: it is no shard.
    """
    try:
        return msgspec.json.decode(file.schema_arrow.metadata[b"tokenlabels"], type=ShardHeader)
    except (TypeError, KeyError, msgspec.MsgspecError) as fault:
        raise unreadable(path, fault) from None


def _read(path: Location, columns: Sequence[str] | None) -> pa.Table:
    try:
        with parquet_file(path) as file:
            names = file.schema_arrow.names
        for column in columns or ():
            if column.partition(".")[0] not in names:
                raise ParameterError(f"{path} holds no column {column!r}: it has {', '.join(names)}.")
        return pq.read_table(arrow_file(path), columns=columns, partitioning=None, memory_map=False)
    except (OSError, pa.ArrowException) as fault:
        raise unreadable(path, fault) from None


def unreadable(path: Location, fault: Exception) -> NotABuildError:
    """The error that says why a shard cannot be read."""
    reason = "is missing" if isinstance(fault, FileNotFoundError) else "is damaged or no shard"
    if isinstance(fault, OSError) and not isinstance(path, Path) and not isinstance(fault, FileNotFoundError):
        return NotABuildError(f"{path}: cannot be read ({reason_of(fault)}): run again when it can.")
    return NotABuildError(f"{path}: {reason}: run the same build command again to mend it.")


def _grid(entry: dict[str, Any]) -> tuple[str, PatchGrid]:
    grid = PatchGrid.stored(entry["patch"], entry["image_size"], entry["resize"], entry["max_size"])
    return str(entry["name"]), grid
