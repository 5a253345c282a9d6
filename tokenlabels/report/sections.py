"""Figures -> the sections of the page, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenlabels import check
from tokenlabels.figures import (
    SIZE_LIMITS,
    Agreement,
    Comparison,
    Distribution,
    Figures,
    LostObject,
    ObjectFigures,
    Position,
)
from tokenlabels.report.markup import (
    Cell,
    Column,
    Row,
    card,
    count,
    decimal,
    details,
    esc,
    name,
    pairs,
    percent,
    table,
    tile,
)
from tokenlabels.report.plots import Line, Mark, curve, heat_map, heat_range, histogram, keys, pooled

_MAX_ROWS = 2_000
"""Rows of one table; the figures in the page hold them all."""

_MAP_ROWS = 24
"""Rows and columns of the heat map as a table; larger maps are averaged."""


def tiles(figures: Figures) -> str:
    """The key figures; those of objects only where there are any."""
    counted = figures.patches - figures.ignored
    majority = "foreground" if figures.baselines.majority_label else "background"
    annotations = ("annotations", count(figures.annotations), _per(figures.annotations, figures.images, "an image"))
    lost = ("lost objects", count(figures.lost_objects), f"{percent(figures.lost_share)} make no patch foreground")
    facts = [
        ("images", count(figures.images), f"{count(figures.patches)} patches"),
        *([annotations] if figures.annotations else []),
        ("foreground share", percent(figures.fg_share), f"{count(figures.foreground)} of {count(counted)} patches"),
        ("empty images", count(figures.empty_images), f"{percent(figures.empty_share)} have no foreground"),
        *([lost] if figures.annotations else []),
        ("majority baseline", percent(figures.baselines.majority), f"accuracy of always saying {majority}"),
        ("position prior", percent(figures.baselines.position_prior), "accuracy of knowing the position only"),
    ]
    return "".join(tile(title, value, note) for title, value, note in facts)


def foreground(figures: Figures, comparison: Comparison | None) -> str:
    """How much is foreground: by image, by threshold, by position."""
    return _image_card(figures) + _tau_card(figures, comparison) + _position_card(figures.position, figures.grid)


def objects(figures: Figures) -> str:
    """Objects by size, patches per object, lost objects; baselines."""
    if not figures.annotations:
        return _nothing("Objects", "This build holds no objects.") + _baseline_card(figures)
    return (
        _size_card(figures.by_size)
        + _patches_card(figures.patches_per_object)
        + _baseline_card(figures)
        + _lost_card(figures)
    )


def categories(figures: Figures) -> str:
    """Every category."""
    rows = sorted(figures.by_category, key=lambda row: -row.fg_share)
    if not rows:
        return _nothing("Categories", "This build has no categories.")
    if not figures.annotations:
        return _majority_card(rows)
    seen = sum(row.objects > 0 for row in rows)
    lead = (
        f"{count(seen)} of {count(len(rows))} categories have objects. The share of foreground counts the patches "
        "that a category's boxes cover, a patch under two objects for both."
    )
    longest = max((row.fg_share for row in rows), default=0.0) or 1.0
    return card("By category", lead, _object_table("By category", "category", rows, longest, sorts=True), wide=True)


def _majority_card(rows: Sequence[ObjectFigures]) -> str:
    """Categories of a build without objects, by the category that covers most of each patch."""
    lead = "Foreground patches that a category covers most of, as a share of all patches that are not ignored."
    longest = max(row.fg_share for row in rows) or 1.0
    columns = [Column("category", numeric=False), Column("foreground"), Column("patches"), Column("images")]
    body: list[Row] = [
        [
            Cell(name(row.name), row.name),
            Cell(percent(row.fg_share), row.fg_share, row.fg_share / longest),
            Cell(count(row.patches), row.patches),
            Cell(count(row.images), row.images),
        ]
        for row in rows[:_MAX_ROWS]
    ]
    return card("By category", lead, table("By category", columns, body, sorts=True), wide=True)


def splits(figures: Figures) -> str:
    """Sums of each split."""
    columns = [
        Column("split", numeric=False),
        *map(
            Column, ("foreground", "images", "annotations", "patches", "foreground patches", "ignored", "empty images")
        ),
    ]
    rows: list[Row] = [
        [
            name(row.split),
            Cell(percent(row.fg_share), share=row.fg_share),
            *map(count, (row.images, row.annotations, row.patches, row.foreground, row.ignored, row.empty_images)),
        ]
        for row in figures.splits
    ]
    lead = "The share of foreground leaves out ignored patches."
    return card("By split", lead, table("By split", columns, rows), wide=True)


def findings(manifest: Mapping[str, Any]) -> str:
    """What was wrong with the annotations."""
    counts: dict[str, int] = manifest.get("findings") or {}
    if not counts:
        return _nothing("Findings", "Nothing was found to be wrong with the annotations.")
    columns = [
        Column("code", numeric=False),
        Column("count"),
        Column("what", numeric=False),
        Column("done about it", numeric=False),
    ]
    rows = []
    for code, number in counts.items():
        kind = check.kind_of(code)
        title, consequence = (kind.title, kind.consequence) if kind else ("", "")
        rows.append([f"<code>{esc(code)}</code>", count(number), esc(title), esc(consequence)])
    examples = [
        [f"<code>{esc(example.get('code', ''))}</code>", esc(example.get("severity", "")), esc(_located(example))]
        for example in (manifest.get("finding_examples") or [])[:_MAX_ROWS]
    ]
    titles = [Column("code", numeric=False), Column("severity", numeric=False), Column("where and what", numeric=False)]
    shown = details(f"Examples ({count(len(examples))})", table("Examples of findings", titles, examples))
    lead = f"Findings in the annotations: {count(sum(counts.values()))}; kinds: {count(len(counts))}."
    return card("Findings", lead, table("Findings", columns, rows) + (shown if examples else ""), wide=True)


def parameters(manifest: Mapping[str, Any]) -> str:
    """What decides the labels: every parameter, and the source files."""
    tool = manifest.get("tool") or {}
    made = f"Made by {esc(tool.get('name', ''))} {esc(tool.get('version', ''))}."
    columns = [
        Column("split", numeric=False),
        Column("file", numeric=False),
        Column("bytes"),
        Column("sha256", numeric=False),
    ]
    sources = [
        [name(split), name(str(file["file"])), count(file["size"]), f"<code>{esc(file['sha256'])}</code>"]
        for split, file in manifest["sources"].items()
    ]
    return card("Parameters", made, pairs(_flat(manifest["parameters"])), wide=True) + card(
        "Source files",
        "By these hashes a build can be repeated.",
        table("Source files", columns, sources),
        wide=True,
    )


def compared(comparison: Comparison | None) -> str:
    """Several builds side by side; nothing where there is nothing to compare."""
    if comparison is None:
        return ""
    titles = ("tau", "foreground", "images", "patches", "empty images", "lost objects", "majority", "position prior")
    columns = [Column("build", numeric=False), Column("rule", numeric=False), *map(Column, titles)]
    rows: list[Row] = [
        [
            f"{name(build.path)} <small>{esc(build.grid)}</small>",
            esc(build.rule),
            f"{build.tau:g}",
            Cell(percent(build.fg_share), share=build.fg_share),
            count(build.images),
            count(build.patches),
            percent(build.empty_share),
            percent(build.lost_share) if build.annotations else "&ndash;",
            percent(build.baselines.majority),
            percent(build.baselines.position_prior),
        ]
        for build in comparison.builds
    ]
    side = card("Builds side by side", "Each on its own images.", table("Builds", columns, rows), wide=True)
    agreement = comparison.agreement
    if agreement is None:
        return side + _nothing("Agreement", f"No agreement of labels: {comparison.reason}.")
    lead = (
        f"Over {count(agreement.patches)} patches of {count(agreement.images)} images that all builds hold and none "
        "ignores. Kappa is agreement beyond chance: 0 for chance, 1 for equal labels."
    )
    matrices = _matrix("Share of equal labels", agreement, agreement.agreement, as_percent=True)
    matrices += _matrix("Cohen's kappa", agreement, agreement.kappa, as_percent=False)
    return side + card("Agreement", lead, f'<div class="pair">{matrices}</div>', wide=True)


def _image_card(figures: Figures) -> str:
    spread = figures.fg_share_per_image
    if not spread.count:
        return _nothing("Foreground per image", "There is no image with a patch that counts.")
    lead = (
        f"Half of the images have between {percent(_at(spread, 0.25))} and {percent(_at(spread, 0.75))} foreground, "
        f"the median image {percent(_at(spread, 0.5))}; mean {percent(spread.mean)}, standard deviation "
        f"{percent(spread.std)}."
    )
    labels = [f"{decimal(100 * edge)}%" for edge in spread.edges]
    plot = histogram(
        labels,
        spread.counts,
        x_label="share of foreground patches in an image",
        y_label="images",
        title="Histogram of the share of foreground per image",
        every=4,
    )
    rows = [
        [f"{low} to {high}", count(number)]
        for low, high, number in zip(labels[:-1], labels[1:], spread.counts, strict=True)
    ]
    numbers = table("Images by share of foreground", [Column("foreground", numeric=False), Column("images")], rows)
    return card("Foreground per image", lead, plot + details("Numbers", numbers + _quantiles(spread, percent)))


def _tau_card(figures: Figures, comparison: Comparison | None) -> str:
    title, points = "Foreground by threshold", figures.tau_curve
    if points is None:
        return _nothing(title, "This build stores no scores, so other thresholds are unknown.")
    lines = [Line("this build", points.fg_share)]
    lines += [
        Line(f"{other.path}: {other.rule}", other.tau_curve.fg_share)
        for other in (comparison.builds if comparison else ())
        if other.tau_curve is not None and other.tau_curve != points
    ]
    plot = curve(
        points.tau,
        lines,
        x_label="threshold tau",
        y_label="foreground share",
        title="Share of foreground by threshold",
        mark=Mark(figures.tau, figures.fg_share, f"this build, {figures.tau:g}"),
        slider=True,
    )
    sign = "&ge;" if figures.inclusive else "&gt;"
    lead = (
        f"A patch is foreground where its score {sign} tau. At this build's tau of {figures.tau:g}, "
        f"{percent(figures.fg_share)} are; at 0.1, {percent(points.fg_share[10])}, "
        f"at 0.9, {percent(points.fg_share[90])}."
    )
    columns = [Column("tau"), Column("share"), Column("foreground"), Column("ignored")]
    rows = [
        [f"{tau:.2f}", percent(share), count(patches), count(ignored)]
        for tau, share, patches, ignored in zip(
            points.tau, points.fg_share, points.foreground, points.ignored, strict=True
        )
    ]
    return card(title, lead, plot + keys(lines) + details("Numbers", table(title, columns, rows)))


def _position_card(position: Position, grid: str) -> str:
    title = "Foreground by position"
    values = np.asarray(position.fg_probability, np.float64)
    if not values.size or not np.any(position.patches):
        return _nothing(title, "There is no patch that counts.")
    counts = np.asarray(position.patches) > 0
    most, least = (
        np.unravel_index(int(place), values.shape)
        for place in (np.argmax(np.where(counts, values, -1)), np.argmin(np.where(counts, values, 2)))
    )
    low, high = values[least], values[most]
    lead = (
        f"Most often foreground in row {most[0] + 1}, column {most[1] + 1} ({percent(high)}), least in row "
        f"{least[0] + 1}, column {least[1] + 1} ({percent(low)}), of {position.rows} x {position.cols}."
    )
    if position.scaled:
        lead += f" Grids of {esc(grid)} differ, so they are scaled to one size."
    small = pooled(values, np.asarray(position.patches, np.float64), _MAP_ROWS)
    columns = [Column("row"), *(Column(str(col + 1)) for col in range(small.shape[1]))]
    rows = [[str(index + 1), *(f"{value:.0%}" for value in row)] for index, row in enumerate(small.tolist())]
    summary = "Numbers" if small.shape == values.shape else f"Numbers, averaged to {len(small)} x {small.shape[1]}"
    start, end = heat_range(values)
    drawing = heat_map(position, f"Map of the share of foreground by position, from {start:.0%} to {end:.0%}")
    return card(title, lead, drawing + details(summary, table(title, columns, rows)))


def _size_card(sizes: Sequence[ObjectFigures]) -> str:
    title = "By object size"
    small, large = (f"{limit**0.5:.0f}" for limit in SIZE_LIMITS)
    lead = f"Annotated area in pixels: small below {small} x {small}, large from {large} x {large}, as COCO has it."
    longest = max(row.fg_share for row in sizes) or 1.0
    return card(title, lead, _object_table(title, "size", sizes, longest, images=False))


def _object_table(
    caption: str, kind: str, rows: Sequence[ObjectFigures], longest: float, *, sorts: bool = False, images: bool = True
) -> str:
    """Objects by category or size; bars of foreground are relative to `longest`."""
    columns = [
        Column(kind, numeric=False),
        Column("foreground"),
        Column("objects"),
        *([Column("images")] if images else []),
        Column("patches each"),
        Column("lost"),
        *([Column("lost share")] if images else []),
    ]
    body: list[Row] = []
    for row in rows[:_MAX_ROWS]:
        shown = percent(row.fg_share) if row.objects or row.patches or row.fg_share else "&ndash;"
        lost = percent(row.lost_share) if row.objects else "&ndash;"
        body.append(
            [
                Cell(name(row.name), row.name),
                Cell(shown, row.fg_share, row.fg_share / longest),
                Cell(count(row.objects), row.objects),
                *([Cell(count(row.images), row.images)] if images else []),
                Cell(decimal(row.patches_mean), row.patches_mean),
                Cell(count(row.lost), row.lost),
                *([Cell(lost, row.lost_share, row.lost_share)] if images else []),
            ]
        )
    more = f"<p>The first {count(_MAX_ROWS)} of {count(len(rows))}.</p>" if len(rows) > _MAX_ROWS else ""
    return table(caption, columns, body, sorts=sorts) + more


def _patches_card(spread: Distribution) -> str:
    title = "Patches per object"
    lead = (
        f"Foreground patches that a box covers by at least half: median {decimal(_at(spread, 0.5))}, "
        f"mean {decimal(spread.mean)}, at most {decimal(_at(spread, 1.0))}. An object at 0 is lost."
    )
    labels = [f"{edge:g}" for edge in spread.edges]
    plot = histogram(
        labels,
        spread.counts,
        x_label="patches of an object (from, doubling)",
        y_label="objects",
        title="Histogram of patches per object",
        every=max(1, -(-len(labels) // 12)),
    )
    rows = [
        [f"{low} to below {high}", count(number)]
        for low, high, number in zip(labels[:-1], labels[1:], spread.counts, strict=True)
    ]
    numbers = table(title, [Column("patches", numeric=False), Column("objects")], rows)
    return card(title, lead, plot + details("Numbers", numbers + _quantiles(spread, decimal)))


def _baseline_card(figures: Figures) -> str:
    kept, weights = figures.baselines, figures.class_weights
    label = "foreground" if kept.majority_label else "background"
    rows: list[Row] = [
        [f"accuracy of always saying {label}", Cell(percent(kept.majority), share=kept.majority)],
        [
            "accuracy of the commoner label of each position",
            Cell(percent(kept.position_prior), share=kept.position_prior),
        ],
        ["loss weight of background", f"{weights.background:.4f}"],
        ["loss weight of foreground", f"{weights.foreground:.4f}"],
    ]
    lead = (
        "What a model must beat without having seen a picture, and weights that balance a loss: n / (2 n of the class)."
    )
    return card(
        "Baselines and class weights",
        lead,
        table("Baselines and class weights", [Column("what", numeric=False), Column("value")], rows),
    )


def _lost_card(figures: Figures) -> str:
    title = "Lost objects"
    if not figures.lost_objects:
        return _nothing(title, "Every object makes at least one patch foreground.")
    lead = (
        f"{count(figures.lost_objects)} of {count(figures.annotations)} objects ({percent(figures.lost_share)}) make "
        "no patch foreground: training on these labels never sees them. A smaller patch or tau keeps more."
    )
    rows = sorted((row for row in figures.by_category if row.lost), key=lambda row: -row.lost)
    most = max((row.lost for row in rows), default=1)
    columns = [Column("category", numeric=False), Column("lost"), Column("lost share"), Column("objects")]
    body = [
        [
            Cell(name(row.name), row.name),
            Cell(count(row.lost), row.lost, row.lost / most),
            Cell(percent(row.lost_share), row.lost_share),
            Cell(count(row.objects), row.objects),
        ]
        for row in rows[:_MAX_ROWS]
    ]
    caption = "Lost objects by category"
    examples = figures.lost_examples
    shown = details(f"Examples ({count(len(examples))})", _lost_examples(examples)) if examples else ""
    return card(title, lead, table(caption, columns, body, sorts=True) + shown, wide=True)


def _lost_examples(examples: Sequence[LostObject]) -> str:
    columns = [
        Column("category", numeric=False),
        Column("area, px"),
        Column("box x, y, width, height, px"),
        Column("annotation"),
        Column("image", numeric=False),
        Column("split", numeric=False),
        Column("file", numeric=False),
    ]
    rows = [
        [
            name(example.category),
            decimal(example.area),
            ", ".join(f"{value:.1f}" for value in example.bbox),
            str(example.id),
            name(example.image_id),
            name(example.split),
            name(example.file_name),
        ]
        for example in examples[:_MAX_ROWS]
    ]
    return table("Examples of lost objects", columns, rows)


def _matrix(title: str, agreement: Agreement, values: Sequence[Sequence[float]], *, as_percent: bool) -> str:
    columns = [Column("", numeric=False), *(Column(text) for text in agreement.names)]
    rows: list[Row] = [
        [name(text), *(Cell(percent(value) if as_percent else f"{value:.3f}", share=value) for value in row)]
        for text, row in zip(agreement.names, values, strict=True)
    ]
    return f"<div><h4>{esc(title)}</h4>{table(title, columns, rows)}</div>"


def _quantiles(spread: Distribution, shown: Callable[[float], str]) -> str:
    rows = [[f"{q:.0%}", shown(value)] for q, value in spread.quantiles]
    return table("Quantiles", [Column("quantile"), Column("value")], rows)


def _at(spread: Distribution, quantile: float) -> float:
    return next((value for q, value in spread.quantiles if q == quantile), 0.0)


def _nothing(title: str, sentence: str) -> str:
    return card(title, esc(sentence), "")


def _per(number: int, among: int, unit: str) -> str:
    return f"{number / among:.1f} {unit}" if among else "no images"


def _located(example: Mapping[str, Any]) -> str:
    return f"{example.get('file', '')}: {example.get('message', '')}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of the leaves, with their values as text."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and all(isinstance(item, Mapping) for item in inner):
            for index, item in enumerate(inner):
                yield from _flat(item, f"{prefix}{key}[{index}].")
        else:
            yield f"{prefix}{key}", _plain(inner)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
