"""The one place that turns a function into machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: F) -> F:
    """Compile with numba on first call: no Python objects inside, GIL released, IEEE arithmetic.

    IEEE means no fastmath, and that a division by zero gives infinity.

    The machine code is cached on disk beside the source, or in the user's cache folder; where neither can be written
    the function still works and is compiled once per process.
    """
    try:
        return cast(F, numba.njit(function, cache=True, **_OPTIONS))
    except RuntimeError:  # numba: "no locator available": no cache folder can be written
        return cast(F, numba.njit(function, **_OPTIONS))
