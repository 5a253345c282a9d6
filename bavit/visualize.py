"""What a model keeps of a picture, drawn as the BAViT paper's Figures 4 and 6 do, and written as masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.labels import FOREGROUND, IGNORE

Mask: TypeAlias = NDArray[np.bool_]
Edges: TypeAlias = NDArray[np.int64]

_LEAST_SIDE, _MOST_SIDE = 384, 960
"""Pixels of the long side of a panel."""

_LEFT_OF_REMOVED = 0.15
"""How much of the picture still shows in a patch that is removed."""

_FOG = np.array([226, 229, 233], np.float32)
_GRID = 0.9
"""What the lines between removed patches take of their light."""

_ADDED = (226, 0, 122)
_PAPER, _INK = (255, 255, 255), (40, 44, 48)

_GAP, _MARGIN = 8, 6
_FONT_SIZE = 15
_LEAST_CELL = 6
"""Between cells of fewer pixels no lines are drawn."""

_HATCH_PERIOD = 8


def panels(
    picture: Image.Image,
    kept: Mask,
    refined: Mask | None = None,
    labels: NDArray[np.uint8] | None = None,
) -> Image.Image:
    """The picture, what is kept of it, what is kept after refinement, and what should be, side by side.

    Removed patches are greyed out, patches that refinement adds are outlined, and those that the labels ignore are
    hatched. Each panel has its share of kept patches in its caption.

    Args:
        picture: model input of rows * p by cols * q pixels, any mode.
        kept: bool (rows, cols).
        refined: bool (rows, cols), or None for no such panel.
        labels: uint8 (rows, cols) of 0, 1 and 255, or None for no such panel.

    Returns:
        RGB. The long side of a panel is 384 to 960 pixels: smaller pictures are enlarged by a whole factor, larger ones
        reduced.

    Raises:
        ParameterError: the masks differ in shape, or do not divide the picture.
    """
    _check(picture, kept, refined, labels)
    scaled = enlarged(picture)
    y, x = _cell_edges(scaled, kept)
    drawn = [("original", scaled), (_caption("kept patches", kept), _greyed(scaled, kept, y, x))]
    if refined is not None:
        added = _outlined(_greyed(scaled, refined, y, x), refined & ~kept, y, x)
        drawn.append((_caption("after refinement", refined), added))
    if labels is not None:
        true = _hatched(_greyed(scaled, labels == FOREGROUND, y, x), labels == IGNORE, y, x)
        drawn.append((_caption("ground truth", labels == FOREGROUND), true))
    return side_by_side(drawn)


def sparse(picture: Image.Image, kept: Mask) -> Image.Image:
    """The picture with its removed patches greyed out.

    Args:
        picture: RGB, of any size: the grid is spread over all of it, whole patches or not.
        kept: bool (rows, cols).

    Returns:
        RGB of the same size.

    Raises:
        ParameterError: there are no patches.
    """
    if kept.ndim != 2 or not kept.size:
        raise ParameterError(f"a mask of {_size(kept.shape)} patches is none of a picture.")
    return _greyed(picture, kept, *_cell_edges(picture, kept))


def mask_image(kept: Mask, grid: PatchGrid, width: int, height: int) -> Image.Image:
    """A mask of the size of the source image: 255 where the patch that holds the centre of the pixel is kept, else 0.

    Args:
        kept: bool (rows, cols).
        grid: the grid it is on.
        width: source pixels.
        height: source pixels.

    Returns:
        Mode `L`, width x height.

    Raises:
        ParameterError: the grid has another shape for an image of this size.
    """
    axes = grid.axes(np.array([width], np.int32), np.array([height], np.int32))
    shape = int(axes.rows[0]), int(axes.cols[0])
    if kept.shape != shape:
        raise ParameterError(
            f"a mask of {_size(kept.shape)} patches is not on the grid {grid.name}, which has {_size(shape)} for an "
            f"image of {width} x {height} pixels."
        )
    rows, cols = (
        _cell_of_pixel(axis, side, cells)
        for axis, side, cells in ((axes.y[0], height, shape[0]), (axes.x[0], width, shape[1]))
    )
    return Image.fromarray(np.where(kept[rows][:, cols], np.uint8(255), np.uint8(0)))


def save_masks(path: str | Path, kept: Mask, background: NDArray[np.float32], file_names: Sequence[str | Path]) -> Path:
    """Write the masks of many images as a compressed NPZ that loads without pickle.

    Args:
        path: the file.
        kept: bool (n, rows, cols).
        background: float32 (n, rows, cols), probability of background.
        file_names: n names.

    Returns:
        `path`: arrays `kept` and `background` as above, `file_names` as unicode (n,).

    Raises:
        ParameterError: these are not of the same n images.
        OutputError: the file cannot be written.
    """
    if kept.ndim != 3 or kept.shape != background.shape or len(file_names) != len(kept):
        raise ParameterError(
            f"{path}: masks {kept.shape}, probabilities {background.shape} and {len(file_names)} file names are not of "
            "the same images."
        )
    file = io.BytesIO()
    np.savez_compressed(
        file,
        kept=kept.astype(np.bool_),
        background=background.astype(np.float32),
        file_names=np.array([str(name) for name in file_names], np.str_),
    )
    write_atomically(Path(path), file.getvalue())
    return Path(path)


def save_png(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    file = io.BytesIO()
    picture.save(file, "PNG")
    write_atomically(Path(path), file.getvalue())
    return Path(path)


def _check(picture: Image.Image, kept: Mask, refined: Mask | None, labels: NDArray[np.uint8] | None) -> None:
    for other in (refined, labels):
        if other is not None and other.shape != kept.shape:
            raise ParameterError(f"masks of {_size(kept.shape)} and {_size(other.shape)} patches are not of one image.")
    if kept.ndim != 2 or not kept.size or picture.height % kept.shape[0] or picture.width % kept.shape[1]:
        raise ParameterError(
            f"a picture of {picture.height} x {picture.width} pixels cannot be cut into {_size(kept.shape)} patches."
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture as RGB, its long side 384 to 960 pixels: by a whole factor where it is smaller."""
    long = max(picture.size)
    factor: float = -(-_LEAST_SIDE // long) if long < _LEAST_SIDE else min(1, _MOST_SIDE / long)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.convert("RGB")
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _cell_edges(picture: Image.Image, kept: Mask) -> tuple[Edges, Edges]:
    """Where the cells begin, down and across."""
    return _edges(picture.height, kept.shape[0]), _edges(picture.width, kept.shape[1])


def _edges(side: int, cells: int) -> Edges:
    """int64 (cells + 1,), pixels."""
    found: Edges = np.rint(np.arange(cells + 1) * (side / cells)).astype(np.int64)
    return found


def _per_pixel(mask: Mask, y: Edges, x: Edges) -> Mask:
    """bool (rows, cols) -> bool (height, width)."""
    found: Mask = np.repeat(np.repeat(mask, np.diff(y), axis=0), np.diff(x), axis=1)
    return found


def _greyed(picture: Image.Image, kept: Mask, y: Edges, x: Edges) -> Image.Image:
    """The picture with its removed patches in fog, and thin lines between these."""
    pixels = np.asarray(picture, np.float32)
    grey = pixels.mean(axis=2, keepdims=True) * _LEFT_OF_REMOVED + _FOG * (1 - _LEFT_OF_REMOVED)
    if min(np.diff(y).min(), np.diff(x).min()) >= _LEAST_CELL:
        grey[y[1:-1]] *= _GRID
        grey[:, x[1:-1]] *= _GRID
    shown = np.where(_per_pixel(kept, y, x)[..., None], pixels, grey)
    return Image.fromarray(shown.astype(np.uint8))


def _outlined(picture: Image.Image, chosen: Mask, y: Edges, x: Edges) -> Image.Image:
    """The picture with a frame inside of every chosen patch."""
    pen = ImageDraw.Draw(picture)
    cell = int(min(np.diff(y).min(), np.diff(x).min()))
    for row, col in np.argwhere(chosen).tolist():
        corners = (int(x[col]), int(y[row]), int(x[col + 1]) - 1, int(y[row + 1]) - 1)
        pen.rectangle(corners, outline=_ADDED, width=1 if cell < 12 else 2)
    return picture


def _hatched(picture: Image.Image, chosen: Mask, y: Edges, x: Edges) -> Image.Image:
    """The picture with diagonal lines over every chosen patch."""
    stripes = np.add.outer(np.arange(picture.height), np.arange(picture.width)) % _HATCH_PERIOD < 2
    pixels = np.array(picture)
    pixels[stripes & _per_pixel(chosen, y, x)] = _INK
    return Image.fromarray(pixels)


def _caption(text: str, kept: Mask) -> str:
    return f"{text}, {kept.mean():.0%}"


def side_by_side(drawn: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Panels of one size in a row, each below its caption."""
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = drawn[0][1].size
    step = max(width, *(int(font.getlength(caption)) + 2 for caption, _ in drawn)) + _GAP
    top = _FONT_SIZE + 2 * _MARGIN
    canvas = Image.new("RGB", (step * len(drawn) - _GAP, top + height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, (caption, panel) in enumerate(drawn):
        pen.text((index * step + 1, top - _MARGIN), caption, _INK, font, anchor="ls")
        canvas.paste(panel, (index * step, top))
    return canvas


def _cell_of_pixel(axis: NDArray[np.int64], side: int, cells: int) -> Edges:
    """int64 (side,): the cell of one axis (`step, start, divisor`, see `GridAxes`) that each pixel's centre lies in."""
    step, start, divisor = axis
    cell: Edges = ((2 * np.arange(side, dtype=np.int64) + 1) * divisor - 2 * start) // (2 * step)
    return np.clip(cell, 0, cells - 1)
