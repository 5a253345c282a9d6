"""Training and finetuning of a segmenter: what is its own of a run, which `bavit.training` carries out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bavit.pictures import PictureError
from bavit.plots import BLUE, ORANGE
from bavit.rows import Rows
from bavit.segment.accounting import dense_macs
from bavit.segment.classes import IGNORED, ClassTable, onto_model
from bavit.segment.heads import combined
from bavit.segment.loss import segmentation_loss
from bavit.segment.masks import shard_digests
from bavit.segment.metrics import quality
from bavit.segment.model import Segmenter, SegmenterOutput, StageOutput, upsample
from bavit.segment.samples import CropView, SegmentBatch, SegmentImages, collate_segments
from bavit.segment.settings import SegmentSettings
from bavit.segment.start import initialize, start_of
from bavit.segment.weights import config_json
from bavit.training.curves import Panel, draw_run
from bavit.training.learner import Learner, Task
from bavit.training.loop import fit
from bavit.training.run import TrainingRun
from bavit.training.run_folder import data_digest
from tokenlabels.progress import Progress

if TYPE_CHECKING:
    from tokenlabels.storage import Location


def train(
    task: Task, tables: tuple[ClassTable, ClassTable], settings: SegmentSettings, given: dict[str, Any],
    progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """Train or finetune a segmenter, and leave it in a run folder; see `SegmentLearner` and `fit`."""
    return fit(SegmentLearner(task, tables, settings), given, progress)


class Answering(nn.Module):
    """A segmenter that says what is known after each stage, as plain tensors, which DDP hands on.

    Args:
        segmenter: the model.
        exiting: tokens end.
        frozen: its backbone stays as it is, in evaluation mode.
    """

    def __init__(self, segmenter: Segmenter, *, exiting: bool, frozen: bool) -> None:
        super().__init__()
        self.segmenter, self._exiting, self._frozen = segmenter, exiting, frozen

    def train(self, mode: bool = True) -> Answering:
        super().train(mode)
        if self._frozen:
            self.segmenter.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Attributes of each `StageOutput`."""
        found = self.segmenter.stages(pixels, exiting=self._exiting)
        return [(stage.logits, stage.class_logits, stage.alive.to(pixels.device)) for stage in found]


class SegmentLearner(Learner[SegmentBatch]):
    """Learns the class of every pixel, at every stage of a segmenter.

    Args:
        task: data and folder; rows have masks.
        tables: what masks to train on and to validate on mean.
        settings: how.

    Raises:
        ParameterError: data and settings that contradict each other.
        TokenLabelsError: weights or masks cannot be read, or classes differ.
    """

    settings: SegmentSettings
    segmenter: Segmenter
    counts = 6  # pictures; the parts of the loss, of each; patch tokens, and those that the last head read
    collate = staticmethod(collate_segments)

    def __init__(self, task: Task, tables: tuple[ClassTable, ClassTable], settings: SegmentSettings) -> None:
        super().__init__(task, settings)
        self.command = "segment train" if settings.run is None else "segment finetune"
        self.start = start_of(settings, tables[0].classes)
        model = settings.run or f"the data to train on, {task.train.folder},"
        self.tables = tuple(onto_model(table, self.start.config.classes, model) for table in tables)
        self.lr_factors = {"heads": settings.optimization.head_lr}

    def digest(self) -> str:
        """Of masks, too, by the digests of their shards, and of what they mean."""
        found = hashlib.sha256(data_digest([self.task.train, self.task.val]).encode())
        for rows, table in zip((self.task.train, self.task.val), self.tables, strict=True):
            found.update(repr(table.classes).encode() + table.of_value.tobytes() + table.of_category.tobytes())
            found.update("".join(shard_digests(rows)).encode())
        return found.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What the run that is finetuned is made of, too."""
        found = hashlib.sha256(json.dumps(config_json(self.start.config), sort_keys=True).encode())
        return super().identity() | {"the segmenter": found.hexdigest()[:16]}

    def data(self) -> tuple[SegmentImages, SegmentImages]:
        used, seed = self.settings.optimization, self.settings.seed
        changed = CropView(self.start.config.image_size, used.scale, used.flip, used.colour)
        train = SegmentImages(self.task.train, self.task.images, self.tables[0], changed, seed)
        return train, self._plain(self.task.val, self.task.val_images, self.tables[1])

    def _plain(self, rows: Rows, images: Location | None, table: ClassTable) -> SegmentImages:
        """Whole pictures, stretched to the crop."""
        view = CropView(self.start.config.image_size, train=False)
        return SegmentImages(rows, images, table, view, self.settings.seed)

    def new_model(self) -> Segmenter:
        used = self.settings.optimization
        self.segmenter = Segmenter.from_config(self.start.config, drop_path=used.drop_path)
        self.segmenter.backbone.requires_grad_(self.settings.trained == "all")
        return self.segmenter

    def initialize(self, model: nn.Module) -> None:
        assert isinstance(model, Segmenter)
        pictures = self._plain(self.task.train, self.task.images, self.tables[0])
        initialize(model, self.settings, self.start, pictures)

    def answering(self, model: nn.Module) -> Answering:
        assert isinstance(model, Segmenter)
        return Answering(model, exiting=self.start.exiting, frozen=self.settings.trained == "heads")

    def loss(
        self,
        model: nn.Module,
        batch: SegmentBatch,
        done: float,  # noqa: ARG002  it is the same loss throughout
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        if not batch.used:  # other ranks wait for gradients of this one
            answers = model(torch.zeros(1, 3, *self.segmenter.patch, device=batch.pixels.device))
            nothing = 0 * torch.stack([value.sum() for stage in answers for value in stage if value is not None]).sum()
            return nothing, nothing.detach(), [nothing.detach()] * self.counts
        stages = [StageOutput(*stage) for stage in model(self.segmenter.normalise(batch.pixels))]
        found = segmentation_loss(stages, batch.targets, self.segmenter.patch)
        images = _labelled(batch.targets)
        alive = [stages[0].alive.sum(), stages[-1].alive.sum()]
        return found.total * images, images, [images, *(part * images for part in found[1:]), *alive]

    def trained(self, counts: Sequence[float]) -> dict[str, float]:
        images, classes, mask, dice, patches, stayed = counts
        found = {"train_class": classes / max(images, 1)}
        if self.start.config.head == "atm":
            found |= {"train_mask": mask / max(images, 1), "train_dice": dice / max(images, 1)}
        if self.start.exiting:
            found["train_ended"] = 1 - stayed / max(patches, 1)
        return found

    def validated(self, model: nn.Module, run: TrainingRun) -> dict[str, float]:
        assert isinstance(model, Segmenter)
        epoch = run.state.epoch + 1
        if epoch % self.settings.val_every and epoch != self.settings.epochs:
            return {}
        device, classes, patch = run.fabric.device, model.num_classes, model.patch
        sums = torch.zeros(4, dtype=run.exact, device=device)
        compared = not self.start.exiting and model.rule.exits
        stored, dense = torch.zeros(2, classes, classes, dtype=torch.int64, device=device)
        for batch in run.val_batches():
            if not batch.used:
                continue
            pixels = model.normalise(batch.pixels)
            stages = model.stages(pixels, exiting=self.start.exiting)
            images = _labelled(batch.targets)
            loss = segmentation_loss(stages, batch.targets, patch).total
            output = model(pixels)
            sums += torch.stack([loss * images, images, *_tokens(model, output, device)]).to(run.exact)
            stored += _confusion(output.logits, batch.targets, patch)
            if compared:
                dense += _confusion(_believed(stages[-1]), batch.targets, patch)
        loss, images, tokens, all_tokens = run.over_ranks(sums).tolist()
        if not images:
            raise PictureError(
                f"{self.task.out}: no picture to validate on could be used: is --val-images the right folder?"
            )
        found = quality(run.over_ranks(stored).cpu().numpy())
        figures = {
            "val_loss": loss / images,
            "val_miou": found.miou,
            "val_pixel_accuracy": found.pixel_accuracy,
            "val_tokens": tokens / all_tokens,
        }
        if compared:
            figures["val_dense_miou"] = quality(run.over_ranks(dense).cpu().numpy()).miou
        return figures

    def described(self, place: str) -> Sequence[str]:
        config, task, model = self.start.config, self.task, self.segmenter
        height, width = config.image_size
        told = (
            f"{model.parameter_count:,} parameters, {dense_macs(model, config.image_size) / 1e9:.3f} GMAC for all "
            f"tokens of {height} x {width} pixels; {len(task.train):,} images to train on, {len(task.val):,} to "
            f"validate, {len(config.classes)} classes; {place}; {self._begin()}; {self._regime()}"
        )
        left_out = self.tables[0].left_out
        if not left_out:
            return [told]
        named = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
        note = f"{len(left_out)} categories ({named}) are not in the data card {self.settings.classes} and are ignored."
        return [told, note]

    def _begin(self) -> str:
        """What training starts from."""
        settings = self.settings
        if settings.run is not None:
            return f"{settings.run} is finetuned" + (", its heads alone" if settings.trained == "heads" else "")
        if settings.init == "none":
            return "from scratch"
        source = "ImageNet weights" if settings.init == "imagenet" else settings.init
        return f"the backbone starts from {source}, heads anew"

    def _regime(self) -> str:
        """What becomes of tokens in training."""
        config = self.start.config
        if config.downsample != "none":
            return f"the grid is halved after block {config.exit_after[0]} ({config.downsample})"
        if not self.start.exiting:
            return "all tokens go through the whole network in training"
        rule, places = config.rule, " and ".join(map(str, config.exit_after))
        means = f"{rule.proportion:.0%} of them" if rule.method == "proportion" else f"p0 {rule.p0:g}"
        return f"tokens end after block {places} in training ({means}, {rule.method})"

    def told(self, record: Mapping[str, float]) -> str:
        ended = f", {record['train_ended']:.1%} of tokens ended" if "train_ended" in record else ""
        validated = ""
        if "val_miou" in record:
            dense = f" ({record['val_dense_miou']:.2%} of all tokens)" if "val_dense_miou" in record else ""
            validated = (
                f"validation loss {record['val_loss']:.4f}, mIoU {record['val_miou']:.2%}{dense}, pixel accuracy "
                f"{record['val_pixel_accuracy']:.2%}, {record['val_tokens']:.1%} of tokens kept, "
            )
        return (
            f"epoch {record['epoch']}/{self.settings.epochs}: loss {record['train_loss']:.4f}{ended}, {validated}"
            f"{record['images_per_second']:.0f} images/s"
        )

    def draw(self, history: Sequence[Mapping[str, float]], path: Path) -> None:
        series = [("val_miou", "mIoU", BLUE), ("val_pixel_accuracy", "pixel accuracy", ORANGE)]
        draw_run(history, path, Panel("Validation", series, {}))


def _labelled(targets: Tensor) -> Tensor:
    """How many of the pictures have a pixel with a class, float32."""
    return (targets != IGNORED).flatten(1).any(1).sum().float()


def _tokens(model: Segmenter, output: SegmenterOutput, device: torch.device) -> list[Tensor]:
    """Tokens that blocks saw, and that they would have seen had none ended."""
    rows, cols = output.exit_stage.shape[1:]
    count = output.tokens.numel() * (rows * cols + int(model.backbone.num_prefix_tokens))
    return [output.tokens.sum().to(device), torch.tensor(count, device=device)]


def _believed(stage: StageOutput) -> Tensor:
    """(B, K, rows, cols): what a stage says, the greatest being the class."""
    batch, classes, rows, cols = stage.logits.shape
    image = torch.arange(batch, device=stage.logits.device).repeat_interleave(rows * cols)
    flat = combined(stage.logits.permute(0, 2, 3, 1).reshape(-1, classes), stage.class_logits, image)
    return flat.view(batch, rows, cols, classes).permute(0, 3, 1, 2)


def _confusion(scores: Tensor, targets: Tensor, patch: tuple[int, int]) -> Tensor:
    """int64 (K, K): pixels by class, down, and by the one that scores (B, K, rows, cols) say, across."""
    classes = scores.shape[1]
    found = upsample(scores, (targets.shape[1], targets.shape[2]), patch).argmax(1)
    counted = targets != IGNORED
    pairs = targets[counted].long() * classes + found[counted]
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
