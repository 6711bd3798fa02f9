"""The service from outside: what is answered to whom, with which status."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import declip
from declip import serve
from declip.errors import SpecError
from declip.images.mapfiles import mask_png, scores_png
from declip.images.overlay import overlay
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.report import metadata, wording
from declip.serve import answers, schemas
from declip.spec import Calibration
from tests.serve.serving import FakeEngine, files, picture, running, value

KEYS = list(schemas.Row.model_fields)[:-2]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    limits = serve.Limits(request_bytes=200_000, files=3, pixels=100 * 100)
    with running([Localizer(FakeEngine()), Localizer(FakeEngine("other"))], limits) as found:
        yield found


def post(client: TestClient, *pictures: bytes | tuple[str, bytes], accept: str = "*/*", **fields: str) -> Any:
    return client.post("/v1/localize", files=files(*pictures), data=fields, headers={"Accept": accept})


def problem(response: Any, status: int) -> dict[str, Any]:
    """The problem that a response is, with the headers of every answer."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    schemas.Problem.model_validate(body)
    assert body["status"] == status
    return body


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_bad_file_among_good_ones_is_an_error_row(client: TestClient) -> None:
    response = post(client, picture(size=(10, 20)), ("b.jpg", b"no picture"), ("c.png", picture()[:300]))
    assert response.status_code == 200
    good, text, broken = response.json()["results"]
    assert (list(good), good["image"], good["height"], good["width"]) == (KEYS, "0.png", 10, 20)
    assert (list(text), text["image"], text["kind"]) == (["image", "error", "kind"], "b.jpg", "format")
    assert text["error"].startswith("b.jpg: not a picture declip reads")
    assert (broken["image"], broken["kind"]) == ("c.png", "corrupt")
    schemas.Results.model_validate(response.json())


@pytest.mark.parametrize(
    ("bad", "status", "kinds"),
    [
        ([b"no picture", b"nor this"], 415, ["format", "format"]),
        ([picture()[:300]], 422, ["corrupt"]),
        ([picture(size=(101, 100))], 413, ["too-large"]),
        ([picture(size=(101, 100)), b"no picture"], 422, ["too-large", "format"]),
    ],
)
def test_nothing_but_bad_files_is_a_problem(
    client: TestClient, bad: list[bytes], status: int, kinds: list[str]
) -> None:
    body = problem(post(client, *bad), status)
    assert [row["kind"] for row in body["errors"]] == kinds


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
def test_hostile_names_are_shown_as_they_are_and_used_for_nothing(client: TestClient, name: str) -> None:
    (row,) = post(client, (name, picture())).json()["results"]
    assert row["image"] == ("x.png" if name.startswith("C:") else name)
    response = post(client, (name, picture()), accept="application/zip")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        entries = archive.namelist()
    assert all(entry.isascii() and "/" not in entry and "\\" not in entry and len(entry) < 120 for entry in entries)
    assert entries[0].startswith("001-") and not entries[0].startswith("001-.")


# --- options --------------------------------------------------------------------------------------------------------


def test_threshold_mode_and_model(client: TestClient) -> None:
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
        ({"words": "yes"}, "true or false"),
        ({"url": "http://example.org/a.png"}, "expected file, model, mode, threshold, maps, words"),
    ],
)
def test_wrong_options_are_422(client: TestClient, fields: dict[str, str], said: str) -> None:
    assert said in problem(post(client, picture(), **fields), 422)["detail"]


def test_a_model_without_a_mode_says_so() -> None:
    engine = FakeEngine(output_size=24)  # its map does not divide its input: no tiles
    engine.logits = lambda inputs: np.zeros((len(inputs["image"]), 24, 24), np.float32)  # type: ignore[method-assign]
    with running(Localizer(engine)) as client:
        assert client.get("/v1/models").json()["models"][0]["modes"] == ["whole"]
        assert "fake has whole" in problem(post(client, picture(), mode="tiled"), 422)["detail"]


# --- forms of the answer --------------------------------------------------------------------------------------------


def test_png_is_the_overlay_or_the_map_asked_for(client: TestClient) -> None:
    data = picture()
    result = Localizer(FakeEngine())(data)
    response = post(client, data, accept="image/png")
    assert (response.headers["content-type"], response.headers["declip-width"]) == ("image/png", "64")
    with Image.open(io.BytesIO(response.content)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(overlay(data, result)))
    assert post(client, data, accept="image/png", maps="mask").content == mask_png(result.mask)


def test_words_are_those_of_the_report(client: TestClient) -> None:
    rows = post(client, picture(), b"no picture", words="true").json()["results"]
    schemas.Results.model_validate({"results": rows})
    assert rows[1]["kind"] == "format" and "words" not in rows[1]
    said = wording.explain(Localizer(FakeEngine())(picture()), FakeEngine().spec.calibration)
    words = rows[0]["words"]
    assert {key: words[key] for key in dataclasses.asdict(said)} == json.loads(json.dumps(dataclasses.asdict(said)))
    assert words["limits"] == list(wording.LIMITS)
    assert words["steps"] == [{"word": "manipulated", "rate": 0.01}, {"word": "inconclusive", "rate": 0.05}]
    (row,) = post(client, picture(), words="true", mode="tiled").json()["results"]
    assert (row["words"]["tone"], row["words"]["title"], row["words"]["steps"]) == ("none", "No verdict", [])
    assert "calibrated in whole mode" in row["words"]["summary"] and "ran in tiled mode" in row["words"]["summary"]


def test_the_photo_that_scores_lie_over_is_the_one_that_was_examined(client: TestClient) -> None:
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
    (row,) = post(client, data, maps="photo,mask").json()["results"]
    schemas.Row.model_validate(row)
    assert list(row["maps"]) == ["photo", "mask"]
    photo = base64.b64decode(row["maps"]["photo"])
    with zipfile.ZipFile(io.BytesIO(post(client, data, accept="application/zip", maps="photo").content)) as archive:
        assert archive.namelist() == ["001-0.png.photo.jpg", "results.json"]
        assert archive.read("001-0.png.photo.jpg") == photo
    with Image.open(io.BytesIO(photo)) as shown:
        assert (shown.format, shown.mode, dict(shown.getexif()), shown.info.get("exif")) == ("JPEG", "RGB", {}, None)
        assert np.abs(np.asarray(shown).astype(int) - examined).mean() < 1


def test_a_photo_too_large_for_a_browser_is_scaled(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_PHOTO_SIDE", 32)
    (row,) = post(client, picture(size=(48, 64)), maps="photo,scores").json()["results"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(row["maps"][name]))).size for name in ("photo", "scores")]
    assert sizes == [(32, 24), (64, 48)]


def test_rows_have_what_the_file_says_of_itself(client: TestClient) -> None:
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 9, 9)).save(stream, "JPEG", xmp=f"<x a:DigitalSourceType='{source}'/>".encode())
    first, second = post(client, stream.getvalue(), picture()).json()["results"]
    assert first["provenance"]["headline"].startswith("The file itself says: created by a generator")
    assert second["provenance"]["headline"] is None


def test_zip_has_rows_and_maps(client: TestClient) -> None:
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


@pytest.mark.parametrize(
    ("fields", "count", "said"),
    [
        ({}, 2, "application/zip"),
        ({"maps": "mask,scores"}, 1, "choose one"),
        ({"maps": "photo"}, 1, "is a JPEG"),
        ({"words": "true"}, 1, "cannot hold words"),
    ],
)
def test_png_is_one_map_of_one_picture(client: TestClient, fields: dict[str, str], count: int, said: str) -> None:
    assert said in problem(post(client, *[picture()] * count, accept="image/png", **fields), 422)["detail"]


def test_what_cannot_be_made_is_406(client: TestClient) -> None:
    said = problem(post(client, picture(), accept="image/webp, text/html"), 406)["detail"]
    assert "this service has application/json, image/png, application/zip" in said


# --- metadata and report --------------------------------------------------------------------------------------------


def ask(client: TestClient, path: str, *pictures: bytes | tuple[str, bytes], **fields: str) -> Any:
    return client.post(path, files=files(*pictures), data=fields)


def camera_jpeg() -> bytes:
    """A JPEG with EXIF, a description, a GPS position and a small picture of itself, on its side."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0131], exif[0x010E], exif[0x0112] = "<img src=x onerror=alert(1)>", "Editor 1", "at home", 6
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 30.0, 0.0)
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture())).save(stream, format="JPEG", quality=80, exif=exif)
    return stream.getvalue()


def test_metadata_are_those_of_the_report_and_tell_no_place(client: TestClient) -> None:
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


def test_the_report_is_the_page_of_the_command_line(client: TestClient) -> None:
    named = ("<img src=x onerror=alert(1)>", camera_jpeg())
    response = ask(client, "/v1/report", named, model="other", threshold="0.25")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "&lt;img src=x onerror=alert(1)&gt;" in response.text and "<img src=x" not in response.text
    row = post(client, named, model="other", threshold="0.25").json()["results"][0]
    assert f"{row['score']:.3f}" in response.text and "flagged from 0.250" in response.text
    assert "declip report" in response.text and value(client, "declip_held_bytes") == 0
    assert "GPSLatitudeRef" not in response.text
    assert "GPSLatitudeRef" in ask(client, "/v1/report", named, position="true").text


def dark(seed: int = 0) -> bytes:
    """Dark noise, in which the fake engine finds nothing."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 90, (80, 96, 3)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_edits_are_those_of_the_library(client: TestClient) -> None:
    body = ask(client, "/v1/detectability", ("a.png", dark())).json()
    schemas.DetectabilityBody.model_validate(body)
    expected = declip.detectability(Localizer(FakeEngine()), dark()).to_dict()
    same = ("kinds", "edits", "sentences", "control", "rounds", "seed", "width", "height")
    assert {key: body[key] for key in same} == json.loads(json.dumps({key: expected[key] for key in same}))
    assert (body["image"], value(client, "declip_held_bytes")) == ("a.png", 0)
    refused = problem(ask(client, "/v1/detectability", dark(), mode="tiled"), 422)
    assert "there is no verdict on such a photo" in refused["detail"]
    problem(ask(client, "/v1/detectability", dark(), threshold="0.5"), 422)


@pytest.mark.parametrize("path", ["/v1/metadata", "/v1/report", "/v1/detectability"])
def test_metadata_report_and_edits_have_the_limits_of_localize(client: TestClient, path: str) -> None:
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


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for() -> None:
    with running(Localizer(FakeEngine()), token="päss word") as client:
        for path in ("/v1/models", "/metrics"):
            assert problem(client.get(path), 401)["title"] == "Unauthorized"
            assert client.head(path).status_code == 401
        wrong = ("", "Bearer", "Bearer x", "Basic cMOkc3Mgd29yZA==", "Bearer päss wor".encode(), "Bearer pass word")
        paths = ("/v1/localize", "/v1/metadata", "/v1/report", "/v1/detectability")
        for given, path in zip(wrong, (*paths, *paths[:2]), strict=True):
            response = client.post(path, files=files(picture()), headers={"Authorization": given})
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
def test_security_headers_are_on_every_answer(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


# --- the other paths ------------------------------------------------------------------------------------------------


def test_models_and_limits(client: TestClient) -> None:
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


def test_unknown_paths_and_methods(client: TestClient) -> None:
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
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    full, head = client.get(path), client.head(path)
    assert full.status_code == head.status_code == 200 and full.content and not head.content
    same = {name: text for name, text in full.headers.items() if name not in ("date", "last-modified", "etag")}
    if path == "/metrics":  # whose length is that of other numbers
        assert int(head.headers["content-length"]) > 1000
        del same["content-length"]
    assert {name: head.headers[name] for name in same} == same


def test_head_of_what_is_not_there(client: TestClient) -> None:
    for path, status in (("/nowhere", 404), ("/v1/localize", 405)):
        head = client.head(path)
        assert (head.status_code, head.content) == (status, b"")
        assert head.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [*GETS, "/v1/localize", "/v1/metadata", "/v1/report", "/v1/detectability"])
def test_options_tell_the_methods_and_allow_no_other_site_anything(client: TestClient, path: str) -> None:
    response = client.options(path)
    methods = "GET, HEAD, OPTIONS" if path in GETS else "OPTIONS, POST"
    assert (response.status_code, response.headers["allow"], response.content) == (204, methods, b"")
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = client.options(path, headers=preflight)
    assert response.status_code == 403 and not [name for name in response.headers if name.startswith("access-control")]
    problem(client.options("/nowhere"), 404)


def test_the_page_of_the_docs_needs_no_script_and_no_network(client: TestClient) -> None:
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
