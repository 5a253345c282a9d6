"""Choosing the threshold on background probability that meets a target, and how sure it is.

The threshold is exact on the images given: candidates are 0 and every probability after refinement (see `critical.py`).
Its interval is a percentile bootstrap (Efron 1979) over images, for these are independent and their tokens are not. The
resamples are solved on a table of some 130 thresholds, laid a second time over the interval that the first shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, floor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bavit.background.bootstrap import check_bootstrap, quantile, resampled_figures
from bavit.background.confusion import share
from bavit.background.critical import critical_probabilities
from bavit.background.model import BAViT
from bavit.background.predictions import FOREGROUND, Predictions, check_predictions
from bavit.background.targets import MacsTarget, RecallTarget, SparsityTarget, Target
from tokenlabels.errors import ParameterError, TokenLabelsError

__all__ = [
    "Calibration",
    "Choice",
    "MacsTarget",
    "RecallTarget",
    "SparsityTarget",
    "Target",
    "calibrate",
    "choose",
    "store",
]

STOPS = 129
"""Thresholds of a table."""

_BLOCK_CELLS = 1 << 22
"""Tokens taken at a time."""


class Calibration(msgspec.Struct, frozen=True):
    """A threshold, and what it achieves on the images it was chosen on.

    Attributes:
        target: `sparsity`, `fg-recall` or `macs`.
        value: what was asked for.
        threshold: background probability above which a token is removed.
        threshold_low: lower end of the interval: other images of this kind and number might have given this one.
        threshold_high: upper end.
        achieved: the figure at `threshold`.
        achieved_low: lower end of the interval of the figure at `threshold`.
        achieved_high: upper end.
        confidence: of both intervals.
        images: how many.
        refine_steps: steps of refinement that all figures include.
        sparsity: share of tokens removed at `threshold`.
        fg_recall: share of foreground tokens kept at `threshold`; 0 where there are none.
    """

    target: str
    value: float
    threshold: float
    threshold_low: float
    threshold_high: float
    achieved: float
    achieved_low: float
    achieved_high: float
    confidence: float
    images: int
    refine_steps: int
    sparsity: float
    fg_recall: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold for a target, and its intervals; attributes as in `Calibration`."""

    threshold: float
    threshold_low: float
    threshold_high: float
    achieved: float
    achieved_low: float
    achieved_high: float


def store(model: BAViT, found: Calibration, folder: Path) -> None:
    """Make a calibration the model's own: its threshold and steps, and where they come from, in `config.json`.

    Raises:
        OutputError: the file cannot be written.
    """
    model.threshold, model.refine_steps = found.threshold, found.refine_steps
    model.calibration = msgspec.to_builtins(found)
    model.save_config(folder)


def calibrate(
    predictions: Predictions,
    target: Target,
    *,
    refine_steps: int = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Choose the threshold that meets a target.

    Args:
        predictions: of a model, on images that were not trained on.
        target: `SparsityTarget`, `RecallTarget` or `MacsTarget`; each says which threshold is chosen.
        refine_steps: steps of refinement of the model's mask, not negative.
        confidence: of the intervals, between 0 and 1.
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap; the same seed gives the same intervals.

    Raises:
        ParameterError: an argument out of range, or predictions that do not fit together.
        TokenLabelsError: no images, a probability that is none, or a target that no threshold meets.
    """
    if refine_steps < 0:
        raise ParameterError(f"a mask is refined in 0 or more steps, not {refine_steps}.")
    check_predictions(predictions)
    critical = critical_probabilities(predictions.background, refine_steps)
    found = choose(target, critical, predictions.labels, confidence=confidence, resamples=resamples, seed=seed)
    kept, foreground = critical <= np.float32(found.threshold), predictions.labels == FOREGROUND
    return Calibration(
        target=target.name,
        value=float(target.value),
        **asdict(found),
        confidence=float(confidence),
        images=len(critical),
        refine_steps=refine_steps,
        sparsity=share(kept.size - int(np.count_nonzero(kept)), kept.size),
        fg_recall=share(int(np.count_nonzero(kept & foreground)), int(np.count_nonzero(foreground))),
    )


def choose(
    target: Target,
    critical: NDArray[np.float32],
    labels: NDArray[np.uint8],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """Choose the threshold that meets a target, of tokens whose critical probabilities are known.

    Args:
        target: says which threshold is chosen.
        critical: float32 (n, rows, cols), see `critical.py`; infinity where an image has no token.
        labels: uint8 of the same shape.
        confidence: see `calibrate`, as the next two.
        resamples: see above.
        seed: see above.

    Raises:
        ParameterError: an argument out of range.
        TokenLabelsError: no threshold meets the target.
    """
    check_bootstrap(confidence, resamples)
    tokens = _Tokens(target, critical, labels)
    stops = np.union1d(critical[np.isfinite(critical)], np.zeros(1, np.float32))
    threshold = tokens.solve(stops)
    tail = (1 - confidence) / 2
    thresholds, figures = _resampled(tokens, stops, threshold, tail, resamples, seed)
    return Choice(
        threshold=float(threshold),
        threshold_low=quantile(thresholds, tail, "lower"),
        threshold_high=quantile(thresholds, 1 - tail, "higher"),
        achieved=tokens.figure(threshold),
        achieved_low=quantile(figures, tail, "linear"),
        achieved_high=quantile(figures, 1 - tail, "linear"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """The tokens of n images as a target counts them.

    Attributes:
        target: what is asked for.
        critical: float32 (n, rows, cols).
        labels: uint8 (n, rows, cols).
    """

    target: Target
    critical: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def figure(self, threshold: np.floating) -> float:
        """The figure of all images at one threshold."""
        part = whole = 0.0
        for _, counted in self._blocks():
            totals = _totals(counted)
            kept = np.count_nonzero(counted <= threshold, axis=1).astype(np.int64)[:, None]
            part += float(self.target.parts(kept, totals).sum())
            whole += float(self.target.wholes(totals).sum())
        return share(part, whole)

    def table(self, stops: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Parts of each image at each threshold, float64 (n, k), and wholes, float64 (n,).

        Args:
            stops: float32 (k,), ascending.
        """
        parts = np.empty((len(self.critical), len(stops)), np.float64)
        wholes = np.empty(len(self.critical), np.float64)
        width = len(stops) + 1  # tokens that no stop reaches come last
        for images, counted in self._blocks():
            reached = np.searchsorted(stops, counted)
            reached += np.arange(len(counted))[:, None] * width
            counts = np.bincount(reached.reshape(-1), minlength=len(counted) * width).reshape(-1, width)
            totals = _totals(counted)
            parts[images] = self.target.parts(np.cumsum(counts[:, :-1], axis=1, dtype=np.int64), totals)
            wholes[images] = self.target.wholes(totals)[:, 0]
        return parts, wholes

    def solve(self, stops: NDArray[np.float32]) -> np.float32:
        """The threshold that the target asks for, by bisection.

        Args:
            stops: float32 (k,), all candidates, ascending.

        Raises:
            TokenLabelsError: none meets the target.
        """
        turn = bisect_left(range(len(stops)), True, key=lambda index: self._met(stops, index) != self.target.upper)
        index = turn - 1 if self.target.upper else turn
        if not 0 <= index < len(stops):
            raise self._unreachable(self.figure(stops[0]), self.figure(stops[-1]))
        return np.float32(stops[index])

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        step = max(1, _BLOCK_CELLS // self.critical[0].size)
        for first in range(0, len(self.critical), step):
            images = slice(first, first + step)
            yield images, self.target.counted(self.critical[images], self.labels[images])

    def _met(self, stops: NDArray[np.float32], index: int) -> bool:
        return bool(self.target.met(np.array(self.figure(stops[index]))))

    def _unreachable(self, *ends: float) -> TokenLabelsError:
        if isinstance(self.target, RecallTarget) and not (self.labels == FOREGROUND).any():
            return TokenLabelsError(
                f"none of these {len(self.labels)} images has a foreground token, so there is no recall to choose a "
                "threshold by: choose another split or another target."
            )
        unit, form = (1, ",.0f") if isinstance(self.target, MacsTarget) else (1_000_000, ".6g")
        low, high = ceil(min(ends) * unit) / unit, floor(max(ends) * unit) / unit  # inwards: both can be had
        wanted, low_text, high_text = (format(value, form) for value in (self.target.value, low, high))
        return TokenLabelsError(
            f"no threshold brings {self.target.name} to {wanted} on these {len(self.labels)} images: "
            f"ask for {low_text} to {high_text}."
        )


def _totals(counted: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64 (b, 1): tokens of each image that count."""
    return np.count_nonzero(np.isfinite(counted), axis=1, keepdims=True).astype(np.int64)


def _resampled(
    tokens: _Tokens, stops: NDArray[np.float32], threshold: np.float32, tail: float, resamples: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What resampled sets of images would give.

    A resample that cannot meet the target counts with the end of the candidates that comes nearest.

    Args:
        stops: float32, all candidates, ascending.
        threshold: one of them, the solution for the images themselves.
        tail: share of the resamples beyond either end of the interval; between these the thresholds are told apart.

    Returns:
        float32 (resamples,), the threshold of each; float64 (resamples,), the figure of each at `threshold`.
    """
    chosen = _thinned(stops, threshold)
    figures = resampled_figures(*tokens.table(chosen), resamples, seed)
    index = _solutions(tokens.target, figures)
    if len(chosen) < len(stops):  # once more, between the neighbours of the ends of the interval
        first = max(int(quantile(index, tail, "lower")) - 1, 0)
        last = min(int(quantile(index, 1 - tail, "higher")) + 1, len(chosen) - 1)
        within = stops[np.searchsorted(stops, chosen[first]) : np.searchsorted(stops, chosen[last]) + 1]
        chosen = _thinned(within, threshold)
        figures = resampled_figures(*tokens.table(chosen), resamples, seed)
        index = _solutions(tokens.target, figures)
    return chosen[index], figures[:, np.searchsorted(chosen, threshold)]


def _thinned(stops: NDArray[np.float32], threshold: np.float32) -> NDArray[np.float32]:
    """At most `STOPS` of these thresholds, both ends among them, and `threshold`."""
    if len(stops) > STOPS:
        stops = stops[np.linspace(0, len(stops) - 1, STOPS).round().astype(np.int64)]
    return np.union1d(stops, threshold)


def _solutions(target: Target, figures: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 (resamples,): index of the threshold that the target asks for, of figures (resamples, k)."""
    met = np.count_nonzero(target.met(figures), axis=1)
    last = figures.shape[1] - 1
    found: NDArray[np.int64] = np.clip(met - 1 if target.upper else last + 1 - met, 0, last).astype(np.int64)
    return found
