"""`bavit detect` and `bavit sweep`: what they print and write, their exit codes, and bad input in one sentence."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Invoke, fine, one_error_line
from PIL import Image
from sweeps import make_sweep

import tokenlabels
from bavit.background.model import BAViT
from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.sweep_figures import save_json
from bavit.detect.yolos import Yolos
from tokenlabels.reader import Build

TINY = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, shortest_edge=64,
    longest_edge=112,
)  # fmt: skip
QUICK = ("--batch-size", 2, "--device", "cpu", "--workers", 0)
SWEEP = (*QUICK, "--time-images", 2, "--rounds", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BAViT whose probabilities lie on both sides of 0.5."""
    torch.manual_seed(0)
    model = BAViT(depth=1, width=64, image_size=96)
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(100)
    folder = tmp_path_factory.mktemp("models") / "bavit"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOS of the categories of the sample."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "yolos"
    Yolos(replace(TINY, labels=tuple(category.name for category in build.categories))).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`random:tiny` is one that is quick."""
    monkeypatch.setitem(SIZES, "tiny", TINY)


@pytest.fixture(scope="module")
def build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True)


class TestDetect:
    def test_files(self, bavit: Invoke, run: Path, detector: Path, sample_root: Path, tmp_path: Path) -> None:
        pictures = sorted((sample_root / "val").iterdir())
        out = tmp_path / "out"
        result = fine(bavit("detect", run, detector, sample_root / "val", "--out", out, "--json", *QUICK))
        found = json.loads(result.stdout)
        assert found["images"] == len(pictures)
        assert 0 < found["sparsity"] < 1
        assert found["tokens_bavit"] == 36
        assert found["tokens_total"] == found["tokens_bavit"] + found["tokens_pruned"]
        assert found["macs"] > 0
        stages = [
            "decoding",
            "input of BAViT",
            "input of the detector",
            "BAViT",
            "masks",
            "detector",
            "boxes",
            "drawing",
        ]
        assert list(found["milliseconds"]) == stages
        assert all(value > 0 for value in found["milliseconds"].values())
        entries = json.loads((out / "detections.json").read_text())
        assert len(entries) == 6 * len(pictures)
        assert {entry["image_id"] for entry in entries} == {picture.stem for picture in pictures}
        assert {path.name for path in out.glob("*.png")} == {f"{path.stem}-detections.png" for path in pictures}

    def test_a_data_set_has_its_ids_and_its_precision(
        self, bavit: Invoke, run: Path, sample_root: Path, build: Build, tmp_path: Path
    ) -> None:
        ids = set(build.table(split="val").column("image_id").to_pylist())
        for name, source in (("folder", sample_root), ("build", build.path)):
            out = tmp_path / name
            words = ("--coco", source, "--split", "val", "--out", out, "--no-draw", "--limit", 2, "--json")
            found = json.loads(fine(bavit("detect", run, "random:tiny", *words, *QUICK)).stdout)
            assert found["images"] == 2
            assert 0 <= found["ap"] <= found["ap50"] <= 1
            assert "drawing" not in found["milliseconds"]
            entries = json.loads((out / "detections.json").read_text())
            assert {str(entry["image_id"]) for entry in entries} < ids
            assert [path.name for path in out.iterdir()] == ["detections.json"]

    def test_other_ways_to_say_how_much_stays(
        self, bavit: Invoke, run: Path, detector: Path, sample_root: Path, tmp_path: Path
    ) -> None:
        picture = next((sample_root / "val").iterdir())

        def kept(*words: object) -> float:
            found = bavit("detect", run, detector, picture, "--out", tmp_path / "out", "--no-draw", "--json", *words)
            return float(json.loads(fine(found).stdout)["kept_patches"])

        assert kept("--top-k", 5) == 5
        assert kept("--max-tokens", 3) == 3
        assert kept("--threshold", 1, "--prune-after", 1) == kept("--sparsity", 0)
        assert kept("--threshold", 0.2, "--refine", 0) <= kept("--threshold", 0.2)

    def test_what_a_person_sees(
        self, bavit: Invoke, run: Path, detector: Path, sample_root: Path, tmp_path: Path
    ) -> None:
        picture = next((sample_root / "val").iterdir())
        result = fine(bavit("detect", run, detector, picture, "--out", tmp_path / "out", "--min-score", 0))
        for words in ("boxes of a score of at least 0", "tokens saved", "MACs of the dense detector", "input of BAViT"):
            assert words in result.stdout
        with Image.open(tmp_path / "out" / f"{picture.stem}-detections.png") as drawn:
            assert drawn.width > 700

    @pytest.mark.parametrize(
        ("words", "code", "named"),
        [
            ((), 2, ("name either images", "--coco")),
            (("PICTURE", "--coco", "."), 2, ("not both",)),
            (("PICTURE", "--split", "val"), 2, ("--split",)),
            (("PICTURE", "--top-k", 3, "--sparsity", 0.5), 2, ("top_k and sparsity",)),
            (("PICTURE", "--prune-after", 2), 2, ("prune_after 2", "2 blocks")),
            (("nothing.jpg",), 1, ("nothing.jpg", "no such file")),
            (("--coco", "nothing"), 1, ("nothing",)),
        ],
    )
    def test_bad_input_is_one_sentence(
        self, words: tuple[object, ...], code: int, named: tuple[str, ...], bavit: Invoke, run: Path, detector: Path,
        sample_root: Path, tmp_path: Path,
    ) -> None:  # fmt: skip
        picture = next((sample_root / "val").iterdir())
        said = [picture if word == "PICTURE" else word for word in words]
        result = bavit("detect", run, detector, *said, "--out", tmp_path / "out")
        assert result.exit_code == code
        one_error_line(result.stderr, *named)

    def test_pictures_are_not_mixed_with_results(
        self, bavit: Invoke, run: Path, detector: Path, sample_root: Path
    ) -> None:
        result = bavit("detect", run, detector, sample_root / "val", "--out", sample_root / "val")
        assert result.exit_code == 1
        one_error_line(result.stderr, "holds pictures")

    @pytest.mark.parametrize("name", ["threshold", "sparsity"])
    @pytest.mark.parametrize("value", [1.5, -0.1, "nan"])
    def test_shares_out_of_range_are_one_sentence(self, name: str, value: float | str, bavit: Invoke) -> None:
        result = bavit("detect", "no-run", "random:tiny", "x.jpg", f"--{name}={value}")
        assert result.exit_code == 2
        one_error_line(result.stderr, f"{name} {value}", "0 to 1")


class TestSweep:
    def test_files_and_json(self, bavit: Invoke, run: Path, build: Build, tmp_path: Path) -> None:
        out = tmp_path / "out"
        words = ("--split", "val", "--limit", 2, "--thresholds", "0.3,0.7", "--masks", "bavit,labels", "--samples", 1)
        result = fine(bavit("sweep", run, "random:tiny", build.path, *words, "--out", out, "--json", *SWEEP))
        found = json.loads(result.stdout)
        assert [(row["mask"], row["threshold"]) for row in found["rows"]] == [
            ("bavit", 0.3), ("bavit", 0.7), ("labels", 0.3), ("labels", 0.7)]  # fmt: skip
        assert found["setting"]["random_weights"]
        assert found["setting"]["scores"]
        assert sorted(path.name for path in out.iterdir()) == [
            "samples", "sweep.csv", "sweep.html", "sweep.json", "sweep.png"]  # fmt: skip
        assert json.loads((out / "sweep.json").read_text())["rows"] == found["rows"]
        with (out / "sweep.csv").open(newline="") as file:
            assert [float(row["speedup"]) for row in csv.DictReader(file)] == [row["speedup"] for row in found["rows"]]
        assert "means nothing" in (out / "sweep.html").read_text()

    def test_what_a_person_sees(
        self, bavit: Invoke, run: Path, detector: Path, sample_root: Path, tmp_path: Path
    ) -> None:
        words = ("--split", "val", "--thresholds", 0.5, "--samples", 0, "--out", tmp_path / "out")
        before = save_json(make_sweep(), tmp_path / "before.json")
        result = fine(bavit("sweep", run, detector, sample_root, *words, "--before", before, *SWEEP))
        assert "ground truth" in result.stdout
        assert "speed-up" in result.stdout
        assert "written: " in result.stdout

    @pytest.mark.parametrize(
        ("words", "code", "named"),
        [
            (("--thresholds", "0.5,1.2"), 2, ("threshold 1.2", "0 to 1")),
            (("--thresholds", "half"), 2, ("--thresholds half",)),
            (("--masks", "truth"), 2, ("truth", "bavit, labels, random")),
            (("--split", "test"), 2, ("test",)),
            (("--before", "none.json"), 1, ("none.json", "cannot be read")),
            (("--prune-after", 2), 2, ("prune_after 2", "2 blocks")),
        ],
    )
    def test_bad_input_is_one_sentence(
        self, words: tuple[object, ...], code: int, named: tuple[str, ...], bavit: Invoke, run: Path, detector: Path,
        build: Build, tmp_path: Path,
    ) -> None:  # fmt: skip
        result = bavit("sweep", run, detector, build.path, *words, "--out", tmp_path / "out")
        assert result.exit_code == code, result.stderr
        one_error_line(result.stderr, *named)

    def test_a_detector_of_other_classes_is_told_before_anything_is_done(
        self, bavit: Invoke, run: Path, build: Build, tmp_path: Path
    ) -> None:
        Yolos(TINY).save_pretrained(tmp_path / "coco")
        for command in (
            ("sweep", run, tmp_path / "coco", build.path),
            ("detect", run, tmp_path / "coco", "--coco", build.path),
        ):
            result = bavit(*command, "--out", tmp_path / "out")
            assert result.exit_code == 2
            one_error_line(result.stderr, "the detector knows person, bicycle")
            assert not (tmp_path / "out").exists()

    def test_a_detector_that_is_none_is_one_sentence(
        self, bavit: Invoke, run: Path, build: Build, tmp_path: Path
    ) -> None:
        result = bavit("sweep", run, "random:huge", build.path, "--out", tmp_path / "out")
        assert result.exit_code == 2
        one_error_line(result.stderr, "random:huge", "random:tiny")
