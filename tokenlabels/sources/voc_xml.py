"""One VOC XML file -> its size and its objects. Files are untrusted: no document type, so no entities, no network.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, section "Annotation".
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 16 << 20
"""Larger files are no annotation of one image."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class XmlFileError(Exception):
    """The file cannot be read; the message says what is wrong, to follow the name of the file."""


@dataclass(frozen=True, slots=True)
class VocObject:
    """One object.

    Attributes:
        id: its place in the file, from 1 on; the value of its pixels in an object mask.
        image_id: id of the image.
        name: of the category, empty where the file has none.
        bbox: x, y, width, height, 0-based: the file's 1-based inclusive corners, minus 1 at the left and top; None
            where the four are not there, or not numbers.
        difficult: hard to recognise, left out of VOC's evaluation.
    """

    id: int
    image_id: str
    name: str
    bbox: tuple[float, float, float, float] | None
    difficult: bool


@dataclass(frozen=True, slots=True)
class VocImage:
    """One image.

    Attributes:
        image_id: stem of the XML file.
        suffix: of the picture's file name, with the dot; empty where the file has none.
        width: pixels, 0 where the file does not say.
        height: pixels, 0 where the file does not say.
        segmented: it should have masks.
        objects: in file order.
    """

    image_id: str
    suffix: str
    width: int
    height: int
    segmented: bool
    objects: tuple[VocObject, ...]


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type, and with it every entity, before it is read."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002
        raise XmlFileError("has a document type (DOCTYPE), which may hold entities: it is not read; remove it")


def parse_voc_xml(data: bytes, image_id: str) -> VocImage:
    """Read one annotation, of which more than `MAX_BYTES` need not be there to be refused.

    Raises:
        XmlFileError: absurdly large, no XML, not an annotation, or with a document type.
    """
    if len(data) > MAX_BYTES:
        raise XmlFileError(f"is larger than {MAX_BYTES >> 20} MiB: this is no annotation of one image")
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDocumentType()))  # noqa: S314  see above
    except ElementTree.ParseError as fault:
        raise XmlFileError(f"is empty, cut short, or no XML ({fault}): fetch it again") from None
    except (ValueError, LookupError, RecursionError) as fault:
        raise XmlFileError(f"is no XML that can be read ({fault})") from None
    if root.tag != "annotation":
        raise XmlFileError(f"has the root element <{root.tag[:80]}>, not <annotation>: this is no VOC annotation")
    name = (root.findtext("filename") or "").strip()
    _, dot, suffix = name.rpartition(".")
    return VocImage(
        image_id,
        f".{suffix}" if dot and suffix.isalnum() else "",
        _size(root.findtext("size/width")),
        _size(root.findtext("size/height")),
        _flag(root.findtext("segmented")),
        tuple(_object(element, place, image_id) for place, element in enumerate(root.iterfind("object"), 1)),
    )


def _object(element: ElementTree.Element, place: int, image_id: str) -> VocObject:
    name = (element.findtext("name") or "").strip()
    return VocObject(place, image_id, name, _box(element.find("bndbox")), _flag(element.findtext("difficult")))


def _box(element: Any) -> tuple[float, float, float, float] | None:
    if element is None:
        return None
    try:
        xmin, ymin, xmax, ymax = (float(element.findtext(corner) or "") for corner in _CORNERS)
    except ValueError:
        return None
    return xmin - 1, ymin - 1, xmax - (xmin - 1), ymax - (ymin - 1)


def _size(text: str | None) -> int:
    try:
        value = float(text or "0")
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) and 0 <= value < 1e9 else 0


def _flag(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes")
