"""Debian's Chromium through Playwright, and what the tests of the page do with it again and again."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# A photo may take long to be examined where other things run beside.
PATIENCE = 120_000

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not CHROMIUM.exists():
    pytest.skip(f"there is no {CHROMIUM}", allow_module_level=True)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield found
        found.close()


class Visit:
    """A page that is looked at; `wrong` collects what must not happen."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("console", self._on_console)
        self.page.on("request", lambda request: self.requests.append(request.url))
        # Playwright takes file choosers over while somebody listens, but does not wait until the browser knows: one
        # that opens at once is lost where the machine is busy. So somebody listens from the beginning.
        self.page.on("filechooser", lambda _: None)
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.url = url

    def _on_console(self, message: Any) -> None:
        # A file that is refused, and a token that is asked for, are answers of this kind.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(f"console: {message.text}")

    def give(self, *files: tuple[str, bytes] | Path) -> None:
        """Choose files."""
        pairs = [(file.name, file.read_bytes()) if isinstance(file, Path) else file for file in files]
        given = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in pairs]
        self.page.set_input_files("#files", given)

    def drop(self, name: str, data: bytes) -> None:
        """Drop a file on the page, as from a folder."""
        self.page.evaluate(
            """([name, bytes]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], name));
              for (const kind of ["dragover", "drop"]) {
                const given = {dataTransfer: transfer, bubbles: true, cancelable: true};
                document.body.dispatchEvent(new DragEvent(kind, given));
              }
            }""",
            [name, list(data)],
        )

    def done(self) -> None:
        """Wait until the photo that is chosen is examined and shown."""
        self.page.wait_for_selector("body[data-state=done]")
        self.until("document.querySelector('#area').textContent && !document.querySelector('.map').hidden")

    def until(self, true: str) -> None:
        """Wait until an expression is true. (Playwright's own way evaluates it inside the page, which forbids that.)"""
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(true):
            assert time.monotonic() < end, f"it did not happen: {true}"
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).strip()

    def set_threshold(self, value: float) -> None:
        """Move the slider, as a hand does: its event comes with any number."""
        self.page.evaluate(
            """(value) => {
              const slider = document.querySelector("#threshold");
              slider.value = String(value);
              slider.dispatchEvent(new Event("input", {bubbles: true}));
            }""",
            value,
        )

    def settled(self) -> list[list[Any]]:
        """The regions once they are those of the threshold that is set: (bbox, share, score) as they are shown."""
        self.until(
            "Math.abs(Number(document.querySelector('#parts').dataset.threshold) -"
            " Number(document.querySelector('#threshold').value)) < 1e-9"
        )
        rows = self.page.eval_on_selector_all(
            "#regions button", "all => all.map(one => [...one.children].map(part => part.textContent))"
        )
        return [list(row) for row in rows]

    def saved(self, selector: str) -> tuple[str, bytes]:
        """What a button gives to keep: (name, content)."""
        with self.page.expect_download() as waiting:
            self.page.click(selector)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def at(self, across: float, down: float, pane: int = 1) -> str:
        """What is read under the pointer at a share of a pane's sides."""
        box = self.page.locator(".pane").nth(pane).bounding_box()
        self.page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        return self.text("#reading")


@contextlib.contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """A page that is closed at the end, when nothing may have gone wrong and nothing come from elsewhere."""
    visit = Visit(browser, url, **options)
    yield visit
    assert visit.wrong == []
    assert not [found for found in visit.requests if not found.startswith((visit.url, "blob:", "data:"))]
    visit.context.close()


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    """The pixels of a picture file as they are stored."""
    return np.asarray(Image.open(io.BytesIO(data)))
