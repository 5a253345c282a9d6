"""Comparisons of methods, as `tests/benchmarks/demo_joint.py` and `demo_adaptive.py` write them -> one typed record."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from bavit.report.results import ComparisonResult, Method, MethodPoint, Spread
from tokenlabels.errors import TokenLabelsError

_AT = re.compile(r"(ap|ap50) at ([0-9]{1,9}(?:\.[0-9]{1,18})?)")
_MAX_METHODS, _MAX_POINTS = 12, 60

_Figure: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]
"""Means of larger ones would overflow."""


class _Told(msgspec.Struct):
    """A method in joint.json: by figure and cost what it has; a mean that is None lies beyond the curve."""

    at: dict[str, dict[str, Any]]
    ap_dense: list[_Figure]
    curves: list[list[dict[str, float]]]
    seconds_per_epoch: float | None = None


class _Policy(msgspec.Struct):
    """A record of adaptive.json."""

    macs_share: _Figure
    ap: _Figure
    ap50: _Figure
    policy: str = "fixed, any threshold"
    penalty: float = 0.0
    seed: int = 0
    threshold: float | None = None


def is_joint(content: Any) -> bool:
    """Whether it is what demo_joint.py writes."""
    methods = content.get("methods") if isinstance(content, dict) else None
    return (
        isinstance(methods, dict)
        and bool(methods)
        and all(isinstance(each, dict) and "at" in each and "curves" in each for each in methods.values())
    )


def is_adaptive(content: Any) -> bool:
    """Whether it is what demo_adaptive.py writes."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("policies", "fixed_curve", "oracle")
    )


def joint_of(name: str, path: Path, content: Any) -> ComparisonResult:
    """Joint training beside separate training and sparse fine-tuning.

    Raises:
        TokenLabelsError: it is damaged.
    """
    told = _converted(path, content["methods"], dict[str, _Told])
    methods = [_method(title, each) for title, each in list(told.items())[:_MAX_METHODS]]
    seeds = max(len(each.curves) for each in told.values())
    what = "Joint training of BAViT and detector beside separate training and sparse fine-tuning, for the same epochs"
    return ComparisonResult(name, str(path), what, seeds, methods)


def adaptive_of(name: str, path: Path, content: Any) -> ComparisonResult:
    """A threshold of each image beside a fixed one.

    Raises:
        TokenLabelsError: it is damaged.
    """
    curve, oracle, policies = (
        _converted(path, content[key], list[_Policy]) for key in ("fixed_curve", "oracle", "policies")
    )
    methods = []
    for policy in list(dict.fromkeys(each.policy for each in policies))[:_MAX_METHODS]:
        own = [each for each in policies if each.policy == policy]
        penalties = sorted({each.penalty for each in own})
        groups = [[each for each in own if each.penalty == penalty] for penalty in penalties[:_MAX_POINTS]]
        methods.append(Method(policy, _ordered([_point(f"penalty {rows[0].penalty:g}", rows) for rows in groups])))
    if curve:
        points = [_point(f"threshold {each.threshold}", [each]) for each in curve[:_MAX_POINTS]]
        methods.append(Method(curve[0].policy, _ordered(points)))
    if oracle:
        points = [_point(f"penalty {each.penalty:g}", [each]) for each in oracle[:_MAX_POINTS]]
        methods.append(Method("oracle", _ordered(points)))
    seeds = len({each.seed for each in policies})
    what = "A threshold of each image, learned against a MAC penalty, beside one for all images at the same mean cost"
    return ComparisonResult(name, str(path), what, seeds, methods, _gains(policies))


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (of a sample); 0 for one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _method(title: str, told: _Told) -> Method:
    found: dict[float, dict[str, Spread]] = {}
    for key, value in list(told.at.items())[: 2 * _MAX_POINTS]:
        named = _AT.fullmatch(key)
        mean, std = value.get("mean"), value.get("std")
        if named and isinstance(mean, (int, float)) and isinstance(std, (int, float)):
            found.setdefault(float(named[2]), {})[named[1]] = Spread(float(mean), float(std))
    points = [
        MethodPoint(f"{share:.0%} of the MACs", Spread(share, 0.0), each["ap"], each.get("ap50"))
        for share, each in found.items()
        if "ap" in each
    ]
    dense = spread_of(told.ap_dense) if told.ap_dense else None
    return Method(title, _ordered(points), dense, told.seconds_per_epoch)


def _point(setting: str, rows: Sequence[_Policy]) -> MethodPoint:
    shares, aps, others = ([getattr(row, key) for row in rows] for key in ("macs_share", "ap", "ap50"))
    return MethodPoint(setting, spread_of(shares), spread_of(aps), spread_of(others))


def _ordered(points: list[MethodPoint]) -> list[MethodPoint]:
    return sorted(points, key=lambda point: point.macs_share.mean)


def _gains(policies: Sequence[_Policy]) -> dict[str, Spread]:
    """AP of the adaptive threshold less that of the fixed one of the same seed and penalty."""
    rows = {(each.policy, each.penalty, each.seed): each for each in policies}
    found: dict[str, list[float]] = {}
    for (policy, penalty, seed), row in rows.items():
        other = rows.get(("fixed", penalty, seed))
        if policy == "adaptive" and other is not None:
            found.setdefault(f"adaptive less fixed, penalty {penalty:g}", []).append(row.ap - other.ap)
    return {key: spread_of(values) for key, values in found.items()}


def _converted(path: Path, content: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as fault:
        raise TokenLabelsError(f"{path}: is not a comparison of methods ({fault}): make it again.") from None
