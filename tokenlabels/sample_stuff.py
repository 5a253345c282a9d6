"""Scenes in which every pixel has a class: regions of stuff, with shapes in front of them.

Two to four kinds of stuff meet at irregular borders; a kind always looks like its material, whose colours shift. One to
four large shapes stand before them, may overlap a little and may leave the image a little; a category always has its
texture, and nearly its hue. The categories of image i's first region and first shape follow from i, so that any 42
images in a row hold every pair, and any 7 every class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from PIL import Image

from tokenlabels.sample_drawing import MATERIALS, Look, coverage, draw, expose, hsv, noise, surface
from tokenlabels.sample_masks import VOID, borders
from tokenlabels.sample_scene import CATEGORIES, Category, Thing, place, unit_outline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokenlabels.sample_scene import Outline

STUFF = ("plaster", "sky", "grass", "sand", "water", "bricks", "foliage")  # materials, in the order of mask values
SHAPES: tuple[Category, ...] = tuple(
    category
    for category in CATEGORIES
    if category.name in ("disc", "triangle", "square", "star", "hexagon", "crescent")
)
CLASSES: tuple[str, ...] = ("background", *STUFF[1:], *(category.name for category in SHAPES))  # by mask value

_SIZES = ((320, 240), (240, 320), (288, 288))
_LEAST_REGION = 0.12  # of the image
_LEAST_STUFF = 0.05  # of the image, that shapes leave of a region
_LEAST_INSIDE = 0.8  # of a shape, within the image
_LEAST_VISIBLE = 0.7  # of what is in the image of a shape, before later ones


@dataclass(frozen=True, eq=False)
class StuffScene:
    """One planned image.

    Attributes:
        stuff: the mask values of the regions.
        regions: uint8 (height, width), which region a pixel is of, shapes left aside.
        things: shapes, back to front.
        objects: uint8 (height, width), 1 + the place in `things` of the foremost shape that covers at least half of a
            pixel, 0 where none does.
    """

    stuff: tuple[int, ...]
    regions: NDArray[np.uint8]
    things: tuple[Thing, ...]
    objects: NDArray[np.uint8]

    def mask(self) -> NDArray[np.uint8]:
        """The class of every pixel, uint8 (height, width), 255 for the 3 pixels of border around shapes."""
        shapes = [len(STUFF) + SHAPES.index(thing.category) for thing in self.things]
        values = np.where(
            self.objects > 0,
            np.array([0, *shapes], np.uint8)[self.objects],
            np.array(self.stuff, np.uint8)[self.regions],
        )
        values[borders(self.objects, inner=1, outer=2)] = VOID
        return values


def plan_stuff(number: int, rng: np.random.Generator) -> StuffScene:
    """Plan image `number` (from 1)."""
    width, height = _SIZES[int(rng.integers(len(_SIZES)))]
    first = number % len(STUFF)
    others = [value for value in rng.permutation(len(STUFF)).tolist() if value != first]
    stuff = (first, *others[: int(rng.integers(1, 4))])
    regions = _regions(height, width, len(stuff), rng)
    objects = np.zeros((height, width), np.uint8)
    things: list[Thing] = []
    for nth in range(int(rng.integers(1, 5))):
        category = SHAPES[number % len(SHAPES) if nth == 0 else int(rng.integers(len(SHAPES)))]
        for _ in range(40):
            outline = _outline(category, width, height, rng)
            front = _in_front(outline, len(things) + 1, objects, regions)
            if front is not None:
                things.append(Thing(category, outline))
                objects = front
                break
    return StuffScene(stuff, regions, tuple(things), objects)


def render_stuff(scene: StuffScene, rng: np.random.Generator) -> Image.Image:
    """Draw a planned scene, RGB."""
    height, width = scene.regions.shape
    image = Image.new("RGB", (width, height))
    for region, value in enumerate(scene.stuff):
        inside = scene.regions == region
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        part = Image.fromarray(inside[top:bottom, left:right].astype(np.uint8) * np.uint8(255))
        image.paste(surface(MATERIALS[STUFF[value]], bottom - top, right - left, rng), (left, top), part)
    canvas = np.stack([np.asarray(plane) for plane in image.split()])
    for thing in scene.things:
        draw(canvas, thing.outline, _look(thing, rng), rng)
    return expose(canvas, rng)


def _regions(height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Which of `count` sites is nearest to a pixel, (height, width), distances being roughened by noise."""
    side = min(height, width)
    ys, xs = np.arange(height, dtype=np.float32)[:, None] / side, np.arange(width, dtype=np.float32)[None, :] / side
    while True:
        rough = rng.choice((0.08, 0.16, 0.3))
        distances = np.empty((count, height, width), np.float32)
        for distance, (x, y) in zip(distances, rng.uniform(0, (width / side, height / side), (count, 2)), strict=True):
            bumps = noise(height, width, ((side // 3, side // 3), (16, 16), (5, 5)), rng)
            distance[:] = np.square(xs - np.float32(x)) + np.square(ys - np.float32(y))
            distance += bumps * np.float32(rough / 255)
        nearest: NDArray[np.uint8] = distances.argmin(axis=0).astype(np.uint8)
        if np.bincount(nearest.ravel(), minlength=count).min() >= _LEAST_REGION * nearest.size:
            return nearest


def _outline(category: Category, width: int, height: int, rng: np.random.Generator) -> Outline:
    """A shape that is 0.25 to 0.6 of the image's short side across, anywhere."""
    outline = place(unit_outline(category.name, rng), 1.0, np.zeros(2), rng)
    across = min(width, height) * rng.uniform(0.25, 0.6)
    moved: Outline = outline * (across / np.ptp(outline, axis=0).max()) + rng.uniform(0, (width, height))
    return moved


def _in_front(
    outline: Outline, value: int, objects: NDArray[np.uint8], regions: NDArray[np.uint8]
) -> NDArray[np.uint8] | None:
    """`objects` with a shape before them, or None where too little would be left to see of anything."""
    height, width = objects.shape
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)).astype(int), (width, height)).tolist()
    covered = coverage(outline - (left, top), bottom - top, right - left) >= 0.5
    if covered.sum() < _LEAST_INSIDE * shapely.Polygon(outline).area:
        return None
    front = objects.copy()
    front[top:bottom, left:right][covered] = value
    before, after = (np.bincount(values.ravel(), minlength=value + 1)[1:value] for values in (objects, front))
    bare = np.bincount(regions[front == 0])
    if (after < _LEAST_VISIBLE * before).any() or bare.min() < _LEAST_STUFF * regions.size:
        return None
    return front


def _look(thing: Thing, rng: np.random.Generator) -> Look:
    """The texture of the category, in colours near its hue."""
    across = float(np.ptp(thing.outline, axis=0).max())
    hue, value = thing.category.hue + rng.normal(0, 0.03), rng.uniform(0.6, 1.0)
    return Look(
        first=hsv(hue, rng.uniform(0.6, 0.95), value),
        second=hsv(hue + rng.normal(0, 0.03), rng.uniform(0.3, 0.9), value - rng.uniform(0.25, 0.45)),
        texture=thing.category.texture,
        period=max(6.0, across * rng.uniform(0.12, 0.25)),
        angle=rng.uniform(0, math.pi),
        dome=rng.uniform(0, 0.4) if thing.category.supercategory == "round" else rng.uniform(0, 0.2),
        slope=rng.uniform(0.1, 0.4),
    )
