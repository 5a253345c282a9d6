"""Ragged tokens through timm's blocks equal the dense blocks whose removed tokens are masked as keys."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from bavit import attention
from bavit.attention import Backend, ragged_attention
from bavit.ragged import RaggedTokens, gather, pack, scatter
from bavit.vit import run_block
from tokenlabels.errors import ParameterError

BACKENDS: tuple[Backend, ...] = ("slices", "padded", "bucketed", "auto")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def block(**options: Any) -> Block:
    torch.manual_seed(0)
    return Block(32, 2, qkv_bias=True, norm_layer=nn.LayerNorm, **options).eval()


def tokens_and_mask(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Five images of 40 tokens: most kept, few, none, all, half."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(5, 40, 32, generator=generator)
    shares = torch.tensor([0.9, 0.1, 0.0, 1.0, 0.5])
    keep = torch.rand(5, 40, generator=generator) < shares[:, None]
    return tokens.to(device), keep.to(device)


def dense(layer: Block, tokens: Tensor, keep: Tensor) -> Tensor:
    """The oracle: timm's own block on all tokens, removed ones masked as keys; kept tokens of the result, packed."""
    keys = keep | ~keep.any(1, keepdim=True)  # an image without tokens has nothing to compare, but must be finite
    found: Tensor = layer(tokens, attn_mask=keys[:, None, None].expand(-1, 1, tokens.shape[1], -1))[keep]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"init_values": 0.1}, {"scale_attn_norm": True}])
def test_backends_equal_dense_blocks_with_masked_keys(backend: Any, options: dict[str, Any], device: str) -> None:
    layer = block(**options).to(device)
    tokens, keep = tokens_and_mask(device)
    with torch.no_grad():
        found = run_block(layer, gather(tokens, keep), backend).values
        assert torch.allclose(found, dense(layer, tokens, keep), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_those_of_dense_blocks(backend: Any) -> None:
    layer = block()
    tokens, keep = tokens_and_mask()
    weights = torch.randn(int(keep.sum()), 32)
    found = []
    sides: list[Callable[[Tensor], Tensor]] = [
        lambda x: run_block(layer, gather(x, keep), backend).values,
        lambda x: dense(layer, x, keep),
    ]
    for side in sides:
        layer.zero_grad()
        x = tokens.clone().requires_grad_()
        torch.autograd.backward((side(x) * weights).sum())
        assert x.grad is not None
        found.append(
            [x.grad, *(parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None)]
        )
    assert len(found[0]) == len(found[1]) == 1 + len(list(layer.parameters()))
    assert not found[0][0][~keep].any(), "a removed token has no gradient"
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_stays_near_float32(backend: Any) -> None:
    """Tolerance: 0.05 of tokens of unit variance, the rounding of two products in bf16."""
    layer = block()
    tokens, keep = tokens_and_mask()
    with torch.no_grad():
        exact = dense(layer, tokens, keep)
        with torch.autocast("cpu", torch.bfloat16):
            found = run_block(layer, gather(tokens, keep), backend).values
    assert (found - exact).abs().max() < 0.05


def test_pieces_of_the_mlp_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = block()
    tokens, keep = tokens_and_mask()
    with torch.no_grad():
        whole = run_block(layer, gather(tokens, keep)).values
        monkeypatch.setattr("bavit.vit.HIDDEN_NUMBERS", 128 * 16)
        assert torch.allclose(run_block(layer, gather(tokens, keep)).values, whole, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_does_not_depend_on_its_batch(backend: Any) -> None:
    layer = block()
    tokens, keep = tokens_and_mask()
    with torch.no_grad():
        together = run_block(layer, gather(tokens, keep), backend).images()
        for index, image in enumerate(together):
            alone = run_block(layer, gather(tokens[index : index + 1], keep[index : index + 1]), backend).values
            assert torch.allclose(image, alone, atol=1e-6)


def test_topk_is_a_plain_batch() -> None:
    layer = block()
    tokens, _ = tokens_and_mask()
    keep = torch.zeros(5, 40, dtype=torch.bool)
    for row, chosen in enumerate(torch.rand(5, 40).topk(7).indices):
        keep[row, chosen] = True
    with torch.no_grad():
        found = run_block(layer, gather(tokens, keep), "topk").values
        assert torch.allclose(found, dense(layer, tokens, keep), atol=1e-5)
        assert torch.allclose(found, run_block(layer, gather(tokens, keep), "slices").values, atol=1e-5)


def test_no_tokens_at_all() -> None:
    for backend in BACKENDS:
        nothing = RaggedTokens(torch.zeros(0, 32), (0, 0))
        with torch.no_grad():
            assert run_block(block(), nothing, backend).values.shape == (0, 32)


def test_varlen_hands_its_kernel_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU the kernel is replaced by a loop that reads the same arguments."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, longest: int, most: int) -> Tensor:
        assert starts.dtype == torch.int32
        assert torch.equal(starts, key_starts)
        lengths = starts.diff().tolist()
        assert longest == most == max(lengths)
        assert all(part.is_contiguous() for part in (q, k, v))
        return ragged_attention(torch.stack([q, k, v], 1), lengths, "slices")

    qkv, lengths = torch.randn(12, 3, 2, 8), (5, 0, 7)
    fake: Any = types.ModuleType("torch.nn.attention.varlen")
    fake.varlen_attn = kernel
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    found = attention._varlen(qkv, lengths)
    assert torch.equal(found, ragged_attention(qkv, lengths, "slices"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_equals_slices(dtype: torch.dtype) -> None:
    lengths = (700, 3, 0, 411)
    qkv = torch.randn(sum(lengths), 3, 3, 64, device="cuda", dtype=dtype)
    assert attention.pick_backend("auto", lengths, qkv) == "varlen"
    found, wanted = (ragged_attention(qkv, lengths, "varlen"), ragged_attention(qkv, lengths, "slices"))
    assert torch.allclose(found, wanted, atol=2e-2)


@pytest.mark.parametrize(
    ("backend", "lengths", "told"),
    [
        ("topk", (1, 2), "same number of tokens"),
        ("varlen", (1, 2), "needs CUDA"),
        ("flash", (1, 2), "unknown attention backend 'flash'"),
    ],
)
def test_impossible_backends_are_refused(backend: Any, lengths: Sequence[int], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        ragged_attention(torch.zeros(3, 3, 2, 8), lengths, backend)


def test_auto_takes_a_plain_batch_where_lengths_are_equal() -> None:
    qkv = torch.zeros(6, 3, 2, 8)
    assert attention.pick_backend("auto", (3, 3), qkv) == "topk"
    assert attention.pick_backend("auto", (2, 4), qkv) == "slices"


def test_scatter_undoes_gather() -> None:
    tokens, keep = tokens_and_mask()
    kept = gather(tokens, keep)
    assert torch.equal(scatter(kept, keep), tokens * keep[..., None])
    assert kept.cu_seqlens.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]
    assert torch.equal(pack(kept.images()).values, kept.values)
    with pytest.raises(ParameterError, match="has no place"):
        scatter(kept, ~keep)
    with pytest.raises(ParameterError, match="bool mask"):
        gather(tokens, keep.long())
    with pytest.raises(ParameterError, match="do not fill"):
        RaggedTokens(tokens, (1, 2))


def test_select_counts_what_is_left() -> None:
    tokens, keep = tokens_and_mask()
    whole = gather(tokens, torch.ones_like(keep))
    chosen = whole.select(keep.flatten())
    assert torch.equal(chosen.values, gather(tokens, keep).values)
    assert chosen.lengths == gather(tokens, keep).lengths


def test_stochastic_depth_leaves_whole_images_out() -> None:
    layer = block(drop_path=0.5).train()
    torch.manual_seed(3)
    tokens, keep = tokens_and_mask()
    before = gather(tokens, keep)
    with torch.no_grad():
        after = run_block(layer, before)
    unchanged = {bool((new == old).all()) for new, old in zip(after.images(), before.images(), strict=True) if len(new)}
    assert unchanged == {True, False}


def test_other_blocks_are_refused() -> None:
    with pytest.raises(ParameterError, match="no block of timm"):
        run_block(nn.Linear(32, 32), pack([torch.zeros(1, 32)]))
    with pytest.raises(ParameterError, match="no dropout"):
        run_block(block(attn_drop=0.1).train(), pack([torch.zeros(1, 32)]))
