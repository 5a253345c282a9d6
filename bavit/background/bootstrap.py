"""The percentile bootstrap (Efron 1979) over images: what figures other sets of this kind and size might have shown."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokenlabels.errors import ParameterError

_RESAMPLES = 64
"""Resamples taken at a time."""


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Refuse numbers that make no interval.

    Raises:
        ParameterError: one is out of range.
    """
    if not 0 < confidence < 1:
        raise ParameterError(f"the confidence of an interval lies between 0 and 1, {confidence} does not.")
    if resamples < 1:
        raise ParameterError(f"a bootstrap takes 1 or more resamples, not {resamples}.")


def resampled_figures(
    parts: NDArray[np.float64], wholes: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """The figure of each resample of n images, drawn with replacement, at k thresholds.

    Args:
        parts: float64 (n, k).
        wholes: float64 (n,).
        resamples: how many.
        seed: of the draws.

    Returns:
        float64 (resamples, k).
    """
    rng = np.random.default_rng(seed)
    images = len(wholes)
    found = np.zeros((resamples, parts.shape[1]), np.float64)
    weights = np.empty((min(resamples, _RESAMPLES), images), np.float64)  # how often each image is drawn
    for first in range(0, resamples, _RESAMPLES):
        rows = found[first : first + _RESAMPLES]
        used = weights[: len(rows)]
        for weight in used:
            weight[:] = np.bincount(rng.integers(0, images, images), minlength=images)
        # By torch, for numpy's own threads take ten times as long where another process uses the cores.
        sums = (torch.from_numpy(used) @ torch.from_numpy(parts)).numpy()
        totals = (used * wholes).sum(axis=1, keepdims=True)
        np.divide(sums, totals, out=rows, where=totals > 0)
    return found


def quantile(values: NDArray[Any], below: float, method: Literal["lower", "higher", "linear"]) -> float:
    """The value that a share `below` of the values does not exceed, as `numpy.quantile` has it."""
    return float(np.quantile(values, below, method=method))
