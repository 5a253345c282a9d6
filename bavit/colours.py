"""Colours: one for every class, and ink that can be read on it."""

from __future__ import annotations

import colorsys
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0..255."""

LINES: tuple[tuple[str, str], ...] = (
    ("#0b5f8f", "#67b7ea"),
    ("#b84e00", "#f2a65a"),
    ("#00745a", "#45c7a0"),
    ("#8a3f86", "#d99ad6"),
    ("#6b5a00", "#dfc74f"),
    ("#b3133f", "#ff90a3"),
    ("#4a5259", "#bcc3ca"),
)
"""Colours of lines in plots on light and on dark ground, in the order of Okabe and Ito's for the colour-blind, each
dark or light enough to be read as text there."""

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
