"""Sources: readers of annotation formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenlabels.errors import ParameterError
from tokenlabels.sources.base import Source
from tokenlabels.sources.coco import CocoSource

FORMATS = ("coco",)


def find_source(
    source: Source | str,
    *,
    root: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    splits: Sequence[str] = (),
) -> Source:
    """A source from its name and the places a person names; a `Source` is returned as it is.

    Raises:
        ParameterError: no such format.
        TokenLabelsError: no data set there.
    """
    if not isinstance(source, str):
        if root or annotations or images or splits:
            raise ParameterError(
                "a Source knows its files: root, annotations, images and split go with a format's name."
            )
        return source
    if source not in FORMATS:
        raise ParameterError(f"unknown source {source!r}: use one of {', '.join(FORMATS)}.")
    return CocoSource.locate(
        None if root is None else Path(root),
        annotations=None if annotations is None else Path(annotations),
        images=None if images is None else Path(images),
        splits=(splits,) if isinstance(splits, str) else splits,
    )
