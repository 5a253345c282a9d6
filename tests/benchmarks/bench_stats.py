"""Statistics of a build of train2017's size; compare with the plain recipe and with four times the rows, in one run.

    uv run python tests/benchmarks/bench_stats.py [--images 118287] [--annotations 860000] [--json FILE]

The build is of the annotation file that `bench_build.py` makes: squash 384, patch 16, with scores, label columns only.
*stats* is the whole command, `tokenlabels stats OUT --json`, start-up included. *four times* is a build of the same
shards four times over: time should be four times as long at most, and memory the same. *recipe* is what people write:
`pd.read_parquet` of every shard, `np.stack` of labels and scores, a comparison for each of the 101 thresholds, objects
end to end and grouped; it is checked to find the same numbers. Memory is the largest PSS, sampled every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_build import REPOSITORY, TreeMemory, build, real_records, warm_kernels, write_repeated

TIMES = 4
RECIPE = """
import json, sys
import numpy as np
import pandas as pd

frame = pd.concat([pd.read_parquet(path) for path in sys.argv[1:]])
labels, scores = np.stack(list(frame["labels"])), np.stack(list(frame["scores"]))
foreground = [int((scores >= np.float32(step / 100)).sum()) for step in range(101)]
position = (labels == 1).sum(axis=0) / (labels != 255).sum(axis=0)
shares = frame["fg_count"] / (labels.shape[1] - frame["ignore_count"])
names = ["category", "area", "patches"]
objects = pd.DataFrame({name: np.concatenate([row[name] for row in frame["objects"]]) for name in names})
objects["image"] = np.repeat(np.arange(len(frame)), [len(row["category"]) for row in frame["objects"]])
objects["size"] = np.digitize(objects["area"], [32**2, 96**2])
for what in ("category", "size"):
    groups = objects.groupby(what)
    found = groups.agg(objects=("patches", "size"), patches=("patches", "sum"), images=("image", "nunique"))
    found["lost"] = objects[objects["patches"] == 0].groupby(what).size()
print(json.dumps({
    "foreground": foreground,
    "position": position.tolist(),
    "median_share": shares.median(),
    "sizes": found[["objects", "patches", "images"]].values.tolist(),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=2, help="of the build, which is not timed here")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of the command; the best time and worst memory count"
    )
    parser.add_argument("--skip-recipe", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments)
    print_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, in seconds and bytes."""
    annotations = folder / "instances_big.json"
    write_repeated(real_records(folder), arguments.images, arguments.annotations, annotations)
    warm_kernels(folder)
    build(annotations, folder / "out", "overlap", arguments.workers)
    annotations.unlink()
    repeat_shards(folder / "out", folder / "larger", TIMES)
    once, found = best_of(arguments.repeat, stats_command(folder / "out"))
    larger, _ = best_of(arguments.repeat, stats_command(folder / "larger"))
    figures: dict[str, Any] = {
        "images": found["images"],
        "annotations": found["annotations"],
        "patches": found["patches"],
        "stats": once,
        "four_times": larger
        | {"wall_ratio": larger["wall"] / once["wall"], "memory_ratio": larger["pss"] / once["pss"]},
    }
    if not arguments.skip_recipe:
        shards = sorted(str(path) for path in (folder / "out" / found["grid"]).glob("*.parquet"))
        recipe, answer = timed([sys.executable, "-c", RECIPE, *shards])
        check_same(found, answer)
        figures["recipe"] = recipe
        figures["stats"] |= {
            "times_faster_than_recipe": recipe["wall"] / once["wall"],
            "memory_of_recipe": once["pss"] / recipe["pss"],
        }
    return figures


def stats_command(out: Path) -> list[str]:
    return [sys.executable, "-m", "cli.tokenlabels", "stats", str(out), "--json"]


def best_of(runs: int, command: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """The best wall time and the largest memory of several runs, and what the last printed."""
    measured = [timed(command) for _ in range(runs)]
    wall, pss = (pick(each[name] for each, _ in measured) for pick, name in ((min, "wall"), (max, "pss")))
    return {"wall": wall, "pss": pss}, measured[-1][1]


def timed(command: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Wall seconds and largest PSS of a process, and the JSON it prints."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    memory = TreeMemory(process.pid)
    memory.start()
    answer, _ = process.communicate()
    wall = time.perf_counter() - start
    memory.stop.set()
    memory.join()
    if process.returncode:
        raise SystemExit(f"this failed: {command[:4]}")
    return {"wall": wall, "pss": memory.peak}, json.loads(answer)


def repeat_shards(out: Path, larger: Path, times: int) -> None:
    """A build whose shards are those of another, several times over."""
    manifest = json.loads((out / "manifest.json").read_text())
    entries = []
    for turn in range(times):
        for shard in manifest["shards"]:
            file = shard["file"].replace(".parquet", f"-{turn}.parquet")
            (larger / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / shard["file"], larger / file)
            entries.append(shard | {"file": file})
    (larger / "manifest.json").write_text(json.dumps(manifest | {"shards": entries}))


def check_same(found: dict[str, Any], answer: dict[str, Any]) -> None:
    """Stop where the command and the recipe disagree."""
    sizes = [[each["objects"], each["patches"], each["images"]] for each in found["by_size"]]
    position = [value for row in found["position"]["fg_probability"] for value in row]
    median = dict(map(tuple, found["fg_share_per_image"]["quantiles"]))[0.5]
    same = (
        answer["foreground"] == found["tau_curve"]["foreground"]
        and answer["sizes"] == sizes
        and abs(answer["median_share"] - median) < 1e-12
        and max(abs(a - b) for a, b in zip(answer["position"], position, strict=True)) < 1e-12
    )
    if not same:
        raise SystemExit("the recipe finds other numbers than the command")


def print_figures(figures: dict[str, Any]) -> None:
    print(f"{figures['images']:,} images, {figures['annotations']:,} annotations, {figures['patches']:,} patches")
    run, larger = figures["stats"], figures["four_times"]
    print(f"stats: {run['wall']:.2f} s, peak {run['pss'] / 1e6:.0f} MB")
    print(
        f"stats, four times the rows: {larger['wall']:.2f} s, {larger['wall_ratio']:.2f} x the time; "
        f"peak {larger['pss'] / 1e6:.0f} MB, {larger['memory_ratio']:.2f} x the memory"
    )
    if "recipe" in figures:
        recipe = figures["recipe"]
        print(
            f"recipe (pandas, np.stack): {recipe['wall']:.1f} s, peak {recipe['pss'] / 1e9:.2f} GB; "
            f"stats is {run['times_faster_than_recipe']:.1f} x faster in {run['memory_of_recipe']:.0%} of the memory"
        )


if __name__ == "__main__":
    main()
