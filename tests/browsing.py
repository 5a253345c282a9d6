"""A headless Chromium for tests of pages: what it opens may neither complain nor ask for anything.

Tests are skipped without Chromium and playwright, unless TOKENLABELS_REQUIRE_CHROMIUM=1 says that they must be there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

REQUIRED = os.environ.get("TOKENLABELS_REQUIRE_CHROMIUM") == "1"
if not REQUIRED:
    pytest.importorskip("playwright.sync_api", reason="needs playwright, of the group dev")

from playwright.sync_api import sync_playwright  # noqa: E402  not before it is known to be there

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for found in map(shutil.which, NAMES) if found), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="needs Chromium or Chrome")

Open: TypeAlias = Callable[..., "Page"]

CONTRASTS = """() => {
  const numbers = (text) => text.match(/[0-9.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((value, i) => value * a + under[i] * (1 - a));
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    return over(numbers(getComputedStyle(element).backgroundColor), ground(element.parentElement));
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === 3);
    const words = texts.map((node) => node.data.trim()).join('');
    if (!words || !element.checkVisibility() || element.closest('script, style, .quiet, .skip, option')) continue;
    const style = getComputedStyle(element), under = ground(element);
    const ink = over(numbers(element.namespaceURI.endsWith('svg') ? style.fill : style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), words.slice(0, 40), element.tagName]);
  }
  return found;
}"""
"""Contrast, text and tag of every element that shows text."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def visiting(browser: Browser) -> Iterator[Open]:
    """`visit(path, **context options)`; at the end no page may have complained or asked for anything."""
    faults: list[str] = []
    contexts = []

    def visit(path: Path, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                faults.append(f"request: {request.url[:100]}")
                if request.url.partition("#")[0] != path.as_uri() and not request.url.startswith("data:")
                else None
            ),
        )
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            settle(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not faults


def settle(page: Page) -> None:
    """Wait until pictures are decoded and canvases painted."""
    page.wait_for_load_state("load")
    page.wait_for_timeout(50)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
