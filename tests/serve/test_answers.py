"""Which form an answer has."""

from __future__ import annotations

import pytest

from declip.serve.answers import accepted
from declip.serve.problems import ProblemError, status_of


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("application/*", "application/json"),
        ("image/*", "image/png"),
        ("image/png, application/json;q=0.5", "image/png"),
        ("image/png;q=0.2, application/json;q=0.5", "application/json"),
        ("APPLICATION/ZIP", "application/zip"),
        ("application/json;q=0, */*", "image/png"),
        ("text/csv, */*;q=0.01", "application/json"),
    ],
)
def test_the_form_that_is_liked_best(header: str, kind: str) -> None:
    assert accepted(header) == kind


@pytest.mark.parametrize(
    "header", ["text/html", "image/jpeg", "*/*;q=0", "application/json;q=nonsense", "application/octet-stream", "x"]
)
def test_none_of_ours(header: str) -> None:
    with pytest.raises(ProblemError) as caught:
        accepted(header)
    assert caught.value.status == 406


def test_the_status_of_kinds() -> None:
    assert status_of(["format", "format"]) == 415
    assert status_of(["too-large"]) == 413
    assert status_of(["format", "too-large"]) == status_of(["corrupt"]) == status_of(["input", "format"]) == 422
    assert status_of(["write", "format"]) == 503
    assert status_of(["internal", "write"]) == 500
