"""Answers in pieces, and clients that do not take them."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest

from declip.serve import guard
from declip.serve.guard import Guard
from declip.serve.monitor import Monitor

SCOPE = {"type": "http", "method": "GET", "path": "/x", "headers": []}


def answering(body: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[guard.STACK].callback(lambda: ended.append(len(taken)))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=9")]})
        await send({"type": "http.response.body", "body": body})

    return app


taken: list[Any] = []
ended: list[int] = []


async def send(message: Any) -> None:
    taken.append(message)


async def receive() -> Any:
    raise AssertionError("nothing is read")


@pytest.fixture(autouse=True)
def afresh() -> None:
    taken.clear()
    ended.clear()


@pytest.mark.parametrize("size", [0, 1, guard._PIECE, guard._PIECE + 1, 3 * guard._PIECE, 3 * guard._PIECE + 7])
def test_a_large_body_is_sent_in_pieces(size: int) -> None:
    body = bytes(i % 251 for i in range(size))
    asyncio.run(Guard(answering(body), Monitor(), None, ())(dict(SCOPE), receive, send))
    head, *pieces = taken
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert len(pieces) == max(1, -(-size // guard._PIECE))
    assert ended == [len(taken)]  # once, and after the last piece
    headers = dict(head["headers"])
    assert headers[b"cache-control"] == b"max-age=9"  # what an answer says itself stays
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_requests_are_logged_in_one_line_each_whatever_their_path(caplog: pytest.LogCaptureFixture) -> None:
    """Without a query; nothing in it begins another line, or tells a terminal what to do."""
    path = '/a"b\n{"status": 200}\r\x1b[2Jé\u2028' + "n" * 500
    scope = dict(SCOPE) | {"method": "PUT", "path": path, "query_string": b"secret", "client": ("192.0.2.7", 4000)}
    with caplog.at_level("INFO", guard.ACCESS):
        asyncio.run(Guard(answering(b"x"), Monitor(), None, ())(scope, receive, send))
        asyncio.run(Guard(answering(b"x"), Monitor(), None, ())(dict(SCOPE) | {"method": "HEAD"}, receive, send))
    first, second = (record.getMessage() for record in caplog.records if record.name == guard.ACCESS)
    assert first.isascii() and first.isprintable() and "secret" not in first
    row = json.loads(first)
    assert list(row) == ["time", "client", "method", "path", "status", "ms"]
    assert (row["client"], row["method"], row["status"]) == ("192.0.2.7", "PUT", 200)
    assert row["path"] == path[:200] and 0 <= row["ms"] < 60_000
    assert datetime.fromisoformat(row["time"]).tzinfo is not None
    assert (json.loads(second)["client"], json.loads(second)["method"]) == ("", "HEAD")
    caplog.clear()
    with caplog.at_level("WARNING", guard.ACCESS):
        asyncio.run(Guard(answering(b"x"), Monitor(), None, ())(dict(SCOPE), receive, send))
    assert not caplog.records


def test_head_has_the_headers_of_get_and_no_body() -> None:
    for method, bodies in (("GET", [b"abc"]), ("HEAD", [b""])):
        taken.clear()
        scope = dict(SCOPE) | {"method": method}
        asyncio.run(Guard(answering(b"abc"), Monitor(), None, ())(scope, receive, send))
        assert [piece["body"] for piece in taken[1:]] == bodies and scope["method"] == method


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    async def deaf(message: Any) -> None:
        taken.append(message)
        if len(taken) > 2:
            await asyncio.sleep(60)

    monkeypatch.setattr(guard, "_STALL_SECONDS", 0.1)
    asyncio.run(Guard(answering(bytes(5 * guard._PIECE)), Monitor(), None, ())(dict(SCOPE), receive, deaf))
    assert len(taken) == 3
    assert len(ended) == 1  # its memory and its place are free
    assert "cut off" in caplog.text
