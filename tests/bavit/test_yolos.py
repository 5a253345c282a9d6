"""YOLOS against transformers' own, in both formats of files, and the published sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import YolosConfig as ReferenceConfig
from transformers import YolosForObjectDetection

from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.weights import write_original
from bavit.detect.yolos import Yolos

TINY = YolosConfig(
    dim=32, depth=2, heads=1, mlp_hidden=72, image_size=(64, 100), detection_tokens=5, labels=("cat", "dog", "cow")
)
SHAPES = [(64, 96), (64, 64), (32, 112), (16, 16)]


def _random(config: YolosConfig) -> Yolos:
    """A model none of whose weights are what initialisation makes of them: norms, biases and positions too."""
    torch.manual_seed(5)
    model = Yolos(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _reference(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What transformers makes of a folder, and what it says of missing and unknown weights."""
    load: Any = YolosForObjectDetection.from_pretrained
    reference, report = load(folder, output_loading_info=True)
    return reference.eval(), report


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, heads=2, layer_norm_eps=1e-3),
        replace(TINY, image_size=(64, 112), mid_positions=True, depth=3),
        replace(TINY, qkv_bias=False, detection_tokens=1),
    ],
    ids=["plain", "heads-eps", "mid-positions", "no-biases"],
)
def test_it_is_transformers_model(config: YolosConfig, tmp_path: Path) -> None:
    model = _random(config)
    model.save_pretrained(tmp_path)
    reference, report = _reference(tmp_path)
    assert not any(report.values())
    for height, width in SHAPES:
        pixels = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            found, wanted = model(pixels), reference(pixels)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes, wanted.pred_boxes, atol=1e-4, rtol=0)


def test_a_model_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    torch.manual_seed(6)
    said: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [48, 64],
        "num_detection_tokens": 7,
        "num_labels": 4,
    }
    reference: Any = YolosForObjectDetection(ReferenceConfig(**said))
    reference.eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = Yolos.from_pretrained(tmp_path)
    assert not model.training
    assert (model.config.mid_positions, model.config.layer_norm_eps) == (True, 1e-12)
    assert (model.config.labels, model.config.named) == (("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), False)
    pixels = torch.randn(2, 3, 80, 48)
    with torch.inference_mode():
        found, wanted = model(pixels), reference(pixels)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes, wanted.pred_boxes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mid", [False, True])
def test_both_formats_hold_the_same_model(mid: bool, tmp_path: Path) -> None:
    model = _random(replace(TINY, image_size=(64, 96), mid_positions=mid))
    model.save_pretrained(tmp_path / "folder")
    write_original(tmp_path / "model.pth", model)
    pixels = torch.randn(1, 3, 48, 80)
    keep = torch.rand(1, 3, 5) < 0.6
    for name in ("folder", "model.pth"):
        again = Yolos.from_pretrained(tmp_path / name)
        assert again.state_dict().keys() == model.state_dict().keys()
        with torch.inference_mode():
            assert torch.equal(again(pixels, keep).logits, model(pixels, keep).logits)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 6_488_736), ("small", 30_684_768), ("base", 127_798_368), ("small_dWr", 27_561_696)],
)
def test_published_sizes(name: str, parameters: int) -> None:
    """As counted of transformers' models of the same configs; the paper prints 6.5, 30.7, 127 and 27.9 million."""
    with torch.device("meta"):
        model = Yolos(SIZES[name])
    assert sum(value.numel() for value in model.parameters()) == SIZES[name].parameter_count == parameters


def test_a_loaded_model_learns(tmp_path: Path) -> None:
    _random(TINY).save_pretrained(tmp_path)
    model = Yolos.from_pretrained(tmp_path).train()
    before = model.backbone.cls_token.detach().clone()
    output = model(torch.randn(1, 3, 32, 32))
    (output.logits.square().sum() + output.boxes.sum()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(value.grad is not None for value in model.parameters())
    assert not torch.equal(before, model.backbone.cls_token)
