"""A segmenter in a batch gives what the paper's rule gives picture by picture, token by token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segments import CLASSES, DEPTH, PATCH, plainly, small_vit, sure_segmenter
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import bavit
from bavit.flops import count_macs
from bavit.ragged import pack
from bavit.segment import heads
from bavit.segment.accounting import dense_macs, output_macs
from bavit.segment.config import BackboneShape, SegmentClass, SegmenterConfig
from bavit.segment.early_exit import ExitRule, ending, ranks
from bavit.segment.model import Segmenter, upsample
from bavit.segment.reduction import HalvedGrid
from tokenlabels.errors import ParameterError, TokenLabelsError

HEADS = ("fcn", "atm")
METHODS = ("top-k", "remove", "average", "average-top-k", "proportion")


def pictures(count: int = 4, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_a_batch_equals_every_picture_by_itself(head: Any, method: Any) -> None:
    model = sure_segmenter(head, p0=0.6, keep_per_class=2, method=method, proportion=0.3)
    pixels = pictures(4, 64, 48)
    with torch.no_grad():
        found = model(pixels)
        ended = [int((found.exit_stage == stage).sum()) for stage in range(3)]
        assert min(ended) > 0, f"the test shows nothing: tokens by stage are {ended}"
        for image in range(len(pixels)):
            plain = plainly(model, pixels[image])
            assert [plain.stage[cell] for cell in range(48)] == found.exit_stage[image].flatten().tolist()
            assert plain.seen == found.tokens[image].tolist()
            wanted = torch.stack([plain.logits[cell] for cell in range(48)])
            if plain.classes is not None:
                wanted = plain.classes.softmax(1)[:, 0] * wanted.sigmoid()
            assert torch.allclose(found.logits[image].flatten(1).T, wanted, atol=2e-5)


@pytest.mark.parametrize("head", HEADS)
def test_without_early_exit_the_network_is_timms(head: Any) -> None:
    model = sure_segmenter(head, p0=1.0)
    pixels = pictures()
    with torch.no_grad():
        whole = model(pixels)
        for image in range(len(pixels)):
            plain = plainly(model, pixels[image])
            assert torch.allclose(
                whole.logits[image].flatten(1).T,
                _believed(plain, 64),
                atol=1e-5,
            )
        model.p0 = 1.5
        assert torch.equal(model(pixels).logits, whole.logits)
        model.p0 = 0.999999999  # heads run, and nobody is as sure
        assert torch.equal(model(pixels).logits, whole.logits)
    assert (whole.exit_stage == 2).all()
    assert (whole.heads == torch.tensor([0, 0, 64])).all()


def _believed(plain: Any, cells: int) -> Tensor:
    logits = torch.stack([plain.logits[cell] for cell in range(cells)])
    return logits if plain.classes is None else plain.classes.softmax(1)[:, 0] * logits.sigmoid()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["remove", "average", "top-k"])
def test_all_tokens_may_end_at_the_first_place(head: Any, method: Any) -> None:
    model = sure_segmenter(head, p0=1e-9, keep_per_class=0, method=method)
    with torch.no_grad():
        found = model(pictures())
    assert (found.exit_stage == 0).all()
    assert found.tokens[:, 2:].sum() == 0
    assert found.logits.isfinite().all()
    assert found.alive.tolist() == [[64, 0, 0]] * 4
    model.train()
    stages = model.stages(pictures(), exiting=True)
    total = sum(
        stage.logits.sum() + (0 if stage.class_logits is None else stage.class_logits.sum()) for stage in stages
    )
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    blocks = [value.grad for value in model.backbone.blocks.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in blocks), "ranks would wait for each other"


@pytest.mark.parametrize("head", HEADS)
def test_a_picture_without_tokens_does_not_disturb_others(head: Any) -> None:
    model = sure_segmenter(head, p0=0.6, keep_per_class=0)
    pixels = pictures(3)
    with torch.no_grad():
        together = model(pixels)
        alone = [model(pixels[image : image + 1]) for image in range(3)]
    for image, found in enumerate(alone):
        assert torch.allclose(together.logits[image], found.logits[0], atol=1e-5)
        assert torch.equal(together.exit_stage[image], found.exit_stage[0])
        assert torch.equal(together.tokens[image], found.tokens[0])


def test_padded_attention_of_the_atm_head_equals_that_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on GPUs, here on a CPU; one picture has no tokens."""
    head = sure_segmenter("atm").heads[0]
    generator = torch.Generator().manual_seed(5)
    tokens = pack([torch.randn(count, 32, generator=generator) for count in (7, 0, 12, 1)])
    with torch.no_grad():
        sliced = head(tokens)
        monkeypatch.setattr(heads._DecoderLayer, "_to_tokens", _padded_to_tokens)
        found = head(tokens)
    assert torch.allclose(found.logits, sliced.logits, atol=1e-5)
    there = torch.tensor([True, False, True, True])
    assert torch.allclose(found.class_logits[there], sliced.class_logits[there], atol=1e-5)
    assert found.class_logits.isfinite().all()


def _padded_to_tokens(layer: Any, found: Tensor, memory: Any) -> tuple[Tensor, Tensor]:
    query = layer.query(found).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    pairs = layer.key_value(memory.values).unflatten(-1, (2, layer.heads, -1))
    return heads._attend_padded(query, pairs, memory.lengths)


@pytest.mark.parametrize("size", [(64, 64), (60, 41), (8, 8), (3, 100), (96, 128)])
def test_any_size_of_picture(size: tuple[int, int]) -> None:
    model = sure_segmenter("fcn", p0=0.6)
    rows, cols = -(-size[0] // PATCH), -(-size[1] // PATCH)
    with torch.no_grad():
        found = model(pictures(2, *size))
        assert found.logits.shape == (2, CLASSES, rows, cols)
        assert found.exit_stage.shape == (2, rows, cols)
        assert upsample(found.logits, size, model.patch).shape == (2, CLASSES, *size)


def test_stages_without_exits_read_every_token_in_every_stage() -> None:
    model = sure_segmenter("fcn", p0=0.6)
    with torch.no_grad():
        stages = model.stages(pictures(), exiting=False)
        assert [stage.alive.tolist() for stage in stages] == [[64] * 4] * 3
        model.p0 = 1.0
        assert torch.equal(stages[-1].logits, model(pictures()).logits)


@pytest.mark.parametrize("head", HEADS)
def test_stages_with_exits_end_as_inference_does(head: Any) -> None:
    model = sure_segmenter(head, p0=0.6, keep_per_class=1)
    with torch.no_grad():
        last = model.stages(pictures(), exiting=True)[-1]
        found = model(pictures())
        logits = last.logits
        if last.class_logits is not None:
            logits = last.class_logits.softmax(-1)[:, :, 0, None, None] * logits.sigmoid()
        assert torch.equal(logits, found.logits)
        assert torch.equal(last.alive, found.alive[:, -1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {"p0": 1.0},
        {"p0": 0.6},
        {"p0": 0.6, "method": "average"},
        {"p0": 0.6, "keep_per_class": 0},
        {"p0": 1e-9, "method": "remove"},
        {"downsample": "conv"},
    ],
)
def test_counted_macs_are_those_that_the_counter_measures(head: Any, options: dict[str, Any]) -> None:
    model = sure_segmenter(head, **options)
    pixels = pictures(3, 60, 64)
    with torch.no_grad():
        counted = output_macs(model, model(pixels))
    assert counted.sum() == count_macs(model, pixels)
    if options == {"p0": 1.0}:
        assert counted.tolist() == [dense_macs(model, (60, 64))] * 3


PAPER = [
    # backbone, size, classes, head, auxiliary heads counted, GFLOPs printed: DToP, table 1 and its repository
    ("vit_base_patch16_384", 512, 150, "fcn", True, 107.7),
    ("vit_base_patch16_384", 512, 150, "atm", False, 109.9),
    ("vit_large_patch16_384", 640, 150, "atm", False, 617.0),
    ("vit_large_patch16_384", 480, 59, "atm", False, 315.4),
    ("vit_large_patch16_384", 512, 171, "atm", False, 366.9),
]


@pytest.mark.parametrize(("name", "size", "classes", "head", "auxiliary", "printed"), PAPER)
def test_the_papers_gflops_are_our_macs(
    name: str, size: int, classes: int, head: Any, auxiliary: bool, printed: float
) -> None:
    with torch.device("meta"):
        model = Segmenter(name, classes, head, (8, 16) if "large" in name else (6, 8), image_size=size)
    assert dense_macs(model, (size, size), auxiliary=auxiliary) / 1e9 == pytest.approx(printed, rel=0.004)


@pytest.mark.parametrize("kind", ["conv", "pool", "nearest"])
@pytest.mark.parametrize("head", HEADS)
def test_halved_grids_run_the_rest_on_a_quarter_of_the_tokens(head: Any, kind: Any) -> None:
    model = sure_segmenter(head, downsample=kind)
    with torch.no_grad():
        found = model(pictures(2, 64, 56))
        assert found.tokens.tolist() == [[57, 57, 17, 17, 17]] * 2
        assert found.logits.shape == (2, CLASSES, 8, 7)
        stages = model.stages(pictures(2, 64, 56), exiting=True)
        assert [stage.logits.shape for stage in stages] == [found.logits.shape] * 3
    assert (found.exit_stage == 2).all()


def test_nearest_takes_the_upper_left_of_four() -> None:
    grid = torch.arange(5 * 7.0).view(1, 5, 7, 1)
    assert torch.equal(
        HalvedGrid("nearest", 1)(grid)[0, :, :, 0], torch.tensor([[0, 2, 4, 6], [14, 16, 18, 20], [28, 30, 32, 34.0]])
    )


def test_pool_is_the_mean_of_what_is_there() -> None:
    grid = torch.arange(9.0).view(1, 3, 3, 1)
    assert HalvedGrid("pool", 1)(grid)[0, :, :, 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_k_most_confident_of_each_class_go_on() -> None:
    """Against loops, on random scores with many equals."""
    generator = torch.Generator().manual_seed(4)
    for keep in (0, 1, 3, 100):
        scores = (torch.rand(200, 4, generator=generator) * 10).round() / 10
        image = torch.randint(0, 5, (200,), generator=generator).sort().values
        ends, label = ending(scores, image, ExitRule(0.8, keep))
        best = scores.max(1).values
        for number in range(200):
            rivals = [
                other
                for other in range(200)
                if image[other] == image[number] and label[other] == label[number] and best[other] >= 0.8
            ]
            place = sum(
                bool(best[other] > best[number]) or (bool(best[other] == best[number]) and other < number)
                for other in rivals
            )
            assert bool(ends[number]) == (bool(best[number] >= 0.8) and place >= keep)


def test_p0_is_met_by_equals_and_nobody_ends_at_one() -> None:
    scores = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    image = torch.zeros(3, dtype=torch.int64)
    assert ending(scores, image, ExitRule(0.75, 0))[0].tolist() == [False, True, True]
    assert not ending(scores, image, ExitRule(1.0, 0, "proportion", 1.0))[0].any()


def test_scores_that_are_no_numbers_go_on() -> None:
    scores = torch.full((4, 3), torch.nan)
    assert not ending(scores, torch.zeros(4, dtype=torch.int64), ExitRule(0.5, 0))[0].any()


def test_ranks_of_nothing() -> None:
    assert ranks(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


# --- the model as a thing ---------------------------------------------------------------------------------------------


def config(**options: Any) -> SegmenterConfig:
    shape = BackboneShape("vit_tiny_patch16_224", dim=32, depth=4, heads=2, patch=8)
    classes = (SegmentClass(0, "ground"), SegmentClass(7, "sky"), SegmentClass(9, "tree"))
    return SegmenterConfig(classes, shape, **({"exit_after": (1, 3), "image_size": (32, 48)} | options))


@pytest.mark.parametrize("head", HEADS)
def test_a_stored_segmenter_is_the_same(tmp_path: Path, head: Any) -> None:
    model = Segmenter.from_config(config(head=head, downsample="none")).eval()
    model.p0, model.keep_per_class, model.method = 0.4, 1, "average"
    model.save_pretrained(tmp_path)
    again = bavit.Segmenter.from_pretrained(tmp_path)
    assert again.config == model.config
    assert (again.p0, again.keep_per_class, again.method, again.image_size) == (0.4, 1, "average", (32, 48))
    pixels = pictures(2, 32, 48)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)


def test_names_of_timm_and_the_papers_places_are_the_default() -> None:
    model = bavit.Segmenter("vit_tiny_patch16_224", 21, image_size=64)
    assert (model.depth, model.head_after, model.p0, model.keep_per_class) == (12, (6, 8), 0.95, 5)
    assert model.preprocess([Image.new("RGB", (30, 50)), torch.zeros(3, 9, 9, dtype=torch.uint8)]).shape == (
        2,
        3,
        64,
        64,
    )
    assert model.preprocess([]).shape == (0, 3, 64, 64)
    assert model.preprocess(Image.new("RGB", (30, 50), (255, 255, 255))).sub(1).abs().max() < 1e-6


def test_places_may_change_between_calls_to_any_head_there_is() -> None:
    model = sure_segmenter("fcn", (1, 2, 4), p0=0.6)
    with torch.no_grad():
        model.exit_after = (2,)
        fewer = model(pictures())
        assert fewer.alive.shape == (4, 2)
        other = sure_segmenter("fcn", (1, 2, 4), p0=0.6)
        other.exit_after = ()
        assert (other(pictures()).exit_stage == 0).all()
        model.exit_after = (3,)
        with pytest.raises(ParameterError, match=r"no head after block 3: tokens can end after 1, 2, 4"):
            model(pictures())
        model.exit_after = (4, 2)
        with pytest.raises(ParameterError, match="do not ascend"):
            model(pictures())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"exit_after": (2, 5)}, "exit position 5 is outside the network: it has 5 blocks"),
        ({"exit_after": (0, 2)}, "from 1 on"),
        ({"exit_after": (4, 2)}, "do not ascend"),
        ({"exit_after": (2, 2)}, "do not ascend"),
        ({"p0": 0.0}, "p0 0.0 is out of range"),
        ({"p0": -1.0}, "p0 -1.0 is out of range"),
        ({"p0": float("nan")}, "p0 nan is out of range"),
        ({"keep_per_class": -1}, "cannot be kept"),
        ({"head": "upernet"}, "unknown --head 'upernet'"),
        ({"method": "merge"}, "unknown method 'merge'"),
        ({"proportion": 1.5}, "a proportion of 1.5 is out of range"),
        ({"downsample": "conv", "exit_after": ()}, "--downsample conv needs a place"),
        ({"class_names": ["one"]}, "1 names are no names for 6 classes"),
        ({"image_size": 0}, "an image size of"),
    ],
)
def test_what_no_segmenter_is_made_of(options: dict[str, Any], told: str) -> None:
    given = {"head": "fcn", "exit_after": (2, 4)} | options
    with pytest.raises(ParameterError, match=told):
        Segmenter(small_vit(), CLASSES, **given)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_tiny_patch16_225", "did you mean vit_tiny_patch16_224"),
        ("resnet18", "is no plain ViT of timm"),
        ("hf-hub:someone/model", "timm knows no model"),
    ],
)
def test_backbones_that_are_none(name: str, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        Segmenter(name, 3, image_size=32)


def test_a_module_with_dropout_of_attention_is_refused() -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, attn_drop_rate=0.1)
    with pytest.raises(ParameterError, match="attn_drop_rate 0"):
        Segmenter(vit, 3, exit_after=(1,))


def test_a_module_of_ones_own_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="name one of timm"):
        sure_segmenter("fcn").save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not the config of a segmenter"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "cut short"),
        (lambda folder: _changed(folder, classes=[]), "does not describe a segmenter"),
        (lambda folder: _changed(folder, image_size=[32]), "does not describe a segmenter"),
        (lambda folder: _changed(folder, backbone={"name": "../x"}), "does not describe a segmenter"),
        (lambda folder: _changed(folder, exit_after=[1, 9]), "does not describe a segmenter"),
        (lambda folder: _changed(folder, head="atm"), "another model's"),
        (lambda folder: _changed(folder, classes=[{"value": 0, "name": "a"}]), "another model's"),
    ],
)
def test_damaged_folders(tmp_path: Path, change: Any, told: str) -> None:
    Segmenter.from_config(config()).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(TokenLabelsError, match=told) as fault:
        Segmenter.from_pretrained(tmp_path)
    assert str(tmp_path) in str(fault.value)


def _changed(folder: Path, **values: Any) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | values))


def test_no_such_folder_and_no_hub_name(tmp_path: Path) -> None:
    with pytest.raises(TokenLabelsError, match="no such folder"):
        Segmenter.from_pretrained(tmp_path / "none")
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(TokenLabelsError, match="is a file"):
        Segmenter.from_pretrained(file)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
def test_pixels_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match=r"pixels are float \(B, 3, H, W\)"):
        sure_segmenter("fcn")(torch.zeros(shape))


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, bavit; assert 'Segmenter' in bavit.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_backbone_with_registers_and_without_class_token() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=32, depth=DEPTH, num_heads=2, class_token=False, global_pool="",
        reg_tokens=3, init_values=0.5, qk_norm=True,
    )  # fmt: skip
    model = Segmenter(vit, CLASSES, "atm", (2,), p0=0.3, keep_per_class=1).eval()
    pixels = pictures(2)
    with torch.no_grad():
        found = model(pixels)
        assert found.tokens[:, 0].tolist() == [67, 67]
        for image in range(2):
            plain = plainly(model, pixels[image])
            assert plain.seen == found.tokens[image].tolist()
            assert np.allclose(_believed(plain, 64), found.logits[image].flatten(1).T, atol=1e-5)
