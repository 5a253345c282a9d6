"""The pictures that runs left behind, opened with care."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bavit.gallery import MAX_SAMPLES, Sample
from bavit.report.results import Shown
from tokenlabels.progress import Progress

_FORMATS = ("JPEG", "PNG")
"""What our commands write: other decoders of Pillow start other programs."""

_MAX_PIXELS = 50_000_000
_LONG_SIDE = 1600


def samples(shown: Sequence[Shown], progress: Progress) -> list[Sample]:
    """Pictures for the gallery; what cannot be read is noted, and left out.

    Args:
        shown: of more than the gallery has room for, as many of each run as of any other.
        progress: told about every picture.
    """
    chosen = _fair(shown, MAX_SAMPLES)
    progress.stage("pictures", len(chosen))
    found = []
    for each in chosen:
        picture = _opened(Path(each.path))
        if picture is None:
            progress.note(f"left out: {each.path} is no picture that can be read.")
        else:
            found.append(Sample(each.title, picture, each.words))
        progress.advance(1)
    return found


def _fair(shown: Sequence[Shown], limit: int) -> list[Shown]:
    """At most so many, those of each folder in order and the last of the largest folders left out."""
    groups: dict[Path, list[Shown]] = {}
    for each in shown:
        groups.setdefault(Path(each.path).parent, []).append(each)
    while sum(map(len, groups.values())) > limit:
        max(groups.values(), key=len).pop()
    return [each for group in groups.values() for each in group]


def _opened(path: Path) -> Image.Image | None:
    """RGB, no longer than the gallery shows; None where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes and metadata: both are dealt with here
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return None
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    return picture
