"""Patch grids and resize policies: pure geometry, no pixels.

A grid cuts the *model input* (height H', width W') into patches; mapped back to the source image every cell is a
rectangle with, in general, fractional edges. All four resize policies scale each axis linearly, so the i-th edge of
an axis is `(step * i + start) / divisor` source pixels with three integers. Keeping the integers (`GridAxes`) makes
every edge correctly rounded, and lets the compiled kernels rebuild the edges of thousands of images without Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, SupportsIndex, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tokenlabels.errors import ParameterError

Resize: TypeAlias = Literal["squash", "letterbox", "shortest-edge", "native"]
RESIZE_POLICIES: tuple[Resize, ...] = get_args(Resize)
PatchLike: TypeAlias = int | str | tuple[int, int]
ImageSizeLike: TypeAlias = int | str | tuple[int, int]

MAX_GRID_SIDE = 32_767
"""Patches along one axis; `grid_rows` and `grid_cols` are stored as int16."""

MAX_CELLS = 1 << 24
"""Patches in one image: 64 MiB of float32 scores."""

MAX_SIDE = 1_000_000
"""Pixels along one side of a model input."""


@dataclass(frozen=True, slots=True)
class GridAxes:
    """The grids of n images as integers.

    Attributes:
        rows: int64 (n,), patches down.
        cols: int64 (n,), patches across.
        y: int64 (n, 3), `step, start, divisor`: row edge i lies at `(step * i + start) / divisor` source pixels.
        x: int64 (n, 3), the same for columns.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]

    @property
    def cells(self) -> NDArray[np.int64]:
        """int64 (n,), patches per image."""
        return self.rows * self.cols

    def __getitem__(self, span: slice) -> GridAxes:
        return GridAxes(self.rows[span], self.cols[span], self.y[span], self.x[span])


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """A patch size, a model input size and the policy that maps a source image onto it.

    Attributes:
        patch: (height, width) of a patch in model-input pixels.
        resize: `squash`, `letterbox`, `shortest-edge` or `native`.
        image_size: (H', W') for squash and letterbox; (S, S), the short side, for shortest-edge; None for native.
        max_size: cap in pixels on the long side, shortest-edge only.
    """

    patch: tuple[int, int]
    resize: Resize
    image_size: tuple[int, int] | None
    max_size: int | None = None

    @classmethod
    def parse(
        cls,
        patch: PatchLike = 16,
        image_size: ImageSizeLike = 384,
        resize: str = "squash",
        max_size: int | None = None,
    ) -> PatchGrid:
        """Build a grid from what a person writes: `16`, `"16x8"`, `384`, `"384x640"`, `"native"`.

        `image_size="native"` overrides `resize`.

        Raises:
            ParameterError: a size that is no size, that the patch does not divide, or that is out of range.
        """
        if resize not in RESIZE_POLICIES:
            raise ParameterError(f"unknown resize policy {resize!r}: use one of {', '.join(RESIZE_POLICIES)}.")
        patch_pair = _pair(patch, "patch")
        if resize == "native" or image_size == "native":
            if max_size is not None:
                raise ParameterError("--max-size caps the long side of --resize shortest-edge; native does not resize.")
            return cls(patch_pair, "native", None)
        grid = cls(patch_pair, cast(Resize, resize), _pair(image_size, "image size"), max_size)
        grid._validate()
        return grid

    @classmethod
    def stored(
        cls, patch: Sequence[int], image_size: Sequence[int] | None, resize: str, max_size: int | None
    ) -> PatchGrid:
        """A grid from its attributes as JSON keeps them, in a manifest or in the metadata of a shard.

        Raises:
            ParameterError: see `parse`; these attributes make no grid.
        """
        if image_size is None:
            return cls.parse(tuple(patch), "native", resize, max_size)  # type: ignore[arg-type]
        size = image_size[0] if resize == "shortest-edge" else tuple(image_size)
        return cls.parse(tuple(patch), size, resize, max_size)  # type: ignore[arg-type]

    def _validate(self) -> None:
        assert self.image_size is not None
        height, width = self.image_size
        if self.resize == "shortest-edge":
            if height != width:
                raise ParameterError(
                    f"--resize shortest-edge takes one number, the short side, not {height}x{width}: "
                    f"write --image-size {min(height, width)}, and --max-size for the long side."
                )
            if height < max(self.patch):
                raise ParameterError(
                    f"image size {height} is smaller than patch {_size_name(self.patch)}: "
                    f"use at least {max(self.patch)}."
                )
            if self.max_size is not None and self.max_size < height:
                raise ParameterError(f"--max-size {self.max_size} is smaller than the short side {height}.")
            return
        if self.max_size is not None:
            raise ParameterError("--max-size goes with --resize shortest-edge only.")
        for side, patch, what in ((height, self.patch[0], "height"), (width, self.patch[1], "width")):
            if side % patch:
                below, above = side // patch * patch, -(-side // patch) * patch
                nearest = f"{below} or {above}" if below else f"{above}"
                raise ParameterError(
                    f"image {what} {side} is not a multiple of the patch {what} {patch}: "
                    f"the nearest sizes that work are {nearest}."
                )
        _check_cells(height // self.patch[0], width // self.patch[1], f"image size {_size_name(self.image_size)}")

    @property
    def name(self) -> str:
        """Folder name of the grid, also its Hugging Face config name, such as `384x384-p16`."""
        patch = f"p{_size_name(self.patch)}"
        if self.image_size is None:
            return f"native-{patch}"
        if self.resize == "shortest-edge":
            return f"short{self.image_size[0]}-{patch}"
        size = f"{self.image_size[0]}x{self.image_size[1]}"
        return f"{size}-{patch}" if self.resize == "squash" else f"{size}-letterbox-{patch}"

    @property
    def constant_shape(self) -> tuple[int, int] | None:
        """(rows, cols) where every image has the same, else None."""
        if self.image_size is None or self.resize == "shortest-edge":
            return None
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]

    def axes(self, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> GridAxes:
        """Grids of many images.

        Args:
            widths: int32 (n,), source pixels, each at least 1.
            heights: int32 (n,), source pixels, each at least 1.

        Raises:
            ParameterError: an image whose grid would have more than `MAX_GRID_SIDE` patches along a side or more than
                `MAX_CELLS` in all.
        """
        w, h = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
        input_h, input_w = self._input_sides(w, h)
        rows, cols = -(-input_h // self.patch[0]), -(-input_w // self.patch[1])
        worst = int(np.argmax(rows * cols)) if len(w) else 0
        if len(w):
            for index in {worst, int(np.argmax(rows)), int(np.argmax(cols))}:
                _check_cells(int(rows[index]), int(cols[index]), f"an image of {w[index]}x{h[index]} pixels")
        if self.resize == "letterbox":
            y, x = self._letterbox_axes(w, h)
        elif self.resize == "native":
            y, x = _scaled_axis(self.patch[0], np.ones_like(h), 1), _scaled_axis(self.patch[1], np.ones_like(w), 1)
        else:
            y, x = _scaled_axis(self.patch[0], h, input_h), _scaled_axis(self.patch[1], w, input_w)
        return GridAxes(rows, cols, y, x)

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(H', W') of the model input for one source image; for native the image itself, before padding."""
        h, w = self._input_sides(np.array([width], np.int64), np.array([height], np.int64))
        return int(h[0]), int(w[0])

    def edges(self, width: int, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cell edges of one image in source pixels.

        Returns:
            float64 (rows + 1,) and float64 (cols + 1,): cell (i, j) is `[x[j], x[j+1]) x [y[i], y[i+1])`. Edges below
            0 or beyond the image belong to padding.
        """
        axes = self.axes(np.array([width], np.int32), np.array([height], np.int32))
        return edges_of(axes.y[0], int(axes.rows[0])), edges_of(axes.x[0], int(axes.cols[0]))

    def _input_sides(self, w: NDArray[np.int64], h: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.image_size is None:
            return h, w
        if self.resize != "shortest-edge":
            return np.full_like(h, self.image_size[0]), np.full_like(w, self.image_size[1])
        # H' = p * ((h * S) // (min(h, w) * p)) in integers; --max-size replaces S / min(h, w) by M / max(h, w).
        target = np.full_like(h, self.image_size[0])
        reference = np.minimum(h, w)
        if self.max_size is not None:
            capped = target * np.maximum(h, w) > self.max_size * reference
            target = np.where(capped, self.max_size, target)
            reference = np.where(capped, np.maximum(h, w), reference)
        patch_h, patch_w = self.patch
        rows = np.maximum((h * target) // (reference * patch_h), 1)
        cols = np.maximum((w * target) // (reference * patch_w), 1)
        return rows * patch_h, cols * patch_w

    def _letterbox_axes(
        self, w: NDArray[np.int64], h: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.image_size is not None
        input_h, input_w = self.image_size
        # scale = min(H'/h, W'/w) = num / den; an edge is (i * p - (H' - h * num / den) / 2) * den / num.
        by_width = input_w * h <= input_h * w
        num = np.where(by_width, input_w, input_h)
        den = np.where(by_width, w, h)
        y = np.stack([2 * self.patch[0] * den, h * num - input_h * den, 2 * num], axis=1)
        x = np.stack([2 * self.patch[1] * den, w * num - input_w * den, 2 * num], axis=1)
        return y, x


def parse_grids(
    patch: PatchLike | Sequence[PatchLike],
    image_size: ImageSizeLike | Sequence[ImageSizeLike],
    resize: str,
    max_size: int | None = None,
) -> tuple[PatchGrid, ...]:
    """Every combination of image size and patch, in the order given; a lone value counts as a list of one.

    A tuple of two ints is one height x width, a list holds several values.

    Raises:
        ParameterError: see `PatchGrid.parse`; or the same grid named twice.
    """
    patches = _listed(patch)
    sizes = _listed(image_size)
    grids = tuple(PatchGrid.parse(p, s, resize, max_size) for s in sizes for p in patches)
    names = [grid.name for grid in grids]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ParameterError(
            f"the grid {sorted(doubled)[0]} is asked for twice: name each --patch and --image-size once."
        )
    return grids


def edges_of(axis: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """float64 (count + 1,) edges in source pixels of one axis (`step, start, divisor`), each correctly rounded."""
    step, start, divisor = axis
    edges: NDArray[np.float64] = (step * np.arange(count + 1, dtype=np.int64) + start) / np.float64(divisor)
    return edges


def _scaled_axis(patch: int, source: NDArray[np.int64], target: NDArray[np.int64] | int) -> NDArray[np.int64]:
    return np.stack([patch * source, np.zeros_like(source), np.broadcast_to(target, source.shape)], axis=1)


def _check_cells(rows: int, cols: int, what: str) -> None:
    if max(rows, cols) > MAX_GRID_SIDE or rows * cols > MAX_CELLS:
        raise ParameterError(
            f"{what} makes a grid of {rows} x {cols} patches, more than {MAX_GRID_SIDE} a side or {MAX_CELLS} in all: "
            "use a larger patch or a smaller image size."
        )


def _listed(value: PatchLike | Sequence[PatchLike]) -> list[PatchLike]:
    if isinstance(value, Sequence) and not isinstance(value, (str, tuple)):
        return list(value)
    return [cast(PatchLike, value)]


def _pair(value: PatchLike, what: str) -> tuple[int, int]:
    """(height, width) from 16, "16", "16x8" or (16, 8)."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX]\s*(\d{1,9}))?\s*", value)
        if not found:
            raise ParameterError(
                f"{what} {value!r} is no size: write one number or HEIGHTxWIDTH, such as 384 or 384x640."
            )
        pair = int(found[1]), int(found[2] or found[1])
    elif isinstance(value, tuple):
        if len(value) != 2 or not all(isinstance(side, int) for side in value):
            raise ParameterError(f"{what} {value!r} is no size: give (height, width) in whole pixels.")
        pair = value
    elif isinstance(value, SupportsIndex):
        pair = value.__index__(), value.__index__()
    else:
        raise ParameterError(f"{what} {value!r} is no size: write one number or HEIGHTxWIDTH, such as 384 or 384x640.")
    if not all(1 <= side <= MAX_SIDE for side in pair):
        raise ParameterError(f"{what} {_size_name(pair)} is out of range: each side is 1 to {MAX_SIDE} pixels.")
    return pair


def _size_name(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
