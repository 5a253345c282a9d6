"""Where tasks run: in this process, or in worker processes, behind one interface.

A task is independent of all others and commits its own result, so an executor only has to run every task and hand the
results back in any order. That is the seam for other engines.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tokenlabels.errors import TokenLabelsError, WorkerDiedError
from tokenlabels.fork_server import ForkServer, end_with_parent, interrupts_wait
from tokenlabels.threads import threads_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Run: TypeAlias = Callable[[str, Iterable[Any]], Iterator[Any]]
"""`Executor.run`."""


class Executor(Protocol):
    """Runs independent tasks; a context manager, left early (Ctrl-C, a failed task) it leaves no process behind.

    Attributes:
        threads: that each task may use.
        lease: a file that is there as long as somebody waits for the results; a task that finds it gone must not
            commit. None: tasks end with this executor.
    """

    threads: int

    @property
    def lease(self) -> Location | None: ...

    def start(self) -> None:
        """Begin whatever takes time, in the background, so that it is ready when `run` is called."""

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Apply a function, named `module:function`, to every task.

        Results come in any order, tasks are drawn when they are needed. The name is resolved where the task runs, so
        that this process need not import what only workers use.
        """

    def stop(self) -> None:
        """End the tasks at once; none commits anything afterwards."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SerialExecutor:
    """One task after the other in this process."""

    lease = None

    def __init__(self) -> None:
        self.threads = threads_of(1)

    def start(self) -> None:
        """See `Executor`."""

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """See `Executor`."""
        return map(_resolved(function), tasks)

    def stop(self) -> None:
        """See `Executor`."""

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection[Any, Any]


class ProcessExecutor:
    """A fixed number of worker processes, one task each at a time.

    Processes come from a fork server where there is one (it imports and compiles once), else by spawning; `start`
    returns at once and a thread waits for them. A worker ignores Ctrl-C (the parent ends it) and ends by itself as soon
    as the parent is gone, even by SIGKILL.
    """

    lease = None

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.threads = threads_of(workers)
        self._workers: list[_Worker] = []
        self._starter: threading.Thread | None = None
        self._start_fault: Exception | None = None
        self._cancelled = False
        self._fork_server = ForkServer()

    def start(self) -> None:
        """See `Executor`."""
        if self._starter is None:
            self._starter = threading.Thread(target=self._start_workers, daemon=True)
            self._starter.start()

    def _start_workers(self) -> None:
        try:
            context = self._fork_server.context()
            for _ in range(self.workers):
                if self._cancelled:
                    return
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, dict(os.environ)), daemon=True)  # type: ignore[attr-defined]
                with interrupts_wait():
                    process.start()
                there.close()
                self._workers.append(_Worker(process, here))
        except (OSError, EOFError, RuntimeError) as fault:
            self._start_fault = fault

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """See `Executor`."""
        self.start()
        assert self._starter is not None
        self._starter.join()
        if self._start_fault is not None:
            raise WorkerDiedError(f"worker processes cannot be started ({self._start_fault}): use --workers 1.") from (
                self._start_fault
            )
        queue = iter(tasks)
        busy: dict[Any, _Worker] = {}
        for worker in self._workers:
            for task in queue:
                self._send(worker, (function, task))
                busy[worker.connection] = worker
                break
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                yield self._receive(worker)
                for task in queue:
                    self._send(worker, (function, task))
                    busy[worker.connection] = worker
                    break

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise _died(worker) from None

    def _receive(self, worker: _Worker) -> Any:
        try:
            fine, answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            raise _died(worker) from None
        if not fine:
            raise answer
        return answer

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(kill=kind is not None)

    def stop(self) -> None:
        """See `Executor`."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        if self._starter is None:
            return
        if self._starter.is_alive():  # nobody needs what is not even there yet
            kill = self._cancelled = True
        while self._starter.is_alive():
            self._fork_server.end()
            self._starter.join(0.05)
        for worker in self._workers:
            if kill:
                worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()
        if kill:
            self._fork_server.end()
        self._workers.clear()
        self._starter = None
        self._start_fault = None
        self._cancelled = False


def _resolved(name: str) -> Callable[[Any], Any]:
    """The function that `module:function` names."""
    module, _, attribute = name.partition(":")
    function: Callable[[Any], Any] = getattr(import_module(module), attribute)
    return function


def outcome(function: str, task: Any) -> tuple[bool, Any]:
    """What a worker answers: whether a task went well, and its result or what it raised."""
    try:
        return True, _resolved(function)(task)
    except TokenLabelsError as fault:
        return False, fault
    except MemoryError:
        return False, WorkerDiedError("a worker ran out of memory: use fewer --workers.")
    except Exception as fault:  # noqa: BLE001  a bug: the parent shows it whole
        fault.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return False, fault


def _died(worker: _Worker) -> WorkerDiedError:
    worker.process.join(5)
    code = worker.process.exitcode
    how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return WorkerDiedError(
        f"a worker process ended {how} (out of memory?): run the same command again to go on, with fewer --workers."
    )


def _serve(connection: Connection[Any, Any], environment: dict[str, str]) -> None:
    """Main function of a worker: answer tasks until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)  # a fork server keeps that of the moment it started, without later credentials
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, task = connection.recv()
            connection.send(outcome(function, task))
