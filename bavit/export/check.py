"""An exported graph against the models it was made of, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bavit.background.critical import critical_probabilities
from bavit.background.model import BAViT
from bavit.detect.pruning import Pruning, carry
from bavit.detect.yolos import Yolos
from bavit.export.choice import Models, random_inputs
from bavit.export.described import Described
from bavit.export.onnx_files import Run
from tokenlabels.errors import TokenLabelsError

TOLERANCE = 1e-4
"""Largest difference of a float32 output from PyTorch's."""

NEAR = 1e-5
"""Probabilities that are nearer to each other may be ranked either way: runtimes round differently."""

BATCHES = (1, 3)


@dataclass(frozen=True, slots=True)
class Difference:
    """How two runtimes differ.

    Attributes:
        largest: of all outputs; of kind `pruned` after the patches that the exported graph keeps.
        patches: that one keeps and the other does not, in all images.
        kept: patches that are kept, in all images.
        far: the largest distance of such a patch's probability from that at which the choice is made.
    """

    largest: float = 0.0
    patches: int = 0
    kept: int = 0
    far: float = 0.0

    def joined(self, other: Difference) -> Difference:
        """Of both together."""
        return Difference(
            max(self.largest, other.largest),
            self.patches + other.patches,
            self.kept + other.kept,
            max(self.far, other.far),
        )


def compare_random(run: Run, models: Models, described: Described) -> Difference:
    """Of random inputs, one image at a time and several.

    Raises:
        TokenLabelsError: outputs that are no numbers, or not as many patches as there should be.
    """
    found = Difference()
    for batch in BATCHES:
        found = found.joined(compare(run, models, described, random_inputs(models, described, batch, seed=batch)))
    return found


def check_equal(found: Difference, what: str) -> None:
    """Refuse a float32 file that answers otherwise than PyTorch.

    Raises:
        TokenLabelsError: it does.
    """
    if found.largest > TOLERANCE or found.far > NEAR:
        far = f", and it keeps other patches ({found.far:.1e} apart)" if found.far > NEAR else ""
        raise TokenLabelsError(
            f"the exported {what} differs from PyTorch by {found.largest:.1e}{far}, more than {TOLERANCE:g}: nothing "
            "is written; try another --opset, and report it."
        )


@torch.no_grad()
def compare(run: Run, models: Models, described: Described, inputs: Sequence[Tensor]) -> Difference:
    """Of some inputs, see `compare_random`."""
    found = run(inputs)
    if not all(bool(each.isfinite().all()) for each in found):
        raise TokenLabelsError("the exported model answers with what is no number: its weights are damaged.")
    if models.yolos is None:
        assert models.bavit is not None
        return Difference(_largest(found[0], models.bavit(inputs[0])))
    if models.bavit is None:
        output = models.yolos(inputs[0])
        return Difference(max(_largest(found[0], output.logits), _largest(found[1], output.boxes)))
    logits, boxes, keep = found
    difference = _compare_masks(keep, models.bavit, models.yolos, described, inputs)
    output = models.yolos(inputs[1], keep, prune_after=described.prune_after)
    largest = max(_largest(logits, output.logits), _largest(boxes, output.boxes))
    return Difference(largest, *difference)


def _compare_masks(
    keep: Tensor, bavit: BAViT, yolos: Yolos, described: Described, inputs: Sequence[Tensor]
) -> tuple[int, int, float]:
    """Patches that differ, patches kept, and how far the differing ones are from where the choice is made."""
    count, shape = described.keep or 0, yolos.backbone.grid_of(inputs[1])
    if tuple(keep.shape[1:]) != shape or bool((keep.flatten(1).sum(1) != count).any()):
        raise TokenLabelsError(f"the exported model does not keep {count} of {shape[0]} x {shape[1]} patches.")
    background = bavit.background(inputs[0])
    if not bool(background.isfinite().all()):
        raise TokenLabelsError("the BAViT answers with what is no number: its weights are damaged.")
    sizes, shapes = [(1, 1)] * keep.shape[0], [shape] * keep.shape[0]
    pruning = Pruning(top_k=count, refine_steps=described.refine_steps)
    wanted = torch.stack(pruning.masks(background, bavit.grid, sizes, shapes, bavit.threshold))
    other = wanted != keep
    if not bool(other.any()):
        return 0, int(keep.sum()), 0.0
    values = torch.from_numpy(critical_probabilities(background.numpy(), described.refine_steps))
    critical = torch.stack(carry(values, bavit.grid, sizes, shapes))
    cut = critical.masked_fill(~wanted, -torch.inf).flatten(1).amax(1)
    far = (critical - cut[:, None, None]).abs()[other].max()
    return int((other & keep).sum()), int(keep.sum()), float(far)


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
