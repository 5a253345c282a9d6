"""What a worker process needs: imported once by the fork server, so that its children start with everything loaded.

A worker of a Dask cluster imports it in the thread of its first task.
"""

# ruff: noqa: E402  what decides how libraries load stands before them

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_PARENT = os.getppid()

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from tokenlabels.annotations import MASK_RLE, MASK_TEXT, Masks, Records
from tokenlabels.grid import PatchGrid
from tokenlabels.rules import RuleSpec
from tokenlabels.scoring import label_records
from tokenlabels.sources.mask_check import check_masks
from tokenlabels.sources.masks import MaskChunk
from tokenlabels.tasks import write_shards

__all__ = ["check_masks", "warm_up", "write_shards"]


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """End this process soon after its parent, even by SIGKILL: compiling takes long, and a fork server looks after."""

    def end_if_orphaned(*_: object) -> None:
        if os.getppid() != _PARENT:
            os._exit(1)

    before = signal.signal(signal.SIGALRM, end_if_orphaned)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def warm_up() -> None:
    """Compile or load every kernel on one tiny image, so that forked workers share the machine code."""
    side = np.array([4], np.int32)
    text = np.frombuffer(bytearray(b"[[0, 0, 4, 0, 4, 4]]"), np.uint8)
    records = Records(
        image_ids=["1"],
        file_names=["1.jpg"],
        widths=side,
        heights=side,
        offsets=np.array([0, 2], np.int64),
        ids=np.array([1, 2], np.int64),
        boxes=np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]),
        categories=np.zeros(2, np.int32),
        areas=np.ones(2),
        crowd=np.array([False, True]),
        difficult=np.zeros(2, np.bool_),
        masks=Masks(
            kinds=np.array([MASK_TEXT, MASK_RLE], np.uint8),
            spans=np.array([[0, len(text)], [0, 1]], np.int64),
            text=text,
            numbers=np.zeros(0),
            counts=np.array([16], np.int64),
        ),
    )
    axes = PatchGrid.parse(2, 4).axes(side, side)
    for rule in ("overlap", "pixel-ratio"):
        label_records(records, [axes], RuleSpec.make(rule, crowd="ignore"))
    check_masks(MaskChunk(0, text.tobytes(), np.array([len(text)]), side, side, False, "kernel"))


with _ending_with_parent() if threading.current_thread() is threading.main_thread() else contextlib.nullcontext():
    warm_up()
