"""Every figure of an evaluation, against plain loops over small random predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from bavit.background import critical as critical_module
from bavit.background import metrics
from bavit.background.confusion import Confusion
from bavit.background.critical import critical_of_objects, kept_patches
from bavit.background.figures import Evaluation
from bavit.background.metrics import confusion_of, evaluate_predictions, lost_share
from bavit.background.predictions import Predictions
from bavit.background.refine import refine
from tokenlabels.errors import ParameterError, TokenLabelsError

Numbers: TypeAlias = dict[str, Any]

CASES = [
    pytest.param({"seed": 0}, 0.5, 0, id="plain"),
    pytest.param({"seed": 1}, 0.4, 3, id="refined"),
    pytest.param({"seed": 2, "levels": 10}, 0.3, 0, id="ties, on the stops of the curve"),
    pytest.param({"seed": 3, "levels": 10}, 0.6, 1, id="ties, refined"),
    pytest.param({"seed": 4, "images": 1, "rows": 1, "cols": 7}, 0.2, 7, id="one row, more steps than are told"),
    pytest.param({"seed": 5, "foreground": 0.0}, 0.5, 0, id="no foreground"),
    pytest.param({"seed": 6, "foreground": 1.0, "ignored": 0.5}, 0.5, 2, id="no background"),
    pytest.param({"seed": 7, "objects": 0}, 1.0, 0, id="no objects, all kept"),
    pytest.param({"seed": 8, "levels": 3}, 0.0, 0, id="nearly all removed"),
]


def evaluate(predictions: Predictions, threshold: float = 0.5, refine_steps: int = 0) -> Evaluation:
    return evaluate_predictions(predictions, threshold=threshold, refine_steps=refine_steps, parameters=7, macs=9)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mask_figures(predictions: Predictions, threshold: float, steps: int) -> Numbers:
    """The figures of one mask, token by token and object by object."""
    mask = refine(torch.from_numpy(predictions.background <= np.float32(threshold)), steps).numpy()
    pairs = list(zip(mask.ravel().tolist(), predictions.labels.ravel().tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((True, 1), (True, 0), (False, 1), (False, 0)))
    recalls = [hit / every for hit, every in ((tp, tp + fn), (tn, tn + fp)) if every]
    held = [each for each in objects_of(predictions) if each]
    return {
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "fg_precision": ratio(tp, tp + fp),
        "fg_recall": ratio(tp, tp + fn),
        "fg_iou": ratio(tp, tp + fp + fn),
        "sparsity": sum(not kept for kept, _ in pairs) / len(pairs),
        "lost_objects": ratio(sum(is_lost(mask, cells) for cells in held), len(held)),
    }


def objects_of(predictions: Predictions) -> list[list[int]]:
    offsets = predictions.objects.offsets.tolist()
    return [predictions.objects.cells[low:high].tolist() for low, high in pairwise(offsets)]


def is_lost(mask: Any, cells: Iterable[int]) -> bool:
    kept = [bool(mask.ravel()[cell]) for cell in cells]
    return sum(kept) < len(kept) / 2


def close(found: object, expected: object) -> bool:
    return bool(found == pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_figures_of_the_mask(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    predictions = predictions_of(**kind)
    found = msgspec.to_builtins(evaluate(predictions, threshold, steps))
    for name, value in mask_figures(predictions, threshold, steps).items():
        assert close(found[name], value), name
    for index, step in enumerate(found["refinement"]):
        assert step.pop("steps") == index
        assert close(step, mask_figures(predictions, threshold, index))
    assert len(found["refinement"]) == 6
    assert (found["threshold"], found["refine_steps"], found["parameters"], found["macs"]) == (threshold, steps, 7, 9)


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_the_curve_is_the_mask_at_each_stop(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    predictions = predictions_of(**kind)
    curve = msgspec.to_builtins(evaluate(predictions, threshold, steps).curve)
    assert curve["threshold"] == [index / 100 for index in range(101)]
    for index, stop in enumerate(curve["threshold"]):
        for name, value in mask_figures(predictions, stop, steps).items():
            assert close(curve[name][index], value), (name, stop)


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_figures_of_the_set(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    predictions = predictions_of(**kind)
    found = evaluate(predictions, threshold, steps)
    labels = predictions.labels.reshape(len(predictions.labels), -1).tolist()
    counted = [label for image in labels for label in image if label != 255]
    assert (found.images, found.patches) == (len(labels), predictions.labels.size)
    assert found.ignored == found.patches - len(counted)
    assert close(found.majority, max(counted.count(0), counted.count(1)) / len(counted))
    by_position = [max(column.count(0), column.count(1)) for column in zip(*labels, strict=True)]
    assert close(found.position_prior, sum(by_position) / len(counted))
    held = [len(each) for each in objects_of(predictions)]
    assert (found.objects, found.objects_without_patches) == (sum(map(bool, held)), held.count(0))


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_figures_of_groups(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    predictions = predictions_of(**kind)
    found = evaluate(predictions, threshold, steps)
    mask = refine(torch.from_numpy(predictions.background <= np.float32(threshold)), steps).numpy()
    for groups, of, names in (
        (found.by_size, predictions.objects.size, ("small", "medium", "large")),
        (found.by_category, predictions.objects.category, predictions.categories),
    ):
        expected = []
        for index, name in enumerate(names):
            members = [
                cells for cells, group in zip(objects_of(predictions), of.tolist(), strict=True) if group == index
            ]
            held = [cells for cells in members if cells]
            cells = [cell for each in held for cell in each]
            lost = sum(is_lost(mask, each) for each in held)
            kept = sum(bool(mask.ravel()[cell]) for cell in cells)
            figures = (name, len(held), len(members) - len(held), len(cells), ratio(kept, len(cells)), lost)
            expected += [(*figures, ratio(lost, len(held)))] * bool(members)
        assert [msgspec.structs.astuple(group) for group in groups] == expected


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_probabilities(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    predictions = predictions_of(**kind)
    found = evaluate(predictions, threshold, steps)
    foreground, background = (predictions.background[predictions.labels == label] for label in (1, 0))
    if len(foreground) and len(background):
        expected = stats.mannwhitneyu(background, foreground).statistic / (len(foreground) * len(background))
    else:
        expected = 0.5
    assert close(found.auroc, expected)
    pairs = [(1 - b, 1) for b in foreground.tolist()] + [(1 - b, 0) for b in background.tolist()]
    error = 0.0
    for index, each in enumerate(found.reliability):
        held = [pair for pair in pairs if min(math.floor(pair[0] * 15), 14) == index]
        mean = ratio(sum(p for p, _ in held), len(held))
        truth = ratio(sum(label for _, label in held), len(held))
        assert close(msgspec.structs.astuple(each), (index / 15, (index + 1) / 15, len(held), mean, truth))
        error += len(held) / len(pairs) * abs(mean - truth)
    assert len(found.reliability) == 15
    assert close(found.ece, error)


@pytest.mark.parametrize(("kind", "threshold", "steps"), CASES)
def test_every_number_is_plain_and_finite(kind: Numbers, threshold: float, steps: int, predictions_of: Any) -> None:
    found = evaluate(predictions_of(**kind), threshold, steps)

    def numbers(value: object) -> list[object]:
        if isinstance(value, msgspec.Struct):
            return numbers(list(msgspec.structs.astuple(value)))
        return [number for each in value for number in numbers(each)] if isinstance(value, list) else [value]

    for number in numbers(found):
        assert type(number) in (int, float, str)
        assert not isinstance(number, float) or math.isfinite(number)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_blocks_make_no_difference(predictions_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = predictions_of(9, images=20, levels=20)
    whole = evaluate(predictions, 0.4, 2)
    monkeypatch.setattr(metrics, "_BLOCK", 50)
    monkeypatch.setattr(critical_module, "_BLOCK_CELLS", 50)
    monkeypatch.setattr(critical_module, "_BLOCK_PATCHES", 5)
    assert evaluate(predictions, 0.4, 2) == whole


def test_the_median_patch_decides_about_an_object(predictions_of: Any) -> None:
    predictions = predictions_of(10, images=9)
    objects, background = predictions.objects, predictions.background
    sizes = np.diff(objects.offsets)
    critical = critical_of_objects(background, objects)
    for threshold in np.unique(background):
        lost = 2 * kept_patches(background <= threshold, objects) < sizes
        assert np.array_equal(critical > threshold, lost[sizes > 0])


def test_a_zero_that_is_negative_is_zero(predictions_of: Any) -> None:
    predictions = predictions_of(11)
    negative = replace(predictions, background=np.full_like(predictions.background, -0.0))
    assert evaluate(negative, 0.0).lost_objects == 0
    assert evaluate(negative, 0.0).curve.lost_objects == [0.0] * 101


def test_helpers_of_training(predictions_of: Any) -> None:
    predictions = predictions_of(12)
    kept = predictions.background <= np.float32(0.5)
    figures = mask_figures(predictions, 0.5, 0)
    assert close(lost_share(kept, predictions.objects), figures["lost_objects"])
    counts = sum((confusion_of(*pair) for pair in zip(kept, predictions.labels, strict=True)), Confusion(0, 0, 0, 0))
    assert counts == confusion_of(kept, predictions.labels)
    assert close(counts.fg_iou, figures["fg_iou"])


@pytest.mark.parametrize(
    ("counts", "balanced"),
    [((3, 1, 1, 1), 0.625), ((3, 0, 1, 0), 0.75), ((0, 1, 0, 3), 0.75), ((0, 0, 0, 0), 0.0), ((0, 0, 2, 2), 0.5)],
)
def test_balanced_accuracy_where_a_label_is_missing(counts: tuple[int, int, int, int], balanced: float) -> None:
    assert Confusion(*counts).balanced_accuracy == balanced


def test_a_set_of_which_every_token_is_ignored(predictions_of: Any) -> None:
    with pytest.raises(TokenLabelsError, match="every token of these 6 images is ignored"):
        evaluate(predictions_of(0, ignored=1.0))


@pytest.mark.parametrize(("threshold", "steps"), [(-0.1, 0), (1.1, 0), (math.nan, 0), (0.5, -1)])
def test_parameters_out_of_range(threshold: float, steps: int, predictions_of: Any) -> None:
    with pytest.raises(ParameterError):
        evaluate(predictions_of(0), threshold, steps)
