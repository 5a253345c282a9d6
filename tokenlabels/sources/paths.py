"""File names from annotation files are untrusted: they must stay inside the image folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def is_inside(name: str) -> bool:
    """Whether a relative file name cannot leave the folder it is joined to, on any platform (links aside)."""
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
