"""Many requests at once: batches, limits, clients that leave, models that fail, reports, and what is kept."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import declip
from declip import serve
from declip.images.mapfiles import scores_png
from declip.localize.localizer import Localizer
from declip.serve import answers
from tests.serve.serving import FakeEngine, leaving, picture, running, until, value
from tests.serve.test_app import ask, post, problem


@contextlib.contextmanager
def busy(
    limits: serve.Limits | None = None,
) -> Iterator[tuple[FakeEngine, TestClient, ThreadPoolExecutor, Future[Any]]]:
    """A service inside whose network the first of all pictures waits; it is let go at the end."""
    engine = FakeEngine()
    with running(Localizer(engine), limits) as client, ThreadPoolExecutor(9) as pool:
        engine.hold()
        first = pool.submit(post, client, picture())
        assert engine.entered.wait(30)
        try:
            yield engine, client, pool, first
        finally:
            engine.go.set()
        assert first.result().status_code == 200


def queued(client: TestClient, count: int) -> None:
    """Wait until so many pictures are in the queue."""
    until(lambda: value(client, "declip_queue_pictures") == count)


# --- batches and limits ---------------------------------------------------------------------------------------------


def test_what_waits_is_computed_together_and_gives_the_same_bits() -> None:
    """A bad file among them harms no other client."""
    with busy() as (engine, client, pool, _):
        bad = pool.submit(post, client, b"no picture")
        jobs = [pool.submit(post, client, picture(i), maps="scores") for i in range(7)]
        queued(client, 8)
        engine.go.set()
        assert bad.result().status_code == 415
        rows = [job.result().json()["results"][0] for job in jobs]
    assert engine.batches == [1, 1, 7]  # the first is the try at the start
    alone = Localizer(FakeEngine())
    for i, row in enumerate(rows):
        expected = alone(picture(i))
        assert row["score"] == expected.score
        assert base64.b64decode(row["maps"]["scores"]) == scores_png(expected.scores)


def test_a_network_on_onnx_runtime_gives_the_same_bits_in_a_batch(tiny_model: tuple[Path, Path]) -> None:
    localizer = declip.load(tiny_model[1], mode="whole", threads=1)
    data = [picture(i, (70 + i, 90)) for i in range(8)]
    with running(localizer) as client:
        rows = post(client, *data).json()["results"]
        (tiled,) = post(client, data[0], mode="tiled").json()["results"]
    assert [row["score"] for row in rows] == [localizer(each).score for each in data]
    assert tiled["score"] == Localizer(localizer.engine, mode="tiled")(data[0]).score


def test_a_full_queue_is_503_and_says_when_to_come_back() -> None:
    with busy(serve.Limits(queue=2)) as (engine, client, pool, _):
        second = pool.submit(post, client, picture(), picture())
        queued(client, 2)
        response = post(client, picture())
        assert "2 pictures wait" in problem(response, 503)["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 60
        engine.go.set()
        assert second.result().status_code == 200


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (serve.Limits(client_requests=1), 429),
        (serve.Limits(requests=1), 503),
        (serve.Limits(held_bytes=len(picture()) + 500), 503),
    ],
)
def test_too_many_requests_of_one_client_are_429_and_of_all_503(limits: serve.Limits, status: int) -> None:
    with busy(limits) as (engine, client, _, first):
        response = post(client, picture())
        problem(response, status)
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        engine.go.set()
        assert first.result().status_code == 200
        assert post(client, picture()).status_code == 200


def test_an_answer_that_takes_too_long_is_503() -> None:
    engine = FakeEngine()
    with running(Localizer(engine), serve.Limits(seconds=0.1)) as client:
        engine.hold()
        response = post(client, picture(), picture())
        assert "0.1 s" in problem(response, 503)["detail"] and "retry-after" in response.headers
        engine.go.set()
        until(lambda: value(client, "declip_requests_in_flight") == 0)


def test_several_clients_with_good_and_bad_files() -> None:
    data = [picture(i, (20 + i, 30)) for i in range(8)]
    expected = [Localizer(FakeEngine())(each).score for each in data]
    wrong: list[object] = []
    with running(Localizer(FakeEngine()), workers=2) as client:

        def many(number: int) -> None:
            for i in range(5):
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
        assert value(client, 'declip_pictures_total{outcome="localized"}') == 30
        assert value(client, 'declip_pictures_total{outcome="corrupt"}') == 30


# --- clients that leave ---------------------------------------------------------------------------------------------


def test_a_client_that_leaves_is_not_computed_for() -> None:
    engine = FakeEngine(mode="tiled")
    with running(Localizer(engine), serve.Limits(batch_size=1)) as client:
        engine.batches.clear()
        engine.hold()
        with leaving(client, picture(size=(32, 320)), picture(1)):
            assert engine.entered.wait(30)
        assert value(client, "declip_clients_left_total") == 1
        engine.go.set()
        assert post(client, picture(size=(32, 32))).status_code == 200
        assert value(client, "declip_requests_in_flight") == value(client, "declip_held_bytes") == 0
    # Of the long picture the one tile that was begun, of its second nothing, and the last client's one tile.
    assert engine.batches == [1, 1]


def test_a_client_that_leaves_gives_its_places_in_the_queue_and_its_memory_back() -> None:
    with busy(serve.Limits(queue=2, batch_size=1)) as (engine, client, pool, _):
        held = value(client, "declip_held_bytes")
        with leaving(client, picture(1), picture(2)):
            queued(client, 2)
            assert post(client, picture()).status_code == 503
        assert value(client, "declip_queue_pictures") == 0
        assert value(client, "declip_held_bytes") == held
        second = pool.submit(post, client, picture(3), picture(4))
        queued(client, 2)
        engine.go.set()
        assert second.result().status_code == 200
    assert len(engine.batches) == 1 + 1 + 2  # the try at the start, and what somebody waited for


def test_a_client_that_leaves_while_it_sends_frees_its_memory() -> None:
    with running(Localizer(FakeEngine())) as client:
        with leaving(client, picture(size=(300, 300)), share=0.5):
            until(lambda: value(client, "declip_held_bytes") > 0)
        assert value(client, "declip_clients_left_total") == 1
        assert value(client, "declip_held_bytes") == 0


# --- reports --------------------------------------------------------------------------------------------------------


def test_a_report_that_nobody_waits_for_is_stopped() -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client:
        engine.hold()
        with leaving(client, picture(), path="/v1/report"):
            assert engine.entered.wait(30)
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


# --- what the service itself gets wrong -----------------------------------------------------------------------------


def test_a_model_that_fails_costs_its_picture_and_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    with running(Localizer(engine)) as client:
        engine.error = RuntimeError("secret path")
        response = post(client, picture())
        assert "secret" not in response.text and "secret path" in caplog.text
        assert problem(response, 500)["errors"][0]["kind"] == "internal"
        engine.error = MemoryError()
        problem(post(client, picture()), 503)
        problem(ask(client, "/v1/report", picture()), 503)
        engine.error = None
        assert post(client, picture()).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_an_error_of_the_service_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
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
    names = ["mask.png", "overlay.png", "photo", "result.json", "scores.png"]
    assert sorted(path.name for path in kept[0].iterdir()) == names
    assert (kept[0] / "photo").read_bytes() == data
    assert json.loads((kept[0] / "result.json").read_text())["score"] == row["score"]
    assert (kept[0] / "scores.png").read_bytes() == scores_png(Localizer(FakeEngine())(data).scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_what_cannot_be_kept_is_not_answered(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with running(Localizer(FakeEngine()), keep=folder) as client:
        folder.rmdir()
        folder.write_text("")  # as a disk that is full or gone
        assert problem(post(client, picture()), 503)["errors"][0]["kind"] == "write"
    with pytest.raises(FileExistsError):
        serve.create_app(Localizer(FakeEngine()), keep=folder)
