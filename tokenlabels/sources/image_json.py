"""The bytes of a JSON file that describes one image -> typed entries, as those of an instances file.

SA-1B has such files: `{"image": {"image_id", "width", "height", "file_name"}, "annotations": [{"id", "segmentation",
"bbox", "area", ...}]}`, without categories; they are decoded in one pass. Files with `images`, a list of one, or with
`categories` are brought into the form of an instances file first, and so is whatever has a fault.

Format: https://github.com/facebookresearch/segment-anything#dataset
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, cast

import msgspec

from tokenlabels import check
from tokenlabels.annotations import Category
from tokenlabels.check import Finding, FindingLog
from tokenlabels.errors import AnnotationFileError
from tokenlabels.sources.coco_json import Box, BoxEntry, E, EntryId, ImageEntry, Int64, read_document, reread

DEFAULT_TABLE = (Category(1, "object"),)
"""The categories of a file that names none."""

_DEFAULT_CATEGORIES = msgspec.Raw(b'[{"id":1,"name":"object"}]')

Fields: TypeAlias = dict[str, msgspec.Raw]


class _Image(msgspec.Struct, gc=False):
    image_id: EntryId
    width: Int64
    height: Int64
    file_name: str = ""


class _OwnBox(msgspec.Struct, gc=False):
    """A `BoxEntry` whose image and category go without saying."""

    image_id: EntryId | None = None
    category_id: Int64 = 1
    id: Int64 | None = None
    bbox: Box | None = None
    area: float | None = None
    iscrowd: Int64 = 0


class _OwnMask(_OwnBox, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"")


class _File(msgspec.Struct, Generic[E]):
    image: _Image
    annotations: list[E]
    images: msgspec.UnsetType = msgspec.UNSET
    categories: msgspec.UnsetType = msgspec.UNSET


_BOX_FILE = msgspec.json.Decoder(_File[_OwnBox])  # type: ignore[type-var]
_MASK_FILE = msgspec.json.Decoder(_File[_OwnMask])  # type: ignore[type-var]


class _Shape(msgspec.Struct):
    annotations: list[msgspec.Raw]
    image: Fields | None = None
    images: list[msgspec.Raw] | None = None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, its annotations, the category table of its file, and where in its list each annotation is."""

    image: ImageEntry
    annotations: Sequence[BoxEntry]
    categories: tuple[Category, ...]
    places: Sequence[int]


def parse_image_file(data: Any, name: str, log: FindingLog, *, masks: bool) -> ImageFile | None:
    """Decode the JSON of one image.

    Args:
        data: the whole file, any bytes-like object; the raw masks keep it alive.
        name: of the file, for messages.
        log: receives every fault.
        masks: also keep each `segmentation` as raw JSON.

    Returns:
        What it holds; None, reported, where it does not describe an image.
    """
    try:
        found = (_MASK_FILE if masks else _BOX_FILE).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_other(data, name, log, masks=masks)
    image, image_id = found.image, found.image.image_id
    strangers = False
    for entry in found.annotations:
        if entry.image_id is None:
            entry.image_id = image_id
        elif entry.image_id != image_id:
            strangers = True
    entries, places = cast(list[BoxEntry], found.annotations), range(len(found.annotations))
    entry_of_image = ImageEntry(image_id, image.width, image.height, image.file_name)
    if strangers:
        return _with_own(entry_of_image, entries, places, DEFAULT_TABLE, name, log)
    return ImageFile(entry_of_image, entries, DEFAULT_TABLE, places)


def describes_image(data: Any) -> bool:
    """Whether a JSON file looks like one that describes a single image."""
    try:
        shape = msgspec.json.decode(data, type=_Shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return shape.image is not None or len(shape.images or ()) == 1


def _with_own(
    image: ImageEntry,
    entries: Sequence[BoxEntry],
    places: Sequence[int],
    categories: tuple[Category, ...],
    name: str,
    log: FindingLog,
) -> ImageFile:
    """The image with the entries that are of it; others are reported."""
    kept, kept_places = list[BoxEntry](), list[int]()
    for index, entry in zip(places, entries, strict=True):
        if str(entry.image_id) == str(image.id):
            entry.image_id = image.id
            kept.append(entry)
            kept_places.append(index)
            continue
        named = f"annotation {entry.id}" if entry.id is not None else f"annotations[{index}]"
        message = f"{named} of image {entry.image_id} belongs to an image that is not in the file."
        log.add(check.UNKNOWN_IMAGE, name, message, image_id=str(entry.image_id), annotation_id=entry.id)
    return ImageFile(image, kept, categories, kept_places)


def _parse_other(data: Any, name: str, log: FindingLog, *, masks: bool) -> ImageFile | None:
    """By way of an instances file of one image."""
    path, found = Path(name), log.fresh()
    try:
        document = read_document(_as_instances(data, path), path, found, masks=masks)
    except RecursionError:
        log.add(check.IMAGE_JSON, name, "is nested too deeply.")
        return None
    except AnnotationFileError as fault:
        log.add(check.IMAGE_JSON, name, f"{fault.problem.rstrip('.')}.")
        return None
    findings, counts = [_in_file(finding, name) for finding in found.listed()], found.counts
    if not document.images:  # its annotations go with it
        code = check.code_of(check.IMAGE_MALFORMED, log.source_format)
        log.extend([finding for finding in findings if finding.code == code], {code: counts[code]})
        return None
    log.extend(findings, counts)
    places = document.annotation_places
    return _with_own(
        document.images[0],
        document.annotations,
        range(len(document.annotations)) if places is None else places,
        document.categories,
        name,
        log,
    )


def _in_file(finding: Finding, name: str) -> Finding:
    """A finding of the instances file as one of the file that it stands for, which has one image."""
    message = finding.message
    if message.startswith("images[0] "):
        message = "its image" + message.removeprefix("images[0]")
    return msgspec.structs.replace(finding, file=name, message=message)


def _as_instances(data: Any, path: Path) -> bytes:
    """JSON of an instances file.

    Raises:
        AnnotationFileError: not JSON, or not about one image.
    """
    try:
        whole = _fields(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        whole = _fields(reread(data, path, fault))
    if whole is None:
        raise AnnotationFileError(path, "is no JSON object with an image and its annotations.")
    if "images" in whole:
        images = _list(whole, "images", path)
        if len(images) != 1:
            raise AnnotationFileError(
                path,
                f"holds {len(images)} images, but in a folder each file describes one: name an instances file itself "
                "with --annotations",
            )
        image = images[0]
    elif "image" in whole:
        image = whole["image"]
    else:
        raise AnnotationFileError(path, "has neither 'image' nor 'images', so it describes no image.")
    fields = _fields(image)
    if fields is not None and "image_id" in fields:
        fields.setdefault("id", fields["image_id"])
    image_id = None if fields is None else fields.get("id")
    categories = whole.get("categories")
    annotations = []
    for raw in _list(whole, "annotations", path):
        entry = _fields(raw)
        if entry is not None:
            if image_id is not None:
                entry.setdefault("image_id", image_id)
            if categories is None:
                entry.setdefault("category_id", msgspec.Raw(b"1"))
        annotations.append(raw if entry is None else entry)
    return msgspec.json.encode(
        {
            "images": [image if fields is None else fields],
            "annotations": annotations,
            "categories": _DEFAULT_CATEGORIES if categories is None else categories,
        }
    )


def _fields(data: Any) -> Fields | None:
    """The fields of a JSON object; None of anything else."""
    try:
        return msgspec.json.decode(data, type=Fields)
    except msgspec.ValidationError:
        return None


def _list(whole: Fields, key: str, path: Path) -> list[msgspec.Raw]:
    if key not in whole:
        raise AnnotationFileError(path, f"has no '{key}' list, so it describes no image.")
    try:
        return msgspec.json.decode(whole[key], type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise AnnotationFileError(path, f"has '{key}' that is no list: it should be a list of objects.") from None
