"""A generated data set, so that every command works, and a model can be trained, on a machine with no data.

`write_sample` draws photograph-like scenes of textured shapes and writes them twice: as COCO directly in the folder,
and as VOC in `VOCdevkit/VOC2012`, with the JPEGs shared by hard link. Everything follows from the seed; image i and
its split are the same whatever the total. In COCO, polygons describe what is *visible* of a shape, so one behind a pole
has several parts; polygons cannot say holes, so no shape has one. In VOC the pixels of a crowd are void.

Fixed by the image number: `val` on 2, 7, 12, ...; no annotations on 3, 15, 27, ... So that even a few images hold every
case, photo scenes, the default, also fix a crowd on 5, 21, ... (uncompressed RLE) and 13, 29, ... (compressed), and a
shape cut in two by a pole on 1, 7, 13, ... Simple scenes have neither: one to three large shapes lie wholly inside and
apart; they are for detectors that are to learn quickly.

The default 200 images take 3.8 s on one core of an AMD EPYC, everything included.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import shapely
from pycocotools import mask as coco_mask

from tokenlabels.errors import ParameterError
from tokenlabels.sample_drawing import render
from tokenlabels.sample_folder import Drawn, Generator, SampleSummary, split_of, splits_of, stem, write_folder
from tokenlabels.sample_masks import VOID, borders, labelmap, write_mask
from tokenlabels.sample_scene import CATEGORIES, Category, plan, plan_simple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokenlabels.sample_scene import Scene

Scenes: TypeAlias = Literal["photo", "simple"]

VOC_FOLDER = Path("VOCdevkit/VOC2012")
_LISTS = ("Main", "Segmentation")
_PLANS: dict[Scenes, Callable[[int, np.random.Generator], Scene]] = {"photo": plan, "simple": plan_simple}


def write_sample(
    out: Path,
    *,
    images: int = 200,
    seed: int = 0,
    scenes: Scenes = "photo",
    progress: Callable[[int], None] | None = None,
) -> SampleSummary:
    """Write the sample into `out`, or return at once where that very sample is already there.

    A sample with another seed, size, kind of scenes or version, or one that was interrupted, is replaced; only files
    that the generator itself wrote are removed. Two processes may ask for the same folder: the second waits for the
    first.

    Args:
        images: 1 to 1,000,000.
        seed: not negative.
        scenes: photo, with every case that annotations know; simple, one to three large shapes that lie apart.
        progress: called with the number of images finished since the last call.

    Raises:
        ParameterError: `images` or `seed` is out of range, or `scenes` no kind of scenes.
        OutputError: `out` is a file, holds something else, or cannot be written.
    """
    if scenes not in _PLANS:
        raise ParameterError(f"The scenes of a sample are {' or '.join(_PLANS)}, not {scenes!r}.")
    kind = {} if scenes == "photo" else {"scenes": scenes}  # photo scenes go without saying

    def draw(root: Path) -> Drawn:
        return _draw_all(root, images, seed, scenes, progress)

    return write_folder(Path(out), GENERATOR, images=images, seed=seed, draw=draw, **kind)


def _files(images: int) -> Iterator[Path]:
    """Every file of a sample but its markers, relative to its folder."""
    for split in ("train", "val"):
        yield Path("annotations", f"instances_{split}.json")
    for split, name in ((split, name) for split in ("train", "val", "trainval") for name in _LISTS):
        yield VOC_FOLDER / "ImageSets" / name / f"{split}.txt"
    yield VOC_FOLDER / "labelmap.txt"
    for number in range(1, images + 1):
        name = stem(number)
        yield Path(split_of(number), f"{name}.jpg")
        yield VOC_FOLDER / "JPEGImages" / f"{name}.jpg"
        yield VOC_FOLDER / "Annotations" / f"{name}.xml"
        yield VOC_FOLDER / "SegmentationClass" / f"{name}.png"
        yield VOC_FOLDER / "SegmentationObject" / f"{name}.png"


GENERATOR = Generator("tokenlabels.sample", 1, _files)


def _draw_all(root: Path, images: int, seed: int, scenes: Scenes, progress: Callable[[int], None] | None) -> Drawn:
    """Draw every image, and write the lists and the annotation files."""
    splits = splits_of(images)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    annotations: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for number in range(1, images + 1):
        planning, painting = np.random.default_rng([seed, number]).spawn(2)
        scene = _PLANS[scenes](number, planning)
        labels = _labels(scene, number)
        split = split_of(number)
        records[split].append(_coco_image(scene, number))
        annotations[split].extend(_coco_annotation(label, number, place) for place, label in enumerate(labels, 1))
        jpeg = root / split / f"{stem(number)}.jpg"
        render(scene, painting).save(jpeg, quality=85)
        _write_voc_image(root / VOC_FOLDER, jpeg, scene, labels)
        if progress is not None:
            progress(1)
    _write_voc_lists(root / VOC_FOLDER, splits)
    files = {}
    for split in splits:
        name = f"annotations/instances_{split}.json"
        data = json.dumps(_coco_document(records[split], annotations[split]), separators=(",", ":")).encode()
        (root / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()
    counts = {split: len(numbers) for split, numbers in splits.items()}
    return Drawn(sum(map(len, annotations.values())), counts, files)


# --- annotations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Label:
    """One annotation: what both formats need to know.

    Attributes:
        segmentation: as COCO writes it, polygons or an RLE.
        box: x, y, width, height in pixels, tight around the segmentation.
        mask: (height, width) of 0 and 1, the pixels that pycocotools makes of the segmentation.
        occluded, truncated: hidden in part by something in front, cut by the image border.
        share: of the whole shape that is visible.
    """

    category: Category
    segmentation: list[list[float]] | dict[str, Any]
    box: list[float]
    area: int
    mask: NDArray[np.uint8]
    iscrowd: bool
    truncated: bool
    occluded: bool
    share: float

    @property
    def difficult(self) -> bool:
        return self.area < 180 or self.share < 0.4


def _labels(scene: Scene, number: int) -> list[_Label]:
    """The annotations of a scene, things back to front and then the crowd."""
    frame = shapely.box(0, 0, scene.width, scene.height)
    labels = []
    for thing, region in zip(scene.things, scene.regions, strict=True):
        rings = [np.round(shapely.get_coordinates(part.exterior)[:-1], 2) + 0.0 for part in region.geoms]
        low, high = np.concatenate(rings).min(axis=0), np.concatenate(rings).max(axis=0)
        polygons = [ring.ravel().tolist() for ring in rings]
        mask, area = _rasterise(polygons, scene)
        shape = shapely.Polygon(thing.outline)
        inside = shapely.intersection(shape, frame).area
        labels.append(
            _Label(
                category=thing.category,
                segmentation=polygons,
                box=np.round((*low, *(high - low)), 2).tolist(),
                area=area,
                mask=mask,
                iscrowd=False,
                truncated=inside < 0.98 * shape.area,
                occluded=region.area < 0.98 * inside,
                share=region.area / shape.area,
            )
        )
    if scene.crowd is not None:
        labels.append(_crowd_label(scene, labels, compressed=number % 16 == 13))
    return labels


def _rasterise(polygons: Sequence[list[float]], scene: Scene) -> tuple[NDArray[np.uint8], int]:
    """The pixels of polygons as pycocotools sees them, (height, width) of 0 and 1, and how many they are."""
    rle = coco_mask.merge(coco_mask.frPyObjects(list(polygons), scene.height, scene.width))
    return coco_mask.decode(rle), int(coco_mask.area(rle))


def _crowd_label(scene: Scene, things: Sequence[_Label], *, compressed: bool) -> _Label:
    """The crowd's region as an RLE: its blob less everything that stands before it."""
    if scene.crowd is None:
        raise ValueError("the scene holds no crowd")
    mask, _ = _rasterise([scene.crowd.region.ravel().tolist()], scene)
    for hidden in (
        *(label.mask for label in things),
        *(_rasterise([p.ravel().tolist()], scene)[0] for p in scene.poles),
    ):
        mask &= 1 - hidden
    rle = coco_mask.encode(mask)
    return _Label(
        category=scene.crowd.category,
        segmentation={"counts": rle["counts"].decode() if compressed else _runs(mask), "size": [*mask.shape]},
        box=coco_mask.toBbox(rle).tolist(),
        area=int(coco_mask.area(rle)),
        mask=mask,
        iscrowd=True,
        truncated=False,
        occluded=False,
        share=1.0,
    )


def _runs(mask: NDArray[np.uint8]) -> list[int]:
    """COCO's uncompressed RLE: the lengths of the alternating runs of 0 and 1 down the columns, zeros first."""
    flat = mask.ravel(order="F")
    changes = (np.flatnonzero(np.diff(flat)) + 1).tolist()
    starts = [0, *([0] if flat[0] else []), *changes]
    return [int(run) for run in np.diff([*starts, flat.size])]


# --- COCO -------------------------------------------------------------------------------------------------------------


def _coco_image(scene: Scene, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{stem(number)}.jpg",
        "width": scene.width,
        "height": scene.height,
        "license": 1,
    }


def _coco_annotation(label: _Label, number: int, place: int) -> dict[str, Any]:
    """One annotation; its id is 100 times the image id plus its place there, so that it depends on no other image."""
    return {
        "id": 100 * number + place,
        "image_id": number,
        "category_id": label.category.id,
        "segmentation": label.segmentation,
        "area": float(label.area),
        "bbox": label.box,
        "iscrowd": int(label.iscrowd),
    }


def _coco_document(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": "Generated sample of tokenlabels: textured shapes", "version": str(GENERATOR.version)},
        "licenses": [
            {"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
        ],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": c.supercategory, "id": c.id, "name": c.name} for c in CATEGORIES],
    }


# --- VOC --------------------------------------------------------------------------------------------------------------


def _write_voc_image(voc: Path, jpeg: Path, scene: Scene, labels: Sequence[_Label]) -> None:
    """The XML, both palette masks and the linked JPEG of one image; a crowd is void in the masks and not in the XML."""
    things = [label for label in labels if not label.iscrowd]
    (voc / "Annotations" / f"{jpeg.stem}.xml").write_text(_voc_xml(jpeg.name, scene, things))
    objects = np.zeros((scene.height, scene.width), np.uint8)
    for place, thing in enumerate(things, 1):
        objects[thing.mask.view(bool)] = place
    void = borders(objects)
    for crowd in (label for label in labels if label.iscrowd):
        void |= crowd.mask.view(bool)
    class_of_object = np.array([0, *(CATEGORIES.index(thing.category) + 1 for thing in things)], np.uint8)
    for folder, values in (("SegmentationObject", objects), ("SegmentationClass", class_of_object[objects])):
        values[void] = VOID
        write_mask(values, voc / folder / f"{jpeg.stem}.png")
    linked = voc / "JPEGImages" / jpeg.name
    try:
        os.link(jpeg, linked)
    except OSError:
        shutil.copyfile(jpeg, linked)


def _voc_xml(file_name: str, scene: Scene, things: Sequence[_Label]) -> str:
    """A VOC annotation with 1-based inclusive boxes of all pixels that the COCO box touches."""
    lines = [
        "<annotation>",
        "\t<folder>VOC2012</folder>",
        f"\t<filename>{file_name}</filename>",
        f"\t<source><database>{GENERATOR.name}</database></source>",
        f"\t<size><width>{scene.width}</width><height>{scene.height}</height><depth>3</depth></size>",
        "\t<segmented>1</segmented>",
    ]
    for thing in things:
        x, y, width, height = thing.box
        xmin, ymin = math.floor(x) + 1, math.floor(y) + 1
        xmax, ymax = math.ceil(round(x + width, 2)), math.ceil(round(y + height, 2))
        lines += [
            "\t<object>",
            f"\t\t<name>{thing.category.name}</name>",
            "\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{int(thing.truncated)}</truncated>",
            f"\t\t<difficult>{int(thing.difficult)}</difficult>",
            f"\t\t<occluded>{int(thing.occluded)}</occluded>",
            f"\t\t<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _write_voc_lists(voc: Path, splits: dict[str, list[int]]) -> None:
    """The image sets, the same for boxes and masks, and the names of the mask values."""
    everything = {**splits, "trainval": sorted(chain.from_iterable(splits.values()))}
    for split, numbers in everything.items():
        for name in _LISTS:
            (voc / "ImageSets" / name / f"{split}.txt").write_text("".join(f"{stem(n)}\n" for n in numbers))
    names = ("background", *(category.name for category in CATEGORIES))
    (voc / "labelmap.txt").write_text(labelmap(names))
