"""BAViT's speed as ratios to the same timm model written plainly, measured in the same run.

    uv run --all-extras python tests/benchmarks/bench_bavit.py

Measured are a training step and inference on batches in memory, the loader alone (augmentation included) against the
rate at which the model trains, and against PIL in a plain DataLoader; on a GPU also bf16 with torch.compile at batch
256, as a share of the chip's measured rate of matrix products. Rounds of both sides take turns; the median counts.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import tokenlabels
from bavit.background.predict import Place
from bavit.background.settings import Settings
from bavit.background.train import BackgroundLearner, new_model
from bavit.data import Batch, BatchOrder, ShardImages, loader
from bavit.device import make_fabric, pick_device, pick_precision
from bavit.rows import Rows, read_rows
from bavit.training.learner import Task
from bavit.training.run import TrainingRun
from tokenlabels.progress import Silent

_KINDS = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def synchronised(device: str) -> float:
    """Now, after all work on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rates(
    sides: dict[str, Callable[[], int]], rounds: int, steps: int, device: str, warmup: int = 2
) -> dict[str, float]:
    """Images per second of several functions that return how many images they took; their rounds take turns."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = synchronised(device)
            images = sum(side() for _ in range(steps))
            found[name].append(images / (synchronised(device) - begun))
    return {name: statistics.median(values) for name, values in found.items()}


def plain_model(depth: int) -> VisionTransformer:
    """The timm model, as anybody would write it."""
    return VisionTransformer(
        img_size=384, patch_size=16, embed_dim=192, depth=depth, num_heads=3, num_classes=2, class_token=False,
        global_pool="",
    )  # fmt: skip


def plain_step(depth: int, batch: Batch, device: str, precision: str) -> Callable[[], int]:
    """A training step written plainly: float pixels, Adam, cross entropy."""
    model = plain_model(depth).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    pixels, labels = batch.pixels.contiguous(), batch.labels.long()

    def step() -> int:
        x = (pixels.to(device).float() / 255 - 0.5) / 0.5
        with torch.autocast(device, dtype=_KINDS[precision], enabled=_KINDS[precision] is not None):
            logits = model(x)
            loss = criterion(logits.reshape(-1, 2), labels.to(device).reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(pixels)

    return step


def plain_inference(depth: int, batch: Batch, device: str, precision: str) -> Callable[[], int]:
    """Inference written plainly."""
    model = plain_model(depth).to(device).eval()
    pixels = batch.pixels.contiguous()

    def infer() -> int:
        x = (pixels.to(device).float() / 255 - 0.5) / 0.5
        with torch.no_grad(), torch.autocast(device, dtype=_KINDS[precision], enabled=_KINDS[precision] is not None):
            model(x).softmax(-1)[..., 0]
        return len(pixels)

    return infer


class PlainImages(Dataset[tuple[Tensor, Tensor]]):
    """Pictures as PIL and a plain data set give them: decode, resize, float; no augmentation."""

    def __init__(self, rows: Rows, contents: list[bytes]) -> None:
        self._labels, self._contents = rows.labels, contents

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = (
            Image.open(io.BytesIO(self._contents[index])).convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)
        )
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)
        return pixels, torch.from_numpy(self._labels[index].reshape(-1).astype(np.int64))


def forever(batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    while True:
        yield from batches()


def loader_rates(rows: Rows, contents: list[bytes], workers: int, rounds: int) -> dict[str, float]:
    """Images per second of the loader with everything that training does to pictures, without, and of plain PIL."""
    sides: dict[str, Callable[[], int]] = {}
    for name, augmentation in (("augmented", Settings.make(init="none").optimization.augmentation), ("as it is", None)):
        order = BatchOrder(rows, 32, seed=0)
        stream = forever(loader(ShardImages(rows, None, augmentation), order, workers).__iter__)
        sides[name] = lambda stream=stream: len(next(stream).labels)  # type: ignore[misc]
    plain = DataLoader(PlainImages(rows, contents), 32, shuffle=True, num_workers=workers, drop_last=True,
                       persistent_workers=workers > 0)  # fmt: skip
    stream = forever(plain.__iter__)
    sides["plain PIL"] = lambda stream=stream: len(next(stream)[0])  # type: ignore[misc]
    found: dict[str, float] = {}
    for name, side in sides.items():  # one after the other: the workers of a loader that waits still fill its queue
        found |= rates({name: side}, rounds, steps=max(8, len(rows) // 32), device="cpu", warmup=10)
    return found


def matrix_rate(device: str, kind: torch.dtype) -> float:
    """Multiply-accumulates per second of a product of large square matrices."""
    side = 8192 if device == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return rates({"": lambda: (one @ other, 1)[1]}, 5, 10, device)[""] * side**3


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    build = tokenlabels.open(arguments.labels) if arguments.labels else sample_build(folder)
    rows = read_rows(build, splits=build.splits[:1], scores=False)
    order = BatchOrder(rows, arguments.batch_size, seed=0)
    batch = next(iter(loader(ShardImages(rows, None), order, 0)))
    found: dict[str, Any] = {"device": device, "precision": precision, "batch_size": arguments.batch_size,
                             "depth": arguments.depth, "threads": torch.get_num_threads()}  # fmt: skip
    sides = {"plain": plain_step(arguments.depth, batch, device, precision)}
    for recipe in ("paper", "scratch"):
        settings = Settings.make(init="none", recipe=recipe, depth=arguments.depth, batch_size=arguments.batch_size,
                                 precision=precision, compile=arguments.compile, epochs=1000)  # fmt: skip
        task = Task(rows, rows, None, None, folder / recipe, workers=0, device=device)
        run = TrainingRun(BackgroundLearner(task, settings), {}, make_fabric(device, precision), Silent())
        run.begin(0)
        sides[recipe] = lambda run=run: (run.step(batch), len(batch.labels))[1]  # type: ignore[misc]
    trained = rates(sides, arguments.rounds, arguments.steps, device)
    model = new_model(Settings.make(init="none", depth=arguments.depth), rows)
    run_model = Place(device, precision, compile=arguments.compile).runner(model)
    inferred = rates(
        {
            "plain": plain_inference(arguments.depth, batch, device, precision),
            "bavit": lambda: (run_model(batch.pixels), len(batch.labels))[1],
        },
        arguments.rounds, arguments.steps, device,
    )  # fmt: skip
    found["training_images_per_second"] = trained
    found["training_ratio"] = {name: trained[name] / trained["plain"] for name in ("paper", "scratch")}
    found["inference_images_per_second"] = inferred
    found["inference_ratio"] = inferred["bavit"] / inferred["plain"]
    if not arguments.skip_loader:
        contents = [row["image"]["bytes"] for row in build.table(split=build.splits[0], columns=["image"]).to_pylist()]
        loaded = loader_rates(rows, contents, arguments.workers, arguments.rounds)
        found["loader_images_per_second"] = loaded
        found["loader_to_model"] = loaded["augmented"] / trained["scratch"]
        found["loader_to_plain_pil"] = loaded["as it is"] / loaded["plain PIL"]
    kind = _KINDS[precision] or torch.float32
    found["matrix_macs_per_second"] = matrix_rate(device, kind)
    found["inference_share_of_matrix_rate"] = inferred["bavit"] * model.macs / found["matrix_macs_per_second"]
    return found


def sample_build(folder: Path) -> tokenlabels.Build:
    """The generated sample, 384 x 384, embedded."""
    tokenlabels.write_sample(folder / "sample", images=160)
    return tokenlabels.build("coco", root=folder / "sample", out=folder / "labels", embed_images=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="a build with embedded images on 384x384-p16 [the sample]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="32, bf16, fp16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--skip-loader", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
