"""Segmentations drawn: classes over the picture, where tokens stopped, and what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bavit.colours import Colour, class_colour
from bavit.segment.classes import IGNORED
from bavit.segment.config import SegmentClass
from bavit.visualize import enlarged, side_by_side
from tokenlabels.report.markup import printable

_PAPER, _INK = (255, 255, 255), (40, 44, 48)
_VOID: Colour = (255, 255, 255)
_OVER = 0.62
"""How much of a class's colour lies over the picture."""

_STAGE_COLOURS: tuple[Colour, ...] = ((253, 219, 119), (240, 128, 72), (178, 40, 98), (62, 38, 140))
"""From tokens that stopped first to those that went furthest: darker and darker."""

_FONT_SIZE, _SQUARE, _LINE, _MARGIN, _GAP = 15, 13, 21, 6, 18
_MOST_LETTERS = 24


def palette(classes: Sequence[SegmentClass]) -> list[Colour]:
    """A colour for each class: neighbours are far apart."""
    return [class_colour(number) for number in range(len(classes))]


def stage_colours(stages: int) -> list[Colour]:
    """A colour for each stage, light to dark."""
    places = np.linspace(0, len(_STAGE_COLOURS) - 1, max(stages, 2))[:stages]
    ends = np.array(_STAGE_COLOURS, np.float64)
    found = [[np.interp(place, np.arange(len(ends)), ends[:, channel]) for channel in range(3)] for place in places]
    return [(round(red), round(green), round(blue)) for red, green, blue in found]


def value_image(found: NDArray[np.uint8], classes: Sequence[SegmentClass]) -> Image.Image:
    """Classes as the values that masks have: mode `P` with a palette, or 16 bits where a value takes more than 8.

    Args:
        found: uint8 (height, width), number of the class.
        classes: by number.
    """
    values = np.array([each.value for each in classes], np.int64)
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16)[found])
    image = Image.fromarray(values.astype(np.uint8)[found])
    colours = np.zeros((256, 3), np.uint8)
    colours[values] = palette(classes)
    image.putpalette(colours.tobytes())
    return image


def stage_image(stages: NDArray[np.uint8], count: int) -> Image.Image:
    """Stages, uint8 (height, width) of 0 .. count - 1, as mode `P` with a palette."""
    image = Image.fromarray(stages)
    image.putpalette(np.array(stage_colours(count), np.uint8).tobytes())
    return image


def tinted(picture: Image.Image, numbers: NDArray[np.uint8], colours: Sequence[Colour]) -> Image.Image:
    """A picture in grey under the colours of what its pixels are; hatched where they are ignored.

    Args:
        picture: RGB, of any size.
        numbers: uint8 (h, w), index into `colours`, or 255; stretched to the picture.
        colours: of each number.
    """
    shown = np.asarray(Image.fromarray(numbers).resize(picture.size, Image.Resampling.NEAREST))
    table = np.full((256, 3), _VOID, np.uint8)
    table[: len(colours)] = np.array(colours, np.uint8).reshape(-1, 3)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    pixels = (grey * (1 - _OVER) + table[shown] * _OVER).astype(np.uint8)
    stripes = np.add.outer(np.arange(picture.height), np.arange(picture.width)) % 8 < 2
    pixels[stripes & (shown == IGNORED)] = _INK
    return Image.fromarray(pixels)


def draw_segmentation(
    picture: Image.Image,
    found: NDArray[np.uint8],
    stages: NDArray[np.uint8],
    classes: Sequence[SegmentClass],
    exit_after: Sequence[int],
    *,
    labels: NDArray[np.uint8] | None = None,
) -> Image.Image:
    """The picture, its labels, the prediction, and where tokens stopped, side by side above a legend.

    Args:
        picture: RGB.
        found: uint8 (height, width), number of the class of each pixel.
        stages: uint8 (height, width), stage in which the token of each pixel ended.
        classes: by number.
        exit_after: blocks after which tokens may end.
        labels: uint8 (height, width), 255 where ignored; None for no such panel.
    """
    shown = enlarged(picture)
    colours, tones = palette(classes), stage_colours(len(exit_after) + 1)
    panels = [("picture", shown)]
    if labels is not None:
        panels.append(("labels", tinted(shown, labels, colours)))
    panels.append(("prediction", tinted(shown, found, colours)))
    panels.append(("where tokens stopped", tinted(shown, stages, tones)))
    drawn = side_by_side(panels)
    there = np.bincount(found.reshape(-1), minlength=256)
    if labels is not None:
        there = there + np.bincount(labels.reshape(-1), minlength=256)
    order = sorted(np.flatnonzero(there[: len(classes)]).tolist(), key=lambda number: -there[number])
    shares = np.bincount(stages.reshape(-1), minlength=len(tones)) / stages.size
    legends = [
        [(f"{name}: {share:.0%}", tone) for name, share, tone in zip(
            stage_names(exit_after), shares.tolist(), tones, strict=True)],
        [(classes[number].name, colours[number]) for number in order],
    ]  # fmt: skip
    return _with_legends(drawn, legends)


def stage_names(exit_after: Sequence[int]) -> list[str]:
    """What each stage is called."""
    return [*(f"after block {place}" for place in exit_after), "went to the end"]


def _with_legends(drawn: Image.Image, legends: Sequence[Sequence[tuple[str, Colour]]]) -> Image.Image:
    """A picture above rows of squares with their names, as many rows as they need."""
    font = ImageFont.load_default(_FONT_SIZE)
    places: list[tuple[int, int, str, Colour]] = []
    line = 0
    for legend in legends:
        left = 0
        for name, colour in legend:
            text = _short(name)
            width = _SQUARE + 6 + int(font.getlength(text)) + _GAP
            if left and left + width > drawn.width:
                left, line = 0, line + 1
            places.append((left, line, text, colour))
            left += width
        line += 1
    canvas = Image.new("RGB", (drawn.width, drawn.height + 2 * _MARGIN + line * _LINE), _PAPER)
    canvas.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for left, row, text, colour in places:
        middle = drawn.height + _MARGIN + row * _LINE + _LINE // 2
        pen.rectangle((left, middle - _SQUARE // 2, left + _SQUARE, middle + _SQUARE // 2), fill=colour, outline=_INK)
        pen.text((left + _SQUARE + 6, middle), text, _INK, font, anchor="lm")
    return canvas


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
