"""Evaluations and sweeps of segmenters as files: JSON, CSV, plots, and pictures to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bavit.machine import Machine
from bavit.outputs import result_names
from bavit.segment.charts import draw_categories, draw_macs, draw_sweep
from bavit.segment.draw import draw_segmentation
from bavit.segment.evaluate import Measured, Wish
from bavit.segment.exits import Exits
from bavit.segment.figures import SegmentEvaluation, SegmentSweep, save_csv, save_json
from bavit.segment.inference import segment
from bavit.segment.labelled import LabelledPictures
from bavit.segment.model import Segmenter
from bavit.sweep_cache import SweepCache
from bavit.timing import spread
from bavit.visualize import save_png
from tokenlabels.progress import Progress

EVALUATION_FILE, SWEEP_FILE = "evaluation.json", "sweep.json"


def write_evaluation(found: SegmentEvaluation, measured: Measured, out: Path) -> list[Path]:
    """Write `evaluation.json`, `images.csv`, `categories.png` and `macs.png` into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    return [
        save_json(found, out / EVALUATION_FILE),
        save_csv(measured.images, out / "images.csv"),
        draw_categories(found.per_category, found.miou, out / "categories.png"),
        draw_macs(measured.images, out / "macs.png"),
    ]


def write_samples(
    model: Segmenter, data: LabelledPictures, exits: Exits, wish: Wish, machine: Machine, measured: Measured,
    count: int, out: Path, progress: Progress,
) -> list[Path]:  # fmt: skip
    """Draw some pictures with their labels, their prediction, and where tokens stopped: from bad ones to good ones.

    Args:
        model: on the device of the machine.
        data: the pictures.
        exits: when tokens end.
        wish: how.
        machine: where.
        measured: of these pictures.
        count: how many.
        out: folder.
        progress: told about every picture.

    Raises:
        PictureError: a picture cannot be read.
        OutputError: a file cannot be written.
    """
    chosen = [measured.numbers[index] for index in spread(np.array([image.miou for image in measured.images]), count)]
    names = result_names([Path(data.rows.file_names[number]) for number in chosen])
    progress.stage("drawing", len(chosen))
    opened = ((name, *data.open(number)) for name, number in zip(names, chosen, strict=True))
    written = []
    with exits.set_on(model):
        pairs = (((name, picture, mask), picture) for name, picture, mask in opened)
        for (name, picture, mask), seen in segment(model, pairs, wish.view, machine, wish.batch_size):
            drawn = draw_segmentation(
                picture, seen.classes, seen.stages, model.classes, exits.exit_after, labels=mask
            )  # fmt: skip
            written.append(save_png(drawn, out / f"{name}.png"))
            progress.advance(1)
    return written


def write_sweep(found: SegmentSweep, out: Path) -> list[Path]:
    """Write `sweep.json`, `sweep.csv` and `sweep.png`, and take away what a killed sweep would need.

    Raises:
        OutputError: a file cannot be written.
    """
    written = [
        save_json(found, out / SWEEP_FILE),
        save_csv(found.rows, out / "sweep.csv"),
        draw_sweep(found, out / "sweep.png"),
    ]
    SweepCache.finish(out)
    return written
