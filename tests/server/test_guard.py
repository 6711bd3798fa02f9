"""Answers in pieces, and clients that do not take them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from declip.server import guard
from declip.server.guard import Guard
from declip.server.monitor import Monitor

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
