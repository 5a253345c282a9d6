"""Pascal VOC -> records: boxes from XML, masks from palette PNGs.

Layout: `ROOT/Annotations/ID.xml`, `ROOT/JPEGImages/ID.jpg`, `ROOT/SegmentationObject/ID.png`,
`ROOT/SegmentationClass/ID.png`, `ROOT/ImageSets/Main/SPLIT.txt`, `ROOT/ImageSets/Segmentation/SPLIT.txt`.
Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import (
    BACKGROUND_VALUE,
    MAX_IMAGE_PIXELS,
    MAX_IMAGE_SIDE,
    NO_MEANING,
    VOID_VALUE,
    Category,
    ClassValues,
    Dataset,
    LabelMaps,
    MapEncoding,
    Records,
    Segments,
    SourceFile,
    Split,
)
from tokenlabels.check import FindingLog
from tokenlabels.errors import TokenLabelsError
from tokenlabels.images import IMAGE_SUFFIXES, stored_size
from tokenlabels.rules import RuleName
from tokenlabels.sources.base import Reading
from tokenlabels.sources.boxes import AnnotationNotes, checked_boxes
from tokenlabels.sources.class_list import read_class_list
from tokenlabels.sources.map_check import listing_digest
from tokenlabels.sources.maps import checked_maps, checked_mask_files
from tokenlabels.sources.names import split_name
from tokenlabels.sources.voc_lists import ImageSet, find_lists, read_list
from tokenlabels.sources.voc_xml import MAX_BYTES, VocImage, VocObject, XmlFileError, parse_voc_xml
from tokenlabels.storage import contents, globbed, is_file, is_folder, located, names_in
from tokenlabels.store_faults import reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

VOC_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The official classes; the value of a class in a mask is its place here, from 1 on."""

_XML, _IMAGES, _OBJECTS, _CLASSES = "Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass"
_NEARBY = ("VOC*/Annotations", "VOCdevkit/VOC*/Annotations", "../Annotations")
"""Where a data set is when the folder named is not quite it."""
_LABELMAP = "labelmap.txt"
_BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "void", "ignore"})
_VOID = 255
_MASK_COST = 12_000
"""Bytes of JSON that decoding a mask takes as long as."""


@dataclass(frozen=True, slots=True)
class VocSource:
    """A VOC folder to read.

    Attributes:
        root: the folder.
        splits: names of the lists to read; none: `trainval` where there is one, else every list.
        class_list: file with the categories; None: `labelmap.txt` there, or the official ones, or those of the XML.
    """

    root: Location
    splits: tuple[str, ...] = ()
    class_list: Location | None = None
    format: str = "voc"
    default_rule: RuleName = "overlap"

    @classmethod
    def locate(
        cls, root: Location | None = None, *, splits: Sequence[str] = (), class_list: Location | None = None
    ) -> VocSource:
        """Find the folder.

        Args:
            root: a folder in the official layout; by default `.`, `$VOC_ROOT`, `./VOCdevkit/VOC2012`, the first that
                has it.
            splits: lists to read.
            class_list: file with the categories.

        Raises:
            TokenLabelsError: nothing there.
        """
        root = root or _default_root()
        if not is_folder(root):
            raise TokenLabelsError(f"{root}: no such folder: name the data set's folder with --root, or try --sample.")
        if not is_folder(root / _XML):
            inner = sorted(
                str(path.parent) for pattern in _NEARBY for path in _nearby(root, pattern) if is_folder(path)
            )
            hint = f": did you mean {inner[-1]}?" if inner else ": name the folder that holds Annotations."
            raise TokenLabelsError(f"{root}: no folder {_XML} in it, so this is no VOC data set{hint}")
        return cls(root, tuple(dict.fromkeys(splits)), class_list)

    def input_bytes(self, *, masks: bool) -> int:
        """See `Source`."""
        return len(names_in(self.root / _CLASSES)) * _MASK_COST if masks and self._has(_CLASSES) else 0

    def places(self) -> Sequence[Location]:
        """See `Source`."""
        return [self.root, *([self.class_list] if self.class_list else [])]

    def image_folders(self) -> dict[str, Location]:
        """See `Source`."""
        return {split_name(found.name): self.root / _IMAGES for found in find_lists(self.root, self.splits, "Main")}

    def parameters(self) -> dict[str, Any]:
        """See `Source`."""
        return {}

    def _has(self, folder: str) -> bool:
        return is_folder(self.root / folder)

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """See `Source`."""
        kind = "Segmentation" if log.masks_scored else "Main"
        lists = find_lists(self.root, self.splits, kind, reading.note)
        if log.masks_scored and not (self._has(_OBJECTS) or self._has(_CLASSES)):
            raise TokenLabelsError(
                f"{self.root}: no {_OBJECTS} and no {_CLASSES} in it, but pixel-ratio needs masks: use --rule overlap."
            )
        names = [split_name(chosen.name) for chosen in lists]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise TokenLabelsError(f"{self.root}: two lists would be the split {doubled!r}: name one with --split.")
        read = [_read_images(self.root, chosen, reading, log) for chosen in lists]
        categories = self._categories([image for part in read for image in part.images])
        splits = [self._split(part, categories, reading, log) for part in read]
        return Dataset(self.format, tuple(splits), categories)

    def _categories(self, images: Sequence[VocImage]) -> tuple[Category, ...]:
        """The category table; the id of a category is its value in class masks."""
        listed = self._list()
        if listed is not None:
            found = read_class_list(listed)
            if found[0].id == 0 and found[0].name.lower() not in _BACKGROUND_NAMES:
                found = tuple(Category(category.id + 1, category.name) for category in found)  # 0 is background
            return tuple(category for category in found if category.name.lower() not in _BACKGROUND_NAMES)
        named = {found.name for image in images for found in image.objects if found.name}
        names = VOC_NAMES if named <= set(VOC_NAMES) else tuple(sorted(named))
        return tuple(Category(value, name) for value, name in enumerate(names, 1))

    def _list(self) -> Location | None:
        """File with the categories."""
        own = self.root / _LABELMAP
        return own if self.class_list is None and is_file(own) else self.class_list

    def _split(self, part: _Part, categories: tuple[Category, ...], reading: Reading, log: FindingLog) -> Split:
        everything, usable = _to_records(part, categories, log)
        records = everything.keep(usable)
        file = SourceFile(part.chosen.file, part.size, part.sha256)
        split = Split(split_name(part.chosen.name), records, self.root / _IMAGES, file, complete=False)
        if reading.masks:
            segments = Segments(everything.offsets, everything.ids, everything.categories, everything.crowd, usable)
            split = self._with_maps(split, records, part, categories, segments, reading, log)
        elif self._has(_OBJECTS) or self._has(_CLASSES):
            self._report_missing_masks(split, part, log)
        if reading.embed_masks:
            present = _names(self.root / _CLASSES)
            assert isinstance(split.records, Records)
            names = [f"{image_id}.png" for image_id in split.records.image_ids]
            files = [f"{_CLASSES}/{name}" if name in present else "" for name in names]
            split = replace(split, masks=self.root, mask_fill=_VOID, records=replace(split.records, mask_files=files))
            split = checked_mask_files(split, reading, log)
        return split

    def _with_maps(
        self,
        split: Split,
        records: Records,
        part: _Part,
        categories: tuple[Category, ...],
        segments: Segments,
        reading: Reading,
        log: FindingLog,
    ) -> Split:
        """The split with its label maps: the object mask where there is one, else the class mask.

        `segments` are all objects of the XML, those too that were left out: their pixels are not foreground.
        """
        files, encodings = [], []
        present = {folder: _names(self.root / folder) for folder in (_OBJECTS, _CLASSES)}
        for image_id in records.image_ids:
            name = f"{image_id}.png"
            encoding: MapEncoding = "object" if name in present[_OBJECTS] else "class"
            folder = _OBJECTS if encoding == "object" else _CLASSES
            files.append(f"{folder}/{name}" if name in present[folder] else "")
            encodings.append(encoding)
        guessed = self._list() is None and tuple(category.name for category in categories) != VOC_NAMES
        values = replace(_class_values(categories), guessed=guessed)
        maps = LabelMaps(self.root.resolve(), files, encodings, values, segments)
        expected = None if log.masks_scored else _segmented(part)
        return checked_maps(replace(split, records=replace(records, maps=maps)), reading, log, expected=expected)

    def _report_missing_masks(self, split: Split, part: _Part, log: FindingLog) -> None:
        """Say which images have no mask although their XML says so; nothing is opened."""
        present = _names(self.root / _OBJECTS) | _names(self.root / _CLASSES)
        for image_id in sorted(_segmented(part)):
            if f"{image_id}.png" not in present:
                message = f"the mask of image {image_id} is missing."
                log.add(check.MAP_MISSING, split.file.file, message, image_id=image_id)


def _segmented(part: _Part) -> set[str]:
    """Ids of the images that have masks by their XML."""
    return {image.image_id for image in part.images if image.segmented}


def _nearby(root: Location, pattern: str) -> list[Location]:
    """Paths by a pattern; stores know no folder above."""
    return globbed(root, pattern) if isinstance(root, Path) or not pattern.startswith("..") else []


def _default_root() -> Location:
    given = os.environ.get("VOC_ROOT")
    candidates: list[Location] = [Path(), *([located(given)] if given else []), Path("VOCdevkit/VOC2012")]
    for candidate in candidates:
        if is_folder(candidate / _XML):
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise TokenLabelsError(
        f"no VOC data set found (looked for {_XML} in {looked}): name its folder with --root, or try --sample."
    )


def _names(folder: Location) -> frozenset[str]:
    try:
        return frozenset(names_in(folder))
    except OSError:
        return frozenset()


def _class_values(categories: Sequence[Category]) -> ClassValues:
    meant = np.full(256, NO_MEANING, np.int32)
    meant[0], meant[_VOID] = BACKGROUND_VALUE, VOID_VALUE
    for index, category in enumerate(categories):
        if 0 < category.id < _VOID:
            meant[category.id] = index
    return ClassValues(meant, np.ones(len(categories), np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One list and the XML files it names, sorted by id; bytes of all and a digest of their contents."""

    chosen: ImageSet
    images: tuple[VocImage, ...]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    size: int
    sha256: str


def _read_images(root: Location, chosen: ImageSet, reading: Reading, log: FindingLog) -> _Part:
    reading.progress(f"reading {chosen.name}")
    image_ids, listing = read_list(chosen, log)
    if reading.limit is not None:
        image_ids = image_ids[: reading.limit]
    images, sizes, digests, total = [], [], [], len(listing)
    files = contents((root / _XML / f"{image_id}.xml" for image_id in image_ids), MAX_BYTES + 1)
    for image_id, data in zip(image_ids, files, strict=True):
        try:
            if isinstance(data, OSError):
                raise data
            image = parse_voc_xml(data, image_id)
        except FileNotFoundError:
            message = f"image {image_id} is listed, but there is no {_XML}/{image_id}.xml: add it, or mend the list."
            log.add(check.XML_MISSING, chosen.file, message, image_id=image_id)
            continue
        except (OSError, XmlFileError) as fault:
            reason = reason_of(fault)
            log.add(check.XML_UNREADABLE, f"{_XML}/{image_id}.xml", f"image {image_id}: {reason}.", image_id=image_id)
            continue
        size = _size_of(image, root, log)
        if size is None:
            continue
        images.append(image)
        sizes.append(size)
        digests.append((f"{image_id}.xml", hashlib.sha256(data).hexdigest()))
        total += len(data)
    digest = listing_digest([(chosen.file, hashlib.sha256(listing).hexdigest()), *digests])
    widths, heights = np.array(sizes, np.int32).reshape(-1, 2).T
    return _Part(chosen, tuple(images), widths, heights, total, digest)


def _size_of(image: VocImage, root: Location, log: FindingLog) -> tuple[int, int] | None:
    """(width, height), from the picture where the XML does not say; None, reported, where neither does."""
    fine = 1 <= image.width <= MAX_IMAGE_SIDE and 1 <= image.height <= MAX_IMAGE_SIDE
    if fine and image.width * image.height <= MAX_IMAGE_PIXELS:
        return image.width, image.height
    stored = stored_size(root / _IMAGES / _file_name(image)) if not image.width or not image.height else None
    if stored is None:
        said = f"said to be {image.width} x {image.height} pixels" if image.width or image.height else "without <size>"
        message = f"image {image.image_id} is {said}, and {_IMAGES}/{_file_name(image)} cannot tell: give the size."
        log.add(check.IMAGE_SIZE, f"{_XML}/{image.image_id}.xml", message, image_id=image.image_id)
    return stored


def _file_name(image: VocImage) -> str:
    suffix = image.suffix if image.suffix.lower() in IMAGE_SUFFIXES else ".jpg"
    return image.image_id + suffix


def _to_records(part: _Part, categories: Sequence[Category], log: FindingLog) -> tuple[Records, NDArray[np.bool_]]:
    """Columns of the images and of all m objects of one list, and bool (m,): which of these can be used."""
    images = part.images
    objects: list[VocObject] = [found for image in images for found in image.objects]
    counts = np.array([len(image.objects) for image in images], np.int64)
    rows = np.repeat(np.arange(len(images)), counts)
    notes = AnnotationNotes(objects, _XML, log)
    index_of = {category.name: index for index, category in enumerate(categories)}
    positions = np.array([index_of.get(found.name, -1) for found in objects], np.int64)
    nameless = np.array([not found.name for found in objects], np.bool_)
    notes.flag(check.ANNOTATION_MALFORMED, nameless, lambda _i: "has no <name>")
    notes.flag(
        check.UNKNOWN_CATEGORY,
        positions < 0,
        lambda i: f"is a {objects[i].name[:80]!r}, which is not in the list of categories",
    )
    boxes = checked_boxes(notes, part.widths, part.heights, rows)
    records = Records(
        image_ids=[image.image_id for image in images],
        file_names=[_file_name(image) for image in images],
        widths=part.widths,
        heights=part.heights,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        ids=np.array([found.id for found in objects], np.int64),
        boxes=boxes,
        categories=positions.astype(np.int32),
        areas=np.maximum(boxes[:, 2], 0) * np.maximum(boxes[:, 3], 0),
        crowd=np.zeros(len(objects), np.bool_),
        difficult=np.array([found.difficult for found in objects], np.bool_),
    )
    return records, notes.usable
