"""Training: it learns, it can be stopped anywhere and resumed to the same bits, and it says what goes wrong."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from watched import Notes, StopAt

import tokenlabels
from bavit import BAViT
from bavit.background import train as package
from bavit.background.label_counts import balanced_weights
from bavit.background.loss import loss_sums
from bavit.background.settings import Settings
from bavit.background.train import train
from bavit.pictures import PictureError
from bavit.rows import Rows, read_rows
from bavit.training.checkpoint import load_checkpoint
from bavit.training.interruption import Interrupted
from bavit.training.learner import Task
from bavit.training.run import DivergedError, TrainingRun
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.progress import Silent
from tokenlabels.reader import Build

TINY: dict[str, Any] = {"init": "none", "depth": 1, "width": 64, "batch_size": 4, "epochs": 2, "precision": "32"}


@pytest.fixture(scope="module")
def build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """13 pictures to train on, 3 to validate on, 6 x 6 patches, stored in that size."""
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_size=96)


def task_of(build: Build, out: Path) -> Task:
    train_rows, val_rows = (read_rows(build, splits=[split], scores=True) for split in ("train", "val"))
    return Task(train_rows, val_rows, None, None, out, workers=0, device="cpu")


@pytest.fixture(scope="module")
def whole(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, with all that it leaves; not to be written to."""
    task = task_of(build, tmp_path_factory.mktemp("whole") / "run")
    train(task, Settings.make(**TINY), TINY, Silent())
    return task.out


@pytest.fixture
def task(build: Build, tmp_path: Path, undrawn: None) -> Task:
    return task_of(build, tmp_path / "run")


def changed(task: Task, **changes: Any) -> Task:
    return Task(**({name: getattr(task, name) for name in Task.__slots__} | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: Any, other: Any) -> bool:
    """Nested dictionaries and lists of tensors and numbers, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def same(one: Path, other: Path) -> bool:
    """Weights, optimizer and figures of two runs, bit by bit; times aside."""
    first, second = load_checkpoint(one), load_checkpoint(other)
    timed = ("seconds", "images_per_second")
    figures = [[{k: v for k, v in record.items() if k not in timed} for record in state.history]
               for state in (first, second)]  # fmt: skip
    return (
        weights(one).keys() == weights(other).keys()
        and all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
        and all(torch.equal(value, second.model[name]) for name, value in first.model.items())
        and equal(first.optimizer, second.optimizer)
        and figures[0] == figures[1]
        and torch.equal(first.sums, second.sums)
    )


def test_a_run_leaves_a_model_figures_and_curves(task: Task, whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "run.json", "metrics.jsonl", "curves.png", "checkpoint.pt"}  # fmt: skip
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    found = train(task, Settings.make(**TINY), TINY, Silent())
    assert json.loads((task.out / "metrics.jsonl").read_text().splitlines()[-1]) == found
    model = BAViT.from_pretrained(whole)
    assert (model.depth, model.width, model.grid) == (1, 64, task.train.grid)
    about = json.loads((whole / "run.json").read_text())
    assert about["given"] == TINY
    assert about["settings"]["optimization"]["optimizer"] == "muon"


@pytest.mark.parametrize("options", [{}, {"soft_targets": False, "class_weights": "balanced"}])
def test_it_learns(build: Build, task: Task, options: dict[str, Any]) -> None:
    """On pictures it has seen it beats the best answer by position."""
    task = changed(task, val=task.train)
    prior = tokenlabels.statistics(build, split="train").baselines.position_prior
    chosen = TINY | {"epochs": 30, "ema": 0.9, "crop": 1.0, "colour": 0.0} | options
    found = train(task, Settings.make(**chosen), chosen, Silent())
    assert found["val_accuracy"] > prior + 0.05
    assert found["val_accuracy"] == pytest.approx(found["val_balanced_accuracy"], abs=0.1)


def test_the_recipe_of_the_paper_steps_down_its_rate(task: Task) -> None:
    train(task, Settings.make(**TINY | {"recipe": "paper", "epochs": 6}), TINY, Silent())
    history = load_checkpoint(task.out).history
    assert [record["lr"] for record in history] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_stopped_and_resumed_is_as_never_stopped(task: Task, whole: Path, step: int, number: int) -> None:
    """13 pictures in batches of 4: three steps an epoch; stopped in the first epoch, at its end, and in the second."""
    settings = Settings.make(**TINY)
    with pytest.raises(Interrupted, match="epoch") as caught:
        train(task, settings, TINY, StopAt(step, number))
    assert caught.value.number == number
    train(changed(task, resume=True), settings, TINY, Silent())
    assert same(task.out, whole)


def test_handlers_of_signals_are_put_back(task: Task) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train(task, Settings.make(**TINY), TINY, StopAt(1, signal.SIGINT))
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_workers_and_runs_do_not_change_a_bit(task: Task, tmp_path: Path) -> None:
    settings = Settings.make(**TINY | {"epochs": 1})
    train(task, settings, {}, Silent())
    train(changed(task, out=tmp_path / "two", workers=2), settings, {}, Silent())
    assert same(task.out, tmp_path / "two")
    train(changed(task, out=tmp_path / "seed"), Settings.make(**TINY | {"epochs": 1, "seed": 1}), {}, Silent())
    assert not same(task.out, tmp_path / "seed")


def test_the_average_of_weights_is_stored(task: Task, tmp_path: Path) -> None:
    train(task, Settings.make(**TINY | {"ema": 0.99}), {}, Silent())
    state = load_checkpoint(task.out)
    assert state.average is not None
    assert all(torch.equal(value, state.average[name]) for name, value in weights(task.out).items())
    assert not torch.equal(state.model["vit.head.weight"], state.average["vit.head.weight"])
    plain = changed(task, out=tmp_path / "plain")
    train(plain, Settings.make(**TINY | {"ema": 0.0}), {}, Silent())
    state = load_checkpoint(plain.out)
    assert state.average is None
    assert all(torch.equal(value, state.model[name]) for name, value in weights(plain.out).items())


def diverging_after(steps: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The real loss, until it is none."""
    real, left = loss_sums, [steps]

    def sums(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, weight = real(*given)
        left[0] -= total.requires_grad
        return (total * float("nan") if left[0] < 0 else total), weight

    return sums


def test_a_loss_that_is_not_finite_ends_it(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second epoch: the checkpoint of the first stays, and can be gone on from."""
    settings = Settings.make(**TINY)
    with monkeypatch.context() as patch:
        patch.setattr(package, "loss_sums", diverging_after(4))
        with pytest.raises(DivergedError, match=r"the loss is nan at step 4 \(epoch 2"):
            train(task, settings, TINY, Silent())
    state = load_checkpoint(task.out)
    assert (state.epoch, state.batch) == (1, 0)
    assert all(value.isfinite().all() for value in weights(task.out).values())
    train(changed(task, resume=True), settings, TINY, Silent())
    assert len(load_checkpoint(task.out).history) == 2


def test_gradients_that_are_not_finite_in_the_last_step(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite, the weights are not: neither model nor checkpoint is overwritten."""
    real = TrainingRun.step

    def step(run: TrainingRun, batch: Any) -> None:
        real(run, batch)
        if run.state.epoch == 1 and run.state.batch == run.order.batches:
            run.plain.vit.get_parameter("head.weight").data[0, 0] = float("inf")

    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(DivergedError, match=r"weights are not finite at step 5 \(epoch 2"):
        train(task, Settings.make(**TINY), TINY, Silent())
    assert load_checkpoint(task.out).epoch == 1
    assert all(value.isfinite().all() for value in weights(task.out).values())


def test_a_loss_that_is_not_finite_at_the_very_end(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "loss_sums", diverging_after(5))
    with pytest.raises(DivergedError, match="step 5"):
        train(task, Settings.make(**TINY), TINY, Silent())
    assert load_checkpoint(task.out).epoch == 1


def without_first_picture(task: Task, sample_root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    shutil.copytree(sample_root, folder)
    (folder / "train" / task.train.file_names[0]).write_bytes(b"no picture")
    return folder


def test_a_damaged_picture_is_named_or_left_out(task: Task, sample_root: Path, tmp_path: Path) -> None:
    folder = without_first_picture(task, sample_root, tmp_path)
    outside = changed(task, images=folder, val_images=folder)
    with pytest.raises(PictureError, match=f"{task.train.file_names[0]}.*--on-error skip"):
        train(outside, Settings.make(**TINY | {"epochs": 5}), {}, Silent())
    found = train(
        changed(outside, out=tmp_path / "skip"), Settings.make(**TINY | {"epochs": 5, "on_error": "skip"}), {}, Silent()
    )
    assert 3 <= found["skipped"] <= 5


def test_no_usable_picture_at_all_is_no_training(task: Task, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    outside = changed(task, images=tmp_path / "nothing", val_images=tmp_path / "nothing")
    for init in ("none", str(whole)):
        settings = Settings.make(**TINY | {"on_error": "skip", "init": init})
        with pytest.raises(PictureError, match=r"could be (used|read)"):
            train(outside, settings, {}, Silent())
    with pytest.raises(PictureError, match="no picture to validate on"):
        train(changed(outside, images=None), settings, {}, Silent())


def test_doubtful_validation_is_told(task: Task, sample_root: Path, tmp_path: Path) -> None:
    other = tokenlabels.build("coco", root=sample_root, out=tmp_path / "o", image_size=96, embed_images=True, tau=0.2)
    told = Notes()
    rows = read_rows(other, splits=["train"], scores=False)
    train(changed(task, val=rows), Settings.make(**TINY | {"epochs": 1}), {}, told)
    assert any("13 of 13 images to validate on are trained on" in text for text in told.texts)
    assert any("different rules: overlap, tau 0.5 to train on, overlap, tau 0.2" in text for text in told.texts)
    quiet = Notes()
    train(changed(task, out=tmp_path / "p"), Settings.make(**TINY | {"epochs": 1}), {}, quiet)
    assert len(quiet.texts) == 2  # what the model is, and the epoch


def test_training_does_not_delete_what_it_starts_from(task: Task) -> None:
    task.out.mkdir()
    (task.out / "model.safetensors").touch()
    for init in (task.out, task.out / "model.safetensors"):
        with pytest.raises(ParameterError, match="training starts from it"):
            train(changed(task, overwrite=True), Settings.make(**TINY | {"init": str(init)}), {}, Silent())
    assert (task.out / "model.safetensors").exists()


def test_tensorboard_is_asked_for_before_anything_is_deleted(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Settings.make(**TINY | {"epochs": 1})
    train(task, quick, {}, Silent())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ParameterError, match="pip install tensorboard"):
        train(changed(task, overwrite=True, tensorboard=True), quick, {}, Silent())
    assert (task.out / "model.safetensors").exists()


def test_tensorboard_is_told_every_figure(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in, for the package is no dependency."""
    told: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, step))

        def flush(self) -> None:
            told.append(("flush", 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    found = train(changed(task, tensorboard=True), Settings.make(**TINY), {}, Silent())
    assert {(name, 6) for name in found} <= set(told)
    assert told[-1] == ("flush", 0)


def test_a_run_killed_before_its_first_epoch_may_be_begun_again(task: Task) -> None:
    task.out.mkdir()
    (task.out / "run.json").write_text("{}")
    train(task, Settings.make(**TINY | {"epochs": 1}), {}, Silent())


@pytest.mark.slow
def test_compiled_it_learns_the_same(task: Task, tmp_path: Path) -> None:
    """One step an epoch, for every size of a batch is compiled anew; the second loss tells what the first step did."""
    quick = TINY | {"batch_size": 13}
    plain = train(task, Settings.make(**quick), {}, Silent())
    compiled = train(changed(task, out=tmp_path / "c"), Settings.make(**quick | {"compile": True}), {}, Silent())
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-3)
    assert BAViT.from_pretrained(tmp_path / "c").config == BAViT.from_pretrained(task.out).config


def test_class_weights_are_those_of_the_statistics(build: Build, task: Task) -> None:
    wanted = tokenlabels.statistics(build, split="train").class_weights
    assert balanced_weights(task.train) == pytest.approx((wanted.background, wanted.foreground))


def test_other_settings_or_data_do_not_resume(task: Task, sample_root: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(task, Settings.make(**TINY), TINY, StopAt(2, signal.SIGINT))
    again = changed(task, resume=True)
    with pytest.raises(OutputError, match="epochs was 2, now 3"):
        train(again, Settings.make(**TINY | {"epochs": 3}), TINY, Silent())
    relabelled = tokenlabels.build(
        "coco", root=sample_root, out=tmp_path / "o", image_size=96, embed_images=True, tau=0.2
    )
    with pytest.raises(OutputError, match="images or labels differ"):
        train(changed(again, train=read_rows(relabelled, splits=["train"], scores=True)), Settings.make(**TINY), TINY,
              Silent())  # fmt: skip


def test_a_finished_run_has_nothing_to_resume(task: Task, whole: Path) -> None:
    with pytest.raises(ParameterError, match="nothing to resume"):
        train(changed(task, out=whole, resume=True), Settings.make(**TINY), TINY, Silent())


@pytest.mark.parametrize("keep", [0, 1000, -10])
def test_a_truncated_checkpoint(task: Task, keep: int) -> None:
    with pytest.raises(Interrupted):
        train(task, Settings.make(**TINY), TINY, StopAt(2, signal.SIGINT))
    path = task.out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TokenLabelsError, match=r"checkpoint.pt: is damaged"):
        train(changed(task, resume=True), Settings.make(**TINY), TINY, Silent())


def test_a_checkpoint_of_another_model(task: Task) -> None:
    with pytest.raises(Interrupted):
        train(task, Settings.make(**TINY), TINY, StopAt(2, signal.SIGINT))
    path = task.out / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["vit.head.weight"] = torch.zeros(3, 64)
    torch.save(content, path)
    with pytest.raises(TokenLabelsError, match="another shape"):
        train(changed(task, resume=True), Settings.make(**TINY), TINY, Silent())


def test_folders_that_hold_something(task: Task) -> None:
    task.out.mkdir()
    (task.out / "thesis.txt").touch()
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        train(changed(task, overwrite=True), Settings.make(**TINY), TINY, Silent())
    assert (task.out / "thesis.txt").exists()
    (task.out / "thesis.txt").unlink()
    quick = Settings.make(**TINY | {"epochs": 1})
    train(task, quick, {}, Silent())
    with pytest.raises(OutputError, match="--resume"):
        train(task, quick, {}, Silent())
    train(changed(task, overwrite=True), quick, {}, Silent())
    task.out.with_name("file").touch()
    with pytest.raises(OutputError, match="is a file"):
        train(changed(task, out=task.out.with_name("file")), quick, {}, Silent())


def test_nothing_to_resume(task: Task) -> None:
    with pytest.raises(TokenLabelsError, match="nothing to resume"):
        train(changed(task, resume=True), Settings.make(**TINY), TINY, Silent())


def empty(rows: Rows) -> Rows:
    import numpy as np

    return rows.keep(np.zeros(len(rows), np.bool_))


def test_no_rows(task: Task) -> None:
    with pytest.raises(ParameterError, match="no rows to validate on"):
        train(changed(task, val=empty(task.val)), Settings.make(**TINY), TINY, Silent())
    with pytest.raises(ParameterError, match="no rows to train on"):
        train(changed(task, train=empty(task.train)), Settings.make(**TINY), TINY, Silent())
    assert not task.out.exists()


def test_mixed_grids(task: Task, sample_root: Path, tmp_path: Path) -> None:
    other = tokenlabels.build("coco", root=sample_root, out=tmp_path / "o", image_size=64, embed_images=True)
    with pytest.raises(ParameterError, match=r"96x96-p16.*64x64-p16"):
        train(changed(task, val=read_rows(other, scores=False)), Settings.make(**TINY), TINY, Silent())


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"ema": 1.0},
        {"recipe": "magic"},
        {"precision": "8"},
        {"class_weights": "both"},
        {"depth": 0},
        {"crop": 0.0},
        {"width": 0},
        {"width": -64},
        {"recipe": "paper", "weight_decay": 0.1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Settings.make(**TINY | options)


def test_fp16_needs_cuda(task: Task) -> None:
    with pytest.raises(ParameterError, match="needs a CUDA device"):
        train(task, Settings.make(**TINY | {"precision": "fp16"}), TINY, Silent())


def test_bf16_trains(task: Task) -> None:
    """And Lightning says nothing of it."""
    heard: list[logging.LogRecord] = []
    log, ear = logging.getLogger("lightning_fabric"), logging.Handler()
    ear.emit = heard.append  # type: ignore[method-assign, assignment]
    log.addHandler(ear)
    found = train(task, Settings.make(**TINY | {"precision": "bf16"}), TINY, Silent())
    log.removeHandler(ear)
    assert not heard
    assert 0 < found["train_loss"] < 2
    assert all(value.dtype == torch.float32 for value in weights(task.out).values())


def test_resuming_a_checkpoint_as_initialisation(task: Task, whole: Path) -> None:
    """`--init RUN` starts another run from the weights of the first."""
    options = TINY | {"init": str(whole), "lr": 0.0, "epochs": 1, "ema": 0.0}
    train(task, Settings.make(**options), options, Silent())
    for name, value in weights(task.out).items():
        assert torch.equal(value, weights(whole)[name]), name
