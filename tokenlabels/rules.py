"""The rules, their thresholds and policies: what a person chooses. `scoring.py` applies them.

`overlap` and `jaccard` score boxes, `pixel-ratio` scores masks; the formulas are on `RULES`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec

from tokenlabels.errors import ParameterError

RuleName: TypeAlias = Literal["overlap", "jaccard", "pixel-ratio"]
Policy: TypeAlias = Literal["foreground", "background", "ignore"]
PaddingPolicy: TypeAlias = Literal["background", "ignore"]


class RuleKind(msgspec.Struct, frozen=True):
    """What a rule computes.

    Attributes:
        formula: score of a patch P given boxes B or the union M of masks.
        default_tau: threshold unless one is given.
        inclusive: a score equal to the threshold is foreground.
        reads_masks: scores masks rather than boxes.
        source: where the rule comes from.
    """

    formula: str
    default_tau: float
    inclusive: bool
    reads_masks: bool
    source: str


RULES: dict[RuleName, RuleKind] = {
    "overlap": RuleKind("max_j |P & B_j| / |P|", 0.5, True, False, "BAViT paper, prose of its labelling section"),
    "jaccard": RuleKind("max_j |P & B_j| / |P | B_j|", 0.5, True, False, "BAViT paper, Equations 1-2 read literally"),
    "pixel-ratio": RuleKind("|P & M| / |P|", 0.1, False, True, "exact share of mask pixels in the patch"),
}


class RuleSpec(msgspec.Struct, frozen=True):
    """A rule with its threshold and policies.

    Attributes:
        rule: see `RULES`.
        tau: threshold in 0..1.
        crowd: what a crowd region does: count as an object, nothing, or mark patches it covers by more than half 255.
        padding: what patches wholly in padding are.
        void: what void pixels of masks do, as `crowd`.
        difficult: what boxes marked difficult do, under a rule that scores boxes, as `crowd`.
    """

    rule: RuleName
    tau: float
    crowd: Policy
    padding: PaddingPolicy
    void: Policy = "background"
    difficult: Policy = "foreground"

    @classmethod
    def make(
        cls,
        rule: str = "overlap",
        tau: float | None = None,
        crowd: str = "foreground",
        padding: str = "background",
        void: str = "background",
        difficult: str = "foreground",
    ) -> RuleSpec:
        """Check and complete what a person writes.

        Raises:
            ParameterError: an unknown rule or policy, or a threshold outside 0..1.
        """
        if rule not in RULES:
            raise ParameterError(f"unknown rule {rule!r}: use one of {', '.join(RULES)}.")
        for name, value, allowed in (
            ("crowd", crowd, get_args(Policy)),
            ("padding", padding, get_args(PaddingPolicy)),
            ("void", void, get_args(Policy)),
            ("difficult", difficult, get_args(Policy)),
        ):
            if value not in allowed:
                raise ParameterError(f"unknown {name} policy {value!r}: use one of {', '.join(allowed)}.")
        return msgspec.convert(
            {
                "rule": rule,
                "tau": check_tau(RULES[rule].default_tau if tau is None else tau),
                "crowd": crowd,
                "padding": padding,
                "void": void,
                "difficult": difficult,
            },
            cls,
        )

    @property
    def kind(self) -> RuleKind:
        return RULES[self.rule]

    @property
    def stores_ignored(self) -> bool:
        """Whether a shard has the column `ignored`."""
        return "ignore" in (self.crowd, self.padding, self.void, self.difficult)


def check_tau(tau: float) -> float:
    """The threshold as a float.

    Raises:
        ParameterError: it is not in 0..1.
    """
    if not 0 <= tau <= 1:
        raise ParameterError(f"tau {tau} is outside 0..1: it is the threshold of a share of a patch.")
    return float(tau)
