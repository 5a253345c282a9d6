"""What bavit runs on: library versions and devices."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from tokenlabels.errors import TokenLabelsError

_PACKAGES = (
    "torch",
    "matplotlib",
    "torchvision",
    "timm",
    "lightning-fabric",
    "transformers",
    "safetensors",
    "huggingface-hub",
    "scipy",
)

_EXPORT = ("onnx", "onnxruntime", "onnxscript")


def require_extra() -> dict[str, str]:
    """The version of every package of the extra `bavit`.

    Raises:
        TokenLabelsError: one of them is not installed.
    """
    try:
        return {name: metadata.version(name) for name in _PACKAGES}
    except metadata.PackageNotFoundError as fault:
        raise TokenLabelsError(
            f"bavit needs its extra, {fault} is missing: pip install 'tokenlabels[bavit]' (uv run --extra bavit)."
        ) from None


def require_export() -> dict[str, str]:
    """The version of every package of the extra `export`: ONNX files are written and run with them.

    Raises:
        TokenLabelsError: one of them is not installed.
    """
    try:
        return {name: metadata.version(name) for name in _EXPORT}
    except metadata.PackageNotFoundError as fault:
        raise TokenLabelsError(
            f"ONNX needs another extra, {fault} is missing: pip install 'tokenlabels[bavit,export]' (uv run --extra "
            "bavit --extra export)."
        ) from None


def describe() -> dict[str, Any]:
    """Versions of Python and of every package of the extra `bavit`, CPU threads and accelerators.

    Raises:
        TokenLabelsError: the extra is not installed.
    """
    versions = require_extra()
    import torch

    devices = ["cpu"]
    devices += [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"python": platform.python_version(), **versions, "cpu_threads": torch.get_num_threads(), "devices": devices}
