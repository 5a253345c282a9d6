"""What a worker of a Dask cluster does: read a task from the spool, run it, answer.

Everything that passes through the scheduler is made of strings and bytes, so that the scheduler needs no package.
"""

from __future__ import annotations

import functools
import os
import pickle
import secrets
from typing import Any, Literal, NamedTuple, TypeAlias

from tokenlabels.errors import TokenLabelsError
from tokenlabels.executors import outcome
from tokenlabels.spool import Parcel, is_held, read_parcel, write_parcel
from tokenlabels.storage import located

Kind: TypeAlias = Literal["result", "fault", "spooled", "unseen", "versions", "package"]
Answer: TypeAlias = tuple[Kind, Any]
"""What kind of answer, and: the pickle of a result or of what was raised, or the parcel of a large result; or the file
that this worker does not see; or the versions it has; or why the package cannot be imported."""

_INLINE_BYTES = 1 << 16
"""Results up to this size go through the scheduler."""


class Order(NamedTuple):
    """A task, as the scheduler sees it.

    Attributes:
        function: see `Executor.run`.
        parcel: of the task.
        lease: of the spool.
        versions: see `versions_here`.
    """

    function: str
    parcel: Parcel
    lease: str
    versions: dict[str, str]


@functools.cache
def versions_here() -> dict[str, str]:
    """Versions of what decides the bytes of shards."""
    import numpy as np
    import PIL
    import pyarrow as pa

    import tokenlabels

    return {
        "tokenlabels": tokenlabels.__version__,
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "pillow": PIL.__version__,
    }


def load() -> Answer:
    """Load and compile whatever tasks need, before there are any."""
    import tokenlabels.worker  # noqa: F401

    return "result", pickle.dumps(None)


def carry_out(words: tuple[Any, ...]) -> Answer:
    """Run one task; a fault is an answer, too, so that Dask does not try again what cannot succeed."""
    order = Order(*words)
    if versions_here() != order.versions:
        return "versions", versions_here()
    place = located(order.parcel[0])
    try:
        if not is_held(located(order.lease)):
            return "unseen", order.lease
        task = read_parcel(order.parcel)
    except FileNotFoundError:
        return "unseen", order.parcel[0]
    except OSError as fault:
        return "fault", pickle.dumps(TokenLabelsError(f"{place}: a worker cannot read it ({fault})."))
    except TokenLabelsError as fault:
        return "fault", pickle.dumps(fault)
    load()
    fine, answer = outcome(order.function, task)
    content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    if not fine or len(content) <= _INLINE_BYTES:
        return "result" if fine else "fault", content
    try:
        name = f"{place.stem}-{os.getpid()}-{secrets.token_hex(4)}.result"
        return "spooled", write_parcel(place.with_name(name), content)
    except TokenLabelsError as fault:
        return "fault", pickle.dumps(fault)
