"""Build labels from masks, and from VOC boxes; compare with the plain recipes, in one run.

    uv run python tests/benchmarks/bench_masks.py [--images 10000] [--workers 2] [--repeat 3] [--json FILE]

The VOC folder has N images: the class masks of `../shared/data/voc` over and over (those of the generated sample where
that is absent), as hard links, each with an XML of a few boxes. No picture is opened, so none is there. The semantic
folder is a link to the same masks, with small pictures of the same sizes.

*recipes*: what people write, in one process, timed on every 20th image and scaled: Pillow and numpy, and a Python loop
over the patches, its borders rounded outwards: `(mask[...] > 0).mean()`, for categories `np.bincount` of each patch;
for boxes ElementTree and the largest overlap of each patch by numpy. They are rougher than what is built, and start
from open files; the builds are whole processes, which also hash every file. *decoding*: reading and decoding the masks
with Pillow alone, which recipe and build both do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data" / "voc" / "masks_without_images" / "SegmentationClassAug"
GRID = 24
EVERY = 20
CLASSES = ["background"] + [f"class{value}" for value in range(1, 255)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each build; the best counts")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, in seconds."""
    voc, pictures = write_data(folder, real_masks(folder), arguments.images)
    masks = voc / "SegmentationClass"
    sources = {
        "voc masks": ["voc", "--root", str(voc), "--rule", "pixel-ratio"],
        "semantic masks": ["semantic", "--images", str(pictures), "--masks", str(masks), "--categories"],
        "voc boxes": ["voc", "--root", str(voc), "--rule", "overlap"],
    }
    sources["semantic masks"].append(str(folder / "classes.txt"))
    recipes: dict[str, Callable[[str], object]] = {
        "voc masks": lambda stem: foreground_shares(read_mask(masks / f"{stem}.png")),
        "semantic masks": lambda stem: majorities(read_mask(masks / f"{stem}.png")),
        "voc boxes": lambda stem: box_overlaps(voc / "Annotations" / f"{stem}.xml"),
    }
    figures: dict[str, Any] = {"images": arguments.images, "workers": arguments.workers}
    stems = sorted(path.stem for path in masks.iterdir())
    figures["decoding"] = recipe_seconds(lambda stem: read_mask(masks / f"{stem}.png"), stems)
    for name, words in sources.items():
        build([*words, "--limit", "8"], folder / f"warm {name}", 2)  # compiles what is to be compiled
        runs = [build(words, folder / f"{name} {run}", arguments.workers) for run in range(arguments.repeat)]
        one = build(words, folder / f"{name} alone", 1)
        recipe = recipe_seconds(recipes[name], stems)
        best = min(runs)
        figures[name] = {
            "wall": best,
            "images_per_second": arguments.images / best,
            "wall_one_worker": one,
            "recipe": recipe,
            "times_faster": recipe / best,
            "times_faster_one_worker": recipe / one,
        }
    return figures


def real_masks(folder: Path) -> list[Path]:
    """Class masks to repeat."""
    if SHARED.is_dir():
        return sorted(SHARED.glob("*.png"))
    words = [sys.executable, "-m", "cli.tokenlabels", "sample", str(folder / "sample"), "--images", "200"]
    subprocess.run(words, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return sorted((folder / "sample" / "VOCdevkit" / "VOC2012" / "SegmentationClass").glob("*.png"))


def write_data(folder: Path, masks: list[Path], images: int) -> tuple[Path, Path]:
    """A VOC folder and a folder of pictures for the same masks, linked where they can be."""
    voc, pictures, originals = folder / "voc", folder / "pictures", folder / "originals"
    for made in (voc / "Annotations", voc / "SegmentationClass", voc / "ImageSets" / "Main", pictures, originals):
        made.mkdir(parents=True)
    sources, xmls, jpegs = [], [], []
    for number, mask in enumerate(masks[:images]):
        sources.append(originals / f"{number}.png")
        sources[-1].write_bytes(mask.read_bytes())
        with Image.open(mask) as picture:
            values = np.asarray(picture)
        xmls.append(xml_of(values))
        jpegs.append(originals / f"{number}.jpg")
        Image.new("L", values.shape[::-1]).save(jpegs[-1], quality=10)
    stems = [f"{number:06d}" for number in range(images)]
    for number, stem in enumerate(stems):
        of = number % len(sources)
        os.link(sources[of], voc / "SegmentationClass" / f"{stem}.png")
        os.link(jpegs[of], pictures / f"{stem}.jpg")
        (voc / "Annotations" / f"{stem}.xml").write_text(xmls[of])
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(stems))
    (voc / "ImageSets" / "Segmentation").mkdir()
    (voc / "ImageSets" / "Segmentation" / "trainval.txt").write_text("\n".join(stems))
    (voc / "labelmap.txt").write_text("\n".join(CLASSES))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    os.sync()  # else the disk is still busy with it while the builds are timed
    return voc, pictures


def xml_of(values: NDArray[np.uint8]) -> str:
    """An annotation with the box of every class."""
    height, width = values.shape
    objects = []
    for value in np.setdiff1d(values, [0, 255]).tolist():
        ys, xs = np.nonzero(values == value)
        sides = {"xmin": xs.min() + 1, "ymin": ys.min() + 1, "xmax": xs.max() + 1, "ymax": ys.max() + 1}
        box = "".join(f"<{side}>{place}</{side}>" for side, place in sides.items())
        details = "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        objects.append(f"<object><name>{CLASSES[value]}</name>{details}<bndbox>{box}</bndbox></object>")
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}<segmented>1</segmented>{''.join(objects)}</annotation>"


def build(words: list[str], out: Path, workers: int) -> float:
    """Run the command, whole process; wall seconds."""
    command = [sys.executable, "-m", "cli.tokenlabels", "build", *words, "--out", str(out), "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run([*command, "--json"], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def recipe_seconds(recipe: Callable[[str], object], stems: list[str]) -> float:
    """A recipe on every 20th image, scaled to all."""
    chosen = stems[::EVERY]
    start = time.perf_counter()
    for stem in chosen:
        recipe(stem)
    return (time.perf_counter() - start) * len(stems) / len(chosen)


def read_mask(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def borders(side: int) -> list[tuple[int, int]]:
    """(first, last + 1) pixel of each patch, rounded outwards."""
    edges = np.arange(GRID + 1) * side / GRID
    return list(zip(np.floor(edges[:-1]).astype(int).tolist(), np.ceil(edges[1:]).astype(int).tolist(), strict=True))


def foreground_shares(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    inside = (values > 0) & (values < 255)
    shares = np.zeros((GRID, GRID))
    for i, (top, bottom) in enumerate(borders(values.shape[0])):
        for j, (left, right) in enumerate(borders(values.shape[1])):
            shares[i, j] = (inside[top:bottom, left:right] > 0).mean()
    return shares


def majorities(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Category of the largest area of each patch; its share of foreground is what is counted beside category 0."""
    found, shares = np.zeros((GRID, GRID), np.int64), np.zeros((GRID, GRID))
    for i, (top, bottom) in enumerate(borders(values.shape[0])):
        for j, (left, right) in enumerate(borders(values.shape[1])):
            counts = np.bincount(values[top:bottom, left:right].ravel(), minlength=256)
            found[i, j] = counts[:255].argmax()
            shares[i, j] = counts[1:255].sum() / counts.sum()
    return found


def box_overlaps(path: Path) -> NDArray[np.float64]:
    root = ElementTree.parse(path).getroot()
    width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(found.findtext(f"bndbox/{side}") or 0) for side in corners] for found in root.iter("object")]
    shares = np.zeros((GRID, GRID))
    if not boxes:
        return shares
    left, top, right, bottom = np.array(boxes).T
    for i in range(GRID):
        for j in range(GRID):
            y, x = i * height / GRID, j * width / GRID
            tall = np.clip(np.minimum(bottom, y + height / GRID) - np.maximum(top - 1, y), 0, None)
            wide = np.clip(np.minimum(right, x + width / GRID) - np.maximum(left - 1, x), 0, None)
            shares[i, j] = (tall * wide).max() / (height / GRID * width / GRID)
    return shares


def print_figures(figures: dict[str, Any]) -> None:
    print(f"{figures['images']:,} images, {figures['workers']} workers; decoding the masks {figures['decoding']:.1f} s")
    for name in ("voc masks", "semantic masks", "voc boxes"):
        run = figures[name]
        print(
            f"{name}: {run['wall']:.2f} s, {run['images_per_second']:,.0f} images/s; recipe {run['recipe']:.1f} s, "
            f"{run['times_faster']:.1f} x; one worker {run['wall_one_worker']:.2f} s, "
            f"{run['times_faster_one_worker']:.1f} x"
        )


if __name__ == "__main__":
    main()
