"""The tokens of plain ViTs: prefix (CLS, distillation, registers) and kept patches, with the place of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from bavit.patches import embed_kept
from bavit.plain_vit.supported import Grid
from bavit.ragged import RaggedTokens, scatter


@dataclass(frozen=True, slots=True, eq=False)
class KeptTokens:
    """What is left of a batch.

    Attributes:
        tokens: of each image the prefix, which always stays, then the kept patches row by row.
        keep: bool (batch, rows, cols), which patches these are.
        prefix: how many tokens stand before the patches.
    """

    tokens: RaggedTokens
    keep: Tensor
    prefix: int

    @property
    def stays(self) -> Tensor:
        """bool (batch, prefix + rows * cols)."""
        return _with_prefix(self.keep, self.prefix)

    @property
    def place(self) -> Tensor:
        """int64 (total,): where each token stands among the prefix + rows * cols of its image."""
        return self.stays.nonzero()[:, 1]

    def with_values(self, values: Tensor) -> KeptTokens:
        """Other values of the same tokens."""
        return KeptTokens(self.tokens.with_values(values), self.keep, self.prefix)

    def without(self, keep: Tensor) -> KeptTokens:
        """Those that are kept of all: no patch has been removed before.

        Args:
            keep: bool (batch, rows, cols).
        """
        return KeptTokens(self.tokens.select(_with_prefix(keep, self.prefix).flatten()), keep, self.prefix)

    def prefix_tokens(self) -> Tensor:
        """float (batch, prefix, dim)."""
        return torch.stack([image[: self.prefix] for image in self.tokens.images()])

    def patches(self) -> RaggedTokens:
        """The patches alone."""
        if not self.prefix:
            return self.tokens
        return self.tokens.select(self.place >= self.prefix)

    def dense(self) -> Tensor:
        """float (batch, prefix + rows * cols, dim), as timm's `forward_features` has it; zeros where removed."""
        return scatter(self.tokens, self.stays)

    def grid(self) -> Tensor:
        """float (batch, rows, cols, dim): the patches alone in their places; zeros where removed."""
        return scatter(self.patches(), self.keep.flatten(1)).view(*self.keep.shape, -1)


def first_tokens(model: Any, pixels: Tensor, keep: Tensor) -> KeptTokens:
    """The tokens before the first block; patches that are not kept are not embedded.

    Args:
        model: a plain ViT.
        pixels: float (batch, channels, rows * height, cols * width).
        keep: bool (batch, rows, cols).
    """
    embedding = model.patch_embed
    if bool(keep.all()):
        patches = embedding.proj(pixels).flatten(2).transpose(1, 2).flatten(0, 1)
    else:
        patches = embed_kept(embedding.proj, pixels, keep)
    patches = embedding.norm(patches)
    prefix: int = model.num_prefix_tokens
    stays = _with_prefix(keep, prefix)
    place = stays.nonzero()[:, 1]
    values = _table(model, (keep.shape[1], keep.shape[2]))[place]
    of_patches = (place >= prefix).nonzero().squeeze(1)
    values = values.index_add(0, of_patches, patches.to(values.dtype))
    values = model.norm_pre(model.pos_drop(values))
    return KeptTokens(RaggedTokens(values, tuple(stays.sum(1).tolist())), keep, prefix)


def _table(model: Any, grid: Grid) -> Tensor:
    """(prefix + rows * cols, dim): prefix tokens and positions, to which patches are added."""
    second = model.dist_token if isinstance(model, VisionTransformerDistilled) else model.reg_token
    prefix = [token[0] for token in (model.cls_token, second) if token is not None]
    weight = model.patch_embed.proj.weight
    table = torch.cat([*prefix, weight.new_zeros(grid[0] * grid[1], len(weight))])
    positions = model.pos_embed
    if positions is None:
        return table
    before = 0 if model.no_embed_class else model.num_prefix_tokens
    if model.dynamic_img_size:
        positions = resample_abs_pos_embed(positions, list(grid), model.patch_embed.grid_size, before)
    return table + torch.nn.functional.pad(positions[0], (0, 0, model.num_prefix_tokens - before, 0))


def rope_table(model: Any, grid: Grid) -> Tensor | None:
    """By what queries and keys of each place are turned, None where they are not.

    Returns:
        float (blocks or 1, prefix + rows * cols, heads or 1, 2 head_dim): sines, then cosines; those of the prefix are
        0 and 1.
    """
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    whole = model.dynamic_img_size or not hasattr(rope, "feat_shape")
    found: Tensor = rope.get_embed(shape=list(grid)) if whole else rope.get_embed()
    if found.ndim == 2:
        found = found[None, None]
    found = found.transpose(1, 2)
    still = found.new_zeros(len(found), model.num_prefix_tokens, *found.shape[2:])
    still[..., found.shape[-1] // 2 :] = 1
    return torch.cat([still, found], 1)


def turns(table: Tensor | None, tokens: KeptTokens, blocks: range) -> Iterator[Tensor | None]:
    """What `run_block` takes as `rope`, block by block.

    Args:
        table: see `rope_table`.
        tokens: those that go through the blocks.
        blocks: their numbers.
    """
    if table is None:
        yield from (None for _ in blocks)
        return
    place = tokens.place
    shared = table[0][place] if len(table) == 1 else None
    for block in blocks:
        yield table[block][place] if shared is None else shared


def _with_prefix(keep: Tensor, prefix: int) -> Tensor:
    """bool (batch, prefix + rows * cols)."""
    flat = keep.flatten(1)
    return torch.cat([flat.new_ones(len(flat), prefix), flat], 1)
