"""Training of a detector: its loss, what it sees, and that a run can be stopped anywhere and resumed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from watched import Notes, StopAt, named

import tokenlabels
from bavit import BAViT
from bavit.augment import Augmentation, Window
from bavit.data import Key
from bavit.detect.answering import Answering
from bavit.detect.config import YolosConfig
from bavit.detect.finetune import DetectionLearner, finetune
from bavit.detect.finetune_settings import FinetuneSettings
from bavit.detect.loss import set_loss
from bavit.detect.pruned import PrunedDetector
from bavit.detect.samples import (
    LEAST_VISIBLE,
    DetectionBatch,
    DetectionImages,
    View,
    collate_detections,
    objects_in,
)
from bavit.detect.start import start_of
from bavit.detect.yolos import Yolos
from bavit.pictures import PictureError
from bavit.rows import Rows, read_rows
from bavit.training.checkpoint import load_checkpoint
from bavit.training.interruption import Interrupted
from bavit.training.learner import Task
from bavit.training.run import DivergedError
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.progress import Silent
from tokenlabels.reader import Build

SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "detection_tokens": 10}
TINY: dict[str, Any] = SHAPE | {"shortest_edge": 64, "batch_size": 4, "epochs": 2, "precision": "32"}
CONFIG = YolosConfig(
    dim=32, depth=3, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, labels=("a", "b", "c"),
    shortest_edge=64, longest_edge=96,
)  # fmt: skip


@pytest.fixture(scope="module")
def build(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """13 pictures to train on, 3 to validate on, 6 x 6 patches."""
    out = tmp_path_factory.mktemp("labels") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, image_size=96, embed_images=True)


@pytest.fixture(scope="module")
def rows(build: Build) -> Rows:
    return read_rows(build, splits=["train"], scores=False)


@pytest.fixture(scope="module")
def bavit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BAViT, of another patch than the detector, that removes about half of the patches."""
    torch.manual_seed(0)
    model = BAViT(depth=1, width=64, patch=8, image_size=(64, 64), threshold=0.5)
    folder = tmp_path_factory.mktemp("bavit")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def drawn(build: Build, rows: Rows, tmp_path: Path) -> Task:
    """Training that also draws its curves."""
    return Task(
        rows, read_rows(build, splits=["val"], scores=False), None, None, tmp_path / "run", workers=0, device="cpu"
    )


@pytest.fixture
def task(drawn: Task, undrawn: None) -> Task:
    return drawn


def answers(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(3, 7, 5, generator=generator), torch.rand(3, 7, 4, generator=generator) * 0.5 + 0.1)
        for _ in range(count)
    ]


BOXES = [torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.2, 0.3, 0.1, 0.1]]), torch.zeros(0, 4), torch.rand(9, 4) * 0.4 + 0.1]
CLASSES = [torch.tensor([0, 3]), torch.zeros(0, dtype=torch.int64), torch.arange(9) % 4]


@pytest.mark.parametrize("count", [1, 3])
def test_the_loss_is_that_of_transformers(count: int) -> None:
    """With an image without objects, and one with more of them than detection tokens."""
    given = answers(count)
    config = SimpleNamespace(
        class_cost=1, bbox_cost=5, giou_cost=2, num_labels=4, eos_coefficient=0.1, auxiliary_loss=count > 1,
        bbox_loss_coefficient=5, giou_loss_coefficient=2, decoder_layers=count,
    )  # fmt: skip
    labels = [{"class_labels": each, "boxes": boxes} for each, boxes in zip(CLASSES, BOXES, strict=True)]
    wanted, parts, _ = ForObjectDetectionLoss(  # type: ignore[no-untyped-call]
        given[-1][0], labels, torch.device("cpu"), given[-1][1], config,
        [logits for logits, _ in given], [boxes for _, boxes in given],
    )  # fmt: skip
    found = set_loss(given, BOXES, CLASSES)
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for value, name in ((found.classes, "loss_ce"), (found.l1, "loss_bbox"), (found.giou, "loss_giou")):
        assert value.item() == pytest.approx(parts[name].item(), rel=1e-6)


def test_the_loss_of_images_without_objects_is_finite_and_of_broken_answers_not() -> None:
    nothing = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3
    assert set_loss(answers(1), *nothing).total.isfinite()
    ((logits, boxes),) = answers(1)
    boxes[0, 0, 0] = float("nan")
    assert set_loss([(logits, boxes)], BOXES, CLASSES).total.isnan()


def test_gradients_reach_the_positions_of_kept_patches_alone() -> None:
    torch.manual_seed(0)
    model = Yolos(CONFIG)
    keep = torch.zeros(2, 4, 6, dtype=torch.bool)
    keep[0, 1, 2:4] = keep[1, 3, 5] = True
    found = Answering(model, 1, 0, guided=False)(torch.randn(2, 3, 64, 96), list(keep))
    assert len(found) == 2
    set_loss(found, BOXES[:2], [torch.tensor([0, 2]), CLASSES[1]]).total.backward()  # type: ignore[no-untyped-call]
    gradient = model.backbone.pos_embed.grad
    assert gradient is not None
    reached = (gradient[0, 1:-6] != 0).any(1).view(4, 6)
    assert torch.equal(reached, keep.any(0))
    assert (gradient[0, -6:] != 0).any(1).all()


def test_the_last_answer_is_the_model_s_own() -> None:
    torch.manual_seed(0)
    model = Yolos(CONFIG)
    pixels = torch.randn(2, 3, 64, 96)
    found = Answering(model, 2, 0, guided=False)(pixels, None)
    patches, *guided = Answering(model, 2, 0, guided=True)(pixels, None)
    output = model(pixels)
    assert len(patches[0]) == len(patches[1]) == 2 * 4 * 6
    assert all(torch.equal(one[0], other[0]) for one, other in zip(found, guided, strict=True))
    assert torch.equal(found[-1][0], output.logits)
    assert not torch.equal(found[0][0], output.logits)


def by_hand(rows: Rows, row: int, window: Window) -> list[tuple[list[float], int]]:
    """What `objects_in` says, object by object, in plain numbers."""
    found = []
    for index in range(int(rows.offsets[row]), int(rows.offsets[row + 1])):
        x, y, w, h = rows.boxes[index].astype(float).tolist()
        left, top = max(0.0, x), max(0.0, y)
        right, bottom = min(float(rows.widths[row]), x + w), min(float(rows.heights[row]), y + h)
        whole = (right - left) * (bottom - top)
        left, right = (min(max(v - window.left, 0), window.width) for v in (left, right))
        top, bottom = (min(max(v - window.top, 0), window.height) for v in (top, bottom))
        area = (right - left) * (bottom - top)
        if area > 0 and area >= LEAST_VISIBLE * whole and not rows.objects["iscrowd"][index]:
            centre = [(left + right) / 2 / window.width, (top + bottom) / 2 / window.height]
            extent = [(right - left) / window.width, (bottom - top) / window.height]
            found.append((centre + extent, int(rows.objects["category"][index])))
    return found


@pytest.mark.parametrize("part", [1.0, 0.6])
def test_objects_follow_their_picture(rows: Rows, part: float) -> None:
    classes = np.arange(len(rows.categories))
    crowds = 0
    for row in range(len(rows)):
        width, height = int(rows.widths[row]), int(rows.heights[row])
        window = Window(int(width * (1 - part)), 0, int(width * part), int(height * part))
        boxes, numbers = objects_in(rows, row, classes, window, flip=False)
        wanted = by_hand(rows, row, window)
        assert boxes == pytest.approx(np.array([box for box, _ in wanted]).reshape(-1, 4), abs=1e-6)
        assert numbers.tolist() == [number for _, number in wanted]
        mirrored, _ = objects_in(rows, row, classes, window, flip=True)
        assert np.allclose(mirrored[:, 0], 1 - boxes[:, 0])
        assert np.array_equal(mirrored[:, 1:], boxes[:, 1:])
        crowds += int(rows.objects["iscrowd"][rows.offsets[row] : rows.offsets[row + 1]].sum())
    assert crowds
    none, _ = objects_in(rows, 0, np.full(len(classes), -1), Window(0, 0, 96, 96), flip=False)
    assert not len(none)


def view(**changes: Any) -> View:
    return replace(View(16, (64,), 1.5, augmentation=Augmentation(False, 1.0, 0.0)), **changes)


def images(rows: Rows, seed: int = 0, **changes: Any) -> DetectionImages:
    return DetectionImages(rows, None, np.arange(len(rows.categories)), view(**changes), seed)


def test_masks_of_labels_are_the_labels_carried_over(rows: Rows) -> None:
    """At the very grid of the labels they are these; mirrored, mirrored."""
    for row in range(len(rows)):
        plain = images(rows, masks="labels", size=(96, 96), augmentation=None)[0, row]
        assert plain.keep is not None
        assert np.array_equal(plain.keep.numpy(), rows.labels[row] != 0)
    flipped = images(rows, masks="labels", size=(96, 96), augmentation=Augmentation(True, 1.0, 0.0))
    twice = {tuple(flipped[epoch, 0].keep.flatten().tolist()) for epoch in range(8)}  # type: ignore[union-attr]
    assert twice == {tuple((rows.labels[0] != 0).ravel()), tuple((rows.labels[0][:, ::-1] != 0).ravel())}


def test_random_masks_remove_their_share_of_every_image(rows: Rows) -> None:
    data = images(rows, masks="random", sparsity=0.3)
    for row in range(4):
        first, second, again = (data[epoch, row].keep for epoch in (0, 1, 0))
        assert first is not None
        assert second is not None
        assert again is not None
        assert int((~first).sum()) == int(0.3 * first.numel())
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


def test_what_evaluation_sees_is_what_the_detector_preprocesses(build: Build, rows: Rows, bavit: Path) -> None:
    """The same pixels and, through BAViT, the same masks as `PrunedDetector` makes of the pictures."""
    settings = FinetuneSettings.make(**TINY | {"bavit": str(bavit)})
    learner = DetectionLearner(Task(rows, rows, None, None, Path("unused")), settings)
    _, data = learner.data()
    batch = collate_detections([data[0, row] for row in range(5)])
    yolos = learner.new_model().eval()
    assert learner.bavit is not None
    detector = PrunedDetector(learner.bavit, yolos)
    pictures = [data.reader.open(row) for row in range(5)]
    wanted = detector.yolos.preprocess(pictures)
    for one, other in zip(learner.pixels(batch), wanted, strict=True):
        assert torch.equal(one, other)
    masks = learner.masks(batch)
    assert masks is not None
    removed = 0
    for mask, found in zip(masks, detector(pictures), strict=True):
        assert torch.equal(mask, found.keep)
        removed += int((~mask).sum())
    assert removed


def test_samples_depend_on_seed_epoch_and_row_alone(rows: Rows) -> None:
    changes = {"augmentation": Augmentation(True, 0.3, 0.2)}

    def pixels(key: Key, seed: int = 0) -> torch.Tensor:
        return images(rows, seed, **changes)[key].pixels

    assert torch.equal(pixels((1, 2)), pixels((1, 2)))
    assert not torch.equal(pixels((1, 2)), pixels((2, 2)))
    assert not torch.equal(pixels((1, 2)), pixels((1, 2), seed=1))
    whole = images(rows, edges=(48, 64), aspect=3.0)
    assert {min(whole[epoch, 0].pixels.shape[1:]) for epoch in range(6)} == {48, 64}


def test_a_batch_packs_pictures_of_any_size(rows: Rows) -> None:
    data = images(rows, masks="labels", edges=(48, 64))
    samples = [data[0, row] for row in range(4)]
    broken = replace(samples[1], fault="it is broken")
    batch: DetectionBatch = collate_detections([samples[0], broken, *samples[2:]])
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.used == (0, 2, 3)
    assert batch.faults == {1: "it is broken"}
    kept = [samples[0], *samples[2:]]
    assert batch.keep is not None
    boxes, classes = batch.targets
    for place, sample in enumerate(kept):
        assert torch.equal(batch.pixels[place], sample.pixels)
        assert sample.keep is not None
        assert torch.equal(batch.keep[place], sample.keep)
        assert np.array_equal(boxes[place].numpy(), sample.boxes)
        assert np.array_equal(classes[place].numpy(), sample.classes)


def same(one: Path, other: Path) -> bool:
    """Weights and figures of two runs, bit by bit; times aside."""
    first, second = load_checkpoint(one), load_checkpoint(other)
    timed = ("seconds", "images_per_second")
    figures = [[{k: v for k, v in record.items() if k not in timed} for record in state.history]
               for state in (first, second)]  # fmt: skip
    stored = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return (
        figures[0] == figures[1]
        and all(torch.equal(value, second.model[name]) for name, value in first.model.items())
        and all(torch.equal(value, stored[1][name]) for name, value in stored[0].items())
    )


def test_a_run_leaves_a_detector_and_figures(drawn: Task, bavit: Path) -> None:
    chosen = TINY | {"bavit": str(bavit), "val_every": 2, "prune_after": 1}
    told = Notes()
    found = finetune(drawn, FinetuneSettings.make(**chosen), chosen, told)
    assert {path.name for path in drawn.out.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "run.json", "metrics.jsonl", "curves.png",
        "checkpoint.pt"}  # fmt: skip
    first, last = [json.loads(line) for line in (drawn.out / "metrics.jsonl").read_text().splitlines()]
    assert last == found
    assert "val_ap" not in first
    assert 0 <= last["val_ap"] <= last["val_ap50"] <= 1
    assert 0 < last["train_sparsity"] < 1
    assert last["train_loss"] == pytest.approx(last["train_class"] + 5 * last["train_l1"] + 2 * last["train_giou"])
    model = Yolos.from_pretrained(drawn.out)
    assert model.config.labels == tuple(entry.name for entry in drawn.train.categories)
    assert model.config.shortest_edge == 64
    assert len(told.texts) == 3  # what the detector is, and the epochs


@pytest.mark.parametrize("masks", ["bavit", "labels", "random"])
def test_stopped_and_resumed_is_as_never_stopped(task: Task, tmp_path: Path, bavit: Path, masks: str) -> None:
    options: dict[str, dict[str, Any]] = {"bavit": {"bavit": str(bavit)}, "random": {"sparsity": 0.5}, "labels": {}}
    settings = FinetuneSettings.make(**TINY | {"masks": masks} | options[masks])
    finetune(task, settings, {}, Silent())
    other = replace(task, out=tmp_path / "other", workers=1)
    with pytest.raises(Interrupted, match="epoch 2"):
        finetune(other, settings, {}, StopAt(5, signal.SIGTERM))
    finetune(replace(other, resume=True, workers=0), settings, {}, Silent())
    assert same(task.out, other.out)


def test_another_bavit_or_other_objects_do_not_resume(task: Task, tmp_path: Path, bavit: Path) -> None:
    mine = tmp_path / "bavit"
    shutil.copytree(bavit, mine)
    settings = FinetuneSettings.make(**TINY | {"bavit": str(mine)})
    with pytest.raises(Interrupted):
        finetune(task, settings, {}, StopAt(1, signal.SIGINT))
    torch.manual_seed(1)
    again = replace(task, resume=True)
    objects = task.train.objects | {"category": task.train.objects["category"][::-1].copy()}
    with pytest.raises(OutputError, match="images or labels differ"):
        finetune(replace(again, train=replace(task.train, objects=objects)), settings, {}, Silent())
    BAViT(depth=1, width=64, patch=8, image_size=(64, 64)).save_pretrained(mine)
    with pytest.raises(OutputError, match="weights of the BAViT was"):
        finetune(again, settings, {}, Silent())
    with pytest.raises(OutputError, match="epochs was 2, now 3"):
        finetune(again, FinetuneSettings.make(**TINY | {"bavit": str(mine), "epochs": 3}), {}, Silent())


def test_it_learns(task: Task) -> None:
    """Objects of a few pictures it has seen."""
    few = task.train.keep(np.arange(len(task.train)) < 4)
    chosen = TINY | {"epochs": 20, "dim": 64, "crop": 1.0, "colour": 0.0, "flip": False, "ema": 0.9, "val_every": 20}
    found = finetune(replace(task, train=few, val=few), FinetuneSettings.make(**chosen), {}, Silent())
    history = load_checkpoint(task.out).history
    assert found["val_loss"] < 0.85 * history[0]["train_loss"]
    assert found["train_class"] < 0.9 * history[0]["train_class"]


def test_a_detector_goes_on_where_it_was(task: Task, tmp_path: Path) -> None:
    """At a learning rate of 0 nothing changes, be the pictures stretched, or small, or both kinds."""
    finetune(task, FinetuneSettings.make(**TINY), {}, Silent())
    chosen: dict[str, Any] = {"detector": str(task.out), "lr": 0.0, "epochs": 1, "batch_size": 4, "ema": 0.0}
    second = replace(task, out=tmp_path / "second", overwrite=True)
    for options in ({"size": (64, 96)}, {"edges": (48, 80)}, {"precision": "bf16"}):
        finetune(second, FinetuneSettings.make(**chosen | {"precision": "32"} | options), {}, Silent())
        for name, value in load_file(task.out / "model.safetensors").items():
            assert torch.equal(value, load_file(second.out / "model.safetensors")[name]), name


def test_a_class_head_is_fitted_to_the_data(rows: Rows, tmp_path: Path) -> None:
    """Known classes keep their weights, wherever they stand; unknown ones begin as the mean of all."""
    names = [entry.name for entry in rows.categories]
    torch.manual_seed(0)
    model = Yolos(replace(CONFIG, labels=("zebra", *reversed(names[1:]))))
    model.save_pretrained(tmp_path)
    found = start_of(FinetuneSettings.make(detector=str(tmp_path)), rows)
    assert found.config.labels == tuple(names)
    assert found.classes.tolist() == list(range(len(names)))
    assert names[0] in found.note
    assert f"{len(names) - 1} are carried over" in found.note
    weight, fitted = model.class_embed.get_parameter("layers.2.weight"), found.state
    assert fitted is not None
    place = model.config.labels.index(names[1])
    assert torch.equal(fitted["class_embed.layers.2.weight"][1], weight[place])
    assert torch.equal(fitted["class_embed.layers.2.weight"][-1], weight[-1])
    assert torch.allclose(fitted["class_embed.layers.2.weight"][0], weight[:-1].mean(0))
    unnamed = Yolos(replace(CONFIG, labels=tuple(f"LABEL_{number}" for number in range(91)), named=False))
    unnamed.save_pretrained(tmp_path / "unnamed")
    by_id = start_of(FinetuneSettings.make(detector=str(tmp_path / "unnamed")), rows)
    assert by_id.classes.tolist() == [entry.id for entry in rows.categories]
    assert not by_id.note
    all_known = start_of(FinetuneSettings.make(detector=str(tmp_path)), named(rows, "Zebra"))
    assert not all_known.note
    assert all_known.config.labels == model.config.labels
    assert all_known.classes.tolist() == [0, *(model.config.labels.index(name) for name in names[1:])]


def test_a_damaged_picture_is_named_or_left_out(task: Task, sample_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(sample_root, folder)
    (folder / "train" / task.train.file_names[0]).write_bytes(b"no picture")
    outside = replace(task, images=folder, val_images=folder)
    options = TINY | {"epochs": 5}
    with pytest.raises(PictureError, match=f"{task.train.file_names[0]}.*--on-error skip"):
        finetune(outside, FinetuneSettings.make(**options), {}, Silent())
    found = finetune(
        replace(outside, out=tmp_path / "skip"), FinetuneSettings.make(**options | {"on_error": "skip"}), {}, Silent()
    )
    assert 3 <= found["skipped"] <= 5
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PictureError, match="None of 13 pictures could be read"):
        finetune(
            replace(task, images=tmp_path / "nothing"), FinetuneSettings.make(**options | {"on_error": "skip"}), {},
            Silent(),
        )  # fmt: skip


def test_answers_that_are_no_numbers_end_it(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = Answering.forward

    def broken(module: Answering, *given: Any) -> Any:
        return tuple((logits, boxes * float("nan")) for logits, boxes in real(module, *given))

    monkeypatch.setattr(Answering, "forward", broken)
    with pytest.raises(DivergedError, match="the loss is nan at step 0"):
        finetune(task, FinetuneSettings.make(**TINY), {}, Silent())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "magic"}, "unknown --masks 'magic'"),
        ({"masks": "bavit"}, "name one with --bavit"),
        ({"masks": "labels", "bavit": "x"}, "contradicts"),
        ({"masks": "random"}, "use --sparsity"),
        ({"masks": "labels", "sparsity": 0.5}, "no meaning"),
        ({"masks": "random", "sparsity": 1.5}, "sparsity 1.5 is out of range"),
        ({"bavit": "x", "threshold": -0.1}, "threshold -0.1 is out of range"),
        ({"threshold": 0.5}, "name a --bavit"),
        ({"size": (64, 64), "edges": (48,)}, "give one"),
        ({"size": (64,)}, "give HxW"),
        ({"detector": "x", "dim": 64}, "--detector none"),
        ({"size_name": "huge"}, "unknown --size-name"),
        ({"val_every": 0}, "--val-every 0 is out of range"),
        ({"edges": (0,)}, "out of range"),
        ({"recipe": "paper"}, "unknown recipe"),
        ({"auxiliary": -1}, "--auxiliary"),
        ({"lr": 11.0}, "--lr"),
        ({"crop": 0.0}, "--crop"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        FinetuneSettings.make(**options)


def test_data_that_cannot_be_learned(task: Task, sample_root: Path, tmp_path: Path) -> None:
    settings = FinetuneSettings.make(**TINY)
    bare = task.train.keep(np.diff(task.train.offsets) == 0)
    assert len(bare)
    with pytest.raises(TokenLabelsError, match="holds no objects to train on"):
        finetune(replace(task, train=bare), settings, {}, Silent())
    with pytest.raises(ParameterError, match="different categories"):
        finetune(replace(task, val=named(task.val, "other")), settings, {}, Silent())
    with pytest.raises(ParameterError, match="--prune-after 2: the detector has 2 blocks"):
        finetune(task, FinetuneSettings.make(**TINY | {"prune_after": 2}), {}, Silent())
    with pytest.raises(ParameterError, match="--size 60x64 cannot be cut"):
        finetune(task, FinetuneSettings.make(**TINY | {"size": (60, 64)}), {}, Silent())
    plain = tokenlabels.build("coco", root=sample_root, out=tmp_path / "plain", image_size=96)
    with pytest.raises(ParameterError, match="no embedded images"):
        finetune(replace(task, train=read_rows(plain, splits=["train"], scores=False)), settings, {}, Silent())
    masks = tokenlabels.build(
        "coco", root=sample_root, out=tmp_path / "m", image_size=96, embed_images=True, rule="pixel-ratio"
    )
    options = FinetuneSettings.make(**TINY | {"masks": "labels"})
    with pytest.raises(ParameterError, match="labels of masks"):
        finetune(replace(task, train=read_rows(masks, splits=["train"], scores=False)), options, {}, Silent())
    assert not task.out.exists()
