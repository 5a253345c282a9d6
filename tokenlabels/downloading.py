"""Fetching the files of a known data set and unpacking them in the official layout, where `build` finds them.

ROOT/FILE                              an archive, whole and checked
ROOT/.tokenlabels-download/FILE.part   an archive that is on its way; see `transfer`
ROOT/.tokenlabels-download/unpack/     what is being unpacked; moved to its place when all of it is there
ROOT/.tokenlabels-download/FILE.json   what was unpacked of an archive, written last
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tokenlabels.addresses import check_address
from tokenlabels.atomic import unwritable
from tokenlabels.errors import DownloadError, ParameterError
from tokenlabels.fetching import STATE, Fetched, Job
from tokenlabels.known import Archive, KnownDataset, known_datasets
from tokenlabels.progress import Progress, Silent
from tokenlabels.storage import located


class Download(msgspec.Struct, frozen=True):
    """What was, or would be, downloaded.

    Attributes:
        dataset: name of the data card.
        root: folder.
        archives: in the order of the data card.
        commands: what builds labels of it, as words.
    """

    dataset: str
    root: str
    archives: tuple[Fetched, ...]
    commands: tuple[tuple[str, ...], ...]


def download(
    dataset: str | KnownDataset,
    *,
    splits: str | Sequence[str],
    root: str | Path = ".",
    annotations_only: bool = False,
    keep_archives: bool = True,
    mirror: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Download:
    """Fetch and unpack splits of a data set; what is there already is not fetched again.

    Args:
        dataset: name of a data card, or the front matter of one.
        splits: as the data card calls them.
        root: folder to write.
        annotations_only: leave the pictures out; box rules need none.
        keep_archives: keep the archives beside what was unpacked.
        mirror: address of a folder that has the same files.
        dry_run: only say what would be fetched.
        progress: told the bytes.
        pause: waits some seconds between tries.

    Raises:
        ParameterError: no such data set, split or mirror.
        DownloadError: a file cannot be had, is not what the data card says, or cannot be unpacked.
        OutputError: the folder cannot be written.
    """
    progress = progress or Silent()
    known = dataset if isinstance(dataset, KnownDataset) else find_dataset(dataset)
    chosen = _chosen_splits(known, [splits] if isinstance(splits, str) else list(splits))
    folder = _folder(root)
    if mirror is not None:
        check_address(mirror)
    jobs = [
        Job(archive, folder, chosen, annotations_only=annotations_only)
        for archive in known.downloads
        if set(chosen) & set(archive.splits) and (archive.annotations or not annotations_only)
    ]
    commands = _commands(known, folder, chosen, annotations_only=annotations_only)
    if dry_run:
        return Download(known.name, str(root), tuple(job.planned(mirror) for job in jobs), commands)
    with _lock(folder):
        _check_room(jobs, folder, keep_archives=keep_archives)
        _say_plain_http(jobs, mirror, progress)
        done = [job.run(mirror, progress, pause, keep=keep_archives) for job in jobs]
    return Download(known.name, str(root), tuple(done), commands)


def find_dataset(name: str) -> KnownDataset:
    """The data card of a data set that can be downloaded.

    Raises:
        ParameterError: there is none.
    """
    available = {known.name: known for known in known_datasets() if known.downloads}
    if name not in available:
        raise ParameterError(f"no data set {name!r} to download: those there are {', '.join(sorted(available))}.")
    return available[name]


def _chosen_splits(known: KnownDataset, splits: list[str]) -> list[str]:
    available = dict.fromkeys(split for archive in known.downloads for split in archive.splits)
    named = ", ".join(available)
    if not splits:
        raise ParameterError(f"which part of {known.name} is wanted? Name it with --split: there are {named}.")
    for split in splits:
        if split not in available:
            raise ParameterError(f"{known.name} has no split {split!r} to download: there are {named}.")
    return list(dict.fromkeys(splits))


def _folder(root: str | Path) -> Path:
    place = located(root)
    if not isinstance(place, Path):
        raise ParameterError(f"{root}: archives are unpacked on disk: name a folder there with --root.")
    if place.exists() and not place.is_dir():
        raise DownloadError(f"{root}: is a file, not a folder: name another --root.")
    return place


def _commands(
    known: KnownDataset, folder: Path, splits: Sequence[str], *, annotations_only: bool
) -> tuple[tuple[str, ...], ...]:
    """The commands that build labels of the splits, one for each folder that `build` calls a root."""
    named: dict[str, list[str]] = {}
    for split in splits:
        archive = next(archive for archive in known.downloads if split in archive.splits)
        named.setdefault(archive.folder, []).append(archive.splits[split])
    found: list[tuple[str, ...]] = []
    for below, names in named.items():
        root = folder / below
        if annotations_only and known.masks is not None and known.source == "semantic":  # its layout is told by both
            for name in names:
                masks = str(root / "annotations" / name)
                found.append(("tokenlabels", "build", "semantic", "--masks", masks, "--categories", known.name))
            continue
        words = ["tokenlabels", "build", known.source, "--root", str(root)]
        found.append((*words, *(word for name in names for word in ("--split", name))))
    return tuple(found)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder against other downloads; the lock ends with the process."""
    state = folder / STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = (state / "lock").open("ab")
    except OSError as fault:
        raise unwritable(folder, fault) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"{folder}: another download is writing here: wait for it, or name another --root."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _check_room(jobs: Sequence[Job], folder: Path, *, keep_archives: bool) -> None:
    """Refuse what cannot fit: archives, and as much again for what is unpacked of them, where sizes are known."""
    used = most = 0
    for job in jobs:
        size = job.archive.bytes or 0
        if not job.done:
            used += (0 if job.path.exists() else size - job.held()) + size
            most = max(most, used)
            used -= 0 if keep_archives else size
    free = shutil.disk_usage(folder).free
    if most > free:
        raise DownloadError(
            f"{folder}: has {free / 1e9:.1f} GB free, about {most / 1e9:.1f} GB are needed: free space, or name "
            "another --root."
        )


def _say_plain_http(jobs: Sequence[Job], mirror: str | None, progress: Progress) -> None:
    plain: dict[str, list[Archive]] = {}
    for job in jobs:
        address = job.addresses(mirror)[0]
        if not job.done and not job.path.exists() and address.startswith("http:"):
            plain.setdefault(urlsplit(address).hostname or "", []).append(job.archive)
    for host, archives in plain.items():
        unknown = [archive.file for archive in archives if not archive.hash]
        told = f"no checksum of {', '.join(unknown)} is known" if unknown else "checksums are compared"
        progress.note(f"{host} is asked by plain http, which nothing protects on its way; {told}.")
