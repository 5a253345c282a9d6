"""Build labels of a data set of train2017's size; compare with the plain recipe and with the floor, in one run.

    uv run python tests/benchmarks/bench_build.py [--images 118287] [--annotations 860000] [--workers 2] [--json FILE]

The annotation file repeats the real records of `../shared/data/coco` (the generated sample where that is absent), with
ids of its own and annotations in random order, as the official files have them.

*recipe*: what people write: pycocotools `COCO()`, `annToMask` of every annotation, union, exact area per patch by two
matrix products; timed on every 50th image and scaled. *floor*: read the file and decode it with msgspec, masks left
raw. Memory is the largest sum of PSS over the process tree, sampled every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data" / "coco" / "annotations"
GRID = 24
EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each build and of the floor; the best counts")
    parser.add_argument("--skip-recipe", action="store_true")
    parser.add_argument("--skip-scaling", action="store_true", help="leave out the file of four times the size")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, in seconds and bytes."""
    records = real_records(folder)
    annotations = folder / "instances_big.json"
    write_repeated(records, arguments.images, arguments.annotations, annotations)
    figures: dict[str, Any] = {
        "images": arguments.images,
        "annotations": arguments.annotations,
        "file_bytes": annotations.stat().st_size,
        "workers": arguments.workers,
    }
    warm_kernels(folder)
    figures["floor"] = min(floor_seconds(annotations) for _ in range(arguments.repeat))
    for rule in ("overlap", "pixel-ratio"):
        runs = [
            build(annotations, folder / f"out-{rule}-{i}", rule, arguments.workers) for i in range(arguments.repeat)
        ]
        best = min(runs, key=lambda run: run["wall"])
        figures[rule] = best | {"floors": best["wall"] / figures["floor"], "pss": max(run["pss"] for run in runs)}
    if not arguments.skip_scaling:
        larger = folder / "instances_larger.json"
        write_repeated(records, 4 * arguments.images, 4 * arguments.annotations, larger)
        runs = [
            build(larger, folder / f"out-larger-{i}", "pixel-ratio", arguments.workers) for i in range(arguments.repeat)
        ]
        run = min(runs, key=lambda run: run["wall"])
        figures["four_times"] = run | {"ratio": run["wall"] / figures["pixel-ratio"]["wall"]}
        larger.unlink()
    if not arguments.skip_recipe:
        figures["recipe"] = recipe_seconds(annotations)
        figures["pixel-ratio"]["times_faster_than_recipe"] = figures["recipe"]["total"] / figures["pixel-ratio"]["wall"]
    return figures


def real_records(folder: Path) -> list[dict[str, Any]]:
    """COCO documents to repeat."""
    if SHARED.is_dir():
        return [json.loads(path.read_bytes()) for path in sorted(SHARED.glob("instances_*.json"))]
    subprocess.run(
        [sys.executable, "-m", "cli.tokenlabels", "sample", str(folder / "sample"), "--images", "400"],
        check=True,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    return [json.loads(path.read_bytes()) for path in sorted((folder / "sample" / "annotations").glob("*.json"))]


def write_repeated(documents: list[dict[str, Any]], images: int, annotations: int, path: Path) -> None:
    """Write an instances file of the wanted size from repeated records, annotations in random order."""
    pool = []
    for document in documents:
        of_image: dict[int, list[str]] = {image["id"]: [] for image in document["images"]}
        for entry in document["annotations"]:
            body = {key: value for key, value in entry.items() if key not in ("id", "image_id")}
            of_image[entry["image_id"]].append(json.dumps(body, separators=(",", ":"))[1:])
        pool += [(image, of_image[image["id"]]) for image in document["images"]]
    image_lines, annotation_lines = [], []
    for index in range(images):
        image, bodies = pool[index % len(pool)]
        image_lines.append(json.dumps(image | {"id": index + 1, "file_name": f"{index + 1:012d}.jpg"}))
        annotation_lines += [f'"image_id":{index + 1},{body}' for body in bodies]
    shuffler = random.Random(0)
    shuffler.shuffle(annotation_lines)
    while len(annotation_lines) < annotations:
        annotation_lines += annotation_lines[: annotations - len(annotation_lines)]
    with path.open("w") as file:
        categories = json.dumps(documents[0]["categories"])
        file.write(f'{{"info":{{}},"licenses":[],"categories":{categories},"images":[')
        file.write(",".join(image_lines))
        file.write('],"annotations":[')
        for index in range(annotations):
            file.write(f'{"," if index else ""}{{"id":{index + 1},{annotation_lines[index]}')
        file.write("]}")
        file.flush()
        os.fsync(file.fileno())  # else the disk is still busy with it while the builds are timed


def warm_kernels(folder: Path) -> None:
    """Compile what is to be compiled before anything is timed."""
    small = folder / "instances_small.json"
    write_repeated(real_records(folder), 50, 400, small)
    for rule in ("overlap", "pixel-ratio"):
        build(small, folder / f"small-{rule}", rule, 2)


def floor_seconds(annotations: Path) -> float:
    """Read and decode the file with masks left raw, in a process of its own."""
    code = (
        "import sys, time, msgspec\n"
        "from tokenlabels.sources.coco_json import MaskEntry, _StrictFile\n"
        "start = time.perf_counter()\n"
        "msgspec.json.decode(open(sys.argv[1], 'rb').read(), type=_StrictFile[MaskEntry])\n"
        "print(time.perf_counter() - start)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(annotations)], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    return float(answer.stdout)


def build(annotations: Path, out: Path, rule: str, workers: int | None, *options: str) -> dict[str, Any]:
    """Run the command, whole process; wall seconds, stages and the largest PSS of the tree in bytes."""
    command = [sys.executable, "-m", "cli.tokenlabels", "build", "coco", "--annotations", str(annotations)]
    command += ["--rule", rule, "--out", str(out), "--json", *options]
    command += [] if workers is None else ["--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    memory = TreeMemory(process.pid)
    memory.start()
    answer, _ = process.communicate()
    wall = time.perf_counter() - start
    memory.stop.set()
    memory.join()
    if process.returncode:
        raise SystemExit(f"the build failed: {command}")
    found = json.loads(answer)
    return {
        "wall": wall,
        "images_per_second": found["images"] / wall,
        "stages": found["stage_seconds"],
        "pss": memory.peak,
        "out_bytes": found["bytes"],
    }


class TreeMemory(threading.Thread):
    """Samples the sum of PSS over a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peak = 0
        self.stop = threading.Event()

    def run(self) -> None:
        import psutil

        while not self.stop.wait(0.05):
            try:
                root = psutil.Process(self._pid)
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                return
            self.peak = max(self.peak, sum(_pss(process.pid) for process in tree))


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def recipe_seconds(annotations: Path) -> dict[str, float]:
    """The plain recipe on every 50th image, scaled to all."""
    code = f"""
import contextlib, io, json, sys, time
import numpy as np
from pycocotools.coco import COCO

start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO(sys.argv[1])
load = time.perf_counter() - start

def weights(size):
    edges = np.arange({GRID} + 1) * size / {GRID}
    pixels = np.arange(size)
    return np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)

chosen = coco.getImgIds()[::{EVERY}]
start = time.perf_counter()
for image_id in chosen:
    image = coco.imgs[image_id]
    union = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in coco.imgToAnns[image_id]:
        union |= coco.annToMask(annotation)
    area = weights(image["height"]) @ union @ weights(image["width"]).T
    scores = area / (image["height"] / {GRID} * image["width"] / {GRID})
seconds = time.perf_counter() - start
per_image = seconds / len(chosen)
print(json.dumps({{"load": load, "per_image": per_image, "total": load + per_image * len(coco.imgs)}}))
"""
    answer = subprocess.run([sys.executable, "-c", code, str(annotations)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def print_figures(figures: dict[str, Any]) -> None:
    size = figures["file_bytes"] / 1e6
    print(f"{figures['images']:,} images, {figures['annotations']:,} annotations, {size:.0f} MB of JSON, ", end="")
    print(f"{figures['workers']} workers")
    print(f"floor (read + msgspec decode, masks raw): {figures['floor']:.2f} s")
    for rule in ("overlap", "pixel-ratio"):
        run = figures[rule]
        print(
            f"{rule}: {run['wall']:.2f} s, {run['images_per_second']:,.0f} images/s, {run['floors']:.2f} x floor, "
            f"peak {run['pss'] / 1e9:.2f} GB of memory, {run['out_bytes'] / 1e6:.1f} MB written"
        )
        print("   " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run["stages"].items()))
    if "four_times" in figures:
        run = figures["four_times"]
        print(f"pixel-ratio, four times the file: {run['wall']:.2f} s, {run['ratio']:.2f} x the time")
    if "recipe" in figures:
        recipe = figures["recipe"]
        ratio = figures["pixel-ratio"]["times_faster_than_recipe"]
        print(
            f"recipe (every {EVERY}th image, scaled): {recipe['total']:.0f} s ({recipe['load']:.1f} s to load, "
            f"{recipe['per_image'] * 1e3:.2f} ms an image); pixel-ratio is {ratio:.1f} x faster"
        )


if __name__ == "__main__":
    main()
