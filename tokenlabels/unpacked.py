"""What was unpacked of an archive: kept in a file, so that it need not be fetched twice, and moved into its place."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from tokenlabels.atomic import unwritable, write_atomically
from tokenlabels.errors import DownloadError
from tokenlabels.known import Archive
from tokenlabels.moving import move
from tokenlabels.progress import Progress
from tokenlabels.unpacking import unpack


class _Record(msgspec.Struct, frozen=True):
    """What was unpacked of which archive: patterns of names, and the size of every file."""

    hash: str
    patterns: list[str]
    files: dict[str, int]


class Unpacked:
    """The files that are wanted of an archive, below a folder.

    Args:
        root: folder of the download.
        record: file that says what of the archive was unpacked.
        archive: the archive.
        patterns: names of the members that are wanted.
    """

    def __init__(self, root: Path, record: Path, archive: Archive, patterns: Sequence[str]) -> None:
        self.root = root
        self.patterns = patterns
        self._path = record
        self._hash = archive.hash

    def is_whole(self) -> bool:
        """Whether all that is wanted was unpacked, and is there still, by its sizes."""
        record = self._read()
        return (
            record is not None
            and set(self.patterns) <= set(record.patterns)
            and all(_size(self.root / name) == size for name, size in record.files.items())
        )

    def add(self, files: Mapping[str, int]) -> None:
        """Record files that are in their places; earlier ones are forgotten where one of them is gone.

        Raises:
            DownloadError: one is not there.
            OutputError: the record cannot be written.
        """
        for name, size in files.items():
            if _size(self.root / name) != size:
                raise DownloadError(f"{self.root / name}: was changed while it was unpacked: run again.")
        before = self._read()
        if before is None or any(_size(self.root / name) != size for name, size in before.files.items()):
            before = _Record(self._hash, [], {})
        patterns = list(dict.fromkeys([*before.patterns, *self.patterns]))
        record = _Record(self._hash, patterns, before.files | dict(files))
        write_atomically(self._path, msgspec.json.encode(record))

    def _read(self) -> _Record | None:
        try:
            record = msgspec.json.decode(self._path.read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None
        return record if record.hash == self._hash else None


def settle(archive: Path, unpacked: Unpacked, inner: Mapping[str, str], aside: Path, progress: Progress) -> int:
    """Unpack an archive aside and move its files to their places; an interrupted one is begun again.

    Args:
        archive: the file.
        unpacked: what is wanted of it.
        inner: members that are zip files -> patterns of what is unpacked of them, beside them.
        aside: folder for the meantime, on the same disk.
        progress: told the bytes.

    Returns:
        How many files were unpacked.

    Raises:
        DownloadError: it cannot be unpacked, or another file has the place of one.
        OutputError: a file cannot be written.
    """
    shutil.rmtree(aside, ignore_errors=True)
    try:
        files = unpack(archive, unpacked.patterns, aside, progress)
        for name, pattern in inner.items():
            if name in files:
                below = PurePosixPath(name).parent
                more = unpack(aside / name, [pattern], aside / below, progress)
                (aside / name).unlink()
                del files[name]
                files |= {str(below / member): size for member, size in more.items()}
        for name in files:
            _check_place(archive, aside / name, unpacked.root, name)
        try:
            _merge(aside, unpacked.root)
        except OSError as fault:
            raise unwritable(unpacked.root, fault) from None
        unpacked.add(files)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(files)


def _check_place(archive: Path, source: Path, root: Path, name: str) -> None:
    """Raise `DownloadError` where something else has the place of a file, or of a folder above it."""
    for parent in reversed(PurePosixPath(name).parents[:-1]):
        place = root / parent
        if not place.is_dir() and (place.exists() or place.is_symlink()):
            raise DownloadError(
                f"{place}: is there already and is no folder, which {archive.name} has there: move it away, or name "
                "another --root."
            )
    target = root / name
    try:
        free = not target.exists() and not target.is_symlink()
        if free or (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            return
    except OSError:
        pass
    raise DownloadError(
        f"{target}: is there already, with other content than in {archive.name}: move it away, or name another --root."
    )


def _merge(source: Path, target: Path) -> None:
    """Move what is in a folder into another, whole folders at once where nothing is there."""
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge(path, place)
        elif not (path.is_file() and place.is_file()):  # that file is the same
            move(path, place)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
