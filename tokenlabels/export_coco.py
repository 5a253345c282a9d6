"""COCO: `instances_SPLIT.json`, which pycocotools and everything that reads COCO boxes opens.

The annotations are the objects, boxes as annotated; shards hold no masks, so `segmentation` is an empty list. Labels
are no annotations: they stand at each image, as pycocotools' own run lengths over the grid instead of over pixels:

    {"id": 139, "file_name": "000000000139.jpg", "width": 640, "height": 426, "fg_count": 245, "ignore_count": 0,
     "patch_labels": {"size": [24, 24], "counts": "…"}}

`pycocotools.mask.decode(image["patch_labels"])` is uint8 (rows, cols), 1 where a patch is foreground; `patch_ignored`,
there where any patch is ignored, likewise. `info` says which grid and rule.

Image ids that are whole numbers stay; else images are numbered from 1 and keep theirs under `image_id`. Annotation ids
stay where they are positive and differ, else annotations are numbered from 1.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.export_arrays import as_written, members
from tokenlabels.export_folder import PlannedFile
from tokenlabels.reader import Build
from tokenlabels.recutting import Chosen, GroupReader, rows_of
from tokenlabels.shards import ShardHeader
from tokenlabels.stats_shards import FOREGROUND, IGNORE, column_values, list_values

_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")
_FLAT = ("image_id", "file_name", "width", "height", "fg_count", "ignore_count")


def coco_file(
    build: Build, header: ShardHeader, split: str, chosen: Sequence[Chosen], reader: GroupReader
) -> PlannedFile:
    """The file of one split.

    Args:
        build: what is exported.
        header: of its shards.
        split: name of the split.
        chosen: its images, in order.
        reader: reads them.
    """
    stated = msgspec.structs.replace(header, split=split)
    shape = build.grids[header.grid].constant_shape
    rows = sum(len(each.rows) for each in chosen)
    write = functools.partial(_write, reader, stated, shape, chosen)
    return PlannedFile(f"instances_{split}.json", split, rows, write)


@dataclass(frozen=True, slots=True)
class _Ids:
    """Which ids of a split stay."""

    images: bool
    annotations: bool


def _write(
    reader: GroupReader,
    header: ShardHeader,
    shape: tuple[int, int] | None,
    chosen: Sequence[Chosen],
    file: BinaryIO,
) -> None:
    kept = _kept_ids(reader, chosen)
    info = {"description": f"{header.split}, with patch labels by tokenlabels"}
    stated = {name: value for name, value in msgspec.to_builtins(header).items() if name != "categories"}
    file.write(b'{"info":' + msgspec.json.encode(info | {"tokenlabels": stated}))
    file.write(b',"licenses":[],"categories":' + msgspec.json.encode(header.categories))
    _write_list(file, "images", _images(reader, chosen, kept, shape))
    _write_list(file, "annotations", _annotations(reader, chosen, kept, [each.id for each in header.categories]))
    file.write(b"}\n")


def _write_list(file: BinaryIO, name: str, parts: Iterator[list[dict[str, Any]]]) -> None:
    file.write(f',"{name}":['.encode())
    first = True
    for part in parts:
        if part:
            file.write((b"" if first else b",") + b"\n" + msgspec.json.encode(part)[1:-1])
            first = False
    file.write(b"]")


def _kept_ids(reader: GroupReader, chosen: Sequence[Chosen]) -> _Ids:
    whole = True
    ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for table in _read(reader, chosen, ["image_id", "objects.id"]):
        whole = whole and all(map(_WHOLE.fullmatch, table.column("image_id").to_pylist()))
        ids.append(members(table, "objects")[1]["id"])
    every = np.concatenate(ids)
    unique = not len(every) or (int(every.min()) > 0 and len(np.unique(every)) == len(every))
    return _Ids(whole, unique)


def _images(
    reader: GroupReader, chosen: Sequence[Chosen], kept: _Ids, shape: tuple[int, int] | None
) -> Iterator[list[dict[str, Any]]]:
    """The entries of `images`, a row group at a time."""
    number = 0
    for table in _read(reader, chosen, [*_FLAT, "grid_rows", "grid_cols", "labels"]):
        flat = {name: table.column(name).to_pylist() for name in _FLAT}
        foreground, ignored = (_run_lengths(table, shape, value) for value in (FOREGROUND, IGNORE))
        entries = []
        for row, values in enumerate(zip(*flat.values(), strict=True)):
            number += 1
            entry = dict(zip(_FLAT, values, strict=True))
            image_id = entry.pop("image_id")
            numbered = {"id": int(image_id)} if kept.images else {"id": number, "image_id": image_id}
            entry = numbered | entry | {"patch_labels": foreground[row]}
            entries.append(entry | ({"patch_ignored": ignored[row]} if entry["ignore_count"] else {}))
        yield entries


def _run_lengths(table: pa.Table, shape: tuple[int, int] | None, value: int) -> list[dict[str, Any]]:
    """Where each image has a label, as pycocotools encodes masks."""
    from pycocotools import mask

    offsets, labels = list_values(table, "labels")
    chosen = (labels == value).view(np.uint8)
    if shape is not None:
        found = mask.encode(np.asfortranarray(chosen.reshape(-1, *shape).transpose(1, 2, 0)))
    else:
        shapes = zip(
            column_values(table, "grid_rows").tolist(), column_values(table, "grid_cols").tolist(), strict=True
        )
        pieces = np.split(chosen, offsets[1:-1])
        found = [
            mask.encode(np.asfortranarray(piece.reshape(sides))) for piece, sides in zip(pieces, shapes, strict=True)
        ]
    return [{"size": list(map(int, each["size"])), "counts": each["counts"].decode("ascii")} for each in found]


def _annotations(
    reader: GroupReader, chosen: Sequence[Chosen], kept: _Ids, category_ids: Sequence[int]
) -> Iterator[list[dict[str, Any]]]:
    """The entries of `annotations`, a row group at a time."""
    images, number = 0, 0
    for table in _read(reader, chosen, ["image_id", "objects"]):
        offsets, objects = members(table, "objects")
        counts = np.diff(offsets)
        if kept.images:
            named = np.repeat(np.array(table.column("image_id").to_pylist()).astype(np.int64), counts)
        else:
            named = np.repeat(np.arange(images, images + len(table)) + 1, counts)
        total = int(offsets[-1])
        ids = objects["id"] if kept.annotations else np.arange(number, number + total) + 1
        columns = {
            "id": ids.tolist(),
            "image_id": named.tolist(),
            "category_id": np.asarray(category_ids, np.int64)[objects["category"]].tolist(),
            "bbox": as_written(objects["bbox"]).tolist(),
            "area": as_written(objects["area"]).tolist(),
            "iscrowd": objects["iscrowd"].astype(np.int64).tolist(),
            "segmentation": [[]] * total,
            "patches": objects["patches"].tolist(),
        }
        if objects["difficult"].any():
            columns["difficult"] = objects["difficult"].astype(np.int64).tolist()
        yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        images += len(table)
        number += total


def _read(reader: GroupReader, chosen: Sequence[Chosen], columns: Sequence[str]) -> Iterator[pa.Table]:
    for each in chosen:
        yield rows_of(reader.read(each.build, each.group, columns), each.rows)
