"""The output folder: who owns it, what of it is finished, and how it becomes a finished build.

OUT/.build/parameters.json      parameters and source hashes, written before the first shard
OUT/.build/journal/GRID/NAME    one file for each finished shard, written by the task that made it
OUT/.build/discarded.json       the manifest of a build that `--overwrite` is deleting
OUT/.build/spool/               what workers of a cluster are to read, see `spool.py`
OUT/.build/lock                 held (flock) by the one process that builds; workers hold no lock
OUT/manifest.json               written last; then `.build/` goes

On disk a file gets its name by a rename. Object stores have none, so that there a file is committed by one put: it is
written to a temporary file of the machine that makes it, read back, uploaded whole under its final name (S3 and the
store of Google show an upload when its last part is there, or never), its size is compared, and only then it is
journalled. What an upload left behind that failed in the middle is not journalled, is removed where it can be, and is
made again by the next run. The manifest is set aside by a copy and a delete, on disk, too: until the delete the build
is finished.

A store has no locks. Two builds with the same parameters at once write the same bytes; one with other parameters is
refused by `parameters.json`, which is created exclusively where the store can do that (S3 can).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from tokenlabels.atomic import is_temporary, sha256_of, unwritable, write_atomically
from tokenlabels.check import Finding
from tokenlabels.errors import BuildMismatchError, NotABuildError, OutputError, TokenLabelsError
from tokenlabels.shards import ShardEntry
from tokenlabels.sources.paths import is_inside
from tokenlabels.spool import remove_spools
from tokenlabels.storage import (
    content,
    exists,
    globbed,
    is_file,
    is_folder,
    names_in,
    remove,
    remove_below,
    size_of,
    threads_for,
)
from tokenlabels.store_faults import explained, reason_of
from tokenlabels.threads import in_threads
from tokenlabels.totals import LabelSums

if TYPE_CHECKING:
    from tokenlabels.storage import Location

MANIFEST = "manifest.json"
CARD = "README.md"
CROISSANT = "croissant.json"
BESIDE = (CARD, CROISSANT)
"""Files of a finished build that its manifest does not list."""

_STATE = ".build"
_UNREAD = "cannot be read"


class JournalEntry(msgspec.Struct, frozen=True):
    """A finished shard, its label counts, and the findings made while writing it."""

    shard: ShardEntry
    sums: LabelSums
    findings: tuple[Finding, ...] = ()
    counts: dict[str, int] = {}


class _Tool(msgspec.Struct):
    name: Literal["tokenlabels"]


class _Planned(msgspec.Struct):
    """The part of the parameters that decides the names of shards."""

    grids: list[dict[str, Any]]
    sources: dict[str, Any]


class _Listed(msgspec.Struct):
    """The parts of a manifest that say whose it is and name files."""

    tool: _Tool
    shards: list[ShardEntry]


S = TypeVar("S")


def write_journal(out: Location, entry: JournalEntry) -> None:
    """Record that a shard is finished; atomic, one file a shard, so that tasks never wait for each other."""
    write_atomically(_journal_path(out, entry.shard.file), msgspec.json.encode(entry))


def _journal_path(out: Location, file: str) -> Location:
    return out / _STATE / "journal" / f"{file}.json"


@contextlib.contextmanager
def build_lock(out: Location) -> Iterator[None]:
    """Hold the folder against other builds; the lock ends with the process, however that ends. A store has no locks.

    Raises:
        OutputError: the folder cannot be made, or another build holds it.
    """
    if not isinstance(out, Path):
        yield
        return
    lock = out / _STATE / "lock"
    made = [folder for folder in (lock.parent, out, *out.parents) if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as fault:
        _remove_empty(made)
        raise unwritable(out, fault) from None
    with file:
        busy = another_build(out)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # a file system without locks
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise busy  # the one before finished just now and took its lock file away
        try:
            yield
        finally:
            if not (out / _STATE / "parameters.json").exists() and not (out / _STATE / "discarded.json").exists():
                lock.unlink(missing_ok=True)
                _remove_empty(made)


def another_build(out: Location) -> OutputError:
    """The error that says that somebody else has the folder."""
    return OutputError(f"{out}: another build is writing here: wait for it, or name another --out.")


def spools_of(out: Location) -> Location:
    """Where spools of this build may be, see `spool.py`."""
    return out / _STATE / "spool"


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_ownership(out: Location) -> None:
    """Refuse a folder that holds something other than a build.

    Raises:
        OutputError: it is a file, or has files that no build put there; or a store where nothing can be listed.
    """
    try:
        if exists(out) and not is_folder(out):
            raise OutputError(f"{out} is a file, not a folder: name another --out.")
        if is_build(out):
            return
        strangers = sorted(name for name in names_in(out) if name != _STATE)
    except FileNotFoundError:
        return
    except OSError as fault:
        raise unwritable(out, fault) from None
    if strangers:
        raise OutputError(f"{out} is not empty and holds no build ({strangers[0]}): name a new folder with --out.")


def is_build(out: Location) -> bool:
    """Whether a folder is a build of this tool, finished or not.

    Raises:
        TokenLabelsError: the store cannot be asked.
    """
    return _load(out / MANIFEST, _Listed) is not None or any(
        is_file(out / _STATE / name) for name in ("parameters.json", "discarded.json")
    )


@explained()
def resume(out: Location, parameters: dict[str, Any], *, overwrite: bool) -> dict[str, JournalEntry]:
    """What of the folder can be kept, after clearing away what cannot; the folder is locked by the caller.

    Args:
        out: the folder.
        parameters: everything that decides the bytes of the shards, as JSON values.
        overwrite: discard a build made with other parameters.

    Returns:
        Finished shards by file; their hashes have been checked.

    Raises:
        BuildMismatchError: the folder holds a build, finished or not, with other parameters.
        NotABuildError: the manifest there is damaged.
    """
    remove_spools(spools_of(out))
    if exists(out / _STATE / "discarded.json"):
        discard(out)
    finished = is_file(out / MANIFEST)
    if finished:
        listed = _load(out / MANIFEST, _Listed)
        if listed is None or not all(is_shard_path(shard.file) for shard in listed.shards):
            raise NotABuildError(f"{out / MANIFEST}: is damaged: build in another folder.")
    state = _stated(load_manifest(out)) if finished else _load(out / _STATE / "parameters.json", dict[str, Any])
    if state is not None and state != parameters:
        if not overwrite:
            raise BuildMismatchError(out, _differences(state, parameters))
        finished = True
    if finished:  # other parameters, or damaged shards: made anew
        discard(out)
        state = None
    remove_temporaries(out)
    if state is None:
        try:
            write_atomically(out / _STATE / "parameters.json", msgspec.json.encode(parameters), new=True)
        except FileExistsError:  # another machine began just now
            state = _load(out / _STATE / "parameters.json", dict[str, Any])
            if state != parameters:
                raise BuildMismatchError(out, _differences(state or {}, parameters)) from None
        else:
            return {}
    return _finished(out)


@explained()
def is_complete(out: Location, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds a finished build with these parameters, every shard with its hash."""
    manifest, listed = _load(out / MANIFEST, dict[str, Any]), _load(out / MANIFEST, _Listed)
    if manifest is None or listed is None or _stated(manifest) != parameters:
        return False
    return all(in_threads(lambda shard: _is_as_listed(out, shard), listed.shards, threads_for(out)))


def _is_as_listed(out: Location, shard: ShardEntry) -> bool:
    """Whether a shard has its hash; a store that cannot be asked just now has not lost it."""
    fault = shard_fault(out, shard)
    if fault and fault.startswith(_UNREAD) and not isinstance(out, Path):
        raise TokenLabelsError(f"{out / shard.file}: {fault}: run again when it can.")
    return fault is None


def is_unfinished(out: Location) -> bool:
    """Whether the folder has the state of a build that was begun and did not clear it away."""
    return exists(out / _STATE)


def shard_fault(out: Location, shard: ShardEntry) -> str | None:
    """What is wrong with a listed shard: missing, of another size, of other content; None where it is as listed."""
    if not is_shard_path(shard.file):
        return "is no name of a shard"
    path = out / shard.file
    try:
        size = size_of(path)
        if size != shard.bytes:
            return f"has {size} bytes, should have {shard.bytes}"
        return None if sha256_of(path) == shard.sha256 else "has other content than when it was built"
    except FileNotFoundError:
        return "is missing"
    except OSError as fault:
        return f"{_UNREAD} ({reason_of(fault)})"


def is_shard_path(file: str) -> bool:
    """Whether a path from a manifest is one that a shard can have: GRID/NAME.parquet, inside the build."""
    return is_inside(file) and re.fullmatch(r"[^./\\][^/\\]*/[^./\\][^/\\]*\.parquet", file) is not None


def finish(out: Location, manifest: dict[str, Any], beside: Mapping[str, bytes]) -> None:
    """Write the files beside the shards (names of `BESIDE`), the manifest last, and clear the state away."""
    for name, text in beside.items():
        write_atomically(out / name, text)
    write_atomically(out / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    clear_state(out)


def clear_state(out: Location) -> None:
    """Remove `.build/` of a finished build."""
    with contextlib.suppress(OSError):
        _remove_all(out / _STATE)


def _remove_all(path: Location) -> None:
    """Remove a file, or a folder with everything in it."""
    if not isinstance(path, Path):
        remove_below(path)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(out: Location) -> None:
    """Remove the temporary files of workers that were ended; those of uploads are not in the store."""
    if not isinstance(out, Path):
        return
    for pattern in (".*.tmp", "*/.*.tmp", f"{_STATE}/journal/*/.*.tmp"):
        for path in out.glob(pattern):
            if is_temporary(path.name):
                path.unlink(missing_ok=True)


@explained()
def load_manifest(out: Location) -> dict[str, Any]:
    """The manifest of a finished build.

    Raises:
        NotABuildError: there is none, or it is damaged.
    """
    if not is_folder(out):
        raise NotABuildError(f"{out}: no such folder: name the folder of a build.")
    if not is_file(out / MANIFEST):
        unfinished = is_folder(out / _STATE)
        why = "the build here is not finished: run it again to go on" if unfinished else "this folder holds no build"
        raise NotABuildError(f"{out}: no {MANIFEST}; {why}.")
    manifest = _load(out / MANIFEST, dict[str, Any])
    if manifest is None:
        raise NotABuildError(f"{out / MANIFEST}: is damaged: build in another folder.")
    return manifest


def _stated(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of parameters and sources, in the shape that `resume` compares."""
    parameters = manifest.get("parameters")
    return (parameters if isinstance(parameters, dict) else {}) | {"sources": manifest.get("sources")}


def _finished(out: Location) -> dict[str, JournalEntry]:
    """Journalled shards that are as their entry says; other entries are removed."""

    def looked_up(path: Location) -> JournalEntry | None:
        entry = _load(path, JournalEntry)
        return entry if entry is not None and _is_as_listed(out, entry.shard) else None

    paths = globbed(out / _STATE / "journal", "*/*.json")
    found: dict[str, JournalEntry] = {}
    for path, entry in zip(paths, in_threads(looked_up, paths, threads_for(out)), strict=True):
        if entry is None:
            remove(path)
        else:
            found[entry.shard.file] = entry
    return found


@explained()
def discard(out: Location) -> None:
    """Delete a build, finished or not: only what its manifest or journal lists; can be interrupted and called again."""
    discarded = out / _STATE / "discarded.json"
    if exists(out / MANIFEST):
        try:
            write_atomically(discarded, content(out / MANIFEST))
            remove(out / MANIFEST)
        except OSError as fault:
            raise unwritable(out / MANIFEST, fault) from None
    listed = _load(discarded, _Listed)
    files = {shard.file for shard in listed.shards} if listed else set(_planned(out))
    for path in globbed(out / _STATE / "journal", "*/*.json"):
        entry = _load(path, JournalEntry)
        if entry is not None:
            files.add(entry.shard.file)
    folders = _planned_folders(out)
    for file in sorted(files):
        if is_shard_path(file):
            try:
                remove(out / file)
            except (IsADirectoryError, NotADirectoryError):
                continue  # whatever that is, it is no shard
            except OSError as fault:
                raise unwritable(out / file, fault) from None
            folders.add((out / file).parent)
    for name in BESIDE if listed else ():
        remove(out / name)
    remove_temporaries(out)
    _remove_empty([folder for folder in folders if isinstance(folder, Path) and folder != out])
    for name in ("parameters.json", "journal", "discarded.json"):
        _remove_all(out / _STATE / name)


def _planned(out: Location) -> Iterator[str]:
    """Shards that the unfinished build here planned and that exist: one may be committed and not yet journalled."""
    parameters = _load(out / _STATE / "parameters.json", _Planned)
    for grid in parameters.grids if parameters else []:
        for split in parameters.sources if parameters else []:
            for path in globbed(out, f"{glob.escape(grid['name'])}/{glob.escape(split)}-*.parquet"):
                if re.fullmatch(r"-\d{5}-of-\d{5}\.parquet", path.name.removeprefix(split)):
                    yield f"{path.parent.name}/{path.name}"


def _planned_folders(out: Location) -> set[Location]:
    """Folders of the grids that the unfinished build here planned; they may be there before any shard is."""
    parameters = _load(out / _STATE / "parameters.json", _Planned)
    names = [str(grid.get("name", "")) for grid in parameters.grids] if parameters else []
    return {out / name for name in names if is_inside(name)}


def _load(path: Location, kind: type[S]) -> S | None:
    """A JSON file as `kind`, or None where it is absent or damaged."""
    try:
        return msgspec.json.decode(content(path), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    except OSError as fault:
        if isinstance(path, Path) or isinstance(fault, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            return None
        raise TokenLabelsError(f"{path}: cannot be read ({reason_of(fault)}): run again when it can.") from None


def _named(value: object) -> object:
    """A list of named things by their names, for a sentence."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return [item["name"] for item in value]
    return value


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[object, object]]:
    """Dotted names of the leaves that differ."""
    found: dict[str, tuple[object, object]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= {f"{key}.{name}": pair for name, pair in _differences(before, after).items()}
        elif before != after:
            found[key] = (_named(before), _named(after))
    return found
