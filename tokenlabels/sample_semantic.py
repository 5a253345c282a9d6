"""A generated data set for semantic segmentation: every pixel has one of 13 classes, or is void.

`write_semantic_sample` draws small scenes of stuff and shapes (see `sample_stuff`) in the layout of VOC's masks,
directly in the folder. Everything follows from the seed; image i and its split are the same whatever the total. Value 0
is called background and is one more kind of stuff, which looks like plaster; `labelmap.txt` names all 13.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenlabels.sample_folder import Drawn, Generator, SampleSummary, splits_of, stem, write_folder
from tokenlabels.sample_masks import labelmap, write_mask
from tokenlabels.sample_stuff import CLASSES, plan_stuff, render_stuff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IMAGES, _MASKS, _LISTS = Path("JPEGImages"), Path("SegmentationClass"), Path("ImageSets/Segmentation")
_LABELMAP = Path("labelmap.txt")


def write_semantic_sample(
    out: Path, *, images: int = 200, seed: int = 0, progress: Callable[[int], None] | None = None
) -> SampleSummary:
    """Write the semantic sample into `out`, or return at once where that very sample is already there.

    A semantic sample with another seed, size or version, or one that was interrupted, is replaced; only files that the
    generator itself wrote are removed. Two processes may ask for the same folder: the second waits for the first.

    Args:
        images: 1 to 1,000,000.
        seed: not negative.
        progress: called with the number of images finished since the last call.

    Returns:
        A summary; its annotations are the shapes.

    Raises:
        ParameterError: `images` or `seed` is out of range.
        OutputError: `out` is a file, holds something else, or cannot be written.
    """

    def draw(root: Path) -> Drawn:
        return _draw_all(root, images, seed, progress)

    return write_folder(Path(out), GENERATOR, images=images, seed=seed, draw=draw)


def _files(images: int) -> Iterator[Path]:
    """Every file of a semantic sample but its markers, relative to its folder."""
    yield _LABELMAP
    for split in ("train", "val"):
        yield _LISTS / f"{split}.txt"
    for number in range(1, images + 1):
        yield _IMAGES / f"{stem(number)}.jpg"
        yield _MASKS / f"{stem(number)}.png"


GENERATOR = Generator("tokenlabels.sample_semantic", 1, _files)


def _draw_all(root: Path, images: int, seed: int, progress: Callable[[int], None] | None) -> Drawn:
    """Draw every image and its mask, and write the lists."""
    shapes = 0
    for number in range(1, images + 1):
        planning, painting = np.random.default_rng([seed, number]).spawn(2)
        scene = plan_stuff(number, planning)
        render_stuff(scene, painting).save(root / _IMAGES / f"{stem(number)}.jpg", quality=85)
        write_mask(scene.mask(), root / _MASKS / f"{stem(number)}.png")
        shapes += len(scene.things)
        if progress is not None:
            progress(1)
    splits = splits_of(images)
    texts = {_LISTS / f"{split}.txt": "".join(f"{stem(n)}\n" for n in numbers) for split, numbers in splits.items()}
    texts[_LABELMAP] = labelmap(CLASSES)
    for path, text in texts.items():
        (root / path).write_text(text)
    digests = {path.as_posix(): hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    return Drawn(shapes, {split: len(numbers) for split, numbers in splits.items()}, digests)
