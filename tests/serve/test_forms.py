"""A body in pieces of any size, its limits, and options."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from declip.serve.forms import FIELDS, Form, discard, parse_options, read_form
from declip.serve.limits import Budget, Claim, Limits
from declip.serve.problems import ProblemError

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\ntiled\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="one \xc3\xa9.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
    b"\r\n--b-not-yet\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; filename="two"; name="file"\r\n\r\n\x00\xff\r\n--b--\r\n'
)


BOUNDARY = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
FIELD = b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\n'


def request_of(chunks: Iterable[bytes], kind: str = BOUNDARY, pause: float = 0, **headers: str) -> Request:
    """A request whose body comes in these chunks; after the last one its client is gone."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return Request({"type": "http", "headers": [(b"content-type", kind.encode()), *raw]}, receive)


def read(
    chunks: Iterable[bytes], budget: Budget | None = None, *, kind: str = BOUNDARY, pause: float = 0, **limits: Any
) -> Form:
    """The form of a body that comes in these chunks."""
    request = request_of(chunks, kind, pause)
    with contextlib.closing(Claim(budget or Budget(10**6))) as claim:
        return asyncio.run(read_form(request, Limits(**limits), claim, FIELDS["localize"]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_body_is_the_same_in_pieces_of_any_size(size: int) -> None:
    form = read(BODY[i : i + size] for i in range(0, len(BODY), size))
    assert form.fields == {"mode": "tiled"}
    assert [(file.name, file.data) for file in form.files] == [
        ("one é.png", b"\r\n--b-not-yet\r\n"),
        ("two", b"\x00\xff"),
    ]


def named(header: str | bytes) -> str:
    """The name of the one file whose part has this Content-Disposition."""
    raw = header if isinstance(header, bytes) else header.encode()
    (file,) = read([b"--b\r\nContent-Disposition: " + raw + b"\r\n\r\nx\r\n--b--\r\n"]).files
    assert file.data == b"x"
    return file.name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        # The extended form, as urllib3 1 and .NET send it; .NET adds a plain name in a form of e-mail.
        ("filename*=utf-8''%D1%84%D0%BE%D1%82%D0%BE.jpg", "фото.jpg"),
        ("filename=\"=?utf-8?B?0YTQvtGC0L4uanBn?=\"; filename*=utf-8''%D1%84%D0%BE%D1%82%D0%BE.jpg", "фото.jpg"),
        ("filename*=UTF-8'en'a%20b%22.jpg; filename=\"a.jpg\"", 'a b".jpg'),
        ("filename*=iso-8859-1''%A3.jpg", "£.jpg"),
        ("filename*=windows-1251''%F4%EE%F2%EE.jpg", "фото.jpg"),
        ("filename*=\"utf-8''%D1%84.jpg\"", "ф.jpg"),
        ("filename*=%D1%84.jpg", "ф.jpg"),
        # No charset, none that there is, none that is of text: UTF-8.
        ("filename*=''%D1%84.jpg", "ф.jpg"),
        ("filename*=klingon''%D1%84.jpg", "ф.jpg"),
        ("filename*=base64''%D1%84.jpg", "ф.jpg"),
        ("filename*=utf-8''%FFa%ZZ", "\ufffda%ZZ"),
        # Plain forms: raw UTF-8, escaped quotes and backslashes, without quotes, in capitals, paths of Windows.
        ('filename="фото.jpg"', "фото.jpg"),
        (r'filename="a\"b\\c.jpg"', 'a"b\\c.jpg'),
        ('filename="a;b=c, d.jpg"', "a;b=c, d.jpg"),
        ("filename=a.jpg", "a.jpg"),
        ('FileName = "a b.jpg"', "a b.jpg"),
        (r'filename="C:\photos\a.jpg"', "a.jpg"),
        (r'filename="C:\\photos\\a.jpg"', "a.jpg"),
        (r'filename="\\server\photos\a.jpg"', "a.jpg"),
        ("filename*=utf-8''C%3A%5Cphotos%5Ca.jpg", "a.jpg"),
        (r'filename="a\b.jpg"', r"a\b.jpg"),
    ],
)
def test_a_file_has_its_name_however_the_client_writes_it(parameters: str, name: str) -> None:
    assert named(f'form-data; name="file"; {parameters}') == name
    assert named(f"Form-Data;{parameters};name=file") == name


@given(st.lists(st.sampled_from([*"; =\"\\*'%", "filename", "utf-8", "%D1", "idna", "0", "\xff", "\0"]), max_size=12))
def test_no_header_of_a_part_is_an_error_of_the_service(tokens: list[str]) -> None:
    try:
        named(f"form-data; name=file; {''.join(tokens)}".encode("latin-1"))
    except ProblemError as problem:
        assert problem.status in (400, 422)


def test_a_header_of_a_part_is_not_endless() -> None:
    assert len(named('form-data; name="file"; filename="' + "n" * 3900 + '"')) == 3900
    for size in (4100, 100_000):
        with pytest.raises(ProblemError, match=r"header|Header") as caught:
            named('form-data; name="file"; filename="' + "n" * size + '"')
        assert caught.value.status == 400


def test_a_boundary_may_be_quoted_and_a_body_begin_and_end_with_empty_lines() -> None:
    for kind in ('multipart/form-data; boundary="b"', "Multipart/Form-Data; charset=utf-8; boundary=b"):
        assert read([b"\r\n" + BODY + b"\r\n"], kind=kind).fields == {"mode": "tiled"}


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    [
        ({"files": 1}, [BODY[:-10]], 413),
        ({"request_bytes": 100}, [BODY[:-10]], 413),
        ({"request_bytes": 2000}, [FILE, *[bytes(1000)] * 300], 413),
        ({}, [b"garbage"], 400),
        ({}, [b""], 400),
        ({}, [FILE + b"it breaks off"], 400),
        ({}, [b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n"], 400),
        ({}, [FIELD + b"whole\r\n--b--\r\n"], 422),  # no file
        ({}, [FILE.replace(b'; filename="a.png"', b"") + b"x\r\n--b--\r\n"], 422),
        ({}, [FILE.replace(b'"file"', b'"photo"') + b"x\r\n--b--\r\n"], 422),
        ({}, [FILE.replace(b"a.png", b"") + b"\r\n--b--\r\n"], 422),  # an empty input
        ({}, [FIELD + b"x" * 2000 + b"\r\n--b--"], 422),
        ({}, [2 * (FIELD + b"whole\r\n") + b"--b--"], 422),
    ],
)
def test_bodies_that_are_no_pictures_are_refused_before_their_end(
    limits: dict[str, int], body: list[bytes], status: int
) -> None:
    with pytest.raises(ProblemError) as caught:
        read(body, **limits)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [("", 415), ("image/png", 415), ("application/x-www-form-urlencoded", 415), ("multipart/form-data", 400)],
)
def test_other_types_are_refused(kind: str, status: int) -> None:
    with pytest.raises(ProblemError) as caught:
        read([BODY], kind=kind)
    assert caught.value.status == status


def test_a_slow_body_is_408() -> None:
    with pytest.raises(ProblemError, match=r"within 0\.05 s") as caught:
        read([FILE, b"x"], pause=0.04, upload_seconds=0.05)
    assert (caught.value.status, caught.value.headers) == (408, {"Connection": "close"})


def test_a_client_that_leaves_is_no_problem_but_gone() -> None:
    with pytest.raises(ClientDisconnect):
        read([])


@pytest.mark.parametrize(("headers", "left"), [({}, 0), ({"expect": "100-continue"}, 2)])
def test_the_rest_of_a_refused_body_is_read_unless_the_client_asked_first(headers: dict[str, str], left: int) -> None:
    chunks = [b"a", b"b"]
    request = request_of([], **headers)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(), "more_body": bool(chunks)}

    request._receive = receive
    asyncio.run(discard(request))
    assert len(chunks) == left


def test_nothing_is_spooled_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size: Starlette's own parser would write what is larger than 1 MB."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file on the disk")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    data = bytes(30_000_000)
    (file,) = read(
        [FILE, *[data[i : i + 1_000_000] for i in range(0, len(data), 1_000_000)], b"\r\n--b--\r\n"], Budget(10**8)
    ).files
    assert file.data == data


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
