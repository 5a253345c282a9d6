"""COCO instances files -> records.

Layout: `ROOT/annotations/instances_<split>.json` with images in `ROOT/<split>/`, or any single instances file.
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
from tokenlabels.errors import AnnotationFileError, ParameterError, TokenLabelsError
from tokenlabels.rules import RuleName
from tokenlabels.sources.base import Reading
from tokenlabels.sources.coco_columns import to_records
from tokenlabels.sources.coco_json import read_document
from tokenlabels.sources.names import split_name
from tokenlabels.storage import content, globbed, is_file, is_folder, located, size_of
from tokenlabels.store_faults import reason_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_PREFIX = "instances_"


@dataclass(frozen=True, slots=True)
class CocoSource:
    """Instances files to read.

    Attributes:
        files: (split name, annotation file, image folder) for each split.
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
            root: a folder in the official layout; by default `.`, `$COCO_ROOT`, `./coco`, the first that has it.
            annotations: a single instances file instead.
            images: its image folder; by default `ROOT/<split>`.
            splits: splits to read, by default every `annotations/instances_*.json`; one renames a single file.

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
            raise TokenLabelsError(
                f"{root}: no annotations/{_PREFIX}*.json in this folder: name another --root or an --annotations file, "
                "or try --sample."
            )
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

    def input_bytes(self, *, masks: bool) -> int:  # noqa: ARG002  the file is read whole either way
        """See `Source`."""
        return sum(size_of(path) for _, path, _ in self.files if is_file(path))

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
        splits: list[Split] = []
        table: dict[int, Category] = {}
        for name, path, images in self.files:
            reading.progress(f"reading {path.name}")
            split, categories = _read_split(name, path, images, reading, log)
            splits.append(on_common_table(split, categories, table, path))
        return Dataset(self.format, tuple(splits), tuple(table.values()))


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
    if not np.array_equal(moved, np.arange(len(categories))):
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
    data = read_bytes(path)
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(lambda: hashlib.sha256(data).hexdigest())
        document = read_document(data, path, log, masks=reading.masks)
        records = to_records(document, path, reading, log)
        file = SourceFile(path.name, len(data), hashing.result())
    return Split(name, records, images, file), document.categories
