"""The wheel, installed in a clean environment: everything is in it, both commands run, the base install is light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV") or shutil.which("uv")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="needs uv, which the quick start installs")]


def run(*command: str | Path, cwd: Path, expected: int = 0) -> str:
    """stdout and stderr of a command that ends with the expected exit code."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    answer = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == expected, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert UV
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", folder, REPOSITORY, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both commands, in an environment that holds the wheel and its dependencies only."""
    assert UV
    folder = tmp_path_factory.mktemp("clean")
    run(UV, "venv", "--python", sys.executable, folder / "env", cwd=folder)
    run(UV, "pip", "install", "--python", folder / "env" / "bin" / "python", wheel, cwd=folder)
    return folder / "env" / "bin"


def test_wheel_holds_the_three_packages_the_cards_and_the_type_markers(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "tokenlabels/py.typed",
        "tokenlabels/sources/coco.py",
        "tokenlabels/report/page.html",
        "tokenlabels/report/style.css",
        "tokenlabels/report/report.js",
        "tokenlabels/data_cards/coco.md",
        "tokenlabels/data_cards/sample.md",
        "tokenlabels/data_cards/voc.md",
        "bavit/py.typed",
        "bavit/environment.py",
        "cli/tokenlabels.py",
        "cli/bavit.py",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith("tests")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_both_commands_say_their_version(scripts: Path, tmp_path: Path) -> None:
    from tokenlabels import __version__

    assert run(scripts / "tokenlabels", "--version", cwd=tmp_path) == f"tokenlabels {__version__}\n"
    assert run(scripts / "bavit", "--version", cwd=tmp_path) == f"bavit {__version__}\n"


def test_the_sample_builds_from_the_wheel_with_the_licence_of_its_card(scripts: Path, tmp_path: Path) -> None:
    run(scripts / "tokenlabels", "build", "coco", "--sample", "--patch", "16", "--tau", "0.5", cwd=tmp_path)
    card = (tmp_path / "tokenlabels-coco" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert run(scripts / "tokenlabels", "verify", "tokenlabels-coco", cwd=tmp_path)


def test_the_base_install_has_no_deep_learning_and_bavit_says_what_to_install(scripts: Path, tmp_path: Path) -> None:
    probe = "import importlib.util as u; print([n for n in ('torch', 'timm', 'transformers') if u.find_spec(n)])"
    assert run(scripts / "python", "-c", probe, cwd=tmp_path) == "[]\n"
    said = run(scripts / "bavit", "info", cwd=tmp_path, expected=1)
    assert "tokenlabels[bavit]" in said
    assert "Traceback" not in said


def test_bavit_info_runs_where_the_extra_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = run(sys.executable, "-m", "cli.bavit", "info", "--json", cwd=REPOSITORY)
    assert '"torch"' in said
