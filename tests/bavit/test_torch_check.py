"""Files of `torch.export` that would run code when they are opened: none of it is run, and each is one sentence."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import with_program
from torch import Tensor, nn

from bavit.export.described import KEY, Described
from bavit.export.torch_check import cleaned
from bavit.export.torch_files import open_torch, to_torch
from tokenlabels.errors import TokenLabelsError

Program = dict[str, Any]


class Small(nn.Module):
    """A graph with weights, a constant, and sizes that depend on the batch."""

    ramp: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("ramp", torch.arange(3.0), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 2, 4) -> (2 * B, 3)."""
        found: Tensor = self.layer(pixels) + self.ramp
        return found.relu().flatten(0, 1)


@pytest.fixture(scope="module")
def graph() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def content(graph: Small) -> bytes:
    described = Described(kind="bavit", image_size=(2, 4), patches=1)
    return to_torch(graph, [torch.randn(2, 2, 4)], described)


def test_what_is_written_is_read_and_answers_the_same(graph: Small, content: bytes) -> None:
    run = open_torch(content)
    for batch in (1, 5):
        pixels = torch.randn(batch, 2, 4)
        assert torch.allclose(run([pixels])[0], graph(pixels))


def test_remarks_and_conditions_are_left_out(content: bytes) -> None:
    def remark(program: Program) -> None:
        program["guards_code"] = ["__import__('os').abort()"]
        program["graph_module"]["graph"]["nodes"][0]["metadata"] = {"stack_trace": "print('hello')"}

    cleansed = cleaned(with_program(content, remark), KEY)
    with zipfile.ZipFile(io.BytesIO(cleansed)) as archive:
        program = archive.read("model/models/model.json").decode()
    assert "abort" not in program
    assert "hello" not in program
    assert open_torch(with_program(content, remark))([torch.zeros(1, 2, 4)])[0].shape == (2, 3)


class Touch:
    """What makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def replaced(pattern: str, code: str) -> Callable[[Program], None]:
    """A program in whose text something else stands for a string."""

    def change(program: Program) -> None:
        text, count = re.subn(pattern, lambda _: json.dumps(code), json.dumps(program))
        assert count
        program.clear()
        program.update(json.loads(text))

    return change


def operator(name: str, word: str) -> Callable[[Program], None]:
    """An operator that calls a function with a word."""

    def change(program: Program) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = name
        node["inputs"] = [
            {"name": "", "arg": {"as_operator": "torch.os.system"}, "kind": 1},
            {"name": "", "arg": {"as_string": word}, "kind": 1},
        ]

    return change


def test_code_in_a_program_is_not_run(content: bytes, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    code = f"__import__('pathlib').Path({str(touched)!r}).touch()"
    for change in (
        replaced('"pixels"', f"x={code}"),
        replaced(r'"Symbol\([^"]*"', code),
        operator("_operator.call", f"touch {touched}"),
        operator("torch.ops.aten.relu.default", "word"),
        operator("torch.ops.aten.from_file.default", "word"),
        operator("torch.os.system", f"touch {touched}"),
    ):
        with pytest.raises(TokenLabelsError, match="which `bavit export` does not write") as raised:
            open_torch(with_program(content, change))
        assert "\n" not in str(raised.value)
        assert not touched.exists()


@pytest.mark.parametrize(
    "place", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/opaque_obj_0"]
)
def test_pickles_are_not_read(place: str, content: bytes, tmp_path: Path) -> None:
    touched, sink = tmp_path / "touched", io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(sink, "w") as other:
        root = archive.namelist()[0].partition("/")[0]
        for entry in archive.infolist():
            if not entry.filename.endswith(place):
                other.writestr(entry.filename, archive.read(entry))
        other.writestr(f"{root}/{place}", pickle.dumps(Touch(touched)))
    if "sample_inputs" in place:  # these are not needed, and left out
        open_torch(sink.getvalue())
    else:
        with pytest.raises(TokenLabelsError, match="which `bavit export` does not write"):
            open_torch(sink.getvalue())
    assert not touched.exists()


def test_weights_that_are_pickled_are_not_read(content: bytes) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(sink, "w") as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry).replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(TokenLabelsError, match="use_pickle"):
        open_torch(sink.getvalue())


def test_a_member_named_twice_or_compressed_is_not_read(content: bytes) -> None:
    twice, packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
            for name in names:
                other.writestr(name, archive.read(name))
    twice.write(content)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as other:
        other.writestr(names[0], b"")
    for sink in (twice, packed):
        with pytest.raises(TokenLabelsError, match="which `bavit export` does not write"):
            open_torch(sink.getvalue())
