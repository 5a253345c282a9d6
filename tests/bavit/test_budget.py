"""Budgets of a pruned detector, against trying every threshold with `Pruning.masks`, and the detector by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bavit.background.critical import critical_probabilities
from bavit.background.model import BAViT
from bavit.background.targets import parse_macs
from bavit.detect.accounting import detector_macs
from bavit.detect.budget import Cost, Limit, MacsCost, Patches, choose_within, tokens_cost, told
from bavit.detect.calibrate import calibrate_detector
from bavit.detect.calibration_plan import Plan, plan_of
from bavit.detect.config import YolosConfig
from bavit.detect.ground_truth import DetectionSet, open_detection_set
from bavit.detect.latency import LatencyModel, Measure
from bavit.detect.latency_choice import TOLERANCE
from bavit.detect.pruned import PrunedDetector
from bavit.detect.pruning import Pruning, carry
from bavit.detect.timing import Inputs, WithMasks
from bavit.detect.yolos import Yolos
from bavit.machine import Machine, threads
from bavit.pictures import PictureError
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.grid import PatchGrid
from tokenlabels.progress import Progress, Silent

CPU = Machine("cpu", "32")
NAMES = {"bavit": "runs/a", "detector": "runs/b", "source": "sample train"}
CONFIG = YolosConfig(
    dim=32, depth=2, heads=2, mlp_hidden=64, image_size=(64, 96), detection_tokens=6, shortest_edge=64,
    longest_edge=112,
)  # fmt: skip
GRID = PatchGrid.parse(16, 96)
SHAPES = [(4, 4), (4, 6), (5, 4), (4, 4), (4, 7), (6, 4), (4, 4)]
SIZES = [(16 * cols, 16 * rows) for rows, cols in SHAPES]
QUICK: dict[str, Any] = {"resamples": 20, "batch_size": 4, "time_images": 4, "rounds": 3}


def background(seed: int, levels: int | None = None) -> torch.Tensor:
    """Probabilities of seven images; with few levels there are many ties."""
    rng = np.random.default_rng(seed)
    values = rng.random((len(SHAPES), 6, 6)) ** rng.uniform(0.3, 4, (len(SHAPES), 1, 1))
    return torch.from_numpy((values if levels is None else np.ceil(values * levels) / levels).astype(np.float32))


def patches_of(values: torch.Tensor, steps: int) -> Patches:
    critical = torch.from_numpy(critical_probabilities(values.numpy(), steps))
    carried = [image.numpy().reshape(-1) for image in carry(critical, GRID, SIZES, SHAPES)]
    whole = np.full((len(carried), 28), np.inf, np.float32)
    for row, image in zip(whole, carried, strict=True):
        row[: len(image)] = image
    return Patches(whole, SHAPES, None, largest=4 * 7)


def masks(values: torch.Tensor, pruning: Pruning) -> list[torch.Tensor]:
    return pruning.masks(values, GRID, SIZES, SHAPES, 0.5)


def kept(values: torch.Tensor, pruning: Pruning) -> NDArray[np.int64]:
    return np.array([int(mask.sum()) for mask in masks(values, pruning)])


def limit_of(cost: Cost, patches: Patches, value: float, headroom: float) -> Limit:
    name: Any = "macs" if isinstance(cost, MacsCost) else "tokens" if cost is tokens_cost else "latency-ms"
    counts = patches.counts
    dense = detector_macs(CONFIG, counts, counts) if name == "macs" else cost(counts, counts)
    later = getattr(cost, "prune_after", 0)
    return Limit(name, value, headroom, cost, dense.astype(np.float64), all_grids=not later)


def reachable(cost: Cost, patches: Patches, headroom: float, share: float) -> Limit:
    """A budget between the smallest that can be had and the one that the detector alone meets."""
    counts = patches.counts
    single = cost(np.ones(7, np.int64), counts)
    low = max(float(single.mean()), float(single.max()) / headroom)
    dense = limit_of(cost, patches, 1.0, headroom).dense
    high = max(float(dense.mean()), float(dense.max()) / headroom)
    return limit_of(cost, patches, low + share * (high - low), headroom)


COSTS: list[Cost] = [
    tokens_cost, MacsCost(CONFIG, 1_000), MacsCost(CONFIG, 1_000, prune_after=1), LatencyModel(5, 0.3, 0.01, 2),
]  # fmt: skip
IDS = ["tokens", "macs", "macs after a block", "latency"]
PRUNINGS: list[dict[str, Any]] = [
    {"threshold": 0.4}, {"threshold": 0.4, "max_tokens": 9}, {"top_k": 7}, {"sparsity": 0.35}, {"top_k": 22},
    {"sparsity": 0.9, "max_tokens": 1}, {"threshold": 1.0, "max_tokens": 0},
]  # fmt: skip


class TestPatches:
    @pytest.mark.parametrize("levels", [None, 5])
    @pytest.mark.parametrize("options", PRUNINGS, ids=str)
    def test_counts_and_masks_are_those_of_the_detector(self, options: dict[str, Any], levels: int | None) -> None:
        values = background(1, levels)
        pruning = Pruning(**options, refine_steps=2)
        patches = patches_of(values, 2)
        counts = patches.kept(pruning)
        assert counts.tolist() == kept(values, pruning).tolist()
        for image, (count, mask) in enumerate(zip(counts.tolist(), masks(values, pruning), strict=True)):
            assert np.array_equal(patches.mask(image, count), mask.numpy())

    def test_foreground_that_is_kept(self) -> None:
        values, pruning = background(2), Pruning(threshold=0.3, max_tokens=8, refine_steps=1)
        rng = np.random.default_rng(0)
        labels = np.where(np.isfinite(patches_of(values, 1).critical), rng.choice([0, 1, 255], (7, 28)), 0)
        patches = replace(patches_of(values, 1), labels=labels.astype(np.uint8))
        held = sum(
            int((mask.reshape(-1).numpy() & (row[: mask.numel()] == 1)).sum())
            for mask, row in zip(masks(values, pruning), labels, strict=True)
        )
        assert patches.fg_recall(patches.kept(pruning)) == pytest.approx(held / (labels == 1).sum())
        assert replace(patches, labels=np.zeros((7, 28), np.uint8)).fg_recall(patches.counts) is None


class TestChoice:
    @pytest.mark.parametrize("cost", COSTS, ids=IDS)
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
    @pytest.mark.parametrize(("headroom", "levels"), [(1.0, None), (1.25, 6), (4.0, None)])
    def test_threshold_and_cap_are_found_by_trying_every_one(
        self, cost: Cost, share: float, headroom: float, levels: int | None
    ) -> None:
        values = background(3, levels)
        patches = patches_of(values, 2)
        counts = patches.counts
        limit = reachable(cost, patches, headroom, share)
        grids = {*counts.tolist()} | ({28} if limit.all_grids else set())
        fine = [
            k for k in range(29)
            if all(cost(np.array(min(k, count)), np.array(count)) <= headroom * limit.value for count in grids)
        ]  # fmt: skip
        found = choose_within(limit, patches, fixed=False, confidence=0.9, resamples=10, seed=0)
        assert found.max_tokens == (None if max(fine) >= max(grids) else max(fine))
        stops = sorted({0.0, *values.flatten().tolist()})
        made = {stop: kept(values, Pruning(threshold=stop, max_tokens=max(fine), refine_steps=2)) for stop in stops}
        within = [stop for stop in stops if cost(made[stop], counts).mean() <= limit.value]
        assert found.threshold is not None
        best = kept(values, found.pruning(2, 0))
        assert best.tolist() == made[max(within)].tolist()
        assert cost(best, counts).mean() <= limit.value
        assert cost(best, counts).max() <= headroom * limit.value
        more = [stop for stop in stops if stop > found.threshold and made[stop].sum() > best.sum()]
        assert all(cost(made[stop], counts).mean() > limit.value for stop in more)

    @pytest.mark.parametrize("cost", COSTS, ids=IDS)
    @pytest.mark.parametrize("headroom", [1.0, 2.0])
    def test_a_fixed_number_is_found_by_trying_every_one(self, cost: Cost, headroom: float) -> None:
        values = background(4)
        patches = patches_of(values, 1)
        counts = patches.counts
        limit = reachable(cost, patches, headroom, 0.4)
        found = choose_within(limit, patches, fixed=True, confidence=0.9, resamples=10, seed=0)
        tried = {k: cost(kept(values, Pruning(top_k=k, refine_steps=1)), counts) for k in range(29)}
        fine = [k for k, each in tried.items() if each.mean() <= limit.value and each.max() <= headroom * limit.value]
        assert found.top_k == max(fine)
        assert found.threshold is None

    @given(
        value=st.integers(1, 2000),
        headroom=st.decimals(1, 3, places=2),
        numbers=st.lists(st.integers(1, 40), min_size=1),
    )
    @settings(max_examples=50, deadline=None)
    def test_a_cap_is_the_largest_that_is_within(self, value: int, headroom: Any, numbers: list[int]) -> None:
        patches = Patches(np.zeros((len(numbers), 40), np.float32), [(1, count) for count in numbers], None, 60)

        def cost(kept: NDArray[np.int64], patches: NDArray[np.int64]) -> NDArray[np.float64]:
            return (kept**2 + 3 * patches).astype(np.float64)

        limit = Limit("tokens", value, float(headroom), cost, np.zeros(1), all_grids=False)
        cap = limit.cap(patches)
        most = value * headroom  # exact, a decimal
        allowed = [k for k in range(1, 41) if all(min(k, n) ** 2 + 3 * n <= most for n in numbers)]
        assert cap == (None if 40 in allowed else max(allowed, default=0))

    @pytest.mark.parametrize("fixed", [False, True])
    @pytest.mark.parametrize("cost", COSTS, ids=IDS)
    @pytest.mark.parametrize("headroom", [1.0, 1.7])
    def test_what_is_out_of_reach_names_what_is_not(self, cost: Cost, headroom: float, fixed: bool) -> None:
        patches = patches_of(background(5, 20), 0)
        limit = limit_of(cost, patches, 0.01, headroom)
        options: dict[str, Any] = {"fixed": fixed, "confidence": 0.9, "resamples": 5, "seed": 0}
        with pytest.raises(TokenLabelsError, match=r"out of reach: .*; ask for \S+ or more\.") as caught:
            choose_within(limit, patches, **options)
        offered = parse_macs(re.findall(r"ask for (\S+) or more", str(caught.value))[0])
        found = choose_within(replace(limit, value=offered), patches, **options)
        assert found.max_tokens is None or found.max_tokens > 0
        with pytest.raises(TokenLabelsError, match="out of reach"):
            choose_within(replace(limit, value=offered * (0.5 if limit.name == "tokens" else 0.9)), patches, **options)

    def test_where_nothing_is_cheaper_than_the_detector_alone(self) -> None:
        limit = limit_of(MacsCost(CONFIG, 2_000_000), patches_of(background(6), 0), 1_500_000, 1.5)
        limit = replace(limit, value=limit.dense.mean() * 0.9)
        with pytest.raises(TokenLabelsError, match=r"the dense detector alone costs 1\.\d+M MACs an image: use that"):
            choose_within(limit, patches_of(background(6), 0), fixed=False, confidence=0.9, resamples=5, seed=0)

    def test_where_the_detector_alone_will_do(self) -> None:
        patches = patches_of(background(6), 0)
        limit = limit_of(tokens_cost, patches, 22, 2.0)
        with pytest.raises(TokenLabelsError, match="the dense detector costs 21 patch tokens an image, so nothing"):
            choose_within(limit, patches, fixed=False, confidence=0.9, resamples=5, seed=0)
        tight = choose_within(replace(limit, headroom=1.0), patches, fixed=False, confidence=0.9, resamples=5, seed=0)
        assert tight.max_tokens == 22, "the mean is fine, the largest images are not"

    @given(value=st.floats(0.02, 1e13))
    def test_costs_are_told_rounded_up(self, value: float) -> None:
        for name, unit in (("macs", value / 1000 + 1000), ("latency-ms", 0.011), ("tokens", 1)):
            again = parse_macs(told(name, value))  # type: ignore[arg-type]
            assert value * (1 - 1e-12) <= again <= value + unit


class TestLatencyModel:
    @pytest.mark.parametrize("after", [0, 1])
    def test_it_is_found_again(self, after: int) -> None:
        truth = LatencyModel(7.0, 0.02, 0.0003, 3, after)
        amounts, counts = np.array([0, 10, 30, 60, 60, 5]), np.array([60, 60, 60, 60, 80, 80])
        found = LatencyModel.fit(amounts, counts, truth(amounts, counts), 3, after)
        assert found(np.arange(60), np.array(70)) == pytest.approx(truth(np.arange(60), np.array(70)))
        blocks = np.array([60] * after + [10] * (3 - after), np.float64)
        by_hand = 7 + 0.02 * blocks.sum() + 0.0003 * (blocks**2).sum()
        assert truth(np.array([10]), np.array([60])) == pytest.approx([by_hand])
        assert truth.scaled(2)(amounts, counts) == pytest.approx(2 * truth(amounts, counts))

    @given(times=st.lists(st.floats(0.1, 100), min_size=5, max_size=5))
    @settings(max_examples=40, deadline=None)
    def test_whatever_is_measured_it_never_falls(self, times: list[float]) -> None:
        amounts = np.array([0, 16, 32, 48, 64])
        found = LatencyModel.fit(amounts, np.full(5, 64), np.array(times), 4)
        assert (np.diff(found(np.arange(65), np.array(64))) >= 0).all()
        assert (found(np.arange(65), np.array(64)) >= 0).all()


@pytest.fixture(scope="module")
def bavit() -> BAViT:
    torch.manual_seed(0)
    model = BAViT(depth=1, width=8, image_size=96).eval()
    with torch.no_grad():
        model.vit.get_classifier().weight.mul_(100)  # so that probabilities spread
    return model


@pytest.fixture(scope="module")
def data(sample_root: Path, bavit: BAViT) -> DetectionSet:
    return open_detection_set(sample_root, grid=bavit.grid, splits=["train"], limit=9)


@pytest.fixture(scope="module")
def yolos(data: DetectionSet) -> Yolos:
    torch.manual_seed(1)
    return Yolos(replace(CONFIG, labels=tuple(category.name for category in data.categories))).eval()


def by_hand(detector: PrunedDetector, data: DetectionSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Patches kept of each picture, and patches there are."""
    found = [detector(data.pictures.open(index))[0].keep for index in range(len(data))]
    return np.array([int(mask.sum()) for mask in found]), np.array([mask.numel() for mask in found])


class TestDetector:
    @pytest.mark.parametrize(
        ("target", "value", "options"),
        [
            ("tokens", 12, {}),
            ("tokens", 12, {"headroom": 1.0, "refine_steps": 0}),
            ("tokens", 9, {"fixed": True}),
            ("macs", 900_000, {"headroom": 1.1}),
            ("macs", 900_000, {"fixed": True}),
            ("sparsity", 0.4, {"prune_after": 1}),
            ("sparsity", 0.4, {"fixed": True}),
            ("fg-recall", 0.8, {}),
        ],
        ids=str,
    )
    def test_it_keeps_what_its_record_says(
        self, bavit: BAViT, yolos: Yolos, data: DetectionSet, tmp_path: Path,
        target: Any, value: float, options: dict[str, Any],
    ) -> None:  # fmt: skip
        plan = Plan(target, value, **QUICK, **options)
        made, found = calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Silent())
        made.save_pretrained(tmp_path)
        detector = PrunedDetector.from_pretrained(tmp_path)
        assert detector.pruning == made.pruning
        assert detector.budget == msgspec.to_builtins(found)
        amounts, counts = by_hand(detector, data)
        macs = bavit.macs + detector_macs(yolos.config, amounts, counts, prune_after=plan.prune_after)
        assert found.tokens == pytest.approx(amounts.mean())
        assert found.macs == pytest.approx(macs.mean())
        assert (found.tokens_max, found.macs_max) == (int(amounts.max()), int(macs.max()))
        assert found.sparsity == pytest.approx(1 - amounts.sum() / counts.sum())
        assert found.tokens_dense == pytest.approx(counts.mean())
        assert found.macs_dense == pytest.approx(detector_macs(yolos.config, counts, counts).mean())
        assert found.images == len(data) == 9
        assert found.achieved_low <= found.achieved <= found.achieved_high
        if target in ("macs", "tokens"):
            figures = {"macs": macs, "tokens": amounts}[target]
            assert found.achieved == pytest.approx(figures.mean())
            assert figures.mean() <= value
            assert found.achieved_max == figures.max() <= plan.headroom * value
            assert found.achieved > 0.8 * value, "no more is removed than must be"
        elif target == "sparsity":
            assert found.achieved == pytest.approx(found.sparsity)
            assert found.achieved == pytest.approx(0.4, abs=0.06)
        else:
            assert found.fg_recall == pytest.approx(found.achieved)
            assert 0.8 <= found.achieved < 0.9
        if plan.fixed:
            assert len(set(amounts[counts == counts.max()])) == 1
            assert found.threshold is found.threshold_low is None

    @pytest.mark.parametrize("resize", ["squash", "letterbox"])
    def test_the_cap_takes_patches_from_the_share_that_is_told(
        self, yolos: Yolos, data: DetectionSet, resize: str
    ) -> None:
        torch.manual_seed(3)
        bavit = BAViT(depth=1, width=64, image_size=96, resize=resize).eval()
        torch.nn.init.normal_(bavit.vit.get_parameter("head.weight"), std=2.0)
        plan = Plan("tokens", 10, headroom=1.1, **QUICK)
        detector, found = calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Silent())
        assert found.max_tokens == 11
        free = PrunedDetector(bavit, yolos, found.threshold, refine_steps=3)
        amounts, uncapped = by_hand(detector, data)[0], by_hand(free, data)[0]
        assert np.array_equal(amounts, np.minimum(uncapped, 11))
        assert found.capped == pytest.approx((uncapped > 11).mean())
        assert found.capped > 0
        assert (found.fg_recall is None) == (resize == "letterbox"), "labels are on the squashed grid"

    def test_pictures_that_cannot_be_read(
        self, bavit: BAViT, yolos: Yolos, data: DetectionSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = data.pictures.open

        def fail(index: int) -> Any:
            if index == 2:
                raise PictureError("picture 2: is damaged.")
            return opened(index)

        monkeypatch.setattr(data.pictures, "open", fail)
        plan = Plan("tokens", 12, **QUICK)
        with pytest.raises(PictureError, match="picture 2"):
            calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Silent())
        notes: list[str] = []

        class Telling(Silent):
            def note(self, text: str) -> None:
                notes.append(text)

        found = calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Telling(), skip=True)[1]
        monkeypatch.undo()
        rest = data.keep(np.arange(9) != 2)
        without = calibrate_detector(bavit, yolos, rest, plan, CPU, NAMES, Silent())[1]
        assert found == msgspec.structs.replace(without, skipped=1)
        assert notes[0] == "left out: picture 2: is damaged."


def fake_timer(real: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Any:
    """A clock that gives 10 + 0.5 n ms for n patches where masks are forced, and `real` of that elsewhere; the dense
    detector takes 25 ms; rounds differ by a tenth."""

    def timer(inputs: Inputs, machine: Machine, rounds: int, progress: Progress) -> Measure:
        def measure(detectors: Sequence[PrunedDetector]) -> NDArray[np.float64]:
            found = []
            for detector in detectors:
                grids = [detector.yolos.backbone.grid_of(image) for image in inputs.pixels]
                counts = np.array([rows * cols for rows, cols in grids])
                if detector.bavit is None:
                    found.append(np.full(len(counts), 25.0))
                    continue
                if isinstance(detector, WithMasks):
                    made = list(detector.given)
                else:
                    values = detector.bavit.background(inputs.small)
                    made = detector.masks(values, inputs.pixels, inputs.sizes) or [None] * len(counts)
                amounts = [count if mask is None else int(mask.sum()) for mask, count in zip(made, counts, strict=True)]
                times = 10 + 0.5 * np.array(amounts)
                found.append(times if isinstance(detector, WithMasks) else real(times))
            spread = np.linspace(0.9, 1.1, rounds)[:, None]
            return np.stack([times * spread for times in found])

        with torch.inference_mode():
            return torch.inference_mode()(measure)

    return timer


class TestLatency:
    def test_what_is_measured_as_predicted_is_taken_at_once(
        self, bavit: BAViT, yolos: Yolos, data: DetectionSet
    ) -> None:
        plan = Plan("latency-ms", 16.0, headroom=1.2, **QUICK)
        detector, found = calibrate_detector(
            bavit, yolos, data, plan, CPU, NAMES, Silent(), timer=fake_timer(lambda times: times)
        )
        times = 10 + 0.5 * by_hand(detector, data)[0]
        latency = found.latency
        assert latency is not None
        assert latency.attempts == 1
        assert found.achieved == pytest.approx(times.mean())
        assert 15.5 < found.achieved <= 16
        assert found.achieved_max == pytest.approx(times.max())
        assert times.max() <= 1.2 * 16
        assert found.max_tokens == 18  # 10 + 0.5 x 18 = 19 of 19.2
        assert latency.predicted_ms == pytest.approx(latency.measured_ms)
        assert latency.measured_low_ms == pytest.approx(0.9 * latency.measured_ms)
        assert latency.measured_high_ms == pytest.approx(1.1 * latency.measured_ms)
        assert latency.measured_mean_ms == pytest.approx(latency.measured_ms)
        assert latency.dense_ms == 25
        assert latency.fit_error < 1e-6
        assert latency.environment["threads"] == str(torch.get_num_threads())
        assert latency.environment["processor"]

    def test_a_miss_is_corrected(self, bavit: BAViT, yolos: Yolos, data: DetectionSet) -> None:
        plan = Plan("latency-ms", 16.0, **QUICK)
        detector, found = calibrate_detector(
            bavit, yolos, data, plan, CPU, NAMES, Silent(), timer=fake_timer(lambda times: 1.1 * times + 0.5)
        )
        times = 1.1 * (10 + 0.5 * by_hand(detector, data)[0]) + 0.5
        assert found.latency is not None
        assert found.latency.attempts > 1
        assert times.mean() == pytest.approx(16, rel=3 * TOLERANCE)
        assert found.achieved == pytest.approx(times.mean(), rel=0.02)

    def test_a_clock_that_lies_is_told(self, bavit: BAViT, yolos: Yolos, data: DetectionSet) -> None:
        notes: list[str] = []

        class Telling(Silent):
            def note(self, text: str) -> None:
                notes.append(text)

        rising = iter(range(100))  # the machine gets slower and slower
        timer = fake_timer(lambda times: times * (1.1 + 0.08 * next(rising)))
        found = calibrate_detector(
            bavit, yolos, data, Plan("latency-ms", 17.0, **QUICK), CPU, NAMES, Telling(), timer=timer
        )[1]
        assert "above the budget" in notes[0]
        assert found.achieved > 17.0 * (1 + TOLERANCE)

    @pytest.mark.parametrize(
        ("value", "message"),
        [(6.0, r"a single patch costs 10\.5"), (30.0, r"costs 25 ms an image, so nothing")],
    )
    def test_out_of_reach(self, bavit: BAViT, yolos: Yolos, data: DetectionSet, value: float, message: str) -> None:
        plan = Plan("latency-ms", value, **QUICK)
        with pytest.raises(TokenLabelsError, match=message):
            calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Silent(), timer=fake_timer(lambda times: times))

    def test_a_fixed_number(self, bavit: BAViT, yolos: Yolos, data: DetectionSet) -> None:
        plan = Plan("latency-ms", 16.0, fixed=True, **QUICK)
        timer = fake_timer(lambda times: times)
        detector, found = calibrate_detector(bavit, yolos, data, plan, CPU, NAMES, Silent(), timer=timer)
        assert detector.pruning.top_k == found.top_k == 12

    def test_the_real_clock(self, bavit: BAViT, yolos: Yolos, data: DetectionSet) -> None:
        """No model is as quick as a nanosecond."""
        with threads(1), pytest.raises(TokenLabelsError, match=r"out of reach: an image with a single patch costs \d"):
            calibrate_detector(bavit, yolos, data, Plan("latency-ms", 1e-6, **QUICK), CPU, NAMES, Silent())


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "name one target"),
        ({"tokens": 3, "macs": "4G"}, {}, "name one target"),
        ({"tokens": 0}, {}, "--tokens 0: a budget is a positive number"),
        ({"macs": "inf"}, {}, "--macs inf"),
        ({"macs": "much"}, {}, "is no number"),
        ({"latency-ms": -1.5}, {}, "--latency-ms -1.5"),
        ({"latency-ms": float("nan")}, {}, "--latency-ms nan"),
        ({"sparsity": 1.5}, {}, "--sparsity 1.5 is out of range"),
        ({"tokens": 9}, {"headroom": 0.9}, "--headroom 0.9 is out of range"),
        ({"tokens": 9}, {"headroom": float("inf")}, "--headroom inf"),
        ({"sparsity": 0.5}, {"headroom": 2.0}, "--headroom is for a budget"),
        ({"fg-recall": 0.5}, {"fixed": True}, "--fixed keeps as much"),
        ({"tokens": 9}, {"confidence": 1.0}, "confidence"),
        ({"tokens": 9}, {"rounds": 0}, "1 round"),
        ({"tokens": 9}, {"refine_steps": -1}, "refinement"),
    ],
)
def test_plans_that_make_no_sense(given: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        plan_of(given, **options)


def test_macs_are_taken_as_written() -> None:
    assert plan_of({"macs": "8.1G"}) == Plan("macs", 8_100_000_000)
    assert plan_of({"macs": "0.123457M", "tokens": None}, headroom=1.0) == Plan("macs", 123_457, headroom=1.0)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
