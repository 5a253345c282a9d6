"""An evaluation -> the sections of its page, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bavit.background.figures import Bin, Evaluation, Group
from tokenlabels.report.markup import (
    Cell,
    Column,
    Row,
    card,
    count,
    decimal,
    details,
    name,
    pairs,
    percent,
    table,
    tile,
)
from tokenlabels.report.plots import Line, Mark, curve, histogram, keys

_MAX_ROWS = 2_000
"""Rows of one table."""

_SHARES = (
    "accuracy",
    "balanced accuracy",
    "FG precision",
    "FG recall",
    "FG IoU",
    "sparsity",
    "lost objects",
)

_SHOWN_THRESHOLDS = 21
"""Rows of the table of thresholds; the drawing has them all."""


def tiles(evaluation: Evaluation) -> str:
    """The key figures, accuracy beside what it takes no model to reach."""
    ahead = f"{_points(evaluation.accuracy - evaluation.majority)} on the majority, "
    ahead += f"{_points(evaluation.accuracy - evaluation.position_prior)} on the position prior"
    lost = round(evaluation.lost_objects * evaluation.objects)
    removed = f"of {count(evaluation.patches)} patches are removed"
    facts = [
        ("accuracy", percent(evaluation.accuracy), ahead),
        ("majority", percent(evaluation.majority), "accuracy of always giving the commoner label"),
        ("position prior", percent(evaluation.position_prior), "accuracy of knowing the position only"),
        ("balanced accuracy", percent(evaluation.balanced_accuracy), "mean of both recalls; 50% is chance"),
        ("foreground recall", percent(evaluation.fg_recall), "of the foreground is kept"),
        ("foreground precision", percent(evaluation.fg_precision), "of what is kept is foreground"),
        ("foreground IoU", percent(evaluation.fg_iou), "intersection over union"),
        ("sparsity", percent(evaluation.sparsity), removed),
        ("lost objects", percent(evaluation.lost_objects), f"{count(lost)} of {count(evaluation.objects)} objects"),
        ("AUROC", f"{evaluation.auroc:.4f}", "at all thresholds; 0.5 is chance"),
        ("ECE", f"{evaluation.ece:.4f}", "expected calibration error; 0 is perfect"),
        ("cost", f"{decimal(evaluation.macs / 1e9)} GMAC", f"an image; {count(evaluation.parameters)} parameters"),
    ]
    return "".join(tile(title, value, note) for title, value, note in facts)


def threshold(evaluation: Evaluation) -> str:
    """What the threshold decides, how far probabilities can be trusted, and what refinement does."""
    return (
        _threshold_card(evaluation)
        + _reliability_card(evaluation.reliability, evaluation.ece)
        + _refinement_card(evaluation)
    )


def objects(evaluation: Evaluation) -> str:
    """Objects by size and by category."""
    if not evaluation.objects and not evaluation.objects_without_patches:
        return card("Objects", "This set holds no objects.", "")
    lead = (
        "An object is lost where fewer than half of its foreground patches are kept; those that have none are counted "
        f"apart: {count(evaluation.objects_without_patches)}."
    )
    by_category = sorted(evaluation.by_category, key=lambda group: (group.objects == 0, group.fg_recall))
    sizes = card("By size", f"{lead} Sizes are COCO's.", _groups("By size", "size", evaluation.by_size), wide=True)
    return sizes + card(
        "By category",
        "The category of which least is kept comes first.",
        _groups("By category", "category", by_category),
        wide=True,
    )


def run(evaluation: Evaluation, facts: Mapping[str, str]) -> str:
    """What was evaluated, and how."""
    known = {
        "images": count(evaluation.images),
        "patches": count(evaluation.patches),
        "ignored patches": count(evaluation.ignored),
        "threshold": f"{evaluation.threshold:g}",
        "refinement steps": str(evaluation.refine_steps),
        "parameters": count(evaluation.parameters),
        "MACs per image": count(evaluation.macs),
    }
    return card("Facts", "What was evaluated, and how.", pairs([*facts.items(), *known.items()]), wide=True)


def _threshold_card(evaluation: Evaluation) -> str:
    points, here = evaluation.curve, evaluation.threshold
    lines = [
        Line("foreground recall", points.fg_recall),
        Line("lost objects", points.lost_objects),
        Line("balanced accuracy", points.balanced_accuracy),
        Line("accuracy", points.accuracy),
        Line("sparsity", points.sparsity),
    ]
    by_threshold = curve(
        points.threshold,
        lines,
        x_label="background probability above which a patch is removed",
        y_label="share",
        title="Foreground recall, lost objects, balanced accuracy, accuracy and sparsity by threshold",
        mark=Mark(here, evaluation.fg_recall, f"threshold {here:g}"),
    )
    order = sorted(range(len(points.sparsity)), key=lambda index: points.sparsity[index])
    sparsity = [points.sparsity[index] for index in order]
    stays = [
        Line("foreground recall", [points.fg_recall[index] for index in order]),
        Line("objects kept", [1 - points.lost_objects[index] for index in order]),
        Line("removed at random", [1 - value for value in sparsity]),
    ]
    by_sparsity = curve(
        sparsity,
        stays,
        x_label="sparsity: share of patches removed",
        y_label="share that stays",
        title="Foreground recall and objects kept by sparsity",
        mark=Mark(evaluation.sparsity, evaluation.fg_recall, f"threshold {here:g}"),
    )
    lead = (
        f"A patch is removed where its background probability exceeds the threshold. At {here:g}, "
        f"{percent(evaluation.sparsity)} of all patches are removed, {percent(evaluation.fg_recall)} of the foreground "
        f"stays, and {percent(evaluation.lost_objects)} of the objects are lost."
    )
    plots = f"<div>{by_threshold}{keys(lines)}</div><div>{by_sparsity}{keys(stays)}</div>"
    return card("By threshold", lead, f'<div class="pair">{plots}</div>{_threshold_numbers(evaluation)}', wide=True)


def _threshold_numbers(evaluation: Evaluation) -> str:
    points = evaluation.curve
    step = max((len(points.threshold) - 1) // (_SHOWN_THRESHOLDS - 1), 1)
    shares = (
        points.accuracy,
        points.balanced_accuracy,
        points.fg_precision,
        points.fg_recall,
        points.fg_iou,
        points.sparsity,
        points.lost_objects,
    )
    rows = [
        [f"{points.threshold[index]:.3g}", *(percent(values[index]) for values in shares)]
        for index in range(0, len(points.threshold), step)
    ]
    return details("Numbers", table("By threshold", [Column("threshold"), *map(Column, _SHARES)], rows))


def _reliability_card(bins: Sequence[Bin], error: float) -> str:
    filled = [part for part in bins if part.count]
    if not filled:
        return card("Reliability", "There is no patch that counts.", "")
    confidence = [part.confidence for part in filled]
    lines = [Line("this model", [part.foreground for part in filled]), Line("perfect", confidence)]
    drawn = curve(
        confidence,
        lines,
        x_label="probability of foreground",
        y_label="share of foreground",
        title="Share of foreground by its probability",
    )
    counts = histogram(
        [f"{edge:.2g}" for edge in (*(part.low for part in bins), bins[-1].high)],
        [part.count for part in bins],
        x_label="probability of foreground",
        y_label="patches",
        title="Histogram of the probability of foreground",
        every=5,
    )
    columns = [Column("probability", numeric=False), *map(Column, ("patches", "mean probability", "foreground"))]
    rows = [
        [
            f"{part.low:.2f} to {part.high:.2f}",
            count(part.count),
            f"{part.confidence:.3f}" if part.count else "&ndash;",
            percent(part.foreground) if part.count else "&ndash;",
        ]
        for part in bins
    ]
    lead = (
        "Of the patches that are given a probability of foreground, this share is foreground. On average the two are "
        f"{error:.4f} apart (ECE)."
    )
    plots = f'<div class="pair"><div>{drawn}{keys(lines)}</div><div>{counts}</div></div>'
    return card("Reliability", lead, plots + details("Numbers", table("Reliability", columns, rows)), wide=True)


def _refinement_card(evaluation: Evaluation) -> str:
    rows = [
        [
            f"{step.steps}{', as evaluated' if step.steps == evaluation.refine_steps else ''}",
            *map(
                percent,
                (
                    step.accuracy,
                    step.balanced_accuracy,
                    step.fg_precision,
                    step.fg_recall,
                    step.fg_iou,
                    step.sparsity,
                    step.lost_objects,
                ),
            ),
        ]
        for step in evaluation.refinement
    ]
    lead = (
        "Each step turns removed patches with more than two kept neighbours back into kept ones: recall grows, "
        f"sparsity falls. At threshold {evaluation.threshold:g}."
    )
    columns = [Column("steps", numeric=False), *map(Column, _SHARES)]
    return card("Refinement", lead, table("Refinement", columns, rows), wide=True)


def _groups(caption: str, kind: str, groups: Sequence[Group]) -> str:
    titles = ("foreground kept", "patches", "objects", "lost", "lost share", "without patches")
    rows: list[Row] = [
        [
            name(group.name),
            Cell(percent(group.fg_recall), share=group.fg_recall) if group.patches else "&ndash;",
            count(group.patches),
            count(group.objects),
            count(group.lost),
            percent(group.lost_share) if group.objects else "&ndash;",
            count(group.without_patches),
        ]
        for group in groups[:_MAX_ROWS]
    ]
    return table(caption, [Column(kind, numeric=False), *map(Column, titles)], rows)


def _points(difference: float) -> str:
    """Percentage points, signed."""
    return f"{100 * difference:+.2f} points"
