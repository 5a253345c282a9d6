"""A data set of one small archive, what fetches it from a test's own web server, and what must then be there."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_site import Site

import tokenlabels
from tokenlabels.downloading import Download
from tokenlabels.errors import DownloadError
from tokenlabels.known import Archive, KnownDataset

STATE = ".tokenlabels-download"
FILE = "set.zip"
PATH = f"/{FILE}"
MEMBER = "annotations/instances_val.json"


def packed(members: dict[str, bytes]) -> bytes:
    """A zip file, not compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PIECE = 1 << 16
CUT = 16 * PIECE
"""Bytes before a connection is closed: whole pieces, for the rest of one is lost."""

TEXT = np.random.default_rng(0).bytes(3 << 20)
CONTENT = packed({MEMBER: TEXT, "annotations/captions_val.json": b"no", "val/1.jpg": b"picture"})


def data_set(urls: tuple[str, ...] = (), content: bytes = CONTENT, *, known: bool = True) -> KnownDataset:
    """A data set of one archive, whose size and hash are known."""
    archive = Archive(
        FILE,
        urls,
        {"val": "val"},
        len(content) if known else None,
        f"sha256:{hashlib.sha256(content).hexdigest()}" if known else "",
        ("annotations/instances_{split}.json",),
        ("{split}/*",),
    )
    return KnownDataset("set", "A set", "mit", [], source="coco", downloads=(archive,))


class Told:
    """What a person is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[int] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))
        self.steps.append(0)

    def advance(self, steps: int) -> None:
        self.steps[-1] += steps

    def note(self, text: str) -> None:
        self.notes.append(text)


def fetch(site: Site, root: Path, **options: Any) -> Download:
    """Download the data set from a site, without waiting between tries."""
    known = options.pop("dataset", None) or data_set()
    settings: dict[str, Any] = {"mirror": site.address, "pause": lambda _seconds: None} | options
    return tokenlabels.download(known, splits="val", root=root, **settings)


def whole(root: Path) -> None:
    """What was wanted is there, and nothing is left of the work."""
    assert (root / MEMBER).read_bytes() == TEXT
    assert (root / "val/1.jpg").read_bytes() == b"picture"
    assert not (root / "annotations/captions_val.json").exists()
    assert (root / FILE).read_bytes() == CONTENT
    assert {path.name for path in (root / STATE).iterdir()} == {"lock", f"{FILE}.json"}


def nothing(root: Path) -> None:
    """Nothing is there that could be taken for a data set."""
    assert [path.name for path in root.iterdir()] == [STATE]


class Stopping(Told):
    """Ctrl-C after so many bytes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, steps: int) -> None:
        super().advance(steps)
        if sum(self.steps) >= self.after:
            raise KeyboardInterrupt


def held(root: Path) -> int:
    return (root / STATE / f"{FILE}.part").stat().st_size


def failing(site: Site, root: Path, *named: str, **options: Any) -> str:
    """The one sentence of a download that fails, which leaves nothing that looks finished."""
    with pytest.raises(DownloadError) as fault:
        fetch(site, root, **options)
    nothing(root)
    for words in named:
        assert words in str(fault.value)
    assert "\n" not in str(fault.value)
    return str(fault.value)
