"""A training run that goes on: model, optimizer, batches, figures, and their state on disk. `loop.py` is the loop."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from bavit.data import BatchOrder, loader
from bavit.device import pick_precision
from bavit.environment import describe
from bavit.pictures import PictureError
from bavit.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from bavit.training.learner import Learner, PictureBatch, Task
from bavit.training.optimizer import make_optimizer, rate_share, set_rate
from bavit.training.run_folder import (
    CURVES_FILE,
    check_claim,
    check_same,
    claim,
    clear_temporaries,
    data_facts,
    doubts,
    write_metrics,
    write_run,
)
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Progress

_DRAW_SECONDS = 15.0


class DivergedError(TokenLabelsError):
    """The loss is not finite any more."""


class TrainingRun:
    """A run that goes on: the live objects, and what `TrainingState` keeps of them."""

    def __init__(self, learner: Learner[Any], given: dict[str, Any], fabric: Fabric, progress: Progress) -> None:
        self.learner, self.fabric, self.progress = learner, fabric, progress
        task, self.settings = learner.task, learner.settings
        self.out, self.recipe = task.out, self.settings.optimization
        self.stopped_by = 0
        digest = learner.digest()
        stored = self._stored(task, digest)
        self._load_data(task)
        torch.manual_seed(self.settings.seed)
        model: Any = learner.new_model()
        if stored is None:
            learner.initialize(model)
        model = model.to(fabric.device).to(memory_format=torch.channels_last)
        self.plain = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if self.recipe.ema else None
        self.optimizer: Optimizer = make_optimizer(model, self.recipe, learner.lr_factors)
        self.state = stored or self._first_state(digest)
        if stored is not None:
            self._restore(stored)
        answering = learner.answering(model)
        compiled: Any = torch.compile(answering) if self.settings.compile else answering
        self.model, self.stepper = fabric.setup(compiled, self.optimizer)
        self.exact = torch.float32 if fabric.device.type == "mps" else torch.float64  # Metal has no float64
        self.sums = self.state.sums.to(self.exact).to(fabric.device)
        self.pending: Tensor | None = None
        self.wish: Tensor | None = None
        self.drawn = 0.0
        if fabric.is_global_zero:
            for text in (*learner.described(self._place()), *doubts(task.train, task.val)):
                progress.note(text)
        board = _board_maker() if task.tensorboard and fabric.is_global_zero else None
        if stored is None:
            self._claim(task, given, digest)
        elif fabric.is_global_zero:
            clear_temporaries(task.out)
        self.board = board and board(str(task.out))

    def _load_data(self, task: Task) -> None:
        world, rank, size = self.fabric.world_size, self.fabric.global_rank, self.settings.batch_size
        pin = self.fabric.device.type == "cuda"
        dataset, val_dataset = self.learner.data()
        self.order = BatchOrder(task.train, size, self.settings.seed, world, rank)
        self.loader = loader(dataset, self.order, task.workers, pin=pin, collate=self.learner.collate)
        val_order = BatchOrder(task.val, size, None, world, rank)
        self.val_loader = loader(val_dataset, val_order, min(task.workers, 2), pin=pin, collate=self.learner.collate)

    def _stored(self, task: Task, digest: str) -> TrainingState | None:
        """The stored state, where the run is resumed."""
        if not task.resume:
            check_claim(task.out, overwrite=task.overwrite)
            self.fabric.barrier()
            return None
        stored = load_checkpoint(task.out)
        check_same(task.out, stored.settings | {"data": stored.data}, self.learner.identity() | {"data": digest})
        if stored.epoch >= self.settings.epochs:
            raise ParameterError(f"{task.out}: all {self.settings.epochs} epochs are done: there is nothing to resume.")
        return stored

    def _claim(self, task: Task, given: dict[str, Any], digest: str) -> None:
        """Make the folder ready, now that nothing else can be wrong."""
        if self.fabric.is_global_zero:
            claim(self.out)
            about = {
                "command": self.learner.command,
                "given": given,
                "settings": self.settings.as_json(),
                "train": data_facts(task.train, task.images),
                "val": data_facts(task.val, task.val_images),
                "data": digest,
                "environment": describe(),
            }
            write_run(self.out, about)
        self.fabric.barrier()

    def _first_state(self, digest: str) -> TrainingState:
        nothing = torch.zeros(2 + self.learner.counts, dtype=torch.float64)
        return TrainingState({}, None, {}, {}, 0, 0, nothing, torch.get_rng_state(), self.learner.identity(), digest)

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

    def _place(self) -> str:
        ranks = f", {self.fabric.world_size} ranks" if self.fabric.world_size > 1 else ""
        device = self.fabric.device
        return f"{device}, precision {pick_precision(self.settings.precision, device.type)}{ranks}"

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

    def step(self, batch: Any) -> None:
        """One step of the optimizer."""
        self._count_faults(batch)
        set_rate(self.optimizer.param_groups, self.recipe, self.steps, self._all_steps())
        total, weight, counts = self.learner.loss(
            self.model, batch.to(self.fabric.device), self.steps / self._all_steps()
        )
        everywhere = self.over_ranks(weight.detach()).clamp(min=1e-30)
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
        self.sums += torch.stack([value.detach().to(self.exact) for value in (total, weight, *counts)])
        self.images += len(batch.rows)
        self.progress.advance(1)

    def _all_steps(self) -> int:
        return self.settings.epochs * self.order.batches

    def _count_faults(self, batch: PictureBatch) -> None:
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
            for held, value in zip(self.average.buffers(), self.plain.buffers(), strict=True):
                held.copy_(value)  # statistics of norms are averages already

    def wished(self, number: int) -> bool:
        """Whether any rank was asked to stop; of several ranks a step later, so that no GPU need be waited for."""
        if self.fabric.world_size > 1:
            before, self.wish = self.wish, self.over_ranks(torch.tensor(number, device=self.fabric.device))
            number = 0 if before is None or not int(before) else number or signal.SIGTERM
        self.stopped_by = number
        return number > 0

    def end(self) -> None:
        """Finish an epoch: validate, and store model, figures and state."""
        self._check_pending()
        self._check_weights()
        seconds = self._clock()
        total, weight, *counts = self.over_ranks(self.sums).tolist()
        if not weight:
            raise PictureError(f"{self.out}: no picture of the epoch could be used: is --images the right folder?")
        record: dict[str, float] = {
            "epoch": self.state.epoch + 1,
            "step": self.steps,
            "lr": self.recipe.lr * rate_share(self.recipe, self.steps - 1, self._all_steps()),
            "train_loss": total / max(weight, 1e-30),
            **self.learner.trained(counts),
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
            self.progress.note(self.learner.told(record))
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
            self.learner.draw(self.state.history, self.out / CURVES_FILE)
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
            sums=self.over_ranks(self.sums).cpu().double() / ranks,
            skipped=self._skipped(),
            rng=torch.get_rng_state(),
        )
        if self.fabric.is_global_zero:
            save_checkpoint(self.out, stored)
        self.fabric.barrier()

    def _skipped(self) -> int:
        """Pictures that all ranks left out."""
        return int(self.over_ranks(torch.tensor(float(self.state.skipped), device=self.fabric.device)))

    def _validate(self) -> dict[str, float]:
        model = (self.average or self.plain).eval()
        if self.fabric.world_size > 1:
            for held in model.buffers():  # all ranks judge what the first one stores
                torch.distributed.broadcast(held, 0)
        with torch.no_grad(), self.fabric.autocast():
            return self.learner.validated(model, self)

    def val_batches(self) -> Iterator[Any]:
        """What this rank validates on, on its device."""
        for batch in self.val_loader:
            self._count_faults(batch)
            yield batch.to(self.fabric.device)

    def gathered(self, value: Any) -> list[Any]:
        """What every rank has, in order."""
        found: list[Any] = [value] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(found, value)
        return found

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.fabric.world_size == 1:
            return sums
        found = self.fabric.all_reduce(sums.clone(), reduce_op="sum")
        assert isinstance(found, Tensor)
        return found


def _board_maker() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ParameterError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    return SummaryWriter
