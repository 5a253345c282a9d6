"""The figures that no run states, computed from those it does: the row to talk of, Table 2, what was saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from bavit.detect.accounting import TokenReduction, token_reduction
from bavit.detect.sweep_figures import AFFORDABLE, Sweep, SweepRow
from bavit.report.results import Results, SegmentPoint, SweepResult

NAMED_SPARSITIES = (0.25, 0.30, 0.35, 0.46)
"""Shares of removed patches at which the paper's arithmetic is told whatever was measured; 35 % and 46 % are those at
which this project measures speed."""

PAPER = "arXiv 2410.09324"

PRINTED = (
    ("throughput of YOLOS behind a BAViT of 2 layers", "+30 % to +40 %"),
    ("mAP lost, without and with sparse fine-tuning", "3 % and 2 %"),
    ("accuracy of BAViT of 2 layers, VOC and COCO", "75 % and 71 %"),
    ("accuracy of BAViT of 10 layers, VOC and COCO", "88 % and 80 %"),
)
"""What the abstract of the paper prints, https://arxiv.org/abs/2410.09324. The rows of its Table 2 are not among it."""


class Headline(msgspec.Struct, frozen=True):
    """The row to talk of.

    Attributes:
        run: name of its sweep.
        why: how it was chosen.
        row: the row itself.
        reference: AP of the best dense detector on the same data, which its own is compared with.
        lost: AP lost against that, 0..1; negative where it is better.
        macs_saved: share of the dense detector's MACs.
    """

    run: str
    why: str
    row: SweepRow
    reference: float
    lost: float
    macs_saved: float


class TableRow(msgspec.Struct, frozen=True):
    """A line of Table 2, ours beside the paper's arithmetic at the same sparsity.

    Attributes:
        run: name of the sweep; None in lines of the paper's arithmetic alone.
        threshold: of the masks.
        paper: tokens of YOLOS-tiny at 512 x 512 behind BAViT of depth 2, as the paper counts.
        tokens_detector: of our detector when nothing is removed, counted likewise: patches, once for each block.
        tokens_bavit: of our BAViT.
        tokens_pruned: of our detector behind it.
        tokens_total: of both.
        reduction: share saved.
        standing: tokens of CLS and detection, once for each block, which the paper leaves out and nothing removes;
            None where the sweep does not tell.
        reduction_true: share saved with these counted.
        macs_saved: share of multiply-accumulates saved.
        speedup: measured, in batches.
        ap: of the detector behind BAViT.
        ap_change: against the dense detector of the same sweep.
        random_weights: the detector was never trained: its AP means nothing.
    """

    paper: TokenReduction
    run: str | None = None
    threshold: float | None = None
    tokens_detector: float | None = None
    tokens_bavit: float | None = None
    tokens_pruned: float | None = None
    tokens_total: float | None = None
    reduction: float | None = None
    standing: float | None = None
    reduction_true: float | None = None
    macs_saved: float | None = None
    speedup: float | None = None
    ap: float | None = None
    ap_change: float | None = None
    random_weights: bool = False


class SegmentHeadline(msgspec.Struct, frozen=True):
    """The row of a segmenter to talk of: of those that lose at most a point of mIoU the one that saves most."""

    run: str
    row: SegmentPoint
    reference: float


class Exported(msgspec.Struct, frozen=True):
    """A pruned graph beside the dense one, as `tests/benchmarks/bench_onnx.py` measures them.

    Attributes:
        run: name of the file.
        variant: which graph.
        sparsity: share of patches removed.
        ratio_graph: how many times as fast as the dense graph.
        ratio_whole: the same with preprocessing and boxes.
        graph_ms: latency of the graph.
    """

    run: str
    variant: str
    sparsity: float
    ratio_graph: float
    ratio_whole: float
    graph_ms: float


def trained(sweeps: Sequence[SweepResult]) -> list[SweepResult]:
    """Sweeps whose AP means something."""
    return [each for each in sweeps if not each.sweep.setting.random_weights]


def reference_ap(sweeps: Sequence[SweepResult], sweep: Sweep) -> float:
    """The best AP that any dense detector has on the data of a sweep."""
    setting = sweep.setting
    return max(
        (
            each.sweep.dense.ap
            for each in trained(sweeps)
            if (each.sweep.setting.data, each.sweep.setting.images) == (setting.data, setting.images)
        ),
        default=sweep.dense.ap,
    )


def headline(results: Results) -> Headline | None:
    """The row to talk of, of all trained detectors behind BAViT's masks.

    Of the rows that lose at most a point of AP against the best dense detector on the same data, the fastest that is
    faster than dense; where there is none, the one with most patches removed; where none loses so little, the row
    that loses least of those that remove at least a quarter. None without sweeps.
    """
    rows = [
        (each.name, row, reference_ap(results.sweeps, each.sweep))
        for each in trained(results.sweeps)
        for row in each.sweep.of("bavit")
    ]
    if not rows:
        return None
    good = [each for each in rows if each[1].ap >= each[2] - AFFORDABLE]
    fast = [each for each in good if each[1].speedup > 1]
    if fast:
        why, chosen = "the fastest that loses at most one point of AP", max(fast, key=lambda each: each[1].speedup)
    elif good:
        why = "of those that lose at most one point of AP, the one that removes most"
        chosen = max(good, key=lambda each: each[1].sparsity)
    else:
        sparse = [each for each in rows if each[1].sparsity >= NAMED_SPARSITIES[0]] or rows
        why = "none loses less than a point of AP: of those that remove a quarter or more, the one that loses least"
        chosen = min(sparse, key=lambda each: (each[2] - each[1].ap, -each[1].sparsity))
    name, row, reference = chosen
    return Headline(name, why, row, reference, reference - row.ap, saved(row.macs, row.macs_dense) or 0.0)


def fastest(results: Results) -> tuple[str, SweepRow] | None:
    """Name of the sweep and row of the greatest speed-up behind BAViT's masks, whatever it costs in AP."""
    rows = [(each.name, row) for each in results.sweeps for row in each.sweep.of("bavit")]
    return max(rows, key=lambda each: each[1].speedup, default=None)


def segment_headline(results: Results) -> SegmentHeadline | None:
    """The row of a segmenter to talk of; None where none loses so little, or where nothing is known of the unpruned."""
    found = []
    for each in results.segmentations:
        dense = next((row.miou for row in each.rows if row.dense), None)
        for row in each.rows:
            reference = dense if dense is not None else row.miou_dense
            if not row.dense and reference is not None and row.miou >= reference - AFFORDABLE:
                found.append(SegmentHeadline(each.name, row, reference))
    return max(found, key=lambda each: each.row.macs_reduction, default=None)


def exported(results: Results) -> Exported | None:
    """What pruning saves of an exported graph at the least sparsity that was measured; None where none was."""
    found = []
    for each in results.tables:
        for row in (row for table in each.tables for row in table.rows):
            values = [row.get(key) for key in ("variant", "sparsity", "ratio_whole", "graph_ms", "ratio_graph")]
            variant, *numbers = values
            if (
                isinstance(variant, str)
                and variant.endswith("onnx")
                and all(isinstance(n, (int, float)) for n in numbers)
            ):
                sparsity, whole, milliseconds, graph = (float(n) for n in numbers)  # type: ignore[arg-type]
                if sparsity > 0:
                    found.append(Exported(each.name, variant, sparsity, graph, whole, milliseconds))
    return min(found, key=lambda each: each.sparsity, default=None)


def table_two(results: Results) -> list[TableRow]:
    """Table 2: the paper's arithmetic at some sparsities, then every row of BAViT's masks beside it."""
    rows = [TableRow(token_reduction(share)) for share in NAMED_SPARSITIES]
    for each in results.sweeps:
        rows += [_table_row(each, row) for row in each.sweep.of("bavit")]
    return rows


def _table_row(result: SweepResult, row: SweepRow) -> TableRow:
    setting, dense = result.sweep.setting, result.sweep.dense
    standing = None
    if setting.standing_tokens is not None and dense.patches > 0:
        standing = setting.standing_tokens * dense.tokens / dense.patches
    true = None if standing is None else saved(row.tokens_total + standing, row.tokens_detector + standing)
    untrained = setting.random_weights
    return TableRow(
        paper=token_reduction(round(min(max(row.sparsity, 0.0), 1.0), 9)),
        run=result.name,
        threshold=row.threshold,
        tokens_detector=row.tokens_detector,
        tokens_bavit=row.tokens_bavit,
        tokens_pruned=row.tokens_pruned,
        tokens_total=row.tokens_total,
        reduction=row.reduction,
        standing=standing,
        reduction_true=true,
        macs_saved=saved(row.macs, row.macs_dense),
        speedup=row.speedup,
        ap=None if untrained else row.ap,
        ap_change=None if untrained else row.ap - dense.ap,
        random_weights=untrained,
    )


def saved(less: float, whole: float) -> float | None:
    """The share of a whole that is saved; None where there is no whole."""
    share = 1 - less / whole if whole > 0 else math.nan
    return share if math.isfinite(share) else None
