"""What decides which patches of a pruned ViT stay: functions of pixels, of tokens, and a BAViT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plain_vits import GRID, masked_answer, pictures, small, some
from torch import Tensor, nn

from bavit import BackgroundPolicy, BAViT, TokenPolicy, prune, refine, resize_mask
from tokenlabels.errors import ParameterError, TokenLabelsError


def keep_left(pixels: Tensor) -> Tensor:
    """Patches of the first column."""
    keep = torch.zeros(len(pixels), *GRID, dtype=torch.bool)
    keep[:, :, 0] = True
    return keep


def test_a_policy_of_pixels() -> None:
    model = small("class token")
    pixels = pictures(model)
    pruned = prune(model, keep_left)
    with torch.no_grad():
        left = keep_left(pixels)
        assert torch.equal(pruned(pixels), prune(model)(pixels, left))
        assert torch.equal(pruned.forward_features(pixels).keep, left)
        given = some(4, *GRID)
        assert torch.equal(pruned(pixels, given), prune(model)(pixels, given)), "a mask that is given goes before"


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("kind", ["class token", "positions turned in each block"])
def test_a_policy_of_tokens(kind: str, after: int) -> None:
    model = small(kind)
    pixels = pictures(model)
    seen: list[Tensor] = []

    def strongest(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        seen.append(tokens)
        scores: Tensor = torch.linalg.vector_norm(tokens[:, model.num_prefix_tokens :], dim=-1)
        return (scores >= scores.median(1, keepdim=True).values).view(-1, *grid)

    pruned = prune(model, TokenPolicy(strongest), after=after)
    with torch.no_grad():
        found = pruned(pixels)
        keep = pruned.forward_features(pixels).keep
        assert torch.allclose(found, masked_answer(model, pixels, keep, after), atol=1e-5)
    assert seen[0].shape == (4, model.num_prefix_tokens + 12, 32)
    assert not keep.all()
    assert keep.any()
    assert pruned.macs(keep)[0] - prune(model, after=after).macs(keep)[0] == (
        0 if after else int((~keep[0]).sum()) * model.patch_embed.proj.weight.numel()
    )


def test_tokens_are_seen_at_the_depth_at_which_patches_leave() -> None:
    model = small("class token")
    pixels = pictures(model)
    seen: list[Tensor] = []

    def all_of(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        seen.append(tokens)
        return torch.ones(len(tokens), *grid, dtype=torch.bool)

    with torch.no_grad():
        before = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        for after in (0, 1):
            assert torch.allclose(prune(model, TokenPolicy(all_of), after=after)(pixels), model(pixels), atol=1e-5)
        assert torch.allclose(seen[0], before, atol=1e-6)
        assert torch.allclose(seen[1], model.blocks[0](before), atol=1e-5)


def background_model(**options: Any) -> BAViT:
    torch.manual_seed(0)
    model = BAViT(**{"depth": 1, "width": 32, "heads": 2, "image_size": 64, "threshold": 0.5} | options).eval()
    nn.init.normal_(model.vit.get_parameter("head.weight"), std=2.0)
    return model


def uint8_pictures(count: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(4)
    small_ones = rng.integers(0, 255, (count, 6, 6, 3), np.uint8)
    drawn = [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)) for each in small_ones]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_bavit_sees_what_it_would_see_of_the_pictures(resize: str) -> None:
    """Whatever the normalisation of the other model. Tolerance: 2 of 255, the rounding of Pillow's two passes."""
    bavit_model = background_model(resize=resize)
    shown = uint8_pictures(3, 96, 80)
    mean, std = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)
    pixels = (shown / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    seen = BackgroundPolicy(bavit_model, mean, std).seen_by_bavit(pixels)
    assert (seen - bavit_model.preprocess(list(shown))).abs().max() <= 2 / 255 / 0.5 + 1e-6


def test_a_bavit_in_front_of_another_model() -> None:
    """Its mask is refined and carried to the other grid; the normalisation is that which the model states."""
    model, bavit_model = small("class token"), background_model(threshold=1e-9)
    shown = uint8_pictures(4, 64, 48)
    pixels = (shown / 255 - 0.5) / 0.5
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    pruned = prune(model, bavit_model)
    assert isinstance(pruned.policy, BackgroundPolicy)
    with torch.no_grad():
        kept = pruned.forward_features(pixels)
        background = bavit_model.background(pruned.policy.seen_by_bavit(pixels))
        assert torch.equal(kept.keep, resize_mask(refine(background <= 1e-9, 3), *GRID))
        assert torch.allclose(pruned(pixels), masked_answer(model, pixels, kept.keep), atol=1e-5)
    assert len({*kept.tokens.lengths}) > 1, "the test shows nothing"
    for counts, options in (({5}, {"top_k": 5}), ({9}, {"sparsity": 0.3})):
        policy = BackgroundPolicy(bavit_model, (0.5,) * 3, (0.5,) * 3, **options)
        keep = policy(pixels, GRID)
        assert {*keep.flatten(1).sum(1).tolist()} == counts


def test_what_a_bavit_needs() -> None:
    model, bavit_model = small("class token"), background_model()
    with pytest.raises(ParameterError, match="top_k and sparsity cannot both"):
        BackgroundPolicy(bavit_model, (0.5,) * 3, (0.5,) * 3, top_k=1, sparsity=0.5)
    with pytest.raises(ParameterError, match="three numbers each"):
        BackgroundPolicy(bavit_model, (0.5,), (0.5,))
    model.pretrained_cfg = {}
    with pytest.raises(ParameterError, match="give BackgroundPolicy"):
        prune(model, bavit_model)
    nn.init.constant_(bavit_model.vit.get_parameter("head.weight"), torch.nan)
    with pytest.raises(TokenLabelsError, match="weights are damaged"):
        BackgroundPolicy(bavit_model, (0.5,) * 3, (0.5,) * 3)(torch.zeros(1, 3, 64, 48), GRID)
