"""Read label-only shards as torch tensors: `Build.torch_dataset` against Hugging Face `datasets`, in one run.

    uv run --all-extras python tests/benchmarks/bench_open.py [--images 118287] [--seconds 3] [--json FILE]

The build is that of `bench_build.py`: real COCO records repeated, squash 384, patch 16. Each of our ways is set beside
those of `datasets` that give the same: rows, or batches of 256; in order, or shuffled; of two columns, or all; in this
process, or by a DataLoader; with two workers these are kept from an earlier pass. `map` is the Arrow copy that
`datasets` makes of the shards beforehand, which is not timed; `stream` reads the shards themselves, as ours does. A
ratio is ours to the faster of both. Everything takes turns, `--repeat` times, for `--seconds` each or one pass; the
best counts. Our first pass is told, too: later ones have what was kept in memory, as far as it fits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when datasets is imported

from bench_build import REPOSITORY, real_records, write_repeated

BATCH = 256
WORKERS = 2
COLUMNS = {"two columns": ["image_id", "labels"], "all columns": None}
"""All: ids, names, sizes, labels, scores, counts and objects."""

Way = Callable[[], Iterable[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--seconds", type=float, default=3, help="of each way at most")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = build(Path(folder), arguments.images)
        figures = {"images": arguments.images, "batch": BATCH, "workers": WORKERS, "comparisons": []}
        for name, ways in comparisons(out, Path(folder) / "cache"):
            rates = measure(ways, arguments.seconds, arguments.repeat)
            ratio = rates["ours"] / max(rates["map"], rates["stream"])
            figures["comparisons"].append({"what": name, "rows_per_second": rates, "ratio": ratio})
            told = ", ".join(f"{way} {found:,.0f}" for way, found in rates.items())
            print(f"{name}: {told} rows/s; {ratio:.1f} times as fast", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def build(folder: Path, images: int) -> Path:
    """Shards of so many images; the folder of the build."""
    annotations, out = folder / "instances_big.json", folder / "labels"
    write_repeated(real_records(folder), images, images * 7, annotations)
    command = [sys.executable, "-m", "cli.tokenlabels", "build", "coco", "--annotations", str(annotations), "--json"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=REPOSITORY, capture_output=True)
    annotations.unlink()
    return out


def comparisons(out: Path, cache: Path) -> Iterable[tuple[str, dict[str, Way]]]:
    """What is compared: a name, and ways to give the same items."""
    import datasets
    from torch.utils.data import DataLoader

    import tokenlabels

    opened = tokenlabels.open(out)
    files = {"data_files": [str(path) for path in opened.files()], "split": "train", "cache_dir": str(cache)}
    copied = datasets.load_dataset("parquet", **files)
    streamed = datasets.load_dataset("parquet", streaming=True, **files)
    for named, columns in COLUMNS.items():
        chosen = columns or copied.column_names
        held, stream = (rows.select_columns(chosen).with_format("torch") for rows in (copied, streamed))
        for order in ("in order", "shuffled"):
            shuffle = order == "shuffled"
            theirs = {
                "map": held.shuffle(seed=0) if shuffle else held,
                "stream": stream.shuffle(seed=0, buffer_size=1000) if shuffle else stream,
            }
            rows = opened.torch_dataset(columns=chosen, shuffle=shuffle)
            batches = opened.torch_dataset(columns=chosen, shuffle=shuffle, batch_size=BATCH)
            yield f"rows, {named}, {order}", {"ours": rows.__iter__} | {k: d.__iter__ for k, d in theirs.items()}
            yield (
                f"batches, {named}, {order}",
                {"ours": batches.__iter__} | {k: partial(d.iter, BATCH) for k, d in theirs.items()},
            )
            if columns is None:
                continue  # objects of different numbers: no loader puts those together by itself
            yield (
                f"DataLoader, {WORKERS} workers, {named}, {order}",
                {"ours": loaded(DataLoader(batches, batch_size=None, num_workers=WORKERS, persistent_workers=True))}
                | {
                    name: loaded(DataLoader(d, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True))
                    for name, d in theirs.items()
                },
            )
            yield (
                f"DataLoader of rows, {named}, {order}",
                {"ours": partial(iter, DataLoader(rows, batch_size=BATCH))}
                | {name: partial(iter, DataLoader(d, batch_size=BATCH)) for name, d in theirs.items()},
            )


def loaded(loader: Any) -> Way:
    """Passes of a loader whose workers run already."""
    for _ in zip(range(1), loader, strict=False):
        pass
    return lambda: iter(loader)


def measure(ways: dict[str, Way], seconds: float, repeat: int) -> dict[str, float]:
    """Rows a second of each way, the best of some turns."""
    best = dict.fromkeys(ways, 0.0)
    first = 0.0
    for _ in range(repeat):
        for name, way in ways.items():
            found = rate(way(), seconds)
            best[name] = max(best[name], found)
            first = first or found  # ours comes first
    return best | {"our first pass": first}


def rate(items: Iterable[Any], seconds: float) -> float:
    """Rows a second of what gives rows or batches."""
    count, start = 0, time.perf_counter()
    for item in items:
        labels = item["labels"]
        count += len(labels) if batched(labels) else 1
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def batched(labels: Any) -> bool:
    """Whether labels are of a batch: of ours (n, rows, cols), of theirs (n, cells)."""
    return isinstance(labels, list) or labels.ndim == 3 or (labels.ndim == 2 and labels.shape[1] > 100)


if __name__ == "__main__":
    main()
