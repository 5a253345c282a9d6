"""Every file below a folder, by relative path in code-point order, without a list of them all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.errors import TokenLabelsError

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_BUILD_MARKS = (frozenset({".build"}), frozenset({"manifest.json", "README.md"}))
"""Names of which a folder has all where it is a build, unfinished or finished."""


def walk(folder: Location) -> Iterator[str]:
    """Relative paths, with `/`, of the files below a folder.

    Names that begin with a dot are passed over, and so are builds of this tool below the folder. Links are followed,
    every folder once. Names that are no UTF-8 come with surrogates, as from `os.fsdecode`.

    Raises:
        TokenLabelsError: a folder cannot be listed.
    """
    if isinstance(folder, Path):
        yield from _below(str(folder), "", set())
        return
    start = folder.path.rstrip("/") + "/"
    try:
        found = folder.fs.find(folder.path)
    except OSError as fault:
        raise _unlistable(str(folder), fault) from None
    for path in sorted(found):
        name = path[len(start) :]
        if path.startswith(start) and not name.endswith("/") and not any(part[:1] == "." for part in name.split("/")):
            yield name


def _below(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = Path(folder).stat()
        with os.scandir(folder) as entries:
            found = sorted((entry.name + "/" * _is_folder(entry), entry.path) for entry in entries)
    except OSError as fault:
        raise _unlistable(folder, fault) from None
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    names = {name.rstrip("/") for name, _ in found}
    if prefix and any(marks <= names for marks in _BUILD_MARKS):
        return
    for name, path in found:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _below(path, prefix + name, seen)
        else:
            yield prefix + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _unlistable(folder: str, fault: OSError) -> TokenLabelsError:
    return TokenLabelsError(
        f"{folder}: cannot be listed ({fault.strerror or fault}): mend that, or name another folder."
    )
