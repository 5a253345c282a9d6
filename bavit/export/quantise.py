"""Dynamic quantisation: the weights of linear layers as int8, their inputs made uint8 as they come.

Seven of the eight bits are used, for x86 processors without VNNI cut off sums of pairs of products; of this nothing
could be seen in AP, nor of one scale for a whole layer.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bavit.environment import require_export
from bavit.export.described import Described
from bavit.export.onnx_files import describe_onnx

if TYPE_CHECKING:
    import onnx

LINEAR = ("MatMul", "Gemm")


def quantise(model: onnx.ModelProto, described: Described) -> onnx.ModelProto:
    """An ONNX model with int8 weights, one scale for each output of a layer.

    Products of two activations, as in attention, stay as they are, and so does the convolution of BAViT's patches.

    Args:
        model: of `to_onnx`; not changed.
        described: what it says of itself.

    Raises:
        TokenLabelsError: the extra `export` is missing.
    """
    require_export()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # onnxruntime's advice to those who call it
    try:
        with tempfile.TemporaryDirectory(prefix="bavit-") as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                onnx.ModelProto.FromString(model.SerializeToString()),
                path,
                op_types_to_quantize=list(LINEAR),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            found = onnx.load_model(str(path))
    finally:
        logger.setLevel(level)
    describe_onnx(found, msgspec.structs.replace(described, quantised=True))
    return found
