"""Network inputs and scores, against torch and torchvision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip.images.read import read_photo
from declip.images.tensors import normalise, resize_scores, to_input, to_scores
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from tests.images.pictures import textured

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


SPEC = ModelSpec(
    backbones=(BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20),), decoder=DecoderSpec(kind="conv-4")
)


def test_normalise_has_the_bits_of_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 99)], axis=1)[None]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255)
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    expected = tensor.sub_(mean[:, None, None]).div_(std[:, None, None]).numpy()
    ours = normalise(pixels, SPEC)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous and np.array_equal(ours, expected)


@pytest.mark.slow  # the golden inputs below are of the same kind
def test_to_input_squashes_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = textured(90, 311)
    steps = [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)]
    expected = transforms.Compose(steps)(Image.fromarray(pixels)).numpy()
    assert np.array_equal(to_input(pixels, SPEC), expected)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden values are not here")
@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg"])
def test_golden_inputs_and_scores(name: str) -> None:
    skimage = pytest.importorskip("skimage")
    photo = read_photo(Path(skimage.__file__).parent / "data" / name)
    golden = np.load(GOLDEN / "photos_golden.npz")
    key = name if f"{name}|input" in golden else Path(name).stem
    expected = golden[f"{key}|input"]
    assert np.abs(to_input(photo.pixels, SPEC)[:, ::16, ::16] - expected).max() <= 1e-4
    facts = json.loads((GOLDEN / "photos_golden.json").read_text())
    size = facts[key]["size"] if isinstance(facts, dict) else next(f["size"] for f in facts if key in f.values())
    assert photo.size == tuple(size)


def test_to_scores_is_a_safe_sigmoid() -> None:
    logits = np.array([[-1e30, -1000, -50, -1, 0, 1, 50, 1000, 1e30]], dtype=np.float32)
    before = logits.copy()
    for temperature in (1.0, 0.5, 3.0):
        scores = to_scores(logits, temperature)
        expected = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64) / temperature, -700, 700)))
        assert scores.dtype == np.float32 and scores.shape == (1, 9)
        assert np.abs(scores - expected).max() < 1e-7
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("size", [(512, 300), (100, 1000), (31, 17), (256, 256)])
def test_resize_scores_is_torchs_bilinear(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    tensor = torch.from_numpy(scores)[None, None]
    expected = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)
    ours = resize_scores(scores, size)
    assert ours.shape == size and ours.dtype == np.float32 and ours.flags.writeable
    assert np.abs(ours - expected[0, 0].numpy()).max() < 2e-5


def test_resize_scores_stays_in_range() -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[4:] = 1
    resized = resize_scores(scores, (1000, 700))
    assert resized.min() == 0 and resized.max() == 1
    strided = np.arange(64, dtype=np.float32).reshape(8, 8)[::2, ::2] / 64
    assert np.allclose(resize_scores(strided, (4, 4)), strided, atol=1e-6)
