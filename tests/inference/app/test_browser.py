"""The page in a real Chromium, cut off from every other machine: upload, pick, errors."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def picture():
    """docs/app_picture.py, which knows how to find a browser and to cut it off."""
    spec = importlib.util.spec_from_file_location("app_picture", ROOT / "docs" / "app_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(picture):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [dev])")
    path = picture.find_browser()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(picture.BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=picture.ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def page(browser, demo_server):
    """The page, opened; at its end nothing was asked of another machine, and nothing went wrong unseen."""
    address, _ = demo_server
    opened = browser.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(address)
    opened.locator("#pruner option").first.wait_for(state="attached")
    yield opened
    opened.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert wrong == []


def test_upload_of_a_video(page, demo_clip):
    assert page.locator("#go").is_disabled()
    assert "Pick a clip" in page.locator("#empty").inner_text()
    page.set_input_files("#file", demo_clip)
    assert page.locator("#chosen").inner_text() == "my clip.mp4"
    page.select_option("#pruner", "center")
    assert page.locator("#about").inner_text() == "The middle."
    page.locator("#keep").fill("25")
    assert page.locator("#ratio").inner_text() == "25 %"
    page.locator("#go").click()
    page.locator("#result").wait_for()
    assert page.locator("#tiles dd").first.inner_text().split() == ["1", "of", "4"]
    assert page.locator("#dense li").count() == page.locator("#pruned li").count() == 5
    assert "said" not in page.locator("#verdict").inner_text()
    page.locator("#film").scroll_into_view_if_needed()  # Chromium plays what is seen
    deadline = time.monotonic() + 20
    while page.evaluate("document.getElementById('film').currentTime") == 0:  # it plays
        assert time.monotonic() < deadline, page.evaluate("document.getElementById('film').error?.message")
        page.wait_for_timeout(50)
    assert page.locator("b", has_text="swim").count() == 0  # the name of a class is text, not markup


def test_pick_a_clip(page):
    page.locator("#examples button", has_text="right").click()
    page.locator("#go").click()
    page.locator("#result").wait_for()
    assert "an example of “right”" in page.locator("#source").inner_text()
    assert "synthetic actions only" in page.locator("#caution").inner_text()


def test_errors_are_said(page, tmp_path, write_video):
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "large.mp4").write_bytes(bytes(300_000))
    reasons = {
        tmp_path / "notes.mp4": "notes.mp4 cannot be read as a video",
        tmp_path / "large.mp4": "large.mp4 is 0.3 MB large: at most 0.2 MB are taken.",
        write_video(tmp_path / "long.mp4", 13, 2): "long.mp4 is 6 s long; at most 5 s are taken",
    }
    for path, reason in reasons.items():
        page.set_input_files("#file", path)
        page.locator("#go").click()
        page.locator("#problem").wait_for()
        page.locator("#reason", has_text=reason).wait_for()
    page.locator("#examples button").first.click()  # and it goes on
    page.locator("#go").click()
    page.locator("#result").wait_for()
