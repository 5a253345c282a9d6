"""What an exported file finds in a labelled set, beside what PyTorch finds with the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bavit.background.metrics import evaluate_predictions
from bavit.background.model import BAViT
from bavit.background.predict import Place, predict_rows
from bavit.detect.evaluate import check_classes, evaluate_detections
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.preprocess import normalise
from bavit.detect.pruned import Detection, PrunedDetector, detections
from bavit.detect.yolos import Yolos, YolosOutput
from bavit.export.choice import Models
from bavit.export.described import Described
from bavit.export.onnx_files import Run
from bavit.pictures import as_tensor, resize
from tokenlabels.errors import TokenLabelsError
from tokenlabels.progress import Progress

BATCH = 4

FIGURES: dict[Literal["detector", "bavit"], tuple[str, ...]] = {
    "detector": ("ap", "ap50"),
    "bavit": ("accuracy", "balanced_accuracy", "auroc"),
}
"""What is told of a file with a detector, and of a BAViT alone."""

TORCH = "pytorch"

Figures = dict[str, float]


def measure(
    models: Models, described: Described, runs: Mapping[str, Run], data: DetectionSet, progress: Progress
) -> dict[str, Figures]:
    """Figures of PyTorch and of some files on a set.

    Args:
        models: what the files were made of.
        described: what they are.
        runs: files by name.
        data: images with objects; with labels on BAViT's grid, of a BAViT alone.
        progress: told about every image.

    Returns:
        `pytorch`, and each name of `runs`: `FIGURES`, 0..1.

    Raises:
        ParameterError: the detector's classes are not those of the set, or labels on another grid.
        PictureError: a picture cannot be read.
        TokenLabelsError: the set holds no objects.
    """
    if models.yolos is None:
        assert models.bavit is not None
        return _of_bavit(models.bavit, runs, data, progress)
    return _of_detector(models, models.yolos, described, runs, data, progress)


def _of_detector(
    models: Models, yolos: Yolos, described: Described, runs: Mapping[str, Run], data: DetectionSet, progress: Progress
) -> dict[str, Figures]:
    if not data.rows.has_objects:
        raise TokenLabelsError(f"{data.rows.folder} holds no objects to detect: name another split or set.")
    check_classes(data, yolos.config, progress)
    whole = PrunedDetector(
        models.bavit, yolos, top_k=described.keep, refine_steps=described.refine_steps,
        prune_after=described.prune_after,
    )  # fmt: skip
    found: dict[str, list[Detection]] = {name: [] for name in (TORCH, *runs)}
    progress.stage("evaluating", len(data) * len(found))
    for first in range(0, len(data), BATCH):
        pictures = [data.pictures.open(index) for index in range(first, min(first + BATCH, len(data)))]
        resized = [resize(as_tensor(picture), described.image_size) for picture in pictures]
        pixels = normalise(resized, yolos.config, "cpu")
        assert isinstance(pixels, Tensor)
        small = None if models.bavit is None else models.bavit.preprocess(pictures)
        sizes = [picture.size for picture in pictures]
        found[TORCH] += whole.detect(small, pixels, sizes)
        progress.advance(len(pictures))
        grids = [yolos.backbone.grid_of(pixels)] * len(pictures)
        for name, run in runs.items():
            logits, boxes, *keep = run([pixels] if small is None else [small, pixels])
            masks = list(keep[0]) if keep else None
            found[name] += detections(YolosOutput(logits, boxes), masks, grids, sizes)
            progress.advance(len(pictures))
    scores = {name: evaluate_detections(data, each, yolos.config) for name, each in found.items()}
    return {
        name: {figure: float(getattr(each, figure)) for figure in FIGURES["detector"]} for name, each in scores.items()
    }


@dataclass(frozen=True, slots=True)
class _Given(Place):
    """Predicts with a file in the place of its model."""

    run: Run | None = None

    def runner(self, model: BAViT) -> Callable[[Tensor], Tensor]:
        run = self.run
        if run is None:
            return Place.runner(self, model)

        def background(pixels: Tensor) -> Tensor:
            logits = run([model.normalise(pixels)])[0]
            return torch.sigmoid(logits[..., 0] - logits[..., 1]).reshape(-1, *model.shape)

        return background


def _of_bavit(model: BAViT, runs: Mapping[str, Run], data: DetectionSet, progress: Progress) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    ways: dict[str, Run | None] = {TORCH: None, **runs}
    for name, run in ways.items():
        place: Any = _Given("cpu", batch_size=BATCH, workers=0, run=run)
        predictions, _ = predict_rows(model, data.rows, data.images, place, progress)
        evaluation = evaluate_predictions(
            predictions,
            threshold=model.threshold,
            refine_steps=model.refine_steps,
            parameters=model.parameter_count,
            macs=model.macs,
        )
        found[name] = {figure: float(getattr(evaluation, figure)) for figure in FIGURES["bavit"]}
    return found
