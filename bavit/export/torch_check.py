"""What is let through to `torch.export.load`, which trusts its file: it can be made to run any code in five ways.

It unpickles example inputs, weights and constants where the file says so; it evaluates the expressions of sizes; it
takes any function of torch as an operator; it pastes names of inputs and conditions on them ("guards") into Python
code; and it loads compiled libraries. So the file is taken apart and put together anew: of tensors their bytes, and a
program of which every word is looked at. What `bavit export` does not write is not opened.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

_WORD = re.compile(r"[\w.+]{0,256}", re.ASCII)
_NAME = re.compile(r"\w{0,256}", re.ASCII)
_SIZE = re.compile(r"(?:Add|Mul|Integer|Symbol|positive|integer|True|'s\d{1,4}'|-?\d{1,12}|[(), =]){1,64}", re.ASCII)
_TREE = re.compile(r'(?:null|\d|"(?:type|context|children_spec|builtins\.(?:tuple|list|dict)|null|\[\])"|[\[\]{}:, ])*')
_TENSORS = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,6}", re.ASCII)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PROGRAM, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_SMALL = ("archive_format", "archive_version", ".data/version", "byteorder", ".data/serialization_id")
_MAX_JSON, _MAX_SMALL, _MAX_DEPTH = 1 << 26, 1 << 24, 64

_TENSOR_OPERATORS = (
    "add.Tensor arange.default arange.start cat.default clone.default contiguous.default conv2d.default div.Tensor "
    "dropout.default embedding.default expand.default flatten.using_ints full.default gather.default gelu.default "
    "index.Tensor layer_norm.default linear.default matmul.default maximum.default minimum.default mul.Tensor "
    "ones_like.default pad.default permute.default relu.default repeat.default reshape.default scatter.src "
    "scatter.value scaled_dot_product_attention.default select.int sigmoid.default slice.Tensor softmax.int "
    "sort.stable split_with_sizes.default stack.default sub.Tensor sym_size.int to.dtype topk.default transpose.int "
    "unbind.int unsqueeze.default view.default where.self zeros.default zeros_like.default"
)
OPERATORS = {f"torch.ops.aten.{name}" for name in _TENSOR_OPERATORS.split()} | {
    f"_operator.{name}" for name in ("add", "floordiv", "getitem", "mul", "sub")
}
"""What a graph may consist of: arithmetic on tensors, none of which reads a file or calls anything."""


class StrangeError(Exception):
    """Holds what `bavit export` does not write."""


def cleaned(content: bytes, extra: str) -> bytes:
    """An archive of `torch.export` without anything that could run.

    Args:
        content: of the file, untrusted.
        extra: name of the one extra file that it may hold.

    Returns:
        An archive with the same tensors and the same graph; example inputs, conditions and remarks are left out.

    Raises:
        StrangeError: says what it holds that is not let through.
        ValueError, RuntimeError, ...: whatever `zipfile` and `json` raise where it is damaged.
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(sink, "w") as clean:
        seen: set[str] = set()
        for entry in archive.infolist():
            root, _, name = entry.filename.partition("/")
            if entry.compress_type != zipfile.ZIP_STORED or name in seen or not _NAME.fullmatch(root):
                raise StrangeError(entry.filename)
            seen.add(name)
            clean.writestr(f"model/{name}", _checked(archive, entry, name, extra))
        if _INPUTS not in seen:
            clean.writestr(f"model/{_INPUTS}", b"")
    return sink.getvalue()


def _checked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, extra: str) -> bytes:
    """The content of a member, as it may be read."""
    if _TENSORS.fullmatch(name):
        return archive.read(entry)
    if name == _INPUTS:
        return b""
    if name in (*_SMALL, f"extra/{extra}") and entry.file_size <= _MAX_SMALL:
        return archive.read(entry)
    if name not in (_PROGRAM, *_CONFIGS) or entry.file_size > _MAX_JSON:
        raise StrangeError(entry.filename)
    found = json.loads(archive.read(entry))
    if name == _PROGRAM:
        found = _without_remarks(found)
        if not isinstance(found, dict):
            raise StrangeError(name)
        found["guards_code"] = []
    for key, value in _members(found):
        _check(key, value)
    return json.dumps(found).encode()


def _check(key: str, value: Any) -> None:
    """Look at one member of a document, what is nested in it apart."""
    if not _WORD.fullmatch(key):
        raise StrangeError(key)
    if key == "use_pickle" and value is not False:
        raise StrangeError(key)
    if key in ("as_operator", "as_custom_obj", "as_graph", "as_opaque") and value is not None:
        raise StrangeError(key)
    if key in ("target", "expr_str", "path_name") and not isinstance(value, str):
        raise StrangeError(f"{key}: {value}")
    words = value if isinstance(value, list) else [value]
    for word in words:
        if isinstance(word, str) and not _fine(key, word):
            raise StrangeError(word)


def _fine(key: str, word: str) -> bool:
    if key == "target":
        return word in OPERATORS
    pattern = {"expr_str": _SIZE, "in_spec": _TREE, "out_spec": _TREE, "name": _NAME}.get(key, _WORD)
    return pattern.fullmatch(word) is not None


def _without_remarks(value: Any, depth: int = 0) -> Any:
    """A document without `metadata`: traces of the source, and names of modules and functions that were traced."""
    if depth > _MAX_DEPTH:
        raise StrangeError("nested beyond all measure")
    if isinstance(value, dict):
        return {
            key: {} if key == "metadata" and isinstance(each, dict) else _without_remarks(each, depth + 1)
            for key, each in value.items()
        }
    return [_without_remarks(each, depth + 1) for each in value] if isinstance(value, list) else value


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value in a document, however deep; a list in a list has the name of no member."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting += each.values()
        elif isinstance(each, list):
            yield "", [word for word in each if isinstance(word, str)]
            waiting += each
