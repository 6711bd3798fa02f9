"""Ray on this machine alone: what is set before it is imported."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from declip.batch import local_ray
from declip.errors import MissingExtraError

CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
NAMES = (CLUSTER, "RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[ray\]'"):
        local_ray.prepare(here=True)


def test_nothing_is_sent_and_here_nothing_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    local_ray.prepare(here=False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and CLUSTER not in os.environ
    assert not local_ray.is_closed() and caplog.text == ""
    local_ray.prepare(here=True)  # too late for what was imported with open ports
    assert "Ray was imported before" in caplog.text and local_ray.is_closed()
    caplog.clear()
    local_ray.prepare(here=True)
    assert caplog.text == ""


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setenv(CLUSTER, "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    local_ray.prepare(here=True)
    assert not local_ray.is_closed() and os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
