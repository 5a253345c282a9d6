"""`bavit joint`: what it writes, how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Invoke, fine, one_error_line

import tokenlabels
from bavit import BAViT
from bavit.detect.config import YolosConfig
from bavit.detect.pruned import PrunedDetector
from bavit.detect.yolos import Yolos
from tokenlabels.reader import Build

QUICK = ("--epochs", 1, "--batch-size", 4, "--precision", "32", "--device", "cpu", "--workers", 0)


@pytest.fixture(scope="module")
def labels(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Two grids; the BAViT's is the second."""
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=64, patch=[16, 8], embed_images=True)


@pytest.fixture(scope="module")
def models(labels: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `b`, on the second grid, `c`, on none, and the detector `d`."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, patch in (("b", 8), ("c", 32)):
        BAViT(depth=1, width=64, patch=patch, image_size=64).save_pretrained(folder / name)
    config = YolosConfig(dim=32, depth=1, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=6)
    sized = replace(config, labels=tuple(entry.name for entry in labels.categories), shortest_edge=64, longest_edge=64)
    Yolos(sized).save_pretrained(folder / "d")
    return folder


def test_a_run_is_a_saved_pruned_detector(bavit: Invoke, labels: Build, models: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--bavit", models / "b", "--detector", models / "d", "--threshold", 0.4, "--distil", 0.5)
    result = fine(bavit("joint", labels.path, "--out", run, *QUICK, *options, "--mac-penalty", 0.1, "--json"))
    found = json.loads(result.stdout)
    assert found["out"] == str(run)
    assert {"val_ap", "val_balanced_accuracy", "val_gmacs", "train_ce", "train_distil"} <= found.keys()
    assert "trained: bavit, detector" in result.stderr
    assert PrunedDetector.from_pretrained(run).pruning.threshold == 0.4
    again = bavit("joint", labels.path, "--out", run, *QUICK, "--resume")
    assert again.exit_code == 2
    one_error_line(again.stderr, "nothing to resume")
    other = bavit("finetune", labels.path, "--out", run, "--resume")
    assert other.exit_code == 1
    one_error_line(other.stderr, "holds a run of bavit joint")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--detector", "d"), 2, "name one with --bavit"),
        (("--bavit", "b"), 2, "--detector none"),
        (("--bavit", "c", "--detector", "d"), 2, "no labels on the grid 64x64-p32"),
        (("--bavit", "b", "--detector", "nowhere"), 1, "nowhere: no such file or folder"),
        (("--bavit", "nowhere", "--detector", "d"), 1, "nowhere: no such folder"),
        (("--bavit", "b", "--detector", "d", "--train", "neck"), 2, "unknown --train 'neck'"),
        (("--bavit", "b", "--detector", "d", "--threshold", -1), 2, "threshold -1 is out of range"),
        (("--bavit", "b", "--detector", "d", "--prune-after", 1), 2, "the detector has 1 blocks"),
        (("--bavit", "b", "--detector", "d", "--resume"), 1, "no such file: there is no run to resume"),
    ],
)
def test_bad_input_is_one_sentence(
    bavit: Invoke, labels: Build, models: Path, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    named = [models / str(word) if word in ("b", "c", "d", "nowhere") else word for word in words]
    result = bavit("joint", labels.path, "--out", tmp_path / "run", *QUICK, *named)
    assert result.exit_code == code
    one_error_line(result.stderr, message)
