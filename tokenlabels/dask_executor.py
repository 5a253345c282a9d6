"""Tasks on a Dask cluster: one that is running somewhere, or one that is started on this machine.

Dask only decides where a task runs and runs it again elsewhere when a worker dies. Tasks travel through a spool (see
`spool.py`) and commit their results themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from itertools import count, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tokenlabels.dask_cluster import (
    CONNECT_SECONDS,
    OwnCluster,
    connect,
    first_line,
    full_address,
    knock,
    no_scheduler,
    quiet,
)
from tokenlabels.dask_worker import Order, versions_here
from tokenlabels.errors import OutputError, SchedulerError, TokenLabelsError, WorkerDiedError
from tokenlabels.spool import Spool, is_held, read_parcel
from tokenlabels.storage import remove
from tokenlabels.threads import threads_of

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_WORKER_SECONDS = 60.0
"""How long a cluster may be without workers; some start them when there are tasks."""

_END_SECONDS = 10.0
"""How long to wait for tasks that run when the build ends early; they do not commit any more."""

_LOOK_SECONDS = 0.2
_TASKS_PER_THREAD = 2
"""One runs, one waits: bounds what lies in the spool."""


class DaskExecutor:
    """Workers of a Dask cluster.

    Args:
        spool: folder that every worker sees; None: one of this machine, for workers started here.
        scheduler: address of a running cluster; None: a cluster of this machine, ended with the executor.
        workers: processes of that cluster, of one thread each.
        worker_seconds: how long a cluster may be without workers.

    Raises:
        ParameterError: no address.
    """

    def __init__(
        self,
        spool: Location | None,
        *,
        scheduler: str | None = None,
        workers: int = 1,
        worker_seconds: float = _WORKER_SECONDS,
    ) -> None:
        self._address = None if scheduler is None else full_address(scheduler)
        self._workers = workers
        self._worker_seconds = worker_seconds
        self.threads = threads_of(workers) if scheduler is None else 1  # the cluster has its own
        self._spool = Spool(spool)
        self.lease = self._spool.lease
        self._starter: threading.Thread | None = None
        self._fault: Exception | None = None
        self._stack = contextlib.ExitStack()
        self._cluster: OwnCluster | None = None
        self._client: Any = None  # a distributed.Client; its methods have no types
        self._warming: list[Any] = []
        self._waiting: dict[Any, Location] = {}
        self._numbers = count()  # over all runs: Dask may still know the result of a name that was used before
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads_there = 0
        self._seen = self._looked = 0.0

    def start(self) -> None:
        """See `Executor`.

        Raises:
            SchedulerError: nobody listens at the address.
        """
        if self._starter is None:
            if self._address is not None:
                knock(self._address)
            self._starter = threading.Thread(target=self._begin, daemon=True)
            self._starter.start()

    def _begin(self) -> None:
        try:
            if self._address is None:
                self._cluster = OwnCluster(self._workers)
                self._stack.enter_context(quiet())
                self._client = self._cluster.start()
            else:
                self._stack.enter_context(quiet())
                self._client = connect(self._address)
                warm = _in_worker("load")
                self._warming = [
                    self._client.submit(warm, workers=[worker], pure=False) for worker in self._client.nthreads()
                ]
        except Exception as fault:  # noqa: BLE001  told where it can be
            self._fault = fault

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """See `Executor`.

        Raises:
            SchedulerError: the cluster cannot be reached, has no workers, or they cannot run tasks.
            WorkerDiedError: a task ends every worker that runs it.
            OutputError: the spool cannot be written.
        """
        self._connected()
        self._spool.open()
        try:
            todo = iter(tasks)
            self._seen = time.monotonic()
            while True:
                self._look()
                free = max(1, self._threads_there) * _TASKS_PER_THREAD - len(self._waiting)
                for task in islice(todo, max(0, free)):
                    self._send(function, task)
                if not self._waiting:
                    return
                future = self._next()
                answer = self._answer(future)
                with contextlib.suppress(OSError):
                    remove(self._waiting.pop(future))
                future.release()
                yield answer
        finally:
            self._end_run()

    def _send(self, function: str, task: Any) -> None:
        number = next(self._numbers)
        parcel = self._spool.put(f"{number}.task", task)
        order = pickle.dumps(Order(function, parcel, self.lease))
        key = f"{function.partition(':')[2]}-{self.lease.parent.name}-{number}"
        try:
            future = self._client.submit(_in_worker("carry_out"), versions_here(), order, key=key, pure=False)
        except Exception as fault:
            raise self._gone() from fault
        self._waiting[future] = parcel[0]
        future.add_done_callback(self._done.put)

    def _connected(self) -> None:
        """Wait for the cluster."""
        self.start()
        assert self._starter is not None
        self._starter.join(None if self._address is None else 3 * CONNECT_SECONDS)
        if self._fault is not None and self._address is not None:
            self._fault = None  # a large file that was decoded meanwhile let no other thread run
            self._begin()
        if self._starter.is_alive() and self._address is not None:
            raise no_scheduler(self._address)
        if isinstance(self._fault, TokenLabelsError):
            raise self._fault
        if self._fault is not None or self._client is None:
            fault = self._fault
            raise SchedulerError(f"a Dask cluster cannot be started here ({first_line(fault)}): use --engine local.")

    def _next(self) -> Any:
        """The next task that is done."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._done.get(timeout=_LOOK_SECONDS)
            self._look()

    def _look(self) -> None:
        """Count the threads of the cluster, now and then."""
        assert self._client is not None
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._cluster is not None:
            self._cluster.mend()
        if self._client.status != "running":
            raise self._gone()
        try:
            self._threads_there = sum(self._client.nthreads().values())
        except OSError:
            raise self._gone() from None
        if self._threads_there:
            self._seen = now
        elif now - self._seen > self._worker_seconds:
            where = self._address or "of this machine"
            remedy = f"start some (dask worker {where})" if self._address else "see whether memory is short"
            raise SchedulerError(
                f"the Dask scheduler {where} has had no workers for {self._worker_seconds:.0f} s: {remedy} and run the "
                "same command again."
            )

    def _gone(self) -> SchedulerError:
        where = self._address or "of this machine"
        return SchedulerError(
            f"the connection to the Dask scheduler {where} is lost: finished shards are kept, run the same command "
            "again once it runs."
        )

    def _answer(self, future: Any) -> Any:
        """The result of a task that is done; raises what it raised."""
        from distributed import KilledWorker

        try:
            fault = future.exception() if future.status == "error" else None
            reply: Any = future.result() if fault is None else None
        except (OSError, CancelledError, asyncio.CancelledError):
            raise self._gone() from None
        if isinstance(fault, KilledWorker):
            raise WorkerDiedError(
                "a task ended every worker that ran it (out of memory?): give workers more memory, or use a "
                "smaller --shard-rows, and run the same command again."
            )
        if fault is not None:
            raise fault
        return self._opened(*reply)

    def _opened(self, worker: str, answer: Any) -> Any:
        kind, content = answer
        if kind == "result":
            return pickle.loads(content)  # noqa: S301  from a worker, which could do whatever it likes
        if kind == "spooled":
            parcel = pickle.loads(content)  # noqa: S301
            try:
                result = read_parcel(parcel)
                remove(parcel[0])
            except OSError as fault:
                raise OutputError(f"{parcel[0]}: what worker {worker} wrote cannot be read ({fault}).") from None
            return result
        if kind == "fault":
            raise pickle.loads(content)  # noqa: S301
        if kind == "package":
            raise SchedulerError(
                f"worker {worker} cannot import tokenlabels ({content}): install tokenlabels "
                f"{versions_here()['tokenlabels']} on every worker."
            )
        if kind == "versions":
            differing = [
                f"{name} {content.get(name)} instead of {version}"
                for name, version in versions_here().items()
                if content.get(name) != version
            ]
            raise SchedulerError(
                f"worker {worker} has {', '.join(differing)}: shards would not be the same, install the same versions "
                "on every worker."
            )
        if is_held(self.lease):
            raise SchedulerError(
                f"worker {worker} does not see {content}: --out must be a folder that every worker sees by the same "
                "name, or an object store."
            )
        raise OutputError(
            f"{self._spool.place}: another build has taken this folder over: wait for it, or name another --out."
        )

    def stop(self) -> None:
        """See `Executor`."""
        self._end()

    def __enter__(self) -> DaskExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end_run(self) -> None:
        """Take the lease away, wait until the tasks that still run have seen that, and remove the spool."""
        self._spool.end()
        if self._waiting and self._cluster is not None:
            self._cluster.kill()
        elif self._waiting and self._client is not None:
            deadline = time.monotonic() + _END_SECONDS
            while time.monotonic() < deadline and not all(future.done() for future in self._waiting):
                time.sleep(0.02)
            with contextlib.suppress(OSError, TimeoutError):
                self._client.cancel(list(self._waiting))
        self._waiting.clear()
        self._done = queue.SimpleQueue()
        self._spool.close()

    def _end(self) -> None:
        self._end_run()
        if self._starter is None:
            return
        deadline = time.monotonic() + (_END_SECONDS if self._address is None else 1.0)
        while self._starter.is_alive() and time.monotonic() < deadline:
            if self._cluster is not None:
                self._cluster.kill()
            self._starter.join(0.05)
        self._warming = []
        if self._client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                self._client.close(timeout=2)
        if self._cluster is not None:
            self._cluster.close()
        self._stack.close()
        self._starter = self._client = self._cluster = self._fault = None


def _in_worker(name: str) -> Callable[..., Any]:
    """A function of `dask_worker`, which answers with the worker's address, too.

    It is defined here so that Dask sends it whole: a scheduler or worker without the package can still take it.
    """

    def call(*words: Any) -> tuple[str, Any]:
        from distributed import get_worker

        worker = get_worker().address
        try:
            from tokenlabels import dask_worker
        except ImportError as fault:
            return worker, ("package", str(fault))
        return worker, getattr(dask_worker, name)(*words)

    return call
