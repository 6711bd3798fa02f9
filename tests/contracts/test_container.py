"""The container's files agree with the package: what can be known without building the image."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from declip import serve
from declip.cli import main as cli
from declip.localize.localizer import Localizer
from tests.serve.serving import FakeEngine, on_a_port

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(word, the rest) of every instruction of the Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def last_stage() -> dict[str, str]:
    """The last of each instruction after the last FROM."""
    found: dict[str, str] = {}
    for word, rest in instructions():
        found = {} if word == "FROM" else {**found, word: rest}
    return found


def copied() -> set[str]:
    """What the first stage takes from the repository."""
    taken = [rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    return {source for *sources, _ in taken for source in sources}


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def parameters(words: list[str]) -> dict[str, Any]:
    """What `declip` makes of a command line; SystemExit or an exception of click's if it does not know an option."""
    group = typer.main.get_command(cli.app)
    assert words[0] == "declip"
    with group.make_context("declip", words[1:]) as context:
        name, verb, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        with verb.make_context(name, rest, parent=context) as inner:
            assert name == "serve"
            return dict(inner.params)


def test_what_is_copied_is_what_the_wheel_needs_and_is_let_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"pyproject.toml", "src", project["readme"], *project["license-files"]}
    assert copied() == needed
    assert not [name for name in needed if not (ROOT / name).exists()]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == needed


def test_it_installs_the_core_and_the_service_alone() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    runs = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert re.findall(r"\[([\w,]+)\]", runs) == ["serve"] and "serve" in extras
    assert "torch" not in runs and "apt-get" not in runs


def test_both_stages_have_one_python_that_declip_takes() -> None:
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    (base,) = bases
    found = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert found is not None and int(found[1]) >= 11


def test_it_runs_as_nobody_in_particular() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last_stage()["USER"])


def test_its_command_is_one_of_the_cli() -> None:
    found = parameters(json.loads(last_stage()["ENTRYPOINT"]))
    assert (found["host"], found["offline"]) == ("0.0.0.0", True)
    assert str(found["port"]) == last_stage()["EXPOSE"]


def test_the_health_check_tells_a_service_from_none() -> None:
    kind, _, command = last_stage()["HEALTHCHECK"].partition("CMD ")
    assert "--interval" in kind and ":8000/healthz" in command
    with on_a_port(Localizer(FakeEngine())) as url:
        at = command.replace(":8000", f":{urlsplit(url).port}")
        python, *arguments = json.loads(at)
        assert python == "python"
        assert subprocess.run([sys.executable, *arguments], check=False).returncode == 0
    gone = subprocess.run([sys.executable, *arguments], check=False, capture_output=True)
    assert gone.returncode == 1


def test_compose_keeps_it_in_bounds() -> None:
    (service,) = compose()["services"].values()
    assert service["build"] == "." and service["read_only"] is True
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"].keys() == {"DECLIP_TOKEN"}
    assert service["environment"]["DECLIP_TOKEN"].startswith("${DECLIP_TOKEN:?")  # without one it does not start
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


def test_compose_waits_for_accepted_work_and_has_the_memory_for_it() -> None:
    (service,) = compose()["services"].values()
    assert int(service["stop_grace_period"].removesuffix("s")) > serve.Limits().drain_seconds + 3 + 10
    found = parameters([*json.loads(last_stage()["ENTRYPOINT"]), *service["command"]])
    documented = re.search(r"`mini` about (\d+) bytes per pixel", (ROOT / "docs/serve.md").read_text(encoding="utf-8"))
    assert documented is not None
    needed = found["max_megapixels"] * int(documented[1]) + found["max_memory"] + 500  # megabytes; the last: models
    assert needed < int(service["mem_limit"].removesuffix("g")) * 1000


def test_the_commands_of_the_dockerfile_are_safe_ones() -> None:
    head = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^#\s+(docker run .*)$", head, re.MULTILINE)
    words = shlex.split(line)
    assert "--read-only" in words and "127.0.0.1:8000:8000" in words
    assert int(words[words.index("--stop-timeout") + 1]) > serve.Limits().drain_seconds + 3 + 10
