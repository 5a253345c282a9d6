"""Exported files that are made by hand: they answer the same to every picture, and take no time to make."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bavit.export.described import KEY, Described

Answers = dict[str, NDArray[Any]]

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.bool_): TensorProto.BOOL}


def constant_model(described: Described, answers: Answers) -> onnx.ModelProto:
    """A model that gives `answers`, each repeated for all images of the batch.

    Args:
        described: what it says of itself; says its inputs, too.
        answers: by name of output, without the batch.
    """
    sizes = {"pixels": described.image_size, "bavit_pixels": (described.bavit or {}).get("image_size")}
    names = ["pixels"] if described.bavit is None else ["bavit_pixels", "pixels"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, *(sizes[name] or ())]) for name in names
    ]
    nodes = [helper.make_node("Shape", [names[0]], ["count"], start=0, end=1)]
    outputs, tensors = [], []
    for name, value in answers.items():
        tensors += [
            numpy_helper.from_array(value[None], f"{name}_of_one"),
            numpy_helper.from_array(np.array(value.shape, np.int64), f"{name}_shape"),
        ]
        nodes += [
            helper.make_node("Concat", ["count", f"{name}_shape"], [f"{name}_all"], axis=0),
            helper.make_node("Expand", [f"{name}_of_one", f"{name}_all"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(name, _TYPES[value.dtype], ["batch", *value.shape]))
    graph = helper.make_graph(nodes, "constant", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return say(model, described)


def say(model: onnx.ModelProto, described: Described) -> onnx.ModelProto:
    """The same model, which says another thing of itself."""
    found: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    del found.metadata_props[:]
    found.metadata_props.add(key=KEY, value=msgspec.json.encode(described).decode())
    return found


def changed(path: Path, place: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of a file at `place` in which something is changed."""
    model = onnx.load_model(str(path), load_external_data=False)
    change(model)
    place.write_bytes(model.SerializeToString())
    return place


def with_program(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A `.pt2` whose program was changed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(sink, "w") as other:
        for entry in archive.infolist():
            held = archive.read(entry)
            if entry.filename.endswith("models/model.json"):
                program = json.loads(held)
                change(program)
                held = json.dumps(program).encode()
            other.writestr(entry.filename, held)
    return sink.getvalue()
