"""Unpacking archives that nobody vouches for: what of them is wanted, and nothing outside the folder.

Every member is looked at before the first is written. Only plain files are: their bytes go into new files, with the
rights of any new file. What an archive says of owners, rights, links and devices is not followed.
"""

from __future__ import annotations

import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tokenlabels.atomic import unwritable
from tokenlabels.errors import DownloadError
from tokenlabels.progress import Progress
from tokenlabels.sources.paths import is_inside, is_text

_CHUNK = 1 << 20
_MAX_RATIO = 100
"""Bytes out for one byte in; JSON of numbers packs to a tenth, pictures not at all."""

_ALWAYS_FINE = 64 << 20
"""Bytes out, however small the archive is."""

_SPARE = 64 << 20
"""Bytes of disk that are left free."""

_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    tarfile.TarError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    IndexError,
    OverflowError,
    MemoryError,
)
"""What the readers of archives raise of damaged ones: the last two of sizes that no file has, IndexError of no name."""


class _Member(NamedTuple):
    """A file in an archive: its name, its size as declared, why it is not to be unpacked, and its bytes."""

    name: str
    size: int
    fault: str
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, patterns: Sequence[str], folder: Path, progress: Progress) -> dict[str, int]:
    """Unpack the members that match a pattern into a new folder.

    Args:
        archive: a zip file, or a tar file that is not compressed.
        patterns: of names, `*` standing for anything, `/` too.
        folder: to write; it is made.
        progress: told the bytes.

    Returns:
        Name of every file, with `/`, and its size.

    Raises:
        DownloadError: the archive is damaged or hostile, holds nothing that is wanted, or does not fit the disk.
        OutputError: a file cannot be written.
    """
    try:
        with _opened(archive, folder) as members:
            wanted = _checked(archive, members, patterns)
            total = sum(member.size for member in wanted.values())
            _check_room(archive, total, folder)
            progress.stage(f"unpacking {archive.name}", total)
            for name, member in wanted.items():
                _write(archive, member, folder / name, progress)
    except _FAULTS as fault:
        raise _damaged(archive, str(fault) or "a size that no file has") from None
    return {name: member.size for name, member in wanted.items()}


def _damaged(archive: Path, problem: str) -> DownloadError:
    return DownloadError(f"{archive}: is damaged ({problem.partition(chr(10))[0]}): delete it and run again.")


def _refused(archive: Path, name: str, problem: str) -> DownloadError:
    return DownloadError(
        f"{archive}: its member {name[:200]!r} {problem}: nothing was unpacked; get another copy of it."
    )


@contextmanager
def _opened(archive: Path, folder: Path) -> Iterator[Iterator[_Member]]:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                yield _zip_members(packed)
        else:
            with tarfile.open(archive, "r:") as bundle:
                yield _tar_members(bundle, folder)
    except OSError as fault:
        if isinstance(fault, tarfile.TarError | zipfile.BadZipFile):
            raise
        raise DownloadError(f"{archive}: cannot be read ({fault.strerror or fault}).") from None


def _zip_members(packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        fault = ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "is no plain file"
        elif info.flag_bits & 1:
            fault = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fault = f"is compressed in a way that is not read (number {info.compress_type})"
        name = info.orig_filename.rstrip("/") + "/" if info.is_dir() or kind == stat.S_IFDIR else info.orig_filename
        yield _Member(name, info.file_size, fault, partial(packed.open, info))


def _tar_members(bundle: tarfile.TarFile, folder: Path) -> Iterator[_Member]:
    for info in bundle:
        fault = ""
        if info.size < 0:  # would be read again and again
            raise tarfile.ReadError("a member of negative size")
        if not (info.isreg() or info.isdir()) or info.issparse():
            fault = "is no plain file"
        else:
            try:
                tarfile.data_filter(info, str(folder))
            except tarfile.FilterError:
                fault = "would leave the folder"
        name = f"{info.name}/" if info.isdir() else info.name
        yield _Member(name, info.size, fault, partial(_extracted, bundle, info))
    assert bundle.fileobj is not None
    bundle.fileobj.seek(bundle.offset)
    if bundle.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes any such block for the end
        raise tarfile.ReadError("the header of a member")


def _extracted(bundle: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = bundle.extractfile(info)
    assert file is not None
    return file


def _checked(archive: Path, members: Iterator[_Member], patterns: Sequence[str]) -> dict[str, _Member]:
    """The wanted files by their plain names, none of which can do harm."""
    wanted: dict[str, _Member] = {}
    for member in members:
        if not is_inside(member.name) or not member.name.strip("/"):
            raise _refused(archive, member.name, "would be written outside the folder")
        name = str(PurePosixPath(member.name))
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if member.fault:
            raise _refused(archive, member.name, member.fault)
        if not is_text(name):
            raise _refused(archive, member.name, "has a name that is no UTF-8 text")
        if member.name.endswith("/"):
            continue
        if name in wanted:
            raise _refused(archive, member.name, "is there twice")
        wanted[name] = member
    folders = {str(parent) for name in wanted for parent in PurePosixPath(name).parents}
    for name in wanted:
        if name in folders:
            raise _refused(archive, name, "is a file and a folder")
    if not wanted:
        raise DownloadError(
            f"{archive}: holds no {' or '.join(patterns)}: it is another archive; delete it and run again."
        )
    total, packed = sum(member.size for member in wanted.values()), archive.stat().st_size
    if total > max(_ALWAYS_FINE, packed * _MAX_RATIO):
        raise DownloadError(
            f"{archive}: would unpack {packed:,} bytes to {total:,}, which no data set does: nothing was unpacked; get "
            "another copy of it."
        )
    return wanted


def _check_room(archive: Path, total: int, folder: Path) -> None:
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < total + _SPARE:
        raise DownloadError(
            f"{place}: has {free / 1e9:.2f} GB free, {archive.name} unpacks to {total / 1e9:.2f} GB: free space, and "
            "run again."
        )


def _write(archive: Path, member: _Member, path: Path, progress: Progress) -> None:
    """Write one file; no file is there of that name."""
    left = member.size
    with member.open() as source:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                while piece := source.read(_CHUNK):
                    left -= len(piece)
                    if left < 0:
                        break
                    file.write(piece)
                    progress.advance(len(piece))
        except OSError as fault:
            raise unwritable(path, fault) from None
    if left:
        raise _damaged(archive, f"{member.name[:200]!r} is not {member.size} bytes long")
