"""Which pictures an export takes from a folder: their names, sizes and times, by which it knows them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.errors import TokenLabelsError
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import threads_for
from tokenlabels.store_faults import as_os_error, reason_of
from tokenlabels.threads import MAX_THREADS, ahead

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "created")
"""What stores say of the version of a file, the surest first."""


def pictures_digest(images: Location, names: Iterable[str]) -> str:
    """Hex sha256 over the name of each picture, its bytes, and when it was written or what its store calls its version.

    Raises:
        TokenLabelsError: a name is no file name in the folder, or no file is there.
    """
    digest = hashlib.sha256()
    for told in ahead(lambda name: _told(images, name), names, threads_for(images, MAX_THREADS)):
        digest.update(told)
    return digest.hexdigest()


def picture_path(images: Location, name: str) -> Location:
    """Where a picture is.

    Raises:
        TokenLabelsError: that would not be in the folder.
    """
    if not name or not is_inside(name):
        raise TokenLabelsError(f"{name!r} is no file name in {images}: the build names no picture there.")
    return images / name


def unreadable_picture(path: Location, fault: OSError) -> TokenLabelsError:
    """The error that says that a picture is not there."""
    return TokenLabelsError(f"{path}: cannot be read ({reason_of(fault)}): is --images right?")


def _told(images: Location, name: str) -> bytes:
    path = picture_path(images, name)
    try:
        if isinstance(path, Path):
            status = path.stat()
            size, version = status.st_size, str(status.st_mtime_ns)
        else:
            with as_os_error():
                info = path.fs.info(path.path)
            size, version = info["size"], next((str(info[key]) for key in _VERSIONS if key in info), "")
    except OSError as fault:
        raise unreadable_picture(path, fault) from None
    return f"{size} {version} {name}\n".encode()
