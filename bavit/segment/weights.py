"""Files of a segmenter: config.json and model.safetensors, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save
from torch import Tensor

from bavit.export.described import refuse_exported
from bavit.segment.config import SegmenterConfig
from bavit.weights import CONFIG_FILE, HUB_ID, WEIGHTS_FILE, fetch, read_safetensors
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError, TokenLabelsError

KIND = "bavit.Segmenter"
"""What config.json calls the model under `model_type`."""


def read_segmenter(name: str | Path) -> tuple[SegmenterConfig, dict[str, Tensor], Path]:
    """The config and weights of a segmenter, and the file of the weights.

    Args:
        name: a folder, such as a run of `bavit segment train`, or a Hugging Face hub id.

    Raises:
        TokenLabelsError: there is no such model, its files are damaged, or it is of another kind.
    """
    refuse_exported(name)
    folder = Path(name)
    if folder.is_file():
        raise TokenLabelsError(f"{folder}: is a file: name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}.")
    if not folder.is_dir() and not HUB_ID.fullmatch(str(name)):
        raise TokenLabelsError(f"{name}: no such folder, and no OWNER/NAME of the Hugging Face hub: name a run.")
    paths: dict[str, Path] = {}
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        path = folder / file if folder.is_dir() else fetch(str(name), file)
        if path is None or not path.is_file():
            raise TokenLabelsError(f"{folder / file}: no such file: name the folder of a run of bavit segment train.")
        paths[file] = path
    return read_segmenter_config(paths[CONFIG_FILE]), read_safetensors(paths[WEIGHTS_FILE]), paths[WEIGHTS_FILE]


def read_segmenter_config(path: Path) -> SegmenterConfig:
    """What a config.json says.

    Raises:
        TokenLabelsError: it is none of a segmenter, or damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise TokenLabelsError(f"{path}: is no JSON: the run is damaged, train it again or fetch it again.") from None
    if not isinstance(found, dict) or found.get("model_type") != KIND:
        raise TokenLabelsError(f"{path}: is not the config of a segmenter: name a run of bavit segment train.")
    try:
        return msgspec.convert(found, SegmenterConfig)
    except (msgspec.ValidationError, ParameterError) as fault:
        raise TokenLabelsError(f"{path}: does not describe a segmenter ({str(fault).rstrip('.')}).") from None


def config_json(config: SegmenterConfig) -> dict[str, Any]:
    """A config as JSON values."""
    return {"model_type": KIND, **asdict(config)}


def write_segmenter(folder: Path, config: SegmenterConfig, state: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors.

    Raises:
        OutputError: the folder cannot be written.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomically(folder / WEIGHTS_FILE, save(stored, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG_FILE, (json.dumps(config_json(config), indent=2) + "\n").encode())
