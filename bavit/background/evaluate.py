"""A model on a labelled set: predictions, figures, and pictures to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bavit.background.figures import Evaluation
from bavit.background.metrics import evaluate_predictions
from bavit.background.model import BAViT
from bavit.background.predict import Place, predict_rows
from bavit.background.predictions import Predictions
from bavit.background.refine import refine
from bavit.data import ShardImages
from bavit.gallery import Sample
from bavit.rows import Rows
from bavit.visualize import panels
from tokenlabels.progress import Progress

if TYPE_CHECKING:
    from tokenlabels.storage import Location


def evaluate(
    model: BAViT,
    rows: Rows,
    images: Location | None,
    place: Place,
    progress: Progress,
    *,
    threshold: float | None = None,
    refine_steps: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[Evaluation, Predictions, Rows]:
    """Every figure of a model on some rows.

    Args:
        model: the model.
        rows: on its grid.
        images: folder of the pictures, or None where they are embedded.
        place: where it runs.
        progress: told about every picture.
        threshold: background probability above which a token is removed, by default the model's.
        refine_steps: by default the model's.
        on_error: what to do about a picture that cannot be read; one left out counts nowhere.

    Returns:
        The figures, the predictions they are of, and the rows these are of.

    Raises:
        ParameterError: rows on another grid, or a threshold or number of steps out of range.
        PictureError: a picture cannot be read.
    """
    predictions, kept = predict_rows(model, rows, images, place, progress, on_error)
    progress.stage("counting")
    found = evaluate_predictions(
        predictions,
        threshold=model.threshold if threshold is None else threshold,
        refine_steps=model.refine_steps if refine_steps is None else refine_steps,
        parameters=model.parameter_count,
        macs=model.macs,
    )
    return found, predictions, kept


def samples(
    evaluation: Evaluation, predictions: Predictions, rows: Rows, images: Location | None, count: int
) -> list[Sample]:
    """Some pictures with what is kept of them: of every quality, from the best to the worst.

    Args:
        evaluation: its threshold and steps.
        predictions: of `rows`.
        rows: the rows.
        images: folder of the pictures, or None where they are embedded.
        count: how many.
    """
    kept = predictions.background <= np.float32(evaluation.threshold)
    right = _right(kept, predictions.labels)
    order = np.argsort(-right, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)].tolist()
    dataset = ShardImages(rows, images)
    steps = evaluation.refine_steps or 3
    found = []
    for index in dict.fromkeys(chosen):
        mask = torch.from_numpy(kept[index])
        picture = Image.fromarray(dataset[0, index].pixels)
        drawn = panels(picture, kept[index], refine(mask, steps).numpy(), predictions.labels[index])
        found.append(Sample(f"{rows.file_names[index]}: {right[index]:.1%} of its patches are right", drawn))
    return found


def _right(kept: NDArray[np.bool_], labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 (n,): the share of right answers in each image, ignored patches left out."""
    counted = labels != 255
    right = ((kept == (labels == 1)) & counted).sum(axis=(1, 2))
    shares: NDArray[np.float64] = right / np.maximum(counted.sum(axis=(1, 2)), 1)
    return shares
