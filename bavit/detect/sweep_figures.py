"""The figures of a sweep: what the command prints, the page and the plots draw, and the files hold.

Tokens are counted as in the BAViT paper's Table 2: patch tokens, once for each block they pass; multiply-accumulates
(MACs) have everything. Both are means over the images that were evaluated. Times are of images held in memory as
tensors: of the *pipeline* BAViT, masks, detector and boxes on the one side, of the detector alone with all patches on
the other, in turns. The pipeline has BAViT's time and MACs whatever the masks are from: masks from the labels and
random ones take the place of those that BAViT made, so that rows of one sparsity differ in nothing but which patches
stay.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from tokenlabels.atomic import write_atomically
from tokenlabels.errors import TokenLabelsError

MaskSource: TypeAlias = Literal["bavit", "labels", "random"]
MASK_SOURCES: tuple[MaskSource, ...] = ("bavit", "labels", "random")
MASK_NAMES: dict[MaskSource, str] = {"bavit": "BAViT", "labels": "ground truth", "random": "random"}

AFFORDABLE = 0.01
"""AP that may be lost for speed: one point."""


class SweepRow(msgspec.Struct, frozen=True):
    """One threshold with the masks of one source.

    Attributes:
        threshold: background probability above which a patch is removed; of `labels` one minus the overlap score above
            which it is; of `random` that of the BAViT masks whose counts they have.
        sparsity: share of the detector's patches removed.
        mask: where the masks are from.
        ap: COCO's AP, 0..1.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of small objects, as the next two; None where there are none.
        ap_medium: of medium objects.
        ap_large: of large objects.
        ap_dense: AP of the detector with all patches.
        ap50_dense: the same at IoU 0.5.
        kept_patches: mean of an image.
        tokens_bavit: tokens of BAViT, of an image.
        tokens_detector: of the detector with all patches.
        tokens_pruned: of the detector with what is kept.
        tokens_total: of BAViT and the detector with what is kept.
        reduction: share of `tokens_detector` that is saved; negative where more is spent.
        macs: of BAViT and the detector with what is kept.
        macs_dense: of the detector with all patches.
        latency_ms: median time of one image alone, pipeline.
        latency_p95_ms: its 95th percentile.
        latency_detector_ms: median time of the detector's part of the pipeline.
        latency_dense_ms: median of the detector with all patches, timed in turns with this row.
        latency_dense_p95_ms: its 95th percentile.
        throughput: images per second in batches, pipeline.
        throughput_detector: of the detector's part of the pipeline.
        throughput_dense: of the detector with all patches, timed in turns with this row.
        speedup: `throughput` by `throughput_dense`: the median over rounds.
        speedup_latency: `latency_dense_ms` by `latency_ms`.
        speedup_ideal: MACs of the dense detector by those of the pipeline, of the images that were timed.
        sparsity_timed: as `sparsity`, of the images that were timed.
        peak_memory_mb: most memory that a batch takes beside what was held before; None where it cannot be measured.
        peak_memory_dense_mb: of the detector with all patches.
    """

    threshold: float
    sparsity: float
    mask: MaskSource
    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ap_dense: float
    ap50_dense: float
    kept_patches: float
    tokens_bavit: float
    tokens_detector: float
    tokens_pruned: float
    tokens_total: float
    reduction: float
    macs: float
    macs_dense: float
    latency_ms: float
    latency_p95_ms: float
    latency_detector_ms: float
    latency_dense_ms: float
    latency_dense_p95_ms: float
    throughput: float
    throughput_detector: float
    throughput_dense: float
    speedup: float
    speedup_latency: float
    speedup_ideal: float
    sparsity_timed: float
    peak_memory_mb: float | None
    peak_memory_dense_mb: float | None


class Dense(msgspec.Struct, frozen=True):
    """The detector with all patches; attributes as in `SweepRow`, times as medians of those of the rows."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    patches: float
    tokens: float
    macs: float
    latency_ms: float
    latency_p95_ms: float
    throughput: float
    peak_memory_mb: float | None


class Setting(msgspec.Struct, frozen=True):
    """How a sweep was made.

    Attributes:
        bavit: the background model, as named.
        detector: the detector, as named.
        random_weights: the detector was never trained: its AP means nothing.
        data: what it was evaluated on, as named.
        images: how many were evaluated.
        images_timed: how many of them were timed.
        batch_size: of throughput.
        rounds: of timing.
        threshold: the one stored in the background model.
        refine_steps: steps of refinement.
        prune_after: blocks of the detector that see all patches.
        bavit_parameters: of the background model.
        detector_parameters: of the detector.
        bavit_macs: of the background model, of an image.
        scores: masks from the labels are made from overlap scores; else from the labels alone, whatever the threshold.
        environment: device, precision, threads, versions.
        notes: what a reader should know.
        standing_tokens: CLS and detection tokens, which no pruning removes; None in sweeps of before these were told.
    """

    bavit: str
    detector: str
    random_weights: bool
    data: str
    images: int
    images_timed: int
    batch_size: int
    rounds: int
    threshold: float
    refine_steps: int
    prune_after: int
    bavit_parameters: int
    detector_parameters: int
    bavit_macs: float
    scores: bool
    environment: dict[str, str]
    notes: list[str]
    standing_tokens: int | None = None


class Sweep(msgspec.Struct, frozen=True):
    """A sweep.

    Attributes:
        rows: by source of masks, then by ascending threshold.
        dense: what they are compared with.
        setting: how it was made.
    """

    rows: list[SweepRow]
    dense: Dense
    setting: Setting

    def of(self, mask: MaskSource) -> list[SweepRow]:
        """The rows of one source of masks, by ascending sparsity."""
        return sorted((row for row in self.rows if row.mask == mask), key=lambda row: row.sparsity)

    @property
    def sources(self) -> list[MaskSource]:
        """Sources of masks that occur."""
        return [mask for mask in MASK_SOURCES if any(row.mask == mask for row in self.rows)]

    @property
    def best(self) -> SweepRow:
        """The row to talk of: of BAViT's masks the fastest of those that lose at most `AFFORDABLE` AP; where none is
        so good, or the weights are random, the one whose threshold is closest to the model's."""
        rows = self.of("bavit") or self.rows
        good = [row for row in rows if row.ap >= self.dense.ap - AFFORDABLE and row.speedup > 1]
        if good and not self.setting.random_weights:
            return max(good, key=lambda row: row.speedup)
        return min(rows, key=lambda row: abs(row.threshold - self.setting.threshold))


def save_json(sweep: Sweep, path: Path) -> Path:
    """Write a sweep as JSON, to be read by `read_sweep`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(sweep), indent=2) + b"\n")
    return path


def read_sweep(path: Path) -> Sweep:
    """A sweep that `save_json` wrote.

    Raises:
        TokenLabelsError: it is no such file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sweep)
    except OSError as fault:
        raise TokenLabelsError(f"{path}: cannot be read ({fault.strerror}): name the sweep.json of a sweep.") from None
    except msgspec.MsgspecError as fault:
        raise TokenLabelsError(f"{path}: is not the sweep.json of a sweep ({fault}).") from None


def save_csv(sweep: Sweep, path: Path) -> Path:
    """Write the rows as CSV; what could not be measured is empty.

    Raises:
        OutputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, SweepRow.__struct_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(msgspec.structs.asdict(row) for row in sweep.rows)
    write_atomically(path, text.getvalue().encode())
    return path
