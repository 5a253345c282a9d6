"""Detectors as a person names them: a run and a detector, the folder of a pruned detector, or an exported file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bavit.background.model import load_model
from bavit.detect.detector import Detector
from bavit.detect.loading import load_detector
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning, steps_of
from bavit.machine import Machine
from bavit.parts import is_saved
from tokenlabels.errors import ParameterError
from tokenlabels.grid import PatchGrid
from tokenlabels.progress import Progress

Runtime: TypeAlias = Literal["torch", "onnx"]

FILES: dict[str, Runtime] = {".onnx": "onnx", ".pt2": "torch"}
"""Exported files by the end of their name, and what runs them."""

_OPTIONS = {"refine_steps": "--refine"}
_RULES = ("threshold", "top_k", "sparsity")


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
        """A choice with this in its place, where something is said.

        Another rule for how many stay takes the place of the stored one and of its cap, max_tokens; a cap alone comes
        on top of the stored rule.
        """
        said = self.said
        forgotten: dict[str, Any] = dict.fromkeys((*_RULES, "max_tokens")) if said.keys() & set(_RULES) else {}
        return replace(pruning, **(forgotten | said))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a detector is to run.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `auto`, `32`, `bf16` or `fp16`.
        runtime: what runs it; None: torch, or what an exported file is for.
        threads: of the CPU, for onnxruntime; None: as many as torch has.
    """

    device: str = "auto"
    precision: str = "32"
    runtime: Runtime | None = None
    threads: int | None = None

    def of_torch(self) -> Machine:
        """Where models run.

        Raises:
            ParameterError: a device or precision that is not to be had here.
        """
        return Machine.pick(self.device, self.precision)

    def of_exported(self, runtime: Runtime) -> Machine:
        """Where an exported graph runs, on a CPU unless something else was asked for; it has its own precision.

        Raises:
            ParameterError: a device or precision that is not to be had here.
            TokenLabelsError: the extra `export` is missing.
        """
        if self.precision not in ("auto", "32"):
            raise ParameterError(f"--precision {self.precision}: an exported graph has its own: leave it away.")
        device = "cpu" if self.device == "auto" else self.device
        if runtime == "torch" and device != "cpu":
            raise ParameterError(f"--device {device}: a .pt2 runs on the cpu: export .onnx for other devices.")
        if runtime == "onnx":
            from bavit.export.onnx_graph import provider_of

            provider_of(device)
        return Machine(device, "32")


@dataclass(frozen=True, slots=True)
class Opening:
    """A detector about to be opened.

    Attributes:
        grid: of its BAViT, on which patches of pictures have labels.
        machine: where it runs.
        open: makes it ready; takes the names of the classes of one that is random.
        budget: for which it was chosen how many patches stay, see `Saved`; None: it was not, or no longer holds.
    """

    grid: PatchGrid
    machine: Machine
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
    exporting = place.runtime == "onnx"
    machine = place.of_exported("onnx") if exporting else place.of_torch()
    if is_saved(run):
        grid, make, budget = _of_saved(Path(run), stays, progress, counted=exporting)
    else:
        grid, make, budget = *_of_models(run, detector, stays), None

    def opened(classes: Sequence[str] | None) -> Detector:
        if not exporting:
            return make(classes).to(machine.device)
        from bavit.export.temporary import exported

        return exported(make(classes), place.threads, machine.device, progress)

    return Opening(grid, machine, opened, budget)


_Make: TypeAlias = Callable[[Sequence[str] | None], PrunedDetector]


def _of_models(run: str, detector: str | None, stays: Stays) -> tuple[PatchGrid, _Make]:
    bavit = load_model(run)
    if detector is None:
        raise ParameterError(f"{run} finds foreground, and no boxes: name a detector behind it (DETECTOR).")
    pruning = stays.over(Pruning(refine_steps=steps_of(bavit)))

    def make(classes: Sequence[str] | None) -> PrunedDetector:
        return PrunedDetector(bavit, load_detector(detector, classes), **asdict(pruning))

    return bavit.grid, make


def _of_saved(
    folder: Path, stays: Stays, progress: Progress, *, counted: bool
) -> tuple[PatchGrid, _Make, dict[str, Any] | None]:
    """BAViT's grid, the detector, and its budget where that holds: not if a cap becomes a count (`counted`)."""
    found = PrunedDetector.from_pretrained(folder)
    assert found.bavit is not None
    found.prune(stays.over(found.pruning))
    budget = found.budget
    if budget is not None and stays.said:
        progress.note(f"{', '.join(stays.options)}: in the place of what {folder} was calibrated for, its budget.")
        budget = None
    if counted and found.pruning.top_k is None and found.pruning.sparsity is None:
        budget = None
    return found.bavit.grid, lambda _: found, budget


def _of_file(path: Path, stays: Stays, place: Place) -> Opening:
    runtime = FILES[path.suffix]
    if place.runtime not in (None, runtime):
        raise ParameterError(f"{path}: is run by {runtime}, not by {place.runtime}: leave --runtime away.")
    if stays.said:
        raise ParameterError(f"{', '.join(stays.options)}: {path} was exported with its own: export it again.")
    machine = place.of_exported(runtime)
    from bavit.export.runtime import ExportedDetector

    found = ExportedDetector.open(path, threads=place.threads, device=machine.device)
    grid = PatchGrid.parse(found.config.patch, found.size) if found.bavit is None else found.bavit.grid
    return Opening(grid, machine, lambda _: found)
