"""One split of a build -> train and val (and test), alike in how much of their images is foreground."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.derived import PlannedShard, check_elsewhere, content_digest, derive
from tokenlabels.errors import ParameterError
from tokenlabels.output import JournalEntry
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, read_header
from tokenlabels.recutting import Chosen, GroupReader, plan_split, shard_rows_of, write_rows
from tokenlabels.shards import Columns, numbers, schema_of
from tokenlabels.stats_shards import column_values, list_values, read_group, row_groups
from tokenlabels.storage import located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location

TRAIN, VAL, TEST = 0, 1, 2
PARTS = ("train", "val", "test")


@explained()
def split(
    build: Build,
    out: str | Location,
    *,
    val: float = 0.1,
    test: float | None = None,
    seed: int = 0,
    split: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Build:
    """Cut a split into `train` and `val`, and `test` where it is asked for; see `draw_parts` for how.

    Images keep their order, and every grid of the build is cut alike.

    Args:
        build: what is cut.
        out: folder of the new build.
        val: share of the images that go to `val`, in (0, 1).
        test: share of the images that go to `test`.
        seed: another seed, another cut.
        split: the split to cut, needed where the build has several; the others are left out.
        overwrite: replace a build there that was made with other parameters.
        progress: told about every row.

    Raises:
        ParameterError: a share outside (0, 1) or one that leaves a part without images, an unknown split, several
            splits and none named, or `out` is the build itself.
        NotABuildError: a shard is damaged.
        OutputError: `out` cannot be written.
    """
    folder = located(out)
    progress = progress or Silent()
    check_elsewhere(folder, [build])
    chosen = _named(build, split)
    progress.stage("reading foreground shares")
    image_ids, share, annotations = _images(build, chosen)
    part = draw_parts(image_ids, share, val, test, seed)
    cut = {"split": chosen, "val": val, "test": test, "seed": seed, "shards_sha256": content_digest([build])}
    names = PARTS if test is not None else PARTS[:TEST]
    manifest = build.manifest | {
        "parameters": build.manifest["parameters"] | {"cut": cut},
        "sources": dict.fromkeys(names, build.manifest["sources"][chosen]),
        "splits": {
            name: {"images": int((part == number).sum()), "annotations": int(annotations[part == number].sum())}
            for number, name in enumerate(names)
        },
    }
    planned = _plan(build, chosen, part, names, shard_rows_of(build))
    return derive(folder, manifest, planned, stage="splitting", overwrite=overwrite, progress=progress)


def draw_parts(
    image_ids: pa.ChunkedArray, share: NDArray[np.float64], val: float, test: float | None, seed: int
) -> NDArray[np.uint8]:
    """Which part each image goes to.

    The images are sorted by foreground share and, where that is equal, by id, and cut into as many strata of (nearly)
    the same size as the part shall have images; one image of each stratum is drawn. `test` is drawn first, `val` from
    the rest. The draw depends on the seed, the shares and the ids alone.

    Args:
        image_ids: string (n,).
        share: float64 (n,), foreground among the patches of each image.
        val: share of the images in `val`, in (0, 1): exactly `round(val * n)` of them.
        test: likewise, or None.
        seed: of the draw.

    Returns:
        uint8 (n,): `TRAIN`, `VAL` or `TEST`.

    Raises:
        ParameterError: a share outside (0, 1), or a part without images.
    """
    import pyarrow.compute as pc

    if seed < 0:
        raise ParameterError(f"seed {seed} is negative: use 0 or more.")
    count = len(share)
    wanted = {TEST: 0 if test is None else _part_size("test", test, count), VAL: _part_size("val", val, count)}
    if sum(wanted.values()) >= count:
        shares = f"--val {val:g}" if test is None else f"--val {val:g} and --test {test:g}"
        raise ParameterError(f"{shares} of {count} images leave none for train: use less.")
    keys = [("share", "ascending"), ("id", "ascending")]
    table = pa.table({"share": numbers(share), "id": image_ids})
    order = column_values(pa.table({"place": pc.sort_indices(table, sort_keys=keys)}), "place").astype(np.int64)
    random = np.random.Generator(np.random.PCG64(seed))
    part = np.full(count, TRAIN, np.uint8)
    for name, size in wanted.items():
        left = order[part[order] == TRAIN]
        ends = np.arange(size + 1, dtype=np.int64) * len(left) // max(size, 1)
        places = ends[:-1] + (random.random(size) * np.diff(ends)).astype(np.int64)
        part[left[places]] = name
    return part


def _part_size(name: str, share: float, count: int) -> int:
    if not 0 < share < 1:
        raise ParameterError(f"--{name} {share:g} is no share of the images: use a number between 0 and 1.")
    size = round(share * count)
    if not size:
        raise ParameterError(f"--{name} {share:g} of {count} images is none: use more.")
    return size


def _named(build: Build, split: str | None) -> str:
    if split is None:
        if len(build.splits) > 1:
            raise ParameterError(
                f"{build.path} has several splits ({', '.join(build.splits)}): say which to cut with --split."
            )
        return build.splits[0]
    if split not in build.splits:
        raise ParameterError(f"{build.path} holds no split {split!r}: it has {', '.join(build.splits)}.")
    return split


def _images(build: Build, split: str) -> tuple[pa.ChunkedArray, NDArray[np.float64], NDArray[np.int64]]:
    """Of every image its id, its foreground share on the first grid, and how many annotations it has."""
    ids: list[pa.Array] = []
    shares, annotations = [np.zeros(0, np.float64)], [np.zeros(0, np.int64)]
    for group in row_groups(build, None, split):
        table = read_group(group, ["image_id", "grid_rows", "grid_cols", "fg_count", "ignore_count", "objects.id"])
        if not group.rows:
            continue
        ids.append(table.column("image_id").chunk(0))
        rows, cols, foreground, ignored = (
            column_values(table, name).astype(np.int64)
            for name in ("grid_rows", "grid_cols", "fg_count", "ignore_count")
        )
        shares.append(foreground / np.maximum(rows * cols - ignored, 1))
        objects = pa.table({"id": table.column("objects").chunk(0).field("id")})
        annotations.append(np.diff(list_values(objects, "id")[0]))
    return pa.chunked_array(ids, pa.string()), np.concatenate(shares), np.concatenate(annotations)


def _plan(
    build: Build, split: str, part: NDArray[np.uint8], names: Sequence[str], shard_rows: int
) -> list[PlannedShard]:
    planned: list[PlannedShard] = []
    reader = GroupReader()
    for grid in build.grids:
        groups = row_groups(build, grid, split)
        ends = np.cumsum([0, *(group.rows for group in groups)])
        for number, name in enumerate(names):
            chosen = [
                Chosen(build, group, np.flatnonzero(part[first:last] == number))
                for group, first, last in zip(groups, ends[:-1], ends[1:], strict=True)
            ]
            header = msgspec.structs.replace(read_header(groups[0].path), split=name)
            schema = schema_of(header, Columns.of(groups[0].columns))
            write = functools.partial(_write, schema, build, reader)
            planned += plan_split(grid, name, [each for each in chosen if len(each.rows)], shard_rows, write)
    return planned


def _write(
    schema: pa.Schema, build: Build, reader: GroupReader, target: Location, chosen: Sequence[Chosen]
) -> JournalEntry:
    return write_rows(target, schema, list(build.grids.values()), chosen, reader)
