"""The documents say what is so: paths exist, links lead somewhere, snippets and commands are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from declip.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELL = ("sh", "bash", "console")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BRANCH = re.compile(r"^((?:│   |    )*)[├└]── (\S+(?: \S+)*)", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, arguments) of every `declip …` line in the documents' shell blocks."""
    for page in PAGES:
        for block in blocks(page, *SHELL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] in ("declip", ".venv/bin/declip"):
                    words = words[: words.index(">")] if ">" in words else words
                    yield page.name, words[1:]


def test_the_readme_shows_both_commands() -> None:
    shown = "".join(blocks(README, *SHELL))
    assert re.search(r"^make demo\b", shown, re.MULTILINE) and re.search(r"^make test\b", shown, re.MULTILINE)
    assert "docs/images/demo.png" in README.read_text(encoding="utf-8")


def test_every_make_target_that_is_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        shown = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(shown) <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert not [link for link in links if not (page.parent / link.partition("#")[0]).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("arguments", [pytest.param(found, id=f"{page}-{found[0]}") for page, found in commands()])
def test_commands_parse(arguments: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    with group.make_context("declip", list(arguments)) as context:
        name, verb, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        if "--help" not in rest:
            verb.make_context(name, rest, parent=context).close()
