"""The detector that training starts from: weights that are there, their class head fitted to the data, or a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.detect.classes import class_of_category, unknown_categories
from bavit.detect.config import SIZES, YolosConfig
from bavit.detect.finetune_settings import FinetuneSettings
from bavit.detect.samples import View, common_size
from bavit.detect.weights import read_detector
from bavit.rows import Rows
from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError

_LAST = "class_embed.layers.2."
"""Names of the weights that give a number to each class begin so."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where training starts.

    Attributes:
        config: of the detector.
        classes: int64 (k,), its class of each category of the data.
        state: its weights, by the names of `Yolos.state_dict`; None: it is trained from scratch.
        source: where they are from.
        note: what a person should know of the class head, or nothing.
    """

    config: YolosConfig
    classes: NDArray[np.int64]
    state: dict[str, Tensor] | None
    source: Path
    note: str = ""


def start_of(settings: FinetuneSettings, rows: Rows) -> Start:
    """Find out where training starts.

    Args:
        settings: of the run.
        rows: of the training set.

    Raises:
        ParameterError: sizes that make no detector.
        TokenLabelsError: the detector cannot be read.
    """
    if settings.detector == "none":
        classes = np.arange(len(rows.categories), dtype=np.int64)
        return Start(_new_config(settings, rows), classes, None, Path(settings.new.size_name))
    config, state = read_detector(settings.detector)
    return _fitted(_with_edges(config, settings), state, rows.categories, Path(settings.detector))


def _new_config(settings: FinetuneSettings, rows: Rows) -> YolosConfig:
    new = settings.new
    base = SIZES[new.size_name]
    dim = new.dim or base.dim
    config = replace(
        base,
        dim=dim,
        depth=new.depth or base.depth,
        heads=new.heads or (base.heads if new.dim is None else max(1, dim // 64)),
        mlp_hidden=dim * base.mlp_hidden // base.dim,
        detection_tokens=new.detection_tokens or base.detection_tokens,
        patch=new.patch or base.patch,
        labels=tuple(entry.name for entry in rows.categories),
    )
    config = _with_edges(config, settings)
    view = View(config.patch, (config.shortest_edge,), config.longest_edge / config.shortest_edge)
    return replace(config, image_size=settings.size or common_size(rows, view))


def _with_edges(config: YolosConfig, settings: FinetuneSettings) -> YolosConfig:
    if settings.size and any(side % config.patch for side in settings.size):
        height, width = settings.size
        raise ParameterError(f"--size {height}x{width} cannot be cut into patches of {config.patch}.")
    shortest = settings.shortest_edge or config.shortest_edge
    longest = settings.longest_edge or round(shortest * config.longest_edge / config.shortest_edge)
    return replace(config, shortest_edge=shortest, longest_edge=longest)


def _fitted(config: YolosConfig, state: dict[str, Tensor], categories: Sequence[Category], source: Path) -> Start:
    """A class head that knows every category: the one that is there, or one made anew, known classes carried over."""
    try:
        classes = class_of_category(config.labels, categories, named=config.named)
    except ParameterError:
        classes = np.full(len(categories), -1, np.int64)
    if (classes >= 0).all():
        return Start(config, classes, state, source)
    unknown = unknown_categories(classes, categories)
    places = torch.tensor([*classes.tolist(), len(config.labels)])
    fitted = dict(state)
    for name in (_LAST + "weight", _LAST + "bias"):
        rows = state[name][places]
        mean = state[name][:-1].mean(0)
        fitted[name] = torch.where((places < 0).view(-1, *[1] * (rows.ndim - 1)), mean, rows)
    note = (
        f"the detector knows no {unknown[0]!r}"
        + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        + f": its class head is made anew for the {len(categories)} categories of the data"
        + (f", of which {len(categories) - len(unknown)} are carried over." if len(unknown) < len(categories) else ".")
    )
    labels = tuple(entry.name for entry in categories)
    return Start(replace(config, labels=labels, named=True), np.arange(len(labels)), fitted, source, note)
