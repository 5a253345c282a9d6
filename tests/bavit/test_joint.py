"""Joint training: its losses, what gradients reach, that a run learns, resumes and leaves a pruned detector."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from watched import Notes, StopAt, named

import tokenlabels
from bavit import BAViT
from bavit.augment import Augmentation, Window, crop_labels
from bavit.detect.accounting import detector_macs
from bavit.detect.budget_loss import mac_share, share_loss
from bavit.detect.config import YolosConfig
from bavit.detect.distil import distillation_loss
from bavit.detect.finetune import DetectionLearner, finetune
from bavit.detect.finetune_settings import FinetuneSettings
from bavit.detect.joint import JointLearner, joint, soft_keep, straight_through
from bavit.detect.joint_settings import JointSettings
from bavit.detect.pruned import PrunedDetector
from bavit.detect.samples import DetectionImages, View, collate_detections
from bavit.detect.yolos import Yolos
from bavit.rows import Rows, read_rows
from bavit.training.checkpoint import load_checkpoint
from bavit.training.interruption import Interrupted
from bavit.training.learner import Task
from bavit.training.run_folder import check_claim, claim
from tokenlabels.errors import OutputError, ParameterError
from tokenlabels.progress import Silent

CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=6, labels=("a",), shortest_edge=64,
    longest_edge=64, patch=16,
)  # fmt: skip
TINY: dict[str, Any] = {
    "batch_size": 4, "epochs": 1, "precision": "32", "lr": 1e-3, "crop": 1.0, "colour": 0.0, "ema": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows]:
    """13 pictures to train on and 3 to validate on, labels on 8 x 8 patches."""
    out = tmp_path_factory.mktemp("labels") / "out"
    build = tokenlabels.build("coco", root=sample_root, out=out, image_size=64, patch=8, embed_images=True)
    return read_rows(build, splits=["train"], scores=False), read_rows(build, splits=["val"], scores=False)


@pytest.fixture(scope="module")
def models(rows: tuple[Rows, Rows], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained BAViT and detector, the BAViT's patches finer."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    BAViT(depth=1, width=64, patch=8, image_size=64, calibration={"of": "other weights"}).save_pretrained(folder / "b")
    config = replace(CONFIG, labels=tuple(entry.name for entry in rows[0].categories))
    Yolos(config).save_pretrained(folder / "d")
    return {"bavit": str(folder / "b"), "detector": str(folder / "d")}


@pytest.fixture
def task(rows: tuple[Rows, Rows], tmp_path: Path, undrawn: None) -> Task:
    return Task(*rows, None, None, tmp_path / "run", workers=0, device="cpu")


def settings(models: dict[str, str], **changes: Any) -> JointSettings:
    return JointSettings.make(**TINY | models | changes)


def learner_of(task: Task, models: dict[str, str], **changes: Any) -> JointLearner:
    return JointLearner(task, settings(models, **changes))


def test_decisions_are_hard_and_their_gradients_soft() -> None:
    logits = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    background = logits.detach().softmax(-1)[..., 0]
    soft = soft_keep(logits, 0.3, 0.5)
    assert torch.equal(soft.detach() >= 0.5, background <= 0.3)
    odds = (0.3 / 0.7) / (background / (1 - background))
    assert torch.allclose(soft.detach().double(), odds**2 / (1 + odds**2), atol=1e-6)
    keep = torch.rand(2, 2, 3) < 0.5
    policy = straight_through(list(keep), list(soft.reshape(2, 2, 3)))
    assert all(torch.equal(each.detach().bool(), mask) for each, mask in zip(policy, keep, strict=True))
    assert all(set(each.flatten().tolist()) <= {0.0, 1.0} for each in policy)
    weights = torch.randn(2, 2, 3)
    wanted = torch.autograd.grad((soft * weights.flatten(1)).sum(), logits, retain_graph=True)[0]
    found = torch.autograd.grad(sum((each * w).sum() for each, w in zip(policy, weights, strict=True)), logits)[0]
    assert torch.allclose(found, wanted)
    assert soft_keep(logits, 0.0, 1.0).isfinite().all()


@pytest.mark.parametrize("prune_after", [0, 1])
def test_the_cost_of_keeping_is_that_of_the_accounting(prune_after: int) -> None:
    generator = torch.Generator().manual_seed(0)
    policy = [(torch.rand(shape, generator=generator) < 0.4).double().requires_grad_() for shape in ((4, 5), (3, 3))]
    shares = mac_share(policy, CONFIG, prune_after)
    for share, each in zip(shares.tolist(), policy, strict=True):
        kept, patches = int(each.detach().sum()), each.numel()
        macs = [detector_macs(CONFIG, count, patches, prune_after=prune_after) for count in (kept, patches)]
        assert share == pytest.approx(macs[0] / macs[1], rel=1e-12)
    loss = share_loss(policy, 0.75)
    assert loss.item() == pytest.approx((sum(float(each.detach().sum()) for each in policy) / 29 - 0.75) ** 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all((each.grad < 0).all() for each in policy if each.grad is not None)


def test_what_is_learned_from_a_teacher() -> None:
    """Nothing from itself; by hand with one token of two classes; boxes of what is no object count for little."""
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 5, 4), torch.rand(2, 5, 4) * 0.3 + 0.3
    assert distillation_loss((logits, boxes), (logits, boxes), 2.0).item() == pytest.approx(0, abs=1e-5)
    one, other = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    box, moved = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.tensor([[[0.6, 0.5, 0.2, 0.2]]])
    p, q = torch.softmax(other / 3, -1), torch.softmax(one / 3, -1)
    wanted = 9 * float((p * (p / q).log()).sum()) + 5 * 0.1 + 2 * (1 - 1 / 3)
    assert distillation_loss((one, box), (other, moved), 3.0).item() == pytest.approx(wanted, rel=1e-4)
    sure = torch.tensor([[[20.0, 0.0], [0.0, 20.0]]])
    far = torch.cat([box, box + 0.2], 1)
    assert distillation_loss((sure, far), (sure, torch.cat([box, box], 1))).item() < 1e-4


def test_labels_follow_their_picture(rows: tuple[Rows, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pictures have those of the build, mirrored ones mirrored, crops those of a build of the crop."""
    data = rows[0]
    row = int(np.argmax(data.labels.sum((1, 2))))
    view = View(16, (64,), 1.5, labels=True, augmentation=Augmentation(True, 0.2, 0.0), small=data.grid)
    part = Window(5, 3, int(data.widths[row]) // 2, int(data.heights[row]) // 2)
    monkeypatch.setattr("bavit.detect.samples.random_window", lambda *_: part)
    images = DetectionImages(data, None, np.arange(len(data.categories)), view, 0)
    batch = collate_detections([images[epoch, row] for epoch in range(24)])
    assert batch.labels is not None
    whole, cropped = data.labels[row], crop_labels(data.records(row), part, data.grid, data.header.spec)[0]
    wanted = {each.tobytes() for labels in (whole, cropped) for each in (labels, labels[:, ::-1])}
    assert len(wanted) == 4
    assert {each.numpy().tobytes() for each in batch.labels} == wanted


def test_gradients_reach_what_is_trained_and_nothing_else(task: Task, models: dict[str, str]) -> None:
    """With no cross entropy the BAViT is told by the detector and the budget alone."""
    for parts in (("bavit", "detector"), ("bavit",), ("detector",)):
        learner = learner_of(task, models, train=",".join(parts), ce=0.0)
        model = learner.new_model()
        learner.initialize(model)
        data, _ = learner.data()
        for chosen in ([0, 1, 2], []):
            model.zero_grad()
            batch = collate_detections([data[0, row] for row in chosen] or [replace(data[0, 0], fault="broken")])
            total, weight, counts = learner.loss(learner.answering(model), batch, 0.0)
            assert len(counts) == learner.counts
            assert weight == len(chosen)
            total.backward()  # type: ignore[no-untyped-call]
            for name, value in model.named_parameters():
                part = "bavit" if name.startswith("bavit.") else "detector"
                assert (value.grad is not None) == (part in parts), name
                if value.grad is not None and "norm" not in name and "bias" not in name:
                    assert bool(value.grad.any()) == bool(chosen), name


def test_masks_while_training_are_those_of_the_saved_detector(task: Task, models: dict[str, str]) -> None:
    learner = learner_of(task, models, threshold=0.47)
    model = learner.new_model()
    learner.initialize(model)
    _, data = learner.data()
    batch = collate_detections([data[0, row] for row in range(3)])
    _, keep, policy, answers = learner.answering(model)(
        batch.small, learner.pixels(batch), batch.grids, batch.sizes
    )  # fmt: skip
    found = model([data.reader.open(row) for row in range(3)])
    assert all(torch.equal(mask, each.keep) for mask, each in zip(keep, found, strict=True))
    assert 0 < sum(int(mask.sum()) for mask in keep) < sum(mask.numel() for mask in keep)
    assert all(torch.equal(mask, each.detach().bool()) for mask, each in zip(keep, policy, strict=True))
    output = model.yolos(learner.pixels(batch), keep)
    assert torch.allclose(answers[-1][0], output.logits, atol=1e-5)


def test_a_run_learns_and_leaves_a_pruned_detector(task: Task, models: dict[str, str]) -> None:
    few = task.train.keep(np.arange(len(task.train)) < 4)
    mine = replace(task, train=few, val=few)
    chosen = settings(models, epochs=16, lr=3e-3, flip=False, distil=0.5, val_every=16)
    told = Notes()
    found = joint(mine, chosen, {}, told)
    history = load_checkpoint(task.out).history
    assert found["train_loss"] < 0.9 * history[0]["train_loss"]
    assert found["train_ce"] < 0.8 * history[0]["train_ce"]
    assert found["val_accuracy"] > history[0]["train_accuracy"]
    assert found["train_distil"] > 0
    assert found["val_macs_share"] < 1
    assert {path.name for path in task.out.iterdir()} == {
        "pruned.json", "bavit", "detector", "run.json", "metrics.jsonl", "checkpoint.pt"}  # fmt: skip
    detector = PrunedDetector.from_pretrained(task.out)
    assert detector.bavit is not None
    assert detector.bavit.calibration is None
    first, last = (load_file(Path(place) / "model.safetensors") for place in (models["bavit"], task.out / "bavit"))
    assert not torch.equal(first["vit.head.weight"], last["vit.head.weight"])
    learner = DetectionLearner(
        replace(mine, out=task.out / ".." / "next"),
        FinetuneSettings.make(**TINY, bavit=str(task.out / "bavit"), detector=str(task.out / "detector")),
    )
    _, data = learner.data()
    batch = collate_detections([data[0, row] for row in range(4)])
    masks = learner.masks(batch)
    assert masks is not None
    kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert 1 - kept == pytest.approx(found["val_sparsity"])
    assert any("trained: bavit, detector" in text for text in told.texts)


def test_parts_that_are_not_trained_stay(task: Task, models: dict[str, str]) -> None:
    for part, other, kept in (("bavit", "detector", "d"), ("detector", "bavit", "b")):
        joint(replace(task, overwrite=True), settings(models, train=part), {}, Silent())
        first, last = (
            load_file(place / "model.safetensors") for place in (Path(models["bavit"]).parent / kept, task.out / other)
        )
        assert all(torch.equal(value, last[name]) for name, value in first.items())


def test_training_does_not_replace_what_it_starts_from(task: Task, models: dict[str, str], tmp_path: Path) -> None:
    """Neither a folder, nor a part of it, by whatever name; beside it there is no danger."""
    folder = Path(models["bavit"]).parent
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, tmp_path / "link", folder / "d" / ".." / "b", Path(models["detector"])):
        mine = replace(task, out=out, overwrite=True)
        with pytest.raises(ParameterError, match="training starts from it"):
            JointLearner(mine, settings(models))
        with pytest.raises(ParameterError, match="training starts from it"):
            DetectionLearner(mine, FinetuneSettings.make(**TINY, bavit=models["bavit"], detector=models["detector"]))
    teacher = FinetuneSettings.make(**TINY, detector=models["detector"], teacher=models["detector"])
    with pytest.raises(ParameterError, match="training starts from it"):
        DetectionLearner(replace(task, out=folder / "d"), teacher)
    learner_of(replace(task, out=folder / "e"), models)


def test_a_new_run_leaves_nothing_of_a_pruned_detector_before_it(tmp_path: Path) -> None:
    """Nor does it take folders of those names away that are not of the run."""
    files = [tmp_path / part / "model.safetensors" for part in ("bavit", "detector")]
    for path in (*files, tmp_path / "bavit" / "notes.txt", tmp_path / "run.json"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    claim(tmp_path)
    assert all(path.exists() for path in files)
    for name in ("run.json", "pruned.json"):
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match="holds a run"):
        check_claim(tmp_path, overwrite=False)
    check_claim(tmp_path, overwrite=True)
    claim(tmp_path)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path("bavit/notes.txt")]


def test_stopped_and_resumed_is_as_never_stopped(task: Task, tmp_path: Path, models: dict[str, str]) -> None:
    chosen = settings(models, epochs=2, ema=0.9, mac_penalty=0.2, distil=1.0, threshold=0.5)
    joint(task, chosen, {}, Silent())
    other = replace(task, out=tmp_path / "other")
    with pytest.raises(Interrupted, match="epoch 2"):
        joint(other, chosen, {}, StopAt(4, signal.SIGTERM))
    joint(replace(other, resume=True), chosen, {}, Silent())
    for part in ("bavit", "detector"):
        one, two = (load_file(folder / part / "model.safetensors") for folder in (task.out, other.out))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    with pytest.raises(OutputError, match=r"ce was 1\.0, now 2\.0"):
        joint(replace(other, resume=True), replace(chosen, ce=2.0), {}, Silent())


def test_a_detector_alone_learns_from_a_teacher(task: Task, models: dict[str, str], tmp_path: Path) -> None:
    """At once it is its teacher, so that there is nothing to learn but at lower sight."""
    chosen: dict[str, Any] = TINY | models | {"teacher": models["detector"]}
    seen = finetune(task, FinetuneSettings.make(**chosen, threshold=0.0, distil=3.0), {}, Silent())
    plain = {name: value for name, value in chosen.items() if name != "bavit"}
    whole = finetune(
        replace(task, out=tmp_path / "whole"), FinetuneSettings.make(**plain | {"lr": 0.0}), {}, Silent()
    )  # fmt: skip
    assert seen["train_distil"] > 100 * whole["train_distil"]
    other = Yolos(replace(CONFIG, labels=("x", "y")))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ParameterError, match="has other classes"):
        DetectionLearner(task, FinetuneSettings.make(**chosen | {"teacher": str(tmp_path / "other")}))
    labels = tuple(entry.name for entry in task.train.categories)
    named_so = replace(CONFIG, labels=labels)
    for config, message in (
        (replace(named_so, detection_tokens=7), "7 detection tokens"),
        (replace(named_so, patch=32), "do not divide"),
    ):
        Yolos(config).save_pretrained(tmp_path / "other")
        with pytest.raises(ParameterError, match=message):
            DetectionLearner(task, FinetuneSettings.make(**chosen | {"teacher": str(tmp_path / "other")}))


def test_from_scratch_with_guides(task: Task, models: dict[str, str]) -> None:
    shape = {"dim": 32, "depth": 2, "heads": 2, "detection_tokens": 6, "shortest_edge": 64}
    found = joint(task, settings(models, **shape | {"detector": "none"}), {}, Silent())
    assert np.isfinite(found["train_loss"])
    assert PrunedDetector.from_pretrained(task.out).yolos.config.dim == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "bavit,neck"}, "unknown --train 'neck'"),
        ({"train": " ,"}, "names nothing to train"),
        ({"bavit": None}, "name one with --bavit"),
        ({"threshold": 1.5}, "threshold 1.5 is out of range"),
        ({"keep_share": 1.5}, "--keep-share 1.5 is out of range"),
        ({"keep_share": 0.5, "budget_weight": 0.0}, "everything may be kept"),
        ({"train": "detector", "keep_share": 0.5}, "does not learn that"),
        ({"train": "detector", "mac_penalty": 0.5}, "does not learn that"),
        ({"sparsity": 0.5}, "--sparsity fixes how many"),
        ({"train": "bavit", "detector": "none"}, "must be trained"),
        ({"softness": 0.0}, "--softness 0 is out of range"),
        ({"ce": -1.0}, "--ce -1 is out of range"),
        ({"distil_temperature": 0.0}, "--distil-temperature"),
        ({"detector": "none", "distil": 1.0}, "name one with --teacher"),
        ({"class_weights": "some"}, "unknown --class-weights"),
    ],
)
def test_settings_out_of_range(models: dict[str, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        settings(models, **options)


def test_data_that_does_not_fit(task: Task, models: dict[str, str], tmp_path: Path) -> None:
    BAViT(depth=1, width=64, patch=16, image_size=64).save_pretrained(tmp_path / "coarse")
    with pytest.raises(ParameterError, match="no labels on the grid 64x64-p16"):
        learner_of(task, models | {"bavit": str(tmp_path / "coarse")})
    renamed = replace(task, train=named(task.train, "other"), val=named(task.val, "other"))
    with pytest.raises(ParameterError, match="has other classes than"):
        learner_of(renamed, models, train="bavit")
    nothing = replace(task.train, labels=np.full_like(task.train.labels, 255))
    with pytest.raises(ParameterError, match="every patch to train on is ignored"):
        learner_of(replace(task, train=nothing), models)
