"""Images with annotated objects to detect: a build of tokenlabels, or COCO files, which are built on the fly."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import tokenlabels
from bavit.detect.coco import GroundTruth
from bavit.detect.results import as_written
from bavit.pictures import PictureReader
from bavit.rows import Rows, read_rows
from bavit.splits import HasSplits, evaluation_splits
from tokenlabels.annotations import Category, Records
from tokenlabels.check import FindingLog
from tokenlabels.errors import FindingsError, ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.options import OnError
from tokenlabels.output import MANIFEST, is_unfinished
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build, open_build
from tokenlabels.sources.base import Reading
from tokenlabels.sources.coco import CocoSource
from tokenlabels.storage import exists, globbed, is_folder

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Choice = Callable[[HasSplits, Sequence[str] | None], list[str]]
"""Which splits to take where nobody says, such as `evaluation_splits` or `training_splits`."""

_TAU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class DetectionSet:
    """n images with their objects and their foreground labels.

    Attributes:
        rows: images, objects and labels; `rows.labels` are uint8 (n, rows, cols) on `rows.grid`.
        pictures: opens the pictures, by index of the row.
        images: folder of the pictures, None where they are embedded in shards.
    """

    rows: Rows
    pictures: PictureReader
    images: Location | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_ids(self) -> Sequence[str]:
        """n ids, as text."""
        return self.rows.image_ids

    @property
    def categories(self) -> Sequence[Category]:
        """The category table."""
        return self.rows.categories

    def keep(self, kept: NDArray[np.bool_]) -> DetectionSet:
        """The images where `kept` bool (n,) is true."""
        rows = self.rows.keep(kept)
        return DetectionSet(rows, PictureReader(rows, self.images), self.images)

    def truth(self) -> GroundTruth:
        """What there is to detect; VOC's difficult objects are ignored, as VOC does."""
        rows = self.rows
        return GroundTruth(
            image_ids=rows.image_ids,
            categories=rows.categories,
            image=np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.offsets)),
            category=rows.objects["category"].astype(np.int64),
            boxes=as_written(rows.boxes),
            areas=as_written(rows.objects["area"]),
            crowd=rows.objects["iscrowd"].astype(np.bool_),
            ignored=rows.objects["difficult"].astype(np.bool_),
        )


def open_detection_set(
    source: Location,
    *,
    grid: PatchGrid | None = None,
    splits: Sequence[str] | None = None,
    images: Location | None = None,
    limit: int | None = None,
    scores: bool = False,
    choose: Choice = evaluation_splits,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> DetectionSet:
    """Open a set; every picture is known to be there, none has been opened.

    Args:
        source: folder of a build, or a COCO folder with `annotations/instances_*.json`, or one such file. Of COCO files
            labels are made: overlap with boxes, at least 0.5.
        grid: the grid of the labels, that of a BAViT; by default that of the build, of COCO files 384 x 384 pixels in
            patches of 16. A build that does not hold it gives its own first grid.
        splits: names of the splits to take.
        images: folder of the pictures; by default those in the shards, or beside the COCO annotations.
        limit: only the first images.
        scores: read the scores of the labels too, where there are any.
        choose: which splits, where none is named.
        on_error: what to do about bad annotations in COCO files.
        progress: told about stages, and what a person should know.

    Raises:
        ParameterError: no such split, a grid whose shape varies, an image that is in several of the splits, or no
            pictures anywhere.
        PictureError: pictures are missing.
        FindingsError: COCO files with bad annotations, under `on_error="raise"`.
        TokenLabelsError: there is no such set, it cannot be read, or it holds no images.
    """
    progress = progress or Silent()
    if limit is not None and limit < 1:
        raise ParameterError(f"limit {limit} is too small: at least 1 image.")
    if _is_build(source):
        rows = _rows_of_build(open_build(source), grid, splits, choose, scores, progress)
    else:
        found = _coco_source(source, splits, choose)
        rows = _rows_of_coco(source, found, grid or PatchGrid.parse(), limit, scores, on_error, progress)
        images = images or _picture_folder(source, found)
    if limit is not None:
        rows = rows.keep(np.arange(len(rows)) < limit)
    if not len(rows):
        raise TokenLabelsError(f"{source}: holds no images in {', '.join(splits or ['it'])}: choose another split.")
    _check_unique(rows)
    pictures = PictureReader(rows, images)
    if pictures.resized:
        raise ParameterError(
            f"{source} holds resized pictures (--embed-size), and a detector has an input size of its own: name the "
            "folder of the images with --images."
        )
    pictures.check_files()
    return DetectionSet(rows, pictures, images)


def read_ground_truth(path: Path) -> GroundTruth:
    """The objects of a COCO annotation file, as they stand there.

    Raises:
        FindingsError: it has bad annotations.
        TokenLabelsError: it cannot be read.
    """
    log = FindingLog(masks_scored=False, boxes_scored=True)
    dataset = CocoSource(((path.stem, path, path.parent),)).read(Reading(), log)
    faults = [finding for finding in log.listed() if finding.severity == "error"]
    if faults:
        raise FindingsError(f"{str(faults[0]).rstrip('.')} ({log.error_count} errors in all): mend the file.")
    records = dataset.splits[0].records
    assert isinstance(records, Records), "a folder of files"
    return GroundTruth(
        image_ids=records.image_ids,
        categories=dataset.categories,
        image=np.repeat(np.arange(len(records), dtype=np.int64), np.diff(records.offsets)),
        category=records.categories.astype(np.int64),
        boxes=records.boxes,
        areas=records.areas,
        crowd=records.crowd,
        ignored=records.difficult,
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """The splits of a COCO source."""

    path: Location
    splits: Sequence[str]


def _is_build(source: Location) -> bool:
    """A build, finished or not; or else COCO files.

    Raises:
        TokenLabelsError: neither.
    """
    if exists(source / MANIFEST) or is_unfinished(source):
        return True
    fine = bool(globbed(source / "annotations", "instances_*.json")) if is_folder(source) else source.suffix == ".json"
    if not fine:
        problem = "neither a build nor COCO annotations" if exists(source) else "no such file or folder"
        raise TokenLabelsError(
            f"{source}: {problem}: name a build of tokenlabels, a COCO folder with annotations/instances_*.json, or "
            "one such file."
        )
    return False


def _coco_source(source: Location, splits: Sequence[str] | None, choose: Choice) -> CocoSource:
    """The splits of a folder, or the file, that are wanted."""
    found = CocoSource.locate(source) if is_folder(source) else CocoSource.locate(annotations=source)
    files = {name: (name, path, images) for name, path, images in found.files}
    chosen = choose(_Files(source, list(files)), splits)
    for name in chosen:
        if name not in files:
            raise ParameterError(f"{source} holds no split {name!r}: it has {', '.join(files)}.")
    return CocoSource(tuple(files[name] for name in chosen))


def _picture_folder(source: Location, found: CocoSource) -> Location:
    """Where the pictures of these splits are: in the folder of the only one, or in folders with the names of splits."""
    return found.files[0][2] if len(found.files) == 1 else source


def _rows_of_build(
    build: Build,
    grid: PatchGrid | None,
    splits: Sequence[str] | None,
    choose: Choice,
    scores: bool,
    progress: Progress,
) -> Rows:
    left_out = build.manifest["annotations_left_out_by_selection"]
    if left_out:
        progress.note(
            f"{left_out:,} annotations were left out of {build.path} (--categories or --min-area): a detector that "
            "finds those objects is taken to be wrong."
        )
    name = grid.name if grid is not None and grid.name in build.grids else None
    return read_rows(
        build, grid=name, splits=choose(build, splits), scores=scores and build.manifest["parameters"]["scores"]
    )


def _rows_of_coco(
    path: Location,
    source: CocoSource,
    grid: PatchGrid,
    limit: int | None,
    scores: bool,
    on_error: OnError,
    progress: Progress,
) -> Rows:
    """The rows of a build that is gone when this returns."""
    size = grid.image_size
    if size is None or grid.constant_shape is None:
        raise ParameterError(f"the grid {grid.name} differs from image to image: use squash or letterbox.")
    with tempfile.TemporaryDirectory(prefix="bavit-") as folder:
        build = tokenlabels.build(
            source,
            out=Path(folder) / "build",
            patch=grid.patch,
            image_size=size,
            resize=grid.resize,
            rule="overlap",
            tau=_TAU,
            scores=scores,
            limit=limit,
            on_error=on_error,
            progress=progress,
        )
        rows = read_rows(build, splits=build.splits, scores=scores)
    return replace(rows, folder=path)


def _check_unique(rows: Rows) -> None:
    """Results are told apart by image id alone."""
    image_id, count = Counter(rows.image_ids).most_common(1)[0]
    if count > 1:
        where = ", ".join(dict.fromkeys(rows.splits))
        raise ParameterError(f"image {image_id} occurs {count} times in the splits {where}: name one with --split.")
