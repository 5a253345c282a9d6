"""Made-up folders of results, one of every kind, as the commands leave them behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from evaluations import make_evaluation
from PIL import Image
from sweeps import make_sweep

from bavit.detect.sweep_figures import Sweep, save_json
from bavit.gallery import Sample, keep_samples


def write_results(folder: Path, *, text: str = "scenes val") -> Path:
    """A folder of runs: `before` and `after` (sweeps), `bavit` and `detector` (training), `pruned`, and JSON files.

    Args:
        folder: is made.
        text: stands wherever a file holds text.
    """
    for name, harm in (("before", 0.05), ("after", 0.01)):
        save_json(named(make_sweep(harm=harm), text), folder / name / "sweep.json")
    shown = [Sample(f"{text} {number}", Image.new("RGB", (48, 32), (60 * number, 90, 160))) for number in range(4)]
    keep_samples(shown, folder / "before" / "samples")
    write(folder / "eval.json", msgspec.to_builtins(make_evaluation(categories=(text, "cup"))))
    write_training(folder / "bavit", {"depth": 2, "recipe": text}, {"val_accuracy": 0.9, "val_balanced_accuracy": 0.85})
    write_training(folder / "detector", {"detector": text, "recipe": "scratch"}, {"val_ap": 0.55, "val_gmacs": 6.5})
    write_training(folder / "segmenter", {"exit_after": [6, 8]}, {"val_miou": 0.7}, command="segment train")
    pruning = {"threshold": 0.4, "top_k": None, "refine_steps": 3}
    budget = {
        "target": "macs", "value": 8e9, "achieved": 7.9e9, "achieved_low": 7.8e9, "achieved_high": 8e9,
        "achieved_max": 8.4e9, "sparsity": 0.35, "source": text, "latency": None,
    }  # fmt: skip
    write(folder / "pruned" / "pruned.json", {"pruning": pruning, "budget": budget, "format": 1})
    write(folder / "segments" / "sweep.json", segment_sweep(text))
    write(folder / "methods.json", comparison(text))
    write(folder / "joint.json", joint(text))
    write(folder / "adaptive.json", adaptive())
    write(folder / "onnx.json", exported())
    return folder


def named(sweep: Sweep, text: str) -> Sweep:
    """A sweep whose names are `text`."""
    setting = msgspec.structs.replace(
        sweep.setting, bavit=text, detector=text, data=text, notes=[text], environment={"device": text, "torch": text}
    )
    return msgspec.structs.replace(sweep, setting=setting)


def write(path: Path, content: Any) -> Path:
    """JSON in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_training(
    folder: Path, settings: dict[str, Any], judged: dict[str, float], command: str | None = None
) -> Path:
    """A training run of 3 epochs, the second of which is not validated."""
    data = {"build": "labels", "splits": ["train"], "images": 40}
    environment = {"torch": "2.15.0", "devices": ["cpu"]}
    run = {"given": {"epochs": 3}, "settings": settings, "train": data, "environment": environment}
    write(folder / "run.json", run | ({} if command is None else {"command": command}))
    lines = []
    for epoch in (1, 2, 3):
        record = {"epoch": epoch, "train_loss": 2 / epoch, "seconds": 70.0 * epoch, "images_per_second": 12.5}
        lines.append(record if epoch == 2 else record | {key: value * epoch / 3 for key, value in judged.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def segment_sweep(text: str = "fcn") -> dict[str, Any]:
    """A sweep of a segmenter: unpruned, and two thresholds."""

    def row(p0: float, miou: float, share: float) -> dict[str, Any]:
        return {
            "dense": p0 == 1, "p0": p0, "exit_after": [] if p0 == 1 else [6, 8], "keep_per_class": 5, "method": "top-k",
            "miou": miou, "pixel_accuracy": 0.93, "macs": share * 1.5e9, "macs_dense": 1.5e9,
            "macs_reduction": 1 - share, "speedup": 1 / share, "throughput": 80 / share,
            "throughput_dense": 80.0, "images": 300,
        }  # fmt: skip

    rows = [row(1, 0.826, 1.0), row(0.9, 0.825, 0.69), row(0.95, 0.8263, 0.72)]
    return {"rows": rows, "run": text, "data": text, "head": "fcn", "images": 300, "environment": {"device": "cpu"}}


def comparison(text: str = "joint") -> dict[str, Any]:
    """Methods with mean and spread, told in both ways."""
    return {
        "seeds": 3,
        "methods": [
            {"method": "separate", "macs": {"mean": 2.4e9, "std": 1e7}, "ap": {"mean": 0.54, "std": 0.008}},
            {"method": text, "macs_mean": 2.2e9, "macs_std": 2e7, "ap_mean": 0.565, "ap_std": 0.01},
        ],
    }


def joint(text: str = "joint") -> dict[str, Any]:
    """What `tests/benchmarks/demo_joint.py` writes, of 3 seeds; beyond a curve it has no number."""

    def method(base: float) -> dict[str, Any]:
        each = {share: [base + 0.1 * share + 0.01 * seed for seed in range(3)] for share in (0.4, 0.6)}
        at = {
            f"{key} at {share:g}": {"mean": scale * values[1], "std": scale * 0.01, "each": values}
            for share, values in each.items()
            for key, scale in (("ap", 1.0), ("ap50", 1.5))
        }
        beyond = {"ap at 0.9": {"mean": float("nan"), "std": float("nan"), "each": []}}
        curves = [[{"macs_share": share, "ap": values[seed]} for share, values in each.items()] for seed in range(3)]
        return {"at": at | beyond, "ap_dense": [base + 0.1] * 3, "seconds_per_epoch": 30.5, "curves": curves}

    return {"arguments": {"seeds": 3}, "macs_detector": 2e8, "methods": {"separate": method(0.4), text: method(0.45)}}


def adaptive() -> dict[str, Any]:
    """What `tests/benchmarks/demo_adaptive.py` writes: an adaptive threshold that wins 1, 2 and 3 points."""
    policies = [
        {"policy": policy, "penalty": penalty, "seed": seed, "macs_share": 0.7 - 0.1 * penalty, "sparsity": 0.3,
         "ap": 0.5 - 0.05 * penalty + (0.01 * (seed + 1) if policy == "adaptive" else 0), "ap50": 0.7, "loss": 3.0}
        for penalty in (1.0, 2.0)
        for seed in range(3)
        for policy in ("adaptive", "fixed")
    ]  # fmt: skip
    curve = [{"threshold": share, "macs_share": share, "ap": 0.5 * share, "ap50": 0.7 * share} for share in (0.3, 0.9)]
    oracle = [{"penalty": 1.0, "macs_share": 0.6, "ap": 0.6, "ap50": 0.8}]
    return {"fixed_curve": curve, "oracle": oracle, "policies": policies, "cost": {"macs": 99.0}}


def exported() -> dict[str, Any]:
    """What `tests/benchmarks/bench_onnx.py --json` prints."""
    rows = [
        {"variant": name, "sparsity": sparsity, "graph_ms": 200 / ratio, "whole_ms": 220 / ratio, "ratio_graph": ratio,
         "ratio_whole": ratio - 0.02, "peak_mib": 90 / ratio}
        for name, sparsity, ratio in (("dense, onnx", 0.0, 1.0), ("46 %, onnx", 0.46, 1.6), ("35 %, onnx", 0.35, 1.38),
                                      ("35 %, onnx int8", 0.35, 1.7))
    ]  # fmt: skip
    return {"threads": 2, "onnxruntime": "1.31.0", "rows": rows}
