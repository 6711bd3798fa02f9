"""The autoencoder: layout of its files, the round trip, and what may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from declip.errors import WeightsError

torch = pytest.importorskip("torch")

from declip.synthesis import neural  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in files as published: float16, numbered layers."""
    path = tmp_path_factory.mktemp("taef2")
    torch.manual_seed(0)
    model = neural.Autoencoder()
    for part, name in zip((model.encoder, model.decoder), neural.FILES, strict=True):
        torch.save({key: value.half() for key, value in part.state_dict().items()}, path / name)
    return path


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> neural.Autoencoder:
    return neural.load(folder)


def _cat(height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.chelsea()[60 : 60 + height, 100 : 100 + width])


def test_layout_of_the_files(folder: Path) -> None:
    encoder, decoder = (torch.load(folder / name, weights_only=True) for name in neural.FILES)
    assert (len(encoder), len(decoder)) == (79, 79)
    shapes = {key: tuple(encoder[key].shape) for key in ("0.weight", "6.weight", "11.pool.3.weight", "14.weight")}
    assert shapes == {
        "0.weight": (64, 3, 3, 3),
        "6.weight": (64, 64, 3, 3),
        "11.pool.3.weight": (64, 256, 1, 1),
        "14.weight": (32, 64, 3, 3),
    }
    assert "6.bias" not in encoder and "10.conv.4.weight" not in encoder
    shapes = {key: tuple(decoder[key].shape) for key in ("1.weight", "3.pool.1.bias", "17.weight", "19.weight")}
    assert shapes == {
        "1.weight": (64, 32, 3, 3),
        "3.pool.1.bias": (256,),
        "17.weight": (64, 64, 3, 3),
        "19.weight": (3, 64, 3, 3),
    }
    assert "8.pool.0.weight" not in decoder and "7.bias" not in decoder


def test_shapes_and_range(autoencoder: neural.Autoencoder) -> None:
    latents = autoencoder.encoder(torch.rand(2, 3, 32, 48).to(next(autoencoder.encoder.parameters()).dtype))
    assert tuple(latents.shape) == (2, 32, 4, 6)
    result = autoencoder(torch.rand(2, 3, 32, 48))
    assert tuple(result.shape) == (2, 3, 32, 48) and result.dtype == torch.float32
    assert float(result.min()) >= 0 and float(result.max()) <= 1


@pytest.mark.parametrize("size", [(64, 64), (61, 75), (9, 8), (5, 40)])
def test_regenerate_keeps_the_size(size: tuple[int, int], autoencoder: neural.Autoencoder) -> None:
    pixels = _cat(*size)
    result = autoencoder.regenerate(pixels)
    assert result.shape == pixels.shape and result.dtype == np.uint8
    assert np.array_equal(result, autoencoder.regenerate(pixels))


def test_local_changes_only_the_mask(autoencoder: neural.Autoencoder) -> None:
    pixels = _cat()
    mask = np.zeros((96, 128), dtype=bool)
    mask[40:60, 70:100] = True
    for seed in range(4):
        result, returned = neural.regenerate_local(pixels, mask, np.random.default_rng(seed), autoencoder)
        assert np.array_equal(returned, mask)
        assert np.array_equal(result[~mask], pixels[~mask])
        assert (result[mask] != pixels[mask]).any(axis=1).mean() > 0.9


def test_global_changes_everything(autoencoder: neural.Autoencoder) -> None:
    pixels = _cat()
    result, mask = neural.regenerate_global(pixels, autoencoder)
    assert mask.shape == (96, 128) and mask.all()
    assert (result != pixels).any(axis=2).mean() > 0.9


def test_loading_is_strict(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"taef2_encoder\.pth is missing"):
        neural.load(tmp_path)
    encoder, decoder = (torch.load(folder / name, weights_only=True) for name in neural.FILES)
    torch.save(encoder, tmp_path / neural.FILES[0])
    torch.save({key: value for key, value in decoder.items() if key != "19.bias"}, tmp_path / neural.FILES[1])
    with pytest.raises(WeightsError, match=r"(?s)taef2_decoder\.pth does not hold.*19\.bias"):
        neural.load(tmp_path)
    (tmp_path / neural.FILES[1]).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="does not hold the weights"):
        neural.load(tmp_path)


def test_pickles_are_not_run(folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "touched"),))

    for name in neural.FILES:
        torch.save({"0.weight": Attack()}, tmp_path / name)
    with pytest.raises(WeightsError):
        neural.load(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_published_weights_keep_the_picture() -> None:
    from declip import image

    autoencoder = neural.load(SHARED / "weights")
    ratios = []
    for path in sorted((SHARED / "photos" / "valid").iterdir())[::6]:
        pixels = np.ascontiguousarray(image.read(path).pixels[:512, :512])
        result = autoencoder.regenerate(pixels)
        ratios.append(10 * np.log10(255**2 / np.mean((result.astype(float) - pixels) ** 2)))
    assert len(ratios) >= 10
    assert float(np.mean(ratios)) >= 27
