"""Small builds with masks that tests of segmentation make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tokenlabels
from bavit.rows import Rows, read_rows
from bavit.segment.classes import ClassTable, class_table
from bavit.segment.masks import MaskReader, with_masks
from tokenlabels.reader import Build

Values: TypeAlias = NDArray[np.uint8]

EMBEDDED: dict[str, Any] = {"embed_images": True, "embed_masks": True, "image_size": 32}


def noise(shape: Sequence[int], most: int = 256, seed: int = 0) -> Values:
    """uint8 below `most`."""
    return np.random.default_rng(seed).integers(0, most, shape).astype(np.uint8)


def masks_of(values: Sequence[int], shape: tuple[int, int] = (20, 30)) -> dict[str, Values]:
    """Two masks, `a` and `b`, of pixels that take any of the values."""
    chosen = np.array(values)
    return {name: chosen[noise(shape, len(values), seed)].astype(np.uint8) for seed, name in enumerate("ab")}


def semantic(
    root: Path,
    masks: dict[str, Values],
    layout: tuple[str, str] = ("masks", "images"),
    pictures: dict[str, Values] | None = None,
    **options: Any,
) -> Build:
    """A build of masks.

    Args:
        root: where files, and the build in `out`, go.
        masks: of each image.
        layout: folders of masks and pictures.
        pictures: by default noise.
        options: of the build.
    """
    for name, values in masks.items():
        picture = noise((*values.shape, 3)) if pictures is None else pictures[name]
        for folder, pixels in zip(layout, (values, picture), strict=True):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    own = layout == ("masks", "images")
    places: dict[str, Any] = {"masks": root / "masks", "images": root / "images"} if own else {"root": root}
    return tokenlabels.build("semantic", out=root / "out", **places, **EMBEDDED | options)


def opened(build: Build, card: str | None = None) -> tuple[Rows, ClassTable, MaskReader]:
    """The rows of a build that have a mask, their classes, and their masks."""
    rows = with_masks(read_rows(build, scores=False), lambda _note: None)
    table = class_table(build, rows, card)
    return rows, table, MaskReader(rows, table)
