"""Every file below a folder, by relative path in code-point order, without a list of them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.errors import TokenLabelsError
from tokenlabels.output import is_build
from tokenlabels.store_faults import as_os_error

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_BUILD_MARKS = frozenset({".build/", "manifest.json"})
"""Names of which a folder has one where it may be a build."""


def walk(folder: Location, passed: Callable[[str], None] = lambda _name: None) -> Iterator[str]:
    """Relative paths, with `/`, of the files below a folder.

    Names that begin with a dot are passed over, and so are builds of this tool below the folder. Links are followed,
    every folder once. Names that are no UTF-8 come with surrogates, as from `os.fsdecode`.

    Args:
        folder: where.
        passed: told the relative path of each build that is passed over.

    Raises:
        TokenLabelsError: a folder cannot be listed.
    """
    yield from _below(folder, "", set(), passed)


def listed(folder: Location) -> list[str]:
    """Names in a folder in code-point order, those of folders with `/` behind.

    Raises:
        TokenLabelsError: it cannot be listed.
    """
    try:
        if isinstance(folder, Path):
            with os.scandir(folder) as entries:
                return sorted(entry.name + "/" * _is_folder(entry) for entry in entries)
        with as_os_error():
            found = folder.fs.ls(folder.path, detail=True)
    except OSError as fault:
        reason = fault.strerror or fault
        raise TokenLabelsError(f"{folder}: cannot be listed ({reason}): mend that, or name another folder.") from None
    own = folder.path.strip("/")
    return sorted(
        entry["name"].rstrip("/").rpartition("/")[2] + "/" * (entry["type"] == "directory")
        for entry in found
        if entry["name"].strip("/") != own
    )


def _below(folder: Location, prefix: str, seen: set[tuple[int, int]], passed: Callable[[str], None]) -> Iterator[str]:
    names = listed(folder)
    if prefix and not _BUILD_MARKS.isdisjoint(names) and is_build(folder):
        passed(prefix.rstrip("/"))
        return
    if isinstance(folder, Path):
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
    for name in names:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _below(folder / name[:-1], prefix + name, seen, passed)
        else:
            yield prefix + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
