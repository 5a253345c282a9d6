"""Pictures and masks to embed: the files as they are, or resized to the model input of each grid."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenlabels.annotations import Records
from tokenlabels.errors import TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.storage import contents, threads_for
from tokenlabels.store_faults import reason_of
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    from tokenlabels.storage import Location


@dataclass(frozen=True, slots=True)
class Embedding:
    """What is embedded, and from where.

    Attributes:
        images: folder of the pictures, None: they are not embedded.
        masks: folder of the masks, None: they are not embedded.
        size: (height, width) to resize both to; None stores the files.
        quality: of the JPEGs that resizing makes.
        mask_fill: value of a mask in the padding of a letterboxed picture.
    """

    images: Location | None = None
    masks: Location | None = None
    size: tuple[int, int] | None = None
    quality: int = 90
    mask_fill: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """Encoded pictures of a block of images, None where they are not wanted."""

    images: Sequence[bytes] | None = None
    masks: Sequence[bytes | None] | None = None


class Pictures:
    """The pictures of one block; read once where every grid stores the same."""

    def __init__(self, embedding: Embedding, block: Records, threads: int = 1) -> None:
        self._embedding = embedding
        self._block = block
        self._threads = threads
        self._files: Embedded | None = None

    def of(self, grid: PatchGrid) -> Embedded:
        """What the rows of one grid store.

        Raises:
            TokenLabelsError: a file cannot be read.
        """
        if self._embedding.size is not None:
            return Embedded(*self._resized(grid, self._embedding.size))
        if self._files is None:
            images, masks = self._embedding.images, self._embedding.masks
            self._files = Embedded(
                None if images is None else _files(images, self._block.file_names),
                None if masks is None else _files_or_none(masks, self._block.mask_files or ()),
            )
        return self._files

    def _resized(self, grid: PatchGrid, size: tuple[int, int]) -> tuple[list[bytes] | None, list[bytes | None] | None]:
        from tokenlabels.model_input import encode_input, encode_input_mask, model_input, model_input_mask

        chosen, block = self._embedding, self._block
        fixed = size if grid.resize == "squash" else None
        sizes = list(zip(block.widths.tolist(), block.heights.tolist(), strict=True))
        change_picture = functools.partial(model_input, grid=grid, size=fixed)
        change_mask = functools.partial(model_input_mask, grid=grid, size=fixed, fill=chosen.mask_fill)

        def picture(row: int) -> bytes:
            assert chosen.images is not None
            return encode_input(chosen.images / block.file_names[row], sizes[row], change_picture, chosen.quality)

        def mask(row: int) -> bytes | None:
            assert chosen.masks is not None
            assert block.mask_files is not None
            file = block.mask_files[row]
            return encode_input_mask(chosen.masks / file, sizes[row], change_mask) if file else None

        rows = range(len(block))
        with warnings.catch_warnings():  # here, as threads would restore each other's filters
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata
            return (
                None if chosen.images is None else in_threads(picture, rows, threads_for(chosen.images, self._threads)),
                None if chosen.masks is None else in_threads(mask, rows, threads_for(chosen.masks, self._threads)),
            )


def _files(folder: Location, names: Sequence[str]) -> list[bytes]:
    found: list[bytes] = []
    for name, data in zip(names, contents(folder / name for name in names), strict=True):
        if isinstance(data, OSError):
            raise TokenLabelsError(f"{folder / name}: cannot be read ({reason_of(data)}): run again when it can.")
        found.append(data)
    return found


def _files_or_none(folder: Location, names: Sequence[str]) -> list[bytes | None]:
    """Like `_files`, None where a name is empty."""
    found = iter(_files(folder, [name for name in names if name]))
    return [next(found) if name else None for name in names]
