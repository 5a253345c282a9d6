"""A model over pictures: what it says of the rows of a build, or of any files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bavit.background.model import BAViT
from bavit.background.predictions import Predictions, object_patches
from bavit.data import BatchOrder, ShardImages, loader
from bavit.device import pick_device, pick_precision
from bavit.pictures import PictureError, open_picture
from bavit.rows import Rows
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.model_input import model_input
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a model runs.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `auto`, `32`, `bf16` or `fp16`.
        batch_size: pictures at a time.
        workers: processes or threads that decode pictures.
        compile: through `torch.compile`.
    """

    device: str = "auto"
    precision: str = "32"
    batch_size: int = 32
    workers: int = 1
    compile: bool = False

    def runner(self, model: BAViT) -> Callable[[Tensor], Tensor]:
        """A function of uint8 (B, 3, H', W'), on any device, to float32 (B, rows, cols) background probabilities there.

        Raises:
            ParameterError: a device or precision that is not to be had here.
        """
        device = pick_device(self.device)
        precision = pick_precision(self.precision, device)
        model = model.to(device).to(memory_format=torch.channels_last).eval()
        background = torch.compile(model.background) if self.compile else model.background
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

        def run(pixels: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast(device, dtype=kind, enabled=kind is not None):
                found: Tensor = background(model.normalise(pixels.to(device, non_blocking=True)))
                return found

        return run


def predict_rows(
    model: BAViT,
    rows: Rows,
    images: Location | None,
    place: Place,
    progress: Progress,
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[Predictions, Rows]:
    """The predictions for some rows, and these rows without those whose pictures were left out.

    Args:
        model: the model.
        rows: on the grid of the model.
        images: folder of the pictures, or None where they are embedded.
        place: where it runs.
        progress: told about every picture.
        on_error: what to do about a picture that cannot be read; one left out counts nowhere.

    Raises:
        ParameterError: the rows are on another grid, or there are none, or no pictures.
        PictureError: a picture cannot be read.
    """
    check_grid(model, rows)
    run = place.runner(model)
    order = BatchOrder(rows, place.batch_size, None)
    batches = loader(ShardImages(rows, images), order, place.workers, pin=pick_device(place.device) == "cuda")
    background = np.empty(rows.labels.shape, np.float32)
    usable = np.ones(len(rows), np.bool_)
    progress.stage("evaluating", len(rows))
    for batch in batches:
        if batch.faults:
            if on_error == "raise":
                raise PictureError(
                    f"{next(iter(batch.faults.values()))} Mend it, or leave such pictures out with --on-error skip."
                )
            usable[list(batch.faults)] = False
            for fault in batch.faults.values():
                progress.note(f"left out: {fault}")
        background[batch.rows.numpy()] = run(batch.pixels).cpu().numpy()
        progress.advance(len(batch.rows))
    if not usable.any():
        raise PictureError(f"{rows.folder}: none of its {len(rows)} pictures can be read.")
    kept = rows if usable.all() else rows.keep(usable)
    names = [category.name for category in rows.categories]
    found = Predictions(background[usable], kept.labels, object_patches(kept), names)
    return found, kept


def check_grid(model: BAViT, rows: Rows) -> None:
    """Refuse rows that are not on the grid of a model.

    Raises:
        ParameterError: they are on another, or there are none.
    """
    if rows.grid != model.grid:
        raise ParameterError(
            f"{rows.folder} has the grid {rows.header.grid}, the model was trained on {model.grid.name}: build labels "
            "on that grid."
        )
    if not len(rows):
        raise ParameterError(f"{rows.folder}: the splits that were asked for hold no images: name others with --split.")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says of one file.

    Attributes:
        path: the file.
        size: (width, height) in pixels.
        picture: the model input, RGB.
        background: float32 (rows, cols).
    """

    path: Path
    size: tuple[int, int]
    picture: Image.Image
    background: NDArray[np.float32]


@dataclass(slots=True)
class Throughput:
    """Seconds of the model alone, and of reading and the model, for so many pictures."""

    images: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0


def predict_files(
    model: BAViT, paths: Sequence[Path], place: Place, throughput: Throughput, progress: Progress
) -> Iterator[Prediction]:
    """The predictions for picture files, a batch at a time.

    Args:
        model: the model.
        paths: the files.
        place: where it runs; `workers` threads decode.
        throughput: added to.
        progress: told about every picture.

    Raises:
        PictureError: a file cannot be read.
    """
    run = place.runner(model)
    progress.stage("predicting", len(paths))
    size = place.batch_size
    for first in range(0, len(paths), size):
        begun = time.perf_counter()
        some = paths[first : first + size]
        opened = in_threads(lambda path: open_picture(path, str(path)), some, place.workers)
        inputs = in_threads(lambda picture: model_input(picture, model.grid), opened, place.workers)
        pixels = torch.from_numpy(np.stack([np.array(picture) for picture in inputs])).permute(0, 3, 1, 2)
        decoded = time.perf_counter()
        if not first:
            run(pixels)  # once for nothing: what is made ready at the first call is not what is measured
        started = time.perf_counter()
        background = run(pixels).cpu().numpy()
        ended = time.perf_counter()
        if not np.isfinite(background).all():
            raise TokenLabelsError(f"{some[0]}: the model answers with what is no number: its weights are damaged.")
        throughput.images += len(some)
        throughput.model_seconds += ended - started
        throughput.seconds += ended - started + (decoded - begun)
        for path, source, picture, cells in zip(some, opened, inputs, background, strict=True):
            yield Prediction(path, source.size, picture, cells)
        progress.advance(len(some))


def picture_files(given: Sequence[Path]) -> list[Path]:
    """Files and the pictures in folders, in order.

    Raises:
        TokenLabelsError: one is neither, or there are no pictures.
    """
    from tokenlabels.images import IMAGE_SUFFIXES

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise TokenLabelsError(f"{path}: no such file or folder: name pictures, or folders of pictures.")
    if not found:
        raise TokenLabelsError(f"{given[0]}: holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return found
