"""A threshold of each image against a fixed one, at equal mean cost, on the models of `demo_detect.py`.

    uv run --all-extras python tests/benchmarks/demo_detect.py --out detect-demo     # first, about 25 minutes
    uv run --all-extras python tests/benchmarks/demo_adaptive.py detect-demo         # under 10 minutes on two cores

For each MAC penalty and seed an adaptive threshold is trained in front of the finetuned detector, which stays as it is,
as does the BAViT (`bavit joint --train threshold`). On the validation images it is compared with

fixed      one threshold for all images, solved such that the mean MACs are the same
count      the same number of patches of every image, again at the same mean MACs
shuffled   the numbers of patches of the adaptive threshold, given to other images at random
oracle     for every image that of 12 thresholds with the least of its own loss + penalty x MACs: a bound that knows the
           ground truth, and what no threshold could know besides

All rank patches alike, so an image's answer depends on how many are kept alone, and is computed once for each number.
Prints a table, and writes `adaptive.json` and `adaptive.png` (AP against mean MACs).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptive_figures import draw, table
from numpy.typing import NDArray

import tokenlabels
from bavit import BAViT, PrunedDetector, Yolos
from bavit.augment import Window
from bavit.background.critical import critical_probabilities
from bavit.detect.accounting import detector_macs
from bavit.detect.adaptive import AdaptiveThreshold
from bavit.detect.classes import class_of_category
from bavit.detect.evaluate import evaluate_detections
from bavit.detect.ground_truth import DetectionSet, open_detection_set
from bavit.detect.joint import joint
from bavit.detect.joint_settings import JointSettings
from bavit.detect.loss import set_loss
from bavit.detect.pruned import Detection, detections
from bavit.detect.samples import objects_in
from bavit.detect.saved import is_saved
from bavit.detect.sweep import read_inputs
from bavit.rows import read_rows
from bavit.training.learner import Task
from tokenlabels.progress import Silent

GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
STEPS, PART = 3, 40
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Demo:
    """Where the models are, and what is run."""

    folder: Path
    out: Path
    train_images: int
    val_images: int
    epochs: int

    def models(self) -> tuple[BAViT, Yolos]:
        return BAViT.from_pretrained(str(self.folder / "bavit")), Yolos.from_pretrained(self.folder / "finetuned")

    def data(self) -> DetectionSet:
        return open_detection_set(self.folder / "labels", splits=["val"], limit=self.val_images)

    def run(self, penalty: float, seed: int) -> Path:
        return self.out / f"penalty-{penalty:g}-seed-{seed}"


def train(task: tuple[Demo, float, int]) -> None:
    """One adaptive threshold; a run that is finished stays as it is."""
    demo, penalty, seed = task
    torch.set_num_threads(1)
    place = demo.run(penalty, seed)
    if is_saved(place):
        return
    build = tokenlabels.open(demo.folder / "labels")
    rows, val = (read_rows(build, splits=[split], scores=False) for split in ("train", "val"))
    some = rows.keep(np.random.default_rng(seed).permutation(len(rows)) < demo.train_images)
    settings = JointSettings.make(
        detector=str(demo.folder / "finetuned"), bavit=str(demo.folder / "bavit"), train="threshold", seed=seed,
        mac_penalty=penalty, threshold_lr=0.02, epochs=demo.epochs, val_every=demo.epochs, batch_size=16,
        precision="32",
    )  # fmt: skip
    chosen = Task(some, val.keep(np.arange(len(val)) < 16), None, None, place, workers=0, device="cpu", overwrite=True)
    joint(chosen, settings, {}, Silent())


@dataclass(frozen=True)
class Answers:
    """What is detected in one image for k numbers of kept patches; arrays, for a tensor costs processes an open file.

    Attributes:
        counts: int64 (k,), ascending.
        boxes: float32 (k, T, 4), as in `Detection`.
        scores: float32 (k, T).
        labels: int64 (k, T).
        losses: float64 (k,).
    """

    counts: Counts
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    losses: NDArray[np.float64]

    def detection(self, count: int) -> Detection:
        """Without its mask."""
        place = int(np.searchsorted(self.counts, count))
        boxes, scores, labels = (torch.from_numpy(each[place]) for each in (self.boxes, self.scores, self.labels))
        return Detection(boxes, scores, labels, keep=torch.ones(0, 0, dtype=torch.bool))

    def loss(self, count: int) -> float:
        """Of the detector."""
        return float(self.losses[np.searchsorted(self.counts, count)])


def answer(task: tuple[Demo, Sequence[int], Sequence[Counts]]) -> list[Answers]:
    """Of some images, for every number of kept patches that is asked for."""
    demo, numbers, wanted = task
    torch.set_num_threads(1)
    bavit, yolos = demo.models()
    data = demo.data()
    classes = class_of_category(yolos.config.labels, data.categories, named=yolos.config.named)
    found = []
    for number, counts in zip(numbers, wanted, strict=True):
        inputs = read_inputs(bavit, yolos, data, [number], 1)
        with torch.inference_mode():
            critical = critical_probabilities(bavit.background(inputs.small).numpy(), STEPS)
            order = torch.from_numpy(critical.ravel().argsort(kind="stable"))
            keep = torch.zeros(len(counts), order.numel(), dtype=torch.bool)
            for mask, count in zip(keep, counts.tolist(), strict=True):
                mask[order[:count]] = True
            pixels = torch.stack([inputs.pixels[0]] * len(counts))
            output = yolos(pixels, keep.view(-1, *critical.shape[1:]))
            grids, sizes = [critical.shape[1:]] * len(counts), list(inputs.sizes) * len(counts)
            seen = detections(output, None, grids, sizes)
        size = data.rows.widths[number], data.rows.heights[number]
        boxes, labels = objects_in(data.rows, number, classes, Window(0, 0, int(size[0]), int(size[1])), flip=False)
        truth = [torch.from_numpy(boxes)], [torch.from_numpy(labels)]
        losses = [
            float(set_loss([(output.logits[n : n + 1], output.boxes[n : n + 1])], *truth).total)
            for n in range(len(counts))
        ]
        of_boxes, scores, kinds = (
            torch.stack([getattr(each, name) for each in seen]).numpy() for name in ("boxes", "scores", "labels")
        )
        found.append(Answers(counts, of_boxes, scores, kinds, np.array(losses)))
    return found


class Images:
    """The validation images: how sure the BAViT is of every patch, and what any numbers of kept patches cost."""

    def __init__(self, demo: Demo) -> None:
        bavit, yolos = demo.models()
        self.data, self.config, self.bavit_macs = demo.data(), yolos.config, bavit.macs
        parts = []
        for first in range(0, len(self.data), 64):
            numbers = range(first, min(first + 64, len(self.data)))
            with torch.inference_mode():
                parts.append(bavit.background(read_inputs(bavit, yolos, self.data, numbers, 1).small))
        self.background = torch.cat(parts)
        self.critical = critical_probabilities(self.background.numpy(), STEPS).reshape(len(self.data), -1)
        self.patches = self.critical.shape[1]

    def counts(self, threshold: float | NDArray[np.float32]) -> Counts:
        """Patches that a threshold, or one of each image, keeps."""
        limit = np.float32(threshold).reshape(-1, 1)
        found: Counts = (self.critical <= limit).sum(1)
        return found

    def macs(self, counts: Counts) -> NDArray[np.float64]:
        """MACs of the detector for each image, by those of the dense one."""
        return detector_macs(self.config, counts, self.patches) / detector_macs(self.config, self.patches, self.patches)

    def fixed(self, target: float) -> float:
        """The threshold whose mean MACs are nearest to a target: of all probabilities, for nothing changes between."""
        values = np.unique(self.critical)
        low, high = 0, len(values) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(self.counts(values[middle])).mean() <= target else (low, middle)
        ends = (float(values[low]), float(values[high]))
        return min(ends, key=lambda value: abs(self.macs(self.counts(value)).mean() - target))

    def equal(self, target: float) -> Counts:
        """As many patches of every image; of some, spread over all, one more, so that the mean MACs are the target."""
        costs = self.macs(np.arange(self.patches + 1))
        fewer = int(np.searchsorted(costs, target, side="right")) - 1
        share = (target - costs[fewer]) / (costs[min(fewer + 1, self.patches)] - costs[fewer] + 1e-12)
        more = np.random.default_rng(0).permutation(len(self.data)) < share * len(self.data)
        found: Counts = more.astype(np.int64) + fewer
        return found


def described(images: Images, counts: Counts, answers: Sequence[Answers]) -> dict[str, Any]:
    """What keeping so many patches of each image gives."""
    asked = list(zip(answers, counts.tolist(), strict=True))
    found = [each.detection(count) for each, count in asked]
    scores, losses = evaluate_detections(images.data, found, images.config), [each.loss(count) for each, count in asked]
    sparsity = 1 - counts / images.patches
    return {
        "ap": scores.ap, "ap50": scores.ap50, "loss": float(np.mean(losses)),
        "macs_share": float(images.macs(counts).mean()), "sparsity": float(sparsity.mean()),
        "sparsity_std": float(sparsity.std()), "sparsity_min": float(sparsity.min()),
        "sparsity_max": float(sparsity.max()),
    }  # fmt: skip


def answers_for(
    demo: Demo, images: Images, wanted: Iterable[Counts], submit: Callable[..., Iterable[Any]]
) -> list[Answers]:
    """For every image the answers for all the numbers of patches that anybody asks for."""
    table = np.stack(list(wanted), 1)
    parts = [range(first, min(first + PART, len(table))) for first in range(0, len(table), PART)]
    tasks = [(demo, list(part), [np.unique(table[number]) for number in part]) for part in parts]
    return [each for part in submit(answer, tasks) for each in part]


def compared(
    demo: Demo, images: Images, penalties: Sequence[float], seeds: Sequence[int], submit: Callable[..., Iterable[Any]]
) -> dict[str, Any]:
    """The figures of all policies."""
    grid = [images.counts(threshold) for threshold in GRID]
    policies: dict[tuple[str, float, int], Counts] = {}
    for penalty in penalties:
        for seed in seeds:
            adaptive = PrunedDetector.from_pretrained(demo.run(penalty, seed)).adaptive
            assert isinstance(adaptive, AdaptiveThreshold)
            with torch.inference_mode():
                counts = images.counts(adaptive(images.background).numpy())
            mean = float(images.macs(counts).mean())
            policies["adaptive", penalty, seed] = counts
            policies["fixed", penalty, seed] = images.counts(images.fixed(mean))
            policies["count", penalty, seed] = images.equal(mean)
            policies["shuffled", penalty, seed] = np.random.default_rng(seed).permutation(counts)
    answers = answers_for(demo, images, [*grid, *policies.values()], submit)
    every = np.stack(grid, 1)
    losses = np.array([[each.loss(count) for count in row] for each, row in zip(answers, every.tolist(), strict=True)])
    costs = np.stack([images.macs(counts) for counts in grid], 1)
    best = {penalty: (losses + penalty * costs).argmin(1) for penalty in penalties}

    def told(counts: Counts, **about: Any) -> dict[str, Any]:
        return about | described(images, counts, answers)

    return {
        "fixed_curve": [told(counts, threshold=threshold) for threshold, counts in zip(GRID, grid, strict=True)],
        "oracle": [told(every[np.arange(len(every)), best[penalty]], penalty=penalty) for penalty in penalties],
        "policies": [
            told(counts, policy=policy, penalty=penalty, seed=seed)
            for (policy, penalty, seed), counts in policies.items()
        ],
    }


def cost_of(demo: Demo, images: Images, penalty: float) -> dict[str, float]:
    """Parameters and MACs of an adaptive threshold, and microseconds of an image, alone and in a batch of 8."""
    adaptive = PrunedDetector.from_pretrained(demo.run(penalty, 0)).adaptive
    assert adaptive is not None
    found = {"parameters": float(adaptive.parameter_count), "macs": float(adaptive.macs)}
    for size in (1, 8):
        times = []
        with torch.inference_mode():
            for _ in range(300):
                begun = time.perf_counter()
                adaptive(images.background[:size])
                times.append((time.perf_counter() - begun) / size * 1e6)
        found[f"microseconds_batch_{size}"] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what demo_detect.py made")
    parser.add_argument("--out", type=Path, default=Path("adaptive-demo"))
    parser.add_argument("--penalties", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1200, help="images to compare on")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    arguments = parser.parse_args()
    demo = Demo(arguments.demo, arguments.out, arguments.train_images, arguments.limit, arguments.epochs)
    seeds, penalties = range(arguments.seeds), arguments.penalties
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(train, [(demo, penalty, seed) for penalty in penalties for seed in seeds]))
        trained = time.perf_counter()
        images = Images(demo)
        found = compared(demo, images, penalties, seeds, pool.map)
    found["cost"] = cost_of(demo, images, penalties[0])
    found["seconds"] = {"training": trained - begun, "comparing": time.perf_counter() - trained}
    table(found, penalties)
    print(json.dumps({"cost": found["cost"], "seconds": found["seconds"]}))
    (demo.out / "adaptive.json").write_text(json.dumps(found, indent=2))
    draw(found, penalties, demo.out / "adaptive.png")


if __name__ == "__main__":
    main()
