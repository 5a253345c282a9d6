"""A calibration set, seen by BAViT once: the critical probability of every patch of the detector's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bavit.background.critical import critical_probabilities
from bavit.background.model import BAViT
from bavit.detect.budget import Patches
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.preprocess import detector_size
from bavit.detect.pruning import Size, carry
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.pictures import PictureError
from tokenlabels.errors import TokenLabelsError
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads

Value = TypeVar("Value", bound=np.generic)


def look(
    bavit: BAViT,
    yolos: Yolos,
    data: DetectionSet,
    machine: Machine,
    progress: Progress,
    *,
    refine_steps: int,
    batch_size: int,
    workers: int,
    skip: bool = False,
) -> tuple[Patches, list[int]]:
    """The patches of a set, and the numbers of the images that could be read.

    Args:
        bavit: on the machine's device.
        yolos: whose grids are meant.
        data: the set.
        machine: where.
        progress: told about every image.
        refine_steps: of refinement.
        batch_size: images at a time.
        workers: threads that decode pictures.
        skip: leave out pictures that cannot be read, with a note.

    Raises:
        PictureError: a picture cannot be read; with `skip`, none can.
        TokenLabelsError: the weights are damaged.
    """
    faults: dict[int, str] = {}

    def opened(number: int) -> Image.Image | None:
        try:
            return data.pictures.open(number)
        except PictureError as fault:
            if not skip:
                raise
            faults[number] = str(fault)
            return None

    progress.stage("background of the set", len(data))
    shapes: list[Size] = []
    critical: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.uint8]] = []
    known = data.rows.grid == bavit.grid
    for first in range(0, len(data), batch_size):
        numbers = range(first, min(first + batch_size, len(data)))
        pictures = in_threads(opened, numbers, workers)
        kept = [number for number, picture in zip(numbers, pictures, strict=True) if picture is not None]
        some = [picture for picture in pictures if picture is not None]
        if some:
            sizes, grids = [picture.size for picture in some], [_grid(yolos, picture.size) for picture in some]
            values = torch.from_numpy(critical_probabilities(_background(bavit, some, machine), refine_steps))
            critical += [image.numpy().reshape(-1) for image in carry(values, bavit.grid, sizes, grids)]
            if known:
                truth = torch.from_numpy(data.rows.labels[kept])
                labels += [image.numpy().reshape(-1) for image in carry(truth, bavit.grid, sizes, grids)]
            shapes += grids
        progress.advance(len(numbers))
    for number in sorted(faults):
        progress.note(f"left out: {faults[number]}")
    if not shapes:
        raise PictureError(f"{data.rows.folder}: none of its {len(data)} pictures can be read.")
    sides = yolos.config.shortest_edge // yolos.config.patch, yolos.config.longest_edge // yolos.config.patch
    found = Patches(
        critical=_joined(critical, np.float32(np.inf)),
        shapes=shapes,
        labels=_joined(labels, np.uint8(0)) if known else None,
        largest=sides[0] * sides[1],
    )
    return found, [number for number in range(len(data)) if number not in faults]


def _background(bavit: BAViT, pictures: Sequence[Image.Image], machine: Machine) -> NDArray[np.float32]:
    with torch.inference_mode(), machine.autocast():
        found: NDArray[np.float32] = bavit.background(bavit.preprocess(pictures)).float().cpu().numpy()
    if not np.isfinite(found).all():
        raise TokenLabelsError("the BAViT answers with what is no number: its weights are damaged.")
    return found


def _grid(yolos: Yolos, size: Size) -> Size:
    """(rows, cols) of the detector's grid over a picture of (width, height)."""
    config = yolos.config
    height, width = detector_size(*size, config.shortest_edge, config.longest_edge, config.patch)
    return height // config.patch, width // config.patch


def _joined(images: Sequence[NDArray[Value]], fill: Value) -> NDArray[Value]:
    """(n, m): arrays of up to m values, one below the other."""
    found = np.full((len(images), max(map(len, images))), fill, fill.dtype)
    for row, image in zip(found, images, strict=True):
        row[: len(image)] = image
    return found
