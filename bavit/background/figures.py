"""The figures of an evaluation: what `metrics.py` computes, the command prints, and the page and the plots draw.

A token is *kept* where its background probability is not greater than the threshold; *sparsity* is the share of tokens
that are not kept, of all tokens, ignored ones included, for those are removed or kept like any other. Every other share
is of the tokens that are not ignored (label 255). A share of nothing is 0.
"""

from __future__ import annotations

import msgspec


class RefineStep(msgspec.Struct, frozen=True):
    """The mask after some steps of refinement, at the threshold of the evaluation."""

    steps: int
    accuracy: float
    balanced_accuracy: float
    fg_precision: float
    fg_recall: float
    fg_iou: float
    sparsity: float
    lost_objects: float


class Group(msgspec.Struct, frozen=True):
    """Objects of one size or category.

    Attributes:
        name: `small`, `medium`, `large`, or a category.
        objects: how many have at least one foreground patch; only these are counted below.
        without_patches: how many have none.
        patches: foreground patches of these objects, a patch counted once for each object it belongs to.
        fg_recall: share of these patches that is kept.
        lost: objects of which fewer than half of the foreground patches are kept.
        lost_share: of `objects`.
    """

    name: str
    objects: int
    without_patches: int
    patches: int
    fg_recall: float
    lost: int
    lost_share: float


class Curve(msgspec.Struct, frozen=True):
    """Figures at many thresholds, all lists of the same length; thresholds ascend from 0 to 1."""

    threshold: list[float]
    accuracy: list[float]
    balanced_accuracy: list[float]
    fg_precision: list[float]
    fg_recall: list[float]
    fg_iou: list[float]
    sparsity: list[float]
    lost_objects: list[float]


class Bin(msgspec.Struct, frozen=True):
    """One bin of the reliability diagram: tokens by the probability of foreground.

    Attributes:
        low: lower edge.
        high: upper edge; the last bin is closed.
        count: tokens in it, ignored ones left out.
        confidence: mean probability of foreground, 0 where there are none.
        foreground: share of label 1 among them.
    """

    low: float
    high: float
    count: int
    confidence: float
    foreground: float


class Evaluation(msgspec.Struct, frozen=True):
    """How good a model is on a set.

    Attributes:
        images: how many.
        patches: tokens, ignored ones included.
        ignored: tokens labelled 255.
        accuracy: at the threshold, of the mask as refined by the model's own `refine_steps`.
        balanced_accuracy: mean of the recalls of foreground and background.
        majority: accuracy of always answering the commoner label of this set.
        position_prior: accuracy of answering, at each position, the commoner label there in this very set: no answer
            that looks at the position alone does better.
        fg_precision: precision of foreground.
        fg_recall: recall of foreground.
        fg_iou: intersection over union of foreground.
        auroc: area under the ROC curve, ties counted half; 0.5 where one of the labels does not occur.
        ece: expected calibration error of the probability of foreground, 15 bins of equal width.
        sparsity: share of tokens removed.
        lost_objects: share of objects of which fewer than half of the foreground patches are kept.
        threshold: background probability above which a token is removed.
        refine_steps: steps of refinement that the figures above include.
        parameters: of the model.
        macs: multiply-accumulates per image of the model.
        objects: objects with at least one foreground patch, which `lost_objects` is a share of.
        objects_without_patches: the others.
        by_size: small, medium, large; those that occur.
        by_category: those that occur, in the order of the category table.
        refinement: after 0 to 5 steps.
        curve: at 101 or more thresholds, refined as above.
        reliability: the 15 bins.
    """

    images: int
    patches: int
    ignored: int
    accuracy: float
    balanced_accuracy: float
    majority: float
    position_prior: float
    fg_precision: float
    fg_recall: float
    fg_iou: float
    auroc: float
    ece: float
    sparsity: float
    lost_objects: float
    threshold: float
    refine_steps: int
    parameters: int
    macs: int
    objects: int
    objects_without_patches: int
    by_size: list[Group]
    by_category: list[Group]
    refinement: list[RefineStep]
    curve: Curve
    reliability: list[Bin]
