"""What a calibrated detector says of itself: the target, what was chosen for it, and what it achieves on the set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np

from bavit.background.bootstrap import quantile, resampled_figures
from bavit.detect.accounting import detector_macs
from bavit.detect.budget import Chosen, Cost, Patches
from bavit.detect.calibration_plan import Plan
from bavit.detect.latency import Latency
from bavit.detect.yolos import Yolos
from tokenlabels import __version__


class Budget(msgspec.Struct, frozen=True):
    """What a detector was calibrated for; `PrunedDetector.budget` holds it as a dict.

    Attributes:
        target: see `Plan`, as the next three.
        value: what was asked for.
        headroom: None where the target is no budget.
        fixed: see above.
        threshold: background probability above which a patch is removed; None where another rule says what stays.
        threshold_low: lower end of its bootstrap interval over images.
        threshold_high: upper end.
        max_tokens: the cap, patches of an image that stay at most; None: no picture needs one.
        top_k: patches that stay in every image, with `fixed`.
        achieved: mean of the target's figure; of a latency as predicted by the model that the last measurement
            corrected.
        achieved_low: lower end of the bootstrap interval of `achieved`, what is kept being given.
        achieved_high: upper end.
        achieved_max: cost of the dearest image; None where the target is no budget.
        confidence: of the intervals.
        capped: share of images that the cap takes patches from.
        sparsity: share of the detector's patches that is removed.
        fg_recall: share of its foreground patches that is kept; None where labels are on another grid, or there is no
            foreground.
        tokens: patches kept of an image, mean; CLS and detection tokens always stay and are not counted.
        tokens_max: of the image with most.
        tokens_dense: patches of an image, mean.
        macs: of BAViT and the detector for an image, mean.
        macs_max: of the dearest image.
        macs_dense: of the detector alone, mean.
        latency: see `Latency`; None for other targets.
        refine_steps: see `Pruning`.
        prune_after: see `Pruning`.
        images: of the set.
        skipped: images that could not be read.
        source: the set, as a person named it.
        bavit: the model, as a person named it.
        detector: as well.
        seed: of the bootstrap.
        version: of tokenlabels.
    """

    target: str
    value: float
    headroom: float | None
    fixed: bool
    threshold: float | None
    threshold_low: float | None
    threshold_high: float | None
    max_tokens: int | None
    top_k: int | None
    achieved: float
    achieved_low: float
    achieved_high: float
    achieved_max: float | None
    confidence: float
    capped: float
    sparsity: float
    fg_recall: float | None
    tokens: float
    tokens_max: int
    tokens_dense: float
    macs: float
    macs_max: float
    macs_dense: float
    latency: Latency | None
    refine_steps: int
    prune_after: int
    images: int
    skipped: int
    source: str
    bavit: str
    detector: str
    seed: int
    version: str


def make_budget(
    plan: Plan,
    chosen: Chosen,
    cost: Cost,
    patches: Patches,
    yolos: Yolos,
    bavit_macs: int,
    *,
    latency: Latency | None,
    skipped: int,
    names: Mapping[str, str],
) -> Budget:
    """The record.

    Args:
        plan: what was asked for.
        chosen: what stays.
        cost: what a budget limits; anything where it is none.
        patches: of the set.
        yolos: the detector.
        bavit_macs: of BAViT, for an image.
        latency: what was measured.
        skipped: images that could not be read.
        names: `bavit`, `detector` and `source`.
    """
    pruning, choice = chosen.pruning(plan.refine_steps, plan.prune_after), chosen.choice
    kept, counts = patches.kept(pruning), patches.counts
    uncapped = patches.kept(replace(pruning, max_tokens=None))
    macs = bavit_macs + detector_macs(yolos.config, kept, counts, prune_after=plan.prune_after)
    costs = cost(kept, counts)
    parts, wholes = (costs, np.ones(len(kept))) if plan.is_budget else (counts - kept, counts)
    figures = resampled_figures(
        parts[:, None].astype(np.float64), wholes.astype(np.float64), plan.resamples, plan.seed
    )[:, 0]
    tail = (1 - plan.confidence) / 2
    achieved = (
        float(parts.sum() / wholes.sum()),
        quantile(figures, tail, "linear"),
        quantile(figures, 1 - tail, "linear"),
    )
    if plan.target == "fg-recall" and choice is not None:
        achieved = choice.achieved, choice.achieved_low, choice.achieved_high
    return Budget(
        target=plan.target,
        value=plan.value,
        headroom=plan.headroom if plan.is_budget else None,
        fixed=plan.fixed,
        threshold=chosen.threshold,
        threshold_low=None if choice is None else choice.threshold_low,
        threshold_high=None if choice is None else choice.threshold_high,
        max_tokens=chosen.max_tokens,
        top_k=chosen.top_k,
        achieved=achieved[0],
        achieved_low=achieved[1],
        achieved_high=achieved[2],
        achieved_max=float(costs.max()) if plan.is_budget else None,
        confidence=plan.confidence,
        capped=float((uncapped > kept).mean()),
        sparsity=float(1 - kept.sum() / counts.sum()),
        fg_recall=patches.fg_recall(kept),
        tokens=float(kept.mean()),
        tokens_max=int(kept.max()),
        tokens_dense=float(counts.mean()),
        macs=float(macs.mean()),
        macs_max=float(macs.max()),
        macs_dense=float(detector_macs(yolos.config, counts, counts).mean()),
        latency=latency,
        refine_steps=plan.refine_steps,
        prune_after=plan.prune_after,
        images=len(kept),
        skipped=skipped,
        source=names["source"],
        bavit=names["bavit"],
        detector=names["detector"],
        seed=plan.seed,
        version=__version__,
    )
