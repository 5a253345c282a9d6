"""Files that are written whole or not at all: on disk by a rename, in a store by one put."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tokenlabels.errors import OutputError
from tokenlabels.storage import opened, upload
from tokenlabels.store_faults import as_os_error, reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_BLOCK = 8 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.tmp")


def temporary_beside(path: Path) -> Path:
    """A temporary name in the same folder, unique to this process and call."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `temporary_beside` makes."""
    return _TEMPORARY.fullmatch(name) is not None


class Temporary:
    """A file of this machine that is to become another: beside it on disk, without a name where that is in a store.

    A file without a name (on Linux) goes with its process, however that ends.

    Attributes:
        path: opens it, in this process.

    Raises:
        OutputError: there is no room for it.
    """

    def __init__(self, target: Location) -> None:
        self._target = target
        self._unnamed: IO[bytes] | None = None
        if isinstance(target, Path):
            self.path = temporary_beside(target)
            return
        try:
            if sys.platform == "linux":
                self._unnamed = tempfile.TemporaryFile()  # noqa: SIM115  see `remove`
                self.path = Path(f"/dev/fd/{self._unnamed.fileno()}")
            else:  # opening that would share the place in the file
                self._unnamed = tempfile.NamedTemporaryFile()  # noqa: SIM115
                self.path = Path(self._unnamed.name)
        except OSError as fault:
            raise self.unwritable(fault) from fault

    def unwritable(self, fault: BaseException) -> OutputError:
        """The error that says why it cannot be written."""
        if isinstance(self._target, Path):
            return unwritable(self._target, fault)
        return OutputError(
            f"{tempfile.gettempdir()}: the temporary file of an upload cannot be written ({reason_of(fault)}): free "
            "space there, or set TMPDIR to another folder, and run again."
        )

    def commit(self, size: int) -> None:
        """Give the whole file its final name: by a rename, or by one put of its `size` bytes.

        Raises:
            OSError: that fails.
        """
        if isinstance(self._target, Path):
            self.path.replace(self._target)
        else:
            upload(self._target, size, str(self.path))

    def remove(self) -> None:
        """Remove what is left of it."""
        if self._unnamed is None:
            with contextlib.suppress(NotADirectoryError):  # a file stands where its folder should
                self.path.unlink(missing_ok=True)
        else:
            self._unnamed.close()


def write_atomically(path: Location, content: bytes, *, new: bool = False) -> None:
    """Write a small file whole or not at all: on disk by renaming it, in a store by one put.

    Args:
        path: the file.
        content: its bytes.
        new: fail where a store has it already, of stores that can tell.

    Raises:
        FileExistsError: a store has it already.
        OutputError: it cannot be written.
    """
    if not isinstance(path, Path):
        try:
            upload(path, len(content), content, create=new)
        except FileExistsError:
            raise
        except OSError as fault:
            raise unwritable(path, fault) from fault
        return
    temporary = temporary_beside(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise unwritable(path, fault) from fault


def unwritable(path: Location, fault: BaseException) -> OutputError:
    """The error that says that a file cannot be written, and why."""
    remedy = "free space" if isinstance(path, Path) else "mend that"
    return OutputError(
        f"{path}: cannot be written ({reason_of(fault)}): {remedy}, or name another place, and run again."
    )


def sha256_of(path: Location) -> str:
    """Hex sha256 of a file, read in blocks."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with as_os_error(), opened(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
