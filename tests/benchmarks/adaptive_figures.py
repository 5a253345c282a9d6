"""What `demo_adaptive.py` found, as a table and as a plot.

`found["policies"]` holds a record of figures for each policy, penalty and seed; `fixed_curve` one for each threshold,
`oracle` one for each penalty.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bavit.plots import BLUE, MUTED, ORANGE, RED, SKY

POLICIES = ("adaptive", "fixed", "count", "shuffled")


def table(found: dict[str, Any], penalties: Sequence[float]) -> None:
    """Mean and spread over seeds of every policy, by penalty."""
    heads = f"{'AP':>14}{'AP50':>14}{'loss':>15}{'sparsity: mean':>16}{'std':>7}{'min':>7}{'max':>7}"
    print(f"{'penalty':>8} {'policy':<9}{'MACs':>7}{heads}")
    for penalty in penalties:
        for policy in POLICIES:
            rows = rows_of(found, policy, penalty)
            ap, ap50 = (spread([100 * row[name] for row in rows], 1) for name in ("ap", "ap50"))
            loss, macs = spread([row["loss"] for row in rows], 3), statistics.mean(row["macs_share"] for row in rows)
            names = ("sparsity", "sparsity_std", "sparsity_min", "sparsity_max")
            shares = [statistics.mean(row[name] for row in rows) for name in names]
            words = f"{shares[0]:>16.1%}" + "".join(f"{share:>7.1%}" for share in shares[1:])
            print(f"{penalty:>8g} {policy:<9}{macs:>7.1%}{ap:>14}{ap50:>14}{loss:>15}{words}")
        gains = gains_of(found, penalty)
        points = f"AP {spread(gains['ap'], 2)}, AP50 {spread(gains['ap50'], 2)} points, loss {spread(gains['loss'], 3)}"
        print(f"{'':>8} adaptive - fixed of the same seed: {points}")
    for row in found["oracle"]:
        scores = f"{100 * row['ap']:>6.1f}{'':>8}{100 * row['ap50']:>6.1f}{'':>8}{row['loss']:>6.3f}{'':>9}"
        print(f"{row['penalty']:>8g} oracle   {row['macs_share']:>7.1%}{scores}{row['sparsity']:>16.1%}")


def rows_of(found: dict[str, Any], policy: str, penalty: float) -> list[dict[str, Any]]:
    """The figures of all seeds."""
    return [row for row in found["policies"] if (row["policy"], row["penalty"]) == (policy, penalty)]


def gains_of(found: dict[str, Any], penalty: float) -> dict[str, list[float]]:
    """What the adaptive threshold has more than the fixed one of the same seed: points of AP and AP50, and loss."""
    rows = {(row["policy"], row["seed"]): row for row in found["policies"] if row["penalty"] == penalty}
    seeds = sorted({seed for _, seed in rows})
    scales = {"ap": 100, "ap50": 100, "loss": 1}
    return {
        name: [scale * (rows["adaptive", seed][name] - rows["fixed", seed][name]) for seed in seeds]
        for name, scale in scales.items()
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} +- {deviation:.{digits}f}"


def draw(found: dict[str, Any], penalties: Sequence[float], path: Path) -> None:
    """AP against mean MACs."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, style, colour in (("fixed_curve", "o-", MUTED), ("oracle", "^:", BLUE)):
        shares, scores = ([row[key] for row in found[name]] for key in ("macs_share", "ap"))
        axes.plot(shares, scores, style, ms=4, color=colour, label=name.removesuffix("_curve"))
    for policy, mark, colour in (("adaptive", "s", ORANGE), ("count", "x", SKY), ("shuffled", "v", RED)):
        for number, penalty in enumerate(penalties):
            rows = rows_of(found, policy, penalty)
            shares, scores = ([row[name] for row in rows] for name in ("macs_share", "ap"))
            errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (shares, scores)]
            axes.errorbar(
                statistics.mean(shares), statistics.mean(scores), xerr=errors[0], yerr=errors[1], fmt=mark, ms=5,
                color=colour, capsize=2, label=None if number else policy,
            )  # fmt: skip
    axes.set(xlabel="mean MACs of the detector, as a share of those of the dense one", ylabel="AP")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
