"""COCO instances files -> records.

Layout: `ROOT/annotations/instances_<split>.json` with images in `ROOT/<split>/`, or any single instances file, or a
folder with one JSON file for each image (see `coco_folder.py`).
Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tokenlabels.annotations import Category, Dataset, SourceFile, Split
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.errors import AnnotationFileError, ParameterError, TokenLabelsError
from tokenlabels.rules import RuleName
from tokenlabels.sources.base import Reading
from tokenlabels.sources.coco_columns import to_records
from tokenlabels.sources.coco_json import read_document
from tokenlabels.sources.names import split_name
from tokenlabels.storage import content, globbed, is_folder, located, size_of
from tokenlabels.store_faults import reason_of
from tokenlabels.walk import listed

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_PREFIX = "instances_"
_MANY_SPLITS = 16


@dataclass(frozen=True, slots=True)
class CocoSource:
    """Instances files to read.

    Attributes:
        files: (split name, annotation file, image folder) for each split; instead of a file also a folder with one for
            each image.
    """

    files: tuple[tuple[str, Location, Location], ...]
    format: str = "coco"
    default_rule: RuleName = "overlap"

    @classmethod
    def locate(
        cls,
        root: Location | None = None,
        *,
        annotations: Location | None = None,
        images: Location | None = None,
        splits: Sequence[str] = (),
    ) -> CocoSource:
        """Find the files.

        Args:
            root: a folder in the official layout, by default `.`, `$COCO_ROOT`, `./coco`, the first that has it; or a
                folder that has a JSON file for each image, or folders of such, each of which is a split.
            annotations: a single instances file instead, or a folder that has, at any depth, a JSON file for each
                image: one split.
            images: its image folder; by default `ROOT/<split>`, or the folder of the JSON files.
            splits: splits to read, by default all; one renames a single file or folder.

        Raises:
            TokenLabelsError: nothing there; or a name that cannot be a split.
        """
        if annotations is not None:
            if root is not None:
                raise ParameterError("--root and --annotations exclude each other: name the folder or the file.")
            if len(splits) > 1:
                raise ParameterError("--annotations is one split: give --split once at most, to name it.")
            stem = annotations.stem.removeprefix(_PREFIX)
            check_folder(images)
            if is_folder(annotations):
                return cls(((_folder_split(annotations, splits), annotations, images or annotations),))
            name = split_name(splits[0] if splits else stem)
            default = (
                annotations.parent.parent / stem if annotations.parent.name == "annotations" else annotations.parent
            )
            return cls(((name, annotations, images or default),))
        root = root or _default_root()
        available = {
            path.stem.removeprefix(_PREFIX): path for path in globbed(root / "annotations", f"{_PREFIX}*.json")
        }
        if not available:
            return cls._locate_folders(root, images, splits)
        for split in splits:
            if split not in available:
                raise TokenLabelsError(
                    f"{root}: no annotations/{_PREFIX}{split}.json; the splits there are {', '.join(available)}."
                )
        if images is not None and len(splits or available) > 1:
            raise ParameterError("--images is the folder of one split: name that --split, or leave --images out.")
        check_folder(images)
        chosen: dict[str, tuple[str, Location, Location]] = {}
        for text in dict.fromkeys(splits or available):
            name = split_name(text)
            if name in chosen:
                raise TokenLabelsError(
                    f"{available[text]}: its split would be called {name}, as that of {chosen[name][1].name}: "
                    "choose one with --split, or rename a file."
                )
            chosen[name] = name, available[text], images or root / text
        return cls(tuple(chosen.values()))

    @classmethod
    def _locate_folders(cls, root: Location, images: Location | None, splits: Sequence[str]) -> CocoSource:
        """The folders below `root` that have a JSON file for each image; or `root` itself, if it is such a folder."""
        from tokenlabels.sources.coco_folder import holds_image_files

        names = [name for name in listed(root) if name[:1] != "."] if is_folder(root) else []
        beside = any(name.lower().endswith(".json") for name in names)
        if beside and holds_image_files(root):
            return cls.locate(annotations=root, images=images, splits=splits)
        folders = [name[:-1] for name in names if name.endswith("/") and not beside]
        available = {name: root / name for name in folders if holds_image_files(root / name)}
        if not available:
            raise TokenLabelsError(
                f"{root}: no annotations/{_PREFIX}*.json in this folder, nor a JSON file for each image: name another "
                "--root or an --annotations file, or try --sample."
            )
        for split in splits:
            if split not in available:
                raise TokenLabelsError(f"{root}: no folder {split} of JSON files; there are {', '.join(available)}.")
        if images is not None and len(splits or available) > 1:
            raise ParameterError("--images is the folder of one split: name that --split, or leave --images out.")
        check_folder(images)
        chosen = {split_name(text): available[text] for text in dict.fromkeys(splits or available)}
        if len(chosen) < len(splits or available):
            raise TokenLabelsError(f"{root}: two folders would be the same split: choose one with --split.")
        return cls(tuple((name, path, images or path) for name, path in chosen.items()))

    def input_bytes(self, *, masks: bool) -> int:  # noqa: ARG002  the file is read whole either way
        """See `Source`."""
        return sum(_bytes_of(path) for _, path, _ in self.files)

    def places(self) -> Sequence[Location]:
        """See `Source`."""
        return [place for _, *places in self.files for place in places]

    def image_folders(self) -> dict[str, Location]:
        """See `Source`."""
        return {name: images for name, _, images in self.files}

    def parameters(self) -> dict[str, Any]:
        """See `Source`."""
        return {}

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """See `Source`."""
        if len(self.files) > _MANY_SPLITS and all(is_folder(path) for _, path, _ in self.files):
            reading.note(
                f"{len(self.files)} folders, each a split: --annotations with the folder above makes them one."
            )
        splits: list[Split] = []
        table: dict[int, Category] = {}
        for name, path, images in self.files:
            split, categories = _read_split(name, path, images, reading, log)
            splits.append(on_common_table(split, categories, table, path))
        return Dataset(self.format, tuple(splits), tuple(table.values()))


def _bytes_of(path: Location) -> int:
    """Bytes of a file, 0 where there is none; of a folder about how many are in it."""
    if is_folder(path):
        from tokenlabels.sources.coco_folder import folder_bytes

        return folder_bytes(path)
    try:
        return size_of(path)
    except OSError:
        return 0


def _folder_split(folder: Location, splits: Sequence[str]) -> str:
    """Name of the split that a folder is."""
    return split_name(splits[0] if splits else folder.resolve().name)


def check_folder(images: Location | None) -> None:
    """Raise `TokenLabelsError` where an image folder is named that is not there."""
    if images is not None and not is_folder(images):
        raise TokenLabelsError(f"{images}: no such folder: name the image folder with --images, or leave it out.")


def _default_root() -> Location:
    candidates = [Path(), *([located(os.environ["COCO_ROOT"])] if os.environ.get("COCO_ROOT") else []), Path("coco")]
    for candidate in candidates:
        if globbed(candidate / "annotations", f"{_PREFIX}*.json"):
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise TokenLabelsError(
        f"no COCO data set found (looked for annotations/{_PREFIX}*.json in {looked}): name its folder with --root, "
        "or try --sample."
    )


def on_common_table(
    split: Split, categories: tuple[Category, ...], table: dict[int, Category], path: Location
) -> Split:
    """Unite the category table of one file with `table`, and renumber the split's categories where that moves them."""
    for category in categories:
        known = table.setdefault(category.id, category)
        if known.name != category.name:
            raise AnnotationFileError(
                path,
                f"calls category {category.id} {category.name!r}, another split calls it {known.name!r}: align them.",
            )
    positions = {category_id: index for index, category_id in enumerate(table)}
    moved = np.array([positions[category.id] for category in categories], np.int32)
    if np.array_equal(moved, np.arange(len(categories))):
        return split
    if isinstance(split.records, DeferredRecords):
        from tokenlabels.sources.coco_folder import on_table

        return on_table(split, moved)
    split.records.categories[:] = moved[split.records.categories]
    return split


def read_bytes(path: Location) -> memoryview:
    """The bytes of a file. Not mapped: a file cut short while it is mapped would end the process."""
    try:
        if not isinstance(path, Path):
            return memoryview(content(path) or _refuse_empty(path))
        path.name.encode()
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise AnnotationFileError(path, "is no regular file: write it to disk first.")
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                _refuse_empty(path)
            data = np.empty(size, np.uint8).data  # numpy asks for huge pages, which fill faster
            filled = 0
            while filled < size and (count := file.readinto(data[filled:])):
                filled += count
    except FileNotFoundError:
        raise AnnotationFileError(path, "no such file: name a file of COCO annotations, or try --sample.") from None
    except UnicodeEncodeError:
        raise AnnotationFileError(path, "has a name that is no UTF-8 text: rename it.") from None
    except (OSError, ValueError) as fault:
        raise AnnotationFileError(path, f"cannot be read ({reason_of(fault)}).") from None
    return data[:filled]


def _refuse_empty(path: Location) -> NoReturn:
    raise AnnotationFileError(path, "is empty: it should hold COCO annotations as JSON.")


def _read_split(
    name: str, path: Location, images: Location, reading: Reading, log: FindingLog
) -> tuple[Split, tuple[Category, ...]]:
    if is_folder(path):
        from tokenlabels.sources.coco_folder import read_folder

        return read_folder(name, path, images, reading, log)
    reading.progress(f"reading {path.name}")
    data = read_bytes(path)
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(lambda: hashlib.sha256(data).hexdigest())
        document = read_document(data, path, log, masks=reading.masks)
        records = to_records(document, path.name, reading, log)
        file = SourceFile(path.name, len(data), hashing.result())
    return Split(name, records, images, file), document.categories
