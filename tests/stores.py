"""What tests of object stores share: an S3 server in a thread, the files below a place, and a store that fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.request import Request, urlopen

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tokenlabels.storage import located

if TYPE_CHECKING:
    from upath import UPath

    from tokenlabels.storage import Location

BUCKET = "labels"


def store(address: str) -> UPath:
    """An address, which must be one of a store."""
    place = located(address)
    assert not isinstance(place, Path)
    return place


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A server of S3 that the environment names, with one empty bucket; yields the bucket's address."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")):  # servers of a process share buckets
        pass
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        S3FileSystem.clear_instance_cache()  # they would go on asking another test's server
        store(f"s3://{BUCKET}/x").fs.mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    S3FileSystem.clear_instance_cache()
    server.stop()


def put(folder: Path, address: str) -> str:
    """Copy a folder into a store."""
    place = store(address)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place.fs.pipe_file(f"{place.path}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return address


def files_of(place: Location) -> dict[str, bytes]:
    """Every file below a place, wherever it is."""
    if isinstance(place, Path):
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    root = place.path.rstrip("/") + "/"
    return {path.removeprefix(root): place.fs.cat_file(path) for path in place.fs.find(place.path)}


class Fail(Protocol):
    """Which write fails, from 1 on (0: none), and what it raises."""

    def __call__(self, at: int, fault: BaseException | None = None) -> type[FailingStore]: ...


class FailingStore(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory whose n-th write fails half-way, and leaves what it has."""

    fault: BaseException | None = None
    """Raised by that write; None: it fails without a word."""

    fails_at = 0
    written: ClassVar[list[str]] = []

    def _fails(self, path: str, data: bytes) -> bool:
        kind = type(self)
        kind.written.append(path)
        if len(kind.written) != kind.fails_at:
            return False
        super().pipe_file(path, data[: len(data) // 2])
        if kind.fault is not None:
            raise kind.fault
        return True

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """See fsspec."""
        if not self._fails(path, value):
            super().pipe_file(path, value, mode=mode, **options)

    def put_file(self, lpath: str, rpath: str, *_: Any, **options: Any) -> None:
        """See fsspec."""
        data = Path(lpath).read_bytes()
        if not self._fails(rpath, data):
            super().pipe_file(rpath, data)


@contextlib.contextmanager
def failing_store() -> Iterator[Fail]:
    """`memory://` is a `FailingStore`; yields what says which write of it fails."""

    def fail(at: int, fault: BaseException | None = None) -> type[FailingStore]:
        FailingStore.fails_at, FailingStore.fault, FailingStore.written = at, fault, []
        return FailingStore

    MemoryFileSystem.clear_instance_cache()
    fsspec.register_implementation("memory", FailingStore, clobber=True)
    try:
        yield fail
    finally:
        fail(0)
        fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
        FailingStore.clear_instance_cache()
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
