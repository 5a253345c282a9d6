"""How much memory a piece of work takes at its peak, beside what was held before."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CPU_RUNS = 3


def peak_memory_mb(work: Callable[[], object], device: torch.device) -> float | None:
    """Run something and measure its peak: of a CUDA device what torch allocates, of a CPU the resident memory.

    That of a CPU varies by a tenth or two, with what the allocator has at hand: it is the median of some runs.

    Args:
        work: is called several times.
        device: where it works.

    Returns:
        10^6 bytes above what was held before, at least 0; None where it cannot be measured, which is anywhere but on
        CUDA and Linux.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0) / 1e6
    if device.type != "cpu":
        return None
    found = [_resident_rise(work) for _ in range(_CPU_RUNS)]
    known = [rise for rise in found if rise is not None]
    return statistics.median(known) / 1e6 if known else None


def _resident_rise(work: Callable[[], object]) -> int | None:
    """Bytes that resident memory rises by at its peak; None, and nothing is run, where that is not known."""
    _trim()
    if not _reset_peak():
        return None
    resident = _status("VmRSS")
    work()
    peak = _status("VmHWM")
    return None if resident is None or peak is None else max(peak - resident, 0)


def _trim() -> None:
    """Let the allocator give back what is free, which would else be used again and not be seen."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # another libc
            return


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """A figure of this process, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found) * 1024
