"""Evaluations of BAViT, training runs, and saved detectors with their budgets, as HTML."""

from __future__ import annotations

from bavit.report.charts import Axis, Series, chart, legend
from bavit.report.results import Results, Scalar, Training
from bavit.report.section import NONE, Section, cell, number, plain, share
from bavit.report.sections_costs import seconds
from tokenlabels.report.markup import Column, Row, card, count, details, esc, name, pairs, table

_MOST_LINES = 7
"""Of more runs of a kind the first are drawn; the table has all."""

_QUALITY = {
    "val_ap": "AP, points", "val_miou": "mIoU, points", "val_balanced_accuracy": "balanced accuracy, %",
    "val_accuracy": "accuracy, %",
}  # fmt: skip


def evaluations(results: Results) -> Section:
    """Accuracy beside what it takes no model to reach, and what is kept and lost by how much is removed."""
    found = results.evaluations
    if not found:
        return Section("bavit", "BAViT", "")
    titles = (
        "accuracy", "majority", "by position", "balanced", "FG recall", "FG precision", "FG IoU", "AUROC", "ECE",
        "removed", "objects lost", "GMAC", "parameters",
    )  # fmt: skip
    rows: list[Row] = []
    for each in found:
        one = each.evaluation
        rows.append([
            name(each.name), share(one.accuracy), share(one.majority), share(one.position_prior),
            share(one.balanced_accuracy), share(one.fg_recall), share(one.fg_precision), share(one.fg_iou),
            f"{one.auroc:.3f}", f"{one.ece:.3f}", share(one.sparsity), share(one.lost_objects), f"{one.macs / 1e9:.3f}",
            count(one.parameters),
        ])  # fmt: skip
    numbers = table("Evaluations of BAViT", [Column("run", numeric=False), *map(Column, titles)], rows)
    x = Axis("patches removed, %", 100, "%", start=0)
    recall, lost = [], []
    for colour, each in enumerate(found[:_MOST_LINES]):
        points = each.evaluation.curve
        order = sorted(range(len(points.sparsity)), key=lambda index: points.sparsity[index])
        recall.append(Series(each.name, [(points.sparsity[i], points.fg_recall[i]) for i in order], colour))
        lost.append(Series(each.name, [(points.sparsity[i], points.lost_objects[i]) for i in order], colour))
    chance = Series("removed at random", [(0.0, 1.0), (1.0, 0.0)], 6, "dotted")
    foreground, objects = Axis("of the foreground, %", 100, "%"), Axis("of the objects, %", 100, "%")
    kept = chart([*recall, chance], x, foreground, title="Foreground kept by patches removed")
    gone = chart(lost, x, objects, title="Objects lost by patches removed")
    drawings = f"<div><h4>foreground kept</h4>{kept}</div><div><h4>objects lost</h4>{gone}</div>"
    keys = legend([*((each.name, each.colour, "solid") for each in recall), (chance.name, chance.colour, "dotted")])
    lead = (
        "“Majority” always gives the commoner label, “by position” the commoner one of each place: what it takes no "
        "model to reach. An object is lost where fewer than half of its foreground patches are kept."
    )
    content = card(
        "Background against foreground", lead, f'{numbers}<div class="pair">{drawings}</div>{keys}', wide=True
    )
    return Section("bavit", "BAViT", content)


def trainings(results: Results) -> Section:
    """Loss and quality by epoch, and what training took."""
    kinds = dict.fromkeys(each.trained for each in results.trainings)
    content = "".join(_curves(kind, [each for each in results.trainings if each.trained == kind]) for kind in kinds)
    return Section("training", "Training", content + _took(results))


def _curves(kind: str, runs: list[Training]) -> str:
    drawn = [each for each in runs if each.epochs][:_MOST_LINES]
    losses = [Series(f"{each.name}, training", each.series("train_loss"), colour) for colour, each in enumerate(drawn)]
    losses += [
        Series(f"{each.name}, validation", each.series("val_loss"), colour, "dashed")
        for colour, each in enumerate(drawn)
    ]
    key = next((each.quality for each in drawn if each.quality), None)
    epoch = Axis("epoch", start=0)
    loss = chart(
        [each for each in losses if each.points], epoch, Axis("loss", start=0), title=f"Loss of {kind} by epoch"
    )
    parts = f"<div><h4>loss</h4>{loss}</div>"
    if key is not None:
        quality = [Series(each.name, each.series(key), colour) for colour, each in enumerate(drawn)]
        label = _QUALITY[key]
        shown = chart(
            [each for each in quality if each.points],
            epoch,
            Axis(label, 100, span=1),
            title=f"{label} of {kind} by epoch",
        )
        parts += f"<div><h4>{label.partition(',')[0]}, validation</h4>{shown}</div>"
        parts += _by_cost(drawn, key, kind)
    keys = legend(
        [*((each.name, colour, "solid") for colour, each in enumerate(drawn)), ("validation", None, "dashed")]
    )
    many = f" The first {len(drawn)} of {len(runs)} runs are drawn." if len(runs) > len(drawn) else ""
    lead = f"{len(runs)} run{'s' if len(runs) > 1 else ''}: loss of training, and of validation dashed.{many}"
    return card(f"Training of a {kind}", lead, f'<div class="pair">{parts}</div>{keys}', wide=True)


def _by_cost(runs: list[Training], key: str, kind: str) -> str:
    """Quality against MACs, epoch after epoch, of runs that learn what is kept."""
    lines = []
    for colour, each in enumerate(runs):
        costs, epochs = dict(each.series("val_gmacs")), each.series(key)
        known = [(epoch, value) for epoch, value in epochs if epoch in costs]
        places = [(costs[epoch], value) for epoch, value in known]
        lines.append(Series(each.name, places, colour, "solid", [f"epoch {epoch:g}" for epoch, _ in known]))
    if not any(each.points for each in lines):
        return ""
    y = Axis(_QUALITY[key], 100, span=1)
    drawn = chart(lines, Axis("GMAC of an image, BAViT included"), y, title=f"{y.label} of {kind} by MACs")
    return f"<div><h4>{y.label.partition(',')[0]} by cost, epoch after epoch</h4>{drawn}</div>"


def _took(results: Results) -> str:
    if not results.trainings:
        return ""
    rows: list[Row] = []
    for each in results.trainings:
        last = each.epochs[-1] if each.epochs else {}
        quality = each.quality
        final = each.series(quality)[-1][1] if quality else None
        best = max((value for _, value in each.series(quality)), default=None) if quality else None
        rows.append([
            name(each.name), each.trained, NONE if quality is None else _QUALITY[quality].partition(",")[0],
            NONE if final is None else f"{100 * final:.1f}", NONE if best is None else f"{100 * best:.1f}",
            number(last.get("epoch"), ",.0f"), number(each.images, ","), number(last.get("images_per_second"), ",.3g"),
            seconds(each.seconds),
        ])  # fmt: skip
    columns = [
        Column("run", numeric=False), Column("trained", numeric=False), Column("judged by", numeric=False),
        *map(Column, ("last", "best", "epochs", "images", "images/s", "took")),
    ]  # fmt: skip
    chosen = "".join(
        f"<h4>{name(each.name)}</h4>{pairs([(key, plain(value)) for key, value in each.settings.items()])}"
        for each in results.trainings
    )
    chosen = details("Settings", f'<div class="stack">{chosen}</div>')
    lead = "On the validation set, after the last epoch and at best. Time is that of training, validation included."
    return card("What training took", lead, table("Training runs", columns, rows) + chosen, wide=True)


def budgets(results: Results) -> Section:
    """Saved pruned detectors: what they keep, and the budget for which that was chosen."""
    found = results.detectors
    if not found:
        return Section("budgets", "Budgets", "")
    rows: list[Row] = []
    for each in found:
        told = each.budget
        unit = 1e-9 if told.get("target") == "macs" else 1.0
        low, high = _scaled(told, "achieved_low", unit), _scaled(told, "achieved_high", unit)
        between = f" <small>{low} to {high}</small>" if NONE not in (low, high) else ""
        rows.append([
            name(each.name), esc(_BUDGETS.get(str(told.get("target")), told.get("target", "none"))),
            _scaled(told, "value", unit), _scaled(told, "achieved", unit) + between,
            _scaled(told, "achieved_max", unit),
            *(cell(each.pruning.get(key)) for key in ("threshold", "max_tokens", "top_k")),
            share(_float(told.get("sparsity"))), cell(told.get("tokens")), _scaled(told, "macs", 1e-9),
            _scaled(told, "macs_dense", 1e-9),
        ])  # fmt: skip
    titles = (
        "asked", "reached, mean", "dearest", "threshold", "cap", "top k", "removed", "patches kept", "GMAC",
        "dense GMAC",
    )  # fmt: skip
    columns = [Column("detector", numeric=False), Column("budget of", numeric=False), *map(Column, titles)]
    everything = "".join(f"<h4>{name(each.name)}</h4>{values(each.pruning | each.budget)}" for each in found)
    lead = (
        "Saved pruned detectors. Threshold and cap were chosen on a calibration set so that the mean cost of an image "
        "is what was asked for; small are the bootstrap intervals over images."
    )
    content = table("Budgets", columns, rows) + details("All that they say", f'<div class="stack">{everything}</div>')
    return Section("budgets", "Budgets", card("Budgets", lead, content, wide=True))


_BUDGETS = {"macs": "GMAC", "tokens": "patches", "latency-ms": "latency, ms", "latency_ms": "latency, ms"}


def _scaled(told: dict[str, Scalar], key: str, scale: float) -> str:
    value = _float(told.get(key))
    return NONE if value is None else f"{value * scale:,.4g}"


def _float(value: Scalar) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def values(given: dict[str, Scalar]) -> str:
    """Names and values, without those that are None."""
    return pairs([(key.replace("_", " "), plain(value)) for key, value in given.items() if value is not None])
