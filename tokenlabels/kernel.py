"""The one place that turns a function into machine code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: F) -> F:
    """Compile with numba on first call: no Python objects inside, GIL released, IEEE arithmetic.

    IEEE means no fastmath, and that a division by zero gives infinity.

    The machine code is cached on disk beside the source, or in the user's cache folder. Where neither can be written,
    or no room is left there, the function still works and is compiled once per process.
    """
    try:
        dispatcher = numba.njit(function, cache=True, **_OPTIONS)
    except RuntimeError:  # numba: "no locator available": no cache folder can be written
        return cast(F, numba.njit(function, **_OPTIONS))
    cache: Any = getattr(dispatcher, "_cache", None)
    if hasattr(cache, "save_overload"):
        cache.save_overload = _forgiving(cache.save_overload)
    return cast(F, dispatcher)


def _forgiving(save: Callable[..., object]) -> Callable[..., None]:
    """`save`, passing over a full disk or quota."""

    def save_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    return save_if_possible
