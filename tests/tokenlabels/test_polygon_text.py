"""The polygon parser reads what a JSON library reads, or leaves it to one."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenlabels.annotations import MAX_COORDINATE
from tokenlabels.polygon_text import NOT_PLAIN, parse_polygons

Polygon: TypeAlias = list[list[float]]

SURROUNDINGS = (b"", b"0", b"9", b" ", b"]", b"]]", b",", b".5", b"1,1]]", b"[[1,1,1,1,1,1]]", b"\0", b"\xff")
GUARD = -123.0


def parse_inside(before: bytes, text: bytes, after: bytes) -> Polygon | None:
    """Parse `text` within a larger buffer, in arrays of just the room the docstring asks for; None is `NOT_PLAIN`."""
    buffer = np.frombuffer(before + text + after, np.uint8)
    room = len(text) // 2 + 1
    xy, ring_stops = np.full(room + 8, GUARD), np.full(room // 6 + 1 + 8, -7, np.int64)
    rings = parse_polygons(buffer, len(before), len(before) + len(text), xy, ring_stops)
    assert (xy[room:] == GUARD).all(), "written beyond the room for numbers"
    assert (ring_stops[room // 6 + 1 :] == -7).all(), "written beyond the room for rings"
    if rings == NOT_PLAIN:
        return None
    assert rings >= 1
    stops = [0, *ring_stops[:rings].tolist()]
    return [xy[start:stop].tolist() for start, stop in pairwise(stops)]


def parse(text: str | bytes) -> Polygon | None:
    """Parse text; it must come out the same whatever bytes lie around it."""
    raw = text.encode() if isinstance(text, str) else text
    results = {repr(parse_inside(around, raw, around)) for around in SURROUNDINGS}
    assert len(results) == 1, f"depends on the bytes around: {results}"
    return parse_inside(b"", raw, b"")


def library(text: str | bytes) -> Any:
    """The reading of the standard library, whole numbers as floats as well."""
    return json.loads(text, parse_int=float)


def bits(polygon: Polygon) -> list[list[str]]:
    """Floats told apart to the last bit and by the sign of zero."""
    return [[float(value).hex() for value in ring] for ring in polygon]


def on_lattice(polygon: Polygon) -> list[list[int]]:
    """Coordinates on pycocotools' lattice of a fifth of a pixel."""
    return [[int(5 * value + 0.5) for value in ring] for ring in polygon]


@st.composite
def decimals(draw: st.DrawFn) -> str:
    """A plain JSON number of any length, up to 23 digits."""
    whole = draw(st.integers(0, 2000) | st.integers(0, 10**8) | st.integers(0, 10**12))
    places = draw(st.integers(0, 10))
    fraction = f".{draw(st.integers(0, 10**places - 1)):0{places}d}" if places else ""
    return f"{draw(st.sampled_from(['', '-']))}{whole}{fraction}"


@st.composite
def near_ties(draw: st.DrawFn) -> str:
    """A number of many digits at or beside a tenth of a pixel, where the lattice has its steps."""
    tenths = Decimal(draw(st.integers(-20_000, 20_000) | st.integers(-(10**8), 10**8))) / 10
    offset = Decimal(draw(st.integers(-5, 5))).scaleb(-draw(st.integers(1, 16)))
    return f"{tenths + offset:f}"


annotated = st.floats(-2000, 2000).map(lambda x: f"{x:.2f}")
ordinary = annotated | st.floats(0.001, 700).map(repr)
numbers = st.one_of(decimals(), near_ties(), ordinary)
blanks = st.text(" \t\n\r", max_size=3)


@st.composite
def polygon_texts(draw: st.DrawFn, number: st.SearchStrategy[str] = numbers) -> str:
    """JSON text of one to four rings with white space anywhere."""
    pad = blanks if draw(st.booleans()) else st.just("")
    rings = []
    for _ in range(draw(st.integers(1, 4))):
        points = draw(st.lists(st.tuples(number, number), min_size=3, max_size=8))
        values = [f"{draw(pad)}{value}{draw(pad)}" for point in points for value in point]
        rings.append(f"{draw(pad)}[{','.join(values)}]{draw(pad)}")
    return f"{draw(pad)}[{','.join(rings)}]{draw(pad)}"


def digits_of(text: str) -> list[str]:
    """The digits of every number in a JSON text, exponents aside."""
    found: list[str] = []
    json.loads(text, parse_int=found.append, parse_float=found.append)
    return [number.lstrip("-").replace(".", "") for number in found]


# --- what is accepted -------------------------------------------------------------------------------------------------


@given(text=polygon_texts())
@settings(deadline=None, max_examples=400)
def test_what_is_accepted_is_the_reading_of_the_library(text: str) -> None:
    parsed, expected = parse(text), library(text)
    mantissas = digits_of(text)
    short = all(len(digits) <= 18 and int(digits) < 2**53 for digits in mantissas)
    tame = max(abs(value) for ring in expected for value in ring) <= MAX_COORDINATE
    if not tame or any(len(digits) > 18 for digits in mantissas):
        assert parsed is None
    elif short:
        assert parsed is not None
        assert bits(parsed) == bits(expected)
    elif parsed is not None:
        assert on_lattice(parsed) == on_lattice(expected)
        np.testing.assert_allclose(np.concatenate(parsed), np.concatenate(expected), rtol=1e-15, atol=0)


@pytest.mark.slow
@given(text=polygon_texts(near_ties()))
@settings(deadline=None, max_examples=400)
def test_numbers_beside_a_tie_land_on_the_lattice_point_of_the_library(text: str) -> None:
    parsed = parse(text)
    if parsed is not None:
        assert on_lattice(parsed) == on_lattice(library(text))


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "-0",
        "-0.0",
        "0.0",
        "0.5",
        "473.07",
        "10000000",
        "10000000.0",
        "-10000000",
        "0.9007199254740991",
        "9.007199254740991",
        "90071.99254740991",
        "0.00000000000000001",
        "1.00000000000000",
        "0.1",
        "0.3",
        "123.45678901234",
    ],
)
def test_plain_numbers_are_accepted_to_the_bit(number: str) -> None:
    text = f"[[{number},{number},1,2,3,{number}]]"
    parsed = parse(text)
    assert parsed is not None
    assert bits(parsed) == bits(library(text))


@pytest.mark.parametrize(
    ("number", "accepted"),
    [
        ("90.071992547409930", True),
        ("123.456789012345678", True),
        ("123.4567890123456789", False),  # 19 digits
        ("100.000000000000000", True),  # a lattice point, not a tie between two
        ("100.100000000000000", False),  # a tie
        ("-100.30000000000000", False),
        ("100.100000100000000", False),  # 5e-7 of the lattice beside a tie
        ("100.100001000000000", True),
    ],
)
def test_long_numbers_are_accepted_where_their_last_bit_cannot_matter(number: str, accepted: bool) -> None:
    text = f"[[{number},1,1,2,3,4]]"
    parsed = parse(text)
    assert (parsed is not None) == accepted
    if parsed is not None:
        assert on_lattice(parsed) == on_lattice(library(text))


@pytest.mark.parametrize(
    "text",
    [
        "[[1,2,3,4,5,6]]",
        "[[1, 2, 3, 4, 5, 6]]",
        " \t\r\n[ [ 1 , 2 , 3 , 4 , 5 , 6 ] ] \n",
        "[\n  [\n    1,\n    2,\n    3,\n    4,\n    5,\n    6\n  ]\n]",
        "[[1,2,3,4,5,6],[6,5,4,3,2,1]]",
        "[[1,2,3,4,5,6,7,8] , [1,2,3,4,5,6] ,[9,9,9,9,9,9]]",
    ],
)
def test_white_space_is_allowed_wherever_json_allows_it(text: str) -> None:
    assert parse(text) == library(text)


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing"),
        ("  ", "white space"),
        ("[]", "no ring"),
        ("[[]]", "an empty ring"),
        ("[[1,2,3,4,5,6],[]]", "an empty ring after a good one"),
        ("[[1,2]]", "one point"),
        ("[[1,2,3,4]]", "two points: some tools read a box"),
        ("[[1,2,3,4,5]]", "an odd count, short"),
        ("[[1,2,3,4,5,6,7]]", "an odd count"),
        ("[[1,2,3,4,5,6],[1,2,3,4,5,6,7]]", "an odd count in the second ring"),
        ("[[1,2,3,4,5,6],[1,2,3,4]]", "a short second ring"),
        ("[1,2,3,4,5,6]", "a ring that is not in a list"),
        ("[[[1,2],[3,4],[5,6]]]", "points as lists"),
        ("[[[1,2,3,4,5,6]]]", "nested too deeply"),
        ("[[1,2,3,4,5,6]]]", "a bracket too many"),
        ("[[1,2,3,4,5,6]] x", "something after it"),
        ("[[1,2,3,4,5,6]],", "a comma after it"),
        ("[[1,2,3,4,5,6],]", "a comma before the end"),
        ("[[1,2,3,4,5,6,]]", "a comma before the end of a ring"),
        ("[[,1,2,3,4,5,6]]", "a comma at the start of a ring"),
        ("[,[1,2,3,4,5,6]]", "a comma at the start"),
        ("[[1,2,3,,4,5,6]]", "two commas"),
        ("[[1,2,3,4,5,6][1,2,3,4,5,6]]", "no comma between rings"),
        ("[[1 2,3,4,5,6,7]]", "no comma between numbers"),
        ("[[1,2,3,4,5,6}]", "the wrong bracket"),
        ("{}", "an object"),
        ('{"size":[2,2],"counts":"04"}', "run lengths"),
        ("null", "null"),
        ("[null]", "null for a ring"),
        ("[[1,2,3,4,5,null]]", "null for a number"),
        ("[[1,2,3,4,5,NaN]]", "NaN"),
        ("[[1,2,3,4,5,Infinity]]", "infinity"),
        ("[[1,2,3,4,5,-Infinity]]", "minus infinity"),
        ("[[1,2,3,4,5,true]]", "true"),
        ('[[1,2,3,4,5,"6"]]', "text"),
        ("[[1,2,3,4,5,6e0]]", "an exponent"),
        ("[[1,2,3,4,5,6E1]]", "a large exponent letter"),
        ("[[1,2,3,4,5,6.5e-1]]", "a negative exponent"),
        ("[[1,2,3,4,5,+6]]", "a plus"),
        ("[[1,2,3,4,5,-]]", "a lone minus"),
        ("[[1,2,3,4,5,--6]]", "two minuses"),
        ("[[1,2,3,4,5,- 6]]", "a blank after the minus"),
        ("[[1,2,3,4,5,.5]]", "no digit before the point"),
        ("[[1,2,3,4,5,-.5]]", "no digit before the point, negative"),
        ("[[1,2,3,4,5,5.]]", "no digit after the point"),
        ("[[1,2,3,4,5,.]]", "a lone point"),
        ("[[1,2,3,4,5,5.5.5]]", "two points"),
        ("[[1,2,3,4,5,1_0]]", "an underscore"),
        ("[[1,2,3,4,5,0x1]]", "hexadecimal"),
        ("[[1,2,3,4,5,01]]", "a leading zero, which is no JSON"),
        ("[[1,2,3,4,5,-00.5]]", "two leading zeros, which is no JSON"),
        ("[[1,2,3,4,5,10000000.1]]", "beyond the largest coordinate"),
        ("[[1,2,3,4,5,-10000001]]", "beyond the largest coordinate, negative"),
        ("[[1,2,3,4,5,9223372036854775808]]", "beyond 64 bits"),
        ("[[1,2,3,4,5,18446744073709551617]]", "1 modulo 2**64"),
        ("[[1,2,3,4,5,0.0000000000000000001]]", "20 digits"),
        ("[[1,2,3,4,5,6\f]]", "a form feed"),
        ("[[1,2,3,4,5,6\v]]", "a vertical tab"),
        ("[[1,2,3,4,5,\N{ARABIC-INDIC DIGIT SIX}]]", "another script's digit"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}[[1,2,3,4,5,6]]", "a byte order mark"),
        ("[[1,2,3,4,5,6]]\0", "a zero byte"),
    ],
)
def test_what_is_not_plain_is_left_to_the_library(text: str, why: str) -> None:
    assert parse(text) is None, why


@given(text=polygon_texts(annotated))
@settings(deadline=None, max_examples=25)
def test_text_cut_short_anywhere_is_not_plain_though_the_rest_follows(text: str) -> None:
    raw = text.rstrip().encode()
    for cut in range(len(raw)):
        assert parse_inside(b"", raw[:cut], b"") is None
        assert parse_inside(b"", raw[:cut], raw[cut:]) is None, "read beyond the end"
    assert parse_inside(b"", raw, b"") is not None


@given(text=polygon_texts(annotated))
@settings(deadline=None, max_examples=25)
def test_text_that_begins_late_is_not_plain_though_the_rest_goes_before(text: str) -> None:
    raw = text.lstrip().encode()
    for cut in range(1, len(raw)):
        assert parse_inside(raw[:cut], raw[cut:], b"") is None


@st.composite
def spoilt_texts(draw: st.DrawFn) -> bytes:
    """Polygon text with one to three bytes replaced, removed or added."""
    raw = bytearray(draw(polygon_texts(st.integers(-30, 30).map(str) | ordinary)).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(raw) - 1))
        new = draw(st.sampled_from([b"", *(bytes([byte]) for byte in b'[]0123456789.,-+eE \t\n\rN{}:"x\0\xff')]))
        raw[place : place + draw(st.integers(0, 1))] = new
    return bytes(raw)


@pytest.mark.slow
@given(raw=spoilt_texts())
@settings(deadline=None, max_examples=500)
def test_spoilt_text_is_accepted_only_where_it_is_still_a_polygon(raw: bytes) -> None:
    assume(not re.search(rb"(?<![0-9.])0[0-9]", raw))  # leading zeros: see the table above
    parsed = parse(raw)
    try:
        expected = library(raw)
    except ValueError:
        expected = None
    shaped = isinstance(expected, list) and all(
        isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(type(v) is float for v in ring)
        for ring in expected
    )
    if parsed is not None:
        assert shaped, "accepted, but no polygon"
        assert on_lattice(parsed) == on_lattice(expected)
        assert [len(ring) for ring in parsed] == [len(ring) for ring in expected]
