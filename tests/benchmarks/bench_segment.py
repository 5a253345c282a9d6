"""What early exit wins in a batch, as ratios to the fastest dense network of the same run.

    uv run --all-extras python tests/benchmarks/bench_segment.py
    uv run --all-extras python tests/benchmarks/bench_segment.py --backbone vit_base_patch16_384 --precision bf16  # GPU

Dense are ours and, of the `backbone`, timm's own blocks with fused attention, whichever is faster; of heads only the
last runs. Tokens end in blobs after block 6 of 12, every picture having its own share, 30 % or 50 % of all on average;
what a head says is replaced by that, after it was computed. `backbone` is embedding and blocks; `segmenter` all of
it: two heads, the rule, the results merged on the grid. `one by one` is the same segmenter in a loop over pictures,
which is how the authors' code goes through a batch. `ideal` is the ratio of multiply-accumulates. Rounds of all sides
take turns; the median of the ratios within a round counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bavit import Segmenter
from bavit.device import pick_device, pick_precision
from bavit.ragged import RaggedTokens
from bavit.segment.accounting import blocks_macs, dense_macs, output_macs
from bavit.segment.backbone import embed
from bavit.segment.heads import HeadOutput
from bavit.vit import run_block

KINDS = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES, SURE = 150, 30.0


def blobs(count: int, cells: int, share: float, seed: int) -> Tensor:
    """bool (count, cells, cells): unions of random discs that cover `share` of all cells, within half a percent."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:cells, :cells] + 0.5
    while True:
        masks = np.zeros((count, cells, cells), np.bool_)
        for mask in masks:
            for _ in range(rng.integers(1, 5)):
                (row, col), radius = rng.uniform(0, cells, 2), rng.uniform(0.1, 0.5) * cells
                mask |= (rows - row) ** 2 + (cols - col) ** 2 < radius**2
        if abs(masks.mean() - share) < 0.005:
            return torch.from_numpy(masks)


class Given(nn.Module):
    """A head that is computed, and then says what it is told: sure of some cells, of others not."""

    ends: Tensor

    def __init__(self, head: nn.Module, ends: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("ends", ends.flatten())
        self.first = 0

    def forward(self, tokens: RaggedTokens) -> HeadOutput:
        found: HeadOutput = self.head(tokens)
        said = torch.zeros_like(found.logits)
        said[:, 0] = SURE * self.ends[self.first : self.first + len(said)]
        if found.class_logits is None:
            return replace(found, logits=said)
        said = torch.where(said > 0, said, -SURE)
        return HeadOutput(
            said, torch.full_like(found.class_logits, -SURE) + 2 * SURE * torch.tensor([1.0, 0.0]).to(said)
        )


def through_blocks(model: Segmenter, pixels: Tensor, ends: Tensor | None) -> Tensor:
    """Embedding and blocks; some tokens end after block 6."""
    tokens = embed(model.backbone, pixels)
    packed = RaggedTokens(tokens.flatten(0, 1), (tokens.shape[1],) * len(tokens))
    for number, block in enumerate(model.backbone.blocks):
        if ends is not None and number == model.head_after[0]:
            stays = torch.cat([ends.new_ones(len(ends), model.backbone.num_prefix_tokens), ~ends.flatten(1)], 1)
            packed = packed.select(stays.flatten())
        packed = run_block(block, packed)
    return packed.values


def measure(name: str, head: Any, size: int, arguments: argparse.Namespace, device: str, kind: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = arguments.batch_size
    model = Segmenter(name, CLASSES, head, (6,), p0=0.5, keep_per_class=0, image_size=size).eval().to(device)
    dense = Segmenter(name, CLASSES, head, (6,), p0=1.0, image_size=size).eval().to(device)
    pixels = torch.randn(batch, 3, size, size, device=device)
    vit = dense.backbone
    sides: dict[str, Callable[[], object]] = {
        "dense, ours": lambda: dense(pixels),
        "backbone, dense, ours": lambda: through_blocks(dense, pixels, None),
        "backbone, dense, timm": lambda: vit.blocks(embed(vit, pixels)),
    }
    ideal: dict[str, float] = {}
    whole = torch.full((1, model.depth), (size // model.patch[0]) ** 2 + 1)
    for share in arguments.shares:
        ends = blobs(batch, size // model.patch[0], share, seed=1).to(device)
        chosen = Segmenter(name, CLASSES, head, (6,), p0=0.5, keep_per_class=0, image_size=size).eval().to(device)
        given = chosen.heads[0] = Given(chosen.heads[0], ends)
        with torch.inference_mode():
            found = chosen(pixels)
        assert torch.equal(found.exit_stage == 0, ends), "what ended is not what should"
        inner = given.head
        chosen.heads[0] = inner
        macs = float(output_macs(chosen, found).mean())
        chosen.heads[0] = given
        ideal[f"segmenter {share:.0%}"] = dense_macs(dense, (size, size)) / macs
        ideal[f"backbone {share:.0%}"] = float(blocks_macs(dense, whole)[0] / blocks_macs(dense, found.tokens).mean())
        sides[f"backbone {share:.0%}"] = lambda ends=ends: through_blocks(model, pixels, ends)  # type: ignore[misc]
        sides[f"segmenter {share:.0%}"] = lambda chosen=chosen: chosen(pixels)  # type: ignore[misc]
        sides[f"segmenter {share:.0%}, one by one"] = lambda chosen=chosen: one_by_one(chosen, pixels)  # type: ignore[misc]
    with torch.inference_mode(), torch.autocast(device, dtype=kind, enabled=kind is not None):
        took = timed(sides, arguments.rounds, device)
    rows = [row(side, took, ideal, batch) for side in sides]
    return {"backbone": name, "head": head, "size": size, "batch_size": batch, "rows": rows}


def one_by_one(model: Segmenter, pixels: Tensor) -> None:
    """A loop over pictures."""
    given: Any = model.heads[0]
    cells = len(given.ends) // len(pixels)
    for number in range(len(pixels)):
        given.first = number * cells
        model(pixels[number : number + 1])
    given.first = 0


def timed(sides: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each side in each round, after two rounds for warming up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, side in sides.items():
            begun = now(device)
            side()
            if number >= 2:
                found[name].append(now(device) - begun)
    return found


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def row(side: str, took: dict[str, list[float]], ideal: dict[str, float], batch: int) -> dict[str, Any]:
    """One line: against the fastest dense side of its kind, round by round."""
    rivals = [name for name in took if "dense" in name and name.startswith("backbone") == side.startswith("backbone")]
    best = min(rivals, key=lambda name: statistics.median(took[name]))
    ratio = statistics.median(before / now for before, now in zip(took[best], took[side], strict=True))
    limit = ideal.get(side.partition(",")[0]) if "dense" not in side else None
    seconds = statistics.median(took[side])
    return {
        "side": side,
        "ms": seconds * 1e3,
        "images_per_second": batch / seconds,
        "ratio": ratio,
        "ideal": limit,
        "share_of_ideal": None if limit is None else ratio / limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--head", nargs="+", default=["fcn", "atm"], choices=["fcn", "atm"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5], help="of tokens that end")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="32", choices=[*KINDS, "auto"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    found = [
        measure(arguments.backbone, head, arguments.size, arguments, device, KINDS[precision])
        for head in arguments.head
    ]
    if arguments.json:
        print(json.dumps({"device": device, "precision": precision, "results": found}))
        return
    print(f"{device}, precision {precision}, {torch.get_num_threads()} threads")
    for result in found:
        name, size = result["backbone"], result["size"]
        print(f"\n{name}, {result['head']}, {size} x {size}, batch {result['batch_size']}")
        print(f"{'':30}{'ms':>9}{'images/s':>10}{'ratio':>8}{'ideal':>8}{'share':>8}")
        for line in result["rows"]:
            rest = [line[key] for key in ("ideal", "share_of_ideal")]
            ends = "".join(f"{'' if value is None else format(value, '.2f'):>8}" for value in rest)
            print(f"{line['side']:30}{line['ms']:9.0f}{line['images_per_second']:10.1f}{line['ratio']:8.2f}{ends}")


if __name__ == "__main__":
    main()
