"""Files in which tasks, and results that are large, travel to workers and back; a scheduler sees only their names.

OUT/.build/spool/RUN/lease        there as long as somebody waits for the results
OUT/.build/spool/RUN/7.task       a task, until its result is in
OUT/.build/spool/RUN/7-….result   a large result, until it is read

They hold pickles. Whoever reads one compares its sha256 with the one that came over the scheduler, so that it is to be
trusted as far as the scheduler itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenlabels.atomic import unwritable
from tokenlabels.errors import OutputError, TokenLabelsError
from tokenlabels.storage import content, names_in, remove, upload

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Parcel: TypeAlias = tuple["Location", str]
"""Where a value lies, and the hex sha256 of its pickle."""


class Spool:
    """The spool of one executor; there only while it is open.

    Args:
        parent: folder that every worker sees; None: one of this machine.

    Attributes:
        lease: see the head of this file.
    """

    def __init__(self, parent: Location | None) -> None:
        self._own = Path(tempfile.mkdtemp(prefix="tokenlabels-")) if parent is None else None
        self._parent = parent.absolute() if parent is not None else Path(str(self._own))
        self._folder = self._parent / f"{os.getpid()}-{secrets.token_hex(8)}"
        self._made: list[Location] = []
        self.lease = self._folder / "lease"

    @property
    def place(self) -> str:
        """Where the files are, for a sentence."""
        return str(self._parent)

    def open(self) -> None:
        """Begin to wait for results.

        Raises:
            OutputError: nothing can be written there.
        """
        folders = (self._folder, *self._folder.parents) if isinstance(self._folder, Path) else ()
        self._made = [folder for folder in folders if not folder.exists()]
        try:
            for folder in reversed(self._made):
                folder.mkdir(exist_ok=True)
            _write(self.lease, b"a build waits for results\n")
        except OSError as fault:
            self.close()
            raise unwritable(self._parent, fault) from None

    def put(self, name: str, value: Any) -> Parcel:
        """Write a value.

        Raises:
            OutputError: it cannot be written.
        """
        return write_parcel(self._folder / name, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def end(self) -> None:
        """Nobody waits any more: no task may commit from now on."""
        with contextlib.suppress(OSError):
            remove(self.lease)

    def close(self) -> None:
        """`end`, and leave no trace."""
        self.end()
        remove_spool(self._folder)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made = []
        if self._own is not None:
            with contextlib.suppress(OSError):
                self._own.rmdir()


def write_parcel(place: Location, data: bytes) -> Parcel:
    """Write the pickle of a value.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        _write(place, data)
    except OSError as fault:
        raise unwritable(place, fault) from None
    return place, hashlib.sha256(data).hexdigest()


def _write(place: Location, data: bytes) -> None:
    if isinstance(place, Path):
        place.write_bytes(data)
    else:
        upload(place, len(data), data)


def read_parcel(parcel: Parcel) -> Any:
    """The value that lies in a parcel.

    Raises:
        OSError: it cannot be read.
        OutputError: it is not what was sent.
    """
    place, digest = parcel
    data = content(place)
    if hashlib.sha256(data).hexdigest() != digest:
        raise OutputError(f"{place}: is not what was written there: is the storage sound?")
    return pickle.loads(data)  # noqa: S301  as trustworthy as the scheduler, see above


def is_held(lease: Location) -> bool:
    """Whether somebody still waits for results.

    The file is read: a network file system may remember for a while that a file exists, but looks when it is opened.

    Raises:
        OSError: nobody can tell.
    """
    try:
        return bool(content(lease))
    except (FileNotFoundError, NotADirectoryError):
        return False


def remove_spools(parent: Location) -> None:
    """Remove what killed processes left in a folder of spools; workers that still serve them will not commit."""
    with contextlib.suppress(OSError, TokenLabelsError):
        for name in names_in(parent):
            remove_spool(parent / name)
        if isinstance(parent, Path):
            parent.rmdir()


def remove_spool(folder: Location) -> None:
    """Remove one spool, the lease first."""
    with contextlib.suppress(OSError, TokenLabelsError):
        remove(folder / "lease")
        for name in names_in(folder):
            remove(folder / name)
        if isinstance(folder, Path):
            folder.rmdir()
