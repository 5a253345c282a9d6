"""The README's example of a pruned ViT, run word for word on small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from bavit import BAViT

EXAMPLE = """\
import bavit, timm, torch
from timm.data import create_transform, resolve_model_data_config
from torch.nn.functional import normalize

dino = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=True).eval()  # 37 x 37 patches of 518 x 518
transform = create_transform(**resolve_model_data_config(dino))
pruned = bavit.prune(dino, bavit.BAViT.from_pretrained("run"))  # shares dino's weights

pixels = torch.stack([transform(picture) for picture in pictures])
with torch.inference_mode():
    features = normalize(pruned(pixels))  # (B, 384), as dino(pixels), of what BAViT takes for foreground
    kept = pruned.forward_features(pixels)  # the tokens that are left, kept.keep (B, 37, 37), kept.grid() with zeros
similarity = features @ features.T  # which picture is like which
saved = 1 - pruned.macs(kept.keep).sum() / pruned.macs(torch.ones_like(kept.keep)).sum()
"""


@pytest.fixture
def small_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BAViT in the folder `run`, and in place of what is fetched a model of the same name with random weights."""
    torch.manual_seed(0)
    model = BAViT(depth=1, width=32, heads=2, image_size=64, threshold=1e-6)
    nn.init.normal_(model.vit.get_parameter("head.weight"), std=2.0)
    model.save_pretrained(tmp_path / "run")
    create = timm.create_model

    def small(name: str, *, pretrained: bool) -> nn.Module:
        assert pretrained
        made: nn.Module = create(name, embed_dim=32, depth=1, num_heads=2)
        return made

    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small_models")
def test_the_example_runs() -> None:
    rng = np.random.default_rng(1)
    noise = [Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)) for _ in range(3)]
    told: dict[str, Any] = {"pictures": [image.resize((640, 480)) for image in noise]}
    exec(EXAMPLE, told)
    keep = told["kept"].keep
    assert keep.shape == (3, 37, 37)
    assert 0.05 < keep.float().mean() < 0.95, "the example shows nothing"
    with torch.no_grad():
        assert not torch.allclose(told["features"], nn.functional.normalize(told["dino"](told["pixels"])), atol=1e-3)
    assert torch.allclose(told["similarity"].diagonal(), torch.ones(3), atol=1e-5)
    assert told["saved"] == pytest.approx(1 - keep.float().mean().item(), abs=0.25)


def test_the_readme_has_it_word_for_word() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert "bavit.prune(" not in text or EXAMPLE in text
