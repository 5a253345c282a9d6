"""Builds for tests of what opens them: one with every column there is, and one of many rows in several shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tokenlabels
from tokenlabels.reader import Build

SPLITS = {"first": 7, "second": 4}
"""Images of each split of `every_column`."""


def every_column(folder: Path, **options: Any) -> Build:
    """Panoptic masks and pictures embedded, patches ignored, categories by patch; two splits, shards of 3 rows.

    The first image of each split has no segments.
    """
    rng = np.random.default_rng(0)
    for split, images in SPLITS.items():
        _write_panoptic(folder / "coco", split, images, rng)
    chosen: dict[str, Any] = {"patch": [8, 16], "image_size": 64, "shard_rows": 3} | options
    return tokenlabels.build(
        "semantic",
        root=folder / "coco",
        out=folder / "out",
        void="ignore",
        crowd="ignore",
        embed_images=True,
        embed_masks=True,
        **chosen,
    )


def _write_panoptic(root: Path, split: str, images: int, rng: np.random.Generator) -> None:
    for name in (split, f"annotations/panoptic_{split}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for number in range(images):
        width, height = int(rng.integers(40, 90)), int(rng.integers(40, 90))
        ids = np.zeros((height, width), np.int64)
        segments = []
        for place in range(number % 4):
            top, left = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
            ids[top : top + 30, left : left + 30] = 1000 * (place + 1) + number
        for place, value in enumerate(np.unique(ids[ids > 0]).tolist()):
            y, x = np.nonzero(ids == value)
            box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
            more = {"category_id": (3, 5, 9)[place], "iscrowd": int(place == 1)}
            segments.append({"id": value, "bbox": box, "area": len(x)} | more)
        name = f"{split}{number}"
        entries.append({"id": len(name) * 100 + number, "file_name": f"{name}.jpg", "width": width, "height": height})
        annotations.append({"image_id": entries[-1]["id"], "file_name": f"{name}.png", "segments_info": segments})
        Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(root / split / f"{name}.jpg")
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(root / "annotations" / f"panoptic_{split}" / f"{name}.png")
    categories = [
        {"id": 3, "name": "cat", "supercategory": "animal", "isthing": 1},
        {"id": 5, "name": "dog", "supercategory": "animal", "isthing": 1},
        {"id": 9, "name": "sky", "supercategory": "sky", "isthing": 0},
    ]
    document = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document))


def many_rows(folder: Path, images: int, **options: Any) -> Build:
    """Boxes of some images of different sizes, without pictures; by default on a grid of 4 x 4, in shards of 7 rows."""
    rng = np.random.default_rng(1)
    entries = [
        {"id": 10 + k, "file_name": f"{k:05d}.jpg", "width": int(w), "height": int(h)}
        for k, (w, h) in enumerate(rng.integers(30, 120, (images, 2)))
    ]
    annotations = [
        {"id": k, "image_id": 10 + k % images, "category_id": 1, "bbox": [*map(float, box)], "area": 9.0, "iscrowd": 0}
        for k, box in enumerate(rng.integers(1, 30, (2 * images, 4)))
    ]
    document = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "instances_many.json"
    path.write_text(json.dumps(document))
    chosen: dict[str, Any] = {"patch": 8, "image_size": 32, "shard_rows": 7} | options
    return tokenlabels.build("coco", annotations=path, out=folder / "labels", **chosen)
