"""BAViT in front of YOLOS, as one detector: background is removed before, or within, the blocks of the detector."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bavit.attention import Backend
from bavit.background.model import BAViT, load_model
from bavit.detect.adaptive import ADAPTIVE_FILE, AdaptiveThreshold
from bavit.detect.config import YolosConfig
from bavit.detect.pruning import Pruning, Size
from bavit.detect.saved import BAVIT_FOLDER, DETECTOR_FOLDER, PRUNED_FILE, Saved, read_saved, write_saved
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.pictures import Picture, picture_size, several_pictures
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """The boxes of one image, one for each detection token, the best first.

    Attributes:
        boxes: float32 (n, 4), left, top, right, bottom in source pixels.
        scores: float32 (n,), probability of the class.
        labels: int64 (n,), number of the class in `Yolos.config.labels`.
        keep: bool (rows, cols), which patches of the detector's grid were kept.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    keep: Tensor

    def cpu(self) -> Detection:
        """The same in main memory."""
        return Detection(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu(), self.keep.cpu())


@dataclass(slots=True)
class StageTimes:
    """Seconds of every stage of detection so far.

    Attributes:
        seconds: by name of stage, in order.
        images: that went through all of them.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0

    @contextlib.contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Time what is done within; a GPU is waited for before and after."""
        begun = _now(device)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + _now(device) - begun


class PrunedDetector(nn.Module):
    """A YOLOS that sees of each image what a BAViT takes for foreground.

    The two models resize the whole image each in its own way, so that a patch of one lies at the same relative position
    as that of the other. Where BAViT removes nothing the detector is the dense one.

    Args:
        bavit: the background-aware ViT; None: nothing is removed.
        yolos: the detector.
        threshold: a patch is removed where its background probability is greater; None: the one stored in `bavit`.
        top_k: see `Pruning`, as the next five.
        sparsity: see above.
        max_tokens: see above.
        refine_steps: see above.
        prune_after: see above.
        adaptive: gives every image a threshold of its own, where neither threshold nor top_k nor sparsity is given.
        backend: of attention, see `attention.py`.

    Attributes:
        pruning: how many patches stay.
        budget: what was asked for and found when that was chosen; None: it was not chosen for a budget.

    Raises:
        ParameterError: contradicting choices, or numbers out of range.
    """

    bavit: BAViT | None
    yolos: Yolos
    adaptive: AdaptiveThreshold | None
    budget: dict[str, Any] | None = None

    def __init__(
        self,
        bavit: BAViT | None,
        yolos: Yolos,
        threshold: float | None = None,
        *,
        top_k: int | None = None,
        sparsity: float | None = None,
        max_tokens: int | None = None,
        refine_steps: int = 3,
        prune_after: int = 0,
        adaptive: AdaptiveThreshold | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.bavit, self.yolos, self.adaptive, self.backend = bavit, yolos, adaptive, backend
        self.prune(Pruning(threshold, top_k, sparsity, max_tokens, refine_steps, prune_after))
        self.eval()

    def prune(self, pruning: Pruning) -> None:
        """From now on let other patches stay.

        Raises:
            ParameterError: the detector has fewer blocks.
        """
        if pruning.prune_after >= self.yolos.config.depth:
            raise ParameterError(
                f"prune_after {pruning.prune_after}: the detector has {self.yolos.config.depth} blocks."
            )
        self.pruning = pruning

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """A pruned detector that `save_pretrained` wrote, on the CPU.

        Raises:
            TokenLabelsError: there is none, or its files are damaged or do not fit together.
        """
        place = Path(folder)
        saved = read_saved(place)
        bavit, yolos = load_model(place / BAVIT_FOLDER), Yolos.from_pretrained(place / DETECTOR_FOLDER)
        adaptive = None if saved.adaptive is None else AdaptiveThreshold.from_pretrained(place, saved.adaptive)
        try:
            found = cls(bavit, yolos, **asdict(saved.pruning), adaptive=adaptive)
        except ParameterError as fault:
            raise TokenLabelsError(f"{place / PRUNED_FILE}: does not fit the detector ({fault})") from None
        found.budget = saved.budget
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the models and how many patches stay, see `saved.py`.

        Raises:
            OutputError: the folder cannot be written.
            ParameterError: there is no BAViT.
        """
        if self.bavit is None:
            raise ParameterError("a detector without a BAViT is a YOLOS: save that.")
        place = Path(folder)
        try:
            for name in (PRUNED_FILE, ADAPTIVE_FILE):
                (place / name).unlink(missing_ok=True)  # until all is there, nothing looks finished
        except OSError as fault:
            raise OutputError(f"{place}: cannot be written ({fault.strerror}): name another folder.") from None
        self.bavit.save_pretrained(place / BAVIT_FOLDER)
        self.yolos.save_pretrained(place / DETECTOR_FOLDER)
        if self.adaptive is not None:
            self.adaptive.save_pretrained(place)
        write_saved(place, Saved(self.pruning, self.budget, None if self.adaptive is None else self.adaptive.config))

    @property
    def config(self) -> YolosConfig:
        """Of the detector."""
        return self.yolos.config

    @property
    def prune_after(self) -> int:
        """Blocks of the detector that see all patches."""
        return self.pruning.prune_after

    @property
    def mask_macs(self) -> int:
        """Multiply-accumulates of what decides which patches of an image stay."""
        if self.bavit is None:
            return 0
        learned = self.adaptive.macs if self.adaptive is not None and self.pruning.by_threshold else 0
        return self.bavit.macs + learned

    @property
    def runtime(self) -> str:
        """What runs it."""
        return "torch"

    @property
    def provider(self) -> str:
        """The device it is on."""
        return self.yolos.backbone.cls_token.device.type

    @torch.inference_mode()
    def forward(self, images: Picture | Sequence[Picture], times: StageTimes | None = None) -> list[Detection]:
        """Detect.

        Args:
            images: one or several of any sizes; PIL images, or uint8 tensors (3, H, W) of RGB.
            times: added to.

        Returns:
            One for each image.

        Raises:
            ParameterError: a tensor of another shape or type, or a picture that cannot be resized.
        """
        several = several_pictures(images)
        if not several:
            return []
        times = StageTimes() if times is None else times
        sizes = [picture_size(image) for image in several]
        device = self.yolos.backbone.cls_token.device
        with times.stage("input of BAViT", device):
            small = None if self.bavit is None else self.bavit.preprocess(several)
        with times.stage("input of the detector", device):
            pixels = self.yolos.preprocess(several)
        return self.detect(small, pixels, sizes, times)

    @torch.inference_mode()
    def detect(
        self,
        small: Tensor | None,
        pixels: Tensor | Sequence[Tensor],
        sizes: Sequence[Size],
        times: StageTimes | None = None,
    ) -> list[Detection]:
        """Detect in what was made ready.

        Args:
            small: float (B, 3, H', W'), the inputs of BAViT, or None without one.
            pixels: the inputs of the detector, see `Yolos.forward`.
            sizes: (width, height) of each image, source pixels.
            times: added to.
        """
        times = StageTimes() if times is None else times
        device = self.yolos.backbone.cls_token.device
        keep: Sequence[Tensor | None] | None = None
        if small is not None and self.bavit is not None:
            with times.stage("BAViT", device):
                background = self.bavit.background(small)
            with times.stage("masks", device):
                if not bool(background.isfinite().all()):
                    raise TokenLabelsError("the BAViT answers with what is no number: its weights are damaged.")
                keep = self.masks(background, pixels, sizes)
        with times.stage("detector", device):
            output = self.yolos(pixels, keep, prune_after=self.pruning.prune_after, backend=self.backend)
        with times.stage("boxes", device):
            found = detections(output, keep, [self.yolos.backbone.grid_of(image) for image in pixels], sizes)
        times.images += len(sizes)
        return found

    def masks(
        self, background: Tensor, pixels: Tensor | Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Tensor | None] | None:
        """What is kept: bool (rows, cols) of each image, None where nothing of an image, or of any, is removed."""
        assert self.bavit is not None
        shapes = [self.yolos.backbone.grid_of(image) for image in pixels]
        kept = self.pruning.masks(background, self.bavit.grid, sizes, shapes, self.thresholds(background))
        found = [None if bool(mask.all()) else mask for mask in kept]
        return None if all(mask is None for mask in found) else found

    def thresholds(self, background: Tensor) -> float | Tensor:
        """Above which background a patch is removed: the one that was given, else learned ones, else BAViT's own.

        Args:
            background: float (B, r, c), probability of background on BAViT's grid.

        Returns:
            One of all images, or float32 (B,), with gradients to what was learned.
        """
        assert self.bavit is not None
        if self.adaptive is not None and self.pruning.by_threshold:
            found: Tensor = self.adaptive(background)
            return found
        return self.bavit.threshold if self.pruning.threshold is None else self.pruning.threshold


def detections(
    output: YolosOutput, keep: Sequence[Tensor | None] | None, grids: Sequence[Size], sizes: Sequence[Size]
) -> list[Detection]:
    """Boxes of each image, as YOLOS' authors read them: the best class of every detection token, no suppression.

    Args:
        output: of the detector.
        keep: bool (rows, cols) of each image; None: all.
        grids: (rows, cols) of each image.
        sizes: (width, height) of each image, source pixels.
    """
    scores, labels = output.logits.float().softmax(-1)[..., :-1].max(-1)
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    labels = labels.gather(1, order)
    centre, extent = output.boxes.gather(1, order[..., None].expand(-1, -1, 4)).chunk(2, -1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
    scale = torch.tensor(sizes, dtype=torch.float32, device=corners.device).repeat(1, 2)
    boxes = corners * scale[:, None]
    everything = [torch.ones(grid, dtype=torch.bool, device=boxes.device) for grid in grids]
    masks = everything if keep is None else [m if m is not None else e for m, e in zip(keep, everything, strict=True)]
    return [Detection(*each) for each in zip(boxes, scores, labels, masks, strict=True)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
