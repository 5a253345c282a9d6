"""Raw COCO segmentations -> `RawMasks`, by way of workers that check them chunk by chunk.

Nothing here needs the compiled kernels, which take a second to load: with worker processes the parent never loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokenlabels.annotations import MASK_RLE, MASK_TEXT, RawMasks
from tokenlabels.check import KINDS, Kind
from tokenlabels.executors import Run

Rasterizer: TypeAlias = Literal["kernel", "pycocotools"]

Report: TypeAlias = Callable[[int, Kind, str], None]
"""Called with the index of a mask, what kind of fault it has, and what is wrong in a few words."""

_CHUNK = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class MaskChunk:
    """Some of the segmentations of a file, for one task.

    Attributes:
        index: number of the chunk.
        text: undecoded JSON, end to end.
        lengths: int64 (k,), bytes of each mask in `text`.
        widths: int32 (k,), pixels of the image of each mask.
        heights: int32 (k,).
        shapes: also look for polygons that cross themselves or have no area (shapely; slow).
        rasterizer: `pycocotools` turns every polygon into run lengths with that library instead of the kernel.
    """

    index: int
    text: bytes
    lengths: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    shapes: bool
    rasterizer: Rasterizer


@dataclass(frozen=True, slots=True, eq=False)
class CheckedMasks:
    """What a worker found of a chunk.

    Attributes:
        index: number of the chunk.
        kinds: uint8 (k,), see `annotations.Masks`.
        spans: int64 (k, 2), into the pools below; of a plain text, into the chunk's.
        numbers: float64, rings that are no plain text.
        counts: int64, run lengths.
        usable: bool (k,).
        faults: (mask, number of the kind, what is wrong) of each fault.
    """

    index: int
    kinds: NDArray[np.uint8]
    spans: NDArray[np.int64]
    numbers: NDArray[np.float64]
    counts: NDArray[np.int64]
    usable: NDArray[np.bool_]
    faults: tuple[tuple[int, str, str], ...]


def pack_masks(
    raws: Sequence[msgspec.Raw],
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    report: Report,
    *,
    run: Run,
    shapes: bool = False,
    rasterizer: Rasterizer = "kernel",
) -> tuple[RawMasks, NDArray[np.bool_]]:
    """Check m segmentations.

    Args:
        raws: m undecoded JSON values.
        widths: int32 (m,), of the image of each mask.
        heights: int32 (m,).
        report: receives every fault, in order.
        run: runs the checks, see `executors.Executor.run`.
        shapes: see `MaskChunk`.
        rasterizer: see `MaskChunk`.

    Returns:
        The masks, and bool (m,): usable.
    """
    chunks = _chunks(raws, widths, heights, shapes, rasterizer)
    checked: list[CheckedMasks] = sorted(
        run("tokenlabels.sources.mask_check:check_masks", chunks), key=lambda part: part.index
    )
    numbers = np.concatenate([np.zeros(0), *(part.numbers for part in checked)])
    counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in checked)])
    kinds = np.concatenate([np.zeros(0, np.uint8), *(part.kinds for part in checked)])
    usable = np.concatenate([np.zeros(0, np.bool_), *(part.usable for part in checked)])
    spans = np.zeros((len(raws), 2), np.int64)
    before = {"numbers": 0, "counts": 0}
    for part in checked:
        start = part.index * _CHUNK
        shift = np.where(part.kinds == MASK_RLE, before["counts"], before["numbers"])
        spans[start : start + len(part.spans)] = part.spans + shift[:, None]
        before["numbers"] += len(part.numbers)
        before["counts"] += len(part.counts)
        for index, number, problem in part.faults:
            report(start + index, KINDS[number], problem)
    spans[kinds == MASK_TEXT] = 0
    objects = np.fromiter(raws, np.object_, len(raws))  # not np.array, which would look into each for numbers
    return RawMasks(kinds, spans, objects, numbers, counts), usable


def _chunks(
    raws: Sequence[msgspec.Raw],
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    shapes: bool,
    rasterizer: Rasterizer,
) -> Iterator[MaskChunk]:
    for index, start in enumerate(range(0, len(raws), _CHUNK)):
        part = slice(start, start + _CHUNK)
        lengths = np.fromiter(map(len, map(cast(Any, memoryview), raws[part])), np.int64)
        text = b"".join(raws[part])
        yield MaskChunk(index, text, lengths, widths[part], heights[part], shapes, rasterizer)
