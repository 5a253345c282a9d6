"""What decides what a build holds, checked and completed, and as the manifest keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import msgspec

from tokenlabels.errors import ParameterError
from tokenlabels.grid import ImageSizeLike, PatchGrid, PatchLike, parse_grids
from tokenlabels.rules import RuleSpec
from tokenlabels.select import Selection
from tokenlabels.shards import SCHEMA_VERSION

OnError: TypeAlias = Literal["raise", "skip"]
CheckLevel: TypeAlias = Literal["fast", "full"]

SHARD_ROWS, SHARD_ROWS_WITH_IMAGES = 4096, 512
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything that decides what a build holds; see `build` for the meaning of each."""

    grids: tuple[PatchGrid, ...]
    rule: RuleSpec
    selection: Selection = field(default_factory=Selection)
    scores: bool = True
    embed_images: bool = False
    embed_size: tuple[int, int] | None = None
    jpeg_quality: int = JPEG_QUALITY
    embed_masks: bool = False
    limit: int | None = None
    shard_rows: int = SHARD_ROWS
    on_error: OnError = "raise"
    check: CheckLevel = "fast"

    @classmethod
    def make(
        cls,
        *,
        patch: PatchLike | Sequence[PatchLike] = 16,
        image_size: ImageSizeLike | Sequence[ImageSizeLike] = 384,
        resize: str = "squash",
        max_size: int | None = None,
        rule: str = "overlap",
        tau: float | None = None,
        crowd: str = "foreground",
        padding: str = "background",
        void: str = "background",
        difficult: str = "foreground",
        categories: Sequence[str] | None = None,
        exclude_categories: Sequence[str] | None = None,
        min_area: float = 0.0,
        scores: bool = True,
        embed_images: bool = False,
        embed_size: ImageSizeLike | None = None,
        jpeg_quality: int | None = None,
        embed_masks: bool = False,
        limit: int | None = None,
        shard_rows: int | None = None,
        on_error: OnError = "raise",
        check: CheckLevel = "fast",
    ) -> BuildOptions:
        """Check and complete what a person writes.

        Raises:
            ParameterError: a value out of range.
        """
        if limit is not None and limit < 1:
            raise ParameterError(f"limit {limit} is too small: at least 1 image.")
        if shard_rows is not None and not 1 <= shard_rows <= 1_000_000:
            raise ParameterError(f"shard_rows {shard_rows} is out of range: 1 to 1000000 images a shard.")
        for name, value, allowed in (("on_error", on_error, ("raise", "skip")), ("check", check, ("fast", "full"))):
            if value not in allowed:
                raise ParameterError(f"unknown {name} {value!r}: use one of {', '.join(allowed)}.")
        grids = parse_grids(patch, image_size, resize, max_size)
        size = None if embed_size is None else _embed_size(embed_size, grids)
        if jpeg_quality is not None and size is None:
            raise ParameterError("--jpeg-quality goes with --embed-size; without it the files are stored as they are.")
        quality = JPEG_QUALITY if jpeg_quality is None else jpeg_quality
        if not 1 <= quality <= 100:
            raise ParameterError(f"jpeg_quality {quality} is out of range: 1 to 100.")
        with_pictures = embed_images or size is not None
        return cls(
            grids=grids,
            rule=RuleSpec.make(rule, tau, crowd, padding, void, difficult),
            selection=Selection.make(categories, exclude_categories, min_area),
            scores=scores,
            embed_images=with_pictures,
            embed_size=size,
            jpeg_quality=quality,
            embed_masks=embed_masks,
            limit=limit,
            shard_rows=shard_rows or (SHARD_ROWS_WITH_IMAGES if with_pictures or embed_masks else SHARD_ROWS),
            on_error=on_error,
            check=check,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, as the manifest keeps them."""
        encoded = msgspec.json.encode(
            {
                "schema_version": SCHEMA_VERSION,
                "grids": [
                    {
                        "name": g.name,
                        "patch": g.patch,
                        "image_size": g.image_size,
                        "resize": g.resize,
                        "max_size": g.max_size,
                    }
                    for g in self.grids
                ],
                "rule": self.rule.rule,
                "tau": self.rule.tau,
                "crowd": self.rule.crowd,
                "padding": self.rule.padding,
                "void": self.rule.void,
                "difficult": self.rule.difficult,
                "categories": self.selection.categories,
                "exclude_categories": self.selection.exclude_categories,
                "min_area": self.selection.min_area,
                "scores": self.scores,
                "embed_images": self.embed_images,
                "embed_size": self.embed_size,
                "jpeg_quality": self.jpeg_quality if self.embed_size else None,
                "embed_masks": self.embed_masks,
                "limit": self.limit,
                "shard_rows": self.shard_rows,
                "on_error": self.on_error,
                "check": self.check,
            }
        )
        return cast(dict[str, Any], msgspec.json.decode(encoded))


def _embed_size(given: ImageSizeLike, grids: Sequence[PatchGrid]) -> tuple[int, int]:
    """(height, width) that pictures are resized to.

    Raises:
        ParameterError: no size; or pictures of that size would not be what the labels of some grid are for.
    """
    if given == "native":
        raise ParameterError("--embed-size is a size in pixels; without it the files are stored as they are.")
    size = PatchGrid.parse(1, given).image_size
    assert size is not None
    for grid in grids:
        if grid.image_size is None:
            raise ParameterError("--embed-size resizes, --image-size native does not: leave one of them out.")
        if grid.resize != "squash" and grid.image_size != size:
            expected = "x".join(map(str, dict.fromkeys(grid.image_size)))
            raise ParameterError(
                f"--embed-size {given} is not the model input of {grid.name}: with --resize {grid.resize} it is "
                f"{expected}."
            )
    return size
