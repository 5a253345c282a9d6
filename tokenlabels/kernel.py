"""The one place that turns a function into machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile with numba on first call: no Python objects inside, GIL released, IEEE arithmetic (no fastmath).

    The machine code is cached on disk beside the source, or in the user's cache folder; where neither can be written
    the function still works and is compiled once per process.
    """
    try:
        return numba.njit(function, cache=True, nogil=True)  # type: ignore[no-any-return]
    except RuntimeError:  # numba: "no locator available": no cache folder can be written
        return numba.njit(function, nogil=True)  # type: ignore[no-any-return]
