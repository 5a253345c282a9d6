"""What a worker of a Dask cluster does: read a task from the spool, run it, answer.

Everything that passes through the scheduler is made of strings and bytes, so that the scheduler needs no package.
"""

from __future__ import annotations

import functools
import os
import pickle
import secrets
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from tokenlabels.errors import TokenLabelsError
from tokenlabels.executors import outcome
from tokenlabels.spool import Parcel, is_held, read_parcel, write_parcel

if TYPE_CHECKING:
    from tokenlabels.storage import Location

Kind: TypeAlias = Literal["result", "fault", "spooled", "unseen", "versions", "package"]
Answer: TypeAlias = tuple[Kind, Any]
"""What kind of answer, and: the pickle of a result, of what was raised, or of the parcel of a large result; the file
that this worker does not see; the versions it has; why the package cannot be imported."""

_INLINE_BYTES = 1 << 16
"""Results up to this size go through the scheduler."""


class Order(NamedTuple):
    """What a worker is told of a task.

    Attributes:
        function: see `Executor.run`.
        parcel: of the task.
        lease: of the spool.
    """

    function: str
    parcel: Parcel
    lease: Location


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


def carry_out(versions: dict[str, str], order: bytes) -> Answer:
    """Run one task; a fault is an answer, too, so that Dask does not try again what cannot succeed.

    Args:
        versions: `versions_here` of whoever waits for the result.
        order: pickle of an `Order`.
    """
    if versions_here() != versions:
        return "versions", versions_here()
    function, parcel, lease = pickle.loads(order)  # noqa: S301  from the scheduler
    place = parcel[0]
    try:
        if not is_held(lease):
            return "unseen", str(lease)
        task = read_parcel(parcel)
    except FileNotFoundError:
        return "unseen", str(place)
    except OSError as fault:
        return "fault", pickle.dumps(TokenLabelsError(f"{place}: a worker cannot read it ({fault})."))
    except TokenLabelsError as fault:
        return "fault", pickle.dumps(fault)
    load()
    fine, answer = outcome(function, task)
    content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    if not fine or len(content) <= _INLINE_BYTES:
        return "result" if fine else "fault", content
    try:
        name = f"{place.stem}-{os.getpid()}-{secrets.token_hex(4)}.result"
        return "spooled", pickle.dumps(write_parcel(place.with_name(name), content))
    except TokenLabelsError as fault:
        return "fault", pickle.dumps(fault)
