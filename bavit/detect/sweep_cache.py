"""What the figures of a detection sweep depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bavit.background.model import BAViT
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.sweep_cache import digest_of
from tokenlabels import __version__

if TYPE_CHECKING:
    from bavit.detect.sweep import Plan

_VERSION = 1


def digest(bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine) -> str:
    """A text that differs where anything differs that the figures of a sweep depend on, but for the pictures."""
    rows, truth = data.rows, data.truth()
    described = (_VERSION, __version__, bavit.config, yolos.config, plan, machine.describe(), list(rows.image_ids),
                 list(rows.file_names), rows.categories, data.images)  # fmt: skip
    arrays = (rows.labels, rows.widths, rows.heights, truth.image, truth.category, truth.boxes, truth.areas,
              truth.crowd, truth.ignored)  # fmt: skip
    return digest_of(described, (bavit, yolos), (*arrays, *(() if rows.scores is None else (rows.scores,))))
