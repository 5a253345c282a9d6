"""Builds on a Dask cluster: the same bytes as anywhere else, whatever becomes of workers, scheduler and client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import distributed
import numpy as np
import pytest
from helpers import fine, one_error_line
from stores import files_of, s3_server
from typer.testing import Result
from upath import UPath
from voc_data import CAT, Photo, save_mask, write_voc

import tokenlabels
from tokenlabels import dask_cluster
from tokenlabels.dask_executor import DaskExecutor
from tokenlabels.dask_worker import versions_here
from tokenlabels.errors import OutputError, ParameterError, SchedulerError, TokenLabelsError, WorkerDiedError
from tokenlabels.progress import Silent
from tokenlabels.spool import Spool, is_held, read_parcel
from tokenlabels.tasks import write_shards

Invoke: TypeAlias = Callable[..., Result]

SHARD_ROWS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster with two workers in processes of their own, which nannies replace when they die."""
    make: Any = distributed.LocalCluster
    with make(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as found:
        yield found.scheduler_address


@pytest.fixture
def client(cluster: str) -> Iterator[Any]:
    """To tell the workers what to do."""
    connect: Any = distributed.Client
    with connect(cluster, set_as_default=False) as found:
        yield found


def contents(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


OVERLAP: dict[str, Any] = {"shard_rows": SHARD_ROWS}
PIXELS: dict[str, Any] = {"rule": "pixel-ratio", "patch": [16, 8], "shard_rows": SHARD_ROWS}


@pytest.fixture(scope="module")
def reference(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the sample, on two grids."""
    out = tmp_path_factory.mktemp("reference") / "out"
    tokenlabels.build("coco", root=sample_root, out=out, **PIXELS)
    return contents(out)


def on(cluster: str, root: Path, out: Path, **options: Any) -> tokenlabels.Build:
    return tokenlabels.build("coco", root=root, out=out, engine="dask", scheduler=cluster, **options)


class Meddling(Silent):
    """Does something once, while shards are being built."""

    def __init__(self, deed: Callable[[], Any]) -> None:
        self._deed: Callable[[], Any] | None = deed
        self._building = False

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Progress`."""
        self._building = name == "building shards"

    def advance(self, steps: int) -> None:
        """See `Progress`."""
        if self._building and steps and self._deed is not None:
            deed, self._deed = self._deed, None
            deed()


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(cluster: str, root: Path, out: Path, **options: Any) -> None:
    """A build that Ctrl-C ends after the first task."""
    with pytest.raises(KeyboardInterrupt):
        on(cluster, root, out, progress=Meddling(interrupt), **options)


def left_over(out: Path) -> list[str]:
    """Spools and temporary files."""
    return [str(path) for path in out.rglob("*") if path.name == "spool" or path.suffix == ".tmp"]


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [OVERLAP, OVERLAP | {"embed_images": True}, OVERLAP | {"embed_size": 64, "image_size": 64, "limit": 4}],
    ids=["boxes", "images", "resized"],
)
def test_a_cluster_does_not_show_in_the_files(
    options: dict[str, Any], cluster: str, sample_root: Path, tmp_path: Path
) -> None:
    tokenlabels.build("coco", root=sample_root, out=tmp_path / "serial", **options)
    on(cluster, sample_root, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "serial"]


def test_masks_and_relative_places(
    cluster: str,
    sample_root: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masks are checked by workers, too, which have another working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(sample_root)
    on(cluster, Path("data"), Path("out"), **PIXELS)
    assert contents(tmp_path / "out") == reference


def test_mask_files_by_relative_places(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "voc")
    options: dict[str, Any] = {"rule": "pixel-ratio", "shard_rows": 1, "embed_images": True, "embed_masks": True}
    tokenlabels.build("voc", root="voc", out="serial", **options)
    tokenlabels.build("voc", root="voc", out="out", engine="dask", scheduler=cluster, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


def test_a_folder_of_json_files(
    cluster: str, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which workers read themselves."""
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    for image in document["images"]:
        entries = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
        whole = {"images": [image], "annotations": entries, "categories": document["categories"]}
        Path("parts", f"{image['id']}.json").write_text(json.dumps(whole))
    options: dict[str, Any] = {"annotations": "parts", "rule": "pixel-ratio", "shard_rows": 1}
    tokenlabels.build("coco", out="serial", **options)
    tokenlabels.build("coco", out="out", engine="dask", scheduler=cluster, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


@pytest.mark.slow
def test_a_store_is_the_spool_and_the_output(cluster: str, sample_root: Path, tmp_path: Path) -> None:
    """Workers know the store only from what they are sent."""
    tokenlabels.build("coco", root=sample_root, out=tmp_path, **OVERLAP)
    with s3_server() as bucket:
        keys = {"key": "test", "secret": "test", "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        out = UPath(f"{bucket}/out", **keys)
        tokenlabels.build("coco", root=sample_root, out=out, engine="dask", scheduler=cluster, **OVERLAP)
        assert files_of(out) == contents(tmp_path)


def test_a_worker_of_many_threads(sample_root: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    make: Any = distributed.LocalCluster
    with make(n_workers=1, threads_per_worker=4, processes=False, protocol="tcp", dashboard_address=":0") as threads:
        tokenlabels.build(
            "coco", root=sample_root, out=tmp_path, engine="dask", scheduler=threads.scheduler_address, **PIXELS
        )
    assert contents(tmp_path) == reference


@pytest.mark.slow
def test_a_cluster_that_the_build_starts(
    sample_root: Path,
    reference: dict[str, bytes],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    line = [sys.executable, "-m", "cli.tokenlabels", "build", "coco", "--root", str(sample_root), "--out", "out"]
    line += ["--rule", "pixel-ratio", "--patch", "16", "--patch", "8", "--shard-rows", str(SHARD_ROWS)]
    line += ["--engine", "dask", "--workers", "2"]
    path = os.pathsep.join(place for place in sys.path if place)
    result = subprocess.run(
        line, env=environment | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "distributed" not in result.stderr
    assert contents(tmp_path / "out") == reference


# --- workers, clients and schedulers that die -------------------------------------------------------------------------


def test_a_killed_worker_changes_nothing(
    cluster: str, client: Any, sample_root: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Its task runs again elsewhere; what it had half written goes."""
    pids = client.run(os.getpid)

    def kill() -> None:
        (tmp_path / "out" / "384x384-p8" / ".train-00000-of-00007.parquet.4711-0a1b2c3d.tmp").write_bytes(b"half")
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    on(cluster, sample_root, tmp_path / "out", progress=Meddling(kill), **PIXELS)
    assert contents(tmp_path / "out") == reference
    client.wait_for_workers(2)
    assert set(client.run(os.getpid).values()) != set(pids.values())


@pytest.mark.slow
def test_a_task_that_kills_every_worker(cluster: str, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerDiedError, match="ended every worker that ran it"),
        DaskExecutor(tmp_path / "spool", scheduler=cluster) as executor,
    ):
        list(executor.run("os:_exit", [1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_interrupted_and_resumed(
    cluster: str, client: Any, sample_root: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """No worker goes on writing behind the back of a build that has ended."""
    out = tmp_path / "out"
    interrupted(cluster, sample_root, out, **PIXELS)
    before = contents(out)
    assert left_over(out) == []
    while any(client.processing().values()):
        time.sleep(0.01)
    assert contents(out) == before
    finished = [name.removeprefix(".build/journal/").removesuffix(".json") for name in before if "journal" in name]
    assert 0 < len(finished) < len([name for name in reference if name.endswith(".parquet")])
    stamps = {name: (out / name).stat().st_mtime_ns for name in finished}
    on(cluster, sample_root, out, **PIXELS)
    assert contents(out) == reference
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == stamps


@pytest.mark.slow
def test_a_killed_client_and_resumed(
    cluster: str,
    client: Any,
    sample_root: Path,
    reference: dict[str, bytes],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """SIGKILL leaves the spool; the next build removes it, on whatever engine."""
    out = tmp_path / "out"
    code = (
        "import os, sys, tokenlabels\n"
        "from tokenlabels.progress import Silent\n"
        "class Deadly(Silent):\n"
        "    building = False\n"
        "    def stage(self, name, total=None): self.building = name == 'building shards'\n"
        "    def advance(self, steps):\n"
        "        if self.building and steps: os.kill(os.getpid(), 9)\n"
        "root, out, address = sys.argv[1:]\n"
        f"words = {PIXELS} | dict(engine='dask', scheduler=address)\n"
        "tokenlabels.build('coco', root=root, out=out, progress=Deadly(), **words)"
    )
    path = os.pathsep.join(place for place in sys.path if place)
    line = [sys.executable, "-c", code, str(sample_root), str(out), cluster]
    ended = subprocess.run(line, env=environment | {"PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(out.glob(".build/spool/*/lease"))
    tokenlabels.build("coco", root=sample_root, out=out, **PIXELS)
    assert contents(out) == reference


def test_a_task_of_a_build_that_is_gone_does_not_commit(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client that was killed had sent away; the folder may be somebody else's by now."""
    seen: list[Any] = []

    class Catching(DaskExecutor):
        def start(self) -> None:
            pass

        def run(self, function: str, tasks: Any) -> Iterator[Any]:
            seen.extend(tasks)
            raise KeyboardInterrupt

    monkeypatch.setattr("tokenlabels.dask_executor.DaskExecutor", Catching)
    with pytest.raises(KeyboardInterrupt):
        tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", engine="dask", **OVERLAP)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="another build is writing here"):
        write_shards(seen[0])
    assert contents(tmp_path) == before
    seen[0].lease.parent.mkdir(parents=True)
    seen[0].lease.write_bytes(b"held")
    assert len(write_shards(seen[0])) == 1


def test_a_fault_that_a_worker_finds_leaves_nothing(cluster: str, tmp_path: Path) -> None:
    """A value that no object has, seen when the mask is decoded, in the middle of the build."""
    photos = [Photo(f"{number:02d}", 61, 40, (CAT,)) for number in range(12)]
    root = write_voc(tmp_path / "voc", photos)
    shutil.rmtree(root / "SegmentationObject")
    values = photos[0].class_mask()
    values[0, 0] = 77
    save_mask(root / "SegmentationClass" / "07.png", values)
    options: dict[str, Any] = {"root": root, "rule": "pixel-ratio", "shard_rows": 1}
    with pytest.raises(TokenLabelsError, match=r"VOC059 .*07\.png: the mask of image 07 holds the value 77"):
        tokenlabels.build("voc", out=tmp_path / "out", engine="dask", scheduler=cluster, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_workers_cannot_write(
    cluster: str, sample_root: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    interrupted(cluster, sample_root, out, **PIXELS)
    last = max(name for name in reference if name.endswith(".parquet"))
    (out / last / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match=f"{last}: cannot be written"):
        on(cluster, sample_root, out, **PIXELS)
    assert left_over(out) == []
    shutil.rmtree(out / last)
    on(cluster, sample_root, out, **PIXELS)
    assert contents(out) == reference


def test_no_room_for_the_spool(cluster: str, sample_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file/out: cannot be written \(Not a directory\)"):
        on(cluster, sample_root, tmp_path / "file" / "out", **PIXELS)


# --- clusters that cannot build ---------------------------------------------------------------------------------------


def hide() -> None:
    """A worker as if the package were not installed."""
    sys.modules["hidden"] = sys.modules["tokenlabels"]
    sys.modules["tokenlabels"] = None  # type: ignore[assignment]


def show() -> None:
    """Undo `hide`."""
    sys.modules["tokenlabels"] = sys.modules.pop("hidden")


def pretend(version: str) -> None:
    """A worker as if another version were installed."""
    import tokenlabels
    from tokenlabels.dask_worker import versions_here

    tokenlabels.__version__ = version
    versions_here.cache_clear()


def test_workers_without_the_package(cluster: str, client: Any, sample_root: Path, tmp_path: Path) -> None:
    client.run(hide)
    try:
        with pytest.raises(SchedulerError, match=r"worker tcp://\S+ cannot import tokenlabels \(.*\)") as error:
            on(cluster, sample_root, tmp_path / "out", **PIXELS)
    finally:
        client.run(show)
    assert f"install tokenlabels {tokenlabels.__version__} on every worker" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_workers_with_another_version(cluster: str, client: Any, sample_root: Path, tmp_path: Path) -> None:
    client.run(pretend, "0.0.9")
    try:
        with pytest.raises(SchedulerError, match=r"has tokenlabels 0.0.9 instead of \S+: shards would not be the same"):
            on(cluster, sample_root, tmp_path / "out", **PIXELS)
    finally:
        client.run(pretend, tokenlabels.__version__)
    assert list(tmp_path.iterdir()) == []


def test_workers_that_do_not_see_the_folder(
    cluster: str, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every machine had a disk of its own."""
    monkeypatch.setattr(Spool, "put", lambda *_: (Path("/elsewhere/1.task"), ""))
    with pytest.raises(SchedulerError, match=r"does not see /elsewhere/1.task: --out must be a folder that every"):
        on(cluster, sample_root, tmp_path / "out", **PIXELS)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_was_exchanged_is_not_loaded(cluster: str, sample_root: Path, tmp_path: Path) -> None:
    """The spool holds pickles: whoever can write there must not be able to run code."""
    spool = Spool(tmp_path / "spool")
    spool.open()
    parcel = spool.put("1.task", ["a", "task"])
    assert read_parcel(parcel) == ["a", "task"]
    assert isinstance(parcel[0], Path)
    parcel[0].write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(OutputError, match="is not what was written there"):
        read_parcel(parcel)
    assert is_held(spool.lease)
    spool.close()
    assert not is_held(spool.lease)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_workers(tmp_path: Path) -> None:
    make: Any = distributed.LocalCluster
    with make(n_workers=0, protocol="tcp", dashboard_address=":0") as empty:
        executor = DaskExecutor(tmp_path / "spool", scheduler=empty.scheduler_address, worker_seconds=0)
        with pytest.raises(SchedulerError, match="has had no workers for 0 s: start some"), executor:
            list(executor.run("builtins:int", ["1"]))
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_executor_are_kept_apart(cluster: str, tmp_path: Path) -> None:
    """Every split is a run of its own; Dask may remember results of the one before by their names."""
    with DaskExecutor(tmp_path / "spool", scheduler=cluster) as executor:
        for numbers in ([1, 2, 3], [4, 5, 6], [7], [], [8, 9]) * 5:
            assert sorted(executor.run("builtins:int", map(str, numbers))) == numbers


def test_the_spool_stays_small(cluster: str, tmp_path: Path) -> None:
    """Tasks are drawn when there is room, and large results do not stay."""
    with DaskExecutor(tmp_path / "spool", scheduler=cluster) as executor:
        found = []
        for result in executor.run("builtins:bytes", [200_000] * 20):
            found.append(len(result))
            assert len(list(tmp_path.rglob("*.task"))) + len(list(tmp_path.rglob("*.result"))) <= 2 * 2 * 2
    assert found == [200_000] * 20
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_nobody_there(listener: socket.socket, sample_root: Path, tmp_path: Path, invoke: Invoke) -> None:
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    words = ("build", "coco", "--root", sample_root, "--out", tmp_path / "out", "--engine", "dask")
    result = invoke(*words, "--scheduler", address)
    assert result.exit_code == 1
    one_error_line(result.stderr, address, "cannot be reached", "Connection refused")
    assert list(tmp_path.iterdir()) == []


def test_somebody_else_there(
    listener: socket.socket,
    cluster: str,
    client: Any,
    sample_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A port that is silent, and the address of a worker: both would let a Dask client wait for ever."""
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    silent = f"127.0.0.1:{listener.getsockname()[1]}"
    worker = next(iter(client.scheduler_info()["workers"]))
    for address in (silent, worker):
        with pytest.raises(SchedulerError, match=f"{address}: no Dask scheduler answers there"):
            tokenlabels.build("coco", root=sample_root, out=tmp_path, engine="dask", scheduler=address, **PIXELS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--scheduler", "tcp://127.0.0.1:8786"), "--scheduler goes with --engine dask"),
        (("--engine", "dask", "--scheduler", "tcp://host"), "is no address: write it as tcp://HOST:8786"),
        (("--engine", "dask", "--scheduler", "http://host:1"), "is no address"),
        (("--engine", "dask", "--scheduler", "host:8786", "--workers", 2), "--scheduler has its own: leave it out"),
    ],
)
def test_options_that_contradict(
    words: tuple[object, ...], says: str, sample_root: Path, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke("build", "coco", "--root", sample_root, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    one_error_line(result.stderr, says)


def test_without_dask(sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    monkeypatch.setattr("tokenlabels.engines.find_spec", lambda name: None)
    result = invoke("build", "coco", "--root", sample_root, "--out", tmp_path / "out", "--engine", "dask")
    assert result.exit_code == 1
    one_error_line(result.stderr, "pip install 'tokenlabels[dask]'")
    fine(invoke("build", "coco", "--root", sample_root, "--out", tmp_path / "out"))


def test_the_memory_of_this_process_is_nowhere_else(sample_root: Path) -> None:
    with pytest.raises(ParameterError, match="memory://out: is in the memory of one process: use one worker"):
        tokenlabels.build("coco", root=sample_root, out="memory://out", engine="dask")


def test_an_unknown_engine(sample_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="unknown engine 'spark': use local or dask"):
        tokenlabels.build("coco", root=sample_root, out=tmp_path / "out", engine="spark")  # type: ignore[arg-type]


def test_versions_name_what_decides_bytes() -> None:
    assert versions_here()["numpy"] == np.__version__
    assert set(versions_here()) == {"tokenlabels", "numpy", "pyarrow", "pillow"}
