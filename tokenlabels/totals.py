"""Sums over labels: of one shard, where it is made, and of a build, from its shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from tokenlabels.scoring import CellLabels  # loads the kernels


class LabelSums(msgspec.Struct, frozen=True):
    """Counts over some images on one grid.

    Attributes:
        patches: all patches.
        foreground: patches labelled 1.
        ignored: patches labelled 255.
        empty_images: images without a patch labelled 1.
    """

    patches: int = 0
    foreground: int = 0
    ignored: int = 0
    empty_images: int = 0

    @classmethod
    def of(cls, labelled: CellLabels) -> LabelSums:
        """Sums of labelled images."""
        return cls(
            len(labelled.labels),
            int(labelled.fg_count.sum()),
            int(labelled.ignore_count.sum()),
            int((labelled.fg_count == 0).sum()),
        )

    def __add__(self, other: LabelSums) -> LabelSums:
        return LabelSums(
            self.patches + other.patches,
            self.foreground + other.foreground,
            self.ignored + other.ignored,
            self.empty_images + other.empty_images,
        )

    def as_json(self) -> dict[str, float]:
        """The counts, and `fg_share`: foreground among the patches that are not ignored."""
        counted = self.patches - self.ignored
        return {
            "patches": self.patches,
            "foreground": self.foreground,
            "ignored": self.ignored,
            "fg_share": self.foreground / counted if counted else 0.0,
            "empty_images": self.empty_images,
        }


def totals(sums: Mapping[str, LabelSums], manifest: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """grid -> split -> `LabelSums.as_json`, from the sums of each shard by its file."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for grid in manifest["parameters"]["grids"]:
        for split in manifest["splits"]:
            parts = [shard for file, shard in sums.items() if file.startswith(f"{grid['name']}/{split}-")]
            found.setdefault(grid["name"], {})[split] = sum(parts, LabelSums()).as_json()
    return found
