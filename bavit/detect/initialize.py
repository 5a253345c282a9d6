"""A detector that is trained from scratch: how it begins, so that it learns from few pictures.

Transformers spend long on finding out where things are. Here the first numbers of every token hold its place, as sines
and cosines, and nothing else writes there; each head attends to a place beside the token's own, by turning these
numbers; and detection tokens have places of their own, all over the image, at which their boxes begin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from bavit.detect.yolos import Yolos
from tokenlabels.errors import ParameterError

_NO_OBJECT_BIAS = 2.0
_FINEST, _RANGE = 30.0, 10.0
"""Radians that the fastest sine turns through over an image, and how much faster it is than the slowest."""

_SHARPNESS = 2.0
"""Of attention to places: how much it adds where places agree."""

_PATCHES_FIRST = 3.0
"""Root of how much attention prefers patches to other tokens."""

_COPIED, _MIXED = 0.4, 0.2
"""How much of what is attended to is added as it is, and how much of a random mixture."""

_BEGIN_SIZE = 0.25
"""Width and height of every box in the beginning, as shares of the image."""

_STEPS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def from_scratch(model: Yolos, pixels: Tensor, generator: torch.Generator) -> None:
    """Initialise a detector.

    Args:
        model: freshly made, changed in place.
        pixels: float (B, 3, H, W), some normalised pictures of the training set, of the size its positions are for.
        generator: of everything random.

    Raises:
        ParameterError: heads too narrow to hold a place.
    """
    config, backbone = model.config, model.backbone
    quarter = (config.dim // config.heads - 1) // 4
    if quarter < 1:
        raise ParameterError(f"heads of {config.dim // config.heads} numbers are too narrow to train from scratch: 8.")
    with torch.no_grad():
        kind = 4 * quarter  # after the place, which kind of token it is
        _place_tokens(model, quarter, kind)
        _clear_places(model, kind + 1, generator)
        for block in backbone.blocks:
            _attend_to_places(block, config.grid, quarter, generator)
            for layer in (block.get_submodule("mlp.fc1"), block.get_submodule("mlp.fc2")):
                assert isinstance(layer, nn.Linear)
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
        for head in (model.class_embed, model.bbox_embed):
            for layer in head.layers[:2]:
                assert isinstance(layer, nn.Linear)
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        last: Any = model.class_embed.layers[2]
        nn.init.normal_(last.weight, std=0.01, generator=generator)
        nn.init.zeros_(last.bias)
        last.bias[-1] = _NO_OBJECT_BIAS
        _begin_at_anchors(model, pixels)


def anchors(count: int) -> Tensor:
    """float32 (count, 2): places all over an image, x and y in 0..1, on the lattice that is the nearest to a square."""
    rows = max(side for side in range(1, int(count**0.5) + 1) if count % side == 0)
    cols = count // rows
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols
    return torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1).flatten(0, 1)


def sines(places: Tensor, quarter: int) -> Tensor:
    """float32 (n, 4 * quarter): sines and cosines of x, then of y, of places (n, 2) in 0..1."""
    angles = places[:, :, None] * _speeds(quarter)
    return torch.cat([angles[:, 0].sin(), angles[:, 0].cos(), angles[:, 1].sin(), angles[:, 1].cos()], 1)


def _speeds(quarter: int) -> Tensor:
    return _FINEST * _RANGE ** (-torch.arange(quarter) / quarter)


def _place_tokens(model: Yolos, quarter: int, kind: int) -> None:
    """Positions: the place, and 1 for patches, -1 for others."""
    (rows, cols), count = model.config.grid, model.config.detection_tokens
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols
    patches = torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)], -1).flatten(0, 1)
    positions = model.backbone.pos_embed[0]
    positions.zero_()
    positions[1:, :kind] = sines(torch.cat([patches, anchors(count)]), quarter)
    positions[:, kind] = -1
    positions[1:-count, kind] = 1


def _clear_places(model: Yolos, first: int, generator: torch.Generator) -> None:
    """Content of tokens, which leaves the first numbers to places."""
    backbone, dim = model.backbone, model.config.dim
    content = torch.randn(dim, generator=generator) * 0.5
    content[:first] = 0
    backbone.det_token.copy_(content.expand_as(backbone.det_token))
    backbone.cls_token.zero_()
    projection = backbone.patch_embed.proj
    nn.init.trunc_normal_(projection.weight, std=projection.weight[0].numel() ** -0.5, generator=generator)
    assert projection.bias is not None
    projection.weight[:first] = 0
    projection.bias.zero_()


def _attend_to_places(block: Any, grid: tuple[int, int], quarter: int, generator: torch.Generator) -> None:
    """Queries are turned so that they agree with the keys of the place a patch to one side; values are handed on."""
    attention = block.attn
    dim, heads, kind = attention.qkv.in_features, attention.num_heads, 4 * quarter
    width = dim // heads
    nn.init.trunc_normal_(attention.qkv.weight, std=0.02, generator=generator)
    query, key, value = attention.qkv.weight.split(dim)
    for head in range(heads):
        steps = _STEPS if heads >= len(_STEPS) else _STEPS[1:]
        across, down = steps[head % len(steps)]
        turn = _turned((across / grid[1], down / grid[0]), quarter)
        rows = slice(head * width, head * width + kind)
        query[rows, :kind] += math.sqrt(_SHARPNESS) * turn
        key[rows, :kind] += math.sqrt(_SHARPNESS) * torch.eye(kind)
        key[head * width + kind, kind] += _PATCHES_FIRST
        if attention.qkv.bias is not None:
            attention.qkv.bias[head * width + kind] = _PATCHES_FIRST
    wanted = _MIXED * torch.randn(dim, dim, generator=generator) / dim**0.5 + _COPIED * torch.eye(dim)
    wanted[: kind + 1] = 0
    wanted[:, : kind + 1] = 0
    left, strength, right = torch.linalg.svd(wanted)
    mixing, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    value.copy_(mixing @ (strength.sqrt()[:, None] * right))
    attention.proj.weight.copy_(left * strength.sqrt() @ mixing.T)


def _turned(step: tuple[float, float], quarter: int) -> Tensor:
    """(4 * quarter, 4 * quarter): the matrix that makes `sines(place)` into `sines(place + step)`."""
    found = torch.zeros(4 * quarter, 4 * quarter)
    sine = torch.arange(quarter)
    for first, way in ((0, step[0]), (2 * quarter, step[1])):
        cos, sin = (_speeds(quarter) * way).cos(), (_speeds(quarter) * way).sin()
        found[first + sine, first + sine] = cos
        found[first + sine, first + quarter + sine] = sin
        found[first + quarter + sine, first + quarter + sine] = cos
        found[first + quarter + sine, first + sine] = -sin
    return found


def _begin_at_anchors(model: Yolos, pixels: Tensor) -> None:
    """The last layer of boxes by ridge regression, so that each detection token begins at its anchor."""
    count, head = model.config.detection_tokens, model.bbox_embed.layers
    features = []
    for tokens in model.blocks(pixels):
        found = torch.stack([image[-count:] for image in tokens.images()])
        features.append(relu(head[1](relu(head[0](model.backbone.norm(found))))).flatten(0, 1))
    hidden = torch.cat(features).double()
    size = torch.full((count, 2), _BEGIN_SIZE)
    targets = torch.logit(torch.cat([anchors(count), size], 1)).repeat(len(hidden) // count, 1).double()
    mean, middle = hidden.mean(0), targets.mean(0)
    centred = hidden - mean
    products = centred.T @ centred
    products += torch.eye(len(products), dtype=torch.float64) * products.diagonal().mean() * 1e-2
    weight = torch.linalg.solve(products, centred.T @ (targets - middle))
    last: Any = head[2]
    last.weight.copy_(weight.T)
    last.bias.copy_(middle - mean @ weight)
