"""The files of a sweep say what it says: JSON, CSV, PNG and page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pages import HOSTILE, Elements
from PIL import Image, ImageColor
from sweeps import make_sweep

from bavit.detect.sweep_figures import Sweep, SweepRow, read_sweep, save_csv, save_json
from bavit.detect.sweep_page import write_sweep_page
from bavit.detect.sweep_plot import draw_sweep
from bavit.gallery import Sample
from bavit.plots import BLUE, ORANGE, RED
from tokenlabels.errors import OutputError, TokenLabelsError

KEYS = [
    "threshold",
    "sparsity",
    "mask",
    "ap",
    "ap50",
    "tokens_bavit",
    "tokens_detector",
    "tokens_pruned",
    "tokens_total",
    "reduction",
    "macs",
    "macs_dense",
    "latency_ms",
    "latency_dense_ms",
    "throughput",
    "throughput_dense",
    "speedup",
]


def changed(sweep: Sweep, **setting: object) -> Sweep:
    return msgspec.structs.replace(sweep, setting=msgspec.structs.replace(sweep.setting, **setting))


def page_of(sweep: Sweep, folder: Path, **options: object) -> str:
    arguments: dict[str, object] = {"title": "t"} | options
    return write_sweep_page(sweep, folder / "page.html", **arguments).read_text("utf-8")  # type: ignore[arg-type]


class TestFigures:
    def test_json_comes_back(self, tmp_path: Path) -> None:
        sweep = make_sweep(memory=False)
        assert read_sweep(save_json(sweep, tmp_path / "sweep.json")) == sweep
        assert all(set(KEYS) <= row.keys() for row in msgspec.to_builtins(sweep)["rows"])

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"rows": 1}', b"\xff"])
    def test_another_file_is_refused(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "sweep.json"
        path.write_bytes(content)
        with pytest.raises(TokenLabelsError, match=r"sweep\.json: is not the sweep\.json of a sweep"):
            read_sweep(path)
        with pytest.raises(TokenLabelsError, match=r"cannot be read"):
            read_sweep(tmp_path / "none.json")

    def test_csv_has_every_row_and_key(self, tmp_path: Path) -> None:
        sweep = make_sweep(memory=False)
        with save_csv(sweep, tmp_path / "sweep.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(sweep.rows)
        for told, row in zip(rows, sweep.rows, strict=True):
            assert list(told) == list(SweepRow.__struct_fields__)
            assert told["mask"] == row.mask
            assert float(told["speedup"]) == row.speedup
            assert told["ap_large"] == told["peak_memory_mb"] == ""

    def test_the_row_to_talk_of_is_the_fastest_that_loses_a_point_at_most(self) -> None:
        sweep = make_sweep()
        good = [row for row in sweep.of("bavit") if row.ap >= sweep.dense.ap - 0.01]
        assert sweep.best == max(good, key=lambda row: row.speedup)
        assert sweep.best.speedup > 1
        assert make_sweep(harm=9).best.threshold == 0.5, "where none is good enough the model's own"
        assert make_sweep(random_weights=True).best.threshold == 0.5, "where AP means nothing, too"
        assert make_sweep(masks=("random",), thresholds=(0.2,)).best.mask == "random"


class TestPlot:
    @pytest.mark.filterwarnings("error")
    def test_every_source_has_its_line_and_an_earlier_sweep_is_drawn_too(self, tmp_path: Path) -> None:
        pixels = []
        for name, options in (("a", {}), ("b", {"before": make_sweep(harm=2)})):
            with Image.open(draw_sweep(make_sweep(), tmp_path / f"{name}.png", **options)) as opened:
                assert opened.size == (1200, 900)
                pixels.append(np.asarray(opened.convert("RGB")))
        for colour in (BLUE, ORANGE, RED):
            assert (pixels[0][:450] == ImageColor.getrgb(colour)).all(axis=2).sum() > 100
        assert (pixels[0] != pixels[1])[:450].any()

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        "sweep",
        [
            pytest.param(make_sweep(ap=0.0, random_weights=True, memory=False), id="nothing is found"),
            pytest.param(make_sweep(masks=("random",), thresholds=(1.0,)), id="one row, nothing removed"),
        ],
    )
    def test_any_sweep_can_be_drawn(self, sweep: Sweep, tmp_path: Path) -> None:
        assert draw_sweep(sweep, tmp_path / "sweep.png").stat().st_size > 5_000
        assert "nan" not in Elements(page_of(sweep, tmp_path)).text


class TestPage:
    def test_it_is_one_file_without_a_script(self, tmp_path: Path) -> None:
        page = page_of(make_sweep(), tmp_path, samples=[Sample("val/1.jpg", Image.new("RGB", (64, 32)))])
        tags = Elements(page).tags
        assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:image[^"]*"', "", page))
        assert not [tag for tag, _ in tags if tag == "script"]
        assert [tag for tag, _ in tags].count("img") == 1
        ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
        assert len(ids) == len(set(ids))
        assert {(a.get("href") or "")[1:] for tag, a in tags if tag == "a"} <= set(ids)
        assert all(
            a["role"] == "img" and a["aria-label"] for tag, a in tags if tag == "svg" and a.get("class") == "plot"
        )

    def test_it_says_every_row(self, tmp_path: Path) -> None:
        sweep = make_sweep()
        text = Elements(page_of(sweep, tmp_path)).text
        names = {"bavit": "BAViT", "labels": "ground truth", "random": "random"}
        for row in sweep.rows:
            head = f"{names[row.mask]} {row.threshold:g} {row.sparsity:.2%} {100 * row.ap:.1f}"
            assert text.count(head) == 2, "by size of object, and among the numbers"
            assert f"{row.speedup:.2f}x {row.speedup_ideal:.2f}x" in text
        best = sweep.best
        for words in (f"AP {100 * best.ap:.1f} ", f"speed-up {best.speedup:.2f}x", f"sparsity {best.sparsity:.2%}",
                      f"tokens saved {best.reduction:.2%}", "detector runs/yolos", "threads 2"):  # fmt: skip
            assert words in text

    def test_random_weights_and_notes_are_told(self, tmp_path: Path) -> None:
        sweep = changed(make_sweep(random_weights=True), notes=["its AP means nothing"])
        assert "its AP means nothing" in Elements(page_of(sweep, tmp_path)).text
        assert "means nothing" not in Elements(page_of(make_sweep(), tmp_path)).text

    def test_hostile_text_is_text(self, tmp_path: Path) -> None:
        sweep = changed(make_sweep(), bavit=HOSTILE, detector=HOSTILE, data=HOSTILE, notes=[HOSTILE])
        page = page_of(sweep, tmp_path, title=HOSTILE, samples=[Sample(HOSTILE, Image.new("RGB", (8, 8)))])
        elements = Elements(page)
        assert [tag for tag, _ in elements.tags].count("img") == 1
        assert not [tag for tag, _ in elements.tags if tag == "script"]
        assert elements.text.count("<script>alert(1)</script>") == 7
        assert elements.text.count("{{tiles}}") == 7

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot be written"):
            write_sweep_page(make_sweep(), tmp_path / "file" / "page.html", title="t")
