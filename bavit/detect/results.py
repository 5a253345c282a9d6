"""Detections as files: COCO's results format, a JSON list of {image_id, category_id, bbox, score}."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bavit.detect.coco import WHOLE_NUMBER, Detections
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import TokenLabelsError

_PLACE = re.compile(r"(.*) - at `\$\[(\d+)\]\.?(.*)`", re.DOTALL)
_SHAPE = "a COCO results file is a list of {image_id, category_id, bbox: [x, y, width, height], score}"


class _Entry(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def as_written(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float32 as the shortest decimals that name them, so that 258.15 is 258.15 again; the same shape.

    What was rounded to float32 on the way, boxes in shards above all, is so given back as files have it, and what is
    evaluated is what is written.
    """
    found: NDArray[np.float64] = values.astype(np.float32).astype("U").astype(np.float64)
    return found


def write_results(path: Path, image_ids: Sequence[str], detections: Detections) -> None:
    """Write detections, in their order. Image ids that are numbers are written as numbers, as COCO's tools want them.

    Args:
        path: of the JSON file.
        image_ids: of the images that `detections.image` counts.
        detections: what was found.

    Raises:
        OutputError: the file cannot be written.
    """
    ids = [int(name) if WHOLE_NUMBER.fullmatch(name) else name for name in image_ids]
    columns = (detections.image, detections.category, detections.boxes, detections.scores)
    entries = [
        {"image_id": ids[image], "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    write_atomically(path, msgspec.json.encode(entries) + b"\n")


def read_results(path: Path, image_ids: Sequence[str], category_ids: Collection[int]) -> Detections:
    """Read detections, in the order of the file; keys other than the four are passed over.

    Args:
        path: of the JSON file.
        image_ids: the images there are; `Detections.image` counts them.
        category_ids: the categories there are.

    Raises:
        TokenLabelsError: the file is missing, no JSON, or an entry in it is not what it should be; says which.
    """
    entries = _decoded(path)
    places = {image_id: index for index, image_id in enumerate(image_ids)}
    known = set(category_ids)
    images = [places.get(str(entry.image_id), -1) for entry in entries]
    for number, (image, entry) in enumerate(zip(images, entries, strict=True)):
        if image < 0:
            raise _fault(
                path, number, f"image_id {_shown(entry.image_id)} is not in the data set: name the right split"
            )
        if entry.category_id not in known:
            raise _fault(path, number, f"category_id {_shown(entry.category_id)} is not in the category table")
    boxes = np.array([entry.bbox for entry in entries], np.float64).reshape(-1, 4)
    negative = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
    if negative.size:
        raise _fault(path, int(negative[0]), "bbox has a negative width or height: it is [x, y, width, height]")
    return Detections(
        image=np.array(images, np.int64),
        category=np.array([entry.category_id for entry in entries], np.int64),
        boxes=boxes,
        scores=np.array([entry.score for entry in entries], np.float64),
    )


def _decoded(path: Path) -> list[_Entry]:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise TokenLabelsError(f"{path}: cannot be read ({fault.strerror}): name a COCO results file.") from None
    try:
        return msgspec.json.decode(content, type=list[_Entry])
    except msgspec.ValidationError as fault:
        found = _PLACE.fullmatch(str(fault))
        if not found:
            raise TokenLabelsError(f"{path}: is no list ({fault}): {_SHAPE}.") from None
        reason, number, key = found.groups()
        what = f"{key}: {reason}" if key else reason
        raise _fault(path, int(number), f"{what[:1].lower()}{what[1:]}; {_SHAPE}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise _no_json(path, content, fault) from None


def _no_json(path: Path, content: bytes, fault: Exception) -> TokenLabelsError:
    """What is wrong with a file that is no JSON; the standard library reads NaN and Infinity, which is none either."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        return TokenLabelsError(f"{path}: is no JSON ({fault}): was it cut short? Write it again.")
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
                return _fault(path, number, f"{key} holds a value that is no finite number")
    return TokenLabelsError(f"{path}: is no JSON ({fault}): {_SHAPE}.")


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _fault(path: Path, number: int, problem: str) -> TokenLabelsError:
    return TokenLabelsError(f"{path}: entry [{number}]: {problem}.")


def _shown(value: int | str) -> str:
    return repr(value)[:100]
