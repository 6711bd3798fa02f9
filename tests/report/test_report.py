"""The page on one photo: its numbers, what strangers cannot put into it, and what it keeps to itself."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import declip
from declip import provenance, testing
from declip.cli import main as cli
from declip.errors import ImageError
from declip.evaluation import metrics
from declip.images.dose import perturb
from declip.images.read import read_photo
from declip.images.tensors import resize_scores
from declip.localize import localizer
from declip.localize.localizer import Localizer
from declip.models import catalog
from declip.report import report, wording
from declip.results import MaskRule, Photo
from tests.fakes import calibration
from tests.signing import Chain, generated, manifest, signed

MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"
PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"
DATE = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
VOID = {"meta", "img", "br", "hr", "link", "input"}


SPEC = replace(testing.SPEC, mode="tiled", overlap=8, image_score="top", calibration=calibration("tiled", 0.6))


def compute(images: Any) -> Any:
    """Bright is manipulated, more so on the right of each tile."""
    return testing.brightness(images, 16) + np.linspace(-0.5, 0.5, 16, dtype=np.float32)


def engine_of(**fields: Any) -> testing.FakeEngine:
    return testing.FakeEngine(replace(SPEC, **fields), compute, sha256="0123456789abcdef" * 4)


@pytest.fixture
def fake() -> Localizer:
    return Localizer(engine_of())


def pixels(height: int = 60, width: int = 90, seed: int = 0) -> Any:
    """Dark noise with a bright patch left of the middle."""
    made = np.random.default_rng(seed).integers(0, 90, (height, width, 3)).astype(np.uint8)
    made[height // 4 : height // 2, width // 6 : width // 3] += 150
    return made


def jpeg(path: Path, made: Any = None, **options: Any) -> Path:
    Image.fromarray(pixels() if made is None else made).save(path, "JPEG", quality=92, **options)
    return path


def examine(picture: Any, localizer: Localizer, **options: Any) -> report.Report:
    return report.examine(picture, localizer, date=DATE, **options)


class Page(HTMLParser):
    """The elements, texts and addresses of a page; raises where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        assert len(attrs) == len(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, name: str) -> list[str]:
        return [value or "" for _, found, value in self.attributes if found == name]


# --- numbers --------------------------------------------------------------------------------------------------------


def test_stability_is_what_metrics_give(fake: Localizer) -> None:
    made = pixels()
    found = examine(made, fake).stability
    base = fake(made)
    assert found.whole and found.box == (0, 0, 90, 60)
    assert base.mask.any() and not base.mask.all()
    expected = {
        f"jpeg-{quality}": (fake(perturb(made, "jpeg", quality)).scores, base.scores) for quality in (95, 85, 75)
    }
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


def test_the_facts_are_those_of_localize_and_more(fake: Localizer, tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    found = examine(path, fake)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    localized = json.loads(json.dumps(fake(path).to_dict()))
    assert {key: facts[key] for key in localized if key != "seconds"} == {
        key: value for key, value in localized.items() if key != "seconds"
    }
    assert facts["metadata"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["metadata"]["bytes"] == path.stat().st_size
    assert (facts["date"], facts["declip"], facts["mode"]) == ("2026-03-04 05:06:07 UTC", declip.__version__, "tiled")
    assert facts["calibration"]["photos"] == [199] * 3
    assert [row["name"] for row in facts["second_opinions"]] == [*declip.baselines.BASELINES]
    (level,) = declip.baselines.ErrorLevel().map([path])
    assert isinstance(level, declip.Localization)
    row = facts["second_opinions"][0]
    assert row["mean"] == pytest.approx(level.scores.mean(), rel=1e-5)
    assert row["inside"] == pytest.approx(level.scores[found.result.mask].mean(), rel=1e-5)
    assert row["outside"] == pytest.approx(level.scores[~found.result.mask].mean(), rel=1e-5)


def test_the_page_tells_the_same_numbers(fake: Localizer, tmp_path: Path) -> None:
    path = jpeg(tmp_path / "photo.jpg")
    found = examine(path, fake)
    page = Page(found.to_html())
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page.text and engine_of().sha256 in page.text
    assert found.result.verdict == "inconclusive" and found.result.score == 0.95
    assert "stronger than anything in 95 % of untouched photos of its size (under 0.5 MP)" in page.text
    for variant in found.stability.variants:
        numbers = f"{variant.iou:.2f} {variant.difference:.3f} {100 * variant.area:.2f}".rstrip("0").rstrip(".")
        assert variant.score is not None and f"{numbers} % {wording.rank_percent(variant.score)}" in page.text
    assert "photo.jpg" in page.text and "2026-03-04 05:06:07 UTC" in page.text
    assert "by comparison with 199 untouched photos of this size" in page.text
    (region, *_) = found.result.regions
    x0, y0, x1, y1 = region.bbox
    assert f"{x1 - x0} × {y1 - y0} px at ({x0}, {y0})" in page.text
    assert found.to_html() == found.to_html()  # nothing in it depends on when it is made


def test_the_date_is_shown_in_utc_and_needs_a_zone(fake: Localizer) -> None:
    local = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    found = report.examine(pixels(), fake, date=local)
    assert found.to_dict()["date"] == "2025-12-31 22:30:00 UTC"
    with pytest.raises(ValueError, match="no time zone"):
        report.examine(pixels(), fake, date=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("untouched", "headline", "number"),
    [
        ((0.0,) * 199, "Traces of manipulation were found", "99.5 % of untouched photos of its size"),
        ((0.0,) * 192 + (9.0,) * 7, "Inconclusive", "“manipulated” asks for 99 %"),
        ((9.0,) * 199, "Nothing found", "no proof that the photo is genuine"),
    ],
)
def test_verdicts_in_words(untouched: Any, headline: str, number: str) -> None:
    compared = replace(calibration("tiled", 0.6), untouched=(untouched, (), ()), photos=(199, 0, 0))
    engine = engine_of(calibration=compared)
    page = Page(examine(pixels(), Localizer(engine)).to_html())
    assert headline in page.text and number in page.text
    low, high = 100 * stats.beta.ppf([0.05, 0.95], 2, 198)  # 1 % by 199 photos: the second from above
    assert f"nine times in ten {low:.2f} % to {high:.2f} %" in page.text


def test_without_a_calibration_there_is_no_verdict(fake: Localizer) -> None:
    page = Page(examine(pixels(), Localizer(engine_of(), mode="whole")).to_html())
    assert "No verdict" in page.text and "calibrated in tiled mode" in page.text and "squashed to 32 × 32" in page.text
    engine = engine_of(calibration=None)
    text = Page(examine(pixels(), Localizer(engine)).to_html()).text
    assert "never calibrated" in text and "Verdicts none" in text


def test_an_empty_map_is_not_praised_as_stable(fake: Localizer) -> None:
    found = examine(np.zeros((40, 40, 3), np.uint8), fake)
    assert found.stability.mean_iou == 1 and found.result.area == 0
    assert found.to_dict()["second_opinions"][0]["inside"] is None
    text = Page(found.to_html()).text
    assert "Nothing is flagged in any of the 6 changed copies either." in text
    assert "there is nothing to list" in text and "mean overlap" not in text and "overlap 1.00" not in text


# --- large and small photos -----------------------------------------------------------------------------------------


def test_large_photos_are_examined_in_part(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_STABILITY_SIDE", 48)
    monkeypatch.setattr(report, "_OPINION_SIDE", 64)
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
    text = Page(found.to_html()).text
    assert "48 × 48 px at (128, 80)" in text and "64 × 64 px at (120, 72)" in text


def test_a_part_lies_inside_the_photo_and_around_the_highest_score() -> None:
    scores = np.zeros((100, 30), np.float32)
    scores[97, 3] = 0.4
    found = declip.Localization(
        name="", scores=scores, rule=MaskRule(threshold=0.5), image_score=0.4, model="", sha256=""
    )
    assert report._part(found, 40) == (0, 56, 30, 96)
    assert report._part(found, 60) == (0, 0, 30, 100)  # 3000 px are no more than 60 × 60


def test_a_squashed_photo_is_examined_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_STABILITY_SIDE", 48)
    assert examine(pixels(150, 200), Localizer(engine_of(), mode="whole")).stability.whole


def test_the_work_is_bounded(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_STABILITY_SIDE", 32)
    made = pixels(300, 400)
    given = fake(made)
    before = sum(fake.engine.batches)  # type: ignore[attr-defined]
    found = examine(made, fake, result=given)
    assert found.result is given
    assert sum(fake.engine.batches) - before == 7  # type: ignore[attr-defined]  # tiles: the part, and six changes of it


def test_a_photo_of_one_pixel(fake: Localizer) -> None:
    found = examine(np.full((1, 1, 3), 255, np.uint8), fake)
    assert [variant.change for variant in found.stability.variants][-2:] == ["resize-0.75", "flip"]
    Page(found.to_html())


def test_a_result_of_another_photo_is_refused(fake: Localizer) -> None:
    with pytest.raises(ImageError, match="give the same"):
        examine(pixels(), fake, result=fake(pixels(40, 40)))


# --- one page, for itself -------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(fake: Localizer, tmp_path: Path) -> None:
    text = examine(jpeg(tmp_path / "photo.jpg"), fake).to_html()
    page = Page(text)
    assert text.startswith("<!doctype html>") and page.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert "<" not in page.text and "\\n" not in page.text  # no markup is shown as text
    sources = page.values("src")
    assert len(sources) >= 15 and all(source.startswith("data:image/") for source in sources)
    assert page.values("href") == [] and not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert re.search(r"https?:|url\(|@import", text) is None
    assert "default-src 'none'; img-src data:" in " ".join(page.values("content"))
    assert page.values("lang") == ["en"] and page.values("alt").count("") == 2  # the legends, described around them
    assert len(page.values("alt")) == len(sources)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and set(page.values("aria-labelledby")) <= set(ids)
    headings = [tag for tag in ("h1", "h2", "h3") if tag in page.tags]
    assert headings == ["h1", "h2", "h3"] and "@page" in text and "prefers-color-scheme: dark" in text


@pytest.mark.slow
def test_pictures_of_the_page_are_bounded_and_bare(fake: Localizer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "MAKER-IN-EXIF"
    path = jpeg(tmp_path / "photo.jpg", pixels(1200, 3000), exif=exif, comment=b"COMMENT-IN-FILE", icc_profile=b"ICC")
    page = Page(examine(path, fake).to_html())
    sizes = []
    for source in page.values("src"):
        data = base64.b64decode(source.partition(",")[2])
        assert b"MAKER-IN-EXIF" not in data and b"COMMENT" not in data
        with Image.open(io.BytesIO(data)) as picture:
            assert not picture.getexif() and "icc_profile" not in picture.info
            sizes.append(picture.size)
    assert (1400, 560) in sizes and max(max(size) for size in sizes) == 1400
    assert "shown at 1400 × 560 of 3000 × 1200 px" in page.text


def test_maps_have_fixed_colours() -> None:
    ramp = np.tile(np.linspace(0, 1, 255, dtype=np.float32), (20, 1))
    data = base64.b64decode(report._map(ramp, 255).partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        shown = np.asarray(picture.convert("RGB"))
    assert shown[0, 0].tolist() == list(report._COLOURS[0]) and shown[0, -1].tolist() == list(report._COLOURS[-1])
    grey = np.asarray(Image.fromarray(shown).convert("L")).astype(int)[0]
    assert (np.diff(grey) >= 0).all() and grey[-1] > grey[0] + 200  # the order survives a grey print
    half = base64.b64decode(report._map(ramp / 2, 255).partition(",")[2])
    with Image.open(io.BytesIO(half)) as picture:
        assert picture.convert("RGB").getpixel((254, 0)) == report._COLOURS[2]  # never stretched


# --- strangers ------------------------------------------------------------------------------------------------------

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202egpj.\x1b[31m\x00\ud800"


def test_hostile_names_are_text(fake: Localizer) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "JPEG")
    photo = replace(read_photo(data.getvalue()), name=NASTY.replace("/", "∕"))
    text = examine(photo, fake).to_html()
    page = Page(text)
    assert "script" not in page.tags and not [n for _, n, _ in page.attributes if n.startswith("on")]
    assert "x" not in page.values("src") and "49" not in page.text.partition("gpj")[0]
    for hidden in ("\u202e", "\x1b", "\x00", "\ud800"):
        assert hidden not in text
    assert (
        "<script>alert(1)<∕script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\\u202egpj.\\x1b[31m\\x00\\ud800"
        in page.text
    )
    text.encode("utf-8")


def test_hostile_metadata_is_text_and_cut(fake: Localizer, tmp_path: Path) -> None:
    nasty = NASTY[:-2]  # EXIF ends at a NUL
    exif = Image.Exif()
    exif[0x010F] = nasty.encode("utf-8").decode("latin-1")  # Make
    exif[0x0110] = "M" * 50_000  # Model
    exif[0x0131] = "</style></title><script>alert(3)</script>"  # Software
    xmp = b'<x:xmpmeta><rdf:Description xmp:CreatorTool="&lt;script&gt;alert(4)&lt;/script&gt;"/></x:xmpmeta>'
    path = jpeg(tmp_path / "photo.jpg", exif=exif, xmp=xmp)
    text = examine(path, fake).to_html()
    page = Page(text)
    assert "script" not in page.tags and "\x1b" not in text
    for number in (1, 3, 4):
        assert f"<script>alert({number})</script>" in page.text and f"<script>alert({number})" not in text
    assert f"{'M' * 160}… (cut: 50000 in the file)" in page.text and "M" * 161 not in text
    assert len(text) < 2_000_000


def test_what_was_not_examined_is_listed_and_is_text(fake: Localizer, tmp_path: Path) -> None:
    pages = [Image.fromarray(pixels(seed=seed)) for seed in (1, 2, 3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    found = examine(tmp_path / "scan.tif", fake)
    assert (found.to_dict()["pages"], found.to_dict()["page"]) == (3, 1)
    said = "What was examined The file holds 3 pages; the first one was examined."
    assert said in " ".join(Page(found.to_html()).text.split())
    hostile = replace(found, result=replace(found.result, notes=(NASTY,)))
    page = Page(hostile.to_html())
    assert "script" not in page.tags and "\x1b" not in hostile.to_html() and "alert(" in page.text
    assert "What was examined" not in examine(jpeg(tmp_path / "plain.jpg"), fake).to_html()


def test_a_hostile_model_name_is_text(fake: Localizer) -> None:
    fake.engine.model = "<script>alert(5)</script>"  # type: ignore[misc]
    assert "script" not in Page(examine(pixels(), fake).to_html()).tags


def test_hostile_content_credentials_are_text(fake: Localizer) -> None:
    pytest.importorskip("c2pa")
    maker, editor = "<script>alert(6)</script>", '"><img src=x onerror=alert(7)>{{ 7 * 7 }}\u202e' + "E" * 500
    signer = "</td></table><script>alert(8)</script>"
    facts = examine(signed(manifest(maker, editor), chain=Chain(signer)), fake)
    assert facts.metadata is not None and facts.metadata.credentials.state == "intact"
    text = facts.to_html()
    page = Page(text)
    assert "script" not in page.tags and not [n for _, n, _ in page.attributes if n.startswith("on")]
    assert "x" not in page.values("src") and "\u202e" not in text and "E" * 161 not in text
    assert "<script>alert(6)</script> 1.0" in page.text and signer in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "48,51.4935" not in text and "48.8582" not in text


def test_what_the_file_says_stands_above_the_verdict_with_its_checks_below(fake: Localizer) -> None:
    pytest.importorskip("c2pa")
    page = Page(examine(signed(generated()), fake).to_html()).text
    said = "The file itself says: created by a generator (trainedAlgorithmicMedia, by “Paint 3”)"
    assert page.index(said) < page.index("What the pixels show") < page.index("The map")
    assert page.index("What the file says") < page.index(said)
    checks = page[page.index("What was checked") :]
    assert "signingCredential.untrusted" in checks and "assertion.dataHash.match" in checks
    assert "changed after it was signed" not in page and "is wrong" not in page


def test_a_file_that_says_nothing_has_the_verdict_alone(fake: Localizer) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "JPEG")
    for picture in (data.getvalue(), pixels()):
        page = Page(examine(picture, fake).to_html()).text
        assert "What the pixels show" not in page and "What was checked" not in page


def test_each_state_of_content_credentials_is_told(fake: Localizer) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "JPEG")
    facts = examine(data.getvalue(), fake)
    assert facts.metadata is not None
    for state in get_args(provenance.State):
        told = provenance.Provenance(state=state, meaning=f"{state} & so on", headline=f"<b>{state}\u202e</b>")
        shown = replace(facts, metadata=replace(facts.metadata, credentials=told)).to_html()
        assert f"{state} & so on" in Page(shown).text and f"<b>{state}\\u202e</b>" in Page(shown).text


# --- the place ------------------------------------------------------------------------------------------------------

LATITUDE, LONGITUDE = (48.0, 51.0, 29.61), (2.0, 17.0, 40.23)
TRACES = ("48.8582", "2.2945", "29.61", "40.23", "Eiffel", "PLACE-IN-NOTE")


def with_position(path: Path) -> Path:
    """A JPEG that tells its place in EXIF's GPS tags, descriptions, a maker note, XMP, a comment and its preview."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x010E] = "Eiffel tower, 48.8582 N 2.2945 E"  # ImageDescription
    gps = {1: "N", 2: LATITUDE, 3: "E", 4: LONGITUDE, 29: "2026:01:02"}
    exif.get_ifd(0x8825).update(gps)
    exif.get_ifd(0x8769).update(
        {0x9286: b"ASCII\0\0\0Eiffel 48.8582", 0x927C: b"PLACE-IN-NOTE 48.8582, 2.2945", 0x9003: "2026:01:02 03:04:05"}
    )
    inner = Image.Exif()
    inner.get_ifd(0x8825).update(gps)
    inner[0x010E] = "Eiffel 48.8582"
    preview = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(preview, "JPEG", exif=inner)
    block = _with_preview(exif.tobytes(), preview.getvalue())
    xmp = (
        b'<x:xmpmeta><rdf:Description exif:GPSLatitude="48,51.4935N" exif:GPSLongitude="2,17.6705E" '
        b'photoshop:City="Eiffel" xmp:CreatorTool="Editor 9"/></x:xmpmeta>'
    )
    return jpeg(path, exif=block, xmp=xmp, comment=b"Eiffel 48.8582 2.2945")


def _with_preview(exif: bytes, preview: bytes) -> bytes:
    """An EXIF block of Pillow's (little-endian or big) with a second directory that holds a preview."""
    head, body = exif[:6], exif[6:]
    order = "<" if body[:2] == b"II" else ">"
    import struct

    first = struct.unpack(order + "I", body[4:8])[0]
    count = struct.unpack(order + "H", body[first : first + 2])[0]
    link = first + 2 + 12 * count
    start = len(body) + len(body) % 2
    rows = [(0x0201, start + 2 + 24 + 4), (0x0202, len(preview))]
    directory = struct.pack(order + "H", 2)
    directory += b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in rows) + bytes(4)
    padded = body[:link] + struct.pack(order + "I", start) + body[link + 4 :] + bytes(len(body) % 2)
    return head + padded + directory + preview


def test_the_place_stays_out(fake: Localizer, tmp_path: Path) -> None:
    found = examine(with_position(tmp_path / "photo.jpg"), fake)
    assert found.metadata is not None
    assert found.metadata.has_position and found.metadata.thumbnail is not None  # there is something to leave out
    assert found.metadata.thumbnail.shape == (24, 32, 3)
    text = found.to_html()
    facts = json.dumps(found.to_dict())
    for source in Page(text).values("src"):
        data = base64.b64decode(source.partition(",")[2])
        assert b"GPS" not in data and b"Eiffel" not in data
        with Image.open(io.BytesIO(data)) as picture:
            assert not picture.getexif()
    words = re.sub(r'data:image/[^"]*', "", text)  # base64 may hold any four letters
    for trace in (*TRACES, "51.4935", "17.6705"):
        assert trace not in words and trace not in facts, trace
    assert "holds a GPS position. It is left out" in Page(text).text
    assert "Editor 9" in words and "2026:01:02 03:04:05" in words  # but what has no place in it is there


def test_the_place_is_told_when_asked(fake: Localizer, tmp_path: Path) -> None:
    found = examine(with_position(tmp_path / "photo.jpg"), fake, position=True)
    text = Page(found.to_html()).text
    assert "48, 51, 29.61" in text and "2, 17, 40.23" in text and "Eiffel tower, 48.8582 N 2.2945 E" in text
    assert "PLACE-IN-NOTE" not in text  # a maker note is nobody's to read
    names = {row["name"] for row in found.to_dict()["metadata"]["position"]}
    assert {"GPSLatitude", "GPSLongitude"} <= names


# --- what may be missing --------------------------------------------------------------------------------------------


def test_without_jpeglib_one_opinion_is_left_out(fake: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jpeglib" else real(name, *a))
    found = examine(pixels(), fake)
    assert [opinion.scores is None for opinion in found.opinions] == [False, False, False, True]
    assert "pip install 'declip[data]'" in Page(found.to_html()).text


def test_a_picture_without_a_file(fake: Localizer) -> None:
    found = examine(pixels(), fake)
    assert found.to_dict()["metadata"] is None
    assert "without a file" in Page(found.to_html()).text


def test_figures_belong_to_the_weights_they_were_measured_with(fake: Localizer) -> None:
    text = Page(examine(pixels(), fake).to_html()).text
    assert "No measured figures travel with these weights" in text and "Trained on" not in text
    figures = json.loads((MINI.parent / "mini.json").read_text(encoding="utf-8"))
    fake.engine.model = "mini"  # type: ignore[misc]  # anybody may call a file so
    assert "Trained on" not in Page(examine(pixels(), fake).to_html()).text
    fake.engine.sha256 = figures["sha256"]  # type: ignore[misc]
    text = Page(examine(pixels(), fake).to_html()).text
    telea = next(row for row in figures["kinds"] if row["name"] == "telea")
    counts = " ".join(str(telea["verdicts"].get(word, 0)) for word in ("manipulated", "inconclusive", "nothing found"))
    assert f"telea {telea['pictures']} {telea['iou']['mean']:.2f} {counts}" in text
    assert catalog.find("mini").trained_on in text


@pytest.mark.skipif(not MINI.is_file(), reason="the embedded model is not built")
def test_the_shipped_figures_are_of_the_shipped_weights() -> None:
    figures = json.loads((MINI.parent / "mini.json").read_text(encoding="utf-8"))
    assert figures["sha256"] == hashlib.sha256(MINI.read_bytes()).hexdigest()


# --- files and the command ------------------------------------------------------------------------------------------


def test_saving_is_whole_and_overwrites_only_when_told(fake: Localizer, tmp_path: Path) -> None:
    found = examine(pixels(), fake)
    out = tmp_path / "deep" / "page.html"
    found.save(out)
    assert out.read_text(encoding="utf-8") == found.to_html()
    out.write_text("mine")
    with pytest.raises(ImageError, match="overwrites") as caught:
        found.save(out)
    assert caught.value.kind == "exists" and out.read_text() == "mine"
    found.save(out, force=True)
    assert out.read_text(encoding="utf-8") == found.to_html()
    assert list(out.parent.iterdir()) == [out]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model by a fake; gives the arguments `load` was called with."""
    seen: dict[str, Any] = {}

    def load(model: Any = None, **options: Any) -> Localizer:
        seen.update(options, model=model)
        return Localizer(engine_of(), mode=options["mode"], threshold=options["threshold"])

    monkeypatch.setattr(localizer, "load", load)
    return seen


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["declip", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command(
    loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo, out = with_position(tmp_path / "photo.jpg"), tmp_path / "page.html"
    assert call(monkeypatch, "report", photo, "--out", out, "--json", "--threshold", "0.7", "--model", "x.onnx") == 0
    assert (loaded["model"], loaded["threshold"], loaded["mode"]) == ("x.onnx", 0.7, None)
    (line,) = capfd.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts["threshold"] == 0.7 and len(facts["stability"]["variants"]) == 6
    assert facts["image"] == str(photo) and facts["metadata"]["position"] == []
    page = Page(out.read_text(encoding="utf-8"))
    assert facts["metadata"]["sha256"] in page.text and facts["date"] in page.text
    assert call(monkeypatch, "report", photo, "--out", out) == 2
    assert "--force overwrites it" in capfd.readouterr().err
    assert call(monkeypatch, "report", photo, "--out", out, "--force", "--gps", "--whole") == 0
    assert loaded["mode"] == "whole" and "48, 51, 29.61" in out.read_text(encoding="utf-8")
    shown = capfd.readouterr().out
    assert shown.startswith("no verdict  ") and str(photo) in shown


def test_the_command_on_a_bad_picture(
    loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = jpeg(tmp_path / "photo.jpg")
    photo.write_bytes(photo.read_bytes()[:-300])
    assert call(monkeypatch, "report", photo, "--out", tmp_path / "page.html", "--json") == 1
    row = json.loads(capfd.readouterr().out)
    assert row["kind"] == "corrupt" and row["image"] == str(photo)
    assert not (tmp_path / "page.html").exists()


def test_without_jinja2_the_pip_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "declip.report.report")
    monkeypatch.delattr(declip, "report", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert call(monkeypatch, "report", jpeg(tmp_path / "photo.jpg"), "--out", tmp_path / "page.html") == 2
    assert "pip install 'declip[report]'" in capfd.readouterr().err
    with pytest.raises(declip.MissingExtraError, match=r"declip\[report\]"):
        _ = declip.report


@pytest.mark.skipif(not MINI.is_file(), reason="the embedded model is not built")
@pytest.mark.slow
def test_the_demo_photos_with_mini() -> None:
    mini = declip.load()
    forged = examine(PHOTOS / "astronaut-navier-stokes.jpg", mini)
    assert forged.result.verdict == "manipulated" and forged.stability.mean_iou > 0.6
    assert min(variant.iou for variant in forged.stability.variants) > 0.5
    text = Page(forged.to_html()).text
    assert "Traces of manipulation were found" in text and "In 6 of 6 changed copies" in text
    untouched = examine(PHOTOS / "china-untouched.jpg", mini)
    assert untouched.result.verdict == "nothing found" and untouched.result.area == 0
    assert "Nothing is flagged in any of the 6 changed copies either." in Page(untouched.to_html()).text


def test_photo_is_not_changed(fake: Localizer) -> None:
    photo = Photo(pixels=pixels(), name="kept")
    before = photo.pixels.copy()
    examine(photo, fake).to_html()
    np.testing.assert_array_equal(photo.pixels, before)
