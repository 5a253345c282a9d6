"""A training run that goes on: model, optimizer, batches, figures, and their state on disk. `train.py` is the loop."""

from __future__ import annotations

import copy
import math
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from bavit.background import initialize
from bavit.background.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from bavit.background.confusion import Confusion
from bavit.background.curves import draw_curves
from bavit.background.label_counts import balanced_weights, baselines
from bavit.background.loss import loss_sums, soft_targets
from bavit.background.model import BAViT
from bavit.background.optimizer import make_optimizer, set_rate
from bavit.background.run_folder import (
    CURVES_FILE,
    check_claim,
    check_same,
    claim,
    clear_temporaries,
    data_digest,
    data_facts,
    doubts,
    write_metrics,
    write_run,
)
from bavit.background.settings import Settings
from bavit.data import Batch, BatchOrder, ShardImages, loader
from bavit.device import pick_precision
from bavit.environment import describe
from bavit.pictures import PictureError
from bavit.rows import Rows
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Progress
from tokenlabels.stats_shards import FOREGROUND, IGNORE

_DRAW_SECONDS = 15.0

_FIRST_PICTURES = 128
"""Pictures that initialisation from scratch looks at."""


class DivergedError(TokenLabelsError):
    """The loss is not finite any more."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on, and where it goes.

    Attributes:
        train: rows to train on.
        val: rows to validate on, on the same grid.
        images: folder of the pictures of `train`, or None where they are embedded.
        val_images: of `val`.
        out: folder of the run.
        workers: processes that decode pictures.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: go on with the run that is there.
        overwrite: delete it.
        tensorboard: write events for TensorBoard, too.
    """

    train: Rows
    val: Rows
    images: Path | None
    val_images: Path | None
    out: Path
    workers: int = 1
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    tensorboard: bool = False


class TrainingRun:
    """A run that goes on: the live objects, and what `TrainingState` keeps of them."""

    def __init__(
        self, task: Task, settings: Settings, given: dict[str, Any], fabric: Fabric, progress: Progress
    ) -> None:
        self.settings, self.fabric, self.progress, self.out = settings, fabric, progress, task.out
        self.stopped_by = 0
        self.recipe = settings.optimization
        digest = data_digest([task.train, task.val])
        stored = self._stored(task, settings, digest)
        seed, world, rank = settings.seed, fabric.world_size, fabric.global_rank
        pin = fabric.device.type == "cuda"
        dataset = ShardImages(task.train, task.images, self.recipe.augmentation, seed)
        self.order = BatchOrder(task.train, settings.batch_size, seed, world, rank)
        self.loader = loader(dataset, self.order, task.workers, pin=pin)
        val_order = BatchOrder(task.val, settings.batch_size, None, world, rank)
        self.val_loader = loader(ShardImages(task.val, task.val_images), val_order, min(task.workers, 2), pin=pin)
        self.tau = task.train.header.tau
        self.class_weights = balanced_weights(task.train) if settings.class_weights == "balanced" else None
        torch.manual_seed(seed)
        model = new_model(settings, task.train)
        if stored is None:
            _initialize(model, settings, task)
        model = model.to(fabric.device).to(memory_format=torch.channels_last)
        self.plain = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if self.recipe.ema else None
        self.optimizer: Optimizer = make_optimizer(model, self.recipe)
        self.state = stored or self._first_state(settings, digest)
        if stored is not None:
            self._restore(stored)
        compiled: Any = torch.compile(model) if settings.compile else model
        self.model, self.stepper = fabric.setup(compiled, self.optimizer)
        self.exact = torch.float32 if fabric.device.type == "mps" else torch.float64  # Metal has no float64
        self.sums = self.state.sums.to(self.exact).to(fabric.device)
        self.pending: Tensor | None = None
        self.wish: Tensor | None = None
        self.baselines, self.drawn = baselines(task.val), 0.0
        if fabric.is_global_zero:
            for text in (self._described(task), *doubts(task.train, task.val)):
                progress.note(text)
        board = _board_maker() if task.tensorboard and fabric.is_global_zero else None
        if stored is None:
            self._claim(task, given, digest)
        elif fabric.is_global_zero:
            clear_temporaries(task.out)
        self.board = board and board(str(task.out))

    def _stored(self, task: Task, settings: Settings, digest: str) -> TrainingState | None:
        """The stored state, where the run is resumed."""
        if not task.resume:
            check_claim(task.out, overwrite=task.overwrite)
            self.fabric.barrier()
            return None
        stored = load_checkpoint(task.out)
        check_same(task.out, stored.settings | {"data": stored.data}, settings.as_json() | {"data": digest})
        if stored.epoch >= settings.epochs:
            raise ParameterError(f"{task.out}: all {settings.epochs} epochs are done: there is nothing to resume.")
        return stored

    def _claim(self, task: Task, given: dict[str, Any], digest: str) -> None:
        """Make the folder ready, now that nothing else can be wrong."""
        if self.fabric.is_global_zero:
            claim(self.out)
            about = {
                "given": given,
                "settings": self.settings.as_json(),
                "train": data_facts(task.train, task.images),
                "val": data_facts(task.val, task.val_images),
                "data": digest,
                "environment": describe(),
            }
            write_run(self.out, about)
        self.fabric.barrier()

    def _first_state(self, settings: Settings, digest: str) -> TrainingState:
        nothing = torch.zeros(4, dtype=torch.float64)
        rng = torch.get_rng_state()
        return TrainingState({}, None, {}, {}, 0, 0, nothing, rng, settings.as_json(), digest)

    def _restore(self, stored: TrainingState) -> None:
        try:
            self.plain.load_state_dict(stored.model)
            if self.average is not None:
                self.average.load_state_dict(stored.average or {})
            self.optimizer.load_state_dict(stored.optimizer)
            self.fabric.strategy.precision.load_state_dict(stored.scaler)
        except (RuntimeError, ValueError, KeyError):
            raise TokenLabelsError(f"{self.out}: its checkpoint is of a model of another shape: train anew.") from None
        torch.set_rng_state(stored.rng)
        if not self.fabric.is_global_zero:
            stored.skipped = 0  # it counts those of all ranks

    def _described(self, task: Task) -> str:
        ranks = f", {self.fabric.world_size} ranks" if self.fabric.world_size > 1 else ""
        device = self.fabric.device
        return (
            f"{self.plain.parameter_count:,} parameters, {self.plain.macs / 1e9:.3f} GMAC an image; "
            f"{len(task.train):,} images to train on, {len(task.val):,} to validate; "
            f"{device}, precision {pick_precision(self.settings.precision, device.type)}{ranks}; "
            f"accuracy of the majority {self.baselines['majority']:.2%}, of the position alone "
            f"{self.baselines['position_prior']:.2%}"
        )

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.state.epoch * self.order.batches + self.state.batch

    def where(self) -> str:
        """Where training is, for people."""
        return f"epoch {self.state.epoch + 1}, {self.state.batch} of {self.order.batches} batches"

    def begin(self, epoch: int) -> None:
        """Start an epoch, or go on with one."""
        self.order.epoch, self.order.first = epoch, self.state.batch
        self.since = time.monotonic()
        self.images = 0
        self.model.train()
        self.progress.stage(f"epoch {epoch + 1}/{self.settings.epochs}", self.order.batches)
        self.progress.advance(self.state.batch)

    def step(self, batch: Batch) -> None:
        """One step of the optimizer."""
        self._count_faults(batch)
        pixels, labels, targets = self._on_device(batch)
        set_rate(self.optimizer.param_groups, self.recipe, self.steps, self.settings.epochs * self.order.batches)
        logits = self.model(pixels)
        total, weight = loss_sums(logits, labels, self.class_weights, targets)
        everywhere = self._over_ranks(weight.detach()).clamp(min=1e-30)
        loss = total * self.fabric.world_size / everywhere  # ranks average gradients, they do not add them up
        self._check_pending()
        self.fabric.backward(loss)
        if self.recipe.clip:
            self.fabric.clip_gradients(self.model, self.stepper, max_norm=self.recipe.clip, error_if_nonfinite=False)
        self.stepper.step()
        self.stepper.zero_grad()
        self.state.batch += 1
        self._average()
        self.pending = loss.detach()
        self._add(total, weight, logits, labels)
        self.images += len(labels)
        self.progress.advance(1)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        pixels = self.plain.normalise(batch.pixels.to(self.fabric.device, non_blocking=True))
        labels = batch.labels.to(self.fabric.device, non_blocking=True)
        if not self.recipe.soft_targets or batch.scores is None:
            return pixels, labels, None
        return pixels, labels, soft_targets(batch.scores.to(self.fabric.device, non_blocking=True), self.tau)

    def _count_faults(self, batch: Batch) -> None:
        if batch.faults and self.settings.on_error == "raise":
            fault = next(iter(batch.faults.values()))
            raise PictureError(f"{fault} Mend it, or leave such pictures out with --on-error skip.")
        for fault in batch.faults.values():
            self.state.skipped += 1
            self.progress.note(f"left out: {fault}")

    def _check_pending(self) -> None:
        """Look at the loss one step late, so that a GPU need not be waited for."""
        if self.pending is not None and not math.isfinite(self.pending.item()):
            raise DivergedError(
                f"the loss is {self.pending.item()} at step {self.steps - 1} ({self.where()}): {self._advice()}"
            )
        self.pending = None

    def _check_weights(self) -> None:
        """The loss may be finite while its gradients are not: nothing is stored before the weights were looked at."""
        if not all(bool(value.isfinite().all()) for value in self.plain.parameters()):
            raise DivergedError(f"weights are not finite at step {self.steps - 1} ({self.where()}): {self._advice()}")

    def _advice(self) -> str:
        kept = "keeps the last good checkpoint and model" if self.state.epoch else "holds no model yet"
        return f"{self.out} {kept}; use a lower --lr, --clip 1, or --precision 32."

    def _average(self) -> None:
        if self.average is None:
            return
        step = self.steps
        share = 1 - min(self.recipe.ema, (1 + step) / (10 + step))  # follows closely while there is little to average
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.plain.parameters(), strict=True):
                mean.lerp_(value, share)

    def _add(self, total: Tensor, weight: Tensor, logits: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            counted = labels != IGNORE
            right = ((logits[..., 1] >= logits[..., 0]) == (labels == FOREGROUND)) & counted
            self.sums += torch.stack([total.detach(), weight, right.sum(), counted.sum()]).to(self.exact)

    def wished(self, number: int) -> bool:
        """Whether any rank was asked to stop; of several ranks a step later, so that no GPU need be waited for."""
        if self.fabric.world_size > 1:
            before, self.wish = self.wish, self._over_ranks(torch.tensor(number, device=self.fabric.device))
            number = 0 if before is None or not int(before) else number or signal.SIGTERM
        self.stopped_by = number
        return number > 0

    def end(self) -> None:
        """Finish an epoch: validate, and store model, figures and state."""
        self._check_pending()
        self._check_weights()
        seconds = self._clock()
        sums = self._over_ranks(self.sums).tolist()
        if not sums[3]:
            raise PictureError(f"{self.out}: no picture of the epoch could be used: is --images the right folder?")
        record: dict[str, float] = {
            "epoch": self.state.epoch + 1,
            "step": self.steps,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "train_loss": sums[0] / max(sums[1], 1e-30),
            "train_accuracy": sums[2] / max(sums[3], 1),
            **self._validate(),
            "skipped": self._skipped(),
            "images_per_second": self.images * self.fabric.world_size / seconds,
            "seconds": self.state.seconds,
        }
        self.state.history.append(record)
        self.state.epoch, self.state.batch = self.state.epoch + 1, 0
        self.sums.zero_()
        self._write(record)

    def _write(self, record: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            self.progress.note(_told(record, self.settings.epochs))
            (self.average or self.plain).save_pretrained(self.out)
            write_metrics(self.out, self.state.history)
            self._draw()
        if self.board is not None:
            for name, value in record.items():
                self.board.add_scalar(name, value, int(record["step"]))
            self.board.flush()
        self.save()

    def _clock(self) -> float:
        """Seconds since the epoch began or was gone on with; added to those of the run."""
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        self.state.seconds += seconds
        return seconds

    def _draw(self) -> None:
        """Draw the curves, but not so often that it takes any time to speak of."""
        if self.state.epoch == self.settings.epochs or time.monotonic() - self.drawn > _DRAW_SECONDS:
            draw_curves(self.state.history, self.out / CURVES_FILE, **self.baselines)
            self.drawn = time.monotonic()

    def pause(self) -> None:
        """Write the checkpoint in the middle of an epoch."""
        self._check_pending()
        self._check_weights()
        self._clock()
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        ranks = self.fabric.world_size
        stored = replace(
            self.state,
            model=self.plain.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.fabric.strategy.precision.state_dict(),
            sums=self._over_ranks(self.sums).cpu().double() / ranks,
            skipped=self._skipped(),
            rng=torch.get_rng_state(),
        )
        if self.fabric.is_global_zero:
            save_checkpoint(self.out, stored)
        self.fabric.barrier()

    def _skipped(self) -> int:
        """Pictures that all ranks left out."""
        return int(self._over_ranks(torch.tensor(float(self.state.skipped), device=self.fabric.device)))

    def _validate(self) -> dict[str, float]:
        model = self.average or self.plain
        counts = torch.zeros(4, dtype=self.exact, device=self.fabric.device)
        losses = torch.zeros(2, dtype=self.exact, device=self.fabric.device)
        model.eval()
        for batch in self.val_loader:
            self._count_faults(batch)
            pixels, labels, _ = self._on_device(batch)
            with torch.no_grad(), self.fabric.autocast():
                logits = model(pixels)
            losses += torch.stack(loss_sums(logits, labels)).to(self.exact)
            kept, foreground = logits[..., 1] >= logits[..., 0], labels == FOREGROUND
            counted = labels != IGNORE
            cells = (kept & foreground, kept & ~foreground & counted, ~kept & foreground, ~kept & ~foreground & counted)
            counts += torch.stack([cell.sum() for cell in cells]).to(self.exact)
        if not self._over_ranks(counts).sum():
            raise PictureError(
                f"{self.out}: no picture to validate on could be used: is --val-images the right folder?"
            )
        found = Confusion(*(int(count) for count in self._over_ranks(counts).tolist()))
        loss, weight = self._over_ranks(losses).tolist()
        return {
            "val_loss": loss / max(weight, 1),
            "val_accuracy": found.accuracy,
            "val_balanced_accuracy": found.balanced_accuracy,
            "val_fg_recall": found.fg_recall,
            "val_fg_iou": found.fg_iou,
        }

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return sums
        found = self.fabric.all_reduce(sums.clone(), reduce_op="sum")
        assert isinstance(found, Tensor)
        return found


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


def _initialize(model: BAViT, settings: Settings, task: Task) -> None:
    if settings.init == "imagenet":
        initialize.from_imagenet(model)
    elif settings.init != "none":
        initialize.from_checkpoint(model, Path(settings.init))
    else:
        dataset = ShardImages(task.train, task.images)
        chosen = torch.linspace(0, len(dataset) - 1, min(_FIRST_PICTURES, len(dataset))).long().tolist()
        samples = [dataset[0, row] for row in chosen]
        usable = [torch.from_numpy(sample.pixels) for sample in samples if sample.fault is None]
        if not usable:
            raise PictureError(f"{samples[0].fault} None of {len(samples)} pictures could be read.")
        pixels = model.normalise(torch.stack(usable).permute(0, 3, 1, 2))
        initialize.from_scratch(model, pixels, torch.Generator().manual_seed(settings.seed))


def _told(record: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.4f}, validation loss {record['val_loss']:.4f}, "
        f"accuracy {record['val_accuracy']:.2%}, balanced {record['val_balanced_accuracy']:.2%}, "
        f"{record['images_per_second']:.0f} images/s"
    )


def _board_maker() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ParameterError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    return SummaryWriter
