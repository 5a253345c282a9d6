"""Build labels of a folder with one JSON file for each image, as SA-1B has it; compare with the plain recipe.

    uv run python tests/benchmarks/bench_folder.py [--images 4000] [--workers 2] [--repeat 2] [--json FILE]

No real SA-1B is at hand. The files are made to be like it: 1500 x 2250 pixels, a hundred masks of an image in
compressed run lengths. The masks are outlines of real COCO objects (of the generated sample where these are absent),
scaled to between one and sixty hundredths of the picture, small ones being as likely as large ones; 24 such images are
drawn, and repeated under names and ids of their own.

*recipe*: what people write, in one process: `json.load`, pycocotools' decoding of every mask, their union, exact area
per patch by two matrix products; timed on every 50th image and scaled. *planning*: bytes that the process which plans
the build holds of each image, from the columns of a million images. The last lines are arithmetic: processor seconds
of all processes for an image, less those of starting, times the eleven million of SA-1B, shared out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_build import GRID, REPOSITORY, TreeMemory, real_records
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 2250, 1500
DRAWN, MASKS = 24, 100
SMALLEST, LARGEST = 0.01, 0.6
EVERY = 50
SHARD_ROWS = 500
PER_FOLDER = 1000
SA_1B = 11_000_000
PLANNED = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2, help="runs of each build; the best counts")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, in seconds and bytes."""
    data = folder / "sa1b"
    size = write_files(data, drawn_images(folder), arguments.images)
    figures: dict[str, Any] = {
        "images": arguments.images,
        "masks": arguments.images * MASKS,
        "bytes_per_file": size / arguments.images,
        "workers": arguments.workers,
        "planning": planning_memory(),
    }
    for rule in ("overlap", "pixel-ratio"):
        few = [build(data, folder / f"few-{run}-{rule}", rule, arguments.workers, "--limit", "10") for run in range(2)]
        runs = [build(data, folder / f"out-{rule}-{run}", rule, arguments.workers) for run in range(arguments.repeat)]
        best = min(runs, key=lambda run: run["wall"])
        worked = min(run["processor"] for run in runs) - min(run["processor"] for run in few)
        figures[rule] = best | {
            "processor_per_image": worked / (arguments.images - 10),
            "pss": max(run["pss"] for run in runs),
        }
    figures["recipe"] = recipe_seconds(data)
    figures["times_faster_than_recipe"] = figures["recipe"] * arguments.images / figures["pixel-ratio"]["wall"]
    return figures


def drawn_images(folder: Path) -> list[list[str]]:
    """The entries of `annotations` of some images as JSON, without their ids and without the first brace."""
    outlines = [
        np.array(entry["segmentation"][0]).reshape(-1, 2)
        for document in real_records(folder)
        for entry in document["annotations"]
        if isinstance(entry["segmentation"], list)
    ]
    random = np.random.default_rng(0)
    images = []
    for _ in range(DRAWN):
        entries: list[dict[str, Any]] = []
        while len(entries) < MASKS:
            outline = outlines[random.integers(len(outlines))]
            low, high = outline.min(axis=0), outline.max(axis=0)
            if (high - low).min() < 8:
                continue
            share = SMALLEST * (LARGEST / SMALLEST) ** random.random()
            scale = share * np.sqrt(WIDTH * HEIGHT / np.prod(high - low))
            extent = (high - low) * scale
            place = random.random(2) * np.maximum([WIDTH, HEIGHT] - extent, 0)
            points = (outline - low) * scale + place + random.normal(0, 0.7, outline.shape)
            mask = coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
            area = float(coco_mask.area(mask))
            if area == 0:
                continue
            entries.append(
                {
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()},
                    "bbox": coco_mask.toBbox(mask).tolist(),
                    "area": area,
                    "predicted_iou": round(0.85 + 0.15 * random.random(), 6),
                    "stability_score": round(0.92 + 0.08 * random.random(), 6),
                    "crop_box": [0.0, 0.0, float(WIDTH), float(HEIGHT)],
                    "point_coords": [(place + extent / 2).tolist()],
                }
            )
        images.append([json.dumps(entry)[1:] for entry in entries])
    return images


def write_files(folder: Path, images: list[list[str]], count: int) -> int:
    """Write the JSON files, a thousand in a folder; returns their size."""
    total = 0
    for index in range(count):
        name = f"sa_{index + 1}"
        first = index * MASKS
        entries = [f'{{"id": {first + place}, {entry}' for place, entry in enumerate(images[index % len(images)])]
        image = {"image_id": index + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{name}.jpg"}
        text = f'{{"image": {json.dumps(image)}, "annotations": [{", ".join(entries)}]}}'
        path = folder / f"sa_{index // PER_FOLDER:06d}" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        total += len(text)
    os.sync()  # else the disk is still busy with it while the builds are timed
    return total


def build(folder: Path, out: Path, rule: str, workers: int, *more: str) -> dict[str, Any]:
    """Run the command, whole process; wall seconds, stages and the largest PSS of the tree in bytes."""
    command = [sys.executable, "-m", "cli.tokenlabels", "build", "coco", "--annotations", str(folder)]
    command += ["--rule", rule, "--out", str(out), "--workers", str(workers), "--json", *more]
    command += ["--shard-rows", str(SHARD_ROWS)]  # so that no worker has much more to do than another
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    memory, times = TreeMemory(process.pid), TreeTimes(process.pid)
    memory.start()
    times.start()
    answer, _ = process.communicate()
    wall = time.perf_counter() - start
    for watcher in (memory, times):
        watcher.stop.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"the build failed: {command}")
    found = json.loads(answer)
    return {
        "wall": wall,
        "images_per_second": found["images"] / wall,
        "stages": found["stage_seconds"],
        "pss": memory.peak,
        "processor": sum(times.seconds.values()),
        "out_bytes": found["bytes"],
    }


class TreeTimes(threading.Thread):
    """Samples the processor seconds of a process and its descendants, by process id."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.seconds: dict[int, float] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        import psutil

        while not self.stop.wait(0.05):
            try:
                root = psutil.Process(self._pid)
                for process in [root, *root.children(recursive=True)]:
                    used = process.cpu_times()
                    self.seconds[process.pid] = used.user + used.system
            except psutil.Error:
                continue


def planning_memory() -> dict[str, float]:
    """Bytes of each image that planning a million of them holds, and the growth of the process while it does so."""
    code = f"""
import json, resource
import numpy as np
import tokenlabels.planning, tokenlabels.sources.coco_folder as coco_folder
from tokenlabels.check import FindingLog
from tokenlabels.deferred import DeferredRecords
from tokenlabels.texts import Texts

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
parts = []
for start in range(0, {PLANNED}, 512):
    numbers = range(start, min(start + 512, {PLANNED}))
    n = len(numbers)
    sizes = np.full(n, 1500, np.int32)
    parts.append(DeferredRecords(
        "", None,
        Texts.of(f"sa_{{i // 11186:06d}}/sa_{{i}}.json" for i in numbers), np.zeros(n, np.uint64),
        Texts.of(map(str, numbers)), Texts.of(f"sa_{{i // 11186:06d}}/sa_{{i}}.jpg" for i in numbers),
        sizes, sizes.copy(), sizes.copy(), sizes.copy(),
    ))
records = DeferredRecords.joined(parts)
parts.clear()
records.keep_images(coco_folder._first_of_each_id(records, FindingLog(masks_scored=True)))
columns = [records.sources, records.image_ids, records.file_names, records.digests, records.widths, records.heights,
           records.counts, records.left_out]
held = sum(column.nbytes for column in columns)
print(json.dumps({{"columns": held / {PLANNED}, "peak": (peak() - before) / {PLANNED}}}))
"""
    answer = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def recipe_seconds(folder: Path) -> float:
    """The plain recipe on every 50th image, seconds for one."""
    code = f"""
import json, sys, time
from pathlib import Path
import numpy as np
from pycocotools import mask as coco_mask

def weights(size):
    edges = np.arange({GRID} + 1) * size / {GRID}
    pixels = np.arange(size)
    return np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)

paths = sorted(Path(sys.argv[1]).rglob("*.json"))[::{EVERY}]
start = time.perf_counter()
for path in paths:
    with path.open() as file:
        document = json.load(file)
    image = document["image"]
    union = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in document["annotations"]:
        union |= coco_mask.decode(annotation["segmentation"])
    area = weights(image["height"]) @ union @ weights(image["width"]).T
    scores = area / (image["height"] / {GRID} * image["width"] / {GRID})
print((time.perf_counter() - start) / len(paths))
"""
    answer = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def print_figures(figures: dict[str, Any]) -> None:
    workers = figures["workers"]
    print(
        f"{figures['images']:,} images of {WIDTH} x {HEIGHT}, {figures['masks']:,} masks, "
        f"{figures['bytes_per_file'] / 1e3:.0f} kB of JSON each, {workers} workers"
    )
    for rule in ("overlap", "pixel-ratio"):
        run = figures[rule]
        print(
            f"{rule}: {run['wall']:.2f} s, {run['images_per_second']:,.0f} images/s, peak {run['pss'] / 1e9:.2f} GB of "
            f"memory, {run['out_bytes'] / 1e6:.1f} MB written"
        )
        print("   " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run["stages"].items()))
    print(
        f"recipe (every {EVERY}th image): {figures['recipe'] * 1e3:.0f} ms an image in one process; pixel-ratio is "
        f"{figures['times_faster_than_recipe']:.1f} x faster with {workers} workers"
    )
    planning = figures["planning"]
    print(
        f"planning: {planning['columns']:.0f} bytes of columns an image, {planning['peak']:.0f} at most meanwhile: "
        f"{planning['columns'] * SA_1B / 1e9:.1f} GB and {planning['peak'] * SA_1B / 1e9:.1f} GB for {SA_1B:,} images"
    )
    for rule in ("overlap", "pixel-ratio"):
        seconds = figures[rule]["processor_per_image"]
        hours = {count: seconds * SA_1B / count / 3600 for count in (2, 16, 64, 256)}
        print(
            f"paper estimate, {rule}: {seconds * 1e3:.2f} ms of a core an image x {SA_1B:,} = "
            + ", ".join(f"{value:.2f} h on {count} cores" for count, value in hours.items())
            + " (as long as the disks deliver)"
        )


if __name__ == "__main__":
    main()
