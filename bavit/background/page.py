"""The page of an evaluation: one HTML file that opens offline, without a script, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bavit.background import page_sections as sections
from bavit.background.figures import Evaluation
from tokenlabels.report import check_places
from tokenlabels.report.markup import count, esc, name
from tokenlabels.report.page import MAX_BYTES
from tokenlabels.report.pictures import Picture, encode_within
from tokenlabels.report.template import STYLE, fill
from tokenlabels.shards import write_atomically

MAX_SAMPLES = 60
"""So many samples are shown; each still gets a picture that can be read."""

_LONG_SIDE = 1600
_LARGE_SAMPLES = 24
"""Pixels of the long side of a picture at most, and of how many pictures; of more it shrinks, which saves trials."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Sample:
    """One image in the gallery.

    Attributes:
        title: what stands below it, untrusted text.
        picture: what `bavit.visualize.panels` draws, RGB.
    """

    title: str
    picture: Image.Image


def write_evaluation_page(
    evaluation: Evaluation,
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    samples: Sequence[Sample] = (),
) -> Path:
    """Write an evaluation as one HTML file of less than 5 MB that needs nothing else.

    The bytes depend on the arguments only.

    Args:
        evaluation: its figures.
        path: the file.
        title: what was evaluated, untrusted text.
        facts: how, by name, untrusted text: the run, the build, the split, the device.
        samples: pictures to show; of more than `MAX_SAMPLES` the first.

    Returns:
        `path`.

    Raises:
        OutputError: `path` cannot be written.
    """
    path = Path(path)
    check_places(path, None)
    shown = list(samples[:MAX_SAMPLES])
    parts = _parts(evaluation, title, facts)
    room = MAX_BYTES - 1 - len(_page(parts, shown, [""] * len(shown), len(samples)).encode())
    side = int(_LONG_SIDE * min(1.0, (_LARGE_SAMPLES / max(len(shown), 1)) ** 0.5))
    addresses = encode_within([Picture(_bounded(sample.picture, side)) for sample in shown], room)
    write_atomically(path, _page(parts, shown, [address or "" for address in addresses], len(samples)).encode())
    return path


def _parts(evaluation: Evaluation, title: str, facts: Mapping[str, str]) -> dict[str, str]:
    steps = "not refined" if not evaluation.refine_steps else f"refinement steps: {evaluation.refine_steps}"
    heads = (f"{count(evaluation.images)} images", f"threshold {evaluation.threshold:g}", steps)
    return {
        "title": esc(title),
        "heading": name(title),
        "facts": "".join(f"<li>{esc(head)}</li>" for head in heads),
        "tiles": sections.tiles(evaluation),
        "threshold": sections.threshold(evaluation),
        "objects": sections.objects(evaluation),
        "run": sections.run(evaluation, facts),
    }


def _page(parts: Mapping[str, str], samples: Sequence[Sample], addresses: Sequence[str], given: int) -> str:
    gallery = link = ""
    if samples:
        link = '<li><a href="#samples">Samples</a></li>'
        titles = [sample.title for sample in samples]
        gallery = sections.gallery(list(zip(titles, addresses, strict=True)), given)
    style = STYLE.read_text("utf-8") + (_HERE / "page.css").read_text("utf-8")
    return fill(_HERE / "page.html", dict(parts) | {"samples": gallery, "samples-link": link}, style=style)


def _bounded(picture: Image.Image, side: int) -> Image.Image:
    """The picture as RGB, no longer than `side`."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small
