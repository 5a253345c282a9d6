"""Where the training of a segmenter starts: a new one, weights of ImageNet or of a file, or a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bavit.background.initialize import from_scratch
from bavit.data import PictureSet, first_pictures
from bavit.segment.backbone import make_backbone, normalisation
from bavit.segment.config import SegmentClass, SegmenterConfig, check_positions
from bavit.segment.model import Segmenter
from bavit.segment.settings import SegmentSettings
from bavit.segment.weights import read_segmenter
from bavit.vit_weights import fetch_vit, load_vit, read_vit
from bavit.weights import load_weights
from tokenlabels.errors import ParameterError

PRETRAINED_SIDE, SCRATCH_SIDE = 512, 256
"""Of the crop, where nobody names one."""

_PAPER = {12: (6, 8), 24: (8, 16)}


@dataclass(frozen=True, slots=True, eq=False)
class SegmentStart:
    """Where training starts.

    Attributes:
        config: of the segmenter, with the rule of early exit that it is stored with.
        exiting: tokens end while it is trained.
        state: all its weights, of a run that is finetuned; None: it is a new one.
        source: where they are from.
    """

    config: SegmenterConfig
    exiting: bool
    state: dict[str, Tensor] | None = None
    source: Path = Path()


def start_of(settings: SegmentSettings, classes: tuple[SegmentClass, ...]) -> SegmentStart:
    """Find out where training starts.

    Args:
        settings: of the run.
        classes: what a new segmenter is to tell apart.

    Raises:
        ParameterError: no such backbone, or sizes or positions that make no segmenter.
        TokenLabelsError: the run that is finetuned cannot be read.
    """
    if settings.run is None:
        config = _new_config(settings, classes)
        return SegmentStart(config, settings.rule.p0 is not None and _exits(config))
    config, state, path = read_segmenter(settings.run)
    if config.downsample != "none" and settings.rule.p0 is not None and settings.rule.p0 < 1:
        raise ParameterError(f"{settings.run} halves its grid instead of early exit (--downsample): leave --p0 out.")
    config = replace(config, rule=settings.rule.applied(config.rule))
    return SegmentStart(config, _exits(config), state, path)


def _exits(config: SegmenterConfig) -> bool:
    return config.rule.exits and bool(config.exit_after) and config.downsample == "none"


def _new_config(settings: SegmentSettings, classes: tuple[SegmentClass, ...]) -> SegmenterConfig:
    new = settings.new
    side = SCRATCH_SIDE if settings.init == "none" else PRETRAINED_SIDE
    size = new.crop or (side, side)
    with torch.device("meta"):  # its shape is all that is looked at
        vit = make_backbone(new.backbone, size)
    depth = len(vit.blocks)
    exits = default_exits(depth) if new.exit_after is None else new.exit_after
    check_positions(exits, depth)
    mean, std = normalisation(vit)
    plain = SegmenterConfig(
        classes=classes,
        backbone=new.backbone,
        head=new.head,
        exit_after=exits,
        image_size=size,
        downsample=new.downsample,
        mean=mean,
        std=std,
    )
    return replace(plain, rule=settings.rule.applied(plain.rule))


def default_exits(depth: int) -> tuple[int, ...]:
    """Where heads sit, where nobody says: after blocks 6 and 8 of 12, 8 and 16 of 24, as in DToP; else likewise."""
    places = sorted({depth // 2, depth * 2 // 3} - {0, depth})
    return _PAPER.get(depth, tuple(places))


def initialize(model: Segmenter, settings: SegmentSettings, start: SegmentStart, pictures: PictureSet) -> None:
    """Give a new model its first weights.

    Args:
        model: freshly made.
        settings: of the run.
        start: see `start_of`.
        pictures: training pictures as inputs, looked at where there are no weights to start from.

    Raises:
        TokenLabelsError: weights cannot be read or fetched, or do not fit.
    """
    if start.state is not None:
        load_weights(model, start.state, start.source)
    elif settings.init == "imagenet":
        load_vit(model.backbone, fetch_vit(start.config.backbone.name))
    elif settings.init != "none":
        load_vit(model.backbone, read_vit(Path(settings.init)))
    else:
        generator = torch.Generator().manual_seed(settings.seed)
        from_scratch(model.backbone, model.normalise(first_pictures(pictures)), generator)
