"""Made-up sweeps that agree with themselves."""

from __future__ import annotations

import math

from bavit.detect.sweep_figures import MASK_SOURCES, Dense, MaskSource, Setting, Sweep, SweepRow
from bavit.flops import YOLOS_TINY, background_vit

_LOSS: dict[MaskSource, float] = {"bavit": 0.35, "labels": 0.12, "random": 1.3}
_REACH: dict[MaskSource, float] = {"bavit": 1.0, "labels": 0.6, "random": 1.0}


def make_sweep(
    *,
    thresholds: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
    masks: tuple[MaskSource, ...] = MASK_SOURCES,
    ap: float = 0.287,
    harm: float = 1.0,
    random_weights: bool = False,
    memory: bool = True,
) -> Sweep:
    """A sweep of YOLOS-tiny at 512 x 512 behind BAViT-small: AP falls with the square of sparsity, by `harm`."""
    bavit = background_vit().macs(576)
    macs_dense = float(YOLOS_TINY.macs(1024))

    def row(threshold: float, mask: MaskSource) -> SweepRow:
        sparsity = (1 - threshold) * 0.9 * _REACH[mask]
        found = ap * max(0.0, 1 - harm * _LOSS[mask] * sparsity**2)
        kept = 1024 * (1 - sparsity)
        pruned = math.floor(12288 * (1 - sparsity))
        macs = float(bavit + YOLOS_TINY.macs(round(kept)))
        dense_ms, ideal = 240.0 + 10 * threshold, macs_dense / macs
        return SweepRow(
            threshold=threshold, sparsity=sparsity, mask=mask, ap=found, ap50=found * 1.6, ap75=found * 0.9,
            ap_small=found * 0.3, ap_medium=found * 0.9, ap_large=None, ap_dense=ap, ap50_dense=ap * 1.6,
            kept_patches=kept, tokens_bavit=1152.0,
            tokens_detector=12288.0, tokens_pruned=pruned, tokens_total=1152.0 + pruned,
            reduction=1 - (1152 + pruned) / 12288, macs=macs, macs_dense=macs_dense,
            latency_ms=dense_ms / (0.93 * ideal), latency_p95_ms=dense_ms / (0.85 * ideal),
            latency_detector_ms=dense_ms / ideal, latency_dense_ms=dense_ms, latency_dense_p95_ms=dense_ms * 1.1,
            throughput=4.4 * 0.95 * ideal, throughput_detector=4.6 * ideal, throughput_dense=4.4,
            speedup=0.95 * ideal, speedup_latency=0.93 * ideal, speedup_ideal=ideal, sparsity_timed=sparsity,
            peak_memory_mb=90 * (1 - 0.6 * sparsity) if memory else None,
            peak_memory_dense_mb=90.0 if memory else None,
        )  # fmt: skip

    return Sweep(
        rows=[row(threshold, mask) for mask in masks for threshold in thresholds],
        dense=Dense(
            ap=ap, ap50=ap * 1.6, ap75=ap * 0.9, ap_small=ap * 0.3, ap_medium=ap * 0.9, ap_large=None, patches=1024.0,
            tokens=12288.0, macs=macs_dense, latency_ms=245.0, latency_p95_ms=270.0, throughput=4.4,
            peak_memory_mb=90.0 if memory else None,
        ),
        setting=Setting(
            bavit="runs/bavit", detector="runs/yolos", random_weights=random_weights, data="coco val2017", images=40,
            images_timed=16, batch_size=8, rounds=3, threshold=0.5, refine_steps=3, prune_after=0,
            bavit_parameters=1_148_738, detector_parameters=6_488_736, bavit_macs=float(bavit), scores=True,
            environment={"device": "cpu", "precision": "32", "threads": "2", "torch": "2.15.0"}, notes=[],
        ),
    )  # fmt: skip
