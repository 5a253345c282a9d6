"""Choosing what stays of images for a latency: predicted, measured, corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.detect.budget import Chosen, Limit, Patches, choose_within
from bavit.detect.calibration_plan import Plan
from bavit.detect.latency import Latency, LatencyModel, Learned, Measure, learn
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning
from bavit.detect.yolos import Yolos
from bavit.machine import Machine, processor_name
from tokenlabels.progress import Progress

ATTEMPTS = 4
"""Choices that are made and measured, at most."""

TOLERANCE = 0.02
"""Share of a latency that a measurement may miss it by."""

TIMED = "BAViT, masks, detector and boxes of one image at a time; pictures decoded and resized before"


@dataclass(frozen=True, slots=True, eq=False)
class LatencyChoice:
    """The work of choosing for a latency.

    Attributes:
        bavit: on the machine's device.
        yolos: as well.
        patches: of the calibration set.
        plan: what for.
        machine: where.
        images: numbers in `patches` of those that are timed.
        measure: times detectors on these, see `latency.stopwatch`.
    """

    bavit: BAViT
    yolos: Yolos
    patches: Patches
    plan: Plan
    machine: Machine
    images: Sequence[int]
    measure: Measure

    def choose(self, progress: Progress) -> tuple[Chosen, LatencyModel, Latency]:
        """What stays; the model, corrected by the last measurement; and how it came about.

        Of several attempts it is the one that comes closest.

        Raises:
            TokenLabelsError: the latency is out of reach, or nothing needs to be removed for it.
        """
        learned = learn(self.bavit, self.yolos, self.patches, self.images, self._like(), self.measure)
        dense = learned.dense(self.patches.counts, self.patches.counts)
        model = learned.model
        found: list[tuple[float, Chosen, LatencyModel, Latency]] = []
        while len(found) < ATTEMPTS:
            limit = self._limit(model, dense)
            chosen = self._within(limit)
            if found and self._pruning(chosen) == self._pruning(found[-1][1]):
                break  # no image of the set tells the two apart
            model, latency = self._measured(self._pruning(chosen), model, learned)
            costs = model(self.patches.kept(self._pruning(chosen)), self.patches.counts)
            miss = float(costs.mean()) / self.plan.value - 1
            found.append((miss, chosen, model, latency))
            if abs(miss) <= TOLERANCE:
                break
        miss, chosen, model, latency = min(found, key=lambda each: abs(each[0]))
        if miss > TOLERANCE:
            progress.note(f"measured, the latency is {miss:.1%} above the budget: is the machine busy with other work?")
        return chosen, model, msgspec.structs.replace(latency, attempts=len(found))

    def _like(self) -> Pruning:
        """Of the kind that will be chosen: ranking the patches of an image is part of the time."""
        plan, some = self.plan, self.patches.largest // 2
        if plan.fixed:
            return Pruning(top_k=some, refine_steps=plan.refine_steps, prune_after=plan.prune_after)
        return Pruning(0.5, max_tokens=some, refine_steps=plan.refine_steps, prune_after=plan.prune_after)

    def _limit(self, model: LatencyModel, dense: NDArray[np.float64]) -> Limit:
        plan = self.plan
        return Limit("latency-ms", plan.value, plan.headroom, model, dense, all_grids=not plan.prune_after)

    def _within(self, limit: Limit) -> Chosen:
        plan = self.plan
        return choose_within(
            limit, self.patches, fixed=plan.fixed, confidence=plan.confidence, resamples=plan.resamples, seed=plan.seed
        )

    def _pruning(self, chosen: Chosen) -> Pruning:
        return chosen.pruning(self.plan.refine_steps, self.plan.prune_after)

    def _measured(self, pruning: Pruning, model: LatencyModel, learned: Learned) -> tuple[LatencyModel, Latency]:
        """The model corrected by measuring a detector on the timed images, and the figures."""
        found = self.measure([PrunedDetector(self.bavit, self.yolos, **asdict(pruning))])[0]
        of_image = np.median(found, axis=0)
        of_round = np.median(found / of_image, axis=1)
        images = list(self.images)
        kept, counts = self.patches.kept(pruning)[images], self.patches.counts[images]
        predicted, measured = float(model(kept, counts).mean()), float(of_image.mean())
        better = model.scaled(measured / predicted)
        return better, Latency(
            predicted_ms=predicted,
            measured_ms=measured,
            measured_low_ms=measured * float(of_round.min()),
            measured_high_ms=measured * float(of_round.max()),
            measured_mean_ms=float(found.mean()),
            measured_max_ms=float(of_image.max()),
            dense_ms=learned.dense_ms,
            fit_error=learned.fit_error,
            model={"base": better.base, "per_token": better.per_token, "per_pair": better.per_pair},
            attempts=1,
            images=len(images),
            rounds=self.plan.rounds,
            timed=TIMED,
            environment=self.machine.describe() | {"processor": processor_name()},
        )
