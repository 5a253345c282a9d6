"""A segmenter timed against itself without early exit, on the same windows held in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bavit.machine import Machine
from bavit.segment.accounting import output_macs
from bavit.segment.exits import DENSE, Exits
from bavit.segment.figures import Times
from bavit.segment.inference import answer
from bavit.segment.model import Segmenter
from bavit.timing import take_turns


def time_segmenter(
    model: Segmenter,
    exits: Exits,
    windows: Sequence[NDArray[np.uint8]],
    batch_size: int,
    rounds: int,
    machine: Machine,
    advance: Callable[[int], None],
) -> Times:
    """Time early exit and the unpruned network in turns: from normalised windows to logits on the grid.

    Args:
        model: on the device of the machine, in evaluation mode.
        exits: when tokens end.
        windows: uint8 (H, W, 3), at least one, all of one size.
        batch_size: for throughput; whole batches only, unless there is no whole one.
        rounds: at least 1.
        machine: where.
        advance: told of every window that was done.
    """
    size = min(batch_size, len(windows))
    whole = len(windows) // size * size
    planes = torch.from_numpy(np.stack(windows)).to(machine.device).permute(0, 3, 1, 2)
    inputs = model.normalise(planes)
    alone, batches = torch.split(inputs, 1), torch.split(inputs[:whole], size)
    ways = [partial(_seconds, model, each, machine) for each in dict.fromkeys((DENSE, exits))]
    found = take_turns(ways, alone, batches, [len(batch) for batch in batches], rounds, advance)
    (dense,), (ours,) = found[0], found[-1]
    return Times(
        latency_ms=ours.latency_ms,
        latency_dense_ms=dense.latency_ms,
        throughput=ours.throughput,
        throughput_dense=dense.throughput,
        speedup=ours.speedup_over(dense),
        speedup_ideal=_macs(model, DENSE, windows[:whole], machine) / _macs(model, exits, windows[:whole], machine),
        windows_timed=len(windows),
        batch_size=size,
    )


def _seconds(model: Segmenter, exits: Exits, machine: Machine, batch: Tensor) -> tuple[float]:
    """Of one call, until the device is done."""
    with exits.set_on(model), torch.inference_mode():
        _wait(machine)
        begun = time.perf_counter()
        with machine.autocast():
            model(batch)
        _wait(machine)
        return (time.perf_counter() - begun,)


def _macs(model: Segmenter, exits: Exits, windows: Sequence[NDArray[np.uint8]], machine: Machine) -> int:
    with exits.set_on(model):
        return sum(int(output_macs(model, answer(model, window[None], machine)).sum()) for window in windows)


def _wait(machine: Machine) -> None:
    if machine.device == "cuda":
        torch.cuda.synchronize()
