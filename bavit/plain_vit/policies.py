"""What decides which patches stay: a BAViT in front of another model, or the tokens themselves at some depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from bavit.background.model import BAViT
from bavit.detect.pruning import Pruning, steps_of
from bavit.plain_vit.supported import Grid
from tokenlabels.errors import ParameterError, TokenLabelsError

PixelPolicy: TypeAlias = Callable[[Tensor], Tensor]
"""pixels float (batch, channels, H, W), whole patches -> keep, bool (batch, rows, cols)."""


class TokenPolicy(nn.Module):
    """Decides by the tokens of the model itself, at the depth at which patches leave.

    Args:
        decide: a function or module, (tokens float (batch, prefix + rows * cols, dim), (rows, cols)) -> keep, bool
            (batch, rows, cols).
    """

    def __init__(self, decide: Callable[[Tensor, Grid], Tensor]) -> None:
        super().__init__()
        self.decide = decide

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """What `decide` says."""
        return self.decide(tokens, grid)


class BackgroundPolicy(nn.Module):
    """Keeps what a BAViT takes for foreground.

    BAViT sees the pixels of the other model: their normalisation undone, clipped to 0..1, resized to its own input
    (bicubic, antialiased, as it was trained). What a crop has cut off it does not see. Its mask is carried to the other
    model's grid, each patch reading the cell that its centre lies in.

    Args:
        bavit: the background-aware ViT.
        mean: that was subtracted from the pixels, of each channel of RGB in 0..1.
        std: that they were divided by.
        threshold: a patch is removed where its background probability is greater; None: the one stored in `bavit`.
        top_k: see `Pruning`, as the next three.
        sparsity: see above.
        max_tokens: see above.
        refine_steps: see above; None: as `bavit` was calibrated, else those of the paper.

    Raises:
        ParameterError: contradicting choices, or numbers out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        bavit: BAViT,
        mean: Sequence[float],
        std: Sequence[float],
        threshold: float | None = None,
        *,
        top_k: int | None = None,
        sparsity: float | None = None,
        max_tokens: int | None = None,
        refine_steps: int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ParameterError(f"mean {tuple(mean)} and std {tuple(std)} are not three numbers each, of std above 0.")
        steps = steps_of(bavit) if refine_steps is None else refine_steps
        self.bavit, self.pruning = bavit, Pruning(threshold, top_k, sparsity, max_tokens, steps)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        """What is kept.

        Args:
            pixels: float (batch, 3, H, W), normalised.
            grid: (rows, cols) over them.

        Returns:
            bool (batch, rows, cols), on the device of the pixels.

        Raises:
            TokenLabelsError: the BAViT answers with what is no number.
        """
        background = self.bavit.background(self.seen_by_bavit(pixels))
        if not bool(background.isfinite().all()):
            raise TokenLabelsError("the BAViT answers with what is no number: its weights are damaged.")
        size = (pixels.shape[3], pixels.shape[2])
        masks = self.pruning.masks(
            background, self.bavit.grid, [size] * len(pixels), [grid] * len(pixels), self.bavit.threshold
        )
        return torch.stack(masks).to(pixels.device)

    def seen_by_bavit(self, pixels: Tensor) -> Tensor:
        """The same pictures as BAViT takes them: (batch, 3, H', W'), on its device and of its dtype."""
        home = self.bavit.mean
        shown = torch.addcmul(self.mean.float(), pixels.to(home.device).float(), self.std.float()).clamp_(0, 1)
        if self.bavit.grid.resize != "squash":
            return self.bavit.preprocess(list((255 * shown).round_().byte())).to(home.dtype)
        size = self.bavit.grid.image_size
        if size is not None and size != tuple(shown.shape[2:]):
            shown = interpolate(shown, size, mode="bicubic", antialias=True).clamp_(0, 1)
        return self.bavit.normalise(255 * shown.to(home.dtype))
