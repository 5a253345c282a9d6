"""Pruned ViTs equal timm's own with removed patches masked as keys and left out of the pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from plain_vits import GRID, KINDS, masked_answer, masked_features, pictures, small, some, stays
from torch import Tensor
from torch.nn.functional import interpolate

import bavit
from bavit import TokenPolicy, prune
from bavit.attention import Backend
from bavit.flops import count_macs
from tokenlabels.errors import ParameterError

TRAINED = ("class token", "SigLIP", "DINOv2 with registers", "DINOv3", "EVA-02", "grouped keys")


@pytest.mark.parametrize("kind", KINDS)
def test_removed_patches_are_as_if_masked(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model)
    keep, everything = some(4, *GRID), torch.ones(4, *GRID, dtype=torch.bool)
    with torch.no_grad():
        dense = model(pixels)
        assert torch.allclose(prune(model)(pixels), dense, atol=1e-5, rtol=0)
        assert torch.allclose(prune(model)(pixels, everything), dense, atol=1e-5, rtol=0)
        for after in (0, 1):
            pruned = prune(model, after=after)
            found, wanted = pruned(pixels, keep), masked_answer(model, pixels, keep, after)
            assert found.shape == dense.shape
            assert torch.allclose(found, wanted, atol=1e-5, rtol=0)
            assert not torch.allclose(found[[0, 3]], dense[[0, 3]], atol=1e-3), "the test shows nothing"
            kept = pruned.forward_features(pixels, keep)
            left = stays(model, keep)
            features = masked_features(model, pixels, keep, after)
            assert torch.allclose(kept.dense()[left], features[left], atol=1e-5, rtol=0)
            assert not kept.dense()[~left].any()


@pytest.mark.parametrize("kind", TRAINED)
def test_gradients_equal_those_of_masked_attention(kind: str) -> None:
    """In training mode, of the weights and of the pixels; removed patches have none."""
    model = small(kind).train()
    pixels, keep = pictures(model), some(4, *GRID)
    pruned = prune(model)
    assert pruned.training
    found = []
    for answer in (lambda x: pruned(x, keep), lambda x: masked_answer(model, x, keep)):
        model.zero_grad()
        torch.manual_seed(5)  # some shift rotary positions at random in training
        x = pixels.clone().requires_grad_()
        torch.autograd.backward(answer(x).square().sum())
        assert x.grad is not None
        found.append([x.grad, *(each.grad for each in model.parameters() if each.grad is not None)])
    height, width = model.patch_embed.patch_size
    touched = found[0][0].abs().sum(1).unfold(1, height, height).unfold(2, width, width).sum((-1, -2)) > 0
    assert torch.equal(touched, keep & touched)
    assert touched.any()
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())), rtol=0)


def test_what_is_removed_is_never_read() -> None:
    model = small("DINOv3")
    pixels, keep = pictures(model, 2), some(2, *GRID)
    cells = interpolate(keep[:, None].float(), scale_factor=16, mode="nearest").bool()
    spoiled = torch.where(cells, pixels, torch.nan)
    with torch.no_grad():
        assert torch.equal(prune(model)(spoiled, keep), prune(model)(pixels, keep))
        assert prune(model, after=1)(spoiled, keep)[0].isnan().all()


@pytest.mark.parametrize("kind", ["class token", "CLIP", "DINOv2 with registers", "DINOv3", "EVA-02", "grouped keys"])
def test_pictures_of_other_sizes(kind: str) -> None:
    """Positions are resampled as timm does it; padding is timm's, too."""
    model = small(kind, dynamic_img_size=True, dynamic_img_pad=True)
    height, width = model.patch_embed.patch_size
    for size, grid in (((3 * height, 5 * width), (3, 5)), ((3 * height + 1, 4 * width - 1), (4, 4))):
        pixels, keep = pictures(model, 4, size), some(4, *grid)
        with torch.no_grad():
            assert torch.allclose(prune(model)(pixels), model(pixels), atol=1e-5, rtol=0)
            wanted = masked_answer(model, pixels, keep)
            assert torch.allclose(prune(model)(pixels, keep), wanted, atol=1e-5, rtol=0)


def test_a_size_of_broken_patches_is_cut_as_timm_cuts_it() -> None:
    model = small("class token", img_size=(70, 50))
    pixels = pictures(model)
    with torch.no_grad():
        assert torch.allclose(prune(model)(pixels), model(pixels), atol=1e-5)
        assert torch.allclose(
            prune(model)(pixels, some(4, *GRID)), masked_answer(model, pixels, some(4, *GRID)), atol=1e-5
        )


@pytest.mark.parametrize("backend", ["slices", "padded", "bucketed"])
@pytest.mark.parametrize("kind", ["class token", "DINOv3"])
def test_backends_agree(kind: str, backend: Backend) -> None:
    model = small(kind)
    pixels, keep = pictures(model), some(4, *GRID)
    with torch.no_grad():
        assert torch.allclose(prune(model, backend=backend)(pixels, keep), prune(model)(pixels, keep), atol=1e-5)


@pytest.mark.parametrize("kind", ["norms of queries and keys", "SigLIP", "DINOv3"])
@pytest.mark.parametrize("cast", [False, True])
def test_half_precision_stays_near_float32(kind: str, cast: bool) -> None:
    """Weights in bf16, or autocast. Tolerance: 5 % of the largest logit."""
    model = small(kind)
    pixels, keep = pictures(model), some(4, *GRID)
    with torch.no_grad():
        exact = prune(model)(pixels, keep)
        if cast:
            with torch.autocast("cpu", torch.bfloat16):
                found = prune(model)(pixels, keep)
        else:
            found = prune(model.bfloat16())(pixels.bfloat16(), keep)
            assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_without_pooling_every_token_has_its_answer() -> None:
    model = small("class token", global_pool="")
    pixels, keep = pictures(model), some(4, *GRID)
    left = stays(model, keep)
    with torch.no_grad():
        wanted = model.forward_head(masked_features(model, pixels, keep))
        found = prune(model)(pixels, keep)
        assert torch.allclose(prune(model)(pixels), model(pixels), atol=1e-5)
    assert torch.allclose(found[left], wanted[left], atol=1e-5)
    assert not found[~left].any()


def test_distilled_training_answers_twice() -> None:
    model = small("DeiT, distilled").train()
    model.set_distilled_training()
    pixels = pictures(model)
    for ours, theirs in zip(prune(model)(pixels), model(pixels), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_features_in_their_places() -> None:
    model = small("DINOv2 with registers")
    pixels, keep = pictures(model), some(4, *GRID)
    with torch.no_grad():
        kept = prune(model).forward_features(pixels, keep)
        features = masked_features(model, pixels, keep)
    assert torch.equal(kept.keep, keep)
    assert kept.prefix == 5
    assert kept.tokens.lengths == tuple((5 + keep.flatten(1).sum(1)).tolist())
    assert torch.allclose(kept.prefix_tokens(), features[:, :5], atol=1e-5)
    assert torch.allclose(kept.grid()[keep], features[:, 5:].view(4, *GRID, -1)[keep], atol=1e-5)
    assert not kept.grid()[~keep].any()
    with torch.no_grad():
        pooled = prune(model).forward_head(kept, pre_logits=True)
    assert torch.allclose(pooled, features[:, 0], atol=1e-5)


def test_the_model_stays_as_it_is_and_its_weights_are_shared() -> None:
    model = small("SigLIP")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune(model)
    assert {id(value) for value in pruned.parameters()} == {id(value) for value in model.parameters()}
    pixels, keep = pictures(model), some(4, *GRID)
    pruned(pixels, keep)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert before.keys() == model.state_dict().keys()
    with torch.no_grad():
        model.head.bias += 1.0
        assert torch.allclose(pruned(pixels), model(pixels), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_accumulates_are_those_torch_measures(kind: str) -> None:
    model = small(kind).requires_grad_(False)  # torch's counter fails at expanded parameters
    pixels = pictures(model, 1)
    for number, after in ((0, 0), (3, 0), (1, 1)):
        keep = some(4, *GRID)[number : number + 1]
        if not keep.any() and not model.num_prefix_tokens:
            continue
        pruned = prune(model, after=after)
        found = pruned.macs(keep)
        assert found.dtype == np.int64
        assert found.tolist() == [count_macs(pruned, pixels, keep)]
    both = prune(model).macs(some(4, *GRID))
    assert both.argmax() == 1
    assert both.argmin() == 2


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("test_vit_relpos", {}, "VisionTransformerRelPos cannot be pruned: plain ViTs of timm can"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1,), "embed_dim": 24, "num_heads": (1,)},
            "SwinTransformer cannot",
        ),
        ("vit_tiny_r_s16_p8_224", {}, "VisionTransformer with HybridEmbed cannot"),
        ("vit_base_patch16_xp_224", {}, "with ParallelScalingBlock cannot"),
        ("vit_dwee_patch16_reg1_gap_256", {}, "with Block and DiffAttention"),
        ("test_vit", {"global_pool": "prr"}, "with AttentionPoolPrr"),
    ],
)
def test_other_models_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    plain = {} if "depths" in options else {"embed_dim": 24, "depth": 1, "num_heads": 2}
    with pytest.raises(ParameterError, match=told):
        prune(timm.create_model(name, **(plain | options)))


def test_a_model_that_changes_what_is_followed_is_refused() -> None:
    class Other(type(small("class token"))):  # type: ignore[misc]
        def pool(self, x: Tensor, pool_type: str | None = None) -> Any:
            return x[:, -1]

    with pytest.raises(ParameterError, match="Other with a pool of its own cannot be pruned"):
        prune(Other(img_size=32, embed_dim=16, depth=1, num_heads=1))


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (torch.ones(4, 12, dtype=torch.bool), r"bool mask \(4, 4, 3\), not by torch.bool \(4, 12\)"),
        (torch.ones(4, 3, 4, dtype=torch.bool), r"not by torch.bool \(4, 3, 4\)"),
        (torch.ones(4, 4, 3), r"not by torch.float32 \(4, 4, 3\)"),
        ([[True]], "not by list"),
    ],
)
def test_bad_masks(keep: Any, told: str) -> None:
    model = small("class token")
    for pruned in (prune(model), prune(model, after=1)):
        with pytest.raises(ParameterError, match=told):
            pruned(pictures(model), keep)
    for policy in (lambda *_: keep, TokenPolicy(lambda *_: keep)):
        with pytest.raises(ParameterError, match=told):
            prune(model, policy)(pictures(model))


def test_bad_pixels_and_depths() -> None:
    model = small("class token")
    with pytest.raises(
        ParameterError, match="VisionTransformer takes 64 x 48 pixels, not 48 x 64: make it with dynamic"
    ):
        prune(model)(torch.zeros(1, 3, 48, 64))
    for pixels in (torch.zeros(3, 64, 48), torch.zeros(0, 3, 64, 48), torch.zeros(1, 3, 64, 48, dtype=torch.uint8)):
        with pytest.raises(ParameterError, match=r"pixels are float \(batch, 3, H, W\)"):
            prune(model)(pixels)
    free = small("class token", dynamic_img_size=True)
    with pytest.raises(ParameterError, match="64 x 50 pixels cannot be cut into patches of 16 x 16"):
        prune(free)(torch.zeros(1, 3, 64, 50))
    for after in (-1, 2):
        with pytest.raises(ParameterError, match=f"after block {after}: it is 0 to 1"):
            prune(model, after=after)


def test_dropout_in_training() -> None:
    pixels = torch.zeros(1, 3, 64, 48)
    for kind in ("class token", "DINOv3"):
        for option, told in (("attn_drop_rate", "no dropout"), ("patch_drop_rate", "drops no other patches")):
            pruned = prune(small(kind, **{option: 0.5}))
            pruned(pixels)
            with pytest.raises(ParameterError, match=told):
                pruned.train()(pixels)


def test_names_are_where_the_readme_says() -> None:
    for name in ("prune", "PrunedViT", "BackgroundPolicy", "TokenPolicy"):
        assert name in bavit.__all__
        assert callable(getattr(bavit, name))
