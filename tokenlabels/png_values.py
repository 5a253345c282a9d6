"""The values of 8-bit PNGs, quickly: Pillow decodes every PNG, and takes most of the time of a build of masks to do so.

What is no plain 8-bit greyscale, palette or RGB file, not interlaced, is left to Pillow, and so is every doubt.
Format: https://www.w3.org/TR/png-3/, sections 5 (chunks), 9 (filtering) and 10 (compression).
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from tokenlabels.kernel import kernel

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
"""Colour types."""

_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4


class PngHeader(NamedTuple):
    """IHDR: pixels, bits of a sample, colour type, compression, filter and interlace method."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlace: int


class Png(NamedTuple):
    """A PNG whose critical chunks are whole: its header and its compressed pixels."""

    header: PngHeader
    pixels: bytes


def parse_png(data: bytes) -> Png | None:
    """The critical chunks of a PNG; None where one is missing, cut short, or not what its checksum says."""
    header, parts = None, []
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        stop = start + 8 + length
        if stop + 4 > len(data):
            return None
        if kind in _CRITICAL and zlib.crc32(data[start + 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            return None
        if kind == b"IHDR" and length == 13:
            header = PngHeader(*struct.unpack_from(">IIBBBBB", data, start + 8))
        elif kind == b"IDAT":
            parts.append(data[start + 8 : stop])
        elif kind == b"IEND":
            return None if header is None else Png(header, b"".join(parts))
        start = stop + 4
    return None


def png_values(png: Png) -> NDArray[np.uint8] | None:
    """The samples of a plain 8-bit PNG.

    Returns:
        uint8 (height, width), of RGB (height, width, 3); None where Pillow has to look.
    """
    header = png.header
    samples = {GREY: 1, PALETTE: 1, RGB: 3}.get(header.colour)
    if samples is None or header.depth != 8 or header.compression or header.filtering or header.interlace:
        return None
    stride = 1 + samples * header.width
    inflate = zlib_ng.decompressobj()
    try:
        raw = inflate.decompress(png.pixels, stride * header.height + 1)
    except zlib_ng.error:  # type: ignore[misc]
        return None
    if len(raw) != stride * header.height or not inflate.eof:
        return None
    values = np.empty((header.height, stride - 1), np.uint8)
    if not _unfilter(np.frombuffer(raw, np.uint8).reshape(header.height, stride), samples, values):
        return None
    return values if samples == 1 else values.reshape(header.height, header.width, samples)


@kernel
def _unfilter(lines: NDArray[np.uint8], step: int, values: NDArray[np.uint8]) -> bool:
    """Undo the filter of every line.

    Args:
        lines: uint8 (height, 1 + bytes), the filter type first.
        step: bytes of a pixel.
        values: uint8 (height, bytes), written.

    Returns:
        Whether every filter type is known.
    """
    count = values.shape[1]
    for y in range(len(lines)):
        filtering, line, out = lines[y, 0], lines[y, 1:], values[y]
        if filtering > _PAETH:
            return False
        if filtering == 0:
            out[:] = line
        elif filtering == _UP:
            for x in range(count):
                out[x] = line[x] + (values[y - 1, x] if y else np.uint8(0))
        else:
            for x in range(count):
                left = np.int64(out[x - step]) if x >= step else np.int64(0)
                above = np.int64(values[y - 1, x]) if y else np.int64(0)
                if filtering == _SUB:
                    predicted = left
                elif filtering == _AVERAGE:
                    predicted = (left + above) >> 1
                else:
                    corner = np.int64(values[y - 1, x - step]) if y and x >= step else np.int64(0)
                    predicted = _paeth(left, above, corner)
                out[x] = np.uint8((line[x] + predicted) & 0xFF)
    return True


@kernel
def _paeth(left: np.int64, above: np.int64, corner: np.int64) -> np.int64:
    """Of the three, the nearest to left + above - corner; ties go to the first in this order."""
    by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    if by_left <= by_above and by_left <= by_corner:
        return left
    return above if by_above <= by_corner else corner
