"""The files of the page, without a browser: offline, nothing inline, licence, weight, what they share with Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from declip import serve
from declip.images.overlay import AMBER, RED
from declip.localize.localizer import Localizer
from declip.report import pictures
from tests.serve.serving import FakeEngine, running

STATIC = Path(serve.__file__).parent / "static"
ROOT = Path(__file__).resolve().parents[2]
OWN = sorted(path for path in STATIC.glob("*") if path.suffix in (".html", ".css", ".js", ".svg"))
MODULES = sorted(STATIC.glob("*.js"))
MOST_BYTES = 1_500_000


class Tags(HTMLParser):
    """The tags of the page with their attributes, and what stands in its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with running(Localizer(FakeEngine())) as found:
        yield found


def parsed(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


def constant(text: str, name: str) -> list[list[int]]:
    """A list of colours in map.js."""
    match = re.search(rf"\b{name}(?: =|:) (\[[^;]*?\])[;,]\n", text)
    assert match is not None, name
    rows = re.findall(r"\[(\d+), (\d+), (\d+)\]", match[1])
    return [[int(value) for value in row] for row in rows]


def test_the_page_is_at_the_root_and_loads_only_what_is_there(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    loaded = [attrs.get("src") or attrs.get("href") or "" for tag, attrs in parsed(response.text).tags if tag != "a"]
    paths = {path for path in loaded if path and not path.startswith("#")}
    assert len(paths) >= 4 and all(path.startswith("static/") for path in paths)
    size = len(response.content)
    for path in {*paths, *(f"static/{module.name}" for module in MODULES)}:
        found = client.get(f"/{path}")
        assert found.status_code == 200, path
        if path.endswith(".js"):  # or browsers refuse it as a module, under nosniff
            assert found.headers["content-type"].startswith("text/javascript")
        size += len(found.content)
    assert 300_000 < size <= MOST_BYTES


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"']*", text.replace("// ", "")))
    assert urls <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text.replace("new URL(", "")


def test_nothing_is_inline(client: TestClient) -> None:
    page = parsed(client.get("/").text)
    assert page.inline == []
    for tag, attrs in page.tags:
        assert "style" not in attrs and tag not in ("style", "base", "iframe", "object", "embed"), tag
        assert not [name for name in attrs if name.startswith("on")], tag
        assert tag != "script" or attrs.get("src")
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy and "script-src 'self';" in policy and "style-src 'self';" in policy


@pytest.mark.parametrize(
    "path", [*OWN, Path(serve.__file__).parent / "templates" / "docs.html"], ids=lambda path: path.name
)
def test_addresses_are_relative_so_that_a_proxy_may_put_it_below_a_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"""["'`(]/(?:static|v1|docs|openapi|healthz)\b""", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_text_becomes_markup(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert sink not in text
    for imported in re.findall(r'from "([^"]+)"', text):
        assert (STATIC / imported).is_file(), imported


def test_every_field_has_a_name() -> None:
    page = parsed((STATIC / "index.html").read_text(encoding="utf-8"))
    labelled = {attrs["for"] for tag, attrs in page.tags if tag == "label" and "for" in attrs}
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for key in ("aria-labelledby", "aria-describedby", "for"):
            assert set((attrs.get(key) or "").split()) <= set(ids)
    assert {"threshold", "opacity", "colours", "token-value"} <= labelled


def test_the_viewer_has_its_licence_and_is_in_the_notice() -> None:
    version = re.search(
        r"openseadragon (\d+\.\d+\.\d+)", (STATIC / "vendor" / "openseadragon.min.js").read_text()[:100]
    )
    assert version is not None
    assert "OpenSeadragon contributors" in (STATIC / "vendor" / "openseadragon.LICENSE.txt").read_text()
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert f"OpenSeadragon {version[1]}" in notice and "BSD-3-Clause" in notice
    assert {path.name for path in (STATIC / "vendor").iterdir()} == {
        "openseadragon.min.js",
        "openseadragon.LICENSE.txt",
    }


def test_colours_are_those_of_python() -> None:
    text = (STATIC / "map.js").read_text(encoding="utf-8")
    assert constant(text, "heat") == [list(colour) for colour in pictures.COLOURS]
    assert f"AMBER = {list(AMBER)};" in text and f"RED = {list(RED)};" in text
