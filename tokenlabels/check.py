"""Findings: what is wrong with annotations, each with a stable code, a severity and a location.

A finding is an *error* only where the chosen rule cannot score the annotation without guessing, so the severity of a
fault in a mask depends on whether the rule reads masks. Everything else is a *warning*: counted, and the build goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from tokenlabels.errors import FindingsError

Severity: TypeAlias = Literal["error", "warning"]

EXAMPLES_PER_CODE = 20
"""Findings of one code that are kept in full for the manifest; the others are only counted."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of fault.

    Attributes:
        code: stable code.
        title: what is wrong, in a few words.
        box: severity under the box rules `overlap` and `jaccard`.
        mask: severity under `pixel-ratio`.
        consequence: what is done about it under `--on-error skip`, or at once for a warning.
    """

    code: str
    title: str
    box: Severity
    mask: Severity
    consequence: str


_LEFT_OUT = "annotation left out"
_IMAGE_OUT = "image and its annotations left out"
_KEPT = "kept as it is"

IMAGE_MALFORMED = Kind("COCO001", "image entry is malformed", "error", "error", _IMAGE_OUT)
IMAGE_DUPLICATE = Kind("COCO002", "image id occurs twice", "error", "error", "second entry left out")
IMAGE_SIZE = Kind("COCO003", "image size is impossible", "error", "error", _IMAGE_OUT)
IMAGE_NO_NAME = Kind("COCO004", "image has no file_name", "warning", "warning", "file_name stored empty")
IMAGE_PATH = Kind("COCO005", "file_name leaves the image folder", "warning", "warning", "file not opened")
CATEGORY_DUPLICATE_NAME = Kind("COCO006", "category name occurs twice", "warning", "warning", "both kept")
ANNOTATION_MALFORMED = Kind("COCO010", "annotation is malformed", "error", "error", _LEFT_OUT)
ANNOTATION_DUPLICATE = Kind("COCO011", "annotation id occurs twice", "warning", "warning", "both kept")
UNKNOWN_IMAGE = Kind("COCO012", "annotation of an unknown image", "error", "error", _LEFT_OUT)
UNKNOWN_CATEGORY = Kind("COCO013", "annotation of an unknown category", "error", "error", _LEFT_OUT)
ANNOTATION_NO_ID = Kind("COCO014", "annotation has no usable id", "warning", "warning", "id stored as -1")
NO_AREA = Kind("COCO015", "annotation has no usable area", "warning", "warning", "area of the box stored")
BOX_MALFORMED = Kind(
    "COCO020", "bbox is missing or not four numbers", "error", "warning", "left out, or stored as zeros"
)
BOX_WILD = Kind("COCO021", "bbox is not finite or absurdly large", "error", "warning", "left out, or stored as zeros")
BOX_NEGATIVE = Kind("COCO022", "bbox has a negative width or height", "error", "warning", "left out, or kept as it is")
BOX_EMPTY = Kind("COCO023", "bbox has zero area", "warning", "warning", "kept, makes no patch foreground")
BOX_OUTSIDE = Kind(
    "COCO024", "bbox lies wholly outside the image", "warning", "warning", "kept, makes no patch foreground"
)
BOX_PARTLY_OUTSIDE = Kind("COCO025", "bbox lies partly outside the image", "warning", "warning", "clipped for scoring")
MASK_MISSING = Kind("COCO030", "segmentation is missing or empty", "warning", "error", _LEFT_OUT)
MASK_MALFORMED = Kind("COCO031", "segmentation is malformed", "warning", "error", _LEFT_OUT)
RING_SHORT = Kind("COCO032", "polygon has fewer than 3 points", "warning", "error", _LEFT_OUT)
RING_ODD = Kind("COCO033", "polygon has an odd count of numbers", "warning", "error", _LEFT_OUT)
RING_WILD = Kind("COCO034", "polygon is not finite or absurdly large", "warning", "error", _LEFT_OUT)
RLE_SIZE = Kind("COCO035", "RLE size differs from the image", "warning", "error", _LEFT_OUT)
RLE_MALFORMED = Kind("COCO036", "RLE counts do not fill the image", "warning", "error", _LEFT_OUT)
MASK_EMPTY = Kind("COCO037", "mask holds no pixel", "warning", "warning", "kept, makes no patch foreground")
RING_CROSSED = Kind("COCO038", "polygon crosses itself", "warning", "warning", "filled as pycocotools does")
RING_FLAT = Kind("COCO039", "polygon has zero area", "warning", "warning", "filled as pycocotools does")
FILE_SIZE = Kind("COCO040", "stored image size differs from the annotated one", "error", "error", _IMAGE_OUT)
FILE_MISSING = Kind("COCO041", "image file is missing", "warning", "warning", "labels are made all the same")
FILE_UNREADABLE = Kind("COCO042", "image file cannot be read", "warning", "warning", "labels are made all the same")
FILE_EXTRA = Kind("COCO043", "image on disk is not in the annotation file", "warning", "warning", "not built")

KINDS: dict[str, Kind] = {kind.code: kind for kind in list(globals().values()) if isinstance(kind, Kind)}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One fault at one place.

    Attributes:
        code: see `KINDS`.
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


def empty_mask(file: str, image_id: str, annotation_id: int) -> Finding:
    """The finding that a mask holds no pixel, which only drawing it shows."""
    message = f"annotation {annotation_id} of image {image_id} has a mask without pixels."
    return Finding(MASK_EMPTY.code, "warning", file, message, image_id, annotation_id)


class FindingLog:
    """Collects findings: exact counts by code, and the first examples of each.

    Args:
        masks_scored: the rule reads masks, so faults in them are errors.
        promoted: codes that are errors in this run whatever the rule, such as a missing file that is to be embedded.
        examples: how many findings of a code are kept in full; None keeps all.
    """

    def __init__(
        self, *, masks_scored: bool, promoted: Iterable[Kind] = (), examples: int | None = EXAMPLES_PER_CODE
    ) -> None:
        self.masks_scored = masks_scored
        self._promoted = {kind.code for kind in promoted}
        self._limit = sys.maxsize if examples is None else examples
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Finding]] = {}

    def severity(self, kind: Kind) -> Severity:
        """Severity of a kind of fault in this run."""
        if kind.code in self._promoted:
            return "error"
        return kind.mask if self.masks_scored else kind.box

    def add(
        self, kind: Kind, file: str, message: str, *, image_id: str | None = None, annotation_id: int | None = None
    ) -> Severity:
        """Count one finding, keep it while there is room, and return its severity."""
        severity = self.severity(kind)
        self.counts[kind.code] = self.counts.get(kind.code, 0) + 1
        kept = self.examples.setdefault(kind.code, [])
        if len(kept) < self._limit:
            kept.append(Finding(kind.code, severity, file, message, image_id, annotation_id))
        return severity

    def wants_example(self, kind: Kind) -> bool:
        """Whether the next finding of this kind would be kept in full, so that its message is worth wording."""
        return len(self.examples.get(kind.code, ())) < self._limit

    def count(self, kind: Kind, more: int) -> None:
        """Count findings that need no example any more."""
        if more:
            self.counts[kind.code] = self.counts.get(kind.code, 0) + more

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
        return sum(count for code, count in self.counts.items() if self.severity(KINDS[code]) == "error")

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
