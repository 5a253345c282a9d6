"""How a threshold of each image is learned: straight through its masks, against a penalty on MACs."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from watched import StopAt

import tokenlabels
from bavit import BAViT
from bavit.background.refine import refine
from bavit.detect.adaptive import ADAPTIVE_FILE, AdaptiveThreshold
from bavit.detect.config import YolosConfig
from bavit.detect.joint import JointLearner, joint, soft_threshold, straight_through
from bavit.detect.joint_settings import JointSettings
from bavit.detect.pruned import PrunedDetector
from bavit.detect.samples import collate_detections
from bavit.detect.yolos import Yolos
from bavit.pictures import PictureReader
from bavit.rows import Rows, read_rows
from bavit.training.interruption import Interrupted
from bavit.training.learner import Task
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Silent

CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=6, shortest_edge=64,
    longest_edge=64, patch=16,
)  # fmt: skip
TINY: dict[str, Any] = {
    "batch_size": 4, "epochs": 1, "precision": "32", "crop": 1.0, "colour": 0.0, "ema": 0.0, "train": "threshold",
    "mac_penalty": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows]:
    """13 pictures to train on and 3 to validate on, labels on 8 x 8 patches."""
    out = tmp_path_factory.mktemp("labels") / "out"
    build = tokenlabels.build("coco", root=sample_root, out=out, image_size=64, patch=8, embed_images=True)
    return read_rows(build, splits=["train"], scores=False), read_rows(build, splits=["val"], scores=False)


@pytest.fixture(scope="module")
def models(rows: tuple[Rows, Rows], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained detector, and a BAViT that is not sure of anything."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bavit = BAViT(depth=1, width=64, patch=8, image_size=64, threshold=0.6)
    torch.nn.init.normal_(bavit.vit.get_parameter("head.weight"), std=0.1)
    bavit.save_pretrained(folder / "b")
    Yolos(replace(CONFIG, labels=tuple(entry.name for entry in rows[0].categories))).save_pretrained(folder / "d")
    return {"bavit": str(folder / "b"), "detector": str(folder / "d")}


@pytest.fixture
def task(rows: tuple[Rows, Rows], tmp_path: Path, undrawn: None) -> Task:
    return Task(*rows, None, None, tmp_path / "run", workers=0, device="cpu")


def settings(models: dict[str, str], **changes: Any) -> JointSettings:
    return JointSettings.make(**TINY | models | changes)


def two_kinds(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Background (2 count, 8, 8) and what matters (2 count, 8, 8): half of the images would be served by a threshold
    of 0.3, the others, of a BAViT that sees background everywhere, by one of 0.8."""
    generator = torch.Generator().manual_seed(seed)
    matters = torch.rand(2 * count, 8, 8, generator=generator) < 0.3
    sure = torch.where(matters, 0.15, 0.45)
    sure[count:] = torch.where(matters[count:], 0.65, 0.93)
    return (sure + 0.05 * torch.rand(sure.shape, generator=generator)), matters


def toy_cost(policy: Tensor, matters: Tensor) -> Tensor:
    """The share of what matters that is lost, and half that of what is kept; of a mean image."""
    lost = ((1 - policy) * matters).sum((1, 2)) / matters.sum((1, 2))
    return (lost + policy.mean((1, 2)) / 2).mean()


def test_two_kinds_of_images_get_two_thresholds() -> None:
    background, matters = two_kinds(10, seed=0)
    torch.manual_seed(0)
    adaptive = AdaptiveThreshold()
    adaptive.standardise(background)
    optimizer = torch.optim.Adam(adaptive.parameters(), lr=0.03)
    for _ in range(120):
        threshold = adaptive(background)
        hard = list(background <= threshold.detach()[:, None, None])
        policy = torch.stack(straight_through(hard, list(soft_threshold(background, threshold, 0, 0.5))))
        optimizer.zero_grad()
        toy_cost(policy, matters).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    others, matter = two_kinds(10, seed=1)
    with torch.no_grad():
        thresholds = adaptive(others)
        found = toy_cost((others <= thresholds[:, None, None]).float(), matter)
        fixed = min(float(toy_cost((others <= each).float(), matter)) for each in np.linspace(0, 1, 101))
        ideal = toy_cost(matter.float(), matter)
    assert thresholds[:10].max() < 0.45 < 0.65 < thresholds[10:].min()
    assert found < 0.8 * fixed
    assert found == pytest.approx(float(ideal), rel=0.02)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_soft_decision_turns_where_the_hard_one_does(steps: int) -> None:
    background = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor([0.1, 0.3, 0.5, 0.7], requires_grad=True)
    soft = soft_threshold(background.requires_grad_(), threshold, steps, 0.5)
    assert torch.equal(soft >= 0.5, refine(background <= threshold[:, None, None], steps))
    (gradient,) = torch.autograd.grad(soft.sum(), threshold)
    assert (gradient > 0).all()
    assert background.grad is None


def test_only_the_threshold_is_trained(task: Task, models: dict[str, str]) -> None:
    learner = JointLearner(task, settings(models))
    model = learner.new_model()
    learner.initialize(model)
    assert model.adaptive is not None
    assert model.adaptive.std.ne(1).all()
    data, _ = learner.data()
    for chosen in ([0, 1, 2], []):
        model.zero_grad()
        batch = collate_detections([data[0, row] for row in chosen] or [replace(data[0, 0], fault="broken")])
        total, _, counts = learner.loss(learner.answering(model), batch, 0.0)
        assert len(counts) == learner.counts
        total.backward()  # type: ignore[no-untyped-call]
        for name, value in model.named_parameters():
            assert (value.grad is not None) == name.startswith("adaptive."), name
        for name in ("shift", "last.weight"):  # the first layer has none as long as the last one is zero
            assert bool(model.adaptive.get_parameter(name).grad.any()) == bool(chosen)  # type: ignore[union-attr]


def test_it_starts_where_the_fixed_threshold_is(task: Task, models: dict[str, str]) -> None:
    _, data = JointLearner(task, settings(models)).data()
    batch = collate_detections([data[0, row] for row in range(3)])
    kept = []
    for changes in ({}, {"train": "detector", "mac_penalty": 0.0}):
        for threshold in (None, 0.3):
            learner = JointLearner(task, settings(models, threshold=threshold, refine_steps=0, **changes))
            model = learner.new_model()
            assert (model.adaptive is None) == bool(changes)
            _, keep, _ = learner.tried(model, batch)
            answered = learner.answering(model)(batch.small, learner.pixels(batch), batch.grids, batch.sizes)
            assert keep is not None
            assert all(map(torch.equal, keep, answered[1]))
            kept.append(torch.cat([mask.flatten() for mask in keep]))
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[1], kept[3])
    assert 0 < kept[1].sum() < kept[0].sum() < kept[0].numel()


def test_a_run_learns_thresholds_and_leaves_them(task: Task, models: dict[str, str]) -> None:
    """The dearer MACs are, the fewer it keeps; both models stay as they were."""
    shares, pictures = [], PictureReader(task.val, None)
    for penalty in (0.0, 100.0):
        mine = replace(task, out=task.out.with_name(f"run-{penalty:g}"))
        budget = {"keep_share": 0.95} if not penalty else {}
        chosen = settings(models, epochs=4, val_every=4, mac_penalty=penalty, threshold_lr=0.1, **budget)
        found = joint(mine, chosen, {}, Silent())
        shares.append(found["val_macs_share"])
        detector = PrunedDetector.from_pretrained(mine.out)
        assert detector.adaptive is not None
        assert detector.pruning.threshold is None
        kept = torch.cat([each.keep.flatten() for each in detector([pictures.open(row) for row in range(3)])])
        assert 1 - found["val_sparsity"] == pytest.approx(float(kept.float().mean()))
    assert shares[1] < 0.6 * shares[0]
    for part in ("bavit", "detector"):
        before = (BAViT if part == "bavit" else Yolos).from_pretrained(models[part]).state_dict()
        after = getattr(detector, "yolos" if part == "detector" else part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_goes_on_with_its_thresholds(task: Task, models: dict[str, str]) -> None:
    chosen = settings(models, epochs=2, ema=0.9)
    whole, parts = (replace(task, out=task.out.with_name(name)) for name in ("whole", "parts"))
    joint(whole, chosen, {}, Silent())
    with pytest.raises(Interrupted):
        joint(parts, chosen, {}, StopAt(5, signal.SIGINT))
    joint(replace(parts, resume=True), chosen, {}, Silent())
    once, twice = (load_file(place.out / ADAPTIVE_FILE) for place in (whole, parts))
    assert once["last.weight"].any()
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threshold": 1.0}, "cannot start at 1"),
        ({"threshold_lr": 11.0}, "--threshold-lr"),
        ({"mac_penalty": 0.0, "budget_weight": 0.0}, "everything may be kept"),
        ({"train": "thresholds"}, "thresholds"),
    ],
)
def test_bad_choices(task: Task, models: dict[str, str], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        JointLearner(task, settings(models, **changes)).new_model()
