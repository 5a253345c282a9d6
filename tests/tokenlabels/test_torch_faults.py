"""`Build.torch_dataset` where it cannot be: shards that are damaged, missing or of others, bad parameters, no torch."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opened import many_rows
from torch._utils import ExceptionWrapper

import tokenlabels
from tokenlabels.errors import NotABuildError, ParameterError
from tokenlabels.reader import Build
from tokenlabels.torch_dataset import BuildDataset


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """100 rows in 15 shards."""
    return many_rows(tmp_path_factory.mktemp("many"), 100)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return many_rows(tmp_path_factory.mktemp("ragged"), 20, image_size="native")


def broken(many: Build, folder: Path, damage: str) -> tuple[Build, Path, BuildDataset]:
    """A copy whose eighth shard is damaged after the data set was made."""
    shutil.copytree(many.folder, folder / "copy")
    built = tokenlabels.open(folder / "copy")
    dataset, shard = built.torch_dataset(batch_size=10), built.folder / built.shards[7].file
    if damage == "missing":
        shard.unlink()
    else:
        whole = shard.read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little") + 8
        shard.write_bytes(whole[:4] + bytes(len(whole) - footer - 4) + whole[-footer:])
    return built, shard, dataset


@pytest.mark.parametrize(("damage", "says"), [("missing", "is missing"), ("zeroed", "is damaged or no shard")])
def test_a_shard_that_goes_bad_on_the_way_is_named(damage: str, says: str, many: Build, tmp_path: Path) -> None:
    built, shard, dataset = broken(many, tmp_path, damage)
    with pytest.raises(NotABuildError, match=f"{shard}: {says}: run the same build command"):
        list(dataset)
    if damage == "missing":
        with pytest.raises(NotABuildError, match=f"{shard}: is missing"):
            built.torch_dataset()


def test_workers_name_it_too(many: Build, tmp_path: Path) -> None:
    """By what a DataLoader does with the error of a worker; to start one that fails takes five seconds to end."""
    _, shard, dataset = broken(many, tmp_path, "zeroed")
    try:
        list(dataset)
    except NotABuildError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # type: ignore[no-untyped-call]
        sent = pickle.dumps(wrapped)
    with pytest.raises(NotABuildError, match=f"{shard}: is damaged or no shard"):
        pickle.loads(sent).reraise()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid": "no"}, "no grid 'no'"),
        ({"split": "no"}, "no split 'no'"),
        ({"columns": ["label"]}, "no column 'label': it has image_id"),
        ({"columns": []}, "no columns"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"seed": -1}, "seed -1: at least 0"),
        ({"cache_bytes": -1}, "cache_bytes -1: at least 0"),
        ({"window": 0}, "window 0: at least 1"),
        ({"rank": 1}, "go together"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": 0, "world_size": 101}, "100 rows of 32x32-p8 are too few for 101 ranks"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], says: str, many: Build) -> None:
    with pytest.raises(ParameterError, match=says):
        many.torch_dataset(**options)


def test_a_shard_of_another_build_is_refused(many: Build, ragged: Build, tmp_path: Path) -> None:
    for other, says in ((ragged, "is not of the grid 32x32-p8"), (many, "has 2 rows where the manifest says 7")):
        folder = tmp_path / other.path.parent.name
        shutil.copytree(many.folder, folder)
        built = tokenlabels.open(folder)
        shutil.copy(other.folder / other.shards[-1].file, built.folder / built.shards[3].file)
        with pytest.raises(NotABuildError, match=f"{built.files()[3]}: {says}"):
            built.torch_dataset()


def test_without_torch_it_is_said_what_to_install(many: Build) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import tokenlabels\n"
        "try: tokenlabels.open(sys.argv[1]).torch_dataset()\n"
        "except tokenlabels.TokenLabelsError as fault: print(fault)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(many.path)], capture_output=True, text=True, check=True)
    assert answer.stdout == (
        "torch_dataset needs torch, which is not installed: pip install torch, or 'tokenlabels[bavit]'.\n"
    )


@pytest.mark.slow
def test_passes_that_are_left_open_end_silently_with_python(many: Build, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, torch, tokenlabels\n"
        "from tokenlabels import storage, threads\n"
        "dataset = tokenlabels.open(sys.argv[1]).torch_dataset(columns=['labels'])\n"
        "first, second = iter(dataset), iter(dataset)\n"
        "next(first), next(second)\n"
        "threads._SLOW_SECONDS = -1.0\n"
        "third, fourth = threads.ahead(abs, range(99), 4), storage.contents([storage.located('memory://a')] * 20)\n"
        "[next(third) for _ in range(20)], next(fourth)\n"
    )
    words = [sys.executable, str(tmp_path / "script.py"), str(many.path)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("", "")
