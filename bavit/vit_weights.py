"""Weights of a timm ViT, fitted into another one: fewer blocks, positions and patches resampled."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bavit.export.described import refuse_exported
from bavit.weights import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_pickled, read_safetensors
from tokenlabels.errors import TokenLabelsError

_PREFIXES = ("vit.", "backbone.")
"""What names begin with in a run of `bavit train`, and of `bavit segment train`."""

_EVERY_VIT = {"pos_embed": 3, "patch_embed.proj.weight": 4}
_BARE = ("cls_token", "reg_token")


@dataclass(frozen=True, slots=True, eq=False)
class VitWeights:
    """Weights to start from.

    Attributes:
        state: by the names of timm's `VisionTransformer`.
        source: where they are from.
        shape: (rows, cols) of the positions; None: they are square, or as many as are needed.
    """

    state: dict[str, Tensor]
    source: Path
    shape: tuple[int, int] | None = None

    @property
    def prefix(self) -> int:
        """Tokens before those of patches."""
        return sum(self.state[name].shape[1] for name in _BARE if name in self.state and self.state[name].ndim == 3)


def fetch_vit(name: str) -> VitWeights:
    """The weights that timm has for one of its ViTs.

    Raises:
        TokenLabelsError: they cannot be fetched.
    """
    try:
        source = timm.create_model(name, pretrained=True)
    except Exception as fault:  # noqa: BLE001  of urllib, requests, huggingface_hub, or safetensors, by version
        raise TokenLabelsError(
            f"{name}: cannot be fetched ({type(fault).__name__}): use --init none to train from scratch, or "
            f"fetch its model.safetensors from the Hugging Face hub (timm/{name}) elsewhere and name "
            "that file with --init."
        ) from None
    return VitWeights(source.state_dict(), Path(name))


def read_vit(path: Path) -> VitWeights:
    """The weights in a file or folder: a bavit run, or a timm ViT (.safetensors, .pth, .pt, .bin).

    Raises:
        TokenLabelsError: it cannot be read.
    """
    refuse_exported(path)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise TokenLabelsError(f"{file}: no such file: --init takes imagenet, none, a run, or a file of weights.")
    state = read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return VitWeights(state, file, _stored_shape(file.parent / CONFIG_FILE, state))


def _stored_shape(config: Path, state: dict[str, Tensor]) -> tuple[int, int] | None:
    """(rows, cols) of the grid that a run was trained on."""
    try:
        height, width = json.loads(config.read_bytes())["image_size"]
        down, across = state["patch_embed.proj.weight"].shape[2:]
        return -(-height // down), -(-width // across)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _read_pickled(path: Path) -> dict[str, Tensor]:
    found = read_pickled(path)
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise TokenLabelsError(f"{path}: holds no state dict: --init takes the weights of a ViT.")
    return found


def load_vit(vit: VisionTransformer, weights: VitWeights) -> None:
    """Fit weights into a ViT; blocks beyond its depth are left out, and so is what else it has not.

    Args:
        vit: receives the weights. A classifier of another shape stays as it is; so do tokens before those of patches,
            where the weights have not as many.
        weights: of another one.

    Raises:
        TokenLabelsError: it has fewer blocks, another width, or is no ViT.
    """
    state, path, known = weights.state, weights.source, vit.state_dict()
    if any(name not in state or state[name].ndim != ndim for name, ndim in _EVERY_VIT.items()):
        raise TokenLabelsError(f"{path}: holds no ViT (no pos_embed): --init takes the weights of a timm ViT or a run.")
    depth = len(vit.blocks)
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if len(blocks) < depth:
        raise TokenLabelsError(f"{path}: has {len(blocks)} blocks, --depth {depth} needs as many.")
    wanted = tuple(f"blocks.{number}." for number in range(depth))
    strange = [name for name in state if name.startswith(wanted) and name not in known]
    if strange:
        raise TokenLabelsError(f"{path}: has {strange[0]}, which this model has not: its blocks are of another kind.")
    fitted = {name: value for name, value in state.items() if name in known}
    own = {name: value for name, value in known.items() if name.startswith("head.")}
    fitting = all(name in state and state[name].shape == value.shape for name, value in own.items())
    fitted |= {} if fitting else own
    if weights.prefix != vit.num_prefix_tokens:
        fitted |= {name: known[name] for name in _BARE if name in known}
    if state["pos_embed"].shape[-1] == known["pos_embed"].shape[-1]:
        fitted["pos_embed"] = _positions(vit, weights, known["pos_embed"])
        size = list(known["patch_embed.proj.weight"].shape[2:])
        fitted["patch_embed.proj.weight"] = resample_patch_embed(state["patch_embed.proj.weight"], size)
    load_weights(vit, fitted, path)


def _positions(vit: VisionTransformer, weights: VitWeights, own: Tensor) -> Tensor:
    """(1, prefix + rows * cols, width), resampled to the grid of a ViT; of prefix tokens where both have as many."""
    stored, wanted = weights.state["pos_embed"], vit.patch_embed.grid_size
    for theirs in dict.fromkeys((weights.prefix, 0)):
        count = stored.shape[1] - theirs
        side = math.isqrt(max(0, count))
        shape = weights.shape or (wanted if count == wanted[0] * wanted[1] else (side, side))
        if shape[0] * shape[1] == count > 0:
            break
    else:
        raise TokenLabelsError(f"{weights.source}: has {stored.shape[1]} positions, which are no grid of patches.")
    patches = stored[:, theirs:]
    fitted = patches if shape == wanted else resample_abs_pos_embed(patches, list(wanted), list(shape), 0)
    first = own.shape[1] - fitted.shape[1]
    prefix = stored[:, :theirs] if theirs == first else own[:, :first]
    return torch.cat([prefix, fitted], 1) if first else fitted
