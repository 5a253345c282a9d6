"""The bytes of a COCO instances file -> typed entries.

A good file is decoded in one pass by msgspec with the masks left as raw bytes. A file with faults is decoded entry by
entry, so that a fault costs one entry and names it; a file with `NaN` or `Infinity` (no JSON, but common) goes through
the standard library first, which reads them, and they become faults of their entries.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar, cast

import msgspec

from tokenlabels import check
from tokenlabels.annotations import Category
from tokenlabels.check import FindingLog
from tokenlabels.errors import AnnotationFileError

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
EntryId: TypeAlias = Int64 | str
Box: TypeAlias = tuple[float, float, float, float]

_INT64_DIGITS = 19
"""A number of fewer digits fits in 64 bits."""


class ImageEntry(msgspec.Struct, gc=False):
    """One entry of `images`."""

    id: EntryId
    width: Int64
    height: Int64
    file_name: str = ""


class BoxEntry(msgspec.Struct, gc=False):
    """One entry of `annotations`, its mask skipped."""

    image_id: EntryId
    category_id: Int64
    id: Int64 | None = None
    bbox: Box | None = None
    area: float | None = None
    iscrowd: Int64 = 0


class MaskEntry(BoxEntry, gc=False):
    """One entry of `annotations` with its mask as undecoded JSON."""

    segmentation: msgspec.Raw = msgspec.Raw(b"")


class CategoryEntry(msgspec.Struct):
    """One entry of `categories`."""

    id: Int64
    name: str
    supercategory: str | None = None


class _LooseFile(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


E = TypeVar("E", bound=BoxEntry)


class _StrictFile(msgspec.Struct, Generic[E]):
    images: list[ImageEntry]
    annotations: list[E]
    categories: list[CategoryEntry]


@dataclass(frozen=True, slots=True)
class Document:
    """The three lists of an instances file, or of several files that hold one image each."""

    images: Sequence[ImageEntry]
    annotations: Sequence[BoxEntry]
    categories: tuple[Category, ...]
    lost_images: frozenset[EntryId] = frozenset()
    """Ids of malformed image entries, which are not in `images`."""
    ids_per_image: bool = False
    """Ids of annotations need to differ only within an image."""
    image_places: Sequence[int] | None = None
    """Index of each image in the list of its file; None: the one that it has here."""
    annotation_places: Sequence[int] | None = None
    """Index of each annotation in the list of its file; None: the one that it has here."""


def read_document(data: Any, path: Location, log: FindingLog, *, masks: bool) -> Document:
    """Decode an instances file.

    Args:
        data: the whole file, any bytes-like object; the raw masks keep it alive.
        path: for messages.
        log: receives the findings of malformed entries; those with an error are not in the result.
        masks: also keep each `segmentation` as raw JSON (`MaskEntry`).

    Raises:
        AnnotationFileError: not JSON, or not shaped like an instances file.
    """
    entry_type = MaskEntry if masks else BoxEntry
    try:
        try:
            return _decode_whole(data, path, log, entry_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            return _decode_entries(reread(data, path, fault), path, log, entry_type)
    except RecursionError:
        raise AnnotationFileError(path, "is nested too deeply to be a COCO file.") from None


def lenient_loads(text: bytes) -> Any:
    """What the standard library reads, `NaN` and `Infinity` included; numbers beyond 64 bits become floats."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _INT64_DIGITS else float(digits))


def _decode_whole(data: Any, path: Location, log: FindingLog, entry_type: type[BoxEntry]) -> Document:
    try:
        strict = msgspec.json.decode(data, type=_StrictFile[entry_type])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        return _decode_entries(data, path, log, entry_type)
    return Document(strict.images, strict.annotations, category_table(strict.categories, path, log))


def reread(data: Any, path: Location, fault: Exception) -> bytes:
    """Strict JSON from a file that has `NaN`, `Infinity` or a byte-order mark; numbers that are none become null.

    Raises:
        AnnotationFileError: it is no JSON, or cut short.
    """
    text = bytes(data)
    if not text.strip(b" \t\r\n\0"):
        raise AnnotationFileError(path, "is empty: it should hold COCO annotations as JSON.") from None
    try:
        value = lenient_loads(text)
    except json.JSONDecodeError as error:
        cut = (
            "it seems to be cut short" if error.pos >= len(error.doc.rstrip()) - 1 or "truncated" in str(fault) else ""
        )
        raise AnnotationFileError(
            path,
            f"is not valid JSON at line {error.lineno} column {error.colno} ({error.msg}{'; ' + cut if cut else ''}): "
            "fetch or export it again.",
        ) from None
    except ValueError:
        raise AnnotationFileError(path, f"is not valid JSON ({fault}): fetch or export it again.") from None
    try:
        return msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
        raise AnnotationFileError(path, f"is not valid JSON ({fault}): fetch or export it again.") from None


def _decode_entries(data: Any, path: Location, log: FindingLog, entry_type: type[BoxEntry]) -> Document:
    """Entry by entry: a malformed one becomes a finding."""
    try:
        loose = msgspec.json.decode(data, type=_LooseFile)
    except msgspec.ValidationError as fault:
        raise AnnotationFileError(path, _wrong_shape(reread(data, path, fault))) from None
    lost: set[EntryId] = set()
    images, image_places = _each(loose.images, ImageEntry, lambda raw, place: _mend_image(raw, place, path, log, lost))
    annotations, annotation_places = _each(
        loose.annotations, entry_type, lambda raw, place: _mend_annotation(raw, place, path, log, entry_type)
    )
    categories = []
    for index, raw in enumerate(loose.categories):
        try:
            categories.append(msgspec.json.decode(raw, type=CategoryEntry))
        except msgspec.ValidationError as fault:
            raise AnnotationFileError(
                path, f"categories[{index}] is malformed ({fault}): it needs a whole-number id and a name."
            ) from None
    table = category_table(categories, path, log)
    return Document(
        images, annotations, table, frozenset(lost), image_places=image_places, annotation_places=annotation_places
    )


def _wrong_shape(data: bytes) -> str:
    value = msgspec.json.decode(data)
    if isinstance(value, list):
        return "is a JSON list, such as a results file: an instances file is an object with images and annotations."
    if not isinstance(value, dict):
        return "is not a COCO file: an instances file is a JSON object with images, annotations and categories."
    for key in ("images", "annotations", "categories"):
        if key not in value:
            return (
                f"has no '{key}' list: an instances file has images, annotations and categories "
                "(a test or caption file has no instances)."
            )
        if not isinstance(value[key], list):
            return f"has '{key}' that is no list: it should be a list of objects."
    return "is not shaped like a COCO instances file."


T = TypeVar("T")


def _each(
    raws: list[msgspec.Raw], kind: type[T], mend: Callable[[msgspec.Raw, int], T | None]
) -> tuple[list[T], list[int]]:
    """Entries, and the index of each."""
    decoder = msgspec.json.Decoder(kind)
    entries, places = list[T](), list[int]()
    for place, raw in enumerate(raws):
        entry: T | None
        try:
            entry = decoder.decode(raw)
        except msgspec.ValidationError:
            entry = mend(raw, place)
        if entry is not None:
            entries.append(entry)
            places.append(place)
    return entries, places


def _fields(raw: msgspec.Raw) -> dict[str, msgspec.Raw] | None:
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return None


def _value(fields: dict[str, msgspec.Raw], key: str) -> Any:
    """A field, decoded; infinity for a number beyond float64; None where it is absent."""
    if key not in fields:
        return None
    try:
        return msgspec.json.decode(fields[key])
    except msgspec.ValidationError:
        return lenient_loads(bytes(fields[key]))


def _whole(value: Any) -> int | None:
    """An int64 from 3 or 3.0; None from anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    return None


def _entry_id(value: Any) -> EntryId | None:
    return value if isinstance(value, str) else _whole(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mend_image(raw: msgspec.Raw, place: int, path: Location, log: FindingLog, lost: set[EntryId]) -> ImageEntry | None:
    fields = _fields(raw)
    if fields is None:
        log.add(check.IMAGE_MALFORMED, path.name, f"images[{place}] is no JSON object.")
        return None
    image_id = _entry_id(_value(fields, "id"))
    if image_id is None:
        log.add(check.IMAGE_MALFORMED, path.name, f"images[{place}] has no usable id ({_shown(_value(fields, 'id'))}).")
        return None
    sides = [_whole(_value(fields, key)) for key in ("width", "height")]
    if sides[0] is None or sides[1] is None:
        shown = f"width {_shown(_value(fields, 'width'))}, height {_shown(_value(fields, 'height'))}"
        log.add(
            check.IMAGE_MALFORMED,
            path.name,
            f"image {image_id} has no whole-number width and height ({shown}).",
            image_id=str(image_id),
        )
        lost.add(image_id)
        return None
    name = _value(fields, "file_name")
    return ImageEntry(image_id, sides[0], sides[1], name if isinstance(name, str) else "")


def _mend_annotation(
    raw: msgspec.Raw, place: int, path: Location, log: FindingLog, entry_type: type[BoxEntry]
) -> BoxEntry | None:
    fields = _fields(raw)
    if fields is None:
        log.add(check.ANNOTATION_MALFORMED, path.name, f"annotations[{place}] is no JSON object.")
        return None
    annotation_id = _whole(_value(fields, "id"))
    image_id = _entry_id(_value(fields, "image_id"))
    category_id = _whole(_value(fields, "category_id"))
    crowd = _value(fields, "iscrowd")
    crowd = int(crowd) if isinstance(crowd, bool) else 0 if crowd is None else _whole(crowd)
    for key, value in (("image_id", image_id), ("category_id", category_id), ("iscrowd", crowd)):
        if value is None:
            named = f"annotation {annotation_id}" if annotation_id is not None else f"annotations[{place}]"
            log.add(
                check.ANNOTATION_MALFORMED,
                path.name,
                f"{named} has no usable {key} ({_shown(_value(fields, key))}).",
                image_id=None if image_id is None else str(image_id),
                annotation_id=annotation_id,
            )
            return None
    area = _value(fields, "area")
    entry = entry_type(
        image_id=cast(EntryId, image_id),
        category_id=cast(int, category_id),
        id=annotation_id,
        bbox=_mended_box(_value(fields, "bbox")),
        area=area if isinstance(area, float) else _whole(area),
        iscrowd=cast(int, crowd),
    )
    if isinstance(entry, MaskEntry):
        entry.segmentation = fields.get("segmentation", msgspec.Raw(b""))
    return entry


def _mended_box(value: Any) -> Box | None:
    """A box of four numbers; nulls, which stand for NaN and Infinity, become NaN; None for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(side is None or (isinstance(side, (int, float)) and not isinstance(side, bool)) for side in value):
        return None
    try:
        left, top, width, height = (float("nan") if side is None else float(side) for side in value)
    except OverflowError:
        return (float("inf"),) * 4
    return left, top, width, height


def category_table(entries: Sequence[CategoryEntry], path: Location, log: FindingLog) -> tuple[Category, ...]:
    """The category table of a file.

    Raises:
        AnnotationFileError: an id occurs twice.
    """
    table = tuple(Category(entry.id, entry.name, entry.supercategory or "") for entry in entries)
    seen: dict[int, str] = {}
    names: set[str] = set()
    for category in table:
        if category.id in seen:
            raise AnnotationFileError(
                path,
                f"category id {category.id} occurs twice ({seen[category.id]!r} and {category.name!r}): "
                "give each category its own id.",
            )
        if category.name in names:
            log.add(check.CATEGORY_DUPLICATE_NAME, path.name, f"category name {category.name!r} occurs twice.")
        seen[category.id] = category.name
        names.add(category.name)
    return table
