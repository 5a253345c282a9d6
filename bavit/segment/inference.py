"""A segmenter over pictures of any size: windows of several pictures at a time, put together again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bavit.machine import Machine
from bavit.segment.accounting import output_macs
from bavit.segment.model import Segmenter, SegmenterOutput
from bavit.segment.mosaic import Mosaic
from bavit.segment.windows import Layout, View
from tokenlabels.errors import TokenLabelsError

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """What a segmenter says of one picture, cut into n windows.

    Attributes:
        classes: uint8 (height, width), of each pixel.
        stages: uint8 (height, width), the stage in which the token ended that answers for each pixel.
        layout: where the windows lie.
        tokens: int64 (n, depth), tokens that each block saw, prefix and context included.
        heads: int64 (n, stages), tokens that each head read.
        alive: int64 (n, stages), patch tokens that had not ended when a stage began.
        macs: int64 (n,), multiply-accumulates.
    """

    classes: NDArray[np.uint8]
    stages: NDArray[np.uint8]
    layout: Layout
    tokens: NDArray[np.int64]
    heads: NDArray[np.int64]
    alive: NDArray[np.int64]
    macs: NDArray[np.int64]

    @property
    def shares_alive(self) -> list[float]:
        """Share of the patch tokens of all windows that have not ended when each stage begins."""
        found: list[float] = (self.alive.sum(axis=0) / self.alive[:, 0].sum()).tolist()
        return found


def segment(
    model: Segmenter, pictures: Iterable[tuple[Key, Image.Image]], view: View, machine: Machine, batch_size: int
) -> Iterator[tuple[Key, Segmented]]:
    """Segment pictures, in order; a few are held at a time.

    Args:
        model: on the device of the machine, in evaluation mode.
        pictures: RGB, each with what it is known by.
        view: how they are shown to the network.
        machine: where.
        batch_size: windows at a time.

    Raises:
        TokenLabelsError: the weights are damaged.
    """
    waiting: deque[_Assembly[Key]] = deque()
    queue: list[tuple[_Assembly[Key], NDArray[np.uint8]]] = []

    def run() -> None:
        output = answer(model, np.stack([pixels for _, pixels in queue]), machine)
        macs = output_macs(model, output)
        stages = output.exit_stage.to(torch.uint8).cpu().numpy()
        logits = output.logits.float()
        for number, (assembly, _) in enumerate(queue):
            counts = (output.tokens[number], output.heads[number], output.alive[number])
            assembly.counts.append(tuple(each.cpu().numpy() for each in counts))
            assembly.macs.append(int(macs[number]))
            assembly.mosaic.add(logits[number], stages[number])
        queue.clear()

    for key, picture in pictures:
        layout = view.lay(*picture.size)
        assembly = _Assembly(key, layout, Mosaic(layout, model.patch))
        waiting.append(assembly)
        for number in range(len(layout)):
            pixels = layout.cut(picture, number)
            if queue and queue[0][1].shape != pixels.shape:
                run()
            queue.append((assembly, pixels))
            if len(queue) == batch_size:
                run()
        while waiting and waiting[0].mosaic.complete:
            yield waiting.popleft().finished()
    if queue:
        run()
    while waiting:
        yield waiting.popleft().finished()


def answer(model: Segmenter, pixels: NDArray[np.uint8], machine: Machine) -> SegmenterOutput:
    """What a model says of windows, uint8 (B, H, W, 3).

    Raises:
        TokenLabelsError: it answers with what is no number.
    """
    planes = torch.from_numpy(pixels).to(machine.device).permute(0, 3, 1, 2)
    with torch.inference_mode():
        inputs = model.normalise(planes)
        with machine.autocast():
            output: SegmenterOutput = model(inputs)
    if not bool(torch.isfinite(output.logits).all()):
        raise TokenLabelsError("the segmenter answers with what is no number: its weights are damaged.")
    return output


@dataclass(slots=True, eq=False)
class _Assembly(Generic[Key]):
    """A picture some of whose windows have been answered."""

    key: Key
    layout: Layout
    mosaic: Mosaic
    counts: list[Sequence[NDArray[np.int64]]] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)

    def finished(self) -> tuple[Key, Segmented]:
        tokens, heads, alive = (np.stack(each) for each in zip(*self.counts, strict=True))
        found = Segmented(
            self.mosaic.classes, self.mosaic.stages, self.layout, tokens, heads, alive, np.array(self.macs, np.int64)
        )
        return self.key, found
