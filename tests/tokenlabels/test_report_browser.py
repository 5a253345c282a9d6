"""The report in a browser: what it paints is what `relabel` gives, by mouse, keyboard and screen reader.

Needs Chromium and playwright; skipped without them, unless TOKENLABELS_REQUIRE_CHROMIUM=1 says that they must be there.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from browsing import CONTRASTS, Open, chromium, needs_chromium, settle, visiting
from numpy.typing import NDArray
from PIL import Image

import tokenlabels
from tokenlabels.figures import Figures
from tokenlabels.reader import Build
from tokenlabels.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium

FiguresOf: TypeAlias = Callable[..., Figures]
WriteJson: TypeAlias = Callable[[Path, Any], Path]

STOPS = (0.0, 0.01, 0.29, 0.3, 0.5, 0.77, 1.0)
HOSTILE = "</script><img src=x onerror=alert(1)>\"'\u202e"

PAINTED = """() => [...document.querySelectorAll('#cards > li')].map((card) => {
  const canvas = card.querySelector('canvas');
  return { id: card.querySelector('button').textContent, picture: canvas.toDataURL('image/png'),
           name: canvas.getAttribute('aria-label'), ...card.dataset };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with visiting(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def coloured_root(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with every picture replaced by one of a single strong colour."""
    root = tmp_path_factory.mktemp("coloured")
    shutil.copytree(sample_root / "annotations", root / "annotations")
    for split in ("train", "val"):
        (root / split).mkdir()
        for image in json.loads((root / "annotations" / f"instances_{split}.json").read_text())["images"]:
            blank = Image.new("RGB", (image["width"], image["height"]), (235, 70, 50))
            blank.save(root / split / image["file_name"])
    return root


BUILDS: dict[str, dict[str, Any]] = {
    "boxes, squashed": {"tau": 0.5},
    "masks, letterbox, crowds and padding ignored": {
        "rule": "pixel-ratio",
        "tau": 0.123,
        "resize": "letterbox",
        "image_size": "256x192",
        "crowd": "ignore",
        "padding": "ignore",
    },
    "boxes, letterbox": {"resize": "letterbox", "image_size": "128x256"},
    "boxes, native": {"image_size": "native", "patch": "32x24", "padding": "background"},
}


@pytest.fixture(scope="module", params=BUILDS)
def coloured(
    request: pytest.FixtureRequest,
    coloured_root: Path,
    figures_of: FiguresOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Build, Path]:
    """A build of the coloured sample and its report."""
    folder = tmp_path_factory.mktemp("coloured-build")
    build = tokenlabels.build("coco", root=coloured_root, out=folder / "labels", **BUILDS[request.param])
    return build, write_report(folder / "report.html", build, figures_of(build), images=coloured_root)


@pytest.fixture(scope="module")
def report(coloured_root: Path, figures_of: FiguresOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One report for everything that does not depend on the build."""
    folder = tmp_path_factory.mktemp("one")
    build = tokenlabels.build("coco", root=coloured_root, out=folder / "labels")
    return write_report(folder / "report.html", build, figures_of(build), images=coloured_root)


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory: pytest.TempPathFactory, write_json: WriteJson, figures_of: FiguresOf) -> Path:
    """One image with a hostile category in train, one with a dog in val; no pictures."""
    root = tmp_path_factory.mktemp("two")
    categories = [{"id": 1, "name": HOSTILE}, {"id": 2, "name": "dog"}]
    for split, category in (("train", 1), ("val", 2)):
        document = {
            "images": [{"id": category, "file_name": f"{HOSTILE}.png", "width": 64, "height": 48}],
            "categories": categories,
            "annotations": [
                {
                    "id": 2**53 + 1,
                    "image_id": category,
                    "category_id": category,
                    "bbox": [0, 0, 20, 30],
                    "area": 600,
                    "iscrowd": 0,
                }
            ],
        }
        write_json(root / "annotations" / f"instances_{split}.json", document)
    build = tokenlabels.build("coco", root=root, out=root / "labels")
    return write_report(root / "report.html", build, figures_of(build))


def set_tau(page: Page, tau: float) -> None:
    page.locator("#tau").fill(str(tau))
    settle(page)


def painted_labels(build: Build, row: dict[str, Any], card: dict[str, Any]) -> NDArray[np.uint8]:
    """Labels (rows * cols,) read from the pixels in the middle of every patch."""
    with Image.open(io.BytesIO(base64.b64decode(card["picture"].partition(",")[2]))) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float64)
    y_edges, x_edges = next(iter(build.grids.values())).edges(row["width"], row["height"])
    spans = [
        spans_of(edges, limit, canvas)
        for edges, limit, canvas in ((y_edges, row["height"], len(pixels)), (x_edges, row["width"], pixels.shape[1]))
    ]
    labels = []
    for top, bottom in spans[0]:
        for left, right in spans[1]:
            patch = pixels[top:bottom, left:right].reshape(-1, 3)
            assert patch.size
            saturation = np.ptp(patch, axis=1)
            hatched = (np.abs(patch[:, 0] - 0x55) < 12) | (np.abs(patch[:, 0] - 0xDC) < 12)
            if saturation.min() > 60:
                labels.append(1)
            elif saturation.max() < 12:
                labels.append(255 if hatched.mean() > 0.6 else 0)
            else:
                pytest.fail(f"a patch is neither in colour nor grey: {patch.mean(axis=0)}")
    return np.array(labels, np.uint8)


def spans_of(edges: NDArray[np.float64], limit: int, canvas: int) -> list[tuple[int, int]]:
    """Canvas pixels of the middle of each cell along one axis."""
    start = min(0.0, edges[0])
    scale = canvas / (max(limit, edges[-1]) - start)
    spans = []
    for low, high in itertools.pairwise(edges.tolist()):
        low, high = (low - start) * scale, (high - start) * scale
        margin = min(4.0, (high - low) / 2 - 0.6)
        spans.append((int(np.ceil(low + margin)), max(int(high - margin), int(np.ceil(low + margin)) + 1)))
    return spans


@pytest.mark.slow
class TestThreshold:
    def test_the_painted_patches_are_those_of_relabel(
        self, coloured: tuple[Build, Path], open_page: Open, tmp_path: Path
    ) -> None:
        """At every stop: pixels of every patch of every sample, counts, names, and the figure of the whole build."""
        build, path = coloured
        page = open_page(path)
        page.get_by_label("show boxes").uncheck()
        page.get_by_label("show grid").uncheck()
        for stop in STOPS:
            relabelled = tokenlabels.relabel(build, stop, tmp_path / f"tau-{stop}")
            rows = relabelled.table().to_pylist()
            by_id = {row["image_id"]: row for row in rows}
            set_tau(page, stop)
            cards = page.evaluate(PAINTED)
            assert len(cards) == 16
            for card in cards:
                row = by_id[card["id"]]
                assert painted_labels(build, row, card).tolist() == row["labels"], (stop, card["id"])
                assert int(card["foreground"]) == row["fg_count"]
                assert int(card["ignored"]) == row["ignore_count"]
                assert int(card["lost"]) == row["objects"]["patches"].count(0), (stop, card["id"])
                assert card["name"].startswith(
                    f"image {card['id']}: {row['fg_count']} of {len(row['labels'])} patches foreground"
                )
            foreground, ignored = (sum(row[name] for row in rows) for name in ("fg_count", "ignore_count"))
            patches = sum(len(row["labels"]) for row in rows)
            whole = page.locator("#whole")
            assert whole.get_attribute("data-foreground") == str(foreground)
            assert whole.get_attribute("data-ignored") == str(ignored)
            assert (
                f"{foreground / (patches - ignored):.2%} foreground, {foreground:,} of {patches:,}"
                in whole.inner_text()
            )

    @pytest.mark.parametrize(("rule", "passes"), [("overlap", True), ("pixel-ratio", False)])
    def test_scores_equal_to_tau_are_decided_in_float32(
        self,
        rule: str,
        passes: bool,
        tmp_path: Path,
        write_json: WriteJson,
        figures_of: FiguresOf,
        open_page: Open,
    ) -> None:
        """Patches of 100 x 100 pixels, the k-th covered by exactly k hundredths, at each of these thresholds."""
        hundredths = range(1, 100, 7)
        corners = [(100 * index, 100 * index + share) for index, share in enumerate(hundredths)]
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 100 * len(corners), "height": 100}],
            "categories": [{"id": 1, "name": "bar"}],
            "annotations": [
                {
                    "id": index,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": [left, 0, right - left, 100],
                    "segmentation": [[left, 0, right, 0, right, 100, left, 100]],
                    "area": 100 * (right - left),
                    "iscrowd": 0,
                }
                for index, (left, right) in enumerate(corners)
            ],
        }
        build = tokenlabels.build(
            "coco",
            annotations=write_json(tmp_path / "a.json", document),
            out=tmp_path / "labels",
            rule=rule,
            patch=100,
            image_size="native",
        )
        page = open_page(write_report(tmp_path / "report.html", build, figures_of(build)))
        for index, share in enumerate(hundredths):
            page.locator("#tau").fill(f"{share / 100:.2f}")
            expected = len(corners) - index - (not passes)
            assert page.locator("#cards > li").get_attribute("data-foreground") == str(expected), share
            assert page.locator("#whole").get_attribute("data-foreground") == str(expected), share

    def test_it_starts_at_the_tau_of_the_build_and_returns_to_it(
        self, coloured: tuple[Build, Path], open_page: Open
    ) -> None:
        """Exactly, also where that is no stop of the slider."""
        build, path = coloured
        page = open_page(path)
        tau, rows = build.manifest["parameters"]["tau"], build.table().to_pylist()
        at_start = page.locator("#whole").inner_text()
        assert page.locator("#tau-value").inner_text() == (f"{tau:.2f}" if tau == 0.5 else str(tau))
        assert f"{sum(row['fg_count'] for row in rows):,} of " in at_start
        reset = page.get_by_role("button", name="Build's tau")
        assert reset.is_disabled()
        set_tau(page, 0.9)
        assert page.locator("#whole").inner_text() != at_start
        reset.click()
        settle(page)
        assert page.locator("#whole").inner_text() == at_start
        counts = {card["id"]: int(card["foreground"]) for card in page.evaluate(PAINTED)}
        assert counts == {row["image_id"]: row["fg_count"] for row in rows}

    def test_by_keyboard(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        page.locator("#tau").focus()
        seen = []
        for key in ("ArrowRight", "ArrowLeft", "Home", "ArrowRight", "End", "ArrowLeft"):
            page.keyboard.press(key)
            seen.append(page.locator("#tau-value").inner_text())
        assert seen == ["0.51", "0.50", "0.00", "0.01", "1.00", "0.99"]

    def test_the_marker_of_the_curve_follows(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        marker, places = page.locator("#tau-marker line"), []
        for tau in (0, 0.5, 1):
            set_tau(page, tau)
            places.append(float(marker.get_attribute("x1") or "nan"))
        assert places[1] - places[0] == pytest.approx(places[2] - places[1])
        assert places[2] > places[1] > places[0]

    def test_the_figure_is_announced(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        assert page.locator("#whole").get_attribute("aria-live") == "polite"
        set_tau(page, 0.25)
        assert page.locator("#tau").get_attribute("aria-valuetext") == "0.25"


class TestGallery:
    def test_category_and_split_filter_together_down_to_nothing(self, two_splits: Path, open_page: Open) -> None:
        page = open_page(two_splits)
        cards, none = page.locator("#cards > li"), page.locator("#none")
        page.get_by_role("combobox", name="Category").select_option("1")
        assert cards.count() == 1
        assert cards.get_by_role("button").inner_text() == "2"
        assert page.locator("#shown").inner_text().startswith("1 of 2 samples shown")
        page.get_by_role("combobox", name="Split").select_option("train")
        assert cards.count() == 0
        assert none.is_visible()
        page.get_by_role("button", name="Show all samples").click()
        assert cards.count() == 2
        assert none.is_hidden()

    def test_hostile_names_are_words(self, two_splits: Path, open_page: Open) -> None:
        """That no dialog opens and nothing is asked for is checked for every page."""
        page = open_page(two_splits)
        page.get_by_role("combobox", name="Category").select_option("0")
        assert "</script><img src=x onerror=alert(1)>" in page.locator("#cards").inner_text()
        page.locator("#cards button").click()
        assert "onerror=alert(1)" in page.locator("#large-facts").inner_text()
        assert "9007199254740993" in page.locator("#large-objects").inner_text(), "not rounded"
        assert page.locator("img").count() == 0

    def test_sorting(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        orders = {}
        for order in ("most", "least", "id"):
            page.get_by_role("combobox", name="Sort by").select_option(order)
            settle(page)
            orders[order] = page.evaluate(PAINTED)
        counts = [int(card["foreground"]) for card in orders["most"]]
        assert counts == sorted(counts, reverse=True)
        assert [int(card["foreground"]) for card in orders["least"]] == sorted(counts)
        ids = [int(card["id"]) for card in orders["id"]]
        assert ids == sorted(ids)

    def test_boxes_and_grid_can_be_hidden(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        looks = [page.evaluate(PAINTED)]
        for label in ("show boxes", "show grid"):
            page.get_by_label(label).uncheck()
            settle(page)
            looks.append(page.evaluate(PAINTED))
        changed = [
            sum(before["picture"] != after["picture"] for before, after in zip(first, second, strict=True))
            for first, second in itertools.pairwise(looks)
        ]
        with_objects = sum(bool(sample["objects"]) for sample in samples_of(report))
        assert changed == [with_objects, 16]

    def test_a_larger_view_by_keyboard(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        button = page.locator("#cards button").nth(2)
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        assert dialog.is_visible()
        first = page.locator("#large-title").inner_text()
        assert first == f"Image {button.inner_text()}"
        assert page.locator("#large-canvas").get_attribute("aria-label")
        page.keyboard.press("ArrowRight")
        assert page.locator("#large-title").inner_text() != first
        page.keyboard.press("ArrowLeft")
        assert page.locator("#large-title").inner_text() == first
        page.keyboard.press("Escape")
        assert dialog.is_hidden()
        assert button.evaluate("(element) => element === document.activeElement")


class TestTables:
    def test_categories_sort_and_unfold(
        self, tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf, open_page: Open
    ) -> None:
        """The top 25 at first; by name, by objects, both ways."""
        categories = [{"id": index, "name": f"kind {index:02d}"} for index in range(40)]
        annotations = [
            {"id": 100 * kind + index, "image_id": 1, "category_id": kind, "bbox": [0, 0, 30 + kind, 40], "area": 900}
            for kind in range(40)
            for index in range((kind * 7) % 11)
        ]
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}],
            "categories": categories,
            "annotations": [annotation | {"iscrowd": 0} for annotation in annotations],
        }
        build = tokenlabels.build(
            "coco", annotations=write_json(tmp_path / "a.json", document), out=tmp_path / "labels"
        )
        page = open_page(write_report(tmp_path / "report.html", build, figures_of(build)))
        table = page.locator("#categories table")
        rows = table.locator("tbody tr:visible")
        assert rows.count() == 25
        page.locator("#categories").get_by_role("button", name="Show all 40").click()
        assert rows.count() == 40
        expected = [(kind * 7) % 11 for kind in range(40)]
        for backwards in (True, False):
            table.get_by_role("button", name="objects").click()
            found = [int(text) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
            assert found == sorted(expected, reverse=backwards)
        table.get_by_role("button", name="category").click()
        assert table.locator("tbody th").first.inner_text() == "kind 00"
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


class TestEverybody:
    def test_themes_follow_the_system_and_the_button(self, report: Path, open_page: Open) -> None:
        grounds = {}
        for scheme in ("light", "dark"):
            page = open_page(report, color_scheme=scheme)
            ground = "() => getComputedStyle(document.documentElement).backgroundColor"
            before = page.evaluate(ground)
            page.get_by_role("button", name="Light theme" if scheme == "dark" else "Dark theme").click()
            grounds[scheme] = before, page.evaluate(ground)
        assert grounds["light"] == grounds["dark"][::-1]
        assert grounds["light"][0] != grounds["light"][1]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_all_text_has_enough_contrast(self, scheme: str, report: Path, open_page: Open) -> None:
        page = open_page(report, color_scheme=scheme)
        page.evaluate("() => document.querySelectorAll('details').forEach((element) => (element.open = true))")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 500
        assert min(found)[0] >= 4.5, min(found)
        assert {"DT", "STRONG", "TH", "TD", "text", "BUTTON", "LABEL", "H2"} <= {tag for _, _, tag in found}

    def test_every_control_and_picture_has_a_name(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        wanted = {"button", "slider", "combobox", "checkbox", "image", "img", "link", "region", "navigation", "table"}
        roles = [
            (node["role"]["value"], node.get("name", {}).get("value", "").strip())
            for node in tree
            if not node["ignored"] and node["role"]["value"] in wanted
        ]
        assert {"slider", "combobox", "checkbox", "button", "region", "navigation"} <= {role for role, _ in roles}
        assert not [role for role, name in roles if not name]
        assert sum(role in ("image", "img") for role, _ in roles) == 16 + 4, "canvases and plots"

    def test_nothing_is_wider_than_a_telephone(self, report: Path, open_page: Open) -> None:
        page = open_page(report, viewport={"width": 400, "height": 800})
        page.evaluate("() => document.querySelectorAll('details').forEach((element) => (element.open = true))")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 400
        page.locator("#cards button").first.click()
        assert page.evaluate("() => document.querySelector('dialog').scrollWidth") <= 400

    def test_focus_can_be_seen(self, report: Path, open_page: Open) -> None:
        """On everything that the first stops of the tabulator reach."""
        page = open_page(report)
        for _ in range(25):
            page.keyboard.press("Tab")
            outline = "() => getComputedStyle(document.activeElement)"
            assert page.evaluate(f"{outline}.outlineStyle") == "solid"
            assert page.evaluate(f"parseFloat(({outline})().outlineWidth)") >= 2

    def test_without_scripts_the_figures_are_there(self, report: Path, open_page: Open) -> None:
        page = open_page(report, java_script_enabled=False)
        assert page.get_by_text("need JavaScript").is_visible()
        assert page.locator("#tau").is_hidden()
        assert page.locator("#theme").is_hidden()
        assert page.locator(".tile").count() == 7
        assert page.locator("svg.plot").first.is_visible()
        assert page.locator("#categories tbody tr").first.is_visible()

    def test_on_paper_there_are_no_controls(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        page.emulate_media(media="print")
        assert page.locator("#tau").is_hidden()
        assert page.locator("nav").is_hidden()
        assert page.locator("#cards canvas").first.is_visible()
        assert page.locator("svg.plot").first.is_visible()

    def test_nothing_moves_for_who_does_not_want_it(self, report: Path, open_page: Open) -> None:
        page = open_page(report, reduced_motion="reduce")
        assert page.evaluate("() => getComputedStyle(document.documentElement).scrollBehavior") == "auto"


@pytest.mark.parametrize("kind", ["no scores", "large grids", "no annotations", "no samples"])
def test_other_builds_open_without_complaint(
    kind: str, document: dict[str, Any], tmp_path: Path, write_json: WriteJson, figures_of: FiguresOf, open_page: Open
) -> None:
    options: dict[str, Any] = {}
    if kind == "no scores":
        options["scores"] = False
    if kind == "large grids":
        document["images"].append({"id": 9, "file_name": "c.png", "width": 1_500, "height": 1_500})
        options |= {"patch": 1, "image_size": "native"}
    if kind == "no annotations":
        document["annotations"] = []
    build = tokenlabels.build(
        "coco", annotations=write_json(tmp_path / "a.json", document), out=tmp_path / "labels", **options
    )
    count = 0 if kind == "no samples" else 24
    page = open_page(write_report(tmp_path / "report.html", build, figures_of(build), samples=count))
    assert page.locator("#tau").is_disabled() == (kind == "no scores")
    assert page.locator("#cards > li").count() == (count and len(document["images"]))
    if kind == "no scores":
        assert "stores no scores" in page.locator("#tau-note").inner_text()
        counts = {card["id"]: int(card["foreground"]) for card in page.evaluate(PAINTED)}
        assert counts == {row["image_id"]: row["fg_count"] for row in build.table().to_pylist()}
    if kind == "large grids":
        assert "too many to be drawn" in page.locator("#cards").inner_text()
    if kind == "no samples":
        assert "made without samples" in page.locator("#shown").inner_text()


def samples_of(path: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="samples">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    samples: list[dict[str, Any]] = json.loads(found[1])["samples"]
    return samples


def test_a_semantic_build_is_filtered_by_the_categories_that_cover_patches(
    sample_root: Path, tmp_path: Path, open_page: Open
) -> None:
    root = sample_root / "VOCdevkit" / "VOC2012"
    build = tokenlabels.build("semantic", root=root, split="train", out=tmp_path / "labels")
    html = write_report(tmp_path / "report.html", build, tokenlabels.statistics(build), images=root / "JPEGImages")
    page = open_page(html)
    assert not page.locator("#show-boxes").is_visible(), "there are no boxes to show"
    assert not page.get_by_text("box of an object").is_visible()
    rows = build.table().to_pylist()
    index = next(number for number, category in enumerate(build.categories) if category.name == "triangle")
    holding = {row["image_id"] for row in rows if index in row["categories"]}
    assert holding
    assert len(holding) < len(rows)
    page.select_option("#category", str(index))
    settle(page)
    assert {card["id"] for card in page.evaluate(PAINTED)} == holding
