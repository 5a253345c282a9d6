"""Rows and objects of shards in polars: small tables of counts whose size does not depend on the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from tokenlabels.errors import NotABuildError
from tokenlabels.figures import QUANTILES, SIZE_LIMITS, Distribution
from tokenlabels.reader import lazy_frame
from tokenlabels.stats_shards import damaged

if TYPE_CHECKING:
    from tokenlabels.storage import Location

LOST_EXAMPLES = 1000
"""Lost objects that are told one by one."""

_SHARE_BINS = 20
_MEMBERS = ("id", "bbox", "category", "area", "patches")
_LOST_COLUMNS: dict[str, pl.DataType] = {
    "split": pl.String(),
    "image_id": pl.String(),
    "file_name": pl.String(),
    "id": pl.Int64(),
    "bbox": pl.Array(pl.Float32, 4),
    "category": pl.Int32(),
    "area": pl.Float32(),
    "patches": pl.Int32(),
}
_LOST_SCHEMA = pl.Schema(_LOST_COLUMNS)


def row_counts(frame: pl.LazyFrame) -> pl.DataFrame:
    """Images by what they hold.

    Returns:
        One row for each pair of `foreground` (label-1 patches) and `counted` (patches not ignored) that occurs, with
        `images`, `patches` (all) and `objects` of these images; sorted.
    """
    patches = pl.col("grid_rows").cast(pl.Int64) * pl.col("grid_cols").cast(pl.Int64)
    return (
        frame.select(
            foreground=pl.col("fg_count").cast(pl.Int64),
            counted=patches - pl.col("ignore_count"),
            patches=patches,
            objects=pl.col("objects").struct.field("id").list.len().cast(pl.Int64),
        )
        .group_by("foreground", "counted")
        .agg(pl.len().cast(pl.Int64).alias("images"), pl.col("patches").sum(), pl.col("objects").sum())
        .sort("foreground", "counted")
        .collect(engine="streaming")
    )


def object_counts(frame: pl.LazyFrame) -> pl.DataFrame:
    """Objects by what they are.

    Returns:
        One row for each `category`, `size` (0 small, 1 medium, 2 large) and number of `patches` that occurs together,
        with `objects`; sorted.
    """
    names = ("category", "area", "patches")
    return (
        frame.select(pl.col("objects").struct.field(name) for name in names)
        .filter(pl.col("category").list.len() > 0)
        .explode(names)
        .group_by("category", _size(pl.col("area")).alias("size"), pl.col("patches").cast(pl.Int64))
        .agg(pl.len().cast(pl.Int64).alias("objects"))
        .sort("category", "size", "patches")
        .collect(engine="streaming")
    )


def images_by(frame: pl.LazyFrame, what: str) -> dict[int, int]:
    """Images that have at least one object of each category index, or of each size (`what`: `category` or `size`)."""
    objects = pl.col("objects").struct
    held = objects.field("category") if what == "category" else objects.field("area").list.eval(_size(pl.element()))
    counts = (
        frame.select(held.list.unique().alias(what))
        .explode(what)
        .drop_nulls()
        .group_by(what)
        .agg(pl.len().alias("images"))
        .collect(engine="streaming")
    )
    return dict(zip(counts[what].to_list(), counts["images"].to_list(), strict=True))


def lost_objects(table: pa.Table, split: str, categories: int) -> pl.DataFrame:
    """The objects of a row group without a patch, at most `LOST_EXAMPLES`, chosen as `spread` does.

    Args:
        table: with the columns image_id, file_name and objects.
        split: their split.
        categories: entries of the category table.

    Raises:
        ValueError: objects that no build writes.
    """
    chosen = table.select(["image_id", "file_name", "objects"]).replace_schema_metadata()
    rows = pl.DataFrame(pl.from_arrow(chosen))
    try:
        objects = (
            rows.select("image_id", "file_name", *(pl.col("objects").struct.field(name) for name in _MEMBERS))
            .filter(pl.col("id").list.len() > 0)
            .explode(_MEMBERS)
        )
    except pl.exceptions.PolarsError:
        raise ValueError("holds an image whose lists of objects differ in length") from None
    fine = objects.select(
        pl.all_horizontal(pl.col(_MEMBERS).is_not_null())
        & (pl.col("patches") >= 0)
        & pl.col("area").is_finite()
        & pl.col("bbox").arr.sum().is_finite()
        & pl.col("category").is_between(0, categories - 1)
    ).to_series()
    if not fine.all(ignore_nulls=False):
        raise ValueError(f"holds an object without values, or of a category outside the table of {categories}")
    lost = objects.filter(pl.col("patches") == 0).select(pl.lit(split).alias("split"), pl.all())
    return spread([lost.cast(_LOST_SCHEMA)])


def spread(lost: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """At most `LOST_EXAMPLES` of lost objects: the smallest of each category, then the second smallest of each, ...

    Equal areas keep the order they come in. What this leaves of some row groups, spread again with others, is what it
    would leave of all at once.
    """
    return (
        pl.concat([pl.DataFrame(schema=_LOST_SCHEMA), *lost])
        .sort("category", "area", maintain_order=True)
        .with_columns(pl.int_range(pl.len()).over("category").alias("rank"))
        .sort("rank", "category")
        .drop("rank")
        .head(LOST_EXAMPLES)
    )


def unreadable(paths: Sequence[Location]) -> NotABuildError:
    """The error that names the shard that polars cannot read, or their folder where it can read each alone."""
    return damaged(next((path for path in paths if not _is_readable(path)), paths[0].parent), "is damaged or no shard")


def _is_readable(path: Location) -> bool:
    try:
        frame = lazy_frame([path])
        row_counts(frame)
        object_counts(frame)
    except (OSError, pl.exceptions.PolarsError):
        return False
    return True


def share_distribution(
    foreground: NDArray[np.int64], counted: NDArray[np.int64], images: NDArray[np.int64]
) -> Distribution:
    """How the share of foreground is spread over images.

    Args:
        foreground: int64 (k,), label-1 patches of the images of each kind.
        counted: int64 (k,), their patches that are not ignored; kinds without any are left out.
        images: int64 (k,), how many images.
    """
    some = counted > 0
    edges = np.arange(_SHARE_BINS + 1) / _SHARE_BINS
    return distribution(foreground[some] / counted[some], images[some], edges)


def patch_distribution(patches: NDArray[np.int64], objects: NDArray[np.int64]) -> Distribution:
    """How the number of patches is spread over objects; bins [0, 1), [1, 2), [2, 4), ...

    Args:
        patches: int64 (k,).
        objects: int64 (k,), how many objects have that number.
    """
    doublings = int(patches.max(initial=0)).bit_length()
    return distribution(patches.astype(np.float64), objects, np.array([0.0, *(2.0**k for k in range(doublings + 1))]))


def distribution(values: NDArray[np.float64], counts: NDArray[np.int64], edges: NDArray[np.float64]) -> Distribution:
    """How a number is spread.

    Args:
        values: float64 (k,), in any order, repeated or not.
        counts: int64 (k,), how often each occurs.
        edges: float64 (bins + 1,), from the least to the largest that a value can be.
    """
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    histogram = np.zeros(len(edges) - 1, np.int64)
    np.add.at(histogram, bins, counts)
    total = int(counts.sum())
    if not total:
        return Distribution(0, 0.0, 0.0, [], edges.tolist(), histogram.tolist())
    mean = float(values @ counts / total)
    std = float(np.sqrt((values - mean) ** 2 @ counts / total))
    return Distribution(total, mean, std, _quantiles(values, counts), edges.tolist(), histogram.tolist())


def _quantiles(values: NDArray[np.float64], counts: NDArray[np.int64]) -> list[tuple[float, float]]:
    """`QUANTILES` of values that occur `counts` times, linear between neighbours, as `np.quantile` has them."""
    order = np.argsort(values)
    ends = np.cumsum(counts[order])
    places = np.array(QUANTILES) * (ends[-1] - 1)
    below = np.floor(places)
    low, high = (values[order][np.searchsorted(ends, place, side="right")] for place in (below, np.ceil(places)))
    return list(zip(QUANTILES, (low + (high - low) * (places - below)).tolist(), strict=True))


def _size(area: pl.Expr) -> pl.Expr:
    """0 small, 1 medium, 2 large."""
    return sum((area >= limit).cast(pl.Int8) for limit in SIZE_LIMITS)  # type: ignore[return-value]
