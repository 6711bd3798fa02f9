"""Decoders: the paper's numbers, the rules beyond the paper's pairs, and what each of them computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.backbones import Features, FeatureShape
from declip.nn.decoders import (
    AttentionBlock,
    AttentionDecoder,
    ConvDecoder,
    LinearDecoder,
    build_decoder,
)
from declip.nn.dilated import Projection, Stem
from declip.spec import DecoderSpec
from tests.tiny import NARROW, randomise

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# What backbones give (channels, grids), narrowed: CLIP's ViT and DINOv2, RN50's four stages, fusions, high-pass maps.
SHAPES = {
    "vit": FeatureShape((64,), (16,), True),
    "vit-14": FeatureShape((96,), (14,), True),
    "stage1": FeatureShape((32,), (56,), False),
    "stage2": FeatureShape((48,), (28,), False),
    "stage3": FeatureShape((64,), (14,), False),
    "stage4": FeatureShape((96,), (7,), False),
    "vit+stage3": FeatureShape((64, 64), (16, 14), False),
    "fine+coarse": FeatureShape((60, 24, 40), (56, 56, 28), False),
}
DECODERS = {
    "linear": DecoderSpec(kind="linear"),
    "attention": DecoderSpec(kind="attention"),
    "conv-4": DecoderSpec(kind="conv-4", widths=NARROW),
    "conv-12": DecoderSpec(kind="conv-12", widths=NARROW),
    "conv-20": DecoderSpec(kind="conv-20", widths=NARROW),
    "dilated": DecoderSpec(kind="dilated", widths=(8, 8, 8)),
}


def features_of(shape: FeatureShape, batch: int = 2, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(shape.channels, shape.grids, strict=True)
    maps = tuple(torch.randn(batch, c, g, g, generator=generator) for c, g in sizes)
    cls = torch.randn(batch, 1, shape.channels[0], generator=generator) if shape.has_cls else None
    return Features(maps, cls)


def on_meta(kind: Any, channels: int, grid: int = 16, **fields: Any) -> Any:
    """A decoder without memory: for counting."""
    with torch.device("meta"):
        return build_decoder(DecoderSpec(kind=kind, **fields), FeatureShape((channels,), (grid,), True), 256)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", DECODERS)
def test_every_backbone_goes_with_every_decoder(kind: str, shape: str) -> None:
    decoder = build_decoder(DECODERS[kind], SHAPES[shape], 256)
    randomise(decoder)
    logits = decoder(features_of(SHAPES[shape]))
    assert logits.shape == (2, 256, 256)
    assert bool(torch.isfinite(logits).all())
    assert float(logits.detach().std()) > 1e-3  # the features arrive
    logits.square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# ── conv-N ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def conv_parameters(channels: int, depth: int) -> int:
    """5×5 convolutions with bias, two numbers of BatchNorm per channel, 5×5 → 1: the paper's conv-N, by hand."""
    count = 0
    for width in (512, 256, 128, 64):
        for _ in range(depth // 4):
            count += 25 * channels * width + width + 2 * width
            channels = width
    return count + 25 * channels + 1


@pytest.mark.parametrize("channels", [256, 1024, 2048])
@pytest.mark.parametrize("depth", [4, 12, 20])
def test_conv_has_the_paper_s_size(depth: int, channels: int) -> None:
    decoder = on_meta(f"conv-{depth}", channels)
    assert sum(p.numel() for p in decoder.parameters()) == conv_parameters(channels, depth)
    convolutions = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth + 1


@pytest.mark.parametrize(
    ("grid", "doublings", "resized"),
    [
        (16, 4, False),
        (14, 4, True),
        (7, 4, True),
        (28, 3, True),
        (56, 2, True),
        (64, 2, False),
        (100, 1, True),
        (256, 0, False),
        (300, 0, True),
    ],
)
def test_conv_keeps_the_doublings_that_fit_and_drops_them_from_level_1_on(
    grid: int, doublings: int, resized: bool
) -> None:
    layers = list(on_meta("conv-4", 32, grid).layers)
    assert sum(isinstance(m, nn.Upsample) and m.scale_factor == 2 for m in layers) == doublings
    assert any(isinstance(m, nn.Upsample) and m.size == (256, 256) for m in layers) == resized
    # After each level's convolution, BatchNorm and ReLU comes a doubling, or the next level.
    after = [layers[i + 1] for i, m in enumerate(layers) if isinstance(m, nn.ReLU)]
    assert [isinstance(m, nn.Upsample) and m.scale_factor == 2 for m in after] == [i >= 4 - doublings for i in range(4)]


def test_conv_20_has_its_convolutions_where_the_paper_s_files_have_them() -> None:
    layers = on_meta("conv-20", 1024).layers
    expected = [0, 3, 6, 9, 12, 16, 19, 22, 25, 28, 32, 35, 38, 41, 44, 48, 51, 54, 57, 60, 64]
    assert [i for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)] == expected
    assert [i for i, m in enumerate(layers) if isinstance(m, nn.BatchNorm2d)] == [i + 1 for i in expected[:-1]]


def test_conv_resizes_between_the_last_level_and_the_last_convolution() -> None:
    decoder = ConvDecoder(4, grid=7, output_size=256, per_level=1, widths=NARROW)
    sizes: list[int] = []
    for module in decoder.layers:
        module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    decoder(Features((torch.zeros(1, 4, 7, 7),)))
    assert sizes == [7, 7, 7, 14, 14, 14, 14, 28, 28, 28, 28, 56, 56, 56, 56, 112, 256, 256]


# ── linear ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_linear_is_a_weighted_sum_per_position_then_bicubic() -> None:
    decoder = LinearDecoder(8, 256)
    randomise(decoder)
    features = features_of(FeatureShape((8,), (16,), False))
    # The same sum without torch.
    weight, bias = decoder.head.weight.detach().numpy()[0], decoder.head.bias.item()
    grid = np.einsum("nchw,c->nhw", features.maps[0].numpy(), weight) + bias
    expected = F.interpolate(torch.from_numpy(grid)[:, None], (256, 256), mode="bicubic", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(decoder(features), expected[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "attention", "conv-4", "dilated"])
def test_a_position_of_the_grid_is_that_position_of_the_map(kind: str) -> None:
    """What changes in one feature moves the map most around the same place: rows are rows, columns columns."""
    shape = FeatureShape((64,), (16,), True)
    decoder = build_decoder(DECODERS[kind], shape, 256).eval()
    randomise(decoder)
    features = features_of(shape, batch=1)
    changed = features.maps[0].clone()
    changed[:, :, 3, 11] += 2
    with torch.no_grad():
        moved = (decoder(Features((changed,), features.cls)) - decoder(features))[0].abs()
    for sums, cell in ((moved.sum(1), 3), (moved.sum(0), 11)):
        # Attention and the window's mean move everything a little; the centre of what moves more than that counts.
        local = (sums - sums.median()).clamp(min=0)
        centre = (local * (torch.arange(256) + 0.5)).sum() / local.sum()
        assert float(centre) == pytest.approx(16 * (cell + 0.5), abs=24)


# ── attention ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("channels", "heads"),
    [(1024, 16), (2048, 32), (384, 6), (320, 5), (64, 1), (24, 1), (130, 2), (200, 2), (225, 3), (254, 2), (1344, 21)],
)
def test_attention_heads_are_the_largest_divisor_up_to_a_64th_of_the_width(channels: int, heads: int) -> None:
    decoder = on_meta("attention", channels)
    assert [block.heads for block in decoder.blocks] == [heads, heads]
    # 12 C² + 13 C per block (qkv, projection, MLP of ×4, two norms), C + 1 for the linear map.
    assert sum(p.numel() for p in decoder.parameters()) == 2 * (12 * channels**2 + 13 * channels) + channels + 1


def block_and_tokens(causal: bool) -> tuple[AttentionBlock, Tensor]:
    block = AttentionBlock(32, heads=2, causal=causal)
    randomise(block)
    return block, torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_token_sees_only_itself_and_those_before(causal: bool) -> None:
    block, tokens = block_and_tokens(causal)
    changed = tokens.clone()
    changed[:, 6] = changed[:, 6].flip(-1)
    with torch.no_grad():
        moved = (block(changed) - block(tokens)).abs().amax(dim=(0, 2))
    assert bool((moved[6:] > 1e-3).all())
    assert bool((moved[:6] == 0).all()) if causal else bool((moved[:6] > 1e-3).all())


def test_an_attention_block_is_torch_s_own_with_a_quickgelu_mlp() -> None:
    block, tokens = block_and_tokens(causal=False)
    reference = nn.MultiheadAttention(32, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.qkv.weight)
        reference.in_proj_bias.copy_(block.qkv.bias)
        reference.out_proj.weight.copy_(block.proj.weight)
        reference.out_proj.bias.copy_(block.proj.bias)
        normed = block.norm1(tokens)
        x = tokens + reference(normed, normed, normed)[0]
        hidden = block.fc1(block.norm2(x))
        expected = x + block.fc2(hidden / (1 + torch.exp(-1.702 * hidden)))
        torch.testing.assert_close(block(tokens), expected, atol=1e-5, rtol=1e-5)


def test_attention_reads_the_class_token_and_drops_it() -> None:
    decoder = AttentionDecoder(64, 16, causal=False)
    randomise(decoder)
    features = features_of(SHAPES["vit"])
    assert features.cls is not None
    with torch.no_grad():
        with_cls = decoder(features)
        other_cls = decoder(Features(features.maps, features.cls.flip(-1)))
        without = decoder(Features(features.maps))
    assert with_cls.shape == without.shape == (2, 16, 16)
    assert float((with_cls - other_cls).abs().max()) > 1e-3
    assert float((with_cls - without).abs().max()) > 1e-3


# ── dilated ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_projection_sees_the_data_and_the_window() -> None:
    """Weights on the overall value see every channel standardised by its running statistics; those on the contrast see
    what is left without the window's own mean. One training batch sets the statistics, at first wholly."""
    torch.manual_seed(0)
    projection = Projection(3, 2)
    scale, offset = torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1), torch.tensor([5.0, 0.0, -70.0]).view(3, 1, 1)
    x = torch.randn(16, 3, 12, 12) * scale + offset + 4 * scale * torch.randn(16, 3, 1, 1)
    projection.train()(x)
    torch.testing.assert_close(projection.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(projection.within_var, x.var((2, 3), unbiased=False).mean(0))
    torch.testing.assert_close(projection.running_var, x.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=0)
    projection.eval()
    with torch.no_grad():
        projection.contrast.zero_()
        overall = (x - projection.running_mean.view(3, 1, 1)) / (projection.running_var + 1e-4).sqrt().view(3, 1, 1)
        expected = torch.einsum("oc,nchw->nohw", projection.overall, overall)
        torch.testing.assert_close(projection(x), expected, atol=1e-4, rtol=1e-4)
        projection.contrast.normal_()
        projection.overall.zero_()
        alone = projection(x)
        torch.testing.assert_close(alone.mean((2, 3)), torch.zeros(16, 2), atol=1e-4, rtol=0)
        torch.testing.assert_close(projection(x + 100), alone, atol=1e-3, rtol=1e-3)


def test_running_statistics_are_those_of_the_first_batches() -> None:
    projection = Projection(1, 1).train()
    for value in range(Projection.BATCHES):
        projection(torch.full((1, 1, 2, 2), float(value)))
    assert float(projection.running_mean) == pytest.approx((Projection.BATCHES - 1) / 2, rel=1e-4)
    projection(torch.full((1, 1, 2, 2), 1e6))
    assert float(projection.running_mean) == pytest.approx((Projection.BATCHES - 1) / 2, rel=1e-4)


def test_dilated_projects_each_map_at_its_own_size() -> None:
    """… and then resizes: cheaper than the other way round, and the same."""
    shape = FeatureShape((10, 6), (32, 8), False)
    decoder: Any = build_decoder(DECODERS["dilated"], shape, 64).eval()
    randomise(decoder)
    features = features_of(shape)
    parts = [p(m) for p, m in zip(decoder.projections, features.maps, strict=True)]
    expected = F.relu(parts[0] + F.interpolate(parts[1], (32, 32), mode="bilinear"))
    seen: list[Tensor] = []
    decoder.widen.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert decoder(features).shape == (2, 64, 64)
    torch.testing.assert_close(seen[0], F.avg_pool2d(expected, 2).detach(), atol=1e-5, rtol=1e-5)


def test_dilated_looks_further_block_by_block_and_works_on_the_finest_grid() -> None:
    spec = DecoderSpec(kind="dilated", widths=(8, *(6,) * 6))
    decoder: Any = build_decoder(spec, FeatureShape((4, 6), (7, 28), False), 256)
    assert decoder.grid == 28
    assert [block.layers[0].dilation[0] for block in decoder.blocks] == [1, 2, 4, 8, 1, 2]
    assert decoder(features_of(FeatureShape((4, 6), (7, 28), False))).shape == (2, 256, 256)


# ── stem ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stem_starts_as_high_pass_filters_and_gives_a_quarter() -> None:
    torch.manual_seed(0)
    stem = Stem((4, 6, 8), 5).eval()
    assert stem(torch.rand(2, 3, 64, 64)).shape == (2, 5, 16, 16)
    flat = stem.residuals(torch.full((1, 3, 16, 16), 0.7))[:, :, 2:-2, 2:-2]
    assert float(flat.detach().abs().max()) < 1e-5


def test_a_stem_keeps_a_grey_level_under_bfloat16() -> None:
    """At 0.9, bfloat16 has steps of half a grey level and more: the noise of a photo would be gone."""
    torch.manual_seed(0)
    stem = Stem((4, 6, 8), 5).eval()
    faint = 0.9 + torch.randn(1, 3, 32, 32) / 255
    with torch.no_grad():
        exact = stem.residuals(faint)
        seen: list[Tensor] = []
        stem.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            stem(faint)
    torch.testing.assert_close(seen[0], exact)


def test_what_a_stem_sees_is_trained_with_the_decoder() -> None:
    spec = DecoderSpec(kind="dilated", widths=(8, 8, 8), stem=(4, 4, 4))
    shape = FeatureShape(channels=(3, 10), grids=(64, 8), has_cls=False)
    decoder: Any = build_decoder(spec, shape, 16)
    assert decoder.grid == 16 and isinstance(decoder.projections[0], Stem)
    features = Features((torch.rand(2, 3, 64, 64), torch.rand(2, 10, 8, 8)))
    logits = decoder(features)
    assert logits.shape == (2, 16, 16)
    logits.sum().backward()
    assert float(decoder.projections[0].residuals.weight.grad.abs().sum()) > 0
