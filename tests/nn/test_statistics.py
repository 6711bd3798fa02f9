"""Fixed statistics: what they measure, in grey levels, wherever it is."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from declip.nn.statistics import BlockStatistics, Pixels, QuantizationStatistics, ResidualStatistics

pytestmark = pytest.mark.usefixtures("one_torch_thread")

HALF = (0.5, 0.5, 0.5)
FILTERS = len(ResidualStatistics.FILTERS)
NIL = math.log(0.1)  # the logarithm of a mean magnitude of 0

# Channels of BlockStatistics.
LUMA, CHROMA, QUIET = slice(0, 63), slice(63, 77), slice(77, 140)
COLUMNS, ROWS, LATTICE = slice(140, 148), slice(148, 156), slice(156, 172)


def grey(pixels: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """(H, W) grey levels 0-255 → (1, 3, H, W) normalised."""
    return ((pixels / 255 - mean) / std).expand(1, 3, *pixels.shape)


def residuals(images: Tensor, std: tuple[float, float, float] = HALF) -> Tensor:
    (features,) = ResidualStatistics(std)(images).maps
    return features[0]


def blocks(images: Tensor, std: tuple[float, float, float] = HALF) -> Tensor:
    (features,) = BlockStatistics(std)(images).maps
    return features[0]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed))


# ── residuals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_residuals_of_a_flat_picture_are_nil() -> None:
    features = residuals(grey(torch.full((32, 32), 77.0)))
    assert features.shape == (3 * FILTERS, 8, 8)
    # The logarithm of 0 + 0.1 (fine and coarse), and twice the share of small residuals (all).
    fine_coarse, quiet = features.split([2 * FILTERS, FILTERS])
    assert float((fine_coarse - NIL).abs().max()) < 1e-3
    assert float((quiet - 2).abs().max()) < 1e-3


def test_residuals_of_a_ramp_are_its_slope() -> None:
    """3 grey levels per pixel to the right: the first difference across sees 3, all others (and colour) nothing."""
    features = residuals(grey(torch.arange(48.0).expand(48, 48) * 3))
    inner = features[:FILTERS, 4:8, 4:8]  # away from the reflected border
    expected = torch.full_like(inner, NIL)
    expected[0] = math.log(3.1)
    torch.testing.assert_close(inner, expected, atol=2e-3, rtol=0)


def test_residuals_see_noise_where_it_is() -> None:
    noisy = torch.full((64, 64), 128.0)
    noisy[:, 32:] += 12 * noise(64, 32)
    fine = residuals(grey(noisy))[:8].mean(0)  # of the filters on luma
    assert float(fine[:, 10:].mean() - fine[:, :6].mean()) > 3  # e-folds


# ── blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blocks_of_a_flat_picture_are_nil() -> None:
    features = blocks(grey(torch.full((40, 40), 77.0)))
    assert features.shape == (172, 5, 5)
    assert float((features[:77] - NIL).abs().max()) < 2e-3  # the cosines sum to nought but for rounding
    assert float((features[QUIET] - 2).abs().max()) < 1e-3
    assert float(features[140:].abs().max()) < 1e-3


@pytest.mark.parametrize(("down", "across"), [(0, 1), (3, 5), (7, 7)])
def test_a_cosine_has_one_frequency(down: int, across: int) -> None:
    """10 grey levels of one basis picture of the transform: its coefficient is 10 / its height, all others nought."""
    x = torch.arange(8.0)
    line = [torch.cos(math.pi * k * (2 * x + 1) / 16) for k in (down, across)]
    pixels = 128 + 10 * torch.outer(line[0], line[1]).repeat(4, 4)
    magnitudes = blocks(grey(pixels))[LUMA, 1:-1, 1:-1].exp() - 0.1
    expected = torch.zeros(63)
    expected[8 * down + across - 1] = 10 * float(torch.outer(line[0], line[1]).norm())
    torch.testing.assert_close(magnitudes.mean((1, 2)), expected, atol=2e-3, rtol=1e-4)


def test_chroma_is_apart_from_luma() -> None:
    """A wave in blue against yellow of equal luma shows in Cb's diagonals, and hardly in luma's spectrum."""
    wave = 20 * torch.cos(math.pi * (2 * torch.arange(32.0) + 1) / 16).expand(32, 32)
    rgb = torch.stack([128 - 0.114 / 0.886 * wave, 128 - 0.114 / 0.886 * wave, 128 + wave])[None]
    features = blocks((rgb / 255 - 0.5) / 0.5)
    assert float(features[LUMA].max()) < NIL + 1e-2
    first, *others = features[CHROMA][:7, 1:-1, 1:-1].mean((1, 2)).tolist()
    assert first > 3 and max(others) < NIL + 1e-2
    cr = features[CHROMA][7:, 1:-1, 1:-1].mean((1, 2)).tolist()
    assert cr[0] < first - 1


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(pixels.clamp(0, 255).byte().numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).float()


def test_quantized_blocks_are_quiet_on_their_own_grid_only() -> None:
    pixels = jpeg(128 + 15 * noise(136, 136), 40)
    own = blocks(grey(pixels[:128, :128]))[QUIET].mean() / 2
    shifted = blocks(grey(pixels[4:132, 4:132]))[QUIET].mean() / 2
    assert float(own) > 0.5
    assert float(shifted) < 0.3


def test_seams_between_blocks_show_by_their_phase() -> None:
    """Steps at every eighth column: the second difference is large in the columns beside the step, 0 and 7."""
    steps = 100 + 6 * (torch.arange(64) // 8 % 2).float()
    features = blocks(grey(steps.expand(64, 64)))[:, 2:-2, 2:-2].mean((1, 2))
    columns = features[COLUMNS]
    assert columns.argsort(descending=True)[:2].sort().values.tolist() == [0, 7]
    assert float(columns[0] - columns[3]) == pytest.approx(math.log(6.1 / 0.1), abs=0.01)
    assert float(columns.sum()) == pytest.approx(0, abs=1e-3)
    assert float(features[ROWS].abs().max()) < 1e-3
    turned = blocks(grey(steps.view(-1, 1).expand(64, 64)))[:, 2:-2, 2:-2].mean((1, 2))
    torch.testing.assert_close(turned[ROWS], columns, atol=1e-4, rtol=0)
    assert float(turned[COLUMNS].abs().max()) < 1e-3


def test_a_lattice_shows_by_its_phase() -> None:
    """One bright pixel in 4×4: the product of second differences is largest there, (1, 2) of the lattice."""
    pixels = torch.full((64, 64), 100.0)
    pixels[1::4, 2::4] += 8
    features = blocks(grey(pixels))[LATTICE, 2:-2, 2:-2].mean((1, 2))
    assert int(features.argmax()) == 4 * 1 + 2


# ── quantization ────────────────────────────────────────────────────────────────────────────────────────────────────


def waves(pixels: Tensor) -> dict[int, float]:
    """Per step, the mean over the blocks inside and over the two lowest frequencies, across and down."""
    (features,) = QuantizationStatistics(HALF)(grey(pixels)).maps
    steps, frequencies = QuantizationStatistics.STEPS, 20
    per_step = features[0, :, 2:-2, 2:-2].mean((1, 2)).view(len(steps), frequencies)[:, [0, 5]].mean(1)
    return dict(zip(steps, per_step.tolist(), strict=True))


def test_a_quantization_shows_at_its_step_and_its_divisors() -> None:
    """Quality 50: libjpeg's table has 11 and 12 for the lowest frequencies, quality 75 has 6 and 6."""
    found = waves(jpeg(128 + 15 * noise(160, 160), 75))
    assert found[6] > 0.9 and found[3] > 0.7 and found[2] > 0.6
    assert max(abs(found[step]) for step in (4, 5, 7, 8, 9, 10, 11, 14, 16)) < 0.4
    raw = waves(128 + 15 * noise(160, 160))
    assert max(abs(value) for value in raw.values()) < 0.15


def test_a_first_quantization_outlives_a_second_finer_one() -> None:
    pixels = 128 + 15 * noise(160, 160)
    twice, once = waves(jpeg(jpeg(pixels, 50), 93)), waves(jpeg(pixels, 93))
    assert (twice[11] + twice[12]) / 2 > 0.35
    assert abs(once[11] + once[12]) / 2 < 0.1


def test_pixels_are_the_picture() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert Pixels(HALF)(images).maps[0] is images


# ── all ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [ResidualStatistics, BlockStatistics, QuantizationStatistics])
def test_statistics_do_not_depend_on_how_the_picture_was_normalised(kind: type[torch.nn.Module]) -> None:
    pixels = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(0)).float()
    (one_way,) = kind(HALF)(grey(pixels)).maps
    (other,) = kind((0.2, 0.2, 0.2))(grey(pixels, 0.4, 0.2)).maps
    torch.testing.assert_close(one_way, other, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", [Pixels, ResidualStatistics, BlockStatistics, QuantizationStatistics])
def test_statistics_keep_nothing_in_a_checkpoint(kind: type[torch.nn.Module]) -> None:
    assert kind(HALF).state_dict() == {}
    assert list(kind(HALF).parameters()) == []
