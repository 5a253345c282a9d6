"""Dask clusters: one started on this machine, and the way to one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from tokenlabels.errors import ParameterError, SchedulerError
from tokenlabels.fork_server import ForkServer

CONNECT_SECONDS = 10.0
_GREETING = b"pickle-protocol"


class OwnCluster:
    """A cluster of this machine: its scheduler in a thread of this process, workers from a fork server."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._fork_server = ForkServer("distributed")
        self._stack = contextlib.ExitStack()
        self._cluster: Any = None

    def start(self) -> Any:
        """Start everything, which may take seconds; returns a client."""
        import dask

        distributed: Any = import_module("distributed")  # its classes have no types
        method = self._fork_server.context().get_start_method()
        settings = {
            "distributed.worker.multiprocessing-method": method,
            "distributed.comm.timeouts.connect": "300s",  # decoding a large file lets the scheduler wait
        }
        self._stack.enter_context(dask.config.set(settings))
        utils: Any = sys.modules["distributed.utils"]
        self._stack.callback(setattr, utils, "_forkserver_preload_set", utils._forkserver_preload_set)
        utils._forkserver_preload_set = True  # else it loads pandas, here and in the fork server
        self._cluster = self._stack.enter_context(
            distributed.LocalCluster(
                n_workers=self._workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                memory_limit=0,
                silence_logs=logging.CRITICAL + 1,
            )
        )
        return distributed.Client(self._cluster, set_as_default=False)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._cluster.scheduler_address)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing, and any that may still come."""
        for nanny in list(self._cluster.workers.values()) if self._cluster else []:
            pid = nanny.pid
            nanny.close_gracefully()  # only says that it need not be replaced
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._fork_server.end()

    def close(self) -> None:
        """End what is left."""
        self._stack.close()
        self._fork_server.end()


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
