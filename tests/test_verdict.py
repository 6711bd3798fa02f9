"""One verdict from several clues: what evidence is worth, the rate that is promised, regions, and clues that fail."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import declip
from declip import calibration, clues
from declip.batch.rows import to_parquet
from declip.batch.worker import localize_part
from declip.calibration import Untouched
from declip.cli.main import app
from declip.clues.findings import scale_of, strongest_of_untouched
from declip.engines import open_engine
from declip.errors import SpecError
from declip.images.overlay import overlay
from declip.localize.localizer import Localizer
from declip.models.respec import with_spec
from declip.regions import Finding, MaskRule
from declip.report import wording
from declip.results import Localization, Photo, ResultRow
from declip.spec import MODEL, Calibration, Scale
from declip.testing import FakeEngine
from tests.clues.test_copies import copied, scene
from tests.serve import serving

SCALES = (Scale(MODEL, 0.5, 1.0), Scale("copy-move", 2.0, 20.0))
# Strengths of 199 untouched photos, 0.00 to 1.98: 1.97 is the last 1 %, 1.9 the last 5 %.
KNOWN = Calibration(untouched=(tuple(i / 100 for i in range(199)), (), ()), photos=(199, 0, 0), scales=SCALES)
HEIGHT, WIDTH = 100, 120


def finding(evidence: float, place: tuple[int, int] = (10, 10), other: tuple[int, int] = (10, 70)) -> Finding:
    """A square of 20 px and its repetition."""
    parts = []
    for y, x in (place, other):
        part = np.zeros((HEIGHT, WIDTH), bool)
        part[y : y + 20, x : x + 20] = True
        parts.append(part)
    shift = np.array([[1.0, 0, other[1] - place[1]], [0, 1.0, other[0] - place[0]]])
    return Finding(
        kind="copy-move",
        mask=parts[0] | parts[1],
        parts=(parts[0], parts[1]),
        transform=shift,
        evidence=evidence,
        rate=0.01,
        reason="Both show the same.",
    )


def result(
    findings: tuple[Finding, ...], scores: NDArray[np.float32] | None = None, rule: MaskRule | None = None
) -> Localization:
    return Localization(
        name="a.jpg",
        scores=np.zeros((HEIGHT, WIDTH), np.float32) if scores is None else scores,
        rule=rule or MaskRule(threshold=0.5, calibration=KNOWN),
        image_score=0.1,
        findings=findings,
        clues=("copy-move",),
        model="m",
        sha256="ab",
    )


# --- strength -------------------------------------------------------------------------------------------------------


def test_strength_is_one_at_what_is_common_two_at_what_is_rare_and_goes_on_by_the_logarithm() -> None:
    scale = Scale("copy-move", 2.0, 20.0)
    values = [scale.strength(evidence) for evidence in (0, 1, 2, math.sqrt(40), 20, 200)]
    assert values == pytest.approx([0, 0.5, 1, 1.5, 2, 3])
    assert (KNOWN.strength(MODEL, 1.0), KNOWN.strength("copy-move", 1.0), KNOWN.strength("unknown", 9)) == (2, 0.5, 0)
    plain = Calibration()
    assert (plain.strength(MODEL, 0.7), plain.strength("copy-move", 99.0), plain.clues) == (0.7, 0.0, ())
    assert KNOWN.clues == ("copy-move",)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([("copy-move", 1, 2)], "expected 'model' among them"),
        ([(MODEL, 1, 2), (MODEL, 1, 2)], "expected each once"),
        ([(MODEL, 2, 2)], "expected 0 < common < rare"),
        ([(MODEL, 0, 2)], "expected 0 < common < rare"),
    ],
)
def test_scales_are_checked(scales: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Calibration(scales=scales)


def test_the_scale_of_a_clue_is_what_untouched_photos_showed() -> None:
    untouched = np.array(strongest_of_untouched("copy-move"))
    scale = Scale("copy-move", *scale_of("copy-move"))
    assert np.mean(untouched >= scale.common) == pytest.approx(0.05, abs=2 / len(untouched))
    assert np.mean(untouched >= scale.rare) == pytest.approx(0.01, abs=2 / len(untouched))


def test_the_scale_of_a_model_is_read_off_the_shape_of_its_evidence() -> None:
    """Evidence of which each fourfold rarer one is twice as strong: a fivefold rarer one is 2 ^ (ln 5 / ln 4)."""
    evidence = [float((100 / rank) ** 0.5) for rank in range(1, 101)]
    scale = calibration.model_scale(evidence)
    assert scale.common == pytest.approx(math.sqrt(20))
    assert scale.rare == pytest.approx(math.sqrt(100), rel=1e-6)
    assert calibration.model_scale([0.0] * 30).common == pytest.approx(1e-3)  # of a model that sees nothing


# --- the rate that is promised --------------------------------------------------------------------------------------


def untouched(rng: np.random.Generator, count: int) -> list[Untouched]:
    """Photos whose model's evidence falls off fast, and whose clue's does slowly and is mostly 0."""
    model = rng.exponential(0.1, count)
    clue = np.where(rng.random(count) < 0.3, rng.pareto(0.8, count), 0.0)
    return [
        Untouched(i, i, 100, (float(one),), {"copy-move": float(other)} if other else {})
        for i, (one, other) in enumerate(zip(model, clue, strict=True))
    ]


@pytest.mark.parametrize("count", [99, 250])
def test_model_and_clue_together_keep_the_rate_that_was_promised(count: int) -> None:
    """Also where the model's scale comes from the very photos that it is ranked among."""
    rng = np.random.default_rng(7)
    rates = []
    for _ in range(150):
        (made,) = calibration.candidates(
            untouched(rng, count), (0.5,), Calibration(), [Scale("copy-move", *scale_of("copy-move"))]
        )
        further = untouched(rng, 400)
        strengths = [
            max(made.strength(MODEL, one.evidence[0]), *(made.strength(*pair) for pair in one.clues.items()), 0.0)
            for one in further
        ]
        ranks = np.array([made.rank(strength, 0) for strength in strengths])
        rates.append([np.mean(ranks >= 1 - rate - 1e-9) for rate in (0.01, 0.05)])
    strict, loose = np.mean(rates, axis=0)
    errors = np.std(rates, axis=0) / math.sqrt(len(rates))
    assert 0.003 < strict < 0.01 + 3 * errors[0]
    assert 0.03 < loose < 0.05 + 3 * errors[1]


def test_a_photo_counts_with_its_strongest_copy() -> None:
    copies = [Untouched(0, 0, 100, (0.2,), {}), Untouched(0, 0, 90, (0.1,), {"copy-move": 20.0})]
    other = [Untouched(1, 1, 100, (0.25,), {})]
    base = Calibration(scales=(SCALES[0],))
    (made,) = calibration.candidates(copies + other, (0.5,), base, [SCALES[1]])
    assert (made.untouched, made.photos) == (((0.5, 2.0), (), ()), (2, 0, 0))
    assert made.scales == SCALES


def test_copies_are_saved_again_off_their_grid_and_always_alike() -> None:
    photo = Photo(pixels=scene(), name="somewhere/a.png")
    once, twice = (calibration.saved_again(photo, times) for times in (1, 2))
    again = calibration.saved_again(dataclasses.replace(photo, name="elsewhere/a.png"), 2)
    assert np.array_equal(twice.pixels, again.pixels)
    for before, after in itertools.pairwise((photo, once, twice)):
        gone = np.subtract(before.size, after.size)
        assert gone.min() >= 1 and gone.max() <= 7
    assert once.data[:2] == b"\xff\xd8" and calibration.saved_again(photo, 0) is photo
    y, x = np.subtract(photo.size, once.size)
    assert 0 < np.abs(once.pixels.astype(int) - photo.pixels[y:, x:]).mean() < 12


# --- mask and regions -----------------------------------------------------------------------------------------------


def test_mask_and_regions_are_those_of_model_and_clue() -> None:
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    scores[60:90, 20:80] = 0.999  # evidence 6.9 × √0.15, of strength 3.4
    both = result((finding(20.0), finding(1.0, (40, 10), (40, 70))), scores)
    assert (both.verdict, both.score) == ("manipulated", 199 / 200)
    assert [(region.clue, region.verdict) for region in both.regions] == [
        (MODEL, "manipulated"),
        ("copy-move", "manipulated"),
    ]
    assert np.array_equal(both.mask, (scores > 0) | finding(1.0).mask)
    own, copy = both.regions
    assert (own.reason, own.parts, own.transform) == (None, (), None)
    assert (copy.bbox, copy.parts) == ((10, 10, 90, 30), ((10, 10, 30, 30), (70, 10, 90, 30)))
    assert (copy.transform, copy.directed) == ((1, 0, 60, 0, 1, 0), False)
    assert copy.reason == "Both show the same. Either may be a copy of the other."
    assert copy.area == pytest.approx(800 / (HEIGHT * WIDTH))
    row = both.to_dict()
    assert row["clues"] == ["copy-move"] and row["regions"][1]["parts"] == ((10, 10, 30, 30), (70, 10, 90, 30))


def test_a_faint_clue_is_inconclusive_or_nothing() -> None:
    said = [(one.verdict, one.mask.any()) for one in (result((finding(each),)) for each in (16.0, 10.0))]
    assert said == [("inconclusive", True), ("nothing found", False)]


def test_the_part_that_the_model_marks_is_likely_the_copy() -> None:
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    scores[10:26, 10:30] = 0.9  # four fifths of the first part
    (copy,) = (region for region in result((finding(20.0),), scores).regions if region.clue != MODEL)
    assert copy.directed and copy.parts == ((70, 10, 90, 30), (10, 10, 30, 30))
    assert copy.transform == (1, 0, -60, 0, 1, 0)
    assert copy.reason is not None and copy.reason.endswith("so that one is likely the copy.")
    scores[10:26, 70:90] = 0.9
    assert not result((finding(20.0),), scores).regions[0].directed


@pytest.mark.parametrize(
    "rule",
    [
        MaskRule(threshold=0.5),
        MaskRule(threshold=0.5, calibration=dataclasses.replace(KNOWN, scales=())),
        MaskRule(threshold=0.5, calibration=dataclasses.replace(KNOWN, scales=SCALES[:1])),
    ],
    ids=["own threshold", "calibrated without clues", "calibrated without this one"],
)
def test_a_clue_that_was_not_calibrated_changes_nothing(rule: MaskRule) -> None:
    with_clue, without = result((finding(640.0),), rule=rule), result((), rule=rule)
    assert (with_clue.verdict, with_clue.regions, with_clue.mask.any()) == (without.verdict, (), False)


def test_the_overlay_joins_a_part_with_its_repetition_by_a_line_or_an_arrow() -> None:
    """From (20, 20) to (80, 20): white in black all the way; the head of an arrow is wider than the line."""
    grey = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    scores[10:26, 70:90] = 0.9
    plain, drawn, directed = (
        np.asarray(overlay(grey, each))
        for each in (result(()), result((finding(20.0),)), result((finding(20.0),), scores))
    )
    assert np.ptp(plain) == 0  # nothing is drawn where nothing was found
    assert (drawn[20, 30:70] == 255).all() and (drawn[17, 32:68] == 120).all()
    assert drawn[18:23, 50].min() == 0
    wide = [int((picture[:, 74] == 255).all(axis=1).sum()) for picture in (drawn, directed)]
    assert wide[1] >= wide[0] + 2
    parts = drawn[12:14, 12:28].astype(int)
    assert (parts[..., 0] > parts[..., 2] + 30).all()  # tinted, whatever the model's scores are


# --- looking --------------------------------------------------------------------------------------------------------


def localizer(clues: Any = "calibrated", threshold: float | None = None) -> Localizer:
    engine = FakeEngine()
    found = dataclasses.replace(KNOWN, untouched=(KNOWN.untouched[0],) * 3, photos=(199,) * 3, threshold=0.95)
    engine.spec = dataclasses.replace(engine.spec, calibration=dataclasses.replace(found, mode=engine.spec.mode))
    return Localizer(engine, threshold=threshold).look_for(clues)


@pytest.fixture(scope="module")
def forged() -> Photo:
    return Photo(pixels=copied(scene())[0], name="forged.png")


def test_a_localizer_looks_for_what_its_calibration_knows(forged: Photo) -> None:
    found, plain = localizer()(forged), localizer(clues="none")(forged)
    assert (found.verdict, found.clues, found.notes) == ("manipulated", ("copy-move",), ())
    assert found.regions[0].clue == "copy-move" and found.mask[80:100, 80:100].all()
    assert (plain.verdict, plain.clues, plain.row.clues) == ("nothing found", (), [])
    assert localizer(threshold=0.5).clues == () == Localizer(FakeEngine()).clues
    with pytest.raises(SpecError, match="clues is 'some'"):
        localizer(clues="some")


def test_without_its_clues_a_verdict_says_so(forged: Photo) -> None:
    rule = localizer().rule.calibration
    whole, plain = (wording.explain(localizer(clues=each)(forged), rule) for each in ("calibrated", "none"))
    assert not any("Nobody looked" in text for text in whole.meaning)
    assert whole.meaning[0].startswith("Two parts of the photo show the same: ")
    assert plain.meaning[-1].startswith("Nobody looked for copied parts, with which this verdict was calibrated.")


def test_a_clue_that_fails_is_a_note_of_its_photo(forged: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(clues.CopyMove):
        def examine(self, photo: Photo) -> list[Finding]:
            if photo.name == "forged.png":
                raise ValueError("no such corner")
            return super().examine(photo)

    monkeypatch.setitem(clues.CLUES, "copy-move", Broken())
    other = dataclasses.replace(forged, name="other.png")
    first, second = localizer().map([forged, other])
    assert isinstance(first, Localization) and isinstance(second, Localization)
    assert (first.verdict, first.clues) == ("nothing found", ())
    assert len(first.notes) == 1 and "copy-move could not look at this photo (no such corner)" in first.notes[0]
    assert (second.verdict, second.clues, second.notes) == ("manipulated", ("copy-move",), ())


def test_measuring_lets_clues_take_part_unless_they_are_left_out(tmp_path: Path) -> None:
    paths = []
    for i in range(19):
        path = tmp_path / f"{i}.png"
        Image.fromarray(scene(72, 96, seed=i)).save(path)
        paths.append(path)
    made = {
        each: calibration.measure(localizer(clues=each), paths, rates=[0.05], saves=1)
        for each in ("calibrated", "none")
    }
    known = made["calibrated"].calibration
    assert (known.clues, known.saves, known.photos) == (("copy-move", "repeated-grain"), 1, (19, 0, 0))
    assert known.scales[0] == SCALES[0] and known.scales[1] == Scale("copy-move", *scale_of("copy-move"))
    assert made["none"].calibration.scales == ()


# --- doors ----------------------------------------------------------------------------------------------------------


def test_the_doors_say_the_same_with_clues_and_without(
    tmp_path: Path, tiny_model: tuple[Path, Path], forged: Photo
) -> None:
    """Python, command line, service and the workers of batch jobs, in every field but the name and the time."""
    engine = open_engine(tiny_model[1])
    known = dataclasses.replace(
        KNOWN, untouched=(KNOWN.untouched[0],) * 3, photos=(199,) * 3, threshold=0.99, mode=engine.spec.mode
    )
    model, photo = tmp_path / "known.onnx", tmp_path / "forged.png"
    with_spec(tiny_model[1], dataclasses.replace(engine.spec, calibration=known), model)
    Image.fromarray(forged.pixels).save(photo)

    names = [column.name for column in dataclasses.fields(ResultRow) if column.name not in ("image", "seconds")]

    def told(row: dict[str, Any]) -> Any:
        return json.loads(json.dumps({name: row[name] for name in names}))

    for options in ((), ("--no-clues",)):
        direct = declip.load(model, clues=not options)
        expected = told(direct(photo).to_dict())
        assert (expected["verdict"], expected["clues"]) == (
            ("nothing found", []) if options else ("manipulated", ["copy-move"])
        )
        done = CliRunner().invoke(
            app,
            [
                "localize",
                str(photo),
                "--out",
                f"{tmp_path}/out{len(options)}",
                "--model",
                str(model),
                "--json",
                *options,
            ],
        )
        assert told(json.loads(done.stdout.splitlines()[0])) == expected
        with serving.running(direct) as client:
            answer = client.post("/v1/localize", files={"file": ("forged.png", photo.read_bytes())})
            plain = client.post(
                "/v1/localize", files={"file": ("forged.png", photo.read_bytes())}, data={"threshold": "0.5"}
            )
        assert told(answer.json()["results"][0]) == expected
        assert (plain.json()["results"][0]["verdict"], plain.json()["results"][0]["clues"]) == (None, [])
        (row,) = localize_part(direct, [str(photo)], direct.model)
        assert told(row) == expected
        (stored,) = pq.read_table(io.BytesIO(to_parquet([row]))).to_pylist()
        assert told(stored) == expected
