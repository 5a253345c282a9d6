"""What a sweep keeps under its folder so that it can go on after it was killed."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from tokenlabels.atomic import write_atomically

Record = TypeVar("Record", bound=msgspec.Struct)

_FOLDER, _INPUTS = ".sweep", "inputs"


class SweepCache:
    """Arrays and records by name, as long as the inputs stay the same.

    Args:
        out: folder of the sweep.
        key: of the inputs; what was kept under another key is deleted.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path, key: str) -> None:
        self._folder = self.folder_in(out)
        place = self._folder / _INPUTS
        if not place.is_file() or place.read_text("utf-8", "replace") != key:
            shutil.rmtree(self._folder, ignore_errors=True)
            write_atomically(place, key.encode())

    @staticmethod
    def folder_in(out: Path) -> Path:
        """Where the cache of a sweep is."""
        return out / _FOLDER

    def arrays(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Arrays kept under a name; None where there are none, or where they are damaged."""
        try:
            with np.load(self._folder / f"{name}.npz") as stored:
                return {key: stored[key] for key in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def keep_arrays(self, name: str, arrays: dict[str, NDArray[Any]]) -> None:
        """Keep arrays under a name."""
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_atomically(self._folder / f"{name}.npz", file.getvalue())

    def record(self, name: str, kind: type[Record]) -> Record | None:
        """A record kept under a name; None where there is none, or where it is damaged."""
        try:
            return msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):
            return None

    def keep_record(self, name: str, record: msgspec.Struct) -> None:
        """Keep a record under a name."""
        write_atomically(self._folder / f"{name}.json", msgspec.json.encode(record))

    @classmethod
    def finish(cls, out: Path) -> None:
        """Take away what was kept to go on with; called when all is written."""
        shutil.rmtree(cls.folder_in(out), ignore_errors=True)


def digest_of(described: Iterable[object], models: Iterable[nn.Module], arrays: Iterable[NDArray[Any]]) -> str:
    """Hex digest of what the figures of a sweep depend on.

    Args:
        described: whose `repr` says all of them.
        models: whose parameters and buffers count.
        arrays: whose contents count.
    """
    found = hashlib.sha256()
    for each in described:
        found.update(repr(each).encode())
    for model in models:
        for name, value in model.state_dict().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
