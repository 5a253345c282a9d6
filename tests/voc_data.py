"""A small VOC folder that tests write, and what its labels should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

import tokenlabels
from tokenlabels.grid import PatchGrid, parse_grids
from tokenlabels.sources.voc import VOC_NAMES

Invoke: TypeAlias = Callable[..., Result]
Change: TypeAlias = Callable[[Path], Any]
Floats: TypeAlias = NDArray[np.float64]

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "voc" / "VOCdevkit"
CLOSE = 1e-6
BOX_RULE, MASK_RULE = "overlap", "pixel-ratio"


# --- a small data set -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """One object: its corners, 1-based and inclusive, as text."""

    name: str
    corners: tuple[Any, Any, Any, Any]
    difficult: Any = 0
    more: str = ""

    def xml(self) -> str:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), self.corners, strict=True)
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        return (
            f"<object>{self.more}<name>{self.name}</name><difficult>{self.difficult}</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )


@dataclass(frozen=True)
class Photo:
    """One image with its objects; `size` is the text of its <size>."""

    image_id: str
    width: int
    height: int
    things: tuple[Thing, ...] = ()
    size: str | None = None
    segmented: int = 1
    masks: bool = True

    def xml(self) -> str:
        size = f"<size><width>{self.width}</width><height>{self.height}</height><depth>3</depth></size>"
        return (
            f"<annotation><filename>{self.image_id}.jpg</filename>{size if self.size is None else self.size}"
            f"<segmented>{self.segmented}</segmented>{''.join(thing.xml() for thing in self.things)}</annotation>"
        )

    def object_mask(self) -> NDArray[np.uint8]:
        """Boxes filled one after the other, their rim void."""
        values = np.zeros((self.height, self.width), np.uint8)
        for place, thing in enumerate(self.things, 1):
            left, top, right, bottom = (int(float(corner)) for corner in thing.corners)
            values[top - 1 : bottom, left - 1 : right] = 255
            values[top : bottom - 1, left : right - 1] = place
        return values

    def class_mask(self, names: Sequence[str] = VOC_NAMES) -> NDArray[np.uint8]:
        meant = np.arange(256, dtype=np.uint8)
        for place, thing in enumerate(self.things, 1):
            meant[place] = names.index(thing.name) + 1
        values: NDArray[np.uint8] = meant[self.object_mask()]
        return values


CAT, DOG = Thing("cat", (3, 4, 22, 25)), Thing("dog", (30, 10, 57, 33), 1)
PHOTOS = (
    Photo("b", 61, 40, (CAT, DOG)),
    Photo("a c", 37, 53, (Thing("person", (1, 1, 37, 20)), Thing("cat", (5, 30, 20, 50)))),
    Photo("d", 48, 48),
)


def save_mask(path: Path, values: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(7).integers(0, 256, 768).astype(np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_voc(root: Path, photos: Sequence[Photo] = PHOTOS, lists: dict[str, str] | None = None) -> Path:
    """A VOC folder; without `lists` every image is in both `trainval.txt`."""
    for photo in photos:
        for folder in ("Annotations", "JPEGImages"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{photo.image_id}.xml").write_text(photo.xml())
        noise = np.random.default_rng(len(photo.image_id)).integers(0, 256, (photo.height, photo.width, 3))
        Image.fromarray(noise.astype(np.uint8)).save(root / "JPEGImages" / f"{photo.image_id}.jpg")
        if photo.masks:
            save_mask(root / "SegmentationObject" / f"{photo.image_id}.png", photo.object_mask())
            save_mask(root / "SegmentationClass" / f"{photo.image_id}.png", photo.class_mask())
    everything = "".join(f"{photo.image_id}\n" for photo in photos)
    lists = {"Main/trainval": everything, "Segmentation/trainval": everything} if lists is None else lists
    for name, text in lists.items():
        path = root / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


def build(root: Path, **options: Any) -> tokenlabels.Build:
    name = f"out{sum(1 for _ in root.parent.glob('out*'))}"
    chosen: dict[str, Any] = {"out": root.parent / name, "patch": 8, "image_size": 48} | options
    return tokenlabels.build("voc", root=root, **chosen)


def rows_of(built: tokenlabels.Build, grid: str | None = None) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in built.table(grid).to_pylist()}


def findings_of(built: tokenlabels.Build) -> dict[str, int]:
    found: dict[str, int] = built.manifest["findings"]
    return found


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- oracles ----------------------------------------------------------------------------------------------------------


def box_shares(corners: Sequence[float], size: tuple[int, int], grid: PatchGrid) -> Floats:
    """(cells,) share of every cell that lies in an official box, pixels xmin..xmax and ymin..ymax counted from 1."""
    width, height = size
    y, x = grid.edges(width, height)
    left, top = max(corners[0] - 1, 0), max(corners[1] - 1, 0)
    right, bottom = min(corners[2], width), min(corners[3], height)
    tall = np.maximum(np.minimum(y[1:], bottom) - np.maximum(y[:-1], top), 0)
    wide = np.maximum(np.minimum(x[1:], right) - np.maximum(x[:-1], left), 0)
    shares: Floats = (np.outer(tall, wide) / np.outer(np.diff(y), np.diff(x))).ravel()
    return shares


def expected_labels(row: dict[str, Any], passes: Any, ignored: NDArray[np.bool_]) -> None:
    labels = np.where(passes, 1, np.where(ignored, 255, 0))
    np.testing.assert_array_equal(row["labels"], labels)
    assert row["fg_count"] == (labels == 1).sum()
    assert row["ignore_count"] == (labels == 255).sum()


RESIZES: list[dict[str, Any]] = [
    {"resize": "squash", "patch": [8, "4x16"], "image_size": [48, "64x48"]},
    {"resize": "letterbox", "patch": 8, "image_size": [48, "40x64"]},
    {"resize": "shortest-edge", "patch": [8, "6x10"], "image_size": 40, "max_size": 56},
    {"resize": "native", "patch": [16, "5x7"], "image_size": "native"},
]


def grids_of(options: dict[str, Any]) -> dict[str, PatchGrid]:
    grids = parse_grids(options["patch"], options["image_size"], options["resize"], options.get("max_size"))
    return {grid.name: grid for grid in grids}
