"""Folders with one JSON file for each image, for tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pycocotools import mask as coco_mask
from typer.testing import Result

import tokenlabels
from tokenlabels.reader import Build
from tokenlabels.sources import coco_folder, folder_blocks

Invoke: TypeAlias = Callable[..., Result]
Document: TypeAlias = dict[str, Any]


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """Several blocks, and several groups in each, of a few files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_folder, "_BLOCK", 7)
        patch.setattr(folder_blocks, "_GROUP_IMAGES", 3)
        yield


def compressed(segmentation: Any, image: Document) -> Document:
    """Any segmentation as COCO's compressed run lengths."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        return dict(segmentation)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def sa_1b(image: Document, entries: Sequence[Document]) -> Document:
    """A file as SA-1B has it."""
    return {
        "image": {"image_id": image["id"], **{key: image[key] for key in ("width", "height", "file_name")}},
        "annotations": [
            {
                "id": entry["id"],
                "segmentation": compressed(entry["segmentation"], image),
                "bbox": entry["bbox"],
                "area": entry["area"],
                "predicted_iou": 0.97,
                "stability_score": 0.98,
                "crop_box": [0, 0, image["width"], image["height"]],
                "point_coords": [[1.5, 2.5]],
            }
            for entry in entries
        ],
    }


def write_both(document: Document, folder: Path, *, plain: bool) -> tuple[Path, Path]:
    """An instances file, and a folder of the same images; `plain` keeps categories and crowds."""
    images = sorted(document["images"], key=lambda image: f"{image['id']}.json")
    kept = []
    (folder / "parts").mkdir(parents=True)
    for image in images:
        entries = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
        if plain:
            text: Document = {"images": [image], "annotations": entries, "categories": document["categories"]}
        else:
            text = sa_1b(image, entries)
            entries = [entry | {"image_id": image["id"], "category_id": 1} for entry in text["annotations"]]
        (folder / "parts" / f"{image['id']}.json").write_text(json.dumps(text))
        kept += entries
    categories = document["categories"] if plain else [{"id": 1, "name": "object"}]
    whole = {"images": images, "annotations": kept, "categories": categories}
    (folder / "parts.json").write_text(json.dumps(whole))
    return folder / "parts.json", folder / "parts"


def build(annotations: Path, out: Path, **options: Any) -> Build:
    return tokenlabels.build("coco", annotations=annotations, out=out, **options)


def findings(result: Result) -> dict[str, list[str]]:
    """Files of the findings, by code, of `check --json`."""
    return {row["code"]: [each["file"] for each in row["examples"]] for row in json.loads(result.stdout)["findings"]}
