"""What all detectors have in common, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.detect.accounting import detector_macs
from bavit.detect.config import YolosConfig
from bavit.detect.pruned import Detection, StageTimes
from bavit.detect.sweep_rows import count_tokens
from bavit.pictures import Picture


class Detector(Protocol):
    """Finds objects in pictures: a `PrunedDetector`, or a file that was exported.

    Attributes:
        bavit: what decides which patches stay; of an exported file its sizes alone. None: all stay.
        config: of the YOLOS.
        prune_after: its blocks that see all patches.
        mask_macs: multiply-accumulates of what decides which patches of an image stay.
        runtime: `torch` or `onnx`.
        provider: what that runs on, such as `cpu` or `CPUExecutionProvider`.
    """

    @property
    def bavit(self) -> BAViT | None: ...

    @property
    def config(self) -> YolosConfig: ...

    @property
    def prune_after(self) -> int: ...

    @property
    def mask_macs(self) -> int: ...

    @property
    def runtime(self) -> str: ...

    @property
    def provider(self) -> str: ...

    def __call__(self, images: Sequence[Picture], times: StageTimes | None = None) -> list[Detection]:
        """See `PrunedDetector.forward`."""


def mean_cost(detector: Detector, kept: NDArray[np.int64], patches: NDArray[np.int64]) -> dict[str, float]:
    """What images cost on average.

    Args:
        detector: which.
        kept: int64 (n,), patches kept of each image.
        patches: int64 (n,), patches there are.

    Returns:
        `sparsity`, `kept_patches`, tokens as `count_tokens` counts them, `macs`, and `macs_dense` of the detector with
        all patches and without BAViT.
    """
    bavit, config, after = detector.bavit, detector.config, detector.prune_after
    macs = float(detector_macs(config, kept, patches, prune_after=after).mean())
    return {
        "sparsity": float(1 - kept.sum() / patches.sum()),
        "kept_patches": float(kept.mean()),
        **count_tokens(bavit, config, kept, patches, after),
        "macs": macs + detector.mask_macs,
        "macs_dense": float(detector_macs(config, patches, patches).mean()),
    }
