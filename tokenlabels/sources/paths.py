"""File names from annotation files are untrusted: they must stay inside the image folder."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

_SUSPICIOUS = re.compile(r"[/\\:\0]|^\.\.?$")
"""What every name that leaves its folder has; a quick no for the hundred thousand names that have nothing of it."""


def is_inside(name: str) -> bool:
    """Whether a relative file name cannot leave the folder it is joined to, on any platform (links aside)."""
    if not _SUSPICIOUS.search(name):
        return True
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return not (
        "\0" in name
        or posix.is_absolute()
        or windows.is_absolute()
        or windows.drive
        or windows.root
        or ".." in posix.parts
        or ".." in windows.parts
    )


def is_text(name: str) -> bool:
    """Whether a name that the system gave is text, which bytes that are no UTF-8 are not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
