"""The page of results in a browser: offline, on any screen, light, dark and on paper, by keyboard and screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import CONTRASTS, Open, chromium, needs_chromium, visiting
from results import write_results

from bavit.report.finding import find
from bavit.report.page import write_results_page
from bavit.report.pictures import samples
from tokenlabels.progress import Silent

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = needs_chromium

UNFOLD = "() => document.querySelectorAll('details').forEach((element) => (element.open = true))"

LINES = """() => [...document.querySelectorAll('svg.chart')].map((drawing) => {
  const frame = drawing.getBoundingClientRect();
  return [...drawing.querySelectorAll('polyline, .part')].map((line) => {
    const box = line.getBoundingClientRect(), style = getComputedStyle(line);
    return { width: box.width, height: box.height, stroke: style.stroke, fill: style.fill,
             inside: box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1
                     && box.bottom <= frame.bottom + 1 };
  });
})"""

CUT = """() => [...document.querySelectorAll('svg.chart text, .tile *, h1, h2, h3, h4')].filter((element) => {
  const box = element.getBoundingClientRect(), svg = element.closest('svg');
  const frame = (svg ?? element.parentElement).getBoundingClientRect();
  return box.left < frame.left - 2 || box.right > frame.right + 2;
}).map((element) => element.textContent)"""

OVERLAPS = """() => [...document.querySelectorAll('svg.chart')].flatMap((drawing) => {
  const boxes = [...drawing.querySelectorAll('text')].map((text) => [text.getBoundingClientRect(), text.textContent]);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1)
    .filter(([b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
    .map(([, other]) => `${drawing.getAttribute('aria-label')}: ${one} on ${other}`));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """What it opens may neither complain nor ask for anything."""
    with visiting(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    found = find([write_results(folder / "runs")], Silent())
    return write_results_page(
        found, folder / "report.html", title="All of it", samples=samples(found.pictures, Silent())
    )


def test_every_line_and_bar_can_be_seen(report: Path, open_page: Open) -> None:
    drawings = open_page(report).evaluate(LINES)
    assert len(drawings) > 15
    for lines in drawings:
        for line in lines:
            assert line["inside"]
            assert line["width"] > 4
            assert line["stroke"] != "none" or line["fill"] != "none"
        assert not lines or any(max(line["width"], line["height"]) > 25 for line in lines)
    assert sum(map(bool, drawings)) >= len(drawings) - 1, "a comparison of methods has marks alone"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_any_screen(width: int, report: Path, open_page: Open) -> None:
    page = open_page(report, viewport={"width": width, "height": 800})
    page.evaluate(UNFOLD)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(scheme: str, report: Path, open_page: Open) -> None:
    page = open_page(report, color_scheme=scheme)
    page.evaluate(UNFOLD)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 500
    assert min(found)[0] >= 4.5, min(found)
    assert {"DT", "STRONG", "TH", "TD", "text", "H2", "H4", "SMALL"} <= {tag for _, _, tag in found}


def test_every_picture_link_and_region_has_a_name(report: Path, open_page: Open) -> None:
    page = open_page(report)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    wanted = {"image", "img", "link", "region", "navigation", "table"}
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in tree
        if not node["ignored"] and node["role"]["value"] in wanted
    ]
    assert {"image", "link", "region", "navigation", "table"} <= {role.replace("img", "image") for role, _ in roles}
    assert not [role for role, name in roles if not name]


def test_focus_can_be_seen_and_reaches_tables_and_details(report: Path, open_page: Open) -> None:
    page = open_page(report)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        active = "() => getComputedStyle(document.activeElement)"
        assert page.evaluate(f"{active}.outlineStyle") == "solid"
        assert page.evaluate(f"parseFloat(({active})().outlineWidth)") >= 2
        reached.add(page.evaluate("() => document.activeElement.tagName"))
        if {"A", "DIV", "SUMMARY"} <= reached:
            break
    assert {"A", "DIV", "SUMMARY"} <= reached


def test_without_scripts_and_on_paper_it_is_all_there(report: Path, open_page: Open) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.locator("svg.chart").first.is_visible()
    assert page.locator("#samples img").count() == 4
    page = open_page(report)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("svg.chart").first.is_visible()
    assert page.locator("table.grouped").is_visible()
