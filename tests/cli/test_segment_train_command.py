"""`bavit segment train` and `finetune`: options, what they print, how they end, and processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import Invoke, fine, one_error_line
from safetensors.torch import load_file
from segment_builds import masks_of, semantic

import tokenlabels
from bavit.rows import read_rows
from bavit.segment.classes import class_table
from bavit.segment.config import BackboneShape, SegmentClass, SegmenterConfig
from bavit.segment.masks import with_masks
from bavit.segment.model import Segmenter
from bavit.segment.settings import SegmentSettings
from bavit.segment.train import SegmentLearner
from bavit.training.learner import Task
from tokenlabels.reader import Build
from tokenlabels.sample_semantic import write_semantic_sample

NEW = ("--init", "none", "--dim", 32, "--depth", 4, "--heads", 2, "--patch", 8, "--crop", 64)
QUICK = ("--epochs", 1, "--batch-size", 4, "--precision", "32", "--device", "cpu", "--workers", 0)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """8 pictures to train on, 2 to validate on."""
    folder = tmp_path_factory.mktemp("semantic")
    write_semantic_sample(folder / "sample", images=10)
    return tokenlabels.build(
        "semantic", root=folder / "sample", out=folder / "out", image_size=64, embed_images=True, embed_masks=True
    )


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_bytes())["settings"]
    return found


def test_training_and_then_finetuning(bavit: Invoke, build: Build, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ("--exit-after", 1, 2, "--head", "atm", "--scale-range", 0.75, 1.5, "--json")
    result = fine(bavit("segment", "train", build.path, "--out", first, *NEW, *QUICK, *words))
    found = json.loads(result.stdout)
    assert found["out"] == str(first)
    assert 0 <= found["val_miou"] <= found["val_pixel_accuracy"] <= 1
    assert "8 images to train on, 2 to validate, 13 classes" in result.stderr
    assert "all tokens go through the whole network in training" in result.stderr
    assert settings_of(first)["optimization"]["scale"] == [0.75, 1.5]
    assert (first / "curves.png").stat().st_size > 10_000
    words_2 = ("--p0", 0.9, "--train", "heads", "--keep-per-class", 2, "--no-flip")
    result = fine(bavit("segment", "finetune", first, build.path, "--out", second, *QUICK, *words_2))
    assert "val miou" in result.stdout
    assert "train ended" in result.stdout
    one, other = Segmenter.from_pretrained(first), Segmenter.from_pretrained(second)
    assert (one.exit_after, one.keep_per_class, other.p0, other.keep_per_class) == ((1, 2), 5, 0.9, 2)
    again = bavit("segment", "finetune", first, build.path, "--out", second, *QUICK, "--resume")
    assert again.exit_code == 2
    one_error_line(again.stderr, "nothing to resume")
    again = bavit("segment", "train", build.path, "--out", second, *NEW, *QUICK, "--resume")
    assert again.exit_code == 1
    one_error_line(again.stderr, "holds a run of bavit segment finetune")
    again = bavit("segment", "train", build.path, "--out", second, *NEW, *QUICK)
    assert again.exit_code == 1
    one_error_line(again.stderr, "holds a run")


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (("--exit-after", 1, 3, "{shards}"), [1, 3]),
        (("--exit-after", "1,3", "{shards}"), [1, 3]),
        (("--exit-after=1", 3, "{shards}"), [1, 3]),
        (("--exit-after", 1, "--exit-after", 3, "{shards}"), [1, 3]),
        (("{shards}", "--exit-after", 3), [3]),
        (("--exit-after", 2, "--", "{shards}"), [2]),
        (("{shards}",), None),
    ],
)
def test_lists_are_written_in_many_ways(
    bavit: Invoke, build: Build, tmp_path: Path, words: tuple[object, ...], places: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[Any] = []

    def train(*given: Any) -> dict[str, float]:
        seen.append(given[2])
        return {"epoch": 1}

    monkeypatch.setattr("bavit.segment.train.train", train)
    put = [str(word).format(shards=build.path) for word in words]
    fine(bavit("segment", "train", "--out", tmp_path / "run", *NEW, *QUICK, *put))
    assert seen[0].new.exit_after == (None if places is None else tuple(places))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((*NEW, "--exit-after", 2, 1), 2, "do not ascend"),
        ((*NEW, "--exit-after", 1, 9), 2, "outside the network: it has 4 blocks"),
        ((*NEW, "--exit-after", "two"), 2, "--exit-after two: give whole numbers"),
        ((*NEW, "--p0", 0), 2, "--p0 0 is out of range"),
        ((*NEW, "--p0", 1.5), 2, "--p0 1.5 is out of range"),
        ((*NEW, "--crop", 0), 2, "--crop 0 is out of range"),
        ((*NEW, "--crop", "axb"), 2, "whole numbers"),
        ((*NEW, "--backbone", "vit_tiny_patch16_225"), 2, "did you mean vit_tiny_patch16_224"),
        ((*NEW, "--classes", "ade2k"), 2, "did you mean ade20k"),
        ((*NEW, "--classes", "pascal-context", "--exit-after", 1), 0, ""),
        ((*NEW, "--train-split", "test"), 2, "test"),
        ((*NEW, "--resume"), 1, "no such file: there is no run to resume"),
        ((*NEW[2:], "--init", "nowhere.pth"), 1, "nowhere.pth: no such file"),
        (("--dim", 32), 2, "--dim cannot be chosen for weights of ImageNet"),
    ],
)
def test_bad_input_is_one_sentence(
    bavit: Invoke, build: Build, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    result = bavit("segment", "train", build.path, "--out", tmp_path / "run", *QUICK, *words)
    assert result.exit_code == code, result.stderr
    if message:
        one_error_line(result.stderr, message)
    else:
        assert "are not in the data card pascal-context and are ignored" in result.stderr


def test_builds_that_do_not_serve(bavit: Invoke, sample_root: Path, tmp_path: Path) -> None:
    """Without masks; with a class that the model does not know; a run that is none."""
    boxes = tokenlabels.build("coco", root=sample_root, out=tmp_path / "boxes", image_size=64, embed_images=True)
    result = bavit("segment", "train", boxes.path, "--out", tmp_path / "run", *NEW, *QUICK)
    assert result.exit_code == 1
    one_error_line(result.stderr, "no masks")
    made = semantic(tmp_path / "made", masks_of((0, 1, 2, 255)))
    classes = tuple(SegmentClass(number, made.categories[number].name) for number in (0, 1))
    shape = BackboneShape("vit_tiny_patch16_224", 32, 2, 2, 8)
    few = Segmenter.from_config(SegmenterConfig(classes, shape, exit_after=(1,), image_size=(32, 32)))
    few.save_pretrained(tmp_path / "few")
    splits = ("--train-split", made.splits[0], "--val-split", made.splits[0])
    for run, words in (
        ("few", ("the masks have the class", "few lacks (it has 2)")),
        ("boxes", ("no such file: name the folder of a run of bavit segment train",)),
    ):
        result = bavit("segment", "finetune", tmp_path / run, made.path, "--out", tmp_path / "run", *QUICK, *splits)
        assert result.exit_code == 1
        one_error_line(result.stderr, *words)


def start(*words: object, ranks: int = 1) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "cli.bavit", "segment", *(str(word) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    bavit: Invoke, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL, somewhere after the first epoch."""
    monkeypatch.setattr(SegmentLearner, "draw", lambda *_: None)
    options = (*NEW, *QUICK, "--epochs", 16, "--val-every", 100, "--p0", 0.5)
    process = start("train", build.path, "--out", tmp_path / "killed", *options)
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) < 16
    fine(bavit("segment", "train", build.path, "--out", tmp_path / "killed", *options, "--resume"))
    fine(bavit("segment", "train", build.path, "--out", tmp_path / "whole", *options))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(first[name].equal(value) for name, value in second.items())


@pytest.mark.slow
def test_two_ranks_judge_what_they_store(build: Build, tmp_path: Path) -> None:
    """All tokens end at the first place; figures over both ranks are those of one process for the stored model."""
    options = ("--p0", 1e-9, "--keep-per-class", 0, *QUICK)
    process = start("train", build.path, "--out", tmp_path / "two", *NEW, *options, "--json", ranks=2)
    told, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    together = json.loads(told)
    assert together["train_ended"] == 1
    rows = with_masks(read_rows(build, splits=["val"], scores=False), print)
    settings = SegmentSettings.make(run=str(tmp_path / "two"))
    table = class_table(build, rows)
    learner = SegmentLearner(Task(rows, rows, None, None, tmp_path / "alone"), (table, table), settings)
    data = learner.data()[1]
    here = SimpleNamespace(
        state=SimpleNamespace(epoch=0), fabric=SimpleNamespace(device=torch.device("cpu")), exact=torch.float64,
        val_batches=lambda: [learner.collate([data[0, row] for row in range(len(rows))])], over_ranks=lambda sums: sums,
    )  # fmt: skip
    with torch.no_grad():
        alone = learner.validated(Segmenter.from_pretrained(tmp_path / "two"), here)  # type: ignore[arg-type]
    for name in ("val_miou", "val_pixel_accuracy", "val_tokens"):
        assert together[name] == pytest.approx(alone[name], abs=1e-9), name
