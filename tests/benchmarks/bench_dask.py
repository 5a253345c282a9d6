"""The same build by local processes, by Dask workers it starts itself, and by a Dask cluster that is running; one run.

    uv run --all-extras python tests/benchmarks/bench_dask.py [--images 118287] [--annotations 860000] [--json FILE]

The annotation file is that of `bench_build.py`. Whole processes are timed, engines in turn; the best of each counts.
The running cluster is a `dask scheduler` and as many `dask worker` processes of one thread as there are local workers,
in other folders, started and warmed before anything is timed.

*estimate*: a file of as many images, with 15 boxes each and no masks, as Objects365 v2 has them (2 million images, 30
million boxes), is built on that cluster; its seconds, bytes and memory are multiplied by the ratio of images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_build import build, real_records, write_repeated

RULES = ("overlap", "pixel-ratio")
IMAGES, BOXES_PER_IMAGE = 2_000_000, 15
"""Of Objects365 v2."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--skip-estimate", action="store_true")
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
    annotations, small = folder / "instances_big.json", folder / "instances_small.json"
    write_repeated(records, 50, 400, small)
    write_repeated(records, arguments.images, arguments.annotations, annotations)
    figures: dict[str, Any] = {
        "images": arguments.images,
        "annotations": arguments.annotations,
        "file_bytes": annotations.stat().st_size,
        "workers": arguments.workers,
    }
    with running_cluster(folder, arguments.workers) as scheduler:
        engines: dict[str, tuple[int | None, tuple[str, ...]]] = {
            "local": (arguments.workers, ()),
            "dask": (arguments.workers, ("--engine", "dask")),
            "cluster": (None, ("--engine", "dask", "--scheduler", scheduler)),
        }
        for name, (workers, options) in engines.items():
            build(small, folder / f"small-{name}", "pixel-ratio", workers, *options)
        for rule in RULES:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
            for turn in range(arguments.repeat):
                for name, (workers, options) in engines.items():
                    out = folder / f"out-{rule}-{name}-{turn}"
                    runs[name].append(build(annotations, out, rule, workers, *options))
            best = {name: min(each, key=lambda run: run["wall"]) for name, each in runs.items()}
            figures[rule] = {name: run | {"ratio": run["wall"] / best["local"]["wall"]} for name, run in best.items()}
        if not arguments.skip_estimate:
            annotations.unlink()
            figures["estimate"] = estimate(folder, records, arguments, scheduler)
    return figures


@contextlib.contextmanager
def running_cluster(folder: Path, workers: int) -> Iterator[str]:
    """Address of the scheduler of a cluster that was started from the command line."""
    port = 18_786
    address = f"tcp://127.0.0.1:{port}"
    lines = [["dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]]
    lines += [["dask_worker", address, "--nthreads", "1", "--memory-limit", "0"]] * workers
    processes = []
    try:
        for number, line in enumerate(lines):
            place = folder / f"process-{number}"
            place.mkdir()
            command = [sys.executable, "-m", f"distributed.cli.{line[0]}", *line[1:], "--no-dashboard"]
            with (place / "log").open("wb") as log:
                processes.append(subprocess.Popen(command, cwd=place, stdout=log, stderr=log))
            time.sleep(2)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def estimate(
    folder: Path, records: list[dict[str, Any]], arguments: argparse.Namespace, scheduler: str
) -> dict[str, Any]:
    """What Objects365 would take, from a file like its."""
    boxes = [
        document | {"annotations": [entry | {"segmentation": []} for entry in document["annotations"]]}
        for document in records
    ]
    file = folder / "instances_boxes.json"
    write_repeated(boxes, arguments.images, BOXES_PER_IMAGE * arguments.images, file)
    options = ("--engine", "dask", "--scheduler", scheduler)
    runs = [build(file, folder / f"out-boxes-{i}", "overlap", None, *options) for i in range(arguments.repeat)]
    best = min(runs, key=lambda run: run["wall"])
    times = IMAGES / arguments.images
    return {
        "measured": best,
        "seconds_per_image": best["wall"] / arguments.images,
        "images": IMAGES,
        "boxes": IMAGES * BOXES_PER_IMAGE,
        "seconds": best["wall"] * times,
        "file_bytes": file.stat().st_size * times,
        "client_bytes": max(run["pss"] for run in runs) * times,
        "out_bytes": best["out_bytes"] * times,
    }


def print_figures(figures: dict[str, Any]) -> None:
    print(f"{figures['images']:,} images, {figures['annotations']:,} annotations, {figures['workers']} workers")
    for rule in RULES:
        for name, run in figures[rule].items():
            stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in run["stages"].items())
            print(f"{rule}, {name}: {run['wall']:.2f} s, {run['ratio']:.2f} x local ({stages})")
    if "estimate" in figures:
        found = figures["estimate"]
        print(
            f"{figures['images']:,} images with {BOXES_PER_IMAGE} boxes each: {found['measured']['wall']:.2f} s, "
            f"{found['seconds_per_image'] * 1e6:.0f} us an image; {found['images']:,} images: "
            f"{found['seconds']:.0f} s, {found['file_bytes'] / 1e9:.1f} GB to read, "
            f"{found['client_bytes'] / 1e9:.1f} GB of memory where the file is read, "
            f"{found['out_bytes'] / 1e9:.1f} GB written"
        )


if __name__ == "__main__":
    main()
