"""The folder of an export: files of another format, and `export.json`, which lists them.

OUT/.export.json    parameters, planned files and finished files of an export under way
OUT/export.json     written last; then `.export.json` goes
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from tokenlabels.atomic import Temporary, is_temporary, sha256_of, unwritable, write_atomically
from tokenlabels.errors import OutputError, TokenLabelsError
from tokenlabels.output import build_lock, clear_state
from tokenlabels.progress import Progress
from tokenlabels.storage import content, globbed, is_folder, names_in, size_of
from tokenlabels.store_faults import as_os_error, reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

INDEX = "export.json"
_STATE = ".export.json"
_LOCK = ".build"
_EACH, _SHARE = 64, 20
"""Files after each of which the state is written; then it takes one part in so many of the time."""

_NAME = re.compile(r"[^./\\][^/\\]*\.(tar|npz|json)")


class ExportedFile(msgspec.Struct, frozen=True):
    """A finished file of an export: its name, its split, images, size in bytes and sha256."""

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: its name, its split, how many images, and what writes it."""

    file: str
    split: str
    rows: int
    write: Callable[[BinaryIO], None]


class _Tool(msgspec.Struct):
    name: Literal["tokenlabels"]


class _Listed(msgspec.Struct):
    tool: _Tool
    parameters: dict[str, Any]
    files: list[ExportedFile]
    planned: list[str] = []


def write_export(
    folder: Location, index: dict[str, Any], planned: Sequence[PlannedFile], *, overwrite: bool, progress: Progress
) -> tuple[ExportedFile, ...]:
    """Write the files that are not there yet, and the index last; what was interrupted goes on where it was.

    Args:
        folder: of the export.
        index: all of `export.json` but `files`; its `parameters`, flat JSON values, decide whether an export that is
            there is this one.
        planned: every file, in order.
        overwrite: replace an export made with other parameters; deletes only what it lists.
        progress: told about every image.

    Raises:
        OutputError: the folder holds something else or another export, or cannot be written.
    """
    _check_ownership(folder)
    listed = _listed(folder)
    if listed is not None and listed.parameters == index["parameters"] and (folder / INDEX).exists():
        whole = _kept(folder, listed, planned)
        if len(whole) == len(planned):
            progress.note(f"{folder} holds this export already, every file as it should be.")
            (folder / _STATE).unlink(missing_ok=True)
            return tuple(whole.values())
    with build_lock(folder):
        kept = _resume(folder, index["parameters"], planned, overwrite=overwrite)
        files: list[ExportedFile] = []
        with _State(folder, index, planned, kept) as state:
            progress.stage("exporting", sum(each.rows for each in planned))
            for each in planned:
                if each.file not in kept:
                    state.add(_write_file(folder / each.file, each))
                files.append(kept[each.file])
                progress.advance(each.rows)
        progress.stage("finishing")
        _write_json(folder / INDEX, index | {"files": msgspec.to_builtins(files)})
        (folder / _STATE).unlink(missing_ok=True)
        clear_state(folder)
    return tuple(files)


def _check_ownership(folder: Location) -> None:
    """Refuse a folder that holds something other than an export."""
    try:
        with as_os_error():
            if folder.exists() and not is_folder(folder):
                raise OutputError(f"{folder} is a file, not a folder: name another --out.")
        strangers = sorted(names_in(folder))
    except FileNotFoundError as fault:
        if "bucket" in reason_of(fault):
            raise unwritable(folder, fault) from None
        return
    except OSError as fault:
        raise unwritable(folder, fault) from None
    if _LOCK in strangers and not _is_lock(folder / _LOCK):
        raise OutputError(f"{folder} holds a build that is not finished ({_LOCK}): name a new folder with --out.")
    if strangers not in ([], [_LOCK]) and _listed(folder) is None:
        raise OutputError(f"{folder} is not empty and holds no export ({strangers[0]}): name a new folder with --out.")


def _is_lock(folder: Location) -> bool:
    """Whether `.build/` holds no more than the lock of an export that was ended."""
    try:
        return set(names_in(folder)) <= {"lock"}
    except FileNotFoundError:
        return True
    except OSError as fault:
        raise unwritable(folder, fault) from None


def _resume(
    folder: Location, parameters: dict[str, Any], planned: Sequence[PlannedFile], *, overwrite: bool
) -> dict[str, ExportedFile]:
    """Finished files of this very export, after clearing away those of another."""
    for path in globbed(folder, ".*.tmp") if isinstance(folder, Path) else ():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)
    listed = _listed(folder)
    if listed is None:
        return {}
    same = listed.parameters == parameters
    if not same and not overwrite:
        old = {key: (listed.parameters.get(key), value) for key, value in parameters.items()}
        named = "; ".join(f"{key} was {was!r}, now {now!r}" for key, (was, now) in old.items() if was != now)
        raise OutputError(
            f"{folder} holds an export with other parameters ({named}): use another --out, or --overwrite."
        )
    if (folder / INDEX).exists():  # set aside: from here on nothing looks finished, and what is here is still listed
        write_atomically(folder / _STATE, content(folder / INDEX))
        (folder / INDEX).unlink()
    if same:
        return _kept(folder, listed, planned)
    for file in sorted({*listed.planned, *(entry.file for entry in listed.files)}):
        if _NAME.fullmatch(file):
            (folder / file).unlink(missing_ok=True)
    return {}


def _kept(folder: Location, listed: _Listed, planned: Sequence[PlannedFile]) -> dict[str, ExportedFile]:
    """Of the planned files those that are listed, each with its hash."""
    entries = {entry.file: entry for entry in listed.files}
    found = [entries[each.file] for each in planned if each.file in entries]
    return {entry.file: entry for entry in found if _is_as_listed(folder / entry.file, entry)}


def _is_as_listed(path: Location, entry: ExportedFile) -> bool:
    try:
        return size_of(path) == entry.bytes and sha256_of(path) == entry.sha256
    except OSError as fault:
        if isinstance(path, Path) or isinstance(fault, FileNotFoundError):
            return False
        raise TokenLabelsError(f"{path}: cannot be read ({reason_of(fault)}): run again when it can.") from None


def _write_file(path: Location, planned: PlannedFile) -> ExportedFile:
    """Write a file whole or not at all: on disk by renaming it, in a store by one put."""
    temporary = Temporary(path)
    try:
        try:
            with temporary.path.open("wb") as file:
                planned.write(file)
                file.flush()
                os.fsync(file.fileno())
            size, digest = temporary.path.stat().st_size, sha256_of(temporary.path)
        except OSError as fault:
            raise temporary.unwritable(fault) from fault
        try:
            temporary.commit(size)
        except OSError as fault:
            raise unwritable(path, fault) from fault
    finally:
        temporary.remove()
    return ExportedFile(planned.file, planned.split, planned.rows, size, digest)


class _State:
    """`.export.json`, written anew as files are finished: the first after each, later ones when that costs little.

    So thousands of small files do not each write the list of all; a process that is killed loses a few of them, and
    one that fails loses none.
    """

    def __init__(
        self, folder: Location, index: dict[str, Any], planned: Sequence[PlannedFile], kept: dict[str, ExportedFile]
    ) -> None:
        self._path, self._kept = folder / _STATE, kept
        self._fixed = index | {"planned": [each.file for each in planned]}
        self._added = 0
        self._pending = False
        self._due = 0.0

    def __enter__(self) -> _State:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._pending:
            self._write()

    def add(self, entry: ExportedFile) -> None:
        """One more file is finished."""
        self._kept[entry.file] = entry
        self._added += 1
        self._pending = True
        if self._added <= _EACH or perf_counter() >= self._due:
            self._write()

    def _write(self) -> None:
        begun = perf_counter()
        _write_json(self._path, self._fixed | {"files": msgspec.to_builtins(list(self._kept.values()))})
        ended = perf_counter()
        self._pending, self._due = False, ended + _SHARE * (ended - begun)


def _write_json(path: Location, value: dict[str, Any]) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _listed(folder: Location) -> _Listed | None:
    """What the folder says of itself: a finished export, else one under way, else nothing."""
    for path in (folder / INDEX, folder / _STATE):
        try:
            return msgspec.json.decode(content(path), type=_Listed)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        except OSError as fault:
            if not isinstance(path, Path) and not isinstance(fault, FileNotFoundError):
                raise TokenLabelsError(f"{path}: cannot be read ({reason_of(fault)}): run again when it can.") from None
    return None
