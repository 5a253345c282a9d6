"""`bavit calibrate --detector`: what it prints and saves, what it refuses, and that nothing half-written is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Invoke, fine, one_error_line
from numpy.typing import NDArray

import tokenlabels
from bavit import PrunedDetector
from bavit.background.model import BAViT
from bavit.detect.adaptive import ADAPTIVE_FILE
from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.ground_truth import open_detection_set
from bavit.detect.saved import is_saved
from bavit.detect.yolos import Yolos
from tokenlabels.reader import Build

TINY = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, shortest_edge=64,
    longest_edge=112,
)  # fmt: skip
QUICK = ("--device", "cpu", "--workers", 0, "--split", "train", "--limit", 6)


@pytest.fixture(scope="module")
def build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = BAViT(depth=1, width=8, image_size=96)
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(100)
    folder = tmp_path_factory.mktemp("models") / "bavit"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "yolos"
    Yolos(replace(TINY, labels=tuple(category.name for category in build.categories))).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`random:tiny` is one that is quick."""
    monkeypatch.setitem(SIZES, "tiny", TINY)


def amounts(folder: Path, source: Path) -> NDArray[np.int64]:
    """Patches that a saved detector keeps of each of the first six pictures."""
    saved = PrunedDetector.from_pretrained(folder)
    data = open_detection_set(source, splits=["train"], limit=6)
    return np.array([int(saved(data.pictures.open(index))[0].keep.sum()) for index in range(6)])


def test_a_budget_is_met_by_what_is_saved(
    bavit: Invoke, run: Path, detector: Path, build: Build, sample_root: Path, tmp_path: Path
) -> None:
    before = (run / "config.json").read_bytes()
    for name, source in (("build", build.folder), ("coco", sample_root)):
        out = tmp_path / name
        words = ("calibrate", run, source, "--detector", detector, "--tokens", 12, "--headroom", 1.25, "--out", out)
        found = json.loads(fine(bavit(*words, *QUICK, "--json")).stdout)
        assert found.pop("out") == str(out)
        saved = PrunedDetector.from_pretrained(out)
        assert saved.budget == found == json.loads((out / "pruned.json").read_text())["budget"]
        kept = amounts(out, sample_root)
        assert kept.mean() == pytest.approx(found["achieved"]) == found["tokens"]
        assert 10 < kept.mean() <= 12
        assert kept.max() == found["achieved_max"] <= 15
        assert (saved.pruning.max_tokens, saved.pruning.refine_steps, found["images"]) == (15, 3, 6)
        assert found["source"] == f"{source} train"
    assert (run / "config.json").read_bytes() == before, "the run itself is left alone"


def test_the_table_says_what_json_says(bavit: Invoke, run: Path, detector: Path, build: Build, tmp_path: Path) -> None:
    words = (
        "calibrate",
        run,
        build.folder,
        "--detector",
        detector,
        "--macs",
        "0.9M",
        "--out",
        tmp_path / "out",
        *QUICK,
    )
    shown = fine(bavit(*words)).stdout
    found = PrunedDetector.from_pretrained(tmp_path / "out").budget
    assert found is not None
    for text in (f"{found['threshold']:.4f}", f"{found['macs'] / 1e9:.4f} G", f"{found['sparsity']:.2%}",
                 f"{found['capped']:.1%}", "stored: "):  # fmt: skip
        assert text in shown


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--tokens", 9, "--fixed"), {"top_k": 9}),
        (("--sparsity", 0.4, "--fixed"), {"sparsity": 0.4}),
        (("--sparsity", 0.4), {"max_tokens": None}),
        (("--fg-recall", 0.9, "--refine", 1), {"max_tokens": None, "refine_steps": 1}),
        (("--tokens", 20, "--prune-after", 1, "--headroom", 1), {"max_tokens": 20, "prune_after": 1}),
    ],
)
def test_other_targets(
    bavit: Invoke, run: Path, detector: Path, build: Build, tmp_path: Path, words: tuple[object, ...],
    rule: dict[str, object],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    fine(bavit("calibrate", run, build.folder, "--detector", detector, *words, "--out", out, *QUICK))
    pruning = PrunedDetector.from_pretrained(out).pruning
    assert {name: getattr(pruning, name) for name in rule} == rule


def test_a_latency_is_measured(bavit: Invoke, run: Path, build: Build, tmp_path: Path) -> None:
    """It has the unit, and the cheapest image is dearer than a nanosecond."""
    words = ("calibrate", run, build.folder, "--detector", "random:tiny", *QUICK, "--time-images", 2, "--rounds", 1)
    result = bavit(*words, "--latency-ms", 1e-6, "--threads", 1, "--dry-run")
    assert result.exit_code == 1
    one_error_line(result.stderr, "out of reach", "ms")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--tokens", 12), 2, "--out"),
        (("--tokens", 12, "--macs", "1G", "--dry-run"), 2, "one target"),
        (("--dry-run",), 2, "one target"),
        (("--tokens", 0, "--dry-run"), 2, "positive"),
        (("--tokens", -4, "--dry-run"), 2, "positive"),
        (("--latency-ms", "nan", "--dry-run"), 2, "positive"),
        (("--macs", "8X", "--dry-run"), 2, "8X"),
        (("--macs", "1K", "--dry-run"), 1, "ask for"),
        (("--tokens", 99999, "--dry-run"), 1, "nothing needs to be removed"),
        (("--tokens", 12, "--headroom", 0.5, "--dry-run"), 2, "headroom"),
        (("--sparsity", 0.4, "--headroom", 2, "--dry-run"), 2, "headroom"),
        (("--tokens", 12, "--prune-after", 2, "--dry-run"), 2, "2 blocks"),
        (("--tokens", 12, "--detector-size", "64x64", "--dry-run"), 2, "--detector-size"),
        (("--tokens", 12, "--confidence", 2, "--dry-run"), 2, "confidence"),
    ],
)
def test_faults_are_one_sentence(
    bavit: Invoke, run: Path, detector: Path, build: Build, words: tuple[object, ...], code: int, named: str
) -> None:
    result = bavit("calibrate", run, build.folder, "--detector", detector, *words, *QUICK)
    assert result.exit_code == code, result.stderr
    one_error_line(result.stderr, named)


@pytest.mark.parametrize(
    "words",
    [
        ("--tokens", 4),
        ("--latency-ms", 4),
        ("--macs", "8G", "--headroom", 2),
        ("--macs", "8G", "--fixed"),
        ("--macs", "8G", "--prune-after", 1),
        ("--macs", "8G", "--out", "x"),
    ],
)
def test_what_goes_with_a_detector_alone(bavit: Invoke, run: Path, build: Build, words: tuple[object, ...]) -> None:
    result = bavit("calibrate", run, build.folder, *words)
    assert result.exit_code == 2
    one_error_line(result.stderr, "--detector")


def test_folders_that_hold_something(
    bavit: Invoke, run: Path, detector: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("calibrate", run, build.folder, "--detector", detector, *QUICK, "--out", out)
    fine(bavit(*words, "--tokens", 12))
    refused = bavit(*words, "--tokens", 9)
    assert refused.exit_code == 1
    one_error_line(refused.stderr, "--overwrite")
    inside = ("calibrate", out / "bavit", build.folder, "--detector", out / "detector", *QUICK, "--out", out)
    own = bavit(*inside, "--tokens", 9, "--overwrite")
    assert own.exit_code == 1
    one_error_line(own.stderr, "which is read")
    (out / ADAPTIVE_FILE).write_bytes(b"of an earlier detector")
    fine(bavit(*words, "--tokens", 9, "--overwrite"))
    assert not (out / ADAPTIVE_FILE).exists()
    budget = PrunedDetector.from_pretrained(out).budget
    assert budget is not None
    assert budget["value"] == 9

    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("bavit.detect.pruned.write_saved", interrupted)
        assert bavit(*words, "--tokens", 12, "--overwrite").exit_code == 130
    assert not is_saved(out), "models of two makes are no finished detector"
    fine(bavit(*words, "--tokens", 12, "--overwrite"))
    (out / "notes.txt").write_text("mine")
    other = bavit(*words, "--tokens", 12, "--overwrite")
    assert other.exit_code == 1
    one_error_line(other.stderr, "notes.txt")
    assert is_saved(out)
    assert (out / "notes.txt").read_text() == "mine"
