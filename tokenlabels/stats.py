"""The figures of a build, from its shards.

Cells are summed up one row group at a time, in threads; rows and objects are counted by polars, streaming. Either way
memory depends on the size of a row group and on how many different values occur, not on the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenlabels.figures import (
    TAU_STOPS,
    Baselines,
    ClassWeights,
    Figures,
    LostObject,
    ObjectFigures,
    Position,
    Size,
    SplitFigures,
    TauCurve,
)
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build
from tokenlabels.rules import RULES
from tokenlabels.stats_cells import CellSums, cell_sums, no_cells
from tokenlabels.stats_objects import (
    images_by,
    lost_objects,
    object_counts,
    patch_distribution,
    row_counts,
    share_distribution,
    spread,
    unreadable,
)
from tokenlabels.stats_shards import GroupAddress, cell_columns, count_columns, damaged, read_group, row_groups
from tokenlabels.store_faults import explained

_THREADS = 2


@explained()
def statistics(
    build: Build, *, grid: str | None = None, split: str | None = None, progress: Progress | None = None
) -> Figures:
    """The figures of one build.

    Args:
        build: a finished build.
        grid: grid name, by default the first.
        split: split name, by default all.
        progress: told about every row.

    Raises:
        ParameterError: no such grid or split.
        NotABuildError: a shard is missing, damaged, or other than the manifest says.
    """
    name = grid or next(iter(build.grids))
    splits = build.splits if split is None else (split,)
    sums, lost = _summed(build, name, split, progress or Silent())
    try:
        by_split = {each: row_counts(build.frame(name, each)) for each in splits}
        frame = build.frame(name, split)
        objects = object_counts(frame)
        images = {what: images_by(frame, what) for what in ("category", "size")}
    except (OSError, pl.exceptions.PolarsError):
        raise unreadable(build.files(name, split)) from None
    return _figures(build, name, by_split, objects, images, sums, lost)


def _figures(
    build: Build,
    grid: str,
    by_split: Mapping[str, pl.DataFrame],
    objects: pl.DataFrame,
    images: Mapping[str, Mapping[int, int]],
    sums: CellSums,
    lost: pl.DataFrame,
) -> Figures:
    """Everything put together; see `row_counts`, `object_counts`, `images_by`, `cell_sums` and `spread`."""
    parameters = build.manifest["parameters"]
    inclusive = RULES[parameters["rule"]].inclusive
    splits = [_split_figures(name, rows) for name, rows in by_split.items()]
    rows = pl.concat(by_split.values())
    image_count, annotations, patches, foreground, ignored, empty = (
        sum(getattr(each, name) for each in splits)
        for name in ("images", "annotations", "patches", "foreground", "ignored", "empty_images")
    )
    counted = patches - ignored
    names = [category.name for category in build.categories]
    lost_count = int(objects.filter(pl.col("patches") == 0)["objects"].sum())
    if annotations or sums.category_patches is None:
        by_category = _by(objects, "category", names, images["category"], counted)
    else:
        assert sums.category_images is not None
        by_category = _by_majority(names, sums.category_patches, sums.category_images, counted)
    return Figures(
        path=str(build.path),
        source=parameters["source"],
        rule=parameters["rule"],
        tau=parameters["tau"],
        inclusive=inclusive,
        grid=grid,
        splits=splits,
        images=image_count,
        annotations=annotations,
        patches=patches,
        foreground=foreground,
        ignored=ignored,
        fg_share=share(foreground, counted),
        fg_share_per_image=share_distribution(*(rows[name].to_numpy() for name in ("foreground", "counted", "images"))),
        empty_images=empty,
        empty_share=share(empty, image_count),
        by_category=by_category,
        by_size=_by(objects, "size", get_args(Size), images["size"], counted) if annotations else [],
        patches_per_object=patch_distribution(objects["patches"].to_numpy(), objects["objects"].to_numpy()),
        lost_objects=lost_count,
        lost_share=share(lost_count, annotations),
        lost_examples=_lost_examples(lost, names),
        tau_curve=_tau_curve(sums, patches),
        position=_position(sums, scaled=build.grids[grid].constant_shape is None),
        baselines=_baselines(sums, foreground, counted),
        class_weights=ClassWeights(share(counted, 2 * (counted - foreground)), share(counted, 2 * foreground)),
    )


def _summed(build: Build, grid: str, split: str | None, progress: Progress) -> tuple[CellSums, pl.DataFrame]:
    """Sums over all cells, and the lost objects that are told."""
    groups = row_groups(build, grid, split)
    progress.stage("reading labels", sum(group.rows for group in groups))
    sums = no_cells(build.grids[grid], scores=build.manifest["parameters"]["scores"])
    lost = spread([])
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for address, (more, lost_here) in zip(
                groups, pool.map(partial(_summed_group, build, grid), groups), strict=True
            ):
                sums = sums + more
                lost = spread([lost, lost_here])
                progress.advance(address.rows)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums, lost


def _summed_group(build: Build, grid: str, address: GroupAddress) -> tuple[CellSums, pl.DataFrame]:
    """Sums over the cells of one row group, and its lost objects."""
    table = read_group(address, count_columns(address.columns))
    patch_grid = build.grids[grid]
    columns = cell_columns(table, patch_grid.constant_shape, address.path)
    inclusive = RULES[build.manifest["parameters"]["rule"]].inclusive
    try:
        sums = cell_sums(columns, patch_grid, inclusive, len(build.categories))
        return sums, lost_objects(table, address.split, len(build.categories))
    except ValueError as fault:
        raise damaged(address.path, str(fault)) from None


def share(part: int, whole: int) -> float:
    """`part / whole`, 0 where there is nothing."""
    return part / whole if whole else 0.0


def _split_figures(name: str, rows: pl.DataFrame) -> SplitFigures:
    """Sums of one split, see `row_counts`."""
    images, foreground = rows["images"], int((rows["foreground"] * rows["images"]).sum())
    patches, counted = int(rows["patches"].sum()), int((rows["counted"] * images).sum())
    return SplitFigures(
        split=name,
        images=int(images.sum()),
        annotations=int(rows["objects"].sum()),
        patches=patches,
        foreground=foreground,
        ignored=patches - counted,
        fg_share=share(foreground, counted),
        empty_images=int(rows.filter(pl.col("foreground") == 0)["images"].sum()),
    )


def _by(
    objects: pl.DataFrame, what: str, names: list[str] | tuple[str, ...], images: Mapping[int, int], counted: int
) -> list[ObjectFigures]:
    """Figures of every category, or of every size; `objects` as `object_counts` has them, `what` one of its columns."""
    kind, number = objects[what].to_numpy().astype(np.int64), objects["objects"].to_numpy()
    each = objects["patches"].to_numpy()
    totals = np.zeros((3, len(names)), np.int64)
    for row, values in zip(totals, (number, each * number, np.where(each == 0, number, 0)), strict=True):
        np.add.at(row, kind, values)
    return [
        ObjectFigures(
            name=name,
            objects=count,
            images=images.get(index, 0),
            patches=patches,
            patches_mean=share(patches, count),
            fg_share=share(patches, counted),
            lost=lost,
            lost_share=share(lost, count),
        )
        for index, (name, (count, patches, lost)) in enumerate(zip(names, totals.T.tolist(), strict=True))
    ]


def _by_majority(
    names: list[str], patches: NDArray[np.int64], images: NDArray[np.int64], counted: int
) -> list[ObjectFigures]:
    """Figures of every category of a build without objects, from the majority category of each patch."""
    return [
        ObjectFigures(name, 0, seen, count, 0.0, share(count, counted), 0, 0.0)
        for name, count, seen in zip(names, patches.tolist(), images.tolist(), strict=True)
    ]


def _lost_examples(lost: pl.DataFrame, names: list[str]) -> list[LostObject]:
    return [
        LostObject(
            split=row["split"],
            image_id=row["image_id"],
            file_name=row["file_name"],
            id=row["id"],
            category=names[row["category"]],
            area=row["area"],
            bbox=tuple(row["bbox"]),
        )
        for row in lost.iter_rows(named=True)
    ]


def _tau_curve(sums: CellSums, patches: int) -> TauCurve | None:
    if sums.passing is None or sums.ignored is None:
        return None
    foreground, ignored = sums.passing.tolist(), sums.ignored.tolist()
    shares = [share(part, patches - left_out) for part, left_out in zip(foreground, ignored, strict=True)]
    return TauCurve(list(TAU_STOPS), foreground, ignored, shares)


def _position(sums: CellSums, *, scaled: bool) -> Position:
    rows, cols = sums.position_counted.shape
    probability = sums.position_foreground / np.maximum(sums.position_counted, 1)
    return Position(rows, cols, scaled, probability.tolist(), sums.position_counted.tolist())


def _baselines(sums: CellSums, foreground: int, counted: int) -> Baselines:
    """A tie is answered 0."""
    background = counted - foreground
    likelier = np.maximum(sums.position_foreground, sums.position_counted - sums.position_foreground)
    return Baselines(
        majority=share(max(foreground, background), counted),
        majority_label=int(foreground > background),
        position_prior=share(int(likelier.sum()), counted),
    )
