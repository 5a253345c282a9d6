"""The sweep: for a list of thresholds and sources of masks, what pruning costs in AP and what it saves in time.

Pictures are decoded once: a part of the set goes through BAViT once and through the detector with every mask before the
next part is read. Each finished part, and each timed threshold, is stored under `OUT/.sweep/`, so that a sweep that was
killed goes on where it was when the same is asked for again; other inputs begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.background.model import BAViT
from bavit.detect.coco import Scores
from bavit.detect.evaluate import check_classes, evaluate_detections
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.masking import MaskMaker, label_background, none_where_full
from bavit.detect.pruned import Detection, PrunedDetector, detections
from bavit.detect.pruning import Pruning
from bavit.detect.sweep_cache import digest
from bavit.detect.sweep_figures import MASK_SOURCES, MaskSource, Sweep
from bavit.detect.sweep_rows import Measured, ThresholdTimes, make_sweep
from bavit.detect.timing import Inputs, WithMasks, run, time_detectors
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.memory import peak_memory_mb
from bavit.sweep_cache import SweepCache
from bavit.timing import spread
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads

PART_IMAGES = 64
"""Images of a part at most."""

THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is swept, and how.

    Attributes:
        thresholds: background probabilities above which patches are removed.
        masks: where masks are from.
        refine_steps: steps of refinement.
        prune_after: blocks of the detector that see all patches.
        batch_size: of evaluation and of throughput.
        time_images: how many images are timed, chosen from few kept patches to many.
        rounds: of timing.
        workers: threads that decode pictures.
        seed: of random masks.

    Raises:
        ParameterError: nothing to sweep, or a number out of range.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    masks: tuple[MaskSource, ...] = MASK_SOURCES
    refine_steps: int = 3
    prune_after: int = 0
    batch_size: int = 8
    time_images: int = 8
    rounds: int = 3
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.thresholds or not self.masks:
            raise ParameterError("there is nothing to sweep: give at least one threshold and one source of masks.")
        for threshold in self.thresholds:
            Pruning(threshold=threshold, refine_steps=self.refine_steps, prune_after=self.prune_after)
        unknown = [mask for mask in self.masks if mask not in MASK_SOURCES]
        if unknown:
            raise ParameterError(f"there are no masks {unknown[0]!r}: use {', '.join(MASK_SOURCES)}.")
        if min(self.batch_size, self.time_images, self.rounds) < 1:
            raise ParameterError("a sweep takes at least 1 image at a time, 1 image to time and 1 round.")

    @property
    def settings(self) -> list[tuple[MaskSource, float]]:
        """Every source of masks with every threshold, ascending."""
        return [(mask, threshold) for mask in self.masks for threshold in sorted(set(self.thresholds))]


def plan_sweep(bavit: BAViT, thresholds: str | None, masks: str, **rest: int) -> Plan:
    """A plan from words.

    Args:
        bavit: its own threshold is swept, too, where none are given.
        thresholds: numbers with commas between them; None: `THRESHOLDS`.
        masks: sources with commas between them.
        rest: see `Plan`.

    Raises:
        ParameterError: see `Plan`, or what is no number.
    """
    words = [word.strip() for word in (thresholds or "").split(",") if word.strip()]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise ParameterError(f"--thresholds {thresholds}: write numbers in 0..1 with commas between them.") from None
    if thresholds is None:
        numbers = (*THRESHOLDS, bavit.threshold)
    sources = tuple(dict.fromkeys(word.strip() for word in masks.split(",") if word.strip()))
    return Plan(numbers, cast(tuple[MaskSource, ...], sources), **rest)


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """A sweep, and what was found on the way.

    Attributes:
        sweep: the figures.
        data: what it was made on.
        parts: the detections and masks of all images.
    """

    sweep: Sweep
    data: DetectionSet
    parts: Parts


def sweep(
    bavit: BAViT,
    yolos: Yolos,
    data: DetectionSet,
    plan: Plan,
    machine: Machine,
    out: Path,
    names: dict[str, str],
    progress: Progress,
) -> Swept:
    """Sweep.

    Args:
        bavit: the background model; moved to the machine's device.
        yolos: the detector; moved, too.
        data: images with ground truth; labels on BAViT's grid.
        plan: what is swept.
        machine: where.
        out: folder in which unfinished work is kept; `SweepCache.finish` takes it away.
        names: `bavit`, `detector` and `data`, as a person named them.
        progress: told about every image.

    Raises:
        ParameterError: labels on another grid, a detector of other classes, or one of fewer blocks.
        PictureError: a picture cannot be read.
        OutputError: `out` cannot be written.
        TokenLabelsError: the set holds no objects.
    """
    if "labels" in plan.masks and data.rows.grid != bavit.grid:
        raise ParameterError(
            f"{data.rows.folder} has labels on the grid {data.rows.header.grid}, not on {bavit.grid.name}: build "
            "labels on that grid, or leave out the masks of the labels."
        )
    if not data.rows.has_objects:
        raise TokenLabelsError(f"{data.rows.folder} holds no objects to detect: name another split or set.")
    check_classes(data, yolos.config, progress)
    PrunedDetector(bavit, yolos, prune_after=plan.prune_after)
    device = torch.device(machine.device)
    bavit, yolos = bavit.to(device).eval(), yolos.to(device).eval()
    cache = SweepCache(out, digest(bavit, yolos, data, plan, machine))
    parts = _evaluated(bavit, yolos, data, plan, machine, cache, progress)
    progress.stage("average precision", len(plan.settings) + 1)
    scores: list[Scores] = []
    for number in range(len(plan.settings) + 1):
        scores.append(evaluate_detections(data, parts.detections(number), yolos.config))
        progress.advance(1)
    times = _timed(bavit, yolos, data, plan, machine, cache, parts, progress)
    found = Measured(plan.settings, scores, parts.kept, parts.patches, times, parts.spread(plan.time_images))
    return Swept(make_sweep(bavit, yolos, data, plan, machine, names, found), data, parts)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What was found in n images, for the dense detector (number 0) and s settings.

    Attributes:
        background: float32 (n, r, c), BAViT's.
        shapes: int32 (n, 2), rows and columns of the detector's grid.
        boxes: float32 (s + 1, n, T, 4), as in `Detection`.
        scores: float32 (s + 1, n, T).
        labels: int64 (s + 1, n, T).
        kept: int64 (s, n), patches that were kept.
    """

    background: NDArray[np.float32]
    shapes: NDArray[np.int32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def patches(self) -> NDArray[np.int64]:
        """int64 (n,), of the detector's grid."""
        found: NDArray[np.int64] = self.shapes.astype(np.int64).prod(axis=1)
        return found

    def spread(self, count: int) -> list[int]:
        """Numbers of some images, in order, whose shares of kept patches are spread as those of all images are."""
        return spread(self.kept.sum(axis=0) / self.patches, count)

    def detections(self, number: int) -> list[Detection]:
        """Of one setting, one for each image, without masks."""
        boxes, scores, labels = (torch.from_numpy(each[number]) for each in (self.boxes, self.scores, self.labels))
        nothing = torch.ones(0, 0, dtype=torch.bool)
        return [Detection(*each, keep=nothing) for each in zip(boxes, scores, labels, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence[Parts]) -> Parts:
        """Several, end to end."""
        first = ("background", "shapes")
        return cls(*(
            np.concatenate([getattr(part, name) for part in parts], axis=0 if name in first else 1)
            for name in cls.__slots__
        ))  # fmt: skip


def mask_maker(bavit: BAViT, data: DetectionSet, plan: Plan, background: NDArray[np.float32], shapes: NDArray[np.int32],
               numbers: Sequence[int]) -> MaskMaker:  # fmt: skip
    """The masks of some images.

    Args:
        bavit: its grid.
        data: sizes and labels.
        plan: steps and seed.
        background: float32 (k, r, c), of these images.
        shapes: int32 (k, 2), of the detector's grid.
        numbers: of these images.
    """
    rows, span = data.rows, np.array(numbers, np.int64)
    return MaskMaker(
        grid=bavit.grid,
        background=background,
        truth=label_background(rows.labels[span], None if rows.scores is None else rows.scores[span]),
        sizes=list(zip(rows.widths[span].tolist(), rows.heights[span].tolist(), strict=True)),
        shapes=[(int(rows_), int(cols)) for rows_, cols in shapes.tolist()],
        refine_steps=plan.refine_steps,
        seed=plan.seed,
        numbers=numbers,
    )


def read_inputs(bavit: BAViT, yolos: Yolos, data: DetectionSet, numbers: Sequence[int], workers: int) -> Inputs:
    """What both models are given of some images.

    Raises:
        PictureError: a picture cannot be read.
    """
    pictures = in_threads(data.pictures.open, numbers, workers)
    pixels = yolos.preprocess(pictures)
    return Inputs(bavit.preprocess(pictures), pixels, [picture.size for picture in pictures])


def _evaluated(
    bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine, cache: SweepCache, progress: Progress
) -> Parts:
    size = max(1, PART_IMAGES // plan.batch_size) * plan.batch_size
    progress.stage("detecting", len(data) * (len(plan.settings) + 1))
    found = []
    for first in range(0, len(data), size):
        last = min(first + size, len(data))
        stored = cache.arrays(f"part-{first}")
        if stored is None:
            part = _part(bavit, yolos, data, plan, machine, first, last, progress)
            cache.keep_arrays(f"part-{first}", {name: getattr(part, name) for name in Parts.__slots__})
        else:
            part = Parts(**stored)
            progress.advance((last - first) * (len(plan.settings) + 1))
        found.append(part)
    return Parts.joined(found)


def _part(
    bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine, first: int, last: int,
    progress: Progress,
) -> Parts:  # fmt: skip
    """Some images through BAViT, and through the detector with every mask."""
    found = []
    for start in range(first, last, plan.batch_size):
        numbers = range(start, min(start + plan.batch_size, last))
        inputs = read_inputs(bavit, yolos, data, numbers, plan.workers)
        with torch.inference_mode(), machine.autocast():
            background = bavit.background(inputs.small).float().cpu().numpy()
        if not np.isfinite(background).all():
            raise TokenLabelsError("the BAViT answers with what is no number: its weights are damaged.")
        shapes = np.array([yolos.backbone.grid_of(image) for image in inputs.pixels], np.int32)
        maker = mask_maker(bavit, data, plan, background, shapes, numbers)
        masks = [None, *(maker.masks(*setting) for setting in plan.settings)]
        outputs = []
        for kept in masks:
            outputs.append(_detected(yolos, inputs, kept, plan.prune_after, machine))
            progress.advance(len(inputs.sizes))
        counts = [[int(mask.sum()) for mask in kept] for kept in masks if kept is not None]
        boxes, scores, labels = zip(*outputs, strict=True)
        arrays = np.stack(boxes), np.stack(scores), np.stack(labels), np.array(counts, np.int64)
        found.append(Parts(background, shapes, *arrays))
    return Parts.joined(found)


def _detected(
    yolos: Yolos, inputs: Inputs, kept: Sequence[Tensor] | None, prune_after: int, machine: Machine
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Boxes (k, T, 4), scores (k, T) and labels (k, T)."""
    masks = None if kept is None else [m if m is None else m.to(machine.device) for m in none_where_full(kept)]
    grids = [yolos.backbone.grid_of(image) for image in inputs.pixels]
    with torch.inference_mode(), machine.autocast():
        output = yolos(inputs.pixels, masks, prune_after=prune_after)
        found = detections(output, None, grids, inputs.sizes)
    boxes, scores, labels = (
        torch.stack([getattr(each, name) for each in found]).cpu() for name in ("boxes", "scores", "labels")
    )
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise TokenLabelsError("the detector answers with what is no number: its weights are damaged.")
    return boxes.numpy(), scores.numpy(), labels.numpy()


def _timed(
    bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine, cache: SweepCache, parts: Parts,
    progress: Progress,
) -> list[ThresholdTimes]:  # fmt: skip
    """Times of every threshold, the dense detector and all sources of masks taking turns."""
    thresholds = sorted(set(plan.thresholds))
    chosen = parts.spread(plan.time_images)
    count = len(chosen)
    steps = plan.rounds * 2 * count * (len(plan.masks) + 1)
    progress.stage("timing", steps * len(thresholds))
    inputs: Inputs | None = None
    found = []
    for number, threshold in enumerate(thresholds):
        stored = cache.record(f"times-{number}", ThresholdTimes)
        if stored is None:
            inputs = inputs or read_inputs(bavit, yolos, data, chosen, plan.workers)
            maker = mask_maker(bavit, data, plan, parts.background[chosen], parts.shapes[chosen], chosen)
            stored = _times_of(bavit, yolos, inputs, plan, machine, maker, threshold, progress)
            cache.keep_record(f"times-{number}", stored)
        else:
            progress.advance(steps)
        found.append(stored)
    return found


def _times_of(
    bavit: BAViT, yolos: Yolos, inputs: Inputs, plan: Plan, machine: Machine, maker: MaskMaker, threshold: float,
    progress: Progress,
) -> ThresholdTimes:  # fmt: skip
    device = torch.device(machine.device)
    detectors: list[PrunedDetector] = [PrunedDetector(None, yolos, prune_after=plan.prune_after)]
    for mask in plan.masks:
        kind = PrunedDetector if mask == "bavit" else WithMasks
        detector = kind(bavit, yolos, threshold, refine_steps=plan.refine_steps, prune_after=plan.prune_after)
        if isinstance(detector, WithMasks):
            masks = none_where_full(maker.masks(mask, threshold))
            detector.given = [each if each is None else each.to(device) for each in masks]
        detectors.append(detector)
    size = min(plan.batch_size, len(inputs.sizes))
    timings = time_detectors(detectors, inputs, size, plan.rounds, machine.autocast, progress.advance)
    batch = inputs.batches(size)[0]
    memory = [peak_memory_mb(partial(run, each, batch, machine.autocast), device) for each in detectors]
    found = zip(timings, memory, strict=True)
    return ThresholdTimes.of(threshold, dict(zip(("dense", *plan.masks), found, strict=True)))
