"""An ONNX file run by onnxruntime, which trusts neither what the file says nor where it points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bavit.environment import require_export
from bavit.export.described import INPUTS, OUTPUTS, Described
from tokenlabels.errors import ParameterError, TokenLabelsError

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {"logits": "tensor(float)", "boxes": "tensor(float)", "keep": "tensor(bool)"}


class OnnxGraph:
    """An ONNX file of `bavit export`, ready to run.

    Args:
        path: the file.
        described: what it says of itself.
        threads: of the CPU; None: as many as torch has.
        device: `cpu` or `cuda`.

    Attributes:
        runtime: `onnx`.
        provider: of onnxruntime.

    Raises:
        ParameterError: onnxruntime has no such device here.
        TokenLabelsError: the file is damaged, points to other files, or has other inputs and outputs than it says; or
            the extra `export` is missing.
    """

    runtime = "onnx"

    def __init__(self, path: Path, described: Described, threads: int | None = None, device: str = "cpu") -> None:
        require_export()
        self._path, self._described = path, described
        _check_whole(path)
        self.provider = provider_of(device)
        self._session = self._opened(threads or torch.get_num_threads())
        self._names = OUTPUTS[described.kind]
        self._check_ends()

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `runtime.Graph`."""
        fed = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}
        try:
            found = self._session.run(list(self._names), fed)
        except Exception as fault:  # noqa: BLE001  onnxruntime's have no class in common
            raise TokenLabelsError(f"{self._path}: onnxruntime cannot run it ({_reason(fault)}).") from None
        return {name: torch.from_numpy(value) for name, value in zip(self._names, found, strict=True)}

    def _opened(self, threads: int) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait by spinning take the cores from what comes between two graphs: the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            return onnxruntime.InferenceSession(str(self._path), options, providers=[self.provider])
        except Exception as fault:  # noqa: BLE001  onnxruntime's have no class in common
            raise TokenLabelsError(
                f"{self._path}: onnxruntime {onnxruntime.__version__} cannot load it ({_reason(fault)})."
            ) from None

    def _check_ends(self) -> None:
        """Make sure that inputs and outputs are those of the kind of file that it says it is."""
        said = self._described
        side = (said.bavit or {}).get("image_size")
        sizes = {"pixels": said.image_size, "bavit_pixels": side if isinstance(side, list) else ()}
        ends = {each.name: each for each in self._session.get_inputs()}
        wanted = {name: [3, *sizes[name]] for name in INPUTS[said.kind]}
        fine = ends.keys() == wanted.keys() and all(
            ends[name].type == "tensor(float)" and list(ends[name].shape[1:]) == shape for name, shape in wanted.items()
        )
        gives = {each.name: each.type for each in self._session.get_outputs()}
        if not fine or gives != {name: _TYPES[name] for name in self._names}:
            raise TokenLabelsError(
                f"{self._path}: takes and gives other things than a file of kind {said.kind}, as which it describes "
                "itself: export it again."
            )


def provider_of(device: str) -> str:
    """What onnxruntime calls a device.

    Raises:
        ParameterError: this onnxruntime has none.
        TokenLabelsError: the extra `export` is missing.
    """
    require_export()
    import onnxruntime

    wanted, there = PROVIDERS.get(device), onnxruntime.get_available_providers()
    if wanted is None or wanted not in there:
        raise ParameterError(
            f"--device {device}: onnxruntime has {', '.join(there)} here: use cpu, or install onnxruntime-gpu."
        )
    return wanted


def _check_whole(path: Path) -> None:
    """Make sure that all of a file is in it: what it points to may lie anywhere."""
    import onnx

    model = onnx.load_model(str(path), load_external_data=False)
    outside = onnx.TensorProto.EXTERNAL
    if any(each.data_location == outside or each.external_data for each in _tensors(model)):
        raise TokenLabelsError(f"{path}: keeps weights in other files, which are not read: export it again.")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message of ONNX, wherever it stands."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if not hasattr(value, "ListFields") else [value]:
                if hasattr(each, "ListFields"):
                    yield from _tensors(each)


def _reason(fault: Exception) -> str:
    """The first line of what onnxruntime says."""
    return str(fault).partition("\n")[0][:300]
