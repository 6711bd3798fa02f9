"""Training: it learns, every random choice is the seed's, a resumed run is bitwise the uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from declip import features, training
from declip.errors import DatasetError, SpecError
from declip.nn import checkpoint
from declip.nn.model import build
from declip.types import RESIDUAL_STATISTICS, BackboneSpec, DecoderSpec, ModelSpec, Sample

SPEC = ModelSpec(
    backbones=(BackboneSpec(name=RESIDUAL_STATISTICS, layer=0),),
    decoder=DecoderSpec(kind="dilated", widths=(8, 8, 8)),
    input_size=64,
    output_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    mode="tiled",
    overlap=16,
)
CONFIG = training.TrainConfig(
    model=SPEC, epochs=4, batch_size=8, lr=1e-2, schedule="cosine", init_std=0.0, augment=("flip", "jpeg"), ema=0.5
)


def make_samples(folder: Path, count: int, seed: int) -> list[Sample]:
    """Smooth pictures, 80 × 72, in which a rectangle is noisy."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        pixels = np.full((80, 72, 3), rng.integers(60, 200), np.float64)
        mask = np.zeros((80, 72), np.uint8)
        y, x = rng.integers(0, 40, 2)
        mask[y : y + 36, x : x + 30] = 255
        real = folder / f"{i}-real.png"
        Image.fromarray(pixels.astype(np.uint8)).save(real)
        pixels += rng.normal(0, 12, pixels.shape) * (mask > 0)[..., None]
        fake = folder / f"{i}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(fake)
        Image.fromarray(mask).save(folder / f"{i}-mask.png")
        samples.append(Sample(image=fake, mask=folder / f"{i}-mask.png", label="fake", split="train"))
        samples.append(Sample(image=real, label="real", split="train"))
    return samples


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], list[Sample]]:
    folder = tmp_path_factory.mktemp("samples")
    return make_samples(folder / "train", 24, 0), make_samples(folder / "valid", 6, 1)


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_keeps_its_best(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=12, ema=0.0, reals=0.5, views=2)
    run = training.train(config, train=parts[0], valid=parts[1], out=tmp_path / "run")
    metrics = rows(tmp_path / "run")
    assert len(metrics) == 12
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert run.iou > 0.8
    assert run.ap > 0.9
    assert run.iou == max(row["iou"] for row in metrics)
    net, spec = checkpoint.load(run.best)
    assert spec == SPEC
    assert not net.training
    config_file = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config_file["recipe"]["seed"] == 0
    assert config_file["version"]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    parts: tuple[list[Sample], list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.train(CONFIG, train=parts[0], valid=parts[1], out=tmp_path / "whole")
    real = training._State.save

    def killed(state: training._State, path: Path) -> None:
        real(state, path)
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._State, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIG, train=parts[0], valid=parts[1], out=tmp_path / "cut")
    monkeypatch.undo()
    torch.manual_seed(999)  # nothing may depend on what else the process has drawn
    resumed = training.train(CONFIG, train=parts[0], valid=parts[1], out=tmp_path / "cut", resume=True)
    states = [torch.load(run.last, weights_only=True) for run in (whole, resumed)]
    for part in ("decoder", "averaged"):
        assert states[0][part].keys() == states[1][part].keys()
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key
    assert (whole.epoch, whole.iou, whole.ap) == (resumed.epoch, resumed.iou, resumed.ap)


def test_only_the_decoder_changes(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    model = dataclasses.replace(
        SPEC, backbones=(*SPEC.backbones, BackboneSpec(name="test_resnet", layer=1)), decoder=SPEC.decoder
    )
    config = dataclasses.replace(CONFIG, model=model, epochs=1)
    run = training.train(config, train=parts[0], valid=parts[1], out=tmp_path / "run")
    torch.manual_seed(config.seed)
    before = build(model).state_dict()
    after = checkpoint.load(run.best)[0].state_dict()
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"decoder"}


def test_another_seed_gives_other_weights(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    runs = [
        training.train(
            dataclasses.replace(CONFIG, seed=seed, epochs=1), train=parts[0], valid=parts[1], out=tmp_path / n
        )
        for n, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    heads = [checkpoint.load(run.best)[0].state_dict()["decoder.head.weight"] for run in runs]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_folder_of_a_run_is_not_overwritten(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    training.train(config, train=parts[0], valid=parts[1], out=tmp_path)
    with pytest.raises(SpecError, match="--resume"):
        training.train(config, train=parts[0], valid=parts[1], out=tmp_path)
    with pytest.raises(SpecError, match="another recipe"):
        training.train(dataclasses.replace(config, lr=1.0), train=parts[0], valid=parts[1], out=tmp_path, resume=True)


def test_empty_parts_are_refused(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    reals = [sample for sample in parts[0] if sample.label == "real"]
    for train, valid in (([], parts[1]), (parts[0], reals)):
        with pytest.raises(DatasetError, match="manipulated samples in both parts"):
            training.train(CONFIG, train=train, valid=valid, out=tmp_path / str(len(train)))


def test_crops_and_targets_belong_together(parts: tuple[list[Sample], list[Sample]]) -> None:
    crops = training.SampleCrops(parts[0], dataclasses.replace(CONFIG, views=3), augmented=True)
    assert len(crops) == 3 * len(parts[0])
    for index in (0, len(parts[0]), 2 * len(parts[0])):  # three views of the first manipulated picture
        image, target = crops[index]
        assert image.shape == (3, 64, 64)
        assert target.shape == (16, 16)
        grain = (image - image.mean(dim=(1, 2), keepdim=True)).abs().mean(dim=0).reshape(16, 4, 16, 4).mean(dim=(1, 3))
        assert float(grain[target > 0.99].mean()) > 2 * float(grain[target < 0.01].mean())
        again = crops[index]
        assert torch.equal(image, again[0])
        assert torch.equal(target, again[1])
    assert not torch.equal(crops[0][0], crops[len(parts[0])][0])


def test_whole_mode_squashes_and_keeps_masks_soft(parts: tuple[list[Sample], list[Sample]]) -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(SPEC, mode="whole"), augment=())
    image, target = training.SampleCrops(parts[0], config, augmented=False)[0]
    assert image.shape == (3, 64, 64)
    mask = np.asarray(Image.open(parts[0][0].mask)) > 0  # type: ignore[arg-type]
    assert float(target.mean()) == pytest.approx(mask.mean(), abs=0.01)
    assert bool(((target > 0.05) & (target < 0.95)).any())


def test_the_paper_schedule() -> None:
    """Patience 5, then ÷ 10, four phases; the first value of a phase always counts as a gain."""
    config = training.TrainConfig(model=SPEC)
    state = training._State(config, build(SPEC))
    rates = []
    while not state.finished:
        rates.append(state.rate())
        state.close_epoch(0.5 if state.epoch == 0 else 0.4)
    # Each phase: one epoch that sets its mark, five without a gain.
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 6 + [1e-5] * 6 + [1e-6] * 6)
    assert state.best == 0.5


def test_the_paper_initialisation() -> None:
    decoder = build(dataclasses.replace(SPEC, decoder=DecoderSpec(kind="conv-4", widths=(32, 32, 32, 32)))).decoder
    torch.manual_seed(0)
    training._initialise(decoder, 0.02)
    weights = torch.cat([p.flatten() for name, p in decoder.named_parameters() if name.endswith("weight")]).detach()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    gammas = [m.weight for m in decoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(float(gamma.detach().abs().max()) < 0.2 for gamma in gammas)  # not the usual 1


RECIPE = """
lr = 2e-3
augment = ["flip"]
[model]
input_size = 64
decoder = { kind = "linear" }
backbones = [{ name = "test_vit", layer = 1 }]
"""


def test_recipes_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    config = training.TrainConfig.from_toml(path, ["lr=3e-4", "model.input_size=32", "select=ap"])
    assert (config.lr, config.model.input_size, config.select, config.augment) == (3e-4, 32, "ap", ("flip",))
    assert (config.batch_size, config.patience, config.phases, config.init_std) == (64, 5, 4, 0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["nonsense=1"], "nonsense"),
        (["lr=-1"], "lr is -1"),
        (["schedule=linear"], "expected one of 'plateau', 'cosine'"),
        (["lr"], "expected key=value"),
        (['augment=["rain"]'], "augment is 'rain'"),
        (["model.decoder.kind=deep"], "decoder kind"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(changes: Sequence[str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    with pytest.raises(SpecError, match=words):
        training.TrainConfig.from_toml(path, changes)


def test_a_recipe_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("lr = ")
    with pytest.raises(SpecError, match="no TOML"):
        training.TrainConfig.from_toml(tmp_path / "r.toml")
    with pytest.raises(SpecError, match="cannot be read"):
        training.TrainConfig.from_toml(tmp_path / "none.toml")


def test_the_shipped_recipe_is_valid() -> None:
    config = training.TrainConfig.from_toml(Path(__file__).resolve().parents[1] / "recipes" / "mini.toml")
    assert config.model.mode == "tiled"
    assert config.model.decoder.kind == "dilated"


def test_cached_features_are_those_of_the_network(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    net = build(SPEC)
    crops = training.SampleCrops(parts[1], CONFIG, augmented=False)
    cached = features.cache(net, crops, tmp_path / "f", crops.key(), batch_size=5)
    maps, targets = cached.batch(np.array([0, 7]))
    images = torch.stack([crops[0][0], crops[7][0]])
    with torch.inference_mode():
        expected = net.features(images).maps[0]
    assert torch.allclose(maps.maps[0], expected, atol=5e-3, rtol=1e-3)  # half precision
    assert torch.allclose(targets[0], crops[0][1], atol=1e-3)


def test_a_cache_is_reused_for_its_key_only(parts: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    net = build(SPEC)
    crops = training.SampleCrops(parts[1], CONFIG, augmented=False)
    runs = []
    hook = net.backbones[0].register_forward_hook(lambda *_: runs.append(1))
    features.cache(net, crops, tmp_path / "f", {"a": 1})
    first = len(runs)
    assert first >= 1
    features.cache(net, crops, tmp_path / "f", {"a": 1})
    assert len(runs) == first
    features.cache(net, crops, tmp_path / "f", {"a": 2})
    assert len(runs) == 2 * first
    hook.remove()
