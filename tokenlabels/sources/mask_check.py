"""One chunk of raw COCO segmentations, checked: what a worker does before anything is built.

Plain polygons and plain compressed run lengths stay JSON text, which the compiled kernels read themselves. The rest is
decoded here. Format: https://cocodataset.org/#format-data and the comments of pycocotools' `maskApi.h`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import MASK_RINGS, MASK_RLE, MASK_TEXT, MAX_COORDINATE
from tokenlabels.check import Kind
from tokenlabels.kernel import kernel
from tokenlabels.polygon_text import parse_polygons
from tokenlabels.raster import LATTICE, count_crossings
from tokenlabels.rle_text import BRACE, parse_rle
from tokenlabels.sources.coco_json import lenient_loads
from tokenlabels.sources.masks import CheckedMasks, MaskChunk

MAX_CROSSINGS = 1 << 24
"""Crossings of pixel columns in one mask; real outlines have thousands, a bomb has billions."""

MAX_OUTLINE = 1 << 26
"""Lattice points of one mask's outline that pycocotools may be asked to walk (it allocates 16 bytes for each)."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A mask that is no plain text: either rings of numbers or run lengths."""

    rings: list[NDArray[np.float64]] | None = None
    counts: NDArray[np.int64] | None = None


class MaskError(Exception):
    """A segmentation that cannot be a mask of its image."""

    def __init__(self, kind: Kind, problem: str) -> None:
        self.kind = kind
        self.problem = problem
        super().__init__(problem)


def check_masks(chunk: MaskChunk) -> CheckedMasks:
    """Check every mask of a chunk, and decode those that are no plain polygons."""
    ends = np.cumsum(chunk.lengths)
    spans = np.stack([ends - chunk.lengths, ends], axis=1)
    plain = np.zeros(len(ends), np.bool_)
    if chunk.rasterizer == "kernel":
        _scan(np.frombuffer(bytearray(chunk.text), np.uint8), spans, chunk.widths, chunk.heights, plain)
    kinds = np.full(len(ends), MASK_TEXT, np.uint8)
    usable = np.ones(len(ends), np.bool_)
    numbers, counts = _Pool(np.float64), _Pool(np.int64)
    faults: list[tuple[int, str, str]] = []
    for index in np.flatnonzero(~plain).tolist():
        raw = chunk.text[spans[index, 0] : spans[index, 1]]
        try:
            width, height = int(chunk.widths[index]), int(chunk.heights[index])
            decoded = _fast_rle(raw, width, height) or decode_segmentation(raw, width, height)
            if chunk.rasterizer == "pycocotools" and decoded.rings is not None:
                decoded = _Decoded(counts=_rasterized(decoded.rings, width, height))
        except MaskError as fault:
            faults.append((index, fault.kind.number, fault.problem))
            usable[index] = False
            continue
        if decoded.rings is not None:
            kinds[index] = MASK_RINGS
            spans[index] = numbers.append([part for ring in decoded.rings for part in (np.array([len(ring)]), ring)])
        elif decoded.counts is not None:
            kinds[index] = MASK_RLE
            spans[index] = counts.append([decoded.counts])
    if chunk.shapes:
        texts = [chunk.text[end - length : end] for length, end in zip(chunk.lengths, ends, strict=True)]
        faults += _shape_faults(texts, usable)
    return CheckedMasks(chunk.index, kinds, spans, numbers.array(), counts.array(), usable, tuple(faults))


class _Pool:
    """Arrays put end to end."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._parts: list[NDArray[Any]] = []
        self._size = 0

    def append(self, parts: Sequence[NDArray[Any]]) -> tuple[int, int]:
        """Add arrays; returns their common (start, stop)."""
        start = self._size
        for part in parts:
            self._parts.append(part)
            self._size += len(part)
        return start, self._size

    def array(self) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, self._dtype), *self._parts]).astype(self._dtype, copy=False)


@kernel
def _scan(
    text: NDArray[np.uint8],
    spans: NDArray[np.int64],
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    plain: NDArray[np.bool_],
) -> None:
    """Set `plain[k]` where mask k is text that `parse_rle` takes, or `parse_polygons` and without absurd crossings."""
    longest = np.int64(0)
    for k in range(len(spans)):
        longest = max(longest, spans[k, 1] - spans[k, 0])
    room = longest // 2 + 1
    xy, ring_stops = np.empty(room, np.float64), np.empty(room // 6 + 1, np.int64)
    for k in range(len(spans)):
        if spans[k, 1] > spans[k, 0] and text[spans[k, 0]] == BRACE:
            plain[k] = len(parse_rle(text, spans[k, 0], spans[k, 1], widths[k], heights[k])) > 0
            continue
        rings = parse_polygons(text, spans[k, 0], spans[k, 1], xy, ring_stops)
        plain[k] = rings > 0
        if rings > 0 and (ring_stops[rings - 1] // 2) * np.int64(widths[k]) > MAX_CROSSINGS:
            total, start = 0, 0
            for ring in range(rings):
                total += count_crossings(xy, start, ring_stops[ring], widths[k])
                start = ring_stops[ring]
            plain[k] = total <= MAX_CROSSINGS


class _Rle(msgspec.Struct):
    size: tuple[int, int]
    counts: msgspec.Raw


_RLE_DECODER = msgspec.json.Decoder(_Rle)


def _fast_rle(raw: bytes, width: int, height: int) -> _Decoded | None:
    """A well-formed RLE of this size, its numbers read without Python objects; None for anything else."""
    try:
        rle = _RLE_DECODER.decode(raw)
        counts = bytes(rle.counts)
        if counts.startswith(b'"'):
            lengths = decode_counts(np.frombuffer(msgspec.json.decode(counts, type=str).encode(), np.uint8))
        else:
            lengths = _parse_counts(np.frombuffer(counts, np.uint8))
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None
    fills = len(lengths) > 0 and int(lengths.min()) >= 0 and int(lengths.sum()) == width * height
    return _Decoded(counts=lengths) if fills and rle.size == (height, width) else None


@kernel
def _parse_counts(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Whole numbers of up to ten digits from `[1, 2, ...]`; an empty array where the text is anything else."""
    counts = np.empty(len(text) // 2 + 1, np.int64)
    if len(text) < 3 or text[0] != 91 or text[-1] != 93:
        return counts[:0]
    used, digits, value, closed = 0, 0, np.int64(0), False
    for byte in text[1:]:
        if 48 <= byte <= 57 and not closed:
            value = value * 10 + (np.int64(byte) - 48)
            digits += 1
            if digits > 10:
                return counts[:0]
        elif byte == 44 or byte == 93:
            if digits == 0:
                return counts[:0]
            counts[used] = value
            used += 1
            value, digits, closed = np.int64(0), 0, False
        elif byte == 32 or byte == 9 or byte == 10 or byte == 13:
            closed = digits > 0
        else:
            return counts[:0]
    return counts[:used]


def decode_segmentation(raw: bytes, width: int, height: int) -> _Decoded:
    """Rings or run lengths of one segmentation, whatever form it has.

    Raises:
        MaskError: it is no mask of an image of that size.
    """
    if not raw:
        raise MaskError(check.MASK_MISSING, "has no segmentation")
    try:
        value = msgspec.json.decode(raw)
    except msgspec.ValidationError:  # a number beyond float64: the standard library reads it as infinity
        value = lenient_loads(raw)
    except (UnicodeDecodeError, RecursionError):
        raise MaskError(check.MASK_MALFORMED, "has a segmentation that is no UTF-8 or nested too deeply") from None
    if value is None or value == [] or value == {}:
        raise MaskError(check.MASK_MISSING, "has an empty segmentation")
    if isinstance(value, dict):
        return _Decoded(counts=_run_lengths(value, width, height))
    if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
        raise MaskError(check.MASK_MALFORMED, "has a segmentation that is neither a list of polygons nor an RLE")
    if not any(value):
        raise MaskError(check.MASK_MISSING, "has a segmentation without points")
    rings = [_ring(ring) for ring in value]
    crossings = sum(count_crossings(ring, 0, len(ring), width) for ring in rings)
    if crossings > MAX_CROSSINGS:
        raise MaskError(check.RING_WILD, f"has a polygon that crosses the image's columns {crossings} times")
    return _Decoded(rings=rings)


def _ring(values: list[Any]) -> NDArray[np.float64]:
    if not all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
        raise MaskError(check.MASK_MALFORMED, "has a polygon with something that is no number")
    if len(values) % 2:
        raise MaskError(check.RING_ODD, f"has a polygon of {len(values)} numbers, an odd count")
    if len(values) < 6:
        raise MaskError(check.RING_SHORT, f"has a polygon of {len(values) // 2} points")
    try:
        ring = np.array([np.nan if value is None else value for value in values], np.float64)
    except OverflowError:
        ring = np.array([np.inf])
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        raise MaskError(check.RING_WILD, f"has a polygon coordinate that is not finite or beyond {MAX_COORDINATE:.0f}")
    return ring


def _run_lengths(value: dict[str, Any], width: int, height: int) -> NDArray[np.int64]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        raise MaskError(check.RLE_MALFORMED, "has an RLE without a size [height, width]")
    if size != [height, width]:
        shown = f"{size[0]!r} x {size[1]!r}"[:60]
        raise MaskError(check.RLE_SIZE, f"has an RLE of size {shown}, the image is {height} x {width} (height x width)")
    if isinstance(counts, str):
        lengths = decode_counts(np.frombuffer(counts.encode(), np.uint8))
    elif isinstance(counts, list) and all(isinstance(n, int) and 0 <= n <= width * height for n in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise MaskError(check.RLE_MALFORMED, "has RLE counts that are no list of whole numbers and no text")
    if len(lengths) == 0 or (lengths < 0).any() or int(lengths.sum()) != width * height:
        raise MaskError(check.RLE_MALFORMED, f"has RLE counts that do not add up to {width} x {height} pixels")
    return lengths


@kernel
def decode_counts(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Run lengths from pycocotools' compressed text; an empty array where the text is malformed.

    Each number is cut into groups of five bits, lowest first, one character (48 + group) each; bit 6 says that more
    follow, bit 5 of the last is the sign. From the fourth number on it is the difference to the one two before.
    """
    counts = np.empty(len(text), np.int64)
    used = 0
    position = 0
    while position < len(text):
        value = np.int64(0)
        shift = 0
        more = True
        while more:
            if position == len(text) or text[position] < 48 or text[position] > 111 or shift > 30:
                return counts[:0]
            group = np.int64(text[position]) - 48
            position += 1
            value |= (group & 31) << shift
            shift += 5
            more = (group & 32) != 0
            if not more and group & 16:
                value |= np.int64(-1) << shift
        if used > 2:
            value += counts[used - 2]
        counts[used] = value
        used += 1
    return counts[:used]


def _rasterized(rings: list[NDArray[np.float64]], width: int, height: int) -> NDArray[np.int64]:
    """Run lengths of the union of rings, by pycocotools."""
    from pycocotools import mask as coco_mask

    outline = sum(
        float(np.abs(np.diff(ring.reshape(-1, 2), axis=0, append=ring[:2].reshape(1, 2))).sum()) for ring in rings
    )
    if outline * LATTICE > MAX_OUTLINE:
        raise MaskError(check.RING_WILD, f"has a polygon outline of {outline:.0f} pixels")
    merged = coco_mask.merge(coco_mask.frPyObjects([ring.tolist() for ring in rings], height, width))
    return decode_counts(np.frombuffer(merged["counts"], np.uint8))


def _shape_faults(texts: list[bytes], usable: NDArray[np.bool_]) -> list[tuple[int, str, str]]:
    """Rings that cross themselves or have no area, by shapely; run lengths have no rings."""
    import shapely

    owners: list[int] = []
    rings: list[NDArray[np.float64]] = []
    for index, text in enumerate(texts):
        if usable[index] and not text.startswith(b"{"):
            for ring in msgspec.json.decode(text, type=list[list[float]]):
                owners.append(index)
                rings.append(np.array(ring).reshape(-1, 2))
    if not rings:
        return []
    owner_of_point = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    polygons = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owner_of_point))
    flat = shapely.area(polygons) == 0
    flat[flat] = shapely.area(shapely.convex_hull(polygons[flat])) == 0  # else two halves that cancel out
    crossed = ~flat & ~shapely.is_valid(polygons)
    found = []
    for where, kind, problem in (
        (flat, check.RING_FLAT, "has a polygon of zero area"),
        (crossed, check.RING_CROSSED, "has a polygon that crosses itself"),
    ):
        found += [(index, kind.number, problem) for index in sorted({owners[k] for k in np.flatnonzero(where)})]
    return found
