"""The output folder: equal bytes however a build was run, what may interrupt it, and who may write there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import one_error_line
from typer.testing import Result

import tokenlabels
from tokenlabels import shards
from tokenlabels.errors import (
    BuildMismatchError,
    NotABuildError,
    OutputError,
    ParameterError,
    TokenLabelsError,
)
from tokenlabels.executors import ProcessExecutor

Invoke: TypeAlias = Callable[..., Result]
Execute: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

IMAGES, SHARD_ROWS = 1500, 25
SHARDS = IMAGES // SHARD_ROWS
OPTIONS: dict[str, Any] = {"patch": 8, "rule": "pixel-ratio", "crowd": "ignore", "shard_rows": SHARD_ROWS}
WORDS = ("--patch", "8", "--rule", "pixel-ratio", "--crowd", "ignore", "--shard-rows", str(SHARD_ROWS))


def contents(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instances file whose build takes a second or two, in many shards."""
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 500 + k % 140, "height": 480} for k in range(1, IMAGES + 1)]
    annotations = []
    for k in range(1, IMAGES + 1):
        for part in range(3):
            x, y = float(k * 7 % 300), float(part * 110)
            ring = [x, y, x + 150.5, y + 3.25, x + 140, y + 100, x + 70.75, y + 60, x + 1, y + 99]
            annotations.append(
                {
                    "id": 10 * k + part,
                    "image_id": k,
                    "category_id": 1 + part % 2,
                    "bbox": [x, y, 150.5, 100],
                    "area": 9000.5,
                    "iscrowd": int(part == 2),
                    "segmentation": [ring],
                }
            )
    path = tmp_path_factory.mktemp("big") / "annotations" / "instances_big.json"
    path.parent.mkdir()
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def reference(big: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed build on one worker."""
    out = tmp_path_factory.mktemp("reference") / "out"
    tokenlabels.build("coco", annotations=big, out=out, **OPTIONS)
    made = contents(out)
    assert len(made) == SHARDS + 3  # card, croissant.json, manifest
    return made


@pytest.fixture
def small(tmp_path: Path, document: dict[str, Any]) -> Path:
    """A small instances file."""
    path = tmp_path / "data" / "annotations" / "instances_mine.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def built(small: Path, tmp_path: Path) -> Path:
    """Its build: two shards."""
    out = tmp_path / "built"
    tokenlabels.build("coco", annotations=small, out=out, shard_rows=1)
    return out


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.fixture
def started(big: Path, tmp_path: Path, command: str, environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Starts a build in a process group of its own and waits until some shards are journalled."""
    running: list[subprocess.Popen[str]] = []

    def start(workers: int, shards: int = 4) -> subprocess.Popen[str]:
        out = tmp_path / "out"
        line = [
            command,
            "build",
            "coco",
            "--annotations",
            str(big),
            *WORDS,
            "--workers",
            str(workers),
            "--out",
            str(out),
        ]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        running.append(process)
        deadline = time.monotonic() + 50
        while len(journalled(out)) < shards:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def journalled(out: Path) -> list[str]:
    folder = out / ".build" / "journal"
    return sorted(
        f"{path.parent.name}/{path.name.removesuffix('.json')}"
        for path in folder.glob("*/*.json")
        if path.name[0] != "."
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every descendant: the fork server, its workers, the resource tracker."""
    return psutil.Process(process.pid).children(recursive=True)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers, which are children of the fork server."""
    return [child for child in family(process) if child.ppid() != process.pid]


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            time.sleep(0.01)
    return True


def temporaries(out: Path) -> list[Path]:
    return list(out.rglob("*.tmp"))


def resumed(big: Path, out: Path) -> None:
    """Go on in this process; finished shards must not be written again."""
    finished = {file: (out / file).stat().st_mtime_ns for file in journalled(out)}
    assert 0 < len(finished) < SHARDS, "the interruption did not fall into the build"
    assert not (out / "manifest.json").exists()
    tokenlabels.build("coco", annotations=big, out=out, **OPTIONS)
    assert {file: (out / file).stat().st_mtime_ns for file in finished} == finished


@pytest.mark.slow
def test_workers_do_not_show_in_the_bytes(
    big: Path, reference: dict[str, bytes], execute: Execute, tmp_path: Path
) -> None:
    result = execute("build", "coco", "--annotations", big, *WORDS, "--workers", 2, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == reference


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed(
    workers: int, big: Path, reference: dict[str, bytes], started: Callable[..., Any], tmp_path: Path
) -> None:
    """SIGKILL: no worker outlives its parent, nothing holds the folder, and the rest is made as if nothing happened."""
    process = started(workers)
    children = family(process)
    assert len(workers_of(process)) == (2 if workers == 2 else 0)
    process.kill()
    process.wait()
    assert gone(children, 2.0)
    resumed(big, tmp_path / "out")
    assert contents(tmp_path / "out") == reference


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_and_resumed(
    workers: int, big: Path, reference: dict[str, bytes], started: Callable[..., Any], tmp_path: Path
) -> None:
    """Ctrl-C at a terminal: SIGINT to the whole process group."""
    out = tmp_path / "out"
    process = started(workers)
    children = family(process)
    os.killpg(process.pid, signal.SIGINT)
    since = time.monotonic()
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - since < 3
    assert process.returncode == 130
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert "interrupted" in stderr
    assert gone(children, 1.0)
    assert temporaries(out) == []
    resumed(big, out)
    assert contents(out) == reference


@pytest.mark.slow
def test_interrupted_while_the_kernels_are_compiled(
    big: Path, command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """The first build on a machine: the fork server is busy for many seconds, and is not waited for."""
    line = [command, "build", "coco", "--annotations", str(big), "--workers", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        start_new_session=True,
    )
    server: list[psutil.Process] = []
    while not server:
        assert process.poll() is None
        server = [child for child in family(process) if "forkserver" in " ".join(child.cmdline())]
        time.sleep(0.01)
    time.sleep(1.0)
    children = family(process)
    os.killpg(process.pid, signal.SIGINT)
    since = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - since < 3
    assert process.returncode == 130
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert gone(children, 1.0)
    assert [path.name for path in tmp_path.glob("out/*")] in ([], [".build"])


@pytest.mark.slow
def test_killed_while_the_kernels_are_compiled(
    big: Path, command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Nobody goes on compiling for a build that is gone."""
    line = [command, "build", "coco", "--annotations", str(big), "--workers", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        line,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
    )
    while not list(tmp_path.glob("cache/**/*.nbc")):
        assert process.poll() is None
        time.sleep(0.05)
    children = family(process)
    assert children
    process.kill()
    process.wait()
    assert gone(children, 2.0)


@pytest.mark.slow
def test_a_pool_that_failed_does_not_spoil_the_next() -> None:
    def fail() -> None:
        with ProcessExecutor(2) as pool:
            list(pool.run("builtins:int", ["1", "x", "2"]))

    with pytest.raises(ValueError, match="invalid literal"):
        fail()
    with ProcessExecutor(2) as pool:
        assert sorted(pool.run("builtins:int", map(str, range(20)))) == list(range(20))


@pytest.mark.slow
def test_a_killed_worker_is_one_sentence_and_the_rest_can_be_built(
    big: Path, reference: dict[str, bytes], started: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(2)
    children = family(process)
    workers_of(process)[0].kill()
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert stdout == ""
    one_error_line(stderr, "worker", "SIGKILL", "run the same command again")
    assert gone(children, 1.0)
    assert temporaries(out) == []
    resumed(big, out)
    assert contents(out) == reference


@pytest.mark.slow
def test_a_second_build_of_the_same_folder_is_refused(
    big: Path, reference: dict[str, bytes], started: Callable[..., Any], invoke: Invoke, tmp_path: Path
) -> None:
    """And neither harms the first, nor is it refused any more once the first has ended."""
    out = tmp_path / "out"
    process = started(1, shards=1)
    process.send_signal(signal.SIGSTOP)
    try:
        result = invoke("build", "coco", "--annotations", big, *WORDS, "--out", out)
        assert result.exit_code == 1
        one_error_line(result.stderr, str(out), "another build is writing here")
        other = invoke("build", "coco", "--annotations", big, "--overwrite", "--out", out)
        assert other.exit_code == 1
        one_error_line(other.stderr, "another build is writing here")
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate(timeout=50)
    assert process.returncode == 0
    assert contents(out) == reference


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(
    workers: int, big: Path, reference: dict[str, bytes], execute: Execute, tmp_path: Path
) -> None:
    """No file may pass 12 kB here, which every shard does; with the limit gone, the same command makes the build."""
    out = tmp_path / "out"
    assert min(len(content) for file, content in reference.items() if file.endswith(".parquet")) > 13_000
    words = ("build", "coco", "--annotations", big, *WORDS, "--workers", workers, "--out", out)
    result = execute(*words, file_size=12_000)
    assert result.returncode == 1
    one_error_line(result.stderr, str(out), "cannot be written", "File too large")
    assert not list(out.rglob("*.parquet"))
    assert temporaries(out) == []
    assert not (out / "manifest.json").exists()
    tokenlabels.build("coco", annotations=big, out=out, **OPTIONS)
    assert contents(out) == reference


# --- resuming, mending, replacing -------------------------------------------------------------------------------------


def test_a_finished_build_is_not_touched_again(small: Path, built: Path, invoke: Invoke) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    result = invoke("build", "coco", "--annotations", small, "--shard-rows", 1, "--out", built)
    assert result.exit_code == 0, result.stderr
    assert "already" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = [
    pytest.param(cut, "bytes, should have", id="cut short"),
    pytest.param(flip, "other content", id="one bit flipped"),
    pytest.param(Path.unlink, "is missing", id="deleted"),
    pytest.param(lambda path: path.write_bytes(b""), "has 0 bytes", id="emptied"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), "bytes, should have", id="a folder in its place"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_verify_finds_a_damaged_shard_and_building_again_mends_it(
    damage: Callable[[Path], Any], says: str, small: Path, built: Path, invoke: Invoke
) -> None:
    whole = contents(built)
    assert invoke("verify", built).exit_code == 0
    shard = built / "384x384-p16" / "mine-00001-of-00002.parquet"
    damage(shard)
    result = invoke("verify", built)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[0].startswith(f"error: {shard}: ")
    assert says in result.stderr.splitlines()[0]
    report = json.loads(invoke("verify", built, "--json").stdout)
    assert (report["ok"], list(report["faults"]), report["unlisted"]) == (
        False,
        ["384x384-p16/mine-00001-of-00002.parquet"],
        [],
    )
    if shard.is_dir():
        shard.rmdir()
    assert invoke("build", "coco", "--annotations", small, "--shard-rows", 1, "--out", built).exit_code == 0
    assert contents(built) == whole


def test_verify_finds_shards_that_are_not_listed(built: Path, invoke: Invoke) -> None:
    """`datasets` would read it with the others."""
    shutil.copy(built / "384x384-p16" / "mine-00001-of-00002.parquet", built / "384x384-p16" / "mine-00002.parquet")
    result = invoke("verify", built)
    assert result.exit_code == 1
    assert "mine-00002.parquet: is not in the manifest" in result.stderr
    assert json.loads(invoke("verify", built, "--json").stdout)["unlisted"] == ["384x384-p16/mine-00002.parquet"]


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    target = tmp_path / "taken" / "mine-00000-of-00001.parquet"
    with (
        pytest.raises(OutputError, match=r"mine-00000-of-00001\.parquet: cannot be written"),
        shards.ShardWriter(target, pa.schema([("x", pa.int32())])),
    ):
        pass
    assert (tmp_path / "taken").read_text() == "a file"


CHANGED: list[Any] = [
    pytest.param({"tau": 0.25}, ["tau was 0.5, now 0.25"], id="tau"),
    pytest.param({"patch": 32}, ["grids was", "384x384-p32"], id="patch"),
    pytest.param({"image_size": "192x384"}, ["grids was", "192x384-p16"], id="image size"),
    pytest.param({"rule": "jaccard"}, ["rule was 'overlap', now 'jaccard'"], id="rule"),
    pytest.param({"crowd": "ignore"}, ["crowd was 'foreground', now 'ignore'"], id="crowd"),
    pytest.param({"categories": ["dog"]}, ["categories was None, now ['dog']"], id="categories"),
    pytest.param({"min_area": 100}, ["min_area was 0.0, now 100.0"], id="min area"),
    pytest.param({"limit": 1}, ["limit was None, now 1"], id="limit"),
    pytest.param({"shard_rows": 2}, ["shard_rows was 1, now 2"], id="shard rows"),
    pytest.param({"scores": False}, ["scores was True, now False"], id="scores"),
    pytest.param({"tau": 0.25, "patch": 8}, ["grids was", "tau was"], id="two of them"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("options", "says"), CHANGED)
def test_other_parameters_are_refused_by_name(
    options: dict[str, Any], says: list[str], finished: bool, small: Path, built: Path
) -> None:
    if not finished:
        unfinish(built)
    before = contents(built)
    with pytest.raises(BuildMismatchError) as caught:
        tokenlabels.build("coco", annotations=small, out=built, **({"shard_rows": 1} | options))
    for part in says:
        assert part in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert set(contents(built)) - {".build/lock"} == set(before) - {".build/lock"}


def unfinish(out: Path, keep: int = 1) -> None:
    """Turn a finished build back into one that was killed with `keep` shards done."""
    manifest = json.loads((out / "manifest.json").read_text())
    state = out / ".build"
    state.mkdir()
    (state / "parameters.json").write_text(json.dumps(manifest["parameters"] | {"sources": manifest["sources"]}))
    empty = {"patches": 0, "foreground": 0, "ignored": 0, "empty_images": 0}
    for shard in manifest["shards"][:keep]:
        entry = state / "journal" / f"{shard['file']}.json"
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(json.dumps({"shard": shard, "sums": empty, "findings": [], "counts": {}}))
    for shard in manifest["shards"][keep:]:
        (out / shard["file"]).unlink()
    (out / "manifest.json").unlink()
    (out / "README.md").unlink()


def test_a_changed_annotation_file_is_refused_by_name(
    small: Path, built: Path, document: dict[str, Any], invoke: Invoke
) -> None:
    document["annotations"][0]["bbox"][0] = 3
    small.write_text(json.dumps(document))
    result = invoke("build", "coco", "--annotations", small, "--shard-rows", 1, "--out", built)
    assert result.exit_code == 1
    one_error_line(result.stderr, "sources.mine.sha256 was", "--overwrite")


def test_overwrite_deletes_what_it_made_and_nothing_else(small: Path, built: Path, invoke: Invoke) -> None:
    strangers = {
        built / "notes.txt": b"mine",
        built / "384x384-p16" / "notes.parquet": b"mine too",
        built / "other" / "x.parquet": b"and this",
        built / "384x384-p16" / ".hidden.tmp": b"no temporary file of ours",
    }
    for path, content in strangers.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    words = ("build", "coco", "--annotations", small, "--patch", 32, "--out", built)
    assert invoke(*words).exit_code == 1
    result = invoke(*words, "--overwrite")
    assert result.exit_code == 0, result.stderr
    made = contents(built)
    names = {"README.md", "croissant.json", "manifest.json", "384x384-p32/mine-00000-of-00001.parquet"}
    assert set(made) == names | {str(path.relative_to(built)) for path in strangers}
    assert all(path.read_bytes() == content for path, content in strangers.items())


def test_overwrite_of_an_unfinished_build_deletes_its_shards(small: Path, built: Path) -> None:
    unfinish(built)
    tokenlabels.build("coco", annotations=small, out=built, patch=32, overwrite=True)
    assert set(contents(built)) == {
        "README.md",
        "croissant.json",
        "manifest.json",
        "384x384-p32/mine-00000-of-00001.parquet",
    }


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_an_interrupted_overwrite_can_be_finished(deleted: int, small: Path, built: Path, tmp_path: Path) -> None:
    """Killed after `deleted` of two shards were deleted: any build goes on, with or without --overwrite."""
    (built / ".build").mkdir()
    (built / "manifest.json").rename(built / ".build" / "discarded.json")
    for shard in sorted(built.rglob("*.parquet"))[:deleted]:
        shard.unlink()
    with pytest.raises(NotABuildError, match="not finished"):
        tokenlabels.open(built)
    tokenlabels.build("coco", annotations=small, out=built, patch=32)
    tokenlabels.build("coco", annotations=small, out=tmp_path / "fresh", patch=32)
    assert contents(built) == contents(tmp_path / "fresh")


def test_stale_temporary_files_go_on_resume(small: Path, built: Path) -> None:
    whole = contents(built)
    unfinish(built)
    stale = built / "384x384-p16" / ".mine-00001-of-00002.parquet.4711-0123abcd.tmp"
    stale.write_bytes(b"half")
    (built / ".build" / "journal" / "384x384-p16" / "mine-00001-of-00002.parquet.json").write_text("{damaged")
    built_again = tokenlabels.build("coco", annotations=small, out=built, shard_rows=1)
    assert not stale.exists()
    assert {file: content for file, content in contents(built).items() if file.endswith(".parquet")} == {
        file: content for file, content in whole.items() if file.endswith(".parquet")
    }
    assert built_again.manifest["shards"] == json.loads(whole["manifest.json"])["shards"]


def test_a_finished_shard_whose_content_changed_is_made_anew(small: Path, built: Path) -> None:
    whole = contents(built)
    unfinish(built)
    flip(built / "384x384-p16" / "mine-00000-of-00002.parquet")
    tokenlabels.build("coco", annotations=small, out=built, shard_rows=1)
    shard = "384x384-p16/mine-00000-of-00002.parquet"
    assert contents(built)[shard] == whole[shard]


def test_several_grids_in_one_pass_equal_one_pass_each(small: Path, tmp_path: Path) -> None:
    both = tokenlabels.build("coco", annotations=small, out=tmp_path / "both", patch=[16, 32], image_size=[384, 128])
    assert list(both.grids) == ["384x384-p16", "384x384-p32", "128x128-p16", "128x128-p32"]
    for size in (384, 128):
        for patch in (16, 32):
            one = tmp_path / f"{size}-{patch}"
            tokenlabels.build("coco", annotations=small, out=one, patch=patch, image_size=size)
            name = f"{size}x{size}-p{patch}/mine-00000-of-00001.parquet"
            assert (one / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


def test_one_grid_of_several_is_made_anew_alone(small: Path, tmp_path: Path) -> None:
    """Killed between the two shards of one task."""
    out = tmp_path / "out"
    tokenlabels.build("coco", annotations=small, out=out, patch=[16, 32], shard_rows=1)
    whole = contents(out)
    unfinish(out, keep=3)
    kept = out / "384x384-p16" / "mine-00001-of-00002.parquet"
    before = kept.stat().st_mtime_ns
    tokenlabels.build("coco", annotations=small, out=out, patch=[16, 32], shard_rows=1)
    assert kept.stat().st_mtime_ns == before
    made = contents(out)
    assert {file: made[file] for file in made if file.endswith(".parquet")} == {
        file: whole[file] for file in whole if file.endswith(".parquet")
    }


# --- folders that are refused -----------------------------------------------------------------------------------------


def refused(out: Path, says: str, small: Path, invoke: Invoke, *more: str) -> None:
    result = invoke("build", "coco", "--annotations", small, "--out", out, *more)
    assert result.exit_code == 1
    assert result.stdout == ""
    one_error_line(result.stderr, str(out), says)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"thesis.tex": "words"}, id="somebody's work"),
        pytest.param({"manifest.json": '{"name": "My web app", "start_url": "/"}'}, id="a web app's manifest"),
        pytest.param({"manifest.json": '{"shards": [], "tool": "x"}'}, id="the manifest of another tool"),
        pytest.param({"manifest.json": "{"}, id="a manifest that is no JSON"),
        pytest.param({"README.md": "# Project"}, id="a project"),
        pytest.param({"384x384-p16/mine-00000-of-00001.parquet": "x"}, id="shards without manifest"),
    ],
)
def test_a_folder_of_somebody_else_is_refused(
    files: dict[str, str], overwrite: tuple[str, ...], small: Path, invoke: Invoke, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before = contents(out)
    refused(out, "holds no build", small, invoke, *overwrite)
    assert contents(out) == before
    assert not (out / ".build").exists()


def test_an_empty_folder_is_taken(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(tokenlabels.build("coco", annotations=small, out=tmp_path / "out").shards) == 1


def test_a_file_is_refused(small: Path, invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    refused(out, "is a file", small, invoke, "--overwrite")
    assert out.read_text() == "mine"


@pytest.mark.parametrize("deeper", ["out", "out/deeper"])
def test_a_folder_below_a_file_is_refused(deeper: str, small: Path, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file" / deeper, "cannot be written", small, invoke)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(small: Path, invoke: Invoke) -> None:
    refused(Path("/proc/tokenlabels/out"), "cannot be written", small, invoke)


def test_a_dangling_link_is_refused(small: Path, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere" / "at all")
    refused(tmp_path / "out", "cannot be written", small, invoke)


def test_nothing_is_left_of_a_build_that_could_not_begin(small: Path, tmp_path: Path) -> None:
    """100,000 shards are too many, whatever the folder."""
    images = [{"id": k, "width": 8, "height": 8} for k in range(100_001)]
    small.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(ParameterError, match="--shard-rows"):
        tokenlabels.build("coco", annotations=small, out=tmp_path / "out", patch=8, image_size=8, shard_rows=1)
    assert not (tmp_path / "out").exists()


def test_the_lock_is_free_after_a_build_failed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("full")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("tokenlabels.tasks.write_journal", full)
        with pytest.raises(OutputError):
            tokenlabels.build("coco", annotations=small, out=out)
    with (out / ".build" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    tokenlabels.build("coco", annotations=small, out=out)
    assert not (out / ".build").exists()


# --- manifests edited by hand -----------------------------------------------------------------------------------------


def edit(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


EDITS = [
    pytest.param(edit("shards", 0, "file", value="../stolen.parquet"), id="a shard above"),
    pytest.param(edit("shards", 0, "file", value="/etc/passwd"), id="an absolute shard"),
    pytest.param(edit("shards", 0, "file", value="384x384-p16/../../x.parquet"), id="a shard around a corner"),
    pytest.param(edit("shards", 0, "file", value="README.md"), id="a shard that is no shard"),
    pytest.param(edit("shards", 0, "file", value=""), id="a shard without name"),
    pytest.param(edit("shards", 0, "file", value="."), id="a shard that is the folder"),
    pytest.param(edit("shards", 0, "file", value=7), id="a shard that is a number"),
    pytest.param(edit("shards", value=[]), id="no shards"),
    pytest.param(edit("shards", value={"a": 1}), id="shards as an object"),
    pytest.param(edit("shards", 0, "rows", value="many"), id="rows as text"),
    pytest.param(edit("parameters", value=None), id="parameters null"),
    pytest.param(edit("parameters", value={}), id="parameters empty"),
    pytest.param(edit("parameters", "grids", value=[]), id="no grids"),
    pytest.param(edit("parameters", "grids", value=5), id="grids as a number"),
    pytest.param(edit("parameters", "grids", 0, "patch", value=[16]), id="patch of one number"),
    pytest.param(edit("parameters", "grids", 0, "patch", value="16"), id="patch as text"),
    pytest.param(edit("parameters", "grids", 0, "patch", value=[0, 0]), id="patch of nothing"),
    pytest.param(edit("parameters", "grids", 0, "image_size", value=[]), id="image size of no numbers"),
    pytest.param(edit("parameters", "grids", 0, "resize", value="stretch"), id="unknown resize"),
    pytest.param(edit("parameters", "grids", 0, "name", value=["x"]), id="grid name as a list"),
    pytest.param(edit("parameters", "scores", value="yes"), id="scores as text"),
    pytest.param(edit("parameters", "rule", value="best"), id="unknown rule"),
    pytest.param(edit("parameters", "tau", value="half"), id="tau as text"),
    pytest.param(edit("splits", value={}), id="no splits"),
    pytest.param(edit("splits", value=["mine"]), id="splits as a list"),
    pytest.param(edit("categories", value=["cat"]), id="categories as texts"),
    pytest.param(edit("sources", value=None), id="sources null"),
    pytest.param(edit("schema_version", value=2), id="a later schema"),
    pytest.param(edit("schema_version", value="1"), id="schema version as text"),
    pytest.param(lambda manifest: manifest.pop("shards"), id="shards missing"),
    pytest.param(lambda manifest: manifest.pop("sources"), id="sources missing"),
    pytest.param(lambda manifest: manifest["parameters"].pop("scores"), id="scores missing"),
    pytest.param(lambda manifest: manifest.pop("totals"), id="totals missing"),
    pytest.param(lambda manifest: manifest.clear(), id="an empty object"),
]


def everywhere(out: Path, invoke: Invoke, tmp_path: Path, *named: str) -> None:
    """`open` and every command that reads a build refuse it with one sentence."""
    with pytest.raises(NotABuildError) as caught:
        tokenlabels.open(out)
    assert "\n" not in str(caught.value)
    for words in (
        ("verify", out),
        ("verify", out, "--json"),
        ("relabel", out, "--tau", 0.2, "--out", tmp_path / "relabelled"),
        ("show", out, "1", "--images", tmp_path, "-o", tmp_path / "x.png"),
    ):
        result = invoke(*words)
        assert result.exit_code == 1
        assert result.stdout == ""
        one_error_line(result.stderr, str(out), *named)
    assert not (tmp_path / "relabelled").exists()
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("change", EDITS)
def test_an_edited_manifest_is_one_sentence_everywhere(
    change: Callable[[dict[str, Any]], None], built: Path, invoke: Invoke, tmp_path: Path
) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    change(manifest)
    (built / "manifest.json").write_text(json.dumps(manifest))
    everywhere(built, invoke, tmp_path, "manifest.json")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "5", '"x"', "{}", "\ufeff{}", "[" * 100_000, "{" * 100_000, "\0" * 100]
)
def test_a_manifest_that_is_no_manifest_is_one_sentence_everywhere(
    text: str, built: Path, invoke: Invoke, tmp_path: Path
) -> None:
    (built / "manifest.json").write_text(text)
    everywhere(built, invoke, tmp_path, "manifest.json")


def test_folders_that_are_no_build_are_one_sentence_everywhere(built: Path, invoke: Invoke, tmp_path: Path) -> None:
    everywhere(tmp_path / "nowhere", invoke, tmp_path, "no such folder")
    (tmp_path / "empty").mkdir()
    everywhere(tmp_path / "empty", invoke, tmp_path, "no build")
    (tmp_path / "file").write_text("x")
    everywhere(tmp_path / "file", invoke, tmp_path, "no such folder")
    unfinish(built)
    everywhere(built, invoke, tmp_path, "not finished")


@pytest.mark.parametrize(
    "file", ["../victim.parquet", "/etc/hostname", "", ".", "notes.txt", "384x384-p16", "a/b/c.parquet", "x/\0.parquet"]
)
def test_an_edited_manifest_cannot_make_overwrite_delete_other_files(
    file: str, small: Path, built: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """Neither outside the folder nor in it: whatever else happens, only shards go."""
    victims = [tmp_path / "victim.parquet", built / "notes.txt", built / "a" / "b" / "c.parquet"]
    for victim in victims:
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_text("mine")
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["shards"][0]["file"] = file
    (built / "manifest.json").write_text(json.dumps(manifest))
    result = invoke("build", "coco", "--annotations", small, "--patch", 32, "--out", built, "--overwrite")
    assert "--debug" not in result.stderr
    assert [victim.read_text() for victim in victims] == ["mine"] * 3


# --- relabelling ------------------------------------------------------------------------------------------------------


RELABELLED: list[Any] = [
    pytest.param({}, 0.3, id="overlap"),
    pytest.param({}, 0.0, id="everything"),
    pytest.param({}, 1.0, id="full patches only"),
    pytest.param({"rule": "jaccard"}, 0.01, id="jaccard"),
    pytest.param({"rule": "pixel-ratio"}, 0.5, id="pixel-ratio"),
    pytest.param({"rule": "pixel-ratio", "crowd": "ignore"}, 0.02, id="crowds ignored"),
    pytest.param({"crowd": "ignore"}, 0.9, id="crowd boxes ignored"),
    pytest.param({"crowd": "background"}, 0.9, id="crowds left out"),
    pytest.param({"resize": "letterbox", "padding": "ignore"}, 0.7, id="letterbox, padding ignored"),
    pytest.param(
        {"resize": "letterbox", "padding": "ignore", "crowd": "ignore", "rule": "pixel-ratio", "image_size": "96x384"},
        0.4,
        id="letterbox, everything ignored",
    ),
    pytest.param({"image_size": "native", "patch": 20}, 0.4, id="native"),
    pytest.param({"image_size": "native", "padding": "ignore", "patch": "7x13"}, 0.4, id="native, odd patches"),
    pytest.param({"resize": "shortest-edge", "image_size": 160, "max_size": 200}, 0.2, id="shortest edge"),
    pytest.param({"patch": [16, 32], "image_size": [192, 384]}, 0.2, id="several grids"),
    pytest.param({"shard_rows": 5}, 0.2, id="several shards"),
    pytest.param({"embed_images": True, "shard_rows": 7}, 0.2, id="images embedded"),
    pytest.param({"categories": ["disc", "star"], "min_area": 300, "limit": 5}, 0.2, id="a selection"),
]


@pytest.mark.parametrize(("options", "tau"), RELABELLED)
def test_relabelling_equals_building(
    options: dict[str, Any], tau: float, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, manifest and card included, over several row groups; and some label does change."""
    monkeypatch.setattr(shards, "ROW_GROUP_CELLS", 700)
    first = tokenlabels.build("coco", root=sample_root, out=tmp_path / "first", **options)
    tokenlabels.build("coco", root=sample_root, out=tmp_path / "second", tau=tau, **options)
    again = tokenlabels.relabel(first, tau, tmp_path / "relabelled")
    assert contents(tmp_path / "relabelled") == contents(tmp_path / "second")
    assert again.table().column("labels") != first.table().column("labels")
    assert pq.ParquetFile(first.files()[0]).num_row_groups > 1
    back = tokenlabels.relabel(again, first.manifest["parameters"]["tau"], tmp_path / "back")
    assert contents(back.folder) == contents(first.folder)


def test_relabelling_is_resumed_refused_and_mended_like_a_build(sample_root: Path, tmp_path: Path) -> None:
    first = tokenlabels.build("coco", root=sample_root, out=tmp_path / "first", shard_rows=5)
    out = tmp_path / "out"
    tokenlabels.relabel(first, 0.2, out)
    whole = contents(out)
    with pytest.raises(BuildMismatchError, match=r"tau was 0\.2, now 0\.3"):
        tokenlabels.relabel(first, 0.3, out)
    cut(next(iter(sorted(out.rglob("*.parquet")))))
    tokenlabels.relabel(first, 0.2, out)
    assert contents(out) == whole
    tokenlabels.relabel(first, 0.3, out, overwrite=True)
    assert tokenlabels.open(out).manifest["parameters"]["tau"] == 0.3


REFUSED_RELABELS: list[Any] = [
    pytest.param({}, 1.5, "out", ParameterError, "tau", id="tau above 1"),
    pytest.param({}, float("nan"), "out", ParameterError, "tau", id="tau that is no number"),
    pytest.param({}, 0.2, "first", ParameterError, "the build itself", id="onto itself"),
    pytest.param({}, 0.2, "first/../first", ParameterError, "the build itself", id="onto itself, by another name"),
    pytest.param({"scores": False}, 0.2, "out", ParameterError, "without scores", id="no scores"),
]


@pytest.mark.parametrize(("options", "tau", "out", "kind", "says"), REFUSED_RELABELS)
def test_relabelling_that_is_refused_leaves_nothing(
    options: dict[str, Any],
    tau: float,
    out: str,
    kind: type[TokenLabelsError],
    says: str,
    small: Path,
    tmp_path: Path,
) -> None:
    first = tokenlabels.build("coco", annotations=small, out=tmp_path / "first", **options)
    before = contents(first.folder)
    with pytest.raises(kind, match=says):
        tokenlabels.relabel(first, tau, tmp_path / out)
    assert not (tmp_path / "out").exists()
    assert contents(first.folder) == before


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_relabelling_a_damaged_build_is_one_sentence(
    damage: Callable[[Path], Any], says: str, built: Path, invoke: Invoke, tmp_path: Path
) -> None:
    damage(built / "384x384-p16" / "mine-00001-of-00002.parquet")
    result = invoke("relabel", built, "--tau", 0.2, "--out", tmp_path / "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, "mine-00001-of-00002.parquet", says)
    assert not (tmp_path / "out" / "manifest.json").exists()
