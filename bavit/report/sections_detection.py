"""Sweeps of detectors -> key figures, curves, and Table 2, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bavit.detect.sweep_figures import MASK_NAMES, MASK_SOURCES, MaskSource, SweepRow
from bavit.report.charts import Axis, Dashes, Level, Series, chart, legend
from bavit.report.results import Results, SweepResult
from bavit.report.section import NONE, Section, change, number, points, share
from bavit.report.summary import exported, fastest, headline, segment_headline, trained
from tokenlabels.report.markup import Column, Row, card, count, decimal, details, esc, name, table, tile

_DASHES: dict[MaskSource, Dashes] = {"bavit": "solid", "labels": "dashed", "random": "dotted"}
_LINES: dict[MaskSource, str] = {
    "bavit": "masks of BAViT",
    "labels": "oracle: masks of the labels",
    "random": "random masks, as many kept",
}
_MOST_WITH_BOUNDS = 3
"""Of more sweeps, only the first has its bounds drawn."""

_SPARSITY = Axis("patches removed, %", 100, "%")
_GMAC = Axis("GMAC of an image, BAViT included", 1e-9, " GMAC")
_LATENCY = Axis("latency of one image, BAViT included, % of dense", 100, "% of dense")
_AP, _AP50 = Axis("AP, points", 100, span=1), Axis("AP50, points", 100, span=1)
_TIMES = Axis("times as fast as dense", 1, "x", start=1)


def tiles(results: Results) -> str:
    """The most telling figures, as many as what was found can tell, and of what they are."""
    found: list[tuple[str, str, str]] = []
    best, note = headline(results), ""
    if best is not None:
        row = best.row
        note = f"AP, patches, speed-up and MACs are of {best.run} at threshold {row.threshold:g}: {best.why}."
        found += [
            ("AP", points(row.ap), f"{change(-best.lost)} points on the best dense, {points(best.reference)}"),
            ("patches removed", share(row.sparsity), f"{best.run}, threshold {row.threshold:g}"),
            ("speed-up", f"{row.speedup:.2f}x", f"in batches, BAViT included; ideal by MACs {row.speedup_ideal:.2f}x"),
            (
                "MACs saved" if best.macs_saved >= 0 else "MACs added",
                share(abs(best.macs_saved)),
                f"{decimal(row.macs / 1e9)} GMAC, dense {decimal(row.macs_dense / 1e9)}",
            ),
        ]
    quick = fastest(results)
    if quick is not None and (best is None or quick[1] is not best.row):
        run, row = quick
        untrained = next(each for each in results.sweeps if each.name == run).sweep.setting.random_weights
        cost = "random weights" if untrained else f"AP {points(row.ap)}"
        latency = f"one image {decimal(row.latency_ms)} ms, dense {decimal(row.latency_dense_ms)}"
        found.append(
            ("greatest speed-up", f"{row.speedup:.2f}x", f"{run}, {share(row.sparsity)} removed, {cost}; {latency}")
        )
    for each in results.evaluations[:1]:
        figures = each.evaluation
        ahead = f"{change(figures.accuracy - figures.majority)} points on the majority"
        found.append(("accuracy of BAViT", share(figures.accuracy), f"{each.name}: {ahead}"))
        found.append(
            ("objects lost", share(figures.lost_objects), f"{each.name}: where {share(figures.sparsity)} is removed")
        )
    segment = segment_headline(results)
    if segment is not None:
        lost = change(segment.row.miou - segment.reference)
        found.append(("mIoU", points(segment.row.miou), f"{segment.run}: {lost} points on the unpruned network"))
        found.append(
            ("MACs saved by early exit", share(segment.row.macs_reduction), f"{segment.run}: p0 {segment.row.p0:g}")
        )
    graph = exported(results)
    if graph is not None:
        words = f"{graph.run}: {share(graph.sparsity)} removed, {decimal(graph.graph_ms)} ms; whole pipeline"
        found.append(("exported graph", f"{graph.ratio_graph:.2f}x", f"{words} {graph.ratio_whole:.2f}x"))
    if not found:
        return ""
    columns = next((columns for columns in (4, 5, 6) if len(found) % columns == 0), 4)
    shown = "".join(tile(title, value, words) for title, value, words in found)
    return f'<dl class="tiles flow by{columns}">{shown}</dl>' + (f'<p class="note">{esc(note)}</p>' if note else "")


def curves(results: Results) -> Section:
    """AP against what it costs, with its bounds, and speed."""
    sweeps = results.sweeps
    if not sweeps:
        return Section("curves", "Curves", "")
    colours = colours_of(results)
    content = _notes(sweeps)
    real = trained(sweeps)
    if real:
        content += _key_card(real, colours)
        for axis, title, across, lead in _VIEWS:
            drawings = "".join(
                f"<div>{_precision(real, colours, axis, y, across, key, title)}</div>"
                for y, key in ((_AP, "ap"), (_AP50, "ap50"))
            )
            content += card(title, lead, f'<div class="pair">{drawings}</div>', wide=True)
    content += _speed(sweeps, colours) + _all_rows(sweeps)
    return Section("curves", "Precision and speed", content)


def colours_of(results: Results) -> dict[str, int]:
    """The colour of each sweep, by name."""
    return {each.name: index for index, each in enumerate(results.sweeps)}


def _relative_latency(row: SweepRow) -> float:
    return row.latency_ms / row.latency_dense_ms if row.latency_dense_ms > 0 else 1.0


_VIEWS: tuple[tuple[Axis, str, Callable[[SweepRow], float], str], ...] = (
    (
        _SPARSITY, "By patches removed", lambda row: row.sparsity, (
            "Average precision by the share of the detector's patches that is removed. The oracle removes by the "
            "labels, which no model can see; random masks keep as many patches of each image as BAViT does."
        ),
    ),
    (
        _GMAC, "By multiply-accumulates", lambda row: row.macs, (
            "All work is counted: BAViT, attention, CLS and detection tokens. The single mark on a horizontal line is "
            "the dense detector."
        ),
    ),
    (
        _LATENCY, "By latency", _relative_latency, (
            "Median time of one image alone, held in memory, against the dense detector that took turns with it on "
            "the machine of the run, so that a machine that is busy slows both. Left of 100 % is faster than dense."
        ),
    ),
)  # fmt: skip


def _notes(sweeps: Sequence[SweepResult]) -> str:
    notes = dict.fromkeys(f"{each.name}: {note}" for each in sweeps for note in each.sweep.setting.notes)
    return f'<div class="notice">{"".join(f"<p>{esc(note)}</p>" for note in notes)}</div>' if notes else ""


def _key_card(sweeps: Sequence[SweepResult], colours: dict[str, int]) -> str:
    runs = legend([(each.name, colours[each.name], "solid") for each in sweeps])
    sources = [mask for mask in _LINES if any(mask in each.sweep.sources for each in sweeps)]
    masks = legend([*((_LINES[mask], None, _DASHES[mask]) for mask in sources), ("dense: all patches", None, "level")])
    bounds = "" if len(sweeps) <= _MOST_WITH_BOUNDS else " Bounds are those of the first."
    return (
        f'<div class="key-card"><div><h3>Runs</h3>{runs}</div><div><h3>Lines</h3>{masks}</div>'
        f'<p class="note">Point at a mark for its numbers; all of them stand in the table below.{bounds}</p></div>'
    )


def _precision(
    sweeps: Sequence[SweepResult], colours: dict[str, int], x: Axis, y: Axis, across: Callable[[SweepRow], float],
    key: str, title: str,
) -> str:  # fmt: skip
    lines, levels = [], []
    for mask in MASK_SOURCES:
        for place, each in enumerate(sweeps):
            if mask != "bavit" and place and len(sweeps) > _MOST_WITH_BOUNDS:
                continue
            rows = each.sweep.of(mask)
            if rows:
                lines.append(Series(
                    f"{each.name}, {MASK_NAMES[mask]}", [(across(row), getattr(row, key)) for row in rows],
                    colours[each.name], _DASHES[mask],
                    [
                        f"threshold {row.threshold:g}, {share(row.sparsity)} removed, {decimal(row.latency_ms)} ms"
                        for row in rows
                    ],
                ))  # fmt: skip
    for each in sweeps:
        dense, colour = each.sweep.dense, colours[each.name]
        height = getattr(dense, key)
        levels.append(Level(f"{each.name}, dense: {points(height)}", height, colour, points(height)))
        at = {_GMAC: dense.macs, _LATENCY: 1.0}.get(x)
        if at is not None:
            lines.append(Series(f"{each.name}, dense", [(at, height)], colour, "solid", ["all patches"]))
    return chart(lines, x, y, title=f"{y.label.partition(',')[0]} {title[0].lower()}{title[1:]}", levels=levels)


def _speed(sweeps: Sequence[SweepResult], colours: dict[str, int]) -> str:
    main = [(each, each.sweep.of("bavit") or each.sweep.of(each.sweep.sources[0])) for each in sweeps]
    batches, alone = [], []
    for each, rows in main:
        rows = sorted(rows, key=lambda row: row.sparsity_timed)
        notes = [f"threshold {row.threshold:g}" for row in rows]
        x = [row.sparsity_timed for row in rows]
        colour = colours[each.name]
        batches.append(
            Series(each.name, list(zip(x, [row.speedup for row in rows], strict=True)), colour, "solid", notes)
        )
        alone.append(
            Series(each.name, list(zip(x, [row.speedup_latency for row in rows], strict=True)), colour, "solid", notes)
        )
        ideal = list(zip(x, [row.speedup_ideal for row in rows], strict=True))
        batches.append(Series(f"{each.name}, ideal by MACs", ideal, colour, "dashed", notes))
    level = [Level("dense", 1.0, None, "dense")]
    many = chart(batches, _SPARSITY, _TIMES, title="Speed-up in batches by sparsity", levels=level)
    one = chart(alone, _SPARSITY, _TIMES, title="Speed-up of one image by sparsity", levels=level)
    drawings = f"<div><h4>in batches</h4>{many}</div><div><h4>one image alone</h4>{one}</div>"
    items: list[tuple[str, int | None, Dashes]] = [(each.name, colours[each.name], "solid") for each in sweeps]
    items.append(("ideal: ratio of MACs", None, "dashed"))
    lead = (
        "Time of the dense detector by that of BAViT, masks and detector together, dense and pruned in turns. Below 1, "
        "BAViT costs more than it saves: the smaller the detector, the more must be removed."
    )
    return card("Speed-up", lead, f'<div class="pair">{drawings}</div>{legend(items)}', wide=True)


def _all_rows(sweeps: Sequence[SweepResult]) -> str:
    titles = (
        "masks", "threshold", "removed", "AP", "AP50", "AP75", "small", "medium", "large", "GMAC", "latency ms",
        "p95 ms", "images/s", "speed-up", "one image", "ideal", "memory MB",
    )  # fmt: skip
    columns = [Column("run", numeric=False), Column("masks", numeric=False), *map(Column, titles[1:])]
    rows: list[Row] = []
    for each in sweeps:
        dense, random = each.sweep.dense, each.sweep.setting.random_weights
        rows.append([
            name(each.name), "dense", NONE, share(0.0), *_precisions(dense, random), f"{dense.macs / 1e9:.3f}",
            decimal(dense.latency_ms), decimal(dense.latency_p95_ms), decimal(dense.throughput), "1.00x", "1.00x",
            "1.00x", number(dense.peak_memory_mb, ",.0f"),
        ])  # fmt: skip
        rows += [
            [
                name(each.name), esc(MASK_NAMES[row.mask]), f"{row.threshold:g}", share(row.sparsity),
                *_precisions(row, random), f"{row.macs / 1e9:.3f}", decimal(row.latency_ms),
                decimal(row.latency_p95_ms), decimal(row.throughput), f"{row.speedup:.2f}x",
                f"{row.speedup_latency:.2f}x", f"{row.speedup_ideal:.2f}x", number(row.peak_memory_mb, ",.0f"),
            ]
            for row in each.sweep.rows
        ]  # fmt: skip
    found = details(f"All {count(len(rows))} rows as numbers", table("All rows of all sweeps", columns, rows))
    return f'<div class="notice">{found}</div>'


def _precisions(row: object, random: bool) -> list[str]:
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return [NONE if random else points(getattr(row, key)) for key in keys]
