"""Tables of `bavit detect` and `bavit sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.detect.sweep_figures import Sweep


_BUDGET = ("target", "value", "headroom", "achieved", "images", "source")
"""What is told of a budget; `--json` has all of it."""


def detections_table(found: dict[str, Any], min_score: float, budget: dict[str, Any] | None) -> Table:
    """What `bavit detect` found, and what it cost."""
    from rich.table import Table
    from rich.text import Text

    from cli.console import printable

    table = Table("detections", "")
    told = {
        "images": f"{found['images']:,}",
        f"boxes of a score of at least {min_score:g}": f"{found['boxes']:,}",
        "sparsity": f"{found['sparsity']:.2%}",
        "patches kept of an image": f"{found['kept_patches']:,.1f}",
        "tokens: BAViT + detector": f"{found['tokens_bavit']:,.0f} + {found['tokens_pruned']:,.0f}",
        "tokens of the dense detector": f"{found['tokens_detector']:,.0f}",
        "tokens saved": f"{found['reduction']:.2%}",
        "MACs": f"{found['macs'] / 1e9:.3f} G",
        "MACs of the dense detector": f"{found['macs_dense'] / 1e9:.3f} G",
    }
    told |= {name.upper(): f"{100 * found[name]:.1f}" for name in ("ap", "ap50", "ap75") if name in found}
    told["run by"] = f"{found['runtime']}, {found['provider']}"
    if budget is not None:
        told["calibrated for"] = ", ".join(f"{name} {_short(budget[name])}" for name in _BUDGET if name in budget)
    for name, value in told.items():
        table.add_row(name, Text(printable(value)))
    return table


def stages_table(milliseconds: dict[str, float]) -> Table:
    """Time of an image by stage."""
    from rich.table import Table

    table = Table("stage", _right("ms an image"), _right("share"))
    total = sum(milliseconds.values())
    for name, value in milliseconds.items():
        table.add_row(name, f"{value:,.2f}", f"{value / max(total, 1e-9):.1%}")
    return table


def sweep_table(found: Sweep) -> Table:
    """The rows of a sweep, one table for all sources of masks."""
    from rich.table import Table

    from bavit.detect.sweep_figures import MASK_NAMES

    heads = (
        "threshold", "sparsity", "AP", "AP50", "tokens saved", "GMAC", "latency ms", "images/s", "speed-up", "ideal",
        "memory MB",
    )  # fmt: skip
    table = Table("masks", *map(_right, heads))
    dense = found.dense
    table.add_row(
        "dense", "", _percent(0.0), _points(dense.ap), _points(dense.ap50), "", f"{dense.macs / 1e9:.2f}",
        f"{dense.latency_ms:,.1f}", f"{dense.throughput:,.2f}", "", "", _megabytes(dense.peak_memory_mb),
        end_section=True,
    )  # fmt: skip
    for index, row in enumerate(found.rows):
        last = index + 1 == len(found.rows) or found.rows[index + 1].mask != row.mask
        table.add_row(
            MASK_NAMES[row.mask], f"{row.threshold:g}", _percent(row.sparsity), _points(row.ap), _points(row.ap50),
            _percent(row.reduction), f"{row.macs / 1e9:.2f}", f"{row.latency_ms:,.1f}", f"{row.throughput:,.2f}",
            f"{row.speedup:.2f}x", f"{row.speedup_ideal:.2f}x", _megabytes(row.peak_memory_mb), end_section=last,
        )  # fmt: skip
    return table


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, (int, float)) else str(value)
