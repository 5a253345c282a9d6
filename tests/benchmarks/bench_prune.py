"""What removing patches wins in plain ViTs, as ratios to timm's own dense model in the same run.

    uv run --all-extras python tests/benchmarks/bench_prune.py
    uv run --all-extras python tests/benchmarks/bench_prune.py --device cuda --precision bf16 --batch-size 64

ViT-S/16, DINOv2 (ViT-S/14 with four registers) and DINOv3 (`Eva`, ViT-S/16, rotary positions), each on 24 x 24
patches, random weights. What stays are unions of discs, every picture having its own share; they are given, so that no
policy is within the times. `0 %` is the ragged runtime with nothing removed. `ideal` is the ratio of
multiply-accumulates. The ways take turns at every batch; the median over rounds counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from bench_segment import blobs
from torch import Tensor, nn

from bavit import prune
from bavit.machine import Machine
from bavit.timing import take_turns

MODELS = {
    "ViT-S/16": ("vit_small_patch16_384", 16),
    "DINOv2 ViT-S/14 reg4": ("vit_small_patch14_reg4_dinov2", 14),
    "DINOv3 ViT-S/16": ("vit_small_patch16_dinov3", 16),
}
CELLS = 24


def once(call: Callable[[int], object], machine: Machine, batch: int) -> Sequence[float]:
    """Seconds of a call with so many pictures."""
    begun = now(machine)
    with torch.inference_mode(), machine.autocast():
        call(batch)
    return [now(machine) - begun]


def now(machine: Machine) -> float:
    if machine.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, arguments: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Times of one model and of its pruned forms."""
    torch.manual_seed(0)
    known, patch = MODELS[name]
    batch, side = arguments.batch_size, CELLS * patch
    model: nn.Module = timm.create_model(known, img_size=side).eval().to(machine.device)
    pixels = torch.randn(batch, 3, side, side, device=machine.device)
    pruned = prune(model)
    everything = torch.ones(batch, CELLS, CELLS, dtype=torch.bool)
    masks = [blobs(batch, CELLS, 1 - share, seed=1) if share else everything for share in arguments.shares]

    def kept(keep: Tensor, count: int) -> Tensor:
        found: Tensor = pruned(pixels[:count], keep[:count])
        return found

    calls: list[Callable[[int], object]] = [lambda count: model(pixels[:count])]
    calls += [partial(kept, mask.to(machine.device)) for mask in masks]
    ways = [partial(once, call, machine) for call in calls]
    found = [timings[0] for timings in take_turns(ways, [1], [batch], [batch], arguments.rounds, lambda _: None)]
    dense = found[0]
    rows: list[dict[str, Any]] = [{"removed": None, "images_per_second": dense.throughput, "ratio": 1.0, "ideal": 1.0}]
    for mask, timing in zip(masks, found[1:], strict=True):
        rows.append({
            "removed": 1 - float(mask.float().mean()),
            "images_per_second": timing.throughput,
            "ratio": timing.speedup_over(dense),
            "ideal": float(pruned.macs(everything).sum() / pruned.macs(mask).sum()),
        })  # fmt: skip
    return {"model": name, "timm": known, "size": side, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.35, 0.5, 0.65], help="of patches removed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="32", help="32, bf16, fp16, auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = Machine.pick(arguments.device, arguments.precision)
    facts = machine.describe() | {"batch_size": arguments.batch_size}
    if not arguments.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    models = []
    for name in arguments.model:
        models.append(measure(name, arguments, machine))
        if not arguments.json:
            show(models[-1])
    if arguments.json:
        print(json.dumps(facts | {"models": models}, indent=2))


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['model']:<24}{'images/s':>10}{'ratio':>8}{'ideal':>8}{'share':>8}")
    for row in found["rows"]:
        side = "dense, timm" if row["removed"] is None else f"{row['removed']:.0%} removed"
        share = row["ratio"] / row["ideal"]
        print(
            f"{side:<24}{row['images_per_second']:>10.2f}{row['ratio']:>8.2f}{row['ideal']:>8.2f}{share:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
