"""The engine of a sweep against the same detectors called by hand, and what becomes of one that is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bavit.background.model import BAViT
from bavit.detect.accounting import token_reduction
from bavit.detect.config import YolosConfig
from bavit.detect.evaluate import evaluate_detections
from bavit.detect.ground_truth import DetectionSet, open_detection_set
from bavit.detect.loading import load_detector
from bavit.detect.masking import label_background
from bavit.detect.pruned import Detection, PrunedDetector
from bavit.detect.sweep import Plan, Swept, mask_maker, plan_sweep, sweep
from bavit.detect.sweep_files import write_sweep
from bavit.detect.sweep_rows import count_tokens
from bavit.detect.timing import Inputs, time_detectors
from bavit.detect.yolos import Yolos
from bavit.flops import count_macs
from bavit.machine import Machine
from bavit.memory import peak_memory_mb
from bavit.timing import Timing
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Silent

CPU = Machine("cpu", "32")
NAMES = {"bavit": "runs/a", "detector": "runs/b", "data": "sample val"}
PLAN = Plan((0.3, 0.6), batch_size=2, time_images=3, rounds=2)


@pytest.fixture(scope="module")
def bavit() -> BAViT:
    torch.manual_seed(0)
    model = BAViT(depth=1, width=64, image_size=96).eval()
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(100)  # so that probabilities lie on both sides of every threshold
    return model


@pytest.fixture(scope="module")
def data(sample_root: Path, bavit: BAViT) -> DetectionSet:
    return open_detection_set(sample_root, grid=bavit.grid, splits=["val"], scores=True)


@pytest.fixture(scope="module")
def yolos(data: DetectionSet) -> Yolos:
    torch.manual_seed(1)
    labels = tuple(category.name for category in data.categories)
    config = YolosConfig(
        dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, labels=labels,
        shortest_edge=64, longest_edge=112,
    )  # fmt: skip
    return Yolos(config).eval()


@pytest.fixture(scope="module")
def swept(
    bavit: BAViT, yolos: Yolos, data: DetectionSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Swept, Path]:
    out = tmp_path_factory.mktemp("sweep") / "out"
    return sweep(bavit, yolos, data, PLAN, CPU, out, NAMES, Silent()), out


def pictures(data: DetectionSet) -> list[Image.Image]:
    return [data.pictures.open(index) for index in range(len(data))]


def by_hand(detector: PrunedDetector, data: DetectionSet) -> list[Detection]:
    return [detector(picture)[0] for picture in pictures(data)]


class TestFigures:
    def test_rows_are_those_asked_for(self, swept: tuple[Swept, Path]) -> None:
        rows = swept[0].sweep.rows
        assert [(row.mask, row.threshold) for row in rows] == PLAN.settings
        assert PLAN.settings[0] == ("bavit", 0.3)
        assert len(rows) == 6

    def test_bavit_rows_are_the_pruned_detector(
        self, swept: tuple[Swept, Path], bavit: BAViT, yolos: Yolos, data: DetectionSet
    ) -> None:
        for number, row in enumerate(swept[0].sweep.of("bavit")):
            found = by_hand(PrunedDetector(bavit, yolos, row.threshold), data)
            kept = np.array([int(each.keep.sum()) for each in found])
            patches = np.array([each.keep.numel() for each in found])
            assert row.sparsity == pytest.approx(1 - kept.sum() / patches.sum()), number
            assert 0 < row.sparsity < 1
            assert row.kept_patches == pytest.approx(kept.mean())
            scores = evaluate_detections(data, found, yolos.config)
            assert row.ap == pytest.approx(scores.ap, abs=1e-3)
            assert row.ap50 == pytest.approx(scores.ap50, abs=1e-3)
            assert row.ap_dense == swept[0].sweep.dense.ap

    def test_boxes_are_those_of_each_image_alone(
        self, swept: tuple[Swept, Path], bavit: BAViT, yolos: Yolos, data: DetectionSet
    ) -> None:
        setting = PLAN.settings.index(("bavit", 0.6))
        parts = swept[0].parts
        dense, pruned = by_hand(PrunedDetector(None, yolos), data), by_hand(PrunedDetector(bavit, yolos, 0.6), data)
        for number, found in ((0, dense), (1 + setting, pruned)):
            for ours, theirs in zip(parts.detections(number), found, strict=True):
                torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-2, rtol=1e-4)

    def test_macs_are_those_that_are_counted(
        self, swept: tuple[Swept, Path], bavit: BAViT, yolos: Yolos, data: DetectionSet
    ) -> None:
        detector = PrunedDetector(bavit, yolos, 0.6)
        row = next(row for row in swept[0].sweep.of("bavit") if row.threshold == 0.6)
        counted, dense = [], []
        for picture, found in zip(pictures(data), by_hand(detector, data), strict=True):
            pixels = yolos.preprocess([picture])
            counted.append(count_macs(yolos, pixels, found.keep[None]) + count_macs(bavit, bavit.preprocess([picture])))
            dense.append(count_macs(yolos, pixels))
        assert row.macs == pytest.approx(np.mean(counted))
        assert row.macs_dense == pytest.approx(np.mean(dense)) == pytest.approx(swept[0].sweep.dense.macs)
        timed = swept[0].parts.spread(PLAN.time_images)
        assert len(timed) == len(set(timed)) == min(PLAN.time_images, len(data))
        ideal = np.mean(np.array(dense)[timed]) / np.mean(np.array(counted)[timed])
        assert row.speedup_ideal == pytest.approx(ideal)

    def test_tokens_are_the_papers_where_images_have_one_size(self, bavit: BAViT, yolos: Yolos) -> None:
        kept, patches = np.array([10, 30, 20]), np.array([40, 40, 40])
        found = count_tokens(bavit, yolos.config, kept, patches)
        paper = token_reduction(0.5, patches=40, depth=2, bavit_patches=36, bavit_depth=1)
        assert found["tokens_pruned"] == paper.tokens_pruned
        assert found["tokens_total"] == paper.tokens_total
        assert found["reduction"] == pytest.approx(paper.reduction)
        later = count_tokens(bavit, yolos.config, kept, patches, prune_after=1)
        assert later["tokens_pruned"] == 40 + 20

    def test_times_and_memory_are_there_and_agree(self, swept: tuple[Swept, Path]) -> None:
        for row in swept[0].sweep.rows:
            assert 0 < row.latency_detector_ms < row.latency_ms <= row.latency_p95_ms
            assert 0 < row.throughput < row.throughput_detector
            assert row.speedup_latency == pytest.approx(row.latency_dense_ms / row.latency_ms)
            assert row.speedup > 0
            assert row.peak_memory_mb is None or row.peak_memory_mb >= 0
        setting = swept[0].sweep.setting
        assert (setting.images, setting.images_timed, setting.batch_size) == (3, 3, 2)


class TestTiming:
    def test_figures_are_medians_over_images_or_rounds(self) -> None:
        one = Timing([0.1, 0.3, 0.2], [2.0, 1.0, 4.0], 8)
        other = Timing([0.1] * 3, [4.0, 4.0, 4.0], 8)
        assert one.latency_ms == 200
        assert one.latency_p95_ms == pytest.approx(290)
        assert one.throughput == 4
        assert one.speedup_over(other) == 2, "of 2, 4 and 1"

    def test_detectors_take_turns_at_every_batch(self, yolos: Yolos) -> None:
        order: list[tuple[int, int]] = []

        class Recorded(PrunedDetector):
            def __init__(self, number: int) -> None:
                super().__init__(None, yolos)
                self.number = number

            def detect(self, small: Any, pixels: Any, sizes: Any, times: Any = None) -> list[Detection]:
                order.append((self.number, len(sizes)))
                return []

        pixels = [torch.zeros(3, 64, 64)] * 4 + [torch.zeros(3, 64, 80)]
        inputs = Inputs(torch.zeros(5, 3, 96, 96), pixels, [(64, 64)] * 5)
        told: list[int] = []
        found = time_detectors([Recorded(0), Recorded(1)], inputs, 2, 2, CPU.autocast, told.append)
        assert order[:4] == [(0, 1), (0, 2), (1, 1), (1, 2)], "once for nothing"
        rest = order[4:]
        assert [size for _, size in rest] == 2 * ([1] * 10 + [2] * 4), "whole batches only"
        for first in range(0, len(rest), 2):
            assert {number for number, _ in rest[first : first + 2]} == {0, 1}
        assert {rest[first][0] for first in range(0, len(rest), 2)} == {0, 1}, "neither is always the first"
        assert sum(told) == 2 * 2 * (5 + 4)
        assert [len(each.alone) for pair in found for each in pair] == [10] * 4
        assert [(len(each.batches), each.images) for pair in found for each in pair] == [(2, 4)] * 4


class TestMasks:
    def test_random_ones_keep_as_many_and_the_smaller_is_part_of_the_larger(
        self, swept: tuple[Swept, Path], bavit: BAViT, data: DetectionSet
    ) -> None:
        parts = swept[0].parts
        kept = dict(zip(PLAN.settings, parts.kept, strict=True))
        for threshold in PLAN.thresholds:
            assert np.array_equal(kept["random", threshold], kept["bavit", threshold])
        maker = mask_maker(bavit, data, PLAN, parts.background, parts.shapes, range(len(data)))
        fewer, more = maker.masks("random", 0.3), maker.masks("random", 0.6)
        assert not any((one & ~other).any() for one, other in zip(fewer, more, strict=True))
        other = mask_maker(bavit, data, replace(PLAN, seed=1), parts.background, parts.shapes, range(len(data))).masks(
            "random", 0.3
        )
        assert any(not torch.equal(one, two) for one, two in zip(fewer, other, strict=True))

    def test_random_ones_do_not_depend_on_the_batch(
        self, swept: tuple[Swept, Path], bavit: BAViT, data: DetectionSet
    ) -> None:
        parts = swept[0].parts
        whole = mask_maker(bavit, data, PLAN, parts.background, parts.shapes, range(len(data))).masks("random", 0.3)
        alone = mask_maker(bavit, data, PLAN, parts.background[2:], parts.shapes[2:], range(2, len(data))).masks(
            "random", 0.3
        )
        assert torch.equal(whole[2], alone[0])

    def test_those_of_the_labels_are_the_labels_at_the_threshold_of_the_rule(
        self, bavit: BAViT, data: DetectionSet
    ) -> None:
        labels, scores = data.rows.labels, data.rows.scores
        assert scores is not None
        plan = replace(PLAN, refine_steps=0)
        shapes = np.tile(np.array(bavit.shape, np.int32), (len(data), 1))
        maker = mask_maker(bavit, data, plan, np.zeros_like(scores), shapes, range(len(data)))
        assert np.array_equal(np.stack([mask.numpy() for mask in maker.masks("labels", 0.5)]), labels == 1)
        strict = np.stack([mask.numpy() for mask in maker.masks("labels", 0.0)])
        assert np.array_equal(strict, scores >= 1)
        plain = label_background(labels, None)
        assert np.array_equal(plain <= 0, labels == 1)
        assert np.array_equal(plain <= 0.99, labels == 1)


class TestResuming:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """One entry for every call of a detector."""
        counted: list[int] = []
        forward = Yolos.forward

        def counting(self: Yolos, *args: Any, **options: Any) -> Any:
            counted.append(1)
            return forward(self, *args, **options)

        monkeypatch.setattr(Yolos, "forward", counting)
        return counted

    @pytest.mark.slow
    def test_a_killed_sweep_goes_on_and_another_begins_anew(
        self, bavit: BAViT, yolos: Yolos, data: DetectionSet, tmp_path: Path, calls: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        plan = Plan((0.5,), ("bavit",), batch_size=1, time_images=1, rounds=1)
        monkeypatch.setattr("bavit.detect.sweep.PART_IMAGES", 1)

        class Stop(Silent):
            def __init__(self, after: int) -> None:
                self.left = after

            def advance(self, steps: int) -> None:
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

        def run(progress: Silent, plan: Plan = plan) -> Swept:
            return sweep(bavit, yolos, data, plan, CPU, tmp_path, NAMES, progress)

        with pytest.raises(KeyboardInterrupt):
            run(Stop(4))  # two calls for each of three images: in the second
        assert len(calls) == 4
        calls.clear()
        first = run(Silent())
        whole = len(calls)
        calls.clear()
        second = run(Silent())
        assert not calls
        assert second.sweep == first.sweep
        (tmp_path / ".sweep" / "part-0.npz").write_bytes(b"cut")
        run(Silent())
        assert len(calls) == 2, "what is damaged is done again"
        calls.clear()
        run(Silent(), replace(plan, refine_steps=0))
        assert len(calls) == whole + 2, "other inputs: the first image, too"

    def test_files_are_written_and_nothing_else_is_left(
        self, swept: tuple[Swept, Path], bavit: BAViT, yolos: Yolos
    ) -> None:
        result, out = swept
        assert (out / ".sweep").is_dir()
        written = write_sweep(result, bavit, yolos, PLAN, out, 2, 0.0)
        assert sorted(out.iterdir()) == sorted([*written, out / "samples"])
        assert (out / "sweep.html").read_text().count("data:image/jpeg") == 2 * 3


class TestPlans:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"thresholds": "0.5,1.5"}, "threshold 1.5 is out of range"),
            ({"thresholds": "-0.1"}, "threshold -0.1 is out of range"),
            ({"thresholds": "nan"}, "threshold nan is out of range"),
            ({"thresholds": "0.5,a"}, "write numbers in 0..1"),
            ({"thresholds": ","}, "nothing to sweep"),
            ({"masks": ""}, "nothing to sweep"),
            ({"masks": "bavit,truth"}, "no masks 'truth'"),
            ({"rounds": 0}, "at least 1"),
        ],
    )
    def test_what_cannot_be_swept_is_refused(self, bavit: BAViT, words: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {"thresholds": "0.5", "masks": "bavit"} | words
        with pytest.raises(ParameterError, match=message):
            plan_sweep(bavit, given.pop("thresholds"), given.pop("masks"), **given)

    def test_by_default_the_models_own_threshold_is_swept_too(self, bavit: BAViT) -> None:
        model = BAViT(depth=1, width=64, image_size=96, threshold=0.31)
        assert 0.31 in plan_sweep(model, None, "bavit").thresholds
        assert plan_sweep(model, "0.5, 0.5", "random,bavit").settings == [("random", 0.5), ("bavit", 0.5)]

    def test_labels_on_another_grid_are_refused(self, yolos: Yolos, data: DetectionSet, tmp_path: Path) -> None:
        other = BAViT(depth=1, width=64, image_size=64)
        with pytest.raises(ParameterError, match=r"build labels on that grid"):
            sweep(other, yolos, data, PLAN, CPU, tmp_path, NAMES, Silent())


class TestLoading:
    def test_random_detectors_are_always_the_same(self) -> None:
        one, other = load_detector("random:tiny"), load_detector("random:tiny", ["cat", "dog"])
        assert torch.equal(one.backbone.cls_token, other.backbone.cls_token)
        assert other.config.classes == 3
        assert one.config.labels[1] == "person"

    def test_what_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"random:huge: there is no such size: use random:tiny"):
            load_detector("random:huge")
        with pytest.raises(TokenLabelsError, match=r"no such file or folder"):
            load_detector(str(tmp_path / "nothing"))


def test_the_peak_of_what_is_allocated_is_seen() -> None:
    def work(megabytes: int) -> Callable[[], object]:
        return lambda: torch.ones(megabytes, 1_000_000, dtype=torch.uint8).max()

    small, large = (peak_memory_mb(work(size), torch.device("cpu")) for size in (5, 60))
    if small is None or large is None:
        pytest.skip("cannot be measured here")
    assert large - small == pytest.approx(55, abs=15)
