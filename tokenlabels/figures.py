"""The figures that describe a build: what `stats.py` computes, the command prints, and the report draws.

Everywhere a *share of foreground* is the patches labelled 1 among those that are not labelled 255.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Size: TypeAlias = Literal["small", "medium", "large"]

SIZE_LIMITS = (32.0**2, 96.0**2)
"""COCO's object sizes by annotated area in square pixels: small below the first, large from the second on.

pycocotools' evaluator, `areaRng`.
"""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

TAU_STOPS = tuple(step / 100 for step in range(101))
"""Thresholds of the tau curve: 0, 0.01, ... 1."""


class Distribution(msgspec.Struct, frozen=True):
    """How a number is spread over images or objects.

    Attributes:
        count: how many values.
        mean: 0 where there are none.
        std: population standard deviation.
        quantiles: (q, value) for each of `QUANTILES`, linear interpolation; empty where there are no values.
        edges: k + 1 bin edges of the histogram, the last bin closed.
        counts: k counts.
    """

    count: int
    mean: float
    std: float
    quantiles: list[tuple[float, float]]
    edges: list[float]
    counts: list[int]


class SplitFigures(msgspec.Struct, frozen=True):
    """Sums of one split."""

    split: str
    images: int
    annotations: int
    patches: int
    foreground: int
    ignored: int
    fg_share: float
    empty_images: int


class ObjectFigures(msgspec.Struct, frozen=True):
    """Objects of one category, or of one size.

    Attributes:
        name: category name, or small, medium, large.
        objects: how many; crowd regions included.
        images: images with at least one.
        patches: sum over the objects of label-1 patches each box covers by at least half.
        patches_mean: `patches / objects`.
        fg_share: `patches` among all patches that are not ignored (a patch under two objects counts for both); for
            a build without objects, label-1 patches whose majority category this is.
        lost: objects with no such patch: training never sees them.
        lost_share: `lost / objects`.
    """

    name: str
    objects: int
    images: int
    patches: int
    patches_mean: float
    fg_share: float
    lost: int
    lost_share: float


class LostObject(msgspec.Struct, frozen=True):
    """One object that makes no patch foreground."""

    split: str
    image_id: str
    file_name: str
    id: int
    category: str
    area: float
    bbox: tuple[float, float, float, float]


class TauCurve(msgspec.Struct, frozen=True):
    """What `relabel` would give at each threshold, exactly, for the whole of what was counted.

    Attributes:
        tau: `TAU_STOPS`.
        foreground: patches labelled 1.
        ignored: patches labelled 255.
        fg_share: see the module.
    """

    tau: list[float]
    foreground: list[int]
    ignored: list[int]
    fg_share: list[float]


class Position(msgspec.Struct, frozen=True):
    """Foreground by position in the grid.

    Attributes:
        rows: rows of the map.
        cols: columns of the map.
        scaled: grids differ from image to image, so patch (i, j) of R x C counts at
            `((2 * i + 1) * rows // (2 * R), (2 * j + 1) * cols // (2 * C))`.
        fg_probability: rows x cols, foreground among the patches there that are not ignored, 0 where there are none.
        patches: rows x cols, patches there that are not ignored.
    """

    rows: int
    cols: int
    scaled: bool
    fg_probability: list[list[float]]
    patches: list[list[int]]


class Baselines(msgspec.Struct, frozen=True):
    """Accuracies over patches that are not ignored that need no picture, and so what a model must beat.

    Attributes:
        majority: of always answering the commoner label.
        majority_label: that label, 1 or 0.
        position_prior: of answering, at each position, the commoner label there.
    """

    majority: float
    majority_label: int
    position_prior: float


class ClassWeights(msgspec.Struct, frozen=True):
    """Weights that balance a loss, `n / (2 * n_class)`: of mean 1 over patches; 0 for a class without patches."""

    background: float
    foreground: float


class Figures(msgspec.Struct, frozen=True):
    """Everything `tokenlabels stats` says of one build on one grid.

    Attributes:
        path: folder of the build.
        source: source format.
        rule: rule of the build.
        tau: its threshold.
        inclusive: a score equal to tau is foreground.
        grid: name of the grid.
        splits: by split, in order.
        images: images counted.
        annotations: objects counted.
        patches: all patches.
        foreground: patches labelled 1.
        ignored: patches labelled 255.
        fg_share: over all patches (pooled).
        fg_share_per_image: its distribution over images, 20 bins in 0..1; an image wholly ignored is left out.
        empty_images: images without a foreground patch.
        empty_share: `empty_images / images`.
        by_category: in the order of the category table; categories without objects (or patches) included.
        by_size: small, medium, large; empty where the build has no objects.
        patches_per_object: distribution; bins [0, 1), [1, 2), [2, 4), ... doubling up to the largest.
        lost_objects: objects that make no patch foreground.
        lost_share: `lost_objects / annotations`, 0 without annotations.
        lost_examples: the first of them, at most 1,000, spread over categories: smallest areas first in each.
        tau_curve: None where the build has no scores.
        position: by position.
        baselines: what a model must beat.
        class_weights: for a loss.
    """

    path: str
    source: str
    rule: str
    tau: float
    inclusive: bool
    grid: str
    splits: list[SplitFigures]
    images: int
    annotations: int
    patches: int
    foreground: int
    ignored: int
    fg_share: float
    fg_share_per_image: Distribution
    empty_images: int
    empty_share: float
    by_category: list[ObjectFigures]
    by_size: list[ObjectFigures]
    patches_per_object: Distribution
    lost_objects: int
    lost_share: float
    lost_examples: list[LostObject]
    tau_curve: TauCurve | None
    position: Position
    baselines: Baselines
    class_weights: ClassWeights


class Agreement(msgspec.Struct, frozen=True):
    """How far the labels of several builds agree, on the same grid and the images they share.

    Attributes:
        names: k names of builds: rule and tau, made unique by the folder where two are alike.
        images: images that all of them hold.
        patches: patches that none of them ignores.
        agreement: k x k, share of these patches with equal labels.
        kappa: k x k, Cohen's kappa (chance-corrected); 1 on the diagonal.
    """

    names: list[str]
    images: int
    patches: int
    agreement: list[list[float]]
    kappa: list[list[float]]


class Comparison(msgspec.Struct, frozen=True):
    """Several builds side by side.

    Attributes:
        builds: figures of each.
        agreement: None, with `reason`, where they cannot be compared patch by patch.
        reason: why not.
    """

    builds: list[Figures]
    agreement: Agreement | None
    reason: str | None = None
