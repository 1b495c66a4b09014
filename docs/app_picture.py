"""python docs/app_picture.py [FOLDER]

Takes docs/images/app.png and app_phone.png: starts the demo, lets a real browser pick a clip, and photographs the page.
Needs pip install "video_papr[app,dev]" and chromium. To be run again when new weights are bundled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PICTURES = {"app.png": (1280, 1200), "app_phone.png": (390, 1060)}  # width and height of the window
LARGEST_BYTES = 150_000
EXAMPLE = 0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Chromium's own camera, which shows a test picture.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
# Whatever has another name than this machine's address is not found: the page has to do without a network.
ARGUMENTS = ["--no-sandbox", *CAMERA, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def running_demo(*words: str) -> Iterator[str]:
    """Starts the command on a free port, and gives its address."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "video_papr.cli.demo", "port=0", f"output_dir={out}", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+", server.stdout.readline())
                if found is None:
                    raise SystemExit("the demo did not start; its error is above")
                yield found.group()
            finally:
                server.terminate()


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    browser_path = find_browser()
    if browser_path is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    with running_demo() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        for name, (width, height) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(300_000)  # a busy machine gets its picture too
            page.goto(address)
            page.locator("#examples button").nth(EXAMPLE).click()
            page.locator("#result").wait_for()
            # A still that shows something, always the same one.
            page.evaluate(
                "async () => { const film = document.getElementById('film'); film.controls = false; film.pause();"
                " if (!film.duration) await new Promise((done) => film.onloadedmetadata = done);"
                " film.currentTime = film.duration / 2; await new Promise((done) => film.onseeked = done); }"
            )
            page.mouse.move(0, 0)
            page.wait_for_timeout(600)  # for the page to end scrolling
            page.screenshot(path=folder / name)
            page.close()
            _shrink(folder / name)
        browser.close()


def _shrink(path: Path) -> None:
    """Fewer colours where the picture is too large for a repository."""
    from PIL import Image

    for colors in (256, 128, 64):
        if path.stat().st_size < LARGEST_BYTES:
            return
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(colors)
        small.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
