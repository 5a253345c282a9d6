"""Attention over ragged tokens: every image attends to itself alone. Backends differ in speed, not in what they give.

slices   one fused attention for each image; no padding. Fastest on CPUs, and in float32.
varlen   `torch.nn.attention.varlen`: one kernel for all images; CUDA, half precision.
padded   images padded to the longest, padding masked as keys; the plain reference, for other devices.
bucketed like padded, but only images of similar length share a batch.
topk     all images have the same number of tokens: a plain batch. What a dense model is, too, and what exports.

Correct is what dense attention gives with the removed tokens masked as keys; zeros in their place would still draw
attention to themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bavit.ragged import cumulative
from tokenlabels.errors import ParameterError

Backend: TypeAlias = Literal["auto", "slices", "varlen", "padded", "bucketed", "topk"]
Kernel: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]

BUCKET_WASTE = 0.1
"""Share of the longest image of a bucket by which the shortest may be shorter."""

_HALF = (torch.float16, torch.bfloat16)


def ragged_attention(qkv: Tensor, lengths: Sequence[int], backend: Backend | Kernel = "auto") -> Tensor:
    """Softmax attention within each image, scaled by the square root of the head's dimension.

    Args:
        qkv: float (total, 3, heads, head_dim): queries, keys and values of packed tokens.
        lengths: tokens of each image, any of them may be 0; they sum to total.
        backend: see the module; `auto` takes the best for the device, the dtype and the lengths. Or a function of `qkv`
            and `lengths` that takes their place.

    Returns:
        float (total, heads, head_dim), of the dtype of `qkv`.

    Raises:
        ParameterError: an unknown backend, or one that cannot do this.
    """
    if callable(backend):
        return backend(qkv, lengths)
    name = pick_backend(backend, lengths, qkv)
    return _KERNELS[name](qkv, lengths)


def pick_backend(backend: str, lengths: Sequence[int], qkv: Tensor) -> str:
    """The backend for some tokens, see `ragged_attention`.

    Raises:
        ParameterError: an unknown backend, or one that cannot do this.
    """
    if backend not in get_args(Backend):
        raise ParameterError(f"unknown attention backend {backend!r}: use one of {', '.join(get_args(Backend))}.")
    equal = len(set(lengths)) <= 1
    if backend == "auto":
        if equal:
            return "topk"
        if qkv.device.type != "cuda":
            return "slices"
        return "varlen" if _varlen_fits(qkv) else "padded"
    if backend == "topk" and not equal:
        raise ParameterError("the backend topk needs the same number of tokens in every image.")
    if backend == "varlen" and not _varlen_fits(qkv):
        raise ParameterError(
            f"the backend varlen needs CUDA, torch 2.10, float16 or bfloat16, and heads of a multiple of 8: this is "
            f"{qkv.device.type}, torch {torch.__version__}, {qkv.dtype}, heads of {qkv.shape[-1]}."
        )
    return backend


def _varlen_fits(qkv: Tensor) -> bool:
    if qkv.device.type != "cuda" or qkv.dtype not in _HALF or qkv.shape[-1] % 8:
        return False
    try:
        import torch.nn.attention.varlen  # noqa: F401  not in torch before 2.10
    except ImportError:
        return False
    return True


def _topk(qkv: Tensor, lengths: Sequence[int]) -> Tensor:
    if not len(qkv):
        return qkv[:, 0]
    return _dense(qkv.view(len(lengths), -1, *qkv.shape[1:])).reshape(-1, *qkv.shape[2:])


def _slices(qkv: Tensor, lengths: Sequence[int]) -> Tensor:
    return torch.cat([_dense(image[None])[0] for image in torch.split(qkv, list(lengths))])


def _varlen(qkv: Tensor, lengths: Sequence[int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not len(qkv):
        return qkv[:, 0]
    starts, longest = cumulative(lengths, qkv.device), max(lengths)
    query, key, value = (part.contiguous() for part in qkv.unbind(1))
    found = varlen_attn(query, key, value, starts, starts, longest, longest)
    assert isinstance(found, Tensor)
    return found


def _padded(qkv: Tensor, lengths: Sequence[int]) -> Tensor:
    if not len(qkv):
        return qkv[:, 0]
    width = max(lengths)
    counts = torch.tensor(lengths, device=qkv.device)
    there = torch.arange(width, device=qkv.device) < counts[:, None]
    place = there.flatten().nonzero().squeeze(1)
    full = qkv.new_zeros(len(lengths) * width, *qkv.shape[1:]).index_copy(0, place, qkv)
    # An image without tokens attends to its padding: what comes of it is dropped, but it must be finite.
    keys = (there | (counts == 0)[:, None])[:, None, None]
    found = _dense(full.view(len(lengths), width, *qkv.shape[1:]), keys)
    return found.reshape(-1, *qkv.shape[2:])[place]


def _bucketed(qkv: Tensor, lengths: Sequence[int]) -> Tensor:
    images = torch.split(qkv, list(lengths))
    found: list[Tensor] = list(images)
    for bucket in _buckets(lengths):
        sizes = [lengths[index] for index in bucket]
        kernel = _topk if len(set(sizes)) == 1 else _padded
        attended = kernel(torch.cat([images[index] for index in bucket]), sizes)
        for index, image in zip(bucket, torch.split(attended, sizes), strict=True):
            found[index] = image
    return torch.cat(found)


def _buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Images of similar length, by number."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if found and lengths[index] >= (1 - BUCKET_WASTE) * lengths[found[-1][0]]:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _dense(qkv: Tensor, keys: Tensor | None = None) -> Tensor:
    """(b, n, 3, heads, head_dim) -> (b, n, heads, head_dim); `keys` is bool and broadcasts to (b, heads, n, n)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attend = _explicit if _slow_when_fused(qkv) else scaled_dot_product_attention
    return attend(query, key, value, attn_mask=keys).transpose(1, 2)


def _slow_when_fused(qkv: Tensor) -> bool:
    """The gradient of torch's fused attention takes two to four times as long on a CPU in bfloat16."""
    return qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and torch.is_grad_enabled() and qkv.requires_grad


def _explicit(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """What `scaled_dot_product_attention` gives, in products of matrices."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    found: Tensor = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return found


_KERNELS: dict[str, Kernel] = {
    "slices": _slices,
    "varlen": _varlen,
    "padded": _padded,
    "bucketed": _bucketed,
    "topk": _topk,
}
