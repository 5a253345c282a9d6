"""The planned geometry of the generated sample: which shapes stand where, and what stays visible of each.

A scene is planned back to front. Adding a shape or a pole takes its area away from everything behind it; an addition
that would leave something too small, nearly hidden, or with a hole is given up, so that what remains can always be
written as polygons. No pixels here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Outline = NDArray[np.float64]  # (points, 2): x, y in pixels, not closed, may leave the image

Texture = Literal["plain", "stripes", "dots", "checker", "rings", "blotches"]

_SIZES = ((640, 480), (640, 427), (480, 640), (427, 640), (500, 375), (640, 360), (612, 612), (375, 500))
_SIZE_SHARES = (0.33, 0.25, 0.12, 0.08, 0.1, 0.04, 0.03, 0.05)
_UNIT = 0.01  # polygon coordinates are multiples of it, in pixels
_LEAST_AREA = 30.0  # px² that must stay visible of a shape
_LEAST_PART = 3.0  # px²; smaller parts of a visible region are not annotated
_LEAST_SHARE = 0.2  # of a shape that must stay visible, and three times that of a crowd
_LEAST_GAP = 8.0  # px between boxes of a simple scene, half of it to the border; VOC draws 3 px of void around a shape


@dataclass(frozen=True)
class Category:
    """One kind of shape: its row in the category table and what its instances tend to look like.

    Attributes:
        id: COCO category id; the ids have gaps, as COCO's do.
        hue: the typical hue in 0..1; most instances stay within about 0.1 of it.
        texture: the texture of about two instances in three.
    """

    id: int
    name: str
    supercategory: str
    hue: float
    texture: Texture


CATEGORIES = (
    Category(1, "disc", "round", 0.02, "rings"),
    Category(2, "triangle", "angular", 0.12, "stripes"),
    Category(3, "square", "angular", 0.60, "checker"),
    Category(5, "star", "pointed", 0.15, "plain"),
    Category(6, "cross", "pointed", 0.98, "plain"),
    Category(8, "hexagon", "angular", 0.45, "dots"),
    Category(9, "heart", "round", 0.92, "blotches"),
    Category(11, "arrow", "pointed", 0.55, "stripes"),
    Category(12, "crescent", "round", 0.72, "blotches"),
    Category(14, "arch", "round", 0.83, "dots"),
)


@dataclass(frozen=True, eq=False)
class Thing:
    """One shape of a scene: `outline` is the whole shape, before anything cuts or hides it."""

    category: Category
    outline: Outline


@dataclass(frozen=True, eq=False)
class Crowd:
    """Many tiny shapes of one category inside one region, annotated as a whole."""

    category: Category
    region: Outline
    members: tuple[Thing, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """One image, back to front: crowd, things in order, poles.

    Attributes:
        regions: for each thing its visible region, a shapely multipolygon without holes, inside the image and with
            coordinates that are multiples of 0.01 px.
        poles: background that stands in front of the things; never annotated.
    """

    width: int
    height: int
    crowd: Crowd | None
    things: tuple[Thing, ...]
    regions: tuple[Any, ...]
    poles: tuple[Outline, ...]


def plan(number: int, rng: np.random.Generator) -> Scene:
    """Plan image `number` (from 1); which special cases it holds depends on the number alone."""
    width, height = _SIZES[int(rng.choice(len(_SIZES), p=_SIZE_SHARES))]
    if number % 12 == 3:
        poles = tuple(_pole(width, height, rng.uniform(0, (width, height)), rng) for _ in range(int(rng.integers(3))))
        return Scene(width, height, None, (), (), poles)
    must_cut = number % 6 == 1
    stage = _Stage(width, height, _plan_crowd(width, height, rng) if number % 8 == 5 else None)
    sizes = [_size(width, height, rng) for _ in range(int(rng.integers(1, 10)))]
    if must_cut:
        sizes[0] = max(sizes[0], 110.0)
    # Roughly large to small, so that small shapes are not all hidden.
    for size in sorted(sizes, key=lambda size: size * rng.uniform(0.5, 2.0), reverse=True):
        any(stage.add_thing(_plan_thing(size, width, height, rng)) for _ in range(10))
    if must_cut or rng.random() < 0.25:
        _plan_pole(stage, rng, must_cut=must_cut)
    return stage.scene()


def plan_simple(number: int, rng: np.random.Generator) -> Scene:
    """Plan image `number` (from 1) with one to three large shapes wholly inside and apart; 3, 15, 27, ... have none."""
    width, height = _SIZES[int(rng.choice(len(_SIZES), p=_SIZE_SHARES))]
    stage = _Stage(width, height, None)
    for _ in range(0 if number % 12 == 3 else int(rng.integers(1, 4))):
        size = min(width, height) * math.exp(rng.uniform(math.log(0.2), math.log(0.5)))
        any(stage.add_apart(_plan_thing(size, width, height, rng)) for _ in range(100))
    return stage.scene()


class _Stage:
    """A scene being planned: things so far, back to front, and what is visible of each."""

    def __init__(self, width: int, height: int, crowd: Crowd | None) -> None:
        self._width, self._height, self._crowd = width, height, crowd
        self._frame = shapely.box(0, 0, width, height)
        self._things: list[Thing] = []
        self._poles: list[Outline] = []
        self._crowd_room = shapely.intersection(shapely.Polygon(crowd.region), self._frame) if crowd else None
        self._crowd_area = self._crowd_room.area if self._crowd_room else 0.0
        self.regions: list[Any] = []

    def scene(self) -> Scene:
        return Scene(
            self._width, self._height, self._crowd, tuple(self._things), tuple(self.regions), tuple(self._poles)
        )

    def add_thing(self, thing: Thing) -> bool:
        """Put a thing in front of the others, unless too little would be left to see of it or of one of them."""
        shape = shapely.Polygon(thing.outline)
        region = _visible(shapely.intersection(shape, self._frame, grid_size=_UNIT), shape.area)
        left = None if region is None else self._behind(shape)
        if left is None:
            return False
        if self._crowd_room is not None:
            room = shapely.difference(self._crowd_room, shape)
            if room.area < 3 * _LEAST_SHARE * self._crowd_area:
                return False
            self._crowd_room = room
        self._things.append(thing)
        self.regions = [*left, region]
        return True

    def add_apart(self, thing: Thing) -> bool:
        """Put a thing in front of the others, where its box keeps clear of the border and of every other's box."""
        room = _box_around(thing.outline, _LEAST_GAP / 2)
        others = (_box_around(other.outline, _LEAST_GAP / 2) for other in self._things)
        if not self._frame.contains(room) or any(room.intersects(other) for other in others):
            return False
        return self.add_thing(thing)

    def add_pole(self, outline: Outline, *, must_cut: bool) -> bool:
        """Put a pole in front of everything; with `must_cut` only where some thing falls into more parts."""
        left = self._behind(shapely.Polygon(outline))
        if left is None or (must_cut and _parts(left) <= _parts(self.regions)):
            return False
        self.regions = left
        self._poles.append(outline)
        return True

    def _behind(self, cutter: Any) -> list[Any] | None:
        """The visible regions once `cutter` stands before them, or None where one would be unfit."""
        left = []
        for thing, region in zip(self._things, self.regions, strict=True):
            rest = region
            if shapely.intersects(region, cutter):
                cut = shapely.difference(region, cutter, grid_size=_UNIT)
                rest = _visible(cut, shapely.Polygon(thing.outline).area)
            if rest is None:
                return None
            left.append(rest)
        return left


def _box_around(outline: Outline, margin: float) -> Any:
    """The box of an outline, wider by `margin` pixels on every side."""
    return shapely.box(*(outline.min(axis=0) - margin), *(outline.max(axis=0) + margin))


def _parts(regions: list[Any]) -> int:
    return sum(len(region.geoms) for region in regions)


def _visible(geometry: Any, whole: float) -> Any | None:
    """`geometry` as a multipolygon, or None where it has a hole or too little is left of `whole` px²."""
    parts = [part for part in shapely.get_parts(geometry) if part.area >= _LEAST_PART]
    area = sum(part.area for part in parts)
    if area < max(_LEAST_AREA, _LEAST_SHARE * whole) or any(part.interiors for part in parts):
        return None
    return shapely.multipolygons(parts)


def _size(width: int, height: int, rng: np.random.Generator) -> float:
    """The square root of a shape's area in pixels: about a third each small (< 32), medium and large (> 96)."""
    low, high = ((9, 32), (32, 96), (96, 0.7 * min(width, height)))[int(rng.choice(3, p=(0.3, 0.34, 0.36)))]
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _plan_thing(size: float, width: int, height: int, rng: np.random.Generator) -> Thing:
    """A thing of a random category with its centre anywhere in the image, so that it may reach over the border."""
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    centre = rng.uniform(0, (width, height))
    return Thing(category, place(unit_outline(category.name, rng), size, centre, rng))


def _plan_crowd(width: int, height: int, rng: np.random.Generator) -> Crowd:
    """A blob with 40 to 80 tiny shapes of one category inside."""
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    bumps = sum(rng.normal(0, 0.28 / k) * np.sin(k * angles + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5, 7))
    radii = np.clip(1 + bumps, 0.5, 1.6) * rng.uniform(0.18, 0.28) * min(width, height)
    centre = rng.uniform((0.3 * width, 0.3 * height), (0.7 * width, 0.7 * height))
    region = centre + np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)
    inner = shapely.buffer(shapely.Polygon(region), -7.0)
    shapely.prepare(inner)
    spots = rng.uniform(region.min(axis=0), region.max(axis=0), (int(rng.integers(90, 160)), 2))
    spots = spots[shapely.contains_xy(inner, spots[:, 0], spots[:, 1])][:80]
    members = [place(unit_outline(category.name, rng), rng.uniform(7, 15), spot, rng) for spot in spots]
    return Crowd(category, region, tuple(Thing(category, outline) for outline in members))


def _plan_pole(stage: _Stage, rng: np.random.Generator, *, must_cut: bool) -> None:
    """Add a pole: anywhere, or with `must_cut` through one of the three shapes with the most to see."""
    scene = stage.scene()
    largest = sorted(scene.regions, key=lambda region: -region.area)[:3]
    for _ in range(60 if must_cut else 1):
        spot = rng.uniform(0, (scene.width, scene.height))
        if must_cut:
            left, top, right, bottom = largest[int(rng.integers(len(largest)))].bounds
            spot = rng.uniform((0.7 * left + 0.3 * right, top), (0.3 * left + 0.7 * right, bottom))
        if stage.add_pole(_pole(scene.width, scene.height, spot, rng), must_cut=must_cut):
            return


def _pole(width: int, height: int, spot: NDArray[np.float64], rng: np.random.Generator) -> Outline:
    """A bar through `spot` that reaches over the image at both ends, mostly upright."""
    angle = rng.normal(0, 0.07) + (0.0 if rng.random() < 0.2 else math.pi / 2)
    along = np.array((math.cos(angle), math.sin(angle)))
    across = np.array((-along[1], along[0])) * rng.uniform(2.0, 6.5)
    reach = along * math.hypot(width, height)
    return np.stack((spot - reach - across, spot + reach - across, spot + reach + across, spot - reach + across))


# --- outlines ---------------------------------------------------------------------------------------------------------


def place(unit: Outline, size: float, centre: NDArray[np.float64], rng: np.random.Generator) -> Outline:
    """Stretch, turn and scale `unit` to an area of `size`² px² around `centre`."""
    stretch = math.exp(rng.normal(0, 0.13))
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = unit[:, 0] * stretch, unit[:, 1] / stretch
    turned = np.stack((x * cos - y * sin, x * sin + y * cos), axis=1)
    placed: Outline = centre + turned * (size / math.sqrt(shapely.Polygon(turned).area))
    return placed


def _arc(radius: float, start: float, stop: float, points: int) -> Outline:
    """`points` points on a circle around the origin, both ends included; angles in radians."""
    angles = np.linspace(start, stop, points)
    return radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def unit_outline(name: str, rng: np.random.Generator) -> Outline:
    """The outline of a category around the origin, about 2 units across, with its proportions drawn at random."""
    if name in _CORNERS:
        corners = _CORNERS[name]
        return _arc(1.0, 0, 2 * math.pi * (1 - 1 / corners), corners)
    if name == "star":
        outline = _arc(1.0, 0, 2 * math.pi * 0.9, 10)
        outline[1::2] *= rng.uniform(0.4, 0.52)
        return outline
    if name == "cross":
        arm = rng.uniform(0.26, 0.42)
        corner = np.array(((1, -arm), (1, arm), (arm, arm)))
        return np.concatenate([corner @ np.array(turn) for turn in _QUARTER_TURNS])
    if name == "arrow":
        shaft, neck = rng.uniform(0.2, 0.36), rng.uniform(-0.1, 0.25)
        below = np.array(((-1, shaft), (neck, shaft), (neck, 0.75), (1, 0)))
        return np.concatenate((below, below[-2::-1] * (1, -1)))
    if name == "heart":
        t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack((16 * np.sin(t) ** 3, -y), axis=1) / 17
    if name == "crescent":
        tip = rng.uniform(0.6, 1.0)
        shift = math.cos(tip) * rng.uniform(0.75, 0.95)  # how far right of the origin the inner circle sits
        inner = math.hypot(math.cos(tip) - shift, math.sin(tip))
        end = math.atan2(math.sin(tip), math.cos(tip) - shift)
        hollow = _arc(inner, 2 * math.pi - end, end, 18)[1:-1] + np.array((shift, 0))
        return np.concatenate((_arc(1.0, tip, 2 * math.pi - tip, 26), hollow))
    span, inner = rng.uniform(2.6, 4.4), rng.uniform(0.42, 0.62)  # arch: a part of a ring
    return np.concatenate((_arc(1.0, 0, span, 22), _arc(inner, span, 0, 16)))


_CORNERS = {"disc": 30, "triangle": 3, "square": 4, "hexagon": 6}
_QUARTER_TURNS = (((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0)))
