"""The format of transformers' `YolosForObjectDetection`: names of weights, config.json, preprocessor_config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from bavit.detect.config import IMAGENET_MEAN, IMAGENET_STD, YolosConfig
from tokenlabels.errors import ParameterError, TokenLabelsError

PREPROCESSOR_FILE = "preprocessor_config.json"

_SHORTEST, _LONGEST = 800, 1333
_BILINEAR = 2
_HEADS = {"class_embed.": "class_labels_classifier.", "bbox_embed.": "bbox_predictor."}
_BACKBONE = {
    "cls_token": "embeddings.cls_token",
    "det_token": "embeddings.detection_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "mid_pos_embed": "encoder.mid_position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PARTS = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_IN_MEMORY = "vit.encoder.interpolation.mid_position_embeddings"  # as transformers 5 calls it, though not in its files
_OF_LAYER = re.compile(r"vit\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_OF_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.(.+)\.(weight|bias)")

_OUR_BACKBONE = {f"vit.{theirs}": f"backbone.{ours}" for ours, theirs in _BACKBONE.items()}
_OUR_BACKBONE[_IN_MEMORY] = _OUR_BACKBONE["vit.encoder.mid_position_embeddings"]
_THEIR_BACKBONE = {f"backbone.{ours}": f"vit.{theirs}" for ours, theirs in _BACKBONE.items()}
_OUR_LAYER = {theirs: ours for ours, theirs in _LAYER.items()}

_Triple = tuple[float, float, float]
_Kind = TypeVar("_Kind")


class _Model(msgspec.Struct):
    """What is read of config.json; the defaults are those of transformers' class, which leaves them out of files."""

    model_type: str = ""
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, int] | int = (512, 864)
    patch_size: tuple[int, int] | int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    num_detection_tokens: int = 100
    use_mid_position_embeddings: bool = True
    id2label: dict[str, str] | None = None


class _Processor(msgspec.Struct):
    """What is read of preprocessor_config.json; the defaults are those of transformers' class."""

    size: dict[str, int | None] | int | None = None
    max_size: int | None = None
    image_mean: _Triple = IMAGENET_MEAN
    image_std: _Triple = IMAGENET_STD
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255
    resample: int = _BILINEAR


def read_config(model: Path, processor: Path | None, classes: int) -> YolosConfig:
    """The config of a detector in transformers' format.

    Args:
        model: config.json.
        processor: preprocessor_config.json; None: transformers' defaults, 800 pixels and at most 1333.
        classes: that the weights have, besides no-object; for a config that does not name them.

    Raises:
        TokenLabelsError: they are no JSON, describe no YOLOS, or one that is not supported.
    """
    config = _decoded(model, _Model)
    if config.model_type != "yolos":
        raise TokenLabelsError(f"{model}: describes no YOLOS (model_type {config.model_type!r}).")
    if config.hidden_act != "gelu" or config.num_channels != 3:
        raise TokenLabelsError(
            f"{model}: hidden_act {config.hidden_act!r} with {config.num_channels} channels is not supported: only "
            "'gelu' with 3."
        )
    patch, image_size = _pair(config.patch_size), _pair(config.image_size)
    if patch[0] != patch[1]:
        raise TokenLabelsError(f"{model}: patches of {patch[0]} x {patch[1]} are not supported: only square ones.")
    labels = _labels(config.id2label, classes, model)
    input_of = _Processor() if processor is None else _decoded(processor, _Processor)
    shortest, longest = _edges(input_of, processor or model)
    try:
        return YolosConfig(
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_hidden=config.intermediate_size,
            patch=patch[0],
            image_size=image_size,
            detection_tokens=config.num_detection_tokens,
            labels=labels,
            layer_norm_eps=config.layer_norm_eps,
            qkv_bias=config.qkv_bias,
            mid_positions=config.use_mid_position_embeddings,
            shortest_edge=shortest,
            longest_edge=longest,
            mean=input_of.image_mean,
            std=input_of.image_std,
            named=labels != unnamed(len(labels)),
        )
    except ParameterError as fault:
        raise TokenLabelsError(f"{model}: {fault}") from None


def unnamed(classes: int) -> tuple[str, ...]:
    """The names that transformers gives to classes without names."""
    return tuple(f"LABEL_{index}" for index in range(classes))


def _decoded(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as fault:
        raise TokenLabelsError(f"{path}: cannot be read ({fault.strerror}).") from None
    except msgspec.ValidationError as fault:
        raise TokenLabelsError(f"{path}: describes no YOLOS ({fault}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenLabelsError(f"{path}: is no JSON: fetch it again.") from None


def _pair(value: tuple[int, int] | int) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _labels(names: Mapping[str, str] | None, classes: int, path: Path) -> tuple[str, ...]:
    if names is None:
        return unnamed(classes)
    if set(names) != {str(index) for index in range(len(names))}:
        raise TokenLabelsError(f"{path}: id2label does not number its {len(names)} classes from 0 on.")
    return tuple(names[str(index)] for index in range(len(names)))


def _edges(processor: _Processor, path: Path) -> tuple[int, int]:
    """Pixels of the short side, and at most of the long one."""
    rescaled = processor.do_rescale and abs(processor.rescale_factor * 255 - 1) < 1e-6
    if not (processor.do_resize and processor.do_normalize and rescaled and processor.resample == _BILINEAR):
        raise TokenLabelsError(
            f"{path}: pictures are resized bilinearly, divided by 255 and normalised here, which it does not ask for."
        )
    if processor.size is None:
        return _SHORTEST, _LONGEST
    if isinstance(processor.size, int):
        return processor.size, processor.max_size or _LONGEST
    given = {name: value for name, value in processor.size.items() if value is not None}
    if "shortest_edge" not in given or given.keys() - {"shortest_edge", "longest_edge"}:
        raise TokenLabelsError(
            f"{path}: size {json.dumps(given)} is not supported: give shortest_edge and longest_edge."
        )
    return given["shortest_edge"], given.get("longest_edge", processor.max_size or _LONGEST)


def config_json(config: YolosConfig) -> dict[str, Any]:
    """What transformers writes to config.json, JSON values."""
    return {
        "architectures": ["YolosForObjectDetection"],
        "model_type": "yolos",
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": list(config.image_size),
        "patch_size": config.patch,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "num_detection_tokens": config.detection_tokens,
        "use_mid_position_embeddings": config.mid_positions,
        "id2label": {str(index): name for index, name in enumerate(config.labels)},
        "label2id": {name: index for index, name in enumerate(config.labels)},
    }


def processor_json(config: YolosConfig) -> dict[str, Any]:
    """What transformers writes to preprocessor_config.json, JSON values."""
    return {
        "image_processor_type": "YolosImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_pad": True,
    }


def from_hub_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights of transformers by our names; queries, keys and values become one. Unknown names stay as they are.

    Args:
        state: transformers' name -> tensor.
        path: where it is from, for errors.

    Raises:
        TokenLabelsError: of queries, keys and values some are missing, or their shapes differ.
    """
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        layer = _OF_LAYER.fullmatch(name)
        if layer and layer[2] in _PARTS:
            joined.setdefault(f"{layer[1]}.%s.{layer[3]}", {})[layer[2]] = tensor
        elif layer and layer[2] in _OUR_LAYER:
            found[f"backbone.blocks.{layer[1]}.{_OUR_LAYER[layer[2]]}.{layer[3]}"] = tensor
        else:
            found[_OUR_BACKBONE.get(name) or _of_head(name)] = tensor
    for place, parts in joined.items():
        missing = [part for part in _PARTS if part not in parts]
        if missing:
            raise TokenLabelsError(f"{path}: lacks vit.encoder.layer.{place % missing[0]}: fetch it again.")
        if len({(tensor.shape, tensor.dtype) for tensor in parts.values()}) != 1 or not parts[_PARTS[0]].ndim:
            raise TokenLabelsError(f"{path}: query, key and value of vit.encoder.layer.{place % '*'} differ in shape.")
        found[f"backbone.blocks.{place % 'attn.qkv'}"] = torch.cat([parts[part] for part in _PARTS])
    return found


def _of_head(name: str) -> str:
    for ours, theirs in _HEADS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def to_hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_hub_names`; no two tensors share memory."""
    return {theirs: tensor for name, held in state.items() for theirs, tensor in _theirs(name, held)}


def _theirs(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    block = _OF_BLOCK.fullmatch(name)
    if block and block[2] == "attn.qkv":
        for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
            yield f"vit.encoder.layer.{block[1]}.{part}.{block[3]}", piece.clone()
    elif block:
        yield f"vit.encoder.layer.{block[1]}.{_LAYER[block[2]]}.{block[3]}", tensor
    elif name in _THEIR_BACKBONE:
        yield _THEIR_BACKBONE[name], tensor
    else:
        head, _, rest = name.partition(".")
        yield _HEADS[f"{head}."] + rest, tensor
