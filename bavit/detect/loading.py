"""Detectors by name, and where they run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from bavit.detect.config import SIZES
from bavit.detect.yolos import Yolos
from bavit.device import pick_device, pick_precision
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


@dataclass(frozen=True, slots=True)
class Machine:
    """Where models run, and in which precision.

    Attributes:
        device: of torch, such as `cuda`.
        precision: `32`, `bf16` or `fp16`.
    """

    device: str
    precision: str

    @classmethod
    def pick(cls, device: str, precision: str) -> Machine:
        """What `auto` stands for here.

        Raises:
            ParameterError: a device or precision that is not to be had here.
        """
        picked = pick_device(device)
        return cls(picked, pick_precision(precision, picked))

    def autocast(self) -> AbstractContextManager[object]:
        """Around every call of a model."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return contextlib.nullcontext() if kind is None else torch.autocast(self.device, dtype=kind)

    def describe(self) -> dict[str, str]:
        """Device, precision, threads and version of torch, as text."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        threads = {"threads": str(torch.get_num_threads())} if self.device == "cpu" else {}
        return {"device": name, "precision": self.precision, **threads, "torch": str(torch.__version__)}
