"""Any pictures segmented: classes and stages as PNG, drawings, and what each picture took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bavit.machine import Machine
from bavit.outputs import make_folder, remove_result, result_names
from bavit.pictures import PictureError, open_picture
from bavit.segment.accounting import dense_macs
from bavit.segment.config import names_apart
from bavit.segment.draw import draw_segmentation, palette, stage_image, stage_names, value_image
from bavit.segment.exits import Exits
from bavit.segment.figures import save_json
from bavit.segment.handling import Handling
from bavit.segment.inference import Segmented, segment
from bavit.segment.model import Segmenter
from bavit.visualize import save_png
from tokenlabels.progress import Progress

RESULTS_FILE = "predictions.json"


@dataclass(frozen=True, slots=True)
class Wish(Handling):
    """How pictures are gone through, and what is written.

    Attributes:
        overlays: write `<name>-overlay.png`.
        stages: write `<name>-stages.png`.
    """

    overlays: bool = True
    stages: bool = True


def predict(
    model: Segmenter, paths: Sequence[Path], exits: Exits, wish: Wish, machine: Machine, out: Path, progress: Progress
) -> dict[str, Any]:
    """Segment picture files, and write results into a folder.

    Args:
        model: moved to the machine's device.
        paths: the files, at least one.
        exits: when tokens end.
        wish: how, and what is written.
        machine: where.
        out: folder: `<name>-classes.png` has the value of the class of each pixel, `predictions.json` says which class
            a value is, and what each picture took.
        progress: told about every picture.

    Returns:
        What `predictions.json` holds: `classes`, `stages`, `images`, and of all of them `macs`, `macs_dense`,
        `tokens_alive`, `images_per_second` (decoding and writing included) and `skipped`.

    Raises:
        PictureError: a picture cannot be read, or none can.
        OutputError: the folder cannot be written, or holds the pictures.
        TokenLabelsError: the weights are damaged.
    """
    make_folder(out, paths)
    remove_result(out / RESULTS_FILE)
    model = model.to(machine.device).eval()
    names = result_names(paths)
    images: list[dict[str, Any]] = []
    progress.stage("segmenting", len(paths))
    begun = time.perf_counter()
    with exits.set_on(model):
        opened = wish.readable(lambda number: open_picture(paths[number], str(paths[number])), len(paths), progress)
        pictures = (((number, picture), picture) for number, picture in opened)
        for (number, picture), found in segment(model, pictures, wish.view, machine, wish.batch_size):
            written = _write(model, picture, found, exits, wish, out / names[number])
            images.append(_told(model, paths[number], found, written))
            progress.advance(1)
    seconds = time.perf_counter() - begun
    if not images:
        raise PictureError(f"{paths[0]}: none of the {len(paths)} pictures can be read.")
    told = {
        "classes": [
            {"value": each.value, "name": each.name, "colour": "#%02x%02x%02x" % colour}  # noqa: UP031  of a tuple
            for each, colour in zip(model.classes, palette(model.classes), strict=True)
        ],
        "stages": stage_names(exits.exit_after),
        "macs": float(np.mean([image["macs"] for image in images])),
        "macs_dense": float(np.mean([image["macs_dense"] for image in images])),
        "tokens_alive": np.mean([image["tokens_alive"] for image in images], axis=0).tolist(),
        "images_per_second": len(images) / seconds,
        "skipped": len(paths) - len(images),
        "images": images,
    }
    save_json(told, out / RESULTS_FILE)
    return told


def _write(
    model: Segmenter, picture: Image.Image, found: Segmented, exits: Exits, wish: Wish, base: Path
) -> dict[str, str]:
    """Paths of what was written, by kind."""
    written = {"values": save_png(value_image(found.classes, model.classes), _named(base, "classes"))}
    if wish.stages:
        written["stages"] = save_png(stage_image(found.stages, exits.stages), _named(base, "stages"))
    if wish.overlays:
        drawn = draw_segmentation(picture, found.classes, found.stages, model.classes, exits.exit_after)
        written["overlay"] = save_png(drawn, _named(base, "overlay"))
    return {kind: str(path) for kind, path in written.items()}


def _named(base: Path, kind: str) -> Path:
    return base.with_name(f"{base.name}-{kind}.png")


def _told(model: Segmenter, path: Path, found: Segmented, written: dict[str, str]) -> dict[str, Any]:
    height, width = found.classes.shape
    names = names_apart(model.classes)
    counts = np.bincount(found.classes.reshape(-1), minlength=model.num_classes)
    return {
        "file": str(path),
        "width": width,
        "height": height,
        "windows": len(found.layout),
        "shares": {names[n]: int(counts[n]) / width / height for n in np.flatnonzero(counts).tolist()},
        "macs": int(found.macs.sum()),
        "macs_dense": len(found.layout) * dense_macs(model, found.layout.window),
        "tokens_alive": found.shares_alive,
        "tokens": found.tokens.sum(axis=0).tolist(),
        **written,
    }
