"""WebDataset: tar files of samples, which the package `webdataset` decodes by the ends of the names.

SPLIT-000000.tar holds for each image, one after the other:

    KEY.json            image_id, file_name, width, height, grid, counts, objects (as in the shard, with names)
    KEY.labels.npy      uint8 (rows, cols): 1 foreground, 0 background, 255 ignore
    KEY.scores.npy      float32 (rows, cols); likewise ignored, categories, category_share, where the build has them
    KEY.jpg or .png     the picture, where one is embedded or named with `images`
    KEY.mask.png        the mask, where one is embedded

Format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import pyarrow as pa

from tokenlabels.errors import OutputError
from tokenlabels.export_arrays import as_written, members, npy_header
from tokenlabels.export_folder import PlannedFile
from tokenlabels.export_pictures import picture_path, unreadable_picture
from tokenlabels.recutting import Chosen, GroupReader, rows_of
from tokenlabels.shards import ShardHeader
from tokenlabels.stats_shards import list_values
from tokenlabels.storage import content

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BLOCK, _RECORD = 512, 10_240
_ENDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"RIFF", "webp"))
_CELLS = ("labels", "scores", "ignored", "categories", "category_share")
_NAME_BYTES, _SIZE_DIGITS = 100, 11
_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"\0" + b"00000000000\0"
_KIND = (b"0" + bytes(100) + b"ustar\0" + b"00").ljust(_BLOCK - 156, b"\0")
_FIXED_SUM = sum(_OWNER) + sum(_TIME) + sum(_KIND) + 8 * ord(" ")
"""The sum of a header but for name and size; its own place counts as eight spaces."""

_FLAT = ("image_id", "file_name", "width", "height", "grid_rows", "grid_cols", "fg_count", "ignore_count")


def tar_file(
    header: ShardHeader,
    split: str,
    chosen: Sequence[Chosen],
    index: int,
    images: Location | None,
    reader: GroupReader,
) -> PlannedFile:
    """One tar file.

    Args:
        header: of the shards.
        split: name of the split.
        chosen: its images, in order.
        index: its number in the split.
        images: folder of the pictures, None: those that are embedded, if any.
        reader: reads the rows; tars that share a row group read it once.
    """
    rows = sum(len(each.rows) for each in chosen)
    return PlannedFile(
        f"{split}-{index:06d}.tar", split, rows, functools.partial(_write, reader, header, split, chosen, images)
    )


def _write(
    reader: GroupReader,
    header: ShardHeader,
    split: str,
    chosen: Sequence[Chosen],
    images: Location | None,
    file: BinaryIO,
) -> None:
    names = [category.name for category in header.categories]
    keys, size = set[str](), 0
    for each in chosen:
        table = rows_of(reader.read(each.build, each.group), each.rows)
        for row, members_of in enumerate(_samples(table, header.grid, split, names)):
            key = _key(str(members_of[0]), keys, row)
            pictures = () if images is None else (_picture(images, str(members_of[1])),)
            for end, data in (*members_of[2], *pictures):
                size += _add(file, f"{key}.{end}", data)
    file.write(bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD))


def _add(file: BinaryIO, name: str, data: bytes) -> int:
    """Add a member that has no owner and no time; returns its size in the archive."""
    block = tar_header(name, len(data)) + data
    block += bytes(-len(block) % _BLOCK)
    return file.write(block)


def tar_header(name: str, size: int) -> bytes:
    """The ustar header of a plain file, as POSIX.1-1988 has it; five times quicker than `tarfile`'s.

    Args:
        name: ASCII, up to 100 characters.
        size: bytes of the file, below 8 GiB.
    """
    named, sized = name.encode("ascii"), b"%011o" % size
    if len(named) > _NAME_BYTES or len(sized) > _SIZE_DIGITS:
        raise OutputError(f"{name}: a member of {size} bytes does not fit a tar file.")
    head = named.ljust(_NAME_BYTES, b"\0") + _OWNER + sized + _TIME
    checksum = b"%06o\0 " % (sum(named) + sum(sized) + _FIXED_SUM)
    return head + checksum + _KIND


def _key(image_id: str, seen: set[str], row: int) -> str:
    """A name of letters, digits, `_` and `-`, which no sample of the file has yet; the image id where that will do."""
    key = image_id
    if not _PLAIN_KEY.fullmatch(image_id):
        key = f"{re.sub('[^A-Za-z0-9_-]', '_', image_id)[:48]}-{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"
    while key in seen:
        key = f"{key[:64]}-{row}"
    seen.add(key)
    return key


def _samples(
    table: pa.Table, grid: str, split: str, names: Sequence[str]
) -> Iterator[tuple[str, str, list[tuple[str, bytes]]]]:
    """Of every row its image id, its file name, and the ends and contents of its members."""
    flat = {name: table.column(name).to_pylist() for name in _FLAT}
    structs = {name: members(table, name) for name in ("objects", "segments") if name in table.column_names}
    structs = {name: (offsets, _decimal(values)) for name, (offsets, values) in structs.items()}
    cells = {name: list_values(table, name) for name in _CELLS if name in table.column_names}
    files = {name: table.column(name).chunk(0) for name in ("image", "mask") if name in table.column_names}
    for row in range(len(table)):
        sample: dict[str, Any] = {name: values[row] for name, values in flat.items()} | {"split": split, "grid": grid}
        for name, (offsets, values) in structs.items():
            first, last = int(offsets[row]), int(offsets[row + 1])
            sample[name] = {member: each[first:last].tolist() for member, each in values.items()}
            sample[name]["category_name"] = [names[index] for index in sample[name]["category"]]
        found = [("json", msgspec.json.encode(sample))]
        shape = sample["grid_rows"], sample["grid_cols"]
        for name, (offsets, each) in cells.items():
            found.append(
                (f"{name}.npy", npy_header(each.dtype, shape) + each[offsets[row] : offsets[row + 1]].tobytes())
            )
        for name, column in files.items():
            held = column[row].as_py()
            if held is not None:
                end = _end(held["bytes"], held["path"] or "")
                found.append((end if name == "image" else f"{name}.{end}", held["bytes"]))
        yield sample["image_id"], sample["file_name"], found


def _decimal(values: dict[str, Any]) -> dict[str, Any]:
    return {name: as_written(each) if each.dtype.kind == "f" else each for name, each in values.items()}


def _picture(images: Location, name: str) -> tuple[str, bytes]:
    path = picture_path(images, name)
    try:
        picture = content(path)
    except OSError as fault:
        raise unreadable_picture(path, fault) from None
    return _end(picture, name), picture


def _end(picture: bytes, name: str) -> str:
    """The end of a picture's name, by its first bytes, else by the name that it had."""
    for magic, end in _ENDS:
        if picture.startswith(magic):
            return end
    own = PurePosixPath(name).suffix[1:].lower()
    return own if own.isalnum() and own.isascii() else "img"
