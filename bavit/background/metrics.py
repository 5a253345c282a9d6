"""Predictions -> the figures of an evaluation, as `figures.py` defines them. Exact: nothing is binned but the bins.

Tokens are sorted once by label; the curve, the area under the ROC curve and the reliability bins are read off the
sorted probabilities. 118,287 images of 24 x 24 patches are 68 million tokens: half a gigabyte beside the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from bavit.background.confusion import Confusion, share
from bavit.background.critical import critical_of_objects, critical_probabilities, kept_patches
from bavit.background.figures import Bin, Curve, Evaluation, Group, RefineStep
from bavit.background.predictions import FOREGROUND, IGNORE, ObjectPatches, Predictions, check_predictions
from bavit.background.refine import refine
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.figures import Size

STOPS = tuple(index / 100 for index in range(101))
"""Thresholds of the curve."""

BINS = 15
"""Bins of the reliability diagram."""

REFINE_STEPS = 5
"""Steps of refinement that are always told."""

_SHARES = ("accuracy", "balanced_accuracy", "fg_precision", "fg_recall", "fg_iou")

_BLOCK = 1 << 22
"""Tokens taken at a time where scratch arrays are larger than they are."""


def evaluate_predictions(
    predictions: Predictions, *, threshold: float, refine_steps: int, parameters: int, macs: int
) -> Evaluation:
    """Every figure of an evaluation.

    Args:
        predictions: what the model said, and what is true.
        threshold: background probability above which a token is removed, 0..1; compared in float32.
        refine_steps: steps of refinement of the model's mask, not negative.
        parameters: of the model.
        macs: multiply-accumulates per image of the model.

    Raises:
        ParameterError: a threshold or a number of steps out of range, or predictions that do not fit together.
        TokenLabelsError: no images, every token ignored, or a probability that is none.
    """
    if not 0 <= threshold <= 1:
        raise ParameterError(f"a threshold is a probability in 0..1, not {threshold}.")
    if refine_steps < 0:
        raise ParameterError(f"a mask is refined in 0 or more steps, not {refine_steps}.")
    check_predictions(predictions)
    labels, objects = predictions.labels, predictions.objects
    ignored = _count(labels == IGNORE)
    if ignored == labels.size:
        raise TokenLabelsError(
            f"every token of these {len(labels)} images is ignored (label 255): choose another split, or build the "
            "labels with other policies."
        )
    refinement, kept = _refined(predictions, np.float32(threshold), refine_steps)
    counts = confusion_of(kept, labels)
    ranked = _Ranked.of(predictions.background, labels)
    sizes = np.diff(objects.offsets)
    return Evaluation(
        images=len(labels),
        patches=labels.size,
        ignored=ignored,
        **_shares(counts),
        majority=share(max(len(ranked.foreground), len(ranked.background)), labels.size - ignored),
        position_prior=_position_prior(labels),
        auroc=ranked.auroc(),
        ece=_calibration_error(reliability := ranked.reliability()),
        sparsity=_removed(kept),
        lost_objects=lost_share(kept, objects),
        threshold=float(threshold),
        refine_steps=refine_steps,
        parameters=parameters,
        macs=macs,
        objects=_count(sizes),
        objects_without_patches=_count(sizes == 0),
        by_size=_groups(get_args(Size), objects.size, kept, objects),
        by_category=_groups(predictions.categories, objects.category, kept, objects),
        refinement=refinement,
        curve=_curve(predictions, ranked, refine_steps),
        reliability=reliability,
    )


def confusion_of(kept: NDArray[np.bool_], labels: NDArray[np.uint8]) -> Confusion:
    """Answers by label.

    Args:
        kept: bool, taken for foreground.
        labels: uint8, of the same shape.
    """
    foreground, background = labels == FOREGROUND, labels == 0
    tp, fp = (_count(kept & truth) for truth in (foreground, background))
    return Confusion(tp, fp, _count(foreground) - tp, _count(background) - fp)


def lost_share(kept: NDArray[np.bool_], objects: ObjectPatches) -> float:
    """Share of the objects with patches of which fewer than half of the patches are kept.

    Args:
        kept: bool (n, rows, cols).
        objects: objects of these images.
    """
    sizes = np.diff(objects.offsets)
    lost = 2 * kept_patches(kept, objects) < sizes
    return share(_count(lost), _count(sizes))


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """Background probabilities of the tokens of each label: three of float32, each ascending."""

    foreground: NDArray[np.float32]
    background: NDArray[np.float32]
    ignored: NDArray[np.float32]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> _Ranked:
        return cls(*(np.sort(probabilities[labels == label]) for label in (FOREGROUND, 0, IGNORE)))

    def kept(self, threshold: float) -> tuple[int, int, int]:
        """How many of each are kept."""
        limit = np.float32(threshold)
        one, other, rest = (
            int(np.searchsorted(values, limit, side="right"))
            for values in (self.foreground, self.background, self.ignored)
        )
        return one, other, rest

    def auroc(self) -> float:
        """Share of pairs of a foreground and a background token where the latter has the greater probability of
        background; equal ones count half, and no pairs give 0.5."""
        pairs = len(self.foreground) * len(self.background)
        if not pairs:
            return 0.5
        above = 0  # twice the background tokens above each foreground token, once those beside it: whole numbers
        for first in range(0, len(self.foreground), _BLOCK):
            values = self.foreground[first : first + _BLOCK]
            for side in ("left", "right"):
                below = np.searchsorted(self.background, values, side=side)
                above += len(values) * len(self.background) - int(below.sum())
        return above / (2 * pairs)

    def reliability(self) -> list[Bin]:
        """Tokens by p = 1 - b, the probability of foreground: bin i holds i / 15 <= p < (i + 1) / 15."""
        edges = [index / BINS for index in range(BINS + 1)]
        limits = np.array([_not_above(1 - edge) for edge in edges[:-1]], np.float32)  # p >= edge where b <= limit
        ends = [
            np.append(np.searchsorted(values, limits, side="right"), 0) for values in (self.foreground, self.background)
        ]
        bins = []
        for index in range(BINS):
            held = [
                values[end[index + 1] : end[index]]
                for values, end in zip((self.foreground, self.background), ends, strict=True)
            ]
            count = len(held[0]) + len(held[1])
            total = count - sum(float(values.sum(dtype=np.float64)) for values in held)
            bins.append(Bin(edges[index], edges[index + 1], count, share(total, count), share(len(held[0]), count)))
        return bins


def _not_above(value: float) -> np.float32:
    """The greatest float32 that does not exceed a value, so that float32 numbers compare with it as with the value."""
    near = np.float32(value)
    return near if float(near) <= value else np.nextafter(near, np.float32(-np.inf))


def _calibration_error(reliability: Sequence[Bin]) -> float:
    gap = sum(each.count * abs(each.confidence - each.foreground) for each in reliability)
    return share(gap, sum(each.count for each in reliability))


def _position_prior(labels: NDArray[np.uint8]) -> float:
    counts = [np.count_nonzero(labels == label, axis=0) for label in (FOREGROUND, 0)]
    return share(int(np.maximum(*counts).sum()), int(sum(counts).sum()))


def _refined(
    predictions: Predictions, limit: np.float32, refine_steps: int
) -> tuple[list[RefineStep], NDArray[np.bool_]]:
    """The figures after 0 to 5 steps, and bool (n, rows, cols), the mask after `refine_steps`."""
    mask = predictions.background <= limit
    rows, wanted = [], mask
    for steps in range(max(REFINE_STEPS, refine_steps) + 1):
        if steps:
            mask = _refine_blocks(mask)
        if steps == refine_steps:
            wanted = mask
        if steps <= REFINE_STEPS:
            counts = confusion_of(mask, predictions.labels)
            lost = lost_share(mask, predictions.objects)
            rows.append(RefineStep(steps=steps, **_shares(counts), sparsity=_removed(mask), lost_objects=lost))
    return rows, wanted


def _refine_blocks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    refined = np.empty_like(mask)
    block = max(1, _BLOCK // mask[0].size)
    for first in range(0, len(mask), block):
        part = torch.from_numpy(mask[first : first + block])
        refined[first : first + block] = refine(part, 1).numpy()
    return refined


def _curve(predictions: Predictions, ranked: _Ranked, refine_steps: int) -> Curve:
    """By sorting: also under refinement, see `critical.py`.

    Args:
        ranked: the probabilities as they are, used again where there is no refinement.
    """
    critical = critical_probabilities(predictions.background, refine_steps)
    if refine_steps:
        ranked = _Ranked.of(critical, predictions.labels)
    objects = np.sort(critical_of_objects(critical, predictions.objects))
    counts, sparsity, lost = [], [], []
    for threshold in STOPS:
        tp, fp, rest = ranked.kept(threshold)
        counts.append(Confusion(tp, fp, len(ranked.foreground) - tp, len(ranked.background) - fp))
        sparsity.append(share(critical.size - tp - fp - rest, critical.size))
        found = int(np.searchsorted(objects, np.float32(threshold), side="right"))
        lost.append(share(len(objects) - found, len(objects)))
    columns = [_shares(each) for each in counts]
    return Curve(
        threshold=list(STOPS),
        **{name: [column[name] for column in columns] for name in columns[0]},
        sparsity=sparsity,
        lost_objects=lost,
    )


def _shares(counts: Confusion) -> dict[str, Any]:
    """The shares of a confusion by the names of the figures."""
    return {name: getattr(counts, name) for name in _SHARES}


def _removed(kept: NDArray[np.bool_]) -> float:
    return share(kept.size - _count(kept), kept.size)


def _count(flags: NDArray[Any]) -> int:
    """How many are true, or not 0."""
    return int(np.count_nonzero(flags))


def _groups(
    names: Sequence[str], group: NDArray[np.integer], kept: NDArray[np.bool_], objects: ObjectPatches
) -> list[Group]:
    """Figures of the objects of each group that occurs.

    Args:
        group: whole numbers (m,), index into `names`.
    """
    patches, found = np.diff(objects.offsets), kept_patches(kept, objects)
    columns = np.stack([np.ones_like(patches), patches > 0, patches, found, 2 * found < patches])
    sums = [np.bincount(group, column, minlength=len(names)).astype(np.int64).tolist() for column in columns]
    return [
        Group(
            name=name,
            objects=held,
            without_patches=every - held,
            patches=count,
            fg_recall=share(hit, count),
            lost=lost,
            lost_share=share(lost, held),
        )
        for name, every, held, count, hit, lost in zip(names, *sums, strict=True)
        if every
    ]
