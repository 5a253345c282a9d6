"""What all tests share: the command line in this process and outside it, and small COCO data sets."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from downloads import CONTENT, PATH
from numpy.typing import NDArray
from predicted import random_predictions
from typer.main import get_command
from typer.testing import CliRunner, Result
from voc_data import write_voc
from web_site import Site, serving

from bavit.background.predictions import Predictions
from cli.bavit import app as bavit_app
from cli.tokenlabels import app
from tokenlabels import write_sample
from tokenlabels.figures import (
    QUANTILES,
    SIZE_LIMITS,
    TAU_STOPS,
    Baselines,
    ClassWeights,
    Distribution,
    Figures,
    LostObject,
    ObjectFigures,
    Position,
    SplitFigures,
    TauCurve,
)
from tokenlabels.reader import Build
from tokenlabels.rules import RULES

FiguresOf: TypeAlias = Callable[..., Figures]
Row: TypeAlias = dict[str, Any]

COMMAND = str(Path(sys.executable).with_name("tokenlabels"))

for _name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(_name, "1")  # tests run side by side; torch, which reads them, is not loaded yet


def pytest_configure() -> None:
    """Processes that tests start keep their bytecode in pytest's cache where Python is told to write none.

    Each would else compile torch anew.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")


@pytest.fixture(scope="session")
def parsed_once() -> Iterator[None]:
    """Commands are made of their functions once, not anew for every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(get_command))
        yield


@pytest.fixture(scope="session")
def invoke(parsed_once: None) -> Callable[..., Result]:
    """`tokenlabels WORDS...` in this process: quick, and a bug shows as `.exception`."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="session")
def bavit(parsed_once: None) -> Callable[..., Result]:
    """`bavit WORDS...` likewise."""
    return lambda *words: CliRunner().invoke(bavit_app, [str(word) for word in words])


@pytest.fixture(scope="session")
def command() -> str:
    """The installed command, for tests that start and end it themselves."""
    return COMMAND


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of such a process: it finds no data set by chance."""
    return {name: value for name, value in os.environ.items() if name not in ("COCO_ROOT", "VOC_ROOT", "COLUMNS")}


@pytest.fixture(scope="session")
def execute(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tokenlabels WORDS...` as a process of its own, with limits on its memory and on the files it writes."""

    def run(
        *words: object, cwd: Path | None = None, memory: int | None = None, file_size: int | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            for kind, size in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size)):
                if size is not None:
                    resource.setrlimit(kind, (size, size))

        # Python writes its bytecode short where files are limited, and every later process would fail at it
        whole_bytecode = {} if file_size is None else {"PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [COMMAND, *(str(word) for word in words)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env=environment | whole_bytecode | env,
            preexec_fn=limit,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated sample, COCO layout, splits train and val; not to be written to."""
    root = tmp_path_factory.mktemp("drawn") / "sample"
    write_sample(root, images=16)
    return root


@pytest.fixture
def document() -> dict[str, Any]:
    """A small faultless instances file: two images, two categories with a gap, a polygon each and a crowd."""
    return {
        "info": {"year": 2024},
        "licenses": [],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                "id": 11,
                "image_id": 1,
                "category_id": 1,
                "bbox": [2, 3, 20, 10],
                "segmentation": [[2, 3, 22, 3, 22, 13, 2, 13]],
                "area": 200.0,
                "iscrowd": 0,
            },
            {
                "id": 12,
                "image_id": 2,
                "category_id": 3,
                "bbox": [0, 0, 32, 24],
                "segmentation": [[0, 0, 32, 0, 32, 24, 0, 24]],
                "area": 768.0,
                "iscrowd": 0,
            },
            {
                "id": 13,
                "image_id": 2,
                "category_id": 3,
                "bbox": [40, 0, 24, 48],
                "segmentation": {"size": [48, 64], "counts": [1920, 1152]},
                "area": 1152.0,
                "iscrowd": 1,
            },
        ],
    }


@pytest.fixture(scope="session")
def write_json() -> Callable[[Path, Any], Path]:
    """Write a value as JSON, making its folder; floats that JSON has not are written as `NaN` and `Infinity`."""

    def write(path: Path, value: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture(scope="session")
def figures_of() -> FiguresOf:
    """`figures_of(build, split=None)`: figures by plain counting, for tests of what draws them."""
    return count_figures


def count_figures(build: Build, split: str | None = None) -> Figures:
    grid = next(iter(build.grids))
    parameters = build.manifest["parameters"]
    names = [name for name in build.splits if split in (None, name)]
    by_split = {name: build.table(grid, name).to_pylist() for name in names}
    rows = [row for name in names for row in by_split[name]]
    objects = [
        (name, row, {field: values[index] for field, values in row["objects"].items()})
        for name in names
        for row in by_split[name]
        for index in range(len(row["objects"]["id"]))
    ]
    foreground, ignored = sum(row["fg_count"] for row in rows), sum(row["ignore_count"] for row in rows)
    patches = sum(len(row["labels"]) for row in rows)
    counted = patches - ignored
    share = foreground / counted if counted else 0.0
    per_image = [
        row["fg_count"] / (len(row["labels"]) - row["ignore_count"])
        for row in rows
        if len(row["labels"]) > row["ignore_count"]
    ]
    per_object = [item["patches"] for _, _, item in objects]
    lost = [found for found in objects if found[2]["patches"] == 0]
    empty = sum(row["fg_count"] == 0 for row in rows)
    ends = [0.0, 1.0]
    while ends[-1] <= max(per_object, default=0):
        ends.append(ends[-1] * 2)
    sizes = [(0.0, SIZE_LIMITS[0]), SIZE_LIMITS, (SIZE_LIMITS[1], np.inf)]
    return Figures(
        path=str(build.path),
        source=parameters["source"],
        rule=parameters["rule"],
        tau=parameters["tau"],
        inclusive=RULES[parameters["rule"]].inclusive,
        grid=grid,
        splits=[_split(name, by_split[name]) for name in names],
        images=len(rows),
        annotations=len(objects),
        patches=patches,
        foreground=foreground,
        ignored=ignored,
        fg_share=share,
        fg_share_per_image=_spread(per_image, np.linspace(0, 1, 21)),
        empty_images=empty,
        empty_share=empty / len(rows) if rows else 0.0,
        by_category=[
            _group(category.name, [found for found in objects if found[2]["category"] == index], counted)
            for index, category in enumerate(build.categories)
        ],
        by_size=[
            _group(name, [found for found in objects if low <= found[2]["area"] < high], counted)
            for name, (low, high) in zip(("small", "medium", "large"), sizes, strict=True)
        ]
        if objects
        else [],
        patches_per_object=_spread(per_object, np.array(ends)),
        lost_objects=len(lost),
        lost_share=len(lost) / len(objects) if objects else 0.0,
        lost_examples=[
            LostObject(
                name,
                row["image_id"],
                row["file_name"],
                item["id"],
                build.categories[item["category"]].name,
                item["area"],
                tuple(item["bbox"]),
            )
            for name, row, item in sorted(lost, key=lambda found: found[2]["area"])[:1000]
        ],
        tau_curve=_curve(build, rows) if parameters["scores"] else None,
        position=_position(rows),
        baselines=Baselines(max(share, 1 - share), int(share > 0.5), max(share, 1 - share)),
        class_weights=ClassWeights(
            counted / (2 * (counted - foreground)) if counted > foreground else 0.0,
            counted / (2 * foreground) if foreground else 0.0,
        ),
    )


def _split(name: str, rows: Sequence[Row]) -> SplitFigures:
    patches, foreground = sum(len(row["labels"]) for row in rows), sum(row["fg_count"] for row in rows)
    ignored = sum(row["ignore_count"] for row in rows)
    return SplitFigures(
        name,
        len(rows),
        sum(len(row["objects"]["id"]) for row in rows),
        patches,
        foreground,
        ignored,
        foreground / (patches - ignored) if patches > ignored else 0.0,
        sum(row["fg_count"] == 0 for row in rows),
    )


def _group(name: str, found: Sequence[tuple[str, Row, Row]], counted: int) -> ObjectFigures:
    patches, lost = sum(item["patches"] for _, _, item in found), sum(item["patches"] == 0 for _, _, item in found)
    return ObjectFigures(
        name,
        len(found),
        len({(split, row["image_id"]) for split, row, _ in found}),
        patches,
        patches / len(found) if found else 0.0,
        patches / counted if counted else 0.0,
        lost,
        lost / len(found) if found else 0.0,
    )


def _spread(values: Sequence[float], edges: NDArray[np.float64]) -> Distribution:
    array = np.array(values, np.float64)
    return Distribution(
        len(values),
        float(array.mean()) if values else 0.0,
        float(array.std()) if values else 0.0,
        [(q, float(np.quantile(array, q))) for q in QUANTILES] if values else [],
        edges.tolist(),
        np.histogram(array, edges)[0].tolist(),
    )


def _curve(build: Build, rows: Sequence[Row]) -> TauCurve:
    """By the rule of `relabel`, image by image."""
    grid = next(iter(build.grids.values()))
    inclusive = RULES[build.manifest["parameters"]["rule"]].inclusive
    foreground, ignored = np.zeros(len(TAU_STOPS), np.int64), np.zeros(len(TAU_STOPS), np.int64)
    for row in rows:
        y, x = grid.edges(row["width"], row["height"])
        inside = np.outer((y[1:] > 0) & (y[:-1] < row["height"]), (x[1:] > 0) & (x[:-1] < row["width"])).ravel()
        scores = np.array(row["scores"], np.float32)
        ignorable = np.array(row.get("ignored", [False] * len(scores)), np.bool_)
        for stop, tau in enumerate(TAU_STOPS):
            passes = inside & ((scores >= np.float32(tau)) if inclusive else (scores > np.float32(tau)))
            foreground[stop] += passes.sum()
            ignored[stop] += (ignorable & ~passes).sum()
    patches = sum(len(row["labels"]) for row in rows)
    share = np.divide(foreground, patches - ignored, out=np.zeros(len(TAU_STOPS)), where=patches > ignored)
    return TauCurve(list(TAU_STOPS), foreground.tolist(), ignored.tolist(), share.tolist())


def _position(rows: Sequence[Row]) -> Position:
    shapes = {(row["grid_rows"], row["grid_cols"]) for row in rows}
    height, width = (max(sides) for sides in zip(*shapes, strict=True)) if shapes else (1, 1)
    foreground, patches = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    for row in rows:
        r, c = row["grid_rows"], row["grid_cols"]
        labels = np.array(row["labels"]).reshape(r, c)
        where = np.ix_((2 * np.arange(r) + 1) * height // (2 * r), (2 * np.arange(c) + 1) * width // (2 * c))
        np.add.at(foreground, where, labels == 1)
        np.add.at(patches, where, labels != 255)
    share = np.divide(foreground, patches, out=np.zeros((height, width)), where=patches > 0)
    return Position(height, width, len(shapes) > 1, share.tolist(), patches.tolist())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws no curves: they take as long as all else of a small run."""
    monkeypatch.setattr("bavit.training.run.TrainingRun._draw", lambda run: None)


@pytest.fixture(scope="session")
def predictions_of() -> Callable[..., Predictions]:
    """`predictions_of(seed, images=6, ...)`: see `random_predictions`."""
    return random_predictions


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A small faultless VOC folder, to be changed."""
    return write_voc(tmp_path / "VOC2012")


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server that has the archive of `downloads.data_set`."""
    with serving() as started:
        started.files[PATH] = CONTENT
        yield started
