"""What a model keeps of picture files, drawn and written: overlays as the BAViT paper's Figures 4 and 6, and masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.background.predict import Place, Prediction, Throughput, check_grid, predict_files
from bavit.background.refine import drop_specks, refine
from bavit.outputs import make_folder, result_names
from bavit.rows import Rows
from bavit.visualize import mask_image, panels, save_masks, save_png
from tokenlabels.progress import Progress

SHOWN_STEPS = 3
"""Steps of refinement that overlays show where none are kept, as in the paper."""

MASKS_FILE = "masks.npz"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept and written.

    Attributes:
        threshold: background probability above which a token is removed; None: the model's.
        refine_steps: None: the model's.
        min_patches: after refinement, components of fewer patches are dropped.
        overlays: write `<stem>-overlay.png`: original, kept, refined, and ground truth where there is any.
        masks: write `<stem>-mask.png` of the size of the picture, 255 where it is kept.
    """

    threshold: float | None = None
    refine_steps: int | None = None
    min_patches: int = 0
    overlays: bool = True
    masks: bool = True


def draw_predictions(
    model: BAViT, paths: list[Path], out: Path, choice: Choice, place: Place, truth: Rows | None, progress: Progress
) -> dict[str, Any]:
    """Predict, draw and write; also `masks.npz`, the masks and probabilities of all pictures.

    Args:
        model: the model.
        paths: picture files.
        out: folder for the results.
        choice: what is kept and written.
        place: where the model runs.
        truth: labels of pictures of the same file name, on the model's grid; or None.
        progress: told about every picture.

    Returns:
        `images`, `threshold`, `refine_steps`, `sparsity` and `sparsity_refined` (means), `images_per_second` (reading,
        model and all), `model_images_per_second`, `out`.

    Raises:
        ParameterError: labels on another grid.
        PictureError: a file cannot be read.
        OutputError: the folder cannot be written.
    """
    if truth is not None:
        check_grid(model, truth)
    make_folder(out, paths)
    threshold = model.threshold if choice.threshold is None else choice.threshold
    steps = model.refine_steps if choice.refine_steps is None else choice.refine_steps
    names = result_names(paths)
    throughput = Throughput()
    background, kept, refined = [], [], []
    for prediction, name in zip(predict_files(model, paths, place, throughput, progress), names, strict=True):
        background.append(prediction.background)
        mask = torch.from_numpy(prediction.background <= np.float32(threshold))
        kept.append(mask.numpy())
        refined.append(drop_specks(refine(mask, steps), choice.min_patches).numpy())
        shown = refined[-1] if steps else drop_specks(refine(mask, SHOWN_STEPS), choice.min_patches).numpy()
        _write(model, prediction, out / name, choice, (kept[-1], refined[-1], shown), _truth(truth, prediction))
    save_masks(out / MASKS_FILE, np.stack(refined), np.stack(background), names)
    return {
        "images": len(paths),
        "threshold": threshold,
        "refine_steps": steps,
        "sparsity": float(1 - np.mean(kept)),
        "sparsity_refined": float(1 - np.mean(refined)),
        "images_per_second": throughput.images / max(throughput.seconds, 1e-9),
        "model_images_per_second": throughput.images / max(throughput.model_seconds, 1e-9),
        "out": str(out),
    }


def _truth(rows: Rows | None, prediction: Prediction) -> NDArray[np.uint8] | None:
    """The labels of the one image of that file name and size, or None."""
    if rows is None:
        return None
    found = [
        row
        for row, name in enumerate(rows.file_names)
        if Path(name).name == prediction.path.name
        and (int(rows.widths[row]), int(rows.heights[row])) == prediction.size
    ]
    return rows.labels[found[0]] if len(found) == 1 else None


def _write(
    model: BAViT,
    prediction: Prediction,
    stem: Path,
    choice: Choice,
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]],
    labels: NDArray[np.uint8] | None,
) -> None:
    kept, refined, shown = masks
    if choice.overlays:
        save_png(panels(prediction.picture, kept, shown, labels), stem.with_name(f"{stem.name}-overlay.png"))
    if choice.masks:
        save_png(mask_image(refined, model.grid, *prediction.size), stem.with_name(f"{stem.name}-mask.png"))
