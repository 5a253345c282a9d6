"""Cutting a split: exact counts, alike in foreground share, the same on every machine and for every grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pytest
from helpers import fine, one_error_line, shards, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import Result

import tokenlabels
from tokenlabels.errors import ParameterError
from tokenlabels.reader import Build
from tokenlabels.splitter import TEST, TRAIN, VAL, draw_parts

Invoke: TypeAlias = Callable[..., Result]

IMAGES = 40
QUANTILES = np.linspace(0.1, 0.9, 9)


def ids_of(count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([f"{k:05d}" for k in range(count)], pa.string())])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build of two grids and two splits; the foreground share of image k of `big` grows with 7 k mod 40."""
    root = tmp_path_factory.mktemp("split") / "annotations"
    root.mkdir()
    for name, count in (("big", IMAGES), ("small", 3)):
        images = [{"id": k, "file_name": f"{k}.jpg", "width": 400, "height": 300} for k in range(1, count + 1)]
        boxes = [[0, 0, 10 * (7 * k % 40), 300] for k in range(1, count + 1)]
        annotations = [
            {"id": k, "image_id": k, "category_id": 5, "bbox": box, "area": 9.5} for k, box in enumerate(boxes, 1)
        ]
        document = {"images": images, "annotations": annotations[:-1], "categories": [{"id": 5, "name": "it"}]}
        (root / f"instances_{name}.json").write_text(json.dumps(document))
    return tokenlabels.build(
        "coco", root=root.parent, out=root.parent / "out", patch=[16, 48], padding="ignore", shard_rows=15
    )


# --- the draw ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_image_is_in_one_part_and_parts_have_their_size(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 120))
    share = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=count, max_size=count)))
    val = data.draw(st.floats(0.01, 0.99))
    test = data.draw(st.none() | st.floats(0.01, 0.5))
    wanted = [round(val * count), 0 if test is None else round(test * count)]
    if not wanted[0] or (test is not None and not wanted[1]) or sum(wanted) >= count:
        with pytest.raises(ParameterError, match=rf" of {count} images "):
            draw_parts(ids_of(count), share, val, test, 0)
        return
    part = draw_parts(ids_of(count), share, val, test, data.draw(st.integers(0, 2**40)))
    assert [int((part == number).sum()) for number in (VAL, TEST)] == wanted
    assert set(np.unique(part)) <= {TRAIN, VAL, TEST}


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_each_stratum_gives_one(count: int, val: float, seed: int) -> None:
    """Of images sorted by share: val's i-th lies in the i-th of equal parts, so that no quantile can be far off."""
    size = round(val * count)
    if not 0 < size < count:
        return
    share = np.random.default_rng(seed).permutation(count) / count
    ranks = np.sort((share[draw_parts(ids_of(count), share, val, None, seed) == VAL] * count).round().astype(int))
    ends = [index * count // size for index in range(size + 1)]
    assert all(low <= rank < high for low, high, rank in zip(ends[:-1], ends[1:], ranks.tolist(), strict=True))


def distance(share: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
    return float(np.abs(np.quantile(share[chosen], QUANTILES) - np.quantile(share, QUANTILES)).mean())


def test_quantiles_are_closer_than_of_a_draw_that_does_not_look() -> None:
    random = np.random.default_rng(1)
    share = random.beta(0.6, 1.2, 500)
    ours = [distance(share, draw_parts(ids_of(500), share, 0.1, None, seed) == VAL) for seed in range(20)]
    blind = [distance(share, np.isin(np.arange(500), random.choice(500, 50, replace=False))) for _ in range(20)]
    assert np.mean(ours) < 0.25 * np.mean(blind)
    assert max(ours) < 0.03


def test_the_draw_is_the_same_everywhere() -> None:
    """These images and no others, whatever the machine and the versions of libraries."""
    share = np.arange(30) * 7 % 30 / 30
    drawn = {seed: np.flatnonzero(draw_parts(ids_of(30), share, 0.2, None, seed) == VAL).tolist() for seed in (0, 1)}
    assert drawn == {0: [9, 10, 12, 15, 17, 18], 1: [3, 7, 10, 21, 26, 27]}


def test_the_order_of_rows_does_not_matter() -> None:
    """Ties of the share are broken by id."""
    share = np.repeat([0.0, 0.5, 0.5, 1.0], 10)
    ids = ids_of(40)
    drawn = draw_parts(ids, share, 0.3, 0.2, 3)
    places = np.random.default_rng(0).permutation(40)
    again = draw_parts(pa.chunked_array([ids.combine_chunks().take(pa.array(places))]), share[places], 0.3, 0.2, 3)
    assert np.array_equal(drawn[places], again)
    assert not np.array_equal(drawn, draw_parts(ids, share, 0.3, 0.2, 4))


# --- the build --------------------------------------------------------------------------------------------------------


def test_rows_go_to_one_part_in_order_and_as_they_were(built: Build, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    words = ("split", built.folder, "--split", "big", "--val", 0.2, "--test", 0.1, "--seed", 5, "--out", out, "--json")
    answer = json.loads(fine(invoke(*words)).stdout)
    assert {name: counts["images"] for name, counts in answer["splits"].items()} == {"train": 28, "val": 8, "test": 4}
    assert sum(counts["annotations"] for counts in answer["splits"].values()) == IMAGES - 1
    fine(invoke("verify", out))
    cut = tokenlabels.open(out)
    picked = {}
    for grid in built.grids:
        before = {row["image_id"]: row for row in built.table(grid, "big").to_pylist()}
        order = list(before)
        after = {split: cut.table(grid, split).to_pylist() for split in cut.splits}
        picked[grid] = {split: [row["image_id"] for row in rows] for split, rows in after.items()}
        assert sorted(each for ids in picked[grid].values() for each in ids) == sorted(order)
        for rows in after.values():
            assert rows == [before[row["image_id"]] for row in rows]
            places = [order.index(row["image_id"]) for row in rows]
            assert places == sorted(places)
    assert picked["384x384-p16"] == picked["384x384-p48"]
    for split, counts in answer["splits"].items():
        rows = cut.table(split=split).to_pylist()
        assert counts["annotations"] == sum(len(row["objects"]["id"]) for row in rows)
        assert answer["totals"]["384x384-p16"][split]["foreground"] == sum(row["fg_count"] for row in rows)
    assert cut.manifest["parameters"]["cut"] | {"shards_sha256": ""} == {
        "split": "big",
        "val": 0.2,
        "test": 0.1,
        "seed": 5,
        "shards_sha256": "",
    }
    assert len(cut.files(split="train")) == 2
    whole, val = (each.table(split=name).column("fg_count").to_numpy() for each, name in ((built, "big"), (cut, "val")))
    assert abs(whole.mean() - val.mean()) < 0.1 * whole.mean()


def test_a_cut_keeps_the_licence_of_its_data_set(sample_root: Path, tmp_path: Path) -> None:
    built = tokenlabels.build("coco", root=sample_root, split=["train"], out=tmp_path / "out")
    cut = tokenlabels.split(built, tmp_path / "cut", val=0.3)
    licences = {
        line
        for build in (built, cut)
        for line in (build.folder / "README.md").read_text().splitlines()
        if line.startswith("license")
    }
    assert licences == {"license: cc0-1.0"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param((), ["several splits (big, small)", "--split"], id="several splits"),
        pytest.param(("--split", "other"), ["holds no split 'other'", "big, small"], id="unknown split"),
        pytest.param(("--split", "big", "--val", 0), ["--val 0 is no share"], id="val 0"),
        pytest.param(("--split", "big", "--val", 1), ["--val 1 is no share"], id="val 1"),
        pytest.param(("--split", "big", "--val", "nan"), ["--val nan is no share"], id="val nan"),
        pytest.param(("--split", "big", "--test", -0.5), ["--test -0.5 is no share"], id="test negative"),
        pytest.param(("--split", "small", "--val", 0.1), ["--val 0.1 of 3 images is none"], id="no val"),
        pytest.param(("--split", "small", "--val", 0.9), ["--val 0.9 of 3 images leave none"], id="no train"),
        pytest.param(("--split", "big", "--val", 0.5, "--test", 0.5), ["--test 0.5", "leave none"], id="no train left"),
    ],
)
def test_what_cannot_be_cut(
    words: tuple[Any, ...], says: list[str], built: Build, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke("split", built.folder, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    one_error_line(result.stderr, *says)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_that_looks_finished_and_the_rest_can_be_made(
    built: Build, tmp_path: Path, invoke: Invoke
) -> None:
    """All but the largest shard fit."""
    out = tmp_path / "out"
    whole = shards(tokenlabels.split(built, tmp_path / "whole", split="big", val=0.1).folder)
    with small_disk(max(map(len, whole.values())) - 1):
        result = invoke("split", built.folder, "--split", "big", "--out", out)
    assert result.exit_code == 1
    one_error_line(result.stderr, str(out), "cannot be written", "File too large")
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.tmp"))
    assert shards(tokenlabels.split(built, out, split="big").folder) == whole
