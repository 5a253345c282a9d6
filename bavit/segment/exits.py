"""When tokens end while a segmenter is evaluated: set for a while, and taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bavit.segment.config import check_positions
from bavit.segment.early_exit import ExitRule, Method
from bavit.segment.model import Segmenter
from tokenlabels.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Exits:
    """Where tokens end, and which.

    Attributes:
        rule: which.
        exit_after: numbers of blocks.
        halved: the grid is halved where the network does that.
    """

    rule: ExitRule
    exit_after: tuple[int, ...]
    halved: bool = True

    @property
    def stages(self) -> int:
        """Stages that a token may end in, going to the end included."""
        return len(self.exit_after) + 1

    def described(self) -> dict[str, Any]:
        """Its values, by the names that they have in figures."""
        return {**asdict(self.rule), "exit_after": self.exit_after}

    @contextlib.contextmanager
    def set_on(self, model: Segmenter) -> Iterator[None]:
        """Let a model work so."""
        before, places, reduction = model.rule, model.exit_after, model.reduction
        _assign(model, self.rule, self.exit_after)
        model.reduction = reduction if self.halved else None
        try:
            yield
        finally:
            _assign(model, before, places)
            model.reduction = reduction


DENSE = Exits(ExitRule(p0=1.0), (), halved=False)
"""The unpruned network, with its last head only."""


def exits_of(
    model: Segmenter,
    *,
    p0: float | None = None,
    keep_per_class: int | None = None,
    method: Method | None = None,
    proportion: float | None = None,
    exit_after: Sequence[int] | None = None,
) -> Exits:
    """What a person asks for; what is not said is as the model has it.

    Args:
        model: the network.
        p0: see `ExitRule`; as the next three.
        keep_per_class: see there.
        method: see there.
        proportion: see there.
        exit_after: numbers of blocks, some of those after which the model has heads.

    Raises:
        ParameterError: p0 outside (0, 1], positions without heads, or another value out of range; or the model halves
            its grid, and no token of it can end.
    """
    if p0 is not None and not 0 < p0 <= 1:
        raise ParameterError(f"p0 {p0} is out of range: a probability above 0, and at most 1, which ends no token.")
    own = model.rule
    if model.reduction is not None:
        if any(value is not None for value in (p0, keep_per_class, method, proportion, exit_after)):
            raise ParameterError(
                "this run halves its grid instead of early exit (--downsample): leave --p0 and the like out."
            )
        return Exits(replace(own, p0=1.0), ())
    rule = ExitRule(
        own.p0 if p0 is None else p0,
        own.keep_per_class if keep_per_class is None else keep_per_class,
        method or own.method,
        own.proportion if proportion is None else proportion,
    )
    places = tuple(model.exit_after if exit_after is None else exit_after)
    check_positions(places, model.depth)
    missing = [place for place in places if place not in model.head_after]
    if missing:
        have = ", ".join(map(str, model.head_after)) or "no block"
        raise ParameterError(
            f"exit position {missing[0]}: this run has no head there, but after {have}: choose of these, or train with "
            "--exit-after."
        )
    return Exits(rule, places)


def _assign(model: Segmenter, rule: ExitRule, places: tuple[int, ...]) -> None:
    model.p0, model.keep_per_class = rule.p0, rule.keep_per_class
    model.method, model.proportion = rule.method, rule.proportion
    model.exit_after = places
