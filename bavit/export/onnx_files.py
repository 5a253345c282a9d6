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
from tokenlabels.errors import ParameterError, TokenLabelsError

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

OLDEST_OPSET = 18
"""That torch's exporter writes; of older ones it writes this one."""

DEFAULT_OPSET = 20
"""The first with GELU as one operator, which onnxruntime joins with the layer before it."""

IR_VERSION = 10
"""Of ONNX's container, as torch writes it."""

_ABSURD = 100
_MAX_BYTES = 2**31 - 1

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
        ParameterError: torch does not write that opset.
        TokenLabelsError: the extra `export` is missing.
    """
    require_export()
    names = described.kind
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad(), silent():
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
    written = next((each.version for each in model.opset_import if not each.domain), 0)
    if written != opset or model.functions:
        raise ParameterError(
            f"opset {opset}: torch {torch.__version__} does not write it: use --opset {DEFAULT_OPSET}."
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    describe_onnx(model, msgspec.structs.replace(described, opset=opset, torch=str(torch.__version__)))
    return model


def check_opset(opset: int) -> None:
    """Refuse an opset that cannot be written, or that onnxruntime does not run.

    Raises:
        ParameterError: says which one does.
    """
    import onnxruntime as ort

    if opset < OLDEST_OPSET:
        raise ParameterError(f"opset {opset} is too old: the oldest that can be written is {OLDEST_OPSET}.")
    if not _runs(opset):
        newest = max((each for each in range(OLDEST_OPSET, min(opset, _ABSURD)) if _runs(each)), default=DEFAULT_OPSET)
        raise ParameterError(
            f"opset {opset} is too new: the newest that onnxruntime {ort.__version__} runs is {newest}."
        )


def serialised(model: onnx.ModelProto) -> bytes:
    """The content of a file, checked.

    Raises:
        TokenLabelsError: it is no valid ONNX, or larger than one file may be.
    """
    import onnx

    if model.ByteSize() >= _MAX_BYTES:
        raise TokenLabelsError(
            "the model is larger than 2 GiB, which no single ONNX file may be: export a smaller one."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as fault:
        reason = str(fault).partition("\n")[0]
        raise TokenLabelsError(f"the exported model is no valid ONNX ({reason}): try another --opset.") from None
    content: bytes = model.SerializeToString()
    return content


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


def _runs(opset: int) -> bool:
    """Whether onnxruntime knows an opset."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    if opset >= _ABSURD:
        return False
    here, there = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [here], [there])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  onnxruntime's faults have no common base
        return False
    return True


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
def silent() -> Iterator[None]:
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
