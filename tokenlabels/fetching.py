"""One archive of a download: fetched unless it is there, compared with its checksum, unpacked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from tokenlabels.addresses import below, shown
from tokenlabels.atomic import unwritable
from tokenlabels.errors import DownloadError
from tokenlabels.known import Archive
from tokenlabels.moving import move
from tokenlabels.progress import Progress
from tokenlabels.transfer import ResumingDownloader, forget
from tokenlabels.unpacked import Unpacked, settle

STATE = ".tokenlabels-download"
"""Folder of what is not finished, below that of the download."""


class Fetched(msgspec.Struct, frozen=True):
    """An archive of a download.

    Attributes:
        file: its name.
        url: where it is from, without password and query.
        bytes: its size; None: not known yet.
        hash: `algorithm:hex digest`, as the data card says or as found; empty: not known yet.
        checked: whether the data card says the hash.
        there: nothing was, or is, to be fetched.
        files: how many files were unpacked of it.
    """

    file: str
    url: str
    bytes: int | None
    hash: str
    checked: bool
    there: bool
    files: int = 0


class Job:
    """One archive of a download.

    Args:
        archive: the archive.
        root: folder of the download.
        splits: what is wanted of it.
        annotations_only: whether pictures are left out.
    """

    def __init__(self, archive: Archive, root: Path, splits: Sequence[str], *, annotations_only: bool) -> None:
        self.archive = archive
        self.path = root / archive.file
        self._state = root / STATE
        names = [archive.splits[split] for split in splits if split in archive.splits]
        kept = archive.annotations + (() if annotations_only else archive.images)
        self._members = tuple(dict.fromkeys(pattern.replace("{split}", name) for name in names for pattern in kept))
        self._inner = {
            member.replace("{split}", name): pattern.replace("{split}", name)
            for name in names
            for member, pattern in archive.inner.items()
        }
        self._unpacked = Unpacked(root, self._state / f"{archive.file}.json", archive, self._members)
        self.done = self._unpacked.is_whole()

    def addresses(self, mirror: str | None) -> tuple[str, ...]:
        """Where the archive is, the first to be tried first."""
        return self.archive.urls if mirror is None else (below(mirror, self.archive.file),)

    def held(self) -> int:
        """Bytes of it that have arrived."""
        part = self._part()
        return part.stat().st_size if part.exists() else 0

    def planned(self, mirror: str | None) -> Fetched:
        """What `run` would do."""
        archive = self.archive
        there = self.done or self.path.exists()
        url = shown(self.addresses(mirror)[0])
        return Fetched(archive.file, url, archive.bytes, archive.hash, bool(archive.hash), there)

    def run(self, mirror: str | None, progress: Progress, pause: Callable[[float], None], *, keep: bool) -> Fetched:
        """Fetch and unpack it, as far as that is not done.

        Raises:
            DownloadError: it cannot be had, is not what the data card says, or cannot be unpacked.
            OutputError: a file cannot be written.
        """
        planned = self.planned(mirror)
        if self.done:
            if not keep:
                self.path.unlink(missing_ok=True)
            return planned
        url = planned.url
        if self.path.exists():
            self._check_present(progress)
        else:
            url = self._fetch(mirror, progress, pause)
        forget(self._part())
        found = self.archive.hash or f"sha256:{_hash_of(self.path, 'sha256', progress)}"
        size = self.path.stat().st_size
        files = settle(self.path, self._unpacked, self._inner, self._state / "unpack", progress)
        if not keep:
            self.path.unlink()
        return Fetched(self.archive.file, url, size, found, planned.checked, planned.there, files)

    def _part(self) -> Path:
        return self._state / f"{self.archive.file}.part"

    def _check_present(self, progress: Progress) -> None:
        """Raise `DownloadError` where the archive that is there is another one."""
        archive, size = self.archive, self.path.stat().st_size
        problem = ""
        if archive.bytes is not None and size != archive.bytes:
            problem = f"has {size:,} bytes, should have {archive.bytes:,}"
        elif archive.hash:
            algorithm, _, expected = archive.hash.partition(":")
            found = _hash_of(self.path, algorithm, progress)
            problem = "" if found == expected else f"has the {algorithm} {found}, should have {expected}"
        if problem:
            raise DownloadError(f"{self.path}: {problem}: move it away, or delete it, and run again.")

    def _fetch(self, mirror: str | None, progress: Progress, pause: Callable[[float], None]) -> str:
        """Fetch the archive from the first address that has it; returns that address, as it may be shown."""
        addresses = self.addresses(mirror)
        for address, following in pairwise(addresses):
            try:
                self._fetch_from(address, progress, pause)
            except DownloadError as fault:
                progress.note(f"{str(fault).rstrip('.')}; {shown(following)} is tried.")
            else:
                return shown(address)
        self._fetch_from(addresses[-1], progress, pause)
        return shown(addresses[-1])

    def _fetch_from(self, address: str, progress: Progress, pause: Callable[[float], None]) -> None:
        import pooch

        pooch.get_logger().setLevel("WARNING")  # it would tell addresses with their passwords
        for left in self._state.glob("tmp*"):
            left.unlink()  # pooch's, of a process that was killed
        archive = self.archive
        downloader = ResumingDownloader(
            self._part(), size=archive.bytes, checked=bool(archive.hash), progress=progress, pause=pause
        )
        arrived = self._state / archive.file
        arrived.unlink(missing_ok=True)
        try:
            pooch.retrieve(address, archive.hash or None, archive.file, self._state, downloader=downloader)
            move(arrived, self.path)
        except ValueError as fault:
            got = re.search(r"but got ([0-9a-f]+)", str(fault))
            if got is None:
                raise
            forget(self._part())
            algorithm, _, expected = archive.hash.partition(":")
            raise DownloadError(
                f"{archive.file}: arrived damaged from {shown(address)} ({algorithm} {got[1]}, should be {expected}) "
                f"and was deleted: run again, or try another --mirror."
            ) from None
        except OSError as fault:
            raise unwritable(self.path, fault) from None


def _hash_of(path: Path, algorithm: str, progress: Progress) -> str:
    import pooch

    progress.stage(f"checking {path.name}")
    try:
        return str(pooch.file_hash(str(path), alg=algorithm))
    except OSError as fault:
        raise DownloadError(f"{path}: cannot be read ({fault.strerror}).") from None
