"""Take the pictures of the web page that docs/page.md and the README show: docs/images/page-*.png.

    python tools/make_screenshots.py

Starts the service with the embedded model on a free port, and looks at it with Debian's Chromium. Needs
`pip install 'declip[serve,dev]'` and `apt-get install chromium`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images"
PHOTOS = ROOT / "examples" / "photos"
FORGED, UNTOUCHED = PHOTOS / "astronaut-navier-stokes.jpg", PHOTOS / "coffee-untouched.jpg"
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
MOST_BYTES = 200_000
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
PATIENCE = 300_000  # ms; a photo may take long where other things run beside


@contextlib.contextmanager
def service() -> Iterator[str]:
    """The address of `declip serve` while it runs."""
    command = [sys.executable, "-m", "declip", "serve", "--port", "0", "--no-access-log"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        try:
            yield running.stderr.readline().split()[-1]
        finally:
            running.terminate()


def examined(page: Page, *photos: Path) -> None:
    page.set_input_files("#files", [str(photo) for photo in photos])
    page.wait_for_selector(f"#photos li[data-state=done]:nth-child({len(photos)})")
    page.wait_for_selector("body[data-state=done] .map:visible")
    page.wait_for_timeout(2000)


def take(page: Page, name: str, scale: float = 1.0) -> None:
    """Write a screenshot with few colours: the page has few, and a photo is here a sight, not evidence."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    if scale != 1:
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    for colours in (256, 192, 128, 96, 64):
        stream = io.BytesIO()
        few = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        few.save(stream, "PNG", optimize=True)
        if stream.tell() <= MOST_BYTES:
            break
    (OUT / f"page-{name}.png").write_bytes(stream.getvalue())
    print(f"page-{name}.png  {stream.tell():,} bytes, {colours} colours")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with service() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)

        def visit(**options: Any) -> Page:
            page = browser.new_page(**options)
            page.set_default_timeout(PATIENCE)
            page.goto(url)
            page.wait_for_selector("#mode option", state="attached")
            return page

        page = visit(viewport=DESK)
        examined(page, FORGED, UNTOUCHED, PHOTOS / "rocket-telea.jpg")
        take(page, "forged")
        page.click("#photos .photo >> nth=1")
        page.wait_for_timeout(2000)
        take(page, "untouched")
        page = visit(viewport=DESK, color_scheme="dark")
        examined(page, PHOTOS / "coffee-biharmonic.jpg", PHOTOS / "rocket-telea.jpg")
        page.check("[name=layout][value=swipe]")
        page.select_option("#colours", "heat")
        page.wait_for_timeout(2000)
        take(page, "dark")
        page = visit(viewport=PHONE, device_scale_factor=2)
        examined(page, FORGED)
        take(page, "phone", 0.75)
        browser.close()


if __name__ == "__main__":
    main()
