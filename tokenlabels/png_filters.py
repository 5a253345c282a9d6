"""Undoing the filters of PNG lines.

Format: https://www.w3.org/TR/png-3/, section 9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenlabels.kernel import kernel

_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4


@kernel
def unfilter(lines: NDArray[np.uint8], step: int, values: NDArray[np.uint8]) -> bool:
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
            for x in range(count):
                out[x] = line[x]
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
