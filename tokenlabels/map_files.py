"""Mask files with one value per pixel: what their header says, and their pixels. Files are untrusted."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tokenlabels import check
from tokenlabels.annotations import MAX_PIXELS, MapEncoding
from tokenlabels.check import Kind
from tokenlabels.png_values import GREY, PALETTE, RGB, SIGNATURE, Png, PngHeader, parse_png, png_values

_EIGHT_BITS = frozenset({"P", "L", "1"})
_SIXTEEN_BITS = frozenset({"I", "I;16", "I;16B", "I;16L"})


class MapFileError(Exception):
    """A mask cannot be used.

    Attributes:
        kind: kind of the finding.
        problem: what is wrong, to follow the name of the file, and what to do.
    """

    def __init__(self, kind: Kind, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind
        self.problem = problem


def map_size(data: bytes, encoding: MapEncoding) -> tuple[int, int]:
    """(width, height) of a mask, from its header; its mode and checksums are looked at, its pixels are not decoded.

    Raises:
        MapFileError: it is no image, is cut short or damaged, claims absurdly many pixels, or its mode cannot hold such
            values.
    """
    png = _whole_png(data)
    if png is not None and _is_plain(png.header, encoding):
        return png.header.width, png.header.height
    with _opened(data) as image:
        _check_mode(image, encoding)
        return image.size


def read_map(data: bytes, encoding: MapEncoding, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of a mask.

    Args:
        data: content of the file.
        encoding: see `annotations.LabelMaps`.
        size: (width, height) that the mask must have.

    Returns:
        uint8 (height, width); of `rgb` (height, width, 3). Palette indexes and grey values are as they are stored.

    Raises:
        MapFileError: see `map_size`; or it has another size.
    """
    png = _whole_png(data)
    if png is not None and _is_plain(png.header, encoding) and (png.header.width, png.header.height) == size:
        values = png_values(png)
        if values is not None:
            return values
    with _opened(data) as image:
        _check_mode(image, encoding)
        if image.size != size:
            stored = f"{image.size[0]} x {image.size[1]}"
            raise MapFileError(check.MAP_SIZE, f"is {stored} pixels, the image {size[0]} x {size[1]}: make it anew")
        try:
            pixels = np.array(image)  # a copy, as kernels are compiled for arrays that can be written
        except (OSError, ValueError, SyntaxError, EOFError):
            raise MapFileError(check.MAP_UNREADABLE, "is cut short or damaged: fetch it again") from None
    return _stored_values(pixels, data)


def value_picture(data: bytes) -> Image.Image:
    """A mask as a picture of its values, to be resized: 8 bits a pixel, with the palette; colours as they are.

    Raises:
        MapFileError: it cannot be read, or claims absurdly many pixels.
    """
    with _opened(data) as image:
        try:
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError):
            raise MapFileError(check.MAP_UNREADABLE, "is cut short or damaged: fetch it again") from None
        if image.mode not in _EIGHT_BITS:
            return image
        picture = Image.fromarray(_stored_values(np.asarray(image), data))
        if image.mode == "P":
            given = image.getpalette() or []
            picture.putpalette(given + [0] * (3 * 256 - len(given)))  # else few colours are saved with few bits
        return picture


def _whole_png(data: bytes) -> Png | None:
    """The parts of a PNG, None where it is another format.

    Raises:
        MapFileError: it is cut short or damaged; Pillow would not look at the checksum of pixels.
    """
    if not data.startswith(SIGNATURE):
        return None
    png = parse_png(data)
    if png is None:
        raise MapFileError(check.MAP_UNREADABLE, "is cut short or damaged: fetch it again")
    return png


def _is_plain(header: PngHeader, encoding: MapEncoding) -> bool:
    """Whether a header alone says that the file can hold such values, and is of a sensible size."""
    fine = header.colour == RGB if encoding == "rgb" else header.colour in (GREY, PALETTE)
    return fine and header.depth == 8 and 0 < header.width * header.height <= MAX_PIXELS


def _stored_values(pixels: NDArray[Any], data: bytes) -> NDArray[np.uint8]:
    """The values that a file holds, from the pixels that Pillow makes of them."""
    if pixels.dtype == np.bool_:
        pixels = pixels.view(np.uint8) != 0  # Pillow's true is 255
    scale = _grey_scale(data)
    values: NDArray[np.uint8] = pixels.astype(np.uint8, copy=False)
    return values // np.uint8(scale) if scale > 1 else values


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes: they are checked here
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise MapFileError(check.MAP_UNREADABLE, "claims an absurd number of pixels: not opened") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise MapFileError(check.MAP_UNREADABLE, "is empty, cut short, or no image: fetch it again") from None
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise MapFileError(check.MAP_UNREADABLE, f"claims {image.size[0]} x {image.size[1]} pixels: not opened")
    return image


def _check_mode(image: Image.Image, encoding: MapEncoding) -> None:
    mode = image.mode
    if encoding == "rgb":
        if mode != "RGB":
            raise MapFileError(check.MAP_MODE, f"has mode {mode}: a panoptic PNG holds segment ids in RGB")
    elif mode in _SIXTEEN_BITS:
        raise MapFileError(check.MAP_MODE, "has 16 bits a pixel: save the category values as 8 bits")
    elif mode not in _EIGHT_BITS:
        raise MapFileError(
            check.MAP_MODE,
            f"holds colours (mode {mode}), not values: save it as a palette or greyscale PNG, unconverted",
        )
    elif image.format == "JPEG":
        raise MapFileError(check.MAP_MODE, "is a JPEG, which does not keep values: save it as PNG")


def _grey_scale(data: bytes) -> int:
    """What Pillow multiplied the grey values of a PNG of 2 or 4 bits by."""
    if data.startswith(SIGNATURE) and data[25] == GREY:
        return {2: 85, 4: 17}.get(data[24], 1)
    return 1
