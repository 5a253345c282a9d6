"""Training by torchrun: two ranks see the batches of one, and end at the same weights within rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import fine
from safetensors.torch import load_file
from typer.testing import CliRunner

import tokenlabels
from bavit import BAViT
from bavit.detect.config import YolosConfig
from bavit.detect.yolos import Yolos
from cli.bavit import app

pytestmark = pytest.mark.slow

OPTIONS = (
    *("--init", "none", "--depth", "1", "--width", "64", "--batch-size", "2", "--epochs", "2", "--precision", "32"),
    *("--device", "cpu", "--workers", "0", "--class-weights", "balanced"),
)


def figures(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_train_as_one(sample_root: Path, tmp_path: Path) -> None:
    """With patches that are ignored, so that ranks count different numbers of tokens."""
    labels = tmp_path / "labels"
    tokenlabels.build("coco", root=sample_root, out=labels, image_size=96, embed_images=True, crowd="ignore")
    assert tokenlabels.open(labels).manifest["splits"]["val"]["images"] % 2 == 1  # one rank has fewer to validate on
    fine(CliRunner().invoke(app, ["train", str(labels), "--out", str(tmp_path / "one"), *OPTIONS]))
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    subprocess.run(
        [*launch, "-m", "cli.bavit", "train", str(labels), "--out", str(tmp_path / "two"), *OPTIONS],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_balanced_accuracy", "lr", "step"):
            assert together[name] == pytest.approx(alone[name], abs=2e-3), name
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert (second[name] - value).abs().max() < 5e-3, name


def test_two_ranks_train_both_models(sample_root: Path, tmp_path: Path) -> None:
    """The loss of objects is a mean over those of a rank, so that it differs and weights agree less closely."""
    torch.manual_seed(0)
    labels = tmp_path / "labels"
    build = tokenlabels.build("coco", root=sample_root, out=labels, image_size=64, patch=8, embed_images=True)
    BAViT(depth=1, width=64, patch=8, image_size=64).save_pretrained(tmp_path / "bavit")
    names = tuple(entry.name for entry in build.categories)
    Yolos(
        YolosConfig(dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=6, labels=names,
                    shortest_edge=64, longest_edge=64)
    ).save_pretrained(tmp_path / "detector")  # fmt: skip
    words = (
        *("joint", str(labels), "--bavit", str(tmp_path / "bavit"), "--detector", str(tmp_path / "detector")),
        *("--batch-size", "4", "--epochs", "1", "--precision", "32", "--device", "cpu", "--workers", "0", "--lr"),
        *("1e-4", "--clip", "0", "--distil", "1", "--mac-penalty", "0.1"),
    )
    fine(CliRunner().invoke(app, [*words, "--out", str(tmp_path / "one")]))
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    subprocess.run(
        [*launch, "-m", "cli.bavit", *words, "--out", str(tmp_path / "two")],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    for alone, together in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        for name in ("train_ce", "train_accuracy", "val_balanced_accuracy", "val_gmacs", "val_sparsity"):
            assert together[name] == pytest.approx(alone[name], rel=0.1), name
    for part in ("bavit", "detector"):
        first, second = (load_file(tmp_path / run / part / "model.safetensors") for run in ("one", "two"))
        assert all((second[name] - value).abs().max() < 5e-3 for name, value in first.items())
