"""The page in a real Chromium, cut off from every other machine: uploads, examples, the camera, errors, two widths."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from tests.inference.app.conftest import listening

PATIENCE = 120_000  # milliseconds, of a busy machine
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


@pytest.fixture(params=[1280, 390])
def page(request, browser, demo_server):
    """The page, opened at the width of a desktop or of a phone; at its end nothing was asked of another machine,
    nothing went wrong unseen, and nothing sticks out at the side."""
    address, _ = demo_server
    opened = browser.new_page(viewport={"width": request.param, "height": 844})
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.set_default_timeout(PATIENCE)
    opened.goto(address)
    opened.locator("#pruner option").first.wait_for(state="attached")
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") == request.param
    opened.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert wrong == []


def answered(page):
    """Waits for the result, which is in view then."""
    page.locator("#stage[data-state='']:has(#result:not([hidden])), #stage[data-state=failed]").wait_for()
    assert page.locator("#stage").get_attribute("data-state") == "", page.locator("#gain").inner_text()
    page.wait_for_timeout(500)  # for the page to end scrolling
    box = page.locator("#verdict").bounding_box()
    assert 0 <= box["y"] < 200
    return page.locator("#verdict").inner_text()


def test_an_upload_and_the_slider(page, demo_clip):
    page.set_input_files("#file", demo_clip)
    assert page.locator("#film").get_attribute("src").startswith("blob:")  # it is shown at once
    # The weights know synthetic actions only: no class of theirs is in the headline.
    assert answered(page) == "It read 50 % of this video, but has no word for what happens in it"
    assert page.locator(".answer h3").all_inner_texts() == ["Reads everything", "Reads 50 %"]
    assert page.locator(".answer dd").all_inner_texts()[::3] == ["4", "2"]
    assert "synthetic actions only" in page.locator("#caution").inner_text()
    sent: list[str] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.url))
    page.select_option("#pruner", "center")
    assert page.locator("#about").inner_text() == "The middle."
    page.locator("h3", has_text="Reads 50 %").wait_for()
    page.locator("#keep").focus()
    for _ in range(5):  # with the keyboard, from 50 to 25 %
        page.keyboard.press("ArrowLeft")
    page.locator("h3", has_text="Reads 25 %").wait_for()
    answered(page)
    assert "pruner=center pruner.keep_ratio=0.25" in page.locator("#command").inner_text()
    assert sent and all("again=" in url for url in sent)  # the video is not sent again
    with page.expect_download() as film:
        page.locator("#get-film").click()
    assert film.value.suggested_filename == "my clip_read.mp4"
    page.locator("#film").scroll_into_view_if_needed()  # Chromium plays what is seen
    deadline = time.monotonic() + 20
    while page.evaluate("document.getElementById('film').currentTime") == 0:  # it plays
        assert time.monotonic() < deadline, page.evaluate("document.getElementById('film').error?.message")
        page.wait_for_timeout(50)
    page.locator("#see-clip").click()
    assert page.locator("#film").get_attribute("src").startswith("blob:")


def test_an_example(page):
    page.locator("#examples button", has_text="right").click()
    assert "of the video" in answered(page)
    assert "Synthetic example of “right”" in page.locator("#source").inner_text()
    assert "wrong, it is “right”" in page.locator("#gain").inner_text()
    assert page.locator("b", has_text="swim").count() == 0  # the name of a class is text, not markup


def test_the_camera(page):
    page.locator("#open-camera").click()
    page.locator("#record").click()
    page.locator("#camera").wait_for(state="hidden")
    answered(page)
    assert page.locator("#source").inner_text().startswith("camera.")


def test_weights_in_one_click(page, browser, demo_server, monkeypatch):
    page.locator("#model-card summary", has_text="Train on my folder").click()
    page.locator("#folder").fill("it's mine")
    assert "dataset.root='it'\\''s mine'" in page.locator("#train").inner_text()
    page.locator("#k400").click()
    page.locator("#k400-said", has_text="it was not downloaded (no network)").wait_for()


def test_a_long_video_and_errors(page, tmp_path, write_video):
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "large.mp4").write_bytes(bytes(300_000))
    reasons = {
        tmp_path / "notes.mp4": "notes.mp4 cannot be read as a video",
        tmp_path / "large.mp4": "large.mp4 is 0.3 MB large: at most 0.2 MB are taken.",
        write_video(tmp_path / "long.mp4", 13, 2): "long.mp4 is 6 s long; at most 5 s are taken",
    }
    for path, reason in reasons.items():
        page.set_input_files("#file", path)
        page.locator("#gain", has_text=reason).wait_for()
        assert page.locator("#stage").get_attribute("data-state") == "failed"
    page.locator("#examples button").first.click()  # and it goes on
    answered(page)


def test_windows_of_a_long_video(browser, looker, write_video, tmp_path):
    real = {"backbone": "tiny", "device": "cpu", "classes": ["a"], "synthetic": False}
    with listening(looker, write_video(tmp_path / "long.mp4", 100), said=real) as (address, _):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.set_input_files("#file", tmp_path / "long.mp4")
        assert "of 4 parts, from 50 % of the video" in answered(page)
        assert page.locator("#offers").is_hidden()
        last = page.locator("#segments tr").last
        assert last.locator("td").all_inner_texts()[1] == "0:04.0"
        last.locator("button").focus()
        page.keyboard.press("Enter")
        page.close()
