"""Memory that one detector takes in a process of its own: what loading it and running it three times adds at most.

    python tests/benchmarks/memory_of.py detector.onnx THREADS      # onnxruntime without torch
    python tests/benchmarks/memory_of.py FOLDER THREADS [dense]     # a saved pruned detector in torch, or its YOLOS

Prints MiB: of the libraries after their import, the peak above that, and what stays. Linux alone tells the peak.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

_RUNS = 3


def main() -> None:
    name, threads, *words = sys.argv[1:]
    prepare = of_onnx if name.endswith(".onnx") else of_torch
    load = prepare(Path(name), int(threads), dense=bool(words))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of the imports, is forgotten
    before = memory("VmRSS")
    run = load()
    for _ in range(_RUNS):
        run()
    peak, after = memory("VmHWM"), memory("VmRSS")
    print(json.dumps({"libraries_mib": before, "peak_mib": peak - before, "stays_mib": after - before}))


def of_onnx(path: Path, threads: int, *, dense: bool) -> Callable[[], Callable[[], object]]:
    """The inputs say what the file is."""
    assert not dense
    import onnxruntime

    def load() -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {each.name: np.zeros((1, *each.shape[1:]), np.float32) for each in session.get_inputs()}
        return lambda: session.run(None, inputs)

    return load


def of_torch(folder: Path, threads: int, *, dense: bool) -> Callable[[], Callable[[], object]]:
    import torch

    from bavit.detect.pruned import PrunedDetector
    from bavit.detect.yolos import Yolos

    torch.set_num_threads(threads)

    def load() -> Callable[[], object]:
        sizes = [(512, 512)]
        if dense:
            alone = PrunedDetector(None, Yolos.from_pretrained(folder / "detector"))
            return lambda: alone.detect(None, torch.zeros(1, 3, 512, 512), sizes)
        detector = PrunedDetector.from_pretrained(folder)
        assert detector.bavit is not None
        small = torch.zeros(1, 3, *(detector.bavit.grid.image_size or ()))
        return lambda: detector.detect(small, torch.zeros(1, 3, 512, 512), sizes)

    return load


def memory(field: str) -> float:
    """MiB of this process, by the name that Linux gives it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


if __name__ == "__main__":
    main()
