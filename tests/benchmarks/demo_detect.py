"""The whole way on a CPU, from scratch: a BAViT and a small YOLOS on generated pictures, then what pruning costs.

    uv run --all-extras python tests/benchmarks/demo_detect.py --out detect-demo      # about 25 minutes on two cores

Draws simple scenes of ten categories (`tokenlabels sample --simple`), shrinks them, labels their patches, trains both
models, sweeps thresholds with the masks of BAViT, of the labels, and at random; finetunes the detector on what BAViT
keeps, and sweeps again. Prints average precision against sparsity before and after. Every step is a command of the
project, run as a person would; a step that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

RANKS = max(1, min(8, os.cpu_count() or 1))


def shrink_picture(task: tuple[Path, Path, int]) -> None:
    source, target, side = task
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(target, quality=95)


def shrink(root: Path, out: Path, side: int) -> None:
    """A COCO folder with every picture stretched to side x side pixels, boxes alike; masks are left out."""
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "annotations").glob("instances_*.json")):
        content = json.loads(path.read_bytes())
        split = path.stem.removeprefix("instances_")
        scales = {image["id"]: (side / image["width"], side / image["height"]) for image in content["images"]}
        tasks = [
            (root / split / image["file_name"], out / split / image["file_name"], side) for image in content["images"]
        ]
        with ProcessPoolExecutor() as pool:
            list(pool.map(shrink_picture, tasks, chunksize=64))
        for image in content["images"]:
            image["width"] = image["height"] = side
        for entry in content["annotations"]:
            across, down = scales[entry["image_id"]]
            x, y, width, height = entry["bbox"]
            entry["bbox"] = [x * across, y * down, width * across, height * down]
            entry["area"] *= across * down
            entry["segmentation"] = []
        (out / "annotations" / path.name).write_text(json.dumps(content))


def run(name: str, *words: object, ranks: int = 1) -> float:
    """Run a command of the project; seconds."""
    begun = time.perf_counter()
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    print("$", name, *words, flush=True)
    subprocess.run([sys.executable, *launch, "-m", f"cli.{name}", *map(str, words)], check=True)
    return time.perf_counter() - begun


def table(before: dict[str, Any], after: dict[str, Any]) -> None:
    """AP and AP50 against sparsity, before and after finetuning."""
    print(f"\ndense: AP50 {before['dense']['ap50']:.3f}, AP {before['dense']['ap']:.3f}")
    print(f"{'masks':<8}{'threshold':>10}{'sparsity':>10}{'AP50':>8}{'AP':>8}{'AP50 after':>12}{'AP after':>10}")
    for old, new in zip(before["rows"], after["rows"], strict=True):
        print(
            f"{old['mask']:<8}{old['threshold']:>10.2f}{old['sparsity']:>10.1%}{old['ap50']:>8.3f}{old['ap']:>8.3f}"
            f"{new['ap50']:>12.3f}{new['ap']:>10.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("detect-demo"))
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--bavit-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--finetune-epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=400, help="images to sweep over")
    parser.add_argument("--threshold", type=float, default=0.5, help="of masks while finetuning")
    arguments = parser.parse_args()
    out, side = arguments.out, arguments.side
    drawn, small, labels = out / "drawn", out / "small", out / "labels"
    bavit, detector, finetuned = out / "bavit", out / "detector", out / "finetuned"
    took: dict[str, float] = {}
    run("tokenlabels", "sample", drawn, "--images", arguments.images, "--simple")
    if not small.is_dir():
        shrink(drawn, small, side)
    run(
        "tokenlabels",
        "build",
        "coco",
        "--root",
        small,
        "--patch",
        arguments.patch,
        "--image-size",
        side,
        "--embed-images",
        "--out",
        labels,
    )
    network = (
        "--patch", arguments.patch, "--dim", 128, "--depth", 5, "--heads", 4, "--detection-tokens", 16,
        "--shortest-edge", side, "--longest-edge", side,
    )  # fmt: skip
    plain = ("--crop", 1, "--colour", 0, "--workers", 0, "--batch-size", 16)
    if not (bavit / "model.safetensors").exists():
        took["BAViT"] = run("bavit", "train", labels, "--init", "none", "--epochs", arguments.bavit_epochs,
                            "--workers", 0, "--out", bavit, ranks=RANKS)  # fmt: skip
    if not (detector / "model.safetensors").exists():
        took["detector"] = run("bavit", "finetune", labels, "--detector", "none", *network, *plain, "--epochs",
                               arguments.epochs, "--val-every", 4, "--out", detector, ranks=RANKS)  # fmt: skip
    if not (finetuned / "model.safetensors").exists():
        took["finetuning"] = run("bavit", "finetune", labels, "--detector", detector, "--bavit", bavit, *plain,
                                 "--threshold", arguments.threshold, "--lr", 2e-4, "--epochs",
                                 arguments.finetune_epochs, "--val-every", 4, "--out", finetuned,
                                 ranks=RANKS)  # fmt: skip
    found = []
    for model, name in ((detector, "before"), (finetuned, "after")):
        run("bavit", "sweep", bavit, model, labels, "--thresholds", "0.1,0.2,0.3,0.5,0.7,0.8,0.9,0.95", "--limit",
            arguments.limit, "--out",
            out / name)  # fmt: skip
        found.append(json.loads((out / name / "sweep.json").read_bytes()))
    table(*found)
    print({name: f"{seconds / 60:.1f} min" for name, seconds in took.items()})


if __name__ == "__main__":
    main()
