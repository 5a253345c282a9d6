"""What detectors cost: multiply-accumulates and time by part, memory, and what training took, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from bavit.detect.sweep_figures import SweepRow
from bavit.report.charts import Axis, Dashes, Level, Series, bars, chart, legend
from bavit.report.results import Results, SweepResult
from bavit.report.section import NONE, Section, number, share
from bavit.report.sections_detection import colours_of
from bavit.report.summary import saved
from tokenlabels.report.markup import Column, Row, card, count, decimal, name, table

_MOST_BARS, _MOST_RUNS = 8, 4
_REMOVED = Axis("patches removed, %", 100, "%")


def section(results: Results) -> Section:
    """Costs by part; empty without sweeps and training runs."""
    content = "".join(_parts(each) for each in results.sweeps[:_MOST_RUNS])
    if len(results.sweeps) > _MOST_RUNS:
        content += f'<p class="notice">Parts of the first {_MOST_RUNS} sweeps are drawn; the table has all.</p>'
    if results.sweeps:
        content += _left(results) + _table(results.sweeps)
    return Section("costs", "Costs", content)


def _parts(result: SweepResult) -> str:
    """MACs and latency of one sweep, by part."""
    sweep = result.sweep
    rows = _some(sweep.of("bavit") or sweep.of(sweep.sources[0]))
    own = sweep.setting.bavit_macs
    macs = [("dense", [("detector", sweep.dense.macs)])]
    macs += [(f"{share(row.sparsity)} removed", [("detector", row.macs - own), ("BAViT", own)]) for row in rows]
    times = [("dense", [("detector", sweep.dense.latency_ms)])]
    times += [
        (
            f"{share(row.sparsity)} removed",
            [
                ("detector", row.latency_detector_ms),
                ("BAViT, masks, boxes", max(row.latency_ms - row.latency_detector_ms, 0)),
            ],
        )
        for row in rows
    ]
    work = bars(macs, Axis("GMAC of an image", 1e-9, " GMAC"), title=f"MACs of {result.name} by part")
    time = bars(times, Axis("ms, one image alone", 1, " ms"), title=f"Latency of {result.name} by part")
    drawings = f"<div><h4>multiply-accumulates</h4>{work}</div><div><h4>latency</h4>{time}</div>"
    what = (
        f"{count(sweep.setting.detector_parameters)} parameters behind {count(sweep.setting.bavit_parameters)} of BAViT"
    )
    lead = f"The detector has {what}. Its first bar is the detector with all patches."
    return card(result.name, lead, f'<div class="pair">{drawings}</div>', wide=True)


def _some(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """At most so many rows, spread from the densest to the sparsest."""
    if len(rows) <= _MOST_BARS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (_MOST_BARS - 1))] for place in range(_MOST_BARS)]


def _left(results: Results) -> str:
    """MACs, tokens and memory that are left of the dense detector's, by what is removed."""
    colours = colours_of(results)
    work, memory, peaks = [], [], []
    for each in results.sweeps:
        colour = colours[each.name]
        rows = each.sweep.of("bavit")
        macs = [(row.sparsity, row.macs / row.macs_dense) for row in rows if row.macs_dense > 0]
        tokens = [(row.sparsity, row.tokens_total / row.tokens_detector) for row in rows if row.tokens_detector > 0]
        work.append(Series(f"{each.name}, MACs", macs, colour))
        work.append(Series(f"{each.name}, tokens", tokens, colour, "dashed"))
        peak = each.sweep.dense.peak_memory_mb
        known = [(row.sparsity_timed, row.peak_memory_mb) for row in rows if row.peak_memory_mb is not None]
        if known and peak is not None:
            memory.append(Series(each.name, known, colour))
            peaks.append(Level(f"{each.name}, dense: {decimal(peak)} MB", peak, colour, decimal(peak)))
    of_dense = Axis("% of dense", 100, "%", start=0)
    level = Level("dense", 1.0, None, "dense")
    drawn = chart(work, _REMOVED, of_dense, title="MACs and tokens left by sparsity", levels=[level])
    drawings = f"<div><h4>work that is left</h4>{drawn}</div>"
    if memory:
        megabytes = Axis("peak memory of a batch, MB", 1, " MB", start=0)
        drawn = chart(memory, _REMOVED, megabytes, title="Peak memory of a batch by sparsity", levels=peaks)
        drawings += f"<div><h4>memory</h4>{drawn}</div>"
    runs = [(each.name, colours[each.name]) for each in results.sweeps]
    keys = legend([*((each, colour, "solid") for each, colour in runs), *_KEYS])
    lead = (
        "BAViT included. Tokens are patches alone, once for each block, as the paper counts; MACs have everything. "
        "Memory is the most that a batch takes beside weights and what was held before."
    )
    return card("What is left", lead, f'<div class="pair">{drawings}</div>{keys}', wide=True)


_KEYS: tuple[tuple[str, None, Dashes], ...] = (
    ("MACs", None, "solid"),
    ("tokens", None, "dashed"),
    ("dense", None, "level"),
)


def _table(sweeps: Sequence[SweepResult]) -> str:
    titles = (
        "removed", "patches kept", "MACs saved", "latency, ms", "dense", "saved", "images/s", "dense", "memory, MB",
        "dense", "saved",
    )  # fmt: skip
    rows: list[Row] = []
    for each in sweeps:
        for row in _some(each.sweep.of("bavit") or each.sweep.of(each.sweep.sources[0])):
            memory = None
            if row.peak_memory_mb is not None and row.peak_memory_dense_mb is not None:
                memory = saved(row.peak_memory_mb, row.peak_memory_dense_mb)
            rows.append([
                name(each.name), share(row.sparsity), decimal(row.kept_patches),
                share(saved(row.macs, row.macs_dense)), decimal(row.latency_ms), decimal(row.latency_dense_ms),
                share(saved(row.latency_ms, row.latency_dense_ms)), decimal(row.throughput),
                decimal(row.throughput_dense), number(row.peak_memory_mb, ",.1f"),
                number(row.peak_memory_dense_mb, ",.1f"), share(memory),
            ])  # fmt: skip
    lead = (
        "Of an image, BAViT included, beside the dense detector that took turns with it; negative is more than dense."
    )
    columns = [Column("run", numeric=False), *map(Column, titles)]
    return card("What is saved", lead, table("What is saved", columns, rows), wide=True)


def seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None:
        return NONE
    return f"{value / 60:,.1f} min" if value >= 60 else number(value, ",.3g", " s")
