"""`bavit export`: what it prints and writes, its exit codes, and bad input in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import small_bavit, small_yolos
from helpers import Invoke, fine, one_error_line

import tokenlabels
from bavit.detect.accounting import detector_macs
from bavit.detect.pruned import PrunedDetector
from bavit.detect.yolos import Yolos
from bavit.export.described import read_described
from tokenlabels.reader import Build


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `bavit`, `yolos` and `pruned`."""
    place = tmp_path_factory.mktemp("models")
    small_bavit().save_pretrained(place / "bavit")
    small_yolos().save_pretrained(place / "yolos")
    PrunedDetector(small_bavit(), small_yolos(), sparsity=0.35, refine_steps=1).save_pretrained(place / "pruned")
    return place


@pytest.fixture(scope="module")
def build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Labels on the grid of `small_bavit`."""
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=48, embed_images=True)


def test_a_saved_detector_becomes_a_program(bavit: Invoke, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "detector.pt2"
    result = fine(bavit("export", models / "pruned", "--out", out, "--image-size", "64x96", "--json"))
    told = json.loads(result.stdout)
    assert (told["kind"], told["keep"], told["patches"], told["refine_steps"]) == ("pruned", 16, 24, 1)
    assert (told["format"], told["bytes"], told["quantised"]) == ("torch", out.stat().st_size, False)
    assert told["largest_difference"] <= 1e-4
    config = small_yolos().config
    assert told["macs_dense"] == detector_macs(config, 24, 24)
    assert told["macs"] == small_bavit().macs + detector_macs(config, 16, 24)
    assert result.stderr == ""
    assert read_described(out).sources == (str(models / "pruned"),)
    assert [path.name for path in out.parent.iterdir()] == ["detector.pt2"]
    again = bavit("export", models / "pruned", "--out", out)
    assert again.exit_code == 1
    one_error_line(again.stderr, str(out), "--overwrite")


@pytest.mark.slow
def test_int8_tells_what_it_costs(
    bavit: Invoke, models: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    labels = tuple(category.name for category in build.categories)
    yolos = Yolos(replace(small_yolos().config, labels=labels))
    yolos.save_pretrained(tmp_path / "yolos")
    words = ("export", models / "bavit", tmp_path / "yolos", "--top-k", 9, "--out", tmp_path / "a.onnx", "--int8")
    trial = ("--data", build.path, "--limit", 2)
    told = json.loads(fine(bavit(*words, *trial, "--json")).stdout)
    assert list(told["figures"]) == ["pytorch", "onnx", "int8"]
    assert told["figures"]["onnx"]["ap"] == pytest.approx(told["figures"]["pytorch"]["ap"], abs=1e-6)
    assert told["drop"]["ap"] == told["figures"]["onnx"]["ap"] - told["figures"]["int8"]["ap"]
    assert (told["images"], told["quantised"], told["keep"]) == (2, True, 9)
    assert told["bytes"] < told["float_bytes"]
    monkeypatch.setattr("bavit.export.exporting.export_models", lambda *_: told)
    plain = fine(bavit(*words, "--overwrite"))
    assert "was not measured: name labelled images with --data" in plain.stderr
    assert "written: " in plain.stdout


@pytest.mark.slow
def test_a_background_model_is_measured_by_its_labels(
    bavit: Invoke, models: Path, build: Build, tmp_path: Path
) -> None:
    out = tmp_path / "a.onnx"
    result = fine(bavit("export", models / "bavit", "--out", out, "--int8", "--data", build.path, "--limit", 6))
    for word in ("pytorch", "onnx", "int8", "drop", "auroc", "balanced accuracy"):
        assert word in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["{m}/bavit", "{m}/yolos"], 2, "give --top-k or --sparsity"),
        (["{m}/bavit", "{m}/yolos", "--top-k", 17], 2, "17 patches cannot stay of 4 x 4"),
        (["{m}/bavit", "{m}/yolos", "--top-k", 0], 2, "0 patches cannot stay"),
        (["{m}/bavit", "{m}/yolos", "--sparsity", 7], 2, "sparsity 7 is out of range"),
        (["{m}/bavit", "{m}/yolos", "--sparsity", 0.5, "--top-k", 2], 2, "cannot both"),
        (["{m}/bavit", "{m}/yolos", "--top-k", 2, "--image-size", "60x64"], 2, "try 64x64"),
        (["{m}/bavit", "--top-k", 2], 2, "in front of a detector"),
        (["{m}/pruned", "{m}/yolos"], 2, "is a pruned detector"),
        (["{m}/bavit", "--opset", 17], 2, "the oldest that can be written is 18"),
        (["{m}/bavit", "--opset", 4000], 2, "too new"),
        (["{m}/bavit", "--format", "torch"], 2, "ends in .pt2"),
        (["{m}/bavit", "--limit", 2], 2, "name it with --data"),
        (["{m}/yolos", "{m}/bavit", "--top-k", 2], 1, "is not the config of a BAViT"),
        (["{m}/nothing"], 1, "no such folder"),
    ],
)
def test_bad_input_is_one_sentence(
    bavit: Invoke, models: Path, tmp_path: Path, words: list[object], code: int, told: str
) -> None:
    filled = [str(word).format(m=models) for word in words]
    result = bavit("export", *filled, "--out", tmp_path / "a.onnx")
    assert result.exit_code == code
    one_error_line(result.stderr, told)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(
    bavit: Invoke, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bavit.environment._EXPORT", ("onnx", "no-such-package"))
    result = bavit("export", models / "bavit", "--out", tmp_path / "a.onnx")
    assert result.exit_code == 1
    one_error_line(result.stderr, "no-such-package", "pip install 'tokenlabels[bavit,export]'")


def test_ctrl_c_leaves_nothing(bavit: Invoke, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bavit.export.exporting.compare_random", interrupted)
    result = bavit("export", models / "bavit", "--out", tmp_path / "a.pt2")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert list(tmp_path.iterdir()) == []
