"""`bavit detect` on saved pruned detectors and exported files, run by torch or onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import constant_model
from helpers import Invoke, fine, one_error_line
from PIL import Image
from typer.testing import Result

from bavit import BAViT, PrunedDetector, Yolos
from bavit.detect.config import YolosConfig
from bavit.detect.opening import Stays
from bavit.detect.pruning import Pruning
from bavit.export import temporary
from bavit.export.choice import Choice, Models, describe_choice
from bavit.export.described import Described

CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=4, shortest_edge=64,
    longest_edge=96, labels=("square", "disc", "triangle"),
)  # fmt: skip
QUICK = ("--batch-size", 3, "--workers", 0)
BUDGET = {"target": "macs", "value": 2e6, "source": "/data [/b] val"}
BOX = (0.5, 0.25, 0.5, 0.5)
"""Centre and size of the box that the constant file finds with certainty."""


@pytest.fixture(scope="module")
def detector() -> PrunedDetector:
    """As saved, six patches stay."""
    torch.manual_seed(0)
    model = BAViT(depth=1, width=32, heads=2, image_size=64)
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(100)
    found = PrunedDetector(model.eval(), Yolos(CONFIG).eval(), top_k=6, refine_steps=1)
    found.budget = BUDGET
    return found


@pytest.fixture(scope="module")
def saved(detector: PrunedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    detector.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(detector: PrunedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file, made by hand."""
    path = tmp_path_factory.mktemp("exported") / "pruned.onnx"
    described = describe_choice(Models(detector.bavit, detector.yolos, detector.pruning), Choice())
    path.write_bytes(constant(described).SerializeToString())
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures of several sizes."""
    folder, rng = tmp_path_factory.mktemp("shown"), np.random.default_rng(0)
    for number, (width, height) in enumerate([(80, 60), (64, 64), (50, 90), (120, 70)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands change how many threads torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def constant(described: Described) -> onnx.ModelProto:
    """One certain disc in every picture, and three detection tokens that are sure of nothing."""
    logits = np.zeros((4, CONFIG.classes), np.float32)
    logits[:, -1] = 20
    logits[0, 1] = 40
    keep = np.arange(16).reshape(4, 4) < (described.keep or 16)
    answers: dict[str, Any] = {"logits": logits, "boxes": np.array([BOX] * 4, np.float32)}
    return constant_model(described, answers | ({} if described.keep is None else {"keep": keep}))


def told(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fine(result).stdout)
    return found


class TestFiles:
    def test_a_file_is_run_like_models(
        self, bavit: Invoke, file: Path, saved: Path, pictures: Path, tmp_path: Path
    ) -> None:
        words = ("--out", tmp_path, "--json", *QUICK)
        found = told(bavit("detect", file, pictures, *words))
        entries = json.loads((tmp_path / "detections.json").read_text())
        assert (found["runtime"], found["provider"]) == ("onnx", "CPUExecutionProvider")
        assert (found["images"], found["boxes"], found["kept_patches"]) == (4, 4, 6)
        assert found["sparsity"] == pytest.approx(1 - 6 / 16)
        stages = ["decoding", "input of BAViT", "input of the detector", "graph", "boxes", "drawing"]
        assert list(found["milliseconds"]) == stages
        assert {path.name for path in tmp_path.glob("*.png")} == {f"{number}-detections.png" for number in range(4)}
        wide = max((each for each in entries if str(each["image_id"]) == "0"), key=lambda each: float(each["score"]))
        assert wide["bbox"] == pytest.approx([20, 0, 40, 30], abs=0.01)
        assert wide["category_id"] == 1
        square = pictures / "1.png"  # of the shape of the file's input, so that models see as many patches
        found, same = (told(bavit("detect", whole, square, *words)) for whole in (file, saved))
        assert (same["runtime"], same["provider"]) == ("torch", "cpu")
        assert same.keys() - {"budget"} == found.keys()
        for name in ("macs", "macs_dense", "tokens_total", "tokens_bavit", "reduction", "sparsity"):
            assert same[name] == found[name]

    def test_of_a_data_set_it_has_a_precision(
        self, bavit: Invoke, file: Path, sample_root: Path, tmp_path: Path
    ) -> None:
        words = ("--coco", sample_root, "--split", "val", "--limit", 2, "--no-draw", "--out", tmp_path, "--json")
        found = told(bavit("detect", file, *words, *QUICK))
        assert found["images"] == 2
        assert 0 <= found["ap"] <= found["ap50"] <= 1

    def test_a_dense_file_keeps_all(
        self, bavit: Invoke, detector: PrunedDetector, pictures: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "dense.onnx"
        described = describe_choice(Models(None, detector.yolos), Choice(image_size=(32, 64)))
        path.write_bytes(constant(described).SerializeToString())
        found = told(bavit("detect", path, pictures / "0.png", "--out", tmp_path / "out", "--json", *QUICK))
        assert (found["sparsity"], found["kept_patches"], found["tokens_bavit"]) == (0, 8, 0)
        assert found["macs"] == found["macs_dense"]
        assert "input of BAViT" not in found["milliseconds"]

    def test_what_a_person_sees(self, bavit: Invoke, file: Path, pictures: Path, tmp_path: Path) -> None:
        result = fine(bavit("detect", file, pictures, "--threads", 1, "--no-draw", "--out", tmp_path, *QUICK))
        assert "onnx, CPUExecutionProvider" in result.stdout

    @pytest.mark.parametrize(
        ("words", "code", "named"),
        [
            (("FILE", "PICTURE", "--threshold", 0.5), 2, ("--threshold", "exported with its own")),
            (("FILE", "PICTURE", "--top-k", 3, "--refine", 1), 2, ("--top-k, --refine", "exported with its own")),
            (("FILE", "PICTURE", "--sparsity", 0.5), 2, ("--sparsity",)),
            (("FILE", "PICTURE", "--max-tokens", 5), 2, ("--max-tokens",)),
            (("FILE", "PICTURE", "--prune-after", 0), 2, ("--prune-after",)),
            (("FILE", "PICTURE", "--runtime", "torch"), 2, ("run by onnx, not by torch",)),
            (("model.pt2", "PICTURE", "--runtime", "onnx"), 2, ("run by torch, not by onnx",)),
            (("FILE", "PICTURE", "--precision", "bf16"), 2, ("--precision bf16",)),
            (("FILE", "PICTURE", "--device", "cuda"), 2, ("--device cuda",)),
            (("model.pt2", "PICTURE", "--device", "cuda"), 2, ("--device cuda",)),
            (("FILE",), 2, ("name either images",)),
            (("nothing.onnx", "PICTURE"), 1, ("nothing.onnx", "cannot be read")),
            (("FILE", "FILE"), 1, ("cannot be read as an image",)),
        ],
    )
    def test_bad_input_is_one_sentence(
        self, words: tuple[object, ...], code: int, named: tuple[str, ...], bavit: Invoke, file: Path, pictures: Path,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        said = [{"FILE": file, "PICTURE": pictures / "0.png"}.get(str(word), word) for word in words]
        result = bavit("detect", *said, "--out", tmp_path / "out")
        assert result.exit_code == code, result.stderr
        one_error_line(result.stderr, *named)


@pytest.mark.parametrize("words", [("FILE",), ("SAVED", "--runtime", "onnx")])
def test_without_the_extra_it_says_what_to_install(
    bavit: Invoke, file: Path, saved: Path, pictures: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bavit.environment._EXPORT", ("onnx", "no-such-package"))
    whole, *rest = [{"FILE": file, "SAVED": saved}.get(word, word) for word in words]
    result = bavit("detect", whole, pictures, *rest)
    assert result.exit_code == 1
    one_error_line(result.stderr, "no-such-package", "pip install 'tokenlabels[bavit,export]'")


class TestModelsByOnnx:
    def test_models_are_exported_for_the_run(
        self, bavit: Invoke, saved: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Described] = []

        def to_onnx(_graph: object, inputs: list[torch.Tensor], described: Described, _opset: int) -> onnx.ModelProto:
            assert [tuple(each.shape) for each in inputs] == [(2, 3, 64, 64), (2, 3, 64, 64)]
            seen.append(described)
            return constant(described)

        monkeypatch.setattr(temporary, "to_onnx", to_onnx)
        words = (pictures, "--runtime", "onnx", "--out", tmp_path, "--no-draw", "--json", *QUICK)
        result = bavit("detect", saved, *words)
        assert told(result)["kept_patches"] == 6
        assert "stretched to 64 x 64, 6 of 16 patches stay" in result.stderr
        parts = (saved / "bavit", saved / "detector")
        assert told(bavit("detect", *parts, *words, "--sparsity", 0.5, "--refine", 2))["kept_patches"] == 8
        assert [(each.keep, each.refine_steps) for each in seen] == [(6, 1), (8, 2)]

    def test_a_cap_without_its_threshold_is_told(
        self, bavit: Invoke, detector: PrunedDetector, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        capped = PrunedDetector(detector.bavit, detector.yolos, 0.0, max_tokens=5)
        capped.budget = BUDGET
        capped.save_pretrained(tmp_path / "capped")
        monkeypatch.setattr(temporary, "to_onnx", lambda _graph, _inputs, described, _opset: constant(described))
        words = (tmp_path / "capped", pictures, "--out", tmp_path / "out", "--no-draw", "--json", *QUICK)
        assert told(bavit("detect", *words))["budget"] == BUDGET
        result = bavit("detect", *words, "--runtime", "onnx")
        assert told(result)["kept_patches"] == 5
        assert "budget" not in told(result)
        assert "5 patches stay of every image: the cap of the detector without its threshold" in result.stderr

    def test_a_threshold_is_no_number_of_patches(self, bavit: Invoke, saved: Path, pictures: Path) -> None:
        result = bavit("detect", saved / "bavit", saved / "detector", pictures, "--runtime", "onnx", "--threshold", 0.5)
        assert result.exit_code == 2
        one_error_line(result.stderr, "--top-k", "--sparsity")


class TestSaved:
    def test_options_stand_for_what_is_saved(self, bavit: Invoke, saved: Path, pictures: Path, tmp_path: Path) -> None:
        def found(*words: object) -> dict[str, Any]:
            words = (*words, "--out", tmp_path, "--no-draw", "--json", *QUICK)
            return told(bavit("detect", saved, pictures / "1.png", *words))

        assert (found()["kept_patches"], found()["budget"]) == (6, BUDGET)
        other = found("--top-k", 3)
        assert other["kept_patches"] == 3
        assert "budget" not in other
        assert found("--threshold", 1)["sparsity"] == 0
        assert found("--threshold", 1, "--max-tokens", 4)["kept_patches"] == 4
        assert found("--max-tokens", 4)["kept_patches"] == 4
        whole = found("--prune-after", 1)
        assert whole["kept_patches"] == 6
        assert whole["tokens_pruned"] == 16 + 6

    def test_the_budget_is_told(self, bavit: Invoke, saved: Path, pictures: Path, tmp_path: Path) -> None:
        words = (pictures / "0.png", "--out", tmp_path, "--no-draw")
        assert "target macs, value 2e+06, source /data [/b] val" in fine(bavit("detect", saved, *words)).stdout
        changed = fine(bavit("detect", saved, *words, "--top-k", 3))
        assert "calibrated for" not in changed.stdout
        assert "--top-k" in changed.stderr

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (("detect", "SAVED/bavit"), ("name a detector",)),
            (("detect", "SAVED/bavit", "SAVED", "PICTURES"), ("two models in one folder", "saved/detector")),
            (("sweep", "SAVED", "random:tiny", "PICTURES"), ("two models in one folder", "saved/bavit")),
            (("eval", "SAVED", "PICTURES"), ("two models in one folder", "saved/bavit")),
            (("detect", "SAVED", "PICTURES", "--prune-after", 2), ("prune_after 2", "2 blocks")),
        ],
    )
    def test_the_whole_is_not_its_parts(
        self, words: tuple[object, ...], named: tuple[str, ...], bavit: Invoke, saved: Path, pictures: Path
    ) -> None:
        said = [str(word).replace("SAVED", str(saved)).replace("PICTURES", str(pictures)) for word in words]
        result = bavit(*said)
        assert result.exit_code == 2, result.stderr
        one_error_line(result.stderr, *named)


def test_a_cap_comes_on_top_and_another_rule_replaces_all() -> None:
    stored = Pruning(threshold=0.2, max_tokens=9, refine_steps=1)
    assert Stays(max_tokens=4).over(stored) == Pruning(threshold=0.2, max_tokens=4, refine_steps=1)
    assert Stays(threshold=0.3).over(stored) == Pruning(threshold=0.3, refine_steps=1)
    assert Stays(sparsity=0.5, refine_steps=2).over(stored) == Pruning(sparsity=0.5, refine_steps=2)
    assert Stays(prune_after=1).over(stored) == replace(stored, prune_after=1)


def test_threads_are_those_of_torch(bavit: Invoke, saved: Path, pictures: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        fine(bavit("detect", saved, pictures / "0.png", "--threads", count, "--out", tmp_path, "--no-draw"))
        assert torch.get_num_threads() == count
