"""Changes of a training picture and, exactly, of its labels: crop and scale, flip, colour.

A crop is a picture of its own: its labels are what tokenlabels would make of it, from the boxes moved along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bavit.rows import Rows
from tokenlabels.annotations import Records
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.model_input import model_input
from tokenlabels.reader import Build
from tokenlabels.rules import RULES, RuleSpec

CROP_PROBABILITY = 0.8
_LOG_ASPECT = math.log(4 / 3)
_LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R 601, as Pillow's mode L has it."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to a training picture.

    Attributes:
        flip: mirror left and right, every second time.
        crop: least share of the picture's area that a random crop keeps, four times of five; 1: never crop.
        colour: strength of changes of brightness, contrast, saturation and hue of light; 0: none.
    """

    flip: bool = True
    crop: float = 1.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ParameterError(f"--crop {self.crop} is outside 0..1: it is the least share of the area that is kept.")
        if not 0 <= self.colour <= 1:
            raise ParameterError(f"--colour {self.colour} is outside 0..1: it is the strength of changes of colour.")

    def check(self, rows: Rows, *, resized: bool) -> None:
        """Refuse crops whose labels cannot be derived.

        Raises:
            ParameterError: labels come from masks, which shards do not hold; or letterboxed inputs are embedded.
        """
        if self.crop == 1:
            return
        if rows.header.spec.kind.reads_masks:
            raise ParameterError(
                f"{rows.folder} has labels of masks (rule {rows.header.rule}), which cannot be made again for a random "
                "crop: use --crop 1."
            )
        if resized and rows.grid.resize != "squash":
            raise ParameterError(
                f"{rows.folder} embeds letterboxed model inputs (--embed-size), of which no crop is made: use --crop 1."
            )


def no_crops(build: Build) -> str | None:
    """Why no crop can be made of the pictures of a build, or None."""
    parameters = build.manifest["parameters"]
    if RULES[parameters["rule"]].reads_masks:
        return f"{build.path} has labels of masks, which cannot be made again for them"
    if parameters.get("embed_size") and any(grid.resize != "squash" for grid in build.grids.values()):
        return f"{build.path} embeds letterboxed model inputs"
    return None


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a source image, whole pixels."""

    left: int
    top: int
    width: int
    height: int


def random_window(rng: np.random.Generator, width: int, height: int, least_area: float) -> Window:
    """A window of at least a share of the area, its aspect within 3/4 .. 4/3 of the picture's, anywhere."""
    area, aspect = rng.uniform(least_area, 1.0), math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
    w = min(width, max(1, round(width * math.sqrt(area * aspect))))
    h = min(height, max(1, round(height * math.sqrt(area / aspect))))
    return Window(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)


def crop_labels(
    records: Records, window: Window, grid: PatchGrid, spec: RuleSpec
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels and scores of a part of one image.

    Args:
        records: the image.
        window: the part.
        grid: of constant shape; the part is resized by its policy.
        spec: a rule that scores boxes.

    Returns:
        uint8 (rows, cols) and float32 (rows, cols), as a build of the cropped picture would have them.
    """
    from tokenlabels.scoring import label_records  # loads the kernels, which only crops need

    moved = replace(
        records,
        widths=np.array([window.width], np.int32),
        heights=np.array([window.height], np.int32),
        boxes=records.boxes - np.array([window.left, window.top, 0, 0], np.float64),
    )
    (found,), _ = label_records(moved, [grid.axes(moved.widths, moved.heights)], spec)
    shape = int(found.axes.rows[0]), int(found.axes.cols[0])
    return found.labels.reshape(shape), found.scores.reshape(shape)


def crop_picture(picture: Image.Image, window: Window, size: tuple[int, int], grid: PatchGrid) -> Image.Image:
    """The model input of a part of a picture.

    Args:
        picture: RGB; it shows the whole source image, perhaps at another size (squash only).
        window: the part, in source pixels.
        size: (width, height) of the source image.
        grid: its resize policy.
    """
    if grid.resize == "squash" and grid.image_size is not None:
        x, y = picture.width / size[0], picture.height / size[1]
        box = (
            window.left * x,
            window.top * y,
            min((window.left + window.width) * x, picture.width),
            min((window.top + window.height) * y, picture.height),
        )
        return picture.resize(grid.image_size[::-1], Image.Resampling.BICUBIC, box)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    return model_input(picture.crop(box), grid)


def colour_matrix(rng: np.random.Generator, strength: float) -> tuple[float, ...]:
    """A random 3 x 4 matrix for `Image.convert("RGB", matrix)`.

    Saturation, then contrast about the middle grey, then brightness of all channels and of each.
    """
    saturation = 1 + strength * rng.uniform(-2, 1) if strength else 1.0
    contrast = 1 + strength * rng.uniform(-1, 1)
    light = 255 * strength * (0.35 * rng.uniform(-1, 1) + 0.15 * rng.uniform(-1, 1, 3))
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1)))
    offset = 127.5 * (1 - contrast) + light
    return tuple(np.column_stack([matrix, offset]).ravel().tolist())
