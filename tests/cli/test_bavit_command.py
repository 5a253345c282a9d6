"""The commands of `bavit`: what they print, their exit codes, what they leave, and what becomes of killed ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import Invoke, fine, one_error_line
from PIL import Image
from safetensors.torch import load_file

import tokenlabels
from bavit import BAViT
from tokenlabels.reader import Build

COMMAND = str(Path(sys.executable).with_name("bavit"))
TINY = ("--init", "none", "--depth", "1", "--width", "64", "--batch-size", "4", "--precision", "32", "--device", "cpu")
EPOCHS = 25
LONG = (*TINY, "--epochs", str(EPOCHS), "--workers", "1")
KEYS = [
    *("accuracy", "balanced_accuracy", "majority", "position_prior", "fg_precision", "fg_recall", "fg_iou", "auroc"),
    *("ece", "sparsity", "lost_objects", "threshold", "parameters", "macs"),
]


@pytest.fixture(scope="module")
def labels(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True)


@pytest.fixture(scope="module")
def run(bavit: Invoke, labels: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "run"
    fine(bavit("train", labels.path, "--out", out, *TINY, "--epochs", 12, "--workers", 0))
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A model of one's own, to be changed."""
    BAViT.from_pretrained(run).save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


def test_train_prints_one_json_object(bavit: Invoke, labels: Build, tmp_path: Path) -> None:
    result = fine(bavit("train", labels.path, "--out", tmp_path / "run", *TINY, "--epochs", 1, "--json"))
    found = json.loads(result.stdout)
    assert found["epoch"] == 1
    assert found["out"] == str(tmp_path / "run")
    assert 0 < found["val_balanced_accuracy"] < 1
    assert "epoch 1/1: loss" in result.stderr


def test_eval_prints_the_keys_of_the_design(bavit: Invoke, run: Path, labels: Build) -> None:
    result = fine(bavit("eval", run, labels.path, "--json"))
    found = json.loads(result.stdout)
    assert all(isinstance(found[key], int | float) for key in KEYS)
    assert found["images"] == 3
    baselines = tokenlabels.statistics(labels, split="val").baselines
    assert found["majority"] == pytest.approx(baselines.majority)
    assert found["position_prior"] == pytest.approx(baselines.position_prior)
    assert found["parameters"] == sum(value.numel() for value in BAViT.from_pretrained(run).parameters())
    assert [step["steps"] for step in found["refinement"]] == list(range(6))


def test_eval_agrees_with_the_model_called_by_hand(bavit: Invoke, run: Path, labels: Build, sample_root: Path) -> None:
    found = json.loads(fine(bavit("eval", run, labels.path, "--json", "--threshold", 0.4, "--refine", 2)).stdout)
    model = BAViT.from_pretrained(run)
    model.threshold, model.refine_steps = 0.4, 2
    rows = labels.table(split="val").to_pylist()
    pictures = [Image.open(sample_root / "val" / row["file_name"]) for row in rows]
    kept = model.kept(model.preprocess(pictures)).numpy()
    truth = labels.labels(split="val")
    assert found["accuracy"] == pytest.approx((kept == truth).mean())
    assert found["sparsity"] == pytest.approx(1 - kept.mean())
    assert found["fg_recall"] == pytest.approx(kept[truth == 1].mean())


def test_eval_writes_page_and_picture(bavit: Invoke, run: Path, labels: Build, tmp_path: Path) -> None:
    html, png = tmp_path / "page.html", tmp_path / "curves.png"
    result = fine(bavit("eval", run, labels.path, "--split", "train", "--html", html, "--png", png, "--samples", 2))
    assert "position prior" in result.stdout
    assert "refinement steps" in result.stdout
    assert html.read_text().count("data:image/jpeg") == 2
    assert Image.open(png).width > 800


def test_eval_is_the_same_in_batches_and_workers(bavit: Invoke, run: Path, labels: Build) -> None:
    one = json.loads(fine(bavit("eval", run, labels.path, "--split", "train", "--json", "--workers", 0)).stdout)
    other = json.loads(
        fine(bavit("eval", run, labels.path, "--split", "train", "--json", "--workers", 2, "--batch-size", 5)).stdout
    )
    for key in KEYS:
        assert other[key] == pytest.approx(one[key], abs=1e-3), key


def test_calibrate_meets_and_stores_its_target(bavit: Invoke, copy: Path, labels: Build) -> None:
    words = ("calibrate", copy, labels.path, "--split", "train", "--sparsity", 0.35, "--refine", 1, "--json")
    before = (copy / "config.json").read_bytes()
    dry = json.loads(fine(bavit(*words, "--dry-run")).stdout)
    assert (copy / "config.json").read_bytes() == before
    found = json.loads(fine(bavit(*words)).stdout)
    assert found == dry
    assert found["achieved"] >= 0.35
    assert found["threshold_low"] <= found["threshold"] <= found["threshold_high"]
    model = BAViT.from_pretrained(copy)
    assert (model.threshold, model.refine_steps) == (found["threshold"], 1)
    assert model.calibration == found
    measured = json.loads(fine(bavit("eval", copy, labels.path, "--split", "train", "--json")).stdout)
    assert measured["sparsity"] == pytest.approx(found["achieved"])


@pytest.mark.parametrize("target", [("--fg-recall", 0.9), ("--macs", "5G", "--detector-size", "256x256")])
def test_calibrate_for_other_targets(bavit: Invoke, copy: Path, labels: Build, target: tuple[object, ...]) -> None:
    result = fine(bavit("calibrate", copy, labels.path, "--split", "train", *target))
    assert "interval of the threshold" in result.stdout
    assert BAViT.from_pretrained(copy).threshold != 0.5


@pytest.mark.parametrize(
    ("target", "code", "named"),
    [
        ((), 2, "--sparsity"),
        (("--sparsity", 0.3, "--fg-recall", 0.9), 2, "one"),
        (("--sparsity", 1.5), 2, "0..1"),
        (("--macs", "1M"), 1, "macs"),
        (("--macs", "many"), 2, "many"),
        (("--macs", "5G", "--detector-size", "100x100"), 2, "100"),
    ],
)
def test_targets_that_make_no_sense(
    bavit: Invoke, copy: Path, labels: Build, target: tuple[object, ...], code: int, named: str
) -> None:
    result = bavit("calibrate", copy, labels.path, *target)
    assert result.exit_code == code
    one_error_line(result.stderr, named)


def test_predict_draws_and_writes_masks(
    bavit: Invoke, run: Path, labels: Build, sample_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = fine(bavit("predict", run, sample_root / "val", "--out", out, "--labels", labels.path, "--refine", 2,
                        "--batch-size", 2, "--json"))  # fmt: skip
    found = json.loads(result.stdout)
    stems = sorted(path.stem for path in (sample_root / "val").iterdir())
    assert found["images"] == len(stems)
    assert found["images_per_second"] > 0
    assert {path.name for path in out.iterdir()} == {
        "masks.npz", *(f"{stem}-overlay.png" for stem in stems), *(f"{stem}-mask.png" for stem in stems)}  # fmt: skip
    with np.load(out / "masks.npz") as masks:
        kept, background, names = masks["kept"], masks["background"], masks["file_names"]
    assert list(names) == stems
    assert found["sparsity_refined"] == pytest.approx(1 - kept.mean())
    model = BAViT.from_pretrained(run)
    model.refine_steps = 2
    pictures = [Image.open(path) for path in sorted((sample_root / "val").iterdir())]
    np.testing.assert_allclose(background, model.background(model.preprocess(pictures)).detach().numpy(), atol=1e-5)
    with Image.open(out / f"{stems[0]}-mask.png") as mask:
        assert mask.size == pictures[0].size
        assert np.asarray(mask).mean() / 255 == pytest.approx(kept[0].mean(), abs=0.02)


def test_predict_takes_files_of_the_same_name(bavit: Invoke, run: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "x.png")
    fine(bavit("predict", run, tmp_path / "a" / "x.png", tmp_path / "b", "--out", tmp_path / "out", "--no-overlays"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x-mask.png", "x-2-mask.png", "masks.npz"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("eval", "{run}", "{nowhere}"), "nowhere"),
        (("eval", "{nowhere}", "{labels}"), "nowhere"),
        (("eval", "{run}", "{other}"), "96x96-p16"),
        (("train", "{nowhere}", "--out", "{nowhere}"), "nowhere"),
        (("train", "{plain}", "--init", "none", "--out", "{nowhere}"), "--images"),
        (("train", "{labels}", "--val", "{other}", "--init", "none", "--out", "{nowhere}"), "64x64-p16"),
        (("train", "{labels}", "--init", "{nowhere}", "--out", "{nowhere}"), "nowhere"),
        (("train", "{labels}", "--val-split", "test", "--out", "{nowhere}"), "'test'"),
        (("train", "{labels}", "--images", "{nowhere}", "--init", "none", "--out", "{nowhere}"), "nowhere"),
        (("predict", "{run}", "{nowhere}"), "nowhere"),
        (("predict", "{run}", "{empty}"), "no pictures"),
        (("predict", "{run}", "{file}"), "cannot be read as an image"),
        (("predict", "{run}", "{picture}", "--out", "{file}/x"), "cannot be written"),
        (("calibrate", "{nowhere}", "{labels}", "--sparsity", "0.3"), "nowhere"),
    ],
)
def test_faults_are_one_sentence(
    bavit: Invoke, run: Path, labels: Build, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], named: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    places = {"run": run, "labels": labels.folder, "nowhere": tmp_path / "nowhere", "empty": tmp_path / "empty",
              "file": tmp_path / "file.jpg", "picture": tmp_path / "p.png"}  # fmt: skip
    places["empty"].mkdir()
    places["file"].write_bytes(b"text")
    Image.new("RGB", (8, 8)).save(places["picture"])
    for name, options in (("other", {"image_size": 64, "embed_images": True}), ("plain", {})):
        if f"{{{name}}}" in words:
            places[name] = tmp_path / name
            tokenlabels.build("coco", root=sample_root, out=places[name], **options)  # type: ignore[arg-type]
    result = bavit(*(word.format(**places) for word in words))
    assert result.exit_code in (1, 2)
    one_error_line(result.stderr, named)
    assert not (tmp_path / "nowhere").exists()


@contextlib.contextmanager
def training(labels: Build, out: Path, told: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`bavit train` as a process of its own; all that it tells, and every module it loads, goes to the file `told`."""
    with told.open("wb") as stream:
        process = subprocess.Popen(
            [COMMAND, "train", str(labels.path), "--out", str(out), *LONG, *words],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"},
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def epochs(out: Path) -> int:
    """How many are done."""
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_killed_goes_on_to_the_same_weights(
    bavit: Invoke, labels: Build, tmp_path: Path
) -> None:
    """Signals go to the whole group, workers included, as Ctrl-C and schedulers send them."""
    out, told = tmp_path / "run", tmp_path / "told.txt"
    for number, code, words in ((signal.SIGINT, 130, ()), (signal.SIGKILL, -9, ("--resume",))):
        wanted, end = epochs(out) + 2, time.monotonic() + 120
        with training(labels, out, told, *words) as process:
            while epochs(out) < wanted:
                assert process.poll() is None, told.read_text()
                assert time.monotonic() < end, "no epoch in two minutes"
                time.sleep(0.02)
            os.killpg(process.pid, number)
            assert process.wait(timeout=30) == code
        assert epochs(out) < EPOCHS
        if number == signal.SIGINT:
            said = told.read_text()
            assert "run the same command with --resume" in said
            assert "Traceback" not in said
            loaded = {line.rpartition("|")[2].strip() for line in said.splitlines()}
            assert "lightning_fabric" in loaded
            assert not loaded & {"transformers", "torchmetrics"}, "they take ten seconds of every start"
    fine(bavit("train", labels.path, "--out", out, *LONG, "--resume"))
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    fine(bavit("train", labels.path, "--out", tmp_path / "whole", *LONG))
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all((second[name] == value).all() for name, value in first.items())


def test_the_extra_is_named_where_it_is_missing(bavit: Invoke, labels: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bavit.environment._PACKAGES", ("no-such-package",))
    result = bavit("train", labels.path)
    assert result.exit_code == 1
    one_error_line(result.stderr, "no-such-package", "tokenlabels[bavit]")


def test_labels_of_masks_train_without_crops(bavit: Invoke, sample_root: Path, tmp_path: Path) -> None:
    labels = tokenlabels.build(
        "coco", root=sample_root, out=tmp_path / "labels", image_size=96, embed_images=True, rule="pixel-ratio"
    )
    result = fine(bavit("train", labels.path, "--out", tmp_path / "run", *TINY, "--epochs", 1, "--workers", 0))
    assert "no random crops" in result.stderr
    refused = bavit("train", labels.path, "--out", tmp_path / "other", *TINY, "--crop", 0.5)
    assert refused.exit_code == 2
    one_error_line(refused.stderr, "use --crop 1")


def test_predict_does_not_write_among_its_pictures(bavit: Invoke, run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    result = bavit("predict", run, tmp_path, "--out", tmp_path)
    assert result.exit_code == 1
    one_error_line(result.stderr, "holds pictures")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
