"""Files of a YOLOS: transformers' format, in a folder or on the Hugging Face hub, and its authors' checkpoints."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from bavit.detect.config import MAX_SIDE, SIZES, YolosConfig
from bavit.detect.hub_format import (
    PREPROCESSOR_FILE,
    config_json,
    from_hub_names,
    processor_json,
    read_config,
    to_hub_names,
    unnamed,
)
from bavit.export.described import refuse_exported
from bavit.parts import DETECTOR_FOLDER, check_part
from bavit.weights import CONFIG_FILE, HUB_ID, WEIGHTS_FILE, fetch, read_pickled, read_safetensors
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import ParameterError, TokenLabelsError

if TYPE_CHECKING:
    from bavit.detect.yolos import Yolos

_TINY = SIZES["tiny"]
_PICKLED = "pytorch_model.bin"
_INDEX = ".index.json"
_IMAGE_SIZES = {50 * 83: (800, 1333), 32 * 54: (512, 864), 50 * 84: (800, 1344)}
"""Patches that the published checkpoints store positions for -> the (H, W) they were trained for."""
_HEADS = {330: 6}
"""Heads of widths that are no multiple of 64."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the shapes of a state dict say; the attributes are those of `YolosConfig`."""

    dim: int
    depth: int
    mlp_hidden: int
    patch: int
    detection_tokens: int
    positions: int
    mid_positions: bool
    qkv_bias: bool
    classes: int


def read_detector(name: str | Path) -> tuple[YolosConfig, dict[str, Tensor]]:
    """The config and weights of a detector.

    The weights agree with the config in everything that its size depends on, so that a model made of it is as large as
    they are; `bavit.weights.load_weights` finds the rest.

    Args:
        name: a folder with `config.json` and weights as transformers writes them; a Hugging Face hub id, such as
            `hustvl/yolos-tiny`; or a checkpoint of the YOLOS authors (`.pth`), whose normalisation is ImageNet's.

    Returns:
        The config, and float32 tensors by the names of `Yolos.state_dict`.

    Raises:
        TokenLabelsError: there is no such model, its files are damaged or contradict each other, or it is no YOLOS.
    """
    refuse_exported(name)
    path = Path(name)
    if path.is_file():
        return _read_original(path)
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            check_part(path, DETECTOR_FOLDER)
        return _read_hub_format(partial(_held, path), path)
    if not HUB_ID.fullmatch(str(name)) or path.suffix in (".pth", ".pt"):
        raise TokenLabelsError(f"{name}: no such file or folder, and no OWNER/NAME of the Hugging Face hub.")
    return _read_hub_format(partial(fetch, str(name)), path)


def write_detector(folder: Path, model: Yolos) -> None:
    """Write a detector as transformers does: config.json, model.safetensors, preprocessor_config.json.

    Raises:
        OutputError: the folder cannot be written.
    """
    state = {name: value.contiguous() for name, value in to_hub_names(_plain(model)).items()}
    write_atomically(folder / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
    for file, content in (
        (PREPROCESSOR_FILE, processor_json(model.config)),
        (CONFIG_FILE, config_json(model.config)),
    ):
        write_atomically(folder / file, (json.dumps(content, indent=2) + "\n").encode())


def write_original(path: Path, model: Yolos) -> None:
    """Write a checkpoint as the YOLOS authors' code reads it: weights, sizes of positions and input, no class names.

    Raises:
        OutputError: it cannot be written.
        ParameterError: that format has no place for the number of heads, the norms' epsilon or the normalisation.
    """
    config = model.config
    kept = (config.layer_norm_eps, config.mean, config.std) == (_TINY.layer_norm_eps, _TINY.mean, _TINY.std)
    if config.heads != _heads(config.dim) or not kept:
        raise ParameterError(
            "an original checkpoint says nothing of heads, layer_norm_eps, mean and std, and these are not YOLOS's "
            "own: write transformers' format."
        )
    arguments = {
        "det_token_num": config.detection_tokens,
        "init_pe_size": list(config.image_size),
        "mid_pe_size": list(config.image_size) if config.mid_positions else None,
        "eval_size": config.shortest_edge,
    }
    sink = io.BytesIO()
    torch.save({"model": _plain(model), "args": arguments}, sink)
    write_atomically(path, sink.getvalue())


def _plain(model: Yolos) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def _held(folder: Path, file: str) -> Path | None:
    path = folder / file
    return path if path.is_file() else None


def _read_hub_format(find: Callable[[str], Path | None], name: Path) -> tuple[YolosConfig, dict[str, Tensor]]:
    """A detector in transformers' format.

    Args:
        find: gives the path of a file by its name, None where there is none.
        name: of the whole, for errors.
    """
    described = find(CONFIG_FILE)
    if described is None:
        raise TokenLabelsError(f"{name / CONFIG_FILE}: no such file: name a detector's folder.")
    for file, read in ((WEIGHTS_FILE, read_safetensors), (_PICKLED, _read_pickled_state)):
        whole = find(file)
        index = None if whole else find(file + _INDEX)
        if whole is None and index is None:
            continue
        path = whole or index or name
        parts = [whole] if whole else _shards(path, find)
        stored = {key: tensor for part in parts for key, tensor in read(part).items()}
        state = _floats(from_hub_names(stored, path), path)
        facts = _facts(state, path)
        config = read_config(described, find(PREPROCESSOR_FILE), facts.classes - 1)
        _check(config, facts, described, path)
        return config, state
    raise TokenLabelsError(f"{name / WEIGHTS_FILE}: no such file: the weights are missing: fetch them again.")


def _shards(index: Path, find: Callable[[str], Path | None]) -> list[Path]:
    """The files that large weights are cut into."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        plain = all(Path(name).name == name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise TokenLabelsError(f"{index}: is no index of weights: fetch it again.")
    found = [(name, find(name)) for name in names]
    for name, path in found:
        if path is None:
            raise TokenLabelsError(f"{index.parent / name}: no such file: fetch it again.")
    return [path for _, path in found if path is not None]


def _read_pickled_state(path: Path) -> dict[str, Tensor]:
    return _state_of(read_pickled(path), path)


def _state_of(found: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise TokenLabelsError(f"{path}: holds no state dict: name the weights of a YOLOS.")
    return dict(found)


def _read_original(path: Path) -> tuple[YolosConfig, dict[str, Tensor]]:
    """A checkpoint of the YOLOS authors: what the weights do not say comes from the arguments of its training."""
    if path.suffix == ".safetensors":
        raise TokenLabelsError(
            f"{path}: says nothing of the model it is for: name the folder that holds {CONFIG_FILE}."
        )
    found = read_pickled(path, [argparse.Namespace])
    arguments = found.get("args") if isinstance(found, Mapping) else None
    stored = found["model"] if isinstance(found, Mapping) and "model" in found else found
    state = _floats(_state_of(stored, path), path)
    facts = _facts(state, path)
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    image_size, shortest, longest = _input_of(given if isinstance(given, Mapping) else {}, facts, path)
    labels = _TINY.labels if facts.classes == _TINY.classes else unnamed(facts.classes - 1)
    try:
        config = YolosConfig(
            dim=facts.dim,
            depth=facts.depth,
            heads=_heads(facts.dim),
            mlp_hidden=facts.mlp_hidden,
            patch=facts.patch,
            image_size=image_size,
            detection_tokens=facts.detection_tokens,
            labels=labels,
            qkv_bias=facts.qkv_bias,
            mid_positions=facts.mid_positions,
            shortest_edge=shortest,
            longest_edge=longest,
            named=labels == _TINY.labels,
        )
    except ParameterError as fault:
        raise TokenLabelsError(f"{path}: {fault}") from None
    _check(config, facts, path, path)
    return config, state


def _heads(dim: int) -> int:
    """Heads of a width, as YOLOS and DeiT have them."""
    return _HEADS.get(dim, max(1, dim // 64))


def _input_of(arguments: Mapping[str, object], facts: _Facts, path: Path) -> tuple[tuple[int, int], int, int]:
    """(H, W) of the stored positions, and the edges of the input."""
    patches = facts.positions - 1 - facts.detection_tokens
    said = arguments.get("init_pe_size")
    size = _IMAGE_SIZES.get(patches) if facts.patch == 16 else None
    if isinstance(said, Sequence) and len(said) == 2 and all(isinstance(side, int) and side > 0 for side in said):
        height, width = said
        if (height // facts.patch) * (width // facts.patch) == patches:
            size = height, width
    if size is None:
        raise TokenLabelsError(
            f"{path}: stores positions of {patches} patches, and neither args.init_pe_size nor a size of YOLOS's own "
            f"tells their rows and columns: write it as a folder whose {CONFIG_FILE} gives image_size."
        )
    shortest = arguments.get("eval_size")
    if not isinstance(shortest, int) or not 0 < shortest <= MAX_SIDE // 2:
        shortest = _TINY.shortest_edge if facts.dim == _TINY.dim else SIZES["small"].shortest_edge
    return size, shortest, shortest * 1333 // 800


def _floats(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """As float32.

    Raises:
        TokenLabelsError: a tensor holds no plain numbers.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise TokenLabelsError(f"{path}: {name} is {tensor.dtype}, {tensor.layout}: only plain floats are read.")
    return {name: tensor.float() for name, tensor in state.items()}


def _facts(state: Mapping[str, Tensor], path: Path) -> _Facts:
    """What the shapes of weights say.

    Raises:
        TokenLabelsError: they are those of no YOLOS.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = state.get(name)
        if tensor is None or tensor.ndim != rank or not tensor.numel():
            what = "lacks" if tensor is None else f"has a shape {tuple(tensor.shape)} of"
            raise TokenLabelsError(f"{path}: {what} {name}: it holds no YOLOS, or is damaged.")
        return tuple(tensor.shape)

    blocks = {name.split(".")[2] for name in state if name.startswith("backbone.blocks.")}
    tokens, dim = shape("backbone.det_token", 3)[1:]
    mid = "backbone.mid_pos_embed" in state
    return _Facts(
        dim=dim,
        depth=len(blocks),
        mlp_hidden=shape("backbone.blocks.0.mlp.fc1.weight", 2)[0],
        patch=shape("backbone.patch_embed.proj.weight", 4)[-1],
        detection_tokens=tokens,
        positions=shape("backbone.pos_embed", 3)[1],
        mid_positions=mid,
        qkv_bias="backbone.blocks.0.attn.qkv.bias" in state,
        classes=shape("class_embed.layers.2.weight", 2)[0],
    )


def _check(config: YolosConfig, facts: _Facts, described: Path, path: Path) -> None:
    """Compare a config with the weights it is for.

    Raises:
        TokenLabelsError: they contradict each other.
    """
    words = {
        "dim": "a token's width",
        "depth": "blocks",
        "mlp_hidden": "width of an MLP",
        "patch": "pixels of a patch's side",
        "detection_tokens": "detection tokens",
        "positions": f"stored positions (those of image_size {config.image_size[0]} x {config.image_size[1]})",
        "mid_positions": "positions after every block",
        "qkv_bias": "biases of queries, keys and values",
        "classes": "classes with no-object",
    }
    for name, what in words.items():
        said, held = getattr(config, name), getattr(facts, name)
        if said != held:
            raise TokenLabelsError(
                f"{described}: says {what}: {_shown(said)}, but {path.name} has {_shown(held)}: they are not of one "
                "model."
            )


def _shown(value: bool | int) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
