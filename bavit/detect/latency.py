"""Milliseconds of a pruned detector at batch 1: measured, and as a model of how many patches are kept.

What is timed is the work of the models, pictures being ready: BAViT, masks, detector, boxes (`PrunedDetector.detect`).
Decoding and resizing, which depend on the pictures and not on what is kept, are not.

The model is a + b t + c u with coefficients that are not negative, so that it never falls where more is kept: t is the
number of patches that pass a block, summed over blocks, u that of their squares, which stands for attention. It is
fitted by non-negative least squares (Lawson and Hanson 1974) of relative errors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.detect.budget import Patches
from bavit.detect.masking import none_where_full
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning
from bavit.detect.timing import Inputs, WithMasks, run
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.timing import take_turns
from tokenlabels.progress import Progress

SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of patches that are kept when the model is fitted."""

Measure = Callable[[Sequence[PrunedDetector]], NDArray[np.float64]]
"""Milliseconds of detectors on images, one at a time, taking turns: float64 (detectors, rounds, images)."""


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Milliseconds of an image; a `budget.Cost`.

    Attributes:
        base: of an image of which nothing is kept.
        per_token: of a patch in a block.
        per_pair: of a pair of patches in a block.
        depth: blocks of the detector.
        prune_after: blocks that see all patches.
    """

    base: float
    per_token: float
    per_pair: float
    depth: int
    prune_after: int = 0

    def __call__(self, kept: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[np.float64]:
        work = _work(kept, patches, self.depth, self.prune_after)
        found: NDArray[np.float64] = work @ np.array([self.base, self.per_token, self.per_pair])
        return found

    def scaled(self, factor: float) -> LatencyModel:
        """One that says so many times as much."""
        return replace(
            self, base=self.base * factor, per_token=self.per_token * factor, per_pair=self.per_pair * factor
        )

    @classmethod
    def fit(
        cls,
        kept: NDArray[np.int64],
        patches: NDArray[np.int64],
        milliseconds: NDArray[np.float64],
        depth: int,
        prune_after: int = 0,
    ) -> LatencyModel:
        """The model that comes closest to k measurements.

        Args:
            kept: int64 (k,).
            patches: int64 (k,).
            milliseconds: float64 (k,), positive.
            depth: blocks of the detector.
            prune_after: blocks that see all patches.
        """
        from scipy.optimize import nnls  # type: ignore[import-untyped]  # here, for it loads slowly

        work = _work(kept, patches, depth, prune_after)
        scale = work.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(work / scale / milliseconds[:, None], np.ones(len(milliseconds)))
        base, per_token, per_pair = (found / scale).tolist()
        return cls(base, per_token, per_pair, depth, prune_after)


class Latency(msgspec.Struct, frozen=True):
    """How the latency of a saved detector was predicted and measured; milliseconds of an image at batch 1.

    Attributes:
        predicted_ms: mean of the timed images, as the model had it when the last choice was made.
        measured_ms: the same, measured: mean over images of the median over rounds.
        measured_low_ms: as the quickest round would have it: times the median over images of what each took there by
            its own median.
        measured_high_ms: as the slowest round would have it.
        measured_mean_ms: mean of all timings, pauses of the machine included.
        measured_max_ms: of the slowest image, median over rounds.
        dense_ms: mean of the dense detector alone, on the same images.
        fit_error: largest relative error of the model's mean at one of the shares of patches it was fitted at.
        model: `base`, `per_token`, `per_pair` as in `LatencyModel`, corrected by the last measurement.
        attempts: how often a choice was made and measured.
        images: that were timed.
        rounds: of timing.
        timed: what the figures include.
        environment: device, precision, threads, version of torch, processor.
    """

    predicted_ms: float
    measured_ms: float
    measured_low_ms: float
    measured_high_ms: float
    measured_mean_ms: float
    measured_max_ms: float
    dense_ms: float
    fit_error: float
    model: dict[str, float]
    attempts: int
    images: int
    rounds: int
    timed: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What a first measurement gives.

    Attributes:
        model: of the detector behind BAViT.
        dense: of the detector alone, all patches kept.
        dense_ms: its mean.
        fit_error: see `Latency`.
    """

    model: LatencyModel
    dense: LatencyModel
    dense_ms: float
    fit_error: float


def stopwatch(inputs: Inputs, machine: Machine, rounds: int, progress: Progress) -> Measure:
    """A measurement of detectors on these images, in so many rounds; the progress is told of every image."""
    alone = inputs.batches(1)

    def measure(detectors: Sequence[PrunedDetector]) -> NDArray[np.float64]:
        progress.stage("timing", len(detectors) * rounds * (len(alone) + 1))
        ways = [partial(_seconds, detector, machine) for detector in detectors]
        found = take_turns(ways, alone, alone[:1], [1], rounds, progress.advance)
        return 1000 * np.array([timing.alone for (timing,) in found]).reshape(len(detectors), rounds, len(alone))

    return measure


def learn(
    bavit: BAViT, yolos: Yolos, patches: Patches, images: Sequence[int], pruning: Pruning, measure: Measure
) -> Learned:
    """Measure the pipeline at several shares of kept patches, and the detector alone, and fit models to them.

    Args:
        bavit: on the device of the measurement.
        yolos: as well.
        patches: of a set.
        images: numbers in `patches` of those that `measure` times, in its order.
        pruning: of the kind that will be used, so that making the masks costs what it will cost.
        measure: times detectors.
    """
    counts = patches.counts[list(images)]
    kept = np.array([np.round(share * counts) for share in SHARES]).astype(np.int64)
    device = yolos.backbone.cls_token.device
    detectors: list[PrunedDetector] = [PrunedDetector(None, yolos)]
    for row in kept.tolist():
        detector = WithMasks(bavit, yolos, **asdict(pruning))
        masks = [torch.from_numpy(patches.mask(image, count)) for image, count in zip(images, row, strict=True)]
        detector.given = [mask if mask is None else mask.to(device) for mask in none_where_full(masks)]
        detectors.append(detector)
    found = np.median(measure(detectors), axis=1)
    dense, ours = found[0], found[1:]
    depth, every = yolos.config.depth, np.tile(counts, len(SHARES))
    model = LatencyModel.fit(kept.reshape(-1), every, ours.reshape(-1), depth, pruning.prune_after)
    means = model(kept, counts).mean(axis=1)
    error = float(np.abs(means / ours.mean(axis=1) - 1).max())
    return Learned(model, LatencyModel.fit(counts, counts, dense, depth), float(dense.mean()), error)


def _work(kept: NDArray[np.int64], patches: NDArray[np.int64], depth: int, prune_after: int) -> NDArray[np.float64]:
    """float64 (..., 3): one, patches that pass a block, summed over blocks, and their squares."""
    ours, whole = (each.astype(np.float64) for each in np.broadcast_arrays(kept, patches))
    tokens = (depth - prune_after) * ours + prune_after * whole
    return np.stack([np.ones_like(ours), tokens, (depth - prune_after) * ours**2 + prune_after * whole**2], axis=-1)


def _seconds(detector: PrunedDetector, machine: Machine, batch: Inputs) -> tuple[float]:
    """Of all of it; the last stage waits for the device."""
    begun = time.perf_counter()
    run(detector, batch, machine.autocast)
    return (time.perf_counter() - begun,)
