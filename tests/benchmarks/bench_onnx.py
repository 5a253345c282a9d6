"""Pruned against dense ONNX: latency at batch 1 on two threads, memory and file size; PyTorch beside them.

    uv run --all-extras python tests/benchmarks/bench_onnx.py
    uv run --all-extras python tests/benchmarks/bench_onnx.py --pictures ../shared/data/coco/val2017 --search

YOLOS-tiny at 512 x 512 with random weights behind a BAViT of 2 blocks at 384 x 384 (random, or --bavit RUN), of whose
patches a fixed share is removed. `graph` is all of the models: BAViT, refinement, which patches stay, and the detector.
`whole` is the preprocessing of a decoded picture for both models, the graph, and its boxes. All ways take turns at
every picture, and a ratio is the median of what dense float32 ONNX took at a picture over what this way took at it in
the same turn; `fastest` is the ratio of the shortest times of the graph, which other work on the machine disturbs
least. `ideal` is that of multiply-accumulates. Memory is that of a process of its own, see memory_of.py.
--search adds sparsities, to find where the ratio reaches --target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor

import tokenlabels
from bavit import BAViT, PrunedDetector, Yolos
from bavit.background.model import load_model
from bavit.background.predict import picture_files
from bavit.detect.accounting import detector_macs
from bavit.detect.loading import load_detector
from bavit.detect.preprocess import stretched
from bavit.detect.pruned import StageTimes
from bavit.detect.pruning import removed_of
from bavit.export.choice import Choice, Models, describe_choice, graph_of, random_inputs
from bavit.export.onnx_files import DEFAULT_OPSET, to_onnx
from bavit.export.quantise import quantise
from bavit.export.runtime import ExportedDetector
from bavit.pictures import open_picture
from bavit.timing import Timing, take_turns

SIZE, PATCHES, STEPS = (512, 512), 1024, 3
SEARCHED = (0.1, 0.2, 0.35, 0.46, 0.6)
BASE = "dense, onnx"

Way = Callable[[Image.Image], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Variant:
    """A detector in one form.

    Attributes:
        name: of it.
        sparsity: share of patches that is removed.
        way: detects in a picture, and gives the seconds of all, of the graph, and of both inputs.
        memory: what `memory_of.py` is to be told.
        file: what is stored, a file or a folder.
    """

    name: str
    sparsity: float
    way: Way
    memory: Sequence[str]
    file: Path


def exports(bavit: BAViT, yolos: Yolos, sparsities: Sequence[float], folder: Path, *, int8: bool) -> list[Path]:
    """ONNX files: dense, then pruned; then the same quantised."""
    made = []
    for sparsity in (0.0, *sparsities):
        path = folder / (f"{100 * sparsity:.0f}.onnx" if sparsity else "dense.onnx")
        small = path.with_name(f"{path.stem}-int8.onnx")
        made += [path, small] if int8 else [path]
        if all(each.is_file() for each in made[-1 - int8 :]):
            continue
        print(f"exporting {path.stem}", file=sys.stderr, flush=True)
        models = Models(bavit if sparsity else None, yolos)
        choice = Choice(sparsity=sparsity, refine_steps=STEPS) if sparsity else Choice()
        described = describe_choice(models, choice)
        model = to_onnx(graph_of(models, described), random_inputs(models, described, 2), described, DEFAULT_OPSET)
        path.write_bytes(model.SerializeToString())
        if int8:
            small.write_bytes(quantise(model, described).SerializeToString())
    return made


def of_onnx(path: Path, threads: int) -> Way:
    detector = ExportedDetector.open(path, threads=threads)

    def way(picture: Image.Image) -> Sequence[float]:
        times = StageTimes()
        detector([picture], times)
        return parts(times, ("graph",))

    return way


def of_torch(detector: PrunedDetector) -> Way:
    def way(picture: Image.Image) -> Sequence[float]:
        times, cpu = StageTimes(), torch.device("cpu")
        small: Tensor | None = None
        if detector.bavit is not None:
            with times.stage("input of BAViT", cpu):
                small = detector.bavit.preprocess([picture])
        with times.stage("input of the detector", cpu):
            pixels = stretched([picture], detector.config, SIZE)
        detector.detect(small, pixels, [picture.size], times)
        return parts(times, ("BAViT", "masks", "detector"))

    return way


def parts(times: StageTimes, graph: Sequence[str]) -> Sequence[float]:
    """Seconds of all, of the graph, of the input of BAViT, of that of the detector, and of the boxes."""
    others = ("input of BAViT", "input of the detector", "boxes")
    seconds = [sum(times.seconds.get(stage, 0.0) for stage in graph)]
    seconds += [times.seconds.get(stage, 0.0) for stage in others]
    return [sum(times.seconds.values()), *seconds]


def variants(arguments: argparse.Namespace, folder: Path) -> list[Variant]:
    torch.manual_seed(0)
    bavit = BAViT().eval() if arguments.bavit is None else load_model(arguments.bavit)
    yolos = load_detector("random:tiny")
    sparsities = sorted({*arguments.sparsity, *(SEARCHED if arguments.search else ())})
    found = []
    for path in exports(bavit, yolos, sparsities, folder, int8=not arguments.no_int8):
        share = path.stem.partition("-")[0]
        sparsity = 0.0 if share == "dense" else float(share) / 100
        if path.stem.endswith("-int8") and sparsity and sparsity not in arguments.sparsity:
            continue
        name = f"{share}{' %' if sparsity else ''}, onnx{' int8' if path.stem.endswith('-int8') else ''}"
        found.append(Variant(name, sparsity, of_onnx(path, arguments.threads), [str(path)], path))
    for sparsity in () if arguments.no_torch else (0.0, *arguments.sparsity):
        place = folder / f"torch-{sparsity}"
        pruned = PrunedDetector(bavit, yolos, sparsity=sparsity, refine_steps=STEPS)
        pruned.save_pretrained(place)
        detector = pruned if sparsity else PrunedDetector(None, yolos)
        name = f"{100 * sparsity:.0f} %, torch" if sparsity else "dense, torch"
        words = [str(place)] if sparsity else [str(place), "dense"]
        found.append(Variant(name, sparsity, of_torch(detector), words, place if sparsity else place / "detector"))
    return found


def memory(variant: Variant, threads: int) -> dict[str, float]:
    name, *words = variant.memory
    script = Path(__file__).with_name("memory_of.py")
    done = subprocess.run(
        [sys.executable, str(script), name, str(threads), *words], capture_output=True, text=True, check=True
    )
    told: dict[str, float] = json.loads(done.stdout)
    return told


def row(variant: Variant, timings: Sequence[Timing], base: Sequence[Timing], bavit_macs: int) -> dict[str, Any]:
    whole, graph, small, pixels, boxes = timings
    keep = PATCHES - removed_of(PATCHES, variant.sparsity)
    config = load_detector("random:tiny").config
    dense = detector_macs(config, PATCHES, PATCHES)
    macs = detector_macs(config, keep, PATCHES) + (bavit_macs if variant.sparsity else 0)
    files = [variant.file] if variant.file.is_file() else [each for each in variant.file.rglob("*") if each.is_file()]
    return {
        "variant": variant.name,
        "sparsity": variant.sparsity,
        "kept_patches": keep,
        "graph_ms": graph.latency_ms,
        "graph_p95_ms": graph.latency_p95_ms,
        "graph_fastest_ms": 1000 * min(graph.alone),
        "whole_ms": whole.latency_ms,
        "whole_fastest_ms": 1000 * min(whole.alone),
        "input_bavit_ms": small.latency_ms,
        "input_detector_ms": pixels.latency_ms,
        "boxes_ms": boxes.latency_ms,
        "ratio_graph": paired(base[1], graph),
        "ratio_whole": paired(base[0], whole),
        "ratio_fastest": min(base[1].alone) / min(graph.alone),
        "ideal": dense / macs,
        "gmacs": macs / 1e9,
        "file_mib": sum(each.stat().st_size for each in files) / 2**20,
    }


def paired(one: Timing, other: Timing) -> float:
    """How many times as long one took as the other at the same picture in the same round: the median."""
    return float(np.median(np.array(one.alone) / np.array(other.alone)))


def reached(rows: Sequence[dict[str, Any]], target: float) -> dict[str, float | None]:
    """The sparsity from which on float32 ONNX reaches a ratio, by straight lines between those that were measured."""
    found: dict[str, float | None] = {}
    measured = [each for each in rows if each["variant"].endswith(", onnx") and each["sparsity"]]
    for name in ("ratio_graph", "ratio_whole"):
        shares, ratios = ([each[key] for each in measured] for key in ("sparsity", name))
        above = next((number for number, ratio in enumerate(ratios) if ratio >= target), None)
        if above is None:
            found[name] = None
        elif not above:
            found[name] = shares[0]
        else:
            found[name] = float(np.interp(target, ratios[above - 1 : above + 1], shares[above - 1 : above + 1]))
    return found


def pictures(arguments: argparse.Namespace, folder: Path) -> list[Image.Image]:
    if arguments.pictures is None:
        tokenlabels.write_sample(folder / "sample", images=8 * arguments.count)
    files = picture_files([arguments.pictures or folder / "sample" / "val"])[: arguments.count]
    return [open_picture(file, str(file)) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of pictures [the generated sample]")
    parser.add_argument("--count", type=int, default=4, help="of them")
    parser.add_argument("--bavit", type=Path, help="a run at 384 x 384 [random weights]")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.35, 0.46])
    parser.add_argument("--search", action="store_true", help=f"also {SEARCHED}, and where --target is reached")
    parser.add_argument("--target", type=float, default=1.3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-int8", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--folder", type=Path, help="keep the exported files there, and take those that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shown = pictures(arguments, folder)
        kept = folder if arguments.folder is None else arguments.folder
        kept.mkdir(parents=True, exist_ok=True)
        ways = variants(arguments, kept)
        print("measuring", file=sys.stderr, flush=True)
        timings = take_turns([each.way for each in ways], shown, shown[:1], [1], arguments.rounds, lambda _: None)
        base = next(timing for way, timing in zip(ways, timings, strict=True) if way.name == BASE)
        macs = BAViT().macs if arguments.bavit is None else load_model(arguments.bavit).macs
        rows = [
            row(way, timing, base, macs) | memory(way, arguments.threads)
            for way, timing in zip(ways, timings, strict=True)
        ]
    facts = {
        "pictures": len(shown), "rounds": arguments.rounds, "threads": arguments.threads,
        "onnxruntime": onnxruntime.__version__, "torch": str(torch.__version__), "target": arguments.target,
        "target_at": reached(rows, arguments.target) if arguments.search else None,
    }  # fmt: skip
    print(json.dumps(facts | {"rows": rows}, indent=2)) if arguments.json else show(facts, rows)


def show(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    print("YOLOS-tiny 512x512, " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    heads = ("graph ms", "whole ms", "ratio", "whole", "fastest", "ideal", "inputs ms", "peak MiB", "file MiB")
    print(f"\n{'':<18}" + "".join(f"{head:>10}" for head in heads))
    for each in rows:
        inputs = each["input_bavit_ms"] + each["input_detector_ms"]
        values = (
            (each["graph_ms"], 1), (each["whole_ms"], 1), (each["ratio_graph"], 2), (each["ratio_whole"], 2),
            (each["ratio_fastest"], 2), (each["ideal"], 2), (inputs, 1), (each["peak_mib"], 0), (each["file_mib"], 1),
        )  # fmt: skip
        print(f"{each['variant']:<18}" + "".join(f"{value:>10.{digits}f}" for value, digits in values))


if __name__ == "__main__":
    main()
