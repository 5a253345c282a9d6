"""What all tests share: the command line in this process and outside it, and small COCO data sets."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from cli.tokenlabels import app
from tokenlabels import write_sample

COMMAND = str(Path(sys.executable).with_name("tokenlabels"))


@pytest.fixture(scope="session")
def invoke() -> Iterator[Callable[..., Result]]:
    """`tokenlabels WORDS...` in this process: quick, and a bug shows as `.exception`."""
    parsed = get_command(app)
    runner = CliRunner()

    def run(*words: object) -> Result:
        return runner.invoke(app, [str(word) for word in words])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda _app: parsed)  # it would be made anew for every call
        yield run


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

        return subprocess.run(
            [COMMAND, *(str(word) for word in words)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env=environment | env,
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
