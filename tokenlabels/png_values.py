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

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
"""Colour types."""

_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


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
    from tokenlabels.png_filters import unfilter  # loads the compiler, which reading headers does not need

    values = np.empty((header.height, stride - 1), np.uint8)
    if not unfilter(np.frombuffer(raw, np.uint8).reshape(header.height, stride), samples, values):
        return None
    return values if samples == 1 else values.reshape(header.height, header.width, samples)
