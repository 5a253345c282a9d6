"""Finetuning of a detector on the patches that a BAViT, or the labels, keep: what is its own of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bavit.background.model import BAViT, load_model
from bavit.detect.accounting import detector_macs
from bavit.detect.answering import Answering
from bavit.detect.distil import Teacher, distillation_loss
from bavit.detect.evaluate import evaluate_detections
from bavit.detect.finetune_settings import FinetuneSettings
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.guides import ANCHORED_UNTIL, CORE, PATCH_CLASS_WEIGHT, guide_loss, patch_centres
from bavit.detect.initialize import anchors, from_scratch
from bavit.detect.loss import set_loss, weighted
from bavit.detect.preprocess import normalise
from bavit.detect.pruned import Detection, detections
from bavit.detect.samples import (
    DetectionBatch,
    DetectionImages,
    Masks,
    View,
    collate_detections,
    common_size,
)
from bavit.detect.start import start_of
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.pictures import PictureError, PictureReader
from bavit.plots import BLUE, ORANGE
from bavit.rows import Rows
from bavit.training.curves import Panel, draw_run
from bavit.training.learner import Learner, Task
from bavit.training.loop import fit
from bavit.training.run import TrainingRun
from bavit.training.run_folder import data_digest
from bavit.weights import load_weights
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Progress

_MASKS: dict[Masks, str] = {
    "bavit": "patches are removed by a BAViT",
    "labels": "patches labelled background are removed",
    "random": "patches are removed at random",
    "none": "no patch is removed",
}

_FIRST_PICTURES = 128
"""Pictures that initialisation from scratch looks at."""


def finetune(task: Task, settings: FinetuneSettings, given: dict[str, Any], progress: Progress) -> dict[str, float]:
    """Train a detector, and leave it in a run folder; see `fit`."""
    return fit(DetectionLearner(task, settings), given, progress)


class DetectionLearner(Learner[DetectionBatch]):
    """Learns classes and boxes of objects from those patches that are kept.

    Raises:
        ParameterError: data and settings that contradict each other.
        TokenLabelsError: the detector, the BAViT or the teacher cannot be read.
    """

    settings: FinetuneSettings
    command = "finetune"
    counts = 7  # images; the parts of the loss, of each; patches, and those removed; distillation, of each image
    judged_counts = 0  # numbers that `tried` adds up
    collate = staticmethod(collate_detections)

    def __init__(self, task: Task, settings: FinetuneSettings) -> None:
        super().__init__(task, settings)
        for rows, what in ((task.train, "train on"), (task.val, "validate on")):
            if not rows.has_objects:
                raise TokenLabelsError(f"{rows.folder} holds no objects to {what}: name another split or build.")
        if task.train.categories != task.val.categories:
            raise ParameterError(
                f"{task.train.folder} and {task.val.folder} have different categories: train and validate on the same."
            )
        self.start = start_of(settings, task.train)
        config = self.start.config
        after = settings.pruning.prune_after
        if after >= config.depth:
            raise ParameterError(f"--prune-after {after}: the detector has {config.depth} blocks.")
        self.auxiliary = min(settings.auxiliary, config.depth - 1)
        self.bavit: BAViT | None = None
        if settings.bavit is not None:
            self.bavit = load_model(settings.bavit).eval().requires_grad_(False)
        self.teacher = self._teacher()
        factor = settings.head_lr if settings.head_lr is not None else 10.0 if self.start.note else 1.0
        self.lr_factors = {"class_embed": factor}

    def _teacher(self) -> Teacher | None:
        """What is distilled from, or None."""
        name = self.settings.teacher_name
        return Teacher(name, self.start.config) if name else None

    def digest(self) -> str:
        """Of objects, too."""
        found = hashlib.sha256(data_digest([self.task.train, self.task.val]).encode())
        for rows in (self.task.train, self.task.val):
            for name in ("category", "iscrowd", "difficult"):
                found.update(rows.objects[name].tobytes())
            found.update(repr(rows.categories).encode())
        return found.hexdigest()

    def identity(self) -> dict[str, Any]:
        """The weights of BAViT and teacher, too: those in their folders may have been replaced."""
        found = hashlib.sha256()
        for value in self.bavit.state_dict().values() if self.bavit else ():
            found.update(value.numpy().tobytes())
        return super().identity() | {
            "weights of the BAViT": found.hexdigest()[:16] if self.bavit else None,
            "weights of the teacher": self.teacher.digest if self.teacher else None,
        }

    def data(self) -> tuple[DetectionImages, DetectionImages]:
        task, settings, config = self.task, self.settings, self.start.config
        plain = View(
            patch=config.patch,
            edges=(config.shortest_edge,),
            aspect=config.longest_edge / config.shortest_edge,
            masks=settings.masks,
            sparsity=settings.pruning.sparsity or 0.0,
            small=self.bavit.grid if self.bavit else None,
        )
        edges = settings.edges or plain.edges
        changed = replace(plain, edges=edges, size=settings.size, augmentation=settings.augmentation)
        classes, seed = self.start.classes, settings.seed
        train = DetectionImages(task.train, task.images, classes, changed, seed)
        return train, DetectionImages(task.val, task.val_images, classes, plain, seed)

    def new_model(self) -> Yolos:
        return Yolos(self.start.config)

    def initialize(self, model: nn.Module) -> None:
        assert isinstance(model, Yolos)
        self.initialize_detector(model)

    def initialize_detector(self, model: Yolos) -> None:
        if self.start.state is not None:
            load_weights(model, self.start.state, self.start.source)
            return
        task, view = self.task, View(model.config.patch, (model.config.shortest_edge,), 1.0, model.config.image_size)
        dataset = DetectionImages(task.train, task.images, self.start.classes, view, self.settings.seed)
        chosen = torch.linspace(0, len(dataset) - 1, min(_FIRST_PICTURES, len(dataset))).long().tolist()
        samples = [dataset[0, row] for row in chosen]
        usable = [sample.pixels for sample in samples if sample.fault is None]
        if not usable:
            raise PictureError(f"{samples[0].fault} None of {len(samples)} pictures could be read.")
        pixels = normalise(usable, model.config, "cpu")
        assert isinstance(pixels, Tensor)
        from_scratch(model, pixels, torch.Generator().manual_seed(self.settings.seed))

    def answering(self, model: nn.Module) -> Answering:
        assert isinstance(model, Yolos)
        return Answering(model, self.auxiliary, self.settings.pruning.prune_after, guided=self.settings.guides)

    def loss(self, model: nn.Module, batch: DetectionBatch, done: float) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        images = torch.tensor(float(len(batch.used)), device=batch.values.device)
        if not batch.used:
            side = self.start.config.patch
            answers = model(torch.zeros(1, 3, side, side, device=images.device), None)
            nothing = 0 * torch.stack([value.sum() for answer in answers for value in answer]).sum()
            return nothing, images, [images] * self.counts
        keep = self.masks(batch)
        total, counts = self.detection_cost(model(self.pixels(batch), keep), batch, keep, done)
        return total * images, images, counts

    def detection_cost(
        self, answers: Sequence[tuple[Tensor, Tensor]], batch: DetectionBatch, keep: list[Tensor] | None, done: float
    ) -> tuple[Tensor, list[Tensor]]:
        """What the answers to a batch cost, its mean, and what `trained` counts of them.

        Args:
            answers: see `Answering`.
            batch: at least one picture.
            keep: bool (rows_i, cols_i) of each image, or None.
            done: share of all steps that are done.
        """
        images = torch.tensor(float(len(batch.used)), device=batch.values.device)
        found = set_loss(answers[1:] if self.settings.guides else answers, *batch.targets)
        total = found.total + (self._guides(answers, batch, keep, done) if self.settings.guides else 0)
        distilled = torch.zeros_like(images)
        if self.teacher is not None:
            wanted = self.teacher.answer(batch.pixels, images.device)
            distilled = distillation_loss(answers[-1], wanted, self.settings.distil_temperature)
            total = total + self.settings.distil_weight * distilled
        patches, kept = _patches(batch, keep)
        parts = [part * images for part in found[1:]]
        return total, [images, *parts, patches, patches - kept, distilled.detach() * images]

    def _guides(
        self, answers: Sequence[tuple[Tensor, Tensor]], batch: DetectionBatch, keep: list[Tensor] | None, done: float
    ) -> Tensor:
        """What patches, and detection tokens at their anchors, cost."""
        boxes, classes = batch.targets
        device = boxes[0].device
        centres = patch_centres(batch.grids, keep, device)
        least = [torch.tensor([0.5 / cols, 0.5 / rows], device=device) for rows, cols in batch.grids]
        counts = [len(each) for each in centres]
        of_patches = [torch.split(values, counts) for values in answers[0]]
        total = guide_loss(
            of_patches[0], of_patches[1], centres, boxes, classes,
            core=CORE, least=least, class_weight=PATCH_CLASS_WEIGHT,
        )  # fmt: skip
        weight = max(0.0, 1 - done / ANCHORED_UNTIL)
        if weight:
            places = anchors(self.start.config.detection_tokens).to(device)
            spread = torch.full((2,), 0.5 / len(places) ** 0.5, device=device)
            for logits, found in answers[1:]:
                total = total + weight * guide_loss(
                    [*logits], [*found], [places] * len(boxes), boxes, classes, core=1.0, least=[spread] * len(boxes)
                )
        return total

    def pixels(self, batch: DetectionBatch) -> Tensor | list[Tensor]:
        """Inputs of the detector, normalised."""
        return normalise(batch.pixels, self.start.config, batch.values.device)

    def masks(self, batch: DetectionBatch) -> list[Tensor] | None:
        """bool (rows_i, cols_i) of each image, None where all patches of all are kept."""
        if self.bavit is None or batch.small is None:
            return batch.keep
        bavit = self.bavit.to(batch.small.device)
        return self.kept(batch, bavit, self.logits(batch.small, bavit))

    @torch.no_grad()
    def logits(self, small: Tensor, bavit: BAViT) -> Tensor:
        """Logits of a BAViT for its inputs, uint8 (b, 3, h, w).

        Raises:
            TokenLabelsError: they are no numbers.
        """
        with torch.autocast(small.device.type, enabled=False):
            found: Tensor = bavit(bavit.normalise(small))
        if not bool(found.isfinite().all()):
            raise TokenLabelsError(f"{self.settings.bavit}: answers with what is no number: its weights are damaged.")
        return found

    def kept(self, batch: DetectionBatch, bavit: BAViT, logits: Tensor) -> list[Tensor]:
        """What the logits of a BAViT make of a batch: bool (rows_i, cols_i) of each image."""
        pruning, background = self.settings.pruning, bavit.background_of(logits)
        return pruning.masks(background, bavit.grid, batch.sizes, batch.grids, bavit.threshold)

    def trained(self, counts: Sequence[float]) -> dict[str, float]:
        images, classes, l1, giou, patches, removed, distilled = counts
        names = {"train_class": classes, "train_l1": l1, "train_giou": giou}
        shares = {name: value / max(images, 1) for name, value in names.items()}
        shares["train_loss"] = weighted(*shares.values())  # without what auxiliary answers cost, as in validation
        if self.teacher is not None:
            shares["train_distil"] = distilled / max(images, 1)
        return shares | {"train_sparsity": removed / max(patches, 1)}

    def validated(self, model: nn.Module, run: TrainingRun) -> dict[str, float]:
        epoch = run.state.epoch + 1
        if epoch % self.settings.val_every and epoch != self.settings.epochs:
            return {}
        sums = torch.zeros(4 + self.judged_counts, dtype=run.exact, device=run.fabric.device)
        mine: dict[int, Detection] = {}
        for batch in run.val_batches():
            if not batch.used:
                continue
            output, keep, judged = self.tried(model, batch)
            images = torch.tensor(float(len(batch.used)), device=sums.device)
            loss = set_loss([(output.logits, output.boxes)], *batch.targets).total
            sums += torch.stack([loss * images, images, *_patches(batch, keep), *judged]).to(run.exact)
            found = detections(output, keep, batch.grids, batch.sizes)
            mine |= zip(batch.used, map(Detection.cpu, found), strict=True)
        every = {row: each for part in run.gathered(mine) for row, each in part.items()}
        if not every:
            raise PictureError(
                f"{self.task.out}: no picture to validate on could be used: is --val-images the right folder?"
            )
        loss, images, patches, kept, *added = run.over_ranks(sums).tolist()
        chosen = [every[row] for row in sorted(every)]
        scores = evaluate_detections(self._val_set(sorted(every)), chosen, self.start.config)
        return {
            "val_loss": loss / images,
            "val_ap": scores.ap,
            "val_ap50": scores.ap50,
            "val_sparsity": 1 - kept / patches,
        } | self.judgement(images, added)

    def tried(self, model: nn.Module, batch: DetectionBatch) -> tuple[YolosOutput, list[Tensor] | None, list[Tensor]]:
        """What a model in evaluation mode makes of a batch: boxes, masks, and `judged_counts` numbers to add up."""
        keep = self.masks(batch)
        return model(self.pixels(batch), keep, prune_after=self.settings.pruning.prune_after), keep, []

    def judgement(self, images: float, judged: Sequence[float]) -> dict[str, float]:  # noqa: ARG002  there are none
        """Figures of those numbers."""
        return {}

    def _val_set(self, rows: Sequence[int]) -> DetectionSet:
        chosen = np.zeros(len(self.task.val), np.bool_)
        chosen[rows] = True
        kept = self.task.val.keep(chosen)
        return DetectionSet(kept, PictureReader(kept, self.task.val_images), self.task.val_images)

    def described(self, place: str) -> Sequence[str]:
        config, task = self.start.config, self.task
        plain = View(config.patch, (config.shortest_edge,), config.longest_edge / config.shortest_edge)
        height, width = common_size(task.val, plain)
        patches = height * width // config.patch**2
        told = (
            f"{config.parameter_count:,} parameters, {detector_macs(config, patches, patches) / 1e9:.3f} GMAC for all "
            f"patches of {height} x {width} pixels; {_counted(task.train)} to train on, {_counted(task.val)} to "
            f"validate; {place}; {_MASKS[self.settings.masks]}"
        )
        return [told, self.start.note] if self.start.note else [told]

    def told(self, record: Mapping[str, float]) -> str:
        validated = ""
        if "val_ap" in record:
            validated = (
                f"validation loss {record['val_loss']:.4f}, AP {record['val_ap']:.2%}, AP50 {record['val_ap50']:.2%}, "
            )
        return (
            f"epoch {record['epoch']}/{self.settings.epochs}: loss {record['train_loss']:.4f} (classes "
            f"{record['train_class']:.3f}, boxes {record['train_l1']:.3f} and {record['train_giou']:.3f}), {validated}"
            f"{record['train_sparsity']:.1%} of patches removed, {record['images_per_second']:.0f} images/s"
        )

    def draw(self, history: Sequence[Mapping[str, float]], path: Path) -> None:
        draw_run(history, path, Panel("Average precision", [("val_ap", "AP", BLUE), ("val_ap50", "AP50", ORANGE)], {}))


def _patches(batch: DetectionBatch, keep: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Patches of a batch, and those that are kept."""
    total = torch.tensor(sum(rows * cols for rows, cols in batch.grids), device=batch.values.device)
    return total, total if keep is None else torch.stack([mask.sum() for mask in keep]).sum()


def _counted(rows: Rows) -> str:
    return f"{len(rows):,} images with {int((~rows.objects['iscrowd']).sum()):,} objects"
