"""Stopping a pass anywhere and going on: what is left is what the uninterrupted pass would have given."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opened import many_rows
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.worker import WorkerInfo
from two_ranks import read_as_rank

import tokenlabels
from tokenlabels import torch_dataset
from tokenlabels.errors import ParameterError
from tokenlabels.reader import Build
from tokenlabels.torch_dataset import BuildDataset

ROWS = 53


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """53 rows in 8 shards."""
    return many_rows(tmp_path_factory.mktemp("many"), ROWS)


def stored(state: Any) -> Any:
    """A state as a checkpoint of JSON gives it back."""
    return json.loads(json.dumps(state))


def ids(items: Any) -> list[Any]:
    return [item["image_id"] for item in items]


class Loader:
    """A DataLoader whose workers are copies in this process, pickled as for new processes; `reads_ahead` or not.

    torchdata's StatefulDataLoader keeps states of workers, which `states` does.
    """

    def __init__(self, dataset: BuildDataset, workers: int, batch_size: int | None, patch: pytest.MonkeyPatch) -> None:
        self.dataset, self.num_workers, self.batch_size, self._patch = dataset, workers, batch_size, patch
        self._copies = [pickle.loads(pickle.dumps(dataset)) for _ in range(workers)]
        for worker in self._copies:  # memory that they share with the data set, which pickle does not
            worker._position._shared = dataset._position._shared

    def _as_worker(self, number: int) -> Any:
        info = WorkerInfo(id=number, num_workers=self.num_workers, seed=0, dataset=self._copies[number])
        self._patch.setattr(torch_dataset, "get_worker_info", lambda: info)
        return self._copies[number]

    def states(self) -> list[Any]:
        found = [stored(self._as_worker(number).state_dict()) for number in range(self.num_workers)]
        self._patch.setattr(torch_dataset, "get_worker_info", lambda: None)
        return found

    def load(self, states: list[Any]) -> None:
        for number, state in enumerate(states):
            self._as_worker(number).load_state_dict(state)

    def begin(self) -> list[Any]:
        running = [iter(self._as_worker(number)) for number in range(self.num_workers)]
        self._patch.setattr(torch_dataset, "get_worker_info", lambda: None)
        return running

    def __iter__(self) -> Any:
        """Batches of workers in turn, as a DataLoader has them."""
        return self.run(self.begin())

    def run(self, running: list[Any], turn: int = 0) -> Any:
        left = dict(enumerate(running))
        while left:
            number = turn % self.num_workers
            turn += 1
            if number in left:
                found = []
                for item in left[number]:
                    found.append(item["image_id"])
                    if len(found) == (self.batch_size or 1):
                        break
                if found:
                    yield found
                if len(found) < (self.batch_size or 1):
                    del left[number]


# --- this process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_goes_on_anywhere(shuffle: bool, batch_size: int | None, many: Build) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "batch_size": batch_size, "window": 15, "rank": 1, "world_size": 2}
    dataset = many.torch_dataset(**options)
    dataset.set_epoch(3)
    whole = ids(dataset)
    assert len(whole) == len(dataset)
    for taken in range(len(whole) + 1):
        first = many.torch_dataset(**options)
        first.set_epoch(3)
        running = iter(first)
        assert ids(next(running) for _ in range(taken)) == whole[:taken]
        second = many.torch_dataset(**options)
        second.load_state_dict(stored(first.state_dict()))
        second.set_epoch(3)  # as a training loop does; it is that epoch already
        assert second.epoch == 3
        assert ids(second) == whole[taken:]
        assert ids(second) == whole  # the next pass is whole
        assert ids(running) == whole[taken:]


def test_a_pass_is_stopped_twice_and_the_next_epoch_is_whole(many: Build) -> None:
    dataset = many.torch_dataset(shuffle=True)
    whole = ids(dataset)
    for taken in (10, 7):
        running, before = iter(dataset), dataset.state_dict()["progress"]["done"][0]
        assert ids(next(running) for _ in range(taken)) == whole[before : before + taken]
        state = stored(dataset.state_dict())
        dataset = many.torch_dataset(shuffle=True)
        dataset.load_state_dict(state)
        assert dataset.state_dict() == state
    dataset.set_epoch(1)
    assert len(ids(dataset)) == ROWS
    dataset.set_epoch(0)
    assert ids(dataset) == whole


def test_a_data_loader_without_workers_need_not_be_named(many: Build) -> None:
    dataset = many.torch_dataset(shuffle=True)
    whole = [batch["image_id"] for batch in DataLoader(dataset, batch_size=4)]
    running = iter(DataLoader(dataset, batch_size=4))
    for _ in range(5):
        next(running)
    state = dataset.state_dict()
    assert state == dataset.state_dict(DataLoader(dataset, batch_size=4), 5)
    other = many.torch_dataset(shuffle=True)
    other.load_state_dict(state)
    assert [batch["image_id"] for batch in DataLoader(other, batch_size=4)] == whole[5:]


# --- DataLoader workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "size"), [(4, None), (None, 4), (None, None)])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_plain_loader_goes_on_where_the_loop_says(
    workers: int, batch_size: int | None, size: int | None, many: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches cut by the data set, by the loader, and none; stopped twice."""

    def make() -> Loader:
        dataset = many.torch_dataset(shuffle=True, window=15, batch_size=batch_size)
        return Loader(dataset, workers, size, monkeypatch)

    whole = list(make())
    for taken in (0, 1, 2, 5, len(whole) - 1, len(whole)):
        first = make()
        running = iter(first)
        for _ in range(taken):
            next(running)
        second = make()
        second.dataset.load_state_dict(stored(first.dataset.state_dict(first, taken)))
        rest = iter(second)
        more = min(4, len(whole) - taken)
        assert [next(rest) for _ in range(more)] == whole[taken : taken + more]
        third = make()
        third.dataset.load_state_dict(stored(second.dataset.state_dict(second, more)))
        assert list(third) == whole[taken + more :]
        assert list(third) == whole


@pytest.mark.parametrize("kept", [True, False])
def test_workers_resume_for_one_pass(kept: bool, many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept or started anew for every pass; a state can be loaded when they run already."""
    dataset = many.torch_dataset(shuffle=True, batch_size=4)
    loader = Loader(dataset, 2, None, monkeypatch)
    whole = list(loader)
    state = dataset.state_dict(loader, 6)
    for _ in range(2):
        dataset.load_state_dict(state)
        assert list(loader if kept else Loader(dataset, 2, None, monkeypatch)) == whole[6:]
        assert list(loader if kept else Loader(dataset, 2, None, monkeypatch)) == whole
        dataset.set_epoch(1)
        assert sum(len(batch) for given in loader for batch in given) == ROWS
        dataset.set_epoch(0)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_states_of_workers(batch_size: int | None, many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchdata's StatefulDataLoader keeps them: asked of each worker, given back to it before its pass."""
    options: dict[str, Any] = {"shuffle": True, "window": 15, "batch_size": batch_size}
    whole = list(Loader(many.torch_dataset(**options), 2, 4, monkeypatch))
    for taken in (0, 1, 2, 3):
        first = Loader(many.torch_dataset(**options), 2, 4, monkeypatch)
        first.dataset.set_epoch(0)
        running = iter(first)
        for _ in range(taken):
            next(running)
        second = Loader(many.torch_dataset(**options), 2, 4, monkeypatch)
        second.load(first.states())
        assert list(second.run(second.begin(), turn=taken % 2)) == whole[taken:]
        assert list(second) == whole


def test_the_state_of_workers_brings_their_epoch(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Loader(many.torch_dataset(shuffle=True), 2, 4, monkeypatch)
    first.dataset.set_epoch(5)
    whole = list(first)
    second = Loader(many.torch_dataset(shuffle=True), 2, 4, monkeypatch)
    begun = Loader(first.dataset, 2, 4, monkeypatch)
    begun.begin()
    second.load(begun.states())
    assert list(second) == whole


def test_real_workers_go_on(many: Build) -> None:
    options: dict[str, Any] = {"shuffle": True, "batch_size": 4}
    dataset = many.torch_dataset(**options)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    whole = ids(loader)
    running = iter(loader)
    for _ in range(5):
        next(running)
    with pytest.raises(ParameterError, match=r"call state_dict\(loader, consumed\)"):
        dataset.state_dict()
    state = stored(dataset.state_dict(loader, 5))
    assert ids(running) == whole[5:]
    dataset.load_state_dict(state)
    assert ids(loader) == whole[5:]
    assert ids(loader) == whole


# --- states that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"shuffle": False}, "shuffle True, not False"),
        ({"rank": 0, "world_size": 2}, "world_size 1, not 2"),
        ({"batch_size": 5}, "batch_size 4, not 5"),
        ({"window": 9}, "window 32768, not 9"),
        ({"split": "many"}, "split None, not 'many'"),
        ({"columns": ["labels"]}, "columns"),
        ({"drop_last": True}, "drop_last False, not True"),
    ],
)
def test_a_state_of_another_order_is_refused(options: dict[str, Any], says: str, many: Build) -> None:
    state = many.torch_dataset(shuffle=True, batch_size=4).state_dict()
    other = many.torch_dataset(**({"shuffle": True, "batch_size": 4} | options))
    with pytest.raises(ParameterError, match=f"the state is of a data set with .*{says}.*: make this one alike"):
        other.load_state_dict(state)


def test_a_state_of_another_build_is_refused(many: Build, tmp_path: Path) -> None:
    other = tokenlabels.relabel(many, tau=0.2, out=tmp_path / "out")
    with pytest.raises(ParameterError, match="of a data set with build "):
        other.torch_dataset().load_state_dict(many.torch_dataset().state_dict())


@pytest.mark.parametrize(
    "progress",
    [
        {},
        None,
        {"epoch": -1},
        {"epoch": 0, "done": [-1]},
        {"epoch": 0, "done": []},
        {"epoch": 0, "workers": 2, "done": [1]},
        {"epoch": 0, "workers": 2, "done": [1, 2], "turn": 2},
        {"epoch": 0, "workers": 10**9, "done": [1]},
        {"epoch": 0, "workers": 600, "done": [0] * 600},
        {"epoch": 0, "workers": 2, "done": [27, 27]},
        {"epoch": 0, "workers": 2, "done": [1], "worker": 2},
        {"epoch": 10**30, "done": [1]},
        {"epoch": 0, "done": [10**30]},
        {"epoch": "0", "done": [1]},
    ],
)
def test_a_damaged_state_is_refused(progress: Any, many: Build) -> None:
    dataset = many.torch_dataset()
    whole = ids(dataset)
    with pytest.raises(ParameterError, match="state"):
        dataset.load_state_dict(dataset.state_dict() | {"progress": progress})
    with pytest.raises(ParameterError, match="no state"):
        dataset.load_state_dict({})
    assert ids(dataset) == whole


def test_other_workers_are_refused(many: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = many.torch_dataset(batch_size=4)
    dataset.load_state_dict(dataset.state_dict(SimpleNamespace(num_workers=2, batch_size=None), 3))
    with pytest.raises(ParameterError, match="taken with 2 DataLoader workers, this pass has 0"):
        iter(dataset)
    with pytest.raises(ParameterError, match="taken with 2 DataLoader workers, this pass has 3"):
        Loader(dataset, 3, None, monkeypatch).begin()


@pytest.mark.parametrize(("workers", "size", "consumed"), [(0, None, 15), (2, None, 15), (3, 4, 7)])
def test_more_than_there_is_was_not_taken(workers: int, size: int | None, consumed: int, many: Build) -> None:
    dataset = many.torch_dataset(batch_size=4)
    loader = SimpleNamespace(num_workers=workers, batch_size=size)
    with pytest.raises(ParameterError, match=f"{consumed} batches of .* were not taken"):
        dataset.state_dict(loader, consumed)
    with pytest.raises(ParameterError, match="both the loader and"):
        dataset.state_dict(consumed=1)
    with pytest.raises(ParameterError, match="epoch -1"):
        dataset.set_epoch(-1)


def test_copies_have_places_of_their_own(many: Build) -> None:
    dataset = many.torch_dataset(shuffle=True)
    for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        other.set_epoch(1)
        assert dataset.epoch == 0
        assert isinstance(other, IterableDataset)


@pytest.mark.slow
def test_two_processes(many: Build, tmp_path: Path) -> None:
    """Ranks as torch.distributed has them, and workers of either kind."""
    context = multiprocessing.get_context("fork")  # which need not import torch again
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    processes = [
        context.Process(target=read_as_rank, args=(rank, str(tmp_path / "store"), str(many.path), out))
        for rank, out in enumerate(outs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = [json.loads(out.read_text()) for out in outs]
    assert [one["rank"] for one in found] == [0, 1]
    seen = [{image_id for batch in one["seen"] for image_id in batch} for one in found]
    assert not seen[0] & seen[1]
    assert [len(part) for part in seen] == [26, 26]
    assert {one["count"] for one in found} == {52}
    assert all(one["rest"] == one["seen"][3:] for one in found)
