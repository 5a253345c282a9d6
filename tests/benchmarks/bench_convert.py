"""Merging, splitting and exporting a build as large as train2017, in rows a second, beside reading it with PyArrow.

    uv run python tests/benchmarks/bench_convert.py [--images 118287] [--annotations 860001]

Each task runs in a process of its own, which is timed whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_build import REPOSITORY, real_records, write_repeated

_READ = "import pyarrow.parquet as pq, sys; [pq.read_table(path) for path in sys.argv[1:]]"


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--folder", type=Path, help="where to work, by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(Path(folder), arguments.images, arguments.annotations), indent=2))


def measure(folder: Path, images: int, annotations: int) -> dict[str, Any]:
    """Seconds and rows a second of every task."""
    records, builds = real_records(folder), {"big": (images, annotations), "small": (50, 400)}
    for name, (rows, objects) in builds.items():
        file = folder / f"instances_{name}.json"
        write_repeated(records, rows, objects, file)
        tokenlabels("build", "coco", "--annotations", file, "--split", "all", "--out", folder / name)
        file.unlink()
    big, small = folder / "big", folder / "small"
    tasks: dict[str, list[str | Path]] = {
        "merge": ["merge", small, big, "--prefix-ids"],  # no row stays in the shard where it was
        "split": ["split", big, "--val", "0.1"],
        **{name: ["export", big, "--format", name] for name in ("webdataset", "npz", "coco")},
    }
    figures = {"read": run([sys.executable, "-c", _READ, *map(str, sorted(big.rglob("*.parquet")))])}
    for name, words in tasks.items():
        figures[name] = tokenlabels(*words, "--out", folder / name)
    return {
        name: {"seconds": round(seconds, 2), "rows_per_second": round(images / seconds)}
        for name, seconds in figures.items()
    }


def tokenlabels(*words: str | Path) -> float:
    """Wall seconds of a command."""
    return run([sys.executable, "-m", "cli.tokenlabels", *map(str, words)])


def run(command: list[str]) -> float:
    """Wall seconds of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
