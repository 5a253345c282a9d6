"""A plain ViT that segments, and lets easy tokens end early: `model(pixels)` gives logits on the patch grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from bavit.pictures import Picture, as_tensor, resize, several_pictures
from bavit.segment.backbone import embed, for_any_size, make_backbone, normalisation, patch_size
from bavit.segment.config import (
    HALF,
    BackboneShape,
    HeadName,
    Reduction,
    SegmentClass,
    SegmenterConfig,
    check_positions,
)
from bavit.segment.early_exit import ExitRule, Method
from bavit.segment.heads import HeadOutput, combined, make_head, probabilities
from bavit.segment.reduction import HalvedGrid
from bavit.segment.walk import Travellers
from bavit.segment.weights import read_segmenter, write_segmenter
from bavit.vit import run_block
from bavit.weights import CONFIG_FILE, load_weights
from tokenlabels.errors import ParameterError, TokenLabelsError

DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, slots=True, eq=False)
class SegmenterOutput:
    """What a segmenter says of B pictures, and what it took.

    Attributes:
        logits: float32 (B, K, rows, cols), the greatest being the class: logits of the stage in which a token ended
            (FCN); its mask's probability there, times the last stage's probability of the class (ATM), in 0..1.
        exit_stage: int64 (B, rows, cols), the stage in which a token ended, the last for those that went to the end.
        tokens: int64 (B, depth), tokens that each block saw, prefix and context included.
        heads: int64 (B, stages), tokens that each head read, 0 where it did not run.
        alive: int64 (B, stages), patch tokens that had not ended when a stage began.
    """

    logits: Tensor
    exit_stage: Tensor
    tokens: Tensor
    heads: Tensor
    alive: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StageOutput:
    """What is known after one stage, on the whole grid: of tokens that ended, what the head said with which they did.

    Attributes:
        logits: float32 (B, K, rows, cols): of classes (FCN), or of masks (ATM).
        class_logits: float32 (B, K, 2), of ATM, index 0: the class is in the picture.
        alive: int64 (B,), patch tokens that had not ended when the stage began.
    """

    logits: Tensor
    class_logits: Tensor | None
    alive: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One head has spoken: what is known of all cells, which tokens ended, and how many of each image it read."""

    stage: int
    canvas: Tensor  # float32 (B * rows * cols, K)
    class_logits: Tensor | None  # float32 (B, K, 2)
    ended: Tensor  # int64 (e,), cells
    read: tuple[int, ...]


class Segmenter(nn.Module):
    """Semantic segmentation by a plain ViT, with early exit of tokens (DToP, Tang et al., ICCV 2023).

    Heads sit after the blocks of `head_after`, and after the last. A token of which a head is sure ends there; the
    others go on, packed, so that a batch costs what its tokens cost.

    Args:
        backbone: name of a plain ViT of timm, or such a model, which is changed: its classifier is taken off.
        num_classes: K.
        head: `fcn` or `atm`.
        exit_after: numbers of blocks after which auxiliary heads sit.
        p0: least probability of the top class that ends a token; 1 or more: no early exit, and no head but the last.
        keep_per_class: most confident tokens of each class present that go on all the same.
        pretrained: fetch timm's weights.
        method: what goes on of tokens that end, see `early_exit.py`.
        proportion: of the method of that name.
        downsample: halve the grid after the first of `exit_after` instead, see `reduction.py`.
        image_size: (H, W) that positions are stored for and `preprocess` makes; by default 512, or the model's own.
        class_names: of the classes; by default their numbers.
        drop_path: share of branches that training leaves out at the last block.

    Attributes:
        p0, keep_per_class, method, proportion: as above, free to change between calls.
        exit_after: where tokens may end, free to change to any of `head_after`.
        head_after: where auxiliary heads sit.
        classes: what is told apart.
        image_size: see above.

    Raises:
        ParameterError: values out of range, or no plain ViT.
        TokenLabelsError: weights that cannot be fetched.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        head: HeadName = "fcn",
        exit_after: Sequence[int] = (6, 8),
        p0: float = 0.95,
        keep_per_class: int = 5,
        pretrained: bool = False,
        *,
        method: Method = "top-k",
        proportion: float = 0.35,
        downsample: Reduction = "none",
        image_size: int | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        names = class_names or [str(number) for number in range(num_classes)]
        if len(names) != num_classes:
            raise ParameterError(f"{len(names)} names are no names for {num_classes} classes: give one for each.")
        self.p0, self.keep_per_class, self.method, self.proportion = p0, keep_per_class, method, proportion
        self.classes = tuple(SegmentClass(value, name) for value, name in enumerate(names))
        self.head_after = self.exit_after = tuple(exit_after)
        self._head, self._downsample, self.mean, self.std = head, downsample, HALF, HALF
        self._shape = BackboneShape(backbone) if isinstance(backbone, str) else None
        self.image_size = _size_of(backbone, image_size)
        asked = self.config  # checks everything
        if isinstance(backbone, str):
            vit = make_backbone(asked.backbone, asked.image_size, pretrained=pretrained, drop_path=drop_path)
            self.mean, self.std = normalisation(vit)
        else:
            vit = for_any_size(backbone)
        self.backbone = vit
        check_positions(self.head_after, self.depth)
        self.heads = nn.ModuleList(make_head(head, vit.embed_dim, num_classes) for _ in (*self.head_after, self.depth))
        self.reduction = None if downsample == "none" else HalvedGrid(downsample, vit.embed_dim)

    @classmethod
    def from_config(cls, config: SegmenterConfig, *, pretrained: bool = False, drop_path: float = 0.0) -> Self:
        """A new model; with `pretrained` its backbone has timm's weights, and their normalisation.

        Raises:
            ParameterError: numbers that make no model.
            TokenLabelsError: weights that cannot be fetched.
        """
        rule = config.rule
        vit = make_backbone(config.backbone, config.image_size, pretrained=pretrained, drop_path=drop_path)
        model = cls(
            vit, len(config.classes), config.head, config.exit_after, rule.p0, rule.keep_per_class,
            method=rule.method, proportion=rule.proportion, downsample=config.downsample, image_size=config.image_size,
        )  # fmt: skip
        model.classes, model._shape = config.classes, config.backbone
        model.mean, model.std = normalisation(vit) if pretrained else (config.mean, config.std)
        return model

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """A segmenter of a folder, such as a run, or of the Hugging Face hub; on the CPU, in evaluation mode.

        Raises:
            TokenLabelsError: there is no such model, its files are damaged, or it is no segmenter.
        """
        config, state, path = read_segmenter(name)
        try:
            with torch.device("meta"):
                model = cls.from_config(config)
        except ParameterError as fault:
            raise TokenLabelsError(
                f"{path.parent / CONFIG_FILE}: does not describe a segmenter ({str(fault).rstrip('.')})."
            ) from None
        load_weights(model, state, path, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors.

        Raises:
            OutputError: the folder cannot be written.
            ParameterError: the backbone was given as a module, which a config cannot name.
        """
        if self._shape is None:
            raise ParameterError("a backbone that was given as a module cannot be stored: name one of timm.")
        write_segmenter(Path(folder), self.config, self.state_dict())

    @property
    def config(self) -> SegmenterConfig:
        """What `from_config` needs to make the same model, with the rule of now.

        Raises:
            ParameterError: an attribute was set to what it cannot be.
        """
        return SegmenterConfig(
            self.classes, self._shape or BackboneShape(""), self._head, self.head_after, self.image_size, self.rule,
            self._downsample, self.mean, self.std,
        )  # fmt: skip

    @property
    def rule(self) -> ExitRule:
        """Which tokens end, by the attributes of now.

        Raises:
            ParameterError: one of them is out of range.
        """
        return ExitRule(self.p0, self.keep_per_class, self.method, self.proportion)

    @property
    def _exits(self) -> bool:
        return self.rule.exits and self.reduction is None

    @property
    def depth(self) -> int:
        """Blocks."""
        return len(self.backbone.blocks)

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return patch_size(self.backbone)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(value.numel() for value in self.parameters())

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, cols) of an input of some size in pixels; patches that stick out are padded."""
        return -(-height // self.patch[0]), -(-width // self.patch[1])

    def forward(self, pixels: Tensor) -> SegmenterOutput:
        """Segment.

        Args:
            pixels: float (B, 3, H, W), normalised, see `preprocess`; padded right and below to whole patches.

        Raises:
            ParameterError: another shape, or attributes set to what they cannot be.
        """
        rows, cols = self.grid(*pixels.shape[-2:])
        cells, stages = len(pixels) * rows * cols, len(self.exit_after) + 1
        places = self.exit_after if self._exits else ()
        ended = torch.full((cells,), stages - 1, device=pixels.device)
        image = torch.arange(len(pixels), device=pixels.device).repeat_interleave(rows * cols)
        heads = torch.zeros(len(pixels), stages, dtype=torch.int64)
        alive = torch.zeros_like(heads)
        seen: list[Sequence[int]] = []
        step = None
        for step in self._steps(pixels, places, exiting=True, seen=seen):
            stage = step.stage if places else stages - 1
            heads[:, stage] = torch.tensor(step.read)
            alive[:, stage] = torch.tensor(step.read)
            ended[step.ended] = stage
        assert step is not None
        if not places:
            alive[:] = rows * cols
        logits = combined(step.canvas, step.class_logits, image)
        return SegmenterOutput(
            logits.view(len(pixels), rows, cols, -1).permute(0, 3, 1, 2),
            ended.view(-1, rows, cols),
            torch.tensor(seen).T.reshape(len(pixels), self.depth),
            heads,
            alive,
        )

    def stages(self, pixels: Tensor, *, exiting: bool) -> list[StageOutput]:
        """What is known after each stage, to learn from; arguments as of `forward`.

        Args:
            pixels: see `forward`.
            exiting: tokens end as they do in `forward`; else all of them go through the whole network.
        """
        rows, cols = self.grid(*pixels.shape[-2:])
        found = []
        for step in self._steps(pixels, self.exit_after, exiting=exiting and self._exits, seen=[]):
            logits = step.canvas.view(len(pixels), rows, cols, -1).permute(0, 3, 1, 2)
            found.append(StageOutput(logits, step.class_logits, torch.tensor(step.read)))
        return found

    def _steps(
        self, pixels: Tensor, places: Sequence[int], *, exiting: bool, seen: list[Sequence[int]]
    ) -> Iterator[_Step]:
        """Run blocks, and heads after some of them; of every block `seen` is told the tokens of each image."""
        self._check_places(places)
        heads = dict(zip((*self.head_after, self.depth), self.heads, strict=True))
        shape = self.grid(*pixels.shape[-2:])
        cells = shape[0] * shape[1]
        travellers = Travellers.start(embed(self.backbone, self._padded(pixels)), self.backbone.num_prefix_tokens)
        canvas = torch.zeros(len(pixels) * cells, self.num_classes, device=pixels.device)
        classes: Tensor | None = None
        halved: tuple[int, int] | None = None
        for done, block in enumerate(self.backbone.blocks, 1):
            seen.append(travellers.tokens.lengths)
            travellers = travellers.with_tokens(run_block(block, travellers.tokens))
            if done in places or done == self.depth:
                patches, cell = travellers.patches()
                output: HeadOutput = heads[done](patches)
                canvas = canvas.index_copy(0, cell, output.logits) if halved is None else _spread(
                    output.logits, halved, shape
                )  # fmt: skip
                classes = _newest(classes, output.class_logits, patches.lengths)
                ended = cell[:0]
                if exiting and done < self.depth:
                    scores = probabilities(output.logits.detach(), output.class_logits, cell // cells)
                    travellers, ended = travellers.after(scores.detach(), self.rule)
                stage = places.index(done) if done < self.depth else len(places)
                yield _Step(stage, canvas, classes, ended, patches.lengths)
            if self.reduction is not None and done == self.head_after[0]:
                travellers, halved = self._halve(travellers, shape)

    def _check_places(self, places: Sequence[int]) -> None:
        check_positions(places, self.depth)
        missing = [place for place in places if place not in self.head_after]
        if missing:
            raise ParameterError(
                f"there is no head after block {missing[0]}: tokens can end after "
                f"{', '.join(map(str, self.head_after)) or 'no block'} of this model."
            )

    def _halve(self, travellers: Travellers, shape: tuple[int, int]) -> tuple[Travellers, tuple[int, int]]:
        """All tokens with patches on half the grid, and its (rows, cols)."""
        assert isinstance(self.reduction, HalvedGrid)
        prefix: int = self.backbone.num_prefix_tokens
        batch = len(travellers.tokens.lengths)
        tokens = travellers.tokens.values.view(batch, -1, self.backbone.embed_dim)
        patches = self.reduction(tokens[:, prefix:].reshape(batch, *shape, -1))
        whole = torch.cat([tokens[:, :prefix], patches.flatten(1, 2)], 1)
        return Travellers.start(whole, prefix), (patches.shape[1], patches.shape[2])

    def _padded(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not min(pixels.shape[2:]):
            raise ParameterError(f"pixels are float (B, 3, H, W), not {tuple(pixels.shape)}.")
        down, across = (-side % patch for side, patch in zip(pixels.shape[2:], self.patch, strict=True))
        return pad(pixels, (0, across, 0, down)) if down or across else pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to normalised float32, the same shape."""
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return torch.addcmul(-mean / std, pixels, 1 / (255 * std))

    def preprocess(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Pictures stretched to `image_size`, and normalised; `windows.py` segments those of other sizes as they are.

        Args:
            images: one or several; PIL images, or uint8 tensors (3, H, W) of RGB. EXIF orientation is not applied.

        Returns:
            float32 (B, 3, *image_size), on the model's device.

        Raises:
            ParameterError: a tensor of another shape or type.
        """
        found = [resize(as_tensor(image), self.image_size) for image in several_pictures(images)]
        stacked = torch.stack(found) if found else torch.empty(0, 3, *self.image_size, dtype=torch.uint8)
        return self.normalise(stacked.to(self.device))


def upsample(logits: Tensor, size: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Logits of every pixel: bilinear, as SETR-naive does it; what was padded is cut off.

    Args:
        logits: float (B, K, rows, cols).
        size: (H, W) of the pixels that were segmented.
        patch: (height, width) of a patch in pixels.

    Returns:
        float (B, K, H, W).
    """
    whole = (logits.shape[2] * patch[0], logits.shape[3] * patch[1])
    found = interpolate(logits, whole, mode="bilinear", align_corners=False)
    return found[..., : size[0], : size[1]]


def _spread(logits: Tensor, halved: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """(B * r * c, K) of half the grid -> (B * rows * cols, K) of all of it, bilinear."""
    planes = logits.view(-1, *halved, logits.shape[-1]).permute(0, 3, 1, 2)
    whole = upsample(planes, shape, (2, 2))
    return whole.permute(0, 2, 3, 1).flatten(0, 2)


def _newest(before: Tensor | None, now: Tensor | None, lengths: Sequence[int]) -> Tensor | None:
    """Class logits (B, K, 2) of the last head that read any token of an image."""
    if before is None or now is None:
        return now
    read = torch.tensor([length > 0 for length in lengths], device=now.device)
    return torch.where(read[:, None, None], now, before)


def _size_of(backbone: str | nn.Module, given: int | Sequence[int] | None) -> tuple[int, int]:
    """(H, W) that positions are stored for."""
    if isinstance(given, int):
        return given, given
    if given is not None:
        height, width = given
        return height, width
    embedding = getattr(backbone, "patch_embed", None)
    if embedding is None:
        return DEFAULT_SIZE
    rows, cols = embedding.grid_size
    return rows * embedding.patch_size[0], cols * embedding.patch_size[1]
