"""A pruned detector run by onnxruntime without a file of its own: exported for this one time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bavit.detect.pruned import PrunedDetector
from bavit.export.choice import Choice, Models, describe_choice, graph_of, left_out, random_inputs
from bavit.export.described import ONNX
from bavit.export.onnx_files import DEFAULT_OPSET, to_onnx
from bavit.export.runtime import ExportedDetector
from tokenlabels.progress import Progress


def exported(detector: PrunedDetector, threads: int | None, device: str, progress: Progress) -> ExportedDetector:
    """The same detector as an ONNX graph for pictures stretched to a square of its shortest edge.

    Args:
        detector: on the CPU, by whose pruning the same number of patches stays of every picture.
        threads: of onnxruntime; None: as many as torch has.
        device: of onnxruntime, `cpu` or `cuda`.
        progress: told about it.

    Raises:
        ParameterError: it depends on the picture how many patches stay; or there is no such device.
        TokenLabelsError: the extra `export` is missing.
    """
    models = Models(detector.bavit, detector.yolos, detector.pruning)
    described = describe_choice(models, Choice())
    told_of = left_out(models, Choice())
    if told_of is not None:
        progress.note(told_of)
    progress.stage("exporting")
    model = to_onnx(graph_of(models, described), random_inputs(models, described, 2), described, DEFAULT_OPSET)
    height, width = described.image_size
    stay = "" if described.keep is None else f", {described.keep:,} of {described.patches:,} patches stay"
    progress.note(
        f"exported for this run: pictures are stretched to {height} x {width}{stay}; bavit export keeps such a file."
    )
    with tempfile.TemporaryDirectory(prefix="bavit-") as folder:
        path = Path(folder) / f"exported{ONNX}"
        path.write_bytes(model.SerializeToString())
        return ExportedDetector.open(path, threads=threads, device=device)
