"""The pixels of the generated sample: textured backgrounds, textured shapes, light and sensor noise.

Nothing here knows about annotations: `render` takes a scene whose geometry is already planned and returns a
photograph-like RGB image. Full-frame steps are 8-bit Pillow calls on upsampled small random arrays, which is what keeps
one image at a few milliseconds; floating point is used only inside the crop of a shape.

Foreground must not be given away by variance alone, so backgrounds hold both smooth and busy materials, hard edges
(bricks, tiles, bushes, poles) and saturated colours, and shapes may be plain.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokenlabels.sample_scene import Outline, Scene, Texture, Thing

    Planes = NDArray[np.uint8]  # (3, height, width): planar, because one value a pixel must meet three colours quickly

Pattern = Literal["bricks", "planks", "tiles", "stripes"]
Colour = tuple[float, float, float]  # red, green, blue in 0..255

_TINY = 20.0  # shapes of at most this many pixels across have neither a shadow nor a mottled surface
_TEXTURES: tuple[Texture, ...] = ("plain", "stripes", "dots", "checker", "rings", "blotches")


class Material(NamedTuple):
    """A background surface: a colour ramp over multi-octave noise, with an optional man-made pattern.

    Attributes:
        ramp: colours at noise 0, 128 and 255.
        cells: height and width in pixels of one noise cell, coarsest octave first; each octave weighs half the last.
        gain: contrast of the noise.
    """

    ramp: tuple[Colour, Colour, Colour]
    cells: tuple[tuple[int, int], ...]
    gain: float
    pattern: Pattern | None = None


MATERIALS: dict[str, Material] = {
    "sky": Material(((70, 120, 200), (140, 180, 230), (245, 245, 250)), ((110, 220), (40, 70), (12, 20)), 1.6),
    "dusk": Material(((90, 60, 110), (220, 130, 100), (255, 215, 150)), ((90, 300), (30, 120), (8, 40)), 1.5),
    "grass": Material(((25, 50, 15), (80, 125, 40), (185, 200, 90)), ((60, 80), (7, 5), (3, 2)), 1.7),
    "foliage": Material(((10, 25, 12), (45, 85, 35), (170, 190, 80)), ((36, 40), (9, 10), (3, 3)), 2.4),
    "sand": Material(((150, 120, 85), (205, 180, 135), (240, 225, 190)), ((50, 120), (6, 10), (1, 1)), 1.3),
    "gravel": Material(((50, 48, 46), (130, 125, 118), (225, 220, 210)), ((9, 10), (4, 4), (1, 1)), 1.9),
    "asphalt": Material(((50, 50, 55), (95, 96, 100), (150, 150, 152)), ((90, 140), (3, 3), (1, 1)), 1.1),
    "water": Material(((15, 55, 80), (50, 120, 150), (200, 230, 235)), ((20, 110), (5, 34), (2, 9)), 2.0),
    "bricks": Material(((80, 35, 28), (160, 80, 60), (215, 150, 120)), ((40, 60), (5, 7), (2, 2)), 1.2, "bricks"),
    "planks": Material(((75, 45, 25), (150, 100, 60), (210, 165, 115)), ((6, 160), (3, 50), (1, 12)), 1.5, "planks"),
    "tiles": Material(((120, 130, 135), (190, 195, 195), (240, 240, 235)), ((70, 70), (14, 14), (2, 2)), 0.9, "tiles"),
    "plaster": Material(((170, 155, 140), (215, 205, 190), (245, 240, 230)), ((120, 120), (20, 20), (2, 2)), 1.0),
    "wallpaper": Material(((95, 105, 130), (165, 160, 150), (220, 200, 165)), ((90, 90), (3, 3)), 0.7, "stripes"),
    "carpet": Material(((90, 20, 30), (150, 60, 60), (200, 140, 110)), ((30, 30), (4, 4), (2, 2)), 1.6, "stripes"),
}
_SETTINGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("sky", "dusk", "foliage"), ("grass", "sand", "gravel", "asphalt", "water")),
    (("plaster", "bricks", "wallpaper", "tiles"), ("planks", "carpet", "tiles", "asphalt")),
)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a planned scene; the result is an RGB image of `scene.width` x `scene.height`."""
    background = _background(scene.height, scene.width, rng)
    canvas = np.stack([np.asarray(plane) for plane in background.split()])
    for thing in (*(scene.crowd.members if scene.crowd else ()), *scene.things):
        draw(canvas, thing.outline, _thing_look(thing, rng), rng)
    for pole in scene.poles:
        draw(canvas, pole, _pole_look(rng), rng)
    return expose(canvas, rng)


def expose(canvas: Planes, rng: np.random.Generator) -> Image.Image:
    """The photograph of a canvas: uneven, tinted light and sensor noise."""
    light = _upsampled(rng.integers(170, 251, (3, 4), np.uint8), *canvas.shape[1:])
    tint = rng.integers(225, 256, 3, np.uint16)
    planes = [_exposed(plane, light * gain >> 8, rng) for plane, gain in zip(canvas, tint, strict=True)]
    return Image.merge("RGB", planes)


def _exposed(plane: NDArray[np.uint8], light: NDArray[np.uint16], rng: np.random.Generator) -> Image.Image:
    """One colour plane (height, width) under `light`, at most 250 of 256, with sensor noise of -3..3 levels."""
    grain = rng.integers(0, 256, plane.shape, np.uint8)
    lit = plane * light
    lit >>= 8
    lit += grain & 3
    grain >>= 6
    lit += grain
    np.maximum(lit, 3, out=lit)
    lit -= 3
    return Image.fromarray(lit.astype(np.uint8))


# --- backgrounds ------------------------------------------------------------------------------------------------------


def noise(height: int, width: int, cells: Sequence[tuple[int, int]], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Multi-octave value noise (height, width): upsampled random arrays, averaged with halving weights.

    Leading octaves of cells of at least 8 pixels are summed at a quarter of the resolution, which costs little.
    """
    weights = [2**k for k in reversed(range(len(cells)))]
    coarse = sum(min(cell) >= 8 for cell in cells) if min(height, width) >= 32 else 0
    total = _octaves(height, width, cells[coarse:], weights[coarse:], rng)
    if coarse:
        quarter_cells = [(rows // 4, columns // 4) for rows, columns in cells[:coarse]]
        quarter = _octaves(height // 4, width // 4, quarter_cells, weights[:coarse], rng)
        quarter //= np.uint16(sum(weights[:coarse]))
        total += _upsampled(quarter.astype(np.uint8), height, width) * np.uint16(sum(weights[:coarse]))
    total //= np.uint16(sum(weights))
    return total.astype(np.uint8)


def _octaves(
    height: int, width: int, cells: Sequence[tuple[int, int]], weights: Sequence[int], rng: np.random.Generator
) -> NDArray[np.uint16]:
    """The weighted sum of one random field for each cell size, (height, width)."""
    total = np.zeros((height, width), np.uint16)
    for (rows, columns), weight in zip(cells, weights, strict=True):
        if rows == columns == 1:
            field = rng.integers(0, 256, (height, width), np.uint8)
        else:
            small = rng.integers(0, 256, (height // rows + 2, width // columns + 2), np.uint8)
            field = _upsampled(small, height, width)
        total += field * np.uint16(weight)
    return total


def _upsampled(small: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """`small` at (height, width): bicubic where the result is small itself, bilinear where only speed counts."""
    smooth = Image.Resampling.BICUBIC if height * width < 40_000 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(small).resize((width, height), smooth))


def _pattern(pattern: Pattern, height: int, width: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a man-made pattern adds to the noise, (height, width) or broadcastable to it."""
    period = int(rng.integers(14, 48))
    ys, xs = np.arange(height)[:, None], np.arange(width)[None, :] + int(rng.integers(0, period))
    if pattern == "stripes":
        return np.where(xs % period < period // 2, 45, -45).astype(np.int16)
    row = ys // period
    shade = rng.integers(-30, 31, height // period + 1).astype(np.int16)[row]
    if pattern == "planks":
        return np.where(ys % period < 2, np.int16(-110), shade).astype(np.int16)
    across = xs + row % 2 * period if pattern == "bricks" else xs
    length = period * 2 if pattern == "bricks" else period
    joint = (ys % period < 2) | (across % length < 2)
    block = rng.integers(-28, 29, (height // period + 1, width // period + 4)).astype(np.int16)
    mortar = np.int16(60 if pattern == "bricks" else -90)
    return np.where(joint, mortar, block[row, across // length]).astype(np.int16)


def surface(material: Material, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """An RGB image of one material, with its colours shifted a little."""
    tone = noise(height, width, material.cells, rng)
    if material.pattern is not None:
        tone = np.clip(tone + _pattern(material.pattern, height, width, rng), 0, 255).astype(np.uint8)
    levels = np.clip((np.arange(256) - 128) * material.gain + 128, 0, 255)
    shift = rng.integers(-22, 23, 3)
    ramp = np.stack([np.interp(levels, (0, 128, 255), anchors) for anchors in zip(*material.ramp, strict=True)], axis=1)
    image = Image.fromarray(tone)
    image.putpalette(np.clip(ramp + shift, 0, 255).astype(np.uint8).tobytes())
    return image.convert("RGB")


def _background(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """One or two materials meeting at a horizon, and up to three patches of another material such as bushes."""
    above, below = _SETTINGS[int(rng.integers(len(_SETTINGS)))]
    backdrop, ground = MATERIALS[str(rng.choice(above))], MATERIALS[str(rng.choice(below))]
    if rng.random() < 0.2:
        image = surface(ground, height, width, rng)
    else:
        horizon = height * rng.uniform(0.2, 0.8) + np.linspace(-1, 1, width) * rng.uniform(-0.06, 0.06) * height
        waves = noise(1, width, ((1, 60), (1, 12)), rng)[0].astype(np.float64) - 128
        edge = horizon + waves * rng.choice((0.0, 0.0, 0.08, 0.25))
        top, bottom = max(0, math.floor(edge.min())), min(height, math.ceil(edge.max()) + 1)
        image = Image.new("RGB", (width, height))
        image.paste(surface(backdrop, bottom, width, rng))
        mask = np.clip((np.arange(top, height)[:, None] - edge[None, :]) * 255, 0, 255).astype(np.uint8)
        image.paste(surface(ground, height - top, width, rng), (0, top), Image.fromarray(mask))
    for _ in range(int(rng.integers(0, 4))):
        _paste_patch(image, rng)
    return image


def _paste_patch(image: Image.Image, rng: np.random.Generator) -> None:
    """Cover an irregular part of `image` with some other material: a bush, a puddle, a stain; never a thing."""
    width, height = int(image.width * rng.uniform(0.12, 0.5)), int(image.height * rng.uniform(0.12, 0.5))
    left, top = int(rng.integers(-width // 2, image.width)), int(rng.integers(-height // 2, image.height))
    patch = surface(MATERIALS[str(rng.choice(list(MATERIALS)))], height, width, rng)
    ys, xs = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    rough = noise(height, width, ((height // 3 + 1, width // 3 + 1), (9, 9), (3, 3)), rng).astype(np.float64) / 255
    inside = 0.35 + 0.65 * rough - (xs * xs + ys * ys)
    mask = np.clip(inside * rng.choice((300.0, 3000.0)), 0, 255).astype(np.uint8)
    image.paste(patch, (left, top), Image.fromarray(mask))


# --- shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How one shape is painted. `period` is the length of one texture repeat in pixels, `angle` its direction."""

    first: Colour
    second: Colour
    texture: Texture
    period: float
    angle: float
    dome: float
    slope: float


def hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return 255 * red, 255 * green, 255 * blue


def _thing_look(thing: Thing, rng: np.random.Generator) -> Look:
    """Category tendencies with variation: one hue in eight and one texture in three is drawn freely."""
    size = math.sqrt(float(np.ptp(thing.outline[:, 0]) * np.ptp(thing.outline[:, 1])))
    hue = rng.random() if rng.random() < 0.125 else thing.category.hue + rng.normal(0, 0.05)
    texture = thing.category.texture if rng.random() < 0.66 else _TEXTURES[int(rng.integers(len(_TEXTURES)))]
    value = rng.uniform(0.35, 1.0)
    contrast = rng.choice((-1, 1)) * rng.uniform(0.25, 0.5)
    second = hsv(hue + rng.normal(0, 0.12), rng.uniform(0.1, 0.9), value + (contrast if value > 0.6 else abs(contrast)))
    return Look(
        first=hsv(hue, rng.uniform(0.2, 0.95), value),
        second=second,
        texture=texture,
        period=max(5.0, size * rng.uniform(0.12, 0.35)),
        angle=rng.uniform(0, math.pi),
        dome=rng.uniform(0, 0.5) if thing.category.supercategory == "round" else rng.uniform(0, 0.2),
        slope=rng.uniform(0.1, 0.45),
    )


def _pole_look(rng: np.random.Generator) -> Look:
    """Metal or wood: grey to brown, sometimes with bands."""
    hue, value = rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.9)
    first = hsv(hue, rng.uniform(0, 0.4), value)
    second = hsv(hue, rng.uniform(0, 0.5), value * rng.uniform(0.6, 1.0))
    texture: Texture = "stripes" if rng.random() < 0.3 else "blotches"
    return Look(first, second, texture, rng.uniform(8, 40), rng.uniform(0, math.pi), 0.1, 0.1)


def _texture(
    look: Look, u: NDArray[np.float32], v: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Share of the second colour in 0..1 at texture coordinates `u`, `v` (height, width), one unit a repeat."""
    if look.texture == "plain":
        return np.zeros_like(u)
    if look.texture == "stripes":
        return _soft_step(np.abs(u % 1 - 0.5) - 0.25, look.period)
    if look.texture == "blotches":
        cell, fine = max(2, int(look.period / 2)), max(1, int(look.period / 6))
        rough = noise(u.shape[0], u.shape[1], ((cell, cell), (fine, fine)), rng)
        return _soft_step(rough - np.float32(128), 0.025)
    if look.texture == "rings":
        around: NDArray[np.float32] = np.sqrt(u * u + v * v)
        return _soft_step(np.abs(around % 1 - 0.5) - 0.25, look.period)
    across, down = u % 1 - 0.5, v % 1 - 0.5
    if look.texture == "dots":
        around = np.sqrt(across * across + down * down)
        return _soft_step(0.3 - around, look.period)
    return ((across < 0) ^ (down < 0)).astype(np.float32)


def _soft_step(distance: NDArray[np.float32], slope: float) -> NDArray[np.float32]:
    """0 to 1 around `distance` 0, so that texture edges are about a pixel wide."""
    share: NDArray[np.float32] = np.clip(distance * np.float32(slope) + np.float32(0.5), 0, 1)
    return share


def draw(canvas: Planes, outline: Outline, look: Look, rng: np.random.Generator) -> None:
    """Paint one anti-aliased, shaded shape and its soft shadow onto `canvas`, in place."""
    height, width = canvas.shape[1:]
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)).astype(int), (width, height)).tolist()
    if left >= right or top >= bottom:
        return
    extent = float(np.ptp(outline, axis=0).max())
    if extent > _TINY:
        _shade_ground(canvas, outline, rng)
    alpha = coverage(outline - (left, top), bottom - top, right - left)
    centre = outline.mean(axis=0)
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[0]))[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[1]))[:, None]
    cos, sin = np.float32(math.cos(look.angle) / look.period), np.float32(math.sin(look.angle) / look.period)
    share = _texture(look, x * cos + y * sin, y * cos - x * sin, rng)
    light = _shading(look, x, y, 0.5 * extent)
    if extent > _TINY:
        mottle = noise(bottom - top, right - left, ((24, 24), (3, 3)), rng)
        light *= mottle * np.float32(0.3 / 128) + np.float32(0.7)
    for plane, first, second in zip(canvas[:, top:bottom, left:right], look.first, look.second, strict=True):
        colour = share * np.float32(second - first)
        colour += np.float32(first)
        colour *= light
        np.minimum(colour, 255, out=colour)
        colour -= plane
        colour *= alpha
        colour += plane
        plane[:] = colour


def _shading(look: Look, x: NDArray[np.float32], y: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Brightness (height, width) around 1 at offsets from the centre: more to the upper left, less at a dome's rim."""
    slope = (x + y) * np.float32(look.slope / (1.5 * radius))
    dome = (x * x + y * y) * np.float32(look.dome / radius**2)
    light: NDArray[np.float32] = np.maximum(np.float32(1 + 0.5 * look.dome) - slope - dome, 0)
    return light


def coverage(outline: Outline, height: int, width: int) -> NDArray[np.float32]:
    """Share of every pixel that `outline` covers, (height, width) in 0..1, from 2 x 2 samples a pixel."""
    sheet = Image.new("L", (2 * width, 2 * height))
    ImageDraw.Draw(sheet).polygon((2 * outline).ravel().tolist(), fill=255)
    return np.asarray(sheet.reduce(2)).astype(np.float32) * np.float32(1 / 255)


def _shade_ground(canvas: Planes, outline: Outline, rng: np.random.Generator) -> None:
    """Darken `canvas` beneath a shape, offset down and to the right, drawn at a quarter of the resolution."""
    height, width = canvas.shape[1:]
    offset = np.array((0.6, 1.0)) * min(0.1 * float(np.ptp(outline, axis=0).max()), 12.0)
    margin = 12.0
    low = np.maximum(np.floor(outline.min(axis=0) + offset - margin).astype(int), 0)
    high = np.minimum(np.ceil(outline.max(axis=0) + offset + margin).astype(int), (width, height))
    span_x, span_y = (high - low).tolist()
    if span_x < 4 or span_y < 4:
        return
    sheet = Image.new("L", (span_x // 4, span_y // 4))
    fill = int(rng.integers(60, 140))
    ImageDraw.Draw(sheet).polygon(((outline + offset - low) / 4).ravel().tolist(), fill=fill)
    soft = sheet.filter(ImageFilter.BoxBlur(2)).resize((span_x, span_y), Image.Resampling.BILINEAR)
    dimmed = np.uint16(255) - np.asarray(soft)
    for plane in canvas[:, low[1] : high[1], low[0] : high[0]]:
        plane[:] = plane * dimmed >> 8
