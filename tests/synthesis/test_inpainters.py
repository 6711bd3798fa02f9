"""Learnt in-painters: tiny networks of random weights in the real formats, opened by the real code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from declip.datasets import read_manifest
from declip.errors import DatasetError, WeightsError
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.synthesis import Recipe, forge, synthesize
from declip.synthesis.history import Saving
from declip.synthesis.inpainters import load
from declip.synthesis.networks import Networks, fingerprint
from declip.synthesis.steps import Mask, Pixels

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from declip.synthesis import neural, painting  # noqa: E402
from tests.synthesis import tiny  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def lama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half grey in the hole, the picture elsewhere, a little darker: that must not come through."""
    path = tmp_path_factory.mktemp("lama") / "big-lama.pt"
    return tiny.script(lambda image, mask: image * (1 - mask) * 0.98 + mask * 0.5, path)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel-space model as `save_pretrained` lays it out."""
    return tiny.save(tmp_path_factory.mktemp("ddpm"), unet=tiny.unet(), scheduler=diffusers.DDPMScheduler())


def _cat(height: int = 61, width: int = 75) -> Pixels:
    return np.ascontiguousarray(data.chelsea()[60 : 60 + height, 100 : 100 + width])


def _block(height: int = 61, width: int = 75) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    mask[20:40, 30:60] = True
    return mask


def _recipe(*, steps: int | None = None, fully_regenerated: bool = False, **weights: Path) -> Recipe:
    return Recipe(networks=Networks(weights=weights, steps=steps, fully_regenerated=fully_regenerated))


def test_torchscript(lama: Path) -> None:
    pixels, mask = _cat(), _block()
    result = load("lama", str(lama))(pixels, mask, np.random.default_rng(0))
    assert result.shape == pixels.shape and result.dtype == np.uint8
    assert np.abs(result[mask].astype(int) - 128).max() <= 1
    assert np.abs(result[~mask].astype(float) - 0.98 * pixels[~mask]).max() <= 0.51


def test_what_the_hole_hides_is_not_shown(tmp_path: Path) -> None:
    """Even to a network that would look; nor by way of the padding."""
    path = tiny.script(lambda image, mask: image, tmp_path / "echo.pt")
    mask = np.zeros((61, 75), dtype=bool)
    mask[50:, 60:] = True
    result = load("torchscript", str(path))(_cat(), mask, np.random.default_rng(0))
    assert (result[mask] == 0).all() and np.array_equal(result[~mask], _cat()[~mask])


def test_forge_pastes_into_the_picture(lama: Path) -> None:
    pixels = _cat(96, 128)
    result, mask = forge(pixels, "lama", np.random.default_rng(0), recipe=_recipe(lama=lama))
    assert np.array_equal(result[~mask], pixels[~mask])
    assert np.abs(result[mask].astype(int) - 128).max() <= 1


def test_bad_torchscript(lama: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lama has no weights of its own.*networks.weights.lama"):
        load("lama")
    with pytest.raises(WeightsError, match=r"nowhere\.pt is no file or folder here, and no hub id"):
        load("lama", "nowhere.pt")
    with pytest.raises(WeightsError, match="is no TorchScript file; on the hub, name one"):
        load("lama", str(tmp_path))
    (tmp_path / "bad.pt").write_bytes(b"bad")
    with pytest.raises(WeightsError, match=r"bad\.pt is no TorchScript file"):
        load("lama", str(tmp_path / "bad.pt"))
    path = tiny.script(lambda image, mask: mask, tmp_path / "mask.pt")
    with pytest.raises(DatasetError, match=r"returned \(1, 1, 64, 96\); expected an image \(1, 3, 64, 96\)"):
        load("torchscript", str(path))(_cat(), _block(), np.random.default_rng(0))


def test_a_file_on_the_hub(lama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(lama)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load("lama", "somebody/big-lama/weights/big-lama.pt")(_cat(), _block(), np.random.default_rng(0))
    assert asked == [("somebody/big-lama", "weights/big-lama.pt")]


def test_repaint_keeps_what_is_known(ddpm: Path) -> None:
    pixels, mask = _cat(), _block()
    paint = load("repaint", str(ddpm), steps=8)
    result = paint(pixels, mask, np.random.default_rng(0))
    assert result.shape == pixels.shape and result.dtype == np.uint8
    # What is known comes back as it was, to the rounding of the last step.
    assert np.abs(result[~mask].astype(int) - pixels[~mask]).max() <= 1
    assert (result[mask] != pixels[mask]).any(axis=1).mean() > 0.9
    assert np.array_equal(result, paint(pixels, mask, np.random.default_rng(0)))
    assert not np.array_equal(result, paint(pixels, mask, np.random.default_rng(1)))


def test_repaint_with_a_unet_alone_and_with_learnt_variance(tmp_path: Path) -> None:
    tiny.unet(outputs=6).save_pretrained(tmp_path)  # noise and variance, as P2 has them
    result = load("repaint", str(tmp_path), steps=3)(_cat(), _block(), np.random.default_rng(0))
    assert np.abs(result[~_block()].astype(int) - _cat()[~_block()]).max() <= 1


def test_repaint_with_everything_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older repositories have it, on the hub too."""
    tiny.unet().save_pretrained(tmp_path)
    assert load("repaint", str(tmp_path), steps=1).scheduler.config.beta_end == 0.02  # type: ignore[attr-defined]
    diffusers.DDPMScheduler(beta_end=0.03).save_pretrained(tmp_path)
    assert load("repaint", str(tmp_path), steps=2).scheduler.config.beta_end == 0.03  # type: ignore[attr-defined]
    asked: list[str] = []

    def from_diffusers(kind: type, source: str, part: str = "") -> str:
        asked.append(part)
        if part:
            raise WeightsError(f"{source}/{part}: no such folder")
        return "network"

    monkeypatch.setattr(neural, "from_diffusers", from_diffusers)
    monkeypatch.setattr(painting, "_schedule_of", lambda source, part: pytest.fail(f"{source} has a UNet in {part!r}"))
    with pytest.raises(pytest.fail.Exception, match="somebody/ddpm has a UNet in ''"):
        load("repaint", "somebody/ddpm")
    assert asked == ["unet", ""]


def test_repaint_goes_back_and_forth(ddpm: Path) -> None:
    """Ten steps back and forth, ten times, at every tenth step but the last ten."""
    paint = load("repaint", str(ddpm), steps=20)
    calls: list[object] = []
    handle = paint.unet.register_forward_hook(lambda *_: calls.append(0))  # type: ignore[attr-defined]
    paint(_cat(16, 16), np.eye(16, dtype=bool), np.random.default_rng(0))
    handle.remove()
    assert len(calls) == 20 + 9 * 10


@pytest.mark.parametrize(("folder", "kind"), [("vqvae", "VQModel"), ("vae", "AutoencoderKL")])
def test_latent_repaint_passes_the_whole_picture(folder: str, kind: str, tmp_path: Path) -> None:
    autoencoder = tiny.autoencoder(kind, latent_channels=3, scaling_factor=0.5)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    tiny.save(tmp_path, unet=tiny.unet(), scheduler=scheduler, **{folder: autoencoder})
    pixels, mask = _cat(), _block()
    paint = load("ldm", str(tmp_path), steps=3)
    result = paint(pixels, mask, np.random.default_rng(0))
    assert result.shape == pixels.shape and result.dtype == np.uint8
    assert (result[~mask] != pixels[~mask]).any(axis=1).mean() > 0.9
    # Without a hole, it is the round trip through the autoencoder and nothing else.
    pixels = _cat(60, 76)
    nothing = paint(pixels, np.zeros((60, 76), dtype=bool), np.random.default_rng(0))
    trip = neural.round_trip(paint.autoencoder, pixels)  # type: ignore[attr-defined]
    assert np.abs(nothing.astype(int) - trip).max() <= 1
    forged, drawn = forge(_cat(96, 128), "ldm", np.random.default_rng(0), recipe=_recipe(ldm=tmp_path, steps=3))
    assert 0 < drawn.mean() < 0.5 and forged.shape == (96, 128, 3)


def test_bad_diffusion_models(ddpm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(WeightsError, match=r"has no vqvae or vae folder with a config\.json"):
        load("ldm", str(ddpm))
    with pytest.raises(WeightsError, match=r"has no unet folder with a config\.json"):
        load("repaint", str(tmp_path))
    tiny.save(tmp_path, unet=tiny.unet())
    with pytest.raises(WeightsError, match=r"its schedule \(scheduler_config\.json\) cannot be read"):
        load("repaint", str(tmp_path))
    tiny.save(tmp_path, scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"))
    with pytest.raises(WeightsError, match="predicts v_prediction; RePaint needs a model that predicts noise"):
        load("repaint", str(tmp_path))
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file({**tensors, "more": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"missing keys: conv_in\.bias; unexpected keys: more"):
        load("repaint", str(tmp_path))


def test_sd_inpaint_needs_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install transformers"):
        load("sd-inpaint", str(tmp_path))


def test_sd_inpaint(tmp_path: Path) -> None:
    """Stable Diffusion's in-painting, all parts tiny, through AutoPipelineForInpainting."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    words.write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    merges.write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(words), str(merges), model_max_length=8)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=3,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=32,
    )
    diffusers.StableDiffusionInpaintPipeline(
        vae=tiny.autoencoder("AutoencoderKL", latent_channels=4),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")
    pixels, mask = _cat(), _block()
    paint = load("sd-inpaint", str(tmp_path / "sd"), steps=2)
    result = paint(pixels, mask, np.random.default_rng(0))
    assert result.shape == pixels.shape and result.dtype == np.uint8
    assert (result != pixels).any(axis=2).mean() > 0.9
    assert np.array_equal(result, paint(pixels, mask, np.random.default_rng(0)))
    recipe = _recipe(**{"sd-inpaint": tmp_path / "sd"}, steps=2)
    regenerated = _recipe(**{"sd-inpaint": tmp_path / "sd"}, steps=2, fully_regenerated=True)
    large = _cat(96, 128)
    pasted, drawn = forge(large, "sd-inpaint", np.random.default_rng(0), recipe=recipe)
    assert np.array_equal(pasted[~drawn], large[~drawn])
    whole, same = forge(large, "sd-inpaint", np.random.default_rng(0), recipe=regenerated)
    assert np.array_equal(drawn, same) and np.array_equal(whole[drawn], pasted[drawn])
    assert (whole[~drawn] != large[~drawn]).any(axis=1).mean() > 0.9


def test_fingerprints(lama: Path, ddpm: Path, tmp_path: Path) -> None:
    assert len(fingerprint(lama)) == 64 and fingerprint(lama) != fingerprint(ddpm)
    assert fingerprint("CompVis/ldm-celebahq-256") == "CompVis/ldm-celebahq-256"
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("not of the model")
    assert fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(tmp_path) != before


def test_a_data_set_of_learnt_in_painters(lama: Path, ddpm: Path, photos: list[Path], tmp_path: Path) -> None:
    changes = {"size": 64, "per_photo": 4, "saving": Saving(jpeg=0.0)}
    recipe = replace(_recipe(lama=lama, repaint=ddpm, steps=2), generators=("lama", "repaint"), **changes)
    manifest = synthesize(photos[:1], recipe, tmp_path)
    samples = read_manifest(manifest)
    assert [fake.source for fake in samples[::2]] == ["lama", "repaint"] * 2
    for fake, real in zip(samples[::2], samples[1::2], strict=True):
        mask = read_mask(fake)
        assert np.array_equal(read_photo(fake.image).pixels[~mask], read_photo(real.image).pixels[~mask])
    recorded = json.loads((tmp_path / "synthesis.json").read_text())["networks"]
    assert recorded == {
        "autoencoder": None,
        "weights": {"lama": fingerprint(lama), "repaint": fingerprint(ddpm)},
        "steps": 2,
        "device": "cpu",
        "fully_regenerated": False,
    }
    with pytest.raises(DatasetError, match=r"other settings \(networks\)"):
        synthesize(photos[:1], replace(recipe, networks=replace(recipe.networks, steps=3)), tmp_path)


def test_fully_regenerated(lama: Path, taef2_folder: Path, photos: list[Path], tmp_path: Path) -> None:
    """The whole picture has passed the autoencoder; the mask is still that of what was painted."""
    networks = Networks(autoencoder=taef2_folder, fully_regenerated=True)
    recipe = Recipe(generators=("telea",), size=64, saving=Saving(jpeg=0.0), networks=networks)
    pixels = _cat(96, 128)
    plain, mask = forge(pixels, "telea", np.random.default_rng(2))
    whole, same = forge(pixels, "telea", np.random.default_rng(2), recipe=recipe)
    assert np.array_equal(mask, same)
    assert np.array_equal(whole, neural.round_trip(neural.load(taef2_folder), plain))
    assert (whole[~mask] != pixels[~mask]).any(axis=1).mean() > 0.9
    fake, twin = (
        json.loads(line)["provenance"] for line in synthesize(photos[:1], recipe, tmp_path).read_text().split("\n")[:2]
    )
    assert fake["fully_regenerated"] and "fully_regenerated" not in twin
    assert 0 < fake["area"] < 0.5
