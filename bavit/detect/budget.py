"""How many patches of each image a budget allows: the threshold and the cap that a pruned detector is saved with.

A budget is a mean cost over a set, and beside it no image may cost more than `headroom` times as much. The cap is the
largest number of patches whose cost that allows; the threshold is the greatest at which the mean cost, the cap applied,
is within the budget: so as much is kept as is affordable. Both are exact on the set, for all follows from the critical
probabilities of the patches of the detector's grid (see `background/critical.py`), as `Pruning.masks` has them.

Costs grow with the number of patches that are kept. What costs what is told by a `Cost`: patches themselves,
multiply-accumulates, or milliseconds by a model that was fitted to measurements (see `latency.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bavit.background.calibrate import Choice, choose
from bavit.detect.accounting import detector_macs
from bavit.detect.config import YolosConfig
from bavit.detect.pruning import Pruning, Size, removed_of
from tokenlabels.errors import ParameterError, TokenLabelsError

BudgetName: TypeAlias = Literal["macs", "tokens", "latency-ms"]

UNITS: dict[BudgetName, str] = {"macs": "MACs", "tokens": "patch tokens", "latency-ms": "ms"}

_BLOCK_IMAGES = 4096
"""Images whose patches are ranked at a time."""


class Cost(Protocol):
    """What images cost."""

    def __call__(self, kept: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cost of images, never less where more is kept.

        Args:
            kept: int64, patches that are kept.
            patches: int64, patches of the detector's grid, of a shape that broadcasts with `kept`.

        Returns:
            float64, of the shape of both.
        """
        ...


def tokens_cost(kept: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[np.float64]:
    """Patch tokens of the detector that stay; neither CLS nor detection tokens, which always do, nor those of BAViT."""
    return np.broadcast_arrays(kept, patches)[0].astype(np.float64)


@dataclass(frozen=True, slots=True)
class MacsCost:
    """Multiply-accumulates of BAViT and of the detector behind it.

    Attributes:
        config: of the detector.
        bavit_macs: of BAViT.
        prune_after: blocks of the detector that see all patches.
    """

    config: YolosConfig
    bavit_macs: int
    prune_after: int = 0

    def __call__(self, kept: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[np.float64]:
        macs = detector_macs(self.config, kept, patches, prune_after=self.prune_after)
        return (self.bavit_macs + macs).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The patches of n images on the detector's grid.

    Attributes:
        critical: float32 (n, m), the critical probability of each, row-major; infinity behind those of an image that
            has fewer than m.
        shapes: n of (rows, cols).
        labels: uint8 (n, m), 1 where a patch is foreground; None where that is not known.
        largest: patches of the largest grid that the detector makes of any picture.
    """

    critical: NDArray[np.float32]
    shapes: Sequence[Size]
    labels: NDArray[np.uint8] | None
    largest: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 (n,), patches there are."""
        found: NDArray[np.int64] = np.array(self.shapes, np.int64).prod(axis=1)
        return found

    def kept(self, pruning: Pruning, threshold: float = 0.5) -> NDArray[np.int64]:
        """int64 (n,), how many patches `Pruning.masks` keeps; `threshold` is the one it falls back on."""
        counts = self.counts
        if pruning.top_k is not None:
            found = np.minimum(counts, pruning.top_k)
        elif pruning.sparsity is not None:
            found = counts - np.array([removed_of(count, pruning.sparsity) for count in counts.tolist()], np.int64)
        else:
            stop = np.float32(threshold if pruning.threshold is None else pruning.threshold)
            found = np.count_nonzero(self.critical <= stop, axis=1).astype(np.int64)
        return found if pruning.max_tokens is None else np.minimum(found, pruning.max_tokens)

    def mask(self, image: int, count: int) -> NDArray[np.bool_]:
        """bool (rows, cols): so many patches of one image, ranked as `Pruning` does."""
        rows, cols = self.shapes[image]
        kept = np.zeros(rows * cols, np.bool_)
        kept[np.argsort(self.critical[image, : rows * cols], kind="stable")[:count]] = True
        return kept.reshape(rows, cols)

    def fg_recall(self, kept: NDArray[np.int64]) -> float | None:
        """Share of foreground patches that are among so many of each image; None where there are none."""
        if self.labels is None:
            return None
        held = whole = 0
        for first in range(0, len(kept), _BLOCK_IMAGES):
            part = slice(first, first + _BLOCK_IMAGES)
            order = np.argsort(self.critical[part], axis=1, kind="stable")
            foreground = np.take_along_axis(self.labels[part] == 1, order, axis=1)
            held += int(np.count_nonzero(foreground & (np.arange(order.shape[1]) < kept[part, None])))
            whole += int(np.count_nonzero(foreground))
        return held / whole if whole else None


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """A budget, and what it is measured with.

    Attributes:
        name: of what is limited.
        value: mean cost of an image at most.
        headroom: the dearest image costs at most so many times as much, at least 1.
        cost: of images behind BAViT.
        dense: float64 (n,), cost of each image of the set to the detector alone, nothing removed.
        all_grids: a grid costs what is kept of it, however large it is, so that a cap holds for grids that no image of
            the set has.

    Raises:
        ParameterError: a value that is not positive, or a headroom below 1.
    """

    name: BudgetName
    value: float
    headroom: float
    cost: Cost
    dense: NDArray[np.float64]
    all_grids: bool

    def __post_init__(self) -> None:
        check_limit(self.name, self.value, self.headroom)

    @property
    def most(self) -> float:
        """What an image costs at most; both factors are taken as written, 1.15 x 100 is 115."""
        return float(Fraction(str(float(self.value))) * Fraction(str(float(self.headroom))))

    def grids(self, patches: Patches) -> list[int]:
        """Patches of the grids that a cap has to hold for."""
        found = {int(count) for count in np.unique(patches.counts)}
        return sorted(found | {patches.largest} if self.all_grids else found)

    def cap(self, patches: Patches) -> int | None:
        """The largest number of patches whose cost is within `most` on every grid; None where all may stay."""
        bounds = []
        for count in self.grids(patches):
            costs = self.cost(np.arange(count + 1), np.array(count))
            within = int(np.count_nonzero(costs <= self.most)) - 1
            if within < count:
                bounds.append(max(within, 0))
        return min(bounds, default=None)

    def mean(self, kept: NDArray[np.int64], patches: Patches) -> float:
        """Mean cost of images of which so many patches are kept, int64 (n,)."""
        return float(self.cost(kept, patches.counts).mean())


@dataclass(frozen=True, slots=True)
class _CappedTarget:
    """A limit as a target of `calibrate.choose`: the mean cost of what a threshold keeps, of an image `cap` at most."""

    limit: Limit
    cap: int
    name: ClassVar[str] = "budget"
    upper: ClassVar[bool] = True

    @property
    def value(self) -> float:
        return self.limit.value

    def counted(self, critical: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ARG002
        return critical.reshape(len(critical), -1)

    def parts(self, kept: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.limit.cost(np.minimum(kept, self.cap), totals)

    def wholes(self, totals: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.ones(totals.shape, np.float64)

    def met(self, figure: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(figure <= self.limit.value)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stays of each image; attributes as in `Pruning`, and the intervals where a threshold was chosen."""

    threshold: float | None = None
    top_k: int | None = None
    sparsity: float | None = None
    max_tokens: int | None = None
    choice: Choice | None = None

    def pruning(self, refine_steps: int, prune_after: int) -> Pruning:
        """The same for a detector."""
        return Pruning(self.threshold, self.top_k, self.sparsity, self.max_tokens, refine_steps, prune_after)


def choose_within(
    limit: Limit, patches: Patches, *, fixed: bool, confidence: float, resamples: int, seed: int
) -> Chosen:
    """What stays of each image so that a set is within a budget.

    Args:
        limit: the budget.
        patches: of the set.
        fixed: the same number in all images, as an exported file needs, instead of a threshold and a cap.
        confidence: see `calibrate.choose`, as the next two.
        resamples: see above.
        seed: see above.

    Raises:
        TokenLabelsError: the budget is out of reach, or there is nothing to remove for it.
    """
    cap = limit.cap(patches)
    _check_reach(limit, patches, cap, fixed=fixed)
    most = patches.largest if cap is None else cap
    if fixed:
        counts = patches.counts
        over = bisect_left(
            range(1, most + 1), True, key=lambda k: limit.mean(np.minimum(counts, k), patches) > limit.value
        )
        return Chosen(top_k=over)
    critical = patches.critical[:, None]
    choice = choose(
        _CappedTarget(limit, most), critical, np.zeros(critical.shape, np.uint8),
        confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip
    return Chosen(threshold=choice.threshold, max_tokens=cap, choice=choice)


def check_limit(name: BudgetName, value: float, headroom: float) -> None:
    """Refuse a budget that is none.

    Raises:
        ParameterError: a value that is not positive, or a headroom below 1.
    """
    if not 0 < value < np.inf:
        raise ParameterError(f"--{name} {value:g}: a budget is a positive number.")
    if not 1 <= headroom < np.inf:
        raise ParameterError(f"--headroom {headroom:g} is out of range: it is 1, which leaves none, or more.")


def told(name: BudgetName, value: float) -> str:
    """A cost as a person gives it to an option, rounded up to what is written."""
    if name == "tokens":
        return f"{ceil(value)}"
    if name == "latency-ms":
        return _decimals(ceil(value * 100), 100)
    unit, letter = (10**9, "G") if value >= 1e9 else (10**6, "M")
    return _decimals(ceil(Fraction(value) * 1000 / unit), 1000) + letter


def _decimals(numerator: int, denominator: int) -> str:
    """A decimal fraction, without zeros at its end."""
    return f"{Decimal(numerator) / denominator:f}"


def _check_reach(limit: Limit, patches: Patches, cap: int | None, *, fixed: bool) -> None:
    """Refuse a budget that the detector alone meets, and one that nothing meets; each says what can be had."""
    given = told("macs", limit.value) if limit.name == "macs" else f"{limit.value:g}"
    wanted = f"--{limit.name} {given}"

    def cost(value: float) -> str:
        return f"{told(limit.name, value)} {UNITS[limit.name]}"

    if limit.dense.mean() <= limit.value and limit.dense.max() <= limit.most:
        raise TokenLabelsError(
            f"the dense detector costs {cost(float(limit.dense.mean()))} an image, so nothing needs to be removed for "
            f"{wanted}: ask for less, or use the detector alone."
        )
    single = max(float(limit.cost(np.ones(1, np.int64), np.array([count]))[0]) for count in limit.grids(patches))
    least = patches.kept(Pruning(top_k=1) if fixed else Pruning(threshold=0))
    if cap != 0 and limit.mean(least if cap is None else np.minimum(least, cap), patches) <= limit.value:
        return
    cheapest = limit.mean(least, patches)
    reason = (
        f"an image with a single patch costs {cost(single)}, more than {limit.headroom:g} times that"
        if cap == 0
        else f"images cost {cost(cheapest)} in the mean when all is removed that can be"
    )
    nearest = max(single / limit.headroom, cheapest)
    if limit.dense.mean() <= nearest and limit.dense.max() <= nearest * limit.headroom:
        raise TokenLabelsError(
            f"{wanted} is out of reach: {reason}; the dense detector alone costs {cost(float(limit.dense.mean()))} an "
            "image: use that."
        )
    raise TokenLabelsError(f"{wanted} is out of reach: {reason}; ask for {told(limit.name, nearest)} or more.")
