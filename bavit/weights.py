"""Files of weights: found, read with care, and loaded where they fit."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenlabels.errors import TokenLabelsError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FAULTS = (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError)

_BAD_PICKLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    pickle.UnpicklingError,
    struct.error,
)


def fetch(name: str, file: str) -> Path | None:
    """A file of a repository of the Hugging Face hub, from its cache where it is there; None: the repository has none.

    Raises:
        TokenLabelsError: there is no such repository, or it cannot be reached.
    """
    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError as fault:
        if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
            return None
        reason: Exception = fault
    except EntryNotFoundError:
        return None
    except HUB_FAULTS as fault:
        reason = fault
    raise TokenLabelsError(
        f"{name}: no such folder, and {file} of that name could not be fetched from the Hugging Face hub "
        f"({type(reason).__name__}): name a folder or file that is here."
    ) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        TokenLabelsError: it is missing, cut short, or no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "cut short, or no safetensors file"
        raise TokenLabelsError(f"{path}: cannot be read ({reason}): fetch it again.") from None


def read_pickled(path: Path, allowed: Sequence[type] = ()) -> object:
    """What `torch.save` stored, without running code of the file.

    Args:
        path: the file.
        allowed: types that it may hold besides tensors, numbers, strings and containers of them.

    Raises:
        TokenLabelsError: it is missing, cut short, or holds anything else.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # torch's, about what damage makes of a file
            return torch.load(path, map_location="cpu", weights_only=True)
    except _BAD_PICKLE:
        raise TokenLabelsError(f"{path}: cannot be read as weights alone (cut short, or it holds more).") from None


def load_weights(
    module: nn.Module, state: dict[str, Tensor], path: Path, *, strict: bool = True, assign: bool = False
) -> None:
    """Load a state dict that must fit.

    Args:
        module: receives the weights.
        state: name -> tensor.
        path: where they are from, for errors.
        strict: every tensor must be there, and no other.
        assign: take the tensors themselves, as a module on the device `meta` needs it, rather than copy them.

    Raises:
        TokenLabelsError: a tensor is missing, unknown, or of another shape.
    """
    wanted = module.state_dict()
    for name, tensor in state.items():
        if name in wanted and wanted[name].shape != tensor.shape:
            held, needed = tuple(tensor.shape), tuple(wanted[name].shape)
            raise TokenLabelsError(
                f"{path}: {name} has shape {held}, this model needs {needed}: it is another model's."
            )
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if strict and (missing or unknown):
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which this model has not"
        raise TokenLabelsError(f"{path}: {what}: it is another model's.")
    module.load_state_dict(state, strict=strict, assign=assign)
