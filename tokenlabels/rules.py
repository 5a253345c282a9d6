"""The rules: records x grids -> scores -> labels.

`overlap` and `jaccard` score boxes, `pixel-ratio` scores masks; the formulas are on `RULES`. A score is rounded to
float32 and compared with float32(tau), so that relabelling from stored scores reproduces a build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels import coverage
from tokenlabels.annotations import Records
from tokenlabels.errors import ParameterError
from tokenlabels.grid import GridAxes
from tokenlabels.labels import count_patches, label_cells

RuleName: TypeAlias = Literal["overlap", "jaccard", "pixel-ratio"]
Policy: TypeAlias = Literal["foreground", "background", "ignore"]
PaddingPolicy: TypeAlias = Literal["background", "ignore"]


class RuleKind(msgspec.Struct, frozen=True):
    """What a rule computes.

    Attributes:
        formula: score of a patch P given boxes B or the union M of masks.
        default_tau: threshold unless one is given.
        inclusive: a score equal to the threshold is foreground.
        reads_masks: scores masks rather than boxes.
        source: where the rule comes from.
    """

    formula: str
    default_tau: float
    inclusive: bool
    reads_masks: bool
    source: str


RULES: dict[RuleName, RuleKind] = {
    "overlap": RuleKind("max_j |P & B_j| / |P|", 0.5, True, False, "BAViT paper, prose of its labelling section"),
    "jaccard": RuleKind("max_j |P & B_j| / |P | B_j|", 0.5, True, False, "BAViT paper, Equations 1-2 read literally"),
    "pixel-ratio": RuleKind("|P & M| / |P|", 0.1, False, True, "exact share of mask pixels in the patch"),
}

_ROLE_OF_POLICY = {"foreground": coverage.FOREGROUND, "background": coverage.SKIP, "ignore": coverage.IGNORED}


class RuleSpec(msgspec.Struct, frozen=True):
    """A rule with its threshold and policies.

    Attributes:
        rule: see `RULES`.
        tau: threshold in 0..1.
        crowd: what a crowd region does: count as an object, nothing, or mark patches it covers by more than half 255.
        padding: what patches wholly in padding are.
    """

    rule: RuleName
    tau: float
    crowd: Policy
    padding: PaddingPolicy

    @classmethod
    def make(
        cls, rule: str = "overlap", tau: float | None = None, crowd: str = "foreground", padding: str = "background"
    ) -> RuleSpec:
        """Check and complete what a person writes.

        Raises:
            ParameterError: an unknown rule or policy, or a threshold outside 0..1.
        """
        if rule not in RULES:
            raise ParameterError(f"unknown rule {rule!r}: use one of {', '.join(RULES)}.")
        for name, value, allowed in (("crowd", crowd, get_args(Policy)), ("padding", padding, get_args(PaddingPolicy))):
            if value not in allowed:
                raise ParameterError(f"unknown {name} policy {value!r}: use one of {', '.join(allowed)}.")
        return msgspec.convert(
            {
                "rule": rule,
                "tau": check_tau(RULES[rule].default_tau if tau is None else tau),
                "crowd": crowd,
                "padding": padding,
            },
            cls,
        )

    @property
    def kind(self) -> RuleKind:
        return RULES[self.rule]

    @property
    def stores_ignored(self) -> bool:
        """Whether a shard has the column `ignored`."""
        return "ignore" in (self.crowd, self.padding)


def check_tau(tau: float) -> float:
    """The threshold as a float.

    Raises:
        ParameterError: it is not in 0..1.
    """
    if not 0 <= tau <= 1:
        raise ParameterError(f"tau {tau} is outside 0..1: it is the threshold of a share of a patch.")
    return float(tau)


@dataclass(frozen=True, slots=True, eq=False)
class CellLabels:
    """n images labelled on one grid; cells of image i are `cells[i]:cells[i + 1]`, row-major.

    Attributes:
        axes: the grid of each image.
        cells: int64 (n + 1,).
        scores: float32, one per cell.
        ignored: bool, one per cell: more than half covered by an ignored region, or ignored padding.
        labels: uint8, one per cell: 1 foreground, 0 background, 255 ignore.
        fg_count: int32 (n,).
        ignore_count: int32 (n,).
        patches: int32 (m,), label-1 cells that each annotation's box covers by at least half.
    """

    axes: GridAxes
    cells: NDArray[np.int64]
    scores: NDArray[np.float32]
    ignored: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    fg_count: NDArray[np.int32]
    ignore_count: NDArray[np.int32]
    patches: NDArray[np.int32]


def label_records(
    records: Records, grids: Sequence[GridAxes], spec: RuleSpec
) -> tuple[list[CellLabels], NDArray[np.bool_]]:
    """Score and label n images on several grids in one pass.

    Args:
        records: n images with m annotations; with masks for a rule that reads them.
        grids: the grids of these n images, one entry for each patch grid.
        spec: the rule.

    Returns:
        One `CellLabels` per grid, and bool (m,): the annotation's mask holds no pixel (all false under a box rule).
    """
    images = len(records)
    per_grid = np.array([axes.cells for axes in grids], np.int64).reshape(len(grids), images)
    starts = np.zeros(per_grid.size + 1, np.int64)
    np.cumsum(per_grid.ravel(), out=starts[1:])
    cells = starts[:-1].reshape(per_grid.shape)
    scores, ignored = np.zeros(starts[-1], np.float32), np.zeros(starts[-1], np.bool_)
    roles = np.where(records.crowd, _ROLE_OF_POLICY[spec.crowd], coverage.FOREGROUND).astype(np.uint8)
    empty = np.zeros(len(roles), np.bool_)
    sizes = (records.widths, records.heights, records.offsets, roles)
    geometry = (
        np.array([axes.rows for axes in grids], np.int64).reshape(per_grid.shape),
        np.array([axes.cols for axes in grids], np.int64).reshape(per_grid.shape),
        np.array([axes.y for axes in grids], np.int64).reshape(*per_grid.shape, 3),
        np.array([axes.x for axes in grids], np.int64).reshape(*per_grid.shape, 3),
        cells,
    )
    if spec.kind.reads_masks:
        masks = records.masks
        assert masks is not None, "the source was not asked for masks"
        pools = (masks.text, masks.numbers, masks.counts)
        coverage.mask_cell_shares(*sizes, masks.kinds, masks.spans, *pools, *geometry, scores, ignored, empty)
    else:
        coverage.box_cell_scores(*sizes, records.boxes, spec.rule == "jaccard", *geometry, scores, ignored)
    labelled = []
    for index, axes in enumerate(grids):
        low, high = starts[index * images], starts[(index + 1) * images]
        within = starts[index * images : (index + 1) * images + 1] - low
        labelled.append(
            label_scores(
                records.widths,
                records.heights,
                axes,
                within,
                scores[low:high],
                ignored[low:high],
                records.offsets,
                records.boxes.astype(np.float32),
                spec,
            )
        )
    return labelled, empty


def label_scores(
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    axes: GridAxes,
    cells: NDArray[np.int64],
    scores: NDArray[np.float32],
    ignored: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    spec: RuleSpec,
) -> CellLabels:
    """Labels and counts of n images on one grid from their scores; the shapes are those of `CellLabels`.

    `ignored` is completed in place with padding where the policy says so. `boxes` float32 (m, 4) are the annotated
    boxes as a shard stores them, `offsets` int64 (n + 1,) the boxes of each image.
    """
    images = len(widths)
    labels = np.empty(len(scores), np.uint8)
    fg_count, ignore_count = np.empty(images, np.int32), np.empty(images, np.int32)
    patches = np.empty(len(boxes), np.int32)
    geometry = (axes.rows, axes.cols, axes.y, axes.x, cells[:-1])
    label_cells(
        widths,
        heights,
        *geometry,
        scores,
        np.float32(spec.tau),
        spec.kind.inclusive,
        spec.padding == "ignore",
        ignored,
        labels,
        fg_count,
        ignore_count,
    )
    count_patches(widths, heights, offsets, boxes, *geometry, labels, patches)
    return CellLabels(axes, cells, scores, ignored, labels, fg_count, ignore_count, patches)
