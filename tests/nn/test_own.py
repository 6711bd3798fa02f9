"""Parts of other packages: named in a recipe, trained, kept in a checkpoint, and never imported for a file."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from declip import training
from declip.errors import SpecError
from declip.images.mapfiles import write_mask
from declip.localize.localizer import load
from declip.models import checkpoint
from declip.nn import own
from declip.nn.model import build
from declip.results import Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training import TrainConfig

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SOURCE = """
from torch import nn
from declip.nn.maps import Features

class Backbone(nn.Conv2d):
    def __init__(self, input_size):
        super().__init__(3, 4, 8, stride=8)

    def forward(self, images):
        return Features((super().forward(images),))

class Decoder(nn.Conv2d):
    def __init__(self, shape, output_size):
        super().__init__(sum(shape.channels), 1, 1)
        self.size = (output_size, output_size)

    def forward(self, features):
        return nn.functional.interpolate(super().forward(features.fused()), self.size)[:, 0]

class Two(Backbone):
    def forward(self, images):
        maps = super().forward(images).maps
        return Features(maps + maps)

class Needy(nn.Module):
    def __init__(self):
        super().__init__()

def function(input_size):
    return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported and is not."""
    name = "own_parts_of_a_test"
    (tmp_path / f"{name}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("DECLIP_PARTS", raising=False)
    return name


def spec_of(backbone: str, decoder: str) -> ModelSpec:
    row = BackboneSpec(name=backbone, layer=0)
    return ModelSpec(backbones=(row,), decoder=DecoderSpec(kind=decoder), input_size=64, output_size=16)


def sample(folder: Path) -> Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    write_mask(folder / "mask.png", pixels[..., 0] > 128)
    return Sample(image=folder / "photo.png", mask=folder / "mask.png", label="fake")


def test_trained_kept_and_used(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""epochs = 2
        init_std = 0.0
        [model]
        backbones = [{{ name = "{module}:Backbone", layer = 0 }}]
        decoder = {{ kind = "{module}:Decoder" }}
        input_size = 64
        output_size = 16
        """
    )
    config, samples = TrainConfig.from_toml(recipe), [sample(tmp_path)]
    options = {"train": samples, "valid": samples, "cache": tmp_path / "features"}
    run = training.train(config, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    assert len(list((tmp_path / "features").glob(f"{module}-Backbone-0-*"))) == 1
    net, spec = checkpoint.load(run.best)
    assert spec == config.model and {p.requires_grad for p in net.backbones.parameters()} == {False}  # type: ignore[union-attr]
    weights = net.state_dict()["backbones.0.weight"]
    expected = load(run.best)(samples[0].image).scores
    assert expected.shape == (64, 64)

    # Somebody else opens the file: nothing is imported because of it.
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SpecError, match=f"set DECLIP_PARTS={module}"):
        checkpoint.load(run.best)
    assert module not in sys.modules
    monkeypatch.setenv("DECLIP_PARTS", f"another,{module}")
    again, _ = checkpoint.load(run.best)
    assert torch.equal(again.state_dict()["backbones.0.weight"], weights)
    assert np.array_equal(load(run.best)(samples[0].image).scores, expected)


def test_another_version_of_the_source_has_other_features(module: str, tmp_path: Path) -> None:
    config = TrainConfig(model=spec_of(f"{module}:Backbone", "linear"), epochs=1)
    options = {"train": [sample(tmp_path)], "valid": [sample(tmp_path)], "cache": tmp_path / "features"}
    for source in (SOURCE, SOURCE, SOURCE + "# changed"):
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        sys.modules.pop(module, None)
        training.fill_features(config, **options)  # type: ignore[arg-type]
    assert len(list((tmp_path / "features").glob(f"{module}-Backbone-0-*"))) == 2


def test_entry_points(module: str, tmp_path: Path) -> None:
    info = tmp_path / "of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[declip.backbones]\npatches = {module}:Backbone\n[declip.decoders]\npoints = {module}:Decoder\n"
    )
    importlib.invalidate_caches()
    net = build(spec_of("declip.backbones:patches", "declip.decoders:points"))
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 16, 16)
    with pytest.raises(SpecError, match=r"declares 'other' in declip\.backbones; declared are \['patches'\]"):
        build(spec_of("declip.backbones:other", "linear"))


@pytest.mark.parametrize(
    ("backbone", "decoder", "message"),
    [
        ("nowhere.at.all:Backbone", "linear", "cannot be imported: No module named 'nowhere'; is its folder in PYTHON"),
        ("{}:Nothing", "linear", "is None; expected a class of torch modules"),
        ("{}:function", "linear", "expected a class of torch modules"),
        ("os:system", "linear", "expected a class of torch modules"),
        ("{}:Needy", "linear", "cannot be made from"),
        ("{}:Two", "linear", "the backbones gave 2 maps; expected one for each of 1"),
        ("{}:Backbone", "{}:Needy", "cannot be made from"),
    ],
)
def test_what_is_no_part_is_said(module: str, backbone: str, decoder: str, message: str) -> None:
    spec = spec_of(backbone.format(module), decoder.format(module))
    with pytest.raises(SpecError, match=message):
        own.import_parts(spec)
        build(spec)


def test_own_parts_have_no_settings() -> None:
    with pytest.raises(SpecError, match="layer 0 and no published weights"):
        BackboneSpec(name="a.b:C", layer=1)
    with pytest.raises(SpecError, match="takes no widths"):
        DecoderSpec(kind="a.b:C", widths=(1, 2))
    spec = spec_of("a.b:C", "a.b:D")
    assert ModelSpec.from_json(spec.to_json()) == spec and spec.backbones[0].name == "a.b:C"
    assert dataclasses.replace(spec, threshold=0.4).decoder == spec.decoder
