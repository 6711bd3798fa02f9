"""What is no photograph is told apart; photographs, also those that look like graphics in some way, are examined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from declip.images import scope
from declip.images.dose import perturb
from declip.images.read import read_photo

REAL_SCOPE = True
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "photos").iterdir())
# Plots, screenshots of the page and of the report, and sheets of photos with their maps.
SHOWN = sorted((ROOT / "docs" / "images").glob("*.png"))
DATA = ROOT.parent / "shared" / "data"
LIBRARY = "astronaut camera cell chelsea coffee coins gravel grass brick moon rocket retina"
Pixels = NDArray[np.uint8]


def scaled(picture: Image.Image, by: float) -> Pixels:
    size = round(picture.width * by), round(picture.height * by)
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


CONDITIONS: dict[str, Callable[[Image.Image], Pixels]] = {
    "as it is": np.asarray,
    "JPEG 90": lambda picture: perturb(np.asarray(picture), "jpeg", 90),
    "JPEG 75": lambda picture: perturb(np.asarray(picture), "jpeg", 75),
    "WebP 80": lambda picture: perturb(np.asarray(picture), "webp", 80),
    "half": lambda picture: scaled(picture, 0.5),
    "larger": lambda picture: scaled(picture, 1.5),
}


def text_page(ink: str, paper: str, width: int = 900, height: int = 700) -> Image.Image:
    page = Image.new("RGB", (width, height), paper)
    draw, letters = ImageDraw.Draw(page), ImageFont.load_default(18)
    words = "What is written here is of no account, but it fills a line "
    for line in range(24):
        draw.text((50, 40 + 26 * line), words[line % 9 :], ink, letters)
    return page


def drawing() -> Image.Image:
    """Shapes with black outlines, drawn twice as large and averaged."""
    picture = Image.new("RGB", (1600, 1200), "#87ceeb")
    draw = ImageDraw.Draw(picture)
    for number, colour in enumerate(("#0b6e4f", "#a4133c", "#e07a5f", "#5a189a")):
        left = 80 + 370 * number
        draw.polygon([(left, 1100), (left + 170, 300), (left + 340, 1100)], fill=colour, outline="black", width=8)
        draw.ellipse((left, 60, left + 200, 260), fill="#ffd166", outline="black", width=8)
    return picture.reduce(2)


def bars() -> Image.Image:
    picture = text_page("black", "white")
    draw = ImageDraw.Draw(picture)
    for number in range(12):
        draw.rectangle((60 + 65 * number, 600 - 37 * (number % 7 + 2), 100 + 65 * number, 600), fill="#1f77b4")
    return picture


def pairs(names: Iterable[Any]) -> list[tuple[Any, str]]:
    """Each name as it is, and under one further condition, so that each condition is met."""
    others = list(CONDITIONS)[1:]
    return [(name, c) for i, name in enumerate(names) for c in ("as it is", others[i % len(others)])]


GRAPHICS = {
    "text": text_page("black", "white"),
    "text on black": text_page("#d8dee9", "#1e222a"),
    "drawing": drawing(),
    "bars": bars(),
}


def scan(noise: float) -> Image.Image:
    """A page on paper that is lit from one side, a little turned, with a sensor's noise."""
    straight = text_page("black", "white", 860, 700).convert("L")
    page = np.asarray(straight.rotate(2, Image.Resampling.BICUBIC, fillcolor=255))
    light = np.linspace(242, 230, 860)[None, :, None]
    grain = np.random.default_rng(0).normal(0, noise, (700, 860, 3))
    lit = light * (0.12 + 0.88 * page[..., None] / 255) + grain
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def kind(pixels: Pixels) -> str | None:
    found = scope.why_not(pixels)
    return found and found.kind


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 8), "too small"), ((63, 500), "too small"), ((500, 63), "too small"), ((64, 64), None)]
)
def test_the_smallest_that_is_examined(size: tuple[int, int], expected: str | None) -> None:
    assert kind(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)) == expected


@pytest.mark.parametrize(
    ("colour", "size"), [((0, 0, 0), (64, 64)), ((255, 255, 255), (700, 1000)), ((20, 120, 220), (64, 64))]
)
def test_one_colour_is_no_content(colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), colour, np.uint8)
    assert kind(pixels) == "no content"
    noisy = pixels.astype(int) + np.random.default_rng(0).integers(-3, 4, pixels.shape)
    assert kind(noisy.clip(0, 255).astype(np.uint8)) == "no content"


def test_a_small_thing_between_the_blocks_is_content() -> None:
    """Blocks are a sample; that nothing is there is said only of the whole."""
    pixels = np.zeros((1600, 1600, 3), np.uint8)
    assert kind(pixels) == "no content"
    pixels[40, 100] = 200
    assert scope._blocks(pixels).max() == 0
    assert kind(pixels) != "no content"


@pytest.mark.parametrize(("name", "condition"), pairs(GRAPHICS))
def test_graphics_are_no_photographs(name: str, condition: str) -> None:
    assert kind(CONDITIONS[condition](GRAPHICS[name])) == "no photograph"


@pytest.mark.parametrize(("noise", "condition"), [(0.5, "as it is"), (4.0, "JPEG 75"), (0.5, "WebP 80")])
def test_scanned_text_is_no_photograph(noise: float, condition: str) -> None:
    assert kind(CONDITIONS[condition](scan(noise))) == "no photograph"


@pytest.mark.parametrize("condition", ["as it is", "JPEG 75", "half"])
def test_a_gradient_is_no_photograph(condition: str) -> None:
    y, x = np.mgrid[0:600, 0:800] / 800
    gradient = Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).round().astype(np.uint8))
    assert kind(CONDITIONS[condition](gradient)) == "no photograph"


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_the_plots_and_screenshots_of_the_documentation(path: Path) -> None:
    assert kind(read_photo(path).pixels) == "no photograph"


@pytest.mark.parametrize(("path", "condition"), pairs(EXAMPLES))
def test_the_example_photos_are_examined(path: Path, condition: str) -> None:
    photo = Image.fromarray(read_photo(path).pixels)
    assert kind(CONDITIONS[condition](photo)) is None


@pytest.mark.parametrize("name", LIBRARY.split())
def test_photographs_of_a_library_are_examined(name: str) -> None:
    """Among them grey ones, a microscope's and a telescope's, and one with few levels, all of which are on the disk."""
    data = pytest.importorskip("skimage.data")
    folder = Path(data.__file__).parent
    paths = [path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg")]
    if not paths:
        pytest.skip(f"this scikit-image does not carry {name}")
    photo = Image.fromarray(read_photo(paths[0]).pixels)
    for condition in ("as it is", "JPEG 75"):
        assert kind(CONDITIONS[condition](photo)) is None, condition


def framed(photo: Image.Image, colour: str, across: float, along: float) -> Image.Image:
    canvas = Image.new("RGB", (round(photo.width * across), round(photo.height * along)), colour)
    canvas.paste(photo, ((canvas.width - photo.width) // 2, (canvas.height - photo.height) // 2))
    return canvas


def cut_out(photo: Image.Image, colour: str) -> Image.Image:
    """An ellipse of the photo on one colour, with an edge that is smoothed."""
    large = Image.new("L", (photo.width * 2, photo.height * 2))
    ImageDraw.Draw(large).ellipse((0, 0, *large.size), fill=255)
    canvas = Image.new("RGB", (photo.width * 3 // 2, photo.height * 3 // 2), colour)
    canvas.paste(photo, (photo.width // 4, photo.height // 4), large.reduce(2))
    return canvas


PHOTOGRAPHS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black bars above and below": lambda photo: framed(photo, "black", 1, 1.6),
    "a white border": lambda photo: framed(photo, "white", 1.4, 1.4),
    "cut out on white": lambda photo: cut_out(photo, "white"),
    "cut out on grey": lambda photo: cut_out(photo, "#808080"),
    "black and white": lambda photo: photo.convert("L").convert("RGB"),
    "at night": lambda photo: photo.point(lambda value: max(0, value - 150)),
    "over-exposed": lambda photo: photo.point(lambda value: min(255, value + 120)),
}


@pytest.mark.parametrize(("name", "condition"), pairs(PHOTOGRAPHS))
def test_photographs_with_flat_parts_are_examined(name: str, condition: str) -> None:
    photo = Image.fromarray(read_photo(ROOT / "examples" / "photos" / "coffee-untouched.jpg").pixels)
    assert kind(CONDITIONS[condition](PHOTOGRAPHS[name](photo))) is None


def test_a_page_with_a_photo_goes_by_what_there_is_more_of() -> None:
    photo = Image.fromarray(read_photo(ROOT / "examples" / "photos" / "china-untouched.jpg").pixels)
    article, album = text_page("black", "white"), Image.new("RGB", (1320, 900), "white")
    article.paste(photo.resize((300, 200)), (560, 40))
    for left in (10, 670):
        for top in (5, 455):
            album.paste(photo, (left, top))
    ImageDraw.Draw(album).text((10, 436), "Four of a kind", "black", ImageFont.load_default(14))
    assert kind(np.asarray(article)) == "no photograph"
    assert kind(np.asarray(album)) is None


def test_an_answer_is_a_word_of_a_closed_set_and_a_sentence() -> None:
    answers = [
        scope.why_not(np.zeros((8, 8, 3), np.uint8)),
        scope.why_not(np.zeros((80, 80, 3), np.uint8)),
        scope.why_not(np.asarray(drawing())),
    ]
    assert tuple(answer.kind for answer in answers if answer) == get_args(scope.Kind)
    assert answers[0] and answers[0].reason == "The picture is too small: a side has fewer than 64 pixels."


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared photographs are not here")
@pytest.mark.parametrize("pattern", ["photos/valid/*", "photos/calibrate/*", "forged/dev/*/image/*"])
def test_of_photographs_that_had_no_say_at_most_one_in_a_hundred_is_refused(pattern: str) -> None:
    paths = sorted(DATA.glob(pattern))
    refused = [path.name for path in paths if kind(read_photo(path).pixels)]
    assert len(paths) >= 100 and len(refused) <= 0.01 * len(paths), refused
