"""What the commands that evaluate segmenters print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from bavit.segment.figures import SegmentEvaluation, SegmentSweep

_LISTED = 30


def overview(found: SegmentEvaluation) -> Table:
    """The figures of an evaluation."""
    from rich.table import Table

    places = " and ".join(map(str, found.exit_after)) or "no block"
    title = f"p0 {found.p0:g} after {places}, {found.method}"
    table = Table(title, _right(""))
    told = {
        "mIoU": f"{found.miou:.2%}",
        "mIoU of the unpruned network": None if found.miou_dense is None else f"{found.miou_dense:.2%}",
        "pixel accuracy": f"{found.pixel_accuracy:.2%}",
        "images": f"{found.images:,}",
        "left out": f"{found.skipped:,}" if found.skipped else None,
        "windows of an image": f"{found.windows:.3g}",
        "GMAC of an image": f"{found.macs / 1e9:.3f}",
        "GMAC of the unpruned network": f"{found.macs_dense / 1e9:.3f}",
        "MACs saved": f"{found.macs_reduction:.1%}",
        "tokens alive when each stage begins": "  ".join(f"{share:.1%}" for share in found.tokens_alive),
    }
    if found.speedup is not None:
        told |= {
            "windows a second": f"{found.throughput:,.2f}",
            "windows a second, unpruned": f"{found.throughput_dense:,.2f}",
            "times as fast": f"{found.speedup:.2f} (by MACs {found.speedup_ideal:.2f})",
            "ms of one window": f"{found.latency_ms:,.1f}",
            "ms of one window, unpruned": f"{found.latency_dense_ms:,.1f}",
        }
    for name, value in told.items():
        if value is not None:
            table.add_row(name, value)
    return table


def categories(found: SegmentEvaluation) -> Table:
    """IoU of each category, the best first."""
    from rich.table import Table
    from rich.text import Text

    from cli.console import printable

    table = Table("category", _right("IoU"))
    occurring = [(name, value) for name, value in found.per_category.items() if value is not None]
    shown = sorted(occurring, key=lambda each: -each[1])
    for name, value in shown[:_LISTED]:
        table.add_row(Text(printable(name)), f"{value:.2%}")
    if len(shown) > _LISTED:
        table.add_row(f"... {len(shown) - _LISTED} more: --json lists all", "")
    return table


def rows_table(found: SegmentSweep) -> Table:
    """The rows of a sweep."""
    from rich.table import Table

    from bavit.segment.sweep import described

    timed = any(row.speedup is not None for row in found.rows)
    times = ("windows/s", "unpruned", "times as fast", "by MACs") if timed else ()
    table = Table("tokens end", *map(_right, ("mIoU", "pixel accuracy", "GMAC", "saved", "alive", *times)))
    for row in found.rows:
        told = [
            f"{row.miou:.2%}",
            f"{row.pixel_accuracy:.2%}",
            f"{row.macs / 1e9:.3f}",
            f"{row.macs_reduction:.1%}",
            " ".join(f"{share:.0%}" for share in row.tokens_alive),
        ]
        if row.speedup is not None:
            told += [f"{row.throughput:,.2f}", f"{row.throughput_dense:,.2f}", f"{row.speedup:.2f}x"]
            told += [f"{row.speedup_ideal:.2f}x"]
        table.add_row("unpruned" if row.dense else described(row), *told, end_section=row.dense)
    return table


def predicted(found: dict[str, Any]) -> Table:
    """What predictions took."""
    from rich.table import Table

    table = Table("segmentations", _right(""))
    told = {
        "images": f"{len(found['images']):,}",
        "left out": f"{found['skipped']:,}",
        "GMAC of an image": f"{found['macs'] / 1e9:.3f}",
        "GMAC of the unpruned network": f"{found['macs_dense'] / 1e9:.3f}",
        "tokens alive when each stage begins": "  ".join(f"{share:.1%}" for share in found["tokens_alive"]),
        "images a second": f"{found['images_per_second']:.2f}",
    }
    for name, value in told.items():
        table.add_row(name, value)
    return table


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
