"""COCO panoptic -> records: segments of things and stuff from JSON, their pixels from PNGs whose colours are ids.

Layout: `ROOT/annotations/panoptic_<split>.json`, `ROOT/annotations/panoptic_<split>/`, images in `ROOT/<split>/`.
Format: https://cocodataset.org/#format-data, section panoptic segmentation: id = R + 256 G + 65536 B, 0 is void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels import check
from tokenlabels.annotations import (
    MAX_IMAGE_PIXELS,
    MAX_IMAGE_SIDE,
    Category,
    Dataset,
    LabelMaps,
    Records,
    Segments,
    SourceFile,
    Split,
)
from tokenlabels.check import FindingLog
from tokenlabels.errors import AnnotationFileError, ParameterError, TokenLabelsError
from tokenlabels.rules import RuleName
from tokenlabels.sources.base import Reading
from tokenlabels.sources.boxes import AnnotationNotes, checked_boxes
from tokenlabels.sources.coco import check_folder, on_common_table, read_bytes
from tokenlabels.sources.coco_json import CategoryEntry, EntryId, ImageEntry, Int64, category_table, reread
from tokenlabels.sources.maps import checked_maps
from tokenlabels.sources.names import split_name
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import globbed, is_file, is_folder, names_in

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Stuff: TypeAlias = Literal["foreground", "background"]

_PREFIX = "panoptic_"
_MAX_SEGMENTS = 65_534
"""Of one image; they are numbered in 16 bits."""

_MAX_ID = 2**24 - 1

_MASK_COST = 30_000
"""Bytes of JSON that decoding a mask takes as long as."""


class _Category(CategoryEntry):
    isthing: bool | Int64 = True


class _Segment(msgspec.Struct):
    id: Int64
    category_id: Int64
    box: list[float | None] | None = msgspec.field(name="bbox", default=None)
    area: float | None = None
    iscrowd: bool | Int64 = False
    image_id: EntryId = ""

    @property
    def bbox(self) -> list[float] | None:
        """The box, None where it is not four numbers."""
        numbers = [side for side in self.box or () if side is not None]
        return numbers if self.box is not None and len(self.box) == len(numbers) == 4 else None


class _Annotation(msgspec.Struct):
    segments_info: list[_Segment]
    image_id: EntryId
    file_name: str = ""


class _Document(msgspec.Struct):
    images: list[ImageEntry]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, slots=True)
class PanopticSource:
    """Panoptic files to read.

    Attributes:
        files: (split name, JSON file, folder of PNGs, image folder) for each split.
        stuff: whether stuff is foreground or background; things always are foreground.
    """

    files: tuple[tuple[str, Location, Location, Location], ...]
    stuff: Stuff = "background"
    format: str = "semantic"
    default_rule: RuleName = "pixel-ratio"

    def __post_init__(self) -> None:
        if self.stuff not in get_args(Stuff):
            raise ParameterError(f"unknown stuff policy {self.stuff!r}: use one of {', '.join(get_args(Stuff))}.")

    @classmethod
    def locate(
        cls,
        root: Location | None = None,
        *,
        annotations: Location | None = None,
        masks: Location | None = None,
        images: Location | None = None,
        splits: Sequence[str] = (),
        stuff: str = "background",
    ) -> PanopticSource:
        """Find the files of a folder in the official layout, or one JSON file with what belongs to it.

        Args:
            root: the folder.
            annotations: a single JSON file instead.
            masks: its PNGs; by default the folder beside it with the same name.
            images: its pictures; by default `ROOT/<split>`.
            splits: splits to read, by default all; one renames a single file.
            stuff: see the class.

        Raises:
            TokenLabelsError: nothing there; or no folder of PNGs.
        """
        check_folder(images)
        if annotations is not None:
            if len(splits) > 1:
                raise ParameterError("--annotations is one split: give --split once at most, to name it.")
            stem = annotations.stem.removeprefix(_PREFIX)
            entry = _entry(
                splits[0] if splits else stem, annotations, masks, images or annotations.parent.parent / stem
            )
            return cls((entry,), stuff)  # type: ignore[arg-type]
        assert root is not None
        found = {path.stem.removeprefix(_PREFIX): path for path in globbed(root / "annotations", f"{_PREFIX}*.json")}
        for split in splits:
            if split not in found:
                raise TokenLabelsError(
                    f"{root}: no annotations/{_PREFIX}{split}.json; the splits there are {', '.join(found)}."
                )
        chosen = list(dict.fromkeys(splits or found))
        if images is not None and len(chosen) > 1:
            raise ParameterError("--images is the folder of one split: name that --split, or leave --images out.")
        entries = tuple(_entry(split, found[split], None, images or root / split) for split in chosen)
        names = [entry[0] for entry in entries]
        if len(set(names)) < len(names):
            raise TokenLabelsError(f"{root}: two of its splits would have the same name: choose with --split.")
        return cls(entries, stuff)  # type: ignore[arg-type]

    def input_bytes(self, *, masks: bool) -> int:  # noqa: ARG002  masks are all there is
        """See `Source`."""
        return sum(len(names_in(folder)) for _, _, folder, _ in self.files if is_folder(folder)) * _MASK_COST

    def places(self) -> Sequence[Location]:
        """See `Source`."""
        return [place for _, *places in self.files for place in places]

    def image_folders(self) -> dict[str, Location]:
        """See `Source`."""
        return {name: images for name, _, _, images in self.files}

    def parameters(self) -> dict[str, Any]:
        """See `Source`."""
        return {"stuff": self.stuff}

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """See `Source`."""
        splits: list[Split] = []
        table: dict[int, Category] = {}
        things: dict[int, bool] = {}
        for name, path, masks, images in self.files:
            reading.progress(f"reading {path.name}")
            data = read_bytes(path)
            document = _decoded(data, path)
            categories = category_table(document.categories, path, log)
            things |= {entry.id: bool(entry.isthing) for entry in document.categories}
            file = SourceFile(path.name, len(data), hashlib.sha256(data).hexdigest())
            records = _to_records(document, path, masks, reading, log)
            split = on_common_table(Split(name, records, images, file, masks), categories, table, path)
            split = _with_segments(split, reading, log)
            splits.append(replace(split, complete=len(split.records) == len(document.images)))
        foreground = np.array([things[category_id] or self.stuff == "foreground" for category_id in table], np.bool_)
        splits = [_with_count(split, len(table)) for split in splits]
        return Dataset(self.format, tuple(splits), tuple(table.values()), foreground)


def _entry(
    name: str, annotations: Location, masks: Location | None, images: Location
) -> tuple[str, Location, Location, Location]:
    """An entry of `PanopticSource.files`.

    Raises:
        TokenLabelsError: there is a file, but no folder of PNGs.
    """
    folder = masks or annotations.with_suffix("")
    if is_file(annotations) and not is_folder(folder):
        raise TokenLabelsError(f"{folder}: no such folder: unpack the PNGs there, or name their folder with --masks.")
    return split_name(name), annotations, folder, images


def _with_segments(split: Split, reading: Reading, log: FindingLog) -> Split:
    """The split with its maps, checked."""
    records = split.records
    assert records.maps is not None
    segments = Segments(
        records.offsets, records.ids, records.categories, records.crowd, np.ones(len(records.ids), np.bool_)
    )
    maps = replace(records.maps, segments=segments)
    split = checked_maps(replace(split, records=replace(records, maps=maps)), reading, log)
    if reading.embed_masks:
        assert split.records.maps is not None
        split = replace(split, records=replace(split.records, mask_files=split.records.maps.files))
    return split


def _with_count(split: Split, count: int) -> Split:
    assert split.records.maps is not None
    maps = replace(split.records.maps, category_count=count)
    return replace(split, records=replace(split.records, maps=maps))


def _decoded(data: memoryview, path: Location) -> _Document:
    try:
        try:
            return msgspec.json.decode(data, type=_Document)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            return msgspec.json.decode(reread(data, path, fault), type=_Document)
    except msgspec.ValidationError as fault:
        if "field `segments_info`" in str(fault):
            hint = "for an instances file, use `build coco`"
        else:
            hint = "a panoptic file has images, categories, and annotations with segments_info"
        raise AnnotationFileError(path, f"is no COCO panoptic file ({fault}): {hint}.") from None
    except RecursionError:
        raise AnnotationFileError(path, "is nested too deeply to be a COCO file.") from None


def _to_records(document: _Document, path: Location, masks: Location, reading: Reading, log: FindingLog) -> Records:
    """Columns of the images that have an annotation, in file order, and of their segments.

    An image with a segment that cannot be used is left out: what its pixels are, nobody can say.
    """
    by_image: dict[str, _Annotation] = {}
    for annotation in document.annotations:
        image_id = str(annotation.image_id)
        if by_image.setdefault(image_id, annotation) is not annotation:
            message = f"image {image_id} has a second annotation."
            log.add(check.IMAGE_DUPLICATE, path.name, message, image_id=image_id)
    images = _usable_images(document, by_image, path, log)
    if reading.limit is not None:
        images = images[: reading.limit]
    known = {category.id: index for index, category in enumerate(document.categories)}
    segments: list[_Segment] = []
    counts = np.zeros(len(images), np.int64)
    for row, image in enumerate(images):
        found = by_image[str(image.id)].segments_info
        for segment in found:
            segment.image_id = image.id
        segments += found
        counts[row] = len(found)
    rows = np.repeat(np.arange(len(images)), counts)
    widths = np.array([image.width for image in images], np.int32)
    heights = np.array([image.height for image in images], np.int32)
    notes = AnnotationNotes(segments, path.name, log)
    ids = np.array([segment.id for segment in segments], np.int64)
    notes.flag(
        check.ANNOTATION_MALFORMED,
        (ids < 1) | (ids > _MAX_ID),
        lambda _i: f"has an id that no colour can be, which is 1 to {_MAX_ID}",
    )
    notes.flag(
        check.ANNOTATION_MALFORMED, _repeated(rows, ids), lambda _i: "has the id of another segment of the image"
    )
    categories = np.array([known.get(segment.category_id, -1) for segment in segments], np.int64)
    notes.flag(
        check.UNKNOWN_CATEGORY,
        categories < 0,
        lambda i: f"has category_id {segments[i].category_id}, which is not in the category table",
    )
    boxes = checked_boxes(notes, widths, heights, rows)
    areas = np.array([segment.area for segment in segments], np.float64)
    usable = (areas >= 0) & (areas <= MAX_IMAGE_PIXELS)
    notes.flag(check.NO_AREA, ~usable, lambda _i: "has no usable area")
    fine = np.bincount(rows[~notes.usable], minlength=len(images)) == 0
    files = [by_image[str(image.id)].file_name for image in images]
    return Records(
        image_ids=[str(image.id) for image in images],
        file_names=[image.file_name for image in images],
        widths=widths,
        heights=heights,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        ids=ids,
        boxes=boxes,
        categories=categories.astype(np.int32),
        areas=np.where(usable, areas, np.abs(boxes[:, 2] * boxes[:, 3])),
        crowd=np.array([bool(segment.iscrowd) for segment in segments], np.bool_),
        difficult=np.zeros(len(segments), np.bool_),
        maps=LabelMaps(masks.resolve(), files, ["rgb"] * len(files)),
    ).keep_images(fine)


def _repeated(rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (m,): an annotation before it has the same image and id."""
    keys = rows * (_MAX_ID + 2) + np.clip(ids, 0, _MAX_ID + 1)
    repeated = np.ones(len(ids), np.bool_)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated


def _usable_images(
    document: _Document, by_image: dict[str, _Annotation], path: Location, log: FindingLog
) -> list[ImageEntry]:
    """The images with a usable size and an annotation; an image without one is reported and left out."""
    kept: list[ImageEntry] = []
    seen: set[str] = set()
    for image in document.images:
        image_id = str(image.id)
        if image_id in seen:
            log.add(check.IMAGE_DUPLICATE, path.name, f"image id {image_id} occurs again.", image_id=image_id)
            continue
        seen.add(image_id)
        fine = 1 <= image.width <= MAX_IMAGE_SIDE and 1 <= image.height <= MAX_IMAGE_SIDE
        if not fine or image.width * image.height > MAX_IMAGE_PIXELS:
            message = f"image {image_id} is said to be {image.width} x {image.height} pixels."
            log.add(check.IMAGE_SIZE, path.name, message, image_id=image_id)
            continue
        annotation = by_image.get(image_id)
        if annotation is None:
            log.add(check.MAP_MISSING, path.name, f"image {image_id} has no annotation.", image_id=image_id)
        elif not annotation.file_name or not is_inside(annotation.file_name):
            message = f"the mask of image {image_id}, {annotation.file_name[:200]!r}, is no file in the mask folder."
            log.add(check.MAP_UNREADABLE, path.name, message, image_id=image_id)
        elif len(annotation.segments_info) > _MAX_SEGMENTS:
            message = f"image {image_id} has more than {_MAX_SEGMENTS} segments."
            log.add(check.IMAGE_MALFORMED, path.name, message, image_id=image_id)
        else:
            kept.append(image)
            if not image.file_name:
                log.add(check.IMAGE_NO_NAME, path.name, f"image {image_id} has no file_name.", image_id=image_id)
            elif not is_inside(image.file_name):
                message = f"image {image_id} has file_name {image.file_name[:200]!r}, which leaves the image folder."
                log.add(check.IMAGE_PATH, path.name, message, image_id=image_id)
    for image_id in by_image:
        if image_id not in seen:
            message = f"an annotation belongs to image {image_id}, which is not in the file."
            log.add(check.UNKNOWN_IMAGE, path.name, message, image_id=image_id)
    return kept
