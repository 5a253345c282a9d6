"""What a person says of semantic masks -> the source that reads them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.annotations import Category
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.known import KnownDataset, known_datasets
from tokenlabels.sources.base import Source
from tokenlabels.sources.class_list import read_class_list
from tokenlabels.sources.mask_layouts import MaskFolder, MaskLayout, find_layout, side_by_side
from tokenlabels.sources.panoptic import PanopticSource
from tokenlabels.sources.semantic import SemanticSource
from tokenlabels.storage import globbed, is_file, located

if TYPE_CHECKING:
    from tokenlabels.storage import Location

DEFAULT_IGNORE: tuple[int, ...] = (255,)
DEFAULT_BACKGROUND: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class SemanticOptions:
    """How to read the values of masks; None: as the data card of the layout says, else 255 and 0.

    Attributes:
        ignore: values that are void.
        background: values of background categories.
        reduce_zero_label: value 0 is void, and no category.
        stuff: of panoptic files, `foreground` or `background`.
        mask_suffix: end of a mask's name, the rest of which it shares with its picture.
    """

    ignore: tuple[int, ...] | None = None
    background: tuple[int, ...] | None = None
    reduce_zero_label: bool = False
    stuff: str | None = None
    mask_suffix: str | None = None

    @classmethod
    def make(
        cls,
        ignore: int | Sequence[int] | None,
        background: int | Sequence[int] | None,
        reduce_zero_label: bool,
        stuff: str | None,
        mask_suffix: str | None,
    ) -> SemanticOptions | None:
        """From what a person writes; None where they wrote nothing."""
        chosen = cls(_values(ignore), _values(background), reduce_zero_label, stuff, mask_suffix)
        return None if chosen == cls() else chosen


def _values(given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    return (given,) if isinstance(given, int) else tuple(given)


def data_card_names() -> tuple[str, ...]:
    """Data cards that say what the values of masks mean."""
    return tuple(dataset.name for dataset in known_datasets() if dataset.masks is not None)


def locate_semantic(
    root: Location | None,
    *,
    annotations: Location | None,
    images: Location | None,
    masks: Location | None,
    splits: Sequence[str],
    class_list: str | None,
    options: SemanticOptions,
) -> Source:
    """The source of semantic masks that the places lead to: a panoptic file, two folders, or an official layout.

    Raises:
        ParameterError: places or options that do not go together.
        TokenLabelsError: no masks there.
    """
    if annotations is None and masks is None and root is None:
        root = Path()
    if annotations is not None or (masks is None and root is not None and _has_panoptic(root)):
        if annotations is not None and root is not None:
            raise ParameterError("--root and --annotations exclude each other: name the folder or the file.")
        _refuse_for_panoptic(class_list, options)
        return PanopticSource.locate(
            root,
            annotations=annotations,
            masks=masks,
            images=images,
            splits=splits,
            stuff=options.stuff or "background",
        )
    if options.stuff is not None:
        raise ParameterError("--stuff goes with COCO panoptic files; name foreground with --categories instead.")
    if masks is not None:
        if root is not None:
            raise ParameterError("--root and --masks exclude each other: name the data set's folder or the masks.")
        folder = side_by_side(images, masks, splits, options.mask_suffix or ".png")
        return _source(MaskLayout((folder,), None, folder.has_train_ids), class_list, options)
    assert root is not None
    layout = find_layout(root, splits)
    if layout is None:
        raise TokenLabelsError(
            f"{root}: no masks in a layout that is known (ADE20K, COCO-Stuff, Pascal Context, VOC, COCO panoptic): "
            "name the folders with --images and --masks, or try --sample."
        )
    if images is not None or options.mask_suffix is not None:
        raise ParameterError("--images and --mask-suffix go with --masks; a --root has its own.")
    return _source(layout, class_list, options)


def _has_panoptic(root: Location) -> bool:
    return bool(globbed(root / "annotations", "panoptic_*.json"))


def _refuse_for_panoptic(class_list: str | None, options: SemanticOptions) -> None:
    if class_list is not None:
        raise ParameterError("a panoptic file has its own categories: leave the list out.")
    if options.ignore is not None or options.background is not None or options.reduce_zero_label:
        raise ParameterError(
            "--ignore, --background and --reduce-zero-label are for masks of values, not panoptic ones."
        )
    if options.mask_suffix is not None:
        raise ParameterError("--mask-suffix is for folders of masks; a panoptic file names its own.")


def _source(layout: MaskLayout, class_list: str | None, options: SemanticOptions) -> SemanticSource:
    file = located(class_list) if class_list is not None and is_file(located(class_list)) else None
    name = layout.card if file or class_list is None else class_list
    card = None if name is None else _card(name)
    categories: tuple[Category, ...] | None = None
    if file:
        categories = read_class_list(file, first=1 if options.reduce_zero_label else 0)
    elif card:
        own = _own_list(layout.folders[0]) if class_list is None and layout.card == "voc" else None
        categories = own or _meanings(card, train_ids=layout.train_ids)
    ignore, background = DEFAULT_IGNORE, DEFAULT_BACKGROUND
    if layout.train_ids:
        background = ()
    elif card is not None and card.masks is not None:
        ignore, background = card.masks.ignore, card.masks.background
    if options.background is not None:  # a value that a person names is not what it is by default
        ignore = tuple(value for value in ignore if value not in options.background)
        background = options.background
    else:
        ignored = {*(options.ignore or ()), *([0] if options.reduce_zero_label else [])}
        background = tuple(value for value in background if value not in ignored)
    if options.ignore is not None:
        ignore = options.ignore
    return SemanticSource(layout.folders, categories, ignore, background, options.reduce_zero_label)


def _card(name: str) -> KnownDataset:
    known = {dataset.name: dataset for dataset in known_datasets() if dataset.masks is not None}
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"the cards are {', '.join(known)}."
        raise ParameterError(f"{name}: is neither a file with a list of categories nor a data card: {hint}")
    return known[name]


def _meanings(card: KnownDataset, *, train_ids: bool) -> tuple[Category, ...]:
    """The card's categories, the id of each being its mask value."""
    assert card.masks is not None
    return tuple(
        Category(place if train_ids else entry["id"] - card.masks.offset, entry["name"], entry.get("supercategory", ""))
        for place, entry in enumerate(card.categories)
    )


def _own_list(folder: MaskFolder) -> tuple[Category, ...] | None:
    """`labelmap.txt` of a VOC folder."""
    path = folder.masks.parent / "labelmap.txt"
    return read_class_list(path) if is_file(path) else None
