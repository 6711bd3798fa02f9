"""The service from outside: what is answered to whom, with which status."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import declip
from declip import serve
from declip.errors import SpecError
from declip.images.mapfiles import mask_png, scores16, scores_png, write_mask, write_scores
from declip.images.overlay import overlay, overlay_png
from declip.images.read import read_photo
from declip.localize import outputs
from declip.localize.localizer import Localizer
from declip.report import metadata, wording
from declip.results import Localization
from declip.serve import answers, schemas
from declip.spec import Calibration
from tests.serve.serving import FakeEngine, files, picture, running, until, value

KEYS = list(schemas.Row.model_fields)[:-1]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    limits = serve.Limits(request_bytes=200_000, files=3, pixels=100 * 100)
    with running([Localizer(FakeEngine()), Localizer(FakeEngine("other"))], limits) as found:
        yield found


def post(
    client: httpx.Client, *pictures: bytes | tuple[str, bytes], accept: str = "*/*", **fields: str
) -> httpx.Response:
    return client.post("/v1/localize", files=files(*pictures), data=fields, headers={"Accept": accept})


def form_of(response: httpx.Response) -> dict[str, Any]:
    """The parts of a multipart answer, by their names."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in BytesParser().parsebytes(head + response.content).get_payload()  # type: ignore[union-attr]
    }


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that a response is, with the headers of every answer."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    schemas.ProblemBody.model_validate(body)
    assert body["status"] == status
    return body


# --- rows -----------------------------------------------------------------------------------------------------------


def test_one_file_gives_the_row_of_the_command_line(client: httpx.Client, tmp_path: Path) -> None:
    data = picture()
    response = post(client, ("photo.png", data))
    assert response.status_code == 200
    (row,) = response.json()["results"]
    (tmp_path / "photo.png").write_bytes(data)
    pairs = outputs.find_pictures([tmp_path / "photo.png"])[0]
    (expected,) = outputs.localize_files(Localizer(FakeEngine()), pairs, tmp_path / "out")
    expected = json.loads(json.dumps(expected)) | {"image": "photo.png", "seconds": row["seconds"]}
    assert list(row) == KEYS
    assert row == expected
    assert 0 < row["seconds"] < 30


def test_rows_are_in_the_order_of_the_files(client: httpx.Client) -> None:
    sizes = [(10, 20), (30, 5), (7, 7)]
    rows = post(client, *(picture(i, size) for i, size in enumerate(sizes))).json()["results"]
    assert [(row["height"], row["width"]) for row in rows] == sizes
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]


def test_a_bad_file_among_good_ones_is_an_error_row(client: httpx.Client) -> None:
    response = post(client, picture(), ("b.jpg", b"no picture"), ("c.png", picture()[:300]))
    assert response.status_code == 200
    good, text, broken = response.json()["results"]
    assert "error" not in good
    assert (list(text), text["image"], text["kind"]) == (["image", "error", "kind"], "b.jpg", "format")
    assert text["error"].startswith("b.jpg: not a picture declip reads")
    assert (broken["image"], broken["kind"]) == ("c.png", "corrupt")
    schemas.Results.model_validate(response.json())


@pytest.mark.parametrize(
    ("bad", "status", "kinds"),
    [
        ([b"no picture"], 415, ["format"]),
        ([b"no picture", b"nor this"], 415, ["format", "format"]),
        ([picture()[:300]], 422, ["corrupt"]),
        ([b""], 422, ["corrupt"]),
        ([picture(size=(101, 100))], 413, ["too-large"]),
        ([picture(size=(101, 100)), b"no picture"], 422, ["too-large", "format"]),
    ],
)
def test_nothing_but_bad_files_is_a_problem(
    client: httpx.Client, bad: list[bytes], status: int, kinds: list[str]
) -> None:
    body = problem(post(client, *bad), status)
    assert [row["kind"] for row in body["errors"]] == kinds


def test_a_bomb_is_refused_by_its_header(client: httpx.Client) -> None:
    """A few bytes that say 20,000 × 20,000 pixels."""
    data = bytearray(picture())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    body = problem(post(client, bytes(data)), 413)
    assert "20000×20000" in body["errors"][0]["error"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "<script>alert(1)</script>.png",
        "a b.png",
        "名前.png",
        "'; rm -rf ~ #.png",
        ".hidden",
        "C:\\photos\\x.png",
        "n" * 3000,
    ],
)
def test_hostile_names_are_shown_as_they_are_and_used_for_nothing(client: httpx.Client, name: str) -> None:
    (row,) = post(client, (name, picture())).json()["results"]
    assert row["image"] == ("x.png" if name.startswith("C:") else name)
    response = post(client, (name, picture()), accept="application/zip")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        entries = archive.namelist()
    assert all(entry.isascii() and "/" not in entry and "\\" not in entry and len(entry) < 120 for entry in entries)
    assert entries[0].startswith("001-") and not entries[0].startswith("001-.")


# --- options --------------------------------------------------------------------------------------------------------


def test_threshold_mode_and_model(client: httpx.Client) -> None:
    data = picture(size=(40, 90))
    (row,) = post(client, data, threshold="0.25", mode="tiled", model="other").json()["results"]
    expected = Localizer(FakeEngine("other"), mode="tiled", threshold=0.25)(data)
    assert (row["model"], row["threshold"], row["score"], row["area"]) == (
        "other",
        0.25,
        expected.score,
        expected.area,
    )
    assert row["verdict"] is None  # calibrated for whole photos
    (default,) = post(client, data).json()["results"]
    assert (default["model"], default["threshold"]) == ("fake", 0.5) and default["verdict"] is not None
    assert default["score"] != row["score"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "mini"}, "fake, other"),
        ({"model": "http://example.org/m.onnx"}, "fake, other"),
        ({"mode": "half"}, "whole and tiled"),
        ({"threshold": "1.5"}, "[0, 1]"),
        ({"threshold": "nan"}, "[0, 1]"),
        ({"threshold": ""}, "[0, 1]"),
        ({"maps": "scores,heat"}, "'heat'"),
        ({"url": "http://example.org/a.png"}, "expected file, model, mode, threshold, maps"),
    ],
)
def test_wrong_options_are_422(client: httpx.Client, fields: dict[str, str], said: str) -> None:
    assert said in problem(post(client, picture(), **fields), 422)["detail"]


def test_a_model_without_a_mode_says_so() -> None:
    engine = FakeEngine(output_size=24)  # its map does not divide its input: no tiles
    engine.logits = lambda inputs: np.zeros((len(inputs["image"]), 24, 24), np.float32)  # type: ignore[method-assign]
    with running(Localizer(engine)) as client:
        assert client.get("/v1/models").json()["models"][0]["modes"] == ["whole"]
        assert "fake has whole" in problem(post(client, picture(), mode="tiled"), 422)["detail"]


# --- forms of the answer --------------------------------------------------------------------------------------------


def test_inline_maps_are_the_files_of_the_command_line(client: httpx.Client, tmp_path: Path) -> None:
    data = picture()
    (row,) = post(client, data, maps="overlay,scores,mask").json()["results"]
    result = Localizer(FakeEngine())(data)
    write_scores(tmp_path / "scores.png", result.scores)
    write_mask(tmp_path / "mask.png", result.mask)
    (tmp_path / "overlay.png").write_bytes(overlay_png(data, result))
    assert list(row["maps"]) == ["overlay", "scores", "mask"]
    for name, text in row["maps"].items():
        assert base64.b64decode(text) == (tmp_path / f"{name}.png").read_bytes(), name
    schemas.Row.model_validate(row)


def test_png_is_the_overlay_or_the_map_asked_for(client: httpx.Client) -> None:
    data = picture()
    result = Localizer(FakeEngine())(data)
    response = post(client, data, accept="image/png")
    assert (response.headers["content-type"], response.headers["declip-width"]) == ("image/png", "64")
    with Image.open(io.BytesIO(response.content)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(overlay(data, result)))
    assert post(client, data, accept="image/png", maps="mask").content == mask_png(result.mask)


def test_raw_scores_are_uint16_little_endian(client: httpx.Client) -> None:
    data = picture()
    result = Localizer(FakeEngine())(data)
    response = post(client, data, accept="application/octet-stream")
    size = (int(response.headers["declip-height"]), int(response.headers["declip-width"]))
    values = np.frombuffer(response.content, "<u2").reshape(size)
    assert np.array_equal(values, scores16(result.scores))
    assert np.abs(values / 65535 - result.scores).max() <= 1 / 131070 + 1e-7


def test_the_form_for_browsers_has_rows_and_raw_scores(client: httpx.Client) -> None:
    data = picture()
    response = post(client, data, b"no picture", picture(1), accept="multipart/form-data", maps="mask")
    parts = form_of(response)
    assert list(parts) == ["results", "scores-0", "mask-0", "words-0", "scores-2", "mask-2", "words-2"]
    assert [row.get("kind") for row in json.loads(parts["results"])["results"]] == [None, "format", None]
    result = Localizer(FakeEngine())(data)
    assert parts["scores-0"] == scores16(result.scores).tobytes()
    assert parts["mask-0"] == mask_png(result.mask)
    row, words = json.loads(parts["results"])["results"][0], json.loads(parts["words-0"])
    calibration = FakeEngine().spec.calibration
    said = wording.explain(result, calibration)
    assert words["title"] == said.title and words["summary"] == said.summary
    assert row["score"] is not None and words["limits"] == list(wording.LIMITS)
    assert words["steps"] == [{"word": "manipulated", "rate": 0.01}, {"word": "inconclusive", "rate": 0.05}]


def test_the_photo_that_scores_lie_over_is_the_one_that_was_examined(client: httpx.Client) -> None:
    """Upright, in formats that browsers do not read, too, and with nothing in it that turns it again."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:20, :30] = (250, 120, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, format="TIFF", exif=exif)
    data = stream.getvalue()
    examined = read_photo(data).pixels
    assert examined.shape == (60, 40, 3)
    parts = form_of(post(client, data, accept="multipart/form-data", maps="photo"))
    assert list(parts) == ["results", "scores-0", "photo-0", "words-0"]
    (row,) = post(client, data, maps="photo,mask").json()["results"]
    schemas.Row.model_validate(row)
    assert list(row["maps"]) == ["photo", "mask"] and base64.b64decode(row["maps"]["photo"]) == parts["photo-0"]
    with zipfile.ZipFile(io.BytesIO(post(client, data, accept="application/zip", maps="photo").content)) as archive:
        assert archive.namelist() == ["001-0.png.photo.jpg", "results.json"]
        assert archive.read("001-0.png.photo.jpg") == parts["photo-0"]
    with Image.open(io.BytesIO(parts["photo-0"])) as shown:
        assert (shown.format, shown.mode, dict(shown.getexif()), shown.info.get("exif")) == ("JPEG", "RGB", {}, None)
        assert np.abs(np.asarray(shown).astype(int) - examined).mean() < 1
    assert "is a JPEG" in problem(post(client, data, accept="image/png", maps="photo"), 422)["detail"]


def test_a_photo_too_large_for_a_browser_is_scaled(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_PHOTO_SIDE", 32)
    parts = form_of(post(client, picture(size=(48, 64)), accept="multipart/form-data", maps="photo"))
    with Image.open(io.BytesIO(parts["photo-0"])) as shown:
        assert shown.size == (32, 24)
    assert len(parts["scores-0"]) == 48 * 64 * 2


def test_rows_have_what_the_file_says_of_itself(client: httpx.Client) -> None:
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 9, 9)).save(stream, "JPEG", xmp=f"<x a:DigitalSourceType='{source}'/>".encode())
    parts = form_of(post(client, stream.getvalue(), picture(), accept="multipart/form-data"))
    first, second = json.loads(parts["results"])["results"]
    assert first["provenance"]["headline"] == (
        "The file itself says: created by a generator (trainedAlgorithmicMedia, in XMP, unsigned: anybody can write "
        "this)."
    )
    assert second["provenance"]["headline"] is None


def test_words_say_where_there_is_no_verdict(client: httpx.Client) -> None:
    parts = form_of(post(client, picture(), accept="multipart/form-data", mode="tiled"))
    words = json.loads(parts["words-0"])
    assert (words["tone"], words["title"], words["steps"]) == ("none", "No verdict", [])
    assert "calibrated in whole mode" in words["summary"] and "ran in tiled mode" in words["summary"]


def test_zip_has_rows_and_maps(client: httpx.Client) -> None:
    data = picture()
    response = post(client, ("a.png", data), ("b", b"no picture"), accept="application/zip")
    assert response.headers["content-disposition"] == 'attachment; filename="declip.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        first, second = json.loads(archive.read("results.json"))["results"]
        assert first["maps"] == {name: f"001-a.png.{name}.png" for name in ("scores", "mask", "overlay")}
        assert second["kind"] == "format"
        assert sorted(archive.namelist()) == sorted([*first["maps"].values(), "results.json"])
        scores = archive.read("001-a.png.scores.png")
    assert scores == scores_png(Localizer(FakeEngine())(data).scores)


def test_one_map_is_of_one_picture(client: httpx.Client) -> None:
    for accept in ("image/png", "application/octet-stream"):
        assert "application/zip" in problem(post(client, picture(), picture(), accept=accept), 422)["detail"]
    problem(post(client, picture(), accept="image/png", maps="mask,scores"), 422)
    problem(post(client, picture(), accept="application/octet-stream", maps="mask"), 422)
    problem(post(client, b"no picture", accept="image/png"), 415)


def test_what_cannot_be_made_is_406(client: httpx.Client) -> None:
    assert "image/png" in problem(post(client, picture(), accept="image/webp, text/html"), 406)["detail"]


# --- metadata and report --------------------------------------------------------------------------------------------


def ask(client: httpx.Client, path: str, *pictures: bytes | tuple[str, bytes], **fields: str) -> httpx.Response:
    return client.post(path, files=files(*pictures), data=fields)


def camera_jpeg() -> bytes:
    """A JPEG with EXIF, a description, a GPS position and a small picture of itself, on its side."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0131], exif[0x010E], exif[0x0112] = "<img src=x onerror=alert(1)>", "Editor 1", "at home", 6
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 30.0, 0.0)
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture())).save(stream, format="JPEG", quality=80, exif=exif)
    return stream.getvalue()


def test_metadata_are_those_of_the_report_and_tell_no_place(client: httpx.Client) -> None:
    data = camera_jpeg()
    response = ask(client, "/v1/metadata", ("a.jpg", data))
    body = response.json()
    schemas.MetadataBody.model_validate(body)
    found = metadata.read(read_photo(data))
    assert found is not None
    assert body == {"image": "a.jpg", "preview": None, **json.loads(json.dumps(found.to_dict()))}
    assert {"name": "Make", "value": "<img src=x onerror=alert(1)>"} in body["exif"]
    assert (body["has_position"], body["position"], body["free_text"], body["orientation"]) == (True, [], [], 6)
    assert body["jpeg"]["quality"] == 80 and "at home" not in response.text and "52" not in body["withheld"]
    asked = ask(client, "/v1/metadata", data, position="true").json()
    assert {"name": "ImageDescription", "value": "at home"} in asked["free_text"]
    assert {"name": "GPSLatitudeRef", "value": "N"} in asked["position"]


def test_the_preview_in_a_file_is_shown() -> None:
    small = np.full((60, 400, 3), (200, 30, 30), np.uint8)
    found = metadata.read(read_photo(picture()))
    assert found is not None
    body = json.loads(answers.metadata_answer("a", dataclasses.replace(found, thumbnail=small)).body)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["preview"]))))
    assert shown.shape == (48, 320, 3) and body["thumbnail"] == [60, 400]
    assert np.abs(shown.astype(int) - (200, 30, 30)).max() <= 4


def test_the_report_is_the_page_of_the_command_line(client: httpx.Client) -> None:
    response = ask(client, "/v1/report", ("<img src=x onerror=alert(1)>", picture()), model="other", threshold="0.25")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "&lt;img src=x onerror=alert(1)&gt;" in response.text and "<img src=x" not in response.text
    row = post(client, picture(), model="other", threshold="0.25").json()["results"][0]
    assert f"{row['score']:.3f}" in response.text and "flagged from 0.250" in response.text
    assert "declip report" in response.text and value(client, "declip_held_bytes") == 0
    assert "52" not in ask(client, "/v1/report", camera_jpeg()).text.partition("<h3>Place</h3>")[2][:200]
    assert "GPSLatitudeRef" in ask(client, "/v1/report", camera_jpeg(), position="true").text


def test_the_report_flags_what_localize_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model's own rule, and by a threshold of the request's own."""
    from declip.report import report

    reports: list[dict[str, Any]] = []

    def examine(*arguments: Any, **options: Any) -> report.Report:
        found = original(*arguments, **options)
        reports.append(found.to_dict())
        return found

    original = report.examine
    monkeypatch.setattr(report, "examine", examine)
    engine = FakeEngine()
    assert engine.spec.calibration is not None
    compared = ((1.0,) * 199, (), ())
    calibration = dataclasses.replace(engine.spec.calibration, untouched=compared, photos=(199, 0, 0))
    engine.spec = dataclasses.replace(engine.spec, calibration=calibration)
    pixels = np.full((64, 64, 3), 20, np.uint8)
    pixels[8:24, 8:24] = 250  # stronger than any untouched photo has: 7.7 × √(1/16)
    pixels[40:56, 40:56] = 150  # above the threshold, and weaker: 1.4 × √(1/16)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    data, counts = stream.getvalue(), []
    with running(Localizer(engine)) as client:
        for fields in ({}, {"threshold": "0.5"}, {"threshold": "0.4"}):
            (row,) = post(client, data, **fields).json()["results"]
            assert ask(client, "/v1/report", data, **fields).status_code == 200
            facts = json.loads(json.dumps(reports.pop()))
            shared = set(row) - {"seconds", "image"}
            assert {name: facts[name] for name in shared} == {name: row[name] for name in shared}
            counts.append((row["verdict"], len(row["regions"])))
    assert counts == [("manipulated", 1), (None, 2), (None, 2)]


@pytest.mark.parametrize("path", ["/v1/metadata", "/v1/report"])
def test_metadata_and_report_have_the_limits_of_localize(client: httpx.Client, path: str) -> None:
    body = problem(ask(client, path, ("b.jpg", b"no picture")), 415)
    assert body["errors"][0]["kind"] == "format" and body["detail"].startswith("b.jpg: not a picture")
    problem(ask(client, path, picture()[:300]), 422)
    problem(ask(client, path, picture(size=(101, 100))), 413)
    problem(ask(client, path, bytes(250_000)), 413)
    problem(ask(client, path, picture(), picture()), 413)
    problem(ask(client, path, picture(), position="perhaps"), 422)
    problem(ask(client, path, picture(), maps="mask"), 422)
    problem(client.post(path, data={"position": "true"}), 415)
    foreign = {"Origin": "https://evil.example"}
    problem(client.post(path, files=files(picture()), headers=foreign), 403)
    with running(Localizer(FakeEngine()), token="word") as closed:
        problem(ask(closed, path, picture()), 401)


def test_a_report_that_nobody_waits_for_is_stopped() -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client:
        engine.hold()
        with pytest.raises(httpx.TimeoutException):
            client.post("/v1/report", files=files(picture()), timeout=0.5)
        assert engine.entered.wait(30)
        until(lambda: value(client, "declip_clients_left_total") == 1)
        before = len(engine.batches)
        engine.go.set()
        assert ask(client, "/v1/report", picture(1)).status_code == 200
    assert len(engine.batches) == before + 1 + 7  # of the first report one, which had begun; of the second all


def test_a_report_does_not_hold_up_pictures_and_metadata() -> None:
    engine, other = FakeEngine(), FakeEngine("other")
    with running([Localizer(engine), Localizer(other)]) as client, ThreadPoolExecutor(1) as pool:
        engine.hold()
        job = pool.submit(ask, client, "/v1/report", picture())
        assert engine.entered.wait(30)
        assert post(client, picture(), model="other").status_code == 200
        assert ask(client, "/v1/metadata", picture()).status_code == 200
        engine.go.set()
        assert job.result().status_code == 200


# --- bodies ---------------------------------------------------------------------------------------------------------

BOUNDARY = {"Content-Type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "image/png"}, picture(), 415),
        ({}, b"x", 415),
        ({"Content-Type": "multipart/form-data"}, HEAD, 400),
        (BOUNDARY, b"garbage", 400),
        (BOUNDARY, b"", 400),
        (BOUNDARY, HEAD + picture(), 400),  # breaks off
        (BOUNDARY, b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n", 400),
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\nwhole\r\n--b--\r\n', 422),
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n', 422),
        (BOUNDARY, HEAD.replace(b'"file"', b'"photo"') + b"x\r\n--b--\r\n", 422),
        (BOUNDARY, HEAD.replace(b"a.png", b"") + b"\r\n--b--\r\n", 422),  # an empty input
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\n' + b"x" * 2000 + b"\r\n--b--", 422),
        (BOUNDARY, 2 * b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\nwhole\r\n' + b"--b--", 422),
        (BOUNDARY, 4 * (HEAD + b"x\r\n") + b"--b--\r\n", 413),
        (BOUNDARY, HEAD + bytes(200_001) + b"\r\n--b--\r\n", 413),
    ],
)
def test_bodies_that_are_no_pictures(client: httpx.Client, headers: dict[str, str], body: bytes, status: int) -> None:
    problem(client.post("/v1/localize", content=body, headers=headers), status)


def test_a_body_without_a_length_is_measured_as_it_comes(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield HEAD
        for _ in range(300):
            yield bytes(1000)

    problem(client.post("/v1/localize", content=chunks(), headers=BOUNDARY), 413)
    assert client.get("/healthz").status_code == 200


def test_a_slow_body_is_408() -> None:
    with running(Localizer(FakeEngine()), serve.Limits(upload_seconds=0.2)) as client:

        def chunks() -> Iterator[bytes]:
            yield HEAD
            time.sleep(0.6)
            yield b"x"

        response = client.post("/v1/localize", content=chunks(), headers=BOUNDARY)
        assert "0.2 s" in problem(response, 408)["detail"]
        assert response.headers["connection"] == "close"
        assert value(client, "declip_held_bytes") == 0


def test_uploads_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("SpooledTemporaryFile", "NamedTemporaryFile", "TemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    with running(Localizer(FakeEngine())) as client:
        large = picture(size=(1000, 1200))
        assert len(large) > 2_000_000
        assert post(client, large).json()["results"][0]["height"] == 1000


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for() -> None:
    with running(Localizer(FakeEngine()), token="päss word") as client:
        for path in ("/v1/models", "/metrics"):
            assert problem(client.get(path), 401)["title"] == "Unauthorized"
        for given in (
            "",
            "Bearer",
            "Bearer x",
            "Basic cMOkc3Mgd29yZA==",
            "Bearer päss wor".encode(),
            "Bearer pass word",
        ):
            response = client.post("/v1/localize", files=files(picture()), headers={"Authorization": given})
            problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer päss word".encode()}
        assert client.post("/v1/localize", files=files(picture()), headers=right).status_code == 200
        assert client.get("/v1/models", headers=right).status_code == 200
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_only_known_names_and_own_pages() -> None:
    with running(Localizer(FakeEngine()), hosts=serve.LOOPBACK) as client:
        assert client.get("/healthz").status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "[::1"):
            assert host in problem(client.get("/healthz", headers={"Host": host}), 400)["detail"] or host == "[::1"
        assert client.get("/healthz", headers={"Host": "LOCALHOST:8000"}).status_code == 200
        own = str(client.base_url).rstrip("/")
        for headers, status in (
            ({"Origin": own}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://[::1"}, 403),
            # What counts is where a browser says it comes from: with no-referrer it may send "null" for its own page.
            ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": own, "Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
        ):
            response = client.post("/v1/localize", files=files(picture()), headers=headers)
            assert response.status_code == status, headers
            assert "access-control-allow-origin" not in response.headers
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/docs", headers=link).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/docs", "/nowhere", "/static/docs.css", "/openapi.json"])
def test_security_headers_are_on_every_answer(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


# --- the other paths ------------------------------------------------------------------------------------------------


def test_models_and_limits(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    schemas.Models.model_validate(body)
    assert [(row["name"], row["default"]) for row in body["models"]] == [("fake", True), ("other", False)]
    assert body["models"][0]["modes"] == ["whole", "tiled"]
    assert body["models"][0]["calibrated_mode"] == "whole"
    assert [row["untouched"] for row in body["models"][0]["verdicts"]] == [199] * 3
    assert body["models"][0]["verdicts"][0]["steps"][0] == {"word": "manipulated", "rate": 0.01}
    assert body["limits"] == {"request_bytes": 200_000, "files": 3, "pixels": 10_000, "seconds": 120}


def test_a_model_that_is_not_calibrated_names_no_rates() -> None:
    with running(Localizer(FakeEngine(calibration=Calibration()))) as client:
        (row,) = client.get("/v1/models").json()["models"]
        assert row["calibrated_mode"] is None and [each["steps"] for each in row["verdicts"]] == [[], [], []]


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert problem(client.get("/nowhere/"), 404)["detail"] == "there is no /nowhere/"
    for path in ("/v1/localize", "/healthz", "/docs", "/v1/models"):
        for response in (client.get(f"{path}/"), client.post(f"{path}//")):
            assert f"; {path} has no slash at its end" in problem(response, 404)["detail"]
    response = client.get("/v1/localize")
    assert problem(response, 405)["detail"] == "/v1/localize takes OPTIONS, POST, and this is GET"
    assert response.headers["allow"] == "OPTIONS, POST"
    assert client.delete("/healthz").headers["allow"] == "GET, HEAD, OPTIONS"


GETS = ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/docs", "/openapi.json", "/static/page.css")


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    full, head = client.get(path), client.head(path)
    assert full.status_code == head.status_code == 200 and full.content and not head.content
    same = {name: text for name, text in full.headers.items() if name not in ("date", "last-modified", "etag")}
    if path == "/metrics":  # whose length is that of other numbers
        assert int(head.headers["content-length"]) > 1000
        del same["content-length"]
    assert {name: head.headers[name] for name in same} == same
    # On one connection: a body after all would be read as the beginning of the next answer.
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as raw:
        ask = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n"
        raw.sendall(f"{ask}\r\n{ask}Connection: close\r\n\r\n".encode())
        with raw.makefile("rb") as answers_:
            text = answers_.read().decode()
    assert text.count("HTTP/1.1 200 OK") == 2 and text.endswith("\r\n\r\n") and text.count("\r\n\r\n") == 2


def test_head_is_asked_for_a_token_as_get_is() -> None:
    with running(Localizer(FakeEngine()), token="word") as closed:
        for path in ("/v1/models", "/metrics"):
            assert closed.head(path).status_code == 401
            assert closed.head(path, headers={"Authorization": "Bearer word"}).status_code == 200
        assert closed.head("/healthz").status_code == 200


def test_head_of_what_is_not_there(client: httpx.Client) -> None:
    for path, status in (("/nowhere", 404), ("/v1/localize", 405)):
        head = client.head(path)
        assert (head.status_code, head.content) == (status, b"")
        assert head.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [*GETS, "/v1/localize", "/v1/metadata", "/v1/report"])
def test_options_tell_the_methods_and_allow_no_other_site_anything(client: httpx.Client, path: str) -> None:
    response = client.options(path)
    methods = "OPTIONS, POST" if path in ("/v1/localize", "/v1/metadata", "/v1/report") else "GET, HEAD, OPTIONS"
    assert (response.status_code, response.headers["allow"], response.content) == (204, methods, b"")
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = client.options(path, headers=preflight)
    assert response.status_code == 403 and not [name for name in response.headers if name.startswith("access-control")]
    problem(client.options("/nowhere"), 404)


def test_the_page_of_the_docs_needs_no_script_and_no_network(client: httpx.Client) -> None:
    text = client.get("/docs").text
    assert "POST /v1/localize" in text and "threshold" in text
    assert "<script" not in text and "style=" not in text and "http" not in text.replace("/v1/localize", "")
    assert client.get("/static/docs.css").headers["content-type"].startswith("text/css")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/"):
        assert client.get(path).status_code == 404


def test_metrics_count_requests_and_pictures() -> None:
    with running(Localizer(FakeEngine())) as client:
        post(client, picture(), b"no picture")
        post(client, b"no picture")
        client.get("/made/up")
        assert value(client, 'declip_requests_total{path="/v1/localize",status="200"}') == 1
        assert value(client, 'declip_requests_total{path="/v1/localize",status="415"}') == 1
        assert value(client, 'declip_requests_total{path="other",status="404"}') == 1
        assert value(client, 'declip_pictures_total{outcome="localized"}') == 1
        assert value(client, 'declip_pictures_total{outcome="format"}') == 2
        assert value(client, "declip_requests_in_flight") == 0
        assert value(client, "declip_held_bytes") == 0
        assert value(client, "declip_answer_seconds_count") == 2


def test_two_models_of_one_name() -> None:
    with pytest.raises(SpecError, match="called fake"):
        serve.create_app([Localizer(FakeEngine()), Localizer(FakeEngine())])
    with pytest.raises(SpecError, match="no model"):
        serve.create_app([])
    with pytest.raises(SpecError, match="empty"):
        serve.create_app(Localizer(FakeEngine()), token="")


def test_it_is_reached_as_the_readme_says() -> None:
    assert declip.serve.create_app is serve.create_app


# --- many at once ---------------------------------------------------------------------------------------------------


def test_what_waits_is_computed_together_and_gives_the_same_bits() -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client, ThreadPoolExecutor(9) as pool:
        engine.hold()
        first = pool.submit(post, client, picture(0), accept="application/octet-stream")
        assert engine.entered.wait(30)
        others = [pool.submit(post, client, picture(i), accept="application/octet-stream") for i in range(1, 9)]
        until(lambda: value(client, "declip_queue_pictures") == 8)
        engine.go.set()
        contents = [job.result().content for job in (first, *others)]
    assert engine.batches[1:] == [1, 8]  # the first is the try at the start
    alone = Localizer(FakeEngine())
    for i, content in enumerate(contents):
        assert content == scores16(alone(picture(i)).scores).tobytes()


def test_a_network_on_onnx_runtime_gives_the_same_bits_in_a_batch(tiny_model: tuple[Path, Path]) -> None:
    localizer = declip.load(tiny_model[1], mode="whole", threads=1)
    data = [picture(i, (70 + i, 90)) for i in range(8)]
    with running(localizer, workers=1) as client, ThreadPoolExecutor(8) as pool:
        send = functools.partial(post, client, accept="application/octet-stream")
        contents = [response.content for response in pool.map(send, data)]
        together = value(client, "declip_batch_pictures_sum") / value(client, "declip_batch_pictures_count")
        (row,) = post(client, data[0], mode="tiled").json()["results"]
    assert together >= 1  # how many depends on the machine; eight at once are below
    eight = list(localizer.map(data, batch_size=8))
    for content, each, result in zip(contents, data, eight, strict=True):
        assert isinstance(result, Localization)
        assert content == scores16(localizer(each).scores).tobytes()
        assert np.array_equal(result.scores, localizer(each).scores)
    assert row["score"] == Localizer(localizer.engine, mode="tiled")(data[0]).score


def test_a_bad_file_in_a_batch_harms_no_other_client() -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client, ThreadPoolExecutor(4) as pool:
        engine.hold()
        first = pool.submit(post, client, picture())
        assert engine.entered.wait(30)
        jobs = [pool.submit(post, client, data) for data in (picture(1), b"no picture", picture(2))]
        until(lambda: value(client, "declip_queue_pictures") == 3)
        engine.go.set()
        assert [job.result().status_code for job in (first, *jobs)] == [200, 200, 415, 200]
    assert engine.batches[1:] == [1, 2]


def test_a_full_queue_is_503_and_says_when_to_come_back() -> None:
    engine = FakeEngine()
    with running(Localizer(engine), serve.Limits(queue=2)) as client, ThreadPoolExecutor(3) as pool:
        engine.hold()
        first = pool.submit(post, client, picture())
        assert engine.entered.wait(30)
        second = pool.submit(post, client, picture(), picture())
        until(lambda: value(client, "declip_queue_pictures") == 2)
        response = post(client, picture())
        assert "2 pictures wait" in problem(response, 503)["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 60
        engine.go.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_too_many_requests_of_one_client_are_429_and_of_all_503() -> None:
    engine = FakeEngine()
    for limits, status in (
        (serve.Limits(client_requests=1), 429),
        (serve.Limits(requests=1), 503),
        (serve.Limits(held_bytes=len(picture()) + 500), 503),
    ):
        with running(Localizer(engine), limits) as client, ThreadPoolExecutor(1) as pool:
            engine.hold()
            first = pool.submit(post, client, picture())
            assert engine.entered.wait(30)
            response = post(client, picture())
            problem(response, status)
            assert int(response.headers["retry-after"]) >= 1
            assert client.get("/healthz").status_code == 200
            engine.go.set()
            assert first.result().status_code == 200
            assert post(client, picture()).status_code == 200
        engine.go.set()


def test_an_answer_that_takes_too_long_is_503() -> None:
    engine = FakeEngine()
    with running(Localizer(engine), serve.Limits(seconds=0.3)) as client:
        engine.hold()
        response = post(client, picture(), picture())
        assert "0.3 s" in problem(response, 503)["detail"]
        assert "retry-after" in response.headers
        engine.go.set()
        until(lambda: value(client, "declip_requests_in_flight") == 0)
        assert post(client, picture()).status_code == 200


def test_a_client_that_leaves_is_not_computed_for() -> None:
    engine = FakeEngine(mode="tiled")
    with running(Localizer(engine), serve.Limits(batch_size=1)) as client:
        engine.batches.clear()
        engine.hold()
        address = (client.base_url.host, client.base_url.port or 80)
        request = client.build_request("POST", "/v1/localize", files=files(picture(size=(32, 320)), picture(1)))
        with socket.create_connection(address) as leaver:
            leaver.sendall(head(request) + request.read())
            assert engine.entered.wait(30)
        until(lambda: value(client, "declip_clients_left_total") == 1)
        engine.go.set()
        assert post(client, picture(size=(32, 32))).status_code == 200
        until(lambda: value(client, "declip_requests_in_flight") == 0)
        assert value(client, "declip_held_bytes") == 0
    # Of the long picture the one tile that was begun, of its second nothing, and the last client's one tile.
    assert engine.batches == [1, 1]


def test_a_client_that_leaves_gives_its_places_in_the_queue_back() -> None:
    """And its pictures are no longer in memory, for which it has stopped to be counted."""
    engine = FakeEngine()
    with running(Localizer(engine), serve.Limits(queue=2, batch_size=1)) as client, ThreadPoolExecutor(2) as pool:
        engine.hold()
        first = pool.submit(post, client, picture())
        assert engine.entered.wait(30)
        address = (client.base_url.host, client.base_url.port or 80)
        request = client.build_request("POST", "/v1/localize", files=files(picture(1), picture(2)))
        with socket.create_connection(address) as leaver:
            leaver.sendall(head(request) + request.read())
            until(lambda: value(client, "declip_queue_pictures") == 2)
            assert post(client, picture()).status_code == 503
        until(lambda: value(client, "declip_clients_left_total") == 1)
        assert value(client, "declip_queue_pictures") == 0
        second = pool.submit(post, client, picture(3), picture(4))
        until(lambda: value(client, "declip_queue_pictures") == 2)
        engine.go.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert len(engine.batches) == 1 + 1 + 2  # the first try at the start, and what somebody waited for


def test_a_client_that_leaves_while_it_sends_frees_its_memory() -> None:
    with running(Localizer(FakeEngine())) as client:
        address = (client.base_url.host, client.base_url.port or 80)
        request = client.build_request("POST", "/v1/localize", files=files(picture(size=(300, 300))))
        with socket.create_connection(address) as leaver:
            leaver.sendall(head(request) + request.read()[:100_000])
            until(lambda: value(client, "declip_held_bytes") > 0)
        until(lambda: value(client, "declip_clients_left_total") == 1)
        assert value(client, "declip_held_bytes") == 0


def head(request: httpx.Request) -> bytes:
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {text}" for name, text in request.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_several_clients_with_good_and_bad_files() -> None:
    data = [picture(i, (20 + i, 30)) for i in range(8)]
    expected = [Localizer(FakeEngine())(each).score for each in data]
    wrong: list[object] = []
    with running(Localizer(FakeEngine()), workers=2) as client:

        def many(number: int) -> None:
            for i in range(10):
                which = (number + i) % 8
                response = post(client, data[which], b"no picture")
                if response.json()["results"][0]["score"] != expected[which]:
                    wrong.append(response.text)
                if post(client, data[which][:200]).status_code != 422:
                    wrong.append(which)

        threads = [threading.Thread(target=many, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert value(client, 'declip_pictures_total{outcome="localized"}') == 60
        assert value(client, 'declip_pictures_total{outcome="corrupt"}') == 60


# --- what the service itself gets wrong -----------------------------------------------------------------------------


def test_a_model_that_fails_costs_its_picture_and_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client:
        engine.error = RuntimeError("secret path")
        response = post(client, picture())
        assert "secret" not in response.text
        assert problem(response, 500)["errors"][0]["kind"] == "internal"
        assert "secret path" in caplog.text
        engine.error = MemoryError()
        problem(post(client, picture()), 503)
        problem(client.post("/v1/report", files=files(picture())), 503)
        engine.error = None
        assert post(client, picture()).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_an_error_of_the_service_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from declip.serve import answers

    with running(Localizer(FakeEngine())) as client:
        monkeypatch.setattr(answers, "answer", lambda *_: 1 / 0)
        response = post(client, picture())
        problem(response, 500)
        assert "nosniff" in response.headers["x-content-type-options"]


# --- keep -----------------------------------------------------------------------------------------------------------


def test_keep_keeps_the_file_its_maps_and_its_row(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    data = picture()
    with running(Localizer(FakeEngine()), keep=folder) as client:
        (row,) = post(client, ("../evil.png", data)).json()["results"]
        problem(post(client, b"no picture"), 415)
        post(client, ("../evil.png", data))
    kept = sorted(folder.iterdir())
    assert len(kept) == 2  # each on its own, nothing is overwritten
    assert sorted(path.name for path in kept[0].iterdir()) == [
        "mask.png",
        "overlay.png",
        "photo",
        "result.json",
        "scores.png",
    ]
    assert (kept[0] / "photo").read_bytes() == data
    assert json.loads((kept[0] / "result.json").read_text())["score"] == row["score"]
    assert (kept[0] / "scores.png").read_bytes() == scores_png(Localizer(FakeEngine())(data).scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_what_cannot_be_kept_is_not_answered(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with running(Localizer(FakeEngine()), keep=folder) as client:
        folder.rmdir()
        folder.write_text("")  # as a disk that is full or gone
        body = problem(post(client, picture()), 503)
        assert body["errors"][0]["kind"] == "write"
    with pytest.raises(FileExistsError):
        serve.create_app(Localizer(FakeEngine()), keep=folder)
