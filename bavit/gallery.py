"""Pages with pictures: one HTML file that opens offline, without a script, in light and dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image

from tokenlabels.atomic import write_atomically
from tokenlabels.errors import OutputError
from tokenlabels.report import check_places
from tokenlabels.report.markup import count, esc, name
from tokenlabels.report.page import MAX_BYTES
from tokenlabels.report.pictures import Picture, encode_within
from tokenlabels.report.template import STYLE, fill

KEPT_FILE = "samples.json"
"""Names the pictures that lie beside it, see `keep_samples`."""

MAX_SAMPLES = 60
"""So many samples are shown; each still gets a picture that can be read."""

_LONG_SIDE = 1600
_LARGE_SAMPLES = 24
"""Pixels of the long side of a picture at most, and of how many pictures; of more it shrinks, which saves trials."""

_BROAD = 1.9
"""Width by height from which a picture takes two places where pictures stand in columns."""

_KEPT_QUALITY = 92
"""Of the JPEG files of `keep_samples`."""

_OWN_STYLE = Path(__file__).with_name("gallery.css")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image in the gallery.

    Attributes:
        title: what stands below it, untrusted text.
        picture: drawn, RGB.
        words: what is to be seen, for those who cannot.
    """

    title: str
    picture: Image.Image
    words: str = "What is kept of"


def keep_samples(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Write pictures as files, so that another page can show them: JPEGs, and last `samples.json` that names them.

    What an earlier call wrote into the folder goes; without samples nothing is written.

    Args:
        samples: of more than `MAX_SAMPLES` the first.
        folder: made where there are samples.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be written.
    """
    try:
        for old in (folder / KEPT_FILE, *folder.glob("sample-[0-9][0-9].jpg")):
            old.unlink(missing_ok=True)
    except OSError as fault:
        raise OutputError(f"{folder}: cannot be written ({fault.strerror}): name another --out.") from None
    written, records = [], []
    for number, sample in enumerate(samples[:MAX_SAMPLES]):
        file = io.BytesIO()
        _bounded(sample.picture, _LONG_SIDE).save(file, "JPEG", quality=_KEPT_QUALITY, subsampling=0)
        path = folder / f"sample-{number:02}.jpg"
        write_atomically(path, file.getvalue())
        records.append({"file": path.name, "title": sample.title, "words": sample.words})
        written.append(path)
    if records:
        written.append(folder / KEPT_FILE)
        write_atomically(folder / KEPT_FILE, msgspec.json.format(msgspec.json.encode(records), indent=2) + b"\n")
    return written


def write_page(
    template: Path,
    path: str | Path,
    parts: Mapping[str, str],
    samples: Sequence[Sample],
    note: str,
    own_style: str = "",
) -> Path:
    """Fill a template, as one file of less than 5 MB that needs nothing else.

    Args:
        template: see `tokenlabels.report.template.fill`; `samples` and `samples-link` are made here.
        path: the file.
        parts: HTML by name.
        samples: pictures to show; of more than `MAX_SAMPLES` the first.
        note: what their marks mean, as text.
        own_style: CSS that this page has beside that of all pages.

    Returns:
        `path`.

    Raises:
        OutputError: `path` cannot be written.
    """
    path = Path(path)
    check_places(path, None)
    shown = list(samples[:MAX_SAMPLES])
    more = f"The first {count(len(shown))} of {count(len(samples))} samples. " if len(samples) > len(shown) else ""

    def page(addresses: Sequence[str]) -> str:
        gallery = _gallery(shown, addresses, more + note) if shown else ""
        link = '<li><a href="#samples">Samples</a></li>' if shown else ""
        style = STYLE.read_text("utf-8") + _OWN_STYLE.read_text("utf-8") + own_style
        return fill(template, dict(parts) | {"samples": gallery, "samples-link": link}, style=style)

    room = MAX_BYTES - 1 - len(page([""] * len(shown)).encode())
    side = int(_LONG_SIDE * min(1.0, (_LARGE_SAMPLES / max(len(shown), 1)) ** 0.5))
    addresses = encode_within([Picture(_bounded(sample.picture, side)) for sample in shown], room)
    write_atomically(path, page([address or "" for address in addresses]).encode())
    return path


def _gallery(samples: Sequence[Sample], addresses: Sequence[str], note: str) -> str:
    items = "\n".join(_item(sample, address) for sample, address in zip(samples, addresses, strict=True))
    return (
        '<section id="samples" aria-labelledby="samples-title"><h2 id="samples-title">Samples</h2>'
        f'<p class="note">{esc(note)}</p><ul class="strips">{items}</ul></section>'
    )


def _item(sample: Sample, address: str) -> str:
    kind = "strip broad" if _is_broad(sample.picture) else "strip"
    return (
        f'<li class="{kind}"><figure><div class="scroll" role="region" tabindex="0" aria-label="{esc(sample.title)}">'
        f'<img alt="{esc(sample.words)} {esc(sample.title)}" src="{address}"></div>'
        f"<figcaption>{name(sample.title)}</figcaption></figure></li>"
    )


def _is_broad(picture: Image.Image) -> bool:
    """Whether a picture is several side by side."""
    return picture.width > _BROAD * picture.height


def _bounded(picture: Image.Image, side: int) -> Image.Image:
    """The picture as RGB, no longer than `side`."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small
