"""The models as they are exported: plain batches of one size, no Python that depends on the data, one graph each.

They share the weights of the models they are made of and answer as these do. What depends on the size of the input
alone (positions, places of pixels) is computed once and kept as a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad

from bavit.background.model import BAViT
from bavit.background.refine import resize_mask
from bavit.detect.pruning import Size
from bavit.detect.yolos import Yolos, interpolated
from tokenlabels.errors import ParameterError


class BavitGraph(nn.Module):
    """A BAViT: `bavit_pixels` (B, 3, h, w) -> `logits` (B, r * c, 2)."""

    def __init__(self, bavit: BAViT) -> None:
        super().__init__()
        self.vit = bavit.vit

    def forward(self, bavit_pixels: Tensor) -> Tensor:
        """Logits of every patch, as `BAViT.forward` gives them."""
        tokens = self.vit.patch_embed(bavit_pixels) + self.vit.pos_embed
        for block in self.vit.blocks:
            tokens = block(tokens)
        logits: Tensor = self.vit.head(self.vit.norm(tokens))
        return logits


class DenseGraph(nn.Module):
    """A YOLOS that sees all patches: `pixels` (B, 3, H, W) -> `logits` (B, T, K + 1), `boxes` (B, T, 4).

    Args:
        yolos: the detector.
        size: (H, W) of the input, multiples of the patch.

    Raises:
        ParameterError: they are none.
    """

    def __init__(self, yolos: Yolos, size: Size) -> None:
        super().__init__()
        self.tokens = Tokens(yolos, size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes, as `Yolos.forward` gives them."""
        tokens = self.tokens
        every = tokens.every(pixels)
        for index in range(tokens.depth):
            every = tokens.block(index, every, None)
        return tokens.answer(every)


class PrunedGraph(nn.Module):
    """A BAViT in front of a YOLOS, in which the same number of patches stays of every image.

    `bavit_pixels` (B, 3, h, w), `pixels` (B, 3, H, W) -> `logits` (B, T, K + 1), `boxes` (B, T, 4), `keep` bool
    (B, rows, cols). Which patches stay is `Pruning(top_k=keep, refine_steps=..., prune_after=...)`.

    Args:
        bavit: on a squash grid; a letterbox lies over each picture in another way, and the graph knows no pictures.
        yolos: the detector.
        size: (H, W) of its input, multiples of the patch.
        keep: patches that stay, 1 to all.
        refine_steps: see `critical_probabilities`.
        prune_after: blocks of the detector that see all patches.

    Raises:
        ParameterError: a letterbox, or numbers out of range.
    """

    places: Tensor

    def __init__(
        self, bavit: BAViT, yolos: Yolos, size: Size, keep: int, *, refine_steps: int = 3, prune_after: int = 0
    ) -> None:
        super().__init__()
        if bavit.grid.resize != "squash":
            raise ParameterError(
                f"the BAViT's grid is {bavit.grid.name}: where its patches lie depends on the size of the picture, "
                "which an exported graph does not know: export one that was trained on a squash grid."
            )
        self.front, self.tokens = BavitGraph(bavit), Tokens(yolos, size)
        self.shape, self.keep, self.refine_steps, self.prune_after = bavit.shape, keep, refine_steps, prune_after
        rows, cols = self.tokens.grid
        if not 1 <= keep <= rows * cols:
            raise ParameterError(
                f"{keep} patches cannot stay of {rows} x {cols}, which {size[0]} x {size[1]} pixels are cut into: give "
                f"1 to {rows * cols}."
            )
        if not 0 <= prune_after < self.tokens.depth:
            raise ParameterError(f"prune after layer {prune_after}: it is 0 to {self.tokens.depth - 1}.")
        cells = torch.arange(self.shape[0] * self.shape[1]).view(self.shape)
        self.register_buffer("places", resize_mask(cells, rows, cols).flatten(), persistent=False)

    def forward(self, bavit_pixels: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, boxes and kept patches, as the same `PrunedDetector` finds them."""
        logits = self.front(bavit_pixels)
        background = torch.sigmoid(logits[..., 0] - logits[..., 1]).view(-1, *self.shape)
        critical = critical_probabilities(background, self.refine_steps).flatten(1)[:, self.places]
        # A stable sort, for of equals those further up and left stay; `torch.topk` takes any of them.
        kept = critical.sort(dim=1, stable=True).indices[:, : self.keep]
        keep = torch.zeros_like(critical, dtype=torch.bool).scatter(1, kept, torch.ones_like(kept, dtype=torch.bool))
        tokens = self.tokens
        every = tokens.every(pixels) if self.prune_after else tokens.some(pixels, kept)
        for index in range(tokens.depth):
            if index and index == self.prune_after:
                every = tokens.pruned(every, kept)
            every = tokens.block(index, every, None if index < self.prune_after else kept)
        return *tokens.answer(every), keep.view(-1, *tokens.grid)


class Tokens(nn.Module):
    """A YOLOS on a plain batch of tokens: CLS, patches, detection tokens.

    Attributes:
        grid: (rows, cols) of patches.
        depth: blocks.
    """

    first: Tensor
    last: Tensor
    positions: Tensor
    mid: Tensor | None
    starts: Tensor
    rows_of_patch: Tensor

    def __init__(self, yolos: Yolos, size: Size) -> None:
        super().__init__()
        config, backbone = yolos.config, yolos.backbone
        self.grid = rows, cols = backbone.grid_of(torch.empty(0, *size))
        self.depth, self.count, self.patch = config.depth, config.detection_tokens, config.patch
        self.strips, self.tokens = 3 * size[0] * cols, 1 + rows * cols + config.detection_tokens
        self.backbone, self.class_embed, self.bbox_embed = backbone, yolos.class_embed, yolos.bbox_embed
        with torch.no_grad():
            table = interpolated(backbone.pos_embed, config.grid, self.grid, self.count)[0]
            mid = backbone.mid_pos_embed
            mids = None if mid is None else interpolated(mid[:, 0], config.grid, self.grid, self.count)
            self._keep("first", backbone.cls_token[0] + table[:1])
            self._keep("last", backbone.det_token[0] + table[-self.count :])
        self._keep("positions", table[1 : -self.count])
        self._keep("mid", mids)
        # Pixels are read in rows of a patch: which ones those of the patch at the top left are, and where others start.
        places = torch.arange(self.strips).view(3, rows, self.patch, cols)
        self._keep("rows_of_patch", places[:, 0, :, 0].flatten())
        self._keep("starts", places[0, :, 0].flatten())

    def every(self, pixels: Tensor) -> Tensor:
        """All tokens of images, (B, 1 + n + T, dim)."""
        return self._with_others(self.backbone.patch_embed(pixels) + self.positions)

    def some(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """Tokens (B, 1 + k + T, dim) of the patches int64 (B, k); no other is embedded."""
        strips = pixels.reshape(-1, self.patch)
        begins = self.strips * torch.arange(pixels.shape[0], device=pixels.device)[:, None]
        wanted = (self.starts[kept] + begins)[..., None] + self.rows_of_patch
        cells = embedding(wanted, strips).flatten(2)
        proj: Any = self.backbone.patch_embed.proj
        return self._with_others(linear(cells, proj.weight.flatten(1), proj.bias) + self.positions[kept])

    def pruned(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Those of all tokens (B, 1 + n + T, dim) that stay: (B, 1 + k + T, dim)."""
        places = kept + 1 + self.tokens * torch.arange(tokens.shape[0], device=tokens.device)[:, None]
        patches = embedding(places, tokens.flatten(0, 1))
        return torch.cat([tokens[:, :1], patches, tokens[:, -self.count :]], 1)

    def block(self, index: int, tokens: Tensor, kept: Tensor | None) -> Tensor:
        """The tokens after a block, and the positions that follow it."""
        found: Tensor = self.backbone.blocks[index](tokens)
        if self.mid is None or index >= len(self.mid):
            return found
        table = self.mid[index]
        if kept is None:
            return found + table
        patches = found[:, 1 : -self.count] + table[1 : -self.count][kept]
        return torch.cat([found[:, :1] + table[:1], patches, found[:, -self.count :] + table[-self.count :]], 1)

    def answer(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, K + 1) and boxes (B, T, 4)."""
        normed = self.backbone.norm(tokens[:, -self.count :])
        return self.class_embed(normed), self.bbox_embed(normed).sigmoid()

    def _with_others(self, patches: Tensor) -> Tensor:
        first, last = (each.expand(patches.shape[0], -1, -1) for each in (self.first, self.last))
        return torch.cat([first, patches, last], 1)

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, None if value is None else value.detach().clone(), persistent=False)


def critical_probabilities(background: Tensor, refine_steps: int) -> Tensor:
    """The smallest threshold at which each patch is kept after refinement; see `bavit.background.critical`.

    Args:
        background: float (B, r, c).
        refine_steps: not negative.

    Returns:
        The same shape, each one of the numbers of `background`.
    """
    for _ in range(refine_steps):
        padded = pad(background, (1, 1, 1, 1), value=torch.inf)
        above, middle, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
        small, large = torch.minimum(above, middle), torch.maximum(above, middle)
        least, rest = torch.minimum(small, below), torch.maximum(small, below)
        columns = least, torch.minimum(rest, large), torch.maximum(rest, large)
        left, centre, right = ([c[:, :, start : start + background.shape[2]] for c in columns] for start in range(3))
        mixed = torch.minimum(torch.maximum(left[0], centre[0]), torch.minimum(left[1], centre[1]))
        both = [torch.minimum(left[0], centre[0]), mixed, _third(left, centre)]
        background = torch.minimum(background, _third(both, right))
    return background


def _third(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """The third smallest of two sorted triples."""
    mixed = torch.minimum(torch.maximum(one[0], other[1]), torch.maximum(one[1], other[0]))
    return torch.minimum(torch.minimum(one[2], other[2]), mixed)
