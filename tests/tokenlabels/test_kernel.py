"""Kernels work wherever their cache can or cannot be written, and are loaded from it where it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from tokenlabels import kernel as module
import numpy as np
{setup}

@module.kernel
def total(values):
    found = 0.0
    for value in values:
        found += value
    return found

print(total(np.arange(5.0)), sum(total.stats.cache_hits.values()))
"""


def run(folder: Path, setup: str, **environment: str) -> str:
    """What a process prints that compiles one kernel under these conditions."""
    script = folder / "program.py"
    script.write_text(PROGRAM.format(setup=setup))
    answer = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert run(tmp_path, "", NUMBA_CACHE_DIR=cache) == "10.0 0\n"
    assert run(tmp_path, "", NUMBA_CACHE_DIR=cache) == "10.0 1\n"


@pytest.mark.parametrize(
    ("setup", "environment"),
    [
        pytest.param(
            "",
            {"NUMBA_CACHE_DIR": "/dev/null/cache", "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"},
            id="no folder can be written",
        ),
        pytest.param("resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))", {}, id="no room is left"),
    ],
)
def test_a_kernel_works_without_its_cache(tmp_path: Path, setup: str, environment: dict[str, str]) -> None:
    answer = run(tmp_path, setup, **({"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment))
    assert answer == "10.0 0\n"


def test_an_edit_in_another_file_of_the_package_reaches_a_cached_kernel(tmp_path: Path) -> None:
    package = tmp_path / "tokenlabels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "kernel.py").write_text((Path(__file__).parents[2] / "tokenlabels" / "kernel.py").read_text())
    (package / "outer.py").write_text(
        "from tokenlabels.inner import inner\nfrom tokenlabels.kernel import kernel\n"
        "@kernel\ndef outer(x):\n    return inner(x)\n"
    )
    answers = []
    for summand in (1, 2):
        (package / "inner.py").write_text(
            f"from tokenlabels.kernel import kernel\n@kernel\ndef inner(x):\n    return x + {summand}\n"
        )
        answer = subprocess.run(
            [sys.executable, "-B", "-c", "from tokenlabels.outer import outer; print(outer(40))"],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(answer.stdout)
    assert answers == ["41\n", "42\n"]


def test_reading_sources_does_not_load_the_compiler() -> None:
    """A parent of worker processes would wait a second for it."""
    modules = ["builder", "sources.coco", "sources.voc", "sources.semantic_options", "stats", "report"]
    code = f"import sys; import {', '.join(f'tokenlabels.{name}' for name in modules)}\n"
    code += "print('numba' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
