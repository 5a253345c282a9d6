"""From what was measured in a sweep to its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.detect.accounting import detector_macs
from bavit.detect.coco import Scores
from bavit.detect.config import YolosConfig
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.loading import is_random
from bavit.detect.sweep_figures import Dense, MaskSource, Setting, Sweep, SweepRow
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.timing import Timing

if TYPE_CHECKING:
    from bavit.detect.sweep import Plan

_PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class TimesOf(msgspec.Struct, frozen=True):
    """Times of one detector at one threshold; attributes as in `SweepRow`, `speedup` over the dense one."""

    latency_ms: float
    latency_p95_ms: float
    latency_detector_ms: float
    throughput: float
    throughput_detector: float
    speedup: float
    peak_memory_mb: float | None


class ThresholdTimes(msgspec.Struct, frozen=True):
    """Times of all detectors that took turns at one threshold.

    Attributes:
        threshold: of the masks.
        of_mask: by source of masks; `dense` is the detector with all patches.
    """

    threshold: float
    of_mask: dict[str, TimesOf]

    @classmethod
    def of(cls, threshold: float, found: Mapping[str, tuple[tuple[Timing, ...], float | None]]) -> ThresholdTimes:
        """From timings of all and of the detector's part, and peaks of memory."""
        (dense, _), _ = found["dense"]
        return cls(threshold, {
            name: TimesOf(
                latency_ms=timing.latency_ms,
                latency_p95_ms=timing.latency_p95_ms,
                latency_detector_ms=detector.latency_ms,
                throughput=timing.throughput,
                throughput_detector=detector.throughput,
                speedup=timing.speedup_over(dense),
                peak_memory_mb=memory,
            )
            for name, ((timing, detector), memory) in found.items()
        })  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        settings: s sources of masks with their thresholds.
        scores: s + 1, the first is of the dense detector.
        kept: int64 (s, n), patches kept of each image.
        patches: int64 (n,), patches there are.
        times: of each threshold.
        timed: numbers of the images that were timed.
    """

    settings: Sequence[tuple[MaskSource, float]]
    scores: Sequence[Scores]
    kept: NDArray[np.int64]
    patches: NDArray[np.int64]
    times: Sequence[ThresholdTimes]
    timed: Sequence[int]


def make_sweep(
    bavit: BAViT,
    yolos: Yolos,
    data: DetectionSet,
    plan: Plan,
    machine: Machine,
    names: Mapping[str, str],
    found: Measured,
) -> Sweep:
    """The figures."""
    times = {each.threshold: each for each in found.times}
    rows = [
        _row(bavit, yolos, plan.prune_after, setting, found, number, times[setting[1]])
        for number, setting in enumerate(found.settings)
    ]
    every = [each.of_mask["dense"] for each in found.times]
    memory = [each.peak_memory_mb for each in every if each.peak_memory_mb is not None]
    depth, patches = yolos.config.depth, float(found.patches.mean())
    dense = Dense(
        **_precisions(found.scores[0]),
        patches=patches,
        tokens=depth * patches,
        macs=float(detector_macs(yolos.config, found.patches, found.patches).mean()),
        latency_ms=_median([each.latency_ms for each in every]),
        latency_p95_ms=_median([each.latency_p95_ms for each in every]),
        throughput=_median([each.throughput for each in every]),
        peak_memory_mb=_median(memory) if memory else None,
    )
    return Sweep(rows, dense, _setting(bavit, yolos, data, plan, machine, names))


def _row(
    bavit: BAViT, yolos: Yolos, prune_after: int, setting: tuple[MaskSource, float], found: Measured, number: int,
    times: ThresholdTimes,
) -> SweepRow:  # fmt: skip
    mask, threshold = setting
    kept, patches = found.kept[number], found.patches
    tokens = count_tokens(bavit, yolos.config, kept, patches, prune_after)
    macs = bavit.macs + float(detector_macs(yolos.config, kept, patches, prune_after=prune_after).mean())
    macs_dense = float(detector_macs(yolos.config, patches, patches).mean())
    ours, dense = times.of_mask[mask], times.of_mask["dense"]
    some, whole = kept[found.timed], patches[found.timed]
    macs_timed = bavit.macs + float(detector_macs(yolos.config, some, whole, prune_after=prune_after).mean())
    ideal = float(detector_macs(yolos.config, whole, whole).mean()) / macs_timed
    return SweepRow(
        threshold=threshold,
        sparsity=float(1 - kept.sum() / patches.sum()),
        mask=mask,
        **_precisions(found.scores[number + 1]),
        ap_dense=found.scores[0].ap,
        ap50_dense=found.scores[0].ap50,
        kept_patches=float(kept.mean()),
        **tokens,
        macs=macs,
        macs_dense=macs_dense,
        latency_ms=ours.latency_ms,
        latency_p95_ms=ours.latency_p95_ms,
        latency_detector_ms=ours.latency_detector_ms,
        latency_dense_ms=dense.latency_ms,
        latency_dense_p95_ms=dense.latency_p95_ms,
        throughput=ours.throughput,
        throughput_detector=ours.throughput_detector,
        throughput_dense=dense.throughput,
        speedup=ours.speedup,
        speedup_latency=dense.latency_ms / ours.latency_ms,
        speedup_ideal=ideal,
        sparsity_timed=float(1 - some.sum() / whole.sum()),
        peak_memory_mb=ours.peak_memory_mb,
        peak_memory_dense_mb=dense.peak_memory_mb,
    )


def count_tokens(
    bavit: BAViT | None,
    config: YolosConfig,
    kept: NDArray[np.int64],
    patches: NDArray[np.int64],
    prune_after: int = 0,
) -> dict[str, float]:
    """Patch tokens of an image, once for each block they pass, as the BAViT paper's Table 2: means over images.

    For images of one size it is `accounting.token_reduction` of the mean sparsity, but not rounded.

    Args:
        bavit: its grid and depth; None: there is none.
        config: depth of the detector.
        kept: int64 (n,), patches kept of each image.
        patches: int64 (n,), patches there are.
        prune_after: blocks that see all patches.

    Returns:
        `tokens_bavit`, `tokens_detector`, `tokens_pruned`, `tokens_total` and `reduction`, as in `SweepRow`.
    """
    depth = config.depth
    whole = depth * float(patches.mean())
    pruned = prune_after * float(patches.mean()) + (depth - prune_after) * float(kept.mean())
    own = 0.0 if bavit is None else float(bavit.depth * bavit.shape[0] * bavit.shape[1])
    return {
        "tokens_bavit": own,
        "tokens_detector": whole,
        "tokens_pruned": pruned,
        "tokens_total": own + pruned,
        "reduction": 1 - (own + pruned) / whole,
    }


def _precisions(scores: Scores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in _PRECISIONS}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _setting(
    bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine, names: Mapping[str, str]
) -> Setting:
    untrained = is_random(names["detector"])
    notes = []
    if untrained:
        notes.append("The detector has random weights: tokens, MACs and times are real, its AP means nothing.")
    if data.rows.scores is None and "labels" in plan.masks:
        notes.append(
            "The labels have no scores: masks from the ground truth are the labels alone, at all thresholds below 1."
        )
    return Setting(
        bavit=names["bavit"],
        detector=names["detector"],
        random_weights=untrained,
        data=names["data"],
        images=len(data),
        images_timed=min(plan.time_images, len(data)),
        batch_size=min(plan.batch_size, plan.time_images, len(data)),
        rounds=plan.rounds,
        threshold=bavit.threshold,
        refine_steps=plan.refine_steps,
        prune_after=plan.prune_after,
        bavit_parameters=bavit.parameter_count,
        detector_parameters=yolos.config.parameter_count,
        bavit_macs=float(bavit.macs),
        scores=data.rows.scores is not None,
        environment=machine.describe(),
        notes=notes,
        standing_tokens=1 + yolos.config.detection_tokens,
    )
