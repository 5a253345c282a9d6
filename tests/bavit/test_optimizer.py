"""Which parameter is turned how: matrices of blocks by Muon, no decay of tokens, positions, biases and norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import PolynomialLR

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


def test_the_polynomial_schedule_is_that_of_torch_after_a_warm_up() -> None:
    recipe = Optimization("adamw", 0.01, 0.0, "poly", 0.2, 0.0, 0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = PolynomialLR(optimizer, total_iters=40, power=0.9)
    for step in range(50):
        found = rate_share(recipe, step, 50)
        if step < 10:
            assert found == pytest.approx((step + 1) / 10)
        else:
            assert found == pytest.approx(oracle.get_last_lr()[0])
            optimizer.step()
            oracle.step()
    assert math.isclose(rate_share(recipe, 50, 50), 0, abs_tol=1e-12)


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam"])
def test_what_needs_no_gradient_is_not_turned(kind: str) -> None:
    model = Yolos(CONFIG)
    model.backbone.requires_grad_(False)
    recipe = Optimization(kind, 0.01, 0.0, "poly", 0.0, 0.0, 0.0)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, recipe, {"class_embed": 10.0})
    found = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert found == {id(value) for name, value in model.named_parameters() if not name.startswith("backbone.")}
