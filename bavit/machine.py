"""A device and a precision: where models are run and timed."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from bavit.device import pick_device, pick_precision


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


def processor_name() -> str:
    """What the processor of this machine calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # anywhere but on Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within, torch computes with so many threads; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
