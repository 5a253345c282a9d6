"""A learned threshold of each image: where it starts, what it depends on, what it does to masks, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bavit import BAViT, PrunedDetector, Yolos
from bavit.detect.accounting import detector_macs
from bavit.detect.adaptive import SPAN, AdaptiveConfig, AdaptiveThreshold
from bavit.detect.budget_loss import mac_share
from bavit.detect.config import YolosConfig
from bavit.detect.pruning import Pruning
from bavit.flops import count_macs
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid

CONFIG = YolosConfig(
    dim=32, depth=3, heads=2, mlp_hidden=72, detection_tokens=5, image_size=(64, 64), labels=("a",), shortest_edge=96,
    longest_edge=128,
)  # fmt: skip
GRID = PatchGrid.parse((16, 16), (64, 64), "squash")


def moved(seed: int = 0, size: float = 1.0, start: float = 0.5) -> AdaptiveThreshold:
    """One whose thresholds differ."""
    torch.manual_seed(seed)
    found = AdaptiveThreshold(AdaptiveConfig(start))
    torch.nn.init.normal_(found.last.weight, std=size)
    return found


def maps(count: int = 5, seed: int = 0, cells: int = 4) -> Tensor:
    """Background of some images, from nearly empty to nearly full ones."""
    generator = torch.Generator().manual_seed(seed)
    fullness = torch.linspace(-3, 3, count)[:, None, None]
    return torch.sigmoid(torch.randn(count, cells, cells, generator=generator) * 2 + fullness)


def detector(adaptive: AdaptiveThreshold | None, **options: Any) -> PrunedDetector:
    torch.manual_seed(0)
    bavit = BAViT(depth=1, width=32, heads=2, image_size=64, threshold=0.4).eval()
    torch.nn.init.normal_(bavit.vit.get_parameter("head.weight"), std=2.0)
    return PrunedDetector(bavit, Yolos(CONFIG), **options, refine_steps=0, adaptive=adaptive)


def pictures(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("start", [0.5, 0.3, 0.1, 0.97, 1e-4, 1 - 1e-4])
def test_it_starts_as_the_fixed_threshold_to_the_bit(start: float) -> None:
    adaptive = AdaptiveThreshold(AdaptiveConfig(start))
    assert torch.equal(adaptive(maps()), torch.full((5,), start))
    adaptive.standardise(maps(7, seed=1))
    assert torch.equal(adaptive(maps()), torch.full((5,), start))


def test_untrained_it_changes_nothing_of_a_detector() -> None:
    plain, learned = detector(None)(pictures()), detector(AdaptiveThreshold(AdaptiveConfig(0.4)))(pictures())
    for one, other in zip(plain, learned, strict=True):
        assert 0 < one.keep.sum() < one.keep.numel()
        assert torch.equal(one.keep, other.keep)
        assert torch.equal(one.boxes, other.boxes)


def test_a_threshold_is_of_its_image_alone() -> None:
    adaptive, background = moved(), maps()
    together = adaptive(background)
    assert together.shape == (5,)
    assert together.dtype == torch.float32
    assert len(set(together.tolist())) == 5
    assert torch.equal(torch.cat([adaptive(image[None]) for image in background]), together)
    shuffled = background.flatten(1)[:, torch.randperm(16)].view(5, 2, 8)
    assert torch.equal(adaptive(shuffled), together)  # where patches lie does not matter
    assert adaptive(maps(0)).shape == (0,)
    assert adaptive(torch.rand(2, 1, 1)).shape == (2,)


def test_a_greater_shift_gives_greater_thresholds_within_bounds() -> None:
    adaptive, background = moved(size=0.3), maps()
    found = []
    for shift in (-1e9, -2.0, 0.0, 2.0, 1e9):
        with torch.no_grad():
            adaptive.shift.fill_(shift)
            found.append(adaptive(background))
    assert all((low < high).all() for low, high in pairwise(found))
    assert torch.allclose(found[0].logit(), torch.tensor(-SPAN), atol=1e-3)
    assert torch.allclose(found[-1].logit(), torch.tensor(SPAN), atol=1e-3)


def test_certain_maps_give_thresholds_that_are_numbers() -> None:
    adaptive = moved()
    background = torch.stack([torch.zeros(4, 4), torch.ones(4, 4), torch.eye(4)]).requires_grad_()
    found = adaptive(background)
    assert found.isfinite().all()
    torch.autograd.backward(found.sum())
    assert background.grad is None
    assert all(value.grad is not None and value.grad.isfinite().all() for value in adaptive.parameters())


def test_features_are_standardised() -> None:
    adaptive, background = AdaptiveThreshold(), maps(50)
    adaptive.standardise(background)
    logits = background.flatten(1).double().logit()
    levels = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    expected = torch.cat([torch.quantile(logits, levels, dim=1).T, logits.mean(1, keepdim=True)], 1)
    assert torch.allclose(adaptive.mean, expected.mean(0).float(), atol=1e-5)
    assert torch.allclose(adaptive.std, expected.std(0, correction=0).float(), atol=1e-5)


def test_it_is_small_and_its_cost_is_known() -> None:
    adaptive = AdaptiveThreshold()
    assert adaptive.parameter_count == 1 + 17 * 16 + 16 + 16
    assert adaptive.macs == count_macs(adaptive, maps(1))


@pytest.mark.parametrize("options", [{}, {"max_tokens": 40}])
@pytest.mark.parametrize("steps", [0, 2])
def test_masks_are_those_of_each_images_own_threshold(options: dict[str, int], steps: int) -> None:
    background, shapes = maps(), [(6, 8)] * 4 + [(5, 6)]
    sizes = [(80, 60)] * 4 + [(60, 50)]
    thresholds = torch.tensor([0.02, 0.9, 0.3, 0.7, 0.99])
    found = Pruning(refine_steps=steps, **options).masks(background, GRID, sizes, shapes, thresholds)
    for n, threshold in enumerate(thresholds.tolist()):
        alone = Pruning(threshold=threshold, refine_steps=steps, **options)
        one = slice(n, n + 1)
        assert torch.equal(found[n], alone.masks(background[one], GRID, sizes[one], shapes[one], 0.5)[0])
    assert len({int(mask.sum()) for mask in found}) > 1


@pytest.mark.parametrize("options", [{"threshold": 0.7}, {"top_k": 9}, {"sparsity": 0.3}])
def test_what_a_person_asks_for_goes_before_what_was_learned(options: dict[str, Any]) -> None:
    background = maps()
    shapes, sizes = [(4, 4)] * 5, [(64, 64)] * 5
    choice = Pruning(**options)
    assert not choice.by_threshold
    fixed = choice.masks(background, GRID, sizes, shapes, 0.5)
    learned = choice.masks(background, GRID, sizes, shapes, torch.full((5,), 0.01))
    assert all(map(torch.equal, fixed, learned))
    plain, other = detector(None, **options)(pictures()), detector(moved(), **options)(pictures())
    assert all(torch.equal(one.keep, two.keep) for one, two in zip(plain, other, strict=True))


def test_a_cap_comes_on_top() -> None:
    adaptive = moved(size=3.0)
    loose, tight = detector(adaptive)(pictures()), detector(adaptive, max_tokens=4)(pictures())
    assert any(int(each.keep.sum()) > 4 for each in loose)
    for whole, some in zip(loose, tight, strict=True):
        assert int(some.keep.sum()) == min(4, int(whole.keep.sum()))
        assert not (some.keep & ~whole.keep).any()


@pytest.mark.parametrize("prune_after", [0, 2])
def test_the_gradient_of_the_penalty_is_that_of_differences(prune_after: int) -> None:
    """MACs are a quadratic function of kept patches, whose slope is half the difference of its neighbours."""
    policy = [torch.eye(12).requires_grad_(), torch.ones(3, 5).requires_grad_()]
    mac_share(policy, CONFIG, prune_after).sum().backward()  # type: ignore[no-untyped-call]
    for each, kept in zip(policy, (12, 14), strict=True):
        patches = each.numel()
        ends = [detector_macs(CONFIG, count, patches, prune_after=prune_after) for count in (kept - 1, kept + 1)]
        slope = (ends[1] - ends[0]) / 2 / detector_macs(CONFIG, patches, patches)
        at = slope if kept == 12 else slope + _bend(patches, prune_after)
        assert each.grad is not None
        assert torch.allclose(each.grad, torch.full_like(each, at), rtol=1e-4)


def _bend(patches: int, prune_after: int) -> float:
    """By how much the slope of the share of MACs grows from one patch to the next."""
    none, one, two = (detector_macs(CONFIG, count, patches, prune_after=prune_after) for count in range(3))
    return (two - 2 * one + none) / detector_macs(CONFIG, patches, patches)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    adaptive = moved(start=0.3)
    adaptive.standardise(maps())
    saved = detector(adaptive, max_tokens=12)
    saved.save_pretrained(tmp_path)
    found = PrunedDetector.from_pretrained(tmp_path)
    assert found.adaptive is not None
    assert found.adaptive.config == AdaptiveConfig(0.3)
    assert torch.equal(found.adaptive(maps()), adaptive(maps()))
    assert all(torch.equal(one.keep, two.keep) for one, two in zip(saved(pictures()), found(pictures()), strict=True))
    found.prune(replace(found.pruning, threshold=0.7))  # as `bavit detect FOLDER --threshold 0.7` does
    fixed = detector(None, threshold=0.7, max_tokens=12)(pictures())
    assert all(torch.equal(one.keep, two.keep) for one, two in zip(fixed, found(pictures()), strict=True))
    saved.adaptive = None
    saved.save_pretrained(tmp_path)
    assert PrunedDetector.from_pretrained(tmp_path).adaptive is None


def test_folders_without_it_stay_readable(tmp_path: Path) -> None:
    detector(None).save_pretrained(tmp_path)
    path = tmp_path / "pruned.json"
    held = json.loads(path.read_text())
    assert held.pop("adaptive") is None
    assert held["format"] == 1
    path.write_text(json.dumps(held))
    assert PrunedDetector.from_pretrained(tmp_path).adaptive is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"start": 1.0}, "cannot start at 1"),
        ({"quantiles": 10**9}, "1 to 1024"),
        ({"hidden": "many"}, "does not describe a pruned detector"),
        ({"hidden": 8}, "another model's"),
    ],
)
def test_a_config_that_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    detector(moved()).save_pretrained(tmp_path)
    path = tmp_path / "pruned.json"
    held = json.loads(path.read_text())
    held["adaptive"] |= change
    path.write_text(json.dumps(held))
    with pytest.raises(TokenLabelsError, match=told):
        PrunedDetector.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "short", "nan", "flat"])
def test_damage_is_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    detector(moved()).save_pretrained(tmp_path)
    path = tmp_path / "adaptive.safetensors"
    state = load_file(path)
    path.unlink()
    if damage == "short":
        path.write_bytes(b"\x08")
    elif damage == "nan":
        save_file(state | {"shift": torch.tensor(np.nan)}, path)
    elif damage == "flat":
        save_file(state | {"std": torch.zeros(17)}, path)
    with pytest.raises(TokenLabelsError, match=r"adaptive\.safetensors: .*it again\.$"):
        PrunedDetector.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{"start": 0.0}, {"start": float("nan")}, {"hidden": 0}])
def test_bad_configs(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        AdaptiveConfig(**options)
