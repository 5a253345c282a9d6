"""Pictures: of the rows of a build, embedded in its shards or files in a folder; of any file; and in memory."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from bavit.rows import Rows
from tokenlabels.annotations import MAX_PIXELS
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, is_file, is_folder, of_this_process, parquet_file, threads_for
from tokenlabels.store_faults import reason_of
from tokenlabels.threads import in_threads

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Picture: TypeAlias = Image.Image | Tensor
"""What models take: a PIL image, or a uint8 tensor (3, H, W) of RGB."""

CACHED_BYTES = 256 << 20
"""Embedded pictures, or masks, that a process holds, as they are in the shard; at least one row group is."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is opened, whatever a file is called: other decoders of Pillow start other programs."""

_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error)


class PictureError(TokenLabelsError):
    """A picture is missing, damaged, or not the one that was annotated."""


class EmbeddedColumns:
    """Columns of the row groups of some rows that are read when they are wanted; the least recently used are let go.

    Args:
        rows: whose.
        columns: names of the columns, or members of structs as in `image.bytes`.
    """

    def __init__(self, rows: Rows, columns: Sequence[str]) -> None:
        self._rows, self._columns = rows, list(columns)
        self._cache: OrderedDict[int, tuple[pa.Table, int]] = OrderedDict()

    def cell(self, index: int, column: str, member: str) -> pa.Scalar:
        """A member of a struct column of one row.

        Raises:
            PictureError: the shard is missing or damaged.
        """
        table = self._group(int(self._rows.group[index]))
        return table.column(column).chunk(0).field(member)[int(self._rows.row[index])]

    def file(self, index: int, column: str) -> memoryview | None:
        """The content of an embedded file, None where there is none.

        Raises:
            PictureError: see `cell`.
        """
        content = self.cell(index, column, "bytes").as_buffer()
        return memoryview(content) if content is not None and content.size else None

    def name(self, index: int) -> str:
        """Which image of which shard, for errors."""
        return f"{self._rows.groups[self._rows.group[index]].path}: image {self._rows.image_ids[index]}"

    def _group(self, number: int) -> pa.Table:
        """The columns of a row group, each of one chunk."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number][0]
        address = self._rows.groups[number]
        try:
            with parquet_file(address.path) as file:
                table = file.read_row_group(address.index, columns=self._columns, use_threads=False).combine_chunks()
        except (OSError, pa.ArrowException):
            raise PictureError(f"{address.path}: is missing or damaged: run the same build command again.") from None
        if table.num_rows != address.rows or {*table.column_names} != {
            name.partition(".")[0] for name in self._columns
        }:
            raise PictureError(f"{address.path}: has changed since its rows were read: start again.")
        size = table.nbytes
        while self._cache and sum(held for _, held in self._cache.values()) + size > CACHED_BYTES:
            self._cache.popitem(last=False)
        self._cache[number] = table, size
        return table


class PictureReader:
    """Opens the pictures of some rows.

    Args:
        rows: whose pictures.
        images: folder of the files, `images/file_name` or `images/split/file_name`; None: they are embedded.

    Attributes:
        resized: the embedded pictures are the model inputs, of any size, rather than the files.

    Raises:
        ParameterError: there are no pictures anywhere.
        TokenLabelsError: no such folder.
    """

    def __init__(self, rows: Rows, images: Location | None) -> None:
        if images is None and not rows.has_pictures:
            raise ParameterError(
                f"{rows.folder} has no embedded images: name their folder with --images, or build with --embed-images."
            )
        if images is not None and not is_folder(images):
            raise TokenLabelsError(f"{images}: no such folder: name the one that holds the images with --images.")
        self._rows, self._images = rows, images
        self.resized = images is None and rows.header.embed_size is not None
        self._embedded = EmbeddedColumns(rows, ["image.bytes"])

    def open(self, index: int, at_least: tuple[int, int] | None = None) -> Image.Image:
        """One picture as RGB.

        Args:
            index: of the row.
            at_least: (width, height) that is enough: a JPEG may be decoded at a half, quarter or eighth of its size.

        Raises:
            PictureError: it cannot be used; says which and why.
        """
        source, name = self._source(index)
        annotated = None if self.resized else (int(self._rows.widths[index]), int(self._rows.heights[index]))
        return open_picture(source, name, annotated, at_least)

    def check_files(self) -> None:
        """Make sure that every picture is there, without opening any.

        Raises:
            PictureError: files are missing; names the first, and says how many.
        """
        if self._images is None:
            return
        images = self._images
        rows = range(len(self._rows))
        there = in_threads(lambda index: self._file(index, images) is not None, rows, threads_for(images))
        missing = [index for index in rows if not there[index]]
        if missing:
            raise PictureError(
                f"{self._images / self._rows.file_names[missing[0]]}: no such image file ({len(missing):,} of "
                f"{len(self._rows):,} are missing): name their folder with --images."
            )

    def _source(self, index: int) -> tuple[Path | io.BytesIO, str]:
        if self._images is None:
            name, content = self._embedded.name(index), self._embedded.file(index, "image")
            if content is None:
                raise PictureError(f"{name} ({self._rows.file_names[index]}): holds no picture: build again.")
            return io.BytesIO(content), name
        path = self._file(index, self._images)
        if path is None:
            wanted = self._images / self._rows.file_names[index]
            raise PictureError(f"{wanted}: no such image file: name its folder with --images.")
        return path if isinstance(path, Path) else io.BytesIO(_fetched(path)), str(path)

    def _file(self, index: int, images: Location) -> Location | None:
        """Where a picture is, None where it is not."""
        file_name, split = self._rows.file_names[index], self._rows.splits[index]
        if not file_name or not is_inside(file_name):
            raise PictureError(f"image {self._rows.image_ids[index]} has file_name {file_name!r}, which is not opened.")
        images = of_this_process(images)
        return next((path for path in (images / file_name, images / split / file_name) if is_file(path)), None)


def _fetched(path: Location) -> bytes:
    try:
        return content(path)
    except OSError as fault:
        raise PictureError(f"{path}: cannot be read ({reason_of(fault)}).") from None


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture as RGB; Pillow alone would clip 16 bits to 8."""
    if image.mode in ("I", "F"):
        raise PictureError(f"{name}: has pixels of 32 bits, whose range is unknown: store it with 8 or 16 bits.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")


def open_picture(
    source: Path | io.BytesIO,
    name: str,
    annotated: tuple[int, int] | None = None,
    at_least: tuple[int, int] | None = None,
) -> Image.Image:
    """A picture as RGB, read with care; EXIF orientation is not applied, as tokenlabels has it.

    Args:
        source: file or bytes.
        name: of it, for errors.
        annotated: (width, height) it must have, or None.
        at_least: see `PictureReader.open`.

    Raises:
        PictureError: it is missing, damaged, too large, or of another size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: both are dealt with here
            with Image.open(source, formats=_FORMATS) as image:
                if annotated and image.size != annotated:
                    stored = f"{image.size[0]} x {image.size[1]}"
                    raise PictureError(
                        f"{name}: is stored as {stored}, annotated as {annotated[0]} x {annotated[1]}: "
                        "these labels are not for this file."
                    )
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise PictureError(f"{name}: has more than {MAX_PIXELS} pixels: not opened.")
                if at_least:
                    image.draft("RGB", at_least)
                return _as_rgb(image, name)
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: claims an absurd number of pixels: not opened.") from None
    except _UNREADABLE as fault:
        reason = getattr(fault, "strerror", None) or "empty, cut short, or no image"
        raise PictureError(f"{name}: cannot be read as an image ({reason}).") from None


def several_pictures(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One or several pictures as a list.

    Raises:
        ParameterError: a tensor of another shape or type.
    """
    found = [images] if isinstance(images, (Image.Image, Tensor)) else list(images)
    for image in found:
        if isinstance(image, Tensor) and (image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3):
            raise ParameterError(
                f"a picture is a PIL image or a uint8 tensor (3, H, W), not {image.dtype} {tuple(image.shape)}."
            )
    return found


def picture_size(image: Picture) -> tuple[int, int]:
    """(width, height) in pixels."""
    return image.size if isinstance(image, Image.Image) else (int(image.shape[-1]), int(image.shape[-2]))


def as_tensor(image: Picture) -> Tensor:
    """uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return image


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) -> (3, H', W'), whole numbers 0 to 255: uint8, but float32 on devices that resize only that.

    On a CPU with AVX2 this takes 0.7 ms from 640 x 480 to 672 x 512, Pillow 2.4 ms; they differ by 1 of 255 at most.
    """
    if image.shape[1:] == size:
        return image
    if image.device.type == "cpu":
        return interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round_().clamp_(0, 255)
