"""`bavit segment eval`, `sweep` and `predict`: what they print and write, exit codes, and bad input in one sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import Invoke, fine, one_error_line
from PIL import Image
from segment_builds import masks_of, semantic
from segment_scenes import SIZES, scenes, small_segmenter

import tokenlabels
from bavit.background.model import BAViT
from tokenlabels.reader import Build

DATA = Path(__file__).parents[3] / "shared" / "data"
VOC = DATA / "voc" / "VOCdevkit" / "VOC2012"
QUICK = ("--device", "cpu", "--workers", 0, "--batch-size", 4)
TIMES = ("--time-windows", 2, "--rounds", 1)


@pytest.fixture(scope="module")
def segment(bavit: Invoke) -> Invoke:
    """`bavit segment WORDS...` in this process."""
    return lambda *words: bavit("segment", *words)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def run(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "run"
    small_segmenter(build.folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(build: Build) -> Path:
    return build.folder.parent / "images"


class TestEval:
    def test_json_and_files(self, segment: Invoke, run: Path, build: Build, tmp_path: Path) -> None:
        out = tmp_path / "out"
        words = ("--p0", 0.4, "--dense", "--out", out, "--samples", 2, "--json")
        found = json.loads(fine(segment("eval", run, build.path, *words, *QUICK, *TIMES)).stdout)
        contract = (
            "miou", "pixel_accuracy", "per_category", "macs", "macs_dense", "tokens_alive", "throughput",
            "throughput_dense",
        )  # fmt: skip
        assert set(contract) < set(found)
        assert 0 < found["miou"] < 1
        assert set(found["per_category"]) == {"background", *"1234567"}
        assert found["per_category"]["background"] is not None
        assert len(found["tokens_alive"]) == 3
        assert found["miou_dense"] is not None
        assert found["exit_after"] == [1, 2]
        assert min(found["throughput"], found["throughput_dense"], found["latency_ms"]) > 0
        names = ["categories.png", "evaluation.json", "images.csv", "macs.png", "samples"]
        assert sorted(path.name for path in out.iterdir()) == names
        assert json.loads((out / "evaluation.json").read_text()) == found
        assert len(list((out / "samples").iterdir())) == 2

    def test_what_a_person_sees(self, segment: Invoke, run: Path, build: Build) -> None:
        result = fine(segment("eval", run, build.path, "--limit", 2, "--exit-after", 2, *QUICK, *TIMES))
        for words in ("after 2", "mIoU", "GMAC of the unpruned network", "tokens alive", "times as fast", "category"):
            assert words in result.stdout
        quiet = fine(segment("eval", run, build.path, "--limit", 2, "--no-timing", "--whole", "--native", *QUICK))
        assert "times as fast" not in quiet.stdout
        assert "p0 0.5 after 1 and 2, top-k" in quiet.stdout

    def test_lists_of_places_are_written_in_three_ways(self, segment: Invoke, run: Path, build: Build) -> None:
        told = [
            json.loads(fine(segment("eval", run, build.path, "--limit", 1, "--no-timing", "--json", *words)).stdout)
            for words in (
                ("--exit-after", 1, 2, *QUICK), ("--exit-after", "1,2", *QUICK),
                ("--exit-after", 1, "--exit-after", 2, *QUICK),
            )
        ]  # fmt: skip
        assert [each["exit_after"] for each in told] == [[1, 2]] * 3
        assert told[0] == told[1] == told[2]

    @pytest.mark.parametrize(
        ("words", "code", "named"),
        [
            (("--p0", 0), 2, ("p0 0.0", "above 0")),
            (("--p0", 1.2), 2, ("p0 1.2",)),
            (("--exit-after", 3), 2, ("exit position 3", "after 1, 2")),
            (("--exit-after", 2, 1), 2, ("do not ascend",)),
            (("--exit-after", "x"), 2, ("--exit-after x", "whole numbers")),
            (("--keep-per-class", -1), 2, ("-1 tokens",)),
            (("--proportion", 3), 2, ("proportion of 3",)),
            (("--split", "test"), 2, ("test",)),
            (("--classes", "ade"), 2, ("'ade'",)),
            (("--images", "nowhere"), 1, ("nowhere", "no such folder")),
        ],
    )
    def test_bad_options_are_one_sentence(
        self, words: tuple[object, ...], code: int, named: tuple[str, ...], segment: Invoke, run: Path, build: Build
    ) -> None:
        result = segment("eval", run, build.path, *words, *QUICK)
        assert result.exit_code == code, result.stderr
        one_error_line(result.stderr, *named)

    def test_other_models_and_data_are_one_sentence(
        self, segment: Invoke, run: Path, build: Build, tmp_path: Path, sample_root: Path
    ) -> None:
        BAViT(depth=1, width=64, image_size=96).save_pretrained(tmp_path / "bavit")
        boxes = tokenlabels.build("coco", root=sample_root, out=tmp_path / "boxes", split="val", image_size=96)
        other = semantic(tmp_path / "other", masks_of((0, 9)))
        bare = semantic(tmp_path / "bare", masks_of((0, 1)), embed_masks=False)
        for first, second, named in (
            (tmp_path / "bavit", build.path, ("config.json", "segmenter")),
            (tmp_path / "none", build.path, ("none", "no such folder")),
            (run, tmp_path / "none", ("none",)),
            (run, boxes.path, ("no masks of every pixel",)),
            (run, bare.path, ("--embed-masks",)),
            (run, other.path, ("class '8'", str(run))),
        ):
            result = segment("eval", first, second, *QUICK)
            assert result.exit_code == 1, result.stderr
            one_error_line(result.stderr, *named)

    def test_a_folder_that_cannot_be_written_is_told_before_anything_is_done(
        self, segment: Invoke, run: Path, build: Build, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        for command in ("eval", "sweep"):
            result = segment(command, run, build.path, "--out", tmp_path / "file" / "out", *QUICK)
            assert result.exit_code == 1
            one_error_line(result.stderr, "cannot be written", "--out")

    @pytest.mark.skipif(not VOC.is_dir(), reason="the real VOC sample is not here")
    def test_the_real_masks_of_voc(self, segment: Invoke, tmp_path: Path) -> None:
        voc = tokenlabels.build(
            "voc", root=VOC, out=tmp_path / "voc", rule="pixel-ratio", image_size=224, split="val", limit=6,
            embed_images=True, embed_masks=True,
        )  # fmt: skip
        small_segmenter(voc.folder, "atm").save_pretrained(tmp_path / "run")
        words = ("--p0", 0.2, "--out", tmp_path / "out", "--samples", 1, "--json", "--no-timing")
        found = json.loads(fine(segment("eval", tmp_path / "run", voc.path, *words, *QUICK)).stdout)
        assert len(found["per_category"]) == 21
        assert found["per_category"]["background"] is not None
        assert found["images"] == 6
        assert found["windows"] > 1
        assert 0 < found["pixel_accuracy"] < 1


class TestSweep:
    def test_json_and_files(self, segment: Invoke, run: Path, build: Build, tmp_path: Path) -> None:
        out = tmp_path / "out"
        words = ("--p0", 0.4, 0.6, "--positions", 1, "1,2", "--keep", 0, "--methods", "top-k,remove", "--limit", 2)
        result = fine(segment("sweep", run, build.path, *words, "--out", out, "--json", *QUICK, *TIMES))
        found = json.loads(result.stdout)
        rows = found["rows"]
        assert len(rows) == 1 + 2 * 2 * 2
        assert (rows[0]["dense"], rows[0]["macs_reduction"], rows[0]["tokens_alive"]) == (True, 0, [1])
        assert {(row["p0"], tuple(row["exit_after"]), row["method"]) for row in rows[1:]} == {
            (p0, places, method) for p0 in (0.4, 0.6) for places in ((1,), (1, 2)) for method in ("top-k", "remove")
        }
        keys = (
            "p0", "exit_after", "keep_per_class", "method", "miou", "pixel_accuracy", "macs", "macs_dense",
            "macs_reduction", "tokens_alive", "throughput", "throughput_dense", "speedup",
        )  # fmt: skip
        assert all(set(keys) <= set(row) for row in rows)
        assert sorted(path.name for path in out.iterdir()) == ["sweep.csv", "sweep.json", "sweep.png"]
        with (out / "sweep.csv").open(newline="") as file:
            assert [float(row["macs"]) for row in csv.DictReader(file)] == [row["macs"] for row in rows]

    def test_what_a_person_sees(self, segment: Invoke, run: Path, build: Build, tmp_path: Path) -> None:
        words = ("--limit", 2, "--out", tmp_path / "out", "--p0", 0.4, "--methods", "average,proportion", "--whole")
        result = fine(segment("sweep", run, build.path, *words, "--no-timing", *QUICK))
        for told in ("unpruned", "after 1 and 2: p0 0.4, average", "a share of 0.35 ends", "written: "):
            assert told in result.stdout

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (("--p0", "0.5,high"), ("--p0 0.5,high",)),
            (("--p0", 2), ("p0 2",)),
            (("--positions", 1, "1,3"), ("exit position 3",)),
            (("--positions", "a"), ("--positions a",)),
            (("--keep", -2), ("-2 tokens",)),
            (("--methods", "top-k,most"), ("unknown method 'most'",)),
        ],
    )
    def test_bad_options_are_one_sentence(
        self,
        words: tuple[object, ...],
        named: tuple[str, ...],
        segment: Invoke,
        run: Path,
        build: Build,
        tmp_path: Path,
    ) -> None:
        result = segment("sweep", run, build.path, *words, "--out", tmp_path / "out", *QUICK)
        assert result.exit_code == 2, result.stderr
        one_error_line(result.stderr, *named)
        assert not (tmp_path / "out").exists()


class TestPredict:
    def test_files(self, segment: Invoke, run: Path, pictures: Path, build: Build, tmp_path: Path) -> None:
        out = tmp_path / "out"
        found = json.loads(fine(segment("predict", run, pictures, "--p0", 0.4, "--out", out, "--json", *QUICK)).stdout)
        values = [each["value"] for each in found["classes"]]
        for number, (size, image) in enumerate(zip(SIZES, found["images"], strict=True)):
            assert (image["width"], image["height"]) == size
            assert sum(image["shares"].values()) == pytest.approx(1)
            with Image.open(out / f"{number}-classes.png") as drawn:
                assert (drawn.mode, drawn.size) == ("P", size)
                pixels = np.asarray(drawn)
                colours = np.array(drawn.getpalette()).reshape(-1, 3)
            assert set(np.unique(pixels).tolist()) <= set(values)
            shown = found["classes"][values.index(int(pixels[0, 0]))]
            assert shown["colour"] == "#{:02x}{:02x}{:02x}".format(*colours[pixels[0, 0]])
            assert image["shares"][shown["name"]] == pytest.approx((pixels == pixels[0, 0]).mean())
            with Image.open(out / f"{number}-stages.png") as drawn:
                assert np.asarray(drawn).max() < len(found["stages"]) == 3
            assert (out / f"{number}-overlay.png").is_file()
        assert json.loads((out / "predictions.json").read_text()) == {k: v for k, v in found.items() if k != "out"}
        evaluated = json.loads(
            fine(segment("eval", run, build.path, "--p0", 0.4, "--no-timing", "--json", *QUICK)).stdout
        )
        assert found["macs"] == evaluated["macs"]
        assert found["tokens_alive"] == pytest.approx(evaluated["tokens_alive"])

    def test_less_can_be_written(self, segment: Invoke, run: Path, pictures: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        words = ("--no-overlays", "--no-stages", "--out", out, "--whole")
        result = fine(segment("predict", run, pictures / "0.png", *words, *QUICK))
        assert sorted(path.name for path in out.iterdir()) == ["0-classes.png", "predictions.json"]
        assert "GMAC of an image" in result.stdout

    def test_what_cannot_be_read(self, segment: Invoke, run: Path, pictures: Path, tmp_path: Path) -> None:
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no picture")
        words = ("predict", run, pictures / "0.png", bad, "--out", tmp_path / "out", "--json", *QUICK)
        result = segment(*words)
        assert result.exit_code == 1
        one_error_line(result.stderr, "bad.png", "--on-error skip")
        result = fine(segment(*words, "--on-error", "skip"))
        assert "left out: " in result.stderr
        found = json.loads(result.stdout)
        assert (len(found["images"]), found["skipped"]) == (1, 1)
        result = segment("predict", run, bad, "--out", tmp_path / "out", "--on-error", "skip", *QUICK)
        assert result.exit_code == 1
        assert "none of the 1 pictures" in result.stderr

    def test_bad_input_is_one_sentence(self, segment: Invoke, run: Path, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for words, code, named in (
            ((tmp_path / "none.jpg",), 1, ("none.jpg", "no such file")),
            ((tmp_path / "empty",), 1, ("holds no pictures",)),
            ((pictures, "--p0", 0), 2, ("p0 0.0",)),
            ((pictures, "--exit-after", 3), 2, ("exit position 3",)),
            ((pictures, "--out", pictures), 1, ("holds pictures",)),
        ):
            result = segment("predict", run, *words, *QUICK)
            assert result.exit_code == code, result.stderr
            one_error_line(result.stderr, *named)
