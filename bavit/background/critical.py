"""The threshold from which on a token or an object is kept, so that figures at every threshold come from one sort.

Refinement grows the mask of kept tokens, and a mask at a greater threshold holds that at a smaller one. So each token
has a critical probability: it is kept, after refinement, at exactly the thresholds that are not smaller. Without
refinement that is its background probability. One step keeps a token that was kept, or that has three kept neighbours;
hence its critical probability becomes the third smallest of its neighbours' where that is smaller than its own. (This
is threshold decomposition of a stack filter, Wendt, Coyle and Gallagher 1986.) Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bavit.background.predictions import ObjectPatches

_BLOCK_CELLS = 1 << 17
"""Cells refined at a time: the scratch arrays stay in the cache."""

_BLOCK_PATCHES = 1 << 22
"""Patches of objects taken at a time."""


def critical_probabilities(background: NDArray[np.float32], refine_steps: int) -> NDArray[np.float32]:
    """The smallest threshold at which each token is kept after refinement.

    `critical <= t` equals `refine(background <= t, refine_steps)` at every threshold t.

    Args:
        background: float32 (n, rows, cols), probability of background.
        refine_steps: not negative.

    Returns:
        float32 (n, rows, cols); `background` itself where there are no steps.
    """
    if not refine_steps:
        return background
    critical = np.empty_like(background)
    block = max(1, _BLOCK_CELLS // max(1, background[0].size)) if len(background) else 1
    for first in range(0, len(background), block):
        values = background[first : first + block]
        for _ in range(refine_steps):
            values = np.minimum(values, _third_smallest(values))
        critical[first : first + block] = values
    return critical


def critical_of_objects(critical: NDArray[np.float32], objects: ObjectPatches) -> NDArray[np.float32]:
    """The smallest threshold at which each object with patches is not lost.

    An object of k patches is lost where fewer than k / 2 are kept: where the ceil(k / 2)-th smallest critical
    probability exceeds the threshold.

    Args:
        critical: float32 (n, rows, cols), none negative.
        objects: objects of these images.

    Returns:
        float32 (m',): objects without patches are left out, the others keep their order.
    """
    found = [np.zeros(0, np.float32)]
    for first, last in _object_blocks(objects):
        offsets = objects.offsets[first : last + 1]
        counts = np.diff(offsets)
        values = critical.reshape(-1)[objects.cells[offsets[0] : offsets[-1]]] + np.float32(0)  # so that -0 is 0
        # Floats that are not negative sort as the integers of their bits, so one sort of integers serves all objects.
        keys = np.repeat(np.arange(len(counts), dtype=np.int64) << 32, counts) | values.view(np.int32)
        keys.sort()
        middle = (offsets[:-1] - offsets[0] + (counts + 1) // 2 - 1)[counts > 0]
        found.append((keys[middle] & 0xFFFFFFFF).astype(np.int32).view(np.float32))
    return np.concatenate(found)


def kept_patches(kept: NDArray[np.bool_], objects: ObjectPatches) -> NDArray[np.int64]:
    """int64 (m,): how many patches of each object are kept.

    Args:
        kept: bool (n, rows, cols).
        objects: objects of these images.
    """
    found = np.zeros(len(objects.image), np.int64)
    for first, last in _object_blocks(objects):
        offsets = objects.offsets[first : last + 1]
        sums = np.zeros(offsets[-1] - offsets[0] + 1, np.int64)
        np.cumsum(kept.reshape(-1)[objects.cells[offsets[0] : offsets[-1]]], out=sums[1:])
        found[first:last] = np.diff(sums[offsets - offsets[0]])
    return found


def _object_blocks(objects: ObjectPatches) -> Iterator[tuple[int, int]]:
    """First and last + 1 of consecutive objects that hold about `_BLOCK_PATCHES` patches, at least one object each."""
    first, count = 0, len(objects.image)
    while first < count:
        end = objects.offsets[first] + _BLOCK_PATCHES
        last = max(first + 1, int(np.searchsorted(objects.offsets, end, side="right")) - 1)
        yield first, last
        first = last


def _third_smallest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (b, rows, cols): the third smallest of each 3x3 neighbourhood, infinity outside the grid.

    The three of a column are sorted once and serve three neighbourhoods. The token itself is among the nine, which
    changes nothing: where it is smaller than the third of the others it stays as it is.
    """
    b, rows, cols = values.shape
    padded = np.full((b, rows + 2, cols + 2), np.inf, np.float32)
    padded[:, 1:-1, 1:-1] = values
    above, middle, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    small, large = np.minimum(above, middle), np.maximum(above, middle)
    first, rest = np.minimum(small, below), np.maximum(small, below)
    second, third = np.minimum(rest, large), np.maximum(rest, large)
    left, centre, right = (
        [column[:, :, start : start + cols] for column in (first, second, third)] for start in range(3)
    )
    return _third_of_two(_merged(left, centre), right)


def _merged(one: list[NDArray[np.float32]], other: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The three smallest, in order, of two sorted triples."""
    second = np.minimum(np.maximum(one[0], other[0]), np.minimum(one[1], other[1]))
    return [np.minimum(one[0], other[0]), second, _third_of_two(one, other)]


def _third_of_two(one: list[NDArray[np.float32]], other: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The third smallest of two sorted triples."""
    mixed = np.minimum(np.maximum(one[0], other[1]), np.maximum(one[1], other[0]))
    return np.minimum(np.minimum(one[2], other[2]), mixed)
