"""What a pruned detector is calibrated for, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast, get_args

from bavit.background.bootstrap import check_bootstrap
from bavit.background.targets import parse_macs
from bavit.detect.budget import BudgetName, check_limit
from bavit.detect.pruning import Pruning
from tokenlabels.errors import ParameterError

TargetName: TypeAlias = Literal["macs", "tokens", "latency-ms", "sparsity", "fg-recall"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a detector is calibrated for, and how.

    Attributes:
        target: of the detector behind BAViT: mean `macs`, `tokens` (patches kept) or `latency-ms` of an image at most,
            `sparsity` at least, or `fg-recall` at least.
        value: of the target.
        headroom: of a budget, see `Limit`.
        fixed: the same number of patches in all images, or the same share, instead of a threshold.
        refine_steps: see `Pruning`.
        prune_after: see `Pruning`.
        batch_size: images that go through BAViT at a time.
        workers: threads that decode pictures.
        time_images: images that are timed, for a latency.
        rounds: of timing.
        confidence: of intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ParameterError: a number out of range, or choices that contradict each other.
    """

    target: TargetName
    value: float
    headroom: float = 1.5
    fixed: bool = False
    refine_steps: int = 3
    prune_after: int = 0
    batch_size: int = 8
    workers: int = 1
    time_images: int = 8
    rounds: int = 5
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.is_budget:
            check_limit(cast(BudgetName, self.target), self.value, self.headroom)
        elif not 0 <= self.value <= 1:
            raise ParameterError(f"--{self.target} {self.value:g} is out of range: it is a share, 0 to 1.")
        if self.fixed and self.target == "fg-recall":
            raise ParameterError("--fixed keeps as much of every image: it goes with a budget or --sparsity.")
        if min(self.batch_size, self.time_images, self.rounds) < 1:
            raise ParameterError("calibration takes at least 1 image at a time, 1 image to time and 1 round.")
        check_bootstrap(self.confidence, self.resamples)
        Pruning(refine_steps=self.refine_steps, prune_after=self.prune_after)

    @property
    def is_budget(self) -> bool:
        """Whether it is a cost that is limited."""
        return self.target in get_args(BudgetName)


def plan_of(given: Mapping[str, float | str | None], headroom: float | None = None, **rest: Any) -> Plan:
    """A plan for the one target that is given.

    Args:
        given: values by name of the target, None where it is not wanted; MACs may be text such as `8G`.
        headroom: None: `Plan`'s own.
        rest: see `Plan`.

    Raises:
        ParameterError: none or several of them are given, a headroom where there is no budget, or see `Plan`.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ParameterError("name one target: --macs, --tokens, --latency-ms, --sparsity or --fg-recall.")
    ((name, value),) = named.items()
    number = parse_macs(value) if isinstance(value, str) else float(value)
    plan = Plan(cast(TargetName, name), number, **rest)
    if headroom is None:
        return plan
    if not plan.is_budget:
        raise ParameterError(f"--headroom is for a budget, and --{name} is none.")
    return replace(plan, headroom=headroom)
