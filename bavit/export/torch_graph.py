"""A `.pt2` run by torch."""

from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from torch import Tensor


class TorchGraph:
    """stub"""

    runtime = "torch"
    provider = "cpu"

    def __init__(self, path: Path, threads: int | None) -> None:
        raise NotImplementedError

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError
