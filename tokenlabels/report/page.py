"""Everything into one file: template, style, script, figures and samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tokenlabels.atomic import write_atomically
from tokenlabels.errors import OutputError, TokenLabelsError
from tokenlabels.figures import Comparison, Figures, Position
from tokenlabels.progress import Progress, Silent
from tokenlabels.reader import Build
from tokenlabels.report import sections
from tokenlabels.report.markup import esc, json_text, name, printable
from tokenlabels.report.pictures import Picture, encode_within, long_side, open_picture
from tokenlabels.report.plots import pooled
from tokenlabels.report.samples import Place, Sample, read_samples
from tokenlabels.report.template import STYLE, fill
from tokenlabels.storage import is_folder, located
from tokenlabels.store_faults import explained

if TYPE_CHECKING:
    from tokenlabels.storage import Location

MAX_BYTES = 5_000_000
"""Size that a report keeps below by making its pictures smaller."""

_LEAST_PICTURE_BYTES = 200_000
_MAX_MAP = 128
"""Rows and columns of the position map in the page's data; larger ones are averaged."""

_HERE = Path(__file__).parent


@explained()
def write_report(
    path: Path,
    build: Build,
    figures: Figures,
    *,
    images: Location | None = None,
    samples: int = 24,
    split: str | None = None,
    comparison: Comparison | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write figures and samples of a build as one HTML file that needs nothing else.

    The bytes depend on the arguments and on what they name only, not on the time.

    Args:
        path: the file.
        build: the build.
        figures: its figures, on the grid that the samples are shown on.
        images: folder of the images, for pictures that are not embedded in the shards.
        samples: how many images to show.
        split: show images of this split only; the figures should be of it, too.
        comparison: other builds to show beside this one.
        progress: told about every image.

    Returns:
        `path`.

    Raises:
        ParameterError: no such grid or split.
        NotABuildError: a shard is missing or damaged.
        OutputError: `path` cannot be written.
        TokenLabelsError: there is no folder `images`.
    """
    check_places(path, images)
    progress = progress or Silent()
    chosen, places = read_samples(build, figures.grid, split, samples, progress)
    pictures = _pictures(build, chosen, places, images, progress)
    figures, comparison = _for_page(figures), comparison and _compared_for_page(comparison)
    parts = _parts(build, figures, comparison) | {"pictures-note": _pictures_note(pictures)}
    room = MAX_BYTES - len(_page(parts, _data(build, figures, comparison, chosen)).encode())
    for sample, picture in zip(chosen, encode_within(pictures, max(room, _LEAST_PICTURE_BYTES)), strict=True):
        sample.picture = picture
    write_atomically(path, _page(parts, _data(build, figures, comparison, chosen)).encode())
    return path


def check_places(path: Path, images: Location | None) -> None:
    """Refuse at once what a report cannot be written to, and a folder of images that is not there.

    Raises:
        OutputError: `path` is a folder or a device, or lies in no folder that can be written.
        TokenLabelsError: there is no folder `images`.
    """
    above = next(parent for parent in path.absolute().parents if os.access(parent, os.F_OK))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputError(f"{path}: cannot be written ({above} is no folder to write to): name another file.")
    if path.exists() and not path.is_file():  # a device would be replaced
        kind = "a folder" if path.is_dir() else "no plain file"
        raise OutputError(f"{path}: cannot be written (it is {kind}): name a file, such as report.html.")
    if images is not None and not is_folder(images):
        raise TokenLabelsError(f"{images}: no such folder: name the one that holds the images with --images.")


def _pictures(
    build: Build, samples: Sequence[Sample], places: Sequence[Place], images: Location | None, progress: Progress
) -> list[Picture]:
    any_size = build.manifest["parameters"].get("embed_size") is not None
    progress.stage("reading pictures", len(samples))
    pictures = []
    for sample, place in zip(samples, places, strict=True):
        picture = open_picture(place, images, long_side(len(samples)), any_size=any_size)
        sample.covers_input = any_size
        sample.note = " ".join(filter(None, (picture.reason, sample.note))) or None
        pictures.append(picture)
        progress.advance(1)
    return pictures


def _data(
    build: Build, figures: Figures, comparison: Comparison | None, samples: Sequence[Sample]
) -> dict[str, object]:
    """What the script reads, by the id of its element."""
    used = sorted(
        {item.category for sample in samples for item in sample.objects}
        | {category for sample in samples for category in sample.covering if category < len(build.categories)}
    )
    return {
        "figures": figures,
        "comparison": comparison,
        "samples": {
            "categories": {str(index): printable(build.categories[index].name) for index in used},
            "samples": samples,
        },
    }


def _parts(build: Build, figures: Figures, comparison: Comparison | None) -> dict[str, str]:
    folder = name(_folder(build.path))
    facts = [
        esc(figures.source),
        f"{esc(figures.rule)}, tau {figures.tau:g}",
        esc(figures.grid),
        ", ".join(name(part.split) for part in figures.splits),
    ]
    compared = sections.compared(comparison)
    return {
        "title": esc(_folder(build.path)),
        "folder": folder,
        "facts": "".join(f"<li>{fact}</li>" for fact in facts),
        "tiles": sections.tiles(figures),
        "foreground": sections.foreground(figures, comparison),
        "objects": sections.objects(figures),
        "categories": sections.categories(figures),
        "splits": sections.splits(figures),
        "findings": sections.findings(build.manifest),
        "parameters": sections.parameters(build.manifest),
        "comparison": compared and _COMPARISON.replace("{{content}}", compared),
        "comparison-link": '<li><a href="#comparison">Comparison</a></li>' if compared else "",
        "slider-note": _slider_note(figures),
        "slider-state": "" if figures.tau_curve else "disabled",
    }


_COMPARISON = (
    '<section id="comparison" aria-labelledby="comparison-title"><h2 id="comparison-title">Comparison</h2>'
    '<div class="cards">{{content}}</div></section>'
)


def _slider_note(figures: Figures) -> str:
    if figures.tau_curve is None:
        return "The slider is off: this build stores no scores (--no-scores), so its threshold cannot be changed."
    return "Labels are computed here from the stored scores, as the command relabel does."


def _pictures_note(pictures: Sequence[Picture]) -> str:
    if any(picture.image or picture.reason for picture in pictures) or not pictures:
        return ""
    return "No image folder was given (--images), so the gallery draws grids and boxes on a neutral ground."


def _page(parts: Mapping[str, str], data: Mapping[str, object]) -> str:
    blocks = "\n".join(
        f'<script type="application/json" id="{key}">{json_text(value)}</script>' for key, value in data.items()
    )
    style, script = STYLE.read_text("utf-8"), (_HERE / "report.js").read_text("utf-8")
    return fill(_HERE / "page.html", dict(parts) | {"data": blocks}, style=style, script=script)


def _folder(path: str | Location) -> str:
    """Name of a folder, without the path to it, which is nobody's business."""
    return os.fsencode(located(path).resolve().name).decode("utf-8", "backslashreplace")


def _for_page(figures: Figures) -> Figures:
    return msgspec.structs.replace(figures, path=_folder(figures.path), position=_bounded(figures.position))


def _compared_for_page(comparison: Comparison) -> Comparison:
    builds = [msgspec.structs.replace(_for_page(build), lost_examples=[]) for build in comparison.builds]
    return msgspec.structs.replace(comparison, builds=builds)


def _bounded(position: Position) -> Position:
    """A position map of at most `_MAX_MAP` rows and columns."""
    if max(position.rows, position.cols) <= _MAX_MAP:
        return position
    patches: Any = np.asarray(position.patches, np.float64)
    values = pooled(np.asarray(position.fg_probability, np.float64), patches, _MAX_MAP)
    rows, cols = values.shape
    sums = np.zeros((rows, cols))
    where = np.ix_(np.arange(position.rows) * rows // position.rows, np.arange(position.cols) * cols // position.cols)
    np.add.at(sums, where, patches)
    return Position(rows, cols, True, values.tolist(), sums.astype(np.int64).tolist())
