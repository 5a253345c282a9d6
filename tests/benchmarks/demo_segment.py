"""Early exit on a CPU, from scratch: ViT-tiny with FCN and with ATM heads on generated scenes, and what it costs.

    uv run --all-extras python tests/benchmarks/demo_segment.py --out segment-demo      # about an hour on two cores

Draws scenes whose every pixel has one of 13 classes (`tokenlabels sample --semantic`), trains both heads without early
exit, and compares DToP's three regimes at p0 0.90, 0.95 and 0.98: Direct, the trained network as it is; Finetune, some
more epochs with early exit; Retrain, all epochs with it. Every step is a command of the project, run as a person would;
a step that is done is not done again, one that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANKS = 1 << (min(8, os.cpu_count() or 1).bit_length() - 1)
"""They divide the batch."""

HEADS, LEVELS = ("fcn", "atm"), (0.90, 0.95, 0.98)


def run(name: str, *words: object, ranks: int = 1) -> float:
    """Run a command of the project; seconds."""
    begun = time.perf_counter()
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    print("$", name, *words, flush=True)
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if ranks > 1 else {})
    subprocess.run([sys.executable, *launch, "-m", f"cli.{name}", *map(str, words)], check=True, env=environment)
    return time.perf_counter() - begun


def train(out: Path, epochs: int, *words: object) -> None:
    """Train, or finetune, unless it is done."""
    metrics = out / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    if done < epochs:
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else ["--overwrite"]
        took = run("bavit", "segment", *words, "--epochs", epochs, "--out", out, *resume, ranks=RANKS)
        print(f"{out.name}: {took / 60:.1f} min", flush=True)


def measured(model: Path, shards: Path, out: Path, levels: tuple[float, ...]) -> list[dict[str, Any]]:
    """Rows of a sweep over p0; the first is the network without early exit."""
    run("bavit", "segment", "sweep", model, shards, "--p0", *levels, "--out", out)
    rows: list[dict[str, Any]] = json.loads((out / "sweep.json").read_bytes())["rows"]
    return rows


def line(regime: str, row: dict[str, Any]) -> str:
    level = "-" if row["p0"] >= 1 else f"{row['p0']:.2f}"
    alive = " ".join(f"{share:.0%}" for share in row["tokens_alive"])
    saved = 1 - row["macs"] / row["macs_dense"]
    return (
        f"{regime:10}{level:>6}{row['miou']:>9.2%}{row['macs'] / 1e9:>9.3f}{saved:>8.1%}"
        f"{row['throughput']:>10.1f}{row['speedup']:>9.2f}   {alive}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("segment-demo"))
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--head", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--p0", type=float, nargs="+", default=LEVELS)
    arguments = parser.parse_args()
    out, levels = arguments.out, tuple(arguments.p0)
    drawn, shards = out / "drawn", out / "shards"
    run("tokenlabels", "sample", drawn, "--images", arguments.images, "--semantic")
    run("tokenlabels", "build", "semantic", "--root", drawn, "--embed-images", "--embed-masks", "--image-size",
        arguments.crop, "--out", shards)  # fmt: skip
    plain = ("--batch-size", 32, "--workers", 0, "--val-every", 4, "--scale-range", 0.75, 1.5)
    tables = []
    for head in arguments.head:
        new = ("train", shards, "--init", "none", "--head", head, "--crop", arguments.crop, *plain)
        base = out / f"{head}-base"
        train(base, arguments.epochs, *new)
        rows = measured(base, shards, out / f"{head}-direct", levels)
        lines = [line("unpruned", rows[0]), *(line("Direct", row) for row in rows[1:])]
        for regime, epochs in (("Finetune", arguments.finetune_epochs), ("Retrain", arguments.epochs)):
            for level in levels:
                name = out / f"{head}-{regime.lower()}-{level:.2f}"
                words = new if regime == "Retrain" else ("finetune", base, shards, *plain, "--lr", 2e-4)
                train(name, epochs, *words, "--p0", level)
                rows = measured(name, shards, out / f"{name.name}-swept", (level,))
                lines += [line(regime, row) for row in rows[1:]]
        tables.append((head, lines))
    for head, lines in tables:
        print(
            f"\n{head}\n{'regime':10}{'p0':>6}{'mIoU':>9}{'GMAC':>9}{'saved':>8}{'images/s':>10}{'speedup':>9}   alive"
        )
        print("\n".join(lines))


if __name__ == "__main__":
    main()
