"""Mask files: every way a PNG stores values is read right, and everything else is refused in a sentence.

The PNGs are written here, by the specification, so that Pillow is not its own judge.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tokenlabels import check
from tokenlabels.annotations import MapEncoding
from tokenlabels.map_files import MapFileError, map_size, read_map, value_picture

pytestmark = pytest.mark.filterwarnings("error")

Pixels: TypeAlias = NDArray[np.uint8]

GREY, PALETTE = 0, 3
SIZE = (37, 23)
"""(width, height); neither is a multiple of the pixels in a byte."""

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""(first row, first column, row step, column step) of each pass of an interlaced PNG."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed_rows(values: Pixels, bits: int) -> bytes:
    """Rows of pixels, most significant bits first, each after filter byte 0."""
    rows = []
    for row in values:
        planes = np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]
        rows.append(b"\0" + np.packbits(planes.ravel()).tobytes())
    return b"".join(rows)


def png(values: Pixels, bits: int = 8, colour: int = PALETTE, *, interlaced: bool = False, entries: int = 256) -> bytes:
    """A PNG that stores these values in `bits` bits each."""
    height, width = values.shape
    parts = [values[top::down, left::across] for top, left, down, across in _ADAM7] if interlaced else [values]
    body = b"".join(packed_rows(part, bits) for part in parts if part.size)
    palette = np.random.default_rng(0).integers(0, 256, (min(entries, 1 << bits), 3)).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette) if colour == PALETTE else b"",
            chunk(b"IDAT", zlib.compress(body)),
            chunk(b"IEND", b""),
        ]
    )


def values_of(bits: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 1 << bits, SIZE[::-1]).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def fault_of(data: bytes, encoding: MapEncoding = "class", size: tuple[int, int] = SIZE) -> MapFileError:
    """What is wrong with a mask, by its header or by its pixels."""

    def read() -> None:
        map_size(data, encoding)
        read_map(data, encoding, size)

    with pytest.raises(MapFileError) as caught:
        read()
    assert caught.value.problem
    assert "\n" not in caught.value.problem
    return caught.value


@pytest.mark.parametrize("encoding", ["class", "object"])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour", [GREY, PALETTE])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_read_as_they_are_stored(bits: int, colour: int, interlaced: bool, encoding: MapEncoding) -> None:
    """Palette indexes and grey values of every depth, interlaced or not."""
    values = values_of(bits)
    data = png(values, bits, colour, interlaced=interlaced)
    assert map_size(data, encoding) == SIZE
    found = read_map(data, encoding, SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(np.asarray(value_picture(data)), values)


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_other_lossless_formats_hold_values_too(kind: str) -> None:
    picture = Image.fromarray(values_of(8))
    picture.putpalette(bytes(range(256)) * 3)
    data = encoded(picture, kind)
    assert map_size(data, "class") == SIZE
    np.testing.assert_array_equal(read_map(data, "class", SIZE), values_of(8))


def test_colours_are_read_where_they_are_ids() -> None:
    colours = np.random.default_rng(1).integers(0, 256, (*SIZE[::-1], 3)).astype(np.uint8)
    np.testing.assert_array_equal(read_map(encoded(Image.fromarray(colours)), "rgb", SIZE), colours)


@pytest.mark.parametrize("extra", [b"\0" * 40, b"\0" * 5000, b"\n", b"trailing garbage" * 100])
def test_what_follows_a_whole_png_does_no_harm(extra: bytes) -> None:
    data = png(values_of(8)) + extra
    assert map_size(data, "class") == SIZE
    np.testing.assert_array_equal(read_map(data, "class", SIZE), values_of(8))


def wide(mode: str) -> bytes:
    return encoded(Image.new(mode, SIZE))


def huge(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, PALETTE, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"PLTE", bytes(768)), chunk(b"IDAT", b""), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FAULTS = [
    pytest.param(wide("RGB"), "class", check.MAP_MODE, "holds colours (mode RGB)", id="colours"),
    pytest.param(wide("RGBA"), "class", check.MAP_MODE, "holds colours (mode RGBA)", id="colours and transparency"),
    pytest.param(wide("LA"), "object", check.MAP_MODE, "mode LA", id="grey and transparency"),
    pytest.param(wide("I;16"), "class", check.MAP_MODE, "16 bits", id="16 bits"),
    pytest.param(encoded(Image.new("L", SIZE), "JPEG"), "class", check.MAP_MODE, "JPEG", id="grey JPEG"),
    pytest.param(encoded(Image.new("RGB", SIZE), "JPEG"), "class", check.MAP_MODE, "mode RGB", id="JPEG"),
    pytest.param(encoded(Image.new("F", SIZE), "TIFF"), "class", check.MAP_MODE, "mode F", id="floats"),
    pytest.param(png(values_of(8)), "rgb", check.MAP_MODE, "mode P", id="values where ids are wanted"),
    pytest.param(b"", "class", check.MAP_UNREADABLE, "empty", id="empty"),
    pytest.param(b"person", "class", check.MAP_UNREADABLE, "no image", id="text"),
    pytest.param(b"\x89PNG\r\n\x1a\n", "class", check.MAP_UNREADABLE, "cut short", id="signature alone"),
    pytest.param(huge(50_000, 50_000), "class", check.MAP_UNREADABLE, "not opened", id="2.5 billion pixels"),
    pytest.param(huge(12_000, 14_500), "class", check.MAP_SIZE, "12000 x 14500", id="174 million pixels"),
    pytest.param(huge(2**31 - 1, 2**31 - 1), "class", check.MAP_UNREADABLE, "", id="the largest sides there are"),
    pytest.param(huge(0, 5), "class", check.MAP_UNREADABLE, "", id="no pixels"),
    pytest.param(huge(*SIZE), "class", check.MAP_UNREADABLE, "cut short or damaged", id="no pixels in it"),
    pytest.param(png(values_of(8).T.copy()), "class", check.MAP_SIZE, "23 x 37 pixels, the image 37 x 23", id="turned"),
]


@pytest.mark.parametrize(("data", "encoding", "kind", "says"), FAULTS)
def test_faults_have_a_kind_and_a_sentence(data: bytes, encoding: MapEncoding, kind: check.Kind, says: str) -> None:
    fault = fault_of(data, encoding)
    assert fault.kind is kind
    assert says in fault.problem


@pytest.mark.parametrize(("bits", "colour"), [(8, PALETTE), (2, GREY)])
def test_a_png_cut_anywhere_is_found_by_its_header_alone(bits: int, colour: int) -> None:
    """Nothing is decoded where headers are read, and a build begins to write after that."""
    data = png(values_of(bits), bits, colour)
    for length in range(len(data)):
        with pytest.raises(MapFileError) as caught:
            map_size(data[:length], "class")
        assert caught.value.kind is check.MAP_UNREADABLE
        with pytest.raises(MapFileError):
            map_size(data[:length] + bytes(len(data) - length), "class")  # as some file systems mend it


def test_damage_is_never_read_as_other_values() -> None:
    """One changed byte anywhere: the values, or a sentence."""
    values = values_of(8)
    data, chooser = png(values), random.Random(0)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= chooser.randrange(1, 256)
        try:
            map_size(bytes(damaged), "class")
            found = read_map(bytes(damaged), "class", SIZE)
        except MapFileError:
            continue
        np.testing.assert_array_equal(found, values)


def test_a_picture_to_resize_has_room_for_every_value() -> None:
    """A palette of few colours, so that padding of value 255 is saved as 255."""
    picture = value_picture(png(values_of(2), 2, PALETTE))
    picture.paste(255, (0, 0, 5, 5))
    found = read_map(encoded(picture), "class", SIZE)
    assert (found[:5, :5] == 255).all()
    np.testing.assert_array_equal(found[5:], values_of(2)[5:])
