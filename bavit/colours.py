"""Colours: one for every class, and ink that can be read on it."""

from __future__ import annotations

import colorsys
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0..255."""

_TONES = ((0.78, 0.92), (0.95, 0.75), (0.55, 1.0), (1.0, 0.62))
"""Saturation and brightness of neighbouring classes."""

_GOLDEN = 0.618033988749895


def class_colour(number: int) -> Colour:
    """The colour of a class: hues that are far apart for neighbouring numbers, in four tones."""
    saturation, value = _TONES[number % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever can be read on a colour: by the contrast that WCAG 2 defines."""
    light = luminance(colour)
    return (255, 255, 255) if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else (0, 0, 0)


def luminance(colour: Colour) -> float:
    """Relative luminance of sRGB, 0..1."""
    linear = [(c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
