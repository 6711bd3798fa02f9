"""Small known edits in a photo: where they lie, how the copies are saved, and what is found."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import declip
from declip import testing
from declip.errors import ImageError
from declip.images.encode import encode_jpeg
from declip.localize.localizer import Localizer
from declip.report.detectability import Share, _meaning, for_report
from declip.report.probes import KINDS, Probe, in_rounds, make_probes
from declip.report.trials import judge
from tests.fakes import calibration

REAL_SCOPE = True
SPEC = replace(testing.SPEC, mode="tiled", overlap=8, calibration=calibration("tiled"))


def smooth(images: Any) -> Any:
    """What has no noise is manipulated: (N, 3, 32, 32) → logits (N, 16, 16)."""
    grey = images.mean(axis=1)
    mean, square = (ndimage.uniform_filter(values, (1, 5, 5)) for values in (grey, grey * grey))
    noise = np.sqrt(np.maximum(square - mean * mean, 0)).reshape(len(grey), 16, 2, 16, 2).mean(axis=(2, 4))
    return np.where(noise < 0.04, 8.0, -8.0).astype(np.float32)


def localizer_of(threshold: float | None = None, **fields: Any) -> Localizer:
    return Localizer(testing.FakeEngine(replace(SPEC, **fields), smooth), threshold=threshold)


def photo(height: int = 320, width: int = 400, seed: int = 0) -> Any:
    """A gradient with noise."""
    y, x = np.mgrid[:height, :width]
    slopes = np.dstack([60 + 120 * x / width, 60 + 120 * y / height, 128 + 0 * x])
    noise = np.random.default_rng(seed).normal(0, 20, slopes.shape)
    return np.clip(slopes + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def found() -> declip.report.Detectability:
    return declip.detectability(localizer_of(), encode_jpeg(photo(), 90, "4:4:4"))


def test_what_is_found_is_counted_with_exact_intervals(found: declip.report.Detectability) -> None:
    painted, foreign, copied = found.shares
    assert (painted.kind, foreign.kind, copied.kind) == KINDS
    # In-painting leaves no noise, and a copy of noise is noise. Clopper and Pearson's limit: 0.025 ** (1 / 8).
    assert (painted.found, painted.tried, copied.found, copied.tried) == (8, 8, 0, 8)
    assert (painted.low, painted.high) == (pytest.approx(0.025**0.125), 1)
    assert (copied.low, copied.high) == (0, pytest.approx(1 - 0.025**0.125))
    assert 1 <= foreign.found <= 8 == foreign.tried
    assert found.sentences[0] == (
        "In this file, at its size and compression, simple edits of 2 % of the picture would have been found: "
        f"in-painting 8 of 8, foreign parts {foreign.found} of 8, copies within the photo 0 of 8."
    )
    seen, missed = "in-painting and foreign parts", "copies within the photo"
    if foreign.found <= 4:
        seen, missed = "in-painting", "foreign parts and copies within the photo"
    said = f"In this file, “nothing found” says something about simple {seen}, and little about {missed}."
    assert found.sentences[1] == said
    assert "never a verdict on the photo" in found.sentences[2]
    assert found.control.verdict == "nothing found" and found.rounds >= 3


@pytest.mark.parametrize(
    ("found", "meaning"),
    [
        ((0, 0), "None was found: of edits like these, “nothing found” says next to nothing in this file."),
        ((8, 8), "All of them were found: edits like these would probably have been seen in this file."),
        ((8, 5), "Most of them were found, but not all: many edits like these would have been seen in this file."),
        ((4, 1), "Most of them were missed: “nothing found” says little about edits like these in this file."),
        (
            (1, 7),
            "In this file, “nothing found” says something about simple foreign parts, and little about in-painting.",
        ),
    ],
)
def test_what_follows(found: tuple[int, int], meaning: str) -> None:
    shares = [Share(kind=kind, found=n, tried=8, low=0, high=1) for kind, n in zip(KINDS, found, strict=False)]
    assert _meaning(shares) == meaning


def test_the_facts_are_json(found: declip.report.Detectability) -> None:
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (facts["width"], facts["height"], facts["confidence"], facts["least_iou"]) == (400, 320, 0.95, 0.2)
    assert facts["control"] == {"verdict": "nothing found", "area": 0.0} and len(facts["edits"]) == 24
    for edit in facts["edits"]:
        assert edit["area"] == pytest.approx(0.02, rel=0.06) and edit["found"] == (edit["iou"] >= 0.2)


def test_the_same_file_gives_the_same_edits(found: declip.report.Detectability) -> None:
    again = declip.detectability(localizer_of(), encode_jpeg(photo(), 90, "4:4:4"))
    other = declip.detectability(localizer_of(), encode_jpeg(photo(), 91, "4:4:4"))
    boxes = [[trial.box for trial in one.trials] for one in (found, again, other)]
    assert boxes[0] == boxes[1] != boxes[2] and found.seed == again.seed != other.seed
    assert [trial.iou for trial in again.trials] == [trial.iou for trial in found.trials]


def test_edits_can_be_seen_and_keep_apart() -> None:
    pixels, taken = photo(), np.zeros((320, 400), dtype=bool)
    taken[:100, :150] = True
    probes = make_probes(pixels, taken, np.random.default_rng(0))
    assert len(probes) < 24 and {probe.kind for probe in probes} == set(KINDS)
    for probe in probes:
        x0, y0, x1, y1 = probe.box
        here = pixels[y0:y1, x0:x1]
        assert not taken[y0:y1, x0:x1][probe.mask].any()
        assert (np.abs(probe.patch[probe.mask].astype(int) - here[probe.mask]).max(axis=1) >= 2).mean() >= 0.5
    rounds = in_rounds(probes, 100)
    assert sum(map(len, rounds)) == len(probes) > len(rounds) == 11
    for members in rounds:
        for one in members:
            for other in (other for other in members if other is not one):
                assert gap(one.box, other.box) >= 100
                assert one.source is None or gap(one.source, other.box) > 0
    assert [len(members) for members in in_rounds(probes, float("inf"))] == [1] * len(probes)


def gap(one: Any, other: Any) -> int:
    return max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3])


def test_edits_are_found_alone_as_they_are_together(
    found: declip.report.Detectability, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("declip.report.detectability.in_rounds", lambda edits, gap: [[edit] for edit in edits])
    alone = declip.detectability(localizer_of(), encode_jpeg(photo(), 90, "4:4:4"))
    assert (alone.rounds, found.rounds) == (24, 6)
    assert [trial.found for trial in alone.trials] == [trial.found for trial in found.trials]
    assert [trial.iou for trial in alone.trials] == [trial.iou for trial in found.trials]


def test_edits_that_crowd_each_other_out_are_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("declip.report.detectability.MOST", 1)  # a result lists as many parts
    assert declip.detectability(localizer_of(), encode_jpeg(photo(), 90, "4:4:4")).rounds == 21  # one has no part


@pytest.mark.parametrize("size", [(64, 64), (64, 3000), (3000, 64)])
def test_shapes(size: tuple[int, int]) -> None:
    probes = make_probes(photo(*size), np.zeros(size, dtype=bool), np.random.default_rng(0))
    assert len(probes) == 24
    for probe in probes:
        x0, y0, x1, y1 = probe.box
        assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
        assert probe.mask.shape == probe.patch.shape[:2] == (y1 - y0, x1 - x0)
        assert np.count_nonzero(probe.mask) == pytest.approx(0.02 * size[0] * size[1], rel=0.1)


def test_a_large_photo_has_smaller_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("declip.report.probes.LARGEST", 1500)  # 2 % are 2560 px
    probes = make_probes(photo(), np.zeros((320, 400), dtype=bool), np.random.default_rng(0))
    assert max(np.count_nonzero(probe.mask) for probe in probes) == pytest.approx(1500, rel=0.03)


def test_foreign_parts_in_a_grey_photo_are_grey() -> None:
    grey = np.repeat(photo()[..., :1], 3, axis=2)
    for probe in make_probes(grey, np.zeros((320, 400), dtype=bool), np.random.default_rng(0)):
        assert not np.ptp(probe.patch, axis=2).any()


def test_an_edit_is_found_if_parts_that_touch_it_overlap_enough() -> None:
    place = np.ones((10, 10), dtype=bool)
    probe = Probe(kind="in-painting", box=(20, 20, 30, 30), mask=place, patch=np.zeros((10, 10, 3), np.uint8))
    flagged = np.zeros((100, 100), dtype=bool)

    def iou() -> tuple[float, bool]:
        (trial,) = judge([probe], np.zeros((100, 100, 3), np.uint8), flagged)
        return trial.iou, trial.found

    assert iou() == (0, False)
    flagged[50:90, 50:90] = True  # elsewhere
    assert iou() == (0, False)
    flagged[20:30, 20:22] = True
    assert iou() == (0.2, True)
    flagged[20:30, 21] = False
    assert iou() == (0.1, False)
    flagged[:45, :45] = True  # a part of everything is no finding of this place
    assert iou() == (pytest.approx(100 / 2025), False)


@pytest.mark.parametrize(
    ("made", "options", "reason"),
    [
        (photo(60, 60), {}, "too small"),
        (np.full((200, 200, 3), 90, np.uint8), {}, "of one colour all over"),
        (photo(), {"threshold": 0.5}, "there is no verdict on such a photo"),
        (photo(), {"calibration": None}, "use a model with a calibration"),
    ],
)
def test_where_found_would_mean_nothing(made: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        declip.detectability(localizer_of(**options), made)
    assert caught.value.kind == "input"


def test_a_photo_without_room_is_named() -> None:
    flagged = testing.FakeEngine(SPEC, lambda images: np.full((len(images), 16, 16), 8, np.float32))
    with pytest.raises(ImageError, match="no place was found in it"):
        declip.detectability(Localizer(flagged), photo())


def test_a_model_that_sees_all_at_once_gets_one_edit_at_a_time() -> None:
    spec = replace(SPEC, mode="whole", calibration=calibration())
    blind = testing.FakeEngine(spec, lambda images: np.full((len(images), 16, 16), -8, np.float32))
    found = declip.detectability(Localizer(blind), photo(96, 128))
    assert found.rounds == len(found.trials) == 24
    assert found.sentences[1].startswith("None was found: of edits like these, “nothing found” says next to nothing")
    assert found.sentences[-1] == "The copies were kept without loss, as the photo is no JPEG file."


def test_a_report_looks_into_it_where_nothing_was_found() -> None:
    localizer = localizer_of()
    given = localizer.read(photo())
    result = localizer(given)
    assert for_report(localizer, given, result, wanted=False) is None
    tested = for_report(localizer, given, result)
    assert tested is not None and tested.shares[0].found == 8
    large = replace(result, scores=np.zeros((2000, 1501), np.float32))
    assert large.verdict == "nothing found" and for_report(localizer, given, large) is None
    other = replace(result, scores=np.ones((320, 400), np.float32))
    assert other.verdict == "manipulated" and for_report(localizer, given, other) is None
    one_colour = localizer.read(np.full((200, 200, 3), 90, np.uint8))
    assert for_report(localizer, one_colour, result) is None  # it cannot be tried, and nobody asked
    with pytest.raises(ImageError, match="of one colour"):
        for_report(localizer, one_colour, result, wanted=True)


def test_the_page_shows_it(found: declip.report.Detectability, plain: declip.report.Report) -> None:
    assert plain.to_dict()["detectability"] is None and 'id="seen"' not in plain.to_html()
    page = replace(plain, detectability=found).to_html()
    assert found.sentences[0] in page and "63 to 100 %" in page and "0 to 37 %" in page


def test_what_is_written(found: declip.report.Detectability, tmp_path: Path) -> None:
    named = replace(found, control=replace(found.control, name="there/a.jpg"))
    named.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/a.jpg.edits.json").read_text()) == json.loads(json.dumps(named.to_dict()))
    sheet = Image.open(io.BytesIO((tmp_path / "out/a.jpg.edits.png").read_bytes()))
    assert sheet.size == (8 * 190 + 10, 3 * 250 + 10)
    with pytest.raises(ImageError, match="--force"):
        named.save(tmp_path / "out")
    named.save(tmp_path / "out", force=True)
