"""Which parameter is turned how: matrices of blocks by Muon, no decay of tokens, positions, biases and norms."""

from __future__ import annotations

import pytest
import torch

from bavit.detect.config import YolosConfig
from bavit.detect.yolos import Yolos
from bavit.training.optimizer import MUON_LR_SCALE, make_optimizer, rate_share, set_rate
from bavit.training.settings import Optimization

CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 64), detection_tokens=5, labels=("a",), mid_positions=True
)


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam"])
@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_every_parameter_has_its_rate_and_decay(kind: str, factor: float) -> None:
    torch.manual_seed(0)
    model = Yolos(CONFIG)
    recipe = Optimization(kind, 0.01, 0.0 if kind == "adam" else 0.3, "cosine", 0.0, 0.0, 0.0)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, recipe, {"class_embed": factor})
    found = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, value in model.named_parameters():
        group = found[id(value)]
        muon = kind == "muon" and ".blocks." in name and value.ndim == 2
        rate = 0.01 * (MUON_LR_SCALE if muon else 1.0) * (factor if name.startswith("class_embed") else 1.0)
        assert group["lr"] == group["peak_lr"] == pytest.approx(rate), name
        bare = name.endswith(("bias", "token", "pos_embed")) or "norm" in name
        assert group["weight_decay"] == (0.0 if bare or kind == "adam" else 0.3), name
    set_rate(optimizer.param_groups, recipe, 5, 10)
    assert all(group["lr"] == group["peak_lr"] * rate_share(recipe, 5, 10) for group in optimizer.param_groups)
