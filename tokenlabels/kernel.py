"""The one place that turns a function into machine code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
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
    file: Any = getattr(cache, "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _package_digest())
    return cast(F, dispatcher)


@functools.cache
def _package_digest() -> str:
    """Hash of the package's sources.

    A kernel has the kernels it calls compiled into it, also those of other files, while numba's own stamp is that of
    the kernel's file alone: without this, an edit in one file would leave old code running in another.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _forgiving(save: Callable[..., object]) -> Callable[..., None]:
    """`save`, passing over a full disk or quota."""

    def save_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    return save_if_possible
