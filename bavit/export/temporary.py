"""A pruned detector run by onnxruntime without a file of its own: exported for this one time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning, Size, removed_of
from bavit.export.described import ONNX, describe, read_described
from bavit.export.graphs import PrunedGraph
from bavit.export.onnx_files import DEFAULT_OPSET, to_onnx
from bavit.export.onnx_graph import OnnxGraph
from bavit.export.runtime import ExportedDetector
from tokenlabels.errors import ParameterError
from tokenlabels.progress import Progress


def exported(detector: PrunedDetector, threads: int | None, device: str, progress: Progress) -> ExportedDetector:
    """The same detector as an ONNX graph for pictures stretched to a square of its shortest edge.

    Args:
        detector: with a BAViT, on the CPU, by whose pruning the same number of patches stays of every picture.
        threads: of onnxruntime; None: as many as torch has.
        device: of onnxruntime, `cpu` or `cuda`.
        progress: told about it.

    Raises:
        ParameterError: it depends on the picture how many patches stay; or there is no such device.
        TokenLabelsError: the extra `export` is missing.
    """
    bavit, yolos, pruning = detector.bavit, detector.yolos, detector.pruning
    assert bavit is not None
    size = _square(detector)
    rows, cols = yolos.backbone.grid_of(torch.empty(0, *size))
    keep = _fixed(pruning, rows * cols)
    progress.stage("exporting")
    graph = PrunedGraph(
        bavit, yolos, size, keep, refine_steps=pruning.refine_steps, prune_after=pruning.prune_after
    ).eval()
    described = describe(
        bavit, yolos, size, keep=keep, refine_steps=pruning.refine_steps, prune_after=pruning.prune_after
    )
    examples = [torch.randn(2, 3, *(bavit.grid.image_size or ())), torch.randn(2, 3, *size)]
    model = to_onnx(graph, examples, described, DEFAULT_OPSET)
    progress.note(
        f"exported for this run: pictures are stretched to {size[0]} x {size[1]}, {keep} of {rows * cols} patches "
        "stay; bavit export keeps such a file."
    )
    with tempfile.TemporaryDirectory(prefix="bavit-") as folder:
        path = Path(folder) / f"detector{ONNX}"
        path.write_bytes(model.SerializeToString())
        return ExportedDetector(OnnxGraph(path, described, threads, device), read_described(path), "the exported graph")


def _square(detector: PrunedDetector) -> Size:
    config = detector.yolos.config
    side = config.shortest_edge // config.patch * config.patch
    return side, side


def _fixed(pruning: Pruning, patches: int) -> int:
    """How many patches stay of every picture."""
    if pruning.top_k is not None:
        count = pruning.top_k
    elif pruning.sparsity is not None:
        count = patches - removed_of(patches, pruning.sparsity)
    else:
        raise ParameterError(
            "onnxruntime needs a number of patches that is the same for every picture, and a threshold keeps now more, "
            "now fewer: say --top-k or --sparsity."
        )
    return count if pruning.max_tokens is None else min(count, pruning.max_tokens)
