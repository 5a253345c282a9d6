"""What a network says of the windows of a picture, put together: the class of each pixel, and the stage it ended in.

The answers of a window lie on its grid. Between the centres of the cells they are interpolated, as by `upsample`, and
where windows overlap they are averaged; each pixel of the picture is answered at its centre. So the answers of a whole
picture never exist: they are made of the windows around it for some pixels at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.segment.windows import Layout

_Share: TypeAlias = tuple[int, slice, NDArray[np.float32]]

_TILE_NUMBERS = 1 << 20
"""Numbers that are made at a time: classes x pixels."""

_TILE_SIDE = 128


class Mosaic:
    """The picture that windows are put together to; they come in order.

    Args:
        layout: where they lie.
        patch: (height, width) of a cell in pixels of the window.

    Attributes:
        classes: uint8 (height, width), of those rows of pixels that no coming window covers.
        stages: uint8 (height, width), of the window in which a pixel lies deepest.
        complete: all windows were added.
    """

    def __init__(self, layout: Layout, patch: tuple[int, int]) -> None:
        self._layout = layout
        height, width = layout.size
        self._y = Axis(height, layout.scaled[0], layout.tops, layout.window[0], patch[0])
        self._x = Axis(width, layout.scaled[1], layout.lefts, layout.window[1], patch[1])
        self._rows: dict[int, list[tuple[Tensor, NDArray[np.uint8]]]] = {}
        self._done = 0
        self._added = 0
        self.classes = np.zeros((height, width), np.uint8)
        self.stages = np.zeros((height, width), np.uint8)

    @property
    def complete(self) -> bool:
        """See `Mosaic`."""
        return self._added == len(self._layout)

    def add(self, logits: Tensor, stages: NDArray[np.uint8]) -> None:
        """The next window.

        Args:
            logits: float32 (K, rows, cols), on any device.
            stages: uint8 (rows, cols).
        """
        row = self._added // len(self._layout.lefts)
        self._rows.setdefault(row, []).append((logits.permute(1, 2, 0).contiguous(), stages))
        self._added += 1
        if len(self._rows[row]) == len(self._layout.lefts):
            end = self._y.untouched(row + 1)
            self._fill(self._done, end)
            self._done = end
            for past in [other for other in self._rows if self._y.untouched(other, last=True) <= end]:
                del self._rows[past]

    def _fill(self, first: int, last: int) -> None:
        """Rows of pixels, of which all windows are known."""
        for left in range(0, self._x.side, _TILE_SIDE):
            right = min(left + _TILE_SIDE, self._x.side)
            across = list(self._x.covering(left, right))
            for top in range(first, last, _TILE_SIDE):
                bottom = min(top + _TILE_SIDE, last)
                self._fill_tile((top, bottom), (left, right), across)
        for row, pixels, cells in self._y.deepest(first, last):
            for column, places, others in self._x.deepest(0, self._x.side):
                found = self._rows[row][column][1]
                self.stages[np.ix_(first + pixels, places)] = found[np.ix_(cells, others)]

    def _fill_tile(self, down: tuple[int, int], side: tuple[int, int], across: Sequence[_Share]) -> None:
        """Some pixels: windows side by side are merged first, for all rows of cells that matter, then those below."""
        upright = list(self._y.covering(*down))
        strips = []
        for row, cells, _ in upright:
            parts = [self._rows[row][column][0][cells, others] for column, others, _ in across]
            shares = _like(np.concatenate([each for _, _, each in across], axis=1), parts[0])
            strips.append(shares @ torch.cat(parts, 1))  # (cells, pixels across, K)
        merged = torch.cat(strips).flatten(1)
        weights = _like(np.concatenate([each for _, _, each in upright], axis=1), merged)
        width, numbers = side[1] - side[0], merged.shape[1]
        step = max(1, _TILE_NUMBERS // numbers)
        for top in range(down[0], down[1], step):
            bottom = min(top + step, down[1])
            found = weights[top - down[0] : bottom - down[0]] @ merged
            self.classes[top:bottom, side[0] : side[1]] = _greatest(found.view(bottom - top, width, numbers // width))


def _like(weights: NDArray[np.float32], other: Tensor) -> Tensor:
    return torch.from_numpy(weights).to(other.device)


def _greatest(answers: Tensor) -> NDArray[np.uint8]:
    """The class of each pixel, (.., K) -> uint8 (..); NumPy is several times as fast as torch at it."""
    on_cpu = answers.device.type == "cpu"
    found = answers.numpy().argmax(-1) if on_cpu else answers.argmax(-1).to(torch.uint8).cpu().numpy()
    return found.astype(np.uint8)


class Axis:
    """One axis of a picture: which cells of which windows answer for each of its pixels.

    Args:
        side: pixels of the picture.
        scaled: pixels of the picture as it was cut.
        starts: of the windows, ascending, in pixels of the scaled picture.
        window: pixels of a window.
        patch: pixels of a cell.
    """

    def __init__(self, side: int, scaled: int, starts: tuple[int, ...], window: int, patch: int) -> None:
        self.side = side
        self._starts, self._window, self._patch = np.array(starts), window, patch
        self._cells = -(-window // patch)
        self._centres: NDArray[np.float64] = (np.arange(side, dtype=np.float64) + 0.5) * (scaled / side)

    def untouched(self, number: int, *, last: bool = False) -> int:
        """Pixels before the first one that a window covers, or, with `last`, up to the end of it."""
        if number >= len(self._starts):
            return self.side
        edge = self._starts[number] + (self._window if last else 0)
        return int(np.searchsorted(self._centres, edge))

    def covering(self, first: int, last: int) -> Iterator[_Share]:
        """Windows that cover some of the pixels first .. last - 1.

        Yields:
            The number of a window, those of its cells that matter, and float32 (last - first, cells), what these count
            for each pixel: all windows together 1.
        """
        centres = self._centres[first:last]
        inside = self._inside(centres)
        total = inside.sum(axis=1)
        for number in np.flatnonzero(inside.any(axis=0)).tolist():
            place = (centres - self._starts[number]) / self._patch - 0.5
            low = np.clip(np.floor(place), 0, self._cells - 1).astype(np.int64)
            share = np.clip(place - low, 0, 1)
            weights = np.zeros((len(centres), self._cells), np.float32)
            pixels = np.arange(len(centres))
            weights[pixels, low] = 1 - share
            weights[pixels, np.minimum(low + 1, self._cells - 1)] += share
            weights *= (inside[:, number] / total)[:, None].astype(np.float32)
            used = np.flatnonzero(weights.any(axis=0))
            cells = slice(int(used[0]), int(used[-1]) + 1)
            yield number, cells, weights[:, cells]

    def deepest(self, first: int, last: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Windows in which some of the pixels first .. last - 1 lie deeper than in any other.

        Yields:
            The number of a window, these pixels, counted from `first`, and the cell of each.
        """
        centres = self._centres[first:last]
        away = np.abs(centres[:, None] - self._starts - self._window / 2)
        nearest = np.where(self._inside(centres), away, np.inf).argmin(axis=1)
        for number in np.unique(nearest).tolist():
            pixels = np.flatnonzero(nearest == number)
            yield number, pixels, ((centres[pixels] - self._starts[number]) // self._patch).astype(np.int64)

    def _inside(self, centres: NDArray[np.float64]) -> NDArray[np.bool_]:
        """bool (pixels, windows)."""
        found: NDArray[np.bool_] = (centres[:, None] >= self._starts) & (centres[:, None] < self._starts + self._window)
        return found
