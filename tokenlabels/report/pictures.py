"""The pictures of a report: found, opened with care, made small. A picture that cannot be used gives a reason."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tokenlabels.errors import NotABuildError
from tokenlabels.report.samples import Place
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, is_file

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_LONG_SIDE = 400
_MIN_SIDE = 64
_FULL_SIZE_PICTURES = 48
"""So many pictures are kept at the full long side before it shrinks, which bounds memory whatever is asked for."""

_QUALITIES = (70, 60, 50, 40)
_MAX_PIXELS = 100_000_000

_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on files that are damaged on purpose."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture made small, RGB, or the reason why there is none."""

    image: Image.Image | None = None
    reason: str | None = None


def long_side(count: int) -> int:
    """Longest side in pixels for so many pictures."""
    return max(_MIN_SIDE, int(_LONG_SIDE * min(1.0, (_FULL_SIZE_PICTURES / max(count, 1)) ** 0.5)))


def open_picture(place: Place, images: Location | None, side: int, *, any_size: bool) -> Picture:
    """The picture of one sample, from its shard or from a folder.

    Args:
        place: which image.
        images: folder of the images: `images/file_name` or `images/split/file_name`.
        side: longest side of the result, pixels.
        any_size: embedded pictures need not have the annotated size.
    """
    try:
        embedded = place.embedded()
    except (NotABuildError, OSError):
        return Picture(reason="The embedded picture cannot be read.")
    if embedded:
        return _decoded(io.BytesIO(embedded), None if any_size else place.size, side)
    if images is None:
        return Picture()
    if not place.file_name or not is_inside(place.file_name):
        return Picture(reason="Its file name leads out of the image folder and is not opened.")
    for path in (images / place.file_name, images / place.group.split / place.file_name):
        try:
            if is_file(path):
                source = path if isinstance(path, Path) else io.BytesIO(content(path))
                return _decoded(source, place.size, side)
        except (OSError, ValueError):
            return Picture(reason="Its file name cannot be opened.")
    return Picture(reason="No such file in the image folder.")


def _decoded(source: Path | io.BytesIO, size: tuple[int, int] | None, side: int) -> Picture:
    """Decode a picture that must have `size`, unless that is None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: both are dealt with here
            with Image.open(source) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return Picture(reason=f"The picture has more than {_MAX_PIXELS:,} pixels.")
                if size is not None and image.size != size:
                    return Picture(reason=f"The picture is {image.width} x {image.height}, not as annotated.")
                image.draft("RGB", (2 * side, 2 * side))  # JPEG decodes to an eighth, say, much faster
                small = image.convert("RGB")
    except Image.DecompressionBombError:
        return Picture(reason="The picture claims an absurd number of pixels.")
    except _UNREADABLE:
        return Picture(reason="The picture cannot be read.")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Picture(small)


def encode_within(pictures: Sequence[Picture], budget: int) -> list[str | None]:
    """JPEGs as `data:` addresses, of the best quality at which all together take no more than `budget` characters.

    The smallest size and quality are used where even they take more.
    """
    side = max([1, *(max(picture.image.size) for picture in pictures if picture.image)])
    while True:
        for quality in _QUALITIES:
            encoded = [_encode(picture, side, quality) for picture in pictures]
            if sum(len(text) for text in encoded if text) <= budget:
                return encoded
        if side <= _MIN_SIDE:
            return encoded
        side = max(_MIN_SIDE, side * 3 // 4)


def _encode(picture: Picture, side: int, quality: int) -> str | None:
    if picture.image is None:
        return None
    image = picture.image
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
