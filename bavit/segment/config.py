"""What a segmenter is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """A class: its value in masks that are written, and its name."""

    value: int
    name: str
