"""Label maps x grids -> scores and majority categories: every mask is decoded where it is scored, and let go again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import (
    NO_CATEGORY,
    NO_MEANING,
    VOID_VALUE,
    ClassValues,
    LabelMaps,
    Records,
)
from tokenlabels.coverage import FOREGROUND, ROLE_OF_POLICY, SKIP
from tokenlabels.grid import GridAxes
from tokenlabels.map_areas import map_cell_shares, segments_of_colours, words_of
from tokenlabels.map_files import MapFileError, read_map
from tokenlabels.rules import RuleSpec
from tokenlabels.storage import contents
from tokenlabels.store_faults import reason_of

_VOC_VOID = 255
"""In VOC's object masks: the border around objects, and what nobody could tell."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageMap:
    """One decoded map and what its values do.

    Attributes:
        values: uint8 or uint16 (height, width), below v.
        roles: uint8 (v,), see `map_areas.map_cell_shares`.
        categories: uint16 (v,), likewise.
        faulty: bool (v,), the value has no meaning and cannot be scored.
        strange: bool (v,), the value names nothing and is foreground all the same.
        segments: int64 (s,), the value of each segment of the image that is among its annotations.
    """

    values: NDArray[Any]
    roles: NDArray[np.uint8]
    categories: NDArray[np.uint16]
    faulty: NDArray[np.bool_]
    strange: NDArray[np.bool_]
    segments: NDArray[np.int64]

    def refuse(self, seen: NDArray[np.bool_]) -> None:
        """Raise `MapFileError` where `seen` bool (v,) holds a value that cannot be scored."""
        unknown = np.flatnonzero(seen & self.faulty).tolist()
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise MapFileError(
                check.MAP_VALUE,
                f"holds the value {shown}, which is no category: complete the list of --categories, or name the value "
                "with --ignore or --background",
            )


class MapError(Exception):
    """A map of a block cannot be scored.

    Attributes:
        image: number of its image in the block.
        fault: what is wrong.
    """

    def __init__(self, image: int, fault: MapFileError) -> None:
        super().__init__(image, fault)
        self.image = image
        self.fault = fault


@dataclass(frozen=True, slots=True, eq=False)
class MapScores:
    """What scoring the maps of n images with m annotations found besides their scores.

    Attributes:
        empty: bool (m,), the segment of the annotation has no pixel.
        strange: (image, value) of values that name no object.
    """

    empty: NDArray[np.bool_]
    strange: list[tuple[int, int]]


def score_maps(
    records: Records,
    grids: Sequence[GridAxes],
    spec: RuleSpec,
    starts: NDArray[np.int64],
    scores: NDArray[np.float32],
    ignored: NDArray[np.bool_],
    majority: NDArray[np.uint16],
    majority_share: NDArray[np.float32],
) -> MapScores:
    """`pixel-ratio` and majority categories of n images on G grids.

    Args:
        records: n images with maps, and m annotations.
        grids: G grids of these images.
        spec: the policies for void and crowd regions.
        starts: int64 (G, n), where the cells of each image start in the flat arrays.
        scores: float32, written.
        ignored: bool, written.
        majority: uint16, written where the maps have a `category_count`.
        majority_share: float32, likewise.

    Raises:
        MapError: a map cannot be read, or holds a value without a meaning.
    """
    maps = records.maps
    assert maps is not None, "the source was not asked for its maps"
    empty = np.zeros(len(records.ids), np.bool_)
    strange: list[tuple[int, int]] = []
    images = [image for image, file in enumerate(maps.files) if file]
    files = contents(maps.folder / maps.files[image] for image in images)
    for image, data in zip(images, files, strict=True):
        try:
            size = int(records.widths[image]), int(records.heights[image])
            found = open_map(maps, image, data, size, spec)
            seen = np.zeros(len(found.roles), np.bool_)
            words = words_of(found.values)
            for start, axes in zip(starts[:, image].tolist(), grids, strict=True):
                rows, cols = int(axes.rows[image]), int(axes.cols[image])
                cells = slice(start, start + rows * cols)
                map_cell_shares(
                    found.values,
                    words,
                    found.roles,
                    found.categories,
                    maps.category_count,
                    seen,
                    axes.y[image],
                    axes.x[image],
                    rows,
                    cols,
                    scores[cells],
                    ignored[cells],
                    majority[cells],
                    majority_share[cells],
                )
            found.refuse(seen)
        except MapFileError as fault:
            raise MapError(image, fault) from None
        if maps.segments is not None:
            first = int(records.offsets[image])
            empty[first : first + len(found.segments)] = ~seen[found.segments]
        strange += [(image, value) for value in np.flatnonzero(seen & found.strange).tolist()]
    return MapScores(empty, strange)


def open_map(maps: LabelMaps, image: int, data: bytes | OSError, size: tuple[int, int], spec: RuleSpec) -> ImageMap:
    """Decode the map of one image.

    Args:
        maps: the maps.
        image: which.
        data: its file, or why that cannot be read.
        size: (width, height) it must have.
        spec: the policies for void and crowd regions.

    Raises:
        MapFileError: it cannot be read, or (`rgb`) holds an id that is no segment.
    """
    encoding = maps.encodings[image]
    if isinstance(data, OSError):
        raise MapFileError(check.MAP_UNREADABLE, f"cannot be read ({reason_of(data)})") from None
    pixels = read_map(data, encoding, size)
    if encoding == "class":
        assert maps.values is not None
        return _class_map(pixels, maps.values, spec)
    return _object_map(pixels, maps, image, spec) if encoding == "object" else _segment_map(pixels, maps, image, spec)


def _class_map(pixels: NDArray[np.uint8], values: ClassValues, spec: RuleSpec) -> ImageMap:
    meant = values.categories
    named = meant >= 0
    roles = np.full(len(meant), SKIP, np.uint8)
    roles[named] = np.where(values.foreground[meant[named]], FOREGROUND, SKIP)
    roles[meant == VOID_VALUE] = ROLE_OF_POLICY[spec.void]
    categories = np.where(named, meant, NO_CATEGORY).astype(np.uint16)
    nothing = np.zeros(len(meant), np.bool_)
    return ImageMap(pixels, roles, categories, meant == NO_MEANING, nothing, np.zeros(0, np.int64))


def _object_map(pixels: NDArray[np.uint8], maps: LabelMaps, image: int, spec: RuleSpec) -> ImageMap:
    """A VOC object mask: every value but 0 and 255 is an object, as a rule one that the XML has."""
    assert maps.segments is not None
    segments = maps.segments.block(image, image + 1)
    roles = np.full(256, FOREGROUND, np.uint8)
    roles[0], roles[_VOC_VOID] = SKIP, ROLE_OF_POLICY[spec.void]
    strange = np.ones(256, np.bool_)
    strange[[0, _VOC_VOID]] = False
    ids = segments.ids[segments.ids < _VOC_VOID]
    roles[ids] = np.where(segments.kept[: len(ids)], FOREGROUND, SKIP)
    strange[ids] = False
    kept = segments.ids[segments.kept]
    nothing = np.zeros(256, np.bool_)
    return ImageMap(pixels, roles, np.full(256, NO_CATEGORY, np.uint16), nothing, strange, np.minimum(kept, _VOC_VOID))


def _segment_map(pixels: NDArray[np.uint8], maps: LabelMaps, image: int, spec: RuleSpec) -> ImageMap:
    """A panoptic map: colours are ids of segments, black is void."""
    assert maps.segments is not None
    segments = maps.segments.block(image, image + 1)
    order = np.argsort(segments.ids, kind="stable")
    values = np.zeros(pixels.shape[:2], np.uint16)
    unknown = segments_of_colours(pixels, segments.ids[order], order, values)
    if unknown:
        raise MapFileError(check.MAP_VALUE, f"holds the segment {unknown}, which segments_info does not list")
    roles = np.zeros(1 + len(order), np.uint8)
    categories = np.full(1 + len(order), NO_CATEGORY, np.uint16)
    roles[0] = ROLE_OF_POLICY[spec.void]
    role = np.where(segments.crowd, ROLE_OF_POLICY[spec.crowd], FOREGROUND)
    roles[1:] = np.where(segments.kept, role, SKIP)
    categories[1:] = segments.categories
    nothing = np.zeros(len(roles), np.bool_)
    return ImageMap(values, roles, categories, nothing, nothing, 1 + np.flatnonzero(segments.kept))


def check_map(
    maps: LabelMaps, image: int, data: bytes | OSError, size: tuple[int, int], spec: RuleSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode one map for its faults alone.

    Returns:
        The values that name no object, and which of the image's annotations have no pixel.

    Raises:
        MapFileError: see `open_map`; or it holds a value without a meaning.
    """
    found = open_map(maps, image, data, size, spec)
    seen = np.bincount(found.values.ravel(), minlength=len(found.roles)) > 0
    found.refuse(seen)
    return np.flatnonzero(seen & found.strange), np.flatnonzero(~seen[found.segments])
