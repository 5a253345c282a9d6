"""A detector that was exported, run by onnxruntime or torch: it takes pictures as a `PrunedDetector` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bavit.background.model import BAViT
from bavit.detect.config import YolosConfig
from bavit.detect.preprocess import stretched
from bavit.detect.pruned import Detection, StageTimes, detections
from bavit.detect.pruning import Size
from bavit.detect.yolos import YolosOutput
from bavit.export.described import INPUTS, OUTPUTS, TORCH, Described, read_described
from bavit.export.onnx_graph import OnnxGraph
from bavit.export.torch_graph import TorchGraph
from bavit.pictures import Picture, picture_size, several_pictures
from tokenlabels.errors import ParameterError, TokenLabelsError

_CPU = torch.device("cpu")
_MAX_DEPTH, _MAX_WIDTH = 1000, 16384


class Graph(Protocol):
    """What runs an exported file.

    Attributes:
        runtime: `torch` or `onnx`.
        provider: what it runs on.
    """

    runtime: str
    provider: str

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs to outputs by name, tensors on the CPU.

        Raises:
            TokenLabelsError: it cannot be run.
        """


class ExportedDetector:
    """A detector in an exported file.

    Pictures are stretched to the one size that the file takes, resampled as the detector's own preprocessing does it.
    The same number of patches stays of every one.

    Args:
        graph: what runs the file.
        described: what it says of itself.
        name: of the file, for errors.

    Attributes:
        bavit: the sizes and the preprocessing of the BAViT in it, without weights; None: all patches stay.
        config: of the YOLOS.
        size: (H, W) of its input.
        grid: (rows, cols) of its patches.
        prune_after: its blocks that see all patches.

    Raises:
        TokenLabelsError: the file is no detector, or describes none that there can be.
    """

    def __init__(self, graph: Graph, described: Described, name: str) -> None:
        self._graph, self._described, self._name = graph, described, name
        self.config: YolosConfig = _config(described, name)
        self.bavit = None if described.bavit is None else weightless(described.bavit, name)
        self.size = described.image_size
        self.grid = _checked_grid(described, self.config, name)
        self.prune_after = described.prune_after

    @classmethod
    def open(cls, path: str | Path, *, threads: int | None = None, device: str = "cpu") -> ExportedDetector:
        """A file of `bavit export`.

        Args:
            path: `.onnx` or `.pt2`; kinds `dense` and `pruned`.
            threads: of the CPU; None: as many as torch has.
            device: `cpu`, or `cuda` where onnxruntime has it.

        Raises:
            ParameterError: there is no such device.
            TokenLabelsError: it is missing, damaged, contradicts itself, is of another kind, or `bavit export` did not
                write it.
        """
        place = Path(path)
        described = read_described(place)
        check_kind(described, place)
        opened: Graph
        opened = TorchGraph(place, described) if place.suffix == TORCH else OnnxGraph(place, described, threads, device)
        return cls(opened, described, str(path))

    @property
    def mask_macs(self) -> int:
        """Multiply-accumulates of what decides which patches of an image stay."""
        return 0 if self.bavit is None else self.bavit.macs

    @property
    def runtime(self) -> str:
        """What runs it."""
        return self._graph.runtime

    @property
    def provider(self) -> str:
        """What that runs on."""
        return self._graph.provider

    @torch.inference_mode()
    def __call__(self, images: Picture | Sequence[Picture], times: StageTimes | None = None) -> list[Detection]:
        """Detect; as `PrunedDetector.forward`, but BAViT, masks and detector are one stage, `graph`.

        Raises:
            ParameterError: a tensor of another shape or type.
            TokenLabelsError: the file gives what it should not.
        """
        several = several_pictures(images)
        if not several:
            return []
        times = StageTimes() if times is None else times
        sizes = [picture_size(image) for image in several]
        small: Tensor | None = None
        if self.bavit is not None:
            with times.stage("input of BAViT", _CPU):
                small = self.bavit.preprocess(several)
        with times.stage("input of the detector", _CPU):
            pixels = stretched(several, self.config, self.size)
        return self.detect(small, pixels, sizes, times)

    @torch.inference_mode()
    def detect(
        self, small: Tensor | None, pixels: Tensor, sizes: Sequence[Size], times: StageTimes | None = None
    ) -> list[Detection]:
        """Detect in what was made ready.

        Args:
            small: float32 (B, 3, h, w), the inputs of BAViT; None without one.
            pixels: float32 (B, 3, H, W), those of the detector.
            sizes: (width, height) of each image, source pixels.
            times: added to.

        Raises:
            TokenLabelsError: see `__call__`.
        """
        times = StageTimes() if times is None else times
        inputs = {"pixels": pixels} | ({} if small is None else {"bavit_pixels": small})
        with times.stage("graph", _CPU):
            outputs = self._graph({name: inputs[name] for name in INPUTS[self._described.kind]})
        with times.stage("boxes", _CPU):
            self._check(outputs, len(sizes))
            keep = list(outputs["keep"]) if "keep" in outputs else None
            answer = YolosOutput(outputs["logits"], outputs["boxes"])
            found = detections(answer, keep, [self.grid] * len(sizes), sizes)
        times.images += len(sizes)
        return found

    def _check(self, outputs: Mapping[str, Tensor], count: int) -> None:
        """Make sure that the file gives what it says it gives."""
        tokens = self.config.detection_tokens
        shapes = {
            "logits": (torch.float32, (count, tokens, self.config.classes)),
            "boxes": (torch.float32, (count, tokens, 4)),
            "keep": (torch.bool, (count, *self.grid)),
        }
        for name in OUTPUTS[self._described.kind]:
            kind, shape = shapes[name]
            found = outputs.get(name)
            if found is None or (found.dtype, tuple(found.shape)) != (kind, shape):
                gives = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise TokenLabelsError(
                    f"{self._name}: gives {gives} as {name}, and says that it gives {kind} {shape}: export it again."
                )


def check_kind(described: Described, path: Path) -> None:
    """Make sure that a file holds a detector.

    Raises:
        ParameterError: it holds a BAViT alone.
    """
    if described.kind == "bavit":
        raise ParameterError(f"{path}: holds a BAViT alone, which finds no boxes: export it with a detector.")


def weightless(config: Mapping[str, object], name: str) -> BAViT:
    """A BAViT of which only sizes and preprocessing are wanted: its weights take no memory and hold nothing.

    Args:
        config: see `BAViT.config`; untrusted.
        name: of the file it is from, for errors.

    Raises:
        TokenLabelsError: it describes no BAViT.
    """
    try:
        depth, width = int(str(config["depth"])), int(str(config["width"]))
        if not (1 <= depth <= _MAX_DEPTH and 1 <= width <= _MAX_WIDTH):
            raise ParameterError(f"{depth} blocks of width {width} are beyond all measure.")
        with torch.device("meta"):
            bavit = BAViT(**config)  # type: ignore[arg-type]
        bavit.mean, bavit.std = (torch.tensor(config[each]).view(1, 3, 1, 1) for each in ("mean", "std"))
    except (ParameterError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as fault:
        reason = str(fault).partition("\n")[0]
        raise TokenLabelsError(f"{name}: does not describe a BAViT ({reason}): export it again.") from None
    return bavit.eval()


def _config(described: Described, name: str) -> YolosConfig:
    try:
        return described.yolos_config()
    except TokenLabelsError as fault:
        raise TokenLabelsError(f"{name}: {fault}") from None


def _checked_grid(described: Described, config: YolosConfig, name: str) -> Size:
    """(rows, cols) of the detector's patches."""
    (height, width), patch = described.image_size, config.patch
    rows, cols = height // patch, width // patch
    kept = described.patches if described.keep is None else described.keep
    fine = (
        (rows * patch, cols * patch) == (height, width)
        and 0 < rows * cols == described.patches
        and 0 <= kept <= described.patches
        and 0 <= described.prune_after < config.depth
        and (described.kind == "pruned") == (described.bavit is not None) == (described.keep is not None)
    )
    if not fine:
        raise TokenLabelsError(f"{name}: contradicts itself in what it says of its sizes: export it again.")
    return rows, cols
