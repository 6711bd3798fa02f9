"""A body in pieces of any size, and options."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from declip.server.forms import Body, Form, parse_options, read_form
from declip.server.limits import Budget, Limits
from declip.server.problems import ProblemError

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\ntiled\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="one \xc3\xa9.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
    b"\r\n--b-not-yet\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; filename="two"; name="file"\r\n\r\n\x00\xff\r\n--b--\r\n'
)


FIELDS = ("model", "mode", "threshold", "maps")


def read(chunks: Iterable[bytes], budget: Budget | None = None, **limits: Any) -> Form:
    """The form of a body that comes in these chunks."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    body = Body(Request({"type": "http", "headers": []}, receive))
    with (budget or Budget(10**6)).claim() as claim:
        return asyncio.run(read_form(body, "multipart/form-data; boundary=b", "", Limits(**limits), claim, FIELDS))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_body_is_the_same_in_pieces_of_any_size(size: int) -> None:
    form = read(BODY[i : i + size] for i in range(0, len(BODY), size))
    assert form.fields == {"mode": "tiled"}
    assert [(file.name, file.data) for file in form.files] == [
        ("one é.png", b"\r\n--b-not-yet\r\n"),
        ("two", b"\x00\xff"),
    ]


def test_limits_hold_before_the_end() -> None:
    for limits, status in (({"files": 1}, 413), ({"request_bytes": 100}, 413)):
        with pytest.raises(ProblemError) as caught:
            read([BODY[:-10]], **limits)
        assert caught.value.status == status


def test_a_client_that_leaves_is_no_problem_but_gone() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    body = Body(Request({"type": "http", "headers": []}, receive))
    with Budget(1000).claim() as claim, pytest.raises(ClientDisconnect):
        asyncio.run(read_form(body, "multipart/form-data; boundary=b", "", Limits(), claim, FIELDS))


def test_memory_is_given_back() -> None:
    budget = Budget(len(BODY))
    for _ in range(3):
        read([BODY], budget)
        assert budget.taken == 0
    with pytest.raises(ProblemError, match="memory"):
        read([BODY + b" "], budget)
    assert budget.taken == 0


def test_the_first_model_and_its_first_mode_are_the_default() -> None:
    modes: Any = {"a": ("tiled", "whole"), "b": ("whole",)}
    options = parse_options({}, modes)
    assert (options.model, options.mode, options.threshold, options.maps) == ("a", "tiled", None, ())
    assert parse_options({"model": "b"}, modes).mode == "whole"
    assert parse_options({"maps": "mask,mask,scores", "threshold": "1"}, modes).maps == ("mask", "scores")
    with pytest.raises(ProblemError, match="b has whole"):
        parse_options({"model": "b", "mode": "tiled"}, modes)
