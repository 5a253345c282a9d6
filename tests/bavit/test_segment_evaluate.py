"""Evaluations and sweeps of segmenters against the same model called by hand, and what becomes of a killed sweep."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_scenes import scenes, small_segmenter

from bavit.flops import count_macs
from bavit.machine import Machine
from bavit.pictures import PictureError
from bavit.segment import sweep as sweeping
from bavit.segment.evaluate import Wish, evaluate, measure
from bavit.segment.exits import DENSE, Exits, exits_of
from bavit.segment.figures import SegmentSweep
from bavit.segment.files import write_evaluation, write_samples, write_sweep
from bavit.segment.labelled import LabelledPictures, open_labelled
from bavit.segment.model import Segmenter, upsample
from bavit.segment.sweep import plan_rows, sweep
from bavit.segment.timing import time_segmenter
from bavit.segment.windows import View
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Silent

CPU = Machine("cpu", "32")
NAMES = ("runs/a", "made up")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes")).folder


@pytest.fixture(scope="module")
def model(shards: Path) -> Segmenter:
    return small_segmenter(shards)


@pytest.fixture(scope="module")
def data(shards: Path, model: Segmenter) -> LabelledPictures:
    return open_labelled(shards, model.classes, "a", note=lambda _: None)


def wish(model: Segmenter, **options: Any) -> Wish:
    given: dict[str, Any] = {"batch_size": 2, "time_windows": 0} | options
    return Wish(View(model.image_size, **{key: given.pop(key) for key in ("native", "whole") if key in given}), **given)


def by_hand(model: Segmenter, data: LabelledPictures, exits: Exits) -> dict[str, Any]:
    """Every picture in one window of its own size, pixel by pixel."""
    right: dict[int, int] = {}
    either: dict[int, int] = {}
    hits = pixels = 0
    macs, alive = [], []
    for index in range(len(data)):
        picture, mask = data.open(index)
        inputs = model.normalise(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
        with exits.set_on(model), torch.inference_mode():
            output = model(inputs)
            macs.append(count_macs(model, inputs))
        found = upsample(output.logits, mask.shape, model.patch)[0].argmax(0).tolist()
        alive.append((output.alive[0] / output.alive[0, 0]).tolist())
        for label, predicted in zip(mask.reshape(-1).tolist(), [one for row in found for one in row], strict=True):
            if label == 255:
                continue
            pixels += 1
            hits += label == predicted
            right[label] = right.get(label, 0) + (label == predicted)
            for number in {label, predicted}:
                either[number] = either.get(number, 0) + 1
    iou = {model.classes[number].name: right.get(number, 0) / count for number, count in either.items()}
    return {
        "miou": sum(iou.values()) / len(iou), "pixel_accuracy": hits / pixels, "macs": np.mean(macs), "iou": iou,
        "tokens_alive": np.mean(alive, axis=0).tolist(),
    }  # fmt: skip


class TestEvaluate:
    @pytest.mark.parametrize("head", ["fcn", "atm"])
    def test_figures_are_those_of_pixels_counted_one_by_one(
        self, head: str, shards: Path, data: LabelledPictures
    ) -> None:
        model = small_segmenter(shards, head)
        exits = exits_of(model, p0=0.3)
        found, _ = evaluate(model, data, exits, wish(model, native=True, whole=True), CPU, Silent(), dense=True)
        ours, dense = by_hand(model, data, exits), by_hand(model, data, DENSE)
        assert found.miou == pytest.approx(ours["miou"], abs=2e-3)
        assert found.pixel_accuracy == pytest.approx(ours["pixel_accuracy"], abs=2e-3)
        assert found.miou_dense == pytest.approx(dense["miou"], abs=2e-3)
        assert found.pixel_accuracy_dense == pytest.approx(dense["pixel_accuracy"], abs=2e-3)
        assert found.tokens_alive == pytest.approx(ours["tokens_alive"])
        assert found.tokens_alive[0] == 1 > found.tokens_alive[1] > found.tokens_alive[2] > 0
        assert sum(found.exit_shares) == pytest.approx(1)
        assert found.macs_dense == pytest.approx(dense["macs"])
        assert found.macs == pytest.approx(ours["macs"])
        assert found.macs_reduction == pytest.approx(1 - ours["macs"] / dense["macs"])
        for name, value in found.per_category.items():
            expected = ours["iou"].get(name)
            assert value is None if expected is None else value == pytest.approx(expected, abs=5e-3)
        assert (found.images, found.skipped, found.windows, found.speedup) == (5, 0, 1.0, None)

    def test_macs_of_an_image_are_those_of_all_its_windows(self, model: Segmenter, data: LabelledPictures) -> None:
        exits = exits_of(model, p0=0.4)
        found = measure(model, data, exits, wish(model), CPU, Silent())
        for index, image in enumerate(found.images):
            picture, _ = data.open(index)
            layout = View((40, 40)).lay(*picture.size)
            assert image.windows == len(layout)
            counted = 0
            for number in range(len(layout)):
                pixels = torch.from_numpy(layout.cut(picture, number)).permute(2, 0, 1)[None]
                with exits.set_on(model):
                    counted += count_macs(model, model.normalise(pixels))
            assert image.macs == pytest.approx(counted, rel=0.02)  # a token may be on the other side of p0 in a batch
            assert image.macs_dense % image.windows == 0
        assert {image.windows for image in found.images} > {1}

    def test_without_early_exit_it_is_the_unpruned_network(self, model: Segmenter, data: LabelledPictures) -> None:
        off = measure(model, data, exits_of(model, p0=1.0), wish(model), CPU, Silent())
        dense = measure(model, data, DENSE, wish(model), CPU, Silent())
        assert np.array_equal(off.counts, dense.counts)
        assert [image.macs for image in off.images] == [image.macs_dense for image in off.images]
        assert off.images[0].tokens_alive == [1.0, 1.0, 1.0]
        assert dense.images[0].tokens_alive == [1.0]

    def test_batches_and_threads_make_no_difference(self, model: Segmenter, data: LabelledPictures) -> None:
        one, other = (
            measure(model, data, DENSE, wish(model, batch_size=size, workers=workers), CPU, Silent())
            for size, workers in ((1, 0), (7, 3))
        )
        assert np.abs(one.counts - other.counts).sum() <= 0.002 * one.counts.sum()
        assert [image.file_name for image in one.images] == [image.file_name for image in other.images]

    def test_attributes_are_taken_back(self, model: Segmenter, data: LabelledPictures) -> None:
        before = model.rule, model.exit_after
        measure(model, data, DENSE, wish(model), CPU, Silent())
        assert (model.rule, model.exit_after) == before
        with pytest.raises(KeyError), DENSE.set_on(model):
            raise KeyError
        assert (model.rule, model.exit_after) == before

    def test_a_network_that_halves_its_grid_is_compared_with_one_that_does_not(
        self, shards: Path, data: LabelledPictures
    ) -> None:
        model = small_segmenter(shards, downsample="pool")
        halved = model.reduction
        found, _ = evaluate(model, data, exits_of(model), wish(model, time_windows=2, rounds=1), CPU, Silent())
        assert 0.1 < found.macs_reduction < 0.9
        assert found.speedup_ideal == pytest.approx(found.macs_dense / found.macs)
        assert model.reduction is halved is not None
        with pytest.raises(ParameterError, match="no early exit to sweep"):
            plan_rows(model)

    def test_one_that_cannot_be_read_is_left_out_and_counted(
        self, model: Segmenter, data: LabelledPictures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = data.pictures.open

        def opening(index: int) -> Image.Image:
            if index == 2:
                raise PictureError("2.png: cannot be read.")
            return real(index)

        whole = measure(model, data, DENSE, wish(model), CPU, Silent())
        monkeypatch.setattr(data.pictures, "open", opening)
        with pytest.raises(PictureError, match=r"2\.png.*--on-error skip"):
            measure(model, data, DENSE, wish(model), CPU, Silent())
        found, measured = evaluate(model, data, DENSE, wish(model, on_error="skip"), CPU, Silent())
        assert (found.images, found.skipped, measured.numbers) == (4, 1, [0, 1, 3, 4])
        assert measured.images == [each for number, each in enumerate(whole.images) if number != 2]

        def failing(_: int) -> Image.Image:
            raise PictureError("x: cannot be read.")

        monkeypatch.setattr(data.pictures, "open", failing)
        with pytest.raises(PictureError, match="none of its 5 pictures"):
            measure(model, data, DENSE, wish(model, on_error="skip"), CPU, Silent())

    def test_classes_that_the_model_lacks_are_refused(self, shards: Path, model: Segmenter) -> None:
        with pytest.raises(TokenLabelsError, match="runs/x"):
            open_labelled(shards, model.classes[:-1], "runs/x", note=lambda _: None)

    def test_a_limit_takes_the_first(self, shards: Path, model: Segmenter, data: LabelledPictures) -> None:
        found = open_labelled(shards, model.classes, "a", limit=2, note=lambda _: None)
        assert list(found.rows.image_ids) == list(data.rows.image_ids)[:2]


class TestTiming:
    def test_times_are_there_and_agree(self, model: Segmenter, data: LabelledPictures) -> None:
        exits = exits_of(model, p0=0.3)
        found, measured = evaluate(model, data, exits, wish(model, time_windows=5, rounds=2), CPU, Silent())
        assert (found.windows_timed, found.batch_size) == (5, 2)
        for value in (found.latency_ms, found.latency_dense_ms, found.throughput, found.throughput_dense):
            assert value is not None
            assert value > 0
        ratios = sorted(
            image.macs_dense / image.windows / macs
            for image, each in zip(measured.images, measured.macs, strict=True)
            for macs in each.tolist()
        )
        assert found.speedup_ideal is not None
        assert ratios[0] < found.speedup_ideal < ratios[-1]

    def test_both_networks_take_turns_on_whole_batches(self, model: Segmenter) -> None:
        seen: list[tuple[bool, int]] = []
        handle = model.register_forward_pre_hook(
            lambda module, inputs: seen.append((not module.exit_after, len(inputs[0])))
        )
        told: list[int] = []
        windows = [np.zeros((40, 40, 3), np.uint8)] * 5
        found = time_segmenter(model, exits_of(model), windows, 2, 1, CPU, told.append)
        handle.remove()
        assert seen[:4] == [(True, 1), (True, 2), (False, 1), (False, 2)], "once for nothing"
        timed = seen[4 : 4 + 14]
        assert [size for _, size in timed] == [1] * 10 + [2] * 4
        assert all({dense for dense, _ in timed[step : step + 2]} == {True, False} for step in range(0, 14, 2))
        assert sum(told) == 2 * (5 + 4)
        assert found.windows_timed == 5

    def test_the_unpruned_network_is_not_timed_against_itself(self, model: Segmenter) -> None:
        found = time_segmenter(model, DENSE, [np.zeros((40, 40, 3), np.uint8)] * 2, 2, 2, CPU, lambda _: None)
        assert (found.speedup, found.speedup_ideal) == (1, 1)
        assert found.throughput == found.throughput_dense


class TestExits:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"p0": 0.0}, "p0 0.0 is out of range"),
            ({"p0": 1.5}, "p0 1.5 is out of range"),
            ({"p0": float("nan")}, "p0 nan is out of range"),
            ({"exit_after": (3,)}, "has no head there, but after 1, 2"),
            ({"exit_after": (4,)}, "outside the network"),
            ({"exit_after": (2, 1)}, "do not ascend"),
            ({"keep_per_class": -1}, "-1 tokens"),
            ({"method": "all"}, "unknown method 'all'"),
            ({"proportion": 2.0}, "proportion of 2.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, model: Segmenter, words: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            exits_of(model, **words)

    def test_what_is_not_said_is_the_models(self, model: Segmenter) -> None:
        assert exits_of(model) == Exits(model.rule, (1, 2))
        assert exits_of(model, exit_after=(2,), p0=0.7) == Exits(replace(model.rule, p0=0.7), (2,))


class TestSweep:
    def test_rows_are_the_combinations_and_no_two_are_alike(self, model: Segmenter) -> None:
        rows = plan_rows(model, [0.4, 0.6, 1.0], [(1,), (1, 2)], [0, 2], ["top-k", "remove", "proportion"])
        assert rows[0] is DENSE
        rest = rows[1:]
        assert len(set(rest)) == len(rest)
        top = [each for each in rest if each.rule.method == "top-k" and each.rule.p0 < 1]
        assert {(each.rule.p0, each.exit_after, each.rule.keep_per_class) for each in top} == {
            (p0, places, k) for p0 in (0.4, 0.6) for places in ((1,), (1, 2)) for k in (0, 2)
        }
        assert sum(each.rule.method == "remove" for each in rest) == 4, "k makes no difference"
        assert sum(each.rule.method == "proportion" for each in rest) == 2, "nor does p0"
        assert not any(each.rule.p0 == 1 for each in rest), "the unpruned network is there already"
        assert [each.rule.p0 for each in plan_rows(model)[1:]] == [0.9, 0.95, 0.98]

    def test_rows_are_evaluations(self, model: Segmenter, data: LabelledPictures, tmp_path: Path) -> None:
        rows = plan_rows(model, [0.4, 0.6], [(1,), (1, 2)])
        asked = wish(model, time_windows=2, rounds=1)
        found = sweep(model, data, rows, asked, CPU, tmp_path, NAMES, Silent())
        assert [row.dense for row in found.rows] == [True] + [False] * 4
        for row, exits in zip(found.rows, rows, strict=True):
            alone, _ = evaluate(model, data, exits, wish(model), CPU, Silent())
            for name in ("miou", "pixel_accuracy", "macs", "macs_dense", "tokens_alive", "per_category", "p0"):
                assert getattr(row, name) == getattr(alone, name)
            assert row.speedup is not None
        assert (found.rows[0].macs_reduction, found.rows[0].speedup) == (0, 1)

    def test_a_killed_sweep_goes_on_where_it_was(
        self, model: Segmenter, data: LabelledPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[Exits] = []
        real = measure

        def counted(given: Segmenter, some: LabelledPictures, exits: Exits, *rest: Any) -> Any:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(exits)
            return real(given, some, exits, *rest)

        rows = plan_rows(model, [0.4, 0.5, 0.6])

        def run(asked: Wish) -> SegmentSweep:
            return sweep(model, data, rows, asked, CPU, tmp_path, NAMES, Silent())

        monkeypatch.setattr(sweeping, "measure", counted)
        with pytest.raises(KeyboardInterrupt):
            run(wish(model))
        assert calls == rows[:2]

        def recorded(given: Segmenter, some: LabelledPictures, exits: Exits, *rest: Any) -> Any:
            calls.append(exits)
            return real(given, some, exits, *rest)

        monkeypatch.setattr(sweeping, "measure", recorded)
        found = run(wish(model))
        assert calls == rows
        assert run(wish(model)) == found
        assert calls == rows, "all is kept"
        run(wish(model, whole=True))
        assert len(calls) == 2 * len(rows), "other inputs"
        run(wish(model, whole=True, workers=3))
        assert len(calls) == 2 * len(rows), "threads change nothing"
        monkeypatch.setattr(sweeping, "shard_digests", lambda _rows: ["other masks"])
        run(wish(model, whole=True))
        assert len(calls) == 3 * len(rows), "the build was made anew"
        assert [row.p0 for row in found.rows] == [1.0, 0.4, 0.5, 0.6]


class TestFiles:
    def test_an_evaluation(self, model: Segmenter, data: LabelledPictures, tmp_path: Path) -> None:
        exits, asked = exits_of(model, p0=0.4), wish(model)
        found, measured = evaluate(model, data, exits, asked, CPU, Silent())
        written = write_evaluation(found, measured, tmp_path)
        assert [path.name for path in written] == ["evaluation.json", "images.csv", "categories.png", "macs.png"]
        with (tmp_path / "images.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["file_name"] for row in rows] == [image.file_name for image in measured.images]
        assert np.mean([int(row["macs"]) for row in rows]) == pytest.approx(found.macs)
        assert [float(share) for share in rows[0]["tokens_alive"].split()] == measured.images[0].tokens_alive
        for name in ("categories.png", "macs.png"):
            with Image.open(tmp_path / name) as drawn:
                assert min(drawn.size) > 200
        drawn_to = write_samples(model, data, exits, asked, CPU, measured, 3, tmp_path / "samples", Silent())
        assert len(drawn_to) == len(list((tmp_path / "samples").iterdir())) == 3
        with Image.open(drawn_to[0]) as drawn:
            assert drawn.width > 4 * 300, "picture, labels, prediction, stages"

    def test_a_sweep(self, model: Segmenter, data: LabelledPictures, tmp_path: Path) -> None:
        rows = plan_rows(model, [0.4, 0.6], methods=["top-k", "proportion"])
        found = sweep(model, data, rows, wish(model), CPU, tmp_path, NAMES, Silent())
        assert (tmp_path / ".sweep").is_dir()
        written = write_sweep(found, tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted(written)
        with (tmp_path / "sweep.csv").open(newline="") as file:
            assert [float(row["miou"]) for row in csv.DictReader(file)] == [row.miou for row in found.rows]


class TestHalvedGrids:
    def test_nothing_is_said_of_early_exit(self, model: Segmenter, data: LabelledPictures) -> None:
        halved = Segmenter.from_config(replace(model.config, downsample="pool")).eval()
        exits = exits_of(halved)
        assert (exits.rule.p0, exits.exit_after) == (1.0, ())
        found, _ = evaluate(halved, data, exits, wish(halved), CPU, Silent())
        assert (found.downsample, found.p0, found.tokens_alive) == ("pool", 1.0, [1.0])
        assert found.macs < found.macs_dense

    @pytest.mark.parametrize("asked", [{"p0": 0.5}, {"keep_per_class": 1}, {"exit_after": (2,)}])
    def test_early_exit_cannot_be_asked_for(self, model: Segmenter, asked: dict[str, Any]) -> None:
        halved = Segmenter.from_config(replace(model.config, downsample="pool"))
        with pytest.raises(ParameterError, match="halves its grid"):
            exits_of(halved, **asked)


def test_early_exit_is_the_same_in_batches_of_any_size(model: Segmenter, data: LabelledPictures) -> None:
    exits = exits_of(model, p0=0.5, keep_per_class=0)
    found = [measure(model, data, exits, wish(model, batch_size=size), CPU, Silent()) for size in (1, 7)]
    assert found[0].images == found[1].images
    assert np.array_equal(found[0].counts, found[1].counts)
