"""The page of results: one file that needs nothing else, says what its runs say, and takes any text as text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import Invoke
from pages import HOSTILE, Elements
from PIL import Image
from results import named, write_results
from sweeps import make_sweep

from bavit.colours import LINES, luminance
from bavit.detect.sweep_figures import Sweep
from bavit.gallery import Sample
from bavit.report.charts import Axis, Level, Series, bars, chart
from bavit.report.finding import find
from bavit.report.page import as_json, default_title, write_results_page
from bavit.report.results import Results, SweepResult, Table, TablesResult
from bavit.report.summary import fastest, headline, reference_ap, table_two
from tokenlabels.errors import OutputError, TokenLabelsError
from tokenlabels.progress import Silent
from tokenlabels.report.page import MAX_BYTES


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("runs") / "all")


@pytest.fixture(scope="module")
def results(runs: Path) -> Results:
    return find([runs], Silent())


def pictures(count: int) -> list[Sample]:
    return [Sample(f"before: {n}.jpg", Image.new("RGB", (96, 64), (30 * n % 256, 90, 160))) for n in range(count)]


def written(results: Results, folder: Path, title: str = "t", samples: list[Sample] | None = None) -> str:
    return write_results_page(results, folder / "page.html", title=title, samples=samples or []).read_text("utf-8")


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(results, tmp_path_factory.mktemp("page") / "new", "All of it", pictures(4))


def of_sweeps(**sweeps: Sweep) -> Results:
    return Results(sweeps=[SweepResult(name, f"{name}/sweep.json", sweep) for name, sweep in sweeps.items()])


class TestOneFile:
    def test_nothing_is_loaded_from_elsewhere(self, page: str) -> None:
        assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:image[^"]*"', "", page))
        for tag, attributes in Elements(page).tags:
            assert tag != "script"
            assert (attributes.get("src") or "data:").startswith("data:"), tag
            assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
            assert not [name for name in attributes if name.startswith("on") or name == "style"], tag

    def test_the_policy_allows_its_own_style_and_no_script(self, page: str) -> None:
        elements = Elements(page)
        policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256(elements.style.encode()).digest()).decode()
        assert policy is not None
        assert f"style-src 'sha256-{digest}'" in policy
        assert "script-src 'none'" in policy

    def test_the_same_results_give_the_same_bytes(self, runs: Path, page: str, tmp_path: Path) -> None:
        assert written(find([runs], Silent()), tmp_path, "All of it", pictures(4)) == page

    def test_links_lead_somewhere_and_every_section_is_linked(self, page: str) -> None:
        tags = Elements(page).tags
        ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
        assert len(ids) == len(set(ids))
        targets = [(attributes.get("href") or "")[1:] for tag, attributes in tags if tag == "a"]
        assert set(targets) <= set(ids)
        assert {attributes["id"] for tag, attributes in tags if tag == "section"} <= set(targets)

    def test_headings_never_skip_a_level(self, page: str) -> None:
        levels = [int(tag[1]) for tag, _ in Elements(page).tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_every_plot_has_words_and_every_table_a_caption_and_heads(self, page: str) -> None:
        tags = Elements(page).tags
        plots = [a for tag, a in tags if tag == "svg" and "plot" in (a.get("class") or "").split()]
        assert len(plots) == len({a["aria-label"] for a in plots}) > 15
        assert all(a["role"] == "img" for a in plots)
        names = [tag for tag, _ in tags]
        assert names.count("table") == names.count("caption") >= 9
        assert all(a.get("scope") for tag, a in tags if tag == "th")

    def test_sections_of_what_is_not_there_are_not_there(self, tmp_path: Path) -> None:
        tables = [TablesResult("a", "a.json", {"ms": 3.5}, [Table("rows", ["x"], [{"x": 1.0}])])]
        tags = Elements(written(Results(tables=tables), tmp_path)).tags
        assert [a["id"] for tag, a in tags if tag == "section"] == ["measurements", "runs"]

    def test_sweeps_without_pictures_say_so(self, tmp_path: Path) -> None:
        assert "The sweeps left no pictures behind" in Elements(written(of_sweeps(a=make_sweep()), tmp_path)).text

    def test_the_page_stays_below_its_limit(self, results: Results, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (500, 1500, 3), np.uint8)
        many = [Sample(str(index), Image.fromarray(np.roll(noise, index, 0))) for index in range(16)]
        assert MAX_BYTES / 2 < len(written(results, tmp_path, samples=many).encode()) < MAX_BYTES

    def test_results_that_make_too_large_a_page_are_refused(self, tmp_path: Path) -> None:
        wide = Table("rows", [f"column {n}" for n in range(48)], [{f"column {n}": "x" * 300 for n in range(48)}] * 400)
        with pytest.raises(TokenLabelsError, match=r"make a page of [0-9]+ MB, more than people open: name fewer"):
            written(Results(tables=[TablesResult("a", "a.json", {}, [wide])]), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written_is_refused(self, results: Results, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot be written"):
            write_results_page(results, tmp_path, title="t")


class TestFigures:
    def test_table_two_is_the_papers_arithmetic_and_ours(self, results: Results, page: str) -> None:
        """By hand: 12 x 1024 and 2 x 576 tokens, rounded down; CLS and 100 detection tokens in each of 12 blocks."""
        text = Elements(page).text
        for share, left in ((25, 9_216), (30, 8_601), (35, 7_987), (46, 6_635)):
            total = left + 1_152
            assert f"arithmetic alone {share}.0% {left:,} {total:,} {1 - total / 12_288:.1%}" in text
        rows = [row for row in table_two(results) if row.run is not None]
        assert len(rows) == sum(len(each.sweep.of("bavit")) for each in results.sweeps)
        for row in rows:
            left = math.floor(12_288 * (1 - row.paper.sparsity) + 1e-6)
            assert (row.paper.tokens_pruned, row.paper.tokens_total) == (left, left + 1_152)
            assert row.tokens_total == row.tokens_bavit + row.tokens_pruned  # type: ignore[operator]
            shown = f"{row.run} at {row.threshold:g} {row.paper.sparsity:.1%} {left:,} {left + 1_152:,}"
            assert shown in text

    def test_tokens_that_always_stay_are_counted_where_the_sweep_tells(self) -> None:
        sweep = make_sweep()
        telling = msgspec.structs.replace(sweep, setting=msgspec.structs.replace(sweep.setting, standing_tokens=101))
        assert [row.reduction_true for row in table_two(of_sweeps(a=sweep))[4:]] == [None] * 6
        for row, told in zip(sweep.of("bavit"), table_two(of_sweeps(a=telling))[4:], strict=True):
            assert told.standing == 12 * 101
            assert told.reduction_true == pytest.approx(1 - (row.tokens_total + 1212) / (12_288 + 1212))

    def test_the_row_to_talk_of(self) -> None:
        """The fastest within a point of the best dense detector on the same data, not of its own sweep's."""
        good, worse = make_sweep(ap=0.3), make_sweep(ap=0.285, harm=0.01)
        best = headline(of_sweeps(good=good, worse=worse))
        assert best is not None
        rows = [row for row in good.of("bavit") if row.ap >= 0.29 and row.speedup > 1]
        assert (best.run, best.row) == ("good", max(rows, key=lambda row: row.speedup))
        assert best.lost == pytest.approx(0.3 - best.row.ap)
        elsewhere = named(worse, "other data")
        other = headline(of_sweeps(good=good, worse=elsewhere))
        assert other is not None
        assert other.run == "worse"
        assert reference_ap(of_sweeps(good=good, worse=elsewhere).sweeps, elsewhere) == 0.285

    def test_where_every_row_loses_more_it_says_so(self) -> None:
        best = headline(of_sweeps(bad=make_sweep(harm=40, thresholds=(0.2, 0.4))))
        assert best is not None
        assert best.why.startswith("none loses less than a point")
        assert headline(of_sweeps(random=make_sweep(random_weights=True))) is None

    def test_a_detector_that_was_never_trained_has_speed_and_no_precision(self, tmp_path: Path) -> None:
        results = of_sweeps(random=make_sweep(random_weights=True))
        page = written(results, tmp_path)
        quick = fastest(results)
        assert quick is not None
        text = Elements(page).text
        assert f"{quick[1].speedup:.2f}x random" in text
        assert "untrained" in text
        assert "By patches removed" not in text
        assert f"{100 * quick[1].ap:.1f} " not in text

    def test_text_and_json_say_the_same(self, results: Results, page: str) -> None:
        text, told = Elements(page).text, json.loads(json.dumps(as_json(results, "All of it")))
        for each in told["sweeps"]:
            for row in each["sweep"]["rows"]:
                numbers = f"{row['threshold']:g} {row['sparsity']:.1%} {100 * row['ap']:.1f} {100 * row['ap50']:.1f}"
                assert numbers in text
        for row in told["table_two"][4:]:
            assert (
                f"{row['macs_saved']:.1%} {row['speedup']:.2f}x {100 * row['ap']:.1f} {100 * row['ap_change']:+.1f}"
                in text
            )
        headline = told["headline"]
        assert f"speed-up {headline['row']['speedup']:.2f}x" in text
        assert f"patches removed {headline['row']['sparsity']:.1%} {headline['run']}" in text
        figures = told["evaluations"][0]["evaluation"]
        assert f"eval {figures['accuracy']:.1%} {figures['majority']:.1%} {figures['position_prior']:.1%}" in text
        row = told["segmentations"][0]["rows"][1]
        assert f"segments top-k 6 8 0.9 {100 * row['miou']:.1f} 93.0 {row['macs'] / 1e9:.3f} 31.0%" in text
        assert told["exported"]["sparsity"] == 0.35
        assert f"exported graph {told['exported']['ratio_graph']:.2f}x onnx: 35.0% removed" in text
        assert "separate 2.4 G ± 10 M 0.54 ± 0.008" in text
        assert "detector detector AP 55.0 55.0 3 40 12.5 3.5 min" in text
        assert "pruned GMAC 8 7.9 7.8 to 8 8.4 0.4 \u2013 \u2013 35.0%" in text
        assert "achieved 7.9 G" in text
        for method in told["comparisons"][1]["methods"]:
            for point in method["points"]:
                numbers = f"{100 * point['ap']['mean']:.2f} ± 1.00 {100 * point['ap50']['mean']:.2f} ± 1.50"
                assert f"{point['setting']} {point['macs_share']['mean']:.1%} {numbers}" in text
        assert "adaptive less fixed, penalty 1 +2.00 ± 1.00" in text
        for quote in told["paper"]["printed_in_its_abstract"]:
            assert f"{quote['figure']} {quote['value']}" in text

    def test_titles(self, results: Results) -> None:
        assert default_title(of_sweeps(before=make_sweep(), after=make_sweep())) == "BAViT: before, after"
        assert default_title(results) == "BAViT: 12 results"

    def test_hostile_text_is_text(self, tmp_path: Path) -> None:
        folder = write_results(tmp_path / "hostile", text=HOSTILE)
        page = written(find([folder], Silent()), tmp_path, HOSTILE, [Sample(HOSTILE, Image.new("RGB", (8, 8)))])
        elements = Elements(page)
        assert [tag for tag, _ in elements.tags].count("img") == 1
        assert not [tag for tag, _ in elements.tags if tag == "script"]
        assert not [a for _, a in elements.tags if any(name.startswith("on") for name in a)]
        assert not re.search("[\x00-\x08\x0e-\x1f\u2028\u2029\u202e]", page)
        assert elements.text.count("<script>alert(1)</script>") > 12


def places(drawing: str, kind: str) -> list[tuple[float, float]]:
    """Points of the line of a class."""
    found = re.search(rf'<polyline class="line {kind}" points="([^"]+)"', drawing)
    assert found
    return [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in found[1].split())]


class TestCharts:
    def test_points_stand_where_their_numbers_are(self) -> None:
        """Read back from the drawing by its own ticks."""
        data = [(0.21, 0.31), (0.5, 0.27), (0.83, 0.12)]
        drawing = chart([Series("a", data, 1, "dashed")], Axis("x, %", 100, "%"), Axis("y", 100), title="t")
        across = ticks_of(drawing, r'class="tick middle" x="([0-9.]+)" y="[0-9.]+">([0-9.]+)<')
        up = ticks_of(drawing, r'class="tick end" x="[0-9.]+" y="([0-9.]+)">([0-9.]+)<')
        for (x, y), (left, top) in zip(data, places(drawing, "c1 dashed"), strict=True):
            assert np.interp(left, *across) == pytest.approx(100 * x, abs=0.1)
            assert np.interp(top + 4, *up) == pytest.approx(100 * y, abs=0.1)

    @pytest.mark.parametrize("high", [1.0, 1.03, 83.9, 2_310.0, 0.0042])
    def test_ticks_say_where_they_stand(self, high: float) -> None:
        """Evenly, to the last digit: a quarter is not rounded."""
        drawing = chart([Series("a", [(0.9 * high, 0.97 * high), (high, high)])], Axis("x"), Axis("y"), title="t")
        for pattern in (
            r'class="tick middle" x="([0-9.]+)" y="[0-9.]+">([0-9.,]+)<',
            r'class="tick end" x="[0-9.]+" y="([0-9.]+)">([0-9.,]+)<',
        ):
            at, numbers = ticks_of(drawing, pattern)
            slope = (numbers[-1] - numbers[0]) / (at[-1] - at[0])
            assert numbers == pytest.approx([numbers[0] + slope * (place - at[0]) for place in at], abs=abs(slope) / 5)
            assert np.diff(numbers) == pytest.approx(np.diff(numbers)[0], rel=1e-6)

    def test_error_bars_are_as_high_as_the_spread(self) -> None:
        series = Series("a", [(1.0, 2.0), (2.0, 3.0)], spread=[0.5, 0.0])
        drawing = chart([series], Axis("x"), Axis("y"), title="t")
        found = re.findall(r'class="spread c0" [^>]*y1="([0-9.]+)" y2="([0-9.]+)"', drawing)
        up = ticks_of(drawing, r'class="tick end" x="[0-9.]+" y="([0-9.]+)">([0-9.]+)<')
        assert len(found) == 1, "none where there is no spread"
        assert [np.interp(float(place) + 4, *up) for place in found[0]] == pytest.approx([1.5, 2.5], abs=0.02)

    def test_names_of_levels_stand_apart(self) -> None:
        levels = [Level(f"{n}", 0.5 + 0.001 * n, n, f"{n}") for n in range(4)]
        drawing = chart([Series("a", [(0, 0), (1, 1)])], Axis("x"), Axis("y"), title="t", levels=levels)
        heights = sorted(float(y) for y in re.findall(r'class="named [^"]*" x="[0-9.]+" y="([0-9.]+)"', drawing))
        assert len(heights) == 4
        assert min(np.diff(heights)) >= 12

    @pytest.mark.parametrize("value", [1e300, -1e300, 1e15])
    def test_absurd_numbers_are_left_out(self, value: float) -> None:
        drawing = chart([Series("a", [(0, 0.5), (1, value), (2, 0.7)], notes="xyz")], Axis("x"), Axis("y"), title="t")
        assert len(places(drawing, "c0 solid")) == 2
        assert "Nothing was measured" in chart([Series("a", [(value, 1)])], Axis("x"), Axis("y"), title="t")
        assert not bars([("a", [("b", abs(value))])], Axis("x"), title="t")

    @pytest.mark.parametrize("data", [[(0.0, 0.0)], [(5.0, 5.0), (5.0, 5.0)], [(-3.0, -1e-9), (4.0, 1e-9)]])
    def test_what_hardly_differs_is_drawn_within_its_frame(self, data: list[tuple[float, float]]) -> None:
        drawing = chart([Series("a", data)], Axis("x"), Axis("y"), title="t")
        found = re.findall(r"translate\(([-0-9.]+) ([-0-9.]+)\)", drawing)
        assert len(found) == len(data)
        assert all(58 <= float(x) <= 394 and 14 <= float(y) <= 218 for x, y in found)

    def test_what_hardly_differs_is_not_blown_up(self) -> None:
        drawing = chart([Series("a", [(0, 0.8251), (1, 0.8263)])], Axis("x"), Axis("y", 100, span=1), title="t")
        _, up = ticks_of(drawing, r'class="tick end" x="[0-9.]+" y="([0-9.]+)">([0-9.]+)<')
        assert 1 <= max(up) - min(up) <= 1.6
        assert min(up) < 82.51 < 82.63 < max(up)

    def test_bars_are_as_long_as_their_parts(self) -> None:
        drawing = bars([("a", [("x", 1.0), ("y", 2.0)]), ("b", [("x", 4.0)])], Axis("ms"), title="t")
        widths = [float(width) + 1 for width in re.findall(r'<rect class="part[^>]* width="([0-9.]+)"', drawing)]
        assert widths == pytest.approx([widths[0], 2 * widths[0], 4 * widths[0]], abs=0.05)

    def test_colours_can_be_told_and_read_on_both_grounds(self) -> None:
        """Text needs 4.5 to 1 (WCAG 2): they name levels, too. No two are alike to who cannot see red and green."""
        for place, ground in ((0, "#ffffff"), (1, "#1b1f23")):
            colours = [rgb(pair[place]) for pair in LINES]
            for colour in colours:
                light, dark = sorted((luminance(colour), luminance(rgb(ground))), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5
            for one, other in itertools.combinations(colours, 2):
                assert np.abs(deuteranope(one) - deuteranope(other)).max() > 12


def ticks_of(drawing: str, pattern: str) -> tuple[list[float], list[float]]:
    """Places, ascending, and numbers of the ticks of an axis."""
    found = sorted((float(place), float(number.replace(",", ""))) for place, number in re.findall(pattern, drawing))
    return [place for place, _ in found], [number for _, number in found]


def rgb(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def deuteranope(colour: tuple[int, int, int]) -> np.ndarray:
    """Machado's matrix for severity 1, on linear light, back to 0..255."""
    linear = (np.array(colour) / 255) ** 2.2
    matrix = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    seen: np.ndarray = 255 * np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)
    return seen


class TestCommand:
    def test_it_writes_the_page_and_says_it_as_json(
        self, bavit: Invoke, runs: Path, results: Results, tmp_path: Path
    ) -> None:
        out = tmp_path / "deep" / "report.html"
        done = bavit("report", runs, "--out", out, "--title", "All of it", "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told == json.loads(json.dumps(as_json(results, "All of it"))) | {"out": str(out)}
        assert len(Elements(out.read_text("utf-8")).pictures()) == 4

    @pytest.mark.parametrize(
        ("words", "code", "told"),
        [
            (["{none}"], 1, "no such file or folder"),
            (["{bad}"], 1, "holds no results"),
            (["{bad}", "--out", "{folder}"], 1, "cannot be written"),
            (["{bad}", "--out", "{bad}"], 1, "is there, and no page by its name"),
            ([], 2, "Missing argument"),
        ],
    )
    def test_faults_are_one_sentence(
        self, bavit: Invoke, words: list[str], code: int, told: str, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.json").write_text("{}")
        names = {"none": tmp_path / "none", "bad": tmp_path / "bad.json", "folder": tmp_path}
        done = bavit("report", *(word.format(**names) for word in words))
        assert done.exit_code == code
        assert told in done.output
        assert not (tmp_path / "report.html").exists()
        assert (tmp_path / "bad.json").read_text() == "{}"
