"""The page of a sweep: one HTML file that opens offline, without a script, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bavit.detect.sweep_figures import AFFORDABLE, MASK_NAMES, Dense, Sweep, SweepRow
from bavit.gallery import Sample, write_page
from tokenlabels.report.markup import (
    Cell,
    Column,
    Row,
    card,
    count,
    decimal,
    esc,
    name,
    pairs,
    percent,
    table,
    tile,
)
from tokenlabels.report.plots import Line, Mark, curve, keys

_TEMPLATE = Path(__file__).with_name("sweep_page.html")
_SPARSITY = "sparsity: share of the detector's patches removed"
_NONE = "&ndash;"


def write_sweep_page(sweep: Sweep, path: str | Path, *, title: str, samples: Sequence[Sample] = ()) -> Path:
    """Write a sweep as one HTML file of less than 5 MB that needs nothing else.

    The bytes depend on the arguments only.

    Args:
        sweep: its figures.
        path: the file.
        title: what was swept, untrusted text.
        samples: pictures to show, see `bavit.detect.draw`.

    Returns:
        `path`.

    Raises:
        OutputError: `path` cannot be written.
    """
    setting = sweep.setting
    timed = f"{count(setting.images_timed)} timed"
    heads = (f"{count(setting.images)} images", timed, f"batches of {setting.batch_size}", *_where(sweep))
    parts = {
        "title": esc(title),
        "heading": name(title),
        "facts": "".join(f"<li>{esc(head)}</li>" for head in heads),
        "tiles": _tiles(sweep),
        "precision": _notes(sweep) + _precision(sweep) + _by_size(sweep),
        "speed": _speed(sweep) + _cost(sweep),
        "numbers": _numbers(sweep),
        "run": _run(sweep),
    }
    note = "Beside each picture what the detector saw of it, and what it found there. Removed patches are greyed out."
    return write_page(_TEMPLATE, path, parts, samples, note)


def _where(sweep: Sweep) -> list[str]:
    known = sweep.setting.environment
    return [known[key] for key in ("device", "precision") if key in known]


def _tiles(sweep: Sweep) -> str:
    """The key figures: the row to talk of beside the dense detector."""
    row, dense = sweep.best, sweep.dense
    change = "points on the dense detector"
    times = f"{decimal(row.throughput)} images per second, dense {decimal(row.throughput_dense)}"
    facts = [
        ("AP", _ap(row.ap), f"{100 * (row.ap - dense.ap):+.1f} {change}, {_ap(dense.ap)}"),
        ("AP50", _ap(row.ap50), f"{100 * (row.ap50 - dense.ap50):+.1f} {change}, {_ap(dense.ap50)}"),
        ("speed-up", f"{row.speedup:.2f}x", times),
        ("latency", f"{decimal(row.latency_ms)} ms", f"median of one image, dense {decimal(row.latency_dense_ms)} ms"),
        ("sparsity", percent(row.sparsity), f"of {decimal(dense.patches)} patches, at threshold {row.threshold:g}"),
        ("tokens saved", percent(row.reduction), "BAViT's counted in, as in the BAViT paper's Table 2"),
        ("cost", f"{decimal(row.macs / 1e9)} GMAC", f"BAViT's counted in, dense {decimal(row.macs_dense / 1e9)} GMAC"),
    ]
    if row.peak_memory_mb is not None and row.peak_memory_dense_mb is not None:
        beside = f"at most for a batch, dense {decimal(row.peak_memory_dense_mb)} MB"
        facts.append(("memory", f"{decimal(row.peak_memory_mb)} MB", beside))
    else:
        facts.append(("images", count(sweep.setting.images), f"{count(sweep.setting.images_timed)} of them timed"))
    return "".join(tile(title, value, note) for title, value, note in facts)


def _notes(sweep: Sweep) -> str:
    if not sweep.setting.notes:
        return ""
    items = "".join(f"<p>{esc(text)}</p>" for text in sweep.setting.notes)
    return f'<div class="notice">{items}</div>'


def _precision(sweep: Sweep) -> str:
    row, dense, setting = sweep.best, sweep.dense, sweep.setting
    how = f"the fastest of BAViT's that loses at most {100 * AFFORDABLE:g} point of AP"
    if row.ap < dense.ap - AFFORDABLE or row.speedup <= 1 or setting.random_weights:
        how = f"the one closest to the model's own, {setting.threshold:g}"
    labels = "whose threshold is on one minus the overlap score" if setting.scores else "which knows no threshold"
    lead = (
        f"Which patches stay is decided by BAViT, by the ground truth, {labels}, or by chance, which keeps as many of "
        f"each image as BAViT does. Marked is threshold {row.threshold:g}, {how}."
    )
    drawings = []
    for key, title in (("ap", "AP"), ("ap50", "AP50")):
        level = 100 * float(getattr(dense, key))
        lines = [*_lines(sweep, key, 100), Line("dense", (level, level), (0, 1))]
        drawn = curve(
            (), lines, x_label=_SPARSITY, y_label=f"{title}, points", unit="", dots=True,
            title=f"{title} by sparsity, for each source of masks",
            mark=Mark(row.sparsity, 100 * float(getattr(row, key)), f"threshold {row.threshold:g}"),
        )  # fmt: skip
        drawings.append(f"<div>{drawn}{keys(lines)}</div>")
    return card("What pruning costs", lead, f'<div class="pair">{"".join(drawings)}</div>', wide=True)


def _lines(sweep: Sweep, key: str, factor: float = 1, *, across: str = "sparsity") -> list[Line]:
    """A figure by sparsity, for each source of masks."""
    return [
        Line(
            MASK_NAMES[mask],
            [factor * float(getattr(row, key)) for row in rows],
            [getattr(row, across) for row in rows],
        )
        for mask in sweep.sources
        for rows in [sweep.of(mask)]
    ]


def _by_size(sweep: Sweep) -> str:
    columns = [Column("masks", numeric=False), *map(Column, (
        "threshold", "sparsity", "AP", "AP50", "AP75", "small", "medium", "large"))]  # fmt: skip
    dense = sweep.dense
    rows: list[Row] = [["dense", _NONE, percent(0), *_precisions(dense)]]
    rows += [
        [esc(MASK_NAMES[row.mask]), f"{row.threshold:g}", percent(row.sparsity), *_precisions(row)]
        for row in sweep.rows
    ]
    lead = (
        "Average precision as COCO has it, in points; small objects are of less than 32 x 32 pixels, large ones of "
        "more than 96 x 96."
    )
    return card("By size of object", lead, table("Average precision", columns, rows), wide=True)


def _precisions(row: SweepRow | Dense) -> list[str]:
    values = (row.ap, row.ap50, row.ap75, row.ap_small, row.ap_medium, row.ap_large)
    return [_NONE if value is None else _ap(value) for value in values]


def _speed(sweep: Sweep) -> str:
    row, setting = sweep.best, sweep.setting
    lines = _lines(sweep, "speedup", across="sparsity_timed")
    main = sorted(sweep.rows, key=lambda row: row.sparsity_timed)
    lines.append(Line("ideal by MACs", [each.speedup_ideal for each in main], [each.sparsity_timed for each in main]))
    batches = curve(
        (), lines, x_label=_SPARSITY, y_label=f"speed-up, batches of {setting.batch_size}",
        title="Speed-up in batches by sparsity, for each source of masks, and the ratio of MACs",
        mark=Mark(row.sparsity_timed, row.speedup, f"threshold {row.threshold:g}"), unit="x", dots=True,
    )  # fmt: skip
    alone_lines = _lines(sweep, "speedup_latency", across="sparsity_timed")
    alone = curve(
        (), alone_lines, x_label=_SPARSITY, y_label="speed-up, one image",
        title="Speed-up of one image alone by sparsity, for each source of masks",
        mark=Mark(row.sparsity_timed, row.speedup_latency, f"threshold {row.threshold:g}"), unit="x", dots=True,
    )  # fmt: skip
    lead = (
        "Time of the dense detector by that of BAViT, masks and detector together, both timed in turns in "
        f"{setting.rounds} rounds over {count(setting.images_timed)} images held in memory, by the sparsity of these. "
        "BAViT's time is counted in "
        "whatever the masks are from."
    )
    drawings = f"<div>{batches}{keys(lines)}</div><div>{alone}{keys(alone_lines)}</div>"
    return card("What pruning saves", lead, f'<div class="pair">{drawings}</div>', wide=True)


def _cost(sweep: Sweep) -> str:
    rows = sorted(sweep.rows, key=lambda row: row.sparsity)
    x = [row.sparsity for row in rows]
    lines = [
        Line("MACs", [row.macs / row.macs_dense for row in rows], x),
        Line("tokens", [row.tokens_total / row.tokens_detector for row in rows], x),
    ]
    some = [row for row in sweep.of(sweep.sources[0]) if row.peak_memory_mb and row.peak_memory_dense_mb]
    if some:
        left = [(row.peak_memory_mb or 0) / (row.peak_memory_dense_mb or 1) for row in some]
        lines.append(Line("memory of a batch", left, [row.sparsity for row in some]))
    level = Line("dense detector", (1, 1), (0, 1))
    drawn = curve(
        (), [*lines, level], x_label=_SPARSITY, y_label="left of the dense detector",
        title="MACs, tokens and memory by sparsity", dots=True,
    )  # fmt: skip
    lead = (
        "Multiply-accumulates have everything: attention, whose cost is quadratic, and the tokens that always stay. "
        "Tokens are patches alone, once for each block, as the BAViT paper counts."
    )
    return card("What is left", lead, drawn + keys([*lines, level]), wide=True)


def _numbers(sweep: Sweep) -> str:
    titles = (
        "threshold", "sparsity", "AP", "patches", "tokens", "saved", "GMAC", "latency ms", "p95 ms", "dense ms",
        "images/s", "detector alone", "dense", "speed-up", "ideal", "memory MB",
    )  # fmt: skip
    rows: list[Row] = [
        [
            esc(MASK_NAMES[row.mask]),
            f"{row.threshold:g}",
            Cell(percent(row.sparsity)),
            _ap(row.ap),
            decimal(row.kept_patches),
            decimal(row.tokens_total),
            percent(row.reduction),
            f"{row.macs / 1e9:.2f}",
            decimal(row.latency_ms),
            decimal(row.latency_p95_ms),
            decimal(row.latency_dense_ms),
            decimal(row.throughput),
            decimal(row.throughput_detector),
            decimal(row.throughput_dense),
            f"{row.speedup:.2f}x",
            f"{row.speedup_ideal:.2f}x",
            _NONE if row.peak_memory_mb is None else decimal(row.peak_memory_mb),
        ]
        for row in sweep.rows
    ]
    lead = (
        "Means of an image. Latency is of one image alone, images per second are of batches; both are of BAViT, masks "
        "and detector together, “detector alone” is the detector's part of it, “dense” the detector with all patches, "
        "timed in turns with the row."
    )
    columns = [Column("masks", numeric=False), *map(Column, titles)]
    return card("All rows", lead, table("All rows", columns, rows), wide=True)


def _run(sweep: Sweep) -> str:
    setting, dense = sweep.setting, sweep.dense
    known = {
        "background model": setting.bavit,
        "detector": setting.detector,
        "evaluated on": setting.data,
        "images": count(setting.images),
        "images timed": count(setting.images_timed),
        "rounds of timing": str(setting.rounds),
        "batch size": str(setting.batch_size),
        "model's threshold": f"{setting.threshold:g}",
        "refinement steps": str(setting.refine_steps),
        "blocks before pruning": str(setting.prune_after),
        "parameters of BAViT": count(setting.bavit_parameters),
        "parameters of the detector": count(setting.detector_parameters),
        "MACs of BAViT": f"{decimal(setting.bavit_macs / 1e9)} G",
        "MACs of the detector": f"{decimal(dense.macs / 1e9)} G",
        "patches of the detector": decimal(dense.patches),
    }
    return card("Facts", "What was swept, and where.", pairs([*known.items(), *setting.environment.items()]), wide=True)


def _ap(value: float) -> str:
    return f"{100 * value:.1f}"
