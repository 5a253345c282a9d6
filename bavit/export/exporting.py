"""Exporting: models become a file, which is checked against them before anything is written.

export_model("bavit-run", "hustvl/yolos-tiny", out="pruned.onnx", sparsity=0.35)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from bavit.detect.accounting import detector_macs
from bavit.detect.ground_truth import DetectionSet
from bavit.environment import require_export
from bavit.export.check import Difference, check_equal, compare_random
from bavit.export.choice import Choice, Models, describe_choice, graph_of, left_out, random_inputs, read_models
from bavit.export.described import ONNX, TORCH, Described
from bavit.export.measure import FIGURES, measure
from bavit.export.onnx_files import DEFAULT_OPSET, Run, check_opset, open_onnx, runner_of, serialised, to_onnx
from bavit.export.quantise import quantise
from bavit.export.torch_files import open_torch, to_torch
from tokenlabels.atomic import write_atomically
from tokenlabels.errors import OutputError, ParameterError
from tokenlabels.progress import Progress, Silent

Format: TypeAlias = Literal["onnx", "torch"]

SUFFIXES: dict[Format, str] = {"onnx": ONNX, "torch": TORCH}


@dataclass(frozen=True, slots=True)
class Wish:
    """Which file is made.

    Attributes:
        out: the file.
        format: `onnx`, or `torch` for `torch.export`; None: by the suffix of `out`.
        opset: of ONNX's operators; None: `DEFAULT_OPSET`.
        int8: quantise the weights of linear layers; ONNX alone.
        overwrite: replace a file.
    """

    out: Path
    format: Format | None = None
    opset: int | None = None
    int8: bool = False
    overwrite: bool = False

    @property
    def picked(self) -> Format:
        """The format.

        Raises:
            ParameterError: the suffix is another's, or none that is known.
        """
        by_suffix = next((name for name, suffix in SUFFIXES.items() if suffix == self.out.suffix), None)
        if by_suffix is None:
            raise ParameterError(f"--out {self.out}: the name of an exported file ends in {ONNX} or {TORCH} (torch).")
        if self.format not in (None, by_suffix):
            assert self.format is not None
            raise ParameterError(f"--out {self.out}: a file of --format {self.format} ends in {SUFFIXES[self.format]}.")
        return by_suffix

    def check(self) -> None:
        """Refuse at once what cannot be done or written.

        Raises:
            ParameterError: see `picked` and `check_opset`; or options of ONNX for another format.
            OutputError: the file is there, or cannot be written.
            TokenLabelsError: the extra `export` is missing.
        """
        if self.picked == "onnx":
            require_export()
            check_opset(DEFAULT_OPSET if self.opset is None else self.opset)
        elif self.int8 or self.opset is not None:
            raise ParameterError(f"{'--int8' if self.int8 else '--opset'} is of ONNX: name a file that ends in {ONNX}.")
        above = next(parent for parent in self.out.absolute().parents if os.access(parent, os.F_OK))
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise OutputError(f"{self.out}: cannot be written ({above} is no folder to write to): name another file.")
        if self.out.exists() and not self.out.is_file():
            raise OutputError(f"{self.out}: cannot be written (it is no plain file): name another.")
        if self.out.exists() and not self.overwrite:
            raise OutputError(f"{self.out}: is there already: use --overwrite, or another --out.")


def export_model(
    model: str | Path,
    detector: str | Path | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    int8: bool = False,
    opset: int | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """Write a model as one file for another runtime; see `export_models` for what is told and raised.

    Args:
        model: see `read_models`.
        detector: see `read_models`.
        out: the file, `.onnx` or `.pt2`.
        overwrite: replace a file.
        int8: quantise the weights of linear layers; ONNX alone.
        opset: of ONNX's operators; None: `DEFAULT_OPSET`.
        choices: see `Choice`.
    """
    wish = Wish(Path(out), None, opset, int8, overwrite)
    wish.check()
    models = read_models(str(model), None if detector is None else str(detector))
    return export_models(models, Choice(**choices), wish, None, Silent())


def export_models(
    models: Models, choice: Choice, wish: Wish, data: DetectionSet | None, progress: Progress
) -> dict[str, Any]:
    """Write models as one file.

    Args:
        models: a BAViT, a YOLOS or both; on the CPU.
        choice: how many patches stay, and so on.
        wish: which file is made.
        data: a set to measure the file on, or None.
        progress: told about stages.

    Returns:
        `out`, `format`, `kind`, `bytes`, `nodes` and `opset` (ONNX), `image_size`, `patches`, `keep`, `sparsity`,
        `refine_steps`, `prune_after`, `macs` and `macs_dense` of an image; `largest_difference` from PyTorch over
        random inputs, and `patches_differing`, the share of kept patches that PyTorch would not keep; with int8 these
        of the float32 file, `float_bytes`, `int8_difference` and `int8_patches_differing`. Of `data` also `images`,
        `figures` (see `measure`) and `drop`: by how much the last of these falls short of that before it.

    Raises:
        ParameterError: choices that contradict each other or the models, see `describe_choice` and `Wish.check`.
        OutputError: the file cannot be written.
        TokenLabelsError: the file would answer otherwise than PyTorch; or the extra `export` is missing.
    """
    wish.check()
    described = describe_choice(models, choice)
    graph = graph_of(models, described)
    told_of = left_out(models, choice)
    if told_of is not None:
        progress.note(told_of)
    progress.stage("tracing")
    if wish.picked == "onnx":
        content, runs, told = _onnx(models, graph, described, wish, progress)
    else:
        content, runs, told = _torch(models, graph, described, progress)
    if data is not None:
        figures = measure(models, described, runs, data, progress)
        told |= {"images": len(data), "figures": figures, "drop": _drop(figures, described)}
    progress.stage("writing")
    write_atomically(wish.out, content)
    return {"out": str(wish.out), "format": wish.picked, "bytes": len(content)} | told | _facts(models, described)


def _onnx(
    models: Models, graph: torch.nn.Module, described: Described, wish: Wish, progress: Progress
) -> tuple[bytes, dict[str, Run], dict[str, Any]]:
    """Content of the file, what runs it and its float32 original, and what is told."""
    opset = DEFAULT_OPSET if wish.opset is None else wish.opset
    model = to_onnx(graph, random_inputs(models, described, 2), described, opset)
    content = serialised(model)
    progress.stage("checking")
    runs = {"onnx": runner_of(open_onnx(content))}
    found = compare_random(runs["onnx"], models, described)
    check_equal(found, "ONNX")
    told = {"opset": opset, "nodes": len(model.graph.node), "quantised": wish.int8} | _told(found, models)
    if not wish.int8:
        return content, runs, told
    progress.stage("quantising")
    small = quantise(model, described)
    told |= {"float_bytes": len(content), "nodes": len(small.graph.node)}
    content = serialised(small)
    runs["int8"] = runner_of(open_onnx(content))
    found = compare_random(runs["int8"], models, described)
    return (
        content,
        runs,
        told | {f"int8_{name.removeprefix('largest_')}": x for name, x in _told(found, models).items()},
    )


def _torch(
    models: Models, graph: torch.nn.Module, described: Described, progress: Progress
) -> tuple[bytes, dict[str, Run], dict[str, Any]]:
    """As `_onnx`."""
    content = to_torch(graph, random_inputs(models, described, 2), described)
    progress.stage("checking")
    runs = {"torch.export": open_torch(content)}
    found = compare_random(runs["torch.export"], models, described)
    check_equal(found, "program")
    return content, runs, {"quantised": False, "torch": str(torch.__version__)} | _told(found, models)


def _told(found: Difference, models: Models) -> dict[str, Any]:
    told: dict[str, Any] = {"largest_difference": found.largest}
    if models.bavit is not None and models.yolos is not None:
        told["patches_differing"] = found.patches / max(found.kept, 1)
    return told


def _drop(figures: dict[str, dict[str, float]], described: Described) -> dict[str, float]:
    """How much the last file falls short of the one before it: int8 of float32, or that of PyTorch."""
    before, last = list(figures.values())[-2:]
    names = FIGURES["bavit" if described.detector is None else "detector"]
    return {name: before[name] - last[name] for name in names}


def _facts(models: Models, described: Described) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": described.kind,
        "image_size": list(described.image_size),
        "patches": described.patches,
    }
    bavit = 0 if models.bavit is None else models.bavit.macs
    if models.yolos is None:
        return facts | {"macs": bavit}
    config, kept = models.yolos.config, described.patches if described.keep is None else described.keep
    dense = detector_macs(config, described.patches, described.patches)
    if described.keep is None:
        return facts | {"macs": dense}
    macs = bavit + detector_macs(config, kept, described.patches, prune_after=described.prune_after)
    return facts | {
        "keep": kept,
        "sparsity": 1 - kept / described.patches,
        "refine_steps": described.refine_steps,
        "prune_after": described.prune_after,
        "macs": macs,
        "macs_dense": dense,
    }
