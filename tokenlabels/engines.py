"""Which executor a build runs on: this process, processes of this machine, or a Dask cluster."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.executors import Executor, ProcessExecutor, SerialExecutor
from tokenlabels.options import BuildOptions
from tokenlabels.output import spools_of
from tokenlabels.sources.base import Source
from tokenlabels.storage import stays_in_process
from tokenlabels.threads import cores

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Engine: TypeAlias = Literal["local", "dask"]

_BYTES_PER_WORKER = 24 << 20
"""Annotation bytes below which a further worker process costs more than it saves."""

_FEW_CORES = 4


def work_of(source: Source, options: BuildOptions) -> int:
    """What a build has to do, as bytes of JSON that take as long.

    Resizing pictures pays for every core; on few of them threads do as well as processes, and start at once.
    """
    if options.embed_size is not None and cores() > _FEW_CORES:
        return sys.maxsize
    return source.input_bytes(masks=options.rule.kind.reads_masks)


def workers_for(workers: int | None, source: Source, *places: Location, engine: Engine = "local") -> int | None:
    """The number of workers, 1 where nobody chose and a place is in this process's memory.

    Raises:
        ParameterError: other processes could not see such a place.
    """
    hidden = next((place for place in (*source.places(), *places) if stays_in_process(place)), None)
    if hidden is None:
        return workers
    if workers not in (None, 1) or engine != "local":
        raise ParameterError(f"{hidden}: is in the memory of one process: use one worker (--engine local --workers 1).")
    return 1


def make_executor(
    workers: int | None,
    input_bytes: int,
    *,
    engine: Engine = "local",
    scheduler: str | None = None,
    out: Location | None = None,
) -> Executor:
    """Serial for one worker or little work, else processes; with `engine="dask"` a cluster that writes into `out`.

    Raises:
        ParameterError: parameters that contradict each other.
        TokenLabelsError: Dask is not installed.
    """
    if workers is not None and not 1 <= workers <= 1024:
        raise ParameterError(f"workers {workers} is out of range: 1 to 1024.")
    if engine not in ("local", "dask"):
        raise ParameterError(f"unknown engine {engine!r}: use local or dask.")
    if scheduler is not None and engine != "dask":
        raise ParameterError("--scheduler goes with --engine dask.")
    if scheduler is not None and workers not in (None, 1):
        raise ParameterError("--workers starts processes here; the cluster of --scheduler has its own: leave it out.")
    if workers is None:
        workers = max(1, min(cores(), input_bytes // _BYTES_PER_WORKER))
    if engine == "dask":
        if find_spec("distributed") is None:
            raise TokenLabelsError("--engine dask needs Dask, which is not installed: pip install 'tokenlabels[dask]'.")
        from tokenlabels.dask_executor import DaskExecutor

        spool = spools_of(out) if out is not None and (scheduler or isinstance(out, Path)) else None
        return DaskExecutor(spool, scheduler=scheduler, workers=workers)
    return SerialExecutor() if workers == 1 else ProcessExecutor(workers)
