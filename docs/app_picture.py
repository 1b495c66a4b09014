"""python docs/app_picture.py [FILE]

Takes docs/images/app.png: starts the demo, lets a real browser pick a clip and look at it, and photographs the page.
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
PICTURE = ROOT / "docs" / "images" / "app.png"
LARGEST_BYTES = 300_000
EXAMPLE = 0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Whatever has another name than this machine's address is not found: the page has to do without a network.
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


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


def main(path: Path) -> None:
    from playwright.sync_api import sync_playwright

    browser_path = find_browser()
    if browser_path is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    with running_demo() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_default_timeout(300_000)  # a busy machine gets its picture too
        page.goto(address)
        page.locator("#examples button").nth(EXAMPLE).click()
        page.locator("#go").click()
        page.locator("#result").wait_for()
        # A still that shows something, always the same one.
        page.evaluate(
            "async () => { const film = document.getElementById('film'); film.controls = false; film.pause();"
            " film.currentTime = film.duration / 2; await new Promise((done) => film.onseeked = done); }"
        )
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)  # for the button to lose its hover colour
        page.screenshot(path=path, full_page=True)
        browser.close()
    _shrink(path)


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
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
