"""What tests of several files share: commands that must succeed or fail well, and oracles for areas in cells."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from typer.testing import Result

from tokenlabels import PatchGrid

Invoke: TypeAlias = Callable[..., Result]
"""A command in this process, called with its words."""


def fine(result: Result) -> Result:
    """A command that must have succeeded."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def one_error_line(stderr: str, *named: str) -> None:
    """The one sentence of a command that must have failed; it holds every text in `named`."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "--debug" not in stderr, "an error that nobody foresaw"
    for part in named:
        assert part in lines[0]


def shards(folder: Path) -> dict[str, bytes]:
    """The bytes of every shard below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file that this process writes may pass `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def weights(edges: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """(cells, side): how much of each pixel lies in each cell of one axis."""
    pixels = np.arange(side)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    found: NDArray[np.float64] = np.maximum(inside, 0.0)
    return found


def shares(chosen: NDArray[np.bool_], grid: PatchGrid) -> NDArray[np.float64]:
    """(cells,): share of every cell that some pixels, bool (height, width), cover."""
    height, width = chosen.shape
    y, x = grid.edges(width, height)
    area = weights(y, height) @ chosen.astype(np.float64) @ weights(x, width).T
    found: NDArray[np.float64] = (area / np.outer(np.diff(y), np.diff(x))).ravel()
    return found
