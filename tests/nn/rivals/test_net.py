"""Rivals as models: one map of logits, their losses, files, photos, training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from declip import training
from declip.errors import ExportError, SpecError, WeightsError
from declip.images.mapfiles import read_mask, write_mask
from declip.images.orientation import to_stored, to_upright
from declip.localize.localizer import load
from declip.models import checkpoint, export
from declip.nn.model import build_network
from declip.nn.rivals.net import RivalNet, build_rival
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training import TrainConfig

pytestmark = pytest.mark.usefixtures("one_torch_thread")

XCEPTION = BackboneSpec(name="legacy_xception", layer=2)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SPECS = {
    "patch-forensics": ModelSpec(
        architecture="patch-forensics", backbones=(XCEPTION,), input_size=75, output_size=9, **HALF
    ),
    "grad-cam": ModelSpec(
        architecture="grad-cam",
        backbones=(BackboneSpec(name="legacy_xception", layer=4),),
        input_size=75,
        output_size=3,
        image_score="mean-logit",
        **HALF,
    ),
    "pscc-net": ModelSpec(
        architecture="pscc-net", input_size=64, output_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    ),
    "cat-net": ModelSpec(
        architecture="cat-net", width=8, mode="tiled", input_size=64, output_size=16, overlap=16, **HALF
    ),
}


PHOTO = np.random.default_rng(0).integers(0, 256, (100, 140, 3), np.uint8)


def net_of(name: str, seed: int = 0) -> RivalNet:
    torch.manual_seed(seed)
    net = build_rival(SPECS[name])
    if name == "grad-cam":  # so deep that without statistics of its own next to nothing reaches its end
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            net.train()(**inputs_of(name))
    return net.eval()


def inputs_of(name: str, count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side = SPECS[name].input_size
    inputs = {"image": torch.rand(count, 3, side, side, generator=generator)}
    if name == "cat-net":
        inputs["coefficients"] = torch.randint(-30, 31, (count, side, side), generator=generator).float()
        inputs["table"] = torch.randint(1, 65, (count, 8, 8), generator=generator).float()
    return inputs


@pytest.mark.parametrize("name", SPECS)
def test_a_map_of_logits_in_the_size_of_the_spec(name: str) -> None:
    inputs = inputs_of(name)
    with torch.inference_mode():
        logits = net_of(name)(**inputs)
    side = SPECS[name].output_size
    assert logits.shape == (2, side, side)
    assert float(logits.std()) > 1e-3


def test_logits_are_the_softmax_of_two_classes() -> None:
    for name in ("patch-forensics", "cat-net"):
        net, inputs = net_of(name), inputs_of(name)
        with torch.inference_mode():
            classes = net.network(*inputs.values())
            torch.testing.assert_close(torch.sigmoid(net(**inputs)), torch.softmax(classes, dim=1)[:, 1])


def test_losses_are_those_of_the_papers() -> None:
    masks = {name: (torch.rand(2, *[SPECS[name].output_size] * 2) > 0.7).float() for name in SPECS}
    net, inputs = net_of("patch-forensics"), inputs_of("patch-forensics")
    classes = net.network(*inputs.values())
    expected = F.cross_entropy(classes, masks["patch-forensics"].long())
    torch.testing.assert_close(net.loss(masks["patch-forensics"], **inputs), expected)
    # Weakly supervised: every patch has its picture's label.
    labels = torch.tensor([1.0, 0.0])
    expected = F.cross_entropy(classes, labels.long()[:, None, None].expand(2, 9, 9))
    torch.testing.assert_close(net.loss(labels, **inputs), expected)

    net, inputs = net_of("grad-cam"), inputs_of("grad-cam")
    expected = F.binary_cross_entropy(torch.sigmoid(net(**inputs).mean(dim=(1, 2))), labels)
    torch.testing.assert_close(net.loss(labels, **inputs), expected)

    net, inputs = net_of("cat-net"), inputs_of("cat-net")
    classes = net.network(*inputs.values())
    expected = F.cross_entropy(classes, masks["cat-net"].long(), weight=torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(net.loss(masks["cat-net"], **inputs), expected)

    net, inputs = net_of("pscc-net"), inputs_of("pscc-net")
    mask = torch.zeros(2, 64, 64)
    mask[0, :32, :32] = 1  # a quarter; the second picture is untouched
    found = net.network(inputs["image"])
    expected = F.cross_entropy(found.image, torch.tensor([1, 0]))
    for logits in found.masks:
        small = F.adaptive_avg_pool2d(mask[:, None], logits.shape[-2:])
        share = small.mean(dim=(1, 2, 3), keepdim=True).clamp(0.01, 0.99)
        weights = torch.where(small > 0.5, 1 / share, 1 / (1 - share))
        losses = F.binary_cross_entropy_with_logits(logits, small, reduction="none")
        expected = expected + (weights * losses).sum() / weights.sum()
    torch.testing.assert_close(net.loss(mask, **inputs), expected)


@pytest.mark.parametrize("name", SPECS)
def test_a_file_gives_back_the_network(name: str, tmp_path: Path) -> None:
    net, spec, inputs = net_of(name), SPECS[name], inputs_of(name)
    path = checkpoint.save(net, spec, tmp_path / "rival.safetensors")
    opened, found = checkpoint.load(path)
    assert found == spec
    with torch.inference_mode():
        assert torch.equal(opened(**inputs), net(**inputs))
    fields = json.loads(spec.to_json())
    assert fields["decoder"] is None
    result = load(path)(PHOTO)
    assert result.scores.shape == (100, 140)
    assert float(result.scores.std()) > 1e-5


@pytest.mark.parametrize("name", ["pscc-net", "cat-net"])
def test_what_cannot_be_exported_is_refused(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(net_of(name), SPECS[name], tmp_path / "rival.safetensors")
    with pytest.raises(ExportError, match=f"holds {name}, of which this release makes no ONNX file"):
        export.to_onnx(path, tmp_path / "rival.onnx")
    assert not (tmp_path / "rival.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patch-forensics", "grad-cam"])
def test_an_exported_rival_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(net_of(name), SPECS[name], tmp_path / "rival.safetensors")
    onnx = load(export.to_onnx(path, tmp_path / "rival.onnx"))
    found, expected = onnx(PHOTO), load(path)(PHOTO)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize(
    "orientation", [1, 3, 6, 7, *(pytest.param(value, marks=pytest.mark.slow) for value in (2, 4, 5, 8))]
)
def test_coefficients_stay_on_their_grid_whatever_the_orientation(orientation: int, tmp_path: Path) -> None:
    """The same file with and without an orientation: the same scores, turned."""
    path = checkpoint.save(net_of("cat-net"), SPECS["cat-net"], tmp_path / "rival.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (72, 104, 3), np.uint8)
    localizer, files = load(path), []
    for value in (1, orientation):
        exif = Image.Exif()
        exif[0x0112] = value
        files.append(tmp_path / f"{value}-{len(files)}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=80, exif=exif)
    plain, turned = (localizer(file).scores for file in files)
    assert plain.shape == (72, 104)
    np.testing.assert_allclose(to_upright(plain, orientation), turned, atol=1e-6)
    np.testing.assert_array_equal(to_stored(turned, orientation), plain)


def test_stored_undoes_upright() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for orientation in range(1, 9):
        np.testing.assert_array_equal(to_stored(to_upright(array, orientation), orientation), array)


def make_samples(folder: Path, count: int, side: int) -> list[Sample]:
    """JPEG files with a brighter square; and as many without."""
    folder.mkdir()
    samples = []
    for i in range(count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(60, 120, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}-real.jpg", quality=90)
        samples.append(Sample(image=folder / f"{i}-real.jpg", label="real", group=str(i)))
        mask = np.zeros((side, side), bool)
        y, x = rng.integers(0, side // 2, 2)
        mask[y : y + side // 2, x : x + side // 2] = True
        pixels[mask] += 80
        Image.fromarray(pixels).save(folder / f"{i}-fake.jpg", quality=90)
        write_mask(folder / f"{i}.png", mask)
        samples.append(Sample(image=folder / f"{i}-fake.jpg", mask=folder / f"{i}.png", label="fake", group=str(i)))
    return samples


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("patch-forensics", {"select": "loss", "lr": 1e-3, "epochs": 8}),
        pytest.param(
            "pscc-net",
            {"schedule": "step", "step_epochs": 4, "lr": 2e-3, "epochs": 8, "norm_momentum": 0.5},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "cat-net",
            {"optimizer": "sgd", "schedule": "poly", "lr": 5e-2, "epochs": 8, "norm_momentum": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rivals_train_by_the_same_loop(name: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "data", 4, SPECS[name].input_size)
    config = TrainConfig(model=SPECS[name], batch_size=4, reals=1.0, **recipe)
    run = training.train(config, train=samples, valid=samples, out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert run.ap > 0.6
    assert not (tmp_path / "run" / "features").exists()
    match name:
        case "patch-forensics":
            best = min(rows, key=lambda row: float(row["valid_loss"]))
            assert (run.epoch, best["best"]) == (best["epoch"], True)
        case "pscc-net":
            assert [row["lr"] for row in rows] == [2e-3] * 4 + [1e-3] * 4
        case "cat-net":
            assert [row["lr"] for row in rows] == pytest.approx([5e-2 * (1 - e / 8) ** 0.9 for e in range(8)])
    result = load(run.best)(samples[1].image)
    mask = read_mask(samples[1])
    assert float(result.scores[mask].mean()) > float(result.scores[~mask].mean())


def test_a_rival_starts_from_another_s_weights(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "data", 4, 75)
    config = TrainConfig(model=SPECS["patch-forensics"], batch_size=4, epochs=8)
    first = training.train(config, train=samples, valid=samples, out=tmp_path / "first")
    config = dataclasses.replace(config, epochs=1, lr=1e-7, seed=1)
    warm = training.train(config, train=samples, valid=samples, out=tmp_path / "warm", start=first.best)
    assert warm.ap == pytest.approx(first.ap, abs=0.05)
    other = dataclasses.replace(config, model=SPECS["pscc-net"])
    with pytest.raises(WeightsError, match="holds another model"):
        training.train(other, train=samples, valid=samples, out=tmp_path / "other", start=first.best)


@pytest.mark.parametrize("name", ["patch-forensics", pytest.param("grad-cam", marks=pytest.mark.slow)])
def test_it_learns_from_labels_alone(name: str, tmp_path: Path) -> None:
    samples = [dataclasses.replace(s, mask=None) for s in make_samples(tmp_path / "data", 4, 75)]
    config = TrainConfig(model=SPECS[name], target="image", select="ap", reals=1.0, batch_size=4, epochs=6)
    run = training.train(config, train=samples, valid=samples, out=tmp_path / "run")
    assert run.ap > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "patch-forensics"}, "has one backbone, legacy_xception with layer 1-5; got"),
        ({"architecture": "grad-cam"}, r"grad-cam has one backbone, legacy_xception with layer 4; got \[\]"),
        ({"architecture": "grad-cam", "backbones": (XCEPTION,)}, "with layer 4; got .*2"),
        ({"architecture": "patch-forensics", "backbones": (XCEPTION,), "mode": "tiled"}, "'tiled'; .* needs 'whole'"),
        ({"architecture": "pscc-net", "backbones": (XCEPTION,)}, "pscc-net has no backbones"),
        ({"architecture": "pscc-net", "output_size": 60}, "pscc-net needs a multiple of 8"),
        ({"architecture": "cat-net"}, "cat-net needs 'tiled'"),
        (
            {"architecture": "cat-net", "mode": "tiled", "input_size": 60, "output_size": 15},
            "cat-net needs a multiple of 8",
        ),
        ({"architecture": "pscc-net", "decoder": DecoderSpec(kind="linear")}, "pscc-net has no decoder"),
        ({"architecture": "pscc-net", "width": 8}, "only cat-net has one"),
        ({"backbones": (XCEPTION,)}, "a model needs a decoder"),
    ],
)
def test_a_spec_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec(**fields)


@pytest.mark.parametrize(("name", "side"), [("patch-forensics", 9), ("grad-cam", 3)])
def test_a_map_of_another_size_is_refused(name: str, side: int) -> None:
    spec = dataclasses.replace(SPECS[name], output_size=37)
    with pytest.raises(SpecError, match=f"output_size is 37; {name} gives a map of {side} px for an input of 75 px"):
        build_network(spec)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pscc-net", {"views": 2}, "views is 2; all of pscc-net is learnt"),
        ("cat-net", {"augment": ["flip"]}, "augment is not for cat-net"),
        ("grad-cam", {}, 'grad-cam learns from labels alone: target = "image"'),
        ("pscc-net", {"target": "image", "reals": 1.0}, 'target = "image" is not for pscc-net'),
    ],
)
def test_a_recipe_that_is_none_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TrainConfig(model=SPECS[name], **changes)
