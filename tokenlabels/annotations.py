"""The records that sources yield and rules consume: columns for many images, never one object per annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels.deferred import DeferredRecords

if TYPE_CHECKING:
    from tokenlabels.storage import Location

MAX_COORDINATE = 10_000_000.0
"""Largest absolute box or polygon coordinate in pixels that is taken for real."""

MAX_PIXELS = 200_000_000
"""Pixels of a picture or mask that is decoded; more is taken for a decompression bomb."""

MAX_IMAGE_SIDE = 1_000_000
MAX_IMAGE_PIXELS = 2**31 - 1
"""Pixels of one image; COCO's run-length masks count them in 32 bits."""

MapEncoding: TypeAlias = Literal["class", "object", "rgb"]

MASK_TEXT, MASK_RINGS, MASK_RLE = 0, 1, 2
"""How a mask is stored: as JSON text of plain polygons or compressed run lengths; rings of numbers; run lengths."""


class Category(msgspec.Struct, frozen=True):
    """One entry of the category table; `objects.category` in a shard is its index there."""

    id: int
    name: str
    supercategory: str = ""


class SourceFile(msgspec.Struct, frozen=True):
    """A file the labels were made from: its name (no folders), size in bytes and sha256."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """m instance masks in three pools, in order; still undecoded where decoding can wait.

    Attributes:
        kinds: uint8 (m,), `MASK_TEXT`, `MASK_RINGS` or `MASK_RLE`: which pool.
        spans: int64 (m, 2), start and stop in that pool.
        text: uint8, JSON text of plain polygons (`polygon_text.py` accepts them) and plain compressed run lengths
            (`rle_text.py`).
        numbers: float64, for each ring its count of numbers, then x and y in turn.
        counts: int64, run lengths, column-major, background first; they sum to width * height.
    """

    kinds: NDArray[np.uint8]
    spans: NDArray[np.int64]
    text: NDArray[np.uint8]
    numbers: NDArray[np.float64]
    counts: NDArray[np.int64]

    def keep(self, kept: NDArray[np.bool_]) -> Masks:
        """The masks where `kept` bool (m,) is true; the pools are shared."""
        return Masks(self.kinds[kept], self.spans[kept], self.text, self.numbers, self.counts)

    def block(self, start: int, stop: int) -> Masks:
        """Masks start..stop-1; the pools are shared."""
        return Masks(self.kinds[start:stop], self.spans[start:stop], self.text, self.numbers, self.counts)


@dataclass(frozen=True, slots=True, eq=False)
class RawMasks:
    """The m masks of a whole split, plain ones as views into the bytes of the annotation file.

    Attributes:
        kinds: see `Masks`.
        spans: see `Masks`; zeros where the kind is `MASK_TEXT`.
        raws: object (m,), bytes-like undecoded JSON of each mask.
        numbers: see `Masks`, in any order.
        counts: see `Masks`, in any order.
    """

    kinds: NDArray[np.uint8]
    spans: NDArray[np.int64]
    raws: NDArray[np.object_]
    numbers: NDArray[np.float64]
    counts: NDArray[np.int64]

    def keep(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> RawMasks:
        """The masks where `kept` bool (m,) is true, or those at these indexes; the pools are shared."""
        return RawMasks(self.kinds[kept], self.spans[kept], self.raws[kept], self.numbers, self.counts)

    def blanked(self, blank: NDArray[np.bool_]) -> RawMasks:
        """The masks with those where `blank` bool (m,) is true replaced by ones without pixels and without span."""
        kinds, spans = self.kinds.copy(), self.spans.copy()
        kinds[blank], spans[blank] = MASK_RLE, 0
        return RawMasks(kinds, spans, self.raws, self.numbers, self.counts)

    def block(self, start: int, stop: int) -> Masks:
        """Masks start..stop-1 packed into pools of their own, to be sent elsewhere."""
        kinds, spans = self.kinds[start:stop], np.zeros((stop - start, 2), np.int64)
        pools: dict[int, NDArray[Any]] = {}
        for kind, pool in ((MASK_RINGS, self.numbers), (MASK_RLE, self.counts)):
            chosen = np.flatnonzero(kinds == kind)
            pieces = [pool[first:last] for first, last in self.spans[start:stop][chosen].tolist()]
            spans[chosen] = _ends([len(piece) for piece in pieces])
            pools[kind] = np.concatenate([pool[:0], *pieces])
        chosen = np.flatnonzero(kinds == MASK_TEXT)
        texts = self.raws[start:stop][chosen].tolist()
        spans[chosen] = _ends([len(memoryview(text)) for text in texts])
        text = np.frombuffer(bytearray().join(texts), np.uint8)
        return Masks(kinds, spans, text, pools[MASK_RINGS], pools[MASK_RLE])


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    """int64 (k, 2): start and stop of pieces of these lengths, end to end."""
    stops = np.cumsum(lengths, dtype=np.int64)
    return np.stack([stops - np.array(lengths, np.int64), stops], axis=1)


VOID_VALUE, BACKGROUND_VALUE, NO_MEANING = -1, -2, -3
"""What a value of a class map is where it is no category."""

NO_CATEGORY = 65_535
"""Category of ignored pixels, and of a patch that is mostly such or holds none."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """s segments that the values of some label maps name, sorted by image.

    Attributes:
        offsets: int64 (n + 1,): the segments of image i are offsets[i] .. offsets[i + 1] - 1.
        ids: int64 (s,), the value of the segment's pixels.
        categories: int32 (s,), index into the category table.
        crowd: bool (s,).
        kept: bool (s,), whether it is among the annotations of the records, which are those that count as foreground.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    categories: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    kept: NDArray[np.bool_]

    def block(self, start: int, stop: int) -> Segments:
        """The segments of images start..stop-1; offsets count from 0 again."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        part = slice(first, last)
        offsets = self.offsets[start : stop + 1] - first
        return Segments(offsets, self.ids[part], self.categories[part], self.crowd[part], self.kept[part])

    def keep_images(self, kept: NDArray[np.bool_]) -> Segments:
        """The segments of the images where `kept` bool (n,) is true."""
        counts = np.diff(self.offsets)
        rows = np.repeat(kept, counts)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])])
        return Segments(offsets, self.ids[rows], self.categories[rows], self.crowd[rows], self.kept[rows])


@dataclass(frozen=True, slots=True, eq=False)
class ClassValues:
    """What the 256 values of class maps mean.

    Attributes:
        categories: int32 (256,), index into the category table; or `VOID_VALUE`, ignored; `BACKGROUND_VALUE`,
            background without a category; `NO_MEANING`, a fault.
        foreground: bool (k,), whether a category of the table counts as foreground.
        guessed: nothing says which value is which category, so that none can be told from the others.
    """

    categories: NDArray[np.int32]
    foreground: NDArray[np.bool_]
    guessed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LabelMaps:
    """One value for every pixel of n images, in files that are decoded where they are needed.

    Attributes:
        folder: folder of the files.
        files: n paths relative to it, empty where an image has no map.
        encodings: n times how a file says values: `class` (8 bits, see `values`), `object` (8 bits, the place of the
            object in `segments`, 0 background, 255 void) or `rgb` (24 bits, segment ids, 0 void).
        values: what the values of class maps mean.
        segments: the segments of `object` and `rgb` maps.
        category_count: size of the category table where shards say which category covers most of each patch, else 0.
    """

    folder: Location
    files: Sequence[str]
    encodings: Sequence[MapEncoding]
    values: ClassValues | None = None
    segments: Segments | None = None
    category_count: int = 0

    def block(self, start: int, stop: int) -> LabelMaps:
        """The maps of images start..stop-1."""
        segments = None if self.segments is None else self.segments.block(start, stop)
        return replace(self, files=self.files[start:stop], encodings=self.encodings[start:stop], segments=segments)

    def keep_images(self, kept: NDArray[np.bool_]) -> LabelMaps:
        """The maps of the images where `kept` bool (n,) is true."""
        return replace(
            self,
            files=[file for file, fine in zip(self.files, kept, strict=True) if fine],
            encodings=[encoding for encoding, fine in zip(self.encodings, kept, strict=True) if fine],
            segments=None if self.segments is None else self.segments.keep_images(kept),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """n images and their m annotations, the annotations sorted by image and in file order within an image.

    Attributes:
        image_ids: n ids, as text.
        file_names: n paths relative to the image root, with `/`.
        widths: int32 (n,), source pixels.
        heights: int32 (n,), source pixels.
        offsets: int64 (n + 1,): the annotations of image i are offsets[i] .. offsets[i + 1] - 1.
        ids: int64 (m,), annotation ids, -1 where the file gives none.
        boxes: float64 (m, 4), x, y, width, height in source pixels, as annotated, 0-based.
        categories: int32 (m,), index into the category table.
        areas: float64 (m,), square pixels, as annotated.
        crowd: bool (m,).
        difficult: bool (m,).
        masks: instance masks, where the source was asked for them.
        maps: label maps, where the source has them and was asked for them.
        mask_files: n masks to embed, relative to `Split.masks`, empty where there is none; where the source was asked.
    """

    image_ids: Sequence[str]
    file_names: Sequence[str]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    categories: NDArray[np.int32]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    masks: Masks | RawMasks | None = None
    maps: LabelMaps | None = None
    mask_files: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def annotation_count(self) -> int:
        return len(self.ids)

    def blocks(self) -> tuple[Records, ...]:
        """All images at once; see `DeferredRecords.blocks`."""
        return (self,)

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """The images of all parts, at least one, without masks and maps; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(len(part.ids) for part in parts)]).tolist()
        offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
        return Records(
            image_ids=[image_id for part in parts for image_id in part.image_ids],
            file_names=[name for part in parts for name in part.file_names],
            widths=np.concatenate([part.widths for part in parts]),
            heights=np.concatenate([part.heights for part in parts]),
            offsets=np.concatenate([*offsets, np.array(before[-1:], np.int64)]),
            ids=np.concatenate([part.ids for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            categories=np.concatenate([part.categories for part in parts]),
            areas=np.concatenate([part.areas for part in parts]),
            crowd=np.concatenate([part.crowd for part in parts]),
            difficult=np.concatenate([part.difficult for part in parts]),
        )

    def image_of(self, annotation: int) -> str:
        """Image id of the annotation with this index."""
        return self.image_ids[int(np.searchsorted(self.offsets, annotation, side="right")) - 1]

    def block(self, start: int, stop: int) -> Records:
        """Images start..stop-1 with their annotations; offsets count from 0 again."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Records(
            self.image_ids[start:stop],
            self.file_names[start:stop],
            self.widths[start:stop],
            self.heights[start:stop],
            self.offsets[start : stop + 1] - first,
            self.ids[first:last],
            self.boxes[first:last],
            self.categories[first:last],
            self.areas[first:last],
            self.crowd[first:last],
            self.difficult[first:last],
            None if self.masks is None else self.masks.block(first, last),
            None if self.maps is None else self.maps.block(start, stop),
            None if self.mask_files is None else self.mask_files[start:stop],
        )

    def keep_images(self, kept: NDArray[np.bool_]) -> Records:
        """The images where `kept` bool (n,) is true, with their annotations."""
        if kept.all():
            return self
        counts = np.diff(self.offsets)
        inner = self.keep(np.repeat(kept, counts))
        return replace(
            inner,
            image_ids=[image_id for image_id, fine in zip(self.image_ids, kept, strict=True) if fine],
            file_names=[name for name, fine in zip(self.file_names, kept, strict=True) if fine],
            widths=self.widths[kept],
            heights=self.heights[kept],
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])]),
            maps=None if self.maps is None else self.maps.keep_images(kept),
            mask_files=None
            if self.mask_files is None
            else [path for path, fine in zip(self.mask_files, kept, strict=True) if fine],
        )

    def keep(self, kept: NDArray[np.bool_]) -> Records:
        """All images, with only the annotations where `kept` bool (m,) is true."""
        if kept.all():
            return self
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
        return Records(
            self.image_ids,
            self.file_names,
            self.widths,
            self.heights,
            before[self.offsets],
            self.ids[kept],
            self.boxes[kept],
            self.categories[kept],
            self.areas[kept],
            self.crowd[kept],
            self.difficult[kept],
            None if self.masks is None else self.masks.keep(kept),
            self.maps,
            self.mask_files,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split as a source read it.

    Attributes:
        name: letters, digits and underscores.
        records: its images and annotations; or how to read these where they are needed.
        images: folder that `records.file_names` are relative to; it need not exist.
        file: the annotation file; of a data set of many files, the one that lists them, with the size of all and a
            digest of their names and contents.
        masks: folder that `records.mask_files` are relative to.
        mask_fill: value of these masks where there is no image, in padding.
        complete: the split names every picture of its folder, so that others there are strangers.
    """

    name: str
    records: Records | DeferredRecords
    images: Location
    file: SourceFile
    masks: Location | None = None
    mask_fill: int = 0
    complete: bool = True

    def file_of(self, image: int) -> str:
        """Name of the annotation file that the image with this index is in."""
        return self.records.sources[image] if isinstance(self.records, DeferredRecords) else self.file.file


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a source read.

    Attributes:
        format: source format.
        splits: in order.
        categories: the one category table they share, in annotation-file order.
        foreground: bool (k,), categories that are foreground unless a person names others; None: all.
    """

    format: str
    splits: tuple[Split, ...]
    categories: tuple[Category, ...]
    foreground: NDArray[np.bool_] | None = None
