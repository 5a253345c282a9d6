"""A detector over pictures: what it finds, as COCO's results file and drawn, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from bavit.detect.coco import Detections
from bavit.detect.detector import Detector, mean_cost
from bavit.detect.draw import MIN_SCORE, draw_detection, found_boxes
from bavit.detect.evaluate import check_classes, evaluate_detections, flat_detections
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.pruned import Detection, StageTimes
from bavit.detect.results import as_written, write_results
from bavit.machine import Machine
from bavit.outputs import make_folder, result_names
from bavit.pictures import open_picture
from bavit.visualize import save_png
from tokenlabels.errors import TokenLabelsError
from tokenlabels.progress import Progress
from tokenlabels.threads import in_threads

RESULTS_FILE = "detections.json"
_DECODING, _WRITING = "decoding", "drawing"


@dataclass(frozen=True, slots=True)
class Pictures:
    """What to detect in.

    Attributes:
        names: n file names.
        ids: n image ids for the results file.
        open: gives the picture of a number.
        truth: the set they are from, if there is one; its categories are those of the results file.
        files: where they are, which results must not replace.
    """

    names: Sequence[str]
    ids: Sequence[str]
    open: Callable[[int], Image.Image]
    truth: DetectionSet | None = None
    files: Sequence[Path] = ()

    @classmethod
    def of_files(cls, paths: Sequence[Path]) -> Pictures:
        """Picture files; their ids are their names without the suffix, where no two are alike."""
        names = [path.name for path in paths]
        return cls(names, result_names(paths), lambda n: open_picture(paths[n], str(paths[n])), files=paths)

    @classmethod
    def of_set(cls, data: DetectionSet) -> Pictures:
        """The images of a set."""
        return cls(data.rows.file_names, data.image_ids, data.pictures.open, data)


@dataclass(frozen=True, slots=True)
class Wish:
    """How pictures are gone through, and what is written.

    Attributes:
        batch_size: pictures at a time.
        workers: threads that decode.
        draw: write `<name>-detections.png`.
        min_score: boxes of a smaller score are not drawn; the results file has them all.
    """

    batch_size: int = 8
    workers: int = 1
    draw: bool = True
    min_score: float = MIN_SCORE


def detect(
    detector: Detector, pictures: Pictures, wish: Wish, machine: Machine, out: Path, progress: Progress
) -> dict[str, Any]:
    """Detect, and write `detections.json` and drawings into a folder.

    Args:
        detector: the detector, where it is to run.
        pictures: what to detect in, at least one.
        wish: how, and what is written.
        machine: its device, and the precision.
        out: folder for the results.
        progress: told about every picture.

    Returns:
        `images`; `boxes` of at least `min_score`; `runtime` and `provider` of the detector; what `mean_cost` gives;
        `milliseconds` of an image by stage; `images_per_second` of all stages but drawing; of a set with
        ground truth also COCO's figures, `ap` and so on; `results`, the file.

    Raises:
        ParameterError: the detector's classes are not those of the set.
        PictureError: a picture cannot be read.
        OutputError: the folder cannot be written.
        TokenLabelsError: the weights are damaged.
    """
    truth, config = pictures.truth, detector.config
    if truth is not None:
        check_classes(truth, config, progress)
    make_folder(out, pictures.files)
    (out / RESULTS_FILE).unlink(missing_ok=True)  # results of an earlier run do not belong to new drawings
    drawings = [out / f"{name}-detections.png" for name in result_names([Path(name) for name in pictures.names])]
    times = StageTimes()
    found: list[Detection] = []
    progress.stage("detecting", len(pictures.names))
    for first, opened, batch in _batches(detector, pictures, wish, machine, times):
        begun = time.perf_counter()
        for number, picture, detection in zip(range(first, first + len(batch)), opened, batch, strict=True):
            _check(detection, pictures.names[number])
            if wish.draw:
                _draw(detector, picture, detection, wish.min_score, drawings[number])
            found.append(detection)
        times.seconds[_WRITING] = times.seconds.get(_WRITING, 0.0) + time.perf_counter() - begun
        progress.advance(len(batch))
    flat = _flat(found) if truth is None else flat_detections(found, config, truth.categories)
    write_results(out / RESULTS_FILE, pictures.ids, flat)
    scores = {} if truth is None else _scores(truth, found, detector)
    told = _cost(detector, found) | _times(times, wish)
    boxes = int(sum((each.scores >= wish.min_score).sum() for each in found))
    return {"images": len(found), "boxes": boxes, **told, **scores, "results": str(out / RESULTS_FILE)}


def _batches(
    detector: Detector, pictures: Pictures, wish: Wish, machine: Machine, times: StageTimes
) -> Iterator[tuple[int, list[Image.Image], list[Detection]]]:
    """Number of the first picture, pictures and detections of each batch."""
    for first in range(0, len(pictures.names), wish.batch_size):
        begun = time.perf_counter()
        numbers = range(first, min(first + wish.batch_size, len(pictures.names)))
        opened = in_threads(pictures.open, numbers, wish.workers)
        times.seconds[_DECODING] = times.seconds.get(_DECODING, 0.0) + time.perf_counter() - begun
        with machine.autocast():
            if not first:
                detector(opened)  # once for nothing: what is made ready at the first call is not what is measured
            batch = detector(opened, times)
        yield first, opened, [each.cpu() for each in batch]


def _check(found: Detection, name: str) -> None:
    if not (torch.isfinite(found.boxes).all() and torch.isfinite(found.scores).all()):
        raise TokenLabelsError(f"{name}: the detector answers with what is no number: its weights are damaged.")


def _draw(detector: Detector, picture: Image.Image, found: Detection, min_score: float, path: Path) -> None:
    boxes = found_boxes(found, detector.config.labels, min_score)
    save_png(draw_detection(picture, found.keep.numpy(), boxes), path)


def _flat(found: Sequence[Detection]) -> Detections:
    """Detections without a table of categories: a class stands for the category of its number."""
    corners = torch.cat([each.boxes for each in found]).numpy()
    return Detections(
        image=np.repeat(np.arange(len(found), dtype=np.int64), [len(each.labels) for each in found]),
        category=torch.cat([each.labels for each in found]).numpy(),
        boxes=as_written(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)),
        scores=as_written(torch.cat([each.scores for each in found]).numpy()),
    )


def _scores(truth: DetectionSet, found: Sequence[Detection], detector: Detector) -> dict[str, Any]:
    """COCO's figures; none where the images hold no objects."""
    if not truth.rows.has_objects:
        return {}
    figures = msgspec.structs.asdict(evaluate_detections(truth, found, detector.config))
    return {name: value for name, value in figures.items() if name.startswith(("ap", "ar"))}


def _cost(detector: Detector, found: Sequence[Detection]) -> dict[str, Any]:
    kept = np.array([int(each.keep.sum()) for each in found], np.int64)
    patches = np.array([each.keep.numel() for each in found], np.int64)
    return {"runtime": detector.runtime, "provider": detector.provider, **mean_cost(detector, kept, patches)}


def _times(times: StageTimes, wish: Wish) -> dict[str, Any]:
    seconds = {name: value for name, value in times.seconds.items() if name != _WRITING or wish.draw}
    working = sum(value for name, value in seconds.items() if name != _WRITING)
    return {
        "milliseconds": {name: 1000 * value / times.images for name, value in seconds.items()},
        "images_per_second": times.images / max(working, 1e-9),
    }
