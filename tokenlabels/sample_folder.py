"""The folder of a generated sample: whose it is, whether it is whole, and that two processes do not draw at once.

A folder is claimed first, by a file that says who draws and how much, then drawn, then marked as whole, and the claim
removed. Whatever ends a process in between, the claim stays, and the next one removes what was drawn and begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenlabels.errors import OutputError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MARKER = "sample.json"  # written last: its presence means that the folder is whole
INCOMPLETE = ".sample-incomplete"  # written first, removed last; also the lock between two processes


@dataclass(frozen=True)
class SampleSummary:
    """What a sample folder holds.

    Attributes:
        annotations: COCO annotations, crowds included; of a semantic sample, its shapes.
        splits: images by split; `val` is absent from a sample of one image.
    """

    root: Path
    images: int
    annotations: int
    splits: dict[str, int]


class Drawn(NamedTuple):
    """What a generator says of a sample that it has drawn.

    Attributes:
        annotations: as in the summary.
        splits: as in the summary.
        files: SHA-256 by name of files without which the folder is not whole, relative to it.
    """

    annotations: int
    splits: dict[str, int]
    files: dict[str, str]


class Generator(NamedTuple):
    """One kind of sample folder.

    Attributes:
        name: stands in the markers; a folder whose marker has another name is not touched.
        version: raise it whenever the same seed would give other bytes.
        files: every file of a sample of so many images but its markers, relative to its folder.
    """

    name: str
    version: int
    files: Callable[[int], Iterable[Path]]


def split_of(number: int) -> str:
    """The split of an image; depends on its number alone."""
    return "val" if number % 5 == 2 else "train"


def splits_of(images: int) -> dict[str, list[int]]:
    """The numbers of the images of every split, `val` absent where there is only one image."""
    splits: dict[str, list[int]] = {"train": [], "val": []} if images > 1 else {"train": []}
    for number in range(1, images + 1):
        splits[split_of(number)].append(number)
    return splits


def stem(number: int) -> str:
    """The name of an image without its suffix."""
    return f"{number:012d}"


def is_drawn(root: Path, generator: Generator) -> bool:
    """Whether `root` holds a finished sample of this kind, of whatever seed and size."""
    return _read_json(root / MARKER).get("generator") == generator.name


def write_folder(
    out: Path, generator: Generator, *, images: int, seed: int, draw: Callable[[Path], Drawn], **kind: str
) -> SampleSummary:
    """Draw a sample into `out`, or return at once where that very sample is already there.

    A sample of the same generator that is another one, or was interrupted, is replaced; only files that the generator
    itself wrote are removed. Two processes may ask for the same folder: the second waits for the first.

    Args:
        images: 1 to 1,000,000.
        seed: not negative.
        draw: draws every file but the markers into the folder, whose subfolders are there.
        kind: what else tells this sample from others.

    Raises:
        ParameterError: `images` or `seed` is out of range.
        OutputError: `out` is a file, holds something else, or cannot be written.
    """
    if not 1 <= images <= 1_000_000:
        raise ParameterError(f"A sample holds 1 to 1,000,000 images, not {images:,}.")
    if seed < 0:
        raise ParameterError(f"The seed of a sample must not be negative, {seed} is.")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: name a folder for the sample.")
    wanted = {"generator": generator.name, "version": generator.version, "seed": seed, "images": images, **kind}
    finished = _finished(out, wanted)
    if finished is not None:
        return finished
    try:
        _refuse_foreign(out, generator)
        out.mkdir(parents=True, exist_ok=True)
        with _claimed(out) as claim:
            finished = _finished(out, wanted)
            if finished is None:
                _clear(out, claim, generator, images)
                for folder in {path.parent for path in generator.files(min(images, 2))}:
                    (out / folder).mkdir(parents=True, exist_ok=True)
                drawn = draw(out)
                _write_atomically(out / MARKER, json.dumps({**wanted, **drawn._asdict()}))
                finished = SampleSummary(out, images, drawn.annotations, drawn.splits)
            claim.unlink()
    except OSError as error:
        raise OutputError(f"{out}: the sample cannot be written here ({error}).") from error
    return finished


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _finished(root: Path, wanted: dict[str, Any]) -> SampleSummary | None:
    """The summary of the sample in `root` where it is whole and the one whose identity is `wanted`."""
    marker = _read_json(root / MARKER)
    if any(marker.get(key) != wanted.get(key) for key in wanted.keys() | {"scenes"}):
        return None
    if not all((root / name).is_file() for name in marker["files"]):
        return None
    return SampleSummary(root, marker["images"], marker["annotations"], marker["splits"])


def _refuse_foreign(root: Path, generator: Generator) -> None:
    """Raise OutputError where `root` holds anything but a sample of this generator, whole, interrupted or begun."""
    if not root.is_dir() or not any(root.iterdir()):
        return
    claim = root / INCOMPLETE
    holders = [_read_json(path).get("generator") for path in (claim, root / MARKER)]
    begun = claim.exists() and holders == [None, None]
    if not begun and generator.name != (holders[0] or holders[1]):
        raise OutputError(f"{root} is not empty and holds no generated sample of this kind: name another folder.")


@contextmanager
def _claimed(root: Path) -> Iterator[Path]:
    """Hold the lock on the `INCOMPLETE` file; the kernel lets go of it when this process ends, however it ends."""
    path = root / INCOMPLETE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)  # whoever held it has finished and removed it: claim the new one
    try:
        yield path
    finally:
        os.close(handle)


def _clear(root: Path, claim: Path, generator: Generator, images: int) -> None:
    """Remove what an earlier or interrupted sample left in `root`, and note in `claim` how far this one may get.

    Raises:
        OutputError: while this process waited, another one drew a sample of another kind.
    """
    marker = _read_json(root / MARKER)
    if marker.get("generator", generator.name) != generator.name:
        claim.unlink()
        _refuse_foreign(root, generator)
    earlier = max(marker.get("images", 0), _read_json(claim).get("images", 0))
    claim.write_text(json.dumps({"generator": generator.name, "images": max(earlier, images)}))
    (root / MARKER).unlink(missing_ok=True)
    for path in generator.files(earlier):
        (root / path).unlink(missing_ok=True)


def _write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
