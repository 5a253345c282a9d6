"""Windows of pictures of any size: how large a picture is shown to a network, and in which pieces.

A picture is scaled so that its short side is that of the crop trained at, and cut into windows of the crop, two thirds
of it apart, as segmentation papers evaluate. Nothing larger than a window is ever made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenlabels.errors import ParameterError
from tokenlabels.model_input import PAD_COLOUR

STRIDE = Fraction(2, 3)
"""Distance of windows, as a share of their side."""

MOST_ELONGATED = 32
"""The long side of a scaled picture at most, as a multiple of the short side of the crop: a sliver is not blown up."""


@dataclass(frozen=True, slots=True)
class View:
    """How pictures are shown to a network.

    Attributes:
        crop: (H, W), the window.
        native: pictures keep their size.
        whole: one window that is the whole picture, whatever its size.

    Raises:
        ParameterError: a crop without pixels.
    """

    crop: tuple[int, int]
    native: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ParameterError(f"a window of {self.crop} has no pixels.")

    def lay(self, width: int, height: int) -> Layout:
        """Where the windows of a picture of so many pixels lie."""
        scaled = (height, width) if self.native else _scaled(width, height, min(self.crop))
        if self.whole:
            return Layout((height, width), scaled, scaled, (0,), (0,))
        tops, lefts = (starts(side, window) for side, window in zip(scaled, self.crop, strict=True))
        return Layout((height, width), scaled, self.crop, tops, lefts)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the windows of one picture lie; they are numbered row by row.

    Attributes:
        size: (height, width) of the picture.
        scaled: (height, width) of the picture as it is cut.
        window: (H, W) of each window.
        tops: of each row of windows, pixels of the scaled picture, ascending; the windows cover all of it.
        lefts: of each column of windows.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    window: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, picture: Image.Image, number: int) -> NDArray[np.uint8]:
        """One window of the picture, RGB.

        Args:
            picture: RGB, of `size`.
            number: of the window.

        Returns:
            uint8 (H, W, 3), bilinear with antialiasing as in training; grey where the scaled picture does not reach.
        """
        top, left = self.tops[number // len(self.lefts)], self.lefts[number % len(self.lefts)]
        height, width = (min(side, end - start) for side, end, start in zip(
            self.window, self.scaled, (top, left), strict=True))  # fmt: skip
        box = left, top, left + width, top + height
        if self.scaled == self.size:
            part = picture.crop(box)
        else:
            down, across = (side / scaled for side, scaled in zip(self.size, self.scaled, strict=True))
            source = (
                left * across, top * down, min(box[2] * across, self.size[1]), min(box[3] * down, self.size[0])
            )  # fmt: skip
            part = picture.resize((width, height), Image.Resampling.BILINEAR, source)
        if (height, width) == self.window:
            return np.array(part)
        found = np.empty((*self.window, 3), np.uint8)
        found[:] = PAD_COLOUR
        found[:height, :width] = np.asarray(part)
        return found


def starts(side: int, window: int) -> tuple[int, ...]:
    """Where windows begin on one axis: `STRIDE` apart, the last one flush with the end."""
    last = max(side - window, 0)
    step = max(1, int(window * STRIDE))
    return tuple(min(number * step, last) for number in range(-(-last // step) + 1))


def _scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """(height, width) of a picture scaled to a short side."""
    scale = min(Fraction(short, min(width, height)), Fraction(MOST_ELONGATED * short, max(width, height)))
    return max(1, round(height * scale)), max(1, round(width * scale))
