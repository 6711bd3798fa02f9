"""Training-free maps: each finds the trace it looks for where it was planted, on the scale that it names."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from scipy import ndimage

import declip
from declip.clues import BASELINES, Baseline, DoubleJpeg, ErrorLevel, JpegGhost, NoiseLevel
from declip.errors import ImageError, MissingExtraError, SpecError
from declip.evaluation import metrics
from declip.images.mapfiles import write_mask
from declip.images.read import read_photo
from declip.results import Localization, Sample

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"
SIZE = (264, 392)  # px, height and width
Pixels = NDArray[np.uint8]

pytest.importorskip("jpeglib")
kinds = pytest.mark.parametrize("kind", BASELINES.values(), ids=list(BASELINES))


def picture(name: str) -> Pixels:
    """A photo made smaller, so that no earlier saving shows."""
    with Image.open(PHOTOS / name) as file:
        return np.array(file.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def flower() -> Pixels:
    return picture("flower-copy-move.png")


@pytest.fixture(scope="module")
def cat() -> Pixels:
    return picture("chelsea-regenerate-local.png")


@pytest.fixture(scope="module")
def mask() -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[77:187, 141:259] = True  # off the grid of 8 px
    return mask


def encode(pixels: Pixels, file_format: Literal["JPEG", "PNG"] = "JPEG", quality: int = 90, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if file_format == "JPEG":
        options["quality"] = quality
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def saved(pixels: Pixels, quality: int) -> Pixels:
    return read_photo(encode(pixels, quality=quality)).pixels


def pasted(into: Pixels, what: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    return np.where(mask[..., None], what, into)


def map_of(kind: type[Baseline], source: Any) -> Localization:
    (result,) = kind().map([source])
    assert isinstance(result, Localization)
    return result


def found(kind: type[Baseline], source: Any, mask: NDArray[np.bool_]) -> float:
    return metrics.average_precision(map_of(kind, source).scores, mask)


# --- what each finds; the mask is 12.5 % of the photo, the AP of a map that says nothing -----------------------------


def test_error_level_finds_what_was_never_saved(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_]) -> None:
    assert abs(mask.mean() - 0.125) < 0.001
    forged = pasted(saved(flower, 75), cat, mask)
    assert found(ErrorLevel, forged, mask) > 0.6
    assert found(ErrorLevel, pasted(flower, cat, mask), mask) < found(ErrorLevel, forged, mask) - 0.2


def test_error_level_is_the_mean_change_of_a_block(flower: Pixels) -> None:
    """Against its definition, written out for one block and its neighbours."""
    again = saved(flower, 90).astype(float)
    window = np.abs(flower - again)[80:104, 160:184].mean()  # 3×3 blocks around the one at (88, 168)
    scores = map_of(ErrorLevel, flower).scores
    assert abs(scores[91:93, 171:173].mean() - window / 8) < 0.01
    assert 0.02 < window / 8 < 0.9


def test_noise_level_finds_more_and_less_noise(flower: Pixels, mask: NDArray[np.bool_]) -> None:
    rng = np.random.default_rng(0)

    def noisy(sigma: float) -> Pixels:
        return np.clip(np.rint(flower + rng.normal(0, sigma, flower.shape)), 0, 255).astype(np.uint8)

    assert found(NoiseLevel, pasted(noisy(3), noisy(12), mask), mask) > 0.75
    smooth = ndimage.gaussian_filter(noisy(6), (2, 2, 0))
    assert found(NoiseLevel, pasted(noisy(6), smooth, mask), mask) > 0.9


def test_noise_level_is_in_octaves(mask: NDArray[np.bool_]) -> None:
    """Grey noise of sigma 4, of 16 in the middle: two octaves, half of the scale."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, np.where(mask, 16.0, 4.0))
    grey = np.clip(np.rint(128 + noise), 0, 255).astype(np.uint8)
    scores = map_of(NoiseLevel, grey).scores
    expected = np.log2(16.25 / 4.25) / 4
    assert abs(scores[100:160, 170:230].mean() - expected) < 0.02
    assert scores[:50].mean() < 0.05


def test_jpeg_ghost_finds_a_part_of_another_past(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_]) -> None:
    forged = pasted(flower, saved(flower, 60), mask)
    assert found(JpegGhost, forged, mask) > 0.6
    assert found(JpegGhost, encode(forged, quality=92), mask) > 0.5
    assert found(JpegGhost, flower, mask) < 0.25
    assert found(JpegGhost, encode(pasted(saved(flower, 65), cat, mask), quality=92), mask) > 0.6


@pytest.mark.parametrize(("first", "second"), [(60, 95), (85, 90)])
def test_double_jpeg_finds_what_was_saved_once(
    flower: Pixels, cat: Pixels, mask: NDArray[np.bool_], first: int, second: int
) -> None:
    result = map_of(DoubleJpeg, encode(pasted(saved(flower, first), cat, mask), quality=second))
    assert metrics.average_precision(result.scores, mask) > 0.85
    assert metrics.iou(result.mask, mask) > 0.5  # it is a probability: 0.5 means something


def test_double_jpeg_finds_what_was_moved_off_the_grid(flower: Pixels, mask: NDArray[np.bool_]) -> None:
    once = saved(flower, 70)
    forged = encode(pasted(once, np.roll(once, (3, 5), (0, 1)), mask), quality=92)
    assert found(DoubleJpeg, forged, mask) > 0.85
    inside = (slice(100, 164), slice(164, 236))
    assert map_of(DoubleJpeg, forged).scores[inside].mean() > 0.9
    on_grid = encode(pasted(once, np.roll(once, (8, 16), (0, 1)), mask), quality=92)
    assert map_of(DoubleJpeg, on_grid).scores[inside].mean() < 0.2


def test_double_jpeg_reads_the_past_of_a_png(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_]) -> None:
    forged = pasted(saved(flower, 80), cat, mask)
    assert found(DoubleJpeg, encode(forged, "PNG"), mask) > 0.85
    assert np.array_equal(map_of(DoubleJpeg, forged).scores, map_of(DoubleJpeg, encode(forged, "PNG")).scores)


def test_double_jpeg_of_other_pasts(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_]) -> None:
    for source in (flower, cat, encode(flower, quality=50), encode(cat, quality=50), encode(cat, quality=90)):
        assert map_of(DoubleJpeg, source).scores.max() == 0  # saved once at most
    # A finer first saving is the limit that its description names.
    assert map_of(DoubleJpeg, encode(pasted(saved(flower, 95), cat, mask), quality=75)).scores.max() == 0
    # Its red petals are clipped, and would be called "saved once" if such blocks were not left out.
    result = map_of(DoubleJpeg, encode(saved(flower, 70), quality=92))
    assert 0 < result.score < 0.05 and result.area < 0.005


@pytest.mark.parametrize("orientation", [1, 5, 6])
def test_double_jpeg_is_upright(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_], orientation: int) -> None:
    """The coefficients lie as they are stored; the map lies as the upright photo does."""
    mask = mask.copy()
    mask[150:] = mask[:, 230:] = False  # not in the middle
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(pasted(saved(flower, 70), cat, mask), quality=92, exif=exif)
    photo = read_photo(data)
    marked = read_photo(encode(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), "PNG", exif=exif))
    upright = marked.pixels[..., 0] > 127
    result = map_of(DoubleJpeg, data)
    assert photo.orientation == orientation and result.scores.shape == photo.size == upright.shape
    assert metrics.average_precision(result.scores, upright) > 0.8


# --- what all have in common ----------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (63, 65)])
def test_sizes_and_ranges(kind: type[Baseline], flower: Pixels, size: tuple[int, int]) -> None:
    part = flower[: size[0], : size[1]]
    for source in (part, encode(part)):
        result = map_of(kind, source)
        assert result.scores.shape == size and result.scores.dtype == np.float32
        assert result.scores.min() >= 0 and result.scores.max() <= 1
        assert result.score == pytest.approx(result.scores.mean(dtype=float))


@kinds
@pytest.mark.parametrize("level", [0, 128])
def test_flat_pictures_are_not_suspicious(kind: type[Baseline], level: int) -> None:
    assert map_of(kind, np.full((80, 96, 3), level, dtype=np.uint8)).scores.max() < 0.05


@kinds
def test_a_bad_file_is_yielded(kind: type[Baseline], flower: Pixels, tmp_path: Path) -> None:
    whole = encode(flower)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photo.jpg").write_bytes(whole)
    sources = [whole, tmp_path / "none.jpg", flower, tmp_path / "cut.jpg", read_photo(whole), tmp_path / "photo.jpg"]
    results = list(kind().map(iter(sources), batch_size=2))
    assert [getattr(result, "kind", "") for result in results] == ["", "missing", "", "corrupt", "", ""]
    first, _, _, _, photo, path = results
    assert isinstance(first, Localization) and isinstance(photo, Localization) and isinstance(path, Localization)
    # The same photo by any way; nor does anything else depend on a draw.
    assert np.array_equal(first.scores, photo.scores) and np.array_equal(first.scores, path.scores)
    assert path.name == str(tmp_path / "photo.jpg")
    assert first.model == kind.name and first.verdict is None and first.sha256 == "" and first.seconds > 0


@pytest.mark.parametrize("kind", [ErrorLevel, JpegGhost, DoubleJpeg])
def test_too_long_for_jpeg(kind: type[Baseline]) -> None:
    (result,) = kind().map([np.zeros((1, 65501, 3), dtype=np.uint8)])
    assert isinstance(result, ImageError) and result.kind == "too-large" and "65500 px" in str(result)


def test_strips_leave_no_seams(
    flower: Pixels, cat: Pixels, mask: NDArray[np.bool_], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {kind: map_of(kind, flower).scores for kind in (ErrorLevel, NoiseLevel, JpegGhost)}
    monkeypatch.setattr("declip.clues.blocks.STRIP", 64)
    for kind, scores in whole.items():
        assert np.array_equal(map_of(kind, flower).scores, scores)
    # Its statistics leave out a block at each border of a strip.
    assert found(DoubleJpeg, encode(pasted(saved(flower, 70), cat, mask), quality=90), mask) > 0.85


def test_it_can_be_evaluated(flower: Pixels, cat: Pixels, mask: NDArray[np.bool_], tmp_path: Path) -> None:
    (tmp_path / "fake.jpg").write_bytes(encode(pasted(saved(flower, 70), cat, mask), quality=92))
    (tmp_path / "real.jpg").write_bytes(encode(flower))
    write_mask(tmp_path / "mask.png", mask)
    samples = [
        Sample(image=tmp_path / "fake.jpg", mask=tmp_path / "mask.png", label="fake"),
        Sample(image=tmp_path / "real.jpg", label="real"),
    ]
    evaluation = declip.evaluate(DoubleJpeg(), samples, resamples=10)
    assert evaluation.mean.ap > 0.85 and evaluation.mean.area == 0 and evaluation.mean.detection_auc == 1
    assert evaluation.protocol["model"] == "double-jpeg" and not evaluation.errors
    weak = declip.evaluate(ErrorLevel(threshold=0.01), samples, resamples=10)
    assert weak.mean.area > 0.5  # the threshold that was given is what flags


def test_quality_and_threshold() -> None:
    with pytest.raises(SpecError, match=r"quality is 0; expected a whole number from 1 to 100"):
        ErrorLevel(quality=0)
    for kind in BASELINES.values():
        with pytest.raises(SpecError, match=r"threshold is 1\.5; expected a number from 0 to 1"):
            kind(threshold=1.5)


def test_without_jpeglib(flower: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, package: str | None = None) -> None:
        assert name == "jpeglib"

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[data\]'"):
        DoubleJpeg()
    assert map_of(ErrorLevel, flower).scores.max() > 0  # the others need no extra
