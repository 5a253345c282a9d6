"""The command `tokenlabels`: options, defaults, exit codes, and what goes to which stream."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from helpers import fine, one_error_line
from typer.testing import Result

import tokenlabels
from tokenlabels.grid import PatchGrid

Invoke: TypeAlias = Callable[..., Result]
Execute: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def parameters(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = tokenlabels.open(out).manifest["parameters"]
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no data set named by the environment."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COCO_ROOT", raising=False)
    return folder


@pytest.fixture(scope="session")
def labels(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the sample; not to be written to."""
    out = tmp_path_factory.mktemp("labels") / "labels"
    tokenlabels.build("coco", root=sample_root, out=out)
    return out


# --- help and usage ---------------------------------------------------------------------------------------------------


OPTIONS = {
    "build": "--root --annotations --images --sample --split --out --patch --image-size --resize --max-size --rule "
    "--tau --crowd --padding --categories --exclude-categories --min-area --limit --scores --no-scores --embed-images "
    "--shard-rows --workers --on-error --check --rasterizer --overwrite --dry-run --json",
    "check": "--root --annotations --images --sample --split --rule --limit --workers --json",
    "verify": "--json",
    "relabel": "--tau --out --overwrite --json",
    "show": "--output -o --images --grid --split --json",
    "sample": "--images --seed --simple --semantic --json",
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(("command", "options"), OPTIONS.items())
def test_help_names_every_option_in_full(command: str, options: str, flag: str, invoke: Invoke) -> None:
    result = fine(invoke(command, flag))
    assert result.stderr == ""
    words = result.stdout.replace(",", " ").split()
    assert [option for option in options.split() if option not in words] == []


def test_help_says_the_defaults(invoke: Invoke) -> None:
    text = " ".join(fine(invoke("build", "--help")).stdout.split())
    for default in (
        "coco ., $COCO_ROOT, ./coco; voc ., $VOC_ROOT, ./VOCdevkit/VOC2012; semantic .",
        "ROOT/<split>",
        "all",
        "./tokenlabels-<source>",
        "16",
        "384",
        "squash",
        "overlap; semantic: pixel-ratio",
        "overlap 0.5, jaccard 0.5, pixel-ratio 0.1",
        "foreground",
        "background",
        "4096, 512 with images",
        "by cores and file size",
        "raise",
        "fast",
    ):
        assert f"[default: {default}]" in text


def test_options_of_build_are_in_groups(invoke: Invoke) -> None:
    text = fine(invoke("build", "--help")).stdout
    titles = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments",
        "What is read",
        "Grid",
        "Rule and foreground",
        "Values of semantic masks",
        "What is written",
        "Where the work is done",
        "Options",
    ]
    read, written = text.index("What is read:"), text.index("What is written:")
    assert read < text.index("  --root ") < written < text.index("  --out ")
    assert text.index("\nOptions:") < text.index("  --dry-run ")


def test_the_root_command(invoke: Invoke) -> None:
    version = fine(invoke("--version"))
    assert version.stdout == f"tokenlabels {tokenlabels.__version__}\n"
    listed = fine(invoke("--help")).stdout
    assert all(f"\n  {command} " in listed for command in OPTIONS)
    assert invoke().exit_code == 2


WRONG_USAGE = [
    pytest.param("build", id="no source"),
    pytest.param("build yolo", id="unknown source"),
    pytest.param("build coco --colour red", id="unknown option"),
    pytest.param("build coco --resize crop", id="unknown resize policy"),
    pytest.param("build coco --rule best", id="unknown rule"),
    pytest.param("build coco --crowd maybe", id="unknown crowd policy"),
    pytest.param("build coco --padding foreground", id="padding cannot be foreground"),
    pytest.param("build coco --on-error ignore", id="unknown error policy"),
    pytest.param("build coco --check none", id="unknown check"),
    pytest.param("build coco --tau half", id="tau that is no number"),
    pytest.param("build coco --limit 0", id="limit of zero"),
    pytest.param("build coco --shard-rows 0", id="shard rows of zero"),
    pytest.param("build coco --workers 0", id="no workers"),
    pytest.param("check coco --limit -1", id="negative limit"),
    pytest.param("verify", id="verify what"),
    pytest.param("relabel x --out y", id="relabel without tau"),
    pytest.param("relabel x --tau 0.5", id="relabel without out"),
    pytest.param("show x", id="show which image"),
    pytest.param("sample x --seed -1", id="negative seed"),
    pytest.param("frobnicate", id="unknown command"),
]


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_wrong_usage_exits_2_and_writes_nothing(line: str, place: Path, invoke: Invoke) -> None:
    result = invoke(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert list(place.iterdir()) == []


WRONG_PARAMETERS = [
    ("--patch 0", "patch 0"),
    ("--patch sixteen", "'sixteen'"),
    ("--patch 16x", "'16x'"),
    ("--patch -16", "'-16'"),
    ("--image-size 385", "384 or 400"),
    ("--image-size 384x385", "width 385"),
    ("--image-size 0", "image size 0"),
    ("--image-size big", "'big'"),
    ("--image-size 1000000 --patch 1", "use a larger patch"),
    ("--image-size 384x640 --resize shortest-edge", "--max-size"),
    ("--max-size 800", "shortest-edge"),
    ("--image-size native --max-size 800", "native"),
    ("--resize shortest-edge --max-size 100", "smaller than the short side"),
    ("--patch 16 --patch 16", "asked for twice"),
    ("--tau 1.5", "tau 1.5"),
    ("--tau -0.1", "tau -0.1"),
    ("--tau nan", "tau nan"),
    ("--min-area -1", "min_area -1"),
    ("--min-area nan", "min_area nan"),
    ("--min-area inf", "min_area inf"),
    ("--shard-rows 2000000", "shard_rows 2000000"),
    ("--workers 2000", "workers 2000"),
    ("--categories disk", "did you mean disc"),
    ("--categories zebra", "they are arch, arrow, crescent"),
    ("--exclude-categories disc,disk", "did you mean disc"),
    ("--sample", "--sample makes its own"),
    ("--annotations x.json", "exclude each other"),
    ("--images x", "--split"),
]


@pytest.mark.parametrize(("words", "says"), WRONG_PARAMETERS, ids=[words for words, _ in WRONG_PARAMETERS])
def test_parameters_that_make_no_sense_exit_2_in_one_sentence(
    words: str, says: str, sample_root: Path, place: Path, invoke: Invoke
) -> None:
    result = invoke("build", "coco", "--root", sample_root, *words.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    one_error_line(result.stderr, says)
    assert list(place.iterdir()) == []


def test_one_file_has_one_split(sample_root: Path, place: Path, invoke: Invoke) -> None:
    file = sample_root / "annotations" / "instances_val.json"
    result = invoke("build", "coco", "--annotations", file, "--split", "a", "--split", "b")
    assert result.exit_code == 2
    one_error_line(result.stderr, "--split once at most")


# --- where the data is ------------------------------------------------------------------------------------------------


def built_sizes(out: Path) -> dict[str, int]:
    return {split: counts["images"] for split, counts in tokenlabels.open(out).manifest["splits"].items()}


def test_the_root_is_found_in_the_documented_order(
    document: dict[str, Any], place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """., then $COCO_ROOT, then ./coco: the first that has annotations/instances_*.json."""
    roots = {"here": place, "named": tmp_path / "named", "below": place / "coco"}
    for name, root in roots.items():
        (root / "annotations").mkdir(parents=True)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    monkeypatch.setenv("COCO_ROOT", str(roots["named"]))
    for name in ("here", "named", "below"):
        fine(invoke("build", "coco"))
        assert list(built_sizes(place / "tokenlabels-coco")) == [name]
        assert fine(invoke("check", "coco", "--json")).stdout.count(f"instances_{name}.json") == 1
        shutil.rmtree(place / "tokenlabels-coco")
        (roots[name] / "annotations" / f"instances_{name}.json").unlink()
    result = invoke("build", "coco")
    assert result.exit_code == 1
    one_error_line(result.stderr, "--root", "--sample")
    assert not (place / "tokenlabels-coco").exists()


def test_an_empty_variable_is_no_root(place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO_ROOT", "")
    result = invoke("build", "coco")
    assert result.exit_code == 1
    one_error_line(result.stderr, "in ., coco)")


def test_a_root_that_is_named_is_the_only_one_looked_at(place: Path, sample_root: Path, invoke: Invoke) -> None:
    shutil.copytree(sample_root / "annotations", place / "annotations")
    for root in ("nowhere", str(sample_root / "annotations")):
        result = invoke("build", "coco", "--root", root)
        assert result.exit_code == 1
        one_error_line(result.stderr, f"{root}: no annotations/instances_*.json", "--root", "--sample")


def test_splits(sample_root: Path, place: Path, invoke: Invoke) -> None:
    """All by default, in alphabetical order; else those named, in the order given, each once."""
    for words, expected in (
        ((), {"train": 13, "val": 3}),
        (("--split", "val"), {"val": 3}),
        (("--split", "val", "--split", "train", "--split", "val"), {"val": 3, "train": 13}),
    ):
        fine(invoke("build", "coco", "--root", sample_root, *words, "--overwrite"))
        assert list(built_sizes(place / "tokenlabels-coco").items()) == list(expected.items())
    result = invoke("build", "coco", "--root", sample_root, "--split", "test")
    assert result.exit_code == 1
    one_error_line(result.stderr, "instances_test.json", "train, val")


@pytest.mark.parametrize(
    ("file", "words", "split"),
    [
        ("instances_val2017.json", (), "val2017"),
        ("instances_val-2017.v2.json", (), "val_2017_v2"),
        ("my boxes é.json", (), "my_boxes__"),
        ("instances_val2017.json", ("--split", "holdout"), "holdout"),
        ("instances_val2017.json", ("--split", "hold out"), "hold_out"),
        ("instances_instances_x.json", (), "instances_x"),
    ],
)
def test_a_single_file_names_its_split(
    file: str, words: tuple[str, ...], split: str, document: dict[str, Any], place: Path, invoke: Invoke
) -> None:
    (place / file).write_text(json.dumps(document))
    fine(invoke("build", "coco", "--annotations", file, *words, "--out", "out"))
    assert built_sizes(place / "out") == {split: 2}
    assert tokenlabels.open(place / "out").files()[0].name == f"{split}-00000-of-00001.parquet"
    assert tokenlabels.open(place / "out").manifest["sources"][split]["file"] == file


def test_images_are_looked_for_beside_the_annotations(sample_root: Path, place: Path, invoke: Invoke) -> None:
    """ROOT/<split> for a file in the official layout, the folder of the file for one on its own, or --images."""
    file = sample_root / "annotations" / "instances_val.json"
    fine(invoke("build", "coco", "--annotations", file, "--embed-images", "--out", "official"))
    shutil.copytree(sample_root / "val", place / "loose")
    shutil.copy(file, place / "loose" / "boxes.json")
    fine(invoke("build", "coco", "--annotations", "loose/boxes.json", "--embed-images", "--out", "beside"))
    shutil.move(place / "loose" / "boxes.json", place / "boxes.json")
    words = ("build", "coco", "--annotations", "boxes.json", "--embed-images", "--out", "named")
    assert invoke(*words).exit_code == 1
    fine(invoke(*words, "--images", "loose"))
    columns = [tokenlabels.open(place / out).table().column("image") for out in ("official", "beside", "named")]
    assert columns[0] == columns[1] == columns[2]
    fine(invoke("build", "coco", "--root", sample_root, "--split", "val", "--images", "loose", "--out", "rooted"))


# --- the options of build ---------------------------------------------------------------------------------------------


def test_defaults(sample_root: Path, place: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "coco", "--root", sample_root))
    assert result.stderr == ""
    assert [path.name for path in place.iterdir()] == ["tokenlabels-coco"]
    found = parameters(place / "tokenlabels-coco")
    assert len(found.pop("category_table_sha256")) == 64
    assert found == {
        "source": "coco",
        "schema_version": 1,
        "grids": [
            {"name": "384x384-p16", "patch": [16, 16], "image_size": [384, 384], "resize": "squash", "max_size": None}
        ],
        "rule": "overlap",
        "tau": 0.5,
        "crowd": "foreground",
        "padding": "background",
        "void": "background",
        "difficult": "foreground",
        "categories": None,
        "exclude_categories": [],
        "min_area": 0.0,
        "scores": True,
        "embed_images": False,
        "embed_size": None,
        "jpeg_quality": None,
        "embed_masks": False,
        "limit": None,
        "shard_rows": 4096,
        "on_error": "raise",
        "check": "fast",
    }


@pytest.mark.parametrize(("rule", "tau"), [("overlap", 0.5), ("jaccard", 0.5), ("pixel-ratio", 0.1)])
def test_tau_by_rule(rule: str, tau: float, sample_root: Path, place: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "coco", "--root", sample_root, "--rule", rule, "--json"))
    assert json.loads(result.stdout)["parameters"]["tau"] == tau
    if rule == "jaccard":
        assert result.stderr.startswith("note: jaccard")
        assert len(result.stderr.splitlines()) == 1
    else:
        assert result.stderr == ""


SETTINGS: list[Any] = [
    ("--tau 0.25", {"tau": 0.25}),
    ("--tau 0", {"tau": 0.0}),
    ("--tau 1", {"tau": 1.0}),
    ("--crowd ignore", {"crowd": "ignore"}),
    ("--crowd background", {"crowd": "background"}),
    ("--padding ignore --resize letterbox", {"padding": "ignore"}),
    ("--limit 3", {"limit": 3}),
    ("--no-scores", {"scores": False}),
    ("--embed-images", {"embed_images": True, "shard_rows": 512}),
    ("--embed-images --shard-rows 7", {"shard_rows": 7}),
    ("--on-error skip", {"on_error": "skip"}),
    ("--check full", {"check": "full"}),
    ("--categories disc --categories star", {"categories": ["disc", "star"]}),
    ("--exclude-categories disc", {"exclude_categories": ["disc"]}),
    ("--min-area 32.5", {"min_area": 32.5}),
]


@pytest.mark.parametrize(("words", "expected"), SETTINGS, ids=[words for words, _ in SETTINGS])
def test_options_reach_the_manifest(
    words: str, expected: dict[str, Any], sample_root: Path, place: Path, invoke: Invoke
) -> None:
    fine(invoke("build", "coco", "--root", sample_root, "--split", "val", *words.split(), "--out", "out"))
    found = parameters(place / "out")
    assert {name: found[name] for name in expected} == expected


GRIDS: list[Any] = [
    ("--patch 32", ["384x384-p32"]),
    ("--patch 16x8", ["384x384-p16x8"]),
    ("--image-size 384x640", ["384x640-p16"]),
    ("--image-size 384X640 --resize letterbox", ["384x640-letterbox-p16"]),
    ("--image-size native", ["native-p16"]),
    ("--image-size native --resize letterbox", ["native-p16"]),
    ("--resize native", ["native-p16"]),
    ("--resize shortest-edge --image-size 512", ["short512-p16"]),
    ("--resize shortest-edge --image-size 512 --max-size 853 --patch 14", ["short512-p14"]),
    ("--patch 16 --patch 32", ["384x384-p16", "384x384-p32"]),
    (
        "--patch 32 --patch 16 --image-size 384 --image-size 96",
        ["384x384-p32", "384x384-p16", "96x96-p32", "96x96-p16"],
    ),
    ("--image-size 384 --image-size native", ["384x384-p16", "native-p16"]),
]


@pytest.mark.parametrize(("words", "names"), GRIDS, ids=[words for words, _ in GRIDS])
def test_grids(words: str, names: list[str], sample_root: Path, place: Path, invoke: Invoke) -> None:
    fine(invoke("build", "coco", "--root", sample_root, "--split", "val", *words.split(), "--out", "out"))
    built = tokenlabels.open(place / "out")
    assert list(built.grids) == names
    assert sorted(path.name for path in (place / "out").iterdir() if path.is_dir()) == sorted(names)
    for name, grid in built.grids.items():
        for row in built.table(name).to_pylist():
            axes = grid.edges(row["width"], row["height"])
            assert (row["grid_rows"], row["grid_cols"]) == (len(axes[0]) - 1, len(axes[1]) - 1)


def test_the_first_grid_is_the_default(sample_root: Path, place: Path, invoke: Invoke) -> None:
    fine(invoke("build", "coco", "--root", sample_root, "--patch", 32, "--patch", 16))
    built = tokenlabels.open(place / "tokenlabels-coco")
    assert built.labels().shape == (16, 12, 12)
    assert built.grids["384x384-p16"] == PatchGrid.parse(16, 384)


def objects_of(out: Path) -> list[dict[str, Any]]:
    built = tokenlabels.open(out)
    return [
        {"id": i, "name": built.categories[c].name, "area": a}
        for row in built.table().column("objects").to_pylist()
        for i, c, a in zip(row["id"], row["category"], row["area"], strict=True)
    ]


def test_selection(sample_root: Path, labels: Path, place: Path, invoke: Invoke) -> None:
    """Left out is counted, the images and the category table stay, and every way to write names is the same."""
    everything = objects_of(labels)
    names = {entry["name"] for entry in everything}
    assert {"disc", "star"} < names
    cases: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        ("--categories disc --categories star", lambda entry: entry["name"] in ("disc", "star")),
        ("--categories disc,star", lambda entry: entry["name"] in ("disc", "star")),
        ("--exclude-categories disc,star", lambda entry: entry["name"] not in ("disc", "star")),
        ("--categories disc,star --exclude-categories star", lambda entry: entry["name"] == "disc"),
        ("--min-area 2000", lambda entry: entry["area"] >= 2000),
        ("--categories disc --min-area 2000", lambda entry: entry["name"] == "disc" and entry["area"] >= 2000),
    ]
    for words, wanted in cases:
        fine(invoke("build", "coco", "--root", sample_root, *words.split(), "--overwrite"))
        kept = [entry for entry in everything if wanted(entry)]
        assert 0 < len(kept) < len(everything)
        built = tokenlabels.open(place / "tokenlabels-coco")
        assert objects_of(built.folder) == kept
        assert built.manifest["annotations_left_out_by_selection"] == len(everything) - len(kept)
        assert built.categories == tokenlabels.open(labels).categories
        assert built.table().num_rows == 16


def test_a_category_name_may_hold_a_comma(document: dict[str, Any], place: Path, invoke: Invoke) -> None:
    document["categories"][0]["name"] = "cat, wild"
    (place / "mine.json").write_text(json.dumps(document))
    fine(invoke("build", "coco", "--annotations", "mine.json", "--categories", "cat, wild", "--out", "out"))
    assert [entry["id"] for entry in objects_of(place / "out")] == [11]


def test_limit_takes_the_first_images_of_each_split(
    sample_root: Path, labels: Path, place: Path, invoke: Invoke
) -> None:
    fine(invoke("build", "coco", "--root", sample_root, "--limit", 2))
    limited, whole = tokenlabels.open(place / "tokenlabels-coco"), tokenlabels.open(labels)
    for split in ("train", "val"):
        assert limited.table(split=split).equals(whole.table(split=split).slice(0, 2))
    assert limited.manifest["findings"] == {}
    checked = json.loads(fine(invoke("check", "coco", "--root", sample_root, "--limit", 2, "--json")).stdout)
    assert [split["images"] for split in checked["splits"].values()] == [2, 2]


def test_the_rasterizer_does_not_show(sample_root: Path, place: Path, invoke: Invoke) -> None:
    for name in ("kernel", "pycocotools"):
        words = ("--rule", "pixel-ratio", "--rasterizer", name, "--out", name)
        fine(invoke("build", "coco", "--root", sample_root, *words))
    assert contents(place / "kernel") == contents(place / "pycocotools")


def test_overwrite_is_needed_for_other_parameters_only(sample_root: Path, place: Path, invoke: Invoke) -> None:
    words = ("build", "coco", "--root", sample_root)
    fine(invoke(*words))
    again = fine(invoke(*words))
    assert again.stderr.startswith("note: ")
    refused = invoke(*words, "--tau", 0.25)
    assert refused.exit_code == 1
    one_error_line(refused.stderr, "tau was 0.5, now 0.25", "--overwrite")
    fine(invoke(*words, "--tau", 0.25, "--overwrite"))
    assert parameters(place / "tokenlabels-coco")["tau"] == 0.25


# --- the sample -------------------------------------------------------------------------------------------------------


def test_sample_builds_without_any_data_and_is_drawn_once(place: Path, invoke: Invoke) -> None:
    fine(invoke("build", "coco", "--sample", "--out", "deep/out"))
    sample = place / "deep" / "tokenlabels-sample"
    assert sorted(path.name for path in (place / "deep").iterdir()) == ["out", "tokenlabels-sample"]
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert len(before) > 100
    fine(invoke("build", "coco", "--sample", "--out", "deep/out2", "--split", "val"))
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before
    assert list(built_sizes(place / "deep" / "out2")) == ["val"]
    fine(invoke("check", "coco", "--sample"))
    assert sorted(path.name for path in place.iterdir()) == ["deep"]


@pytest.mark.slow
def test_dry_run_writes_nothing_and_estimates_the_size(place: Path, invoke: Invoke) -> None:
    """Of the sample at 200 images, which is what `sample` draws by default."""
    drawn = json.loads(fine(invoke("sample", "drawn", "--json")).stdout)
    assert (drawn["out"], drawn["images"], drawn["splits"]) == ("drawn", 200, {"train": 160, "val": 40})
    before = contents(place)
    for number, words in enumerate(
        ("", "--rule pixel-ratio --no-scores", "--patch 16 --patch 32 --shard-rows 30", "--embed-images")
    ):
        line = ("build", "coco", "--root", "drawn", "--out", f"out{number}", *words.split())
        planned = json.loads(fine(invoke(*line, "--dry-run", "--json")).stdout)
        assert contents(place) == before
        assert planned["dry_run"] is True
        made = json.loads(fine(invoke(*line, "--json")).stdout)
        assert abs(planned["estimated_bytes"] / made["bytes"] - 1) < 0.3
        assert sum(s["shards"] for s in planned["splits"].values()) * len(planned["grids"]) == made["shards"]
        assert (planned["images"], planned["annotations"]) == (made["images"], made["annotations"])
        shutil.rmtree(place / f"out{number}")


def test_dry_run_of_the_sample_leaves_nothing(place: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "coco", "--sample", "--dry-run"))
    assert list(place.iterdir()) == []
    assert "would build into tokenlabels-coco" in result.stdout
    assert "60" not in result.stderr


def test_dry_run_stops_at_errors_like_a_build(document: dict[str, Any], place: Path, invoke: Invoke) -> None:
    document["annotations"][0]["bbox"] = None
    (place / "mine.json").write_text(json.dumps(document))
    result = invoke("build", "coco", "--annotations", "mine.json", "--dry-run")
    assert result.exit_code == 1
    one_error_line(result.stderr, "COCO020", "annotation 11")


@pytest.mark.parametrize(("words", "says"), [(("--images", 0), "not 0"), (("--images", 2_000_000), "2,000,000")])
def test_samples_of_other_sizes_are_refused(words: tuple[object, ...], says: str, place: Path, invoke: Invoke) -> None:
    result = invoke("sample", "drawn", *words)
    assert result.exit_code == 2
    one_error_line(result.stderr, says)
    assert list(place.iterdir()) == []


def test_sample_does_not_touch_a_folder_of_somebody_else(place: Path, invoke: Invoke) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").write_text("words")
    result = invoke("sample", "mine", "--images", 2)
    assert result.exit_code == 1
    one_error_line(result.stderr, "mine")
    assert contents(place) == {"mine/thesis.tex": b"words"}


def test_another_seed_is_another_sample(place: Path, invoke: Invoke) -> None:
    fine(invoke("sample", "a", "--images", 2))
    fine(invoke("sample", "b", "--images", 2, "--seed", 1))
    text = fine(invoke("sample", "c", "--images", 2)).stdout
    assert contents(place / "a") == contents(place / "c") != contents(place / "b")
    assert "2 images" in text
    assert "tokenlabels build coco --root c" in text


def test_simple_scenes_are_another_sample(place: Path, invoke: Invoke) -> None:
    fine(invoke("sample", "a", "--images", 2))
    fine(invoke("sample", "b", "--images", 2, "--simple"))
    tokenlabels.write_sample(place / "c", images=2, scenes="simple")
    assert contents(place / "b") == contents(place / "c") != contents(place / "a")
    fine(invoke("sample", "b", "--images", 2))
    assert contents(place / "b") == contents(place / "a")


def test_the_semantic_sample_builds_as_the_command_says(place: Path, invoke: Invoke) -> None:
    text = fine(invoke("sample", "a", "--images", 7, "--semantic")).stdout
    assert text.startswith("a: 7 images, ")
    command = text.splitlines()[-1].removeprefix("next: tokenlabels ")
    assert command == "build semantic --root a --embed-images --embed-masks"
    fine(invoke(*command.split(), "--image-size", 64, "--workers", 1))
    built = tokenlabels.open("tokenlabels-semantic")
    assert [category.id for category in built.categories] == [*range(13)]
    assert list(built_sizes(built.folder)) == ["train", "val"]


def test_a_sample_is_of_one_kind(place: Path, invoke: Invoke) -> None:
    result = invoke("sample", "a", "--images", 2, "--simple", "--semantic")
    assert result.exit_code == 2
    one_error_line(result.stderr, "--simple and --semantic")
    assert not Path("a").exists()
    fine(invoke("sample", "a", "--images", 2, "--semantic"))
    before = contents(place / "a")
    refused = invoke("sample", "a", "--images", 2)
    assert refused.exit_code == 1
    one_error_line(refused.stderr, "a is not empty", "name another folder")
    assert contents(place / "a") == before


def test_a_semantic_sample_is_not_what_sample_builds_from(place: Path, invoke: Invoke) -> None:
    fine(invoke("sample", "tokenlabels-sample", "--images", 2, "--semantic"))
    refused = invoke("build", "coco", "--sample")
    assert refused.exit_code == 1
    one_error_line(refused.stderr, "tokenlabels-sample is not empty", "name another folder")


# --- what goes where --------------------------------------------------------------------------------------------------


JSON_KEYS = {
    "build coco --root SAMPLE --out out": "out images annotations splits totals findings shards bytes parameters",
    "build coco --root SAMPLE --dry-run": "dry_run out grids splits images annotations estimated_bytes findings",
    "check coco --root SAMPLE": "splits errors warnings findings",
    "verify LABELS": "out shards bytes ok faults unlisted",
    "relabel LABELS --tau 0.25 --out out": "out images annotations splits totals findings shards bytes parameters",
    "show LABELS 1 --images SAMPLE -o x.png": "image_id file",
    "sample drawn --images 2": "out images annotations splits",
    "sample drawn --images 2 --semantic": "out images annotations splits",
}


@pytest.mark.parametrize(("line", "keys"), JSON_KEYS.items())
def test_json_is_one_object_on_stdout_and_nothing_else(
    line: str, keys: str, sample_root: Path, labels: Path, place: Path, invoke: Invoke
) -> None:
    words = [{"SAMPLE": str(sample_root), "LABELS": str(labels)}.get(word, word) for word in line.split()]
    result = fine(invoke(*words, "--json"))
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert set(keys.split()) <= set(found)


def test_json_agrees_with_the_manifest(sample_root: Path, place: Path, invoke: Invoke) -> None:
    said = json.loads(fine(invoke("build", "coco", "--root", sample_root, "--json")).stdout)
    manifest = tokenlabels.open(place / "tokenlabels-coco").manifest
    assert said["out"] == "tokenlabels-coco"
    for key in ("splits", "totals", "findings", "parameters", "annotations_left_out_by_selection"):
        assert said[key] == manifest[key]
    assert said["images"] == 16
    assert said["annotations"] == sum(split["annotations"] for split in manifest["splits"].values())
    assert said["bytes"] == sum(shard["bytes"] for shard in manifest["shards"])
    assert said["shards"] == len(manifest["shards"])


@pytest.mark.slow
def test_tables_do_not_lose_digits_when_piped(document: dict[str, Any], place: Path, execute: Execute) -> None:
    """Whatever COLUMNS says; large counts, long names, and findings with long messages."""
    document["annotations"] = [document["annotations"][0] | {"id": k, "bbox": [2, 3, 20, 0]} for k in range(12_345)]
    name = "a_split_with_a_very_long_name_that_goes_on_and_on_2017"
    (place / f"instances_{name}.json").write_text(json.dumps(document))
    words = ("build", "coco", "--annotations", f"instances_{name}.json", "--image-size", "2048x2048", "--patch", 4)
    result = execute(*words, "--resize", "letterbox", "--out", "out", cwd=place, COLUMNS="40")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "…" not in result.stdout
    for text in ("12,345", "524,288", name, "2048x2048-letterbox-p4", "COCO023"):
        assert text in result.stdout
    checked = execute("check", "coco", "--annotations", f"instances_{name}.json", cwd=place, COLUMNS="40")
    assert checked.returncode == 0, checked.stderr
    assert "…" not in checked.stdout
    assert "12,345" in checked.stdout
    planned = execute(*words, "--out", "other", "--dry-run", cwd=place, COLUMNS="40")
    assert "12,345" in planned.stdout
    assert name in planned.stdout


def test_what_a_command_suggests_next_works(
    document: dict[str, Any], sample_root: Path, place: Path, invoke: Invoke
) -> None:
    """Also where names have spaces."""

    def next_command(result: Result) -> list[str]:
        line = next(line for line in result.stdout.splitlines() if line.startswith("next: tokenlabels "))
        return shlex.split(line.removeprefix("next: tokenlabels "))

    shutil.copytree(sample_root, place / "my data")
    first = next_command(fine(invoke("build", "coco", "--root", "my data", "--out", "my labels")))
    assert first[0] == "show"
    fine(invoke(*first))
    assert (place / "overlay.png").is_file()
    (place / "mine.json").write_text(json.dumps(document))
    second = next_command(fine(invoke("build", "coco", "--annotations", "mine.json", "--out", "my $other labels")))
    fine(invoke(*second))
    third = next_command(fine(invoke("sample", "new sample", "--images", 2)))
    fine(invoke(*third))


def test_texts_of_the_smaller_commands(labels: Path, sample_root: Path, place: Path, invoke: Invoke) -> None:
    assert "2 shards" in fine(invoke("verify", labels)).stdout
    assert (
        "16 images: 0 errors, 0 warnings under overlap." in fine(invoke("check", "coco", "--root", sample_root)).stdout
    )
    shown = fine(invoke("show", labels, "1", "--images", sample_root))
    assert shown.stdout == "overlay.png\n"
    assert (place / "overlay.png").is_file()
    relabelled = fine(invoke("relabel", labels, "--tau", 0.25, "--out", "out"))
    assert "overlap, tau 0.25" in relabelled.stdout
    assert parameters(place / "out")["tau"] == 0.25
    refused = invoke("relabel", labels, "--tau", 0.3, "--out", "out")
    assert refused.exit_code == 1
    one_error_line(refused.stderr, "tau was 0.25, now 0.3")
    fine(invoke("relabel", labels, "--tau", 0.3, "--out", "out", "--overwrite"))


def test_names_with_brackets_are_printed_as_they_are(sample_root: Path, place: Path, invoke: Invoke) -> None:
    """`rich` would take them for markup."""
    for words in ((), ("--dry-run",)):
        result = fine(invoke("build", "coco", "--root", sample_root, "--out", "[red]x[/] [/y]", *words))
        assert "[red]x[/] [/y]" in result.stdout


# --- when things go wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "--debug build coco --annotations x.json",
        "build --debug coco --annotations x.json",
        "build coco --annotations x.json --debug",
    ],
)
def test_debug_shows_the_traceback_wherever_it_stands(line: str, place: Path, execute: Execute) -> None:
    result = execute(*line.split(), cwd=place)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "AnnotationFileError" in result.stderr
    assert result.stdout == ""


def test_nothing_else_shows_a_traceback(
    sample_root: Path, place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a bug: it is one line that says how to learn more."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("tokenlabels.builder.make_plan", fail)
    result = invoke("build", "coco", "--root", sample_root)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: RuntimeError: first line (--debug tells more).\n"
    assert list(place.iterdir()) == []
    debugged = invoke("--debug", "build", "coco", "--root", sample_root)
    assert isinstance(debugged.exception, RuntimeError)


def test_memory_that_runs_out_is_one_sentence(
    sample_root: Path, place: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tokenlabels.builder.make_plan", fail)
    result = invoke("build", "coco", "--root", sample_root)
    assert result.exit_code == 1
    one_error_line(result.stderr, "out of memory", "--workers")


@pytest.mark.parametrize("words", [("check", "coco", "--json"), ("build", "coco", "--dry-run")])
def test_a_reader_that_goes_away_is_no_traceback(
    words: tuple[str, ...], sample_root: Path, place: Path, command: str, environment: dict[str, str]
) -> None:
    """As `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [command, *words, "--root", str(sample_root)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment,
        check=False,
    )
    os.close(writing)
    assert result.returncode in (0, 1)
    assert result.stderr == ""


@pytest.mark.slow
def test_output_in_ascii_is_still_output(document: dict[str, Any], place: Path, execute: Execute) -> None:
    document["categories"][0]["name"] = "Kätzchen"
    (place / "instances_mine.json").write_text(json.dumps(document))
    words = ("build", "coco", "--annotations", "instances_mine.json", "--categories", "Kätzchen", "--out", "löschen")
    for more in (("--dry-run", "--json"), ()):
        result = execute(*words, *more, cwd=place, PYTHONIOENCODING="ascii")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        if "--json" in more:
            assert json.loads(result.stdout)["parameters"]["categories"] == ["Kätzchen"]


def test_labelling_never_loads_a_deep_learning_stack(sample_root: Path, place: Path) -> None:
    code = (
        "import sys; from cli.tokenlabels import main; sys.argv = ['tokenlabels', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in ('torch', 'timm', 'bavit', 'pandas', 'datasets') if name in sys.modules])"
    )
    line = [sys.executable, "-c", code, "build", "coco", "--root", str(sample_root), "--out", "out"]
    answer = subprocess.run(line, capture_output=True, text=True, cwd=place, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_bar_on_a_terminal_takes_nothing_from_stdout(tmp_path: Path) -> None:
    """stderr is a terminal, so that a bar is drawn; stdout is a file, as with `--json > file`."""
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "cli.tokenlabels", "sample", str(tmp_path / "sample"), "--images", "120", "--json"]
    with (tmp_path / "answer.json").open("w") as answer:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=answer, stderr=other_end)
        os.close(other_end)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal closes with the process
            while block := os.read(terminal, 4096):
                drawn += block
        assert process.wait() == 0
    os.close(terminal)
    assert b"drawing images" in drawn, "the work was too short for a bar: nothing was tested"
    assert json.loads((tmp_path / "answer.json").read_text())["images"] == 120


@pytest.mark.parametrize("words", [("build", "coco", "--root", "s3:/x"), ("stats", "s3:/x")])
def test_an_address_that_lacks_a_slash_is_no_folder(invoke: Invoke, words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    one_error_line(result.stderr, "s3:/x: an address has two slashes")
