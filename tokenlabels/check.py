"""Findings: what is wrong with annotations, each with a stable code, a severity and a location.

A finding is an *error* only where the chosen rule cannot score the annotation without guessing, so the severity of a
fault in a mask depends on whether the rule reads masks. Everything else is a *warning*: counted, and the build goes on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from tokenlabels.errors import FindingsError

Severity: TypeAlias = Literal["error", "warning"]

PREFIXES = {"coco": "COCO", "voc": "VOC", "semantic": "SEM"}
"""What codes begin with, by source format."""

EXAMPLES_PER_CODE = 20
"""Findings of one code that are kept in full for the manifest; the others are only counted."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of fault.

    Attributes:
        number: three digits; with the prefix of the format they are the stable code, such as `COCO020`.
        title: what is wrong, in a few words.
        box: severity under the box rules `overlap` and `jaccard`.
        mask: severity under `pixel-ratio`.
        consequence: what is done about it under `--on-error skip`, or at once for a warning.
    """

    number: str
    title: str
    box: Severity
    mask: Severity
    consequence: str


_LEFT_OUT = "annotation left out"
_IMAGE_OUT = "image and its annotations left out"
_KEPT = "kept as it is"

IMAGE_MALFORMED = Kind("001", "image entry is malformed", "error", "error", _IMAGE_OUT)
IMAGE_DUPLICATE = Kind("002", "image id occurs twice", "error", "error", "second entry left out")
IMAGE_SIZE = Kind("003", "image size is impossible", "error", "error", _IMAGE_OUT)
IMAGE_NO_NAME = Kind("004", "image has no file_name", "warning", "warning", "file_name stored empty")
IMAGE_PATH = Kind("005", "file_name leaves the image folder", "warning", "warning", "file not opened")
CATEGORY_DUPLICATE_NAME = Kind("006", "category name occurs twice", "warning", "warning", "both kept")
IMAGE_JSON = Kind("007", "JSON file of an image cannot be read", "error", "error", _IMAGE_OUT)
ANNOTATION_MALFORMED = Kind("010", "annotation is malformed", "error", "error", _LEFT_OUT)
ANNOTATION_DUPLICATE = Kind("011", "annotation id occurs twice", "warning", "warning", "both kept")
UNKNOWN_IMAGE = Kind("012", "annotation of an unknown image", "error", "error", _LEFT_OUT)
UNKNOWN_CATEGORY = Kind("013", "annotation of an unknown category", "error", "error", _LEFT_OUT)
ANNOTATION_NO_ID = Kind("014", "annotation has no usable id", "warning", "warning", "id stored as -1")
NO_AREA = Kind("015", "annotation has no usable area", "warning", "warning", "area of the box stored")
BOX_MALFORMED = Kind("020", "bbox is missing or not four numbers", "error", "warning", "left out, or stored as zeros")
BOX_WILD = Kind("021", "bbox is not finite or absurdly large", "error", "warning", "left out, or stored as zeros")
BOX_NEGATIVE = Kind("022", "bbox has a negative width or height", "error", "warning", "left out, or kept as it is")
BOX_EMPTY = Kind("023", "bbox has zero area", "warning", "warning", "kept, makes no patch foreground")
BOX_OUTSIDE = Kind("024", "bbox lies wholly outside the image", "warning", "warning", "kept, makes no patch foreground")
BOX_PARTLY_OUTSIDE = Kind("025", "bbox lies partly outside the image", "warning", "warning", "clipped for scoring")
MASK_MISSING = Kind("030", "segmentation is missing or empty", "warning", "error", _LEFT_OUT)
MASK_MALFORMED = Kind("031", "segmentation is malformed", "warning", "error", _LEFT_OUT)
RING_SHORT = Kind("032", "polygon has fewer than 3 points", "warning", "error", _LEFT_OUT)
RING_ODD = Kind("033", "polygon has an odd count of numbers", "warning", "error", _LEFT_OUT)
RING_WILD = Kind("034", "polygon is not finite or absurdly large", "warning", "error", _LEFT_OUT)
RLE_SIZE = Kind("035", "RLE size differs from the image", "warning", "error", _LEFT_OUT)
RLE_MALFORMED = Kind("036", "RLE counts do not fill the image", "warning", "error", _LEFT_OUT)
MASK_EMPTY = Kind("037", "mask holds no pixel", "warning", "warning", "kept, makes no patch foreground")
RING_CROSSED = Kind("038", "polygon crosses itself", "warning", "warning", "filled as pycocotools does")
RING_FLAT = Kind("039", "polygon has zero area", "warning", "warning", "filled as pycocotools does")
FILE_SIZE = Kind("040", "stored image size differs from the annotated one", "error", "error", _IMAGE_OUT)
FILE_MISSING = Kind("041", "image file is missing", "warning", "warning", "labels are made all the same")
FILE_UNREADABLE = Kind("042", "image file cannot be read", "warning", "warning", "labels are made all the same")
FILE_EXTRA = Kind("043", "image on disk is not in the annotation file", "warning", "warning", "not built")
FILE_TURNED = Kind(
    "044", "embedded image has an EXIF orientation", "warning", "warning", "stored as it is; readers may turn it"
)

XML_UNREADABLE = Kind("050", "XML file cannot be read", "error", "error", _IMAGE_OUT)
XML_MISSING = Kind("051", "listed image has no XML file", "error", "error", _IMAGE_OUT)
LIST_DUPLICATE = Kind("052", "image is listed twice", "warning", "warning", "second entry passed over")
LIST_PATH = Kind("053", "listed id is no plain name", "error", "error", _IMAGE_OUT)
MAP_MISSING = Kind("055", "image has no mask", "warning", "warning", "left out under pixel-ratio, else built")
MAP_UNREADABLE = Kind("056", "mask cannot be read", "warning", "error", _IMAGE_OUT)
MAP_MODE = Kind("057", "mask is of another kind than its values need", "warning", "error", _IMAGE_OUT)
MAP_SIZE = Kind("058", "mask size differs from the image", "warning", "error", _IMAGE_OUT)
MAP_VALUE = Kind("059", "mask holds a value without a meaning", "warning", "error", _IMAGE_OUT)
MAP_OBJECT = Kind("060", "instance in the mask has no object in the XML", "warning", "warning", "foreground")

KINDS: dict[str, Kind] = {kind.number: kind for kind in list(globals().values()) if isinstance(kind, Kind)}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One fault at one place.

    Attributes:
        code: prefix of the format and number of the kind.
        severity: `error` or `warning`, under the rule it was found for.
        file: annotation file name.
        message: one sentence: what is wrong there.
        image_id: where known.
        annotation_id: where known.
    """

    code: str
    severity: Severity
    file: str
    message: str
    image_id: str | None = None
    annotation_id: int | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.file}: {self.message}"


def code_of(kind: Kind, source_format: str) -> str:
    """The stable code of a kind of fault in a format."""
    return PREFIXES[source_format] + kind.number


def kind_of(code: str) -> Kind | None:
    """The kind that a code names, None where this version knows none."""
    return KINDS.get(code[-3:])


def empty_mask(source_format: str, file: str, image_id: str, annotation_id: int) -> Finding:
    """The finding that a mask holds no pixel, which only drawing it shows."""
    message = f"annotation {annotation_id} of image {image_id} has a mask without pixels."
    return Finding(code_of(MASK_EMPTY, source_format), "warning", file, message, image_id, annotation_id)


def strange_object(source_format: str, file: str, image_id: str, value: int) -> Finding:
    """The finding that an object mask holds a value that is no object of the XML."""
    message = f"the object mask of image {image_id} holds the value {value}, the XML has no such object."
    return Finding(code_of(MAP_OBJECT, source_format), "warning", file, message, image_id)


class FindingLog:
    """Collects findings: exact counts by code, and the first examples of each.

    Args:
        masks_scored: masks are read for labels or categories, so faults in them are errors.
        boxes_scored: the rule reads boxes, so faults in them are errors; None: where no masks are.
        promoted: codes that are errors in this run whatever the rule, such as a missing file that is to be embedded.
        examples: how many findings of a code are kept in full; None keeps all.
        source_format: decides the prefix of the codes.
    """

    def __init__(
        self,
        *,
        masks_scored: bool,
        boxes_scored: bool | None = None,
        promoted: Iterable[Kind] = (),
        examples: int | None = EXAMPLES_PER_CODE,
        source_format: str = "coco",
    ) -> None:
        self.masks_scored = masks_scored
        self._boxes_scored = not masks_scored if boxes_scored is None else boxes_scored
        self.source_format = source_format
        self._promoted = {kind.number for kind in promoted}
        self._limit = sys.maxsize if examples is None else examples
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Finding]] = {}

    def fresh(self) -> FindingLog:
        """An empty log with the same severities, for work done elsewhere; `extend` takes its findings over."""
        empty = copy.copy(self)
        empty.counts, empty.examples = {}, {}
        return empty

    def severity(self, kind: Kind) -> Severity:
        """Severity of a kind of fault in this run."""
        if kind.number in self._promoted:
            return "error"
        scored = (self.masks_scored and kind.mask == "error") or (self._boxes_scored and kind.box == "error")
        return "error" if scored else "warning"

    def add(
        self, kind: Kind, file: str, message: str, *, image_id: str | None = None, annotation_id: int | None = None
    ) -> Severity:
        """Count one finding, keep it while there is room, and return its severity."""
        severity, code = self.severity(kind), code_of(kind, self.source_format)
        self.counts[code] = self.counts.get(code, 0) + 1
        kept = self.examples.setdefault(code, [])
        if len(kept) < self._limit:
            kept.append(Finding(code, severity, file, message, image_id, annotation_id))
        return severity

    def take(self, finding: Finding) -> None:
        """Count a finding made elsewhere, and keep it while there is room."""
        self.extend([finding], {finding.code: 1})

    def wants_example(self, kind: Kind) -> bool:
        """Whether the next finding of this kind would be kept in full, so that its message is worth wording."""
        return len(self.examples.get(code_of(kind, self.source_format), ())) < self._limit

    def count(self, kind: Kind, more: int) -> None:
        """Count findings that need no example any more."""
        if more:
            code = code_of(kind, self.source_format)
            self.counts[code] = self.counts.get(code, 0) + more

    def extend(self, findings: Iterable[Finding], counts: dict[str, int]) -> None:
        """Take over findings made elsewhere, in a worker, say: their examples, and their counts by code."""
        for code, count in counts.items():
            self.counts[code] = self.counts.get(code, 0) + count
        for finding in findings:
            kept = self.examples.setdefault(finding.code, [])
            if len(kept) < self._limit:
                kept.append(finding)

    @property
    def error_count(self) -> int:
        return sum(count for code, count in self.counts.items() if self.severity(KINDS[code[-3:]]) == "error")

    @property
    def warning_count(self) -> int:
        return sum(self.counts.values()) - self.error_count

    def by_code(self) -> dict[str, int]:
        """Counts by code, codes in order."""
        return dict(sorted(self.counts.items()))

    def listed(self) -> list[Finding]:
        """The findings kept in full, by code."""
        return [finding for code in sorted(self.examples) for finding in self.examples[code]]

    def raise_errors(self) -> None:
        """Raise `FindingsError` where there is any error, wording the first."""
        if not self.error_count:
            return
        first = next(finding for finding in self.listed() if finding.severity == "error")
        more = f" (and {self.error_count - 1} more errors)" if self.error_count > 1 else ""
        raise FindingsError(
            f"{str(first).rstrip('.')}{more}; nothing was built: mend the file, or leave such entries out with "
            "--on-error skip (`tokenlabels check` lists them all)."
        )
