"""Where the masks of a semantic data set are: the official layouts, and two folders side by side.

ADE20K          ROOT/images/SPLIT, ROOT/annotations/SPLIT, splits training and validation
COCO-Stuff      ROOT/images/SPLIT, ROOT/annotations/SPLIT, or ROOT/SPLIT, ROOT/stuffthingmaps_trainval2017/SPLIT
Pascal Context  ROOT/JPEGImages, ROOT/SegmentationClassContext, lists in ROOT/ImageSets/SegmentationContext
VOC             ROOT/JPEGImages, ROOT/SegmentationClass, lists in ROOT/ImageSets/Segmentation

A mask belongs to the picture with the same path but for the suffix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.errors import AnnotationFileError, ParameterError, TokenLabelsError
from tokenlabels.images import IMAGE_SUFFIXES
from tokenlabels.sources.names import split_name
from tokenlabels.sources.paths import is_inside
from tokenlabels.storage import content, files_below, globbed, is_folder, same_place
from tokenlabels.store_faults import reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_TRAIN_IDS = "_labelTrainIds.png"
_MAX_LIST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """The masks and pictures of one split.

    Attributes:
        name: of the split.
        images: folder of the pictures, None where there are none.
        masks: folder of the masks.
        suffix: end of a mask's file name, the rest of which it shares with its picture.
        listed: file with the ids, one a line; None: every mask in the folder, and every picture should have one.
    """

    name: str
    images: Location | None
    masks: Location
    suffix: str = ".png"
    listed: Location | None = None

    @property
    def has_train_ids(self) -> bool:
        """Whether values are numbers without gaps that training code gave, not those of the data set."""
        return self.suffix.endswith(_TRAIN_IDS)


@dataclass(frozen=True, slots=True)
class MaskLayout:
    """An official layout that was found.

    Attributes:
        folders: one for each split.
        card: name of the data card that says what values mean, None where the layout does not tell.
        train_ids: values are places in the card's table, counted from 0, not those that the card gives; none of them
            is background.
    """

    folders: tuple[MaskFolder, ...]
    card: str | None
    train_ids: bool = False


@dataclass(frozen=True, slots=True)
class MaskPair:
    """A mask and its picture, relative to their folders with `/`; the picture is empty where there is none."""

    image_id: str
    mask: str
    image: str


def find_layout(root: Location, splits: Sequence[str] = ()) -> MaskLayout | None:
    """The official layout of a folder, of some splits or all (a list `trainval` only where it is alone or named).

    Returns:
        None where the folder has no such layout.

    Raises:
        TokenLabelsError: no such folder; or it has a layout, but not such a split; or two of its splits would have the
            same name.
    """
    if not is_folder(root):
        raise TokenLabelsError(f"{root}: no such folder: name the data set's folder with --root, or try --masks.")
    layout = _by_lists(root) or _by_folders(root)
    if layout is None:
        return None
    known: dict[str, MaskFolder] = {}
    for folder in layout.folders:
        if known.setdefault(folder.name, folder) is not folder:
            raise TokenLabelsError(f"{root}: two of its splits would be called {folder.name}: rename one.")
    wanted = [split_name(split) for split in splits] or [name for name in known if name != "trainval"] or list(known)
    for split in wanted:
        if split not in known:
            raise TokenLabelsError(f"{root}: no masks of the split {split}; the splits there are {', '.join(known)}.")
    return replace(layout, folders=tuple(known[split] for split in dict.fromkeys(wanted)))


def _by_lists(root: Location) -> MaskLayout | None:
    for masks, lists, card in (
        ("SegmentationClassContext", "SegmentationContext", "pascal-context"),
        ("SegmentationClass", "Segmentation", "voc"),
    ):
        if is_folder(root / masks) and is_folder(root / "JPEGImages"):
            folders = tuple(
                MaskFolder(split_name(path.stem), root / "JPEGImages", root / masks, listed=path)
                for path in globbed(root / "ImageSets" / lists, "*.txt")
            )
            if folders:
                return MaskLayout(folders, card)
    return None


def _by_folders(root: Location) -> MaskLayout | None:
    for masks, images in (("annotations", "images"), ("stuffthingmaps_trainval2017", ""), ("stuffthingmaps", "")):
        names = sorted(
            path.name
            for path in globbed(root / masks, "*")
            if is_folder(path)
            and is_folder((root / images if images else root) / path.name)
            and not path.name.startswith("panoptic")
        )
        if not names:
            continue
        suffix = _TRAIN_IDS if globbed(root / masks, f"*/*{_TRAIN_IDS}") else ".png"
        stuff = any(name.endswith(("2017", "2014")) for name in names)
        card = "coco-stuff" if stuff else "ade20k" if set(names) & {"training", "validation"} else None
        folders = tuple(
            MaskFolder(split_name(name), (root / images if images else root) / name, root / masks / name, suffix)
            for name in names
        )
        return MaskLayout(folders, card, suffix == _TRAIN_IDS)
    return None


def side_by_side(images: Location | None, masks: Location, splits: Sequence[str], suffix: str) -> MaskFolder:
    """Two folders as one split, called by `splits` (one name at most), else by the folder of the masks.

    Raises:
        TokenLabelsError: no such folder.
        ParameterError: several names.
    """
    if len(splits) > 1:
        raise ParameterError("--masks is one split: give --split once at most, to name it.")
    for folder, option in ((masks, "masks"), (images, "images")):
        if folder is not None and not is_folder(folder):
            raise TokenLabelsError(f"{folder}: no such folder: name the folder of the {option} with --{option}.")
    return MaskFolder(split_name(splits[0] if splits else masks.resolve().name), images, masks, suffix)


def find_pairs(folder: MaskFolder) -> tuple[list[MaskPair], list[str]]:
    """The masks of a folder, sorted by id, each with its picture; and the pictures that should have one and do not.

    Raises:
        TokenLabelsError: there are no masks, or none of them has a picture.
    """
    names = _files(folder.masks, besides=folder.images)
    masks = {name.removesuffix(folder.suffix): name for name in names if name.endswith(folder.suffix)}
    if not masks:
        raise TokenLabelsError(
            f"{folder.masks}: holds no *{folder.suffix}: name the folder of the masks with --masks, and the end of "
            "their names with --mask-suffix."
        )
    together = folder.images is not None and same_place(folder.images, folder.masks)
    pictures: dict[str, str] = {}
    for name in _files(folder.images, besides=folder.masks) if folder.images is not None else ():
        stem, suffix = os.path.splitext(name)  # noqa: PTH122  of a text with `/`, not of a path
        if suffix.lower() in IMAGE_SUFFIXES and not (together and name.endswith(folder.suffix)):
            pictures.setdefault(stem, name)
    listed = sorted(masks) if folder.listed is None else _listed(folder.listed)
    wanted = [image_id for image_id in listed if image_id in masks]
    if folder.listed is not None and not wanted:
        raise AnnotationFileError(folder.listed, f"lists no image that has a mask in {folder.masks}.")
    if folder.images is not None and not any(image_id in pictures for image_id in wanted):
        raise TokenLabelsError(
            f"{folder.images}: no picture in it has the name of a mask in {folder.masks} ({masks[wanted[0]]}, say): "
            "name the right --images, or the end of mask names with --mask-suffix."
        )
    alone = sorted(pictures) if folder.listed is None else listed
    lonely = [pictures.get(image_id, image_id) for image_id in alone if image_id not in masks]
    return [MaskPair(image_id, masks[image_id], pictures.get(image_id, "")) for image_id in wanted], lonely


def _listed(path: Location) -> list[str]:
    try:
        data = content(path, _MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise AnnotationFileError(path, "is too large for a list of ids.")
        ids = {line.strip() for line in data.decode("utf-8-sig").splitlines()} - {""}
    except UnicodeDecodeError:
        raise AnnotationFileError(path, "is no UTF-8 text: a list has one id a line.") from None
    except OSError as fault:
        raise AnnotationFileError(path, f"cannot be read ({reason_of(fault)}).") from None
    strange = sorted(image_id for image_id in ids if not is_inside(image_id))
    if strange or not ids:
        raise AnnotationFileError(path, f"lists {strange[0][:200]!r}, which is no id." if strange else "is empty.")
    return sorted(ids)


def _files(folder: Location, *, besides: Location | None) -> Iterator[str]:
    """Every file below a folder but hidden ones and those in another folder that lies in it, relative with `/`.

    Links to folders are not followed.

    Raises:
        TokenLabelsError: a name is no UTF-8 text.
    """
    if not isinstance(folder, Path):
        yield from _stored_files(folder, besides)
        return
    other = None if besides is None else besides.resolve()
    for path, folders, names in os.walk(folder):
        below = Path(path).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (Path(path) / name).resolve() != other
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            found = prefix + name
            try:
                found.encode()
            except UnicodeEncodeError:
                raise TokenLabelsError(f"{folder}: {found!a} has a name that is no UTF-8 text: rename it.") from None
            yield found


def _stored_files(folder: Location, besides: Location | None) -> Iterator[str]:
    """`_files` of a store."""
    inner = None
    if besides is not None and not same_place(folder, besides) and besides.is_relative_to(folder):  # type: ignore[arg-type]
        inner = besides.relative_to(folder).as_posix() + "/"  # type: ignore[arg-type]
    for name in files_below(folder):
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and not (inner and name.startswith(inner)):
            yield name
