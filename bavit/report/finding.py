"""What a person names -> results: files, folders of one run, and folders of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bavit.gallery import KEPT_FILE
from bavit.report.kinds import add_file, detector_of, known_kinds, training_of
from bavit.report.reading import read_json, read_lines
from bavit.report.records import tables_of
from bavit.report.results import Results, Shown, TablesResult
from tokenlabels.errors import ParameterError, TokenLabelsError
from tokenlabels.progress import Progress
from tokenlabels.sources.paths import is_inside

RUN_FILE, METRICS_FILE, PRUNED_FILE = "run.json", "metrics.jsonl", "pruned.json"
"""See `bavit.training.run_folder` and `bavit.detect.saved`, which load torch."""

EXPORTED = (".onnx", ".pt2")
"""What `bavit export` writes."""

MEASURED_FILES = ("sweep.json", "evaluation.json")
"""What sweeps and evaluations of segmenters write into a folder of their own."""

_OTHER_FILES = re.compile(
    r"(config|preprocessor_config|run|pruned|detections|predictions|samples|manifest|tokenizer.*|package.*)\.json"
)
"""JSON files beside results that are none."""

_MOST_ITEMS, _MOST_ENTRIES = 300, 500
_MOST_PICTURES = 12
"""Results of a page, files or folders in a folder, and pictures of a folder, at most."""


@dataclass(frozen=True, slots=True)
class _Item:
    """Something to be read: what it is named after, from which file, and how it is put among the results."""

    anchor: Path
    file: Path
    read: Callable[[Results, str], None]


def find(places: Sequence[Path], progress: Progress) -> Results:
    """Everything that some files and folders hold.

    Args:
        places: what a person names; what is named twice counts once.
        progress: told about files that are left out.

    Returns:
        Results whose names are as short as they can be and still differ.

    Raises:
        ParameterError: nothing is named.
        TokenLabelsError: there is no such file, it holds no results, or it is damaged.
    """
    if not places:
        raise ParameterError(f"nothing is named to report on: name {known_kinds()}.")
    every: dict[Path, _Item] = {}
    results = Results()
    for place in dict.fromkeys(places):
        found = _folder(place, results) if place.is_dir() else _file(place)
        if not found:
            raise TokenLabelsError(f"{place}: holds no results: name {known_kinds()}.")
        for item in found:
            every.setdefault(item.file.resolve(), item)
    items = list(every.values())
    if len(items) > _MOST_ITEMS:
        raise ParameterError(f"{len(items):,} results are named: a page shows {_MOST_ITEMS} at most, name fewer.")
    names = short_names([item.anchor for item in items])
    progress.stage("reading", len(items))
    for item in items:
        item.read(results, names[item.anchor])
        progress.advance(1)
    for note in results.notes:
        progress.note(note)
    return results


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """For each path as few of its last parts as tell it from the others."""
    whole = {path: path.resolve().parts for path in paths}
    names: dict[Path, str] = {}
    for path, parts in whole.items():
        others = {each for each in whole.values() if each != parts}
        length = 1
        while length < len(parts) and any(each[-length:] == parts[-length:] for each in others):
            length += 1
        names[path] = "/".join(parts[-length:])
    return names


def _file(path: Path) -> list[_Item]:
    if not path.exists():
        raise TokenLabelsError(f"{path}: no such file or folder: name {known_kinds()}.")
    if path.suffix in EXPORTED:
        return [_Item(path, path, lambda results, name: results.tables.append(_exported(path, name)))]
    if path.name in (RUN_FILE, METRICS_FILE):
        return [_training(path.parent)]
    if path.name == PRUNED_FILE:
        return [_detector(path.parent)]
    anchor = path.parent if path.name in MEASURED_FILES else path.with_suffix("")
    found = [_Item(anchor, path, lambda results, name: add_file(results, name, path, read_json(path)))]
    return [*found, *_pictures(path.parent)] if path.name in MEASURED_FILES else found


def _exported(path: Path, name: str) -> TablesResult:
    """What an exported graph says of itself; nothing of it is run.

    Raises:
        TokenLabelsError: it was not written by `bavit export`.
    """
    from bavit.export.described import read_described  # loads torch

    told = msgspec.json.decode(read_described(path).encoded())
    facts, _ = tables_of({key: value for key, value in told.items() if key not in ("bavit", "detector", "format")})
    return TablesResult(name, str(path), facts | {"file MiB": path.stat().st_size / 2**20}, [])


def _folder(folder: Path, results: Results) -> list[_Item]:
    """What a folder holds itself; where it is no run, also what the folders in it hold."""
    own = _of_run(folder)
    found = [*own, *_loose(folder, results)]
    if not own:
        found += [item for path in _entries(folder, Path.is_dir, results) for item in _of_run(path)]
    return found


def _of_run(folder: Path) -> list[_Item]:
    found = []
    for name in MEASURED_FILES:
        path = folder / name
        if path.is_file():
            found.append(_measured(folder, path))
    if (folder / RUN_FILE).is_file() and (folder / METRICS_FILE).is_file():
        found.append(_training(folder))
    if (folder / PRUNED_FILE).is_file():
        found.append(_detector(folder))
    return [*found, *_pictures(folder)]


def _loose(folder: Path, results: Results) -> list[_Item]:
    """Other JSON files in a folder; what is none of results is noted, and left out."""
    found = []
    for path in _entries(folder, _is_loose, results):
        try:
            content = read_json(path)
            add_file(Results(), path.stem, path, content)
        except TokenLabelsError as fault:
            results.notes.append(f"left out: {fault}")
            continue
        found.append(_known(path, content))
    return found


def _is_loose(path: Path) -> bool:
    """Whether it is a file that may hold results: nothing that would be waited for, such as a pipe."""
    if path.suffix != ".json" or path.name in MEASURED_FILES or _OTHER_FILES.fullmatch(path.name):
        return False
    return path.is_file()


def _known(path: Path, content: Any) -> _Item:
    return _Item(path.with_suffix(""), path, lambda results, name: add_file(results, name, path, content))


def _measured(folder: Path, path: Path) -> _Item:
    return _Item(folder, path, lambda results, name: add_file(results, name, path, read_json(path)))


def _training(folder: Path) -> _Item:
    def read(results: Results, name: str) -> None:
        run, epochs = read_json(folder / RUN_FILE), read_lines(folder / METRICS_FILE)
        results.trainings.append(training_of(name, folder, run, epochs))

    return _Item(folder, folder / METRICS_FILE, read)


def _detector(folder: Path) -> _Item:
    return _Item(
        folder,
        folder / PRUNED_FILE,
        lambda results, name: results.detectors.append(detector_of(name, folder, read_json(folder / PRUNED_FILE))),
    )


def _pictures(folder: Path) -> list[_Item]:
    """What was drawn into a folder: samples of a sweep or a segmenter, or detections."""
    kept = folder / "samples"
    if (kept / KEPT_FILE).is_file():
        return [_Item(folder, kept / KEPT_FILE, lambda results, name: results.pictures.extend(_kept(kept, name)))]
    drawn = sorted(kept.glob("*.png")) if kept.is_dir() else sorted(folder.glob("*-detections.png"))
    if not drawn:
        return []
    words = "Labels, prediction and stages of" if kept.is_dir() else "What is found in"

    def read(results: Results, name: str) -> None:
        results.pictures += [Shown(f"{name}: {path.stem}", words, str(path)) for path in drawn[:_MOST_PICTURES]]

    return [_Item(folder, drawn[0], read)]


def _kept(folder: Path, name: str) -> list[Shown]:
    """Pictures that `bavit.gallery.keep_samples` wrote.

    Raises:
        TokenLabelsError: the file that names them is damaged.
    """
    path = folder / KEPT_FILE
    records = read_json(path)
    if not isinstance(records, list):
        raise TokenLabelsError(f"{path}: does not name pictures: make the sweep again.")
    found = []
    for record in records[:_MOST_PICTURES]:
        file = record.get("file") if isinstance(record, dict) else None
        if not isinstance(file, str) or not is_inside(file):
            raise TokenLabelsError(f"{path}: names a picture that does not lie beside it: make the sweep again.")
        title, words = str(record.get("title", file)), str(record.get("words", "What is kept of"))
        found.append(Shown(f"{name}: {title}", words, str(folder / file)))
    return found


def _entries(folder: Path, wanted: Callable[[Path], bool], results: Results) -> list[Path]:
    """What is wanted of a folder; of very much the first, which is noted."""
    try:
        found = sorted(path for path in folder.iterdir() if wanted(path))
    except OSError as fault:
        raise TokenLabelsError(f"{folder}: cannot be read ({fault.strerror}): name another folder.") from None
    if len(found) > _MOST_ENTRIES:
        results.notes.append(f"{folder}: the first {_MOST_ENTRIES} of {len(found):,} were looked at: name others.")
    return found[:_MOST_ENTRIES]
