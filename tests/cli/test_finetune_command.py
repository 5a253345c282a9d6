"""`bavit finetune`: builds and COCO folders, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import Invoke, fine, one_error_line

import tokenlabels
from bavit.detect.yolos import Yolos
from tokenlabels.reader import Build

NEW = ("--detector", "none", "--dim", 32, "--depth", 1, "--detection-tokens", 8, "--shortest-edge", 64)
QUICK = ("--epochs", 1, "--batch-size", 4, "--precision", "32", "--device", "cpu", "--workers", 0)


@pytest.fixture(scope="module")
def labels(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True)


def test_a_build_and_then_a_coco_folder(bavit: Invoke, labels: Build, sample_root: Path, tmp_path: Path) -> None:
    """The second run goes on with the detector of the first, on stretched pictures and fewer to validate on."""
    first, second = tmp_path / "first", tmp_path / "second"
    result = fine(bavit("finetune", labels.path, "--out", first, *NEW, *QUICK, "--masks", "labels", "--json"))
    found = json.loads(result.stdout)
    assert found["out"] == str(first)
    assert 0 < found["train_sparsity"] < 1
    assert "3 images with" in result.stderr
    options = ("--size", "64x96", "--val-limit", 2, "--masks", "random", "--sparsity", 0.5)
    result = fine(bavit("finetune", sample_root, "--out", second, "--init", first, *QUICK, *options))
    assert "val ap" in result.stdout
    assert "2 images with" in result.stderr
    assert Yolos.from_pretrained(second).config == Yolos.from_pretrained(first).config
    again = bavit("finetune", sample_root, "--out", second, *QUICK, "--val-limit", 2, "--resume")
    assert again.exit_code == 2
    one_error_line(again.stderr, "nothing to resume")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "--detector none"),
        ((*NEW, "--size", "64"), 2, "give HxW"),
        ((*NEW, "--size", "axb"), 2, "whole numbers"),
        ((*NEW, "--masks", "bavit"), 2, "name one with --bavit"),
        ((*NEW, "--bavit", "nowhere"), 1, "nowhere: no such folder"),
        (("--detector", "nowhere"), 1, "nowhere: no such file or folder"),
        ((*NEW, "--bavit", "x", "--threshold", 2), 2, "threshold 2 is out of range"),
        ((*NEW, "--heads", 5), 2, "cannot be made"),
        ((*NEW, "--train-split", "test"), 2, "test"),
        ((*NEW, "--resume"), 1, "no such file: there is no run to resume"),
    ],
)
def test_bad_input_is_one_sentence(
    bavit: Invoke, labels: Build, tmp_path: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    result = bavit("finetune", labels.path, "--out", tmp_path / "run", *QUICK, *words)
    assert result.exit_code == code
    one_error_line(result.stderr, message)


def test_data_that_is_none(bavit: Invoke, tmp_path: Path) -> None:
    result = bavit("finetune", tmp_path / "x", *NEW, *QUICK)
    assert result.exit_code == 1
    one_error_line(result.stderr, "no such file or folder")
