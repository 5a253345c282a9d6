"""Masks as VOC writes them, of generated samples: void borders, the palette, the list of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

VOID = 255
_ZLIB_RLE = 3  # zlib's strategy for runs: on label maps both faster and smaller than the default


def write_mask(values: NDArray[np.uint8], path: Path) -> None:
    """Write (height, width) values as a PNG with VOC's palette."""
    picture = Image.fromarray(values)
    picture.putpalette(_palette().tobytes())
    picture.save(path, compress_type=_ZLIB_RLE)


def labelmap(names: Sequence[str]) -> str:
    """The text of `labelmap.txt`, as CVAT writes it: the names of the values from 0 on, with their colours."""
    palette = _palette()
    rows = (f"{name}:{','.join(map(str, palette[value].tolist()))}::\n" for value, name in enumerate(names))
    return "# label:color_rgb:parts:actions\n" + "".join(rows)


def borders(objects: NDArray[np.uint8], *, inner: int = 2, outer: int = 3) -> NDArray[np.bool_]:
    """Where VOC writes void: the outermost pixels of every object and the background pixels around it.

    Args:
        objects: (height, width), 0 for background, else the object's place.
        inner: how many pixels of an object.
        outer: how many pixels of background.
    """
    within: NDArray[np.bool_] = _window(objects, inner, np.maximum) != _window(objects, inner, np.minimum)
    around: NDArray[np.bool_] = (objects == 0) & (_window(objects, outer, np.maximum) > 0)
    return within | around


def _window(values: NDArray[np.uint8], reach: int, choose: np.ufunc) -> NDArray[np.uint8]:
    """`choose` (maximum or minimum) over the square of side 2 * reach + 1 around every pixel, clipped to the image."""
    for axis in (0, 1):
        source, values = values, values.copy()
        length = values.shape[axis]
        for shift in range(1, reach + 1):
            low = tuple(slice(0, length - shift) if a == axis else slice(None) for a in (0, 1))
            high = tuple(slice(shift, length) if a == axis else slice(None) for a in (0, 1))
            choose(values[low], source[high], out=values[low])
            choose(values[high], source[low], out=values[high])
    return values


def _palette() -> NDArray[np.uint8]:
    """The 256 colours of VOC's masks, (256, 3): the bits of the index dealt to red, green and blue, highest first."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
