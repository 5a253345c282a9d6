"""What a sweep keeps under its folder so that it can go on after it was killed."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from bavit.background.model import BAViT
from bavit.detect.ground_truth import DetectionSet
from bavit.detect.loading import Machine
from bavit.detect.yolos import Yolos
from tokenlabels import __version__
from tokenlabels.shards import write_atomically

if TYPE_CHECKING:
    from bavit.detect.sweep import Plan

Record = TypeVar("Record", bound=msgspec.Struct)

_VERSION = 1
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


def digest(bavit: BAViT, yolos: Yolos, data: DetectionSet, plan: Plan, machine: Machine) -> str:
    """A text that differs where anything differs that the figures of a sweep depend on, but for the pictures."""
    found = hashlib.sha256()
    rows, truth = data.rows, data.truth()
    for described in (_VERSION, __version__, bavit.config, yolos.config, plan, machine.describe(), list(rows.image_ids),
                      list(rows.file_names), rows.categories, data.images):  # fmt: skip
        found.update(repr(described).encode())
    for model in (bavit, yolos):
        for name, value in model.state_dict().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    arrays = (rows.labels, rows.widths, rows.heights, truth.image, truth.category, truth.boxes, truth.areas,
              truth.crowd, truth.ignored)  # fmt: skip
    for array in (*arrays, *(() if rows.scores is None else (rows.scores,))):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
