"""Semantic masks -> records: one PNG for each picture, whose 8-bit values are categories. There are no boxes.

`mask_layouts.py` finds the files; what values mean comes from a list of categories, a data card, or the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenlabels import check
from tokenlabels.annotations import (
    NO_MEANING,
    VOID_VALUE,
    Category,
    ClassValues,
    Dataset,
    LabelMaps,
    Records,
    SourceFile,
    Split,
)
from tokenlabels.check import KINDS, FindingLog
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.rules import RuleName
from tokenlabels.sources.base import Reading
from tokenlabels.sources.map_check import MapHeader, largest_value, listing_digest, read_headers
from tokenlabels.sources.maps import checked_maps
from tokenlabels.sources.mask_layouts import MaskFolder, MaskPair, find_pairs
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import is_folder, names_in

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_MASK_COST = 12_000
"""Bytes of JSON that decoding a mask takes as long as."""


@dataclass(frozen=True, slots=True)
class SemanticSource:
    """Folders of masks to read.

    Attributes:
        folders: one for each split.
        categories: what values mean, the id of each category being its value; None: every value that occurs is one.
        ignore: values that are void.
        background: values of categories that are background.
        reduce_zero_label: value 0 is void, and no category.
    """

    folders: tuple[MaskFolder, ...]
    categories: tuple[Category, ...] | None = None
    ignore: tuple[int, ...] = (255,)
    background: tuple[int, ...] = (0,)
    reduce_zero_label: bool = False
    format: str = "semantic"
    default_rule: RuleName = "pixel-ratio"

    def __post_init__(self) -> None:
        for name, values in (("ignore", self.ignore), ("background", self.background)):
            if not all(0 <= value <= 255 for value in values):
                raise ParameterError(f"--{name} {max(values, key=abs)} is no value of an 8-bit mask: 0 to 255.")
        both = sorted(set(self.background) & set(self.void))
        if both:
            raise ParameterError(
                f"the value {both[0]} is to be background and ignored at once: name it once, with --ignore or "
                "--background (--reduce-zero-label ignores 0)."
            )

    @property
    def void(self) -> tuple[int, ...]:
        """Values that are void."""
        return tuple(sorted({*self.ignore, *([0] if self.reduce_zero_label else [])}))

    def input_bytes(self, *, masks: bool) -> int:  # noqa: ARG002  masks are all there is
        """See `Source`."""
        return sum(len(names_in(folder.masks)) for folder in self.folders if is_folder(folder.masks)) * _MASK_COST

    def places(self) -> Sequence[Location]:
        """See `Source`."""
        named = [(folder.images, folder.masks, folder.listed) for folder in self.folders]
        return [place for places in named for place in places if place is not None]

    def image_folders(self) -> dict[str, Location]:
        """See `Source`."""
        return {folder.name: folder.images for folder in self.folders if folder.images is not None}

    def parameters(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "ignore": list(self.void),
            "background": list(self.background),
            "reduce_zero_label": self.reduce_zero_label,
        }

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """See `Source`."""
        parts = [self._pairs(folder, reading, log) for folder in self.folders]
        categories = self._table(parts, reading)
        splits = [
            self._split(folder, pairs, headers, categories, reading, log)
            for folder, (pairs, headers) in zip(self.folders, parts, strict=True)
        ]
        foreground = np.array([category.id not in self.background for category in categories], np.bool_)
        return Dataset(self.format, tuple(splits), categories, foreground)

    def _pairs(self, folder: MaskFolder, reading: Reading, log: FindingLog) -> tuple[list[MaskPair], list[MapHeader]]:
        """The masks of one folder with their pictures, those left out whose header is faulty."""
        reading.progress(f"listing masks of {folder.name}")
        pairs, lonely = find_pairs(folder)
        for name in lonely:
            log.add(check.MAP_MISSING, folder.masks.name, f"the image {name} has no mask in {folder.masks.name}.")
        for pair in pairs:
            if folder.images is not None and not pair.image:
                message = f"the mask {pair.mask} has no image of that name in {folder.images.name}."
                log.add(check.FILE_MISSING, folder.masks.name, message, image_id=pair.image_id)
            elif not is_inside(pair.image):
                message = f"the image {pair.image!r} has a name that is not opened: rename it."
                log.add(check.IMAGE_PATH, folder.masks.name, message, image_id=pair.image_id)
        if reading.limit is not None:
            pairs = pairs[: reading.limit]
        headers = read_headers(
            folder.masks,
            [pair.mask for pair in pairs],
            ["class"] * len(pairs),
            reading.run,
            images=folder.images,
            pictures=[pair.image for pair in pairs],
        )
        kept = []
        for pair, header in zip(pairs, headers, strict=True):
            if header.fault:
                number, problem = header.fault
                log.add(KINDS[number], pair.mask, f"the mask {problem}.", image_id=pair.image_id)
            else:
                kept.append((pair, header))
        return [pair for pair, _ in kept], [header for _, header in kept]

    def _table(self, parts: Sequence[tuple[list[MaskPair], list[MapHeader]]], reading: Reading) -> tuple[Category, ...]:
        """The category table in the order of values, background included."""
        if self.categories is None:
            reading.progress("looking for values in masks")
            largest = max(
                largest_value(folder.masks, [pair.mask for pair in pairs], self.void, reading.run)
                for folder, (pairs, _) in zip(self.folders, parts, strict=True)
            )
            names = {value: str(value) for value in range(largest + 1)}
            if names.keys() <= set(self.background):
                reading.note(
                    "the masks hold nothing but background and ignored values, so that no patch is foreground; where "
                    "255 is an object, --ignore 254 makes it one."
                )
        else:
            names = {category.id: category.name for category in self.categories}
        for value in self.background:
            if value not in names or self.categories is None:
                names[value] = "background" if len(self.background) == 1 else f"background {value}"
        known = {category.id: category for category in self.categories or ()}
        values = [value for value in sorted(names) if value not in self.void]
        if not values:
            raise TokenLabelsError(f"{self.folders[0].masks}: no mask holds a value that is a category.")
        return tuple(known.get(value, Category(value, names[value])) for value in values)

    def _split(
        self,
        folder: MaskFolder,
        pairs: list[MaskPair],
        headers: list[MapHeader],
        categories: tuple[Category, ...],
        reading: Reading,
        log: FindingLog,
    ) -> Split:
        fine = _sizes_agree(pairs, headers, log)
        pairs = [pair for pair, kept in zip(pairs, fine, strict=True) if kept]
        headers = [header for header, kept in zip(headers, fine, strict=True) if kept]
        sizes = np.array([header.size for header in headers], np.int32).reshape(-1, 2)
        meant = np.full(256, NO_MEANING, np.int32)
        meant[[category.id for category in categories]] = np.arange(len(categories))
        meant[list(self.void)] = VOID_VALUE
        files = [pair.mask for pair in pairs]
        foreground = np.array([category.id not in self.background for category in categories], np.bool_)
        maps = LabelMaps(
            folder.masks.resolve(),
            files,
            ["class"] * len(files),
            ClassValues(meant, foreground),
            category_count=len(categories),
        )
        records = without_annotations([pair.image_id for pair in pairs], [pair.image for pair in pairs], sizes, maps)
        if reading.embed_masks:
            records = replace(records, mask_files=files)
        digest = listing_digest(
            (f"{pair.mask} {pair.image}", header.sha256) for pair, header in zip(pairs, headers, strict=True)
        )
        size = sum(header.bytes for header in headers)
        file = SourceFile(folder.masks.name, size, digest)
        images = folder.images or folder.masks / "no-images"
        split = Split(folder.name, records, images, file, folder.masks, complete=False)
        return checked_maps(split, reading, log, headers_known=True)


def without_annotations(
    image_ids: Sequence[str], file_names: Sequence[str], sizes: np.ndarray[Any, np.dtype[np.int32]], maps: LabelMaps
) -> Records:
    """Records of n images that have maps and no boxes; `sizes` int32 (n, 2), width and height."""
    return Records(
        image_ids=image_ids,
        file_names=file_names,
        widths=np.ascontiguousarray(sizes[:, 0]),
        heights=np.ascontiguousarray(sizes[:, 1]),
        offsets=np.zeros(len(image_ids) + 1, np.int64),
        ids=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4)),
        categories=np.zeros(0, np.int32),
        areas=np.zeros(0),
        crowd=np.zeros(0, np.bool_),
        difficult=np.zeros(0, np.bool_),
        maps=maps,
    )


def _sizes_agree(pairs: Sequence[MaskPair], headers: Sequence[MapHeader], log: FindingLog) -> list[bool]:
    """Whether each mask has the size of its picture, where there is one that can be read; others are reported."""
    fine = []
    for pair, header in zip(pairs, headers, strict=True):
        agrees = header.picture in (None, header.size)
        if header.picture is not None and not agrees:
            wide, high = header.picture
            message = f"the mask is {header.size[0]} x {header.size[1]} pixels, the image {wide} x {high}."
            agrees = log.add(check.MAP_SIZE, pair.mask, message, image_id=pair.image_id) != "error"
        fine.append(agrees)
    return fine
