"""Several builds side by side: the figures of each, and how far their labels agree."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.errors import ParameterError
from tokenlabels.figures import Agreement, Comparison
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build
from tokenlabels.shards import numbers
from tokenlabels.stats import share, statistics
from tokenlabels.stats_objects import unreadable
from tokenlabels.stats_shards import FOREGROUND, IGNORE, list_values, read_group, row_groups
from tokenlabels.store_faults import explained

_KEPT_CELLS = 1 << 27
"""Labels of one build that are kept while rows in another order are looked up."""

_KEY = ["split", "image_id"]


class _NotComparableError(Exception):
    """Builds cannot be compared patch by patch; the message says why."""


@explained()
def compare(
    builds: Sequence[Build], *, grid: str | None = None, split: str | None = None, progress: Progress | None = None
) -> Comparison:
    """The figures of several builds, and how far their labels agree on the images that all of them hold.

    Labels are read a row group at a time; what grows with the rows is a table of the image ids.

    Args:
        builds: finished builds.
        grid: grid name, by default the first of each.
        split: split name, by default all.
        progress: told about every row.

    Raises:
        ParameterError: no builds, or one has no such grid or split.
        NotABuildError: a shard is missing, damaged, or other than the manifest says.
    """
    if not builds:
        raise ParameterError("no builds to compare: name at least one.")
    progress = progress or Silent()
    figures = [statistics(build, grid=grid, split=split, progress=progress) for build in builds]
    try:
        agreement = _agreement(builds, [each.grid for each in figures], split, progress)
    except _NotComparableError as reason:
        return Comparison(figures, None, str(reason))
    return Comparison(figures, agreement)


def build_names(builds: Sequence[Build]) -> list[str]:
    """A name for each build: rule and tau, with the folder where these are alike, with a number where that is, too."""
    names = [f"{build.manifest['parameters']['rule']} {build.manifest['parameters']['tau']:g}" for build in builds]
    additions: list[Callable[[int], str]] = [
        lambda index: builds[index].path.resolve().name,
        lambda index: str(builds[index].path),
        lambda index: f"#{index + 1}",
    ]
    chosen = names
    for addition in additions:
        counts = Counter(chosen)
        chosen = [
            f"{name} ({addition(index)})" if counts[old] > 1 else old
            for index, (name, old) in enumerate(zip(names, chosen, strict=True))
        ]
    return chosen


def kappa(both: int, one: int, other: int, total: int) -> float:
    """Cohen's kappa of two labellings of `total` patches.

    Args:
        both: patches that both label 1.
        one: patches that the first labels 1.
        other: patches that the second labels 1.
        total: all patches, at least one.

    Returns:
        1 where both give every patch the same one label, since they agree and chance leaves nothing to correct.
    """
    observed = (total - one - other + 2 * both) / total
    expected = (one * other + (total - one) * (total - other)) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else 1.0


def _agreement(builds: Sequence[Build], grids: Sequence[str], split: str | None, progress: Progress) -> Agreement:
    if len(builds) < 2:
        raise _NotComparableError("there is only one build")
    if len(set(grids)) > 1:
        raise _NotComparableError(f"they are on different grids ({', '.join(dict.fromkeys(grids))})")
    readers = [LabelReader(build, grids[0], split) for build in builds]
    positions = _shared_rows(builds, grids[0], split)
    images = positions.shape[1]
    if not images:
        raise _NotComparableError("they share no images: none has the same split and image_id in all of them")
    progress.stage("comparing labels", images)
    both = np.zeros((len(builds), len(builds)), np.int64)
    patches = 0
    for first, last in readers[0].cuts(positions[0]):
        foreground = _foreground(readers, positions[:, first:last])
        patches += foreground.shape[1]
        for i, j in zip(*np.triu_indices(len(builds)), strict=True):
            both[i, j] += np.count_nonzero(foreground[i] & foreground[j])
        progress.advance(last - first)
    if not patches:
        raise _NotComparableError("one or another ignores every patch")
    both = np.maximum(both, both.T)
    ones = both.diagonal()
    equal = patches - ones[:, None] - ones[None, :] + 2 * both
    return Agreement(
        names=build_names(builds),
        images=images,
        patches=patches,
        agreement=[[share(int(value), patches) for value in row] for row in equal],
        kappa=[
            [kappa(int(both[i, j]), int(ones[i]), int(ones[j]), patches) for j in range(len(builds))]
            for i in range(len(builds))
        ],
    )


def _shared_rows(builds: Sequence[Build], grid: str, split: str | None) -> NDArray[np.int64]:
    """int64 (builds, n): the row of each image that all builds hold in each of them, in the order of the first."""
    try:
        shared = _image_rows(builds[0], grid, split, "row 0")
        for index, build in enumerate(builds[1:], 1):
            shared = shared.join(_image_rows(build, grid, split, f"row {index}"), on=_KEY, how="inner")
        frame = shared.drop(_KEY).sort("row 0").collect()
    except (OSError, pl.exceptions.PolarsError):
        raise unreadable([path for build in builds for path in build.files(grid, split)]) from None
    return np.stack([column.cast(pl.Int64).to_numpy() for column in frame.iter_columns()])


def _image_rows(build: Build, grid: str, split: str | None, name: str) -> pl.LazyFrame:
    """The images of a build with the number of their row; of an image that is there twice, the first."""
    frames = [
        build.frame(grid, each).select(pl.lit(each).alias("split"), "image_id")
        for each in (build.splits if split is None else (split,))
    ]
    return pl.concat(frames).with_row_index(name).unique(_KEY, keep="first")


def _foreground(readers: Sequence[LabelReader], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (builds, cells): label-1 cells of n images, without the cells that any build ignores.

    Args:
        readers: one for each build.
        positions: int64 (builds, n), the row of each image.
    """
    read = [reader.labels(rows) for reader, rows in zip(readers, positions, strict=True)]
    if any(not np.array_equal(sizes, read[0][0]) for sizes, _ in read):
        raise _NotComparableError("an image has grids of different sizes in them")
    labels = np.stack([values for _, values in read])
    kept = (labels != IGNORE).all(axis=0)
    foreground: NDArray[np.bool_] = labels == FOREGROUND
    return foreground if kept.all() else foreground[:, kept]


class LabelReader:
    """Labels of the rows of a build in any order; rows in order read every row group once."""

    def __init__(self, build: Build, grid: str, split: str | None) -> None:
        self._groups = row_groups(build, grid, split)
        self._starts = np.cumsum([0, *(group.rows for group in self._groups)], dtype=np.int64)
        self._held: dict[int, pa.ListArray] = {}

    def cuts(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Spans of sorted row numbers, each of which lies in one row group."""
        ends = np.unique(np.searchsorted(rows, self._starts)).tolist()
        return list(itertools.pairwise(ends))

    def labels(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Labels of n rows, in the order asked for.

        Returns:
            int64 (n,) cells of each, and uint8, the labels end to end.
        """
        group_of = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(group_of, kind="stable")
        parts = [
            self._group(index).take(numbers(rows[group_of == index] - self._starts[index]))
            for index in np.unique(group_of).tolist()
        ]
        taken = pa.concat_arrays(parts).take(numbers(np.argsort(order)))
        offsets, values = list_values(pa.table({"labels": taken}), "labels")
        return np.diff(offsets), values

    def _group(self, index: int) -> pa.ListArray:
        """Labels of one row group, kept for the next call."""
        if index not in self._held:
            while self._held and sum(len(lists.values) for lists in self._held.values()) > _KEPT_CELLS:
                del self._held[next(iter(self._held))]
            self._held[index] = read_group(self._groups[index], ["labels"]).column("labels").chunk(0)
        return self._held[index]
