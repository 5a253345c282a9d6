"""What a source is: a reader of one annotation format. Sources never write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokenlabels.annotations import Dataset
from tokenlabels.check import FindingLog
from tokenlabels.executors import Run, SerialExecutor
from tokenlabels.sources.masks import Rasterizer


@dataclass(frozen=True, slots=True)
class Reading:
    """What a build needs from a source.

    Attributes:
        masks: read instance masks.
        shapes: check every polygon with shapely.
        limit: keep only the first images of each split.
        run: runs work that can be shared out, see `executors.Executor.run`.
        rasterizer: who turns polygons into pixels.
        progress: called with a sentence when a new stage begins.
    """

    masks: bool = False
    shapes: bool = False
    limit: int | None = None
    run: Run = SerialExecutor().run
    rasterizer: Rasterizer = "kernel"
    progress: Callable[[str], None] = lambda _stage: None


class Source(Protocol):
    """A reader of one annotation format."""

    @property
    def format(self) -> str:
        """Name of the format, such as `coco`."""

    def input_bytes(self) -> int:
        """Size of the annotation files, from which the caller judges whether worker processes pay."""

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """Read and check everything; faults of single entries go to `log`.

        Raises:
            TokenLabelsError: a file as a whole cannot be read.
        """
