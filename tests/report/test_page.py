"""The page on one photo: what it says, what strangers cannot put into it, and what it keeps to itself."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import declip
from declip import provenance
from declip.cli import main as cli
from declip.files import sha256_of
from declip.images.read import read_photo
from declip.localize import localizer
from declip.localize.localizer import Localizer
from declip.models import catalog
from declip.report import Report, metadata, pictures, wording
from tests.fakes import calibration
from tests.images.pictures import encode, exif_of, refused
from tests.report.conftest import DATE, jpeg, localizer_of, pixels

MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"
VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202egpj.\x1b[31m\x00\ud800"


def page_of(picture: Any, localizer: Localizer, **options: Any) -> Page:
    return Page(declip.report.examine(picture, localizer, date=DATE, **options).to_html())


class Page(HTMLParser):
    """The elements, texts and addresses of a page; raises if elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
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

    def pictures(self) -> list[bytes]:
        return [base64.b64decode(source.partition(",")[2]) for source in self.values("src")]

    def assert_harmless(self) -> None:
        assert "script" not in self.tags and not [name for _, name, _ in self.attributes if name.startswith("on")]
        assert "x" not in self.values("src")
        assert not [hidden for hidden in ("\u202e", "\x1b", "\x00", "\ud800") if hidden in self.html]


def test_the_page_tells_the_same_numbers_as_the_facts(plain: Report) -> None:
    page = Page(plain.to_html())
    assert plain.metadata is not None
    assert plain.metadata.sha256 in page.text and plain.localizer.sha256 in page.text
    assert plain.result.verdict == "inconclusive" and plain.result.score == 0.95
    assert "stronger than anything in 95 % of untouched photos of its size (under 0.5 MP)" in page.text
    for variant in plain.stability.variants:
        numbers = f"{variant.iou:.2f} {variant.difference:.3f} {100 * variant.area:.2f}".rstrip("0").rstrip(".")
        assert variant.score is not None and f"{numbers} % {wording.rank_percent(variant.score)}" in page.text
    assert "photo.jpg" in page.text and "2026-03-04 05:06:07 UTC" in page.text
    assert "by comparison with 199 untouched photos of this size" in page.text
    x0, y0, x1, y1 = plain.result.regions[0].bbox
    assert f"{x1 - x0} × {y1 - y0} px at ({x0}, {y0})" in page.text
    assert plain.to_html() == page.html  # nothing in it depends on when it is made


def test_the_page_needs_nothing_else(plain: Report) -> None:
    page = Page(plain.to_html())
    assert page.html.startswith("<!doctype html>")
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert "<" not in page.text and "\\n" not in page.text  # no markup is shown as text
    sources = page.values("src")
    assert len(sources) >= 15 and all(source.startswith("data:image/") for source in sources)
    assert page.values("href") == [] and not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert re.search(r"https?:|url\(|@import", page.html) is None
    assert "default-src 'none'; img-src data:" in " ".join(page.values("content"))
    assert page.values("lang") == ["en"] and page.values("alt").count("") == 2  # the legends, described around them
    assert len(page.values("alt")) == len(sources)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and set(page.values("aria-labelledby")) <= set(ids)
    assert {"h1", "h2", "h3"} <= page.tags and "@page" in page.html and "prefers-color-scheme: dark" in page.html


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
    page = page_of(pixels(), localizer_of(calibration=compared))
    assert headline in page.text and number in page.text
    low, high = 100 * stats.beta.ppf([0.05, 0.95], 2, 198)  # 1 % by 199 photos: the second from above
    assert f"nine times in ten {low:.2f} % to {high:.2f} %" in page.text


def test_without_a_calibration_there_is_no_verdict() -> None:
    text = page_of(pixels(), localizer_of("whole")).text
    assert "No verdict" in text and "calibrated in tiled mode" in text and "squashed to 32 × 32" in text
    text = page_of(pixels(), localizer_of(calibration=None)).text
    assert "never calibrated" in text and "Verdicts none" in text


def test_an_empty_map_is_not_praised_as_stable(fake: Localizer) -> None:
    found = declip.report.examine(np.zeros((40, 40, 3), np.uint8), fake, date=DATE)
    assert found.stability.mean_iou == 1 and found.result.area == 0
    assert found.to_dict()["second_opinions"][0]["inside"] is None
    text = Page(found.to_html()).text
    assert "Nothing is flagged in any of the 6 changed copies either." in text
    assert "there is nothing to list" in text and "mean overlap" not in text and "overlap 1.00" not in text


def test_pictures_of_the_page_are_bounded_and_bare(fake: Localizer, tmp_path: Path) -> None:
    exif = exif_of({0x010F: "MAKER-IN-EXIF"})
    path = jpeg(tmp_path / "photo.jpg", pixels(60, 1500), exif=exif, comment=b"COMMENT-IN-FILE", icc_profile=b"ICC")
    page = page_of(path, fake)
    sizes = []
    for data in page.pictures():
        assert b"MAKER-IN-EXIF" not in data and b"COMMENT" not in data
        with Image.open(io.BytesIO(data)) as picture:
            assert not picture.getexif() and "icc_profile" not in picture.info
            sizes.append(picture.size)
    assert (1400, 56) in sizes and max(max(size) for size in sizes) == 1400
    assert "shown at 1400 × 56 of 1500 × 60 px" in page.text


def test_maps_have_fixed_colours() -> None:
    ramp = np.tile(np.linspace(0, 1, 255, dtype=np.float32), (20, 1))

    def drawn(scores: Any) -> Any:
        data = base64.b64decode(pictures.map_uri(scores, 255).partition(",")[2])
        return Image.open(io.BytesIO(data)).convert("RGB")

    shown = np.asarray(drawn(ramp))
    assert shown[0, 0].tolist() == list(pictures.COLOURS[0]) and shown[0, -1].tolist() == list(pictures.COLOURS[-1])
    grey = np.asarray(drawn(ramp).convert("L")).astype(int)[0]
    assert (np.diff(grey) >= 0).all() and grey[-1] > grey[0] + 200  # the order survives a grey print
    assert drawn(ramp / 2).getpixel((254, 0)) == pictures.COLOURS[2]  # never stretched


# --- strangers ------------------------------------------------------------------------------------------------------


def test_hostile_names_and_notes_are_text(plain: Report) -> None:
    name = NASTY.replace("/", "∕")
    model = "<script>alert(5)</script>"
    page = Page(replace(plain, result=replace(plain.result, name=name, model=model, notes=(NASTY,))).to_html())
    page.assert_harmless()
    assert "49" not in page.text.partition("gpj")[0] and model in page.text
    codes = "\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\\u202egpj.\\x1b[31m\\x00\\ud800"
    assert f"<script>alert(1)<∕script>{codes}" in page.text
    assert f"What was examined <script>alert(1)</script>{codes}" in page.text
    page.html.encode("utf-8")
    assert "What was examined" not in plain.to_html()


def test_hostile_metadata_is_text_and_cut(plain: Report, tmp_path: Path) -> None:
    make = NASTY[:-2].encode("utf-8").decode("latin-1")  # EXIF ends at a NUL
    software = "</style></title><script>alert(3)</script>"
    exif = exif_of({0x010F: make, 0x0110: "M" * 50_000, 0x0131: software})
    xmp = b'<x:xmpmeta><rdf:Description xmp:CreatorTool="&lt;script&gt;alert(4)&lt;/script&gt;"/></x:xmpmeta>'
    photo = read_photo(jpeg(tmp_path / "photo.jpg", exif=exif, xmp=xmp))
    page = Page(replace(plain, metadata=metadata.read(photo)).to_html())
    page.assert_harmless()
    for number in (1, 3, 4):
        assert f"<script>alert({number})</script>" in page.text and f"<script>alert({number})" not in page.html
    assert f"{'M' * 160}… (cut: 50000 in the file)" in page.text and "M" * 161 not in page.html


def test_pages_that_were_not_examined_are_told(fake: Localizer) -> None:
    first, *more = [Image.fromarray(pixels(seed=seed)) for seed in (1, 2, 3)]
    found = declip.report.examine(encode(first, "TIFF", *more), fake, date=DATE)
    assert (found.to_dict()["pages"], found.to_dict()["page"]) == (3, 1)
    said = "What was examined The file holds 3 pages; the first one was examined."
    assert said in Page(found.to_html()).text


def test_each_state_of_content_credentials_is_told_as_text(plain: Report) -> None:
    assert plain.metadata is not None
    nothing = Page(plain.to_html()).text
    assert "What the pixels show" not in nothing and "What was checked" not in nothing
    for state in get_args(provenance.State):
        said = (provenance.Reason("a.code", f"checked {NASTY}"),)
        fields = (provenance.Field("made by", NASTY),)
        told = provenance.Provenance(
            state=state, meaning=f"{state} & so on", headline=NASTY, reasons=said, fields=fields
        )
        page = Page(replace(plain, metadata=replace(plain.metadata, credentials=told)).to_html())
        page.assert_harmless()
        text = page.text
        assert text.index("What the file says") < text.index("onerror") < text.index("What the pixels show")
        assert text.index("The map") < text.index(f"{state} & so on") < text.index("What was checked a.code checked")


# --- the place ------------------------------------------------------------------------------------------------------

LATITUDE, LONGITUDE = (48.0, 51.0, 29.61), (2.0, 17.0, 40.23)
TRACES = ("48.8582", "2.2945", "29.61", "40.23", "Eiffel", "PLACE-IN-NOTE")


def with_position(path: Path) -> Path:
    """A JPEG that tells its place in EXIF's GPS tags, descriptions, a maker note, XMP, a comment and its preview."""
    exif = exif_of({0x010F: "Maker", 0x010E: "Eiffel tower, 48.8582 N 2.2945 E"})
    gps = {1: "N", 2: LATITUDE, 3: "E", 4: LONGITUDE, 29: "2026:01:02"}
    exif.get_ifd(0x8825).update(gps)
    exif.get_ifd(0x8769).update(
        {0x9286: b"ASCII\0\0\0Eiffel 48.8582", 0x927C: b"PLACE-IN-NOTE 48.8582, 2.2945", 0x9003: "2026:01:02 03:04:05"}
    )
    inner = exif_of({0x010E: "Eiffel 48.8582"})
    inner.get_ifd(0x8825).update(gps)
    preview = encode(Image.new("RGB", (32, 24), (200, 30, 30)), "JPEG", exif=inner)
    block = _with_preview(exif.tobytes(), preview)
    xmp = (
        b'<x:xmpmeta><rdf:Description exif:GPSLatitude="48,51.4935N" exif:GPSLongitude="2,17.6705E" '
        b'photoshop:City="Eiffel" xmp:CreatorTool="Editor 9"/></x:xmpmeta>'
    )
    return jpeg(path, exif=block, xmp=xmp, comment=b"Eiffel 48.8582 2.2945")


def _with_preview(exif: bytes, preview: bytes) -> bytes:
    """An EXIF block of Pillow's (little-endian or big) with a second directory that holds a preview."""
    head, body = exif[:6], exif[6:]
    order = "<" if body[:2] == b"II" else ">"
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
    found = declip.report.examine(with_position(tmp_path / "photo.jpg"), fake, date=DATE)
    assert found.metadata is not None
    assert found.metadata.has_position and found.metadata.thumbnail is not None  # there is something to leave out
    assert found.metadata.thumbnail.shape == (24, 32, 3)
    page, facts = Page(found.to_html()), json.dumps(found.to_dict())
    for data in page.pictures():
        assert b"GPS" not in data and b"Eiffel" not in data
        with Image.open(io.BytesIO(data)) as picture:
            assert not picture.getexif()
    words = re.sub(r'data:image/[^"]*', "", page.html)  # base64 may hold any four letters
    for trace in (*TRACES, "51.4935", "17.6705"):
        assert trace not in words and trace not in facts, trace
    assert "holds a GPS position. It is left out" in page.text
    assert "Editor 9" in words and "2026:01:02 03:04:05" in words  # but what has no place in it is there


def test_the_place_is_told_when_asked(fake: Localizer, tmp_path: Path) -> None:
    found = declip.report.examine(with_position(tmp_path / "photo.jpg"), fake, date=DATE, position=True)
    text = Page(found.to_html()).text
    assert "48, 51, 29.61" in text and "2, 17, 40.23" in text and "Eiffel tower, 48.8582 N 2.2945 E" in text
    assert "PLACE-IN-NOTE" not in text  # a maker note is nobody's to read
    assert {"GPSLatitude", "GPSLongitude"} <= {row["name"] for row in found.to_dict()["metadata"]["position"]}


# --- figures, files and the command ---------------------------------------------------------------------------------


def test_figures_belong_to_the_weights_they_were_measured_with(plain: Report) -> None:
    def text_of(**fields: str) -> str:
        engine = localizer_of().engine
        for name, value in fields.items():
            setattr(engine, name, value)
        return Page(replace(plain, localizer=Localizer(engine)).to_html()).text

    text = text_of()
    assert "No measured figures travel with these weights" in text and "Trained on" not in text
    assert "Trained on" not in text_of(model="mini")  # any file may be called so
    figures = json.loads((MINI.parent / "mini.json").read_text(encoding="utf-8"))
    text = text_of(model="mini", sha256=figures["sha256"])
    telea = next(row for row in figures["kinds"] if row["name"] == "telea")
    counts = " ".join(str(telea["verdicts"].get(word, 0)) for word in ("manipulated", "inconclusive", "nothing found"))
    assert f"telea {telea['pictures']} {telea['iou']['mean']:.2f} {counts}" in text
    assert catalog.find("mini").trained_on in text
    if MINI.is_file():  # the shipped figures are of the shipped weights
        assert figures["sha256"] == sha256_of(MINI)


def test_saving_is_whole_and_overwrites_only_when_told(plain: Report, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    plain.save(out)
    assert out.read_text(encoding="utf-8") == plain.to_html()
    out.write_text("mine")
    with refused("exists", "overwrites"):
        plain.save(out)
    assert out.read_text() == "mine"
    plain.save(out, force=True)
    assert out.read_text(encoding="utf-8") == plain.to_html()
    assert list(out.parent.iterdir()) == [out]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model by a fake; gives the arguments `load` was called with."""
    seen: dict[str, Any] = {}

    def load(model: Any = None, **options: Any) -> Localizer:
        seen.update(options, model=model)
        return localizer_of(options["mode"], options["threshold"])

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
    for name in ("declip.report", "declip.report.examination", "declip.report.page"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(declip, "report", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert call(monkeypatch, "report", jpeg(tmp_path / "photo.jpg"), "--out", tmp_path / "page.html") == 2
    assert "pip install 'declip[report]'" in capfd.readouterr().err
    with pytest.raises(declip.MissingExtraError, match=r"declip\[report\]"):
        _ = declip.report.examine
