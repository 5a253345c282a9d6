"""The folder of a training run: what is in it, who may write to it, and the figures of its epochs.

config.json, model.safetensors   the model, for its `from_pretrained`
run.json                         settings, data and versions
metrics.jsonl, curves.png        figures of every epoch
checkpoint.pt                    what `--resume` goes on from
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bavit.parts import BAVIT_FOLDER, DETECTOR_FOLDER, PRUNED_FILE, is_saved
from bavit.rows import Rows
from bavit.training.checkpoint import CHECKPOINT_FILE
from bavit.weights import CONFIG_FILE, WEIGHTS_FILE
from tokenlabels.atomic import is_temporary, write_atomically
from tokenlabels.errors import OutputError, ParameterError, TokenLabelsError

if TYPE_CHECKING:
    from tokenlabels.storage import Location

RUN_FILE, METRICS_FILE, CURVES_FILE = "run.json", "metrics.jsonl", "curves.png"
_MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, "preprocessor_config.json", PRUNED_FILE, "adaptive.safetensors")
"""What `save_pretrained` of any model writes."""

_PART_FILES = tuple(f"{part}/{name}" for part in (BAVIT_FOLDER, DETECTOR_FOLDER) for name in _MODEL_FILES[:3])
"""Those of the two models of a pruned detector, see `bavit.detect.saved`."""

_FILES = (RUN_FILE, METRICS_FILE, CURVES_FILE, CHECKPOINT_FILE, *_MODEL_FILES)


def check_claim(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a new run cannot have.

    Args:
        folder: of the run.
        overwrite: a run that is in it may be deleted.

    Raises:
        OutputError: it holds a run, or other files, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file: name a folder with --out.")
    held = [path.name for path in folder.iterdir() if not is_temporary(path.name)] if folder.is_dir() else []
    if held and RUN_FILE not in held:
        raise OutputError(f"{folder}: holds other files ({sorted(held)[0]}): name an empty folder with --out.")
    models = {CHECKPOINT_FILE, WEIGHTS_FILE, PRUNED_FILE}  # without any there is nothing in it to lose
    if models & set(held) and not overwrite:
        raise OutputError(f"{folder}: holds a run: go on with --resume, or use --overwrite or another --out.")


def check_sources(folder: Path, sources: Sequence[str]) -> None:
    """Refuse a folder that holds what a new run starts from or learns from, which the run would replace.

    Args:
        folder: of the run.
        sources: folders and files; other names are passed over.

    Raises:
        ParameterError: one of them is the folder, or lies in it.
    """
    whole = folder.resolve()
    for source in sources:
        place = Path(source).resolve()
        if place.is_relative_to(whole) and os.path.lexists(source):
            raise ParameterError(f"{source}: training starts from it, and would replace it: name another --out.")


def claim(folder: Path) -> None:
    """Make the folder ready for a new run, deleting the one that is in it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (*_PART_FILES, *_FILES) if is_saved(folder) else _FILES  # other folders within are none of the run's
        for path in (*(folder / name for name in names), *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
        clear_temporaries(folder)
    except OSError as fault:
        raise OutputError(f"{folder}: cannot be written ({fault.strerror}): name another --out.") from None


def clear_temporaries(folder: Path) -> None:
    """Delete what a killed process was writing."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def read_run(folder: Path, command: str) -> dict[str, Any]:
    """What `run.json` says.

    Args:
        folder: of the run.
        command: of bavit that made it.

    Raises:
        TokenLabelsError: the folder holds no run, or one of another command.
    """
    path = folder / RUN_FILE
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("given"), dict):
            raise ValueError
    except FileNotFoundError:
        raise TokenLabelsError(f"{path}: no such file: there is no run to resume, train without --resume.") from None
    except (OSError, ValueError):
        raise TokenLabelsError(f"{path}: is damaged: train anew with --overwrite.") from None
    if found.get("command", command) != command:
        raise TokenLabelsError(f"{folder}: holds a run of bavit {found['command']}: go on with that command.")
    return found


def check_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        OutputError: they differ; says where.
    """
    before, now = _flat(stored), _flat(wanted)
    differences = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}" if name != "data" else "the images or labels differ"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise OutputError(f"{folder}: holds a run with other settings ({'; '.join(differences)}): name another --out.")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings by their own names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return found


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    write_atomically(folder / RUN_FILE, (json.dumps(content, indent=2) + "\n").encode())


def write_metrics(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.jsonl`, one record a line."""
    write_atomically(folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in history).encode())


def data_facts(rows: Rows, images: Location | None) -> dict[str, Any]:
    """What `run.json` says of the rows that a run is trained or validated on."""
    header = rows.header
    return {
        "build": str(rows.folder),
        "images_folder": None if images is None else str(images),
        "splits": list(dict.fromkeys(rows.splits)),
        "images": len(rows),
        "grid": header.grid,
        "rule": header.rule,
        "tau": header.tau,
    }


def doubts(train: Rows, val: Rows) -> list[str]:
    """What a person should know of two sets before believing figures of the second."""
    found = []
    seen = set(zip(train.file_names, train.widths.tolist(), train.heights.tolist(), strict=True))
    shared = sum(key in seen for key in zip(val.file_names, val.widths.tolist(), val.heights.tolist(), strict=True))
    if shared:
        found.append(f"{shared} of {len(val)} images to validate on are trained on, too: figures flatter the model.")
    if train.header.spec != val.header.spec:
        rules = [f"{rows.header.rule}, tau {rows.header.tau:g}" for rows in (train, val)]
        found.append(f"the labels follow different rules: {rules[0]} to train on, {rules[1]} to validate on.")
    return found


def data_digest(rows: Sequence[Rows]) -> str:
    """Hex sha256 of what is trained and validated on: the labels, which image is which, and its size."""
    found = hashlib.sha256()
    for part in rows:
        found.update(json.dumps([part.header.grid, *part.image_ids]).encode())
        for values in (part.labels, part.widths, part.heights, part.boxes):
            found.update(values.tobytes())
    return found.hexdigest()
