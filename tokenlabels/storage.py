"""Places of files: folders on disk, and addresses that fsspec knows, such as `s3://bucket/folder`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from upath import UPath

    Location: TypeAlias = Path | UPath
    """A path on disk, or a `UPath`, which has the same methods, in a store."""


def located(place: str | Location) -> Location:
    """The place that a person names: a path on disk, or an address with `://`."""
    if isinstance(place, str) and "://" in place:
        from upath import UPath

        return UPath(place, use_listings_cache=False)  # other processes write here, too
    return Path(place) if isinstance(place, str) else place


def parquet_file(path: Location) -> pq.ParquetFile:
    """A Parquet file, opened wherever it is; use as a context manager.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is no Parquet file.
    """
    import pyarrow.parquet as pq

    if isinstance(path, Path):
        return pq.ParquetFile(path)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return pq.ParquetFile(path.path, filesystem=PyFileSystem(FSSpecHandler(path.fs)), pre_buffer=True)
