"""The autoencoder: layout of its files, the round trip, and what may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import data

from declip.errors import WeightsError

torch = pytest.importorskip("torch")

from declip.synthesis import neural, taef2  # noqa: E402
from declip.synthesis.steps import Pixels  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def autoencoder(taef2_folder: Path) -> taef2.Taef2:
    found = neural.load(taef2_folder)
    assert isinstance(found, taef2.Taef2)
    return found


def _cat(height: int = 96, width: int = 128) -> Pixels:
    return np.ascontiguousarray(data.chelsea()[60 : 60 + height, 100 : 100 + width])


def test_layout_of_the_files(taef2_folder: Path) -> None:
    """The keys and shapes of the published files."""
    for name, expected, missing in zip(
        taef2.FILES,
        (
            {"0.weight": (64, 3, 3, 3), "11.pool.3.weight": (64, 256, 1, 1), "14.weight": (32, 64, 3, 3)},
            {"1.weight": (64, 32, 3, 3), "3.pool.1.bias": (256,), "19.weight": (3, 64, 3, 3)},
        ),
        (("6.bias", "10.conv.4.weight"), ("8.pool.0.weight", "7.bias")),
        strict=True,
    ):
        tensors = torch.load(taef2_folder / name, weights_only=True)
        assert len(tensors) == 79 and not tensors.keys() & set(missing)
        assert {key: tuple(tensors[key].shape) for key in expected} == expected


def test_shapes_and_range(autoencoder: taef2.Taef2) -> None:
    latents = autoencoder.encoder(torch.rand(2, 3, 32, 48).to(next(autoencoder.encoder.parameters()).dtype))
    assert tuple(latents.shape) == (2, 32, 4, 6)
    result = autoencoder(torch.rand(2, 3, 32, 48))
    assert tuple(result.shape) == (2, 3, 32, 48) and result.dtype == torch.float32
    assert float(result.min()) >= 0 and float(result.max()) <= 1


@pytest.mark.parametrize("size", [(64, 64), (61, 75), (9, 8), (5, 40)])
def test_regenerate_keeps_the_size(size: tuple[int, int], autoencoder: taef2.Taef2) -> None:
    pixels = _cat(*size)
    result = neural.round_trip(autoencoder, pixels)
    assert result.shape == pixels.shape and result.dtype == np.uint8
    assert np.array_equal(result, neural.round_trip(autoencoder, pixels))


def test_local_changes_only_the_mask(autoencoder: taef2.Taef2) -> None:
    pixels = _cat()
    mask = np.zeros((96, 128), dtype=bool)
    mask[40:60, 70:100] = True
    for seed in range(4):
        result, returned = neural.regenerate_local(autoencoder)(pixels, mask, np.random.default_rng(seed), None)
        assert np.array_equal(returned, mask)
        assert np.array_equal(result[~mask], pixels[~mask])
        assert (result[mask] != pixels[mask]).any(axis=1).mean() > 0.9


def test_global_changes_everything(autoencoder: taef2.Taef2) -> None:
    pixels, everything = _cat(), np.ones((96, 128), bool)
    result, mask = neural.regenerate_global(autoencoder)(pixels, everything, np.random.default_rng(0), None)
    assert mask is everything
    assert (result != pixels).any(axis=2).mean() > 0.9


def test_loading_is_strict(taef2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"taef2_encoder\.pth is missing"):
        neural.load(tmp_path)
    encoder, decoder = (torch.load(taef2_folder / name, weights_only=True) for name in taef2.FILES)
    torch.save(encoder, tmp_path / taef2.FILES[0])
    torch.save({key: value for key, value in decoder.items() if key != "19.bias"}, tmp_path / taef2.FILES[1])
    with pytest.raises(WeightsError, match=r"(?s)taef2_decoder\.pth does not hold.*19\.bias"):
        neural.load(tmp_path)
    (tmp_path / taef2.FILES[1]).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="does not hold the weights"):
        neural.load(tmp_path)


def test_pickles_are_not_run(taef2_folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "touched"),))

    for name in taef2.FILES:
        torch.save({"0.weight": Attack()}, tmp_path / name)
    with pytest.raises(WeightsError):
        neural.load(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("kind", "stride"), [("AutoencoderTiny", 8), ("AutoencoderKL", 4), ("VQModel", 4)])
def test_autoencoders_of_diffusers(kind: str, stride: int, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.synthesis import tiny

    tiny.autoencoder(kind, levels=int(np.log2(stride)) + 1).save_pretrained(tmp_path)
    autoencoder = neural.load(tmp_path)
    assert isinstance(autoencoder, neural.LatentAutoencoder)
    assert (autoencoder.kind, autoencoder.stride) == (kind, stride)
    latents = autoencoder.encode(torch.rand(1, 3, 32, 64) * 2 - 1)
    assert tuple(latents.shape[2:]) == (32 // stride, 64 // stride)
    assert tuple(autoencoder.decode(latents).shape) == (1, 3, 32, 64)
    for size in ((64, 64), (61, 75), (3, 40)):
        pixels = _cat(*size)
        result = neural.round_trip(autoencoder, pixels)
        assert result.shape == pixels.shape and result.dtype == np.uint8
        assert np.array_equal(result, neural.round_trip(autoencoder, pixels))
    mask = np.zeros((96, 128), dtype=bool)
    mask[40:60, 70:100] = True
    local, _ = neural.regenerate_local(autoencoder)(_cat(), mask, np.random.default_rng(0), None)
    assert np.array_equal(local[~mask], _cat()[~mask]) and (local[mask] != _cat()[mask]).any(axis=1).mean() > 0.5


def test_autoencoders_of_diffusers_load_strictly(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from safetensors.torch import load_file, save_file

    from tests.synthesis import tiny

    folder = tiny.save(tmp_path, unet=tiny.unet(), kl=tiny.autoencoder("AutoencoderKL")) / "kl"
    with pytest.raises(WeightsError, match="is a UNet2DModel; expected an autoencoder: AutoencoderKL"):
        neural.load(tmp_path / "unet")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"missing keys: encoder\.conv_in\.bias"):
        neural.load(folder)
    with pytest.raises(WeightsError, match=r"taef2_encoder\.pth is missing"):
        neural.load(Path("no/where"))  # a Path is never a hub id


def test_locate(tmp_path: Path) -> None:
    assert neural.locate(str(tmp_path)) == (str(tmp_path), "")
    assert neural.locate("owner/name") == ("owner/name", "")
    assert neural.locate("owner/name/vae/x") == ("owner/name", "vae/x")
    for wrong in ("name", "/no/where", "../up/there", "a b/c"):
        with pytest.raises(WeightsError, match="no file or folder here, and no hub id"):
            neural.locate(wrong)


class _Halve:
    """A local filter on a grid of 8 px."""

    stride = 8

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, images: torch.Tensor, /) -> torch.Tensor:
        self.seen.append((images.shape[2], images.shape[3]))
        return torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 8), scale_factor=8)


def test_tiles_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local filter gives the same by tiles as at once, every tile on the latent grid of the whole picture."""
    halve = _Halve()
    pixels = np.ascontiguousarray(data.chelsea()[:296, :451])
    whole = neural.round_trip(halve, pixels)
    assert halve.seen == [(296, 456)]
    monkeypatch.setattr(neural, "_TILE", 128)
    monkeypatch.setattr(neural, "_OVERLAP", 32)
    tiled = neural.round_trip(halve, pixels)
    assert len(halve.seen) == 1 + 3 * 5 and max(map(max, halve.seen[1:])) == 128
    assert np.abs(tiled.astype(int) - whole)[:, :448].max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_published_weights_keep_the_picture_and_leave_their_trace_everywhere() -> None:
    """The round trip of 512-px crops: PSNR in dB, and the mean difference in levels outside a square in the middle."""
    from declip.images.read import read_photo

    autoencoder = neural.load(SHARED / "weights")
    outside = np.ones((512, 512), dtype=bool)
    outside[128:384, 128:384] = False
    ratios = []
    for path in sorted((SHARED / "photos" / "valid").iterdir())[6::20]:
        pixels = np.ascontiguousarray(read_photo(path).pixels[:512, :512])
        error = neural.round_trip(autoencoder, pixels).astype(float) - pixels
        ratios.append(10 * float(np.log10(255**2 / np.mean(error**2))))
        assert np.abs(error[outside[: error.shape[0], : error.shape[1]]]).mean() > 0.5
    assert len(ratios) >= 3 and np.mean(ratios) >= 27
