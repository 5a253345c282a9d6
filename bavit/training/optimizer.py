"""The optimizer of a recipe, and its learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from timm.optim.muon import Muon
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from bavit.training.settings import Optimization

MUON_LR_SCALE = 10.0
"""Learning rate of Muon's matrices over that of AdamW beside it."""

_BETAS = (0.9, 0.98)
_STEPS, _STEP_FACTOR = 3, 0.1
_POWER = 0.9


def make_optimizer(model: nn.Module, recipe: Optimization, factors: Mapping[str, float] | None = None) -> Optimizer:
    """The optimizer, its groups holding their learning rate of the peak under `peak_lr`.

    Muon ("Muon: An optimizer for hidden layers", Jordan 2024) turns the matrices of the blocks; patches, positions,
    head, biases and norms go by AdamW. Tokens, positions, biases and norms do not decay.

    Args:
        model: whose transformer blocks are called `blocks`, as timm has them; what needs no gradient is left alone.
        recipe: how.
        factors: of the learning rate, for those parameters whose names begin so.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    if recipe.optimizer == "adam":
        return _with_peaks(Adam(_groups(named, recipe.lr, factors), lr=recipe.lr, fused=True))
    turned = [(name, value) for name, value in named if _is_matrix_of_block(name, value)]
    rest = [(name, value) for name, value in named if not _is_matrix_of_block(name, value)]
    decayed = [(name, value) for name, value in rest if _decays(name, value)]
    plain = [(name, value) for name, value in rest if not _decays(name, value)]
    if recipe.optimizer == "adamw":
        groups = [
            *_groups(decayed + turned, recipe.lr, factors, weight_decay=recipe.weight_decay),
            *_groups(plain, recipe.lr, factors, weight_decay=0.0),
        ]
        return _with_peaks(AdamW(groups, lr=recipe.lr, betas=_BETAS, fused=True))
    muon = Muon(
        [
            *_groups(turned, recipe.lr * MUON_LR_SCALE, factors, weight_decay=recipe.weight_decay),
            *_groups(decayed, recipe.lr, factors, weight_decay=recipe.weight_decay, use_fallback=True),
            *_groups(plain, recipe.lr, factors, weight_decay=0.0, use_fallback=True),
        ],
        betas=_BETAS,
        nesterov=True,
        ns_coefficients="original",
        adjust_lr_fn="original",
    )
    return _with_peaks(muon)


def _groups(
    named: Sequence[tuple[str, nn.Parameter]], lr: float, factors: Mapping[str, float] | None, **options: Any
) -> list[dict[str, Any]]:
    """One group for each factor of the learning rate."""
    found: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, value in named:
        factor = next((each for start, each in (factors or {}).items() if name.startswith(start)), 1.0)
        found.setdefault(factor, []).append(value)
    return [{"params": values, "lr": lr * factor, **options} for factor, values in found.items()]


def _is_matrix_of_block(name: str, value: nn.Parameter) -> bool:
    return value.ndim == 2 and "blocks" in name.split(".")


def _decays(name: str, value: nn.Parameter) -> bool:
    return value.ndim >= 2 and not name.endswith(("pos_embed", "_token"))


def _with_peaks(optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_rate(groups: Iterable[dict[str, float]], recipe: Optimization, step: int, steps: int) -> float:
    """Set the learning rate of a step.

    Args:
        groups: of the optimizer, changed in place.
        recipe: its schedule.
        step: 0 .. steps - 1.
        steps: of the whole run.

    Returns:
        The share of the peak.
    """
    share = rate_share(recipe, step, steps)
    for group in groups:
        group["lr"] = group["peak_lr"] * share
    return share


def rate_share(recipe: Optimization, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak.

    Source of `poly`: mmsegmentation's schedule of plain ViTs, `LinearLR` and then `PolyLR` with power 0.9.
    """
    if recipe.schedule == "step":
        return float(_STEP_FACTOR ** (step * _STEPS // steps))
    warmup = max(1, round(recipe.warmup * steps)) if recipe.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return float((1 - done) ** _POWER) if recipe.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))
