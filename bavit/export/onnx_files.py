"""ONNX files: written from a graph, whole and self-contained, and run with onnxruntime on the CPU."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn

from bavit.environment import require_export
from bavit.export.described import INPUTS, KEY, OUTPUTS, Described
from tokenlabels.errors import TokenLabelsError

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

DEFAULT_OPSET = 18

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""The outputs of an exported file for its inputs, both in order."""


def to_onnx(graph: nn.Module, examples: Sequence[Tensor], described: Described, opset: int) -> onnx.ModelProto:
    """A graph as an ONNX model with any number of images at a time.

    Args:
        graph: in evaluation mode; of `bavit.export.graphs`.
        examples: inputs of 2 images.
        described: kept under the metadata key `bavit`.
        opset: of ONNX's own operators.

    Raises:
        TokenLabelsError: the extra `export` is missing.
    """
    require_export()
    names = described.kind
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad(), _silent():
        warnings.simplefilter("ignore")  # torch's, about its own use of torch
        program = torch.onnx.export(
            graph,
            tuple(examples),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in examples),
            input_names=list(INPUTS[names]),
            output_names=list(OUTPUTS[names]),
            custom_translation_table=_translations(),
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    describe_onnx(model, msgspec.structs.replace(described, opset=opset, torch=str(torch.__version__)))
    return model


def describe_onnx(model: onnx.ModelProto, described: Described) -> None:
    """Let a model say what it is."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=described.encoded())
    model.producer_name, model.producer_version = "bavit", described.version


def open_onnx(file: Path | bytes, threads: int | None = None) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        file: its path, or its content.
        threads: at work within an operator; None: as onnxruntime finds best.

    Raises:
        TokenLabelsError: onnxruntime cannot run it, or the extra `export` is missing.
    """
    require_export()
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(
            file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as fault:  # noqa: BLE001  onnxruntime's faults have no common base
        reason = str(fault).partition("\n")[0]
        name = "the exported model" if isinstance(file, bytes) else str(file)
        raise TokenLabelsError(f"{name}: onnxruntime {ort.__version__} cannot run it ({reason}).") from None


def runner_of(session: ort.InferenceSession) -> Run:
    """Inputs to outputs, tensors on the CPU."""
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: value.detach().cpu().float().numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, fed)]

    return run


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX for what the exporter does not know, or writes in more steps than it takes."""
    from onnxscript import opset18 as op

    def stable_sort(self: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001  it is
        """Of equals TopK takes the one of the lower index first."""
        return op.TopK(self, op.Shape(self, start=dim, end=dim + 1), axis=dim, largest=descending)

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        """Without mask or dropout; both matrices are made here, which on CPUs is as fast as the operator Attention."""
        scale = op.Constant(value_float=float(query.shape[-1]) ** -0.5)
        scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    return {
        torch.ops.aten.sort.stable: stable_sort,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch tells of every step it takes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
