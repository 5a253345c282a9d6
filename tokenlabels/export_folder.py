"""The folder of an export: files of another format, and `export.json`, which lists them.

OUT/.export.json    parameters, planned files and finished files of an export under way
OUT/export.json     written last; then `.export.json` goes
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from tokenlabels.errors import OutputError
from tokenlabels.output import build_lock, clear_state
from tokenlabels.progress import Progress
from tokenlabels.shards import is_temporary, sha256_of, temporary_beside, unwritable, write_atomically

if TYPE_CHECKING:
    from tokenlabels.storage import Location

INDEX = "export.json"
_STATE = ".export.json"
_LOCK = ".build"
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
    finished = _load(folder / INDEX)
    if finished is not None and finished.parameters == index["parameters"] and not _kept(folder, finished, planned)[1]:
        progress.note(f"{folder} holds this export already, every file as it should be.")
        return tuple(finished.files)
    with build_lock(folder):
        kept = _resume(folder, index["parameters"], planned, overwrite=overwrite)
        files: list[ExportedFile] = []
        _write_state(folder, index, planned, kept.values())
        progress.stage("exporting", sum(each.rows for each in planned))
        for each in planned:
            entry = kept.get(each.file)
            if entry is None:
                entry = _write_file(folder / each.file, each)
                kept[each.file] = entry
                _write_state(folder, index, planned, kept.values())
            files.append(entry)
            progress.advance(each.rows)
        progress.stage("finishing")
        _write_json(folder / INDEX, index | {"files": msgspec.to_builtins(files)})
        (folder / _STATE).unlink(missing_ok=True)
        clear_state(folder)
    return tuple(files)


def _check_ownership(folder: Location) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder: name another --out.")
    try:
        strangers = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as fault:
        raise unwritable(folder, fault) from None
    if strangers in ([], [_LOCK]) or any(_load(folder / name) is not None for name in (INDEX, _STATE)):
        return
    raise OutputError(f"{folder} is not empty and holds no export ({strangers[0]}): name a new folder with --out.")


def _resume(
    folder: Location, parameters: dict[str, Any], planned: Sequence[PlannedFile], *, overwrite: bool
) -> dict[str, ExportedFile]:
    """Finished files of this very export, after clearing away those of another."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path.name):
            path.unlink(missing_ok=True)
    kept: dict[str, ExportedFile] = {}
    for name in (INDEX, _STATE):
        listed = _load(folder / name)
        if listed is None:
            continue
        if listed.parameters == parameters:
            kept |= _kept(folder, listed, planned)[0]
            continue
        if not overwrite:
            old = {key: (listed.parameters.get(key), value) for key, value in parameters.items()}
            named = "; ".join(f"{key} was {was!r}, now {now!r}" for key, (was, now) in old.items() if was != now)
            raise OutputError(
                f"{folder} holds an export with other parameters ({named}): use another --out, or --overwrite."
            )
        for file in sorted({*listed.planned, *(entry.file for entry in listed.files)} - kept.keys()):
            if _NAME.fullmatch(file):
                (folder / file).unlink(missing_ok=True)
    if (folder / INDEX).exists():
        (folder / INDEX).replace(folder / _STATE)  # what it lists can still be found
    return kept


def _kept(
    folder: Location, listed: _Listed, planned: Sequence[PlannedFile]
) -> tuple[dict[str, ExportedFile], list[str]]:
    """Of the planned files those that are listed and as listed, and the names of the others."""
    entries = {entry.file: entry for entry in listed.files}
    kept: dict[str, ExportedFile] = {}
    for each in planned:
        entry, path = entries.get(each.file), folder / each.file
        same_size = entry is not None and path.is_file() and path.stat().st_size == entry.bytes
        if entry is not None and same_size and sha256_of(path) == entry.sha256:
            kept[each.file] = entry
    return kept, [each.file for each in planned if each.file not in kept]


def _write_file(path: Location, planned: PlannedFile) -> ExportedFile:
    temporary = temporary_beside(path)
    try:
        try:
            with temporary.open("wb") as file:
                planned.write(file)
                file.flush()
                os.fsync(file.fileno())
            size, digest = temporary.stat().st_size, sha256_of(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise unwritable(path, fault) from fault
    return ExportedFile(planned.file, planned.split, planned.rows, size, digest)


def _write_state(folder: Location, index: dict[str, Any], planned: Sequence[PlannedFile], files: Any) -> None:
    state = index | {"planned": [each.file for each in planned], "files": msgspec.to_builtins(list(files))}
    _write_json(folder / _STATE, state)


def _write_json(path: Location, value: dict[str, Any]) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _load(path: Location) -> _Listed | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Listed)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
