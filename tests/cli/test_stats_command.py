"""The command `tokenlabels stats`: what it prints, its exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from typer.testing import Result

import tokenlabels
from tokenlabels.reader import Build

Invoke: TypeAlias = Callable[..., Result]
Execute: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]


@pytest.fixture(scope="module")
def overlap(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Two splits, two grids."""
    return tokenlabels.build("coco", root=sample_root, out=tmp_path_factory.mktemp("a") / "out", patch=[16, 32])


@pytest.fixture(scope="module")
def masks(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Another rule, native grids, no scores."""
    out = tmp_path_factory.mktemp("b") / "out"
    return tokenlabels.build("coco", root=sample_root, out=out, rule="pixel-ratio", image_size="native", scores=False)


def parsed(text: str) -> Any:
    """JSON as everybody reads it: without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def plain(figures: Any) -> Any:
    return json.loads(json.dumps(msgspec.to_builtins(figures)))


def fine(result: Result) -> str:
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == ""
    return result.stdout


def test_json_of_one_build_is_its_figures(invoke: Invoke, overlap: Build) -> None:
    found = parsed(fine(invoke("stats", overlap.path, "--json")))
    assert found == plain(tokenlabels.statistics(overlap))
    chosen = parsed(fine(invoke("stats", overlap.path, "--grid", "384x384-p32", "--split", "val", "--json")))
    assert chosen == plain(tokenlabels.statistics(overlap, grid="384x384-p32", split="val"))
    assert (chosen["grid"], [each["split"] for each in chosen["splits"]]) == ("384x384-p32", ["val"])


def test_json_of_several_builds_is_their_comparison(
    invoke: Invoke, overlap: Build, masks: Build, tmp_path: Path
) -> None:
    low = tokenlabels.relabel(overlap, 0.1, tmp_path / "low")
    found = parsed(fine(invoke("stats", overlap.path, low.path, "--json")))
    assert found == plain(tokenlabels.compare([overlap, low]))
    assert found["agreement"]["names"] == ["overlap 0.5", "overlap 0.1"]
    apart = parsed(fine(invoke("stats", overlap.path, masks.path, "--json")))
    assert apart["agreement"] is None
    assert "different grids" in apart["reason"]


def test_tables_of_one_build(invoke: Invoke, overlap: Build) -> None:
    text = fine(invoke("stats", overlap.path))
    figures = tokenlabels.statistics(overlap)
    for part in (
        f"{figures.fg_share:.2%}",
        f"{figures.baselines.position_prior:.2%}",
        f"{figures.class_weights.foreground:.4f}",
        "overlap, >= 0.5",
        "this build",
        "by split",
        "by category",
        "medium",
        "share of foreground by tau",
        "foreground by position, %",
        *(f"{each.foreground:,}" for each in figures.splits),
        *(each.name for each in figures.by_category if each.objects),
    ):
        assert part in text, part


def test_tables_of_a_build_without_scores_on_grids_that_differ(invoke: Invoke, masks: Build) -> None:
    text = fine(invoke("stats", masks.path))
    assert "foreground by position, %, scaled" in text
    assert "by tau" not in text


def test_tables_of_several_builds(invoke: Invoke, overlap: Build, masks: Build, tmp_path: Path) -> None:
    low = tokenlabels.relabel(overlap, 0.125, tmp_path / "low")
    text = fine(invoke("stats", overlap.path, low.path))
    agreement = tokenlabels.compare([overlap, low]).agreement
    assert agreement is not None
    assert f"{agreement.agreement[0][1]:.2%} ({agreement.kappa[0][1]:.3f})" in text
    assert "overlap 0.125" in text
    assert "no agreement of labels: they are on different grids" in fine(invoke("stats", overlap.path, masks.path))
    assert "0.125 │" in fine(invoke("stats", low.path)), "a threshold between the stops has a row of its own"


def test_names_from_data_do_not_steer_the_terminal(
    invoke: Invoke,
    document: dict[str, Any],
    write_json: Callable[[Path, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    document["categories"] = [{"id": 1, "name": "[red]\x1b[2Jx[/red]"}, {"id": 3, "name": "[/oops]"}]
    document["annotations"][0]["bbox"] = [2, 3, 1, 1]
    document["images"][0]["file_name"] = "\x1b[2J.png"
    path = write_json(tmp_path / "instances_mine.json", document)
    build = tokenlabels.build("coco", annotations=path, out="[bold]out")
    assert tokenlabels.statistics(build).lost_objects == 1
    for words in ([build.path], [build.path, build.path]):
        text = fine(invoke("stats", *words))
        assert "\x1b" not in text
        assert "[bold]" in text
    assert r"[red]\x1b[2Jx[/red]" in fine(invoke("stats", build.path))
    assert parsed(fine(invoke("stats", build.path, "--json")))["by_category"][0]["name"] == "[red]\x1b[2Jx[/red]"


def test_a_build_without_annotations(
    invoke: Invoke, document: dict[str, Any], write_json: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    path = write_json(tmp_path / "instances_mine.json", document | {"annotations": []})
    build = tokenlabels.build("coco", annotations=path, out=tmp_path / "out")
    text = fine(invoke("stats", build.path))
    assert "nan" not in text.lower()
    assert "by category" not in text
    assert parsed(fine(invoke("stats", build.path, "--json")))["annotations"] == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{out}", "--grid", "x"], 2, "holds no grid 'x'"),
        (["{out}", "--split", "x"], 2, "holds no split 'x'"),
        (["{empty}"], 1, "this folder holds no build"),
        (["{empty}/absent"], 1, "no such folder"),
        (["{out}", "{empty}"], 1, "this folder holds no build"),
        (["{damaged}"], 1, "run the same build command again to mend it"),
    ],
)
def test_errors_are_one_line(
    words: list[str], code: int, says: str, invoke: Invoke, overlap: Build, sample_root: Path, tmp_path: Path
) -> None:
    damaged = tokenlabels.build("coco", root=sample_root, out=tmp_path / "damaged")
    damaged.files()[0].write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    places = {"out": overlap.path, "empty": tmp_path / "empty", "damaged": damaged.path}
    result = invoke("stats", *(word.format(**places) for word in words), "--json")
    assert (result.exit_code, result.stdout) == (code, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "--debug" not in lines[0], "an error that nobody foresaw"


def test_as_a_process_without_what_takes_long_to_load(execute: Execute, overlap: Build) -> None:
    answer = execute("stats", overlap.path, "--json", PYTHONPROFILEIMPORTTIME="1")
    assert answer.returncode == 0
    assert parsed(answer.stdout)["images"] == 16
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "polars" in loaded
    assert not loaded & {"numba", "pandas", "torch"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--html", "{folder}"], "cannot be written (it is a folder): name a file"),
        (["--html", "{pipe}"], "cannot be written (it is no plain file): name a file"),
        (["--html", "{file}/report.html"], "no folder to write to): name another file"),
        (["--html", "{folder}/report.html", "--images", "{folder}/absent"], "absent: no such folder"),
    ],
)
def test_places_of_a_report_are_refused_before_anything_is_counted(
    words: list[str],
    says: str,
    invoke: Invoke,
    overlap: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def counted(*_: Any, **__: Any) -> None:
        raise AssertionError("counted first")

    monkeypatch.setattr("tokenlabels.agreement.compare", counted)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    places = {"folder": tmp_path, "file": tmp_path / "file", "pipe": tmp_path / "pipe"}
    result = invoke("stats", overlap.path, *(word.format(**places) for word in words))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_builds_alike_on_different_grids_have_names_of_their_own(
    invoke: Invoke, overlap: Build, sample_root: Path, tmp_path: Path
) -> None:
    other = tokenlabels.build("coco", root=sample_root, out=tmp_path / "other", patch=32)
    heading = fine(invoke("stats", overlap.path, other.path)).splitlines()[2]
    assert "overlap 0.5 (out)" in heading
    assert "overlap 0.5 (other)" in heading


def test_builds_of_splits_by_other_names_say_why_they_are_not_compared(
    invoke: Invoke, overlap: Build, sample_root: Path, tmp_path: Path
) -> None:
    root = sample_root / "VOCdevkit" / "VOC2012"
    maps = tokenlabels.build("semantic", root=root, split="train", out=tmp_path / "maps")
    text = fine(invoke("stats", overlap.path, maps.path))
    assert "they share no images: none has the same split and image_id in all of them." in text
    lost = next(line for line in text.splitlines() if "objects without a patch" in line)
    assert lost.rstrip(" │").endswith("-"), "masks name no objects to lose"
