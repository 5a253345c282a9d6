"""A build -> files for people whose tools read something else: WebDataset, NumPy or COCO.

An export is no build: it holds one grid, and `export.json` instead of a manifest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np

import tokenlabels
from tokenlabels.derived import check_elsewhere, content_digest
from tokenlabels.errors import ParameterError
from tokenlabels.export_folder import ExportedFile, PlannedFile, write_export
from tokenlabels.export_pictures import pictures_digest
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, read_header
from tokenlabels.recutting import Chosen, GroupReader, cut, shard_rows_of
from tokenlabels.shards import ShardHeader
from tokenlabels.stats_shards import row_groups
from tokenlabels.storage import is_folder, located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location

ExportFormat: TypeAlias = Literal["webdataset", "npz", "coco"]


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export.

    Attributes:
        path: its folder.
        format: of its files.
        grid: name of the grid that it holds.
        files: in order.
    """

    path: Location
    format: ExportFormat
    grid: str
    files: tuple[ExportedFile, ...]


@explained()
def export(
    build: Build,
    out: str | Location,
    *,
    format: ExportFormat,  # noqa: A002  what people call it
    grid: str | None = None,
    split: str | Sequence[str] = (),
    shard_rows: int | None = None,
    images: str | Location | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write one grid of a build in another format; see `export_webdataset`, `export_npz` and `export_coco`.

    Args:
        build: what is exported.
        out: folder of the export.
        format: `webdataset`, `npz` or `coco`.
        grid: grid name, by default the first.
        split: split or splits, by default all.
        shard_rows: images per file; by default of webdataset as in the build, of npz all of a split. Not with coco.
        images: folder of the pictures, for a webdataset of a build that has none embedded.
        overwrite: replace an export there that was made with other parameters.
        progress: told about every image.

    Raises:
        ParameterError: an unknown format, grid or split, an option that the format has no use for, or `out` is the
            build itself.
        NotABuildError: a shard is damaged.
        OutputError: `out` cannot be written or holds something else.
        TokenLabelsError: a picture in `images` is missing.
    """
    folder, progress = located(out), progress or Silent()
    if format not in get_args(ExportFormat):
        raise ParameterError(f"unknown format {format!r}: use one of {', '.join(get_args(ExportFormat))}.")
    if shard_rows is not None and (format == "coco" or not 1 <= shard_rows <= 1_000_000):
        raise ParameterError(
            "--shard-rows does not go with coco, which has one file for each split."
            if format == "coco"
            else f"shard_rows {shard_rows} is out of range: 1 to 1000000 images a file."
        )
    check_elsewhere(folder, [build])
    name = grid or next(iter(build.grids))
    splits = [split] if isinstance(split, str) else list(split) or list(build.splits)
    chosen = {each: _rows(build, name, each) for each in splits}
    header = read_header(build.files(name, splits[0])[0])
    place = None if images is None else located(images)
    _check_pictures(build, format, place, header, progress)
    if len(build.grids) > 1 and grid is None:
        others = ", ".join(list(build.grids)[1:])
        progress.note(f"the grid {name} is exported; name another with --grid: {others}.")
    planned = _plan(build, format, header, chosen, shard_rows, place)
    index: dict[str, Any] = {
        "tool": {"name": "tokenlabels", "version": tokenlabels.__version__},
        "parameters": {
            "format": format,
            "grid": name,
            "splits": splits,
            "shard_rows": shard_rows,
            "pictures_sha256": None if place is None else _pictures(build, name, splits, place, progress),
            "shards_sha256": content_digest([build]),
        },
        "header": msgspec.to_builtins(msgspec.structs.replace(header, split=", ".join(splits))),
        "build": {"parameters": build.manifest["parameters"], "sources": build.manifest["sources"]},
    }
    index = msgspec.json.decode(msgspec.json.encode(index))
    files = write_export(folder, index, planned, overwrite=overwrite, progress=progress)
    return Export(folder, format, name, files)


def _rows(build: Build, grid: str, split: str) -> list[Chosen]:
    build.files(grid, split)  # which refuses what is not there
    return [Chosen(build, group, np.arange(group.rows, dtype=np.int64)) for group in row_groups(build, grid, split)]


def _check_pictures(
    build: Build, wanted: ExportFormat, images: Location | None, header: ShardHeader, progress: Progress
) -> None:
    embedded = "image" in row_groups(build, header.grid, header.split)[0].columns
    if images is not None and wanted != "webdataset":
        raise ParameterError(f"--images does not go with {wanted}, which holds no pictures.")
    if images is not None and embedded:
        raise ParameterError(f"{build.path} has its pictures embedded: leave --images out.")
    if images is not None:
        with explained(images):
            found = is_folder(images)
        if not found:
            raise ParameterError(f"{images}: no such folder: name the image folder with --images, or leave it out.")
    if wanted == "webdataset" and images is None and not embedded:
        progress.note(f"{build.path} has no pictures embedded: the samples hold labels only, unless you name --images.")
    if wanted != "webdataset" and embedded:
        progress.note(f"{wanted} holds no pictures: those of {build.path} are left out.")


def _pictures(build: Build, grid: str, splits: Sequence[str], images: Location, progress: Progress) -> str:
    progress.stage("looking for the pictures")
    names = [build.table(grid, split, ["file_name"]).column(0).to_pylist() for split in splits]
    return pictures_digest(images, itertools.chain.from_iterable(names))


def _plan(
    build: Build,
    wanted: ExportFormat,
    header: ShardHeader,
    chosen: dict[str, list[Chosen]],
    shard_rows: int | None,
    images: Location | None,
) -> list[PlannedFile]:
    reader = GroupReader()
    if wanted == "coco":
        from tokenlabels.export_coco import coco_file

        return [coco_file(build, header, split, rows, reader) for split, rows in chosen.items()]
    if wanted == "npz":
        from tokenlabels.export_npz import npz_file

        return [
            npz_file(build, header, split, part, index, None if shard_rows is None else total, reader)
            for split, rows in chosen.items()
            for index, total, part in _parts(rows, shard_rows or max(1, sum(len(each.rows) for each in rows)))
        ]
    from tokenlabels.export_webdataset import tar_file

    return [
        tar_file(header, split, part, index, images, reader)
        for split, rows in chosen.items()
        for index, _, part in _parts(rows, shard_rows or shard_rows_of(build))
    ]


def _parts(rows: Sequence[Chosen], size: int) -> list[tuple[int, int, list[Chosen]]]:
    """(index, total, rows) of each file."""
    parts = list(cut(rows, size))
    return [(index, len(parts), part) for index, part in enumerate(parts)]
