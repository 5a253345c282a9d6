"""What removing background in front of YOLOS-tiny wins, as ratios to the fastest dense YOLOS of the same run.

    uv run --all-extras python tests/benchmarks/bench_detect.py
    uv run --all-extras python tests/benchmarks/bench_detect.py --batch-size 64 --precision bf16  # on a GPU

Dense are ours and transformers' with its fused attention, whichever is faster. Masks are unions of boxes, like ground
truth, of the sparsity that is asked for on average over the batch; every image has its own. `yolos` is the detector
alone, by backend of attention; `pipeline` is BAViT (2 blocks, 384 x 384), refinement, masks carried to the detector's
grid, the pruned detector and its boxes, from normalised pixels. What BAViT would remove is replaced by the masks, after
it was computed. `ideal` is the ratio of multiply-accumulates. Rounds of all sides take turns; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import YolosConfig as ReferenceConfig
from transformers import YolosForObjectDetection

from bavit import BAViT, PrunedDetector, Yolos
from bavit.attention import Backend
from bavit.detect.accounting import detector_macs
from bavit.detect.config import SIZES
from bavit.device import pick_device, pick_precision

KINDS = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE, CELLS = 512, 32


def box_masks(count: int, sparsity: float, seed: int) -> Tensor:
    """bool (count, 32, 32): unions of random boxes that leave `sparsity` of all patches, within half a percent."""
    if not sparsity:
        return torch.ones(count, CELLS, CELLS, dtype=torch.bool)
    rng = np.random.default_rng(seed)
    while True:
        masks = np.zeros((count, CELLS, CELLS), np.bool_)
        for mask in masks:
            for _ in range(rng.integers(1, 8)):
                height, width = rng.integers(3, 28, 2)
                row, col = rng.integers(0, CELLS - height + 1), rng.integers(0, CELLS - width + 1)
                mask[row : row + height, col : col + width] = True
        if abs(1 - masks.mean() - sparsity) < 0.005:
            return torch.from_numpy(masks)


def reference() -> Any:
    """transformers' YOLOS-tiny with random weights and fused attention."""
    config = ReferenceConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=(800, 1333), layer_norm_eps=1e-6,
        use_mid_position_embeddings=False, id2label={index: str(index) for index in range(91)},
    )  # fmt: skip
    model: Any = YolosForObjectDetection(config)
    return model.eval()  # its attention is torch's fused one by default


class GivenMasks(PrunedDetector):
    """A pruned detector that computes its masks, and then takes others."""

    given: Tensor

    def masks(self, background: Tensor, pixels: Any, sizes: Any) -> list[Tensor | None] | None:
        super().masks(background, pixels, sizes)
        return None if bool(self.given.all()) else [*self.given]


def seconds(sides: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each side, rounds in turns, after two rounds for warming up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, side in sides.items():
            begun = now(device)
            side()
            if number >= 2:
                found[name].append(now(device) - begun)
    return {name: statistics.median(values) for name, values in found.items()}


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(side: Callable[[], object]) -> float:
    """MiB that a call takes at most on a GPU, weights included."""
    torch.cuda.reset_peak_memory_stats()
    side()
    return torch.cuda.max_memory_allocated() / 2**20


def measure(batch: int, arguments: argparse.Namespace, device: str, precision: str) -> dict[str, Any]:
    torch.manual_seed(0)
    yolos, theirs = Yolos(SIZES["tiny"]).eval().to(device), reference().to(device)
    bavit = BAViT().eval().to(device).to(memory_format=torch.channels_last)
    pixels, small = torch.randn(batch, 3, SIDE, SIDE, device=device), torch.randn(batch, 3, 384, 384, device=device)
    backends: list[Backend] = ["slices", "padded", "bucketed"]
    if device == "cuda" and precision != "32":
        backends.append("varlen")
    sides: dict[str, Callable[[], object]] = {
        "dense, transformers": lambda: theirs(pixel_values=pixels),
        "dense, ours": lambda: yolos(pixels),
        "BAViT alone": lambda: bavit.background(small),
    }
    ideal: dict[str, float] = {}
    dense_macs = detector_macs(yolos.config, CELLS**2, CELLS**2)
    for sparsity in arguments.sparsity:
        keep = box_masks(batch, sparsity, seed=1).to(device)
        detector = GivenMasks(bavit, yolos)
        detector.given = keep
        macs = float(detector_macs(yolos.config, keep.flatten(1).sum(1).cpu().numpy(), CELLS**2).mean())
        ideal[f"yolos {sparsity:.0%}"] = dense_macs / macs
        ideal[f"pipeline {sparsity:.0%}"] = dense_macs / (macs + bavit.macs)
        if sparsity:
            for backend in backends:
                sides[f"yolos {sparsity:.0%}, {backend}"] = lambda keep=keep, backend=backend: yolos(  # type: ignore[misc]
                    pixels, keep, backend=backend
                )
        sides[f"pipeline {sparsity:.0%}"] = lambda detector=detector: detector.detect(  # type: ignore[misc]
            small, pixels, [(SIDE, SIDE)] * batch
        )
    kind = KINDS[precision]
    with torch.inference_mode(), torch.autocast(device, dtype=kind, enabled=kind is not None):
        took = seconds(sides, arguments.rounds, device)
        peaks = {name: memory(side) for name, side in sides.items()} if device == "cuda" else {}
    dense = min(took["dense, transformers"], took["dense, ours"])
    rows = []
    for name, value in took.items():
        limit = ideal.get(name.partition(",")[0])
        rows.append({
            "side": name,
            "ms": value * 1e3,
            "images_per_second": batch / value,
            "ratio": dense / value,
            "ideal": limit,
            "share_of_ideal": None if limit is None else dense / value / limit,
            "peak_mib": peaks.get(name),
        })  # fmt: skip
    return {"batch_size": batch, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="32", help="32, bf16, fp16, auto")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.35, 0.46])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    facts = {"device": device, "precision": precision, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if not arguments.json:
        print(f"YOLOS-tiny {SIDE}x{SIDE}; {', '.join(f'{name} {value}' for name, value in facts.items())}")
    batches = []
    for batch in arguments.batch_size:
        batches.append(measure(batch, arguments, device, precision))
        if not arguments.json:
            show(batch, batches[-1]["rows"])
    if arguments.json:
        print(json.dumps(facts | {"batches": batches}, indent=2))


def show(batch: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{f'batch {batch}':<26}       ms  images/s    ratio   ideal   share     MiB")
    for row in rows:
        rest = [row[name] for name in ("ideal", "share_of_ideal", "peak_mib")]
        shown = "".join(f"{'' if value is None else format(value, '.2f'):>8}" for value in rest)
        print(
            f"{row['side']:<26}{row['ms']:>9.1f}{row['images_per_second']:>10.1f}{row['ratio']:>9.2f}{shown}",
            flush=True,
        )


if __name__ == "__main__":
    main()
