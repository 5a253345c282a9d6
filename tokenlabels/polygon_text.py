"""Polygons read straight from JSON text, `[[x, y, x, y, ...], ...]`, without Python objects.

COCO's polygons make up nine tenths of an annotation file; turning each number into a Python float costs more than all
the geometry. This parser takes the plain form that practically every file uses. Whatever is not plain - exponents, more
than 18 digits, a number so long that its last bit could matter, an odd count, rings of fewer than three points, wild
coordinates, anything that is no polygon - is left to the caller, who decodes it with a JSON library and says what is
wrong. So a mask accepted here equals the library's reading exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import MAX_COORDINATE
from tokenlabels.kernel import kernel
from tokenlabels.raster import LATTICE

NOT_PLAIN = -1

_EXACT_MANTISSA = 1 << 53
_MAX_DIGITS = 18
_AMBIGUOUS = 1e-6
_SPACE, _TAB, _NEWLINE, _RETURN = 32, 9, 10, 13
_COMMA, _MINUS, _POINT, _ZERO, _NINE, _OPEN, _CLOSE = 44, 45, 46, 48, 57, 91, 93
POWERS_OF_TEN = np.array([10.0**power for power in range(_MAX_DIGITS + 1)])


@kernel
def parse_polygons(
    text: NDArray[np.uint8], start: int, stop: int, xy: NDArray[np.float64], ring_stops: NDArray[np.int64]
) -> int:
    """Parse the JSON text of one segmentation.

    Args:
        text: uint8 bytes; the value is `text[start:stop]`.
        start: first byte.
        stop: one past the last byte.
        xy: float64, filled with x and y in turn; room for `(stop - start) // 2 + 1` numbers.
        ring_stops: int64, filled with the end of each ring in `xy`; room for a sixth as many.

    Returns:
        The number of rings, at least 1, each of an even count of at least 6 numbers; or `NOT_PLAIN`.
    """
    position = skip_space(text, start, stop)
    if position >= stop or text[position] != _OPEN:
        return NOT_PLAIN
    rings = 0
    used = 0
    while True:
        position = skip_space(text, position + 1, stop)
        if position >= stop or text[position] != _OPEN:
            return NOT_PLAIN
        ring_start = used
        while True:
            position = skip_space(text, position + 1, stop)
            value, position = _parse_number(text, position, stop)
            if position < 0:
                return NOT_PLAIN
            xy[used] = value
            used += 1
            position = skip_space(text, position, stop)
            if position >= stop:
                return NOT_PLAIN
            if text[position] == _CLOSE:
                break
            if text[position] != _COMMA:
                return NOT_PLAIN
        if (used - ring_start) % 2 or used - ring_start < 6:
            return NOT_PLAIN
        ring_stops[rings] = used
        rings += 1
        position = skip_space(text, position + 1, stop)
        if position >= stop:
            return NOT_PLAIN
        if text[position] == _CLOSE:
            break
        if text[position] != _COMMA:
            return NOT_PLAIN
    return rings if skip_space(text, position + 1, stop) == stop else NOT_PLAIN


@kernel
def skip_space(text: NDArray[np.uint8], position: int, stop: int) -> int:
    while position < stop and (
        text[position] == _SPACE or text[position] == _NEWLINE or text[position] == _TAB or text[position] == _RETURN
    ):
        position += 1
    return position


@kernel
def _parse_number(text: NDArray[np.uint8], position: int, stop: int) -> tuple[float, int]:
    """The number at `position` and the position after it, or a negative position where it is not plain.

    A mantissa below 2**53 divided by a power of ten up to 10**18 is correctly rounded (both are exact doubles). A
    longer one is off by at most a few last bits, which is fine unless that could move the vertex on the lattice.
    """
    negative = position < stop and text[position] == _MINUS
    if negative:
        position += 1
    mantissa = np.int64(0)
    digits = 0
    decimals = 0
    seen_point = False
    while position < stop:
        byte = text[position]
        if _ZERO <= byte <= _NINE:
            mantissa = mantissa * 10 + (np.int64(byte) - _ZERO)
            digits += 1
            decimals += seen_point
            leading_zero = digits == 2 and mantissa < 10 and not seen_point
            if digits > _MAX_DIGITS or leading_zero:
                return 0.0, NOT_PLAIN
        elif byte == _POINT and not seen_point and digits > 0:
            seen_point = True
        else:
            break
        position += 1
    if digits == 0 or (seen_point and decimals == 0):
        return 0.0, NOT_PLAIN
    value = np.float64(mantissa) / POWERS_OF_TEN[decimals]
    if value > MAX_COORDINATE:
        return 0.0, NOT_PLAIN
    if mantissa >= _EXACT_MANTISSA:
        lattice = LATTICE * value + 0.5
        if abs(lattice - np.rint(lattice)) < _AMBIGUOUS:
            return 0.0, NOT_PLAIN
    return (-value if negative else value), position
