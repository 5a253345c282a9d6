"""Compressed run lengths read straight from JSON text, `{"size": [height, width], "counts": "..."}`, no Python objects.

Data sets of many masks have them in this form (SA-1B: a hundred an image). As in `polygon_text.py`, only the plain form
is taken; anything else is left to the caller, who decodes it with a JSON library and says what is wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenlabels.kernel import kernel
from tokenlabels.polygon_text import skip_space

BRACE = 123
"""First byte of such a text; that of polygons is a bracket."""

_QUOTE, _BACKSLASH, _COLON, _COMMA, _OPEN, _CLOSE, _END = 34, 92, 58, 44, 91, 93, 125
_ZERO, _NINE = 48, 57
_S, _C = 115, 99
_SIZE, _COUNTS = np.frombuffer(b'"size"', np.uint8), np.frombuffer(b'"counts"', np.uint8)
_MAX_DIGITS = 10
_FIRST_CODE, _LAST_CODE = 48, 111
_MAX_SHIFT = 30


@kernel
def parse_rle(text: NDArray[np.uint8], start: int, stop: int, width: int, height: int) -> NDArray[np.int64]:
    """Run lengths of the segmentation `text[start:stop]`, column-major, background first.

    Returns:
        int64, at least one run, none negative, together `width * height`; empty where the text is anything but plain
        compressed run lengths of an image of that size.
    """
    counts = np.empty(max(stop - start, 1), np.int64)
    used = 0
    sized = False
    position = skip_space(text, start, stop)
    if position >= stop or text[position] != BRACE:
        return counts[:0]
    for part in range(2):
        position = skip_space(text, position + 1, stop)
        if position + 8 >= stop or (text[position + 1] != _S and text[position + 1] != _C):
            return counts[:0]
        is_size = text[position + 1] == _S
        position = _after(text, position, stop, _SIZE if is_size else _COUNTS)
        position = skip_space(text, position, stop)
        if position >= stop or text[position] != _COLON:
            return counts[:0]
        position = skip_space(text, position + 1, stop)
        if is_size:
            position = _after_size(text, position, stop, height, width)
            sized = True
        else:
            used, position = decode_text(text, position, stop, counts)
        position = skip_space(text, position, stop)
        if position >= stop or text[position] != (_COMMA if part == 0 else _END):
            return counts[:0]
    if not sized or used < 1 or skip_space(text, position + 1, stop) != stop:
        return counts[:0]
    total = np.int64(0)
    for index in range(used):
        if counts[index] < 0 or counts[index] > np.int64(width) * height:
            return counts[:0]
        total += counts[index]
    return counts[:used] if total == np.int64(width) * height else counts[:0]


@kernel
def _after(text: NDArray[np.uint8], position: int, stop: int, word: NDArray[np.uint8]) -> int:
    """The position after a word; `stop` where it is not there."""
    if position + len(word) > stop:
        return stop
    for index in range(len(word)):
        if text[position + index] != word[index]:
            return stop
    return position + len(word)


@kernel
def _after_size(text: NDArray[np.uint8], position: int, stop: int, height: int, width: int) -> int:
    """The position after `[height, width]`; `stop` where something else is there."""
    if position >= stop or text[position] != _OPEN:
        return stop
    for side in range(2):
        position = skip_space(text, position + 1, stop)
        value, digits = np.int64(0), 0
        while position < stop and _ZERO <= text[position] <= _NINE and digits < _MAX_DIGITS:
            value = value * 10 + (np.int64(text[position]) - _ZERO)
            digits += 1
            position += 1
            if digits > 1 and value < 10:  # a leading zero is no JSON
                return stop
        if digits == 0 or value != (height if side == 0 else width):
            return stop
        position = skip_space(text, position, stop)
        if position >= stop or text[position] != (_COMMA if side == 0 else _CLOSE):
            return stop
    return position + 1


@kernel
def decode_text(text: NDArray[np.uint8], position: int, stop: int, counts: NDArray[np.int64]) -> tuple[int, int]:
    """Decode the JSON string at `position`, compressed as by pycocotools, into `counts`.

    Each number is cut into groups of five bits, lowest first, one character (48 + group) each; bit 6 says that more
    follow, bit 5 of the last is the sign. From the fourth number on it is the difference to the one two before.

    Returns:
        How many numbers, and the position after the string; 0 and `stop` where it is malformed.
    """
    if position >= stop or text[position] != _QUOTE:
        return 0, stop
    position += 1
    used = 0
    value, shift = np.int64(0), 0
    while position < stop and text[position] != _QUOTE:
        code = np.int64(text[position])
        if code == _BACKSLASH:  # as JSON writes it: twice
            position += 1
            if position >= stop or text[position] != _BACKSLASH:
                return 0, stop
        if code < _FIRST_CODE or code > _LAST_CODE or shift > _MAX_SHIFT:
            return 0, stop
        group = code - _FIRST_CODE
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value |= np.int64(-1) << shift
            if used > 2:
                value += counts[used - 2]
            counts[used] = value
            used += 1
            value, shift = np.int64(0), 0
        position += 1
    if position >= stop or shift:
        return 0, stop
    return used, position + 1
