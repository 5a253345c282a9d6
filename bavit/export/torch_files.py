"""Files of `torch.export` (.pt2): written from a graph, and read with care.

What such a file may hold, and what of it is read, is told in `torch_check.py`.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from bavit.export.described import KEY, Described
from bavit.export.onnx_files import Run, silent
from bavit.export.torch_check import StrangeError, cleaned
from tokenlabels.errors import TokenLabelsError


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
        content = cleaned(file if isinstance(file, bytes) else file.read_bytes(), KEY)
    except StrangeError as fault:
        raise TokenLabelsError(
            f"{name}: holds {str(fault)[:60]!r}, which `bavit export` does not write: not opened, export it again."
        ) from None
    except OSError as fault:
        raise TokenLabelsError(f"{name}: cannot be read ({fault.strerror or 'unreadable'}).") from None
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, RecursionError, EOFError):
        raise TokenLabelsError(f"{name}: is no file of torch.export, or is cut short: export it again.") from None
    try:
        with warnings.catch_warnings(), silent():
            warnings.simplefilter("ignore")
            module = torch.export.load(io.BytesIO(content)).module(check_guards=False)
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
