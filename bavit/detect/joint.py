"""Joint training of a BAViT and the detector behind it: what is its own of a run.

The loss is the detector's, for those patches that are kept; the BAViT's cross entropy against the patch labels; what
keeping patches costs; and what is learned from a teacher. The gradient of a decision goes straight through: forward a
patch is kept or not, backward it is the smooth probability that it is. For the BAViT that probability is the patch's
own: refinement, which keeps further patches, has no gradient. For a learned threshold (see `adaptive.py`) it is that of
the patch after refinement.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bavit.background.confusion import Confusion
from bavit.background.critical import critical_probabilities
from bavit.background.label_counts import balanced_weights
from bavit.background.loss import accumulative_cross_entropy
from bavit.background.model import BAViT
from bavit.detect.accounting import detector_macs
from bavit.detect.adaptive import AdaptiveConfig, AdaptiveThreshold
from bavit.detect.answering import Answering
from bavit.detect.budget_loss import mac_share, share_loss
from bavit.detect.finetune import DetectionLearner
from bavit.detect.joint_settings import JointSettings
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Size, carry
from bavit.detect.samples import DetectionBatch, DetectionImages
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.pictures import PictureError
from bavit.training.learner import Task
from bavit.training.loop import fit
from tokenlabels.errors import ParameterError
from tokenlabels.labels import FOREGROUND, IGNORE
from tokenlabels.progress import Progress

_LEAST, _TINY = 1e-4, 1e-6
"""A threshold of 0 or 1 counts as one so far from it: its logit would be infinite. Learned ones come nearer."""

_FIRST_PICTURES = 512
"""Pictures on which what a learned threshold reads is scaled."""


def joint(task: Task, settings: JointSettings, given: dict[str, Any], progress: Progress) -> dict[str, float]:
    """Train a BAViT and a detector, and leave them in a run folder, a saved pruned detector; see `fit`."""
    return fit(JointLearner(task, settings), given, progress)


class JointAnswering(nn.Module):
    """A pruned detector that answers as training asks.

    Args:
        detector: with a BAViT.
        answering: of its YOLOS.
        softness: see `JointSettings`.
    """

    def __init__(self, detector: PrunedDetector, answering: Answering, softness: float) -> None:
        super().__init__()
        self.detector, self.answering, self._softness = detector, answering, softness

    def forward(
        self, small: Tensor, pixels: Tensor | list[Tensor], grids: Sequence[Size], sizes: Sequence[Size]
    ) -> tuple[Tensor, list[Tensor], list[Tensor] | None, tuple[tuple[Tensor, Tensor], ...]]:
        """BAViT's logits (B, N, 2); masks, bool (rows_i, cols_i); the same with gradients, or None; and answers.

        Args:
            small: uint8 (B, 3, h, w), inputs of the BAViT.
            pixels: those of the detector, see `Yolos.forward`.
            grids: (rows, cols) of each image on the detector's grid.
            sizes: (width, height) of each image, source pixels.
        """
        bavit, pruning = self.detector.bavit, self.detector.pruning
        assert bavit is not None
        with torch.autocast(small.device.type, enabled=False):  # masks are then those of evaluation
            logits: Tensor = bavit(bavit.normalise(small))
            background = bavit.background_of(logits)
            threshold = self.detector.thresholds(background)
            keep = pruning.masks(background.detach(), bavit.grid, sizes, grids, threshold)
            soft = []
            if background.requires_grad:
                fixed = threshold.detach() if isinstance(threshold, Tensor) else threshold
                soft.append(soft_keep(logits, fixed, self._softness).reshape(background.shape))
            if isinstance(threshold, Tensor):
                soft.append(soft_threshold(background, threshold, pruning.refine_steps, self._softness))
            both = carry(torch.stack(soft).sum(0), bavit.grid, sizes, grids) if soft else None
            policy = None if both is None else straight_through(keep, both)
        return logits, keep, policy, self.answering(pixels, keep, policy)


def soft_keep(logits: Tensor, threshold: float | Tensor, softness: float) -> Tensor:
    """float (B, N): how probable it is that a patch is kept: one half where its background is at the threshold.

    Args:
        logits: (B, N, 2), index 1 is foreground.
        threshold: of the probability of background; or float (B,), one of each image.
        softness: logits by which the odds change e-fold.
    """
    limit = torch.as_tensor(threshold, device=logits.device).clamp(_LEAST, 1 - _LEAST).logit().reshape(-1, 1)
    return torch.sigmoid((limit - (logits[..., 0] - logits[..., 1]).float()) / softness)


def soft_threshold(background: Tensor, threshold: Tensor, refine_steps: int, softness: float) -> Tensor:
    """float (B, r, c): how probable it is that a patch is kept after refinement, with gradients to thresholds alone.

    Args:
        background: float (B, r, c), probability of background.
        threshold: float (B,), with gradients.
        refine_steps: of the masks.
        softness: see `soft_keep`.
    """
    critical = critical_probabilities(background.detach().float().cpu().numpy(), refine_steps)
    places = torch.from_numpy(critical).to(background.device).clamp(_TINY, 1 - _TINY).logit()
    return torch.sigmoid((threshold.clamp(_TINY, 1 - _TINY).logit()[:, None, None] - places) / softness)


def straight_through(keep: Sequence[Tensor], soft: Sequence[Tensor]) -> list[Tensor]:
    """Decisions as numbers 0 and 1 that have the gradients of probabilities; Bengio, Léonard and Courville 2013.

    Args:
        keep: bool (rows_i, cols_i) of each image.
        soft: float (rows_i, cols_i).
    """
    return [hard.to(each.dtype) + (each - each.detach()) for hard, each in zip(keep, soft, strict=True)]


class JointLearner(DetectionLearner):
    """Learns which patches to keep, and to detect from them.

    Raises:
        ParameterError: data and settings that contradict each other.
        TokenLabelsError: the detector, the BAViT or the teacher cannot be read.
    """

    settings: JointSettings
    command = "joint"
    counts = DetectionLearner.counts + 4  # cross entropy, of each image; right answers; labels; MACs, of each image
    judged_counts = 6  # foreground kept, background kept, foreground removed, background removed; MACs; those of all

    def __init__(self, task: Task, settings: JointSettings) -> None:
        super().__init__(task, settings)
        assert self.bavit is not None
        for rows, what in ((task.train, "train on"), (task.val, "validate on")):
            if rows.grid != self.bavit.grid:
                raise ParameterError(
                    f"{rows.folder} has no labels on the grid {self.bavit.grid.name} of {settings.bavit}, only on "
                    f"{rows.grid.name}: build that grid, too, or name another BAViT."
                )
            if (rows.labels == IGNORE).all():
                raise ParameterError(f"{rows.folder}: every patch to {what} is ignored (255): name another split.")
        if self.start.note and "detector" not in settings.parts:
            raise ParameterError(
                f"{settings.detector}: has other classes than {task.train.folder} has categories: train it, too "
                "(--train bavit,detector), or name another detector."
            )
        self.class_weights = balanced_weights(task.train) if settings.class_weights == "balanced" else None
        heads = {"yolos." + name: factor for name, factor in self.lr_factors.items()}
        lr = settings.optimization.lr
        rates = {"bavit.": settings.bavit_lr, "adaptive.": settings.threshold_lr / lr if lr else 0.0}
        self.lr_factors = heads | rates

    def data(self) -> tuple[DetectionImages, DetectionImages]:
        task, classes, seed = self.task, self.start.classes, self.settings.seed
        train, val = (replace(data.view, labels=True) for data in super().data())
        return (
            DetectionImages(task.train, task.images, classes, train, seed),
            DetectionImages(task.val, task.val_images, classes, val, seed),
        )

    def new_model(self) -> PrunedDetector:  # type: ignore[override]
        bavit = copy.deepcopy(self.bavit)
        assert bavit is not None
        if "bavit" in self.settings.parts:
            bavit.calibration = None  # it was of other weights
        pruning, adaptive = asdict(self.settings.pruning), None
        if "threshold" in self.settings.parts:
            start = pruning.pop("threshold")
            adaptive = AdaptiveThreshold(AdaptiveConfig(bavit.threshold if start is None else start))
        model = PrunedDetector(bavit, Yolos(self.start.config), **pruning, adaptive=adaptive)
        bavit.requires_grad_("bavit" in self.settings.parts)
        model.yolos.requires_grad_("detector" in self.settings.parts)
        return model

    def initialize(self, model: nn.Module) -> None:
        assert isinstance(model, PrunedDetector)
        self.initialize_detector(model.yolos)
        if model.adaptive is not None:
            model.adaptive.standardise(self._first_backgrounds())

    def _first_backgrounds(self) -> Tensor:
        """float32 (n, r, c): what the BAViT says of some pictures, spread over those to train on."""
        assert self.bavit is not None
        data = self.data()[0]
        plain = DetectionImages(
            self.task.train, self.task.images, self.start.classes, replace(data.view, augmentation=None, size=None), 0
        )
        chosen = torch.linspace(0, len(plain) - 1, min(_FIRST_PICTURES, len(plain))).long().tolist()
        found = [(sample.small, sample.fault) for sample in (plain[0, row] for row in chosen)]  # not the large inputs
        usable = [small for small, _ in found if small is not None]
        if not usable:
            raise PictureError(f"{found[0][1]} None of {len(found)} pictures could be read.")
        with torch.inference_mode():
            parts = torch.split(torch.stack(usable), self.settings.batch_size)
            return torch.cat([self.bavit.background(self.bavit.normalise(part)) for part in parts])

    def answering(self, model: nn.Module) -> JointAnswering:  # type: ignore[override]
        assert isinstance(model, PrunedDetector)
        return JointAnswering(model, super().answering(model.yolos), self.settings.softness)

    def loss(self, model: nn.Module, batch: DetectionBatch, done: float) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        images = torch.tensor(float(len(batch.used)), device=batch.values.device)
        if not batch.used or batch.small is None or batch.labels is None:
            return self._nothing(model, images), images, [images] * self.counts
        logits, keep, policy, answers = model(batch.small, self.pixels(batch), batch.grids, batch.sizes)
        total, counts = self.detection_cost(answers, batch, keep, done)
        entropy = accumulative_cross_entropy(logits, batch.labels, self.class_weights)
        decisions = policy or [mask.float() for mask in keep]
        macs = mac_share(decisions, self.start.config, self.settings.pruning.prune_after).mean()
        if "bavit" in self.settings.parts:
            total = total + self.settings.ce * entropy
        if policy is not None:
            target, weight = self.settings.budget
            total = total + weight * share_loss(policy, target) + self.settings.mac_penalty * macs
        counted = batch.labels != IGNORE
        right = ((logits[..., 1] >= logits[..., 0]) == (batch.labels == FOREGROUND)) & counted
        return total * images, images, [*counts, entropy * images, right.sum(), counted.sum(), macs * images]

    def _nothing(self, model: nn.Module, images: Tensor) -> Tensor:
        """0, with gradients of 0."""
        assert self.bavit is not None
        height, width = self.bavit.grid.image_size or (0, 0)
        side = self.start.config.patch
        small = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=images.device)
        logits, _, policy, answers = model(
            small, torch.zeros(1, 3, side, side, device=images.device), [(1, 1)], [(1, 1)]
        )
        every = [logits, *(policy or ()), *(value for answer in answers for value in answer)]
        return 0 * torch.stack([value.sum() for value in every]).sum()

    def trained(self, counts: Sequence[float]) -> dict[str, float]:
        entropy, right, counted, macs = counts[DetectionLearner.counts :]
        return super().trained(counts[: DetectionLearner.counts]) | {
            "train_ce": entropy / max(counts[0], 1),
            "train_accuracy": right / max(counted, 1),
            "train_macs_share": macs / max(counts[0], 1),
        }

    def tried(self, model: nn.Module, batch: DetectionBatch) -> tuple[YolosOutput, list[Tensor] | None, list[Tensor]]:
        assert isinstance(model, PrunedDetector)
        assert isinstance(model.bavit, BAViT)
        assert batch.small is not None
        assert batch.labels is not None
        logits = self.logits(batch.small, model.bavit)
        background = model.bavit.background_of(logits)
        limits = model.thresholds(background)
        keep = model.pruning.masks(background, model.bavit.grid, batch.sizes, batch.grids, limits)
        after, config = self.settings.pruning.prune_after, self.start.config
        kept, foreground = logits[..., 1] >= logits[..., 0], batch.labels == FOREGROUND
        counted = batch.labels != IGNORE
        cells = (kept & foreground, kept & ~foreground & counted, ~kept & foreground, ~kept & ~foreground & counted)
        patches = np.array([rows * cols for rows, cols in batch.grids])
        numbers = [np.array([int(mask.sum()) for mask in keep]), patches]
        macs = [float(detector_macs(config, each, patches, prune_after=after).sum()) for each in numbers]
        judged = [*(cell.sum() for cell in cells), *torch.tensor(macs, dtype=torch.float64).to(logits.device)]
        return model.yolos(self.pixels(batch), keep, prune_after=after), keep, judged

    def judgement(self, images: float, judged: Sequence[float]) -> dict[str, float]:
        assert self.bavit is not None
        *cells, macs, whole = judged
        found = Confusion(*(int(cell) for cell in cells))
        return {
            "val_accuracy": found.accuracy,
            "val_balanced_accuracy": found.balanced_accuracy,
            "val_macs_share": macs / whole,
            "val_gmacs": (macs / images + self.bavit.macs) / 1e9,
        }

    def described(self, place: str) -> Sequence[str]:
        assert self.bavit is not None
        told = f"BAViT: {self.bavit.parameter_count:,} parameters, {self.bavit.macs / 1e9:.3f} GMAC"
        return [*super().described(place), f"{told}; trained: {', '.join(self.settings.parts)}"]

    def told(self, record: Mapping[str, float]) -> str:
        bavit = f"cross entropy {record['train_ce']:.3f}"
        if "val_balanced_accuracy" in record:
            bavit += (
                f", balanced accuracy {record['val_balanced_accuracy']:.2%}, {record['val_macs_share']:.1%} of the MACs"
            )
        return f"{super().told(record)}; BAViT: {bavit}"
