"""What is exported: models by name, and how many patches stay, checked before anything is traced."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bavit.background.model import BAViT, load_model
from bavit.detect.config import MAX_SIDE
from bavit.detect.loading import is_random, load_detector
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning, Size, removed_of, steps_of
from bavit.detect.saved import is_saved
from bavit.detect.yolos import Yolos
from bavit.export.described import Described, describe, refuse_exported
from bavit.export.graphs import BavitGraph, DenseGraph, PrunedGraph
from bavit.weights import CONFIG_FILE, HUB_ID, fetch
from tokenlabels.errors import ParameterError

MAX_PATCHES = 16_384
"""Of the detector's input: 2048 x 2048 pixels in patches of 16. Attention is quadratic in them."""


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """A BAViT, a YOLOS, or both, the one in front of the other.

    Attributes:
        bavit: the background model, or None.
        yolos: the detector, or None.
        pruning: how many patches stay, of a saved pruned detector; else None.
        sources: what a person named.
    """

    bavit: BAViT | None
    yolos: Yolos | None
    pruning: Pruning | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person asks for; None is the models' own.

    Attributes:
        top_k: patches that stay of every image.
        sparsity: share of patches that are removed instead.
        image_size: (H, W) of the detector's input.
        refine_steps: of the mask.
        prune_after: blocks of the detector that see all patches.
    """

    top_k: int | None = None
    sparsity: float | None = None
    image_size: Size | None = None
    refine_steps: int | None = None
    prune_after: int | None = None


def read_models(model: str, detector: str | None = None) -> Models:
    """Models by name.

    Args:
        model: a BAViT run, a YOLOS (see `load_detector`), or the folder of a saved pruned detector; the first two may
            be hub ids.
        detector: a YOLOS that stands behind the BAViT.

    Raises:
        ParameterError: a detector behind what is no BAViT.
        TokenLabelsError: there is no such model, or its files are damaged.
    """
    refuse_exported(model)
    if is_saved(model):
        if detector is not None:
            raise ParameterError(f"{model} is a pruned detector, which holds its YOLOS: leave out {detector}.")
        whole = PrunedDetector.from_pretrained(model)
        return Models(whole.bavit, whole.yolos, whole.pruning, (model,))
    if detector is not None:
        return Models(load_model(model), load_detector(detector), None, (model, detector))
    if is_random(model) or Path(model).is_file() or not _is_bavit(model):
        return Models(None, load_detector(model), None, (model,))
    return Models(load_model(model), None, None, (model,))


def describe_choice(models: Models, choice: Choice) -> Described:
    """What is to be exported.

    Raises:
        ParameterError: choices that contradict each other or the models, or are out of range.
    """
    wanted = {"--top-k": choice.top_k, "--sparsity": choice.sparsity, "--refine": choice.refine_steps,
              "--prune-after": choice.prune_after}  # fmt: skip
    given = [name for name, value in wanted.items() if value is not None]
    if models.bavit is None or models.yolos is None:
        if given:
            raise ParameterError(f"{given[0]} is about a BAViT in front of a detector: name both, or leave it out.")
        if models.yolos is None and choice.image_size is not None:
            raise ParameterError("--image-size is the detector's: a BAViT has the input it was trained on.")
        size = None if models.yolos is None else input_size(models.yolos, choice.image_size)
        return describe(models.bavit, models.yolos, size, sources=models.sources)
    size = input_size(models.yolos, choice.image_size)
    own = models.pruning or Pruning(refine_steps=steps_of(models.bavit))
    steps = own.refine_steps if choice.refine_steps is None else choice.refine_steps
    after = own.prune_after if choice.prune_after is None else choice.prune_after
    checked = Pruning(top_k=choice.top_k, sparsity=choice.sparsity, refine_steps=steps, prune_after=after)
    patch = models.yolos.config.patch
    keep = _count(checked, own, (size[0] // patch) * (size[1] // patch))
    return describe(
        models.bavit, models.yolos, size, keep=keep, refine_steps=steps, prune_after=after, sources=models.sources
    )


def left_out(models: Models, choice: Choice) -> str | None:
    """What a saved detector loses in an exported graph, for a person to know; None: nothing that was not asked for."""
    own = models.pruning
    if own is None or own.max_tokens is None or own.top_k is not None or own.sparsity is not None:
        return None
    if choice.top_k is not None or choice.sparsity is not None:
        return None
    return (
        f"{own.max_tokens:,} patches stay of every image: the cap of the detector without its threshold, by which "
        "fewer stay of most, so that images cost more in the mean; bavit calibrate --fixed finds a count for a budget."
    )


def input_size(yolos: Yolos, wanted: Size | None) -> Size:
    """(H, W) of the detector's input: as wanted, or a square of its short side in whole patches.

    Raises:
        ParameterError: no multiples of the patch, or more than can be computed.
    """
    patch = yolos.config.patch
    side = yolos.config.shortest_edge // patch * patch
    height, width = wanted or (side, side)
    if min(height, width) < 1 or max(height, width) > MAX_SIDE or height * width > MAX_PATCHES * patch * patch:
        raise ParameterError(
            f"--image-size {height}x{width} is out of range: it is 1 to {MAX_SIDE:,} pixels a side, and at most "
            f"{MAX_PATCHES:,} patches of {patch} x {patch}."
        )
    if height % patch or width % patch:
        down, across = (max(patch, round(side / patch) * patch) for side in (height, width))
        raise ParameterError(
            f"--image-size {height}x{width} cannot be cut into patches of {patch}: try {down}x{across}."
        )
    return height, width


def parse_size(text: str | None) -> Size | None:
    """`HxW`, or one number for both.

    Raises:
        ParameterError: it is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ParameterError(f"--image-size {text} is no size: give HxW, such as 512x512.")
    return int(parts[0]), int(parts[-1])


def graph_of(models: Models, described: Described) -> nn.Module:
    """What is traced, in evaluation mode.

    Raises:
        ParameterError: the models cannot be exported so.
    """
    if models.yolos is None:
        assert models.bavit is not None
        return BavitGraph(models.bavit).eval()
    if models.bavit is None:
        return DenseGraph(models.yolos, described.image_size).eval()
    assert described.keep is not None
    return PrunedGraph(
        models.bavit, models.yolos, described.image_size, described.keep,
        refine_steps=described.refine_steps, prune_after=described.prune_after,
    ).eval()  # fmt: skip


def random_inputs(models: Models, described: Described, batch: int, seed: int = 0) -> list[Tensor]:
    """Inputs of the graph, float32 (batch, 3, H, W), normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [] if models.bavit is None else [models.bavit.grid.image_size or (0, 0)]
    sizes += [] if models.yolos is None else [described.image_size]
    return [torch.randn(batch, 3, *size, generator=generator) for size in sizes]


def _count(wanted: Pruning, own: Pruning, patches: int) -> int:
    """How many patches stay.

    Raises:
        ParameterError: nothing says it.
    """
    chosen = own if wanted.top_k is None and wanted.sparsity is None else wanted
    if chosen.top_k is not None:
        return chosen.top_k if chosen.max_tokens is None else min(chosen.top_k, chosen.max_tokens)
    if chosen.sparsity is not None:
        stay = patches - removed_of(patches, chosen.sparsity)
        return stay if chosen.max_tokens is None else min(stay, chosen.max_tokens)
    if chosen.max_tokens is not None:
        return min(chosen.max_tokens, patches)
    raise ParameterError(
        "an exported graph keeps the same number of patches of every image, and a threshold does not say how many: "
        "give --top-k or --sparsity."
    )


def _is_bavit(model: str) -> bool:
    """Whether a folder or hub id is that of a BAViT, by its config; where that cannot be told, it is taken for one."""
    folder = Path(model)
    if folder.is_dir():
        path: Path | None = folder / CONFIG_FILE
    else:
        path = fetch(model, CONFIG_FILE) if HUB_ID.fullmatch(model) else None
    try:
        config = None if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(config, dict) or "hidden_size" not in config
