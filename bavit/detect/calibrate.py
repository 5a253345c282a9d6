"""A pruned detector for a budget, or another target: what stays of images is chosen on a calibration set.

The set goes through BAViT once; what follows is exact on it (see `budget.py`). A latency is predicted by a model that
is fitted to a measurement here (see `latency.py`); the detector that was chosen by it is then measured, and where it
misses the budget the model is corrected and the choice made again (see `latency_choice.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bavit.background.calibrate import choose
from bavit.background.model import BAViT
from bavit.background.targets import RecallTarget, SparsityTarget
from bavit.detect.accounting import detector_macs
from bavit.detect.adaptive import ADAPTIVE_FILE
from bavit.detect.budget import Chosen, Cost, Limit, MacsCost, Patches, choose_within, tokens_cost, told
from bavit.detect.budget_record import Budget, make_budget
from bavit.detect.calibration_plan import Plan
from bavit.detect.calibration_set import look
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.latency import Measure, stopwatch
from bavit.detect.latency_choice import LatencyChoice
from bavit.detect.pruned import PrunedDetector
from bavit.detect.saved import BAVIT_FOLDER, DETECTOR_FOLDER, PRUNED_FILE
from bavit.detect.sweep import read_inputs
from bavit.detect.timing import Inputs
from bavit.detect.yolos import Yolos
from bavit.machine import Machine
from bavit.timing import spread
from tokenlabels.atomic import is_temporary
from tokenlabels.errors import OutputError, ParameterError
from tokenlabels.progress import Progress


def calibrate_detector(
    bavit: BAViT,
    yolos: Yolos,
    data: DetectionSet,
    plan: Plan,
    machine: Machine,
    names: Mapping[str, str],
    progress: Progress,
    *,
    skip: bool = False,
    timer: Callable[[Inputs, Machine, int, Progress], Measure] = stopwatch,
) -> tuple[PrunedDetector, Budget]:
    """Choose what stays of images.

    Args:
        bavit: the background model; moved to the machine's device.
        yolos: the detector; moved, too.
        data: the calibration set; best images that neither model was trained on.
        plan: what for.
        machine: where.
        names: `bavit`, `detector` and `source`, as a person named them.
        progress: told about every image, and what a person should know.
        skip: leave out pictures that cannot be read.
        timer: makes what measures detectors on inputs.

    Returns:
        The detector, and what it was chosen for, which is its `budget`, too.

    Raises:
        ParameterError: `prune_after` beyond the detector's blocks, or labels on another grid where recall is wanted.
        PictureError: a picture cannot be read.
        TokenLabelsError: a target out of reach, or weights that are damaged.
    """
    PrunedDetector(bavit, yolos, prune_after=plan.prune_after)
    if plan.target == "fg-recall" and data.rows.grid != bavit.grid:
        raise ParameterError(
            f"{data.rows.folder} has labels on the grid {data.rows.header.grid}, not on {bavit.grid.name}: build "
            "labels on that grid, or choose a budget or a sparsity."
        )
    device = torch.device(machine.device)
    bavit, yolos = bavit.to(device).eval(), yolos.to(device).eval()
    patches, numbers = look(
        bavit, yolos, data, machine, progress,
        refine_steps=plan.refine_steps, batch_size=plan.batch_size, workers=plan.workers, skip=skip,
    )  # fmt: skip
    cost: Cost = tokens_cost
    latency = None
    if plan.target == "latency-ms":
        images = spread(_foreground(patches), plan.time_images)
        inputs = read_inputs(bavit, yolos, data, [numbers[image] for image in images], plan.workers)
        measure = timer(inputs, machine, plan.rounds, progress)
        chosen, cost, latency = LatencyChoice(bavit, yolos, patches, plan, machine, images, measure).choose(progress)
    else:
        progress.stage("calibrating")
        if plan.target == "macs":
            cost = MacsCost(yolos.config, bavit.macs, plan.prune_after)
        chosen = _chosen(yolos, patches, plan, cost)
    detector = PrunedDetector(bavit, yolos, **asdict(chosen.pruning(plan.refine_steps, plan.prune_after)))
    found = make_budget(
        plan, chosen, cost, patches, yolos, bavit.macs,
        latency=latency, skipped=len(data) - len(numbers), names=names,
    )  # fmt: skip
    detector.budget = msgspec.to_builtins(found)
    if found.macs > found.macs_dense:
        progress.note(
            f"BAViT and what is left of the detector cost {told('macs', found.macs)} MACs an image, the detector alone "
            f"{told('macs', found.macs_dense)}."
        )
    return detector, found


def _chosen(yolos: Yolos, patches: Patches, plan: Plan, cost: Cost) -> Chosen:
    """What stays, for anything but a latency."""
    if plan.fixed and plan.target == "sparsity":
        return Chosen(sparsity=plan.value)
    if plan.target in ("sparsity", "fg-recall"):
        target = SparsityTarget(plan.value) if plan.target == "sparsity" else RecallTarget(plan.value)
        labels = np.zeros(patches.critical.shape, np.uint8) if patches.labels is None else patches.labels
        choice = choose(
            target, patches.critical[:, None], labels[:, None],
            confidence=plan.confidence, resamples=plan.resamples, seed=plan.seed,
        )  # fmt: skip
        return Chosen(threshold=choice.threshold, choice=choice)
    counts, macs = patches.counts, plan.target == "macs"
    limit = Limit(
        "macs" if macs else "tokens",
        plan.value,
        plan.headroom,
        cost,
        dense=(detector_macs(yolos.config, counts, counts) if macs else counts).astype(np.float64),
        # after blocks that see all patches the cost of a grid depends on its size: a cap holds for the set's own alone
        all_grids=not (macs and plan.prune_after),
    )
    return choose_within(
        limit, patches, fixed=plan.fixed, confidence=plan.confidence, resamples=plan.resamples, seed=plan.seed
    )


def _foreground(patches: Patches) -> NDArray[np.float64]:
    """float64 (n,): a figure that orders images by how much is kept of them, the mean of 1 - critical probability."""
    found: NDArray[np.float64] = np.where(np.isfinite(patches.critical), 1 - patches.critical, 0.0).sum(axis=1)
    return found / patches.counts


def check_place(folder: Path, inputs: Mapping[str, str], *, overwrite: bool) -> None:
    """Refuse a folder that a pruned detector cannot be saved in.

    Args:
        folder: where it shall go.
        inputs: names of what it is made of: folders in it are not replaced.
        overwrite: a pruned detector that is there may be replaced, a whole or a half-written one.

    Raises:
        OutputError: it is a file, holds other files, a model that is read, or a detector that is not to be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file: name a folder with --out.")
    held = {path.name for path in folder.iterdir() if not is_temporary(path.name)} if folder.is_dir() else set()
    own = {PRUNED_FILE, BAVIT_FOLDER, DETECTOR_FOLDER, ADAPTIVE_FILE}
    if held - own:
        raise OutputError(f"{folder}: holds other files ({sorted(held - own)[0]}): name an empty folder with --out.")
    for name in inputs.values():
        if folder.resolve() in (Path(name).resolve(), *Path(name).resolve().parents) and Path(name).exists():
            raise OutputError(f"{folder}: holds {name}, which is read: name another folder with --out.")
    if held and not overwrite:
        raise OutputError(f"{folder}: holds a pruned detector: use --overwrite, or name another folder with --out.")
