"""Where training starts: from scratch, with care; from ImageNet weights of timm; or from a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import timm
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import unfold

from bavit.background.model import BAViT
from bavit.weights import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_pickled, read_safetensors
from tokenlabels.errors import TokenLabelsError

IMAGENET_MODEL = "vit_tiny_patch16_384.augreg_in21k_ft_in1k"

_POSITION_SCALE = 0.25
_EMBEDDING_SCALE = 0.3
_WHITEN_FLOOR = 0.02
_PATCHES = 30_000


def from_scratch(model: BAViT, pixels: Tensor, generator: torch.Generator) -> None:
    """Initialise a model so that it learns from few pictures.

    The first layer whitens patches of the data, and positions are sines and cosines. What each of these brings is in
    the README.

    Args:
        model: freshly made, changed in place.
        pixels: float (B, 3, H', W'), some hundred normalised pictures of the training set.
        generator: picks the patches that are looked at.
    """
    with torch.no_grad():
        positions = sine_positions(*model.shape, model.width)
        model.vit.get_parameter("pos_embed").copy_(_POSITION_SCALE * positions)
        whiten(model.vit.patch_embed.proj, pixels, model.width, generator)


def sine_positions(rows: int, cols: int, width: int) -> Tensor:
    """float32 (1, rows * cols, width): half of it sines and cosines of the row, half of the column.

    Source: "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), 2-D positions.
    """
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return sines(torch.stack([down.flatten(), across.flatten()], 1), width)[None]


def sines(places: Tensor, width: int) -> Tensor:
    """float32 (n, width) of places (n, 2) in rows and columns, fractions too."""
    quarter = width // 4
    frequency = 10000 ** (-torch.arange(quarter) / quarter)
    angles = places[:, :, None] * frequency
    found = torch.zeros(len(places), width)
    found[:, : 4 * quarter] = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return found


def whiten(layer: nn.Conv2d, pixels: Tensor, width: int, generator: torch.Generator) -> None:
    """Make the first layer project patches on their principal components, each of about equal variance."""
    size = (layer.kernel_size[0], layer.kernel_size[1])
    patches = unfold(pixels.float(), size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[torch.randperm(len(patches), generator=generator)[:_PATCHES]].double()
    if len(patches) < 2:
        return
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
    count = min(width, len(variances))
    variances, directions = variances.flip(0)[:count].clamp(min=0), directions.flip(1)[:, :count]
    kernel = _EMBEDDING_SCALE * (directions / (variances.sqrt() + _WHITEN_FLOOR)).T
    layer.weight[:count] = kernel.float().view(count, *layer.weight.shape[1:])
    if layer.bias is not None:
        layer.bias[:count] = (-kernel @ mean).float()


def from_imagenet(model: BAViT) -> None:
    """Start from `IMAGENET_MODEL`: its first blocks, patches and positions resampled, CLS position dropped.

    Raises:
        TokenLabelsError: the weights cannot be fetched, or do not fit the model's width.
    """
    try:
        source = timm.create_model(IMAGENET_MODEL, pretrained=True)
    except Exception as fault:  # noqa: BLE001  of urllib, requests, huggingface_hub, or safetensors, by version
        raise TokenLabelsError(
            f"{IMAGENET_MODEL}: cannot be fetched ({type(fault).__name__}): use --init none to train from scratch, or "
            "fetch its model.safetensors from the Hugging Face hub (timm/" + IMAGENET_MODEL + ") elsewhere and name "
            "that file with --init."
        ) from None
    load_vit(model, source.state_dict(), Path(IMAGENET_MODEL))


def from_checkpoint(model: BAViT, path: Path) -> None:
    """Start from a file or folder: a bavit run, or the weights of a timm ViT (.safetensors, .pth, .pt, .bin).

    Raises:
        TokenLabelsError: it cannot be read, or does not fit.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise TokenLabelsError(f"{file}: no such file: --init takes imagenet, none, a run, or a file of weights.")
    state = read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    if any(name.startswith("vit.") for name in state):
        state = {name.removeprefix("vit."): value for name, value in state.items()}
    load_vit(model, state, file, _stored_shape(file.parent / CONFIG_FILE))


def _stored_shape(config: Path) -> tuple[int, int] | None:
    """(rows, cols) of the grid that a run was trained on."""
    try:
        values = json.loads(config.read_bytes())
        (height, width), (down, across) = values["image_size"], values["patch"]
        return height // down, width // across
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


def load_vit(model: BAViT, state: dict[str, Tensor], path: Path, shape: tuple[int, int] | None = None) -> None:
    """Fit the weights of a ViT into a model: positions and patches resampled, blocks beyond its depth left out.

    A head of two outputs is taken over, any other is left as it is.

    Args:
        model: receives the weights.
        state: of a timm `VisionTransformer`, with or without CLS token.
        path: for errors.
        shape: (rows, cols) of its positions; None: they are square, or as many as the model has.

    Raises:
        TokenLabelsError: it has fewer blocks, another width, or is no ViT.
    """
    vit = model.vit
    if "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        raise TokenLabelsError(f"{path}: holds no ViT (no pos_embed): --init takes the weights of a timm ViT or a run.")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    if len(blocks) < model.depth:
        raise TokenLabelsError(f"{path}: has {len(blocks)} blocks, --depth {model.depth} needs as many.")
    known = vit.state_dict()
    fitted = {name: value for name, value in state.items() if name in known and not name.startswith("head.")}
    if state["pos_embed"].shape[-1] == model.width:
        fitted["pos_embed"] = _positions(state["pos_embed"][:, int("cls_token" in state) :], model.shape, shape, path)
        size = list(known["patch_embed.proj.weight"].shape[2:])
        fitted["patch_embed.proj.weight"] = resample_patch_embed(state["patch_embed.proj.weight"], size)
    strange = [name for name in state if name.startswith(_blocks(model.depth)) and name not in known]
    if strange:
        raise TokenLabelsError(f"{path}: has {strange[0]}, which this model has not: its blocks are of another kind.")
    heads = {name: value for name, value in known.items() if name.startswith("head.")}
    fitting = all(name in state and state[name].shape == value.shape for name, value in heads.items())
    fitted |= {name: state[name] for name in heads} if fitting else heads
    load_weights(vit, fitted, path)


def _blocks(depth: int) -> tuple[str, ...]:
    return tuple(f"blocks.{number}." for number in range(depth))


def _positions(stored: Tensor, wanted: tuple[int, int], shape: tuple[int, int] | None, path: Path) -> Tensor:
    """(1, rows * cols, width) of another grid."""
    count = stored.shape[1]
    side = math.isqrt(count)
    shape = shape or (wanted if count == wanted[0] * wanted[1] else (side, side))
    if shape[0] * shape[1] != count:
        raise TokenLabelsError(f"{path}: has {count} positions, which are no {shape[0]} x {shape[1]} grid.")
    return stored if shape == wanted else resample_abs_pos_embed(stored, list(wanted), list(shape), 0)
