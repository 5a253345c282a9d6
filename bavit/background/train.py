"""Training of BAViT: what is its own of a run, which `bavit.training` carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bavit.background import initialize
from bavit.background.confusion import Confusion
from bavit.background.curves import draw_curves
from bavit.background.label_counts import balanced_weights, baselines
from bavit.background.loss import loss_sums, soft_targets
from bavit.background.model import BAViT
from bavit.background.settings import Settings
from bavit.data import Batch, ShardImages, collate, first_pictures
from bavit.pictures import PictureError
from bavit.rows import Rows
from bavit.training.learner import Learner, Task
from bavit.training.loop import fit
from bavit.training.run import TrainingRun
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress
from tokenlabels.stats_shards import FOREGROUND, IGNORE


def train(task: Task, settings: Settings, given: dict[str, Any], progress: Progress) -> dict[str, float]:
    """Train a BAViT, and leave it in a run folder; see `fit`."""
    return fit(BackgroundLearner(task, settings), given, progress)


class BackgroundLearner(Learner[Batch]):
    """Learns which patches are background, by the accumulative cross entropy.

    Raises:
        ParameterError: data and settings that contradict each other.
    """

    settings: Settings
    bavit: BAViT
    command = "train"
    counts = 2  # right answers, and tokens that are not ignored
    collate = staticmethod(collate)

    def __init__(self, task: Task, settings: Settings) -> None:
        super().__init__(task, settings)
        for rows, what in ((task.train, "train on"), (task.val, "validate on")):
            if (rows.labels == IGNORE).all():
                raise ParameterError(f"{rows.folder}: every patch to {what} is ignored (255): name another split.")
        if task.train.grid != task.val.grid:
            raise ParameterError(
                f"{task.train.folder} has the grid {task.train.header.grid}, {task.val.folder} has "
                f"{task.val.header.grid}: train and validate on one grid, --grid names it."
            )
        if settings.optimization.soft_targets and task.train.scores is None:
            raise ParameterError("--soft-targets learns scores, but they were not read.")
        self.tau = task.train.header.tau
        self.class_weights = balanced_weights(task.train) if settings.class_weights == "balanced" else None
        self.baselines = baselines(task.val)

    def data(self) -> tuple[ShardImages, ShardImages]:
        task, augmentation = self.task, self.settings.optimization.augmentation
        train = ShardImages(task.train, task.images, augmentation, self.settings.seed)
        return train, ShardImages(task.val, task.val_images)

    def new_model(self) -> BAViT:
        self.bavit = new_model(self.settings, self.task.train)
        return self.bavit

    def initialize(self, model: nn.Module) -> None:
        assert isinstance(model, BAViT)
        init, seed = self.settings.init, self.settings.seed
        if init == "imagenet":
            initialize.from_imagenet(model)
        elif init != "none":
            initialize.from_checkpoint(model, Path(init))
        else:
            pixels = model.normalise(first_pictures(ShardImages(self.task.train, self.task.images)))
            initialize.from_scratch(model.vit, pixels, torch.Generator().manual_seed(seed))

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        done: float,  # noqa: ARG002  it is the same loss throughout
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        targets = None
        if self.settings.optimization.soft_targets and batch.scores is not None:
            targets = soft_targets(batch.scores, self.tau)
        logits = model(self.bavit.normalise(batch.pixels))
        total, weight = loss_sums(logits, batch.labels, self.class_weights, targets)
        counted = batch.labels != IGNORE
        right = ((logits[..., 1] >= logits[..., 0]) == (batch.labels == FOREGROUND)) & counted
        return total, weight, (right.sum(), counted.sum())

    def trained(self, counts: Sequence[float]) -> dict[str, float]:
        return {"train_accuracy": counts[0] / max(counts[1], 1)}

    def validated(self, model: nn.Module, run: TrainingRun) -> dict[str, float]:
        counts = torch.zeros(4, dtype=run.exact, device=run.fabric.device)
        losses = torch.zeros(2, dtype=run.exact, device=run.fabric.device)
        for batch in run.val_batches():
            labels = batch.labels
            logits = model(self.bavit.normalise(batch.pixels))
            losses += torch.stack(loss_sums(logits, labels)).to(run.exact)
            kept, foreground = logits[..., 1] >= logits[..., 0], labels == FOREGROUND
            counted = labels != IGNORE
            cells = (kept & foreground, kept & ~foreground & counted, ~kept & foreground, ~kept & ~foreground & counted)
            counts += torch.stack([cell.sum() for cell in cells]).to(run.exact)
        if not run.over_ranks(counts).sum():
            raise PictureError(
                f"{self.task.out}: no picture to validate on could be used: is --val-images the right folder?"
            )
        found = Confusion(*(int(count) for count in run.over_ranks(counts).tolist()))
        loss, weight = run.over_ranks(losses).tolist()
        return {
            "val_loss": loss / max(weight, 1),
            "val_accuracy": found.accuracy,
            "val_balanced_accuracy": found.balanced_accuracy,
            "val_fg_recall": found.fg_recall,
            "val_fg_iou": found.fg_iou,
        }

    def described(self, place: str) -> Sequence[str]:
        told = (
            f"{self.bavit.parameter_count:,} parameters, {self.bavit.macs / 1e9:.3f} GMAC an image; "
            f"{len(self.task.train):,} images to train on, {len(self.task.val):,} to validate; {place}; "
            f"accuracy of the majority {self.baselines['majority']:.2%}, of the position alone "
            f"{self.baselines['position_prior']:.2%}"
        )
        return [told]

    def told(self, record: Mapping[str, float]) -> str:
        return (
            f"epoch {record['epoch']}/{self.settings.epochs}: loss {record['train_loss']:.4f}, validation loss "
            f"{record['val_loss']:.4f}, accuracy {record['val_accuracy']:.2%}, balanced "
            f"{record['val_balanced_accuracy']:.2%}, {record['images_per_second']:.0f} images/s"
        )

    def draw(self, history: Sequence[Mapping[str, float]], path: Path) -> None:
        draw_curves(history, path, **self.baselines)


def new_model(settings: Settings, rows: Rows) -> BAViT:
    """A model for the grid of some rows."""
    grid = rows.grid
    assert grid.image_size is not None
    return BAViT(
        depth=settings.depth,
        width=settings.width,
        patch=grid.patch,
        image_size=grid.image_size,
        resize=grid.resize,
    )
