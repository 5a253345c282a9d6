"""Training of a segmenter: what it learns, where it starts, and that a run can be stopped anywhere and resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_builds import masks_of, semantic
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import interpolate
from watched import Notes, StopAt

import tokenlabels
from bavit.pictures import PictureReader
from bavit.rows import read_rows
from bavit.segment.classes import ClassTable, class_table
from bavit.segment.config import BackboneShape, SegmentClass, SegmenterConfig
from bavit.segment.masks import MaskReader, with_masks
from bavit.segment.model import Segmenter
from bavit.segment.samples import SegmentBatch
from bavit.segment.settings import SegmentSettings
from bavit.segment.start import default_exits, start_of
from bavit.segment.train import SegmentLearner, train
from bavit.training.checkpoint import load_checkpoint
from bavit.training.interruption import Interrupted
from bavit.training.learner import Task
from bavit.vit_weights import load_vit, read_vit
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.progress import Silent
from tokenlabels.reader import Build
from tokenlabels.sample_semantic import write_semantic_sample

SHAPE: dict[str, Any] = {"init": "none", "dim": 32, "depth": 4, "heads": 2, "patch": 8, "crop": (64,)}
TINY: dict[str, Any] = SHAPE | {"exit_after": (1, 2), "batch_size": 4, "epochs": 2, "precision": "32"}
RUN: dict[str, Any] = {"batch_size": 4, "epochs": 2, "precision": "32"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """8 pictures to train on, 2 to validate on, 13 classes."""
    folder = tmp_path_factory.mktemp("semantic")
    write_semantic_sample(folder / "sample", images=10)
    return tokenlabels.build(
        "semantic", root=folder / "sample", out=folder / "out", image_size=64, embed_images=True, embed_masks=True
    )


@pytest.fixture(scope="module")
def table(build: Build) -> ClassTable:
    return class_table(build, read_rows(build, scores=False))


@pytest.fixture
def task(build: Build, tmp_path: Path) -> Task:
    rows = [with_masks(read_rows(build, splits=[split], scores=False), print) for split in ("train", "val")]
    return Task(rows[0], rows[1], None, None, tmp_path / "run", workers=0, device="cpu")


@pytest.fixture
def learn(
    task: Task, table: ClassTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, float]]:
    """`learn(name, **choices)`: train into a folder of that name, with the choices; figures of the last epoch."""
    monkeypatch.setattr(SegmentLearner, "draw", lambda *_: None)  # most of the time it would take

    def run(name: str, /, progress: Silent | None = None, changes: dict[str, Any] | None = None, **given: Any) -> Any:
        chosen = replace(task, **{"out": tmp_path / name} | (changes or {}))
        return train(chosen, (table, table), SegmentSettings.make(**given), given, progress or Silent())

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    """Names of the weights that differ."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


def figures(folder: Path) -> list[dict[str, float]]:
    """Of all epochs, times aside."""
    timed = ("seconds", "images_per_second")
    history = load_checkpoint(folder).history
    return [{name: value for name, value in each.items() if name not in timed} for each in history]


@pytest.mark.parametrize("head", ["fcn", pytest.param("atm", marks=pytest.mark.slow)])
def test_it_learns(learn: Callable[..., dict[str, float]], task: Task, tmp_path: Path, head: str) -> None:
    """The pictures that it has seen; one class everywhere gives a mean IoU of less than 5 %."""
    found = learn(
        "run", changes={"val": task.train}, **TINY | {"epochs": 25, "val_every": 25, "colour": 0.0},
        head=head, scale=(1.0, 1.0), drop_path=0.0, head_lr=10.0,
    )  # fmt: skip
    first, *_, last = load_checkpoint(tmp_path / "run").history
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert found["val_dense_miou"] > (0.35 if head == "fcn" else 0.12)
    assert "val_miou" not in first
    assert "train_ended" not in found


def test_the_stored_model_is_the_one_that_was_validated(
    learn: Callable[..., dict[str, float]], task: Task, table: ClassTable, tmp_path: Path
) -> None:
    """Its mean IoU and accuracy, counted pixel by pixel on stretched pictures; early exit as its config says."""
    found = learn("run", **TINY, p0=0.9, method="proportion", proportion=0.3)
    model = Segmenter.from_pretrained(tmp_path / "run")
    assert (model.p0, model.method, model.proportion, model.exit_after) == (0.9, "proportion", 0.3, (1, 2))
    assert model.classes == table.classes
    pictures, masks = PictureReader(task.val, None), MaskReader(task.val, table)
    hits, unions, right, counted, seen = np.zeros(13), np.zeros(13), 0, 0, 0
    for row in range(len(task.val)):
        target = np.array(Image.fromarray(masks.open(row)).resize((64, 64), Image.Resampling.NEAREST))
        with torch.no_grad():
            output = model(model.preprocess(pictures.open(row)))
            full = interpolate(output.logits, (64, 64), mode="bilinear")[0].argmax(0).numpy()
        seen += int(output.tokens.sum())
        there = target != 255
        for number in range(13):
            mine, its = (full == number) & there, target == number
            hits[number] += (mine & its).sum()
            unions[number] += (mine | its).sum()
        right, counted = right + int((full == target)[there].sum()), counted + int(there.sum())
    assert found["val_miou"] == pytest.approx(np.mean(hits[unions > 0] / unions[unions > 0]), abs=1e-9)
    assert found["val_pixel_accuracy"] == pytest.approx(right / counted, abs=1e-9)
    assert found["val_tokens"] == pytest.approx(seen / (len(task.val) * 4 * 65))
    assert found["val_tokens"] < 1
    assert found["train_ended"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"head": "fcn"},
        {"head": "atm", "p0": 0.3, "recipe": "paper", "lr": 1e-3, "ema": 0.9},
        {"run": "start", "p0": 0.2, "trained": "heads"},
    ],
)
def test_stopped_and_resumed_is_as_never_stopped(
    learn: Callable[..., dict[str, float]], task: Task, tmp_path: Path, options: dict[str, Any]
) -> None:
    chosen = TINY | options
    if "run" in options:
        learn("start", **TINY | {"epochs": 1})
        chosen = RUN | options | {"run": str(tmp_path / "start")}
    learn("whole", **chosen)
    with pytest.raises(Interrupted, match="epoch 2"):
        learn("parts", StopAt(3, signal.SIGTERM), {"workers": 1}, **chosen)
    learn("parts", changes={"resume": True}, **chosen)
    assert not changed(tmp_path / "whole", tmp_path / "parts")
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")


def test_other_settings_classes_or_masks_do_not_resume(
    learn: Callable[..., dict[str, float]], task: Task, table: ClassTable, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        learn("run", StopAt(1, signal.SIGINT), **TINY)
    again = replace(task, out=tmp_path / "run", resume=True)
    with pytest.raises(OutputError, match=r"p0 was None, now 0\.9"):
        learn("run", changes={"resume": True}, **TINY, p0=0.9)
    renamed = replace(table, of_value=table.of_value[::-1].copy())
    with pytest.raises(OutputError, match="images or labels differ"):
        train(again, (renamed, table), SegmentSettings.make(**TINY), {}, Silent())


def test_finetuning_heads_leaves_the_backbone_alone(learn: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    learn("run", **TINY | {"epochs": 1})
    run, told = str(tmp_path / "run"), Notes()
    learn("heads", told, run=run, trained="heads", p0=0.3, **RUN, recipe="scratch")
    learn("all", run=run, trained="all", **RUN)
    turned = changed(tmp_path / "run", tmp_path / "heads")
    assert turned
    assert all(name.startswith("heads.") for name in turned)
    assert {name.split(".")[1] for name in turned} == {"0", "1", "2"}
    every = changed(tmp_path / "run", tmp_path / "all")
    assert any(name.startswith("backbone.") for name in every)
    assert "its heads alone" in told.texts[0]
    assert "tokens end after block 1 and 2 in training (p0 0.3, top-k)" in told.texts[0]
    assert Segmenter.from_pretrained(tmp_path / "heads").p0 == 0.3
    assert Segmenter.from_pretrained(tmp_path / "all").p0 == 0.95


@pytest.mark.parametrize("head", ["fcn", "atm"])
def test_all_tokens_may_end_at_the_first_place(learn: Callable[..., dict[str, float]], head: str) -> None:
    """The blocks after it see nothing."""
    found = learn("run", **TINY, head=head, p0=1e-9, keep_per_class=0)
    assert found["train_ended"] == 1
    assert np.isfinite(found["train_loss"])
    assert np.isfinite(found["val_loss"])
    assert found["val_tokens"] == 0.25


def test_no_early_exit_is_p0_of_1(learn: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    """Only what happens after training differs: the rule that is stored."""
    one, other = learn("none", **TINY | {"epochs": 1}), learn("one", **TINY | {"epochs": 1}, p0=1.0)
    assert not changed(tmp_path / "none", tmp_path / "one")
    assert one["val_dense_miou"] == other["val_miou"]
    assert other["val_tokens"] == 1
    assert [Segmenter.from_pretrained(tmp_path / name).p0 for name in ("none", "one")] == [0.95, 1.0]


@pytest.mark.parametrize("downsample", ["conv", "pool", "nearest"])
def test_the_baselines_train(learn: Callable[..., dict[str, float]], downsample: str) -> None:
    told = Notes()
    found = learn("run", told, **TINY | {"epochs": 1}, downsample=downsample)
    assert found["val_tokens"] == pytest.approx((65 + 3 * 17) / (4 * 65))
    assert f"halved after block 1 ({downsample})" in told.texts[0]


def test_what_cannot_be_used_costs_nothing_and_still_reaches_every_weight(task: Task, table: ClassTable) -> None:
    """Ranks wait for the gradients of each other, whatever they read."""
    for head in ("fcn", "atm"):
        learner = SegmentLearner(task, (table, table), SegmentSettings.make(**TINY, head=head))
        model = learner.new_model()
        empty = SegmentBatch(torch.tensor([3]), (), torch.zeros(0, 3, 64, 64, dtype=torch.uint8),
                             torch.zeros(0, 64, 64, dtype=torch.uint8), {3: "broken"})  # fmt: skip
        void = replace(empty, used=(3,), pixels=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
                       targets=torch.full((1, 64, 64), 255, dtype=torch.uint8), faults={})  # fmt: skip
        for batch in (empty, void):
            model.zero_grad()
            statistics = {name: value.clone() for name, value in model.named_buffers()}
            total, weight, counts = learner.loss(learner.answering(model).train(), batch, 0.0)
            total.backward()  # type: ignore[no-untyped-call]
            assert total == weight == 0
            assert len(counts) == learner.counts
            assert all(value.grad is not None and not value.grad.any() for value in model.parameters())
            if batch is empty:
                assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
        settings = SegmentSettings.make(**TINY, head=head, p0=1e-9, keep_per_class=0)
        learner = SegmentLearner(task, (table, table), settings)
        model = learner.new_model()
        pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        some = replace(empty, used=(3, 4), pixels=pixels, targets=pixels[:, 0], faults={})
        total, _, counts = learner.loss(learner.answering(model).train(), some, 0.0)
        total.backward()  # type: ignore[no-untyped-call]
        assert counts[-1] == 0
        assert all(value.grad is not None for value in model.parameters())


def test_a_picture_without_labels_weighs_nothing(task: Task, table: ClassTable) -> None:
    learner = SegmentLearner(task, (table, table), SegmentSettings.make(**TINY, drop_path=0.0, head="atm"))
    answering = learner.answering(learner.new_model()).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=generator).to(torch.uint8)
    targets = torch.randint(0, 13, (3, 64, 64), generator=generator).to(torch.uint8)
    targets[2] = 255
    batch = SegmentBatch(torch.arange(3), (0, 1, 2), pixels, targets, {})
    _, weight, counts = learner.loss(answering, batch, 0.0)
    assert weight == counts[0] == 2


def small_vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(3)
    given = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 7}
    return VisionTransformer(**given | options)


def segmenter(image_size: tuple[int, int] = (64, 64), patch: int = 8, depth: int = 4) -> Segmenter:
    torch.manual_seed(4)
    shape = BackboneShape("vit_tiny_patch16_224", 32, depth, 2, patch)
    return Segmenter.from_config(
        SegmenterConfig((SegmentClass(0, "a"), SegmentClass(1, "b")), shape, exit_after=(1,), image_size=image_size)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_plain_vit_gives_its_first_blocks(tmp_path: Path, suffix: str) -> None:
    """Tokens after four blocks are those of the ViT, CLS token included."""
    source, path, model = small_vit().eval(), tmp_path / f"vit{suffix}", segmenter()
    (torch.save if suffix == ".pth" else save_file)(source.state_dict(), path)
    load_vit(model.backbone, read_vit(path))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        patches = source.patch_embed(pixels)
        first = source.get_parameter("cls_token").expand(2, -1, -1)
        tokens = torch.cat([first, patches], 1) + source.get_parameter("pos_embed")
        for block in source.blocks[:4]:
            tokens = block(tokens)
        torch.testing.assert_close(model.backbone.eval().forward_features(pixels), tokens)


def test_positions_are_resampled_and_tokens_without_patches_kept_apart(tmp_path: Path) -> None:
    source, oblong = small_vit(), segmenter((48, 96))
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    load_vit(oblong.backbone, read_vit(tmp_path / "vit.safetensors"))
    wanted = resample_abs_pos_embed(source.get_parameter("pos_embed"), [6, 12], [8, 8], 1)
    torch.testing.assert_close(oblong.backbone.get_parameter("pos_embed"), wanted)
    oblong.save_pretrained(tmp_path / "run")
    other = segmenter((96, 48))
    load_vit(other.backbone, read_vit(tmp_path / "run"))
    again = resample_abs_pos_embed(wanted, [12, 6], [6, 12], 1)
    torch.testing.assert_close(other.backbone.get_parameter("pos_embed"), again)
    bare, model = small_vit(class_token=False, global_pool="avg"), segmenter()
    own = {name: model.backbone.get_parameter(name)[:, :1].clone() for name in ("pos_embed", "cls_token")}
    save_file(bare.state_dict(), tmp_path / "bare.safetensors")
    load_vit(model.backbone, read_vit(tmp_path / "bare.safetensors"))
    torch.testing.assert_close(model.backbone.get_parameter("pos_embed")[:, 1:], bare.get_parameter("pos_embed"))
    assert all(torch.equal(model.backbone.get_parameter(name)[:, :1], value) for name, value in own.items())


def test_imagenet_asks_timm_for_its_weights(
    learn: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download itself cannot be tried without a network; what is asked for can."""

    def fail(name: str, *, pretrained: bool) -> None:
        raise OSError(f"no route for {name}")

    import timm

    real = timm.create_model
    monkeypatch.setattr(
        "bavit.vit_weights.timm.create_model",
        lambda name, **options: fail(name, **options) if options.get("pretrained") else real(name, **options),
    )
    with pytest.raises(TokenLabelsError, match=r"vit_tiny_patch16_224: cannot be fetched .*--init none"):
        learn("run", **RUN, crop=(32,))


@pytest.mark.parametrize(("depth", "places"), [(12, (6, 8)), (24, (8, 16)), (4, (2,)), (6, (3, 4)), (2, (1,)), (1, ())])
def test_places_of_heads_by_default(depth: int, places: tuple[int, ...]) -> None:
    assert default_exits(depth) == places


def test_recipes() -> None:
    assert SegmentSettings.make().recipe == "paper"
    assert SegmentSettings.make(init="some.pth").recipe == "paper"
    assert SegmentSettings.make(init="none").recipe == "scratch"
    tuned = SegmentSettings.make(run="run").optimization
    assert SegmentSettings.make(run="run").recipe == "finetune"
    assert (tuned.lr, tuned.head_lr, tuned.weight_decay, tuned.schedule) == (2e-5, 10.0, 0.01, "poly")
    assert tuned.warmup * 40_000 == 1500
    assert SegmentSettings.make().optimization.warmup * 160_000 == 1500


def test_training_does_not_delete_what_it_starts_from(task: Task, table: ClassTable) -> None:
    settings = SegmentSettings.make(run=str(task.out))
    task.out.mkdir()
    with pytest.raises(ParameterError, match="training starts from it"):
        SegmentLearner(task, (table, table), settings)


def test_a_run_of_other_classes_is_not_finetuned(task: Task, table: ClassTable, tmp_path: Path) -> None:
    model = segmenter()
    model.save_pretrained(tmp_path / "other")
    settings = SegmentSettings.make(run=str(tmp_path / "other"))
    with pytest.raises(TokenLabelsError, match=r"the class 'background' .*other lacks"):
        SegmentLearner(task, (table, table), settings)
    fewer = replace(table, classes=table.classes[:5])
    with pytest.raises(TokenLabelsError, match=f"the class '{table.classes[5].name}' .*the data to train on"):
        SegmentLearner(task, (fewer, table), SegmentSettings.make(**TINY))
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(TokenLabelsError, match="no such file"):
        start_of(settings, table.classes)


def test_an_image_smaller_than_the_crop_is_padded(tmp_path: Path) -> None:
    """The validation view is the whole picture; masks of 20 x 30 pixels, crops of 64 x 64."""
    made = semantic(tmp_path, masks_of((0, 1, 2, 255)))
    rows = with_masks(read_rows(made, scores=False), print)
    both = (class_table(made, rows),) * 2
    task = Task(rows, rows, None, None, tmp_path / "run", workers=0, device="cpu")
    found = train(task, both, SegmentSettings.make(**TINY | {"batch_size": 2}), {}, Silent())
    assert np.isfinite(found["val_loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p0": 0.0}, "--p0 0 is out of range"),
        ({"p0": 1.01}, "--p0 1.01 is out of range"),
        ({"exit_after": (2, 1)}, "do not ascend"),
        ({"exit_after": (2, 2)}, "do not ascend"),
        ({"exit_after": (0,)}, "from 1 on"),
        ({"exit_after": (4,), "depth": 4}, "outside the network"),
        ({"crop": (0,)}, "--crop 0 is out of range"),
        ({"crop": (1, 2, 3)}, "give HxW"),
        ({"crop": (64, -1)}, "--crop -1 is out of range"),
        ({"init": "imagenet", "dim": 32}, "--dim cannot be chosen"),
        ({"scale": (2.0, 1.0)}, "--scale-range 1 is out of range"),
        ({"scale": (0.0, 1.0)}, "--scale-range 0 is out of range"),
        ({"keep_per_class": -1}, "cannot be kept"),
        ({"method": "none"}, "unknown method"),
        ({"proportion": 1.5}, "proportion of 1.5"),
        ({"trained": "heads"}, "for finetuning"),
        ({"run": "x", "head": "atm"}, "of a new segmenter"),
        ({"run": "x", "init": "none"}, "of a new segmenter"),
        ({"downsample": "conv", "p0": 0.9}, "instead of early exit"),
        ({"downsample": "max"}, "unknown --downsample"),
        ({"head": "mlp"}, "unknown --head"),
        ({"schedule": "linear"}, "unknown --schedule"),
        ({"recipe": "best"}, "unknown recipe"),
        ({"drop_path": 1.0}, "--drop-path 1 is out of range"),
        ({"colour": 2.0}, "--colour 2 is out of range"),
        ({"head_lr": -1.0}, "--head-lr"),
        ({"val_every": 0}, "--val-every"),
    ],
)
def test_settings_that_make_no_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SegmentSettings.make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit_tinny_patch16_224"}, "no model .*did you mean vit_tiny_patch16_224"),
        ({"backbone": "resnet18"}, "no plain ViT|cannot make"),
        ({"exit_after": (3, 12)}, "position 12 is outside the network: it has 12 blocks"),
        ({"heads": 5}, "cannot make"),
    ],
)
def test_models_that_cannot_be_made(table: ClassTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        start_of(SegmentSettings.make(**{"init": "none"} | options), table.classes)
