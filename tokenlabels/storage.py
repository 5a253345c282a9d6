"""Places of files: folders on disk, and addresses that fsspec knows, such as `s3://bucket/folder`.

A store answers slowly and takes many questions at once, so that what reads many small files asks for them in threads.
`store_faults.py` words what goes wrong there.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.store_faults import NO_BUCKET, as_os_error, is_unsupported

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from upath import UPath

    Location: TypeAlias = Path | UPath
    """A path on disk, or a `UPath`, which has the same methods, in a store."""

STORE_THREADS = 16
"""Requests to a store at a time, and so many small files in memory."""

_BLOCK = 8 << 20
_DISK = ("file", "local")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def located(place: str | Location) -> Location:
    """The place that a person names: a path on disk, or an address with `://`.

    Raises:
        ParameterError: no such kind of store, or no bucket in the address.
        TokenLabelsError: the package for that kind is not installed.
    """
    if isinstance(place, Path):
        return place
    if isinstance(place, str) and "://" not in place:
        return Path(place)
    protocol = place.partition("://")[0] if isinstance(place, str) else place.protocol
    if protocol in _DISK:
        return Path(place.partition("://")[2] if isinstance(place, str) else place.path)
    from upath import UPath

    address, options = (place, {}) if isinstance(place, str) else (str(place), dict(place.storage_options))
    names = address.partition("://")[2].split("/")
    if protocol in _EXTRAS and not names[0]:
        raise ParameterError(f"{place}: names no bucket: write {protocol}://BUCKET/FOLDER.")
    address = f"{protocol}://" + "/".join(name for name in names if name not in ("", "."))
    options["use_listings_cache"] = False  # other processes write here, too
    try:
        found: UPath = UPath(address, **options)
        _ = found.fs
    except ImportError as fault:
        package = f"'tokenlabels[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else str(fault).partition(":")[0]
        how = f"pip install {package}" if protocol in _EXTRAS else package
        raise TokenLabelsError(f"{place}: a package for {protocol}:// is not installed: {how}.") from None
    except ValueError:
        raise ParameterError(f"{place}: {protocol}:// is no store that is known: use s3://, gs:// or a path.") from None
    return found


def on_disk(text: str | Location, what: str) -> Path:
    """A path that must be on disk; `what` says what is done there, for a sentence.

    Raises:
        ParameterError: it is an address.
    """
    place = located(text)
    if not isinstance(place, Path):
        raise ParameterError(f"{text}: {what} on disk only: name a path.")
    return place


def stays_in_process(place: Location) -> bool:
    """Whether other processes cannot see what is there."""
    return not isinstance(place, Path) and place.protocol == "memory"


def same_place(one: Location, other: Location) -> bool:
    """Whether two places are one, however they are written."""
    one, other = one.resolve(), other.resolve()
    if isinstance(one, Path) or isinstance(other, Path):
        return one == other
    return type(one.fs) is type(other.fs) and one.path.rstrip("/") == other.path.rstrip("/")


@contextlib.contextmanager
def _asked(place: Location) -> Iterator[None]:
    """Ask a store what it holds.

    Raises:
        FileNotFoundError: nothing there.
        TokenLabelsError: it cannot be asked, or has no such bucket.
    """
    try:
        with as_os_error():
            yield
    except (FileNotFoundError, NotADirectoryError) as fault:
        if fault.strerror == NO_BUCKET:
            raise TokenLabelsError(f"{place}: {NO_BUCKET}.") from None
        raise FileNotFoundError(*fault.args) from None
    except OSError as fault:
        raise TokenLabelsError(f"{place}: cannot be read ({fault.strerror}).") from fault


def is_folder(place: Location) -> bool:
    """Whether there is a folder; of a store's not more than one name is listed.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    return place.is_dir() if isinstance(place, Path) else _kind(place) == "directory"


def is_file(place: Location) -> bool:
    """Whether there is a file.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    return place.is_file() if isinstance(place, Path) else _kind(place) == "file"


def exists(place: Location) -> bool:
    """Whether there is a file or a folder.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    return place.exists() if isinstance(place, Path) else _kind(place) is not None


def _kind(place: UPath) -> str | None:
    """What is there: `file`, `directory`, or None for nothing."""
    try:
        with _asked(place):
            return str(place.fs.info(place.path)["type"])
    except FileNotFoundError:
        return None


def names_in(folder: Location) -> list[str]:
    """Names of the files and folders in a folder, in no order.

    Raises:
        OSError: it is not there, or cannot be read.
        TokenLabelsError: the store cannot be asked.
    """
    if isinstance(folder, Path):
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    with _asked(folder):
        listed = folder.fs.ls(folder.path, detail=False)
    own = folder.path.strip("/")
    return [path.rstrip("/").rpartition("/")[2] for path in listed if path.strip("/") != own]


def globbed(folder: Location, pattern: str) -> list[Location]:
    """Paths below a folder by a pattern, sorted; nothing where there is no such folder.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    if isinstance(folder, Path):
        return [*sorted(folder.glob(pattern))]
    with contextlib.suppress(FileNotFoundError), _asked(folder):
        return [*sorted(folder.glob(pattern), key=str)]
    return []


def files_below(folder: Location) -> list[str]:
    """Every file below a folder of a store, relative with `/`, sorted.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    assert not isinstance(folder, Path)
    root = folder.path.rstrip("/") + "/"
    with _asked(folder):
        return sorted(path.removeprefix(root) for path in folder.fs.find(folder.path) if path != root)


def content(path: Location, most: int | None = None) -> bytes:
    """The bytes of a file, or at most the first so many of them.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            return file.read(-1 if most is None else most)
    data: bytes
    with as_os_error():
        if most is not None:
            with contextlib.suppress(OSError):  # an empty file has no first byte, and S3 says so
                data = path.fs.cat_file(path.path, 0, most)
                return data
        data = path.fs.cat_file(path.path)
        return data


def size_of(path: Location) -> int:
    """Bytes of a file.

    Raises:
        OSError: it is not there, or the store cannot be asked.
    """
    if isinstance(path, Path):
        return path.stat().st_size
    with as_os_error():
        return int(path.fs.info(path.path)["size"])


def contents(paths: Iterable[Location], most: int | None = None) -> Iterator[bytes | OSError]:
    """The bytes of small files in order, or why one cannot be read; see `content`.

    Files on disk are read one by one as they are asked for; of a store's at most `STORE_THREADS` are asked for and held
    at a time.
    """
    waiting: deque[Future[bytes | OSError]] = deque()
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        for path in paths:
            if pool is None and not isinstance(path, Path):
                pool = stack.enter_context(ThreadPoolExecutor(STORE_THREADS))
                stack.callback(lambda: [future.cancel() for future in waiting])
            if pool is None:
                yield _content_or_fault(path, most)
                continue
            waiting.append(pool.submit(_content_or_fault, path, most))
            if len(waiting) == STORE_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _content_or_fault(path: Location, most: int | None) -> bytes | OSError:
    try:
        return content(path, most)
    except OSError as fault:
        return fault


def threads_for(place: Location, on_disk: int = 1) -> int:
    """How many threads should read from a place: many from a store, so many from a disk."""
    return on_disk if isinstance(place, Path) else max(on_disk, STORE_THREADS)


def opened(path: Location) -> Any:
    """A file, open for reading bytes; of a store's no more is fetched than is read.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        return path.open("rb")
    with as_os_error():
        return path.fs.open(path.path, "rb", block_size=_BLOCK, cache_type="none")


def parquet_file(path: Location) -> pq.ParquetFile:
    """A Parquet file, opened wherever it is; use as a context manager.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is no Parquet file.
    """
    import pyarrow.parquet as pq

    if isinstance(path, Path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(arrow_file(path), pre_buffer=True)


def arrow_file(path: Location) -> Any:
    """What pyarrow reads a file from: its path, or an open file of a store.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        return path
    from pyarrow import PythonFile

    return PythonFile(opened(of_this_process(path)), mode="r")


def of_this_process(path: Location) -> Location:
    """The same place for a process that was forked: connections and their thread stayed behind."""
    if isinstance(path, Path) or getattr(path.fs, "_pid", None) in (None, os.getpid()):
        return path
    found: UPath = type(path)(str(path), **path.storage_options)
    return found


def upload(path: UPath, size: int, send: str | bytes, *, create: bool = False) -> None:
    """Put a file into a store whole, and make sure that it arrived.

    Args:
        path: where.
        size: its bytes.
        send: a file on disk by its name, or the content.
        create: fail where there is one already, if the store can tell; of contents only.

    Raises:
        FileExistsError: there is one.
        OSError: it did not arrive. What a store without atomic puts left under the name is gone, where it could be.
    """
    try:
        with as_os_error():
            if isinstance(send, str):
                path.fs.put_file(send, path.path)
            else:
                _pipe(path, send, create=create)
            arrived = path.fs.info(path.path)["size"]
        if arrived != size:
            raise OSError(f"{arrived} of {size} bytes arrived")
    except FileExistsError:
        raise
    except BaseException:
        with contextlib.suppress(Exception):
            if path.fs.info(path.path)["size"] != size:
                path.fs.rm_file(path.path)
        raise


def _pipe(path: UPath, data: bytes, *, create: bool) -> None:
    if create:
        try:
            path.fs.pipe_file(path.path, data, mode="create")
            return
        except Exception as fault:
            if not is_unsupported(fault):
                raise
    path.fs.pipe_file(path.path, data)


def remove(path: Location) -> None:
    """Remove a file; nothing where there is none.

    Raises:
        OSError: it cannot be removed.
    """
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), as_os_error():
        path.fs.rm_file(path.path)


def remove_below(folder: Location) -> None:
    """Remove a folder of a store with everything in it; nothing where there is none.

    Raises:
        OSError: something cannot be removed.
    """
    assert not isinstance(folder, Path)
    with contextlib.suppress(FileNotFoundError), as_os_error():
        folder.fs.rm(folder.path, recursive=True)
