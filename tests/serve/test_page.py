"""The page of `declip serve` in a real browser: what an analyst does with it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import declip
from declip import serve
from declip.images.mapfiles import scores16
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.regions import MaskRule
from declip.report import wording
from declip.results import Localization
from tests.serve import browsing
from tests.serve.browsing import Visit, pixels, visiting
from tests.serve.serving import FakeEngine, on_a_port, picture

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"
FORGED = PHOTOS / "astronaut-navier-stokes.jpg"
UNTOUCHED = PHOTOS / "coffee-untouched.jpg"
HOSTILE = "<img src=x onerror=alert(1)>.png"
READING = re.compile(r"x (\d+), y (\d+): score (\d\.\d{3})(, flagged)?")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.browser() as found:
        yield found


@pytest.fixture(scope="module")
def mini() -> Localizer:
    return declip.load(threads=1)


@pytest.fixture(scope="module")
def url(mini: Localizer) -> Iterator[str]:
    with on_a_port(mini, hosts=serve.LOOPBACK) as found:
        yield found


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    with visiting(browser, url) as found:
        yield found


@pytest.fixture
def examined(visit: Visit) -> Visit:
    """The page with a forged photo that has been examined."""
    visit.give(FORGED)
    visit.done()
    return visit


@pytest.fixture(scope="module")
def fake_url() -> Iterator[str]:
    """Of a service whose network finds brightness."""
    with on_a_port(Localizer(FakeEngine())) as found:
        yield found


@cache
def result(path: Path) -> Localization:
    """What the command line finds, with as many tiles at once as the service: other sums may round otherwise."""
    found = next(declip.load(threads=1).map([path], batch_size=serve.Limits().batch_size))
    assert isinstance(found, Localization)
    return found


def flagged(found: Localization, threshold: float) -> tuple[str, str]:
    """The area as the page tells it, counted in the scores that a service sends."""
    levels = scores16(found.scores)
    # At the model's own threshold what the model decided on.
    mask = found.mask if threshold == found.threshold else levels >= round(threshold * 65535 + 0.4999)
    count = int(np.count_nonzero(mask))
    share = f"{wording.percent(count / levels.size)} of the picture is flagged"
    return share, f"{count:,} of {levels.size:,} px"


def area(visit: Visit) -> tuple[str, str]:
    return visit.text("#area"), visit.text("#area-pixels")


def bright(size: tuple[int, int] = (48, 64)) -> np.ndarray[Any, Any]:
    """Dark, with a bright part at the upper right."""
    made = np.full((*size, 3), 20, np.uint8)
    made[: size[0] // 2, size[1] // 2 :] = 250
    return made


def saved_as(array: np.ndarray[Any, Any], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind, **options)
    return stream.getvalue()


# --- the verdict and the map ----------------------------------------------------------------------------------------


def test_a_photo_that_is_dropped_is_examined(visit: Visit, mini: Localizer) -> None:
    """The smoke test: verdict, area, threshold."""
    expected = result(FORGED)
    visit.drop(FORGED.name, FORGED.read_bytes())
    visit.done()
    words = wording.explain(expected, mini.spec.calibration)
    assert visit.text("#verdict-title") == words.title == "Traces of manipulation were found"
    assert visit.text("#verdict .summary") == words.summary
    assert visit.text("#verdict .caution") == f"{words.caution} {words.because}"
    before = area(visit)
    assert before == flagged(expected, expected.threshold)
    visit.set_threshold(0.35)
    assert area(visit) == flagged(expected, 0.35) != before


@pytest.mark.slow
def test_the_threshold_gives_what_python_counts(examined: Visit) -> None:
    expected = result(FORGED)
    for threshold in (0.0, 0.1234, 0.987, 1.0):
        examined.set_threshold(threshold)
        assert area(examined) == flagged(expected, round(threshold, 3)), threshold
    examined.page.fill("#threshold-value", "0.42")
    examined.page.press("#threshold-value", "Enter")
    assert area(examined) == flagged(expected, 0.42)
    examined.page.focus("#threshold")
    examined.page.keyboard.press("ArrowRight")
    assert area(examined) == flagged(expected, 0.43)
    examined.page.keyboard.press("[")
    assert area(examined) == flagged(expected, 0.42)
    examined.page.click("#threshold-reset")
    assert area(examined) == flagged(expected, expected.threshold)
    examined.until("document.querySelector('#live').textContent.includes('is flagged')")


@pytest.mark.slow
def test_faint_parts_are_left_out_until_the_threshold_is_moved(browser: Any) -> None:
    engine = FakeEngine()
    assert engine.spec.calibration is not None
    # The bright part has an evidence of 7.7 × √(1/4), the faint one of 1.4 × √(1/24).
    compared = ((1.0,) * 199, (), ())
    calibration = dataclasses.replace(engine.spec.calibration, untouched=compared, photos=(199, 0, 0))
    engine.spec = dataclasses.replace(engine.spec, calibration=calibration)
    pixels = bright()
    pixels[36:44, 4:20] = 150
    data = saved_as(pixels, "PNG")
    with on_a_port(Localizer(engine)) as url, visiting(browser, url) as visit:
        expected = Localizer(engine)(data)
        assert len(expected.regions) == 1 < np.count_nonzero(expected.scores >= 0.5) / expected.mask.sum()
        visit.give(("a.png", data))
        visit.done()
        assert area(visit) == flagged(expected, 0.5)
        assert len(visit.settled()) == 1
        assert "stronger than those of nearly all untouched photos" in visit.text("#rule")
        assert visit.settled()[0][3] == wording.rank_percent(expected.regions[0].rank or 0)
        (x0, y0, x1, y1) = expected.regions[0].bbox
        visit.set_threshold(0.51)
        assert area(visit) == flagged(expected, 0.51)
        assert len(visit.settled()) == 2
        assert "The verdict is not about them; Reset" in visit.text("#rule")
        visit.page.click("#threshold-reset")
        assert area(visit) == flagged(expected, 0.5)
        (row,) = visit.settled()
        assert row[1] == f"{x1 - x0} × {y1 - y0} px at {x0}, {y0}"


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 0.99])
def test_regions_are_those_of_python(examined: Visit, threshold: float) -> None:
    scores = scores16(result(FORGED).scores).astype(np.float32) / np.float32(65535)
    expected = Localization(
        name="", scores=scores, rule=MaskRule(threshold=threshold), image_score=0, model="", sha256=""
    ).regions
    examined.set_threshold(threshold)
    shown = examined.settled()
    assert len(shown) == len(expected) > 0 or threshold == 0.99
    for number, (row, region) in enumerate(zip(shown, expected, strict=True), start=1):
        x0, y0, x1, y1 = region.bbox
        where = f"{x1 - x0} × {y1 - y0} px at {x0}, {y0}"
        assert row == [str(number), where, wording.percent(region.area), f"{region.score:.3f}"]


@pytest.mark.slow
def test_a_region_that_is_chosen_comes_into_view_and_scores_are_read(examined: Visit) -> None:
    expected = result(FORGED)
    (x0, y0, x1, y1) = expected.regions[0].bbox
    before = READING.match(examined.at(0.5, 0.5))
    assert before is not None and (int(before[1]), int(before[2])) != ((x0 + x1) // 2, (y0 + y1) // 2)
    examined.page.click("#regions button >> nth=0")
    examined.page.wait_for_timeout(1500)
    assert examined.page.get_attribute("#regions button >> nth=0", "aria-pressed") == "true"
    for across, down in ((0.5, 0.5), (0.45, 0.6), (0.6, 0.4)):
        found = READING.match(examined.at(across, down))
        assert found is not None
        x, y = int(found[1]), int(found[2])
        assert abs(x - (x0 + x1) / 2) < x1 - x0 and abs(y - (y0 + y1) / 2) < y1 - y0
        assert float(found[3]) == pytest.approx(expected.scores[y, x], abs=0.0006)
        assert (found[4] is not None) == bool(expected.mask[y, x])
    box = examined.page.locator(".pane >> nth=1 >> .region-box").bounding_box()
    view = examined.page.locator("#view").bounding_box()
    assert view["x"] <= box["x"] and box["x"] + box["width"] <= view["x"] + view["width"]
    assert box["width"] / box["height"] == pytest.approx((x1 - x0) / (y1 - y0), rel=0.05)


@pytest.mark.slow
def test_panes_move_together_and_the_swipe_cuts_the_map(examined: Visit) -> None:
    examined.page.check("[name=layout][value=side]")
    examined.page.wait_for_timeout(500)
    views = []
    for _ in range(3):
        pair = [examined.at(0.6, 0.4, pane) for pane in (0, 1)]
        assert pair[0] == pair[1] and READING.match(pair[0])
        views.append(pair[0])
        examined.at(0.3, 0.55, len(views) % 2)
        examined.page.mouse.wheel(0, -300)  # once over the one, once over the other; what is under the pointer stays
        examined.page.wait_for_timeout(1500)
    assert len(set(views)) == 3
    examined.page.check("[name=layout][value=swipe]")
    examined.page.wait_for_timeout(500)
    handle = examined.page.locator(".swipe-handle")
    assert handle.get_attribute("aria-valuenow") == "50"
    handle.focus()
    examined.page.keyboard.press("ArrowRight")
    assert handle.get_attribute("aria-valuenow") == "55"
    assert examined.page.evaluate("document.querySelector('.map').style.clipPath") == "inset(0px 0px 0px 55%)"
    box = examined.page.locator("#view").bounding_box()
    place = handle.bounding_box()
    examined.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 20)
    examined.page.mouse.down()
    examined.page.mouse.move(box["x"] + 0.2 * box["width"], place["y"] + 20, steps=4)
    examined.page.mouse.up()
    assert abs(int(handle.get_attribute("aria-valuenow")) - 20) <= 1


@pytest.mark.slow
def test_what_can_be_kept_is_what_python_writes(examined: Visit) -> None:
    expected = result(FORGED)
    examined.page.click("#outline")
    examined.page.fill("#threshold-value", "0.3")
    examined.page.press("#threshold-value", "Enter")
    levels = scores16(expected.scores)
    name, data = examined.saved("[data-save=mask]")
    assert name == f"{FORGED.name}.mask.png"
    np.testing.assert_array_equal(pixels(data), np.where(levels / 65535 >= 0.3, 255, 0))
    name, data = examined.saved("[data-save=scores]")
    assert name == f"{FORGED.name}.scores.png"
    np.testing.assert_array_equal(pixels(data), levels)
    assert examined.saved("[data-save=raw]")[1] == levels.astype("<u2").tobytes()
    examined.settled()
    name, data = examined.saved("[data-save=json]")
    row = json.loads(data)
    assert (row["threshold"], row["verdict"], row["image"]) == (0.3, None, FORGED.name)
    assert row["score"] == pytest.approx(expected.image_score)
    assert row["area"] == pytest.approx(float(np.mean(levels / 65535 >= 0.3)), abs=1e-12)
    assert set(row) == set(expected.to_dict())
    examined.page.click("#threshold-reset")
    examined.settled()
    own = json.loads(examined.saved("[data-save=json]")[1])
    assert own["regions"] == json.loads(json.dumps(expected.to_dict()["regions"]))
    examined.page.fill("#opacity", "0")
    photo = pixels(FORGED.read_bytes()).astype(int)
    shown = pixels(examined.saved("[data-save=overlay]")[1])[..., :3].astype(int)
    assert shown.shape == photo.shape and np.abs(shown - photo).mean() < 2  # two decoders of JPEG
    examined.page.fill("#opacity", "100")
    examined.page.select_option("#colours", "mask")
    shown = pixels(examined.saved("[data-save=overlay]")[1])[..., :3]
    np.testing.assert_array_equal(shown[..., 0] == 255, expected.mask)


@pytest.mark.slow
def test_the_report_is_saved_and_opens(examined: Visit, tmp_path: Path) -> None:
    name, data = examined.saved("#save-report")
    assert name == f"{FORGED.name}.report.html" and "saved" in examined.text("#keep-said")
    path = tmp_path / "report.html"
    path.write_bytes(data)
    other = examined.context.new_page()
    other.goto(path.as_uri())
    assert other.inner_text("h1") == FORGED.name
    assert "Traces of manipulation were found" in other.inner_text("main")
    assert other.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    other.close()


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bogus_file_among_good_ones_says_what_is_wrong(visit: Visit) -> None:
    visit.give(UNTOUCHED, ("notes.txt", b"no picture at all"), FORGED, ("cut.jpg", FORGED.read_bytes()[:9000]))
    visit.until("document.querySelectorAll('#photos li:is([data-state=done], [data-state=failed])').length === 4")
    said = visit.page.eval_on_selector_all("#photos .said", "all => all.map(one => one.textContent)")
    assert said == [result(UNTOUCHED).verdict, "not examined", "manipulated", "not examined"]
    visit.page.click("#photos .photo >> nth=1")
    assert visit.text("#failure-said").startswith("Not a picture declip reads") and visit.page.is_hidden("#verdict")
    visit.page.click("#photos .photo >> nth=3")
    assert "cut.jpg" not in visit.text("#failure-said") and visit.text("#stage-name") == "cut.jpg"
    visit.page.click("#photos .photo >> nth=0")
    visit.done()
    assert area(visit) == flagged(result(UNTOUCHED), result(UNTOUCHED).threshold)
    for left in (3, 2, 1, 0):
        visit.page.click("#photos .away >> nth=0")
        assert visit.page.locator("#photos li").count() == left
    assert visit.page.is_visible("#welcome")


@pytest.mark.slow
def test_metadata_are_told_without_a_place_unless_it_is_asked_for(visit: Visit) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x010E] = "<img src=x onerror=alert(1)>", "<script>alert(2)</script>"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    visit.give(("a.jpg", saved_as(bright(), "JPEG", quality=85, exif=exif)))
    visit.done()
    visit.page.click("#file summary >> nth=0")
    visit.page.wait_for_selector("#metadata dl")
    text = visit.text("#metadata")
    assert "<img src=x onerror=alert(1)>" in text and "quality 85" in text
    assert "It is left out unless asked for" in text and "52" not in text.partition("Place")[2]
    visit.page.check("#position")
    visit.until("document.querySelector('#metadata').innerText.includes('GPSLatitudeRef')")
    assert "<script>alert(2)</script>" in visit.text("#metadata")
    assert visit.page.locator("#metadata img, #metadata script").count() == 0


@pytest.mark.slow
def test_what_the_file_says_stands_above_what_the_pixels_show(visit: Visit) -> None:
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    xmp = f"<x:xmpmeta a:DigitalSourceType='{source}'/>".encode()
    visit.give(("a.jpg", saved_as(bright(), "JPEG", xmp=xmp)))
    visit.done()
    said = "created by a generator (trainedAlgorithmicMedia, in XMP, unsigned: anybody can write this)"
    assert "; see what the file says" in visit.text("#photos .said")
    text, title = visit.text("#verdict"), visit.text("#verdict-title")
    assert text.index(f"The file itself says: {said}.") < text.index("What the pixels show") < text.index(title)
    visit.page.click("#file summary >> nth=0")
    visit.page.wait_for_selector("#metadata dl")
    below = visit.text("#metadata")
    assert "created by a generator (in XMP, unsigned: anybody can write this)" in below
    assert "The file carries no content credentials." in below
    visit.give(("b.jpg", saved_as(bright(), "JPEG")))
    visit.page.click("#photos .photo >> nth=1")
    visit.done()
    assert "What the pixels show" not in visit.text("#verdict")


@pytest.mark.slow
def test_it_tells_whether_an_edit_could_have_been_seen(browser: Any, fake_url: str) -> None:
    noise = np.random.default_rng(0).integers(0, 90, (80, 96, 3)).astype(np.uint8)
    data = saved_as(noise, "PNG")
    expected = declip.detectability(Localizer(FakeEngine()), data)
    with visiting(browser, fake_url) as visit:
        visit.give(("a.png", data), ("b.png", saved_as(bright(), "PNG")))
        visit.done()
        assert visit.text("#verdict-title") == "Nothing found"
        visit.page.click("#edits-ask")
        visit.page.wait_for_selector("#edits-found table")
        cells = [row.inner_text().split("\t") for row in visit.page.query_selector_all("#edits-found tbody tr")]
        assert [(kind, count) for kind, count, _ in cells] == [
            (row.kind, f"{row.found} of {row.tried}") for row in expected.shares
        ]
        for said in expected.sentences:
            assert said in visit.text("#edits-found")
        assert not visit.page.is_visible("#edits-ask")
        visit.page.click("#photos .photo >> nth=1")
        visit.done()
        assert visit.text("#verdict-title") != "Nothing found" and not visit.page.is_visible("#edits")
        visit.page.click("#photos .photo >> nth=0")
        visit.done()
        assert visit.page.is_visible("#edits-found table")


def test_hostile_names_are_text(visit: Visit) -> None:
    visit.give((HOSTILE, picture()), ('"><svg onload=alert(2)>\u202e\x07.jpg', b"no picture"))
    visit.until("document.querySelectorAll('#photos li:is([data-state=done], [data-state=failed])').length === 2")
    names = visit.page.eval_on_selector_all("#photos .name", "all => all.map(one => one.textContent)")
    assert names == [HOSTILE, '"><svg onload=alert(2)>\\u{202e}\\u{7}.jpg']
    assert visit.text("#stage-name") == HOSTILE and HOSTILE in visit.page.title()
    assert visit.page.locator("img[onerror], svg[onload]").count() == 0
    name, data = visit.saved("[data-save=json]")
    assert name == "img_src_x_onerror_alert_1_.png.json" and json.loads(data)["image"] == HOSTILE


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def turning(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def heic(orientation: int) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return saved_as(bright((96, 128)), "HEIF", quality=-1, exif=turning(orientation))


# Files that decoders turn, each in its way, or not at all; some are square, so that their shape tells nothing.
TURNED = {
    "xmp-3.jpg": lambda: saved_as(bright((96, 96)), "JPEG", quality=95, xmp=XMP % 3),
    "xmp-6.jpg": lambda: saved_as(bright((64, 96)), "JPEG", quality=95, xmp=XMP % 6),
    "exif-3.webp": lambda: saved_as(bright((96, 96)), "WEBP", lossless=True, exif=turning(3)),
    "mirrored-7.jpg": lambda: saved_as(bright((96, 96)), "JPEG", quality=95, exif=turning(7)),
    "exif-5.avif": lambda: saved_as(bright((96, 96)), "AVIF", quality=95, exif=turning(5)),
    "tag-6.tif": lambda: saved_as(bright((64, 96)), "TIFF", exif=turning(6)),
    "exif-4.heic": lambda: heic(4),
}

# What is drawn of the photo and of the map, as they lie on each other, each as 200 × 200 RGBA.
DRAWN = """() => {
  const pane = document.querySelectorAll(".pane")[1];
  return [".osd canvas", ".map"].map((layer) => {
    const small = document.createElement("canvas");
    small.width = small.height = 200;
    const context = small.getContext("2d");
    context.drawImage(pane.querySelector(layer), 0, 0, 200, 200);
    return small.toDataURL();
  });
}"""


def of_url(url: str) -> np.ndarray[Any, Any]:
    """The pixels of a data: URL of a canvas."""
    return pixels(base64.b64decode(url.partition(",")[2]))


def drawn(visit: Visit) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(the photo in grey, how opaque the map on it is) as they are drawn, within the photo."""
    photo, tint = map(of_url, visit.page.evaluate(DRAWN))
    rows, columns = (np.flatnonzero((photo[..., 3] > 0).any(axis=axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return photo[inside][..., :3].mean(axis=2), tint[inside][..., 3]


def quarters(array: np.ndarray[Any, Any]) -> list[float]:
    """The values in the middles of the four quarters: upper left and right, lower left and right."""
    height, width = array.shape[:2]
    return [float(array[height * y // 4, width * x // 4].mean()) for y in (1, 3) for x in (1, 3)]


@pytest.mark.parametrize(
    "names", [pytest.param(["xmp-3.jpg"], id="xmp"), pytest.param(list(TURNED), id="all", marks=pytest.mark.slow)]
)
def test_the_tint_lies_on_the_part_that_is_marked(browser: Any, fake_url: str, names: list[str]) -> None:
    """However this browser would turn the file, or if it cannot read it. Bright is what the network marks."""
    given = {name: TURNED[name]() for name in names}
    with visiting(browser, fake_url) as visit:
        visit.give(*given.items())
        visit.until(f"document.querySelectorAll('#photos li[data-state=done]').length === {len(given)}")
        visit.page.click("#outline")
        for number, (name, data) in enumerate(given.items()):
            expected = read_photo(data)
            found = Localizer(FakeEngine())(data)
            marked = [value > 128 for value in quarters(expected.pixels)]
            assert marked == [value > 0.5 for value in quarters(found.scores)] and sum(marked) == 1, name
            visit.page.click(f"#photos .photo >> nth={number}")
            visit.until(f"document.querySelector('#stage-name').textContent === '{name}'")
            visit.done()
            visit.page.wait_for_timeout(300)
            photo, tint = drawn(visit)
            assert [value > 128 for value in quarters(photo)] == marked, name
            assert [value > 100 for value in quarters(tint)] == marked, name
            assert visit.page.is_hidden("#view-message")
            # The small picture in the list, the score under the pointer, and what is kept.
            small = of_url(visit.page.evaluate(THUMB, number))
            assert [value > 128 for value in quarters(small[..., :3])] == marked, name
            box = visit.page.locator("#view").bounding_box()
            place = [(x, y) for y in (-20, 20) for x in (-20, 20)][marked.index(True)]
            reading = READING.match(visit.at(0.5 + place[0] / box["width"], 0.5 + place[1] / box["height"]))
            assert reading is not None and reading[4] == ", flagged", name
            visit.page.fill("#opacity", "0")
            kept = pixels(visit.saved("[data-save=overlay]")[1])[..., :3].astype(int)
            assert kept.shape == expected.pixels.shape and np.abs(kept - expected.pixels).mean() < 2, name
            np.testing.assert_array_equal(pixels(visit.saved("[data-save=mask]")[1]), np.where(found.mask, 255, 0))
            visit.page.fill("#opacity", "70")


THUMB = "(number) => document.querySelectorAll('#photos .thumb')[number].querySelector('canvas').toDataURL()"


@pytest.mark.slow
def test_modes_and_models_are_chosen(browser: Any) -> None:
    served = on_a_port([Localizer(FakeEngine()), Localizer(FakeEngine("other"))])
    with served as url, visiting(browser, url) as visit:
        visit.give(("a.png", picture()))
        visit.done()
        visit.page.select_option("#mode", "tiled")
        visit.until("document.querySelectorAll('#photos li[data-state=done]').length === 2")
        visit.page.keyboard.press("Tab")
        visit.page.click("#photos .photo >> nth=1")
        visit.done()
        assert visit.text("#verdict-title") == "No verdict" and "calibrated in whole mode" in visit.text(
            "#verdict .summary"
        )
        visit.page.select_option("#model", "other")
        visit.until("document.querySelectorAll('#photos li[data-state=done]').length === 3")
        visit.page.click("#photos .photo >> nth=2")
        visit.done()
        assert json.loads(visit.saved("[data-save=json]")[1])["model"] == "other"


# --- who may ask, and busy services ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_token_is_asked_for_and_kept_in_memory_only(browser: Any) -> None:
    with on_a_port(Localizer(FakeEngine()), token="right") as url, visiting(browser, url) as visit:
        visit.page.wait_for_selector("#token-value:focus")
        visit.page.keyboard.type("wrong")
        visit.page.keyboard.press("Enter")
        visit.until("document.querySelector('#token-said').textContent.includes('not the token')")
        visit.give(("a.png", picture()))
        visit.until("document.querySelector('.said').textContent === 'waiting for a token'")
        visit.page.fill("#token-value", "right")
        visit.page.keyboard.press("Enter")
        visit.done()
        assert visit.page.is_hidden("#token")
        assert visit.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.slow
def test_it_comes_again_where_the_service_is_busy(browser: Any) -> None:
    engine = FakeEngine()
    served = on_a_port(Localizer(engine), serve.Limits(requests=1))
    with served as url, visiting(browser, url) as visit:
        engine.hold()
        visit.give(("a.png", picture()), ("b.png", picture(1)))
        visit.until("document.querySelector('#photos li:nth-child(2) .said').textContent.includes('busy')")
        engine.go.set()
        visit.until("document.querySelectorAll('#photos li[data-state=done]').length === 2")


# --- for everyone ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_of_it_by_keyboard(visit: Visit) -> None:
    expected = result(FORGED)
    press = visit.page.keyboard.press
    visit.page.focus("body")
    with visit.page.expect_file_chooser() as chooser:
        press("o")
    chooser.value.set_files([str(FORGED), str(UNTOUCHED)])
    visit.done()
    press("]")
    assert area(visit) == flagged(expected, round(expected.threshold + 0.01, 3))
    visit.settled()
    press("n")
    assert visit.page.get_attribute("#regions button >> nth=0", "aria-pressed") == "true"
    visit.page.wait_for_timeout(1000)
    press("c")
    found = READING.match(visit.text("#reading"))
    assert found is not None
    visit.page.focus("#view")
    press("ArrowRight")
    press("Shift+ArrowDown")
    moved = READING.match(visit.text("#reading"))
    assert moved is not None
    assert (int(moved[1]), int(moved[2])) == (int(found[1]) + 1, int(found[2]) + 10)
    assert float(moved[3]) == pytest.approx(expected.scores[int(moved[2]), int(moved[1])], abs=0.0006)
    press("v")
    assert visit.page.is_checked("[name=layout][value=side]")
    press("m")
    assert not visit.page.is_checked("#visible")
    # Drawn with the next frame of the browser, as everything about the map.
    visit.until("document.querySelector('.map').hidden")
    press("m")
    visit.until("!document.querySelector('.map').hidden")
    press("?")
    assert visit.page.is_visible("#help")
    press("Escape")
    press("j")
    visit.until(f"document.querySelector('#stage-name').textContent === '{UNTOUCHED.name}'")
    press("?")
    visit.page.uncheck("#keys")
    visit.page.click("#help button")
    press("k")
    assert visit.text("#stage-name") == UNTOUCHED.name
    # By Tab alone every control is reached, in the order in which it is seen, and what has the focus shows it.
    visit.done()
    visit.page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(80):
        press("Tab")
        name, outlined = visit.page.evaluate(
            """() => {
              const at = document.activeElement;
              const ring = at.matches("[name=layout]") ? at.nextElementSibling : at;
              return [at.id || at.className || at.tagName, getComputedStyle(ring).outlineStyle];
            }"""
        )
        reached.append(name)
        assert outlined != "none" or name in ("BODY", "swipe-handle"), name
    reached = reached[reached.index("mode") :]  # it goes round
    wanted = ["mode", "add", "help-open", "photo", "zoom-out", "view", "threshold-value", "threshold"]
    wanted += ["opacity", "colours", "save-report"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, url: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with visiting(browser, url, color_scheme=scheme, reduced_motion="reduce") as visit:

        def check(what: str) -> None:
            visit.page.wait_for_timeout(300)
            found = axe.run(visit.page).response["violations"]
            serious = [
                (rule["id"], [node["html"][:160] for node in rule["nodes"]])
                for rule in found
                if rule["impact"] in ("serious", "critical")
            ]
            assert serious == [], what

        check("empty")
        visit.give(FORGED, ("notes.txt", b"no picture"))
        visit.done()
        visit.page.click("#file summary >> nth=0")
        visit.page.wait_for_selector("#metadata dl")
        for summary in visit.page.query_selector_all("#verdict summary"):
            summary.click()
        check("done")
        visit.page.check("[name=layout][value=swipe]")
        check("swipe")
        visit.page.click("#photos .photo >> nth=1")
        check("failed")
        visit.page.click("#help-open")
        check("help")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 700])
def test_no_width_scrolls_sideways(browser: Any, url: str, width: int) -> None:
    with visiting(browser, url) as visit:
        visit.page.set_viewport_size({"width": width, "height": 800})

        def scrolls() -> bool:
            return bool(visit.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

        assert not scrolls()
        visit.give(FORGED, (f"{'long' * 60}.jpg", UNTOUCHED.read_bytes()), ("notes.txt", b"no picture"))
        visit.done()
        visit.page.click("#file summary >> nth=0")
        visit.page.wait_for_selector("#metadata dl")
        assert not scrolls()
        for layout in ("side", "swipe"):
            visit.page.check(f"[name=layout][value={layout}]")
            assert not scrolls()
        visit.page.click("#photos .photo >> nth=1")
        visit.done()
        assert not scrolls()
