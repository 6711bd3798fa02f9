"""The facts of a report: the numbers of stability and of the second opinions."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import declip
from declip.clues.findings import strongest_of_untouched
from declip.errors import ImageError
from declip.evaluation import metrics
from declip.images import dose
from declip.images.tensors import resize_scores
from declip.localize.localizer import Localizer
from declip.regions import MaskRule
from declip.report import Report
from declip.report import examination as module
from declip.results import Photo
from declip.spec import Calibration, Scale
from tests.clues.test_copies import FROM, SIDE, TO, copied, scene
from tests.report.conftest import DATE, localizer_of, pixels


def examine(picture: Any, localizer: Localizer, **options: Any) -> Report:
    return declip.report.examine(picture, localizer, **{"date": DATE, **options})


def test_stability_is_what_metrics_give(fake: Localizer) -> None:
    made = pixels()
    found = examine(made, fake).stability
    base = fake(made)
    assert found.whole and found.box == (0, 0, 90, 60)
    assert base.mask.any() and not base.mask.all()
    expected = {f"jpeg-{q}": (fake(dose.perturb(made, "jpeg", q)).scores, base.scores) for q in (95, 85, 75)}
    small = np.asarray(Image.fromarray(made).resize((68, 45), Image.Resampling.LANCZOS))
    expected["resize-0.75"] = (resize_scores(fake(small).scores, (60, 90)), base.scores)
    expected["crop-1px"] = (fake(np.ascontiguousarray(made[1:, 1:])).scores, base.scores[1:, 1:])
    expected["flip"] = (fake(np.ascontiguousarray(made[:, ::-1])).scores[:, ::-1], base.scores)
    assert [variant.change for variant in found.variants] == list(expected)
    for variant in found.variants:
        scores, before = expected[variant.change]
        np.testing.assert_array_equal(variant.scores, scores)
        assert variant.iou == metrics.iou(scores >= 0.6, before >= 0.6)
        assert variant.difference == pytest.approx(np.abs(scores - before).mean(), rel=1e-5)
        assert variant.area == pytest.approx((scores >= 0.6).mean())
    flip = found.variants[-1]
    assert 0.5 < flip.iou < 1 and flip.difference > 0.001  # the engine's ramp is turned, so it is not the same
    assert found.mean_iou == pytest.approx(np.mean([variant.iou for variant in found.variants]))


def test_the_facts_are_those_of_localize_and_more(plain: Report) -> None:
    facts = json.loads(json.dumps(plain.to_dict(), allow_nan=False))
    localized = json.loads(json.dumps(plain.result.to_dict()))
    assert {key: facts[key] for key in localized} == localized
    assert facts["metadata"]["sha256"] == hashlib.sha256(plain.photo.data).hexdigest()
    assert facts["metadata"]["bytes"] == len(plain.photo.data)
    assert (facts["date"], facts["declip"], facts["mode"]) == ("2026-03-04 05:06:07 UTC", declip.__version__, "tiled")
    assert facts["calibration"]["photos"] == [199] * 3
    assert list(facts["stability"]["variants"][0]) == ["change", "iou", "difference", "area", "score", "verdict"]
    assert [row["name"] for row in facts["second_opinions"]] == [*declip.clues.BASELINES]
    level = declip.clues.ErrorLevel().scores(plain.photo)
    row, mask = facts["second_opinions"][0], plain.result.mask
    means = (level.mean(), level[mask].mean(), level[~mask].mean())
    assert (row["mean"], row["inside"], row["outside"]) == pytest.approx(means, rel=1e-5)


def test_a_copy_within_the_photo_is_told_beside_the_verdict(fake: Localizer) -> None:
    made, source, target = copied(scene())
    report = examine(made, fake, date=DATE)
    (clue,) = report.to_dict()["findings"]
    assert clue["kind"] == "repeated-grain" and clue["rate"] <= 0.01
    assert clue["area"] == pytest.approx((source | target).mean(), rel=0.25)
    found = sorted(clue["boxes"], key=lambda box: box[1])
    for box, (y, x) in zip(found, (FROM, TO), strict=True):
        np.testing.assert_allclose(box, (x, y, x + SIDE, y + SIDE), atol=10)
    page = report.to_html()
    assert "Not part of this verdict: parts of the photo repeat other parts of it" in page
    count = round(clue["rate"] * (len(strongest_of_untouched("copy-move")) + 1)) - 1
    assert f"untouched photos, {count} show as much or more." in page


def test_a_copy_that_decides_the_verdict_is_its_reason() -> None:
    """The picture of the copy is drawn with its line, and the page does not say that it stands beside the verdict."""
    known = (tuple(0.01 * i for i in range(199)),) * 3
    calibration = Calibration(
        threshold=0.9999,
        untouched=known,
        photos=(199,) * 3,
        scales=(Scale("model", 0.5, 1.0), Scale("copy-move", 2.0, 20.0)),
        mode="tiled",
    )
    made, _, _ = copied(scene())
    report = examine(made, localizer_of(calibration=calibration))
    facts = report.to_dict()
    assert (facts["verdict"], facts["clues"]) == ("manipulated", ["copy-move"])
    assert facts["regions"][0]["reason"] == facts["findings"][0]["reason"]
    assert facts["stability"]["verdict"] == "nothing found"  # of the map alone
    page = report.to_html()
    assert "Not part of this verdict" not in page and "<td>copy-move</td>" in page
    assert page.count("Either may be a copy of the other.") == 2


def test_no_copy_is_told_where_there_is_none(plain: Report) -> None:
    assert plain.to_dict()["findings"] == plain.to_dict()["clues"] == []
    assert "Not part of this verdict" not in plain.to_html()
    assert "No part of the photo was found that repeats another part." in plain.to_html()


def test_the_date_is_shown_in_utc_and_needs_a_zone(fake: Localizer) -> None:
    local = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert examine(pixels(8, 8), fake, date=local).to_dict()["date"] == "2025-12-31 22:30:00 UTC"
    with pytest.raises(ValueError, match="no time zone"):
        examine(pixels(8, 8), fake, date=datetime(2026, 1, 1))


def test_large_photos_are_examined_in_part(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STABILITY_SIDE", 48)
    monkeypatch.setattr(module, "_OPINION_SIDE", 64)
    made = np.zeros((150, 200, 3), np.uint8)
    made[100:120, 140:170] = 255
    found = examine(made, fake)
    # The middle of the patch is (110, 155); 48 px around it start at (86, 131), on JPEG's grid at (80, 128).
    assert found.stability.box == (128, 80, 176, 128) and not found.stability.whole
    part = np.ascontiguousarray(made[80:128, 128:176])
    np.testing.assert_array_equal(found.stability.base.scores, fake(part).scores)
    turned = fake(np.ascontiguousarray(part[:, ::-1])).scores[:, ::-1]
    assert found.stability.variants[-1].iou == metrics.iou(turned >= 0.6, found.stability.base.mask)
    assert [opinion.box for opinion in found.opinions] == [(120, 72, 184, 136)] * 4
    assert found.opinions[0].scores is not None and found.opinions[0].scores.shape == (64, 64)
    text = found.to_html()
    assert "48 × 48 px at (128, 80)" in text and "64 × 64 px at (120, 72)" in text
    whole = localizer_of("whole")
    assert examine(made, whole).stability.whole  # a squashed photo is never cut


def test_a_part_lies_inside_the_photo_and_around_the_highest_score() -> None:
    scores = np.zeros((100, 30), np.float32)
    scores[97, 3] = 0.4
    rule = MaskRule(threshold=0.5)
    found = declip.Localization(name="", scores=scores, rule=rule, image_score=0.4, model="", sha256="")
    assert module._part(found, 40) == (0, 56, 30, 96)
    assert module._part(found, 60) == (0, 0, 30, 100)  # 3000 px are no more than 60 × 60


def test_the_work_is_bounded(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STABILITY_SIDE", 32)
    made = pixels(150, 200)
    given = fake(made)
    before = sum(fake.engine.batches)  # type: ignore[attr-defined]
    found = examine(made, fake, result=given)
    assert found.result is given
    assert sum(fake.engine.batches) - before == 7  # type: ignore[attr-defined]  # tiles: the part, and six changes of it
    with pytest.raises(ImageError, match="give the same"):
        examine(pixels(40, 40), fake, result=given)


def test_a_photo_of_one_pixel(fake: Localizer) -> None:
    found = examine(np.full((1, 1, 3), 255, np.uint8), fake)
    assert [variant.change for variant in found.stability.variants][-2:] == ["resize-0.75", "flip"]
    assert found.to_html().startswith("<!doctype html>")


def test_without_jpeglib_one_opinion_is_left_out(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(declip.clues.BASELINES, "double-jpeg", declip.clues.DoubleJpeg)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jpeglib" else real(name, *a))
    found = examine(pixels(), fake)
    assert [opinion.scores is None for opinion in found.opinions] == [False, False, False, True]
    assert "pip install &#39;declip[data]&#39;" in found.to_html()


def test_a_photo_is_not_changed(fake: Localizer) -> None:
    photo = Photo(pixels=pixels(), name="kept")
    before = photo.pixels.copy()
    found = examine(photo, fake)
    assert found.to_dict()["metadata"] is None and "without a file" in found.to_html()
    np.testing.assert_array_equal(photo.pixels, before)


@pytest.mark.slow
def test_the_demo_photos_with_mini() -> None:
    mini = declip.load()
    photos = Path(__file__).resolve().parents[2] / "examples" / "photos"
    forged = examine(photos / "astronaut-navier-stokes.jpg", mini)
    assert forged.result.verdict == "manipulated" and forged.stability.mean_iou > 0.6
    assert min(variant.iou for variant in forged.stability.variants) > 0.5
    text = forged.to_html()
    assert "Traces of manipulation were found" in text and "In 6 of 6 changed copies" in text
    untouched = examine(photos / "china-untouched.jpg", mini)
    assert untouched.result.verdict == "nothing found" and untouched.result.area == 0
    assert "Nothing is flagged in any of the 6 changed copies either." in untouched.to_html()
