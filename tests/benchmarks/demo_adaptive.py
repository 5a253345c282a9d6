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
from matplotlib.figure import Figure
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
from bavit.plots import BLUE, MUTED, ORANGE, RED, SKY
from bavit.rows import read_rows
from bavit.training.learner import Task
from tokenlabels.progress import Silent

GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
STEPS, PART = 3, 40
POLICIES = ("adaptive", "fixed", "count", "shuffled")
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


def answer(task: tuple[Demo, Sequence[int], Sequence[Counts]]) -> list[dict[int, tuple[Detection, float]]]:
    """Of some images, for every number of kept patches that is asked for: what is detected, and its loss."""
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
        found.append(dict(zip(counts.tolist(), zip(seen, losses, strict=True), strict=True)))
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


def described(images: Images, counts: Counts, answers: Sequence[dict[int, tuple[Detection, float]]]) -> dict[str, Any]:
    """What keeping so many patches of each image gives."""
    found = [each[count] for each, count in zip(answers, counts.tolist(), strict=True)]
    scores = evaluate_detections(images.data, [detection for detection, _ in found], images.config)
    sparsity = 1 - counts / images.patches
    return {
        "ap": scores.ap, "ap50": scores.ap50, "loss": float(np.mean([loss for _, loss in found])),
        "macs_share": float(images.macs(counts).mean()), "sparsity": float(sparsity.mean()),
        "sparsity_std": float(sparsity.std()), "sparsity_min": float(sparsity.min()),
        "sparsity_max": float(sparsity.max()),
    }  # fmt: skip


def answers_for(
    demo: Demo, images: Images, wanted: Iterable[Counts], submit: Callable[..., Iterable[Any]]
) -> list[dict[int, tuple[Detection, float]]]:
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
    losses = np.array([[each[count][1] for count in row] for each, row in zip(answers, every.tolist(), strict=True)])
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


def table(found: dict[str, Any], penalties: Sequence[float]) -> None:
    """Mean and spread over seeds of every policy, by penalty."""
    heads = f"{'AP':>14}{'AP50':>14}{'loss':>15}{'sparsity: mean':>16}{'std':>7}{'min':>7}{'max':>7}"
    print(f"{'penalty':>8} {'policy':<9}{'MACs':>7}{heads}")
    for penalty in penalties:
        for policy in POLICIES:
            rows = rows_of(found, policy, penalty)
            ap, ap50 = (spread([100 * row[name] for row in rows], 1) for name in ("ap", "ap50"))
            loss, macs = spread([row["loss"] for row in rows], 3), statistics.mean(row["macs_share"] for row in rows)
            names = ("sparsity", "sparsity_std", "sparsity_min", "sparsity_max")
            shares = [statistics.mean(row[name] for row in rows) for name in names]
            words = f"{shares[0]:>16.1%}" + "".join(f"{share:>7.1%}" for share in shares[1:])
            print(f"{penalty:>8g} {policy:<9}{macs:>7.1%}{ap:>14}{ap50:>14}{loss:>15}{words}")
        gains = gains_of(found, penalty)
        points = f"AP {spread(gains['ap'], 2)}, AP50 {spread(gains['ap50'], 2)} points, loss {spread(gains['loss'], 3)}"
        print(f"{'':>8} adaptive - fixed of the same seed: {points}")
    for row in found["oracle"]:
        scores = f"{100 * row['ap']:>6.1f}{'':>8}{100 * row['ap50']:>6.1f}{'':>8}{row['loss']:>6.3f}{'':>9}"
        print(f"{row['penalty']:>8g} oracle   {row['macs_share']:>7.1%}{scores}{row['sparsity']:>16.1%}")


def rows_of(found: dict[str, Any], policy: str, penalty: float) -> list[dict[str, Any]]:
    """The figures of all seeds."""
    return [row for row in found["policies"] if (row["policy"], row["penalty"]) == (policy, penalty)]


def gains_of(found: dict[str, Any], penalty: float) -> dict[str, list[float]]:
    """What the adaptive threshold has more than the fixed one of the same seed: points of AP and AP50, and loss."""
    rows = {(row["policy"], row["seed"]): row for row in found["policies"] if row["penalty"] == penalty}
    seeds = sorted({seed for _, seed in rows})
    scales = {"ap": 100, "ap50": 100, "loss": 1}
    return {
        name: [scale * (rows["adaptive", seed][name] - rows["fixed", seed][name]) for seed in seeds]
        for name, scale in scales.items()
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} +- {deviation:.{digits}f}"


def draw(found: dict[str, Any], penalties: Sequence[float], path: Path) -> None:
    """AP against mean MACs."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, style, colour in (("fixed_curve", "o-", MUTED), ("oracle", "^:", BLUE)):
        shares, scores = ([row[key] for row in found[name]] for key in ("macs_share", "ap"))
        axes.plot(shares, scores, style, ms=4, color=colour, label=name.removesuffix("_curve"))
    for policy, mark, colour in (("adaptive", "s", ORANGE), ("count", "x", SKY), ("shuffled", "v", RED)):
        for number, penalty in enumerate(penalties):
            rows = rows_of(found, policy, penalty)
            shares, scores = ([row[name] for row in rows] for name in ("macs_share", "ap"))
            errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (shares, scores)]
            axes.errorbar(
                statistics.mean(shares), statistics.mean(scores), xerr=errors[0], yerr=errors[1], fmt=mark, ms=5,
                color=colour, capsize=2, label=None if number else policy,
            )  # fmt: skip
    axes.set(xlabel="mean MACs of the detector, as a share of those of the dense one", ylabel="AP")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


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
