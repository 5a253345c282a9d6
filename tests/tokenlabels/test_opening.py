"""Opening builds by everything that reads Parquet, without code of ours: the values are those of `Build.table()`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as pads
import pytest
from opened import SPLITS, every_column
from PIL import Image

from tokenlabels.reader import Build

Row = dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Every column, two grids, two splits, several shards; in a folder whose name means something to some readers."""
    return every_column(tmp_path_factory.mktemp("opened") / "split=none")


@pytest.fixture(scope="module")
def expected(built: Build) -> Callable[..., list[Row]]:
    """`expected(grid, split=None)`: rows as Python values."""
    return lambda grid, split=None: built.table(grid, split).to_pylist()


def plain(value: Any) -> Any:
    """Python values of what pandas and numpy give."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def of_polars(value: Any) -> Any:
    """Polars gives arrays of a fixed length as tuples or series, depending on how deep they lie."""
    if isinstance(value, dict):
        return {name: of_polars(part) for name, part in value.items()}
    return [of_polars(part) for part in value] if isinstance(value, (list, tuple, pl.Series)) else value


# --- Arrow, data frames, SQL ------------------------------------------------------------------------------------------


def by_pyarrow(folder: Path, split: str) -> list[Row]:
    """The folder of a grid as a data set: discovered, filtered by file."""
    whole = pads.dataset(folder, format="parquet")
    assert whole.count_rows() == sum(SPLITS.values())
    files = [file for file in whole.files if Path(file).name.startswith(f"{split}-")]
    found: list[Row] = pads.dataset(files, format="parquet").to_table().to_pylist()
    return found


def by_polars(folder: Path, split: str) -> list[Row]:
    assert pl.scan_parquet(folder).select(pl.len()).collect().item() == sum(SPLITS.values())
    return [
        of_polars(row) for row in pl.read_parquet(f"{folder}/{split}-*.parquet", hive_partitioning=False).to_dicts()
    ]


def by_pandas(folder: Path, split: str) -> list[Row]:
    assert len(pd.read_parquet(folder)) == sum(SPLITS.values())
    frame = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob(f"{split}-*.parquet"))])
    return [plain(row) for row in frame.to_dict("records")]


def by_duckdb(folder: Path, split: str) -> list[Row]:
    with duckdb.connect() as database:
        query = f"select * from read_parquet('{folder}/{split}-*.parquet', hive_partitioning = false)"
        found = database.execute(query)
        names = [column[0] for column in found.description or ()]
        return [of_polars(dict(zip(names, row, strict=True))) for row in found.fetchall()]


@pytest.mark.parametrize("grid", ["64x64-p8", "64x64-p16"])
@pytest.mark.parametrize("read", [by_pyarrow, by_polars, by_pandas, by_duckdb])
def test_tables(
    read: Callable[[Path, str], list[Row]], grid: str, built: Build, expected: Callable[..., list[Row]]
) -> None:
    for split in built.splits:
        assert read(built.folder / grid, split) == expected(grid, split)


def test_sql_reaches_into_lists_and_objects(built: Build, expected: Callable[..., list[Row]]) -> None:
    rows = expected("64x64-p8")
    with duckdb.connect() as database:
        found = database.execute(
            "select count(*), sum(fg_count), sum(list_count(list_filter(labels, lambda x: x = 1))), "
            "sum(len(objects.bbox)), max(octet_length(image.bytes)) from "
            f"read_parquet('{built.path}/64x64-p8/*.parquet', hive_partitioning = false)"
        ).fetchall()
    foreground, objects = (sum(row["fg_count"] for row in rows), sum(len(row["objects"]["bbox"]) for row in rows))
    assert found == [(len(rows), foreground, foreground, objects, max(len(row["image"]["bytes"]) for row in rows))]
    assert foreground > 0


def test_types_are_those_that_were_written(built: Build) -> None:
    schema = pl.scan_parquet(built.folder / "64x64-p8", hive_partitioning=False).collect_schema()
    assert schema.names() == built.table().column_names
    assert schema["labels"] == pl.List(pl.UInt8)
    assert schema["categories"] == pl.List(pl.UInt16)
    assert schema["ignored"] == pl.List(pl.Boolean)
    objects = dict(schema["objects"])  # type: ignore[call-overload]
    assert objects["bbox"] == pl.List(pl.Array(pl.Float32, 4))


# --- Hugging Face datasets --------------------------------------------------------------------------------------------


@pytest.fixture
def load(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`load_dataset` of the folder, by its card."""
    import datasets

    cache = str(tmp_path_factory.mktemp("cache"))
    return lambda grid=None, **options: datasets.load_dataset(str(built.path), grid, cache_dir=cache, **options)


def digest(picture: Image.Image) -> str:
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def with_pictures(row: Row) -> Row:
    """A row whose pictures are decoded, by their digests."""
    read = {name: Image.open(io.BytesIO(row[name]["bytes"])) for name in ("image", "mask")}
    return row | {name: digest(picture) for name, picture in read.items()}


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets(
    streaming: bool, built: Build, load: Callable[..., Any], expected: Callable[..., list[Row]]
) -> None:
    assert sorted(load(streaming=streaming)) == sorted(built.splits)
    for grid in built.grids:
        for split, rows in load(grid, streaming=streaming).items():
            given = [row | {name: digest(row[name]) for name in ("image", "mask")} for row in rows]
            assert given == [with_pictures(row) for row in expected(grid, split)]
            assert list(rows.features) == built.table().column_names
            for column in ("objects", "segments"):
                kind = rows.features[column]["category"].feature
                assert type(kind).__name__ == "ClassLabel"
                assert kind.names == [category.name for category in built.categories] == ["cat", "dog", "sky"]
            tensors = next(iter(rows.select_columns(["labels", "scores"]).with_format("torch")))
            assert tensors["labels"].tolist() == expected(grid, split)[0]["labels"]
