"""What `bavit calibrate` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.evaluation import listed

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.background.calibrate import Calibration
    from bavit.detect.budget_record import Budget
    from bavit.detect.latency import Latency


def calibration_table(found: Calibration) -> Table:
    """Of a BAViT alone."""
    percent = f"{found.confidence:.0%}"
    exact = found.target == "macs"
    low, high = (f"{value:.4g}" if exact else f"{value:.2%}" for value in (found.achieved_low, found.achieved_high))
    return listed(
        f"{found.target} {found.value:g}",
        {
            "threshold": f"{found.threshold:.4f}",
            f"{percent} interval of the threshold": f"{found.threshold_low:.4f} to {found.threshold_high:.4f}",
            "achieved": f"{found.achieved:.4g}" if exact else f"{found.achieved:.2%}",
            f"{percent} interval of what is achieved": f"{low} to {high}",
            "sparsity": f"{found.sparsity:.2%}",
            "FG recall": f"{found.fg_recall:.2%}",
            "refinement steps": found.refine_steps,
            "images": found.images,
        },
    )


def budget_table(found: Budget) -> Table:
    """Of a whole detector."""
    percent = f"{found.confidence:.0%}"

    def figure(value: float) -> str:
        if found.target == "macs":
            return f"{value / 1e9:.4f} G"
        if found.headroom is None:
            return f"{value:.2%}"
        return f"{value:,.1f}" if found.target == "tokens" else f"{value:,.2f} ms"

    told: dict[str, Any] = {}
    if found.threshold is not None:
        told["threshold"] = f"{found.threshold:.4f}"
        told[f"{percent} interval of the threshold"] = f"{found.threshold_low:.4f} to {found.threshold_high:.4f}"
    if found.top_k is not None:
        told["patches kept of every image"] = found.top_k
    if found.max_tokens is not None:
        told["most patches kept of an image"] = found.max_tokens
        told["images with more foreground than that"] = f"{found.capped:.1%}"
    told["achieved"] = figure(found.achieved)
    told[f"{percent} interval of what is achieved"] = f"{figure(found.achieved_low)} to {figure(found.achieved_high)}"
    if found.achieved_max is not None and found.headroom is not None:
        told["the dearest image"] = f"{figure(found.achieved_max)} (at most {figure(found.headroom * found.value)})"
    told |= {
        "patches kept of an image": f"{found.tokens:,.1f} of {found.tokens_dense:,.1f}, at most {found.tokens_max:,}",
        "sparsity": f"{found.sparsity:.2%}",
        "FG recall": "unknown" if found.fg_recall is None else f"{found.fg_recall:.2%}",
        "MACs": f"{found.macs / 1e9:.4f} G, at most {found.macs_max / 1e9:.4f} G, dense {found.macs_dense / 1e9:.4f} G",
    }
    if found.latency is not None:
        told |= _latency(found.latency)
    told |= {"refinement steps": found.refine_steps, "blocks before pruning": found.prune_after,
             "images": found.images}  # fmt: skip
    if found.skipped:
        told["left out"] = found.skipped
    return listed(f"{found.target} {found.value:g}" + (", fixed" if found.fixed else ""), told)


def _latency(found: Latency) -> dict[str, Any]:
    low, high = f"{found.measured_low_ms:,.2f}", f"{found.measured_high_ms:,.2f}"
    return {
        f"measured, {found.images} images": f"{found.measured_ms:,.2f} ms, by round {low} to {high}",
        "the slowest of them": f"{found.measured_max_ms:,.2f} ms",
        "mean with all pauses": f"{found.measured_mean_ms:,.2f} ms",
        "predicted for these": f"{found.predicted_ms:,.2f} ms",
        "the dense detector": f"{found.dense_ms:,.2f} ms",
        "model of latency": f"{found.model['base']:.4g} ms + {found.model['per_token']:.4g} a patch and block + "
        f"{found.model['per_pair']:.4g} a pair and block",
        "largest error of the fit": f"{found.fit_error:.1%}",
        "choices measured": f"{found.attempts}, {found.rounds} rounds each",
        "timed": found.timed,
        "machine": ", ".join(f"{name} {value}" for name, value in found.environment.items()),
    }
