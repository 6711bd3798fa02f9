"""What happens to a photo after it was made: each kind against an independent reading of what it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from declip.errors import DeclipError
from declip.images import dose
from declip.images.dose import LEVELS, Augmentation, Perturbation, Pixels, augment, jitter, perturb
from declip.images.read import read_photo
from tests.images.pictures import encode, refused

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "photos" / "flower-copy-move.png"


@pytest.fixture(scope="module")
def photo() -> Pixels:
    pixels = np.ascontiguousarray(read_photo(PHOTO).pixels[40:201, 60:253])  # of odd sides
    pixels.flags.writeable = False
    return pixels


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def change(before: Pixels, after: Pixels) -> float:
    """Mean absolute difference, in levels."""
    return float(np.abs(before.astype(float) - after).mean())


def test_blur_is_a_gaussian_on_five_pixels() -> None:
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    line = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.8**2))
    expected = np.zeros((9, 9))
    expected[2:7, 2:7] = 255 * np.outer(line, line) / line.sum() ** 2
    assert np.abs(perturb(dot, "blur", 0.8) - expected[..., None]).max() <= 0.51


@pytest.mark.slow  # torchvision takes long to import
@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.3, 2.0])
def test_blur_is_torchvisions(photo: Pixels, sigma: float) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.functional")
    planes = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    expected = functional.gaussian_blur(planes, [5, 5], [sigma, sigma]).numpy().transpose(1, 2, 0)
    blurred = perturb(photo, "blur", sigma)
    assert np.abs(blurred.astype(int) - expected).max() <= 1
    assert np.mean(blurred != expected) < 1e-3


@pytest.mark.parametrize(("kind", "quality"), [("jpeg", 1), ("jpeg", 50), ("webp", 80), ("webp", 100)])
def test_jpeg_and_webp_are_pillows_round_trip(photo: Pixels, kind: Any, quality: int) -> None:
    options = {"subsampling": 2} if kind == "jpeg" else {}
    saved = Image.open(io.BytesIO(encode(photo, kind.upper(), quality=quality, **options)))
    assert np.array_equal(perturb(photo, kind, quality), np.asarray(saved.convert("RGB")))


def test_noise_has_its_sigma() -> None:
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    noise = perturb(grey, "noise", 5.0, rng()).astype(float) - 128
    assert abs(noise.std() - 5) < 0.1 and abs(noise.mean()) < 0.1
    channels = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.abs(channels[np.triu_indices(3, 1)]).max() < 0.02


def test_resize_halves_what_a_pixel_holds() -> None:
    """A line of one pixel is antialiased on the way down; a jump between two flat halves stays where it was."""
    line = np.zeros((40, 40, 3), dtype=np.uint8)
    line[:, 21] = 200
    back = perturb(line, "resize", 0.5)
    assert 60 <= back.max() <= 140
    assert abs(back[20].astype(float).sum() / 3 - 200) < 30  # its light is spread, not lost
    halves = np.zeros((40, 40, 3), dtype=np.uint8)
    halves[:, 20:] = 200
    back = perturb(halves, "resize", 0.5)
    assert back[:, :17].max() == 0 and back[:, 23:].min() == 200


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("jpeg", (100, 85, 50, 1)),
        ("webp", (100, 75, 30, 1)),
        ("blur", (0, 0.4, 0.7, 1, 1.5, 2, 4, 10)),
        ("noise", (0, 0.5, 1, 2, 5, 10, 40, 128)),
        ("resize", (1, 0.9, 0.75, 0.5, 0.3, 0.1)),
    ],
)
def test_stronger_is_more(photo: Pixels, kind: Perturbation, levels: tuple[float, ...]) -> None:
    assert (levels[0], levels[-1]) == LEVELS[kind]
    changes = [change(photo, perturb(photo, kind, level, rng())) for level in levels]
    assert changes == sorted(changes) and len(set(changes)) == len(changes)
    if kind not in ("jpeg", "webp"):
        assert changes[0] == 0


@pytest.mark.parametrize("kind", LEVELS)
def test_size_type_and_input_are_kept(photo: Pixels, kind: Perturbation) -> None:
    tiny = [rng().integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((1, 1), (1, 7), (3, 2))]
    for level in LEVELS[kind]:
        for given in (photo, *tiny):
            before = given.copy()
            after = perturb(given, kind, level, rng())
            assert after.shape == given.shape and after.dtype == np.uint8 and np.array_equal(given, before)
            assert after.flags.writeable and not np.shares_memory(after, given)
            assert np.array_equal(after, perturb(given, kind, level, rng()))


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("jpeg", 0, r"level of jpeg is 0; expected a whole number from 1 to 100"),
        ("jpeg", 101, r"level of jpeg is 101"),
        ("webp", 75.5, r"level of webp is 75.5; expected a whole number"),
        ("blur", -1, r"level of blur is -1; expected a number from 0 to 10"),
        ("noise", float("nan"), r"level of noise is nan; expected a number from 0 to 128"),
        ("jpeg", float("nan"), r"level of jpeg is nan"),
        ("resize", 0.05, r"level of resize is 0.05; expected a number from 0.1 to 1"),
        ("resize", 1.5, r"level of resize is 1.5"),
        ("flip", 1, r"no perturbation 'flip'; expected 'jpeg', 'webp'"),
    ],
)
def test_what_there_is_not(photo: Pixels, kind: Any, level: float, message: str) -> None:
    with pytest.raises(DeclipError, match=message):
        perturb(photo, kind, level, rng())
    with pytest.raises(DeclipError, match="give an rng"):
        perturb(photo, "noise", 2)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture(pixels: Any) -> None:
    for wrong in (
        lambda: perturb(pixels, "blur", 1),
        lambda: jitter(pixels, rng()),
        lambda: augment(pixels, (), rng()),
    ):
        with refused("input", r"expected uint8 \(H, W, 3\)"):
            wrong()


def test_too_long_for_webp() -> None:
    with refused("too-large", "at most 16383 px"):
        perturb(np.zeros((1, 16384, 3), np.uint8), "webp", 80)
    assert perturb(np.zeros((1, 16383, 3), np.uint8), "webp", 80).shape == (1, 16383, 3)


# --- jitter ---------------------------------------------------------------------------------------------------------


class Drawn:
    """A generator whose draws are known: the order of the four steps, and their factors."""

    def __init__(self, order: tuple[int, ...], factors: tuple[float, float, float], turn: float) -> None:
        self.order, self.factors, self.turn = order, factors, turn

    def permutation(self, count: int) -> NDArray[np.int64]:
        assert count == 4
        return np.array(self.order)

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return self.turn if size is None else np.array(self.factors)


def test_jitter_of_known_draws() -> None:
    red = np.full((4, 4, 3), (100, 50, 50), np.uint8)
    for factors, turn, expected in (
        ((0.7, 1.0, 1.0), 0.0, [70, 35, 35]),
        ((1.0, 1.0, 0.0), 0.0, [65, 65, 65]),  # its luma
        ((1.0, 1.0, 1.0), 1 / 3, [50, 100, 50]),
    ):
        known: Any = Drawn((0, 1, 2, 3), factors, turn)
        assert np.abs(jitter(red, known)[0, 0].astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize("values", [(0.7, 1.3, 0.8, 0.3), (1.2, 0.75, 1.25, -0.27)])
def test_jitter_is_torchvisions(
    photo: Pixels, order: tuple[int, ...], values: tuple[float, float, float, float]
) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    steps = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    expected = Image.fromarray(photo)
    for step in order:
        expected = steps[step](expected, values[step])
    known: Any = Drawn(order, values[:3], values[3])
    assert np.array_equal(jitter(photo, known), np.asarray(expected))


def test_jitter_draws_evenly_within_its_strength() -> None:
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)  # of a flat grey only the brightness can change
    levels = [int(jitter(grey, generator)[0, 0, 0]) for generator in map(rng, range(300))]
    assert 70 <= min(levels) <= 72 and 128 <= max(levels) <= 130
    assert abs(np.mean(levels) - 100) < 3
    assert all(np.array_equal(jitter(grey, rng(), 0.0), grey) for _ in range(3))


def test_jitter_is_reproducible(photo: Pixels) -> None:
    assert np.array_equal(jitter(photo, rng(1)), jitter(photo, rng(1)))
    assert change(jitter(photo, rng(1)), jitter(photo, rng(2))) > 1
    with pytest.raises(DeclipError, match=r"strength of the jitter is 0\.7"):
        jitter(photo, rng(), 0.7)


# --- augment --------------------------------------------------------------------------------------------------------


def test_augment_is_reproducible_and_ordered(photo: Pixels) -> None:
    every = get_args(Augmentation)
    before = photo.copy()
    first = augment(photo, every, rng(1))
    assert np.array_equal(first, augment(photo, every[::-1], rng(1)))
    assert change(first, augment(photo, every, rng(2))) > 1
    assert first.shape == photo.shape and np.array_equal(photo, before)


def test_augment_levels(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {}

    def record(pixels: Pixels, kind: str, level: float, rng: Any = None) -> Pixels:
        seen.setdefault(kind, []).append(level)
        return pixels

    monkeypatch.setattr(dose, "perturb", record)
    generator = rng()
    for _ in range(400):
        augment(photo, ("blur", "jpeg", "webp", "resize", "noise"), generator)
    assert list(seen) == ["blur", "jpeg", "webp", "resize", "noise"]
    for levels, (low, high) in zip(seen.values(), [(0.4, 2), (30, 100), (30, 100), (0.5, 1), (1, 8)], strict=True):
        slack = 0.02 * (high - low)
        assert low <= min(levels) <= low + slack and high - slack <= max(levels) <= high
        assert abs(np.mean(levels) - (low + high) / 2) < 3 * slack


def test_augment_share(photo: Pixels) -> None:
    small = photo[:16, :16]
    generator = rng()
    changed = [not np.array_equal(augment(small, ("noise",), generator, 0.3), small) for _ in range(400)]
    assert 0.23 < np.mean(changed) < 0.37
    untouched = augment(small, ("noise", "jpeg"), rng(), 0.0)
    assert np.array_equal(untouched, small) and not np.shares_memory(untouched, small)


def test_augment_errors(photo: Pixels) -> None:
    wrong: Any = ("jpeg", "flip")
    with pytest.raises(DeclipError, match="no augmentation 'flip'; expected 'blur', 'jitter'"):
        augment(photo, wrong, rng())
    with pytest.raises(DeclipError, match=r"share of augmented pictures is 1\.5"):
        augment(photo, ("jpeg",), rng(), 1.5)
