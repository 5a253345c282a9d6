"""Moving what was fetched to its place, which a link may have put on another disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


def move(source: Path, place: Path) -> None:
    """Move a file, or a folder to where none is; across disks every file comes whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    try:
        source.replace(place)
    except OSError as fault:
        if fault.errno != errno.EXDEV:
            raise
    else:
        return
    if source.is_dir():
        place.mkdir()
        for path in source.iterdir():
            move(path, place / path.name)
    else:
        _copy(source, place)
        source.unlink()


def _copy(source: Path, place: Path) -> None:
    beside = place.with_name(".tokenlabels-download.part")  # the same every time: a killed process leaves one at most
    try:
        beside.unlink(missing_ok=True)
        with source.open("rb") as old, beside.open("xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)
