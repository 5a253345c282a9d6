"""Where a model runs, and in which precision."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tokenlabels.errors import ParameterError
from tokenlabels.threads import cores

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def pick_device(name: str) -> str:
    """`cpu`, `cuda` or `mps`; of `auto` the best there is.

    Raises:
        ParameterError: no such device here.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(each for each in ("cuda", "mps", "cpu") if available[each])
    if not available.get(name, False):
        have = ", ".join(each for each, there in available.items() if there)
        raise ParameterError(f"--device {name}: there is none here, only {have}.")
    return name


def pick_precision(name: str, device: str) -> str:
    """`32`, `bf16` or `fp16`; of `auto` bf16 where the hardware multiplies it, else 32.

    Raises:
        ParameterError: fp16 without CUDA.
    """
    if name == "auto":
        fast = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast or (device == "cpu" and _cpu_has_bf16()) else "32"
    if name == "fp16" and device != "cuda":
        raise ParameterError(f"--precision fp16 needs a CUDA device, this is {device}: use bf16 or 32.")
    return name


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself, as AVX512-BF16 and AMX do; elsewhere it is slower than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def make_fabric(device: str, precision: str) -> Fabric:
    """A Fabric on one device, or, under `torchrun`, on as many ranks as that started.

    Raises:
        ParameterError: a device or precision that is not to be had here.
    """
    from lightning_fabric import Fabric  # which takes a second to load, and only training needs

    kind = pick_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 else 1
    with _quiet():
        return Fabric(
            accelerator=kind,
            devices=local,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
            precision=_PRECISIONS[pick_precision(precision, kind)],  # type: ignore[arg-type]
        )


def default_workers() -> int:
    """Processes that decode pictures for one rank: one core is left to the model."""
    return min(8, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def is_first_rank() -> bool:
    """Whether this process is the one that talks, of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning tells of itself."""
    log = logging.getLogger("lightning_fabric")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
