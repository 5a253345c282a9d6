"""Masks: of the rows of a build, embedded in its shards, as one class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bavit.pictures import EmbeddedColumns, PictureError, PictureReader
from bavit.rows import Rows, embedded_bytes
from bavit.segment.classes import IGNORED, ClassTable, check_masks, is_panoptic
from tokenlabels.errors import NotABuildError, ParameterError, TokenLabelsError
from tokenlabels.map_files import MapFileError, read_map
from tokenlabels.reader import open_build
from tokenlabels.stats_shards import GroupAddress
from tokenlabels.storage import parquet_file

if TYPE_CHECKING:
    from tokenlabels.storage import Location


class MaskReader:
    """Opens the masks of some rows.

    Args:
        rows: whose masks.
        table: what they mean.

    Attributes:
        resized: masks were resized with their pictures (`--embed-size`), and have the size of the model input.

    Raises:
        TokenLabelsError: there are no masks.
    """

    def __init__(self, rows: Rows, table: ClassTable) -> None:
        check_masks(rows)
        self._rows, self._table = rows, table
        self._known, self._classes = np.flatnonzero(table.known).astype(np.uint8).tobytes(), table.of_value.tobytes()
        self._panoptic = is_panoptic(rows)
        segments = ["segments.id", "segments.category"] if self._panoptic else []
        self._embedded = EmbeddedColumns(rows, ["mask.bytes", *segments])
        self.resized = rows.header.embed_size is not None

    def has(self, index: int) -> bool:
        """Whether a row has a mask.

        Raises:
            PictureError: the shard is missing or damaged.
        """
        return self._embedded.file(index, "mask") is not None

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) that a mask must have: that of its picture, as it is stored."""
        if not self.resized:
            return int(self._rows.widths[index]), int(self._rows.heights[index])
        grid, embedded = self._rows.grid, self._rows.header.embed_size
        height, width = (embedded if grid.resize == "squash" else grid.image_size) or (0, 0)
        return width, height

    def open(self, index: int) -> NDArray[np.uint8]:
        """One mask.

        Returns:
            uint8 (height, width): the class of each pixel, 255 where it is ignored.

        Raises:
            PictureError: there is none, or it cannot be used; says which and why.
        """
        data = self._embedded.file(index, "mask")
        if data is None:
            raise PictureError(f"{self._embedded.name(index)}: has no mask: leave it out, or build again with it.")
        try:
            stored = read_map(bytes(data), "rgb" if self._panoptic else "class", self.size(index))
        except MapFileError as fault:
            raise PictureError(f"{self._embedded.name(index)}: its mask {fault.problem}.") from None
        found = self._of_segments(index, stored) if self._panoptic else self._of_values(index, stored)
        if self.resized and self._rows.grid.resize == "letterbox":
            _ignore_padding(found, int(self._rows.widths[index]), int(self._rows.heights[index]))
        return found

    def _of_values(self, index: int, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        values = stored.tobytes()
        strange = values.translate(None, self._known)  # what is left when known values are deleted
        if strange:
            raise PictureError(
                f"{self._embedded.name(index)}: its mask holds the value {strange[0]}, which is none of the "
                f"{len(self._table.classes)} classes: list all categories in a file (--categories) and build again."
            )
        found = np.frombuffer(bytearray(values.translate(self._classes)), np.uint8)  # bytearray: it can be written
        return found.reshape(stored.shape)

    def _of_segments(self, index: int, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classes of the colours of a panoptic mask, whose runs of one colour are few.

        Format: https://cocodataset.org/#format-data, panoptic: id = R + 256 G + 65536 B, 0 is void.
        """
        ids, categories = (self._embedded.cell(index, "segments", member).values for member in ("id", "category"))
        listed = np.array([0, *ids.to_pylist()], np.int64)
        numbers = np.array(categories.to_pylist(), np.int64)
        if len(numbers) + 1 != len(listed) or not ((numbers >= 0) & (numbers < len(self._table.of_category))).all():
            raise PictureError(f"{self._embedded.name(index)}: its list of segments is damaged: build again.")
        classes = np.concatenate([np.array([IGNORED], np.uint8), self._table.of_category[numbers]])
        order = np.argsort(listed, kind="stable")
        listed, classes = listed[order], classes[order]
        colours = np.zeros((*stored.shape[:2], 4), np.uint8)
        colours[..., :3] = stored
        flat = colours.view("<u4").ravel()
        starts = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
        runs = flat[starts].astype(np.int64)
        places = np.minimum(np.searchsorted(listed, runs), len(listed) - 1)
        unlisted = runs[listed[places] != runs]
        if len(unlisted):
            raise PictureError(
                f"{self._embedded.name(index)}: its mask holds the segment {unlisted[0]}, which its list of segments "
                "does not name: mend the panoptic file and build again."
            )
        found: NDArray[np.uint8] = np.repeat(classes[places], np.diff(starts, append=len(flat)))
        return found.reshape(stored.shape[:2])


def _ignore_padding(mask: NDArray[np.uint8], width: int, height: int) -> None:
    """Write 255 around what a letterboxed mask shows of an image, whatever value the padding has."""
    scale = min(mask.shape[0] / height, mask.shape[1] / width)
    for axis, (side, shown) in enumerate(zip(mask.shape, (height * scale, width * scale), strict=True)):
        first = (side - shown) / 2  # a pixel is of the image where its centre is
        before, after = max(0, math.ceil(first - 0.5)), min(side, math.ceil(first + shown - 0.5))
        padding = np.moveaxis(mask, axis, 0)
        padding[:before] = IGNORED
        padding[after:] = IGNORED


def with_masks(rows: Rows, note: Callable[[str], None]) -> Rows:
    """The rows that have a mask, with the masks counted among what training holds in memory.

    Args:
        rows: of a build with masks.
        note: is told how many are left out.

    Raises:
        TokenLabelsError: no row has one.
        NotABuildError: a shard is damaged.
    """
    check_masks(rows)
    there = [_present(group) for group in rows.groups]
    kept = np.array([there[group][row] for group, row in zip(rows.group, rows.row, strict=True)], np.bool_)
    if not kept.any():
        raise TokenLabelsError(f"{rows.folder}: none of {len(rows):,} images has a mask: choose other splits.")
    if not kept.all():
        note(f"{len(kept) - int(kept.sum()):,} of {len(kept):,} images have no mask and are left out.")
    held = [embedded_bytes(group, "image") + embedded_bytes(group, "mask") for group in rows.groups]
    return replace(rows.keep(kept), picture_bytes=held)


def shard_digests(rows: Rows) -> list[str]:
    """The sha256 of every shard that holds some of the rows, as the manifest has it.

    Raises:
        NotABuildError: the build is gone.
    """
    read = {f"{group.path.parent.name}/{group.path.name}" for group in rows.groups}
    return [shard.sha256 for shard in open_build(rows.folder).shards if shard.file in read]


def _present(group: GroupAddress) -> list[bool]:
    """Which rows of a row group have a mask, without reading any."""
    try:
        with parquet_file(group.path) as file:
            column = file.read_row_group(group.index, columns=["mask.path"], use_threads=False).column("mask")
    except (OSError, pa.ArrowException):
        raise NotABuildError(f"{group.path}: is damaged: run the same build command again to mend it.") from None
    found: list[bool] = column.is_valid().to_pylist()
    return found


def paired_pictures(rows: Rows, images: Location | None) -> PictureReader:
    """The pictures that the masks of some rows lie on.

    Args:
        rows: the rows.
        images: see `PictureReader`.

    Raises:
        ParameterError: there are no pictures; or masks were resized, and so do not lie on the files in a folder.
        TokenLabelsError: no such folder.
    """
    if images is not None and rows.header.embed_size is not None:
        raise ParameterError(
            f"{rows.folder} embeds masks resized to the model input (--embed-size), which do not lie on image files: "
            "leave --images out."
        )
    return PictureReader(rows, images)
