"""Kinds of files of results, known by what they hold and not by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bavit.background.figures import Evaluation
from bavit.detect.sweep_figures import Sweep
from bavit.report.comparing import adaptive_of, is_adaptive, is_joint, joint_of
from bavit.report.records import flat, tables_of
from bavit.report.results import (
    DetectorResult,
    EvaluationResult,
    Results,
    Scalar,
    SegmentPoint,
    SegmentResult,
    Spread,
    SweepResult,
    TablesResult,
    Training,
)
from tokenlabels.errors import TokenLabelsError

T = TypeVar("T")

_MAX_EPOCHS, _MAX_ROWS, _MAX_POINTS = 100_000, 500, 10_000
"""Epochs of which the last are read, rows of a sweep and points of a curve at most."""

_SETTINGS = (
    "recipe", "epochs", "batch_size", "seed", "precision", "init", "depth", "width", "masks", "optimizer", "lr",
    "bavit", "detector", "head", "threshold", "top_k", "sparsity", "max_tokens",
)  # fmt: skip
"""Of a training run, those of its settings that are shown where they were made."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        words: what a person calls it.
        holds: whether the content of a file is one.
        add: puts it among the results, by name and path.
    """

    words: str
    holds: Callable[[Any], bool]
    add: Callable[[Results, str, Path, Any], None]


def add_file(results: Results, name: str, path: Path, content: Any) -> None:
    """Put the content of a JSON file among the results.

    Raises:
        TokenLabelsError: it is of no kind, or damaged.
    """
    for kind in KINDS:
        if kind.holds(content):
            kind.add(results, name, path, content)
            return
    raise TokenLabelsError(f"{path}: holds no results: name {known_kinds()}.")


def known_kinds() -> str:
    """What can be named, in words."""
    return (
        "the folder or file of a sweep, of a training run, of a saved pruned detector, or of a segmenter's evaluation "
        "or sweep, an exported file, the JSON of bavit eval or a benchmark, or a folder of such"
    )


def training_of(name: str, path: Path, run: Any, epochs: list[dict[str, Any]]) -> Training:
    """A training run from what its run.json and metrics.jsonl hold.

    Raises:
        TokenLabelsError: run.json is damaged.
    """
    if not (isinstance(run, dict) and isinstance(run.get("settings"), dict)):
        raise TokenLabelsError(f"{path}: its run.json does not describe a training run: make it again.")
    settings = _plain(flat({"": run["settings"]}))
    by_name = {key.rpartition(" ")[2]: value for key, value in settings.items()}
    given = run.get("given")
    data = run.get("train")
    data = data if isinstance(data, dict) else {}
    splits = data.get("splits")
    words = [str(data.get("build", "")), *(map(str, splits) if isinstance(splits, list) else ())]
    environment = run.get("environment")
    last = {
        record["epoch"]: {key: float(value) for key, value in record.items() if _is_number(value)}
        for record in epochs[-_MAX_EPOCHS:]
        if _is_number(record.get("epoch"))
    }
    chosen = {key: by_name[key] for key in _SETTINGS if by_name.get(key) is not None}
    if isinstance(given, dict):
        chosen |= {key: value for key, value in _plain(flat(given)).items() if value is not None}
    images = data.get("images")
    return Training(
        name, str(path), _trained(run, by_name), " ".join(words), images if isinstance(images, int) else None, chosen,
        _texts(environment), [last[epoch] for epoch in sorted(last)],
    )  # fmt: skip


def _trained(run: Mapping[str, Any], settings: Mapping[str, Scalar]) -> str:
    command = run.get("command")
    if command == "joint":
        parts = str(settings.get("train", "bavit,detector")).replace("bavit", "BAViT").split(",")
        return " and ".join(part.strip() for part in parts[:3])
    if command == "segment train" or "exit_after" in settings:
        return "segmenter"
    return "detector" if "detector" in settings else "BAViT"


def detector_of(name: str, path: Path, content: Any) -> DetectorResult:
    """A saved pruned detector from what its pruned.json holds.

    Raises:
        TokenLabelsError: it is damaged.
    """
    if not (isinstance(content, dict) and isinstance(content.get("pruning"), dict)):
        raise TokenLabelsError(f"{path}: does not describe a pruned detector: make it again.")
    rest = {key: value for key, value in content.items() if key not in ("pruning", "budget", "format")}
    budget = content.get("budget")
    found = _plain(flat(budget)) if isinstance(budget, dict) else {}
    return DetectorResult(name, str(path), _plain(flat(content["pruning"])) | _plain(flat(rest)), found)


def _add_sweep(results: Results, name: str, path: Path, content: Any) -> None:
    sweep = _converted(path, {key: content[key] for key in ("rows", "dense", "setting")}, Sweep, "a sweep")
    if not 0 < len(sweep.rows) <= _MAX_ROWS:
        raise TokenLabelsError(f"{path}: is a sweep of {len(sweep.rows):,} rows: a page shows 1 to {_MAX_ROWS}.")
    results.sweeps.append(SweepResult(name, str(path), sweep))


def _add_evaluation(results: Results, name: str, path: Path, content: Any) -> None:
    found = _converted(path, content, Evaluation, "the evaluation of a BAViT")
    curve = msgspec.structs.asdict(found.curve)
    lengths = {len(values) for values in curve.values()}
    if len(lengths) != 1 or max(lengths) > _MAX_POINTS:
        raise TokenLabelsError(f"{path}: has a curve whose lists differ in length, or are too long: make it again.")
    results.evaluations.append(EvaluationResult(name, str(path), found))


def _add_segment_sweep(results: Results, name: str, path: Path, content: Any) -> None:
    rows = _converted(path, content["rows"], list[SegmentPoint], "a sweep of a segmenter")
    if len(rows) > _MAX_ROWS:
        raise TokenLabelsError(f"{path}: is a sweep of {len(rows):,} rows: a page shows 1 to {_MAX_ROWS}.")
    environment = _texts(content.get("environment"))
    results.segmentations.append(SegmentResult(name, str(path), rows, True, environment))


def _add_segment_evaluation(results: Results, name: str, path: Path, content: Any) -> None:
    row = _converted(path, content, SegmentPoint, "the evaluation of a segmenter")
    results.segmentations.append(SegmentResult(name, str(path), [row], False, row.environment))


def _add_detector(results: Results, name: str, path: Path, content: Any) -> None:
    results.detectors.append(detector_of(name, path, content))


def _add_tables(results: Results, name: str, path: Path, content: Any) -> None:
    results.tables.append(TablesResult(name, str(path), *tables_of(content)))


def _add_joint(results: Results, name: str, path: Path, content: Any) -> None:
    results.comparisons.append(joint_of(name, path, content))


def _add_adaptive(results: Results, name: str, path: Path, content: Any) -> None:
    results.comparisons.append(adaptive_of(name, path, content))


def _is_sweep(content: Any) -> bool:
    return _has(content, "rows", "dense", "setting") and isinstance(content["dense"], dict)


def _is_segment_sweep(content: Any) -> bool:
    rows = content.get("rows") if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and all(_has(row, "miou", "exit_after", "macs") for row in rows)


def _measures(content: Any) -> bool:
    """Whether there is a number anywhere in it that a table or a list of facts would show."""
    facts, tables = tables_of(content)
    values = [*facts.values(), *(value for table in tables for row in table.rows for value in row.values())]
    return any(_is_number(value) or isinstance(value, Spread) for value in values)


KINDS: tuple[Kind, ...] = (
    Kind("a sweep", _is_sweep, _add_sweep),
    Kind(
        "the evaluation of a BAViT",
        lambda content: _has(content, "reliability", "curve", "position_prior"),
        _add_evaluation,
    ),
    Kind("a sweep of a segmenter", _is_segment_sweep, _add_segment_sweep),
    Kind(
        "the evaluation of a segmenter",
        lambda content: _has(content, "miou", "exit_after", "per_category"),
        _add_segment_evaluation,
    ),
    Kind("a saved pruned detector", lambda content: _has(content, "pruning", "format"), _add_detector),
    Kind("a comparison of methods", is_joint, _add_joint),
    Kind("a comparison of thresholds", is_adaptive, _add_adaptive),
    Kind("a benchmark or a comparison", _measures, _add_tables),
)
"""The first that fits."""


def _has(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(key in content for key in keys)


def _converted(path: Path, content: Any, kind: type[T], words: str) -> T:
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as fault:
        raise TokenLabelsError(f"{path}: is not {words} as this version writes it ({fault}): make it again.") from None


def _plain(values: Mapping[str, Scalar | Spread]) -> dict[str, Scalar]:
    return {
        key.strip(): f"{value.mean:g} ± {value.std:g}" if isinstance(value, Spread) else value
        for key, value in values.items()
    }


def _texts(values: Any) -> dict[str, str]:
    if not isinstance(values, dict):
        return {}
    return {str(key): str(value) for key, value in _plain(flat(values)).items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
