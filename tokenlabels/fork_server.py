"""The fork server of this process: where worker processes come from, everything they need loaded once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.context import BaseContext

_WORKER = "tokenlabels.worker"


class ForkServer:
    """The fork server of this process: started with Ctrl-C held back, and ended if it was ours to start.

    Args:
        preload: further modules to load in it, before what workers need anyway.
    """

    def __init__(self, *preload: str) -> None:
        self._preload = [*preload, _WORKER]
        self._ours = False

    def context(self) -> BaseContext:
        """A context to make processes with."""
        if "forkserver" not in multiprocessing.get_all_start_methods():
            return multiprocessing.get_context("spawn")
        from multiprocessing import forkserver, resource_tracker

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(self._preload)
        self._ours = self._ours or self._pid() is None
        resource_tracker.ensure_running()  # else the fork server starts it, which lets Ctrl-C through again
        with interrupts_wait():
            forkserver.ensure_running()
        return context

    def end(self) -> None:
        """Kill the server, which may be compiling for a while yet; the next pool starts another."""
        pid = self._pid()
        if self._ours and pid is not None:
            from multiprocessing import forkserver

            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            forkserver._forkserver._stop()  # type: ignore[attr-defined]

    def _pid(self) -> int | None:
        if "forkserver" not in multiprocessing.get_all_start_methods():
            return None
        from multiprocessing import forkserver

        return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back in this thread; a process started meanwhile never sees it, not even while Python loads."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this process at once when the parent is gone; the sentinel is a pipe that only the parent holds open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
