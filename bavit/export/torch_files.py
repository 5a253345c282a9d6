"""Files of `torch.export` (.pt2): written from a graph, and read with care.

Such a file may hold pickles, expressions that are evaluated and names of any function of torch. Those that are written
here hold none of the first, of the second only sizes, of the third only operators on tensors; others are not opened.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from bavit.export.described import KEY, Described
from bavit.export.onnx_files import Run
from tokenlabels.errors import TokenLabelsError

_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+")
_SIZE = re.compile(r"(?:Add|Mul|Integer|Symbol|positive|integer|True|'s\d+'|-?\d+|[(), =])*")
_TENSORS = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_CONFIGS = re.compile(r"data/(?:weights|constants)/model_\w+_config\.json")
_PROGRAM = "models/model.json"
_EMPTY = "data/sample_inputs/model.pt"
_SMALL = {"archive_format", "archive_version", ".data/version", "byteorder", ".data/serialization_id", f"extra/{KEY}"}
_MAX_JSON = 1 << 28


def to_torch(graph: nn.Module, examples: Sequence[Tensor], described: Described) -> bytes:
    """A graph as the content of a .pt2 file, for any number of images at a time.

    Args:
        graph: in evaluation mode; of `bavit.export.graphs`.
        examples: inputs of 2 images.
        described: kept as the extra file `bavit`.
    """
    batch = torch.export.Dim("batch", min=1)
    sink = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's, about its own use of torch
        program = torch.export.export(graph, tuple(examples), dynamic_shapes=tuple({0: batch} for _ in examples))
        program._example_inputs = None  # else they are stored, as a pickle
        named = msgspec.structs.replace(described, torch=str(torch.__version__))
        torch.export.save(program, sink, extra_files={KEY: named.encoded()})
    return sink.getvalue()


def open_torch(file: Path | bytes) -> Run:
    """The graph in a .pt2 file, as a function of its inputs.

    Args:
        file: its path, or its content.

    Raises:
        TokenLabelsError: it cannot be read, or holds what `to_torch` does not write.
    """
    name = "the exported model" if isinstance(file, bytes) else str(file)
    try:
        content = file if isinstance(file, bytes) else file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            strange = next(_strange(archive), None)
    except OSError as fault:
        raise TokenLabelsError(f"{name}: cannot be read ({fault.strerror or 'unreadable'}).") from None
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, RecursionError, EOFError):
        raise TokenLabelsError(f"{name}: is no file of torch.export, or is cut short: export it again.") from None
    if strange is not None:
        raise TokenLabelsError(
            f"{name}: holds {strange[:60]!r}, which `bavit export` does not write: not opened, export it again."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as fault:  # noqa: BLE001  torch's faults about damaged programs are of any kind
        reason = str(fault).partition("\n")[0]
        raise TokenLabelsError(
            f"{name}: torch {torch.__version__} cannot read it ({reason}): export it again."
        ) from None

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            found = module(*(each.detach().cpu().float() for each in inputs))
        return [found] if isinstance(found, Tensor) else list(found)

    return run


def _strange(archive: zipfile.ZipFile) -> Iterator[str]:
    """What an archive holds and `to_torch` does not write."""
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if (name == _EMPTY and not entry.file_size) or name in _SMALL or _TENSORS.fullmatch(name):
            continue
        if not (name == _PROGRAM or _CONFIGS.fullmatch(name)) or entry.file_size > _MAX_JSON:
            yield entry.filename
            continue
        for key, value in _members(json.loads(archive.read(entry))):
            if key == "use_pickle" and value is not False:
                yield key
            if key == "target" and not (isinstance(value, str) and _OPERATOR.fullmatch(value)):
                yield str(value)
            if key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
                yield str(value)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value in a JSON document, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
