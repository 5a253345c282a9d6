"""What a source is: a reader of one annotation format. Sources never write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tokenlabels.annotations import Dataset
from tokenlabels.check import FindingLog
from tokenlabels.executors import Run, SerialExecutor
from tokenlabels.rules import RuleName
from tokenlabels.select import Selection
from tokenlabels.sources.masks import Rasterizer

if TYPE_CHECKING:
    from tokenlabels.storage import Location


class StageCall(Protocol):
    """See `progress.Progress.stage`."""

    def __call__(self, name: str, total: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a build needs from a source.

    Attributes:
        masks: read masks.
        shapes: check every polygon with shapely.
        limit: keep only the first images of each split.
        run: runs work that can be shared out, see `executors.Executor.run`.
        rasterizer: who turns polygons into pixels.
        progress: called with a sentence when a new stage begins, and its number of steps where that is known.
        advance: called with the number of steps that are done.
        note: called with what a person should know.
        decode: decode every mask file now and leave out the faulty ones, rather than fail where it is scored.
        report_all: with that, report also what a build reports when it scores the masks.
        embed_masks: say which masks are to be embedded.
        selection: what counts, for sources that read annotations only where they are needed.
        draw: such sources report instance masks without pixels, too.
    """

    masks: bool = False
    shapes: bool = False
    limit: int | None = None
    run: Run = SerialExecutor().run
    rasterizer: Rasterizer = "kernel"
    progress: StageCall = lambda name, total=None: None  # noqa: ARG005
    advance: Callable[[int], None] = lambda _steps: None
    note: Callable[[str], None] = lambda _text: None
    decode: bool = False
    report_all: bool = False
    embed_masks: bool = False
    selection: Selection = field(default_factory=Selection)
    draw: bool = False


class Source(Protocol):
    """A reader of one annotation format."""

    @property
    def format(self) -> str:
        """Name of the format, such as `coco`."""

    @property
    def default_rule(self) -> RuleName:
        """The rule unless a person names one."""

    def input_bytes(self, *, masks: bool) -> int:
        """Size of the annotation files, from which the caller judges whether worker processes pay.

        A file that is dearer to read than JSON, such as a mask to decode, counts for more than its bytes.
        """

    def places(self) -> Sequence[Location]:
        """Every file or folder that a person named or a layout has, and that is read."""

    def image_folders(self) -> dict[str, Location]:
        """Image folder of each split; it need not exist."""

    def parameters(self) -> dict[str, Any]:
        """What a person chose of how to read the files, as JSON values; it is part of the parameters of a build."""

    def read(self, reading: Reading, log: FindingLog) -> Dataset:
        """Read and check everything; faults of single entries go to `log`.

        Raises:
            TokenLabelsError: a file as a whole cannot be read, or the source has nothing that the rule can score.
        """
