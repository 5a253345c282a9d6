"""Dask clusters: one started on this machine, and the way to one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any
from urllib.parse import urlsplit

from tokenlabels.errors import ParameterError, SchedulerError
from tokenlabels.fork_server import ForkServer, end_with_parent, interrupts_wait

CONNECT_SECONDS = 10.0
_GREETING = b"pickle-protocol"
_PATIENT = {"distributed.comm.timeouts.connect": "300s"}
"""While this process decodes a large file its scheduler does not answer."""


class OwnCluster:
    """A cluster of this machine: its scheduler in a thread of this process, workers of one thread from a fork server.

    Not a `LocalCluster` with workers of its own: its nannies cannot be ended at once, nor while they start.
    """

    def __init__(self, workers: int) -> None:
        self._count = workers
        self._workers: list[BaseProcess] = []
        self._fork_server = ForkServer("distributed", __name__)
        self._fork_server.context()  # it loads everything while this process is still busy with a large file
        self._stack = contextlib.ExitStack()
        self._ended = False
        self.address = ""

    def start(self) -> Any:
        """Start everything, which may take seconds; returns a client."""
        import dask

        distributed: Any = import_module("distributed")  # its classes have no types
        self._stack.enter_context(dask.config.set(_PATIENT))
        cluster = self._stack.enter_context(
            distributed.LocalCluster(
                n_workers=0,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL + 1,
            )
        )
        self.address = cluster.scheduler_address
        self._scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenlabels-"))
        self.mend()
        return distributed.Client(cluster, set_as_default=False)

    def mend(self) -> None:
        """Start workers in place of those that have died."""
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        context: Any = self._fork_server.context() if len(self._workers) < self._count else None
        while len(self._workers) < self._count and not self._ended:
            worker = context.Process(target=_serve, args=(self.address, self._scratch, dict(os.environ)), daemon=True)
            with interrupts_wait():
                worker.start()
            self._workers.append(worker)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing, and any that are still to come."""
        self._ended = True
        self._fork_server.end()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()

    def close(self) -> None:
        """End everything."""
        self.kill()
        self._stack.close()


def _serve(address: str, scratch: str, environment: dict[str, str]) -> None:
    """Main function of a worker."""
    os.environ.update(environment)  # as in `executors`
    import dask

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with quiet(), dask.config.set(_PATIENT):
        asyncio.run(_work(address, scratch))


async def _work(address: str, scratch: str) -> None:
    distributed: Any = import_module("distributed")
    async with distributed.Worker(address, nthreads=1, memory_limit=0, local_directory=scratch) as worker:
        await worker.finished()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Dask logs nothing: what a person should know is in the error."""
    import distributed  # noqa: F401  makes the loggers

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    loud = [logger for logger in map(logging.getLogger, names) if not logger.disabled]
    for logger in loud:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loud:
            logger.disabled = False


def connect(address: str) -> Any:
    """A client of a running cluster.

    Raises:
        SchedulerError: there is none, or it runs another Python than this process.
    """
    distributed: Any = import_module("distributed")
    try:
        if asyncio.run(_identity(address)).get("type") != "Scheduler":  # a client of a worker would wait for ever
            raise no_scheduler(address)
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="tokenlabels")
    except (OSError, ValueError) as fault:
        raise no_scheduler(address) from fault
    here = ".".join(map(str, sys.version_info[:2]))
    versions = client.get_versions()
    for name, version in {address: versions["scheduler"], **versions["workers"]}.items():
        there = ".".join(str(version["host"]["python"]).split(".")[:2])
        if there != here:
            client.close()
            raise SchedulerError(f"{name} runs Python {there}, this process {here}: use the same everywhere.")
    return client


async def _identity(address: str) -> dict[str, Any]:
    distributed: Any = import_module("distributed")
    arguments = distributed.Security().get_connection_args("client")
    async with distributed.rpc(address, connection_args=arguments, timeout=CONNECT_SECONDS) as server:
        found: dict[str, Any] = await asyncio.wait_for(server.identity(), CONNECT_SECONDS)
        return found


def no_scheduler(address: str) -> SchedulerError:
    """The error that says that whoever listens is no scheduler."""
    return SchedulerError(f"{address}: no Dask scheduler answers there: check the address and the port.")


def full_address(scheduler: str) -> str:
    """The address with its protocol.

    Raises:
        ParameterError: it names no host and port.
    """
    address = scheduler if "://" in scheduler else f"tcp://{scheduler}"
    try:
        parts = urlsplit(address)
        if parts.scheme in ("tcp", "tls") and parts.hostname and parts.port:
            return address
    except ValueError:
        pass
    raise ParameterError(f"--scheduler {scheduler} is no address: write it as tcp://HOST:8786.")


def knock(address: str) -> None:
    """See who listens, before a large file is read: Dask speaks first, and would wait for ever for others to speak."""
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_SECONDS) as connection:
            greeting = b"" if parts.scheme == "tcp" else _GREETING
            while _GREETING not in greeting:
                received = connection.recv(1024)
                if not received or len(greeting) > 4096:
                    raise TimeoutError
                greeting += received
    except TimeoutError:
        raise no_scheduler(address) from None
    except OSError as fault:
        raise SchedulerError(
            f"the Dask scheduler {address} cannot be reached ({fault.strerror or fault}): start it (dask scheduler), "
            "or check the address."
        ) from None


def first_line(fault: object) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]
