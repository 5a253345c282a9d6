"""Training by torchrun: two ranks see the batches of one, and end at the same weights within rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tokenlabels

pytestmark = pytest.mark.slow

OPTIONS = (
    *("--init", "none", "--depth", "1", "--width", "64", "--batch-size", "2", "--epochs", "2", "--precision", "32"),
    *("--device", "cpu", "--workers", "0", "--class-weights", "balanced"),
)


def run(ranks: int, labels: Path, out: Path) -> tuple[list[dict[str, float]], str]:
    """The figures of every epoch, and what was told on stderr; of one process also every module that it loaded."""
    distributed = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launch = distributed if ranks > 1 else ["-X", "importtime"]
    ended = subprocess.run(
        [sys.executable, *launch, "-m", "cli.bavit", "train", str(labels), "--out", str(out), *OPTIONS],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], ended.stderr


def test_two_ranks_train_as_one(sample_root: Path, tmp_path: Path) -> None:
    """With patches that are ignored, so that ranks count different numbers of tokens."""
    labels = tmp_path / "labels"
    tokenlabels.build("coco", root=sample_root, out=labels, image_size=96, embed_images=True, crowd="ignore")
    assert tokenlabels.open(labels).manifest["splits"]["val"]["images"] % 2 == 1  # one rank has fewer to validate on
    one, told = run(1, labels, tmp_path / "one")
    two, _ = run(2, labels, tmp_path / "two")
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "lightning_fabric" in loaded
    assert not loaded & {"transformers", "torchmetrics"}, "they take ten seconds of every start"
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_balanced_accuracy", "lr", "step"):
            assert together[name] == pytest.approx(alone[name], abs=2e-3), name
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert (second[name] - value).abs().max() < 5e-3, name
