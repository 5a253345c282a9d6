"""Joint training beside separate training and sparse fine-tuning, from scratch on a CPU: AP against MACs.

    uv run --all-extras python tests/benchmarks/demo_joint.py --demo detect-demo --out joint-demo

Starts from the BAViT and the dense detector of `demo_detect.py` (made where they are missing, about 25 minutes more).
Every method trains each of the two models for the same epochs on the same pictures, for several seeds:

separate            BAViT on patch labels, the detector on all patches; patches are removed at evaluation alone
sparse              the same BAViT; the detector on what it keeps (`bavit finetune --bavit`)
sparse, distilled   likewise, and the detector learns from the dense one (`--teacher`)
joint               both together (`bavit joint`)
joint, distilled    likewise, and the detector learns from the dense one (`--distil`)

Each is swept over thresholds on pictures it has not seen; average precision is read off its curve at the same MACs of
the detector. BAViT costs the same everywhere. Prints mean and standard deviation over seeds, and writes joint.json and
joint.png. Every step is a command of the project; a step that is done is not done again, and one that was interrupted
goes on. Two of them run side by side on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bavit.plots import BLUE, INK, MUTED, ORANGE, RED, SKY, Line, as_percent, draw_lines, figure_of, save_figure, set_up

METHODS = {
    "as they were": MUTED,
    "separate": INK,
    "sparse": SKY,
    "sparse, distilled": BLUE,
    "joint": ORANGE,
    "joint, distilled": RED,
}
"""And their colours."""

CORES = max(1, os.cpu_count() or 1)


@dataclass(frozen=True)
class Step:
    """A command, where it writes, and what must be there once it is done.

    Attributes:
        words: of the command, `bavit` left out.
        out: its folder.
        epochs: of a training; 0: it is a sweep.
    """

    words: tuple[object, ...]
    out: Path
    epochs: int = 0

    def done(self) -> bool:
        if not self.epochs:
            return (self.out / "sweep.json").exists()
        metrics = self.out / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) == self.epochs

    def run(self, threads: int) -> None:
        if self.done():
            return
        begun = time.perf_counter()
        resumed = ("--resume",) if self.epochs and (self.out / "checkpoint.pt").exists() else ()
        words = [*map(str, self.words), "--out", str(self.out), *resumed]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        ended = subprocess.run(
            [sys.executable, "-m", "cli.bavit", *words], env=environment, capture_output=True, text=True, check=False
        )
        print("$ bavit", *words, f"# {time.perf_counter() - begun:.0f} s", flush=True)
        if ended.returncode:
            sys.exit(f"{ended.stdout}{ended.stderr}bavit {self.words[0]} ended with {ended.returncode}.")


def run_all(steps: Sequence[Step], jobs: int) -> None:
    """Several steps, none of which needs another."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for _ in pool.map(lambda step: step.run(max(1, CORES // jobs)), steps):
                pass
        except BaseException:  # what has not begun is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def trainings(arguments: argparse.Namespace, labels: Path, seed: int) -> tuple[list[Step], list[Step]]:
    """What is trained for a seed: first, and once that is there."""
    demo, out, epochs = arguments.demo, arguments.out / f"seed-{seed}", arguments.epochs
    same = (
        "--val", demo / "labels", "--workers", 0, "--batch-size", arguments.batch_size, "--epochs", epochs,
        "--seed", seed, "--ema", arguments.ema,
    )  # fmt: skip
    detector = (
        *same, "--detector", demo / "detector", "--crop", arguments.crop, "--colour", 0, "--val-limit", 8,
        "--val-every", epochs,
    )  # fmt: skip
    masks = ("--threshold", arguments.threshold)
    teacher = ("--teacher", demo / "detector", "--distil", arguments.distil)
    background = out / "background"
    sparse = ("finetune", labels, *detector, "--bavit", background, *masks, "--lr", arguments.lr)
    joint = (
        "joint", labels, *detector, "--bavit", demo / "bavit", *masks, "--lr", arguments.lr, "--bavit-lr",
        arguments.bavit_lr / arguments.lr, "--ce", arguments.ce, "--keep-share", arguments.keep_share,
        "--budget-weight", arguments.budget_weight,
    )  # fmt: skip
    first = [Step(("train", labels, *same, "--init", demo / "bavit", "--lr", arguments.bavit_lr), background, epochs)]
    then = [
        Step(("finetune", labels, *detector, "--lr", arguments.dense_lr), out / "separate", epochs),
        Step(sparse, out / "sparse", epochs),
        Step((*sparse, *teacher), out / "sparse, distilled", epochs),
        Step(joint, out / "joint", epochs),
        Step((*joint, *teacher), out / "joint, distilled", epochs),
    ]
    return first, then


def sweeps(arguments: argparse.Namespace, seed: int | None) -> list[Step]:
    """What is evaluated of a seed; of none: the models as they were."""
    demo, out = arguments.demo, arguments.out / ("start" if seed is None else f"seed-{seed}")
    found = []
    for method in METHODS:
        if (method == "as they were") != (seed is None):
            continue
        bavit, detector = out / "background", out / method
        if seed is None:
            bavit, detector = demo / "bavit", demo / "detector"
        elif method.startswith("joint"):
            bavit, detector = out / method / "bavit", out / method / "detector"
        words = (
            "sweep", bavit, detector, demo / "labels", "--masks", "bavit", "--thresholds", arguments.thresholds,
            "--limit", arguments.limit, "--time-images", 1, "--rounds", 1, "--samples", 0, "--batch-size", 16,
        )  # fmt: skip
        found.append(Step(words, out / f"{method}, swept"))
    return found


def curve(path: Path) -> list[dict[str, float]]:
    """Points of a sweep by MACs of the detector, as a share of those for all patches."""
    found = json.loads(path.read_bytes())
    bavit = found["setting"]["bavit_macs"]
    points = [
        {
            "macs_share": (row["macs"] - bavit) / row["macs_dense"],
            "macs_share_with_bavit": row["macs"] / row["macs_dense"],
            "ap": row["ap"],
            "ap50": row["ap50"],
            "sparsity": row["sparsity"],
            "threshold": row["threshold"],
        }
        for row in found["rows"]
    ]
    return sorted(points, key=lambda point: point["macs_share"])


def at(points: list[dict[str, float]], share: float, figure: str) -> float:
    """A figure between two points of a curve, on a straight line; not a number beyond its ends."""
    x = [point["macs_share"] for point in points]
    return float(np.interp(share, x, [point[figure] for point in points], np.nan, np.nan))


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures: of every method its curves, and at each share of MACs mean and spread over seeds."""
    methods = {}
    for method in METHODS:
        seeds = range(arguments.seeds)
        folders = [arguments.out / "start"] if method == "as they were" else [
            arguments.out / f"seed-{seed}" for seed in seeds
        ]  # fmt: skip
        curves = [curve(folder / f"{method}, swept" / "sweep.json") for folder in folders]
        dense = [json.loads((f / f"{method}, swept" / "sweep.json").read_bytes())["dense"]["ap"] for f in folders]
        figures = {}
        for share in arguments.points:
            for figure in ("ap", "ap50"):
                each = [at(points, share, figure) for points in curves]
                spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
                figures[f"{figure} at {share:g}"] = {"mean": float(np.mean(each)), "std": spread, "each": each}
        took = [folder / method / "metrics.jsonl" for folder in folders if (folder / method).is_dir()]
        seconds = [json.loads(path.read_text().splitlines()[-1])["seconds"] / arguments.epochs for path in took]
        methods[method] = {
            "at": figures,
            "ap_dense": dense,
            "seconds_per_epoch": float(np.mean(seconds)) if seconds else None,
            "curves": curves,
        }
    chosen = {name: value if isinstance(value, (int, float, list)) else str(value) for name, value in
              vars(arguments).items()}  # fmt: skip
    start = json.loads((arguments.out / "start" / "as they were, swept" / "sweep.json").read_bytes())
    return {
        "arguments": chosen,
        "macs_detector": start["dense"]["macs"],
        "macs_bavit": start["setting"]["bavit_macs"],
        "methods": methods,
    }


def table(found: dict[str, Any], points: Sequence[float]) -> None:
    """AP at shares of the detector's MACs, mean and standard deviation over seeds."""
    bavit = found["macs_bavit"] / found["macs_detector"]
    print(f"\nAP (%) at shares of the detector's {found['macs_detector'] / 1e9:.3f} GMAC; BAViT adds {bavit:.1%}")
    print(f"{'':<20}" + "".join(f"{share:>15.0%}" for share in points) + f"{'all patches':>14}{'s an epoch':>12}")
    for method, figures in found["methods"].items():
        cells = []
        for share in points:
            value = figures["at"][f"ap at {share:g}"]
            cells.append(f"{100 * value['mean']:>8.2f} ± {100 * value['std']:<4.2f}")
        seconds = figures["seconds_per_epoch"]
        print(
            f"{method:<20}" + "".join(cells) + f"{100 * np.mean(figures['ap_dense']):>14.2f}"
            f"{'' if seconds is None else f'{seconds:.1f}':>12}"
        )


def draw(found: dict[str, Any], path: Path) -> None:
    """Mean AP of every method against MACs, a band of one standard deviation around it."""
    figure = figure_of(9, 5.5)
    panel = figure.add_subplot()
    set_up(panel, "Average precision by MACs of the detector", "share of the MACs for all patches")
    lines = []
    for method, colour in METHODS.items():
        curves = found["methods"][method]["curves"]
        ends = [(points[0]["macs_share"], points[-1]["macs_share"]) for points in curves]
        shares = np.linspace(max(first for first, _ in ends), min(last for _, last in ends), 25)
        values = np.array([[at(points, share, "ap") for share in shares] for points in curves])
        mean = np.nanmean(values, 0)
        if len(values) > 1:
            spread = values.std(0, ddof=1)
            panel.fill_between(shares, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        lines.append(Line(method, shares.tolist(), mean.tolist(), colour, "--" if len(values) == 1 else "-"))
    draw_lines(panel, lines)
    as_percent(panel)
    panel.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    save_figure(figure, path)


def remember(arguments: argparse.Namespace) -> None:
    """Refuse a folder with steps of other settings: they would be taken for these."""
    path = arguments.out / "arguments.json"
    chosen = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "jobs", "points")}
    before = json.loads(path.read_bytes()) if path.exists() else chosen
    different = [name for name, value in chosen.items() if before.get(name) != value and name != "seeds"]
    if different:
        sys.exit(f"{arguments.out}: was begun with another --{different[0].replace('_', '-')}: name another --out.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chosen) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("detect-demo"), help="folder of demo_detect.py")
    parser.add_argument("--out", type=Path, default=Path("joint-demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit-train", type=int, default=0, help="train on the first pictures alone; 0: all")
    parser.add_argument("--limit", type=int, default=1200, help="pictures to sweep over")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threshold", type=float, default=0.5, help="of masks while training")
    parser.add_argument("--lr", type=float, default=5e-5, help="of detectors on what is kept")
    parser.add_argument("--dense-lr", type=float, default=5e-5, help="of detectors on all patches")
    parser.add_argument("--bavit-lr", type=float, default=2e-4, help="of BAViTs, alone and in joint training")
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--crop", type=float, default=1.0, help="least share of the area of random crops")
    parser.add_argument("--ce", type=float, default=1.0)
    parser.add_argument("--distil", type=float, default=1.0)
    parser.add_argument("--keep-share", type=float, default=0.45)
    parser.add_argument("--budget-weight", type=float, default=2.0)
    parser.add_argument("--thresholds", default="0.03,0.07,0.12,0.2,0.35,0.6,0.85,0.97")
    parser.add_argument("--points", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--jobs", type=int, default=CORES, help="steps side by side")
    arguments = parser.parse_args()
    demo, out = arguments.demo, arguments.out
    remember(arguments)
    if not (demo / "detector" / "model.safetensors").exists():
        subprocess.run([sys.executable, Path(__file__).with_name("demo_detect.py"), "--out", demo], check=True)
    labels = demo / "labels"
    if arguments.limit_train:
        labels = out / f"labels-{arguments.limit_train}"
        config = json.loads((demo / "bavit" / "config.json").read_bytes())
        subprocess.run(
            [sys.executable, "-m", "cli.tokenlabels", "build", "coco", "--root", demo / "small", "--embed-images",
             "--patch", str(config["patch"][0]), "--image-size", str(config["image_size"][0]), "--limit",
             str(arguments.limit_train), "--out", labels],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    pairs = [trainings(arguments, labels, seed) for seed in range(arguments.seeds)]
    begun = time.perf_counter()
    run_all([step for first, _ in pairs for step in first], arguments.jobs)
    run_all([step for _, then in pairs for step in then], arguments.jobs)
    every = [step for seed in (None, *range(arguments.seeds)) for step in sweeps(arguments, seed)]
    run_all(every, arguments.jobs)
    found = compared(arguments)
    (out / "joint.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(found, out / "joint.png")
    table(found, arguments.points)
    print(f"\nwritten: {out / 'joint.json'}, {out / 'joint.png'}; {(time.perf_counter() - begun) / 60:.1f} min")


if __name__ == "__main__":
    main()
