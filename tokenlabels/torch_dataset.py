"""A build as a data set of torch: see `Build.torch_dataset`, which makes it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tokenlabels.errors import ParameterError
from tokenlabels.reader import Build
from tokenlabels.torch_columns import CELL_COLUMNS, Column, RaggedCells, Rows
from tokenlabels.torch_groups import Layout, read_layout
from tokenlabels.torch_order import Stretch, of_rank, of_worker, sequence, shuffled, windows
from tokenlabels.torch_position import MAX_EPOCH, MAX_WORKERS, Pass, Position, Progress
from tokenlabels.torch_windows import DecodedGroups, WindowReader

_BLOCK = 256
"""Rows that are gathered at a time where rows are given out one by one."""

_STATE_VERSION = 1


class BuildDataset(IterableDataset[Any]):
    """The rows of a build, one by one or in batches; see `tokenlabels.Build.torch_dataset`.

    Attributes:
        rank: this process.
        world_size: how many there are.
        epoch: of the next pass.
    """

    def __init__(
        self,
        build: Build,
        grid: str | None,
        split: str | None,
        columns: Sequence[str] | None,
        *,
        batch_size: int | None,
        drop_last: bool,
        shuffle: bool,
        seed: int,
        window: int,
        cache_bytes: int,
        rank: int | None,
        world_size: int | None,
        drop_remainder: bool,
        decode: bool,
        transform: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("window", window, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value is not None and value < least:
                raise ParameterError(f"{name} {value}: at least {least}.")
        self.rank, self.world_size = _place_in_world(rank, world_size)
        name = grid or next(iter(build.grids))
        build.files(name, split)  # for what it raises
        self._layout: Layout = read_layout(build, name, split, _columns(build, name, columns))
        self._batch_size, self._drop_last, self._drop_remainder = batch_size, drop_last, drop_remainder
        self._shuffle, self._seed, self._window = shuffle, seed, window
        self._decode, self._transform = decode, transform
        self._order = {
            "build": _digest(build, name, split),
            "grid": name,
            "split": split,
            "columns": [field.name for field in self._layout.fields],
            "shuffle": shuffle,
            "seed": seed,
            "window": window,
            "batch_size": batch_size,
            "drop_last": drop_last,
            "world_size": self.world_size,
            "drop_remainder": drop_remainder,
        }
        if drop_remainder and 0 < self._total < self.world_size:
            raise ParameterError(f"{build.path}: {self._total} rows of {name} are too few for {self.world_size} ranks.")
        self._kept = DecodedGroups(cache_bytes)
        self._position = Position()
        self._pass: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}

    @property
    def _total(self) -> int:
        return sum(group.rows for group in self._layout.groups)

    @property
    def _mine(self) -> Stretch:
        """What this rank has of a sequence."""
        mine = of_rank(self._total, self.rank, self.world_size, drop_remainder=self._drop_remainder)
        dropped = mine.rows % (self._batch_size or 1) if self._drop_last else 0
        return Stretch(mine.start, mine.rows - dropped)

    def _items(self, stretch: Stretch) -> int:
        return -(-stretch.rows // (self._batch_size or 1))

    def __len__(self) -> int:
        """Items of an epoch of this rank: batches with `batch_size`, else rows.

        Where a DataLoader makes the batches, with several workers, each worker ends with a smaller one: `len(loader)`,
        which torch derives from this, is then too small by up to one batch a worker, and torch may warn. It is exact
        with `batch_size` here and `DataLoader(dataset, batch_size=None)`.
        """
        return self._items(self._mine)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; workers of a DataLoader that are kept hear of it, too.

        A place that was loaded holds as long as the epoch stays the same.

        Raises:
            ParameterError: it is negative, or absurdly large.
        """
        if not 0 <= epoch <= MAX_EPOCH:
            raise ParameterError(f"epoch {epoch}: 0 to {MAX_EPOCH}.")
        self._pass = self._pass if epoch == self.epoch else None
        self._position.set_epoch(epoch)

    def state_dict(self, loader: Any = None, consumed: int | None = None) -> dict[str, Any]:
        """Where a pass is, as values that JSON can hold; ranks that keep step may load each other's.

        Without arguments: what this process has given out. A plain DataLoader with workers reads ahead in other
        processes, so there the training loop says what it has taken. torchdata's `StatefulDataLoader` does by itself.

        Args:
            loader: the DataLoader, of which `num_workers` and `batch_size` are looked at.
            consumed: batches taken from it in this pass; 0 means the beginning of the pass that its workers began
                last, which may still be the one before, so that after a state was loaded 0 is only right for the pass
                that goes on from it, and after `set_epoch` with another epoch.

        Raises:
            ParameterError: DataLoader workers read and nothing was said of what was taken, or more than there is.
        """
        info = get_worker_info()
        if (loader is None) != (consumed is None):
            raise ParameterError("state_dict takes both the loader and what was consumed of it, or neither.")
        if consumed is None:
            progress = self._position.here(self._pass, info.id if info else None)
        else:
            workers, size = int(loader.num_workers), int(loader.batch_size or 1)
            limits = [self._items(self._of_worker(part, workers)) for part in range(max(workers, 1))]
            progress = self._position.after(workers, consumed, size, limits)
        return (
            {"version": _STATE_VERSION} | self._order | {"progress": asdict(progress) | {"done": list(progress.done)}}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken: the next pass gives what was left of that one, in the same order.

        With DataLoader workers use as many as there were, and batches of the same size.

        Raises:
            ParameterError: it is no state, or one of another build, seed, number of ranks, or other parameters.
        """
        try:
            progress = msgspec.convert(state["progress"], Progress)
            version = state["version"]
        except (KeyError, TypeError, msgspec.ValidationError):
            raise ParameterError("this is no state of a tokenlabels data set.") from None
        own = {"version": _STATE_VERSION} | self._order
        given = {"version": version} | {name: state.get(name) for name in self._order}
        other = [f"{name} {given[name]!r}, not {own[name]!r}" for name in own if given[name] != own[name]]
        if other:
            raise ParameterError(f"the state is of a data set with {'; '.join(other)}: make this one alike.")
        if not self._is_possible(progress):
            raise ParameterError("the state is damaged: it names a place that no pass comes to.")
        self._position.restore(progress)
        self._pass = None

    def _is_possible(self, progress: Progress) -> bool:
        """Whether a pass comes to such a place."""
        if not (0 <= progress.epoch <= MAX_EPOCH and 0 <= progress.workers <= MAX_WORKERS):
            return False
        parts = range(max(progress.workers, 1))
        if progress.turn not in parts or (progress.worker or 0) not in parts:
            return False
        whose = parts if progress.worker is None else [progress.worker]
        limits = [self._items(self._of_worker(part, progress.workers)) for part in whose]
        return len(limits) == len(progress.done) and all(
            0 <= done <= limit for done, limit in zip(progress.done, limits, strict=True)
        )

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        self._pass = self._position.begin(info.id if info else None, info.num_workers if info else 0)
        return self._run(self._pass, threads=info is None)

    def _of_worker(self, worker: int, workers: int) -> Stretch:
        return of_worker(self._mine, worker, max(workers, 1), self._batch_size or 1)

    def _run(self, running: Pass, *, threads: bool) -> Iterator[Any]:
        """Items of a pass, from `running.done` on; it is kept up to date."""
        batch = self._batch_size or 1
        layout, stretch = self._layout, self._of_worker(running.worker, running.workers)
        pieces = sequence(
            [group.rows for group in layout.groups], (self._seed, running.epoch) if self._shuffle else None
        )
        row_bytes = [group.row_bytes for group in layout.groups]
        first = stretch.start + running.done * batch
        most = self._window if self._shuffle else 1
        left = [
            window for window in windows(pieces, stretch, row_bytes, batch, most) if window.start + window.rows > first
        ]
        with WindowReader(layout, left, self._kept, decode=self._decode, threads=threads) as reader:
            for window in left:
                rows, skipped = window.rows, max(first - window.start, 0)
                order = shuffled(rows, self._seed, running.epoch, 2, window.start) if self._shuffle else np.arange(rows)
                columns = reader.read(window)
                for item in (_batches if self._batch_size else _rows)(columns, order[skipped:], batch):
                    running.done += 1
                    yield item if self._transform is None else self._transform(item)
                del columns  # before the next are read


def _batches(columns: Mapping[str, Column], order: Rows, size: int) -> Iterator[dict[str, Any]]:
    ragged = next((column for column in columns.values() if isinstance(column, RaggedCells)), None)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        item = {name: column.batch(rows) for name, column in columns.items()}
        if ragged is not None:
            item["cu_seqlens"] = ragged.ends(rows)
        yield item


def _rows(columns: Mapping[str, Column], order: Rows, _size: int) -> Iterator[dict[str, Any]]:
    names = tuple(columns)
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        for values in zip(*(column.each(rows) for column in columns.values()), strict=True):
            yield dict(zip(names, values, strict=True))


def _columns(build: Build, grid: str, columns: Sequence[str] | None) -> list[str]:
    """The columns that are read."""
    wanted = list(dict.fromkeys(("image_id", "labels") if columns is None else columns))
    if not wanted:
        raise ParameterError("no columns: name some, such as labels.")
    if build.grids[grid].constant_shape is None and any(name in CELL_COLUMNS for name in wanted):
        wanted += [name for name in ("grid_rows", "grid_cols") if name not in wanted]
    return wanted


def _place_in_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given, of torch.distributed, of the environment, or (0, 1)."""
    if (rank is None) != (world_size is None):
        raise ParameterError("rank and world_size go together: give both, or neither.")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            rank, world_size = int(given[0]), int(given[1])
        except ValueError:
            raise ParameterError(f"RANK {given[0]!r} and WORLD_SIZE {given[1]!r} are no whole numbers.") from None
    if not 0 <= rank < world_size:
        raise ParameterError(f"rank {rank} of {world_size}: ranks are 0 to world size - 1.")
    return rank, world_size


def _digest(build: Build, grid: str, split: str | None) -> str:
    """Which rows these are: sha256 of the shards of a grid and split."""
    files = set(build.files(grid, split))
    listed = [msgspec.to_builtins(shard) for shard in build.shards if build.path / shard.file in files]
    return hashlib.sha256(msgspec.json.encode(listed)).hexdigest()
