"""`tokenlabels build semantic` and `check semantic`: options, defaults, exit codes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from helpers import fine, one_error_line
from PIL import Image
from typer.testing import Result

import tokenlabels

Invoke: TypeAlias = Callable[..., Result]

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools, which draws the sample
]

PIXELS = (np.arange(24 * 32).reshape(24, 32) // 8 % 4).astype(np.uint8)


def save(path: str, pixels: Any = PIXELS) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with four masks in `m`, pictures in `i`, and two lists of categories."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "d"):
        save(f"m/{name}.png")
        save(f"i/{name}.jpg", np.zeros((24, 32, 3), np.uint8))
    Path("names.txt").write_text("ground\nwall\nsky\nsea\n")
    Path("short.txt").write_text("ground\nwall\nsky\n")
    return tmp_path


@pytest.fixture
def panoptic(here: Path) -> str:
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[4:20, 4:20, 0] = 9
    save("annotations/panoptic_mine/a.png", colours)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 92, "name": "sky", "isthing": 0}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": 9, "category_id": 92, "bbox": [4, 4, 16, 16], "area": 256, "iscrowd": 0}],
            }
        ],
    }
    Path("annotations/panoptic_mine.json").write_text(json.dumps(document))
    return "annotations/panoptic_mine.json"


FOLDERS = ("--images", "i", "--masks", "m")


def parameters(out: str) -> dict[str, Any]:
    found: dict[str, Any] = tokenlabels.open(out).manifest["parameters"]
    return found


def test_two_folders_and_nothing_else(here: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "semantic", *FOLDERS))
    built = tokenlabels.open("tokenlabels-semantic")
    assert [category.name for category in built.categories] == ["background", "1", "2", "3"]
    assert built.manifest["splits"] == {"m": {"images": 4, "annotations": 0}}
    assert built.manifest["parameters"]["rule"] == "pixel-ratio"
    shown = shlex.split(result.stdout.splitlines()[-1].removeprefix("next: tokenlabels "))
    fine(invoke(*shown))
    assert Path("overlay.png").is_file()


def test_words_reach_the_build(here: Path, invoke: Invoke) -> None:
    words = ("--ignore", 3, "--ignore", 255, "--background", 1, "--background", 2, "--split", "val", "--limit", 2)
    fine(invoke("build", "semantic", *FOLDERS, *words, "--out", "out", "--void", "ignore", "--patch", 8))
    assert parameters("out")["ignore"] == [3, 255]
    assert parameters("out")["background"] == [1, 2]
    assert tokenlabels.open("out").manifest["splits"] == {"val": {"images": 2, "annotations": 0}}
    fine(invoke("build", "semantic", *FOLDERS, "--reduce-zero-label", "--out", "reduced"))
    assert parameters("reduced")["ignore"] == [0, 255]
    assert parameters("reduced")["reduce_zero_label"] is True


def test_mask_suffix(here: Path, invoke: Invoke) -> None:
    for name in ("a", "b"):
        save(f"n/{name}_labels.png")
        save(f"n/{name}_colours.png", np.zeros((24, 32, 3), np.uint8))
    fine(invoke("build", "semantic", "--images", "i", "--masks", "n", "--mask-suffix", "_labels.png", "--out", "out"))
    assert tokenlabels.open("out").table().column("image_id").to_pylist() == ["a", "b"]
    assert tokenlabels.open("out").manifest["findings"] == {"SEM055": 2}


def test_list_and_names_in_one_option(here: Path, invoke: Invoke) -> None:
    words = ("--categories", "names.txt", "--categories", "wall,sea", "--exclude-categories", "sea")
    fine(invoke("build", "semantic", *FOLDERS, *words, "--out", "out"))
    assert parameters("out")["categories"] == ["wall,sea"]
    assert [category.name for category in tokenlabels.open("out").categories] == ["ground", "wall", "sky", "sea"]


def test_stuff(panoptic: str, invoke: Invoke) -> None:
    counts: list[int] = []
    for words in ((), ("--stuff", "foreground"), ("--stuff", "background", "--rule", "overlap")):
        out = f"out{len(counts)}"
        fine(invoke("build", "semantic", "--annotations", panoptic, "--images", "i", *words, "--out", out))
        counts.append(tokenlabels.open(out).table().column("fg_count")[0].as_py())
    assert counts[0] == counts[2] == 0 < counts[1]


def test_the_working_folder_is_the_root(panoptic: str, invoke: Invoke) -> None:
    fine(invoke("build", "semantic"))
    assert list(tokenlabels.open("tokenlabels-semantic").manifest["splits"]) == ["mine"]


USAGE = [
    (("--masks", "m", "--rule", "overlap"), "no boxes for --rule overlap: use pixel-ratio"),
    (("--masks", "m", "--stuff", "foreground"), "--stuff goes with COCO panoptic files"),
    (("--masks", "m", "--ignore", "0", "--background", "0"), "the value 0 is to be background and ignored at once"),
    (("--masks", "m", "--ignore", "300"), "--ignore 300 is no value of an 8-bit mask"),
    (("--masks", "m", "--split", "a", "--split", "b"), "--masks is one split"),
    (("--masks", "m", "--root", "."), "--root and --masks exclude each other"),
    (("--masks", "m", "--categories", "cow"), "no category 'cow' in the data set"),
    (("--masks", "m", "--categories", "names.txt", "--categories", "ade20k"), "two lists of categories"),
    (("--sample", "--masks", "m"), "--sample makes its own data set"),
    (("--annotations", "annotations/panoptic_mine.json", "--ignore", "1"), "--ignore, --background"),
    (("--annotations", "annotations/panoptic_mine.json", "--root", "."), "--root and --annotations exclude"),
    (("--annotations", "annotations/panoptic_mine.json", "--categories", "ade20k"), "has its own categories"),
]


@pytest.mark.parametrize(("words", "problem"), USAGE)
def test_usage(words: tuple[str, ...], problem: str, panoptic: str, invoke: Invoke) -> None:
    result = invoke("build", "semantic", *words, "--out", "out")
    assert result.exit_code == 2
    one_error_line(result.stderr, problem)
    assert result.stdout == ""
    assert not Path("out").exists()


@pytest.mark.parametrize("source", ["coco", "voc"])
@pytest.mark.parametrize(
    "words", [("--masks", "m"), ("--ignore", "1"), ("--stuff", "background"), ("--mask-suffix", "x")]
)
def test_options_of_masks_do_not_go_with_others(
    source: str, words: tuple[str, str], here: Path, invoke: Invoke
) -> None:
    result = invoke("build", source, *words, "--out", "out")
    assert result.exit_code == 2
    one_error_line(result.stderr, f"does not go with {source}")


DATA = [
    (("--root", "i"), "i: no masks in a layout that is known"),
    (("--root", "none"), "none: no such folder"),
    (("--masks", "none"), "none: no such folder: name the folder of the masks with --masks"),
    (("--masks", "m", "--images", "none"), "none: no such folder: name the folder of the images with --images"),
    (("--masks", "i"), "i: holds no *.png"),
    (("--masks", "m", "--mask-suffix", ".tif"), "m: holds no *.tif"),
    (("--annotations", "none.json"), "none.json: no such file"),
    (("--masks", "m", "--categories", "short.txt"), "SEM059 a.png: the mask of image a holds the value 3"),
]


@pytest.mark.parametrize(("words", "problem"), DATA)
def test_data_at_fault(words: tuple[str, ...], problem: str, here: Path, invoke: Invoke) -> None:
    result = invoke("build", "semantic", *words, "--out", "out")
    assert result.exit_code == 1
    one_error_line(result.stderr, problem)
    assert result.stdout == ""
    assert not list(here.glob("out/**/*"))


@pytest.mark.slow
def test_a_fault_found_in_the_middle_leaves_nothing(here: Path, invoke: Invoke) -> None:
    """By a worker, when other shards are finished; mended, the same command does it."""
    save("m/c.png", PIXELS + 1)
    words = ("--categories", "names.txt", "--workers", 2, "--shard-rows", 1, "--out", "out")
    result = invoke("build", "semantic", *FOLDERS, *words)
    assert result.exit_code == 1
    one_error_line(result.stderr, "SEM059 c.png", "the value 4", "nothing was built")
    assert not list(here.glob("out/**/*"))
    save("m/c.png")
    fine(invoke("build", "semantic", *FOLDERS, *words))
    assert fine(invoke("verify", "out")).exit_code == 0
    fine(invoke("build", "semantic", *FOLDERS, *words))


def test_a_rule_of_boxes_is_refused_before_any_fault_of_masks(here: Path, invoke: Invoke) -> None:
    save("m/c.png", np.zeros((24, 32, 3), np.uint8))
    result = invoke("build", "semantic", *FOLDERS, "--rule", "overlap", "--out", "out")
    assert result.exit_code == 2
    one_error_line(result.stderr, "no boxes for --rule overlap")


def test_skip_leaves_out_and_counts(here: Path, invoke: Invoke) -> None:
    save("m/c.png", PIXELS + 1)
    words = ("--categories", "names.txt", "--on-error", "skip", "--out", "out", "--json")
    report = json.loads(fine(invoke("build", "semantic", *FOLDERS, *words)).stdout)
    assert (report["images"], report["findings"]) == (3, {"SEM059": 1})


def test_check(here: Path, invoke: Invoke) -> None:
    save("m/c.png", PIXELS + 1)
    save("m/orphan.png")
    save("i/lonely.jpg", PIXELS)
    words = (*FOLDERS, "--categories", "names.txt")
    result = invoke("check", "semantic", *words)
    assert result.exit_code == 1
    for code, name in (("SEM041", "orphan.png"), ("SEM055", "lonely.jpg"), ("SEM059", "c.png")):
        assert any(code in line and name in line for line in result.stdout.splitlines())
    assert result.stdout.splitlines()[-1] == "4 images: 1 errors, 2 warnings under pixel-ratio."
    found = json.loads(invoke("check", "semantic", *words, "--json").stdout)
    assert (found["errors"], found["warnings"]) == (1, 2)
    assert fine(invoke("check", "semantic", *FOLDERS)).exit_code == 0  # without a list every value is one


def test_dry_run(here: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "semantic", *FOLDERS, "--dry-run", "--json", "--out", "out"))
    assert json.loads(result.stdout)["images"] == 4
    assert not Path("out").exists()


@pytest.mark.slow
def test_sample(here: Path, invoke: Invoke) -> None:
    result = fine(invoke("build", "semantic", "--sample", "--out", "out", "--json"))
    assert json.loads(result.stdout)["findings"] == {}
    built = tokenlabels.open("out")
    assert list(built.manifest["splits"]) == ["train", "val"]
    assert built.categories[0].name == "background"
    fine(invoke("build", "semantic", "--sample", "--split", "trainval", "--out", "both"))
    assert list(tokenlabels.open("both").manifest["splits"]) == ["trainval"]
    assert fine(invoke("check", "semantic", "--sample")).exit_code == 0
