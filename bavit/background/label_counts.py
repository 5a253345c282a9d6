"""What follows from labels alone: the baselines that a model must beat, and the weights that make classes even."""

from __future__ import annotations

import numpy as np

from bavit.rows import Rows
from tokenlabels.errors import ParameterError
from tokenlabels.stats_shards import FOREGROUND, IGNORE


def baselines(rows: Rows) -> dict[str, float]:
    """Accuracy of the commoner label, and of the commoner label at each position, as `tokenlabels stats` has them."""
    foreground, counted = (test.sum(axis=0) for test in (rows.labels == FOREGROUND, rows.labels != IGNORE))
    likelier = np.maximum(foreground, counted - foreground).sum()
    total = max(int(counted.sum()), 1)
    majority = max(int(foreground.sum()), total - int(foreground.sum()))
    return {"majority": majority / total, "position_prior": float(likelier / total)}


def balanced_weights(rows: Rows) -> tuple[float, float]:
    """Class weights of background and foreground as `tokenlabels stats` has them: all / (2 x those of the class)."""
    foreground = int((rows.labels == FOREGROUND).sum())
    counted = int((rows.labels != IGNORE).sum())
    if not 0 < foreground < counted:
        raise ParameterError(f"{rows.folder} holds one of the labels only: class weights make no sense.")
    return counted / (2 * (counted - foreground)), counted / (2 * foreground)
