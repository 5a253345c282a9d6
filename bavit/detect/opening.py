"""Detectors as a person names them: a run and a detector, the folder of a pruned detector, or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bavit.background.model import load_model
from bavit.detect.detector import Detector
from bavit.detect.loading import load_detector
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning, steps_of
from bavit.detect.saved import is_saved
from bavit.machine import Machine
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.progress import Progress

Runtime: TypeAlias = Literal["torch", "onnx"]

FILES: dict[str, Runtime] = {".onnx": "onnx", ".pt2": "torch"}
"""Exported files by the end of their name, and what runs them."""

_OPTIONS = {"refine_steps": "--refine"}
_HOW_MANY = ("threshold", "top_k", "sparsity", "max_tokens")


@dataclass(frozen=True, slots=True)
class Stays:
    """What a person says of the patches that stay: attributes as of `Pruning`, None where nothing is said.

    Raises:
        ParameterError: see `Pruning`.
    """

    threshold: float | None = None
    top_k: int | None = None
    sparsity: float | None = None
    max_tokens: int | None = None
    refine_steps: int | None = None
    prune_after: int | None = None

    def __post_init__(self) -> None:
        self.over(Pruning())

    @property
    def said(self) -> dict[str, Any]:
        """What is not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def options(self) -> list[str]:
        """The options that say it."""
        return [_OPTIONS.get(name, "--" + name.replace("_", "-")) for name in self.said]

    def over(self, pruning: Pruning) -> Pruning:
        """With this in the place of what something else says; who says how many stay, says all of it."""
        said = self.said
        forgotten = dict.fromkeys(_HOW_MANY) if said.keys() & set(_HOW_MANY) else {}
        return replace(pruning, **(forgotten | said))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a detector runs.

    Attributes:
        machine: device and precision of torch; `auto` was asked for where that is.
        runtime: what runs it; None: torch, or what a file is for.
        threads: of a CPU; None: as many as torch has.
    """

    machine: Machine
    runtime: Runtime | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A detector about to be opened.

    Attributes:
        grid: of its BAViT, on which patches of pictures have labels.
        open: makes it ready; takes the names of the classes of one that is random.
        budget: for which it was chosen how many patches stay, see `Saved`; None: it was not, or no longer holds.
    """

    grid: PatchGrid
    open: Callable[[Sequence[str] | None], Detector]
    budget: dict[str, Any] | None = None


def is_exported(run: str) -> bool:
    """Whether a name is that of an exported file, be it there or not."""
    return Path(run).suffix in FILES and not Path(run).is_dir()


def is_whole(run: str) -> bool:
    """Whether a name is that of a detector with all its parts, so that no second one is needed."""
    return is_exported(run) or is_saved(run)


def opening(run: str, detector: str | None, stays: Stays, place: Place, progress: Progress) -> Opening:
    """Find what is named, and read what is needed before pictures are.

    Args:
        run: a BAViT, the folder of a pruned detector, or an exported file.
        detector: a YOLOS behind a BAViT; None with the others.
        stays: of patches, in the place of what is stored.
        place: where it is to run.
        progress: told what a person should know.

    Raises:
        ParameterError: what was said contradicts what was named.
        TokenLabelsError: there is nothing of these names, or it is damaged.
    """
    if is_exported(run):
        return _of_file(Path(run), stays, place)
    place.check_models()
    if is_saved(run):
        grid, detector_of, budget = _of_saved(Path(run), stays, progress)
    else:
        grid, detector_of, budget = *_of_models(run, detector, stays), None

    def opened(classes: Sequence[str] | None) -> Detector:
        found = detector_of(classes)
        if place.runtime != "onnx":
            return found.to(place.device)
        from bavit.export.temporary import exported

        return exported(found, threads=place.threads, device=place.device, progress=progress)

    return Opening(grid, opened, budget)
