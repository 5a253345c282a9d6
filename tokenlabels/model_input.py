"""A picture as the model sees it: resized by the policy of a grid, as RGB.

Training uses the same function, so that a label lies on the pixels it was made for.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tokenlabels.annotations import MAX_PIXELS
from tokenlabels.errors import TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.map_files import MapFileError, value_picture
from tokenlabels.storage import content

if TYPE_CHECKING:
    from tokenlabels.storage import Location

PAD_COLOUR = (128, 128, 128)
"""Around a letterboxed picture: the middle of the range, near 0 after the usual normalisations."""


def model_input(
    picture: Image.Image, grid: PatchGrid, size: tuple[int, int] | None = None, *, pad_to_patches: bool = True
) -> Image.Image:
    """Resize a picture by the policy of a grid.

    Args:
        picture: the source picture, any mode.
        grid: its resize policy.
        size: (H', W') instead of the grid's image size, with squash only.
        pad_to_patches: with native, which does not resize, pad right and bottom to whole patches.

    Returns:
        RGB, bicubic with antialiasing; letterbox places the picture at real-valued offsets, as the grid has it, but for
        slivers whose padding would have more than `MAX_PIXELS`: those lie on whole pixels.
    """
    return _resized(picture.convert("RGB"), grid, size, Image.Resampling.BICUBIC, PAD_COLOUR, pad_to_patches)


def model_input_mask(mask: Image.Image, grid: PatchGrid, size: tuple[int, int] | None, fill: int) -> Image.Image:
    """Resize a mask like its picture: nearest pixel, mode and palette kept, `fill` in padding."""
    colour: Any = (fill & 0xFF, fill >> 8 & 0xFF, fill >> 16) if mask.mode == "RGB" else fill
    return _resized(mask, grid, size, Image.Resampling.NEAREST, colour, pad_to_patches=True)


def _resized(
    picture: Image.Image,
    grid: PatchGrid,
    size: tuple[int, int] | None,
    filtering: Image.Resampling,
    fill: Any,
    pad_to_patches: bool,
) -> Image.Image:
    width, height = picture.size
    input_h, input_w = size or grid.input_size(width, height)
    if grid.resize == "native":
        rows, cols = -(-height // grid.patch[0]), -(-width // grid.patch[1])
        target = (cols * grid.patch[1], rows * grid.patch[0])
        return _pasted(picture, target, (0, 0), fill) if pad_to_patches and target != picture.size else picture
    if grid.resize != "letterbox":
        return picture.resize((input_w, input_h), filtering)
    scale = min(input_h / height, input_w / width)
    if max(input_h / scale, height) * max(input_w / scale, width) > MAX_PIXELS:  # a sliver: padding it first is a bomb
        content = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), filtering)
        place = (input_w - content.width) // 2, (input_h - content.height) // 2
        return _pasted(content, (input_w, input_h), place, fill)
    left, top = (input_w / scale - width) / 2, (input_h / scale - height) / 2  # padding in source pixels
    before = math.ceil(left), math.ceil(top)
    padded = _pasted(picture, (width + 2 * before[0], height + 2 * before[1]), before, fill)
    x, y = before[0] - left, before[1] - top
    box = (max(x, 0.0), max(y, 0.0), min(x + input_w / scale, padded.width), min(y + input_h / scale, padded.height))
    return padded.resize((input_w, input_h), filtering, box)


def _pasted(picture: Image.Image, size: tuple[int, int], place: tuple[int, int], fill: Any) -> Image.Image:
    canvas = Image.new(picture.mode, size, fill)
    if picture.mode == "P":
        canvas.putpalette(picture.getpalette() or [])
    canvas.paste(picture, place)
    return canvas


def encode_input(
    path: Location, size: tuple[int, int], change: Callable[[Image.Image], Image.Image], quality: int
) -> bytes:
    """Read a picture, change it, and encode it as JPEG.

    Args:
        path: the file.
        size: (width, height) it must have.
        change: such as `model_input`.
        quality: of the JPEG, 1 to 100.

    Raises:
        TokenLabelsError: it cannot be read, is cut short, or has another size.
    """
    with _faults_of(path), Image.open(path if isinstance(path, Path) else io.BytesIO(content(path))) as image:
        _check_size(image, path, size)
        changed = change(image)
    return _encoded(changed, format="JPEG", quality=quality)


def encode_input_mask(path: Location, size: tuple[int, int], change: Callable[[Image.Image], Image.Image]) -> bytes:
    """Like `encode_input` for a mask, as PNG that holds the values of the file, 8 bits each."""
    with _faults_of(path):
        image = value_picture(content(path))
        _check_size(image, path, size)
        changed = change(image)
    return _encoded(changed, format="PNG")


@contextlib.contextmanager
def _faults_of(path: Location) -> Iterator[None]:
    """Word what may be wrong with a file."""
    try:
        yield
    except Image.DecompressionBombError:
        raise TokenLabelsError(f"{path}: claims an absurd number of pixels: not opened.") from None
    except MapFileError as fault:
        raise TokenLabelsError(f"{path}: {fault.problem}.") from None
    except (OSError, ValueError, SyntaxError) as fault:
        reason = getattr(fault, "strerror", None) or "cut short, or no image"
        raise TokenLabelsError(f"{path}: cannot be read ({reason}): mend it and run again.") from None


def _check_size(image: Image.Image, path: Location, size: tuple[int, int]) -> None:
    if image.size != size:
        stored = f"{image.size[0]} x {image.size[1]}"
        raise TokenLabelsError(f"{path}: is stored as {stored}, annotated as {size[0]} x {size[1]}.")
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise TokenLabelsError(f"{path}: has more than {MAX_PIXELS} pixels: not opened.")


def _encoded(picture: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, **options)
    return sink.getvalue()
