"""The state of a training run on disk: written whole or not at all, read without running anything that is in it."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenlabels.atomic import write_atomically
from tokenlabels.errors import TokenLabelsError

CHECKPOINT_FILE = "checkpoint.pt"
_FORMAT = 1
_DAMAGED = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError
)  # fmt: skip


@dataclass(slots=True)
class TrainingState:
    """Everything that training goes on from, bit by bit.

    Attributes:
        model: state dict.
        average: state dict of the moving average of weights, or None.
        optimizer: state dict.
        scaler: state dict of the scale of gradients, empty unless training in fp16.
        epoch: epochs that are done.
        batch: batches of the next one that are done.
        sums: float64 (n,), of these batches: loss, weight, and what the learner counts.
        history: one record of figures for each epoch done.
        skipped: pictures left out so far.
        seconds: of training so far.
        rng: state of torch's generator.
        settings: of the run, JSON values.
        data: digest of what it is trained on.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    epoch: int
    batch: int
    sums: Tensor
    rng: Tensor
    settings: dict[str, Any]
    data: str
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0


def save_checkpoint(folder: Path, state: TrainingState) -> None:
    """Write the state into a run's folder, in place of the one before.

    Raises:
        OutputError: it cannot be written.
    """
    sink = io.BytesIO()
    torch.save({"format": _FORMAT} | {name: getattr(state, name) for name in TrainingState.__slots__}, sink)
    write_atomically(folder / CHECKPOINT_FILE, sink.getvalue())


def load_checkpoint(folder: Path) -> TrainingState:
    """Read the state of a run.

    Raises:
        TokenLabelsError: there is none, or it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise TokenLabelsError(f"{path}: no such file: there is nothing to resume, train without --resume.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found.pop("format") != _FORMAT:
            raise TokenLabelsError(f"{path}: is of another version of bavit: train without --resume.")
        return TrainingState(**found)
    except TokenLabelsError:
        raise
    except _DAMAGED:
        raise TokenLabelsError(
            f"{path}: is damaged or no checkpoint of bavit: train anew with --overwrite, or fetch it again."
        ) from None
