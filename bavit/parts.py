"""The names within the folder of a pruned detector; what is in it is told by `bavit.detect.saved`."""

from __future__ import annotations

from pathlib import Path

from tokenlabels.errors import ParameterError

PRUNED_FILE = "pruned.json"
BAVIT_FOLDER, DETECTOR_FOLDER = "bavit", "detector"


def is_saved(folder: str | Path) -> bool:
    """Whether a folder holds a finished pruned detector."""
    return (Path(folder) / PRUNED_FILE).is_file()


def check_part(folder: Path, part: str) -> None:
    """Say where one model of a pruned detector is, to those who named the whole.

    Raises:
        ParameterError: the folder is a pruned detector's.
    """
    if is_saved(folder):
        raise ParameterError(f"{folder}: is a pruned detector, two models in one folder: name {folder / part}.")
