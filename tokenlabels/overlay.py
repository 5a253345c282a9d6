"""One image with its patches tinted: foreground red, background grey, ignored hatched, boxes outlined."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokenlabels.atomic import temporary_beside, unwritable
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.labels import FOREGROUND, IGNORE
from tokenlabels.reader import Build, read_header
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, is_file, located, on_disk, parquet_file
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_RED = np.array([230, 40, 40], np.float32)
_TINT = 0.38
_SHADE = 0.45
_HATCH_PERIOD = 8
_LONG_SIDE = 960
_MAX_PIXELS = 100_000_000

_BOX_COLOURS = [(255, 214, 0), (0, 200, 255), (124, 252, 0), (255, 128, 0), (255, 105, 240), (170, 255, 220)]


@explained()
def show(
    build: Build,
    image_id: str,
    output: str | Path,
    *,
    images: str | Location | None = None,
    grid: str | None = None,
    split: str | None = None,
) -> Path:
    """Draw one image of a build as PNG.

    Args:
        build: the build.
        image_id: its image id, or the file name without suffix.
        output: PNG to write.
        images: folder of the images; not needed where they are embedded.
        grid: grid name, by default the first.
        split: split to look in, by default all.

    Raises:
        ParameterError: no such grid or split.
        TokenLabelsError: no such image in the build, or its file cannot be used.
        OutputError: the PNG cannot be written.
    """
    name = grid or next(iter(build.grids))
    row, found_split, resized = _find(build, str(image_id), name, split)
    drawn_on = build.grids[name]
    boxes = [list(box) for box in row["objects"]["bbox"]]
    if resized:
        picture = _decoded(io.BytesIO(row["image"]["bytes"]), row["file_name"], None)
        drawn_on, boxes = _on_model_input(drawn_on, row, picture, boxes)
    else:
        picture = _open_image(row, None if images is None else located(images), found_split)
    drawn = draw_overlay(picture, drawn_on, _labels(row), boxes, row["objects"]["category"])
    path = on_disk(output, "an overlay is written")
    if path.suffix.lower() != ".png" or path.is_dir():
        raise OutputError(f"{path} is no file name for a PNG: give one such as overlay.png.")
    temporary = temporary_beside(path)
    try:
        drawn.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as fault:
        raise unwritable(path, fault) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def draw_overlay(
    picture: Image.Image,
    grid: PatchGrid,
    labels: NDArray[np.uint8],
    boxes: list[list[float]],
    categories: list[int],
) -> Image.Image:
    """Tint the patches of one image and outline its boxes.

    Args:
        picture: the source image, any mode.
        grid: the grid the labels are on.
        labels: uint8 (rows, cols).
        boxes: xywh in source pixels.
        categories: index of each box's category, which picks its colour.

    Returns:
        RGB; larger than the source by an integer factor where that is small, and by the padding where the grid has any.
    """
    width, height = picture.size
    factor = max(1, _LONG_SIDE // max(width, height))
    y_edges, x_edges = grid.edges(width, height)
    left, top = min(0.0, x_edges[0]), min(0.0, y_edges[0])
    canvas = Image.new(
        "RGB",
        (round((max(width, x_edges[-1]) - left) * factor), round((max(height, y_edges[-1]) - top) * factor)),
        (20, 20, 20),
    )
    source = picture.convert("RGB").resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas.paste(source, (round(-left * factor), round(-top * factor)))
    x_pixels, y_pixels = (x_edges - left) * factor, (y_edges - top) * factor
    canvas = _tinted(canvas, labels, x_pixels, y_pixels)
    pen = ImageDraw.Draw(canvas)
    for x in x_pixels[1:-1]:
        pen.line([(x, 0), (x, canvas.height)], fill=(60, 60, 60))
    for y in y_pixels[1:-1]:
        pen.line([(0, y), (canvas.width, y)], fill=(60, 60, 60))
    for (x, y, box_width, box_height), category in zip(boxes, categories, strict=True):
        if box_width <= 0 or box_height <= 0:
            continue
        corners = [
            (x - left) * factor,
            (y - top) * factor,
            (x + box_width - left) * factor,
            (y + box_height - top) * factor,
        ]
        inside = [min(max(v, -8), limit + 8) for v, limit in zip(corners, (*canvas.size, *canvas.size), strict=True)]
        pen.rectangle(inside, outline=_BOX_COLOURS[category % len(_BOX_COLOURS)], width=2 + factor // 3)
    return canvas


def _on_model_input(
    grid: PatchGrid, row: dict[str, Any], picture: Image.Image, boxes: list[list[float]]
) -> tuple[PatchGrid, list[list[float]]]:
    """Grid and boxes of one image in the pixels of its model input, which `picture` is."""
    y_edges, x_edges = grid.edges(row["width"], row["height"])
    x_scale = picture.width / (x_edges[-1] - x_edges[0])
    y_scale = picture.height / (y_edges[-1] - y_edges[0])
    moved = [
        [(x - x_edges[0]) * x_scale, (y - y_edges[0]) * y_scale, width * x_scale, height * y_scale]
        for x, y, width, height in boxes
    ]
    return PatchGrid.parse(1, (row["grid_rows"], row["grid_cols"])), moved


def _tinted(
    canvas: Image.Image, labels: NDArray[np.uint8], x_pixels: NDArray[np.float64], y_pixels: NDArray[np.float64]
) -> Image.Image:
    pixels = np.asarray(canvas, np.float32)
    cols = np.searchsorted(x_pixels, np.arange(canvas.width) + 0.5, side="right") - 1
    rows = np.searchsorted(y_pixels, np.arange(canvas.height) + 0.5, side="right") - 1
    per_pixel = labels[np.clip(rows, 0, labels.shape[0] - 1)][:, np.clip(cols, 0, labels.shape[1] - 1)][..., None]
    grey = pixels.mean(axis=2, keepdims=True) * _SHADE + 30
    hatch = (np.add.outer(np.arange(canvas.height), np.arange(canvas.width)) % _HATCH_PERIOD < _HATCH_PERIOD // 2)[
        ..., None
    ]
    hatched = np.where(hatch, grey * 0.5, np.minimum(grey * 1.6 + 40, 255))
    tinted = np.where(
        per_pixel == FOREGROUND, pixels * (1 - _TINT) + _RED * _TINT, np.where(per_pixel == IGNORE, hatched, grey)
    )
    return Image.fromarray(tinted.astype(np.uint8))


def _find(build: Build, image_id: str, grid: str, split: str | None) -> tuple[dict[str, Any], str, bool]:
    """The row of an image, its split, and whether the picture in it is the model input."""
    for path, group, index in _candidates(build, image_id, grid, split):
        try:
            with parquet_file(path) as file:
                row = file.read_row_group(group).slice(index, 1).to_pylist()[0]
        except (OSError, pa.ArrowException):
            raise _damaged(path) from None
        return row, path.name.rsplit("-", 3)[0], read_header(path).embed_size is not None
    where = f"split {split} of {build.path}" if split else str(build.path)
    raise TokenLabelsError(f"{where} holds no image {image_id!r}: the column image_id lists those it has.")


def _candidates(build: Build, image_id: str, grid: str, split: str | None) -> Iterator[tuple[Location, int, int]]:
    """(shard, row group, row) of every image with that id, then of those with that file stem."""
    by_stem = []
    for path in build.files(grid, split):
        try:
            with parquet_file(path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=["image_id", "file_name"])
                    for index, (held, name) in enumerate(
                        zip(table.column("image_id").to_pylist(), table.column("file_name").to_pylist(), strict=True)
                    ):
                        if held == image_id:
                            yield path, group, index
                        elif Path(name).stem == image_id:
                            by_stem.append((path, group, index))
        except (OSError, pa.ArrowException):
            raise _damaged(path) from None
    yield from by_stem


def _damaged(path: Location) -> TokenLabelsError:
    return TokenLabelsError(f"{path}: is missing or damaged: run the same build command again to mend it.")


def _labels(row: dict[str, Any]) -> NDArray[np.uint8]:
    return np.array(row["labels"], np.uint8).reshape(row["grid_rows"], row["grid_cols"])


def _open_image(row: dict[str, Any], images: Location | None, split: str) -> Image.Image:
    embedded = row.get("image")
    if embedded and embedded.get("bytes"):
        return _decoded(io.BytesIO(embedded["bytes"]), row["file_name"], row)
    if images is None:
        raise ParameterError("this build has no embedded images: name the folder of the images with --images.")
    name = row["file_name"]
    if not name or not is_inside(name):
        raise TokenLabelsError(f"image {row['image_id']} has file_name {name!r}, which is not opened.")
    for path in (images / name, images / split / name):
        if is_file(path):
            return _decoded(path if isinstance(path, Path) else io.BytesIO(content(path)), str(path), row)
    raise TokenLabelsError(f"{images / name}: no such image file: name the folder it is in with --images.")


def _decoded(source: Path | io.BytesIO, name: str, row: dict[str, Any] | None) -> Image.Image:
    """A picture as RGB, of the size that `row` says, where one is given."""
    annotated = (row["width"], row["height"]) if row else None
    try:
        with Image.open(source) as image:
            if annotated and image.size != annotated:
                stored = f"{image.size[0]} x {image.size[1]}"
                raise TokenLabelsError(
                    f"{name}: is stored as {stored}, annotated as {annotated[0]} x {annotated[1]}: "
                    "these labels are not for this file."
                )
            if image.size[0] * image.size[1] > _MAX_PIXELS:
                raise TokenLabelsError(f"{name}: has more than {_MAX_PIXELS} pixels, too many to draw.")
            return image.convert("RGB")
    except Image.DecompressionBombError:
        raise TokenLabelsError(f"{name}: claims an absurd number of pixels, not opened.") from None
    except (OSError, ValueError, SyntaxError) as fault:
        reason = getattr(fault, "strerror", None) or "empty, cut short, or no image"
        raise TokenLabelsError(f"{name}: cannot be read as an image ({reason}).") from None
