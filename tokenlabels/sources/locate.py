"""From what a person names to the source that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenlabels.errors import ParameterError
from tokenlabels.sources.base import Source
from tokenlabels.sources.coco import CocoSource
from tokenlabels.storage import is_file, located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.sources.semantic_options import SemanticOptions
    from tokenlabels.storage import Location

FORMATS = ("coco", "voc", "semantic")


@explained()
def find_source(
    source: Source | str,
    *,
    root: str | Location | None = None,
    annotations: str | Location | None = None,
    images: str | Location | None = None,
    masks: str | Location | None = None,
    splits: Sequence[str] = (),
    class_list: str | Location | None = None,
    semantic: SemanticOptions | None = None,
) -> Source:
    """A source from its name and the places a person names; a `Source` is returned as it is.

    Args:
        source: name of a format.
        root: folder in an official layout.
        annotations: a single annotation file instead.
        images: image folder.
        masks: mask folder.
        splits: splits to read.
        class_list: file with the categories, or the name of a data card.
        semantic: how to read values of semantic masks.

    Raises:
        ParameterError: no such format, or an option that it does not have.
        TokenLabelsError: no data set there.
    """
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    named: dict[str, Any] = {"--root": root, "--annotations": annotations, "--images": images, "--masks": masks}
    named |= {"--split": splits, "a list of --categories": class_list, "an option of semantic masks": semantic}
    given = [name for name, value in named.items() if value]
    if not isinstance(source, str):
        if given:
            raise ParameterError(
                "a Source knows its files: root, annotations, images and split go with a format's name."
            )
        return source
    if source not in FORMATS:
        raise ParameterError(f"unknown source {source!r}: use one of {', '.join(FORMATS)}.")
    foreign = {
        "coco": ("--masks", "a list of --categories", "an option of semantic masks"),
        "voc": ("--annotations", "--images", "--masks", "an option of semantic masks"),
        "semantic": (),
    }[source]
    for name in given:
        if name in foreign:
            raise ParameterError(f"{name} does not go with {source}.")
    root, annotations, images, masks = (
        None if path is None else located(path) for path in (root, annotations, images, masks)
    )
    if source == "voc":
        from tokenlabels.sources.voc import VocSource

        return VocSource.locate(root, splits=splits, class_list=None if class_list is None else located(class_list))
    if source == "semantic":
        from tokenlabels.sources.semantic_options import SemanticOptions, locate_semantic

        return locate_semantic(
            root,
            annotations=annotations,
            images=images,
            masks=masks,
            splits=splits,
            class_list=None if class_list is None else str(class_list),
            options=semantic or SemanticOptions(),
        )
    return CocoSource.locate(root, annotations=annotations, images=images, splits=splits)


def split_categories(
    source: Source | str, categories: str | Location | Sequence[str] | None
) -> tuple[str | None, list[str] | None]:
    """What `--categories` says: a list of all categories there are, and names of those that are foreground.

    Of VOC and semantic masks, a file, or the name of a data card, is such a list; everything else is a name.

    Raises:
        ParameterError: two lists.
    """
    one = isinstance(categories, (str, Path)) or hasattr(categories, "fs")
    texts = [str(categories)] if one else [str(text) for text in categories or ()]  # type: ignore[union-attr]
    cards = _data_card_names() if source == "semantic" else ()
    lists = [text for text in texts if source in ("voc", "semantic") and (is_file(located(text)) or text in cards)]
    if len(lists) > 1:
        raise ParameterError(f"two lists of categories ({', '.join(lists)}): name one.")
    names = [text for text in texts if text not in lists]
    return (lists[0] if lists else None), (names or None)


def _data_card_names() -> tuple[str, ...]:
    from tokenlabels.sources.semantic_options import data_card_names

    return data_card_names()
