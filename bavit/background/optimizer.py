"""The optimizer of a recipe, and its learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from timm.optim.muon import Muon
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from bavit.background.model import BAViT
from bavit.background.settings import MUON_LR_SCALE, Recipe

_BETAS = (0.9, 0.98)
_STEPS, _STEP_FACTOR = 3, 0.1


def make_optimizer(model: BAViT, recipe: Recipe) -> Optimizer:
    """The optimizer, its groups holding their learning rate of the peak under `peak_lr`.

    Muon ("Muon: An optimizer for hidden layers", Jordan 2024) turns the matrices of the blocks; patches, positions,
    head, biases and norms go by AdamW.
    """
    if recipe.optimizer == "adam":
        return _with_peaks(Adam(model.parameters(), lr=recipe.lr, fused=True))
    matrices = {id(value) for name, value in model.vit.blocks.named_parameters() if value.ndim == 2}
    rest = [(name, value) for name, value in model.named_parameters() if id(value) not in matrices]
    decayed = [value for name, value in rest if _decays(name, value)]
    plain = [value for name, value in rest if not _decays(name, value)]
    turned = [value for value in model.parameters() if id(value) in matrices]
    if recipe.optimizer == "adamw":
        groups = [
            {"params": decayed + turned, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return _with_peaks(AdamW(groups, lr=recipe.lr, betas=_BETAS, fused=True))
    fallback = {"lr": recipe.lr, "use_fallback": True}
    muon = Muon(
        [
            {"params": turned, "lr": recipe.lr * MUON_LR_SCALE, "weight_decay": recipe.weight_decay},
            {"params": decayed, "weight_decay": recipe.weight_decay, **fallback},
            {"params": plain, "weight_decay": 0.0, **fallback},
        ],
        betas=_BETAS,
        nesterov=True,
        ns_coefficients="original",
        adjust_lr_fn="original",
    )
    return _with_peaks(muon)


def _decays(name: str, value: nn.Parameter) -> bool:
    return value.ndim >= 2 and not name.endswith("pos_embed")


def _with_peaks(optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_rate(groups: Iterable[dict[str, float]], recipe: Recipe, step: int, steps: int) -> float:
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


def rate_share(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak."""
    if recipe.schedule == "step":
        return float(_STEP_FACTOR ** (step * _STEPS // steps))
    warmup = max(1, round(recipe.warmup * steps)) if recipe.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
