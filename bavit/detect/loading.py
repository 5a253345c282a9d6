"""Detectors by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bavit.detect.config import SIZES
from bavit.detect.yolos import Yolos
from tokenlabels.errors import ParameterError

RANDOM = "random:"
"""Before the name of a size: a detector that was never trained."""


def load_detector(name: str, classes: Sequence[str] | None = None) -> Yolos:
    """A detector on the CPU, in evaluation mode.

    Args:
        name: a folder, a hub id or a `.pth`, see `Yolos.from_pretrained`; or `random:tiny`, `random:small`,
            `random:base` or `random:small_dWr`: random weights, always the same, for timing.
        classes: names of the classes of a random detector, by default COCO's.

    Raises:
        ParameterError: there is no such size.
        TokenLabelsError: there is no such model, its files are damaged, or it is no YOLOS.
    """
    if not is_random(name):
        return Yolos.from_pretrained(name)
    size = name.removeprefix(RANDOM)
    if size not in SIZES:
        raise ParameterError(f"{name}: there is no such size: use {', '.join(RANDOM + each for each in SIZES)}.")
    config = SIZES[size] if classes is None else replace(SIZES[size], labels=tuple(classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Yolos(config).eval()


def is_random(name: str) -> bool:
    """Whether a detector of this name was never trained."""
    return name.startswith(RANDOM)
