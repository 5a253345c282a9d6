"""Records x grids -> scores -> labels, by a rule.

A score is rounded to float32 and compared with float32(tau), so that relabelling from stored scores reproduces a build.
Importing this loads the compiled kernels, which takes a second; a parent of worker processes does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenlabels import coverage
from tokenlabels.annotations import NO_CATEGORY, Masks, Records
from tokenlabels.coverage import FOREGROUND, ROLE_OF_POLICY
from tokenlabels.deferred import DeferredRecords
from tokenlabels.grid import GridAxes
from tokenlabels.labels import count_patches, label_cells
from tokenlabels.map_scoring import MapScores, score_maps
from tokenlabels.rules import RuleSpec


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
        categories: uint16, one per cell: the category that covers most of it; None where the source has no such maps.
        category_shares: float32, one per cell: its share of the cell.
    """

    axes: GridAxes
    cells: NDArray[np.int64]
    scores: NDArray[np.float32]
    ignored: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    fg_count: NDArray[np.int32]
    ignore_count: NDArray[np.int32]
    patches: NDArray[np.int32]
    categories: NDArray[np.uint16] | None = None
    category_shares: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, axes: GridAxes, parts: Sequence[CellLabels]) -> CellLabels:
        """The images of all parts, at least one, whose grid is `axes`; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(int(part.cells[-1]) for part in parts)]).tolist()
        cells = [part.cells[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
        return cls(
            axes,
            np.concatenate([*cells, np.array(before[-1:], np.int64)]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.ignored for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.fg_count for part in parts]),
            np.concatenate([part.ignore_count for part in parts]),
            np.concatenate([part.patches for part in parts]),
        )


Take: TypeAlias = Callable[[Records, MapScores], None]
"""Told of some images, once they are scored, and what was found of their masks besides."""


def label_blocks(
    records: Records | DeferredRecords, grids: Sequence[GridAxes], spec: RuleSpec, take: Take
) -> tuple[Records, list[CellLabels]]:
    """`label_records` of images that may still have to be read, few at a time.

    Returns:
        The records, without masks if they were read here, and one `CellLabels` per grid.

    Raises:
        MapError: see `label_records`.
        TokenLabelsError: annotations cannot be read.
    """
    parts, labelled = [], []
    start = 0
    for block in records.blocks():
        stop = start + len(block)
        labels, found = label_records(block, [axes[start:stop] for axes in grids], spec)
        take(block, found)
        parts.append(block if isinstance(records, Records) else replace(block, masks=None))
        labelled.append(labels)
        start = stop
    return Records.joined(parts), [
        CellLabels.joined(axes, [labels[index] for labels in labelled]) for index, axes in enumerate(grids)
    ]


def label_records(records: Records, grids: Sequence[GridAxes], spec: RuleSpec) -> tuple[list[CellLabels], MapScores]:
    """Score and label n images on several grids in one pass.

    Args:
        records: n images with m annotations; with masks or maps for a rule that reads them.
        grids: the grids of these n images, one entry for each patch grid.
        spec: the rule.

    Returns:
        One `CellLabels` per grid, and what was found of the masks besides (nothing where none was read).

    Raises:
        MapError: a map cannot be read, or holds a value without a meaning.
    """
    images = len(records)
    per_grid = np.array([axes.cells for axes in grids], np.int64).reshape(len(grids), images)
    starts = np.zeros(per_grid.size + 1, np.int64)
    np.cumsum(per_grid.ravel(), out=starts[1:])
    cells = starts[:-1].reshape(per_grid.shape)
    scores, ignored = np.zeros(starts[-1], np.float32), np.zeros(starts[-1], np.bool_)
    roles = np.where(records.crowd, ROLE_OF_POLICY[spec.crowd], FOREGROUND).astype(np.uint8)
    found = MapScores(np.zeros(len(roles), np.bool_), [])
    sizes = (records.widths, records.heights, records.offsets, roles)
    geometry = (
        np.array([axes.rows for axes in grids], np.int64).reshape(per_grid.shape),
        np.array([axes.cols for axes in grids], np.int64).reshape(per_grid.shape),
        np.array([axes.y for axes in grids], np.int64).reshape(*per_grid.shape, 3),
        np.array([axes.x for axes in grids], np.int64).reshape(*per_grid.shape, 3),
        cells,
    )
    categories, shares = _category_arrays(records, int(starts[-1]))
    if records.maps is not None and (spec.kind.reads_masks or records.maps.category_count):
        scratch = (scores, ignored) if spec.kind.reads_masks else (np.zeros_like(scores), np.zeros_like(ignored))
        found = score_maps(records, grids, spec, cells, *scratch, categories, shares)
    if spec.kind.reads_masks and records.maps is None:
        masks = records.masks
        assert isinstance(masks, Masks), "the source was not asked for masks, or they are not packed (Records.block)"
        pools = (masks.text, masks.numbers, masks.counts)
        coverage.mask_cell_shares(*sizes, masks.kinds, masks.spans, *pools, *geometry, scores, ignored, found.empty)
    elif not spec.kind.reads_masks:
        if records.difficult.any():
            roles[records.difficult & (roles == FOREGROUND)] = ROLE_OF_POLICY[spec.difficult]
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
        if len(categories):
            labelled[-1] = replace(labelled[-1], categories=categories[low:high], category_shares=shares[low:high])
    return labelled, found


def _category_arrays(records: Records, cells: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Room for the majority category of each cell and its share; none where the source has no such maps."""
    if records.maps is None or not records.maps.category_count:
        cells = 0
    return np.full(cells, NO_CATEGORY, np.uint16), np.zeros(cells, np.float32)


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
