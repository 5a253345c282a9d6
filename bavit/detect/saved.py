"""A pruned detector in a folder: both models, and how many patches stay.

pruned.json            what is said here; written last, so that a folder without it is not finished
bavit/                 the BAViT, as `BAViT.save_pretrained` writes it
detector/              the YOLOS, in transformers' format
adaptive.safetensors   a learned threshold, where pruned.json has its config
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bavit.detect.adaptive import AdaptiveConfig
from bavit.detect.pruning import Pruning
from bavit.parts import BAVIT_FOLDER, DETECTOR_FOLDER, PRUNED_FILE, is_saved
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError, TokenLabelsError

__all__ = ["BAVIT_FOLDER", "DETECTOR_FOLDER", "PRUNED_FILE", "Saved", "is_saved", "read_saved", "write_saved"]

_FORMAT = 1


class Saved(msgspec.Struct, frozen=True):
    """What `pruned.json` says.

    Attributes:
        pruning: how many patches stay.
        budget: what was asked for and found when that was chosen, see `bavit calibrate --detector`; None: it was not.
        adaptive: what the learned threshold is made of, see `adaptive.py`; None: there is none.
        format: version of the file.
    """

    pruning: Pruning
    budget: dict[str, Any] | None = None
    adaptive: AdaptiveConfig | None = None
    format: int = _FORMAT


def write_saved(folder: Path, saved: Saved) -> None:
    """Write `pruned.json`, after the models.

    Raises:
        OutputError: it cannot be written.
    """
    write_atomically(folder / PRUNED_FILE, msgspec.json.format(msgspec.json.encode(saved), indent=2) + b"\n")


def read_saved(folder: Path) -> Saved:
    """What `pruned.json` says.

    Raises:
        TokenLabelsError: there is none, it is damaged, or of a later version.
    """
    path = folder / PRUNED_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Saved)
    except OSError as fault:
        reason = fault.strerror or "unreadable"
        raise TokenLabelsError(f"{path}: cannot be read ({reason}): name the folder of a pruned detector.") from None
    except (msgspec.MsgspecError, ParameterError, RecursionError) as fault:
        raise TokenLabelsError(f"{path}: does not describe a pruned detector ({fault}): make it again.") from None
    if found.format != _FORMAT:
        raise TokenLabelsError(f"{path}: has format {found.format}, this version reads {_FORMAT}: update tokenlabels.")
    return found
