"""Known data sets: the front matter of the files in `data_cards/`."""

from __future__ import annotations

import functools
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import msgspec
import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class MaskValues(msgspec.Struct, frozen=True):
    """How to read masks that hold one value per pixel: category id = value + `offset`, but for the values named here.

    Attributes:
        ignore: raw values without a label (void, unlabelled).
        background: raw values that are background. No category has their id.
        offset: added to every other value.
    """

    ignore: tuple[int, ...] = ()
    background: tuple[int, ...] = ()
    offset: int = 0


class Archive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A zip or tar file that a data set is published as.

    Names of members are patterns, in which `*` stands for anything and `{split}` for the name of a chosen split.

    Attributes:
        file: its name; the end says what it is.
        urls: where it is, the official address first.
        splits: what it has something of: name for `download` -> name for `build`.
        bytes: its size; None: not known.
        hash: `algorithm:hex digest`; empty: not known.
        annotations: members with annotations.
        images: members with pictures.
        inner: member that is a zip file itself -> what of it is unpacked, beside it.
        folder: the `--root` of `build`, relative to that of `download`.
    """

    file: str
    urls: tuple[str, ...]
    splits: dict[str, str]
    bytes: int | None = None
    hash: str = ""
    annotations: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    inner: dict[str, str] = {}
    folder: str = "."


class KnownDataset(msgspec.Struct, frozen=True):
    """The front matter of one file in `data_cards/`.

    Attributes:
        name: short name.
        pretty_name: name for people.
        license: licence of the annotations, as the Hub names it.
        categories: {id, name} in official order; supercategory and isthing where the data set has them.
        splits: split -> {images, annotations} as published; what is not published is left out, annotations are 0
            where there are no instances.
        citation: BibTeX.
        homepage: address.
        task_categories: as the Hub names them.
        languages: of the category names.
        masks: values in the masks, for data sets whose masks hold one value per pixel.
        source: format that `build` reads it as, of those that can be downloaded.
        downloads: files that it is published as.
    """

    name: str
    pretty_name: str
    license: str
    categories: list[dict[str, Any]]
    splits: dict[str, dict[str, int]] = {}
    citation: str = ""
    homepage: str = ""
    task_categories: list[str] = []
    languages: list[str] = []
    masks: MaskValues | None = None
    source: str = ""
    downloads: tuple[Archive, ...] = ()


@functools.cache
def known_datasets() -> tuple[KnownDataset, ...]:
    """Every data set that has a card; read once, for it takes longer than a small build."""
    cards = sorted((file for file in _cards().iterdir() if file.name.endswith(".md")), key=lambda file: file.name)
    fronts = [file.read_text("utf-8").split("---\n", 2)[1] for file in cards]
    return tuple(msgspec.convert(yaml.load(front, _LOADER), KnownDataset) for front in fronts)  # noqa: S506  it is safe


def _cards() -> Traversable:
    """`data_cards/`: inside the installed package, or beside it in a source tree."""
    packaged = files("tokenlabels") / "data_cards"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "data_cards"
