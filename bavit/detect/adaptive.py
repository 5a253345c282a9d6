"""A threshold of its own for every image, learned from how certain a BAViT is of that image.

The BAViT paper (arXiv 2410.09324) names sparsity that adapts to the image, with a threshold that is learned, as future
work, and says no more of it. So all of this is our design: what the threshold depends on, its network, and that it is
trained against a penalty on multiply-accumulates (`bavit joint --train threshold --mac-penalty`, see `joint.py`).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import linear

from bavit.weights import load_weights, read_safetensors
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError, TokenLabelsError

ADAPTIVE_FILE = "adaptive.safetensors"

SPAN = 8.0
"""How far, in logits, a threshold may move from where it starts."""

_LEAST, _MOST_WIDTH = 1e-6, 1024


class AdaptiveConfig(msgspec.Struct, frozen=True):
    """What an `AdaptiveThreshold` is made of.

    Attributes:
        start: the threshold of every image before anything is learned, between 0 and 1.
        quantiles: how many quantiles of an image's background logits it reads.
        hidden: width of the hidden layer.

    Raises:
        ParameterError: a number out of range.
    """

    start: float = 0.5
    quantiles: int = 16
    hidden: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ParameterError(f"a learned threshold cannot start at {self.start:g}: it is between 0 and 1.")
        if not (1 <= self.quantiles <= _MOST_WIDTH and 1 <= self.hidden <= _MOST_WIDTH):
            raise ParameterError(f"{self.quantiles} quantiles, {self.hidden} hidden: each is 1 to {_MOST_WIDTH}.")


class AdaptiveThreshold(nn.Module):
    """Thresholds of images: `adaptive(background)`.

    It reads quantiles of the logits of background, and their mean: whether an image is full or empty, and how many of
    its patches are doubtful, but not where they are; so it serves any grid. A network of two layers moves the logit of
    the threshold, by at most `SPAN`. Its last layer is zero at first: it starts as the fixed threshold, exactly.

    Args:
        config: what it is made of; by default the usual.

    Attributes:
        config: the same.
        shift: learned, what the logits of all thresholds are moved by.
        mean: float32 (features,), of the features, see `standardise`.
        std: float32 (features,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: AdaptiveConfig | None = None) -> None:
        super().__init__()
        self.config = config or AdaptiveConfig()
        features = self.config.quantiles + 1
        self.shift = nn.Parameter(torch.zeros(()))
        self.hidden = nn.Linear(features, self.config.hidden)
        self.last = nn.Linear(self.config.hidden, 1, bias=False)  # `shift` is its bias
        nn.init.zeros_(self.last.weight)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, background: Tensor) -> Tensor:
        """The threshold of each image. No gradient goes back into `background`.

        All is computed in float64 where the device has it, so that an image's threshold does not depend on its batch.

        Args:
            background: float (B, r, c), probability of background; any grid with cells.

        Returns:
            float32 (B,), in 0..1, on the device of `background`.
        """
        exact = torch.float32 if background.device.type == "mps" else torch.float64  # Metal has no float64
        with torch.autocast(background.device.type, enabled=False):
            features = (self._features(background.detach().to(exact)) - self.mean.to(exact)) / self.std.to(exact)
            hidden = torch.tanh(linear(features, self.hidden.weight.to(exact), self.hidden.bias.to(exact)))
            moved = linear(hidden, self.last.weight.to(exact))[:, 0] + self.shift.to(exact)
            moved = SPAN * torch.tanh(moved / SPAN)
            start = self.config.start  # the sigmoid of its logit + moved, written such that 0 gives it back to the bit
            return (start / (start + (1 - start) * torch.exp(-moved))).float()

    @torch.no_grad()
    def standardise(self, background: Tensor) -> None:
        """Scale the features to mean 0 and deviation 1 over some images; to be called before training.

        Args:
            background: float (n, r, c), of at least one image.
        """
        features = self._features(background.double())
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0, correction=0).clamp(min=1e-2))  # a feature that hardly varies stays small

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.hidden.weight.numel() + self.last.weight.numel()

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(value.numel() for value in self.parameters())

    def save_pretrained(self, folder: Path) -> None:
        """Write `adaptive.safetensors`; its config goes elsewhere, see `saved.py`.

        Raises:
            OutputError: the folder cannot be written.
        """
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomically(folder / ADAPTIVE_FILE, save(state, metadata={"format": "pt"}))

    @classmethod
    def from_pretrained(cls, folder: Path, config: AdaptiveConfig) -> AdaptiveThreshold:
        """What `save_pretrained` wrote, on the CPU.

        Raises:
            TokenLabelsError: the file is missing, damaged, or of another shape.
        """
        found, path = cls(config), folder / ADAPTIVE_FILE
        load_weights(found, read_safetensors(path), path)
        if not all(bool(value.isfinite().all()) for value in found.state_dict().values()) or not (found.std > 0).all():
            raise TokenLabelsError(f"{path}: holds what is no number: fetch it again, or train it again.")
        return found.eval()

    def _features(self, background: Tensor) -> Tensor:
        """float (B, quantiles + 1): quantiles at the middle of equal shares, linear between patches; and the mean."""
        logits = background.flatten(1).clamp(_LEAST, 1 - _LEAST).logit()
        ordered = logits.sort(dim=1).values
        shares = torch.arange(self.config.quantiles, dtype=logits.dtype, device=logits.device) + 0.5
        places = shares / self.config.quantiles * (logits.shape[1] - 1)
        below = places.long()
        above = (below + 1).clamp(max=logits.shape[1] - 1)
        found = torch.lerp(ordered[:, below], ordered[:, above], places - below)
        return torch.cat([found, logits.mean(1, keepdim=True)], 1)
