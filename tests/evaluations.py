"""Made-up evaluations that agree with themselves: counted from random probabilities, plainly and slowly."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from bavit.background.figures import Bin, Curve, Evaluation, Group, RefineStep

_THRESHOLDS = np.linspace(0, 1, 101)


def make_evaluation(
    seed: int = 0, *, patches: int = 4_000, categories: tuple[str, ...] = ("person", "traffic light", "zebra")
) -> Evaluation:
    """An evaluation of random tokens, a twentieth of them ignored, and of random objects made of 1 to 12 of them."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(patches) < 0.05, 255, rng.random(patches) < 0.4).astype(np.uint8)
    background = 1 / (1 + np.exp(rng.normal(np.where(labels == 1, 1.6, -1.2), 1.3)))
    foreground = np.flatnonzero(labels == 1)
    objects = [rng.choice(foreground, rng.integers(1, 13)) for _ in range(300)]
    kinds = rng.integers(0, len(categories), len(objects))

    def figures(kept: NDArray[np.bool_]) -> dict[str, float]:
        counted, truth = kept[labels != 255], labels[labels != 255] == 1
        both = (counted & truth).sum()
        recall, rejection = both / truth.sum(), (~counted & ~truth).sum() / (~truth).sum()
        return {
            "accuracy": float((counted == truth).mean()),
            "balanced_accuracy": float((recall + rejection) / 2),
            "fg_precision": float(both / max(counted.sum(), 1)),
            "fg_recall": float(recall),
            "fg_iou": float(both / (counted | truth).sum()),
            "sparsity": float((~kept).mean()),
            "lost_objects": float(np.mean([kept[cells].mean() < 0.5 for cells in objects])),
        }

    def group(name: str, members: list[NDArray[np.int64]], kept: NDArray[np.bool_]) -> Group:
        lost = sum(bool(kept[cells].mean() < 0.5) for cells in members)
        hits = np.concatenate([kept[cells] for cells in members])
        return Group(name, len(members), 3, len(hits), float(hits.mean()), lost, lost / len(members))

    threshold, steps = 0.6, 1
    luck = rng.random(patches)  # in place of refinement: background becomes foreground, never the other way
    by_step = [(background <= threshold) | (luck < 0.03 * step) for step in range(6)]
    kept = by_step[steps]
    at = [figures((background <= stop) | (luck < 0.03 * steps)) for stop in _THRESHOLDS]
    counted, truth = labels != 255, labels[labels != 255] == 1
    share = float(truth.mean())
    return Evaluation(
        images=patches // 16,
        patches=patches,
        ignored=int((~counted).sum()),
        **figures(kept),
        majority=max(share, 1 - share),
        position_prior=max(share, 1 - share) + 0.034,
        auroc=float((background[labels == 1][:, None] < background[labels == 0]).mean()),
        ece=_error(reliability := _bins(1 - background[counted], truth)),
        threshold=threshold,
        refine_steps=steps,
        parameters=1_148_738,
        macs=850_000_000,
        objects=len(objects),
        objects_without_patches=9,
        by_size=[
            group(name, objects[first:last], kept)
            for name, first, last in (("small", 0, 150), ("medium", 150, 250), ("large", 250, 300))
        ],
        by_category=[
            group(name, [cells for cells, kind in zip(objects, kinds, strict=True) if kind == index], kept)
            for index, name in enumerate(categories)
        ],
        refinement=[RefineStep(steps=step, **figures(mask)) for step, mask in enumerate(by_step)],
        curve=Curve(threshold=_THRESHOLDS.tolist(), **{key: [found[key] for found in at] for key in at[0]}),
        reliability=reliability,
    )


def _bins(confidence: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[Bin]:
    found = []
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        means = (float(confidence[inside].mean()), float(truth[inside].mean())) if inside.any() else (0.0, 0.0)
        found.append(Bin(float(low), float(high), int(inside.sum()), *means))
    return found


def _error(bins: list[Bin]) -> float:
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.confidence - part.foreground) for part in bins) / total


def nothing_counted() -> Evaluation:
    """An evaluation of one image whose patches are all ignored, without objects: every share is 0."""
    none = [0.0] * len(_THRESHOLDS)
    step = {"accuracy": 0.0, "balanced_accuracy": 0.0, "fg_precision": 0.0, "fg_recall": 0.0, "fg_iou": 0.0}
    return Evaluation(
        images=1,
        patches=4,
        ignored=4,
        **step,
        majority=0.0,
        position_prior=0.0,
        auroc=0.5,
        ece=0.0,
        sparsity=0.0,
        lost_objects=0.0,
        threshold=0.5,
        refine_steps=0,
        parameters=10,
        macs=1_000,
        objects=0,
        objects_without_patches=0,
        by_size=[],
        by_category=[],
        refinement=[RefineStep(steps=steps, **step, sparsity=0.0, lost_objects=0.0) for steps in range(6)],
        curve=Curve(_THRESHOLDS.tolist(), *([none] * 7)),
        reliability=[Bin(index / 15, (index + 1) / 15, 0, 0.0, 0.0) for index in range(15)],
    )
