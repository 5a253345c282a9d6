"""A `.pt2` file run by torch, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bavit.export.described import INPUTS, OUTPUTS, Described
from bavit.export.torch_files import open_torch
from tokenlabels.errors import TokenLabelsError


class TorchGraph:
    """A `.pt2` file of `bavit export`, ready to run.

    Args:
        path: the file.
        described: what it says of itself.

    Attributes:
        runtime: `torch`.
        provider: `cpu`.

    Raises:
        TokenLabelsError: see `open_torch`.
    """

    runtime, provider = "torch", "cpu"

    def __init__(self, path: Path, described: Described) -> None:
        self._path, self._described = path, described
        self._run = open_torch(path)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `runtime.Graph`."""
        kind = self._described.kind
        try:
            found = self._run([inputs[name] for name in INPUTS[kind]])
            return dict(zip(OUTPUTS[kind], found, strict=True))
        except Exception as fault:  # noqa: BLE001  a graph of another kind may fail in any way
            reason = str(fault).partition("\n")[0][:300]
            raise TokenLabelsError(
                f"{self._path}: takes and gives other things than a file of kind {kind}, as which it describes itself "
                f"({reason}): export it again."
            ) from None
