"""`Build.torch_dataset`: values against the table of the build, ranks, workers, memory."""

from __future__ import annotations

import io
import itertools
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from opened import every_column, many_rows
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.worker import WorkerInfo

import tokenlabels
from tokenlabels import torch_dataset, torch_groups, torch_windows
from tokenlabels.errors import NotABuildError, ParameterError, TokenLabelsError
from tokenlabels.reader import Build
from tokenlabels.storage import located
from tokenlabels.torch_dataset import BuildDataset

ROWS = 100


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return every_column(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """100 rows in 15 shards."""
    return many_rows(tmp_path_factory.mktemp("many"), ROWS)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return many_rows(tmp_path_factory.mktemp("ragged"), 20, image_size="native", crowd="ignore")


def plain(value: Any) -> Any:
    """A value of a row as Arrow gives it."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def in_worker(monkeypatch: pytest.MonkeyPatch, dataset: BuildDataset, worker: int, workers: int) -> list[Any]:
    """What a DataLoader worker gives out; simulated, as processes take seconds to start."""
    copy = pickle.loads(pickle.dumps(dataset))
    info = WorkerInfo(id=worker, num_workers=workers, seed=0, dataset=copy)
    with monkeypatch.context() as patch:
        patch.setattr(torch_dataset, "get_worker_info", lambda: info)
        return list(copy)


def ids(items: Any) -> list[str]:
    """Image ids of rows or batches."""
    found: list[str] = []
    for item in items:
        found += [item["image_id"]] if isinstance(item["image_id"], str) else item["image_id"]
    return found


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["64x64-p8", "64x64-p16"])
@pytest.mark.parametrize("split", [None, "second"])
def test_rows_are_those_of_the_build(grid: str, split: str | None, full: Build) -> None:
    table = full.table(grid, split)
    rows = list(full.torch_dataset(grid, split, table.column_names))
    side = int(np.sqrt(len(table.column("labels")[0])))
    for row, expected in zip(rows, table.to_pylist(), strict=True):
        assert list(row) == table.column_names
        for name in ("labels", "scores", "ignored", "categories", "category_share"):
            assert row[name].shape == (side, side)
            assert row[name].ravel().tolist() == expected.pop(name)
        for name in ("image", "mask"):
            assert row[name] == (expected.pop(name)["bytes"] or b"")
        assert {name: plain(row[name]) for name in expected} == expected
    kinds = {name: rows[0][name].dtype for name in ("labels", "scores", "ignored", "categories", "category_share")}
    assert list(kinds.values()) == [torch.uint8, torch.float32, torch.bool, torch.int32, torch.float32]
    assert rows[0]["objects"]["bbox"].shape == (0, 4)
    kinds = {name: values.dtype for name, values in rows[1]["objects"].items()}
    assert kinds["id"] == torch.int64
    assert kinds["bbox"] == kinds["area"] == torch.float32
    assert kinds["iscrowd"] == kinds["difficult"] == torch.bool
    assert isinstance(rows[0]["width"], int)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_rows_put_together(shuffle: bool, full: Build) -> None:
    """Whatever shards and windows a batch has rows of."""
    names = [name for name in full.table().column_names if name not in ("image", "mask")]
    rows = list(full.torch_dataset(columns=names, shuffle=shuffle, window=4))
    batches = list(full.torch_dataset(columns=names, shuffle=shuffle, window=4, batch_size=4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3]
    by_id = {row["image_id"]: row for row in rows}
    assert len(by_id) == len(rows) == 11
    for batch in batches:
        mine = [by_id[image_id] for image_id in batch["image_id"]]
        for name in ("objects", "segments"):
            ends = batch[name].pop("cu_seqlens")
            assert ends.dtype == torch.int32
            packed = batch.pop(name)
            assert set(packed) == set(mine[0][name])
            for place, row in enumerate(mine):
                span = slice(int(ends[place]), int(ends[place + 1]))
                assert {key: plain(values[span]) for key, values in packed.items()} == plain(row[name])
        together = default_collate([{name: row[name] for name in batch} for row in mine])
        for name, values in together.items():
            assert (values == batch[name]) if isinstance(values, list) else torch.equal(values, batch[name])
            assert isinstance(values, list) or values.dtype == batch[name].dtype


def test_pictures_and_masks_are_decoded(full: Build) -> None:
    expected = full.table(columns=["image", "mask"]).to_pylist()
    for row, stored in zip(full.torch_dataset(columns=["image", "mask"], decode=True), expected, strict=True):
        for name, kind in (("image", "RGB"), ("mask", "RGB")):
            pixels = np.asarray(Image.open(io.BytesIO(stored[name]["bytes"])).convert(kind))
            assert row[name].dtype == torch.uint8
            assert torch.equal(row[name], torch.from_numpy(pixels.copy()).permute(2, 0, 1))


def test_pictures_that_were_resized_are_one_tensor(tmp_path: Path) -> None:
    built = every_column(tmp_path, patch=16, image_size=32, embed_size=32)
    batch = next(iter(built.torch_dataset(columns=["image", "mask"], decode=True, batch_size=5)))
    assert batch["image"].shape == (5, 3, 32, 32)
    apart = next(iter(built.torch_dataset(columns=["image"], batch_size=5)))["image"]
    assert [type(content) for content in apart] == [bytes] * 5


def test_a_picture_that_cannot_be_read_is_named(full: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabels.torch_pictures._FORMATS", ("PNG",))
    with pytest.raises(TokenLabelsError, match=r"first-00000-of-00003\.parquet: first0\.jpg: .* no image: build again"):
        list(full.torch_dataset(columns=["image"], decode=True))


def test_grids_that_differ_come_with_their_shape(ragged: Build) -> None:
    table = ragged.table().to_pylist()
    rows = list(ragged.torch_dataset(columns=["labels", "scores", "ignored"]))
    assert len({(row["grid_rows"], row["grid_cols"]) for row in rows}) > 5
    for row, expected in zip(rows, table, strict=True):
        assert {name: plain(value) for name, value in row.items()} == {name: expected[name] for name in row}
    (batch,) = ragged.torch_dataset(batch_size=50)
    assert batch["labels"].tolist() == [label for row in table for label in row["labels"]]
    sizes = batch["grid_rows"] * batch["grid_cols"]
    assert batch["cu_seqlens"].tolist() == [0, *sizes.cumsum(0).tolist()]
    assert list(ragged.torch_dataset(columns=["image_id"], batch_size=50)) == [
        {"image_id": [row["image_id"] for row in table]}
    ]


def test_what_is_given_may_be_changed(many: Build) -> None:
    rows = []
    for row in many.torch_dataset(columns=["labels"]):
        row["labels"].fill_(7)
        rows.append(row)
    assert all((row["labels"] == 7).all() for row in rows)
    assert set(many.labels().ravel().tolist()) <= {0, 1}


def test_items_can_be_transformed(many: Build) -> None:
    halves = many.torch_dataset(transform=lambda row: row["labels"].sum().item())
    assert list(halves) == many.table().column("fg_count").to_pylist()


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_order_follows_from_seed_and_epoch(many: Build) -> None:
    dataset = many.torch_dataset(shuffle=True, seed=3, window=30)
    in_order = many.table().column("image_id").to_pylist()
    first = ids(dataset)
    assert sorted(first) == sorted(in_order)
    assert ids(dataset) == first
    dataset.set_epoch(1)
    second = ids(dataset)
    assert sorted(second) == sorted(in_order)
    assert second != first
    assert ids(many.torch_dataset(shuffle=True, seed=4, window=30)) not in (first, second)
    dataset.set_epoch(0)
    assert ids(dataset) == first
    other = many.torch_dataset(shuffle=True, seed=3, window=30, columns=["image_id", "objects"])
    assert ids(other) == first
    assert ids(many.torch_dataset()) == in_order


def test_rows_are_mixed_over_windows(many: Build) -> None:
    """Shards in random order, and neighbours within a window come from all of its shards."""
    in_order = {name: place for place, name in enumerate(many.table().column("image_id").to_pylist())}
    places = [in_order[name] // 7 for name in ids(many.torch_dataset(shuffle=True, window=28))]
    starts = [places[start : start + 14] for start in (0, 28, 56)]
    assert all(len(set(part)) >= 3 for part in starts)
    alone = [in_order[name] // 7 for name in ids(many.torch_dataset(shuffle=True, window=1))]
    assert [shard for shard, _ in itertools.groupby(alone)] != sorted(set(alone))
    assert len(list(itertools.groupby(alone))) <= 16


# --- ranks and workers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize(("world", "workers"), [(1, 3), (3, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_have_as_many_rows_and_none_twice(
    shuffle: bool, world: int, workers: int, batch_size: int | None, many: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = set()
    for epoch in range(3):
        held = []
        for rank in range(world):
            dataset = many.torch_dataset(shuffle=shuffle, rank=rank, world_size=world, batch_size=batch_size, window=20)
            dataset.set_epoch(epoch)
            parts = [in_worker(monkeypatch, dataset, worker, workers) for worker in range(workers)]
            assert sum(map(len, parts)) == len(dataset)
            found = [name for part in parts for name in ids(part)]
            assert len(found) == ROWS // world
            held += found
            if workers == 1:
                assert ids(dataset) == found
        assert len(set(held)) == len(held) == ROWS // world * world
        left_out |= set(many.table().column("image_id").to_pylist()) - set(held)
    assert len(left_out) > ROWS % world or not (shuffle and ROWS % world)


def test_nothing_is_left_out_where_asked(many: Build) -> None:
    parts = [ids(many.torch_dataset(rank=rank, world_size=8, drop_remainder=False)) for rank in range(8)]
    assert [len(part) for part in parts] == [13] * 4 + [12] * 4
    assert list(itertools.chain(*parts)) == many.table().column("image_id").to_pylist()


def test_the_last_batch_can_be_left_out(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = many.torch_dataset(batch_size=8, drop_last=True, shuffle=True)
    assert len(dataset) == 12
    parts = [in_worker(monkeypatch, dataset, worker, 3) for worker in range(3)]
    assert [[len(batch["image_id"]) for batch in part] for part in parts] == [[8] * 4] * 3


def test_ranks_come_from_the_environment(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    dataset = many.torch_dataset()
    assert (dataset.rank, dataset.world_size, len(dataset)) == (1, 4, 25)
    given = many.torch_dataset(rank=0, world_size=2)
    assert (given.rank, given.world_size, len(given)) == (0, 2, 50)
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ParameterError, match="'four'"):
        many.torch_dataset()


def test_workers_read_each_its_part(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 row groups: a border between two workers cuts one at most."""
    read: list[int] = []
    whole = torch_groups.read_group

    def counted(group: Any, *rest: Any, **options: Any) -> Any:
        read.append(group.path)
        return whole(group, *rest, **options)

    monkeypatch.setattr(torch_windows, "read_group", counted)
    dataset = many.torch_dataset(shuffle=True, batch_size=4, window=21)
    for worker in range(3):
        in_worker(monkeypatch, dataset, worker, 3)
    assert len(set(read)) == 15
    assert len(read) <= 15 + 3


@pytest.mark.parametrize(("cache", "again"), [(1 << 20, 0), (100, 11), (0, 15)])
def test_row_groups_that_fit_are_kept(cache: int, again: int, many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 14 row groups with 7 counts of 4 bytes three fit in 100 bytes, and the last, which has 2 counts."""
    read: list[int] = []
    whole = torch_groups.read_group

    def counted(group: Any, *rest: Any, **options: Any) -> Any:
        read.append(group.path)
        return whole(group, *rest, **options)

    monkeypatch.setattr(torch_windows, "read_group", counted)
    dataset = many.torch_dataset(columns=["fg_count"], cache_bytes=cache)
    first = list(dataset)
    assert len(read) == 15
    assert list(dataset) == first
    assert len(read) == 15 + again


def test_memory_holds_a_window(tmp_path: Path) -> None:
    """1,600 rows of 4 KiB of scores in shards of 25; windows of 50 rows are 32 times smaller than all."""
    built = many_rows(tmp_path, 1600, image_size=256, shard_rows=25)
    size = 1600 * 32 * 32 * 4
    dataset = built.torch_dataset(columns=["scores"], batch_size=10, shuffle=True, window=50, cache_bytes=0)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    arrow = 0
    for _ in dataset:
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size / 100 < arrow < size / 8
    assert size / 40 < peak < size / 8


def test_a_data_loader_gives_the_same_rows(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its workers in turn; kept ones hear of the next epoch."""
    dataset = many.torch_dataset(shuffle=True, seed=5, window=20, batch_size=8)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    assert len(loader) == 13
    rows = [ids(loader)]
    dataset.set_epoch(1)
    rows.append(ids(loader))
    for epoch, found in enumerate(rows):
        dataset.set_epoch(epoch)
        parts = [in_worker(monkeypatch, dataset, worker, 2) for worker in range(2)]
        turns = itertools.chain(*itertools.zip_longest(*parts))
        assert found == ids(batch for batch in turns if batch)
        assert sorted(found) == sorted(many.table().column("image_id").to_pylist())
    assert rows[0] != rows[1]


def test_a_build_in_a_store(many: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = located(f"memory://torch/{tmp_path.name}")
    for path in many.folder.rglob("*.*"):
        (store / str(path.relative_to(many.folder))).write_bytes(path.read_bytes())
    options: dict[str, Any] = {"shuffle": True, "batch_size": 8, "window": 20}
    stored, on_disk = tokenlabels.open(str(store)).torch_dataset(**options), many.torch_dataset(**options)
    for worker in range(2):
        assert ids(in_worker(monkeypatch, stored, worker, 2)) == ids(in_worker(monkeypatch, on_disk, worker, 2))
    stored.load_state_dict(on_disk.state_dict())  # the same build, wherever it is
    shard = tokenlabels.open(str(store)).files()[7]
    shard.unlink()
    with pytest.raises(NotABuildError, match=f"{shard}: is missing"):
        list(stored)
