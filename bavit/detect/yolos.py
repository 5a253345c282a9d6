"""YOLOS: a plain ViT whose detection tokens become boxes, run on those patches alone that are kept.

The names of its weights are those of the original checkpoints (`checkpoint["model"]` of a .pth).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from bavit.attention import Backend, Kernel
from bavit.detect.config import YolosConfig
from bavit.detect.preprocess import preprocess
from bavit.detect.weights import read_detector, write_detector
from bavit.patches import embed_kept
from bavit.pictures import Picture
from bavit.ragged import RaggedTokens, pack, scatter
from bavit.vit import run_block
from bavit.weights import load_weights
from tokenlabels.errors import ParameterError


@dataclass(frozen=True, slots=True, eq=False)
class YolosOutput:
    """What a YOLOS says of a batch.

    Attributes:
        logits: float (B, detection tokens, classes + 1), the last is no-object.
        boxes: float (B, detection tokens, 4), centre x, centre y, width, height in 0..1 of the image.
    """

    logits: Tensor
    boxes: Tensor


class Yolos(nn.Module):
    """A YOLOS that never computes what is removed.

    Args:
        config: what it is made of. Weights are random.

    Attributes:
        config: the same.
        backbone: patches, tokens, positions, blocks.
        class_embed: head of classes.
        bbox_embed: head of boxes, before the sigmoid.
    """

    def __init__(self, config: YolosConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.class_embed = Mlp(config.dim, config.classes)
        self.bbox_embed = Mlp(config.dim, 4)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """A detector of a folder or hub id (transformers' format), or of an original `.pth`; see `read_detector`.

        Returns:
            It, on the CPU in float32, in evaluation mode.

        Raises:
            TokenLabelsError: there is no such model, its files are damaged, or it is no YOLOS.
        """
        config, state = read_detector(name)
        with torch.device("meta"):
            model = cls(config)
        load_weights(model, state, Path(name), assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json, for here and for transformers.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_detector(Path(folder), self)

    def preprocess(self, images: Picture | Sequence[Picture]) -> Tensor | list[Tensor]:
        """Pictures as this model takes them, on its device; see `preprocess.preprocess`."""
        return preprocess(images, self.config, self.backbone.cls_token.device)

    def forward(
        self,
        pixels: Tensor | Sequence[Tensor],
        keep: Tensor | Sequence[Tensor | None] | None = None,
        *,
        prune_after: int = 0,
        backend: Backend = "auto",
    ) -> YolosOutput:
        """Boxes and classes of images.

        Args:
            pixels: float (B, 3, H, W), normalised, see `preprocess`; or a sequence of (3, H_i, W_i) of any sizes, which
                are not padded. Sides are multiples of the patch.
            keep: bool (B, rows, cols), or a sequence of (rows_i, cols_i), in which None keeps all; None keeps all.
                Other patches are not computed, but for those blocks before they are removed.
            prune_after: blocks that see all patches; 0 is the BAViT paper.
            backend: of attention, see `attention.py`.

        Raises:
            ParameterError: shapes that contradict each other or the patch, or `prune_after` beyond the blocks.
        """
        return self.read(self._last(pixels, keep, prune_after, backend))

    def read(self, tokens: RaggedTokens) -> YolosOutput:
        """The heads' answer to tokens after any block, CLS first and detection tokens last in each image."""
        count = self.config.detection_tokens
        ends = torch.tensor(list(accumulate(tokens.lengths)), device=tokens.values.device)
        places = ends[:, None] + torch.arange(-count, 0, device=ends.device)
        return self.answer(tokens.values[places])

    def answer(self, tokens: Tensor) -> YolosOutput:
        """The heads' answer to any tokens (..., dim) after any block: logits (..., classes + 1), boxes (..., 4)."""
        normed = self.backbone.norm(tokens)
        return YolosOutput(self.class_embed(normed), self.bbox_embed(normed).float().sigmoid())

    def patch_tokens(
        self, pixels: Tensor, keep: Tensor | None = None, *, prune_after: int = 0, backend: Backend = "auto"
    ) -> Tensor:
        """The patches after the last block and norm, zeros where they were removed.

        Args:
            pixels: float (B, 3, H, W).
            keep: bool (B, rows, cols), or None.
            prune_after: see `forward`.
            backend: see `forward`.

        Returns:
            (B, rows * cols, dim), row-major.

        Raises:
            ParameterError: see `forward`.
        """
        if not isinstance(pixels, Tensor) or not isinstance(keep, Tensor | None):
            raise ParameterError("patch_tokens takes one tensor of pixels, and one mask or None.")
        tokens = self._last(pixels, keep, prune_after, backend)
        images = [image[1 : -self.config.detection_tokens] for image in tokens.images()]
        found: Tensor = self.backbone.norm(torch.cat(images))
        batch, rows, cols = len(pixels), *self.backbone.grid_of(pixels)
        if keep is None:
            return found.view(batch, rows * cols, -1)
        return scatter(RaggedTokens(found, tuple(len(image) for image in images)), keep.flatten(1))

    def blocks(
        self,
        pixels: Tensor | Sequence[Tensor],
        keep: Tensor | Sequence[Tensor | None] | None = None,
        *,
        prune_after: int = 0,
        backend: Backend | Kernel = "auto",
    ) -> Iterator[RaggedTokens]:
        """The tokens after each block, in turn; arguments and faults as of `forward` and `ragged_attention`."""
        if not 0 <= prune_after < self.config.depth:
            raise ParameterError(f"prune after layer {prune_after}: it is 0 to {self.config.depth - 1}.")
        images, masks = self._checked(pixels, keep)
        return self.backbone.run(images, masks, prune_after, backend)

    def _last(
        self,
        pixels: Tensor | Sequence[Tensor],
        keep: Tensor | Sequence[Tensor | None] | None,
        prune_after: int,
        backend: Backend,
    ) -> RaggedTokens:
        *_, last = self.blocks(pixels, keep, prune_after=prune_after, backend=backend)
        return last

    def _checked(
        self, pixels: Tensor | Sequence[Tensor], keep: Tensor | Sequence[Tensor | None] | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Batches (b, 3, H, W) of images of one size, and a mask (b, rows, cols) or None for each."""
        single = isinstance(pixels, Tensor)
        images = [pixels] if isinstance(pixels, Tensor) else [image[None] for image in pixels]
        if not images or any(image.ndim != 4 or image.shape[1] != 3 or not len(image) for image in images):
            raise ParameterError(
                "YOLOS takes pixels of (B, 3, H, W), or a sequence of (3, H, W), of one image or more."
            )
        if isinstance(keep, Tensor):
            masks: list[Tensor | None] = [keep] if single else [mask[None] for mask in keep]
        elif keep is None:
            masks = [None] * len(images)
        elif single:
            rows, cols = self.backbone.grid_of(images[0])
            full = torch.ones(rows, cols, dtype=torch.bool, device=images[0].device)
            masks = [torch.stack([full if mask is None else mask for mask in keep])]
        else:
            masks = [None if mask is None else mask[None] for mask in keep]
        if len(masks) != len(images):
            raise ParameterError(f"{len(masks)} masks are not for {len(images)} images.")
        for image, mask in zip(images, masks, strict=True):
            shape = (len(image), *self.backbone.grid_of(image))
            if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
                raise ParameterError(
                    f"pixels {tuple(image.shape)} take a bool mask {shape}, not {mask.dtype} {tuple(mask.shape)}."
                )
        return images, masks


class Backbone(nn.Module):
    """The ViT: CLS, patches and detection tokens through the blocks."""

    def __init__(self, config: YolosConfig) -> None:
        super().__init__()
        self.config = config
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.patch_embed = PatchEmbed(None, config.patch, 3, config.dim, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.det_token = nn.Parameter(torch.zeros(1, config.detection_tokens, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.positions, config.dim))
        mid = torch.zeros(config.depth - 1, 1, config.positions, config.dim) if config.mid_positions else None
        self.mid_pos_embed = None if mid is None else nn.Parameter(mid)
        ratio = (config.mlp_hidden + 0.5) / config.dim  # timm multiplies it with dim again and drops the fraction
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, ratio, config.qkv_bias, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(config.depth)
        )
        self.norm = norm(config.dim)
        for parameter in (self.cls_token, self.det_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias) if module.bias is not None else None

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, cols) of patches of (..., H, W).

        Raises:
            ParameterError: the sides are no multiples of the patch.
        """
        patch, (height, width) = self.config.patch, pixels.shape[-2:]
        if height % patch or width % patch or not height or not width:
            raise ParameterError(f"an input of {height} x {width} pixels cannot be cut into patches of {patch}.")
        return height // patch, width // patch

    def run(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None], prune_after: int, backend: Backend | Kernel
    ) -> Iterator[RaggedTokens]:
        """The tokens after each block.

        Args:
            images: float (b, 3, H, W) of one size each.
            masks: bool (b, rows, cols) for each, or None.
            prune_after: blocks that see all patches.
            backend: of attention.
        """
        grids = [self.grid_of(image) for image in images]
        at_once = [None if prune_after else mask for mask in masks]
        tokens = self._embed(images, at_once, grids)
        chosen = self._chosen(images, masks, grids) if prune_after and any(mask is not None for mask in masks) else None
        mid, place = self._mid(images, at_once, grids)
        for index, block in enumerate(self.blocks):
            if chosen is not None and index == prune_after:
                tokens = tokens.select(chosen)
                place = None if place is None else place[chosen]
            tokens = run_block(block, tokens, backend)
            if mid is not None and index < len(mid):
                tokens = tokens.with_values(tokens.values + mid[index][place])
            yield tokens

    def _embed(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None], grids: Sequence[tuple[int, int]]
    ) -> RaggedTokens:
        """CLS, kept patches and detection tokens of each image, positions added."""
        count = self.config.detection_tokens
        tables = {grid: interpolated(self.pos_embed, self.config.grid, grid, count)[0] for grid in set(grids)}
        sequences: list[Tensor] = []
        for pixels, mask, grid in zip(images, masks, grids, strict=True):
            table = tables[grid]
            first = self.cls_token[0] + table[:1]
            last = self.det_token[0] + table[-count:]
            positions = table[1:-count]
            if mask is None:
                patches = self.patch_embed(pixels) + positions
                parts: Sequence[Tensor] = patches.unbind(0)
            else:
                kept = embed_kept(self.patch_embed.proj, pixels, mask) + positions[mask.flatten(1).nonzero()[:, 1]]
                parts = torch.split(kept, mask.flatten(1).sum(1).tolist())
            sequences += [torch.cat([first.to(part.dtype), part, last.to(part.dtype)]) for part in parts]
        return pack(sequences)

    def _mid(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None], grids: Sequence[tuple[int, int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Positions (depth - 1, places, dim) that follow the blocks, and int64 (total,): the place of every token."""
        if self.mid_pos_embed is None:
            return None, None
        count, device = self.config.detection_tokens, self.mid_pos_embed.device
        begins: dict[tuple[int, int], int] = {}
        tables: list[Tensor] = []
        for grid in dict.fromkeys(grids):
            begins[grid] = sum(table.shape[1] for table in tables)
            tables.append(interpolated(self.mid_pos_embed[:, 0], self.config.grid, grid, count))
        places: list[Tensor] = []
        for pixels, mask, (rows, cols) in zip(images, masks, grids, strict=True):
            every = torch.arange(1 + rows * cols + count, device=device) + begins[rows, cols]
            full = self._with_others(pixels, mask, (rows, cols))
            places += [every[image] for image in full]
        return torch.cat(tables, 1), torch.cat(places)

    def _chosen(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None], grids: Sequence[tuple[int, int]]
    ) -> Tensor:
        """bool (total,): which of all tokens stay."""
        return torch.cat(
            [self._with_others(*each).flatten() for each in zip(images, masks, grids, strict=True)]
        )  # fmt: skip

    def _with_others(self, pixels: Tensor, mask: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """bool (b, 1 + patches + detection tokens): a mask of patches, and the tokens that always stay."""
        batch = len(pixels)
        flat = pixels.new_ones(batch, grid[0] * grid[1], dtype=torch.bool) if mask is None else mask.flatten(1)
        always = flat.new_ones(batch, 1)
        return torch.cat([always, flat, always.expand(-1, self.config.detection_tokens)], 1)


class Mlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., outputs)."""
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        found: Tensor = self.layers[-1](x)
        return found


def interpolated(positions: Tensor, stored: tuple[int, int], grid: tuple[int, int], detection_tokens: int) -> Tensor:
    """Positions for another grid: bicubic, corners not aligned, not smoothed, as YOLOS was trained.

    Args:
        positions: (n, 1 + patches + detection tokens, dim).
        stored: (rows, cols) they are for.
        grid: (rows, cols) wanted.
        detection_tokens: how many stand at the end; they and the first do not change.
    """
    if stored == grid:
        return positions
    first, patches, last = torch.split(positions, [1, stored[0] * stored[1], detection_tokens], 1)
    cells = patches.transpose(1, 2).reshape(len(patches), -1, *stored)
    resized = interpolate(cells, grid, mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2), last], 1)
