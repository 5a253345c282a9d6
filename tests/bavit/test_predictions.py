"""The patches of objects, against the counts that a build stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenlabels
from bavit.background import predictions as module
from bavit.background.predictions import Predictions, check_predictions, object_patches
from bavit.rows import Rows, read_rows
from tokenlabels.errors import ParameterError, TokenLabelsError

KINDS: dict[str, dict[str, Any]] = {
    "squash": {},
    "letterbox": {"resize": "letterbox", "image_size": "256x512", "padding": "ignore", "crowd": "ignore"},
    "masks, uneven patches": {"rule": "pixel-ratio", "patch": "32x16", "image_size": "192x384"},
}


@pytest.fixture(scope="module", params=KINDS)
def rows(request: pytest.FixtureRequest, sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    out = tmp_path_factory.mktemp("patches") / "out"
    build = tokenlabels.build("coco", root=sample_root, out=out, shard_rows=5, **KINDS[request.param])
    return read_rows(build, scores=False)


def test_every_object_has_as_many_patches_as_the_shard_says(rows: Rows) -> None:
    found = object_patches(rows)
    assert len(found.image) > 20
    assert np.array_equal(np.diff(found.offsets), rows.objects["patches"])
    assert np.array_equal(found.image, np.repeat(np.arange(len(rows)), np.diff(rows.offsets)))
    assert found.category is rows.objects["category"]


def test_the_patches_are_foreground_and_half_inside_the_box(rows: Rows) -> None:
    found = object_patches(rows)
    height, width = rows.labels.shape[1:]
    for k in range(len(found.image)):
        image, (x, y, w, h) = int(found.image[k]), rows.boxes[k].astype(float).tolist()
        y_edges, x_edges = rows.grid.edges(int(rows.widths[image]), int(rows.heights[image]))
        expected = []
        for row in range(height):
            for col in range(width):
                tall = min(y + h, rows.heights[image], y_edges[row + 1]) - max(y, 0, y_edges[row])
                wide = min(x + w, rows.widths[image], x_edges[col + 1]) - max(x, 0, x_edges[col])
                cell = (y_edges[row + 1] - y_edges[row]) * (x_edges[col + 1] - x_edges[col])
                half = max(tall, 0) * max(wide, 0) / cell >= 0.5 - 1e-12
                if half and rows.labels[image, row, col] == 1:
                    expected.append((image * height + row) * width + col)
        assert found.cells[found.offsets[k] : found.offsets[k + 1]].tolist() == expected


def test_blocks_make_no_difference(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = object_patches(rows)
    monkeypatch.setattr(module, "_BLOCK_CELLS", 3 * rows.labels[0].size)
    parts = object_patches(rows)
    assert np.array_equal(whole.cells, parts.cells)
    assert np.array_equal(whole.offsets, parts.offsets)


def test_sizes_are_those_of_coco(rows: Rows) -> None:
    names = ["small" if area < 32**2 else "medium" if area < 96**2 else "large" for area in rows.objects["area"]]
    assert [("small", "medium", "large")[size] for size in object_patches(rows).size] == names


def test_no_objects(rows: Rows) -> None:
    none = {name: values[:0] for name, values in rows.objects.items()}
    found = object_patches(replace(rows, offsets=np.zeros_like(rows.offsets), boxes=rows.boxes[:0], objects=none))
    assert (len(found.image), found.offsets.tolist(), len(found.cells)) == (0, [0], 0)


@pytest.mark.parametrize(
    ("background", "labels", "fault", "message"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 3)), ParameterError, "must have the same shape"),
        (np.zeros((3, 4)), np.zeros((3, 4)), ParameterError, "must have the same shape"),
        (np.zeros((0, 3, 4)), np.zeros((0, 3, 4)), TokenLabelsError, "no images"),
        (np.full((1, 3, 4), np.nan), np.zeros((1, 3, 4)), TokenLabelsError, "no number in 0..1"),
        (np.full((1, 3, 4), 1.5), np.zeros((1, 3, 4)), TokenLabelsError, "no number in 0..1"),
    ],
)
def test_predictions_that_nothing_can_be_measured_on(
    background: Any, labels: Any, fault: type[Exception], message: str, rows: Rows
) -> None:
    objects = object_patches(rows)
    with pytest.raises(fault, match=message):
        check_predictions(Predictions(background.astype(np.float32), labels.astype(np.uint8), objects, ()))
