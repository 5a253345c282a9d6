"""Boxes over the sparse picture, as the BAViT paper's Figure 4: what the detector saw, and what it found in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bavit.colours import Colour, class_colour, ink_on
from bavit.detect.pruned import Detection
from bavit.visualize import enlarged, side_by_side, sparse
from tokenlabels.report.markup import printable

Place: TypeAlias = tuple[int, int, int, int]

MIN_SCORE = 0.3
"""Boxes of a smaller score are not drawn, unless one asks for them."""

_FONT_SIZE, _PIXELS_PER_LETTER = 12, 48
"""Points of a label at least, and how many pixels of the long side make one point more."""

_MOST_LETTERS = 28
_PAD = 2
_EDGE: Colour = (20, 22, 24)


@dataclass(frozen=True, slots=True)
class Box:
    """A box to draw.

    Attributes:
        corners: left, top, right, bottom in pixels of the source picture; what lies outside is cut off.
        name: of its class, untrusted text.
        score: 0..1, or None for the truth.
        number: of its class, which decides the colour.
    """

    corners: tuple[float, float, float, float]
    name: str
    score: float | None
    number: int


def found_boxes(detection: Detection, labels: Sequence[str], min_score: float = MIN_SCORE) -> list[Box]:
    """The boxes of a detection that are sure enough, the best first.

    Args:
        detection: of one image.
        labels: names of the classes.
        min_score: boxes of a smaller score are left out.
    """
    columns = (detection.boxes.tolist(), detection.scores.tolist(), detection.labels.tolist())
    return [
        Box(tuple(corners), labels[label], score, label)
        for corners, score, label in zip(*columns, strict=True)
        if score >= min_score
    ]


def draw_detection(
    picture: Image.Image,
    kept: NDArray[np.bool_] | None,
    boxes: Sequence[Box],
    *,
    original: bool = True,
    truth: Sequence[Box] | None = None,
    caption: str = "",
) -> Image.Image:
    """The picture, and beside it what was kept of it with the boxes that were found there.

    Args:
        picture: the source picture, any mode and size.
        kept: bool (rows, cols), patches of the detector's grid, which is spread over all of the picture; None: all, and
            nothing is said of it.
        boxes: what was found.
        original: draw the picture itself, too; with the true boxes where these are given.
        truth: the true boxes.
        caption: what comes before the figures of the caption, such as the threshold.

    Returns:
        RGB. The long side of a panel is 384 to 960 pixels: smaller pictures are enlarged by a whole factor, larger ones
        reduced.

    Raises:
        ParameterError: there are no patches.
    """
    shown = enlarged(picture)
    factors = shown.width / picture.width, shown.height / picture.height
    found = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
    head = f"{printable(caption)}: " if caption else ""
    seen, share = (shown, "") if kept is None else (sparse(shown, kept), f"{kept.mean():.0%} of patches kept, ")
    panels = [(f"{head}{share}{found}", with_boxes(seen, boxes, factors))]
    if original:
        name = "original" if truth is None else "ground truth"
        panels.insert(0, (name, with_boxes(shown, truth or (), factors)))
    return side_by_side(panels)


def with_boxes(picture: Image.Image, boxes: Sequence[Box], factors: tuple[float, float] = (1.0, 1.0)) -> Image.Image:
    """A copy of a picture with boxes, each named, the best on top.

    Names are put where they cover no other, if there is such a place.

    Args:
        picture: RGB.
        boxes: the best first.
        factors: pixels of `picture` for a pixel of the source, across and down.
    """
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    long = max(picture.size)
    font = ImageFont.load_default(_FONT_SIZE + max(0, long - 384) // _PIXELS_PER_LETTER)
    width = max(2, round(long / 320))
    placed = [(box, place) for box in boxes if (place := _clipped(box, picture.size, factors))]
    for box, place in reversed(placed):
        pen.rectangle(_grown(place, 1), outline=_EDGE, width=width + 2)
        pen.rectangle(place, outline=class_colour(box.number), width=width)
    taken: list[Place] = []
    names = []
    for box, place in placed:
        text = _text(box)
        at = _label_place(pen, font, text, place, picture.size, taken)
        taken.append(at)
        names.append((text, at, class_colour(box.number)))
    for text, at, colour in reversed(names):
        pen.rectangle(_grown(at, 1), fill=_EDGE)
        pen.rectangle(at, fill=colour)
        pen.text((at[0] + _PAD, (at[1] + at[3]) / 2), text, ink_on(colour), font, anchor="lm")
    return drawn


def _text(box: Box) -> str:
    name = printable(box.name)
    short = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
    return short if box.score is None else f"{short} {box.score:.2f}"


def _clipped(box: Box, size: tuple[int, int], factors: tuple[float, float]) -> Place | None:
    """Corners within the picture, in its pixels, both of them inside; None where nothing of the box is."""
    if not all(map(math.isfinite, box.corners)):
        return None
    left, top, right, bottom = (value * factors[index % 2] for index, value in enumerate(box.corners))
    if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1] or right < left or bottom < top:
        return None
    x0, x1 = (min(max(round(x), 0), size[0] - 1) for x in (left, right - 1))
    y0, y1 = (min(max(round(y), 0), size[1] - 1) for y in (top, bottom - 1))
    return x0, y0, max(x0, x1), max(y0, y1)


def _label_place(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    box: Place,
    size: tuple[int, int],
    taken: Sequence[Place],
) -> Place:
    """Where the name of a box stands: at one of its corners, inside or outside, within the picture."""
    width = math.ceil(pen.textlength(text, font)) + 2 * _PAD
    height = math.ceil(font.getbbox("Ágj")[3]) + _PAD
    left, top, right, bottom = box
    tries = [(x, y) for y in (top - height, top, bottom + 1, bottom - height + 1) for x in (left, right - width + 1)]
    inside = [_moved_inside(x, y, width, height, size) for x, y in tries]
    free = (place for place in inside if not any(_meet(place, other) for other in taken))
    return next(free, inside[0])


def _moved_inside(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Place:
    x = max(0, min(x, size[0] - width))
    y = max(0, min(y, size[1] - height))
    return x, y, x + width - 1, y + height - 1


def _meet(one: Place, other: Place) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _grown(place: Place, by: int) -> Place:
    return place[0] - by, place[1] - by, place[2] + by, place[3] + by
