"""Where the results for picture files go: a folder of their own, a name for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenlabels.errors import OutputError


def make_folder(out: Path, pictures: Iterable[Path] = ()) -> None:
    """Make a folder for results.

    Args:
        out: the folder; it may be there.
        pictures: files that results must not replace.

    Raises:
        OutputError: it holds one of the pictures, or cannot be made.
    """
    if any(path.resolve().parent == out.resolve() for path in pictures):
        raise OutputError(f"{out}: holds pictures to predict, which results might replace: name another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"{out}: cannot be written ({fault.strerror}): name another folder with --out.") from None


def remove_result(path: Path) -> None:
    """Remove what an earlier command left, so that nobody takes it for the result of one that fails.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise OutputError(f"{path}: cannot be replaced ({fault.strerror}): name another folder with --out.") from None


def result_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each file: its stem, with a number where that is taken."""
    found: dict[str, None] = {}
    for path in paths:
        name, number = path.stem, 1
        while name in found:
            number += 1
            name = f"{path.stem}-{number}"
        found[name] = None
    return list(found)
