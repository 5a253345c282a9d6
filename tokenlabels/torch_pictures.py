"""Embedded pictures and masks as tensors. They are untrusted: only plain formats are opened, and no bombs."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenlabels.annotations import MAX_PIXELS
from tokenlabels.errors import TokenLabelsError
from tokenlabels.map_files import MapFileError, value_picture

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is opened, whatever a file is called: other decoders of Pillow start other programs."""

_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error)


def decode_image(content: bytes, name: str) -> Tensor:
    """uint8 (3, height, width), RGB; EXIF orientation is not applied, as labels have it.

    Args:
        content: of the file.
        name: of it, for errors.

    Raises:
        TokenLabelsError: it is no picture, cut short, or absurdly large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: both are dealt with here
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise TokenLabelsError(f"{name}: has more than {MAX_PIXELS} pixels: not opened.")
                if image.mode.startswith("I;16"):  # Pillow alone would clip 16 bits to 8
                    return _planes(
                        np.asarray(Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB"))
                    )
                return _planes(np.asarray(image.convert("RGB")))
    except Image.DecompressionBombError:
        raise TokenLabelsError(f"{name}: claims an absurd number of pixels: not opened.") from None
    except _UNREADABLE:
        raise TokenLabelsError(f"{name}: is empty, cut short, or no image: build again.") from None


def decode_mask(content: bytes, name: str) -> Tensor:
    """The values of a mask: uint8 (height, width), of panoptic colours (3, height, width); (0, 0) where there is none.

    Args:
        content: of the file, empty where the image has no mask.
        name: of it, for errors.

    Raises:
        TokenLabelsError: see `decode_image`.
    """
    if not content:
        return torch.zeros((0, 0), dtype=torch.uint8)
    try:
        values = np.array(value_picture(content), np.uint8)
    except MapFileError as fault:
        raise TokenLabelsError(f"{name}: {fault.problem}.") from None
    return torch.from_numpy(values) if values.ndim == 2 else _planes(values)


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
